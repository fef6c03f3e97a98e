"""Exercises are solvable, and a chapter's transcript builds the chapter's network.

Each chapter is executed once more with cells of our own between the author's: after an
exercise, its check must fail; after its hidden solution, it must pass; before the lab is
closed, its transcript and its snapshot are kept.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from k8snet.jupyter.chapters import find_chapters, package_folder
from k8snet.jupyter.runner import execute
from k8snet.jupyter.vm import need
from tests.executed import alone
from tests.replay import replay

EXERCISE = re.compile(r"^(exercise|check)\(\"([\w-]+)\", (\w+)\)$", re.MULTILINE)
NOT_YET = "assert not check({slug!r}, {lab}).ok, 'the check of {slug} passes before anything was done'"
DONE = "assert check({slug!r}, {lab}).ok, str(check({slug!r}, {lab}))"
KEEP = """\
import json
print(json.dumps({"script": lab.transcript.script(), "config": lab.snapshot().config()}))
"""  # in an output, which comes out of a virtual machine, too
GUEST_S = 600  # seconds for what takes twenty in a sandbox: without KVM, and others at work
CHAPTERS = [chapter.name for chapter in find_chapters()]


def augmented(source: Path) -> nbformat.NotebookNode:
    """Return a chapter with the cells that hold its exercises and its transcript to their promise."""
    notebook = nbformat.read(source, as_version=4)
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.rstrip().endswith("lab.close()"):
            cells.append(nbformat.v4.new_code_cell(KEEP))
        cells.append(cell)
        for kind, slug, lab in EXERCISE.findall(cell.source) if cell.cell_type == "code" else []:
            text = (NOT_YET if kind == "exercise" else DONE).format(slug=slug, lab=lab)
            cells.append(nbformat.v4.new_code_cell(text))
    notebook.cells = cells
    return notebook


@pytest.fixture(scope="session")
def graded():
    """Where the chapters were executed with our cells in them, and why each failed; "" if it did not."""
    with alone("graded") as folder:
        if not (folder / "done.json").exists():
            (folder / "source").mkdir(parents=True, exist_ok=True)
            shutil.copytree(package_folder("notebooks") / "manifests", folder / "source" / "manifests")
            for chapter in find_chapters():
                nbformat.write(augmented(chapter.path), folder / "source" / chapter.path.name)
            results = execute(find_chapters(source=folder / "source"), output=folder / "executed", jobs=2)
            failures = {
                one.chapter.name: f"{one.failure.source}\n{one.failure.reason}" if one.failure else ""
                for one in results
            }
            (folder / "done.json").write_text(json.dumps(failures))
        return folder, json.loads((folder / "done.json").read_text())


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_check_fails_before_and_passes_after_the_hidden_solution(graded, name):
    _, failures = graded
    assert failures[name] == ""


@pytest.mark.parametrize("chapter", find_chapters(), ids=CHAPTERS)
def test_a_chapter_has_exercises_each_with_a_solution_and_a_check(chapter):
    cells = [cell for cell in nbformat.read(chapter.path, as_version=4).cells if cell.cell_type == "code"]
    found = [(kind, slug) for cell in cells for kind, slug, _ in EXERCISE.findall(cell.source)]
    asked = [slug for kind, slug in found if kind == "exercise"]
    assert (2 if chapter.number == 0 else 3) <= len(asked) <= 5
    assert [slug for kind, slug in found if kind == "check"] == asked
    assert sum("solution" in cell.metadata.get("tags", []) for cell in cells) >= len(asked)


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_transcript_of_a_chapter_builds_its_network_in_a_fresh_sandbox(graded, name, tmp_path):
    """What the library and the by-hand cells did is what a person could have typed."""
    kept = kept_by(graded[0] / "executed" / f"{name}.ipynb")
    in_guest = need.reasons(find_chapters([name]))
    built = replay_in_guest(kept["script"]) if in_guest else replay(kept["script"], tmp_path)
    assert built == kept["config"]


def kept_by(executed: Path) -> Any:
    """Return what the cell KEEP has printed."""
    cells = nbformat.read(executed, as_version=4).cells
    (outputs,) = [cell.outputs for cell in cells if cell.source.strip() == KEEP.strip()]
    return json.loads("".join(one.text for one in outputs))


def replay_in_guest(script: str) -> Any:
    """Do what replay() does, in the virtual machine, which shares no folder for the script, and has just booted."""
    command = f"cat > /tmp/script && bash /tmp/script >&2 && {sys.executable} -m k8snet.observe.snapshot"
    done = subprocess.run(
        [sys.executable, "-m", "k8snet.cli", "sandbox", "--vm", "--", "sh", "-c", command],
        input=script, capture_output=True, text=True, check=False, timeout=GUEST_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)
