"""Execute one chapter, in a process of its own: the child's side of the runner."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import papermill
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from k8snet.jupyter.chapters import Chapter, code_cells

__all__ = ["Failure", "Job", "failure", "work"]

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LAST_FRAMES = 3
START_TIMEOUT_S = 180  # a virtual machine on one busy core


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker is told."""

    chapter: Chapter
    target: Path  # where the executed notebook goes
    folder: Path  # the worker's own: the kernelspec's working folder, and its log
    kernel: str

    @property
    def log(self) -> Path:
        """Where everything goes that papermill, Jupyter and the kernelspec print."""
        return self.folder / "log"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a chapter did not come to its end."""

    where: str  # as "cell 3 of 20"
    source: str  # of the failing cell; empty where none was running
    reason: str  # the last frames of the traceback, without colours


class _Engine(NBClientEngine):  # type: ignore[misc]  # papermill has no types
    """papermill's own engine, which also tells how far it is."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: Any, kernel_name: str, *, begun: Callable[[int], None], **options: Any
    ) -> Any:  # papermill says no more
        """Execute as the base class does, calling *begun* with the number of each code cell."""
        number = 0
        start = nb_man.cell_start

        def cell_start(cell: Any, cell_index: int | None = None, **more: Any) -> None:
            nonlocal number
            if cell.cell_type == "code" and cell.source.strip():
                number += 1
                begun(number)
            start(cell, cell_index, **more)

        nb_man.cell_start = cell_start
        return super().execute_managed_notebook(nb_man, kernel_name, **options)


def work(job: Job, report: Connection) -> None:
    """Execute the chapter of *job*; send each cell's number, and at the end None or a Failure."""
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is the runner's to answer
    threading.Thread(target=_end_with_the_runner, daemon=True).start()
    _keep_quiet(job.log)
    home = _home(job)
    os.environ["K8SNET_WORKDIR"] = str(home)
    os.environ["TMPDIR"] = str(home.with_name("tmp"))  # what a killed lab leaves there goes with our folder
    os.environ["JUPYTER_RUNTIME_DIR"] = str(job.folder / "runtime")
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # our kernelspec, not one of the same name
    reached = 0

    def begun(number: int) -> None:
        nonlocal reached
        reached = number
        report.send(number)

    papermill_engines.register("k8snet", _Engine)
    try:
        papermill.execute_notebook(
            job.chapter.path, job.target, engine_name="k8snet", kernel_name=job.kernel,
            cwd=home, progress_bar=False, start_timeout=START_TIMEOUT_S, begun=begun,
        )  # fmt: skip
    except PapermillExecutionError as error:
        report.send(failure(job.chapter, reached, _last_frames(error)))
    except Exception as error:  # noqa: BLE001  # whatever it was, the summary must say it
        told = f"{type(error).__name__}: {error}"
        report.send(failure(job.chapter, reached, told))
    else:
        report.send(None)


def failure(chapter: Chapter, reached: int, reason: str) -> Failure:
    """Return the failure of a chapter whose code cell number *reached* has begun."""
    if reached == 0:
        return Failure(where="before its first cell", source="", reason=reason)
    source = code_cells(chapter.path)[reached - 1]
    return Failure(where=f"cell {reached} of {chapter.cells}", source=source, reason=reason)


def _last_frames(error: PapermillExecutionError) -> str:
    frames = [ANSI.sub("", frame).rstrip() for frame in error.traceback]
    return "\n".join(frames[-LAST_FRAMES:]) or f"{error.ename}: {error.evalue}"


def _home(job: Job) -> Path:
    """Make the folder that the chapter runs in: what lies beside its notebook is there too."""
    home = job.folder / "home"
    shutil.copytree(job.chapter.path.parent, home, ignore=shutil.ignore_patterns("*.ipynb", ".*", "__pycache__"))
    home.with_name("tmp").mkdir()
    return home


def _keep_quiet(log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _end_with_the_runner() -> None:
    runner = parent_process()
    if runner is not None:
        runner.join()
        os.kill(os.getpid(), signal.SIGKILL)  # the sandbox sees it, and ends too
