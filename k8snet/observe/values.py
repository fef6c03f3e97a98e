"""What a snapshot is made of: frozen values, read back from the kernel."""

from __future__ import annotations

from dataclasses import dataclass

from k8snet.linux.neighbour import FdbEntry, Neighbour
from k8snet.linux.sockets import Socket

__all__ = ["FdbEntry", "Interface", "Neighbour", "NetnsState", "Peer", "Route", "RuleSet", "Socket"]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """The other end of a veth pair."""

    netns: str | None  # None: in a netns that is not part of the lab
    interface: str


@dataclass(frozen=True, kw_only=True)
class Interface:
    """One interface."""

    name: str
    index: int
    kind: str  # "veth", "bridge", "vxlan", ..., "loopback"; "" for what has no name
    mac: str | None
    mtu: int  # bytes
    up: bool  # as configured
    carrier: bool  # whether it can send: for a veth, whether both ends are up
    addresses: tuple[str, ...] = ()  # with prefix length
    master: str | None = None  # the bridge that it is a port of
    peer: Peer | None = None  # of a veth
    parent: str | None = None  # of a macvlan
    hairpin: bool = False  # of a bridge port
    details: tuple[tuple[str, str], ...] = ()  # what only this kind has
    settings: tuple[tuple[str, int], ...] = ()  # sysctls of this interface that decide about packets

    @property
    def state(self) -> str:
        """What a person would call its state: "up", "no carrier" or "down"."""
        if not self.up:
            return "down"
        return "up" if self.carrier or self.kind == "loopback" else "no carrier"


@dataclass(frozen=True, kw_only=True)
class Route:
    """One entry of a routing table."""

    destination: str  # a prefix, or "default"
    via: str | None = None
    device: str | None = None
    source: str | None = None
    metric: int = 0
    table: int = 254  # main
    kind: str = "unicast"

    def __str__(self) -> str:
        """Return it as `ip route` would."""
        words = [] if self.kind == "unicast" else [self.kind]
        words.append(self.destination)
        for word, value in (("via", self.via), ("dev", self.device), ("src", self.source)):
            words += [word, value] if value else []
        words += ["metric", str(self.metric)] if self.metric else []
        return " ".join(words + (["table", str(self.table)] if self.table != 254 else []))


@dataclass(frozen=True, kw_only=True)
class RuleSet:
    """The netfilter rules of one program, as lines without counters."""

    program: str  # "iptables-nft", "ip6tables-legacy", "nft", "ipset", "ip rule", "ipvs" as ipvsadm saves it
    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class NetnsState:
    """Everything that one netns holds."""

    name: str
    interfaces: tuple[Interface, ...]  # by index
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    fdb: tuple[FdbEntry, ...] = ()
    rules: tuple[RuleSet, ...] = ()
    sockets: tuple[Socket, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()  # sysctls of the whole netns

    def interface(self, name: str) -> Interface | None:
        """Return an interface, or None."""
        return next((one for one in self.interfaces if one.name == name), None)

    def setting(self, key: str) -> str | None:
        """Return a sysctl of the netns, or None where it has none."""
        return dict(self.settings).get(key)

    def lines(self, program: str) -> tuple[str, ...]:
        """Return the rules of one program; nothing where there are none."""
        return next((one.lines for one in self.rules if one.program == program), ())

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every address but lo's own, with prefix length."""
        return tuple(a for one in self.interfaces if one.kind != "loopback" for a in one.addresses)

    @property
    def pristine(self) -> bool:
        """Whether it is as a new netns is: lo, and nothing else."""
        return len(self.interfaces) == 1 and not self.rules and not self.routes
