"""The static book's source: what becomes of executed notebooks on their way to a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from k8snet.errors import InvalidInput, NotFound
from k8snet.jupyter import book
from k8snet.jupyter.book import build, gather, page_of, public_modules
from k8snet.jupyter.chapters import find_chapters

OTHERS = ("k8snet.jupyter", "k8snet.cli", "k8snet._", "k8snet.teach.exercises")
WIDGET = "application/vnd.jupyter.widget-view+json"


def cell(*outputs: dict[str, Any], tags: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "cell_type": "code", "source": "1", "execution_count": 1, "outputs": list(outputs),
        "metadata": {"tags": list(tags), "papermill": {"duration": 1}},
    }  # fmt: skip


def shown(**data: str) -> dict[str, Any]:
    kinds = {"html": "text/html", "plain": "text/plain", "widget": WIDGET, "png": "image/png"}
    return {"output_type": "display_data", "metadata": {}, "data": {kinds[kind]: value for kind, value in data.items()}}


def page(*cells: dict[str, Any]) -> dict[str, Any]:
    metadata = {"kernelspec": {"name": "k8snet"}, "widgets": {"state": {}}, "papermill": {"output_path": "somewhere"}}
    return page_of({"cells": list(cells), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def test_a_solution_is_folded_under_its_name():
    """myst-nb's own words would be "Show code cell content"."""
    made = page(cell(tags=("solution",)))["cells"][0]["metadata"]
    assert made["tags"] == ["solution", "hide-cell"]
    assert made["mystnb"]["code_prompt_show"] == "Solution"


def test_a_cell_that_is_no_solution_stays_open():
    assert page(cell(tags=("setup",)))["cells"][0]["metadata"] == {"tags": ["setup"]}


def test_a_widget_that_brings_html_is_shown_by_it():
    output = page(cell(shown(html="<b>1</b>", plain="Box()", widget="{}")))["cells"][0]["outputs"][0]
    assert output["data"] == {"text/html": "<b>1</b>", "text/plain": "Box()"}


def test_a_widget_that_needs_a_kernel_is_left_out():
    """Text like "HBox(children=(Button(),))" tells a reader nothing."""
    outputs = page(cell(shown(plain="Box()", widget="{}"), shown(plain="1")))["cells"][0]["outputs"]
    assert [output["data"] for output in outputs] == [{"text/plain": "1"}]


def test_a_page_keeps_no_path_of_the_machine_that_made_it():
    """Papermill writes where it read and wrote into the notebook."""
    assert page(cell())["metadata"] == {"kernelspec": {"name": "k8snet"}}


def test_the_reference_has_the_modules_a_reader_imports_and_no_others():
    modules = dict(public_modules())
    assert modules["k8snet.linux.link"].startswith("Interfaces")
    assert not [name for name in modules if name.startswith(OTHERS)]


def test_an_executed_chapter_that_is_missing_is_named(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "01-x.ipynb").write_text(json.dumps({"cells": [], "metadata": {}}))
    with pytest.raises(NotFound, match=r"01-x\.ipynb is not in"):
        gather(tmp_path / "out", chapters=find_chapters(source=tmp_path / "in"), executed=tmp_path)


def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path, monkeypatch):
    """`k8snet book --output ~` must not empty a home."""
    (tmp_path / "letters.txt").write_text("dear reader")
    monkeypatch.setattr("k8snet.jupyter.runner.execute", lambda *_, **__: pytest.fail("it ran chapters first"))
    with pytest.raises(InvalidInput, match="holds something else than a book"):
        build(output=tmp_path, executed=None, jobs=1)
    assert (tmp_path / "letters.txt").read_text() == "dear reader"


def test_a_link_of_the_repository_that_the_book_lacks_becomes_plain_text(tmp_path, monkeypatch):
    """The benchmarks' page names files of the repository, which stand beside it there only."""
    (tmp_path / "book").mkdir()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "results.json").write_text("{}")
    text = "[a](results.json) [b](../k8snet/lab.py) [c](https://example.org) ![d](gone.svg)"
    (tmp_path / "benchmarks" / "README.md").write_text(text)
    monkeypatch.setattr(book, "package_folder", lambda part: tmp_path / part)
    target = gather(tmp_path / "out", chapters=[], executed=tmp_path)
    expected = "[a](results.json) b [c](https://example.org) d"
    assert (target / "benchmarks" / "README.md").read_text() == expected
    assert (target / "changelog.md").read_text().startswith("# Changes\n\nThis copy of k8snet was installed without it")


def test_gathering_puts_originals_and_pages_side_by_side(tmp_path: Path):
    source = {"cells": [{"cell_type": "markdown", "source": "# T\n\nSays this.", "metadata": {}}], "metadata": {}}
    for folder in ("in", "executed"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "01-x.ipynb").write_text(json.dumps(source))
    target = gather(tmp_path / "out", chapters=find_chapters(source=tmp_path / "in"), executed=tmp_path / "executed")
    assert (target / "_originals" / "01-x.ipynb").read_text() == json.dumps(source)
    assert "| 01 | [T](chapters/01-x.ipynb) | Says this. |" in (target / "_generated" / "map.md").read_text()
