"""Sockets that wait to be asked, as `ss -ltun` lists them."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from k8snet.linux import nsfs

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = ["Socket", "callers", "sockets"]

TCP_LISTEN, UDP_UNCONNECTED = "0A", "07"
LISTENING = 1 << 10  # of sock_diag's states
BUSY = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 8 | 1 << 9  # ESTABLISHED, SYN_RECV, FIN_WAIT1, CLOSE_WAIT, LAST_ACK


@dataclass(frozen=True, kw_only=True, order=True)
class Socket:
    """A port that somebody listens on."""

    protocol: str  # "tcp" or "udp"
    port: int
    address: str  # the local one; 0.0.0.0 or :: for all


def sockets(netns: Netns) -> list[Socket]:
    """Return the listening sockets of a netns, sorted. Like: ss -Hltun."""
    return sorted(nsfs.inside(netns.fd, read))


def callers(netns: Netns) -> set[int]:
    """Return the local ports of TCP connections that have something to say yet. Like: ss -Htn."""
    from pyroute2 import DiagSocket

    def body() -> set[int]:
        with DiagSocket() as diag:
            families = (socket.AF_INET, socket.AF_INET6)
            return {one["idiag_sport"] for each in families for one in diag.get_sock_stats(family=each, states=BUSY)}

    return nsfs.inside(netns.fd, body)


def read() -> set[Socket]:
    """Return the listening sockets of the calling thread's netns."""
    try:
        return _from_diag() | _from_proc("udp", UDP_UNCONNECTED)
    except OSError:  # a kernel without sock_diag(7)
        return _from_proc("tcp", TCP_LISTEN) | _from_proc("udp", UDP_UNCONNECTED)


def _from_diag() -> set[Socket]:
    """Ask for listening TCP sockets alone: /proc/net/tcp goes over every bucket of the machine's, 5 ms a look."""
    from pyroute2 import DiagSocket
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with DiagSocket() as diag:
            return {
                Socket(protocol="tcp", port=one["idiag_sport"], address=one["idiag_src"])
                for family in (socket.AF_INET, socket.AF_INET6)
                for one in diag.get_sock_stats(family=family, states=LISTENING)
            }
    except NetlinkError as error:
        raise OSError(error.code, "sock_diag") from None


def _from_proc(protocol: str, state: str) -> set[Socket]:
    """Read proc(5), /proc/net/tcp."""
    found = set()
    for suffix in ("", "6"):
        path = Path(f"/proc/thread-self/net/{protocol}{suffix}")
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            _, local, _, here, *_ = line.split()
            if here == state:
                address, _, port = local.partition(":")
                found.add(Socket(protocol=protocol, port=int(port, 16), address=_address(address)))
    return found


def _address(digits: str) -> str:
    """Return the address that the kernel wrote as words of hex in its own byte order."""
    raw = bytes.fromhex(digits)
    octets = b"".join(socket.ntohl(int.from_bytes(raw[at : at + 4])).to_bytes(4) for at in range(0, len(raw), 4))
    return str(ipaddress.ip_address(octets))
