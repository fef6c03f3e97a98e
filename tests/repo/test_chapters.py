"""The notebooks: stripped, in the fixed order of sections, and true to the library."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECTIONS = [
    "What you will be able to do", "Where we are", "Predict", "Build by hand", "Observe", "Explain",
    "The same by library", "Break",
    "Diagnose and fix", "Measure", "Exercises", "Summary", "What real clusters do differently",
    "What older tutorials get wrong", "Next",
]  # fmt: skip
OPTIONAL = {"Measure"}  # where no number matters
LONGEST_CELL, LONGEST_LINE = 20, 79  # lines, columns
FIGURES = range(4, 13)
WORDS = range(1500, 3400)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
NAME = re.compile(r"`(k8snet(?:\.\w+)+)(?:\(\))?`")
pytestmark = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def cells(path: Path, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == kind]


def prose(path: Path) -> str:
    return "\n".join(cell.source for cell in cells(path, "markdown"))


def test_the_outputs_are_stripped(path):
    assert all(not cell.outputs and cell.execution_count is None for cell in cells(path, "code"))


def test_the_kernelspec_is_ours_and_the_needs_are_named(path):
    metadata = read(path).metadata
    assert metadata.kernelspec.name.startswith("k8snet")
    assert {"slug", "requires", "timeout_s"} <= set(metadata.k8snet)
    assert metadata.k8snet.slug == path.stem


def test_the_sections_come_in_the_fixed_order(path):
    titles = re.findall(r"^# (.+)$", prose(path), re.MULTILINE)
    assert len(titles) == 1
    found = []
    for heading in re.findall(r"^## (.+)$", prose(path), re.MULTILINE):
        matching = [one for one in SECTIONS if heading.startswith(one)]
        assert matching, f"{heading!r} begins like no section of DESIGN"
        found.append(max(matching, key=len))
    assert found == sorted(found, key=SECTIONS.index)
    assert len(found) == len(set(found))
    if not path.stem.startswith("00"):
        assert set(SECTIONS) - set(found) <= OPTIONAL


def test_cells_are_short_and_fit_the_page(path):
    for cell in cells(path, "code"):
        lines = cell.source.split("\n")
        assert len(lines) <= LONGEST_CELL, cell.source
        assert max(map(len, lines)) <= LONGEST_LINE, cell.source


def test_a_chapter_has_figures_and_each_has_a_full_sentence_under_it(path):
    drawn = [cell.source for cell in cells(path, "code") if ".diagram(" in cell.source or "plot(" in cell.source]
    if not path.stem.startswith("00"):
        assert len(drawn) in FIGURES
        assert len(prose(path).split()) in WORDS
    for source in drawn:
        if "caption" in source:
            captions = re.findall(r"caption=\(?\s*((?:f?\"[^\"]*\"\s*)+)", source)
            assert captions, source
            assert all(text.rstrip().endswith('."') for text in captions), source
    assert sum("caption" in source for source in drawn) >= 3


def test_the_chapter_starts_from_nothing_and_closes_its_lab(path):
    code = [cell.source for cell in cells(path, "code")]
    assert code[0].startswith("%load_ext k8snet")
    assert code[-1].rstrip().endswith("lab.close()")


def test_by_hand_equals_by_library(path):
    code = "\n".join(cell.source for cell in cells(path, "code"))
    if not path.stem.startswith("00"):
        assert re.search(r"assert .*snapshot\(\) == by_hand", code)
        assert "lab.transcript" in code


def test_links_lead_somewhere(path):
    for target in LINK.findall(prose(path)):
        if target.startswith("http"):
            assert target.startswith("https://"), target
        else:
            assert (path.parent / target).exists(), target


def test_every_name_of_the_library_that_prose_mentions_exists(path):
    for name in NAME.findall(prose(path)):
        parts = name.split(".")
        found = importlib.import_module("k8snet")
        for depth, part in enumerate(parts[1:], 2):
            try:
                found = importlib.import_module(".".join(parts[:depth]))
            except ModuleNotFoundError:
                found = getattr(found, part, None)
            assert found is not None, name


def test_every_exercise_of_the_chapter_is_in_the_notebook(path):
    module = importlib.import_module(f"k8snet.teach.exercises.chapter_{path.stem[:2]}")
    code = "\n".join(cell.source for cell in cells(path, "code"))
    for one in module.EXERCISES:
        assert one.slug.startswith(f"{path.stem[:2]}-")
        assert f'exercise("{one.slug}"' in code
        assert 2 <= len(one.hints) <= 3
