"""However the runner ends, its chapters end with it: kernelspecs, sandboxes and what runs in them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import nbformat
import pytest

from tests import executed

PROGRAM = """
import sys
from pathlib import Path
from k8snet.jupyter.runner import run_chapters
if __name__ == "__main__":
    sys.exit(run_chapters([], output=None, jobs=2, source=Path(sys.argv[1])))
"""
CELL = """
import pathlib, subprocess, time
subprocess.Popen(['sleep', '600'])
pathlib.Path({reached!r}).touch()
time.sleep(600)
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two chapters that start a child and wait for ever; each tells by a file that it got there."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in ("01-a", "02-b"):
        cell = nbformat.v4.new_code_cell(CELL.format(reached=str(tmp_path / name)))
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / f"{name}.ipynb")
    return folder


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)], ids=["SIGINT", "SIGKILL"])
def test_no_process_outlives_a_runner_that_was_stopped(source, tmp_path, number, code):
    """Ctrl-C in a run that takes too long, or the out-of-memory killer."""
    mark = uuid.uuid4().hex
    (tmp_path / "program.py").write_text(PROGRAM)
    runner = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(source)],
        env={**os.environ, executed.MARK: mark, "TMPDIR": str(tmp_path)}, start_new_session=True,
    )  # fmt: skip
    try:
        both = [tmp_path / "01-a", tmp_path / "02-b"]
        assert executed.eventually(lambda: all(path.exists() for path in both), timeout_s=60)
        assert sum("sleep 600" in line for line in executed.marked_processes(mark)) == 2
        runner.send_signal(number)
        assert runner.wait(20) == code
    finally:
        runner.kill()
        runner.wait()
    assert executed.eventually(lambda: not executed.marked_processes(mark), timeout_s=5), executed.marked_processes(
        mark
    )
