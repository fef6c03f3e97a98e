"""Probes: real packets that ask a question, and answers that are values.

A probe tells apart "ok", "refused" (somebody is there and says no), "unreachable"
(a router or this netns itself says that there is no way) and "timeout" (silence, also
where the packet was dropped on its way out).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from k8snet.errors import InvalidInput
from k8snet.linux import address as check
from k8snet.linux.listener import Listener, listen

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = ["Connect", "Fetch", "Listener", "Ping", "connect", "fetch", "listen", "ping"]

SILENCE_S = 4.0  # seconds; a neighbour that does not answer ARP is given up after 3
IP_RECVERR, IPV6_RECVERR = 11, 25
ICMP_ECHO_REQUEST, ICMP_ECHO_REPLY, ICMP_UNREACHABLE, ICMP_TIME_EXCEEDED = 8, 0, 3, 11
ICMP6_ECHO_REQUEST, ICMP6_ECHO_REPLY = 128, 129
SAYS_NO = {errno.ECONNREFUSED: "refused", errno.ECONNRESET: "refused"}
NO_WAY = {
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EACCES,
    errno.EPERM,
    errno.EMSGSIZE,
    errno.EINVAL,
    errno.EADDRNOTAVAIL,
}


@dataclass(frozen=True, kw_only=True)
class Ping:
    """What became of some ICMP echo requests."""

    destination: str
    outcome: str  # "ok" if any was answered, else "unreachable" or "timeout"
    sent: int
    rtts_ms: tuple[float, ...] = ()  # milliseconds, one an answer
    reporter: str | None = None  # who said that there is no way; None: this netns itself, or nobody
    reason: str = ""  # in the words of the kernel

    @property
    def ok(self) -> bool:
        """Whether any request was answered."""
        return self.outcome == "ok"

    @property
    def received(self) -> int:
        """How many were answered."""
        return len(self.rtts_ms)

    @property
    def rtt_ms(self) -> float | None:
        """The shortest round trip, in milliseconds; None without an answer."""
        return min(self.rtts_ms, default=None)

    def __str__(self) -> str:
        """Return one line."""
        if self.ok:
            return f"ping {self.destination}: {self.received} of {self.sent} answered, {self.rtt_ms:.3f} ms"
        return f"ping {self.destination}: {_because(self.outcome, self.reporter, self.reason)}"

    __repr__ = __str__


@dataclass(frozen=True, kw_only=True)
class Connect:
    """What became of an attempt to reach a port."""

    protocol: str
    destination: str
    port: int
    outcome: str  # "ok", "refused", "unreachable" or "timeout"
    client: str | None = None  # our own address and port, as "10.0.0.1:40000"
    answer: str = ""  # UDP: what came back
    connect_ms: float | None = None  # milliseconds until it stood, or was answered
    reporter: str | None = None  # who sent the ICMP error, if one came
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether the port answered."""
        return self.outcome == "ok"

    def __str__(self) -> str:
        """Return one line."""
        target = f"{self.protocol} {joined(self.destination, self.port)}"
        if self.ok:
            return f"{target}: ok, from {self.client}, {self.connect_ms:.3f} ms"
        return f"{target}: {_because(self.outcome, self.reporter, self.reason)}"

    __repr__ = __str__


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """What became of an HTTP request, with the addresses that both sides saw."""

    url: str
    outcome: str  # "ok" for any HTTP answer, else "refused", "unreachable" or "timeout"
    status: int | None = None  # of HTTP
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)  # names in lower case
    client_sees: tuple[str, str] | None = None  # (its own address, the server's), as the client has them
    server_sees: tuple[str, str] | None = None  # (the client's address, its own), as the server told
    connect_ms: float | None = None  # milliseconds until the connection stood
    first_byte_ms: float | None = None  # until the first byte of the answer
    total_ms: float | None = None  # until the last
    reporter: str | None = None
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether HTTP answered with a status below 400."""
        return self.status is not None and self.status < 400

    def __str__(self) -> str:
        """Return the answer, and who saw whom."""
        if self.status is None or self.client_sees is None:
            return f"GET {self.url}: {_because(self.outcome, self.reporter, self.reason)}"
        lines = [f"GET {self.url}: {self.status}, {self.total_ms:.1f} ms"]
        lines.append(f"  the client sees  {self.client_sees[0]} -> {self.client_sees[1]}")
        if self.server_sees:
            lines.append(f"  the server sees  {self.server_sees[0]} -> {self.server_sees[1]}")
        first = self.body.strip().partition("\n")[0]
        return "\n".join([*lines, f"  {first[:72]}"])

    __repr__ = __str__


def joined(host: str, port: int) -> str:
    """Return "10.0.0.1:80", or "[fd00::1]:80"."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _because(outcome: str, reporter: str | None, reason: str) -> str:
    who = f", says {reporter}" if reporter else ""
    return f"{outcome}{f' ({reason}{who})' if reason else ''}"


def verdict(error: OSError) -> tuple[str, str]:
    """Return the outcome that an error of a socket stands for, and the reason in the kernel's words."""
    number = error.errno or 0
    if isinstance(error, TimeoutError) or number == errno.ETIMEDOUT:
        return "timeout", "silence"
    if number == errno.ENOBUFS:  # of a socket with IP_RECVERR: the queue of the interface did not take the packet
        return "timeout", "dropped by the own interface: no buffer space, or no carrier"
    if number in SAYS_NO:
        return SAYS_NO[number], os.strerror(number).lower()
    if number in NO_WAY:
        return "unreachable", os.strerror(number).lower()
    raise error


def _positive(what: str, value: float) -> float:
    if not isinstance(value, int | float) or not 0 < value <= 600:
        raise InvalidInput(f"{what} {value!r} is not a number of seconds above 0 and up to 600")
    return value


# -- ping ------------------------------------------------------------------------------


def ping(
    netns: Netns, destination: str, *, count: int = 1, timeout_s: float = SILENCE_S, size: int = 56,
    fragment: bool = True, source: str | None = None, interval_s: float = 0.0,
) -> Ping:  # fmt: skip
    """Send ICMP echo requests, and wait for the answers. Like: ping -c COUNT -s SIZE DESTINATION.

    Args:
        timeout_s: seconds of silence after which a request counts as lost.
        size: bytes of payload; the ICMP and IP headers add 28.
        fragment: False forbids routers to cut the packet, as `ping -M do` does.
        source: the address to send from; None lets the route decide.
        interval_s: seconds between two requests.

    Raises:
        InvalidAddress, InvalidInput: an argument cannot be.
    """
    target = check.host_address(destination)
    check.check_range("count", count, 1, 10_000)
    check.check_range("payload size", size, 0, 65_507)
    _positive("timeout", timeout_s)
    if source is not None:
        check.host_address(source)

    def body() -> Ping:
        family = socket.AF_INET if target.version == 4 else socket.AF_INET6
        protocol = socket.IPPROTO_ICMP if target.version == 4 else socket.IPPROTO_ICMPV6
        with socket.socket(family, socket.SOCK_RAW, protocol) as icmp:
            _prepare(icmp, target.version, fragment)
            if source:
                icmp.bind((source, 0))
            return _ping(icmp, str(target), target.version, count, timeout_s, size, interval_s)

    return netns.inside(body)


def _prepare(icmp: socket.socket, version: int, fragment: bool) -> None:
    if version == 4:
        icmp.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        icmp.setsockopt(socket.IPPROTO_IP, 10, 0 if fragment else 2)  # IP_MTU_DISCOVER
    else:
        icmp.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)


def _ping(
    icmp: socket.socket, target: str, version: int, count: int, timeout_s: float, size: int, interval_s: float
) -> Ping:
    identity = int.from_bytes(os.urandom(2))
    rtts: list[float] = []
    outcome, reason, reporter = "timeout", "silence", None
    for number in range(1, count + 1):
        begun = time.monotonic()
        try:
            icmp.sendto(echo_request(version, identity, number, size), (target, 0))
            _await_reply(icmp, version, identity, number, begun + timeout_s)
            rtts.append((time.monotonic() - begun) * 1000)
        except OSError as error:
            outcome, reason = verdict(error)
            reporter = error_reporter(icmp) or reporter
            if outcome == "refused":  # ICMP "port unreachable": a REJECT rule, most likely
                outcome = "unreachable"
        while number < count and (left := begun + interval_s - time.monotonic()) > 0:
            time.sleep(left)
    if rtts:
        return Ping(destination=target, outcome="ok", sent=count, rtts_ms=tuple(rtts))
    return Ping(destination=target, outcome=outcome, sent=count, reporter=reporter, reason=reason)


def echo_request(version: int, identity: int, number: int, size: int) -> bytes:
    """Return an ICMP echo request, of IPv4 or IPv6 by *version*."""
    kind = ICMP_ECHO_REQUEST if version == 4 else ICMP6_ECHO_REQUEST
    payload = bytes(octet & 0xFF for octet in range(size))
    empty = struct.pack("!BBHHH", kind, 0, 0, identity, number) + payload
    if version == 6:  # the kernel fills in the checksum
        return empty
    return struct.pack("!BBHHH", kind, 0, _checksum(empty), identity, number) + payload


def _checksum(data: bytes) -> int:
    """Return the Internet checksum of RFC 1071."""
    words: tuple[int, ...] = struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _await_reply(icmp: socket.socket, version: int, identity: int, number: int, deadline: float) -> None:
    wanted = ICMP_ECHO_REPLY if version == 4 else ICMP6_ECHO_REPLY
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        icmp.settimeout(left)
        data = icmp.recv(65536)
        message = data[(data[0] & 0x0F) * 4 :] if version == 4 else data
        kind, _, _, who, which = struct.unpack("!BBHHH", message[:8])
        if (kind, who, which) == (wanted, identity, number):
            return


def error_reporter(sock: socket.socket) -> str | None:
    """Return who sent the last ICMP error for a socket with IP_RECVERR; None if it was this netns."""
    found = None
    sock.setblocking(False)
    try:
        while True:
            _, ancillary, _, _ = sock.recvmsg(512, 512, socket.MSG_ERRQUEUE)
            for level, kind, data in ancillary:
                # struct sock_extended_err: errno, origin, type, code, pad, info, data; then the sender's address
                if (level, kind) == (socket.IPPROTO_IP, IP_RECVERR) and data[4] == 2:  # SO_EE_ORIGIN_ICMP
                    found = socket.inet_ntop(socket.AF_INET, data[20:24])
                elif (level, kind) == (socket.IPPROTO_IPV6, IPV6_RECVERR) and data[4] == 3:
                    found = socket.inet_ntop(socket.AF_INET6, data[24:40])
    except OSError:  # the queue is empty
        return found


# -- connect ---------------------------------------------------------------------------


def connect(
    netns: Netns, destination: str, port: int, *, protocol: str = "tcp", timeout_s: float = SILENCE_S,
    source: str | None = None, source_port: int = 0, mss: int = 0,
) -> Connect:  # fmt: skip
    """Try to reach a port: open a TCP connection, or send a UDP datagram and await an answer.

    Args:
        timeout_s: seconds of silence after which it counts as lost.
        source_port: the port to send from; 0 lets the kernel choose.
        mss: the largest segment that TCP offers to take, in bytes; 0 lets the kernel choose.

    Raises:
        InvalidAddress, InvalidInput: an argument cannot be.
    """
    target = check.host_address(destination)
    check.check_port(port)
    check.check_range("source port", source_port, 0, 65535)
    _positive("timeout", timeout_s)
    if protocol not in {"tcp", "udp"}:
        raise InvalidInput(f"protocol {protocol!r}: 'tcp' or 'udp'")
    bind = (str(check.host_address(source)) if source else "", source_port)

    def body() -> Connect:
        with _socket(target.version, protocol, timeout_s, bind) as sock:
            if mss and protocol == "tcp":
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)
            return _connect(sock, protocol, str(target), port)

    return netns.inside(body)


def _socket(version: int, protocol: str, timeout_s: float, bind: tuple[str, int] = ("", 0)) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if version == 4:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    if bind != ("", 0):
        sock.bind(bind)
    sock.settimeout(timeout_s)
    return sock


def _connect(sock: socket.socket, protocol: str, target: str, port: int) -> Connect:
    begun = time.monotonic()
    answer = ""
    try:
        sock.connect((target, port))
        if protocol == "udp":
            sock.send(b"?\n")
            answer = sock.recv(65536).decode(errors="replace").strip()
    except OSError as error:
        outcome, reason = verdict(error)
        return Connect(
            protocol=protocol, destination=target, port=port, outcome=outcome, reason=reason,
            reporter=error_reporter(sock),
        )  # fmt: skip
    return Connect(
        protocol=protocol, destination=target, port=port, outcome="ok", answer=answer,
        client=joined(*sock.getsockname()[:2]), connect_ms=(time.monotonic() - begun) * 1000,
    )  # fmt: skip


# -- fetch -----------------------------------------------------------------------------


def fetch(
    netns: Netns, url: str, *, timeout_s: float = SILENCE_S, headers: dict[str, str] | None = None, source_port: int = 0
) -> Fetch:
    """Ask an HTTP server for a page. Like: curl URL.

    Servers of a lab tell in their answer which addresses they saw; the answer has both views.

    Args:
        url: as in "http://10.0.0.1:8080/path"; the host is an address, or localhost.
        headers: of the request, to be added.

    Raises:
        InvalidInput, InvalidAddress: not such a URL.
    """
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        host, port = parts.hostname or "", parts.port or 80
    except ValueError as error:
        raise InvalidInput(f"URL {url!r}: {error}") from None
    if parts.scheme != "http":
        raise InvalidInput(f"URL {url!r}: only http:// is spoken here")
    target = check.host_address("127.0.0.1" if host == "localhost" else host)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    _positive("timeout", timeout_s)

    def body() -> Fetch:
        with _socket(target.version, "tcp", timeout_s, ("", source_port)) as sock:
            try:
                return _get(sock, url, str(target), port, path, {"Host": parts.netloc, **(headers or {})})
            except HTTPException as error:
                return Fetch(url=url, outcome="refused", reason=f"not HTTP: {error or type(error).__name__}")
            except OSError as error:
                outcome, reason = verdict(error)
                return Fetch(url=url, outcome=outcome, reason=reason, reporter=error_reporter(sock))

    return netns.inside(body)


def _get(sock: socket.socket, url: str, target: str, port: int, path: str, headers: dict[str, str]) -> Fetch:
    begun = time.monotonic()
    sock.connect((target, port))
    connect_ms = _elapsed_ms(begun)
    own = joined(*sock.getsockname()[:2])
    client = HTTPConnection(target, port)
    client.sock = sock
    client.request("GET", path, headers={"Connection": "close", **headers})
    answer = client.getresponse()
    first_byte_ms = _elapsed_ms(begun)
    text = answer.read().decode(errors="replace")
    fields = {name.lower(): value for name, value in answer.getheaders()}
    seen = (fields.get("x-seen-client"), fields.get("x-seen-server"))
    return Fetch(
        url=url, outcome="ok", status=answer.status, body=text, headers=fields,
        client_sees=(own, joined(target, port)), server_sees=(seen[0], seen[1]) if seen[0] and seen[1] else None,
        connect_ms=connect_ms, first_byte_ms=first_byte_ms, total_ms=_elapsed_ms(begun),
    )  # fmt: skip


def _elapsed_ms(begun: float) -> float:
    return (time.monotonic() - begun) * 1000
