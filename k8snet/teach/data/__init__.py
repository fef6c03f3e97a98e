"""Numbers that were measured elsewhere, dated, for chapters that measure the like.

services_bench.json is written by `./run bench --only services`; benchmarks/README.md says what its numbers are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from k8snet.errors import NotFound

__all__ = ["Place", "ServicesBench", "services_bench"]

SERVICES = Path(__file__).with_name("services_bench.json")
Series = Mapping[str, Mapping[int, float]]  # "iptables-legacy", "iptables-nft", "nftables" or "ipvs" -> by Services


@dataclass(frozen=True, kw_only=True)
class Place:
    """What was measured in one place; times are medians."""

    machine: str
    first_packet_ms: Series  # until a connection to the last Service stands
    full_s: Series  # seconds to program all Services
    update_s: Series  # seconds to program a change of one of them
    full_tool_s: Series  # what the tool takes of it: iptables-restore, or nft; empty for the virtual machine
    update_tool_s: Series


@dataclass(frozen=True, kw_only=True)
class ServicesBench:
    """The stored result of the benchmark of Services."""

    date: str  # as 2026-11-25
    rounds: int
    calls: int  # connections of a first packet's median
    here: Place
    guest: Place | None  # the virtual machine; it has IPVS

    def __str__(self) -> str:
        """Return when and where it was measured."""
        return f"measured on {self.date}, medians of {self.rounds} rounds, {self.here.machine}"


def services_bench(path: Path = SERVICES) -> ServicesBench:
    """Return what `./run bench --only services` has stored.

    Raises:
        NotFound: nothing is stored.
    """
    if not path.exists():
        raise NotFound(f"no stored benchmark in {path.name}: ./run bench --only services makes it")
    found = json.loads(path.read_text())
    return ServicesBench(
        date=found["date"], rounds=found["rounds"], calls=found["calls"], here=_place(found["here"], found["machine"]),
        guest=_place(found["vm"], found["guest"]) if "vm" in found else None,
    )  # fmt: skip


def _place(found: Mapping[str, Mapping[str, Mapping[str, float]]], machine: str) -> Place:
    def series(name: str) -> Series:
        return {
            way: {int(count): value for count, value in several.items()} for way, several in found.get(name, {}).items()
        }

    return Place(
        machine=machine, first_packet_ms=series("first_packet_ms"), full_s=series("full_s"),
        update_s=series("update_s"), full_tool_s=series("full_tool_s"), update_tool_s=series("update_tool_s"),
    )  # fmt: skip
