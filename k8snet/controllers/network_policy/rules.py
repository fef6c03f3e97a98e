"""NetworkPolicy in nftables: a table on each node whose pods a policy selects; labels are elements of its sets.

    forward, output     all that passes the node, and what IPVS sends on; what the node itself sends is accepted
      transit           answers and ICMP errors pass; IPv6's neighbour discovery; a pod to itself (hairpin)
        egress          from a pod that a policy isolates: ask each policy that selects it, else drop
          egress-NS/NAME      a rule that allows: on to ingress
        ingress         to nobody isolated here: accept
          ingress-isolated    ask each policy that selects the pod, else drop
            ingress-NS/NAME       a rule that allows: accept

    egress-v4, ingress-v4   pods of this node that a policy isolates for that direction
    pods-HASH-v4            who a selector means; the comment says which
    port-NAME-v4            who has a port of that name, and which it is: address . protocol . port

Packets are seen after the DNAT of Services and before any masquerade. What pods send to their own node passes, as it
meets neither hook. What nothing allows is dropped, as most implementations do: callers wait in vain. All that a
caller sends is asked about, and not its first packet alone: a policy counts for connections that stand, too (the API
leaves that open), and for a UDP port that is used again.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from k8snet.cluster.layout import family_of
from k8snet.controllers.network_policy.compiler import DIRECTIONS, Block, Group, Policy, PolicyTable, Port, Rule
from k8snet.errors import CommandFailed
from k8snet.linux.nftables import apply_script
from k8snet.linux.uncollected import uncollected

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = ["TABLE", "Enforcer", "Program", "program", "render"]

TABLE = "inet k8snet-policy"
HOOKS = ("forward", "output")
IP = {"v4": "ip", "v6": "ip6"}
NAME_LENGTH = 240  # of a policy in the name of a chain; nft takes 256
AT_ONCE = 200  # elements in one statement
COMMENT = 120  # characters; nft takes 128


@dataclass(frozen=True)
class Program:
    """What is to be in a node's table."""

    sets: dict[str, str] = field(default_factory=dict)  # name -> definition
    elements: dict[str, frozenset[str]] = field(default_factory=dict)  # of each set
    chains: dict[str, tuple[str, ...]] = field(default_factory=dict)  # name -> rules


def program(table: PolicyTable, node: str, families: Sequence[str] = ("v4",)) -> Program:
    """Return the rules of a node."""
    return _Writer(table, node, families).program()


@uncollected()
def render(table: PolicyTable, node: str, families: Sequence[str] = ("v4",)) -> str:
    """Return the rules of a node as text. Like: nft -f FILE."""
    return "".join(f"{line}\n" for line in _changes(Program(), program(table, node, families)))


class _Writer:
    """Writes the program of one node."""

    def __init__(self, table: PolicyTable, node: str, families: Sequence[str]) -> None:
        self.table, self.families = table, families
        self.sets: dict[str, str] = {}
        self.elements: dict[str, frozenset[str]] = {}
        self.here = {pod.key for pod in table.pods.values() if pod.node == node and not pod.host_network}

    def program(self) -> Program:
        if not any(one.pods.members & self.here for one in self.table.policies):
            return Program()
        chains: dict[str, tuple[str, ...]] = {
            "forward": ("goto transit",), "output": ("fib saddr type local accept", "goto transit"),
            "transit": tuple(self._transit()),
        }  # fmt: skip
        ends = {"egress": ("egress", "goto ingress"), "ingress": ("ingress-isolated", "accept")}
        for word, (chain, then) in ends.items():
            policies = [one for one in self.table.policies if word in one.rules and one.pods.members & self.here]
            side = "saddr" if word == "egress" else "daddr"
            asks = [
                f"{IP[family]} {side} @{self._group(one.pods, family)} jump {_chain(word, one)}"
                for one in policies for family in self.families
            ]  # fmt: skip
            chains[chain] = (*asks, 'counter drop comment "no policy allows it"')
            for one in policies:
                chains[_chain(word, one)] = tuple(
                    f"{match} {then}".strip() for rule in one.rules[word] for match in self._rule(word, rule)
                )
        chains["ingress"] = (*(f"{IP[f]} daddr @ingress-{f} goto ingress-isolated" for f in self.families), "accept")
        return Program(self.sets, self.elements, chains)

    def _transit(self) -> Iterator[str]:
        yield "ct direction reply accept"
        yield "ct state related accept"
        if "v6" in self.families:
            yield "icmpv6 type { nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept"
        for family in self.families:
            isolated = {
                word: sorted(self._addresses(self.here & self.table.selecting[word].keys(), family))
                for word in DIRECTIONS
            }  # fmt: skip
            both = {f"{one} . {one}" for addresses in isolated.values() for one in addresses}
            address = _type(family)
            self._set(f"self-{family}", f"type {address} . {address} ;", both)
            for word, addresses in isolated.items():
                self._set(f"{word}-{family}", f"type {address} ;", addresses)
            yield f"{IP[family]} saddr . {IP[family]} daddr @self-{family} accept"
        yield from (f"{IP[family]} saddr @egress-{family} goto egress" for family in self.families)
        yield "goto ingress"

    def _rule(self, word: str, rule: Rule) -> Iterator[str]:
        """Yield what the packets have that a rule allows: one line for each peer and protocol."""
        side = "saddr" if word == "ingress" else "daddr"
        if not rule.peers and not any(one.name for one in rule.ports):
            yield from _numbers(rule.ports) if rule.ports else [""]
            return
        for family in self.families:
            ports = [*_numbers(rule.ports), *self._names(rule.ports, family)] if rule.ports else [""]
            for peer in rule.peers or (None,):
                who = self._peer(peer, side, family) if peer else f"meta nfproto ip{family}"
                yield from (f"{who} {port}".strip() for port in ports if who)

    def _peer(self, peer: Group | Block, side: str, family: str) -> str:
        ip = IP[family]
        if isinstance(peer, Group):
            return f"{ip} {side} @{self._group(peer, family)}"
        if family_of(peer.cidr) != family:
            return ""
        inside = f"{ip} {side} {peer.cidr}" if peer.cidr.prefixlen else f"meta nfproto ip{family}"
        excepts = ", ".join(map(str, ipaddress.collapse_addresses(peer.excepts)))  # type: ignore[type-var]  # one family
        return f"{inside} {ip} {side} != {{ {excepts} }}" if excepts else inside

    def _names(self, ports: Iterable[Port], family: str) -> Iterator[str]:
        for name, protocol in dict.fromkeys((one.name, one.protocol) for one in ports if one.name):
            title = f"port-{name}-{protocol.lower()}-{family}"
            if title not in self.sets:
                have = [
                    f"{address} . {protocol.lower()} . {number}"
                    for pod in self.table.pods.values() if not pod.host_network
                    for called, kind, number in pod.ports if (called, kind) == (name, protocol)
                    for address in self._addresses([pod.key], family)
                ]  # fmt: skip
                self._set(title, f"type {_type(family)} . inet_proto . inet_service ;", have)
            yield f"{IP[family]} daddr . meta l4proto . th dport @{title}"

    def _group(self, group: Group, family: str) -> str:
        name = f"pods-{_hashed(group.title)}-{family}"
        if name not in self.sets:
            comment = group.title if len(group.title) <= COMMENT else f"{group.title[: COMMENT - 3]}..."
            self._set(name, f'type {_type(family)} ; comment "{comment}" ;', self._addresses(group.members, family))
        return name

    def _addresses(self, keys: Iterable[str], family: str) -> set[str]:
        return {one for key in keys for one in self.table.pods[key].addresses if family_of(one) == family}

    def _set(self, name: str, definition: str, elements: Iterable[str]) -> None:
        self.sets[name], self.elements[name] = definition, frozenset(elements)


def _numbers(ports: Iterable[Port]) -> Iterator[str]:
    """Yield a match for each protocol; ranges that overlap or touch are made one, as nft wants them."""
    by_protocol: dict[str, list[Port]] = {}
    for one in ports:
        if not one.name:
            by_protocol.setdefault(one.protocol.lower(), []).append(one)
    for protocol, ranges in by_protocol.items():
        if any(not one.first for one in ranges):
            yield f"meta l4proto {protocol}"
            continue
        merged: list[list[int]] = []
        for one in sorted(ranges, key=lambda one: one.first):
            if merged and one.first <= merged[-1][1] + 1:
                merged[-1][1] = max(merged[-1][1], one.last)
            else:
                merged.append([one.first, one.last])
        words = [str(first) if first == last else f"{first}-{last}" for first, last in merged]
        yield f"{protocol} dport {{ {', '.join(words)} }}"


def _type(family: str) -> str:
    return f"ip{family}_addr"


def _hashed(text: str) -> str:
    return base64.b32encode(hashlib.sha256(text.encode()).digest()[:5]).decode()


def _chain(word: str, policy: Policy) -> str:
    name = policy.key if len(policy.key) <= NAME_LENGTH else f"{policy.key[: NAME_LENGTH - 9]}-{_hashed(policy.key)}"
    return f"{word}-{name}"


# -- what changes ----------------------------------------------------------------------


def _changes(old: Program, new: Program) -> Iterator[str]:
    """Yield the statements that lead from one program to another; for an empty one there is no table."""
    if not (old.chains and new.chains):
        if old.chains or new.chains:
            yield from (f"add table {TABLE}", f"delete table {TABLE}")
        yield from (f"add table {TABLE}",) if new.chains else ()
    if not new.chains:
        return
    yield from (f"add set {TABLE} {name} {{ {new.sets[name]} }}" for name in new.sets if name not in old.sets)
    for name in (one for one in new.chains if one not in old.chains):
        hook = f" {{ type filter hook {name} priority 0 ; policy accept ; }}" if name in HOOKS else ""
        yield f"add chain {TABLE} {name}{hook}"
    for name, rules in new.chains.items():
        if rules != old.chains.get(name, ()):
            yield from (f"flush chain {TABLE} {name}",) if name in old.chains else ()
            yield from (f"add rule {TABLE} {name} {rule}" for rule in rules)
    for name in new.sets:
        was, wanted = old.elements.get(name, frozenset()), new.elements[name]
        yield from _elements("add", name, wanted - was)
        yield from _elements("delete", name, was - wanted)
    stale = [name for name in old.chains if name not in new.chains]
    yield from (f"flush chain {TABLE} {name}" for name in stale)
    yield from (f"delete set {TABLE} {name}" for name in old.sets if name not in new.sets)
    yield from (f"delete chain {TABLE} {name}" for name in stale)


def _elements(verb: str, name: str, elements: Iterable[str]) -> Iterator[str]:
    texts = sorted(elements)
    for start in range(0, len(texts), AT_ONCE):
        yield f"{verb} element {TABLE} {name} {{ {', '.join(texts[start : start + AT_ONCE])} }}"


class Enforcer:
    """The policies' rules on one node."""

    def __init__(self) -> None:
        """Take note that nothing is programmed yet."""
        self._loaded = Program()

    def apply(self, netns: Netns, wanted: Program) -> int:
        """Bring a node's table in step, and return how many transactions that took. Like: nft -f -.

        Raises:
            CommandFailed, CapabilityMissing: see k8snet.linux.nftables.apply_script().
        """
        with uncollected():
            statements = list(_changes(self._loaded, wanted))
        had, self._loaded = bool(self._loaded.chains), Program()
        try:
            count = apply_script(netns, statements)
        except CommandFailed:
            if not had:
                raise
            count = apply_script(netns, _changes(Program(), wanted))  # somebody else was at the table: make it anew
        self._loaded = wanted
        return count

    def remove(self, netns: Netns) -> None:
        """Take the table away. Like: nft delete table inet k8snet-policy."""
        apply_script(netns, [f"add table {TABLE}", f"delete table {TABLE}"])
        self._loaded = Program()
