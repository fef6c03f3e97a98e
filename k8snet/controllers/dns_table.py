"""The names that a DNS server knows, and what it answers to a question: pure, and free of DNS's wire format.

    dns_records   objects of Kubernetes -> Table
    dns_table     (Table, name, type)   -> Found
    dns_server    packets               -> packets

Names are in lower case and without the final dot; that of the root is "".
"""

from __future__ import annotations

import functools
import ipaddress
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Found", "Record", "Table", "parents", "reverse"]

MOST_ALIASES = 8  # of which one leads to the next
TTL_OF = {"TXT": 28_800}  # seconds; dns-version's, as the specification has it
Record = tuple[str, str, Any]  # owner, type, data


@dataclass(kw_only=True)
class Found:
    """The answer to a question."""

    rcode: str = "NOERROR"  # or "NXDOMAIN": there is no such name
    answer: list[Record] = field(default_factory=list)
    authority: list[Record] = field(default_factory=list)  # the zone's SOA, where there is no answer
    additional: list[Record] = field(default_factory=list)  # addresses of what the answer names
    outside: str | None = None  # where an alias leads, if that is not in our zones


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a server knows."""

    zones: tuple[str, ...]  # for all names in these it answers by itself
    names: Mapping[str, Mapping[str, Sequence[Any]]]  # name -> type -> data; a name without types has names below it
    pods: str = ""  # "pod.cluster.local", where every address has a name in each namespace (pods insecure)
    ttl: int = 5  # seconds
    upstream: str = ""  # ADDRESS:PORT of a server that is asked for other names; "" refuses those

    def dump(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Table:
        """Return what dump() has written."""
        found = json.loads(text)
        return cls(**{**found, "zones": tuple(found["zones"])})

    @functools.cached_property
    def _zones(self) -> frozenset[str]:
        return frozenset(self.zones)

    def zone_of(self, name: str) -> str | None:
        """Return the smallest of our zones that a name is in."""
        return next((one for one in (name, *parents(name)) if one in self._zones), None)

    def find(self, name: str, kind: str) -> Found | None:
        """Return the answer to a question, aliases followed, or None: the name is not in our zones.

        Args:
            kind: "A", "SRV", ...; "ANY" for all.
        """
        chain: list[Record] = []
        for _ in range(MOST_ALIASES):
            zone = self.zone_of(name)
            if zone is None:
                return Found(answer=chain, outside=name) if chain else None
            soa = [(zone, "SOA", one) for one in self.names[zone]["SOA"]]
            here = self.names.get(name)
            if here is None:
                here = self._pod(name)
            if here is None:
                return Found(rcode="NXDOMAIN", answer=chain, authority=soa)
            rows = [(name, each, data) for each in here for data in here[each] if kind in {each, "ANY"}]
            if rows:
                return Found(answer=[*chain, *rows], additional=list(self._named_by(rows)))
            if "CNAME" not in here:
                return Found(answer=chain, authority=soa)
            chain.append((name, "CNAME", here["CNAME"][0]))
            name = here["CNAME"][0]
        return Found(answer=chain)

    def _named_by(self, rows: Sequence[Record]) -> Iterator[Record]:
        targets = {data[3] if kind == "SRV" else data: None for _, kind, data in rows if kind in {"SRV", "NS"}}
        for target in targets:
            for kind in ("A", "AAAA"):
                yield from ((target, kind, one) for one in self.names.get(target, {}).get(kind, ()))

    def _pod(self, name: str) -> Mapping[str, Sequence[Any]] | None:
        """Return the records of a-b-c-d.NAMESPACE.pod.ZONE; whether there is such a pod, nobody asks."""
        dashed, _, parent = name.partition(".")
        if not self.pods or parent not in self.names or parent.partition(".")[2] != self.pods:
            return None
        four = dashed.count("-") == 3 and "--" not in dashed
        try:
            address = ipaddress.ip_address(dashed.replace("-", "." if four else ":"))
        except ValueError:
            return None
        return {"A" if four else "AAAA": [str(address)]}


def parents(name: str) -> Iterator[str]:
    """Yield the names that a name is below, up to the root's."""
    while name:
        name = name.partition(".")[2]
        yield name


def reverse(address: str, *, digits: int | None = None) -> str:
    """Return the name under which DNS keeps the name of an address.

    Args:
        digits: only so many of its parts: bytes with IPv4, of a half each with IPv6; None is all.
    """
    labels = ipaddress.ip_address(address).reverse_pointer.split(".")
    return ".".join(labels[-(digits + 2) :] if digits else labels)
