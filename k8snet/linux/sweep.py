"""Sweep: many probes from one netns at the same time, so that silence costs one time-out and not many.

Each target has a socket of its own, and one epoll waits for all: a socket stays in the netns that it was made in.
TCP targets are asked for a page after the connection stands, UDP targets get a line: a lab's servers tell in
their answers which address they saw, which shows NAT on the way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import select
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from k8snet.errors import InvalidInput
from k8snet.linux import address as check
from k8snet.linux import nsfs, probe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from k8snet.linux.netns import Netns

__all__ = ["Answer", "Target", "sweep", "sweep_waves"]

IN_FLIGHT = 4096  # sockets that are open at the same time, where this process may have so many
SPARE = 64  # file descriptors that are left to others
SETTLE_S = 0.1  # seconds without any answer after which the next wave begins
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
    return sweep_waves([plan], timeout_s=timeout_s, identity=identity)[0]


def sweep_waves(
    waves: Sequence[Mapping[Netns, Sequence[Target]]], *, timeout_s: float = 1.0, identity: int | None = None,
    after: Callable[[int], None] = lambda _: None,
) -> list[dict[Netns, list[Answer]]]:  # fmt: skip
    """Probe several plans, one after the other; what is silent is waited for while the next ones run.

    Args:
        after: called with the number of each wave but the last one, when it has been answered or has fallen silent.
    """
    for target in {one for plan in waves for targets in plan.values() for one in targets}:
        check.host_address(target.address)
        if target.protocol not in {"tcp", "udp", "icmp"}:
            raise InvalidInput(f"protocol {target.protocol!r}: 'tcp', 'udp' or 'icmp'")
        if target.protocol != "icmp":
            check.check_port(target.port)
    number = int.from_bytes(os.urandom(2)) if identity is None else identity
    engine = _Sweep(timeout_s, number)
    nsfs.in_thread(lambda: engine.run(waves, after))
    answers = iter(engine.answers[place] for place in range(len(engine.answers)))
    return [{netns: [next(answers) for _ in targets] for netns, targets in plan.items()} for plan in waves]


@dataclass(kw_only=True)
class _Open:
    """A probe on its way."""

    number: int
    wave: int
    target: Target
    sock: socket.socket
    begun: float
    connected: bool = False


class _Sweep:
    """All probes; run() is called on a thread of its own, which goes from netns to netns."""

    def __init__(self, timeout_s: float, identity: int) -> None:
        self.timeout_s, self.identity, self.wave = timeout_s, identity, 0
        self.answers: dict[int, Answer] = {}
        self.open: dict[int, _Open] = {}  # by file descriptor; those that began first come first
        self.waits: Counter[int] = Counter()  # wave -> how many of it are open
        self.last = time.monotonic()  # when anything was answered
        self.newest: dict[str, float] = {}  # protocol -> when the youngest probe began that has been answered
        self.most = _sockets_to_have()
        self.poll = select.epoll()

    def run(self, waves: Sequence[Mapping[Netns, Sequence[Target]]], after: Callable[[int], None]) -> None:
        number = 0
        try:
            for self.wave, plan in enumerate(waves):
                for netns, targets in plan.items():
                    nsfs.enter(netns.fd)
                    for target in targets:
                        while len(self.open) >= self.most:
                            self._look(0.05)
                        self._start(number, target)
                        number += 1
                    self._look(0)
                if self.wave + 1 < len(waves):
                    self._settle()
                    after(self.wave)
            while self.open:
                self._look(0.05)
        finally:
            for one in list(self.open.values()):
                self._close(one)
            self.poll.close()

    def _settle(self) -> None:
        begun, patience_s = time.monotonic(), min(self.timeout_s, SETTLE_S)
        while self.waits[self.wave] and time.monotonic() - max(begun, self.last) < patience_s:
            self._look(0.05)

    def _look(self, wait_s: float) -> None:
        for fd, _ in self.poll.poll(wait_s):
            if fd in self.open:
                self._progress(self.open[fd])
        self._give_up()

    def _start(self, number: int, target: Target) -> None:
        sock = _socket(target)
        one = _Open(number=number, wave=self.wave, target=target, sock=sock, begun=time.monotonic())
        self.open[sock.fileno()] = one
        self.waits[self.wave] += 1
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
                self._tick(one)
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

    def _tick(self, one: _Open) -> None:
        self.last = time.monotonic()
        self.newest[one.target.protocol] = max(self.newest.get(one.target.protocol, 0.0), one.begun)

    def _give_up(self) -> None:
        """End what has waited long enough. A busy machine must not look like silence.

        So nobody may have had an answer for as long as that, or one has that asked half as long after it.
        """
        now = time.monotonic()
        quiet, lost = now - self.last >= self.timeout_s, []
        for one in self.open.values():
            if one.begun > now - self.timeout_s:
                break
            if quiet or self.newest.get(one.target.protocol, 0.0) >= one.begun + self.timeout_s / 2:
                lost.append(one)
        for one in lost:
            outcome, reason = ("ok", "") if one.connected else ("timeout", "silence")
            self._done(one, outcome, reason=reason, answered=False)

    def _done(
        self, one: _Open, outcome: str, *, seen: str | None = None, reason: str = "", reporter: str | None = None,
        answered: bool = True,
    ) -> None:  # fmt: skip
        if answered:
            self._tick(one)
        with contextlib.suppress(OSError):
            client = one.sock.getsockname()
        own = client[0] if outcome == "ok" else None
        self.answers[one.number] = Answer(
            target=one.target, outcome=outcome, client=own, seen=seen, reason=reason, reporter=reporter
        )
        self._close(one)

    def _close(self, one: _Open) -> None:
        fd = one.sock.fileno()
        if self.open.pop(fd, None):
            self.waits[one.wave] -= 1
        with contextlib.suppress(OSError):  # it was never registered
            self.poll.unregister(fd)
        one.sock.close()


def _sockets_to_have() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = sum(1 for _ in Path("/proc/self/fd").iterdir())
    return max(1, min(IN_FLIGHT, soft - used - SPARE)) if soft != resource.RLIM_INFINITY else IN_FLIGHT


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
