"""Grading: the state of a network, and live probes, decide; typed text never does."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dnslib import DNSRecord

from k8snet.errors import K8snetError, Timeout
from k8snet.observe.capture import capture
from k8snet.teach.card import card, inline

if TYPE_CHECKING:
    from k8snet.lab import Lab
    from k8snet.linux.probe import Connect, Fetch, Listener, Ping
    from k8snet.observe.snapshot import Snapshot

__all__ = ["Check", "Finding", "LookUp", "Prober", "Result", "grade"]

GETADDRINFO = """
import socket, sys
try:
    found = socket.getaddrinfo(sys.argv[1], None, type=socket.SOCK_STREAM)
except socket.gaierror:
    found = []
print(*dict.fromkeys(one[4][0] for one in found))
"""  # what most programs call
UDP_DATA = 14 + 20 + 8  # bytes of headers before it: Ethernet, IPv4, UDP


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and whether it is as it should be."""

    ok: bool
    text: str  # what holds, or what does not and where to look

    def __str__(self) -> str:
        """Return it on one line."""
        return f"{'✔' if self.ok else '✘'} {self.text}"


@dataclass(frozen=True, kw_only=True)
class LookUp:
    """What a program finds behind a name, and what it took."""

    name: str
    addresses: tuple[str, ...]  # none: it found nothing, or gave up
    asked: tuple[str, ...]  # the name in each query that was sent by UDP, with the final dot
    seconds: float  # until then

    @property
    def ok(self) -> bool:
        """Whether there was an address."""
        return bool(self.addresses)


class Prober:
    """Sends a check's own packets through a network, by the names of its netns."""

    def __init__(self, lab: Lab) -> None:
        """Probe inside the netns of *lab*."""
        self._lab = lab

    def ping(self, source: str, destination: str, *, timeout_s: float = 2.0) -> Ping:
        """Send one echo request from the netns *source*. See k8snet.linux.probe.ping()."""
        return self._lab[source].ping(destination, timeout_s=timeout_s)

    def connect(
        self, source: str, destination: str, port: int, *, protocol: str = "tcp", timeout_s: float = 2.0
    ) -> Connect:
        """Try a port from the netns *source*. See k8snet.linux.probe.connect()."""
        return self._lab[source].connect(destination, port, protocol=protocol, timeout_s=timeout_s)

    def fetch(
        self, source: str, url: str, *, timeout_s: float = 2.0, headers: dict[str, str] | None = None
    ) -> Fetch:  # fmt: skip
        """Ask for a page from the netns *source*. See k8snet.linux.probe.fetch()."""
        return self._lab[source].fetch(url, timeout_s=timeout_s, headers=headers)

    def look_up(self, source: str, name: str, *, timeout_s: float = 10.0) -> LookUp:
        """Look up a name as programs in the netns *source* do, by what they see as /etc/resolv.conf.

        Like: getent ahosts NAME, but for addresses of both families
        """
        netns, found, seconds = self._lab[source], "", timeout_s
        with capture(netns, "eth0", "udp dst port 53") as wire, contextlib.suppress(Timeout):
            done = netns.run(sys.executable, "-Ic", GETADDRINFO, name, timeout_s=timeout_s)
            found, seconds = done.stdout, done.seconds
        return LookUp(
            name=name, addresses=tuple(found.split()), seconds=seconds,
            asked=tuple(str(DNSRecord.parse(one.data[UDP_DATA:]).q.qname) for one in wire),
        )  # fmt: skip

    def listen(self, netns: str, port: int, *, protocol: str = "tcp") -> Listener:
        """Serve a port while a `with` block runs, to have something to reach."""
        return self._lab[netns].listen(port, protocol=protocol)


Check = Callable[["Snapshot", Prober], Iterator[Finding]]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a check found."""

    title: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be."""
        return bool(self.findings) and all(one.ok for one in self.findings)

    def __bool__(self) -> bool:
        """Return whether everything is as it should be."""
        return self.ok

    def __str__(self) -> str:
        """Return one finding a line."""
        head = f"{self.title}: {'done' if self.ok else 'not yet'}"
        return "\n".join([head, *(f"  {one}" for one in self.findings)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the findings as a card."""
        lines = "".join(f"<li class='{'good' if one.ok else 'bad'}'>{inline(str(one))}</li>" for one in self.findings)
        return card("result", f"{'Done' if self.ok else 'Not yet'}: {self.title}", f"<ul>{lines}</ul>", good=self.ok)


def grade(title: str, check: Check, lab: Lab) -> Result:
    """Run a check against the live state of a lab; it stops at an error of the network's."""
    findings: list[Finding] = []
    try:
        findings += check(lab.snapshot(), Prober(lab))
    except K8snetError as error:  # for one: a netns that the reader has not made yet
        findings.append(Finding(False, str(error)))
    return Result(title=title, findings=tuple(findings))
