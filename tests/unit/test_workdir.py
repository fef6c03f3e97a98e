"""The reader's working copy: what an upgrade and a reset do to edited and unedited chapters."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from k8snet.errors import InvalidInput, NotFound
from k8snet.jupyter import workdir


def notebook(text: str, output: str = "") -> str:
    cell = {"cell_type": "code", "source": [text], "outputs": [output] if output else [], "metadata": {}}
    return json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "published"
    (folder / "manifests").mkdir(parents=True)
    (folder / ".gitkeep").touch()
    (folder / "manifests" / "web.yaml").write_text("kind: Pod")
    (folder / "01-one.ipynb").write_text(notebook("one"))
    (folder / "02-two.ipynb").write_text(notebook("two"))
    return folder


@pytest.fixture
def copy(tmp_path: Path, source: Path) -> Path:
    folder = tmp_path / "copy"
    assert workdir.update(folder, source=source) == []
    return folder


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_new_working_copy_has_all_that_is_published(copy: Path) -> None:
    """The chapters read their manifests from beside them."""
    assert names(copy) == ["01-one.ipynb", "02-two.ipynb", "manifests/web.yaml"]


def test_a_second_time_with_the_same_version_nothing_is_touched(copy: Path, source: Path) -> None:
    """A reader's edits stay, without a word, as long as there is nothing new."""
    (copy / "01-one.ipynb").write_text(notebook("mine"))
    assert workdir.update(copy, source=source) == []
    assert (copy / "01-one.ipynb").read_text() == notebook("mine")


def test_an_upgrade_replaces_what_was_only_run(copy: Path, source: Path) -> None:
    """Outputs come from running; they are no edits."""
    (copy / "01-one.ipynb").write_text(notebook("one", output="1"))
    (source / "01-one.ipynb").write_text(notebook("one, better"))
    assert workdir.update(copy, source=source) == ["01-one.ipynb was updated"]
    assert (copy / "01-one.ipynb").read_text() == notebook("one, better")


def test_an_upgrade_puts_the_new_version_beside_what_was_edited_and_says_so_once(copy: Path, source: Path) -> None:
    """Nobody's work is overwritten, and nobody is told twice."""
    (copy / "01-one.ipynb").write_text(notebook("mine"))
    (source / "01-one.ipynb").write_text(notebook("one, better"))
    (line,) = workdir.update(copy, source=source)
    assert "01-one.new.ipynb" in line
    assert (copy / "01-one.ipynb").read_text() == notebook("mine")
    assert (copy / "01-one.new.ipynb").read_text() == notebook("one, better")
    assert workdir.update(copy, source=source) == []


def test_a_file_that_the_reader_deleted_comes_back(copy: Path, source: Path) -> None:
    """A chapter is never lost for good."""
    (copy / "01-one.ipynb").unlink()
    assert workdir.update(copy, source=source) == []
    assert (copy / "01-one.ipynb").exists()


def test_without_the_record_an_edited_file_is_still_left_alone(copy: Path, source: Path, tmp_path: Path) -> None:
    """The state folder may be cleaned or damaged; then a difference counts as an edit."""
    for record in (tmp_path / "state").rglob("*.json"):
        record.write_text("{")
    (copy / "01-one.ipynb").write_text(notebook("mine"))
    (line,) = workdir.update(copy, source=source)
    assert line.startswith("01-one.ipynb has edits of yours")
    assert (copy / "01-one.ipynb").read_text() == notebook("mine")


@pytest.mark.parametrize("name", ["1", "01", "one", "01-one", "01-one.ipynb"])
def test_a_reset_restores_the_chapter_and_keeps_the_edited_one(copy: Path, source: Path, name: str) -> None:
    """The reader can always start over, and regret it."""
    for version in ("mine", "mine again"):
        (copy / "01-one.ipynb").write_text(notebook(version))
        done = workdir.reset(name, copy, source=source)
    assert done.chapter.read_text() == notebook("one")
    assert done.edited == copy / "01-one.edited-2.ipynb"
    assert (copy / "01-one.edited-1.ipynb").read_text() == notebook("mine")
    assert (copy / "01-one.edited-2.ipynb").read_text() == notebook("mine again")


def test_a_reset_of_what_was_only_run_keeps_no_copy(copy: Path, source: Path) -> None:
    """Outputs alone are not worth a file."""
    (copy / "01-one.ipynb").write_text(notebook("one", output="1"))
    assert workdir.reset("one", copy, source=source).edited is None
    assert names(copy) == ["01-one.ipynb", "02-two.ipynb", "manifests/web.yaml"]


def test_an_unknown_chapter_is_an_error_that_lists_those_there_are(copy: Path, source: Path) -> None:
    """A typing error costs one more look, not a search."""
    with pytest.raises(NotFound, match=r"01-one, 02-two"):
        workdir.reset("three", copy, source=source)


def test_the_published_book_is_no_working_copy(source: Path) -> None:
    """`--dir notebooks` in the repository would make every run a change to commit."""
    with pytest.raises(InvalidInput, match="--dir"):
        workdir.update(source, source=source)


def test_a_folder_that_cannot_be_made_is_an_error_that_says_what_to_do(source: Path) -> None:
    """A file may be in the way."""
    with pytest.raises(InvalidInput, match="--dir"):
        workdir.update(source / "01-one.ipynb" / "below", source=source)


def test_the_working_copy_is_where_the_variable_says_else_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers look for their files at home, not in a hidden folder."""
    monkeypatch.setenv("HOME", "/home/reader")
    monkeypatch.delenv("K8SNET_WORKDIR", raising=False)
    assert workdir.default_folder() == Path("/home/reader/k8snet-book")
    monkeypatch.setenv("K8SNET_WORKDIR", "/srv/book")
    assert workdir.default_folder() == Path("/srv/book")
