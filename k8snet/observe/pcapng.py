"""A pcapng file: packets with the name of the interface that saw them, and their direction.

    section header                    once
    interface description             one for each netns/interface
    enhanced packet                   one for each packet: which interface, when, how long, which way

Source: draft-ietf-opsawg-pcapng, sections 4.1 to 4.3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from k8snet.observe.capture import Packet

__all__ = ["pcapng"]

SECTION, INTERFACE, PACKET = 0x0A0D0D0A, 1, 6
MAGIC, ETHERNET, NANOSECONDS = 0x1A2B3C4D, 1, 9
NAME, RESOLUTION, FLAGS, APPLICATION = 2, 9, 2, 4  # options, of interfaces, packets and the section
INBOUND, OUTBOUND = 1, 2


def pcapng(packets: Iterable[Packet]) -> Iterator[bytes]:
    """Yield the blocks of a file; its interfaces are named NETNS/INTERFACE."""
    yield _block(SECTION, struct.pack("=IHHq", MAGIC, 1, 0, -1), [(APPLICATION, b"k8snet")])
    numbers: dict[str, int] = {}
    for one in packets:
        name = f"{one.netns}/{one.interface}"
        if name not in numbers:
            numbers[name] = len(numbers)
            described = [(NAME, name.encode()), (RESOLUTION, bytes([NANOSECONDS]))]
            yield _block(INTERFACE, struct.pack("=HHI", ETHERNET, 0, 0), described)
        time = one.time_ns >> 32, one.time_ns & 0xFFFFFFFF
        head = struct.pack("=IIIII", numbers[name], *time, len(one.data), one.length)
        way = struct.pack("=I", OUTBOUND if one.outgoing else INBOUND)
        yield _block(PACKET, head + _padded(one.data), [(FLAGS, way)])


def _block(kind: int, body: bytes, options: Iterable[tuple[int, bytes]]) -> bytes:
    told = b"".join(struct.pack("=HH", code, len(value)) + _padded(value) for code, value in options)
    length = 12 + len(body) + len(told) + 4
    return struct.pack("=II", kind, length) + body + told + bytes(4) + struct.pack("=I", length)


def _padded(data: bytes) -> bytes:
    """Return *data*, made as long as a multiple of 4."""
    return data + bytes(-len(data) % 4)
