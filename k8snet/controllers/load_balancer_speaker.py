"""The speaker of one node: a program that answers ARP and NDP for addresses that are on no interface.

    python3 load_balancer_speaker.py CONFIG STATE

It reads what there is to announce from CONFIG, again after each change, and writes what it does to STATE. By
heartbeats over the nodes' network it knows which other speakers are alive. Of those that may announce an
address the one announces it whose hash comes first, so all agree without a word about it: MetalLB's rule
(speaker/layer2_controller.go), whose speakers find each other by gossip on the same port.

Only the standard library is imported, so that it starts quickly.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import ipaddress
import json
import select
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["DEAD_S", "HEARTBEAT_S", "PORT", "Speaker", "elected"]

PORT = 7946  # UDP; that of MetalLB's speakers
HEARTBEAT_S = 0.2  # seconds between two heartbeats
DEAD_S = 1.0  # seconds of silence, after which a speaker counts as dead
REPEAT_S, REPEATS = 1.1, 3  # gratuitous messages after a take-over: seconds between two, and how many (MetalLB: 5)
ETH_ARP, ETH_IPV6, BROADCAST = 0x0806, 0x86DD, b"\xff" * 6
REQUEST, REPLY = 1, 2  # of ARP
SOLICITATION, ADVERTISEMENT, ICMPV6 = 135, 136, 58
SOLICITED, OVERRIDE = 0x4000_0000, 0x2000_0000  # flags of an advertisement
SOL_PACKET, ADD_MEMBERSHIP, ALL_MULTICAST = 263, 1, 2
SO_ATTACH_FILTER = 26
ONLY_SOLICITATIONS = (  # classic BPF: (code, jump if true, if false, value)
    (0x30, 0, 0, 20), (0x15, 0, 3, ICMPV6), (0x30, 0, 0, 54), (0x15, 0, 1, SOLICITATION), (0x06, 0, 0, 0xFFFF),
    (0x06, 0, 0, 0),
)  # fmt: skip


def elected(address: str, nodes: list[str]) -> str | None:
    """Return which of *nodes* announces *address*: the one whose hash with it comes first."""
    return min(nodes, key=lambda node: hashlib.sha256(f"{node}#{address}".encode()).digest(), default=None)


class Speaker:
    """What one node announces, and who else is there."""

    def __init__(self, config: Path, state: Path) -> None:
        """Open the sockets of the node that *config* tells of."""
        self.file, self.state = config, state
        self.config: dict[str, Any] = {}
        self.stamp = 0  # of the configuration that was read last
        self.heard: dict[str, float] = {}  # node -> when, by the monotonic clock
        self.mine: frozenset[str] = frozenset()  # what is announced now
        self.told: Any = None  # what STATE says
        self.due: list[tuple[float, str]] = []  # when to announce which address again
        self.read()
        self.beat = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.beat.bind((self.config["address"], PORT))
        self.arp = self._packets(ETH_ARP)
        self.ndp = self._packets(ETH_IPV6) if self.config["address6"] else None
        self.mac: bytes = self.arp.getsockname()[4]

    def _packets(self, protocol: int) -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        if protocol == ETH_IPV6:
            code = b"".join(struct.pack("=HBBI", *one) for one in ONLY_SOLICITATIONS)
            buffer = ctypes.create_string_buffer(code)
            program = struct.pack("@HP", len(ONLY_SOLICITATIONS), ctypes.addressof(buffer))
            sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
            index = socket.if_nametoindex(self.config["interface"])
            sock.setsockopt(SOL_PACKET, ADD_MEMBERSHIP, struct.pack("=IHH8x", index, ALL_MULTICAST, 0))
        sock.bind((self.config["interface"], protocol))
        return sock

    def run(self) -> None:
        """Announce until killed."""
        next_beat = 0.0
        while True:
            sockets = [one for one in (self.beat, self.arp, self.ndp) if one]
            for sock in select.select(sockets, [], [], HEARTBEAT_S / 4)[0]:
                self.receive(sock)
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + HEARTBEAT_S
                for address in self.config["peers"].values():
                    with contextlib.suppress(OSError):  # no way to it, or no carrier
                        self.beat.sendto(self.config["node"].encode(), (address, PORT))
            self.read()
            self.decide(now)

    def receive(self, sock: socket.socket) -> None:
        """Take all that has come in; whether a peer is dead is asked only after that."""
        with contextlib.suppress(OSError):  # no more of it, or the interface has gone down
            while True:
                data, sender = sock.recvfrom(2048, socket.MSG_DONTWAIT)
                if sock is self.beat:
                    if (name := data.decode(errors="replace")) in self.heard:
                        self.heard[name] = time.monotonic()
                elif sender[2] != socket.PACKET_OUTGOING:
                    answer = self.arp_answer(data) if sock is self.arp else self.ndp_answer(data)
                    if answer:
                        sock.send(answer)

    def read(self) -> None:
        """Read the configuration, if it has changed. A peer that is new counts as alive until it was silent."""
        stamp = self.file.stat().st_mtime_ns
        if stamp == self.stamp:
            return
        self.stamp, self.config = stamp, json.loads(self.file.read_text())
        self.heard = {name: self.heard.get(name, time.monotonic()) for name in self.config["peers"]}

    def decide(self, now: float) -> None:
        """Work out what is to be announced from here; tell the network of what is new, and tell STATE."""
        alive = sorted([self.config["node"], *(one for one, when in self.heard.items() if now - when < DEAD_S)])
        services = [one for one in self.config["services"] if elected(
            one["addresses"][0], [name for name in one["nodes"] if name in alive]) == self.config["node"]]  # fmt: skip
        mine = frozenset(address for one in services for address in one["addresses"])
        self.due = [(when, one) for when, one in self.due if one in mine]
        self.due += [(now + count * REPEAT_S, one) for one in mine - self.mine for count in range(REPEATS)]
        self.mine = mine
        for address in [one for when, one in self.due if when <= now]:
            self.gratuitous(address)
        self.due = [(when, one) for when, one in self.due if when > now]
        telling = {"generation": self.config["generation"], "announces": sorted(mine), "alive": alive}
        if telling != self.told:
            self.told = telling
            fresh = self.state.with_suffix(".new")
            fresh.write_text(json.dumps(telling))
            fresh.rename(self.state)

    # -- messages ----------------------------------------------------------------------

    def gratuitous(self, address: str) -> None:
        """Tell everybody, unasked, that *address* is here."""
        with contextlib.suppress(OSError):  # no carrier
            if ":" in address:
                assert self.ndp  # noqa: S101  # such addresses are given out where nodes have IPv6
                everybody = ipaddress.IPv6Address("ff02::1").packed
                self.ndp.send(self.advertisement(address, b"\x33\x33\0\0\0\x01", everybody, OVERRIDE))
                return
            for operation in (REQUEST, REPLY):
                self.arp.send(self.arp_message(operation, address, BROADCAST, socket.inet_aton(address)))

    def arp_answer(self, frame: bytes) -> bytes:
        """Return the reply to a request for one of our addresses, or nothing."""
        if len(frame) < 42 or struct.unpack("!H", frame[20:22])[0] != REQUEST:
            return b""
        wanted = socket.inet_ntoa(frame[38:42])
        return self.arp_message(REPLY, wanted, frame[22:28], frame[28:32]) if wanted in self.mine else b""

    def arp_message(self, operation: int, address: str, mac: bytes, target: bytes) -> bytes:
        """Return an ARP message that says where *address* is (RFC 826)."""
        head = mac + self.mac + struct.pack("!HHHBBH", ETH_ARP, 1, 0x0800, 6, 4, operation)
        return head + self.mac + socket.inet_aton(address) + mac + target

    def ndp_answer(self, frame: bytes) -> bytes:
        """Return the advertisement that answers a solicitation for one of our addresses, or nothing."""
        if len(frame) < 78:
            return b""
        wanted = str(ipaddress.IPv6Address(frame[62:78]))
        return self.advertisement(wanted, frame[6:12], frame[22:38], SOLICITED | OVERRIDE) if wanted in self.mine \
            else b""  # fmt: skip

    def advertisement(self, address: str, mac: bytes, target: bytes, flags: int) -> bytes:
        """Return a neighbour advertisement that says where *address* is (RFC 4861)."""
        source = ipaddress.IPv6Address(self.config["address6"]).packed
        body = struct.pack("!I", flags) + ipaddress.IPv6Address(address).packed + b"\x02\x01" + self.mac
        total = sum(struct.unpack("!36H", source + target + struct.pack(
            "!IIBBH", 4 + len(body), ICMPV6, ADVERTISEMENT, 0, 0) + body))  # fmt: skip
        total = (total & 0xFFFF) + (total >> 16)
        checksum = ~(total + (total >> 16)) & 0xFFFF
        head = struct.pack("!HIHBB", ETH_IPV6, 0x6000_0000, 4 + len(body), ICMPV6, 255)
        return mac + self.mac + head + source + target + struct.pack("!BBH", ADVERTISEMENT, 0, checksum) + body


if __name__ == "__main__":
    Speaker(Path(sys.argv[1]), Path(sys.argv[2])).run()
