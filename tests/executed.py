"""Execute the book once a session, watching the host, for all tests that need it.

The executed notebooks and what was seen are kept in $K8SNET_TEST_EXECUTED if set, so that
the notebook and the browser tests share them; a change of the chapters or of the library
makes a new folder there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path

import pytest

from k8snet.jupyter.chapters import find_chapters, package_folder
from k8snet.jupyter.runner import execute

REPOSITORY = Path(__file__).resolve().parents[1]
MARK = "K8SNET_TEST_MARK"
LOOKS = {
    "links": ["ip", "-details", "link"],
    "addresses": ["ip", "address"],
    "routes": ["ip", "route", "show", "table", "all"],
    "IPv6 routes": ["ip", "-6", "route", "show", "table", "all"],
    "iptables": ["iptables-save"],
}
PASSING = re.compile(r"\[\d+:\d+\]|^#.*|(expires|valid_lft|preferred_lft) \w+", re.MULTILINE)


@dataclass(kw_only=True)
class Run:
    """What became of executing every chapter, and what the host looked like meanwhile."""

    folder: Path  # of the executed notebooks
    outcomes: dict[str, str]  # chapter -> "" or why it failed
    seconds: dict[str, float]
    seen: dict[str, list[str]]  # what to look at -> each different thing that was seen
    looks: int
    left_processes: list[str] = field(default_factory=list)
    left_netns: list[str] = field(default_factory=list)


def use(factory: pytest.TempPathFactory) -> None:
    """Keep what this session shares in pytest's own temporary folder, which all of its workers see."""
    base = factory.getbasetemp()
    os.environ.setdefault("K8SNET_TEST_EXECUTED", str(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base))


def cache() -> Path:
    """Return the folder shared by the tests of this session."""
    path = Path(os.environ["K8SNET_TEST_EXECUTED"], _digest())
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def alone(name: str) -> Iterator[Path]:
    """Hold a lock of the cache, so that one worker does what all of them need."""
    with (cache() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield cache() / name


def run() -> Run:
    """Return the run of this session, executing the book if nobody has yet."""
    with alone("run.json") as record:
        if not record.exists():
            done = _execute(cache() / "executed")
            record.write_text(json.dumps(done.__dict__, default=str))
        told = json.loads(record.read_text())
        return Run(**{**told, "folder": Path(told["folder"])})


def look_at_host(what: str) -> str:
    """Return what a program says of the host's network, without counters and ages."""
    done = subprocess.run(LOOKS[what], capture_output=True, text=True, check=False, timeout=20)
    return PASSING.sub("", done.stdout + done.stderr).strip()


def marked_processes(mark: str) -> list[str]:
    """Return the command line of each process that was started with *mark* in its environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (path / "environ").read_bytes():
                words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(f"{path.name} {words}")
    return found


def host_netns() -> list[str]:
    """Return the names of netns on the host, and each place where one is mounted."""
    names = sorted(str(path) for path in Path("/run/netns").glob("*"))
    return names + sorted(line for line in Path("/proc/mounts").read_text().splitlines() if "nsfs" in line)


def eventually(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    """Wait until *condition* holds; return whether it did in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _digest() -> str:
    total = hashlib.sha256()
    for folder, kind in ((package_folder("notebooks"), "*"), (REPOSITORY / "k8snet", "*.py")):
        for path in sorted(path for path in folder.rglob(kind) if path.is_file()):
            total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()[:16]


def _execute(folder: Path) -> Run:
    mark, before = uuid.uuid4().hex, host_netns()
    seen: dict[str, list[str]] = {what: [look_at_host(what)] for what in LOOKS}
    looks, done = 0, threading.Event()

    def watch() -> None:
        nonlocal looks
        while not done.wait(0.2):
            looks += 1
            for what, different in seen.items():
                if (now := look_at_host(what)) not in different:
                    different.append(now)

    resource_tracker.ensure_running()  # it serves this process, and lives as long
    watcher = threading.Thread(target=watch)
    watcher.start()
    os.environ[MARK] = mark
    try:
        results = execute(find_chapters(), output=folder, jobs=2)
    finally:
        del os.environ[MARK]
        done.set()
        watcher.join()
    eventually(lambda: not marked_processes(mark), timeout_s=5)
    return Run(
        folder=folder, looks=looks, seen=seen,
        outcomes={
            one.chapter.name: f"{one.failure.where}\n{one.failure.source}\n{one.failure.reason}" if one.failure else ""
            for one in results
        },
        seconds={one.chapter.name: round(one.seconds, 2) for one in results},
        left_processes=marked_processes(mark),
        left_netns=[one for one in host_netns() if one not in before],
    )  # fmt: skip
