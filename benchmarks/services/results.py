"""All samples of Services, their medians, and what the book keeps of them."""
from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import machine
from benchmarks.services.measure import Latency, Load

__all__ = ["KINDS", "Results"]

KINDS = {"Load": Load, "Latency": Latency}
PLACES = ("here", "vm")


@dataclass(frozen=True, kw_only=True)
class Results:
    """All samples of one machine, and of the virtual machine on it."""

    machine: str
    date: str  # as 2026-11-25
    calls: int  # connections that a median of the first packet is of
    samples: Sequence[Load | Latency] = ()
    guest: str = ""  # what the virtual machine was; "" without one
    guest_samples: Sequence[Load | Latency] = field(default=())

    @classmethod
    def of(cls, samples: Sequence[Load | Latency], *, calls: int) -> Results:
        """Return the results of this machine, of today."""
        return cls(machine=machine(), date=time.strftime("%Y-%m-%d"), calls=calls, samples=tuple(samples))

    @classmethod
    def read(cls, file: Path) -> Results:
        """Return what write() wrote."""
        found = json.loads(file.read_text())
        found.pop("medians")
        several = {key: tuple(map(sample_of, found.pop(key))) for key in ("samples", "guest_samples")}
        return cls(**found, **several)

    def write(self, file: Path) -> None:
        """Write everything as JSON."""
        plain = {key: value for key, value in self.__dict__.items() if not key.endswith("samples")}
        several = {key: [as_dict(one) for one in getattr(self, key)] for key in ("samples", "guest_samples")}
        file.write_text(json.dumps({**plain, "medians": self.medians(), **several}, indent=1) + "\n")

    def with_guest(self, guest: str, samples: Iterable[Load | Latency]) -> Results:
        """Return them with what was measured in the virtual machine."""
        return replace(self, guest=guest, guest_samples=tuple(samples))

    def completed(self, older: Results) -> Results:
        """Return them with what *older* ones have of ways, and of the virtual machine, that were not played now."""
        ways = {one.way for one in self.samples}
        kept = [one for one in older.samples if one.way not in ways]
        guest = {} if self.guest else {"guest": older.guest, "guest_samples": older.guest_samples}
        mine = {} if self.samples else {"machine": older.machine, "date": older.date, "calls": older.calls}
        return replace(self, samples=(*kept, *self.samples), **guest, **mine)

    @property
    def empty(self) -> bool:
        """Whether nothing was measured."""
        return not (self.samples or self.guest_samples)

    def ways(self, place: str = "here") -> list[str]:
        """Return what took part, in the order of the samples."""
        return list(dict.fromkeys(one.way for one in self._of(place)))

    def sizes(self, kind: str, place: str = "here") -> list[int]:
        """Return the numbers of Services that "Load" or "Latency" has, smallest first."""
        return sorted({one.services for one in self._of(place) if isinstance(one, KINDS[kind])})

    @property
    def rounds(self) -> int:
        """How many rounds were played."""
        return max((one.round for one in self.samples), default=0)

    def load(self, way: str, what: str, services: int, key: str, place: str = "here") -> float | None:
        """Return the median of a field of loads; None if there are none."""
        values = [
            getattr(one, key) for one in self._of(place)
            if isinstance(one, Load) and (one.way, one.what, one.services) == (way, what, services)
        ]  # fmt: skip
        known = [value for value in values if value is not None]
        return median(known) if known else None

    def share(self, way: str, what: str, services: int, *, table: bool = False) -> float | None:
        """Return which part of the whole is not the tool's; with *table*, the table of service ports counts as well."""
        whole, tool = (self.load(way, what, services, key) for key in ("k8snet_s", "tool_s"))
        if whole is None or tool is None:
            return None
        whole += (self.load(way, what, services, "table_s") or 0.0) if table else 0.0
        return 1 - tool / whole

    def first_packet(self, way: str, services: int, place: str = "here") -> float | None:
        """Return the median of the medians, in milliseconds; None if there are none."""
        values = [
            one.median_ms for one in self._of(place)
            if isinstance(one, Latency) and (one.way, one.services) == (way, services)
        ]  # fmt: skip
        return median(values) if values else None

    def medians(self) -> dict[str, Any]:
        """Return what the book keeps, by place, measure, way and number of Services."""
        return {place: self._medians(place) for place in PLACES if self._of(place)}

    def stored(self) -> dict[str, Any]:
        """Return what goes into the package, for k8snet.teach.data.services_bench()."""
        found = {"machine": self.machine, "guest": self.guest}
        return {"date": self.date, "rounds": self.rounds, "calls": self.calls, **found, **self.medians()}

    def _of(self, place: str) -> Sequence[Load | Latency]:
        return self.samples if place == "here" else self.guest_samples

    def _medians(self, place: str) -> dict[str, dict[str, dict[str, float]]]:
        found: dict[str, dict[str, dict[str, float]]] = {}
        for way in self.ways(place):
            for size in self.sizes("Latency", place):
                _put(found, "first_packet_ms", way, size, self.first_packet(way, size, place))
            for size in self.sizes("Load", place):
                for what in ("full", "update"):
                    _put(found, f"{what}_s", way, size, self.load(way, what, size, "k8snet_s", place))
                    _put(found, f"{what}_tool_s", way, size, self.load(way, what, size, "tool_s", place))
        return found


def _put(found: dict[str, dict[str, dict[str, float]]], what: str, way: str, size: int, value: float | None) -> None:
    if value is not None:
        found.setdefault(what, {}).setdefault(way, {})[str(size)] = round(value, 6)


def sample_of(found: dict[str, Any]) -> Load | Latency:
    """Return the sample that a line of JSON tells of."""
    fields = dict(found)
    made: Load | Latency = KINDS[fields.pop("kind")](**fields)
    return made


def as_dict(sample: Load | Latency) -> dict[str, Any]:
    """Return a sample as JSON has it."""
    return {"kind": type(sample).__name__, **asdict(sample)}
