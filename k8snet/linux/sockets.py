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

__all__ = ["Socket", "sockets"]

TCP_LISTEN, UDP_UNCONNECTED = "0A", "07"


@dataclass(frozen=True, kw_only=True, order=True)
class Socket:
    """A port that somebody listens on."""

    protocol: str  # "tcp" or "udp"
    port: int
    address: str  # the local one; 0.0.0.0 or :: for all


def sockets(netns: Netns) -> list[Socket]:
    """Return the listening sockets of a netns, sorted. Like: ss -Hltun."""
    return sorted(nsfs.inside(netns.fd, read))


def read() -> set[Socket]:
    """Return the listening sockets of the calling thread's netns (proc(5), /proc/net/tcp)."""
    found = set()
    for protocol, state in (("tcp", TCP_LISTEN), ("udp", UDP_UNCONNECTED)):
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
