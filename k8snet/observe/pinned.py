"""Neighbours that a sweep has learnt: kept out of the kernel's limit on neighbours while it runs, then forgotten.

All netns of a machine share that limit, 1,024 by default, and among 100 pods of a node there are 9,900. The limit is
on those that are learnt: permanent ones are not counted (Linux 5.0 and later, neigh_update_gc_list()).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from k8snet.linux.netns import Netns

__all__ = ["Pinned"]

NEW, DELETE, GET, DONE, ERROR = 28, 29, 30, 3, 2  # rtnetlink(7): RTM_NEWNEIGH and so on, NLMSG_DONE, NLMSG_ERROR
REQUEST, REPLACE, DUMP = 0x001, 0x100, 0x300
DESTINATION, MAC = 1, 2  # NDA_DST, NDA_LLADDR
LEARNT, PERMANENT = 0x02 | 0x04 | 0x08 | 0x10, 0x80  # REACHABLE, STALE, DELAY and PROBE
HEADER, ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")
NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, interface, state, flags, type
FAMILIES = {socket.AF_INET, socket.AF_INET6}

_Entry = tuple[int, int, bytes, bytes]  # family, interface, address, MAC


class Pinned:
    """What was pinned, in which netns."""

    def __init__(self) -> None:
        """Start with none."""
        self._entries: dict[Netns, set[_Entry]] = {}

    def pin(self, places: Iterable[Netns]) -> None:
        """Make permanent what netns have learnt. Like: ip neighbour change ADDRESS lladdr MAC dev DEV nud permanent."""
        for netns in places:
            self._entries.setdefault(netns, set()).update(netns.inside(_pin))

    def forget(self) -> None:
        """Forget all that was pinned. Like: ip neighbour delete ADDRESS dev DEV."""
        while self._entries:
            netns, entries = self._entries.popitem()
            if netns.exists:
                netns.inside(_send, DELETE, REQUEST, entries)


def _pin() -> list[_Entry]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.settimeout(5)
        body = NEIGHBOUR.pack(0, 0, 0, 0, 0)
        sock.send(HEADER.pack(HEADER.size + len(body), GET, REQUEST | DUMP, 1, 0) + body)
        found = [entry for entry in _dumped(sock) if entry[0] in FAMILIES]
    _send(NEW, REQUEST | REPLACE, found)
    return found


def _dumped(sock: socket.socket) -> Iterator[_Entry]:
    while True:
        data = sock.recv(1 << 16)
        at = 0
        while at + HEADER.size <= len(data):
            size, kind, *_ = HEADER.unpack_from(data, at)
            if kind in {DONE, ERROR}:
                return
            family, interface, state, _, _ = NEIGHBOUR.unpack_from(data, at + HEADER.size)
            given = dict(_attributes(data[at + HEADER.size + NEIGHBOUR.size : at + size]))
            if state & LEARNT and DESTINATION in given and MAC in given:
                yield family, interface, given[DESTINATION], given[MAC]
            at += (size + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + ATTRIBUTE.size <= len(data):
        size, kind = ATTRIBUTE.unpack_from(data, at)
        yield kind, data[at + ATTRIBUTE.size : at + size]
        at += (max(size, ATTRIBUTE.size) + 3) & ~3


def _send(kind: int, flags: int, entries: Iterable[_Entry]) -> None:
    """Send a message for each entry; what has changed meanwhile is left as it is."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        messages = []
        for family, interface, address, mac in entries:
            body = NEIGHBOUR.pack(family, interface, PERMANENT if kind == NEW else 0, 0, 0)
            for number, value in ((DESTINATION, address), (MAC, mac)):
                body += ATTRIBUTE.pack(ATTRIBUTE.size + len(value), number) + value + bytes(-len(value) % 4)
            messages.append(HEADER.pack(HEADER.size + len(body), kind, flags, 1, 0) + body)
        for start in range(0, len(messages), 500):
            sock.send(b"".join(messages[start : start + 500]))
