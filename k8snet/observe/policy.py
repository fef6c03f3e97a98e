"""Why a connection is allowed or not: the policies that select its ends, and what each of their rules says."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightkube.resources.core_v1 import Service

from k8snet.cluster.objects import name_of, namespace_of
from k8snet.controllers.network_policy.compiler import DIRECTIONS, Block, Group, Party, Policy, PolicyTable, Port, Rule
from k8snet.controllers.network_policy.controller import table_of
from k8snet.errors import InvalidInput

if TYPE_CHECKING:
    from k8snet.cluster.cluster import Cluster

__all__ = ["Check", "Direction", "Explanation", "PolicyWork", "RuleWork", "explain", "explain_policy"]

PORT = re.compile(r"(?:(tcp|udp|sctp)/)?(\d{1,5})|(icmp)", re.IGNORECASE)

MARKS = {True: "✔", False: "✘"}
COLOURS = {True: "#15803d", False: "#dc2626"}  # legible on light and dark pages


@dataclass(frozen=True, kw_only=True)
class Check:
    """One peer or port of a rule, held against the connection."""

    path: str  # "from[0]", "to[1]", "ports[0]"
    text: str
    ok: bool
    why: str


@dataclass(frozen=True, kw_only=True)
class RuleWork:
    """One rule, held against the connection."""

    path: str  # as in "ingress[0]"
    ok: bool
    peers: tuple[Check, ...]
    ports: tuple[Check, ...]


@dataclass(frozen=True, kw_only=True)
class PolicyWork:
    """A policy that selects the pod."""

    policy: str  # as in "shop/deny-all"
    selects: str  # its podSelector, in words
    rules: tuple[RuleWork, ...]

    @property
    def ok(self) -> bool:
        """Whether one of its rules allows the connection."""
        return any(one.ok for one in self.rules)


@dataclass(frozen=True, kw_only=True)
class Direction:
    """What all policies say about one end."""

    word: str  # "egress" or "ingress"
    end: str  # whose
    ok: bool
    policies: tuple[PolicyWork, ...]  # that select it
    others: tuple[str, ...]  # of its namespace, that do not: name and why
    text: str


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The compiler's work for one pair and port."""

    source: str
    destination: str
    port: int
    protocol: str
    allowed: bool
    exempt: str  # why no policy is asked, or ""
    directions: tuple[Direction, ...]

    def __bool__(self) -> bool:
        """Return whether the connection is allowed."""
        return self.allowed

    @property
    def allowing(self) -> tuple[str, ...]:
        """The rules that allow it, as "shop/web ingress[0]"."""
        return tuple(
            f"{work.policy} {rule.path}" for one in self.directions for work in one.policies for rule in work.rules
            if rule.ok
        )  # fmt: skip

    @property
    def selecting(self) -> tuple[str, ...]:
        """The policies that select an end in the direction that counts, as "shop/web"."""
        return tuple(dict.fromkeys(work.policy for one in self.directions for work in one.policies))

    def _lines(self) -> Iterator[tuple[int, bool | None, str]]:
        """Yield depth, verdict and text of each line."""
        verdict = "allowed" if self.allowed else "denied: its packets are dropped, and the caller waits in vain"
        port = f"{self.protocol}/{self.port}" if self.port else self.protocol
        yield 0, self.allowed, f"{self.source} to {self.destination}, {port}: {verdict}"
        if self.exempt:
            yield 1, True, self.exempt
        for one in self.directions:
            yield 1, one.ok, f"{one.word} of {one.end}: {one.text}"
            for work in one.policies:
                about = "" if work.rules else f", and has no {one.word} rule: it allows nothing"
                yield 2, work.ok, f"policy {work.policy} selects {work.selects}{about}"
                for rule in work.rules:
                    yield 3, rule.ok, f"{rule.path} {'allows it' if rule.ok else 'does not'}"
                    for check in (*rule.peers, *rule.ports):
                        yield 4, check.ok, f"{check.path}: {check.text}: {check.why}"
            for other in one.others:
                yield 2, None, f"policy {other}"

    def __str__(self) -> str:
        """Return it as an indented tree."""
        return "\n".join(f"{'  ' * depth}{MARKS.get(ok, '·') if ok is not None else '·'} {text}"
                         for depth, ok, text in self._lines())  # fmt: skip

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return it as a notebook shows it."""
        rows = "".join(
            f"<div style='padding-left:{1.5 * depth}em;{'font-weight:600' if depth == 0 else ''}'>"
            f"<span style='color:{COLOURS[ok] if ok is not None else 'inherit'}'>"
            f"{MARKS[ok] if ok is not None else '·'}</span> {html.escape(text)}</div>"
            for depth, ok, text in self._lines()
        )
        return f"<div class='k8snet-policy'>{rows}</div>"


def explain_policy(
    cluster: Cluster, source: Any, destination: Any, port: int | str, *, protocol: str = "TCP", family: str = "v4"
) -> Explanation:
    """Return why policies allow a connection, or do not. See Cluster.explain_policy()."""
    found = PORT.fullmatch(str(port).strip())
    if found is None or (found[2] and not 1 <= int(found[2]) <= 65535):
        raise InvalidInput(f"port {port!r}: write it as in 80, udp/53, sctp/7777 or icmp")
    protocol = (found[1] or found[3] or protocol).upper()
    source, destination = (getattr(one, "key", None) or getattr(one, "name", one) for one in (source, destination))
    for one in cluster.objects.values():
        spec = one.spec if isinstance(one, Service) else None
        if spec and str(destination) in {*(spec.clusterIPs or ()), spec.clusterIP}:
            name = f"{namespace_of(one)}/{name_of(one)}"
            raise InvalidInput(f"{destination} is the Service {name}: policies see the pod behind it; name that")
    return explain(table_of(cluster), source, destination, int(found[2] or 0), protocol, family=family)


def explain(
    table: PolicyTable, source: str | Party, destination: str | Party, port: int, protocol: str = "TCP", *,
    family: str = "v4",
) -> Explanation:  # fmt: skip
    """Return how allowed() comes to its answer. See PolicyTable.allowed() for arguments and errors."""
    allowed = table.allowed(source, destination, port, protocol, family=family)
    here, there, protocol = table.party(source, family), table.party(destination, family), protocol.upper()
    exempt = table.exempt(here, there)
    directions = () if exempt else tuple(_direction(table, word, here, there, port, protocol) for word in DIRECTIONS)
    return Explanation(
        source=here.title, destination=there.title, port=port, protocol=protocol, allowed=allowed, exempt=exempt,
        directions=directions,
    )  # fmt: skip


def _direction(table: PolicyTable, word: str, source: Party, destination: Party, port: int, protocol: str) -> Direction:
    mine, peer = (source, destination) if word == "egress" else (destination, source)
    if not mine.pod:
        text = "not asked: it is no pod, and only pods have policies"
        return Direction(word=word, end=mine.title, ok=True, policies=(), others=(), text=text)
    found = table.selecting[word].get(mine.pod.key, ())
    works = tuple(_policy(one, word, peer, destination, port, protocol) for one in found)
    ok = table.direction(word, source, destination, port, protocol)
    text = "allowed; no policy selects it for this direction, and then all is"
    if found:
        count = "1 policy selects it" if len(found) == 1 else f"{len(found)} policies select it"
        text = f"allowed; {count}, and one rule is enough" if ok else f"denied; {count}, and no rule allows this"
    others = tuple(
        f"{one.key} {_no_part(one, word, mine)}" for one in table.policies
        if one.namespace == mine.pod.namespace and one not in found
    )  # fmt: skip
    return Direction(word=word, end=mine.title, ok=ok, policies=works, others=others, text=text)


def _no_part(policy: Policy, word: str, end: Party) -> str:
    if not policy.pods.has(end):
        return f"does not select it: it is for {policy.pods.title}; {_labels(end)}"
    return f"selects it, but its policyTypes leave out {word.title()}"


def _policy(policy: Policy, word: str, peer: Party, destination: Party, port: int, protocol: str) -> PolicyWork:
    rules = tuple(
        _rule(rule, f"{word}[{number}]", word, peer, destination, port, protocol)
        for number, rule in enumerate(policy.rules[word])
    )
    return PolicyWork(policy=policy.key, selects=policy.pods.title, rules=rules)


def _rule(
    rule: Rule, path: str, word: str, peer: Party, destination: Party, port: int, protocol: str
) -> RuleWork:  # fmt: skip
    side = "to" if word == "egress" else "from"
    peers = tuple(
        Check(path=f"{side}[{number}]", text=one.title, ok=one.has(peer), why=_peer_why(one, peer))
        for number, one in enumerate(rule.peers)
    ) or (Check(path=side, text="not given", ok=True, why="everyone"),)
    ports = tuple(
        _port(one, f"ports[{number}]", destination, port, protocol) for number, one in enumerate(rule.ports)
    ) or (Check(path="ports", text="not given", ok=True, why="every port"),)
    return RuleWork(path=path, ok=rule.allows(peer, destination, port, protocol), peers=peers, ports=ports)


def _peer_why(one: Group | Block, peer: Party) -> str:
    if isinstance(one, Block):
        excepted = _excepted(one, peer)
        return f"{peer.address} is {'excepted' if excepted else 'in it' if one.has(peer) else 'not in it'}"
    if not peer.pod:
        return f"{peer.title} is no pod of the pod network; only an ipBlock can name it"
    return f"{peer.title} is {'one' if one.has(peer) else 'none'} of them; {_labels(peer)}"


def _excepted(block: Block, peer: Party) -> bool:
    """Return whether an address is in one of the networks that a block excepts."""
    return not block.has(peer) and Block(cidr=block.cidr).has(peer)


def _port(one: Port, path: str, destination: Party, port: int, protocol: str) -> Check:
    ok, why = one.has(destination, port, protocol), f"it is {protocol} {port}" if port else f"it is {protocol}"
    if one.name:
        ports = destination.pod.ports if destination.pod else ()
        named = ", ".join(f"{name}={number}/{kind}" for name, kind, number in ports)
        why = f"{destination.title} has {named or 'no named ports'}"
    return Check(path=path, text=one.title, ok=ok, why=f"{'yes' if ok else 'no'}, {why}")


def _labels(party: Party) -> str:
    labels = ", ".join(f"{key}={value}" for key, value in party.pod.labels.items()) if party.pod else ""
    return f"{party.title} has {labels or 'no labels'}"
