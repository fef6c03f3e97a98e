"""What a frame says, in one line."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

import dpkt

__all__ = ["Decoded", "decode"]

TCP_FLAGS = {0x02: "SYN", 0x01: "FIN", 0x04: "RST", 0x08: "PSH", 0x10: "ACK"}
ICMP_WORDS = {
    (8, 0): "echo request", (0, 0): "echo reply", (3, 0): "network unreachable", (3, 1): "host unreachable",
    (3, 3): "port unreachable", (3, 4): "fragmentation needed", (3, 9): "network prohibited",
    (3, 10): "host prohibited", (3, 13): "administratively prohibited", (11, 0): "TTL exceeded", (5, 1): "redirect",
}  # fmt: skip
ICMP6_WORDS = {
    1: "unreachable",
    2: "packet too big",
    3: "hop limit exceeded",
    128: "echo request",
    129: "echo reply",
    133: "router solicitation",
    134: "router advertisement",
    135: "neighbour solicitation",
    136: "neighbour advertisement",
}


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The fields of a frame that a reader looks for."""

    source_mac: str
    destination_mac: str
    protocol: str  # "arp", "icmp", "tcp", "udp", "icmp6", ...; "0x88cc" for what is not known
    source: str | None = None  # of IP, or who asks in ARP
    destination: str | None = None
    source_port: int | None = None
    destination_port: int | None = None
    ttl: int | None = None
    flags: str = ""  # of TCP: "SYN", "SYN ACK", ...; of ICMP, its type in words
    summary: str = ""


def _mac(raw: bytes) -> str:
    return ":".join(f"{octet:02x}" for octet in raw)


def _ip(raw: bytes) -> str:
    return str(ipaddress.ip_address(raw))


def decode(data: bytes) -> Decoded:
    """Return what an Ethernet frame says."""
    try:
        frame = dpkt.ethernet.Ethernet(data)
    except (dpkt.UnpackError, IndexError):
        return Decoded(
            source_mac=_mac(data[6:12]), destination_mac=_mac(data[:6]), protocol="?", summary="cannot be read"
        )
    macs: dict[str, Any] = {"source_mac": _mac(frame.src), "destination_mac": _mac(frame.dst)}
    inner = frame.data
    if isinstance(inner, dpkt.arp.ARP):
        return _arp(macs, inner)
    if isinstance(inner, dpkt.ip.IP | dpkt.ip6.IP6):
        return _of_ip(macs, inner)
    return Decoded(**macs, protocol=f"0x{frame.type:04x}", summary=f"EtherType 0x{frame.type:04x}, {len(data)} bytes")


def _arp(macs: dict[str, Any], arp: dpkt.arp.ARP) -> Decoded:
    asker, asked = _ip(arp.spa), _ip(arp.tpa)
    if arp.op == dpkt.arp.ARP_OP_REQUEST:
        summary = (
            f"ARP announcement: {asker} is here" if asker == asked else f"ARP request: who has {asked}? Tell {asker}"
        )
    else:
        summary = f"ARP reply: {asker} is at {_mac(arp.sha)}"
    return Decoded(**macs, protocol="arp", source=asker, destination=asked, summary=summary)


def _of_ip(macs: dict[str, Any], packet: dpkt.ip.IP | dpkt.ip6.IP6) -> Decoded:
    source, destination = _ip(packet.src), _ip(packet.dst)
    ttl = packet.ttl if isinstance(packet, dpkt.ip.IP) else packet.hlim
    inner = packet.data
    common: dict[str, Any] = {"source": source, "destination": destination, "ttl": ttl}
    if isinstance(inner, dpkt.tcp.TCP | dpkt.udp.UDP):
        name = "tcp" if isinstance(inner, dpkt.tcp.TCP) else "udp"
        flags = " ".join(word for bit, word in TCP_FLAGS.items() if inner.flags & bit) if name == "tcp" else ""
        size = len(inner.data)
        parts = [name.upper(), f"{source}:{inner.sport} > {destination}:{inner.dport}", flags and f"[{flags}]"]
        what = " ".join(filter(None, [*parts, f"{size} bytes" if size else ""]))
        return Decoded(
            **macs,
            **common,
            protocol=name,
            source_port=inner.sport,
            destination_port=inner.dport,
            flags=flags,
            summary=what,
        )
    name, words = _icmp(inner)
    return Decoded(
        **macs,
        **common,
        protocol=name,
        flags=words,
        summary=f"{name.upper()} {source} > {destination} {words}".rstrip(),
    )


def _icmp(inner: object) -> tuple[str, str]:
    if isinstance(inner, dpkt.icmp.ICMP):
        return "icmp", ICMP_WORDS.get((inner.type, inner.code), f"type {inner.type} code {inner.code}")
    if isinstance(inner, dpkt.icmp6.ICMP6):
        return "icmp6", ICMP6_WORDS.get(inner.type, f"type {inner.type}")
    return "ip", type(inner).__name__ if not isinstance(inner, bytes) else f"{len(inner)} bytes"
