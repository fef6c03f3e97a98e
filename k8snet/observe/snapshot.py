"""Snapshot: what the kernel holds for a lab, as one value to compare, to draw and to check."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from k8snet.errors import NotFound
from k8snet.linux.nsid import ids_of
from k8snet.observe.diff import Diff, compare
from k8snet.observe.read import link_ids, read, with_peers
from k8snet.observe.values import Interface, NetnsState, Peer

if TYPE_CHECKING:
    from k8snet.lab import Lab
    from k8snet.linux.netns import Netns
    from k8snet.observe.diagram import Diagram

__all__ = ["Snapshot", "take"]

HOST = "host"
PERMANENT = "PERMANENT"
DRAWN = re.compile(r"veth[0-9a-f]{8}")  # what CNI's bridge plugin calls its end of a pair, at random


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All netns of a lab at one moment.

    Two snapshots are equal if somebody built the same network, by whatever means:
    what the kernel numbers, learns, counts or draws at random does not matter.
    """

    netns: tuple[NetnsState, ...]  # by name

    def __getitem__(self, name: str) -> NetnsState:
        """Return one netns.

        Raises:
            NotFound: there is none of that name; the message lists those there are.
        """
        if found := self.find(name):
            return found
        raise NotFound(f"no netns {name!r} in this snapshot; there are: {', '.join(self.names) or 'none'}")

    def find(self, name: str) -> NetnsState | None:
        """Return one netns, or None."""
        return next((state for state in self.netns if state.name == name), None)

    def __contains__(self, name: object) -> bool:
        """Return whether there was a netns of that name."""
        return name in self.names

    def __iter__(self) -> Iterator[NetnsState]:
        """Return the netns, by name."""
        return iter(self.netns)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all netns."""
        return tuple(state.name for state in self.netns)

    def config(self) -> dict[str, Any]:
        """Return what was built, as nested dicts: the ground of equality.

        Left out: indexes, MACs (other tables name them "netns/interface"), what was
        learnt, listening sockets, counters, handles, carrier. A veth whose name a CNI
        plugin drew is called by the pod that it leads to.
        """
        macs = self._mac_names()
        return {state.name: _config(state, macs) for state in self.netns if not (state.name == HOST and state.pristine)}

    def _mac_names(self) -> dict[str, str]:
        """Return who has which MAC; a bridge may have that of a port, and then the port counts."""
        found: dict[str, str] = {}
        for state in self.netns:
            for one in sorted(state.interfaces, key=lambda one: one.kind != "bridge"):
                if one.mac and one.kind != "loopback":
                    found[one.mac] = f"{state.name}/{_name(one)}"
        return found

    def __eq__(self, other: object) -> bool:
        """Return whether both are of the same network."""
        return isinstance(other, Snapshot) and self.config() == other.config()

    def __hash__(self) -> int:
        """Return a hash that equal snapshots share."""
        return hash(self.to_json())

    def diff(self, after: Snapshot) -> Diff:
        """Return what was changed between this snapshot and a later one."""
        old, new = self.config(), after.config()
        for one, config, other in ((self, old, new), (after, new, old)):
            host = one.find(HOST)
            if host and HOST in other:  # one that is pristine is part of no config, but it was there
                config[HOST] = _config(host, one._mac_names())  # noqa: SLF001  # of this class
        return compare(old, new)

    def diagram(self, **options: Any) -> Diagram:
        """Return a drawing of it. See k8snet.observe.diagram.draw() for the options."""
        from k8snet.observe.diagram import draw

        return draw(self, **options)

    def to_json(self, *, everything: bool = False) -> str:
        """Return it as JSON text.

        Args:
            everything: with what does not count for equality, as it was read.
        """
        value = {state.name: asdict(state) for state in self.netns} if everything else self.config()
        return json.dumps(value, indent=1, sort_keys=True)

    def __repr__(self) -> str:
        """Return the netns with their addresses, one a line."""
        return "\n".join(f"{state.name}: {', '.join(state.addresses) or '-'}" for state in self.netns) or "empty"


def _name(one: Interface) -> str:
    """Return what an interface is called in a config."""
    if one.peer and one.peer.netns and DRAWN.fullmatch(one.name):
        return f"veth of {one.peer.netns}/{one.peer.interface}"
    return one.name


def _peer(one: Interface) -> str | None:
    if one.peer is None:
        return None
    return f"{one.peer.netns}/{'veth' if DRAWN.fullmatch(one.peer.interface) else one.peer.interface}"


def _config(state: NetnsState, macs: dict[str, str]) -> dict[str, Any]:
    names = {one.name: _name(one) for one in state.interfaces}
    return {
        "interfaces": {
            names[one.name]: {
                "kind": one.kind, "mtu": one.mtu, "up": one.up, "addresses": list(one.addresses), "master": one.master,
                "peer": _peer(one), "parent": one.parent,
                "hairpin": one.hairpin, "details": dict(one.details), "settings": dict(one.settings),
            }
            for one in state.interfaces
        },
        "routes": [str(one) for one in state.routes],
        "neighbours": [
            f"{one.address} dev {one.interface} {macs.get(one.mac or '', one.mac)}"
            for one in state.neighbours if one.state == PERMANENT
        ],
        "fdb": [
            f"{macs.get(one.mac, one.mac)} dev {names.get(one.port, one.port)} {one.remote or ''}"
            for one in state.fdb if one.permanent and not _own(state, one.mac, one.port)
        ],
        "rules": {one.program: list(one.lines) for one in state.rules},
        "settings": dict(state.settings),
    }  # fmt: skip


def _own(state: NetnsState, mac: str, port: str) -> bool:
    """Return whether an FDB entry is of the port's own MAC, which the kernel adds by itself."""
    found = state.interface(port)
    return found is not None and found.mac == mac


def take(lab: Lab, *, legacy: bool | None = None) -> Snapshot:
    """Return a snapshot of a lab, with the netns that were made by hand in it.

    Args:
        legacy: look for rules of iptables-legacy even where the kernel does not tell us of
            them; None does so if the transcript names that program.
    """
    netns = lab.adopt()
    if legacy is None:
        legacy = any("legacy" in entry.typed() for entry in lab.transcript.entries)
    read_all = {one.name: read(one, legacy=legacy) for one in netns}
    links = {name: link_ids(messages) for name, (_, messages) in read_all.items()}
    states = []
    for one in netns:
        state, _ = read_all[one.name]
        states.append(with_peers(state, _peers(one, netns, links, read_all)))
    return Snapshot(tuple(sorted(states, key=lambda state: state.name)))


def _peers(
    viewer: Netns, netns: list[Netns], links: dict[str, dict[int, tuple[int, int | None]]], read_all: dict[str, Any]
) -> dict[int, Peer]:
    """Return the other end of each veth, by ifindex.

    Both ends name each other's ifindex, and the viewer has a number for the netns of
    the other end; only netns with a fitting ifindex are asked for their number.
    """
    mine = links[viewer.name]
    away = [(there, here) for here, (there, number) in mine.items() if number is not None]
    fitting = [
        one for one in netns
        if one is not viewer and any(links[one.name].get(there, (0,))[0] == here for there, here in away)
    ]  # fmt: skip
    numbers = ids_of(viewer, fitting) if fitting else {}
    found = {}
    for here, (there, number) in mine.items():
        name = viewer.name if number is None else numbers.get(number)
        state = read_all[name][0] if name else None
        other = next((one.name for one in state.interfaces if one.index == there), None) if state else None
        found[here] = Peer(netns=name if other else None, interface=other or f"if{there}")
    return found


if __name__ == "__main__":  # the network of the sandbox that this runs in, as JSON
    import sys

    from k8snet.lab import Lab as _Lab

    with _Lab("snapshot") as _lab:
        sys.stdout.write(take(_lab, legacy=True).to_json() + "\n")
