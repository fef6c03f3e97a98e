"""Every chapter of the book, executed headless; and what the host saw of it."""

from __future__ import annotations

import json
import shutil

import pytest

from k8snet.jupyter.chapters import find_chapters
from tests import executed

CHAPTERS = [chapter.name for chapter in find_chapters()]


@pytest.fixture(scope="session")
def run() -> executed.Run:
    return executed.run()


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_chapter_runs_from_its_first_cell_to_its_last(run, name, record_property):
    """A reader who runs all cells must meet no error that the text does not handle."""
    record_property("seconds", run.seconds[name])
    assert run.outcomes[name] == ""


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_code_cell_of_the_chapter_was_executed(run, name):
    """A runner that stops early must not pass for one that came to the end."""
    notebook = json.loads((run.folder / f"{name}.ipynb").read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and cell["source"]]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))


@pytest.mark.parametrize("what", executed.LOOKS)
def test_the_network_of_the_host_is_the_same_before_during_and_after(run, what):
    """A lab that can be seen from the host could also harm it."""
    if shutil.which(executed.LOOKS[what][0]) is None:
        pytest.skip(f"{executed.LOOKS[what][0]} is not in this user's PATH")
    assert run.looks > 1
    assert len(run.seen[what]) == 1, "\n--- then ---\n".join(run.seen[what])


def test_no_process_is_left_when_the_chapters_have_run(run):
    """Each chapter's sandbox dies with its kernelspec, servers and captures in it too."""
    assert run.left_processes == []


def test_no_netns_is_left_when_the_chapters_have_run(run):
    """Names of netns live in the sandbox's own /run."""
    assert run.left_netns == []
