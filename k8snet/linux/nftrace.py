"""What nf_tables tells of packets that carry the trace mark: each rule that matched, each policy, in their order.

    nft rule                meta nftrace set 1, for the packets that are asked for
    netlink group 9         one message for each rule and each end of a chain, iptables-nft's rules included

Messages have no time; in a netns they come in the order in which the kernel made them.
Source: Linux net/netfilter/nf_tables_trace.c, include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from k8snet.linux.packet_ring import Place

__all__ = ["TABLE", "TraceMessage", "TraceSocket", "has_rules", "marked"]

NETLINK_NETFILTER, SOL_NETLINK, ADD_MEMBERSHIP, GROUP = 12, 270, 1, 9
TRACE = (10 << 8) | 17  # NFNL_SUBSYS_NFTABLES, NFT_MSG_TRACE
NEW_TABLE, GET_TABLE, REQUEST_DUMP = 10 << 8, (10 << 8) | 1, 0x301
HEADERS = 16 + 4  # nlmsghdr, nfgenmsg
BUFFER = 8 << 20  # bytes asked of the kernel for waiting messages
CODES = {0: "drop", 1: "accept", -1: "continue", -2: "break", -3: "jump", -4: "goto", -5: "return"}
KINDS = {1: "policy", 2: "return", 3: "rule"}
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
TABLE = "k8snet-trace"
FIRST = -350  # before conntrack and every table of iptables


@dataclass(frozen=True, kw_only=True)
class TraceMessage:
    """One message."""

    family: str  # of the table: "ip", "ip6", "inet", ...
    table: str
    chain: str
    kind: str  # "rule", "return" (the end of a chain), or "policy"
    verdict: str  # "accept", "drop", "continue", "jump", "goto", "return"
    target: str  # the chain that is jumped to; else ""
    handle: int  # of the rule; 0: none
    id: int  # the same for the messages of one packet, as long as the kernel does not copy it
    iif: int | None  # index of the interface it came in by
    oif: int | None
    mark: int
    network: bytes  # the IP header and the one behind it, in the first message of each chain that hangs at a hook
    transport: bytes


class TraceSocket:
    """The messages of one netns, from now on."""

    def __init__(self, netns: Place) -> None:
        """Begin to listen."""
        self.lost = False  # whether the kernel had messages that found no room
        self._socket = netns.inside(self._open)

    @staticmethod
    def _open() -> socket.socket:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, NETLINK_NETFILTER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        sock.bind((0, 0))
        sock.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, GROUP)
        return sock

    def fileno(self) -> int:
        """Return what select() waits on."""
        return self._socket.fileno()

    def read(self) -> Iterator[TraceMessage]:
        """Yield what has come."""
        while select.select([self._socket], [], [], 0)[0]:
            try:
                data = self._socket.recv(1 << 20)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost = True
                continue
            yield from _messages(data)

    def close(self) -> None:
        """Listen no longer."""
        self._socket.close()


def has_rules(netns: Place) -> bool:
    """Return whether a netns has any table of nf_tables, iptables-nft's included."""
    return netns.inside(_has_tables)


def _has_tables() -> bool:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.send(struct.pack("=IHHIIBBH", HEADERS, GET_TABLE, REQUEST_DUMP, 1, 0, 0, 0, 0))
        return bool(struct.unpack_from("=IH", sock.recv(1 << 16))[1] == NEW_TABLE)


def marked(matches: Sequence[str]) -> str:
    """Return the table that has packets traced, for nft -f; it goes with its netns, or with `delete table`.

    Args:
        matches: which packets, in nft's words, as "tcp dport 80"; one that fits any of them.
    """
    rules = "".join(f"  {one} meta nftrace set 1\n" for one in matches)
    chains = [
        f" chain {hook} {{\n  type filter hook {hook} priority {FIRST}\n{rules} }}" for hook in ("prerouting", "output")
    ]
    return "\n".join([f"table inet {TABLE} {{", *chains, "}", ""])


def _messages(data: bytes) -> Iterator[TraceMessage]:
    at = 0
    while at + HEADERS <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        if kind == TRACE:
            yield _message(data[at + 16], dict(_attributes(data[at + HEADERS : at + length])))
        at += (length + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


def _message(family: int, found: dict[int, bytes]) -> TraceMessage:
    verdict = dict(_attributes(found.get(5, b"")))
    code = CODES.get(_number(verdict.get(1), signed=True) or 0, "") if verdict else ""
    kind = KINDS.get(_number(found.get(4)) or 0, "")
    if kind == "policy":
        code = CODES.get(_number(found.get(16)) or 0, "")
    return TraceMessage(
        family=FAMILIES.get(family, ""), table=_text(found.get(1)), chain=_text(found.get(2)),
        kind=kind, verdict=code, target=_text(verdict.get(2)), handle=_number(found.get(3)) or 0,
        id=_number(found.get(6)) or 0, iif=_number(found.get(10)), oif=_number(found.get(12)),
        mark=_number(found.get(14)) or 0, network=found.get(8, b""), transport=found.get(9, b""),
    )  # fmt: skip


def _number(data: bytes | None, *, signed: bool = False) -> int | None:
    return int.from_bytes(data, "big", signed=signed) if data else None


def _text(data: bytes | None) -> str:
    return (data or b"").rstrip(b"\0").decode(errors="replace")
