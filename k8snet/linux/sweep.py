"""Sweep: many probes from one netns at the same time, so that silence costs one time-out and not many.

Each target has a socket of its own, and one epoll waits for all. TCP targets are asked
for a page after the connection stands, UDP targets get a line: a lab's servers tell in
their answers which address they saw, which shows NAT on the way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from k8snet.errors import InvalidInput
from k8snet.linux import address as check
from k8snet.linux import probe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from k8snet.linux.netns import Netns

__all__ = ["Answer", "Target", "sweep"]

AT_ONCE = 32  # netns that probe at the same time
IN_FLIGHT = 256  # sockets that one netns has open at the same time
QUESTION = b"GET / HTTP/1.0\r\n\r\n"
SEEN = re.compile(rb"(?:X-Seen-Client:\s*|saw )(\S+)", re.IGNORECASE)
AGAIN = {errno.EINPROGRESS, errno.EAGAIN}


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something to reach."""

    protocol: str  # "tcp", "udp" or "icmp"
    address: str
    port: int = 0  # 0 for ICMP


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of one probe."""

    target: Target
    outcome: str  # "ok", "refused", "unreachable" or "timeout"
    client: str | None = None  # our own address, as we see it
    seen: str | None = None  # our address, as the server told; None if it told nothing
    reporter: str | None = None  # who sent the ICMP error, if one came
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether the target answered."""
        return self.outcome == "ok"

    @property
    def translated(self) -> bool:
        """Whether the server saw another address than our own: NAT on the way."""
        return self.seen is not None and self.seen != self.client


@dataclass
class _Clock:
    """When anything was last answered anywhere: a busy machine must not look like silence."""

    last: float = field(default_factory=time.monotonic)
    quiet: float = 0.0  # until when silence was long enough: what was open before is lost

    def tick(self) -> None:
        self.last = time.monotonic()

    def lost_before(self, timeout_s: float) -> float:
        """Return the time before which a probe must have begun to count as lost by now."""
        now = time.monotonic()
        if now - self.last >= timeout_s:
            self.quiet = now  # for every netns: one that noticed speaks for all
        return self.quiet - timeout_s


def sweep(
    plan: Mapping[Netns, Sequence[Target]], *, timeout_s: float = 1.0, identity: int | None = None
) -> dict[Netns, list[Answer]]:
    """Probe every target from its netns, all in parallel, and return the answers in the order of the targets.

    Args:
        timeout_s: seconds without any answer after which what is open counts as lost.
        identity: of the echo requests, 0 to 65535; None draws one, so that conntrack takes them for new.

    Raises:
        InvalidInput, InvalidAddress: a target cannot be.
    """
    for target in {one for targets in plan.values() for one in targets}:
        check.host_address(target.address)
        if target.protocol not in {"tcp", "udp", "icmp"}:
            raise InvalidInput(f"protocol {target.protocol!r}: 'tcp', 'udp' or 'icmp'")
        if target.protocol != "icmp":
            check.check_port(target.port)
    clock, number = _Clock(), int.from_bytes(os.urandom(2)) if identity is None else identity

    def work(netns: Netns, targets: Sequence[Target]) -> list[Answer]:
        return netns.inside(_Sweep(targets, timeout_s, clock, number).run)

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="k8snet-sweep") as pool:
        futures = {netns: pool.submit(work, netns, targets) for netns, targets in plan.items()}
        return {netns: future.result() for netns, future in futures.items()}


@dataclass(kw_only=True)
class _Open:
    """A probe on its way."""

    number: int
    target: Target
    sock: socket.socket
    begun: float
    connected: bool = False


class _Sweep:
    """The probes of one netns; run() is called on a thread inside it."""

    def __init__(self, targets: Sequence[Target], timeout_s: float, clock: _Clock, identity: int) -> None:
        self.targets, self.timeout_s, self.clock, self.identity = targets, timeout_s, clock, identity
        self.answers: dict[int, Answer] = {}
        self.open: dict[int, _Open] = {}  # by file descriptor
        self.poll = select.epoll()

    def run(self) -> list[Answer]:
        waiting = list(enumerate(self.targets))[::-1]
        try:
            while waiting or self.open:
                while waiting and len(self.open) < IN_FLIGHT:
                    self._start(*waiting.pop())
                for fd, _ in self.poll.poll(0.05):
                    if fd in self.open:
                        self._progress(self.open[fd])
                self._give_up()
        finally:
            for one in list(self.open.values()):
                self._close(one)
            self.poll.close()
        return [self.answers[number] for number in range(len(self.targets))]

    def _start(self, number: int, target: Target) -> None:
        sock = _socket(target)
        one = _Open(number=number, target=target, sock=sock, begun=time.monotonic())
        self.open[sock.fileno()] = one
        try:
            _raise(sock.connect_ex((target.address, target.port)))
            if target.protocol != "tcp":
                sock.send(b"?\n" if target.protocol == "udp" else _echo(sock, self.identity, number))
        except OSError as error:
            self._failed(one, error)
            return
        self.poll.register(sock.fileno(), select.EPOLLIN | (select.EPOLLOUT if target.protocol == "tcp" else 0))

    def _progress(self, one: _Open) -> None:
        try:
            if one.target.protocol == "tcp" and not one.connected:
                _raise(one.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
                one.connected = True
                self.clock.tick()
                one.sock.send(QUESTION)
                self.poll.modify(one.sock.fileno(), select.EPOLLIN)
                return
            data = one.sock.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:
            self._failed(one, error)
            return
        if one.target.protocol != "icmp" or _is_reply(data, one, self.identity):
            self._done(one, "ok", seen=_seen(data))

    def _failed(self, one: _Open, error: OSError) -> None:
        outcome, reason = probe.verdict(error)
        if one.connected:  # it stood; that the server said nothing is its own affair
            self._done(one, "ok")
            return
        if one.target.protocol == "icmp" and outcome == "refused":
            outcome = "unreachable"
        self._done(one, outcome, reason=reason, reporter=probe.error_reporter(one.sock))

    def _give_up(self) -> None:
        before = self.clock.lost_before(self.timeout_s)
        for one in list(self.open.values()):
            if one.begun <= before:
                outcome, reason = ("ok", "") if one.connected else ("timeout", "silence")
                self._done(one, outcome, reason=reason, answered=False)

    def _done(
        self, one: _Open, outcome: str, *, seen: str | None = None, reason: str = "", reporter: str | None = None,
        answered: bool = True,
    ) -> None:  # fmt: skip
        if answered:
            self.clock.tick()
        with contextlib.suppress(OSError):
            client = one.sock.getsockname()
        own = client[0] if outcome == "ok" else None
        self.answers[one.number] = Answer(
            target=one.target, outcome=outcome, client=own, seen=seen, reason=reason, reporter=reporter
        )
        self._close(one)

    def _close(self, one: _Open) -> None:
        fd = one.sock.fileno()
        self.open.pop(fd, None)
        with contextlib.suppress(OSError):  # it was never registered
            self.poll.unregister(fd)
        one.sock.close()


def _socket(target: Target) -> socket.socket:
    version = check.host_address(target.address).version
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    if target.protocol == "icmp":
        number = socket.IPPROTO_ICMP if version == 4 else socket.IPPROTO_ICMPV6
        sock = socket.socket(family, socket.SOCK_RAW, number)
    else:
        sock = socket.socket(family, socket.SOCK_STREAM if target.protocol == "tcp" else socket.SOCK_DGRAM)
    sock.setsockopt(*((socket.IPPROTO_IP, probe.IP_RECVERR) if version == 4 else
                      (socket.IPPROTO_IPV6, probe.IPV6_RECVERR)), 1)  # fmt: skip
    sock.setblocking(False)
    return sock


def _raise(code: int) -> None:
    if code and code not in AGAIN:
        raise OSError(code, os.strerror(code))


def _echo(sock: socket.socket, identity: int, number: int) -> bytes:
    return probe.echo_request(4 if sock.family == socket.AF_INET else 6, identity, number & 0xFFFF, 24)


def _is_reply(data: bytes, one: _Open, identity: int) -> bool:
    """Return whether a raw ICMP packet answers our request; the socket sees others too."""
    four = one.sock.family == socket.AF_INET
    message = data[(data[0] & 0x0F) * 4 :] if four else data
    wanted = probe.ICMP_ECHO_REPLY if four else probe.ICMP6_ECHO_REPLY
    if len(message) < 8:
        return False
    kind, _, _, who, which = struct.unpack("!BBHHH", message[:8])
    return (kind, who, which) == (wanted, identity, one.number & 0xFFFF)


def _seen(data: bytes) -> str | None:
    """Return the client's address that a server's answer tells, without the port."""
    found = SEEN.search(data)
    return found[1].decode(errors="replace").rpartition(":")[0].strip("[]") if found else None
