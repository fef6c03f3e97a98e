"""IPVS, the kernel's own load balancer: virtual servers, and the real servers behind each.

What there is is read at once from /proc/net/ip_vs, and what that leaves out, virtual server by virtual server over
netlink: where other netns have virtual servers, too, the kernel loses count of its own after the first 4 kB of text.
What is to change goes in few sends of many messages:

    nlmsghdr      length, the number of the generic netlink family "IPVS", flags, sequence, port
    genlmsghdr    command, version 1
    ├── IPVS_CMD_ATTR_SERVICE   family, protocol, address, port; of one that is, or is to be made or changed, also
    │                           scheduler, flags and their mask, timeout (of persistence), netmask (of clients)
    └── IPVS_CMD_ATTR_DEST      address, port, how to forward: 0, by translating; weight, two thresholds, family;
                                of one that is, connections, active and inactive

As in batch.py, the last of a send asks to be acknowledged, since the kernel tells of an error anyhow.
Sources: linux/ip_vs.h, net/netfilter/ipvs/ip_vs_ctl.c, man 8 ipvsadm.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from k8snet.errors import CapabilityMissing, KernelRefused

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = ["Change", "RealServer", "VirtualServer", "apply", "changes", "parse", "read", "require", "virtual_servers"]

INSTEAD = 'Run it with the kernelspec "k8snet-vm", or: k8snet sandbox --vm -- COMMAND'
PROTOCOLS = {"TCP": (6, "-t"), "UDP": (17, "-u"), "SCTP": (132, "--sctp-service")}  # number, and ipvsadm's option
COMMANDS = {"-A": 1, "-E": 2, "-D": 3, "-a": 5, "-e": 6, "-d": 7}  # ipvsadm's -> IPVS_CMD_NEW_SERVICE, ...
FULL = ("-A", "-E", "-a", "-e")  # those that say what a server is to be, not only which
GET_SERVICE, GET_DEST = 4, 8
FORWARD = ("Masq", "Local", "Tunnel", "Route", "Bypass")
NETLINK_GENERIC, NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLMSG_ERROR, NLMSG_DONE = 16, 1, 4, 0x300, 2, 3
PERSISTENT, ALL_FLAGS = 0x1, 0xFFFFFFFF
AT_ONCE = 500  # messages in one send, some 70 kB; the send buffer takes 212,992
ANSWER_S = 30.0  # seconds
SERVICE = re.compile(r"(TCP|UDP|SCTP) +(\S+) (\S+)")
REAL = re.compile(r"  -> (\S+) +(\S+) +(\d+) +(\d+) +(\d+)")


@dataclass(frozen=True, kw_only=True)
class RealServer:
    """One of those that a virtual server hands connections to."""

    address: str
    port: int
    weight: int = 1  # 0: no new connections
    active: int = field(default=0, compare=False)  # connections that stand
    inactive: int = field(default=0, compare=False)  # that begin or have ended, and are remembered
    forward: str = field(default="Masq", compare=False)  # how packets get there: "Masq" is by translation

    @property
    def connections(self) -> int:
        """All that the kernel remembers."""
        return self.active + self.inactive

    def __str__(self) -> str:
        """Return it as "10.0.0.1:80" or "[fd00::1]:80"."""
        return _pair(self.address, self.port)


@dataclass(frozen=True, kw_only=True)
class VirtualServer:
    """An address and port whose connections are handed to real servers."""

    address: str
    port: int
    protocol: str  # "TCP", "UDP" or "SCTP"
    scheduler: str = "rr"
    persistence_s: int | None = None  # seconds for which a client's connections go the same way; None: each for itself
    real_servers: tuple[RealServer, ...] = ()

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from the others."""
        return self.protocol, self.address, self.port

    def __str__(self) -> str:
        """Return it as "TCP 10.96.0.1:443"."""
        return f"{self.protocol} {_pair(self.address, self.port)}"


def _pair(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@dataclass(frozen=True)
class Change:
    """One change, by the name that ipvsadm has for it."""

    command: str  # "-A", "-E", "-D": make, change or delete a virtual server; in small letters: a real one
    virtual: VirtualServer
    real: RealServer | None = None

    def __str__(self) -> str:
        """Return it as ipvsadm --save writes it, and --restore reads it."""
        virtual, real = self.virtual, self.real
        words = [self.command, PROTOCOLS[virtual.protocol][1], _pair(virtual.address, virtual.port)]
        if real:
            words += ["-r", str(real), *(["-m", "-w", str(real.weight)] if self.command in FULL else [])]
        elif self.command in FULL:
            persistent = ["-p", str(virtual.persistence_s)] if virtual.persistence_s else []
            words += ["-s", virtual.scheduler, *persistent]
        return " ".join(words)


def changes(before: Iterable[VirtualServer], after: Iterable[VirtualServer]) -> Iterator[Change]:
    """Yield what leads from *before* to *after*: a server that stays keeps its connections."""
    old, new = ({one.key: one for one in several} for several in (before, after))
    for key, virtual in new.items():
        known = old.get(key)
        if known == virtual:
            continue
        if known is None:
            yield Change("-A", virtual)
        elif (known.scheduler, known.persistence_s) != (virtual.scheduler, virtual.persistence_s):
            yield Change("-E", virtual)
        had = {str(one): one.weight for one in known.real_servers} if known else {}
        for real in virtual.real_servers:
            if had.get(str(real)) != real.weight:
                yield Change("-e" if str(real) in had else "-a", virtual, real)
        kept = set(map(str, virtual.real_servers))
        yield from (Change("-d", virtual, one) for one in (known.real_servers if known else ()) if str(one) not in kept)
    yield from (Change("-D", virtual) for key, virtual in old.items() if key not in new)


# -- what there is ---------------------------------------------------------------------


def virtual_servers(netns: Netns) -> list[VirtualServer]:
    """Return the virtual servers of a netns, by protocol and address; none where the kernel has no IPVS.

    Like: ipvsadm --list --numeric
    """
    return netns.inside(read)


def read() -> list[VirtualServer]:
    """Return the virtual servers of the calling thread's netns."""
    try:
        text = Path("/proc/thread-self/net/ip_vs").read_text()
    except FileNotFoundError:
        return []
    if not SERVICE.search(text):
        return []
    family = _family()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC) as sock:
        sock.settimeout(ANSWER_S)
        there = _services(_dump(sock, family, GET_SERVICE, 1)) or parse(text, {})  # who may not ask may read
        listed = {one.key: one for one in parse(text, {one.key: one.persistence_s or 0 for one in there})}
        found = []
        for one in there:
            if one.key not in listed:
                reals = _dump(sock, family, GET_DEST, 2, body=_joined([(1, _joined(_names(one)))]))
                listed[one.key] = replace(one, real_servers=_sorted(map(_real, reals)))
            found.append(listed[one.key])
    return sorted(found, key=lambda one: one.key)


def parse(text: str, timeouts: Mapping[tuple[str, str, int], int]) -> list[VirtualServer]:
    """Return the virtual servers that /proc/net/ip_vs tells of.

    Args:
        timeouts: seconds of persistence, by key; the text has them in ticks of the kernel's clock.
    """
    found: list[VirtualServer] = []
    reals: list[RealServer] = []
    for line in reversed(text.splitlines()):  # so that its real servers come before a virtual one
        if match := REAL.match(line):
            address, port = _unpacked(match[1])
            weight, active, inactive = map(int, match.groups()[2:])
            reals.append(
                RealServer(
                    address=address, port=port, weight=weight, active=active, inactive=inactive, forward=match[2],
                )
            )  # fmt: skip
        elif match := SERVICE.match(line):
            address, port = _unpacked(match[2])
            seconds = timeouts.get((match[1], address, port)) if " persistent " in line else None
            behind = _sorted(reals)
            reals = []
            found.append(
                VirtualServer(
                    address=address, port=port, protocol=match[1], scheduler=match[3], persistence_s=seconds,
                    real_servers=behind,
                )
            )  # fmt: skip
    return sorted(found, key=lambda one: one.key)


def _unpacked(text: str) -> tuple[str, int]:
    """Return address and port of "0A60000A:0050" or "[fd00:0000:...:0001]:0050"."""
    address, _, port = text.rpartition(":")
    found = ipaddress.ip_address(address.strip("[]") if "[" in address else int(address, 16))
    return str(found), int(port, 16)


def _sorted(reals: Iterable[RealServer]) -> tuple[RealServer, ...]:
    return tuple(sorted(reals, key=lambda one: (one.address, one.port)))


def _dump(
    sock: socket.socket, family: int, command: int, wanted: int, *, body: bytes = b""
) -> list[dict[int, bytes]]:  # what is in the attribute *wanted* of each answer
    head = struct.pack("=BBH", command, 1, 0)
    sock.send(struct.pack("=IHHII", 20 + len(body), family, NLM_F_REQUEST | NLM_F_DUMP, 0, 0) + head + body)
    found: list[dict[int, bytes]] = []
    while True:
        data = sock.recv(65536)
        while data:
            length, kind = struct.unpack_from("=IH", data)
            if kind in {NLMSG_DONE, NLMSG_ERROR}:
                return found
            found.append(_attributes(_attributes(data[20:length])[wanted]))
            data = data[length + -length % 4 :]


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while data:
        size, kind = struct.unpack_from("=HH", data)
        found[kind & 0x3FFF] = data[4:size]
        data = data[size + -size % 4 :]
    return found


def _services(messages: Iterable[Mapping[int, bytes]]) -> list[VirtualServer]:
    """Return virtual servers, without the real ones; those by a firewall mark are not ours."""
    names = {number: name for name, (number, _) in PROTOCOLS.items()}
    found = []
    for one in messages:
        if 2 in one and (protocol := names.get(*struct.unpack("=H", one[2]))):
            ((version,), (flags, _)) = struct.unpack("=H", one[1]), struct.unpack("=II", one[7])
            found.append(
                VirtualServer(
                    address=_unpacked_address(version, one[3]), port=struct.unpack("!H", one[4])[0], protocol=protocol,
                    scheduler=one[6].rstrip(b"\0").decode(),
                    persistence_s=struct.unpack("=I", one[8])[0] if flags & PERSISTENT else None,
                )
            )  # fmt: skip
    return found


def _real(one: Mapping[int, bytes]) -> RealServer:
    version, method, weight, active, inactive = (
        int.from_bytes(one[kind], sys.byteorder) for kind in (11, 3, 4, 7, 8)
    )  # fmt: skip
    return RealServer(
        address=_unpacked_address(version, one[1]), port=struct.unpack("!H", one[2])[0], weight=weight, active=active,
        inactive=inactive, forward=FORWARD[method & 7],
    )  # fmt: skip


def _unpacked_address(version: int, packed: bytes) -> str:
    return socket.inet_ntop(version, packed if version == socket.AF_INET6 else packed[:4])


# -- what is sent ----------------------------------------------------------------------


def require(netns: Netns) -> None:
    """Do nothing where a netns has IPVS.

    Raises:
        CapabilityMissing: this kernel has none, or only for the machine's root; the message says where to run instead.
    """
    netns.inside(_look)


def apply(netns: Netns, wanted: Sequence[Change]) -> None:
    """Make changes, in order. Like: ipvsadm --restore.

    Raises:
        KernelRefused: of one change; those before it are made, and those after it may be.
    """
    if wanted:
        netns.inside(_send, wanted)
        netns.record("ipvsadm", "--restore", stdin="".join(f"{one}\n" for one in wanted))


def _look() -> None:
    from pyroute2 import IPVS, IPVSService
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPVS() as ipvs:  # to open it loads the module, where it is one
            ipvs.service("get", service=IPVSService(addr="192.0.2.1", port=9, protocol=6))
    except NetlinkError as error:
        if error.code != errno.ESRCH:  # no such service: so it was looked for
            who = "lets nobody but root use" if error.code == errno.EPERM else "has no"
            raise CapabilityMissing(f"this kernel {who} IPVS. {INSTEAD}") from None


def _family() -> int:
    """Return the number of the family "IPVS"."""
    from pyroute2 import IPVS

    with IPVS() as ipvs:
        return int(ipvs.prid)


def _send(wanted: Sequence[Change]) -> None:
    family = _family()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC) as sock:
        sock.bind((0, 0))
        sock.settimeout(ANSWER_S)
        for start in range(0, len(wanted), AT_ONCE):
            part = wanted[start : start + AT_ONCE]
            messages = [_message(family, number, one) for number, one in enumerate(part)]
            messages[-1] = _message(family, len(part) - 1, part[-1], flags=NLM_F_ACK)
            sock.send(b"".join(messages))
            _collect(sock, part)


def _collect(sock: socket.socket, part: Sequence[Change]) -> None:
    """Wait for the answer to the last of *part*.

    Raises:
        KernelRefused: of the first that was refused.
    """
    refused: KernelRefused | None = None
    while True:
        data = sock.recv(32768)
        while data:
            length, kind, _, number, _, code = struct.unpack_from("=IHHIIi", data)
            data = data[length + -length % 4 :]
            if kind == NLMSG_ERROR and code and not refused:
                refused = KernelRefused(f"ipvsadm {part[number]}", -code, os.strerror(-code))
            if number == len(part) - 1:
                if refused:
                    raise refused
                return


def _message(family: int, number: int, one: Change, *, flags: int = 0) -> bytes:
    virtual, real, full = one.virtual, one.real, one.command in FULL
    version, _ = _packed(virtual.address)
    service = _names(virtual)
    if full and not real:
        bits = PERSISTENT if virtual.persistence_s else 0
        mask = struct.pack("=I", 128) if version == socket.AF_INET6 else b"\xff" * 4
        service += [(6, virtual.scheduler.encode() + b"\0"), (7, struct.pack("=II", bits, ALL_FLAGS)),
                    (8, struct.pack("=I", virtual.persistence_s or 0)), (9, mask)]  # fmt: skip
    attributes = [(1, _joined(service))]
    if real:
        version, packed = _packed(real.address)
        server = [(1, packed), (2, struct.pack("!H", real.port)), (11, struct.pack("=H", version))]
        if full:
            server += [(3, bytes(4)), (4, struct.pack("=I", real.weight)), (5, bytes(4)), (6, bytes(4))]
        attributes.append((2, _joined(server)))
    body = struct.pack("=BBH", COMMANDS[one.command], 1, 0) + _joined(attributes)
    return struct.pack("=IHHII", 16 + len(body), family, NLM_F_REQUEST | flags, number, 0) + body


def _names(virtual: VirtualServer) -> list[tuple[int, bytes]]:
    """Return the attributes by which the kernel knows a virtual server."""
    version, packed = _packed(virtual.address)
    protocol = PROTOCOLS[virtual.protocol][0]
    return [(1, struct.pack("=H", version)), (2, struct.pack("=H", protocol)), (3, packed),
            (4, struct.pack("!H", virtual.port))]  # fmt: skip


def _packed(address: str) -> tuple[int, bytes]:
    version = socket.AF_INET6 if ":" in address else socket.AF_INET
    return version, socket.inet_pton(version, address)


def _joined(attributes: Iterable[tuple[int, bytes]]) -> bytes:
    """Return attributes one after another, each padded to a multiple of 4 bytes."""
    return b"".join(struct.pack("=HH", 4 + len(v), kind) + v + bytes(-len(v) % 4) for kind, v in attributes)
