"""Capture: the packets that pass one interface, or every interface of a lab (packet(7), in rings of our own)."""

from __future__ import annotations

import html
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from k8snet.errors import InvalidInput
from k8snet.linux import link
from k8snet.linux.packet_ring import Frame, PacketRing, Place, compiled
from k8snet.observe.decode import Decoded, decode
from k8snet.observe.pcapng import pcapng

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = ["Capture", "Packet", "capture", "capture_all"]

T = TypeVar("T")
PCAP_NANOSECONDS, LINKTYPE_ETHERNET = 0xA1B23C4D, 1
COLUMNS = ("ms", "where", "", "from MAC", "to MAC", "packet")
QUIET_S = 0.05  # seconds without a packet after which the wire counts as quiet
SHOWN = 1000  # rows of a table


@dataclass(frozen=True, kw_only=True)
class Packet:
    """One packet, as an interface saw it."""

    time_ns: int  # nanoseconds since 1970, of the kernel
    netns: str
    interface: str
    outgoing: bool  # sent by this interface's netns
    length: int  # bytes on the wire
    data: bytes = field(repr=False)

    @cached_property
    def decoded(self) -> Decoded:
        """What the frame says."""
        return decode(self.data)

    def __str__(self) -> str:
        """Return it on one line."""
        return f"{self.interface} {'→' if self.outgoing else '←'} {self.decoded.summary}"


@dataclass
class Capture:
    """Packets in the order of their arrival; a table in a notebook."""

    netns: str  # "" for several
    interface: str  # "" for all
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

    @property
    def _where(self) -> str:
        """In words, what was watched."""
        if self.interface:
            return f"{self.interface} in netns {self.netns}"
        return "every interface of " + (f"netns {self.netns}" if self.netns else "the lab")

    def _rows(self) -> list[tuple[str, ...]]:
        start = self.packets[0].time_ns if self.packets else 0
        return [
            (
                f"{(one.time_ns - start) / 1e6:.3f}", f"{one.netns}/{one.interface}", "out" if one.outgoing else "in",
                one.decoded.source_mac, one.decoded.destination_mac, one.decoded.summary,
            )
            for one in self.packets[:SHOWN]
        ]  # fmt: skip

    def __str__(self) -> str:
        """Return one packet a line: milliseconds, where if that is not one interface, direction, MACs, what it is."""
        rows = self._rows()
        width = 0 if self.interface else max((len(row[1]) for row in rows), default=0) + 2
        lines = [
            f"{ms:>9} ms  {'' if self.interface else where:<{width}}{way:<3}  {source} > {target}  {what}"
            for ms, where, way, source, target, what in rows
        ]
        return "\n".join([*lines, *self._remarks()]) or f"nothing passed {self._where}"

    __repr__ = __str__

    def _remarks(self) -> list[str]:
        more = len(self.packets) - SHOWN
        said = [f"({more} more packets)"] if more > 0 else []
        return [*said, f"({self.lost} packets were lost)"] if self.lost else said

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        if not self.packets:
            return f"<p>{html.escape(str(self))}</p>"
        kept = [n for n, name in enumerate(COLUMNS) if not (self.interface and name == "where")]
        head = "".join(f"<th style='text-align:left'>{COLUMNS[n]}</th>" for n in kept)
        body = "".join(f"<tr>{''.join(_cell(row[n]) for n in kept)}</tr>" for row in self._rows())
        where = html.escape(" ".join([f"seen by {self._where}", *self._remarks()]))
        return (
            "<div style='overflow-x:auto'><table class='k8snet-packets'>"
            f"<caption style='text-align:left'>{where}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def save(self, path: str | Path) -> None:
        """Write the packets to a file for Wireshark, tshark and tcpdump -r.

        A name that ends in .pcapng gives a file that names each packet's interface and direction; any other a pcap
        file (pcap-savefile(5), nanoseconds).
        """
        if Path(path).suffix == ".pcapng":
            Path(path).write_bytes(b"".join(pcapng(self.packets)))
            return
        with Path(path).open("wb") as file:
            file.write(struct.pack("=IHHiIII", PCAP_NANOSECONDS, 2, 4, 0, 0, 65535, LINKTYPE_ETHERNET))
            for one in self.packets:
                seconds, nanoseconds = divmod(one.time_ns, 10**9)
                file.write(struct.pack("=IIII", seconds, nanoseconds, len(one.data), one.length) + one.data)


def _cell(text: str) -> str:
    return f"<td style='text-align:left'>{html.escape(text)}</td>"


class _Watched:
    """A ring in one netns, and the names of its interfaces."""

    def __init__(self, netns: Place, interface: str, program: bytes | None) -> None:
        self.netns = netns
        self.ring = PacketRing(netns, interface=interface, program=program)
        self.names = self._named()

    def _named(self) -> dict[int, str]:
        return dict(self.netns.inside(socket.if_nameindex))

    def take(self) -> Iterator[Packet]:
        for one in self.ring.read():
            if one.interface not in self.names:
                self.names = {**self.names, **self._named()}
            name = self.names.setdefault(one.interface, f"#{one.interface}")  # it was gone before we could ask
            if not (name == "lo" and one.outgoing):  # lo shows each packet twice, on its way out and on its way in
                yield self._packet(name, one)

    def _packet(self, interface: str, frame: Frame) -> Packet:
        return Packet(
            time_ns=frame.time_ns, netns=self.netns.name, interface=interface, outgoing=frame.outgoing,
            length=frame.length, data=frame.data,
        )  # fmt: skip


def _at_once(function: Callable[[T], object], things: Sequence[T]) -> None:
    """Call *function* with each at the same time: the kernel lets each wait until all CPUs have heard of it."""
    with ThreadPoolExecutor(min(len(things), 32) or 1) as pool:
        list(pool.map(function, things))


class _Watch:
    """Rings, and the thread that empties them."""

    def __init__(self, places: Sequence[tuple[Place, str]], filter_: str, result: Capture) -> None:
        self._places, self._result = places, result
        self._program = compiled(filter_) if filter_ else None
        self._done = threading.Event()

    def __enter__(self) -> Capture:
        """Start, and return the list that fills."""
        self._watched: list[_Watched] = []
        try:
            _at_once(lambda place: self._watched.append(_Watched(*place, self._program)), self._places)
        except BaseException:
            self._close()
            raise
        self._thread = threading.Thread(target=self._read, name="k8snet-capture", daemon=True)
        self._thread.start()
        return self._result

    def __exit__(self, *_: object) -> None:
        """Stop once the wire is quiet, for 1 s at most."""
        self._done.set()
        self._thread.join()
        self._result.packets.sort(key=lambda one: one.time_ns)  # of several rings
        self._result.lost = sum(one.ring.lost for one in self._watched)
        self._close()

    def _close(self) -> None:
        _at_once(lambda one: one.ring.close(), self._watched)

    def _read(self) -> None:
        deadline = float("inf")
        poll = select.poll()
        for one in self._watched:
            poll.register(one.ring, select.POLLIN)
        while time.monotonic() < deadline:
            ready = {fd for fd, _ in poll.poll(QUIET_S * 1000)}
            if not ready and self._done.is_set():
                return
            for one in self._watched:
                if one.ring.fileno() in ready:
                    self._result.packets += one.take()
            if self._done.is_set():
                deadline = min(deadline, time.monotonic() + 1)


class capture(_Watch):  # noqa: N801  # reads as a verb: with capture(netns, "eth0") as wire
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
        super().__init__([(netns, interface)], filter, Capture(netns.name, interface))


class capture_all(_Watch):  # noqa: N801  # as capture
    """Watch every interface of several netns while a block runs. See Lab.capture()."""

    def __init__(self, netns: Iterable[Place], filter: str = "") -> None:  # noqa: A002  # tcpdump's word
        """Prepare to watch; the block starts it.

        Args:
            filter: an expression of pcap-filter(7); empty takes all.

        Raises:
            InvalidInput: there is nothing to watch, or the filter cannot be compiled; the message is libpcap's.
        """
        places = [(one, "") for one in netns]
        if not places:
            raise InvalidInput("there is no netns to watch")
        super().__init__(places, filter, Capture(places[0][0].name if len(places) == 1 else "", ""))
