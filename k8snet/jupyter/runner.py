"""Execute chapters with papermill, several at once, and say how it went.

    run_chapters        what `k8snet run` calls: progress, failures, a table, an exit code
    └── execute         one process a chapter (worker.py), the longest first
        └── papermill   in that process; its kernelspec puts each chapter in a sandbox,
                    or in a virtual machine where this Linux lacks what it needs

A worker ends when its runner does, and a sandbox when its worker does, so that an
interrupt or a SIGKILL of the runner leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax
from rich.table import Table

from k8snet.errors import InvalidInput
from k8snet.jupyter.chapters import Chapter, find_chapters
from k8snet.jupyter.vm import machine, need
from k8snet.jupyter.worker import Failure, Job, failure, work

__all__ = ["Failure", "Result", "execute", "run_chapters", "show_run"]

KERNELSPEC = "k8snet"
PATIENCE = 5  # a slow machine gets that many times the seconds that a chapter names
IN_VM = 4  # and a virtual machine without KVM that many times those
INTERRUPTED = 130  # the exit code that shells use
LOG_LINES = 20


@dataclass(frozen=True, kw_only=True)
class Result:
    """How the execution of one chapter ended."""

    chapter: Chapter
    notebook: Path  # executed, as far as it came
    seconds: float  # from the start of its process to its end
    failure: Failure | None = None

    @property
    def ok(self) -> bool:
        """Whether every cell ran without an error."""
        return self.failure is None


class Watcher:
    """What is told while chapters run; this one listens to nothing."""

    def moved(self, chapter: Chapter, why: str) -> None:
        """Hear that *chapter* will run in the virtual machine, and why."""

    def started(self, chapter: Chapter) -> None:
        """Hear that *chapter* begins."""

    def reached(self, chapter: Chapter, cell: int) -> None:
        """Hear that code cell number *cell* begins."""

    def ended(self, result: Result) -> None:
        """Hear how a chapter ended."""


def run_chapters(
    chapters: Sequence[str], *, output: Path | None, jobs: int, kernel: str | None = None,
    source: Path | None = None, console: Console | None = None,
) -> int:  # fmt: skip
    """Execute chapters, show how it goes, and return an exit code: 1 on any failure.

    Args:
        chapters: their numbers, slugs or full names; all if none is named.
        output: the folder for the executed notebooks; None throws them away.
        jobs: how many run at once.
        kernel: the kernelspec, instead of "k8snet", or "k8snet-vm" for what needs it here.
        source: the folder of the notebooks, instead of the book's own.
        console: where to print, instead of standard output.

    Raises:
        NotFound: no chapter has that name; the message lists those there are.
        InvalidInput: *jobs* is less than 1, or a notebook cannot be read.
    """
    console = console or Console(highlight=False)
    found = find_chapters(chapters, source=source)
    with _kept(output) as folder:
        code = show_run(found, output=folder, jobs=jobs, kernel=kernel, console=console)
    if output and code != INTERRUPTED:
        console.print(f"executed notebooks: {output}", soft_wrap=True)
    return code


def show_run(
    chapters: Sequence[Chapter], *, output: Path, jobs: int, console: Console, kernel: str | None = None
) -> int:
    """Execute *chapters* into *output*, show how it goes, and return an exit code."""
    begun = time.monotonic()
    try:
        with _show(console, chapters) as watcher:
            results = execute(chapters, output=output, jobs=jobs, kernel=kernel, watcher=watcher)
    except KeyboardInterrupt:
        console.print("interrupted: every chapter was ended")
        return INTERRUPTED
    for result in results:
        if result.failure:
            _print_failure(console, result.chapter, result.failure)
    console.print(_summary(results, time.monotonic() - begun))
    return 0 if all(result.ok for result in results) else 1


def execute(
    chapters: Sequence[Chapter], *, output: Path, jobs: int, kernel: str | None = None,
    watcher: Watcher | None = None,
) -> list[Result]:  # fmt: skip
    """Execute *chapters*, the longest first, and return their results in the order given.

    Args:
        chapters: what to execute, from find_chapters().
        output: the folder for the executed notebooks.
        jobs: how many run at once.
        kernel: the kernelspec, instead of "k8snet", or "k8snet-vm" for what needs it here.
        watcher: is told of every start, cell and end.

    Raises:
        InvalidInput: *jobs* is less than 1.
        K8snetError: a chapter needs the virtual machine, and it is not prepared.
    """
    if jobs < 1:
        raise InvalidInput(f"jobs is {jobs}: at least one chapter must run at a time")
    watcher = watcher or Watcher()
    kernels = _kernels(chapters, kernel, watcher)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="k8snet-run-", ignore_cleanup_errors=True) as scratch:
        todo = [
            Job(chapter=chapter, target=(output / chapter.path.name).resolve(),
                folder=Path(scratch, chapter.name), kernel=kernels[chapter.name])
            for chapter in chapters
        ]  # fmt: skip
        todo.sort(key=lambda job: (job.chapter.timeout_s, job.chapter.cells), reverse=True)
        results = _work_through(todo, jobs, watcher)
    return [results[chapter.name] for chapter in chapters]


def _kernels(chapters: Sequence[Chapter], kernel: str | None, watcher: Watcher) -> dict[str, str]:
    """Return the kernelspec of each chapter."""
    if kernel:
        return dict.fromkeys((chapter.name for chapter in chapters), kernel)
    reasons = need.reasons(chapters)
    for chapter in chapters:
        if chapter.name in reasons:
            watcher.moved(chapter, reasons[chapter.name])
    return {one.name: need.KERNELSPEC if one.name in reasons else KERNELSPEC for one in chapters}


# -- the workers -----------------------------------------------------------------------


@dataclass(kw_only=True)
class _Worker:
    job: Job
    process: SpawnProcess
    pipe: Connection
    begun: float = field(default_factory=time.monotonic)
    cell: int = 0

    @property
    def patience(self) -> float:
        slow = IN_VM if _in_vm(self.job) else 1
        return PATIENCE * slow * self.job.chapter.timeout_s

    @property
    def deadline(self) -> float:
        return self.begun + self.patience

    def hear(self, watcher: Watcher) -> Result | None:
        """Read what the worker has sent; return the result once it has ended."""
        try:
            while self.pipe.poll():
                message = self.pipe.recv()
                if not isinstance(message, int):
                    return self.result(message)
                self.cell = message
                watcher.reached(self.job.chapter, message)
        except EOFError:
            return self.result(self.failure(f"its process ended early. It printed:\n{self.tail()}"))
        if time.monotonic() > self.deadline:
            return self.result(self.failure(f"it was still running after {self.patience:g} s, and was ended"))
        return None

    def failure(self, reason: str) -> Failure:
        return failure(self.job.chapter, self.cell, reason)

    def result(self, failure: Failure | None) -> Result:
        if failure and not self.cell and (log := self.tail()) and log not in failure.reason:
            failure = self.failure(f"{failure.reason}\nIts kernelspec printed:\n{log}")
        return Result(
            chapter=self.job.chapter, notebook=self.job.target, failure=failure,
            seconds=time.monotonic() - self.begun,
        )  # fmt: skip

    def tail(self) -> str:
        with contextlib.suppress(OSError):
            lines = self.job.log.read_text(errors="replace").splitlines()
            return "\n".join(lines[-LOG_LINES:])
        return ""

    def end(self, *, at_once: bool) -> None:
        """Let the process end by itself, or kill it; both within seconds."""
        if not at_once:
            self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.pipe.close()


def _work_through(todo: list[Job], jobs: int, watcher: Watcher) -> dict[str, Result]:
    running: list[_Worker] = []
    results: dict[str, Result] = {}
    guests = machine.at_once() if any(map(_in_vm, todo)) else 0
    try:
        while todo or running:
            while len(running) < jobs and (job := _next(todo, running, guests)):
                todo.remove(job)
                running.append(_start(job, watcher))
            patience = min(worker.deadline for worker in running) - time.monotonic()
            wait([worker.pipe for worker in running], timeout=max(patience, 0) + 0.1)
            for worker in list(running):
                if result := worker.hear(watcher):
                    running.remove(worker)
                    worker.end(at_once=not result.ok)
                    results[worker.job.chapter.name] = result
                    watcher.ended(result)
    finally:
        for worker in running:  # an interrupt, or an error of ours
            worker.end(at_once=True)
    return results


def _next(todo: Sequence[Job], running: Sequence[_Worker], guests: int) -> Job | None:
    """Return the first job that may begin: no more than so many have a virtual machine at once."""
    full = sum(_in_vm(worker.job) for worker in running) >= guests
    return next((job for job in todo if not (full and _in_vm(job))), None)


def _in_vm(job: Job) -> bool:
    return job.kernel == need.KERNELSPEC


def _start(job: Job, watcher: Watcher) -> _Worker:
    job.folder.mkdir()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(job, theirs), name=job.chapter.name)
    process.start()
    theirs.close()  # the worker's is the only one left, so that its end is seen
    watcher.started(job.chapter)
    return _Worker(job=job, process=process, pipe=ours)


# -- what is shown ---------------------------------------------------------------------


@contextlib.contextmanager
def _kept(output: Path | None) -> Iterator[Path]:
    if output:
        yield output
    else:
        with tempfile.TemporaryDirectory(prefix="k8snet-executed-") as folder:
            yield Path(folder)


@contextlib.contextmanager
def _show(console: Console, chapters: Sequence[Chapter]) -> Iterator[Watcher]:
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
        TextColumn("cells"), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        yield _Bars(progress, chapters)


class _Lines(Watcher):
    """For a log: a line when a chapter ends."""

    def __init__(self, console: Console) -> None:
        self.say: Callable[[str], None] = functools.partial(console.print, soft_wrap=True)

    def moved(self, chapter: Chapter, why: str) -> None:
        self.say(_moved(chapter, why))

    def ended(self, result: Result) -> None:
        end = "passed" if not result.failure else f"FAILED, {result.failure.where}"
        chapter = result.chapter
        self.say(f"{chapter.name}: {chapter.cells} cells, {result.seconds:.1f} s, {end}")


class _Bars(Watcher):
    """For a terminal: a line a chapter, with a bar that moves."""

    def __init__(self, progress: Progress, chapters: Sequence[Chapter]) -> None:
        self.progress = progress
        self.tasks = {one.name: progress.add_task(one.name, total=one.cells, start=False) for one in chapters}

    def moved(self, chapter: Chapter, why: str) -> None:
        self.progress.console.print(_moved(chapter, why))

    def started(self, chapter: Chapter) -> None:
        self.progress.start_task(self.tasks[chapter.name])

    def reached(self, chapter: Chapter, cell: int) -> None:
        self.progress.update(self.tasks[chapter.name], completed=cell - 1)

    def ended(self, result: Result) -> None:
        task = self.tasks[result.chapter.name]
        if result.ok:
            self.progress.update(task, completed=result.chapter.cells)
        else:
            self.progress.update(task, description=f"[red]{result.chapter.name} failed")
        self.progress.stop_task(task)


def _moved(chapter: Chapter, why: str) -> str:
    return f"{chapter.name} runs in a virtual machine ({need.KERNELSPEC}): {why}"


def _print_failure(console: Console, chapter: Chapter, failure: Failure) -> None:
    console.print(f"\n[bold red]{chapter.name} failed[/], {failure.where}:")
    if failure.source:
        console.print(Syntax(failure.source, "python", background_color="default", word_wrap=True))
        console.print()
    console.print(failure.reason, markup=False, soft_wrap=True)
    if chapter.requires:
        needs = ", ".join(chapter.requires)
        console.print(f"This chapter needs {needs}: `k8snet doctor` says whether you have it.")
    console.print()


def _summary(results: Sequence[Result], seconds: float) -> Table:
    table = Table("chapter", show_footer=True)
    table.columns[0].footer = "1 chapter" if len(results) == 1 else f"{len(results)} chapters"
    cells = sum(one.chapter.cells for one in results)
    table.add_column("cells", justify="right", footer=str(cells))
    table.add_column("seconds", justify="right", footer=f"{seconds:.1f}")
    failed = sum(not result.ok for result in results)
    table.add_column("result", footer=f"{failed} failed" if failed else "all passed")
    for one in results:
        end = "[green]passed[/]" if not one.failure else f"[red]failed[/]: {one.failure.where}"
        table.add_row(one.chapter.name, str(one.chapter.cells), f"{one.seconds:.1f}", end)
    return table
