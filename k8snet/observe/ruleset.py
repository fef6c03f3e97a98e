"""Rules of a node as values, and what they do with the first packet of a connection.

    prerouting ── is it for this node? ──┬── input
                                         └── forward ── postrouting
    output ───── postrouting             sent by the node itself; what is for the node comes back in by lo
    input ── IPVS ── output ── postrouting    for an address of the node that is a virtual server of IPVS

At each hook the chains that hang there are tried in the order of their priority, and their rules in theirs.
A rule "by lot" takes a share of the packets, so that one walk finds every end and how likely it is. A packet
whose source is None stands for everybody's: what depends on the source then goes both ways.

Source: iptables(8), iptables-extensions(8), nft(8); a connection's later packets are conntrack's, not the rules'.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache, cached_property
from typing import Any

__all__ = [
    "AddressSet", "Chain", "Condition", "Journey", "Packet", "Place", "Rule", "Ruleset", "Step", "Verdict",
    "address_of",
]  # fmt: skip

DNAT_HOOKS = ("prerouting", "output")


@cache
def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return an address that is asked for again and again."""
    return ipaddress.ip_address(text)


@dataclass(frozen=True, kw_only=True)
class Packet:
    """The first packet of a connection, and what rules have made of it so far."""

    source: str | None  # None: anybody's
    destination: str
    protocol: str  # "tcp", "udp" or "sctp"; "icmp" or "ipv6-icmp" for a ping
    port: int  # that it is for; 0 for a ping
    here: bool = False  # a process of this node has sent it
    came: str = ""  # interface; "" where that is not known
    leaves: str = ""  # interface; "" before that is decided
    mark: int = 0
    marked: bool = False  # a rule has given it a mark, whatever came of that
    translated: bool = False
    virtual: tuple[str, str, int] | None = None  # protocol, address, port: what IPVS has translated it from
    masqueraded: bool = False
    accepted: bool = False  # a rule of the table filter said ACCEPT
    fate: str = ""  # "DROP", "REJECT" or "no route"; "": it goes on
    chance: float = 1.0  # of all packets like the first


@dataclass(frozen=True, kw_only=True)
class Place:
    """What rules ask of a node, beside the packet."""

    name: str
    addresses: frozenset[str]
    route: Callable[[str], str]  # address -> the interface that leads there; "" where none does
    interfaces: Mapping[str, str] = field(default_factory=dict)  # address -> the interface that has it
    bridges: frozenset[str] = frozenset()  # interfaces whose ports call iptables

    def is_local(self, address: str) -> bool:
        """Return whether an address is one of the node's own."""
        return address in self.addresses or address_of(address).is_loopback


# -- what a rule says ------------------------------------------------------------------


@dataclass(frozen=True)
class AddressSet:
    """An ipset: addresses, networks and ports that a rule asks for at once."""

    name: str
    kind: str  # "hash:ip,port", "bitmap:port", ...
    members: frozenset[str] = frozenset()  # as `ipset save` writes them

    @property
    def parts(self) -> list[str]:
        """What a member is made of: "ip", "net", "port"."""
        return self.kind.partition(":")[2].split(",")

    def key(self, packet: Packet, ways: Sequence[str]) -> list[str | None]:
        """Return what is looked up for a packet; None for a part of it that is not known.

        Args:
            ways: "src" or "dst" for each part.
        """
        return [self._part(packet, part, way) for part, way in zip(self.parts, ways, strict=False)]

    def _part(self, packet: Packet, part: str, way: str) -> str | None:
        if part != "port":
            return packet.source if way == "src" else packet.destination
        if way == "src":
            return None
        port = PING.get(packet.protocol, f"{packet.protocol}:{packet.port}")
        return port.removeprefix("tcp:").removeprefix("udp:") if self.kind == "bitmap:port" else port

    def has(self, packet: Packet, ways: Sequence[str]) -> bool | None:
        """Return whether a packet is in the set; None where that cannot be told."""
        wanted = self.key(packet, ways)
        if len(wanted) < len(self.parts):
            return False
        if None not in wanted and "net" not in self.parts:
            return ",".join(filter(None, wanted)) in self.members
        answers = {self._fits(member.split(","), wanted) for member in self.members}
        return True if True in answers else None if None in answers else False

    def _fits(self, member: Sequence[str], wanted: Sequence[str | None]) -> bool | None:
        for mine, theirs in zip(member, wanted, strict=True):
            inside = "/" in mine and theirs is not None and address_of(theirs) in ipaddress.ip_network(mine)
            if theirs is not None and not inside and mine != theirs:
                return False
        return None if None in wanted else True


PING = {"icmp": "icmp:8/0", "ipv6-icmp": "icmpv6:128/0"}  # type and code, which stand where others have a port


@dataclass(frozen=True)
class Condition:
    """One thing that a rule asks of a packet."""

    kind: str  # a key of TESTS
    values: tuple[Any, ...] = ()
    negated: bool = False
    note: str = ""  # the name of a set; the words of what is not understood here

    def holds(self, packet: Packet, place: Place) -> bool | None:
        """Return whether a packet is such a one; None where that cannot be told."""
        found = TESTS[self.kind](self.values, packet, place)
        return None if found is None else found != self.negated


def _address(address: str | None, networks: tuple[Any, ...]) -> bool | None:
    return None if address is None else any(address_of(address) in one for one in networks)


def _kind(address: str | None, kinds: tuple[Any, ...], place: Place) -> bool | None:
    return None if address is None or kinds != ("LOCAL",) else place.is_local(address)


def _interface(name: str, patterns: tuple[Any, ...]) -> bool | None:
    return any(fnmatchcase(name, one) for one in patterns) if name else None


def _bridged(packet: Packet, place: Place) -> bool | None:
    return False if packet.here else packet.came in place.bridges if packet.came else None


def _virtual(virtual: tuple[str, str, int] | None, asked: Iterable[tuple[str, Any]]) -> bool:
    if virtual is None:
        return False
    protocol, address, port = virtual
    have = {"protocol": protocol, "address": address_of(address), "port": port}
    return all(have[part] in value for part, value in asked)


TESTS: dict[str, Callable[[tuple[Any, ...], Packet, Place], bool | None]] = {
    "source": lambda values, packet, _: _address(packet.source, values),
    "destination": lambda values, packet, _: _address(packet.destination, values),
    "source type": lambda values, packet, place: _kind(packet.source, values, place),
    "destination type": lambda values, packet, place: _kind(packet.destination, values, place),
    "protocol": lambda values, packet, _: packet.protocol in values,
    "port": lambda values, packet, _: any(packet.port in one for one in values),  # each a range
    "state": lambda values, packet, _: "NEW" in values or (packet.translated and "DNAT" in values),
    "mark": lambda values, packet, _: packet.mark & values[1] == values[0],
    "remembered": lambda _, packet, __: None if packet.source is None else False,  # by an earlier connection
    "in": lambda values, packet, _: _interface(packet.came, values),
    "out": lambda values, packet, _: _interface(packet.leaves, values),
    "set": lambda values, packet, _: values[0].has(packet, values[1]),  # an AddressSet, and its parts' ways
    "virtual": lambda values, packet, _: _virtual(packet.virtual, values),
    "bridged": lambda _, packet, place: _bridged(packet, place),
    "never": lambda *_: False,
    "now": lambda values, packet, _: None if packet.source is None else values[0],  # as things are; not in a picture
    "other": lambda *_: None,
}


@dataclass(frozen=True)
class Verdict:
    """One thing that a rule does."""

    kind: str  # jump, goto, return, accept, drop, reject, dnat, masquerade, mark, remember, other
    target: str = ""  # a chain; an address and port; the words of what is not understood here
    mark: tuple[int, int] = (0, 0)  # value and mask, as in --set-xmark

    def on(self, packet: Packet, *, filters: bool) -> Packet:
        """Return a packet as it is afterwards."""
        if self.kind == "mark":
            mark = packet.mark & ~self.mark[1] ^ self.mark[0]
            return replace(packet, mark=mark, marked=packet.marked or bool(mark))
        if self.kind in {"drop", "reject"}:
            return replace(packet, fate=self.kind.upper())
        if self.kind == "masquerade":
            return replace(packet, masqueraded=True)
        if self.kind == "accept" and filters:
            return replace(packet, accepted=True)
        if self.kind == "dnat":
            address, _, port = self.target.rpartition(":") if _has_port(self.target) else (self.target, "", "")
            first, number = address.strip("[]").partition("-")[0], port.partition("-")[0]
            return replace(packet, translated=True, destination=first, port=int(number or packet.port))
        return packet


def _has_port(target: str) -> bool:
    return target.count(":") == 1 or target.rpartition(":")[0].endswith("]")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule."""

    text: str  # as iptables-save or nft print it
    conditions: tuple[Condition, ...] = ()
    lot: float = 1.0  # the share of the packets that it takes
    of: int = 0  # "one of n", where the rule itself says so; 0 where it only says how likely it is
    choice: str = ""  # how a scheduler has come to it, which takes no lots
    part: str = ""  # the same in a word or two
    actions: tuple[Verdict, ...] = ()  # one that ends the rule is the last
    keys: tuple[str, ...] = ()  # what is looked up in a map: "destination", "protocol", "port", "source"
    map: Any = None  # key -> Verdict; one that is not there: the rule does not match
    map_name: str = ""
    texts: Any = None  # key -> its own text, of a rule that has one for each element
    comment: str = ""

    def key(self, packet: Packet) -> tuple[str, ...]:
        """Return what is looked up for a packet."""
        return tuple(str(getattr(packet, one)) for one in self.keys)

    def told(self, packet: Packet) -> str:
        """Return the text that a packet meets."""
        return self.text if self.texts is None else str(self.texts.get(self.key(packet), self.text))

    def does(self, packet: Packet) -> tuple[Verdict, ...] | None:
        """Return what becomes of a packet that fulfils all conditions; None if a map has no element for it."""
        if self.map is None:
            return self.actions
        found = self.map.get(self.key(packet))
        return None if found is None else (*self.actions, found)


@dataclass(kw_only=True)
class Chain:
    """A chain, whose rules are parsed when a packet comes to it."""

    table: str
    name: str
    lines: list[Any] = field(default_factory=list)
    parse: Callable[[Any], list[Rule]] = list
    hook: str = ""  # "prerouting", ...; "" for one that others jump to
    kind: str = "filter"  # "nat": asked once for each connection; "ipvs": no chain, but IPVS
    priority: int = 0
    policy: str = ""  # "DROP" drops what no rule has decided
    about: str = ""  # what it does, where that is not in its rules

    @cached_property
    def rules(self) -> list[Rule]:
        """Its rules in their order."""
        return [rule for line in self.lines for rule in self.parse(line)]

    @property
    def key(self) -> tuple[str, str]:
        """Its table and name."""
        return self.table, self.name

    @property
    def only_marks(self) -> bool:
        """Whether all that it does is to set marks."""
        actions = [one.kind for rule in self.rules for one in rule.actions]
        return bool(actions) and set(actions) == {"mark"}


@dataclass(frozen=True)
class Ruleset:
    """The chains of one node and address family."""

    chains: dict[tuple[str, str], Chain]  # by table and name
    tracked: bool = True  # conntrack knows what IPVS translates, and so the table nat is asked for it

    def at(self, hook: str) -> list[Chain]:
        """Return the chains that hang at a hook, in the order in which they are tried."""
        return sorted((one for one in self.chains.values() if one.hook == hook), key=lambda one: one.priority)


# -- the walk --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Step:
    """A rule that packets met."""

    hook: str
    chain: Chain
    rule: Rule
    depth: int  # jumps since the hook
    packet: Packet  # one of those that it took, or, if none, of those that it did not
    matched: bool
    sure: bool  # False: it depends on who has sent the packet
    share: float  # of all packets: those that it took
    verdicts: tuple[Verdict, ...]


class Journey:
    """The way of packets through one node."""

    def __init__(self, ruleset: Ruleset, place: Place, packet: Packet) -> None:
        """Send a packet through."""
        self.ruleset, self.place = ruleset, place
        self.steps: list[Step] = []
        self.ends = self._travel([packet])

    def _travel(self, packets: list[Packet]) -> list[Packet]:
        if packets[0].here:
            packets = self._hook("postrouting", self._hook("output", self._routed(packets)))
            inward, rest = self._split(packets)
            inward = self._hook("prerouting", [replace(one, came="lo") for one in inward], again=True)
            return [*rest, *self._inward(inward, again=True)]
        inward, rest = self._split(self._hook("prerouting", packets))
        rest = self._hook("postrouting", self._hook("forward", self._routed(rest)))
        return [*self._inward(inward), *rest]

    def _inward(self, packets: list[Packet], *, again: bool = False) -> list[Packet]:
        """Return packets for the node: a process has them, or IPVS sends them on as if the node had made them."""
        kept, sent = self._split(self._hook("input", packets, again=again))
        sent = self._routed(replace(one, came="") for one in sent)
        return [*kept, *self._hook("postrouting", self._hook("output", sent, again=True))]

    def _split(self, packets: Iterable[Packet]) -> tuple[list[Packet], list[Packet]]:
        """Return those that are for this node, and all others."""
        sides: tuple[list[Packet], list[Packet]] = ([], [])
        for one in packets:
            sides[bool(one.fate) or not self.place.is_local(one.destination)].append(one)
        return sides

    def _routed(self, packets: Iterable[Packet]) -> list[Packet]:
        return [one if one.fate else self._route(one) for one in packets]

    def _route(self, packet: Packet) -> Packet:
        leaves = self.place.route(packet.destination)
        return replace(packet, leaves=leaves, fate="" if leaves else "no route")

    def _hook(self, hook: str, packets: list[Packet], *, again: bool = False) -> list[Packet]:
        """Return packets as they leave a hook.

        Args:
            again: they have been through the node's nat already.
        """
        for chain in self.ruleset.at(hook):
            asked = [one for one in packets if self._asks(chain, one, again=again)]
            passed = [one for one in packets if one not in asked]
            if not asked:
                continue
            back, done = self._chain(chain, asked, hook, 0)
            if chain.policy == "DROP" and back:
                back = self._policy(chain, back, hook)
            packets = _merged([*passed, *done, *back])
            packets = self._routed(packets) if hook == "output" else packets
        return packets

    def _asks(self, chain: Chain, packet: Packet, *, again: bool) -> bool:
        sent = packet.virtual is not None and not self.place.is_local(packet.destination)  # by IPVS, on to OUTPUT
        if packet.fate or (chain.kind == "ipvs" and packet.virtual) or (chain.hook == "input" and sent):
            return False
        settled = packet.translated if chain.hook in DNAT_HOOKS else packet.masqueraded
        unknown = packet.virtual is not None and not self.ruleset.tracked
        return not (chain.kind == "nat" and (settled or again or unknown))

    def _policy(self, chain: Chain, packets: list[Packet], hook: str) -> list[Packet]:
        rule = Rule(text="policy drop", actions=(Verdict("drop"),))
        self._note(chain, rule, (hook, 0), packets, [], sure=True, verdicts=rule.actions)
        return [Verdict("drop").on(one, filters=True) for one in packets]

    def _chain(
        self, chain: Chain, packets: list[Packet], hook: str, depth: int
    ) -> tuple[list[Packet], list[Packet]]:  # those that come back undecided, and those that are decided
        back: list[Packet] = []
        done: list[Packet] = []
        for rule in chain.rules:
            if not packets:
                break
            taken, packets, sure = self._sort(rule, packets)
            groups: dict[tuple[Verdict, ...], list[Packet]] = {}
            for one in taken:
                groups.setdefault(rule.does(one) or (), []).append(one)
            for verdicts, group in groups.items():
                self._note(chain, rule, (hook, depth), group, [], sure=sure, verdicts=verdicts)
                gone_on, returned, decided = self._act(chain, verdicts, group, hook, depth)
                packets, back, done = _merged([*packets, *gone_on]), back + returned, done + decided
            if not taken:
                self._note(chain, rule, (hook, depth), [], packets, sure=True, verdicts=())
        return _merged([*packets, *back]), done

    def _sort(self, rule: Rule, packets: Iterable[Packet]) -> tuple[list[Packet], list[Packet], bool]:
        """Return the packets that a rule takes, those that it leaves, and whether that is sure."""
        taken, left, sure = [], [], True
        for one in packets:
            answers = [condition.holds(one, self.place) for condition in rule.conditions]
            unknown = None in answers
            if False in answers or (unknown and one.source is not None) or rule.does(one) is None:
                left.append(one)
                continue
            sure = sure and not unknown
            taken.append(replace(one, chance=one.chance * rule.lot))
            if unknown or rule.lot < 1:
                left.append(one if unknown else replace(one, chance=one.chance * (1 - rule.lot)))
        return taken, left, sure

    def _act(
        self, chain: Chain, verdicts: Sequence[Verdict], packets: list[Packet], hook: str, depth: int
    ) -> tuple[list[Packet], list[Packet], list[Packet]]:  # on to the next rule, back to who jumped here, decided
        for verdict in verdicts:
            if verdict.kind == "dnat" and chain.kind == "ipvs":
                packets = [replace(one, virtual=(one.protocol, one.destination, one.port)) for one in packets]
            packets = [verdict.on(one, filters=chain.kind != "nat") for one in packets]
            if verdict.kind in {"jump", "goto"}:
                target = self.ruleset.chains.get((chain.table, verdict.target))
                if target is None:
                    continue
                back, done = self._chain(target, packets, hook, depth + 1)
                return (back, [], done) if verdict.kind == "jump" else ([], back, done)
            if verdict.kind == "return":
                return [], packets, []
            if verdict.kind in {"accept", "drop", "reject", "dnat", "masquerade"}:
                return [], [], packets
        return packets, [], []

    def _note(
        self, chain: Chain, rule: Rule, where: tuple[str, int], taken: Sequence[Packet], left: Sequence[Packet], *,
        sure: bool, verdicts: tuple[Verdict, ...],
    ) -> None:  # fmt: skip
        self.steps.append(
            Step(
                hook=where[0], chain=chain, rule=rule, depth=where[1], packet=[*taken, *left][0], matched=bool(taken),
                sure=sure, share=sum(one.chance for one in taken), verdicts=verdicts,
            )
        )  # fmt: skip


def _merged(packets: Iterable[Packet]) -> list[Packet]:
    """Return packets, those that differ in nothing but their chance as one."""
    found: dict[Packet, float] = {}
    for one in packets:
        alike = replace(one, chance=0.0)
        found[alike] = found.get(alike, 0.0) + one.chance
    return [replace(one, chance=chance) for one, chance in found.items()]
