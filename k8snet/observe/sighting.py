"""A packet, as an interface or a rule saw it, and how it is known again."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Any

import dpkt

from k8snet.linux.nftrace import TraceMessage
from k8snet.observe.capture import Packet

__all__ = ["ACK", "SYN_OR_RST", "VXLAN", "Sight", "address_of", "end_of", "headers_of", "same", "sight_of"]

VXLAN = 8472
SYN_OR_RST, ACK = dpkt.tcp.TH_SYN | dpkt.tcp.TH_RST, dpkt.tcp.TH_ACK


@dataclass(frozen=True, kw_only=True)
class Sight:
    """A packet that an interface saw."""

    packet: Packet
    ip: Any  # of dpkt
    layer4: Any
    outer: str

    @property
    def ends(self) -> tuple[str, str]:
        """Who sends it to whom, as ("10.244.1.2:40000", "10.96.0.20:80")."""
        return _end(self.ip.src, self.layer4.sport), _end(self.ip.dst, self.layer4.dport)

    @property
    def ttl(self) -> int:
        """How many routers it may still pass."""
        return int(self.ip.ttl if isinstance(self.ip, dpkt.ip.IP) else self.ip.hlim)

    @property
    def identity(self) -> tuple[Any, ...]:
        """What nobody changes on its way."""
        number = self.ip.id if isinstance(self.ip, dpkt.ip.IP) else None
        if isinstance(self.layer4, dpkt.tcp.TCP):
            return "tcp", self.layer4.flags & (SYN_OR_RST | ACK), self.layer4.seq, self.layer4.ack, number
        return "udp", bytes(self.layer4.data), number


def sight_of(packet: Packet) -> Sight | None:
    """Return what an interface saw, if that is TCP or UDP; of a VXLAN packet, the one inside."""
    try:
        ip, outer = dpkt.ethernet.Ethernet(packet.data).data, ""
        layer4 = getattr(ip, "data", None)
        if isinstance(layer4, dpkt.udp.UDP) and layer4.dport == VXLAN:
            outer = f"VXLAN {int.from_bytes(layer4.data[4:7], 'big')}, {address_of(ip.src)} > {address_of(ip.dst)}"
            ip = dpkt.ethernet.Ethernet(layer4.data[8:]).data
            layer4 = getattr(ip, "data", None)
    except (dpkt.UnpackError, IndexError):
        return None
    if not isinstance(ip, dpkt.ip.IP | dpkt.ip6.IP6) or not isinstance(layer4, dpkt.tcp.TCP | dpkt.udp.UDP):
        return None
    return Sight(packet=packet, ip=ip, layer4=layer4, outer=outer)


def address_of(raw: bytes) -> str:
    """Return an address of 4 or 16 bytes as text."""
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def _end(raw: bytes, port: int) -> str:
    return end_of(address_of(raw), port)


def end_of(address: str, port: int) -> str:
    """Return address and port as "10.0.0.1:80" or "[fd00::1]:80"."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def headers_of(message: TraceMessage) -> tuple[tuple[str, str], tuple[Any, ...]] | None:
    """Return the ends, and what is compared of a packet's identity, out of the headers in a message."""
    head, body = message.network, message.transport
    if len(body) < 8 or len(head) < 20:
        return None
    number: int | None = None
    if head[0] >> 4 == 4:
        addresses, number, kind = (head[12:16], head[16:20]), int.from_bytes(head[4:6], "big"), head[9]
    else:
        addresses, kind = (head[8:24], head[24:40]), head[6]
    ports = struct.unpack_from(">HH", body)
    ends = _end(addresses[0], ports[0]), _end(addresses[1], ports[1])
    if kind == socket.IPPROTO_TCP and len(body) >= 14:
        seq, ack, _, flags = struct.unpack_from(">IIBB", body, 4)
        return ends, ("tcp", flags & (SYN_OR_RST | ACK), seq, ack, number)
    return ends, ("udp", None, number)


def same(told: tuple[Any, ...], identity: tuple[Any, ...]) -> bool:
    """Return whether headers of headers_of() are those of a packet with that identity."""
    if told[0] == "udp":
        return bool(identity[0] == "udp" and told[2] == identity[2])
    return told == identity
