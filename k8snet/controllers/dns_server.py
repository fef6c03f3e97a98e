"""A DNS server: answers from a table, asks another server for all other names, and keeps a log of questions.

    python -m k8snet.controllers.dns_server FOLDER ADDRESS [PORT]

FOLDER holds table.json, which is read again when it has changed, before the next answer. The server makes `ready`
there when its sockets listen, and appends to `log`: a line of Query's fields for each question.

Source: RFC 1034 and 1035; RFC 2181 (truncation), 2308 (negative answers), 6891 (EDNS0), 7766 (TCP), 8020 (NXDOMAIN).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dnslib
from dnslib import CLASS, EDNS0, QTYPE, RCODE, RR, DNSHeader, DNSQuestion, DNSRecord

from k8snet.controllers.dns_table import TTL_OF, Found, Record, Table

__all__ = ["Ask", "Query", "Server", "bind", "endpoint", "queries", "serve"]

HEADER = 12  # bytes, of every packet
SMALLEST, LARGEST = 512, 1232  # bytes of an answer by UDP: without EDNS0; with it (DNS Flag Day 2020)
PATIENCE_S = 2.0  # seconds to wait for the upstream; who has asked asks again after 5 (resolv.conf(5), timeout)
IDLE_S = 10.0  # seconds that a TCP connection may be silent
MOST_CACHED = 10_000  # answers that are kept as they were sent
LONGEST_LOG = 16 << 20  # bytes; then it begins anew
DATA: dict[str, Callable[[Any], Any]] = {
    **{kind: getattr(dnslib, kind) for kind in ("A", "AAAA", "CNAME", "NS", "PTR", "TXT")},
    "SRV": lambda data: dnslib.SRV(*data),
    "SOA": lambda data: dnslib.SOA(data[0], data[1], tuple(data[2:])),
}


@dataclass(frozen=True, kw_only=True)
class Query:
    """A question that a server was asked."""

    at: float  # seconds since 1970
    client: str  # address
    protocol: str  # "udp" or "tcp"
    name: str  # as asked, with the final dot
    kind: str  # "A", "SRV", ...
    rcode: str
    answers: int  # how many records
    via: str  # "table", or "upstream"


@dataclass(frozen=True)
class Ask:
    """A question that the upstream has to answer, and the alias that has led to it, if one has."""

    query: DNSRecord
    found: Found | None


class Server:
    """What is known, and the answers given so far; the same for all sockets."""

    def __init__(self, table: Table | Path, *, log: Path | None = None) -> None:
        """Answer from a table, or from the file that has one."""
        self.file = table if isinstance(table, Path) else None
        self.table = table if isinstance(table, Table) else Table(zones=(), names={})
        self._stamp: object = None  # of the file, when it was read
        self._cache: dict[tuple[bytes, bool], tuple[bytes, str]] = {}
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._log = os.open(log, flags, 0o644) if log else -1
        self.tasks: set[asyncio.Task[None]] = set()  # asyncio holds on to none
        self.refresh()

    def refresh(self) -> None:
        """Read the table again if it has changed; what cannot be read leaves the old one."""
        if self.file is None:
            return
        with contextlib.suppress(OSError, ValueError, TypeError):
            now = self.file.stat()
            if self._stamp != (stamp := (now.st_mtime_ns, now.st_ino)):
                self.table, self._stamp = Table.load(self.file.read_text()), stamp
                self._cache.clear()

    # -- one question --------------------------------------------------------------------

    async def reply(self, data: bytes, client: str, *, tcp: bool) -> bytes | None:
        """Return the answer to a packet; None where there is none to give."""
        found = self.at_once(data, client, tcp=tcp)
        return await self.forward(found, client, tcp=tcp) if isinstance(found, Ask) else found

    def at_once(self, data: bytes, client: str, *, tcp: bool) -> bytes | Ask | None:
        """Return the answer to a packet, or what to ask the upstream; None for what is no question."""
        self.refresh()
        if hit := self._cache.get((data[2:], tcp)):
            self._note(client, tcp, hit[1])
            return data[:2] + hit[0]
        if len(data) < HEADER:  # a probe of ours, say: it shall see that somebody is there
            return self._refuse(data.ljust(HEADER, b"\0"), client, "FORMERR", tcp=tcp)
        if data[2] & 0x80:  # an answer: to answer it would make a loop
            return None
        try:
            query = DNSRecord.parse(data)
        except Exception:  # noqa: BLE001  # whatever a packet does to the parser, the next one is answered
            return self._refuse(data, client, "FORMERR", tcp=tcp)
        try:
            return self._answer(query, data, client, tcp=tcp)
        except Exception:  # noqa: BLE001  # as above: a name, say, that cannot be written
            return self._refuse(data, client, "SERVFAIL", tcp=tcp)

    def _answer(self, query: DNSRecord, data: bytes, client: str, *, tcp: bool) -> bytes | Ask:
        if query.header.opcode != 0:
            return self._refuse(data, client, "NOTIMP", tcp=tcp)
        if len(query.questions) != 1:
            return self._refuse(data, client, "FORMERR", tcp=tcp)
        known = query.q.qclass in {CLASS.IN, QTYPE.ANY}
        found = self.table.find(_text(query.q.qname.label), _kind(query.q.qtype)) if known else None
        outside = found is None or found.outside is not None
        if outside and self.table.upstream and query.header.rd:
            return Ask(query, found)
        reply = self._reply(query, found)
        wire, note = _fit(reply, _limit(query, tcp=tcp)), _note(reply, "table")
        if len(self._cache) >= MOST_CACHED:
            self._cache.clear()
        self._cache[data[2:], tcp] = wire[2:], note
        self._note(client, tcp, note)
        return wire

    def _reply(self, query: DNSRecord, found: Found | None) -> DNSRecord:
        asked = query.header
        header = DNSHeader(id=asked.id, qr=1, aa=int(found is not None), rd=asked.rd, ra=int(bool(self.table.upstream)))
        reply = DNSRecord(header, q=query.q)
        if options := _options(query):
            bad = bool(options.ttl >> 16 & 0xFF)  # a version that is not 0: BADVERS, 16
            reply.add_ar(EDNS0(udp_len=LARGEST, ext_rcode=int(bad)))
            if bad:
                return reply
        if found is None:
            reply.header.rcode = RCODE.REFUSED
            return reply
        reply.header.rcode = getattr(RCODE, found.rcode)
        reply.add_answer(*(self._record(one, query.q.qname) for one in found.answer))
        reply.add_auth(*(self._record(one, query.q.qname) for one in found.authority))
        reply.ar = [*(self._record(one, query.q.qname) for one in found.additional), *reply.ar]
        return reply

    def _record(self, record: Record, asked: Any) -> RR:
        name, kind, data = record
        owner = asked if name == _text(asked.label) else name  # in the case in which it was asked
        rdata = DATA[kind](data)
        return RR(owner, getattr(QTYPE, kind), CLASS.IN, TTL_OF.get(kind, self.table.ttl), rdata)

    def _refuse(self, data: bytes, client: str, rcode: str, *, tcp: bool) -> bytes:
        header = DNSHeader(id=int.from_bytes(data[:2]), qr=1, opcode=data[2] >> 3 & 15, rd=data[2] & 1)
        header.rcode = getattr(RCODE, rcode)
        self._note(client, tcp, f".\t-\t{rcode}\t0\ttable")
        return bytes(DNSRecord(header).pack())

    # -- the upstream --------------------------------------------------------------------

    async def forward(self, ask: Ask, client: str, *, tcp: bool) -> bytes:
        """Have the upstream answer, and return what it says; SERVFAIL where it is silent."""
        try:
            name = ask.query.q.qname if ask.found is None else ask.found.outside
            question = DNSQuestion(name, ask.query.q.qtype, ask.query.q.qclass)
            outer = DNSRecord(DNSHeader(id=secrets.randbelow(1 << 16), rd=1), q=question)
            outer.add_ar(EDNS0(udp_len=LARGEST))
            theirs = DNSRecord.parse(await self._exchange(outer.pack(), tcp=tcp))
        except Exception:  # noqa: BLE001  # silent, unreachable, or not DNS
            theirs = DNSRecord(DNSHeader(qr=1, ra=1))
            theirs.header.rcode = RCODE.SERVFAIL
        reply = self._reply(ask.query, ask.found or Found())
        reply.header.aa, reply.header.tc = int(ask.found is not None), theirs.header.tc
        reply.header.rcode = theirs.header.rcode
        reply.add_answer(*theirs.rr)
        reply.add_auth(*theirs.auth)
        self._note(client, tcp, _note(reply, "upstream"))
        return _fit(reply, _limit(ask.query, tcp=tcp))

    async def _exchange(self, data: bytes, *, tcp: bool) -> bytes:
        host, port = endpoint(self.table.upstream)
        async with asyncio.timeout(PATIENCE_S):
            if tcp:
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    writer.write(len(data).to_bytes(2) + data)
                    return await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                finally:
                    writer.close()
            loop, family = asyncio.get_running_loop(), socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as sock:  # whose port is a new one: hard to guess, as the id
                sock.setblocking(False)
                await loop.sock_connect(sock, (host, port))
                await loop.sock_sendall(sock, data)
                while (heard := await loop.sock_recv(sock, 65_535))[:2] != data[:2]:
                    continue
                return heard

    # -- the log, and the sockets ----------------------------------------------------------

    def _note(self, client: str, tcp: bool, note: str) -> None:
        if self._log < 0:
            return
        client = client.removeprefix("::ffff:")  # IPv4, by a socket of IPv6
        if os.fstat(self._log).st_size > LONGEST_LOG:
            os.truncate(self._log, 0)
        os.write(self._log, f"{time.time():.6f}\t{client}\t{'tcp' if tcp else 'udp'}\t{note}\n".encode())

    async def run(self, udp: socket.socket, tcp: socket.socket, ready: Path | None = None) -> None:
        """Answer until SIGTERM or SIGINT.

        Args:
            ready: a file to make when questions are answered.
        """
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, over.set)
        await loop.create_datagram_endpoint(lambda: _Datagrams(self), sock=udp)
        async with await asyncio.start_server(self._stream, sock=tcp):
            if ready:
                ready.touch()
            await over.wait()

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = writer.get_extra_info("peername")[0]
        try:
            while True:
                async with asyncio.timeout(IDLE_S):
                    data = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                reply = await self.reply(data, client, tcp=True)
                if reply is None:
                    break
                writer.write(len(reply).to_bytes(2) + reply)
                await writer.drain()
        except (OSError, EOFError, TimeoutError):
            pass  # the client is gone, or silent
        finally:
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    """Answer each datagram with one."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        found = self.server.at_once(data, addr[0], tcp=False)
        if isinstance(found, Ask):
            task = asyncio.create_task(self._forward(found, addr))
            self.server.tasks.add(task)
            task.add_done_callback(self.server.tasks.discard)
        elif found is not None:
            self.transport.sendto(found, addr)

    async def _forward(self, ask: Ask, addr: tuple[Any, ...]) -> None:
        self.transport.sendto(await self.server.forward(ask, addr[0], tcp=False), addr)


# -- packets -------------------------------------------------------------------------------


def _text(labels: Sequence[bytes]) -> str:
    """Return a name as tables have it; a dot within a label keeps it from being one of theirs."""
    return ".".join(one.decode("latin-1").replace(".", "\\.") for one in labels).lower()


def _kind(number: int) -> str:
    return "ANY" if number == QTYPE.ANY else str(QTYPE.get(number, f"TYPE{number}"))


def _options(query: DNSRecord) -> Any:
    return next((one for one in query.ar if one.rtype == QTYPE.OPT), None)


def _limit(query: DNSRecord, *, tcp: bool) -> int:
    """Return how many bytes an answer may have."""
    options = _options(query)
    return 65_535 if tcp else min(max(options.rclass, SMALLEST), LARGEST) if options else SMALLEST


def _fit(reply: DNSRecord, limit: int) -> bytes:
    """Return an answer as a packet; one that is too long loses its additional records, then says that it is cut."""
    wire = bytes(reply.pack())
    if len(wire) > limit:
        reply.ar = [one for one in reply.ar if one.rtype == QTYPE.OPT]
        wire = bytes(reply.pack())
    while len(wire) > limit and (reply.rr or reply.auth):
        reply.header.tc, reply.auth = 1, []
        reply.rr = reply.rr[: min(len(reply.rr) * limit // len(wire), len(reply.rr) - 1)] if reply.rr else []
        wire = bytes(reply.pack())
    return wire


def _note(reply: DNSRecord, source: str) -> str:
    """Return the fields of Query that an answer gives, for the log."""
    name = "".join(f"{one}." for one in _text(reply.q.qname.label).split(".")).encode("unicode_escape").decode()
    return "\t".join((name, _kind(reply.q.qtype), RCODE.get(reply.header.rcode), str(len(reply.rr)), source))


def queries(log: Path) -> list[Query]:
    """Return the questions that a log tells of, in their order."""
    lines = [line.split("\t") for line in log.read_text().splitlines()] if log.exists() else []
    return [
        Query(at=float(at), client=ip, protocol=protocol, name=name, kind=kind, rcode=rcode, answers=int(n), via=via)
        for at, ip, protocol, name, kind, rcode, n, via in (line for line in lines if len(line) == 8)
    ]


# -- the program -----------------------------------------------------------------------------


def endpoint(text: str, *, default: int = 53) -> tuple[str, int]:
    """Return the two parts of ADDRESS:PORT, [ADDRESS]:PORT or ADDRESS; without an address, 0.0.0.0."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, int(rest.removeprefix(":") or default)
    if text.count(":") > 1:
        return text, default
    host, _, port = text.partition(":")
    return host or "0.0.0.0", int(port or default)  # noqa: S104  # as servers do


def bind(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Return a UDP and a TCP socket on the same port; 0 takes a free one.

    Raises:
        OSError: it is taken, or the address is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    tcp = socket.socket(family, socket.SOCK_STREAM)
    udp = socket.socket(family, socket.SOCK_DGRAM)
    try:
        for one in (tcp, udp) if host == "::" else ():  # it takes what is for IPv4, too
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind((host, port))
        tcp.listen(128)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)  # of a burst, the kernel keeps what fits
        udp.bind((host, tcp.getsockname()[1]))
        for one in (tcp, udp):
            one.setblocking(False)
    except BaseException:
        tcp.close()
        udp.close()
        raise
    return udp, tcp


def serve(folder: Path, host: str, port: int) -> None:
    """Serve the table in *folder* until SIGTERM. See the module."""
    udp, tcp = bind(host, port)
    asyncio.run(Server(folder / "table.json", log=folder / "log").run(udp, tcp, ready=folder / "ready"))


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 53)
