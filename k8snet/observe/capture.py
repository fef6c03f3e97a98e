"""Capture: the packets that pass an interface, seen by a socket of our own (packet(7))."""

from __future__ import annotations

import ctypes
import html
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from k8snet.errors import CommandFailed, InvalidInput
from k8snet.linux import link
from k8snet.linux import run as _run
from k8snet.observe.decode import Decoded, decode

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = ["Capture", "Packet", "capture"]

ETH_P_ALL = 3
SO_ATTACH_FILTER, SO_TIMESTAMPNS = 26, 35
OUTGOING = 4  # PACKET_OUTGOING
PCAP_NANOSECONDS, LINKTYPE_ETHERNET = 0xA1B23C4D, 1
SOL_PACKET, PACKET_STATISTICS = 263, 6
COLUMNS = ("ms", "", "from MAC", "to MAC", "packet")
QUIET_S = 0.05  # seconds without a packet after which the wire counts as quiet
BUFFER = 4 << 20  # bytes asked of the kernel for waiting packets


@dataclass(frozen=True, kw_only=True)
class Packet:
    """One packet, as an interface saw it."""

    time_ns: int  # nanoseconds since 1970, of the kernel
    interface: str
    outgoing: bool  # sent by this interface's netns
    length: int  # bytes on the wire
    data: bytes = field(repr=False)
    decoded: Decoded

    def __str__(self) -> str:
        """Return it on one line."""
        return f"{self.interface} {'→' if self.outgoing else '←'} {self.decoded.summary}"


@dataclass
class Capture:
    """Packets in the order of their arrival; a table in a notebook."""

    netns: str
    interface: str
    packets: list[Packet] = field(default_factory=list)
    lost: int = 0  # packets that the kernel had to drop because we were too slow

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.packets)

    def __iter__(self) -> Iterator[Packet]:
        """Return the packets."""
        return iter(list(self.packets))

    def __getitem__(self, number: int) -> Packet:
        """Return one packet."""
        return self.packets[number]

    def _rows(self) -> list[tuple[str, ...]]:
        start = self.packets[0].time_ns if self.packets else 0
        return [
            (
                f"{(one.time_ns - start) / 1e6:.3f}", "out" if one.outgoing else "in",
                one.decoded.source_mac, one.decoded.destination_mac, one.decoded.summary,
            )
            for one in self.packets
        ]  # fmt: skip

    def __str__(self) -> str:
        """Return one packet a line: milliseconds, direction, MACs, what it is."""
        rows = [f"{ms:>9} ms  {way:<3}  {source} > {target}  {what}" for ms, way, source, target, what in self._rows()]
        rows += [f"({self.lost} packets were lost)"] if self.lost else []
        return "\n".join(rows) or f"nothing passed {self.interface} in netns {self.netns}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        if not self.packets:
            return f"<p>{html.escape(str(self))}</p>"
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in COLUMNS)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in self._rows())
        where = html.escape(f"seen by {self.interface} in netns {self.netns}")
        lost = f"; {self.lost} lost" if self.lost else ""
        return (
            "<div style='overflow-x:auto'><table class='k8snet-packets'>"
            f"<caption style='text-align:left'>{where}{lost}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def save(self, path: str | Path) -> None:
        """Write the packets as a pcap file, for Wireshark and tcpdump -r (pcap-savefile(5), nanoseconds)."""
        with Path(path).open("wb") as file:
            file.write(struct.pack("=IHHiIII", PCAP_NANOSECONDS, 2, 4, 0, 0, 65535, LINKTYPE_ETHERNET))
            for one in self.packets:
                seconds, nanoseconds = divmod(one.time_ns, 10**9)
                file.write(struct.pack("=IIII", seconds, nanoseconds, len(one.data), one.length) + one.data)


def _cell(text: str) -> str:
    return f"<td style='text-align:left'>{html.escape(text)}</td>"


class capture:  # noqa: N801  # reads as a verb: with capture(netns, "eth0") as wire
    """Watch an interface while a block runs.

    Like: tcpdump -n -e -i INTERFACE FILTER

        with capture(server, "veth-server", "arp or icmp") as wire:
            client.ping("10.0.0.12")
        wire
    """

    def __init__(self, netns: Netns, interface: str, filter: str = "") -> None:  # noqa: A002  # tcpdump's word
        """Prepare to watch; the block starts it.

        Args:
            interface: of *netns*.
            filter: an expression of pcap-filter(7); empty takes all.

        Raises:
            NotFound: there is no such interface.
            InvalidInput: the filter cannot be compiled; the message is libpcap's.
        """
        link.index_of(netns, interface)
        self._netns = netns
        self._program = _compiled(filter) if filter else None
        self._result = Capture(netns.name, interface)
        self._done = threading.Event()

    def __enter__(self) -> Capture:
        """Start, and return the list that fills."""
        self._socket = self._netns.inside(self._open)
        self._thread = threading.Thread(target=self._read, name="k8snet-capture", daemon=True)
        self._thread.start()
        return self._result

    def __exit__(self, *_: object) -> None:
        """Stop once the wire is quiet, for 1 s at most."""
        self._done.set()
        self._thread.join()
        statistics = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        self._result.lost = struct.unpack("=II", statistics)[1]
        self._socket.close()

    def _open(self) -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # deaf until bound
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        if self._program:
            instructions = ctypes.create_string_buffer(self._program, len(self._program))
            head = struct.pack("HP", len(self._program) // 8, ctypes.addressof(instructions))
            sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, head)
        sock.bind((self._result.interface, ETH_P_ALL))
        sock.setblocking(False)
        return sock

    def _read(self) -> None:
        deadline = float("inf")
        while True:
            if select.select([self._socket], [], [], QUIET_S)[0]:
                self._take()
            elif self._done.is_set():
                return
            if self._done.is_set():
                deadline = min(deadline, time.monotonic() + 1)
                if time.monotonic() > deadline:
                    return

    def _take(self) -> None:
        data, ancillary, _, address = self._socket.recvmsg(65536, 64)
        stamp = next((struct.unpack("=qq", raw[:16]) for _, kind, raw in ancillary if kind == SO_TIMESTAMPNS), (0, 0))
        loopback = self._result.interface == "lo"
        if loopback and address[2] == OUTGOING:
            return  # lo shows each packet twice, on its way out and on its way in
        self._result.packets.append(
            Packet(
                time_ns=stamp[0] * 10**9 + stamp[1], interface=self._result.interface,
                outgoing=address[2] == OUTGOING, length=len(data), data=data, decoded=decode(data),
            )
        )  # fmt: skip


def _compiled(expression: str) -> bytes:
    """Return a filter as the kernel takes it: 8 bytes an instruction, compiled by libpcap."""
    try:
        text = _run.run(["tcpdump", "-y", "EN10MB", "-ddd", expression]).stdout
    except CommandFailed as error:
        raise InvalidInput(f"filter {expression!r}: {error.stderr.strip().removeprefix('tcpdump: ')}") from None
    lines = text.split("\n")[1:]
    return b"".join(struct.pack("=HBBI", *map(int, line.split())) for line in lines if line)
