"""Exercises of chapter 00: start here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from k8snet.teach.exercise import Exercise
from k8snet.teach.grade import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from k8snet.observe.snapshot import Snapshot
    from k8snet.teach.grade import Prober

__all__ = ["EXERCISES"]


def _second_box(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    if "second" not in network:
        yield Finding(False, "there is no netns `second` yet")
        return
    yield Finding(True, "there is a netns `second`")
    answer = probe.ping("second", "127.0.0.1")
    yield Finding(answer.ok, "second reaches itself at 127.0.0.1" if answer.ok else f"from second: {answer}")


SECOND_BOX = Exercise(
    slug="00-second-box",
    title="a second box",
    task="Make a netns `second` that can ping itself at 127.0.0.1.",
    hints=(
        "In a cell that begins with `%%netns host`, `ip netns add` makes one. In which state is its `lo`?",
        "`ip -n second link set dev lo up`. Or by library: `lab.netns(…)` does both.",
    ),
    check=_second_box,
)


def _unplug(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    ends = {name: network[name].interface(end) for name, end in (("host", "to-box"), ("box", "eth0"))}
    if missing := [name for name, end in ends.items() if end is None]:
        yield Finding(False, f"the end in {missing[0]} is gone; the cable was to stay. Run again from the cell `Lab()`")
        return
    yield Finding(True, "the cable is still there")
    kept = ends["host"] is not None and "10.0.0.1/24" in ends["host"].addresses
    yield Finding(kept, f"the end in host {'has' if kept else 'has lost'} its address")
    silent = not probe.ping("host", "10.0.0.2", timeout_s=0.5).ok
    yield Finding(silent, f"box {'does not answer host' if silent else 'still answers host'}")


UNPLUG = Exercise(
    slug="00-unplug",
    title="pull the plug",
    task="Make `box` unreachable for `host`, without deleting an interface, a netns or an address of `host`.",
    hints=(
        "An interface can be taken down, as one pulls a plug.",
        "`ip link set dev eth0 down`, in a cell that begins with `%%netns box`.",
    ),
    check=_unplug,
)

EXERCISES: tuple[Exercise, ...] = (SECOND_BOX, UNPLUG)
