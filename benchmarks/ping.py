"""One echo request to each pod from the node, by a raw socket in the node's netns."""
from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from typing import TYPE_CHECKING

from benchmarks import plan
from k8snet.linux import nsfs
from k8snet.linux.run import run

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["unanswered"]

ECHO_REQUEST, ECHO_REPLY = 8, 0
QUIET_S = 0.2
TIMEOUT_S = 60.0
SMALLEST_SHARE = 8  # pods


def unanswered(node_fd: int, addresses: Sequence[str], *, timeout_s: float = TIMEOUT_S) -> list[str]:
    """Ping all *addresses* from the netns open as *node_fd*, and return those that are silent.

    The kernel keeps at most some 1000 neighbours (gc_thresh3) for all netns together,
    and a ping takes two of them: so half of the pods at a time, then half of the
    others, and what the node has learned is flushed in between.
    """
    missing = list(addresses)
    deadline = time.monotonic() + timeout_s
    while missing and time.monotonic() < deadline:
        share = missing[: max(SMALLEST_SHARE, len(missing) // 2)]
        heard = nsfs.inside(node_fd, _ping, share)
        missing = [address for address in missing if address not in heard]
        run(["ip", "neighbour", "flush", "dev", plan.BRIDGE], fd=node_fd)
    return missing


def _ping(addresses: Sequence[str]) -> set[str]:
    heard: set[str] = set()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as connection:
        connection.setblocking(False)  # the standard library's own
        for address in addresses:
            with contextlib.suppress(OSError):  # no room for the neighbour: it will be asked again
                connection.sendto(_request(), (address, 0))
            heard |= _heard(connection)
        while not heard.issuperset(addresses) and select.select([connection], [], [], QUIET_S)[0]:
            heard |= _heard(connection)
    return heard


def _heard(connection: socket.socket) -> set[str]:
    found = set()
    with contextlib.suppress(BlockingIOError):
        while True:
            packet, (address, _) = connection.recvfrom(2048)
            if packet[(packet[0] & 15) * 4] == ECHO_REPLY:
                found.add(address)
    return found


def _request() -> bytes:
    head = struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, 1, 1)
    total = sum(struct.unpack("!4H", head))
    return struct.pack("!BBHHH", ECHO_REQUEST, 0, ~total & 0xFFFF, 1, 1)
