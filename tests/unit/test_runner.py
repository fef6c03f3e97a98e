"""Running chapters: what is executed, what is said of failures, what is left.

With the kernelspec python3, which needs no sandbox; tests/notebooks has the real one.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from k8snet.errors import InvalidInput, NotFound
from k8snet.jupyter import runner
from k8snet.jupyter.chapters import Chapter, find_chapters
from k8snet.jupyter.runner import Result, Watcher, execute, run_chapters

DIVIDES_BY_ZERO = "def f(y):\n    return 1 / y\n\nf(0)"


def chapter(folder: Path, name: str, *sources: str, tags: tuple[str, ...] = (), **metadata: object) -> None:
    code = {"cell_type": "code", "execution_count": None, "outputs": []}
    cells = [
        {**code, "id": f"cell-{number}", "metadata": {"tags": list(tags)}, "source": source}
        for number, source in enumerate(sources)
    ]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {
        "cells": cells,
        "metadata": {"kernelspec": spec, "k8snet": metadata},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.ipynb").write_text(json.dumps(notebook))


def outputs(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text())["cells"]
    return [
        "".join(one.get("text", one.get("data", {}).get("text/plain", ""))) for cell in cells for one in cell["outputs"]
    ]


class Told(Watcher):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def started(self, chapter: Chapter) -> None:
        self.heard.append(f"{chapter.number} starts")

    def reached(self, chapter: Chapter, cell: int) -> None:
        self.heard.append(f"{chapter.number} at {cell}")

    def ended(self, result: Result) -> None:
        self.heard.append(f"{result.chapter.number} {'passed' if result.ok else 'failed'}")


def run(
    folder: Path, *names: str, output: Path | None = None, terminal: bool = False, kernel: str = "python3"
) -> tuple[int, str]:
    said = io.StringIO()
    console = Console(file=said, width=100, force_terminal=terminal, highlight=False)
    code = run_chapters(names, output=output, jobs=2, kernel=kernel, source=folder, console=console)
    return code, said.getvalue()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, Path]:
    """A run of three chapters, of which the second fails in its second cell."""
    folder = tmp_path_factory.mktemp("mixed")
    chapter(folder / "in", "01-good", "print('one')", "", "2")
    chapter(folder / "in", "02-bad", "x = 1", DIVIDES_BY_ZERO, "'never reached'")
    chapter(folder / "in", "03-solved", "print('the solution ran')", tags=("solution",))
    code, said = run(folder / "in", output=folder / "out")
    return code, said, folder / "out"


def test_one_failure_makes_the_exit_code_1_and_the_others_run_to_their_end(mixed):
    """A summary of half a run would hide the second failure behind the first."""
    code, said, output = mixed
    assert code == 1
    assert outputs(output / "01-good.ipynb") == ["one\n", "2"]
    assert "1 failed" in said


def test_the_failing_cell_is_shown_with_its_source_and_the_last_frames(mixed):
    """Who reads a log of CI has no notebook to look at."""
    _, said, _ = mixed
    shown = said[said.index("02-bad failed, cell 2 of 3:") :]
    assert "return 1 / y" in shown
    assert "ZeroDivisionError: division by zero" in shown


def test_what_is_printed_has_no_colours_where_there_is_no_terminal(mixed):
    """IPython's traceback comes with escape sequences."""
    assert "\x1b" not in mixed[1]


def test_a_line_is_printed_when_a_chapter_ends_where_there_is_no_terminal(mixed):
    """A log that is silent for a minute looks like one that hangs."""
    lines = mixed[1].splitlines()
    assert [line.split(",")[0] for line in lines if line.startswith("01-good:")] == ["01-good: 2 cells"]
    assert [line.partition("FAILED")[2] for line in lines if line.startswith("02-bad:")] == [", cell 2 of 3"]


def test_papermill_prints_nothing_into_what_we_print(mixed):
    assert not any(word in mixed[1] for word in ("Executing", "Black is not installed", "papermill", "Input Notebook"))


def test_a_hidden_solution_is_executed_like_any_other_cell(mixed):
    """The tests of exercises stand on it."""
    assert outputs(mixed[2] / "03-solved.ipynb") == ["the solution ran\n"]


def test_a_failed_chapter_is_kept_as_far_as_it_came(mixed):
    executed = json.loads((mixed[2] / "02-bad.ipynb").read_text())
    assert any(
        cell.get("outputs") and cell["outputs"][-1].get("ename") == "ZeroDivisionError" for cell in executed["cells"]
    )


def test_a_terminal_gets_a_bar_for_each_chapter(tmp_path):
    chapter(tmp_path, "01-good", "1", "2")
    code, said = run(tmp_path, terminal=True)
    assert code == 0
    assert "2/2" in said
    assert "all passed" in said


def test_a_chapter_runs_beside_copies_of_its_manifests_and_not_in_our_folder(tmp_path, monkeypatch):
    """Chapters name manifests/x.yaml, whatever folder the runner was started in."""
    chapter(
        tmp_path / "in",
        "01-good",
        "import os; print(open('manifests/a.yaml').read())",
        "print(os.environ['K8SNET_WORKDIR'] == os.getcwd())",
    )
    (tmp_path / "in" / "manifests").mkdir()
    (tmp_path / "in" / "manifests" / "a.yaml").write_text("kind: Pod")
    monkeypatch.chdir("/")
    code, said = run(tmp_path / "in", output=tmp_path / "out")
    assert (code, outputs(tmp_path / "out" / "01-good.ipynb")) == (0, ["kind: Pod\n", "True\n"]), said


def test_nothing_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    """Runs of every day would fill it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    chapter(tmp_path / "in", "01-good", "import pathlib; pathlib.Path('rubbish').write_text('x')")
    assert run(tmp_path / "in")[0] == 0
    assert list((tmp_path / "tmp").iterdir()) == []


def test_two_chapters_run_at_the_same_time(tmp_path):
    """Each waits for a file of the other, so neither can end alone."""
    wait = """
import pathlib, time
mine, other = pathlib.Path({mine!r}), pathlib.Path({other!r})
mine.touch()
deadline = time.monotonic() + 30
while not other.exists():
    assert time.monotonic() < deadline, "the other one did not start"
    time.sleep(0.02)
"""
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    chapter(tmp_path / "in", "01-a", wait.format(mine=a, other=b))
    chapter(tmp_path / "in", "02-b", wait.format(mine=b, other=a))
    assert run(tmp_path / "in")[0] == 0


def test_the_longest_chapter_starts_first_and_results_keep_the_order_of_the_book(tmp_path):
    """Started last, it would run alone at the end."""
    chapter(tmp_path / "in", "01-short", "1")
    chapter(tmp_path / "in", "02-long", "1", timeout_s=120)
    told = Told()
    results = execute(
        find_chapters(source=tmp_path / "in"), output=tmp_path / "out", jobs=1, kernel="python3", watcher=told
    )
    assert told.heard == ["2 starts", "2 at 1", "2 passed", "1 starts", "1 at 1", "1 passed"]
    assert [result.chapter.number for result in results] == [1, 2]


def test_a_chapter_that_hangs_is_ended_and_says_where_it_was(tmp_path, monkeypatch):
    """The time is short enough to end Python before or in its cell: both are said."""
    monkeypatch.setattr(runner, "PATIENCE", 1)
    chapter(tmp_path, "01-stuck", "import time; time.sleep(600)", timeout_s=4)
    code, said = run(tmp_path)
    assert code == 1
    assert "it was still running after 4 s, and was ended" in said


def test_a_chapter_whose_python_dies_fails_and_names_what_it_needs(tmp_path):
    chapter(tmp_path, "01-dies", "import os; os._exit(3)", requires=["ipvs", "bpf"])
    code, said = run(tmp_path)
    assert code == 1
    assert "01-dies failed, cell 1 of 1" in said
    assert "This chapter needs ipvs, bpf: `k8snet doctor`" in said


def test_a_kernelspec_that_is_not_there_is_said(tmp_path):
    chapter(tmp_path, "01-good", "1")
    code, said = run(tmp_path, kernel="no-such-kernelspec")
    assert code == 1
    assert "before its first cell" in said
    assert "no-such-kernelspec" in said


@pytest.mark.parametrize("jobs", [0, -1])
def test_at_least_one_chapter_must_run_at_a_time(tmp_path, jobs):
    chapter(tmp_path, "01-good", "1")
    with pytest.raises(InvalidInput, match=f"jobs is {jobs}: at least one"):
        run_chapters([], output=None, jobs=jobs, source=tmp_path)


def test_an_unknown_chapter_stops_the_run_before_it_begins(tmp_path):
    chapter(tmp_path / "in", "01-good", "1")
    with pytest.raises(NotFound, match="There are: 01-good"):
        run_chapters(["7"], output=tmp_path / "out", jobs=1, source=tmp_path / "in")
    assert not (tmp_path / "out").exists()
