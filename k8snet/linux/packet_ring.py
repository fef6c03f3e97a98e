"""Packets of a netns, written by the kernel into memory that we share with it: packet(7), TPACKET_V3.

    ring                              blocks, one after another, again from the first
    └── block     header, packets     ours once the kernel has filled it, or after RETIRE_MS with anything in it
        └── packet    header (time, lengths), address (interface, direction), frame

Nothing is copied but what we keep, and a packet costs no system call.
Source: Linux Documentation/networking/packet_mmap.rst, include/uapi/linux/if_packet.h.
"""

from __future__ import annotations

import ctypes
import mmap
import socket
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, TypeVar

from k8snet.errors import CommandFailed, InvalidInput
from k8snet.linux import run as _run

__all__ = ["Frame", "PacketRing", "Place", "compiled"]

T = TypeVar("T")

ETH_P_ALL = 3
SO_ATTACH_FILTER, SO_TIMESTAMPNS = 26, 35
SOL_PACKET, PACKET_RX_RING, PACKET_STATISTICS, PACKET_VERSION, TPACKET_V3 = 263, 5, 6, 10, 2
OUTGOING = 4  # PACKET_OUTGOING
BLOCK = 128 << 10  # bytes; the largest frame, of 64 KB before it is cut into segments, fits in
BLOCKS = 8
RETIRE_MS = 10
OURS = 1  # TP_STATUS_USER: what the kernel has filled, and does not touch before we give it back
STATUS, HEAD = 8, struct.Struct("=III")  # of a block: where its status is; status, packets, offset of the first
PACKET = struct.Struct("=IIIIIIHH")  # next, seconds, nanoseconds, kept, length, status, offset of the frame, of IP
LINK_ADDRESS = struct.Struct("=HHiHBB8s")  # sockaddr_ll
LIBC = ctypes.CDLL(None, use_errno=True)
ADDRESS, ADDRESS_AT = struct.Struct("=HHiHB"), 48  # family, protocol, interface, hardware, direction


class Place(Protocol):
    """A netns, whoever made it."""

    @property
    def name(self) -> str:
        """What it is called."""

    def inside(self, function: Callable[..., T], *arguments: object) -> T:
        """Call *function* in it."""


class Frame(NamedTuple):
    """A packet as the kernel saw it pass an interface."""

    time_ns: int  # since 1970
    interface: int  # its index
    outgoing: bool  # sent by this netns
    length: int  # bytes on the wire
    data: bytes


class PacketRing:
    """The packets that pass one interface of a netns, or all of them, from now on."""

    def __init__(self, netns: Place, *, interface: str = "", program: bytes | None = None) -> None:
        """Begin to listen.

        Args:
            interface: its name; "" is all, those to come included.
            program: a filter, of compiled(); None takes every packet.
        """
        self._next = 0
        self.lost = 0  # packets that found the ring full
        self._socket = netns.inside(self._open, interface, program)
        self._memory = mmap.mmap(self._socket.fileno(), BLOCK * BLOCKS)

    def fileno(self) -> int:
        """Return what select() waits on: it is readable when a block is ours."""
        return self._socket.fileno()

    def read(self) -> Iterator[Frame]:
        """Yield the packets of every block that the kernel has handed over, and give it back."""
        while True:
            at = self._next * BLOCK
            status, count, first = HEAD.unpack_from(self._memory, at + STATUS)
            if not status & OURS:
                break
            yield from self._packets(at + first, count)
            struct.pack_into("=I", self._memory, at + STATUS, 0)
            self._next = (self._next + 1) % BLOCKS
        self.lost += struct.unpack("=III", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 12))[1]

    def close(self) -> None:
        """Listen no longer, and give the memory back."""
        self._memory.close()
        self._socket.close()

    def _open(self, interface: str, program: bytes | None) -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # deaf until bound
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)  # else the time is that of the copy
        if program:
            instructions = ctypes.create_string_buffer(program, len(program))
            head = struct.pack("HP", len(program) // 8, ctypes.addressof(instructions))
            sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, head)
        sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V3)
        request = struct.pack("=7I", BLOCK, BLOCKS, BLOCK, BLOCKS, RETIRE_MS, 0, 0)
        sock.setsockopt(SOL_PACKET, PACKET_RX_RING, request)
        index = socket.if_nametoindex(interface) if interface else 0
        where = LINK_ADDRESS.pack(socket.AF_PACKET, socket.htons(ETH_P_ALL), index, 0, 0, 0, b"")
        if LIBC.bind(sock.fileno(), where, len(where)):  # socket.bind() has no word for every interface
            sock.close()
            raise OSError(ctypes.get_errno(), "bind")
        return sock

    def _packets(self, at: int, count: int) -> Iterator[Frame]:
        for _ in range(count):
            step, seconds, nanoseconds, kept, length, _, mac, _ = PACKET.unpack_from(self._memory, at)
            _, _, interface, _, kind = ADDRESS.unpack_from(self._memory, at + ADDRESS_AT)
            data = self._memory[at + mac : at + mac + kept]
            yield Frame(seconds * 10**9 + nanoseconds, interface, kind == OUTGOING, length, data)
            at += step


def compiled(expression: str) -> bytes:
    """Return a filter as the kernel takes it: 8 bytes an instruction, compiled by libpcap.

    Like: tcpdump -ddd EXPRESSION

    Raises:
        InvalidInput: the filter cannot be compiled; the message is libpcap's.
    """
    try:
        text = _run.run(["tcpdump", "-y", "EN10MB", "-ddd", expression]).stdout
    except CommandFailed as error:
        raise InvalidInput(f"filter {expression!r}: {error.stderr.strip().removeprefix('tcpdump: ')}") from None
    lines = text.split("\n")[1:]
    return b"".join(struct.pack("=HBBI", *map(int, line.split())) for line in lines if line)
