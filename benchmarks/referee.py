"""Has a contender build and tear down, and looks at what is there before and after."""
from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from benchmarks import plan
from benchmarks.census import wait_until_left
from benchmarks.fetch import pages
from benchmarks.ping import unanswered
from k8snet.linux import nsfs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.contenders.catalogue import Contender

__all__ = ["ContenderFailed", "Sample", "count_pages", "match"]

ROOT = Path(__file__).parent.parent
IPV6_OFF = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")


class ContenderFailed(Exception):  # it reads as what happened
    """A contender ended early, left something behind, or its pods do not answer."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One contender's build and teardown of one network."""

    contender: str
    round: int
    pods: int
    nodes: int = 0  # of a cluster; 0: the pods are on one bridge
    answered: int  # pods that answered: a ping from the node, or in a cluster with a page of their own
    build_s: float  # as the contender measured it
    answered_s: float | None = None  # from the order to build until the referee had every answer
    teardown_s: float  # likewise: until its own call returned
    gone_s: float  # from the order to tear down until the kernel kept none of the netns
    startup_s: float  # from exec until it was ready to build; not part of build_s

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def match(contender: Contender, program: Path, *, pods: int, nodes: int = 0, number: int) -> Sample:
    """Let *contender* build and tear down *pods* pods, in a process of its own.

    Args:
        program: the compiled lower bound.
        nodes: of the cluster that the pods are in; 0 is one bridge, and no servers.
        number: which round it is.

    Raises:
        ContenderFailed: it ended early, a pod does not answer, or something is left.
    """
    with _node(contender) as node_fd:
        begun = time.monotonic()
        with _started(contender, program, node_fd) as process:
            _answer(process)
            ready = time.monotonic()
            order = time.monotonic()
            built = _ask(process, f"build {nodes} {pods}" if nodes else f"build {pods}")
            answered = count_pages(contender, built, pods) if nodes else _count_answers(contender, built, pods)
            answers = time.monotonic()
            torn = _ask(process, "teardown")
            # what may be left: the node, which the referee made, or nothing
            wait_until_left(int(contender.in_node))
            gone = time.monotonic()
    _check_nothing_left(contender)
    return Sample(
        contender=contender.name, round=number, pods=pods, nodes=nodes, answered=answered,
        build_s=built["seconds"], answered_s=round(answers - order, 6), teardown_s=torn["seconds"],
        gone_s=round(gone - answers, 6), startup_s=round(ready - begun, 6),
    )  # fmt: skip


@contextmanager
def _node(contender: Contender) -> Iterator[int | None]:
    """Make the node's netns, IPv6 off, for a contender that starts inside it."""
    if not contender.in_node:
        yield None
        return
    nsfs.make(plan.NODE)
    fd = os.open(nsfs.path_of(plan.NODE), os.O_RDONLY | os.O_CLOEXEC)
    try:
        nsfs.inside(fd, IPV6_OFF.write_text, "1")
        yield fd
    finally:
        os.close(fd)
        nsfs.delete(plan.NODE)


@contextmanager
def _started(contender: Contender, program: Path, node_fd: int | None) -> Iterator[subprocess.Popen[str]]:
    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(  # a contender
            contender.argv(program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    process = start() if node_fd is None else nsfs.inside(node_fd, start)
    try:
        yield process
        _pipe(process.stdin).close()
        process.wait(timeout=10)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise TypeError("started without a pipe")
    return stream


def _ask(process: subprocess.Popen[str], order: str) -> dict[str, Any]:
    stream = _pipe(process.stdin)
    stream.write(order + "\n")
    stream.flush()
    return _answer(process)


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    line = _pipe(process.stdout).readline()
    if not line:
        raise ContenderFailed(f"{process.args!r} ended with {process.wait()}; why is above")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _count_answers(contender: Contender, built: dict[str, Any], pods: int) -> int:
    addresses: list[str] = built.get("addresses") or [plan.address(n) for n in range(pods)]
    fd = os.open(nsfs.path_of(plan.NODE), os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check_heard(contender, silent=unanswered(fd, addresses), pods=pods)
    finally:
        os.close(fd)
    return len(addresses)


def count_pages(contender: Contender, built: dict[str, Any], pods: int) -> int:
    """Fetch a page from each pod, from one of the nodes, and return how many there were; no two say the same.

    Raises:
        ContenderFailed: a pod is silent, or one server stands for two pods.
    """
    found = pages(built["vantage"], built["addresses"])
    _check_heard(contender, silent=[one for one in built["addresses"] if one not in found], pods=pods)
    answered = len(set(found.values()))
    if answered != pods:
        raise ContenderFailed(f"{contender.name}: {pods} pods were asked for, {answered} have a page of their own")
    return answered


def _check_heard(contender: Contender, *, silent: list[str], pods: int) -> None:
    if silent:
        some = f"{len(silent)} of {pods} pods do not answer: {', '.join(silent[:3])}"
        raise ContenderFailed(f"{contender.name}: {some}")


def _check_nothing_left(contender: Contender) -> None:
    wait_until_left(0)
    if nsfs.names():
        raise ContenderFailed(f"{contender.name} left netns: {', '.join(nsfs.names()[:3])}")
