"""Finding chapters by name, and reading what their notebooks say about themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from k8snet.errors import InvalidInput, NotFound
from k8snet.jupyter.chapters import find_chapters


def write(folder: Path, name: str, *cells: tuple[str, str], **metadata: object) -> Path:
    content = {
        "cells": [
            {"cell_type": kind, "source": source.splitlines(keepends=True), "metadata": {}} for kind, source in cells
        ],
        "metadata": {"k8snet": metadata},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path = folder / name
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write(tmp_path, "00-start-here.ipynb", ("markdown", "# Start"))
    write(
        tmp_path, "03-bridge.ipynb", ("markdown", "# A bridge\n\nOne sentence. Another."), ("code", "1"), ("code", " ")
    )
    write(tmp_path, "10-ipvs.ipynb", ("code", "1"), requires=["ipvs"], timeout_s=90)
    return tmp_path


@pytest.mark.parametrize("name", ["3", "03", "bridge", "03-bridge", "03-bridge.ipynb"])
def test_a_chapter_is_found_by_number_slug_or_name(source, name):
    """Nobody remembers which of them a command wants."""
    assert [one.name for one in find_chapters([name], source=source)] == ["03-bridge"]


def test_without_a_name_all_chapters_come_in_the_order_of_the_book(source):
    assert [one.number for one in find_chapters(source=source)] == [0, 3, 10]


def test_the_order_asked_for_and_doubles_do_not_matter(source):
    """The same chapter must not run twice into the same file."""
    found = find_chapters(["ipvs", "3", "bridge"], source=source)
    assert [one.name for one in found] == ["03-bridge", "10-ipvs"]


def test_an_unknown_chapter_is_refused_with_a_list_of_those_there_are(source):
    with pytest.raises(NotFound, match=r"'bridges'\. There are: 00-start-here, 03-bridge, 10-ipvs$"):
        find_chapters(["bridge", "bridges"], source=source)


def test_copies_that_a_reader_keeps_are_no_chapters(source):
    """`k8snet reset` keeps an edited notebook beside the new one."""
    (source / "03-bridge.edited-1.ipynb").write_text("{}")
    assert len(find_chapters(source=source)) == 3


def test_a_folder_without_chapters_is_an_error(tmp_path):
    with pytest.raises(NotFound, match="no chapter"):
        find_chapters(source=tmp_path)


def test_title_summary_and_cells_come_from_the_notebook(source):
    """Cells without code get no number, so they are not counted."""
    chapter = find_chapters(["bridge"], source=source)[0]
    assert (chapter.title, chapter.summary, chapter.cells) == ("A bridge", "One sentence.", 1)


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("# T\n\nWho has it? Ask.", "Who has it?"),
        ("# T\n*Some words* in\ntwo lines. More.", "*Some words* in two lines."),
        ("# T\n\n## You will be able to\n\n- Make a\n  bridge.\n- *Break* it.\n\nProse.", "Make a bridge. *Break* it."),
        ("# T", ""),
    ],
)
def test_the_summary_is_the_first_list_or_the_first_sentence(tmp_path, text, summary):
    """A chapter opens with what its reader will be able to do, which is what a map should say."""
    write(tmp_path, "01-x.ipynb", ("markdown", text))
    assert find_chapters(source=tmp_path)[0].summary == summary


def test_metadata_names_what_a_chapter_needs(source):
    chapter = find_chapters(["10"], source=source)[0]
    assert (chapter.requires, chapter.timeout_s) == (("ipvs",), 90.0)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"timeout_s": "60"}, "timeout_s '60', not seconds"),
        ({"timeout_s": 0}, "timeout_s 0, not seconds"),
        ({"timeout_s": True}, "timeout_s True, not seconds"),
        ({"requires": "ipvs"}, "requires 'ipvs', not names"),
        ({"requires": [1]}, r"requires \[1\], not names"),
    ],
)
def test_metadata_that_cannot_be_used_is_refused(tmp_path, metadata, said):
    """A setting that is ignored in silence helps nobody."""
    write(tmp_path, "01-x.ipynb", **metadata)
    with pytest.raises(InvalidInput, match=said):
        find_chapters(source=tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"cells": [{}]}', '{"cells": 3}', '{"cells": [], "metadata": {"k8snet": 3}}']
)
def test_a_file_that_is_no_notebook_is_refused_by_name(tmp_path, text):
    (tmp_path / "01-x.ipynb").write_text(text)
    with pytest.raises(InvalidInput, match=r"01-x\.ipynb is not a notebook"):
        find_chapters(source=tmp_path)
