"""Why a packet goes where it goes: the rules that it passes on a node, in words, read from the live rules.

What is told is the first packet of a connection, of a client that calls for the first time: later ones are
conntrack's, and a Service with session affinity sends a client that it remembers where it was before.
"""

from __future__ import annotations

import html
import ipaddress
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from k8snet.errors import InvalidInput, NotFound
from k8snet.observe import rules_words as words
from k8snet.observe.rules_live import check_family, names_of, place_of, ports_of, proxy_of, rules_of
from k8snet.observe.ruleset import Journey, Packet, Place, Step

if TYPE_CHECKING:
    from k8snet.cluster.cluster import Cluster
    from k8snet.cluster.node import Node

__all__ = ["Outcome", "Told", "Why", "explain", "outcomes", "why"]

FIRST = "The first packet of a connection, of a client that has not called before; conntrack treats the rest like it."
ALL = "all"
COLUMNS = ("chain and rule", "why", "packets", "what follows")
PROTOCOLS = ("tcp", "udp", "sctp", "icmp")


@dataclass(frozen=True, kw_only=True)
class Told:
    """A rule that the packet met."""

    node: str
    hook: str  # "prerouting", ...
    table: str
    chain: str
    depth: int  # jumps since the hook's chain
    rule: str  # its own text
    matched: bool
    why: str
    then: str  # what follows
    share: float  # of all such packets: those that it takes


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where the packet ends, or one of the places."""

    kind: str  # "endpoint", "REJECT", "DROP", "ACCEPT", "no route", or "on": no rule decided
    to: str  # address and port, as they are then
    share: float  # of all such packets
    source: str  # before masquerading, if that is done
    masqueraded: bool
    marked: bool  # with the mark that asks for it, whatever became of it
    words: str

    def __str__(self) -> str:
        """Return it on one line."""
        return f"{'always' if share(self.share) == ALL else share(self.share)}: {self.words}"


@dataclass(frozen=True, kw_only=True)
class Why:
    """The rules that a packet passes, and what becomes of it."""

    question: str
    steps: tuple[Told, ...]
    outcomes: tuple[Outcome, ...]
    note: str = FIRST

    def __iter__(self) -> Iterator[Told]:
        """Return the rules, in the order in which they are met."""
        return iter(self.steps)

    def __len__(self) -> int:
        """Return how many rules are told of."""
        return len(self.steps)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as values that JSON has."""
        return asdict(self)

    def __str__(self) -> str:
        """Return a block for each rule, and the ends below them."""
        lines, place = [self.question, self.note], ""
        for one in self.steps:
            here = f"{one.node}, {one.hook}"
            lines += ["", here] if here != place else []
            place, pad = here, "  " * (one.depth + 1)
            sign = "✔" if one.matched else "·"
            part = f"  [{share(one.share)}]" if one.matched and share(one.share) != ALL else ""
            lines += [f"{pad}{sign} {one.rule}", f"{pad}    {one.why}{part}", *([f"{pad}    {one.then}"] * one.matched)]
        return "\n".join([*lines, "", *(f"=> {one}" for one in self.outcomes)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return a table of the rules, and the ends below it."""
        head = "".join(f"<th style='text-align:left'>{one}</th>" for one in COLUMNS)
        body, place = "", ("", "")
        for one in self.steps:
            body += _heading(one) if (one.node, one.hook) != place else ""
            body, place = body + _row(one), (one.node, one.hook)
        ends = "".join(f"<li>{html.escape(str(one))}</li>" for one in self.outcomes)
        return (
            f"<div style='overflow-x:auto'><p><b>{html.escape(self.question)}</b><br>{html.escape(self.note)}</p>"
            f"<table class='k8snet-table'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f"<p style='margin-bottom:0'><b>What becomes of it</b></p><ul>{ends}</ul></div>"
        )


def _heading(one: Told) -> str:
    what = f"{one.node}, {one.hook}: {words.HOOKS[one.hook]}"
    return f"<tr><th colspan='4' style='text-align:left'>{html.escape(what)}</th></tr>"


def _row(one: Told) -> str:
    code = "white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85em"
    chain = f"<b>{html.escape(one.chain)}</b>{'' if one.depth else f' of table {html.escape(one.table)}'}"
    rule = f"{chain}<br><code style='{code}'>{html.escape(one.rule)}</code>"
    indent = f"padding-left:{0.6 + 0.7 * one.depth:.1f}em"
    part = share(one.share) if one.matched else "none"
    cells = ((rule, indent), (html.escape(one.why), ""), (part, "white-space:nowrap"), (html.escape(one.then), ""))
    left = "text-align:left;vertical-align:top;white-space:normal;overflow-wrap:anywhere"
    inner = "".join(f"<td style='{left};{more}'>{cell}</td>" for cell, more in cells)
    return f"<tr{'' if one.matched else ' style=opacity:.6'}>{inner}</tr>"


def share(part: float) -> str:
    """Return a share of packets as "all" or "1 of 3", or in per cent where it is no such part."""
    if part > 1 - 1e-6:
        return ALL
    count = round(1 / part) if part > 0 else 0
    return f"1 of {count}" if count and abs(count * part - 1) < 1e-4 else f"{part:.1%}"


# -- in a cluster ----------------------------------------------------------------------


def why(
    cluster: Cluster, source: Any, target: str, *, protocol: str = "tcp", node: str | None = None,
    family: str = "v4", everything: bool = False,
) -> Why:  # fmt: skip
    """Return the rules that a packet passes on a node, and what becomes of it.

    Args:
        source: a Pod, a pod's name, a node's name, or an address.
        target: "shop/web", "shop/web:http", or an address and port: "10.96.0.20:80", "[fd00::1]:80".
        protocol: one of PROTOCOLS; "icmp" is a ping, whose target has no port.
        node: on which the rules are asked; None: the source's own, or, for a stranger, the node it calls or the first.
        everything: tell of the rules that did not match, too.

    Raises:
        NotFound, InvalidInput: see Cluster.why().
    """
    if protocol.lower() not in PROTOCOLS:
        raise InvalidInput(f"protocol {protocol!r}: one of {', '.join(PROTOCOLS)}")
    proxy_of(cluster)
    if target.count(":") and "/" not in target:
        family = "v6" if target.count(":") > 1 else "v4"
    check_family(cluster, family)
    sender, home, own = _source(cluster, source, family)
    first = cluster.node(node) if node else home or _called(cluster, target)
    protocol = protocol.lower()
    found = _target(cluster, first, target, protocol, family)
    packet = _packet(first, sender, found, "ipv6-icmp" if (protocol, family) == ("icmp", "v6") else protocol)
    packet = _from_here(first, packet) if own and home is first else packet
    journey, names = _through(cluster, first, packet, family)
    steps, asked = explain(journey, names, everything=everything), _question(packet, names, first)
    beyond = None if node else _beyond(cluster, first, journey.ends, family)
    if beyond:
        end = journey.ends[0]
        sender = first.addresses[family] if end.masqueraded else str(end.source)
        journey, names = _through(cluster, beyond, _packet(beyond, sender, (end.destination, end.port), end.protocol),
                                  family)  # fmt: skip
        steps += explain(journey, names, everything=everything)
    ends = outcomes(journey.ends, journey.place, names)
    return Why(question=asked, steps=tuple(steps), outcomes=tuple(ends))


def _through(cluster: Cluster, node: Node, packet: Packet, family: str) -> tuple[Journey, words.Names]:
    ruleset = rules_of(cluster, node, family=family)
    return Journey(ruleset, place_of(node), packet), names_of(cluster, node, family=family)


def _source(cluster: Cluster, source: Any, family: str) -> tuple[str, Node | None, bool]:
    """Return an address, the node on which it is, and whether it is the node's own."""
    name = str(getattr(source, "key", None) or getattr(source, "name", None) or source)
    space, _, short = name.rpartition("/")
    pod = cluster.pods.get((space or "default", short))
    if name not in cluster.nodes and pod is None:
        return _of_address(cluster, name, family)
    if pod and not pod.host_network:
        address = next((one for one in pod.addresses if (":" in one) == (family == "v6")), None)
        if address is None:
            raise InvalidInput(f"pod {pod.key} has no address of family {family!r}: {pod.reason or pod.phase}")
        return address, pod.home, False
    node = pod.home if pod else cluster.nodes[name]
    return node.addresses[family], node, True


def _of_address(cluster: Cluster, name: str, family: str) -> tuple[str, Node | None, bool]:
    if not _is_address(name):
        have = ", ".join([*cluster.nodes, *(one.key for one in cluster.pods.values())])
        raise NotFound(f"source {name!r} is no pod, no node and no address; there are: {have}")
    address = str(ipaddress.ip_address(name.strip("[]")))
    if (":" in address) != (family == "v6"):
        raise InvalidInput(f"source {name} is not of the family of the target; for IPv6 to a Service: family='v6'")
    for pod in cluster.pods.values():
        if address in pod.addresses and not pod.host_network:
            return address, pod.home, False
    for node in cluster.nodes.values():
        if address in {node.addresses[family], node.gateway(family)}:
            return address, node, True
    return address, None, False


def _called(cluster: Cluster, target: str) -> Node:
    """Return the node whose address is called, else the first: a stranger's packet may come in by any."""
    address = target if _is_address(target) else target.rpartition(":")[0].strip("[]")
    nodes = list(cluster.nodes.values())
    return next((one for one in nodes if address in one.addresses.values()), nodes[0])


def _target(cluster: Cluster, node: Node, target: str, protocol: str, family: str) -> tuple[str, int]:
    """Return an address and port; those of the cluster IP for a Service; port 0 for a ping."""
    head, _, tail = target.rpartition(":")
    if protocol == "icmp":
        return _pinged(cluster, node, target, family), 0
    if _is_address(head):
        if not (tail.isdecimal() and 0 < int(tail) < 65536):
            raise InvalidInput(f"target {target!r}: the port is a number from 1 to 65535")
        return str(ipaddress.ip_address(head.strip("[]"))), int(tail)
    if _is_address(target):
        written = words.door(target.strip("[]"), 80, protocol).partition("/")[0]
        raise InvalidInput(f"target {target!r} has no port; write it as {written}")
    chosen = ports_of(cluster, node, target, protocol=protocol, family=family)
    if len(chosen) > 1:
        have = " or ".join(f"{target}:{one.port_name or one.port}" for one in chosen)
        raise InvalidInput(f"Service {target} has several {protocol} ports; write {have}")
    return chosen[0].cluster_ip, chosen[0].port


def _pinged(cluster: Cluster, node: Node, target: str, family: str) -> str:
    if _is_address(target):
        return str(ipaddress.ip_address(target.strip("[]")))
    head = target.rpartition(":")[0]
    if _is_address(head):
        raise InvalidInput(f"target {target!r}: a ping has no port; write it as {head}")
    return ports_of(cluster, node, target, family=family)[0].cluster_ip


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True


def _packet(node: Node, source: str, target: tuple[str, int], protocol: str) -> Packet:
    """Return a packet as it comes to a node."""
    came = str(node.netns.route_to(source).get("dev", ""))
    return Packet(source=source, destination=target[0], protocol=protocol, port=target[1], came=came)


def _from_here(node: Node, packet: Packet) -> Packet:
    """Return a packet as a process of the node sends it: its source is the address that its first route tells."""
    source = node.netns.route_to(packet.destination).get("prefsrc", packet.source)
    return replace(packet, source=str(source), here=True, came="")


def _question(packet: Packet, names: words.Names, node: Node) -> str:
    what = names.addresses.get(packet.destination)
    to = words.door(packet.destination, packet.port, packet.protocol)
    return f"From {names.told(str(packet.source))} to {to}{f' ({what})' if what else ''}, on {node.name}"


def _beyond(cluster: Cluster, node: Node, ends: list[Packet], family: str) -> Node | None:
    """Return the other node that a packet is for, if no rule here has had a say in that."""
    if len(ends) != 1 or ends[0].fate or ends[0].translated:
        return None
    found = [one for one in cluster.nodes.values() if one.addresses[family] == ends[0].destination]
    return next((one for one in found if one is not node), None)


# -- in words --------------------------------------------------------------------------


def explain(journey: Journey, names: words.Names, *, everything: bool = False) -> list[Told]:
    """Return the rules that a journey's packets met: those that matched, or all.

    A jump in a filter to a chain none of whose rules matched says nothing, and is left out, too.
    """
    steps, found = journey.steps, []
    for number, step in enumerate(steps):
        idle = _idle(step, steps[number + 1 :])
        if everything or (step.matched and not (idle and step.chain.kind != "nat")):
            told = _told(step, journey, names)
            found.append(replace(told, then=f"{told.then}; none of its rules matches") if idle else told)
    return found


def _idle(step: Step, after: Sequence[Step]) -> bool:
    """Return whether a rule jumps to a chain none of whose rules matches."""
    if not step.matched or not any(one.kind in {"jump", "goto"} for one in step.verdicts):
        return False
    below = itertools.takewhile(lambda one: one.depth > step.depth, after)
    return not any(one.matched for one in below)


def _told(step: Step, journey: Journey, names: words.Names) -> Told:
    ruleset, place, chain, rule = journey.ruleset, journey.place, step.chain, step.rule
    then = words.follows(step.verdicts, ruleset, chain.table, names) if step.matched else "on to the next rule"
    why = words.reason(rule, step.packet, place, names)
    lots = chain.kind != "ipvs"
    if lots and step.matched and not rule.conditions and rule.lot == 1 and any(one.lot < 1 for one in chain.rules):
        why = why.replace("every packet", "what the lots have left")
    return Told(
        node=place.name, hook=step.hook, table=chain.table, chain=chain.name, depth=step.depth,
        rule=rule.told(step.packet), matched=step.matched, why=why, then=then, share=step.share,
    )  # fmt: skip


def outcomes(ends: list[Packet], place: Place, names: words.Names) -> list[Outcome]:
    """Return what became of packets, those that ended alike as one."""
    found: dict[tuple[str, str, bool, bool, str], float] = {}
    for one in ends:
        kind = one.fate or ("endpoint" if one.translated else "ACCEPT" if one.accepted else "on")
        _, address, port = one.virtual if one.virtual and one.fate else ("", one.destination, one.port)
        to = words.door(address, port, one.protocol).partition("/")[0]
        key = kind, to, one.masqueraded, one.marked, str(one.source)
        found[key] = found.get(key, 0.0) + one.chance
    return [
        Outcome(
            kind=kind, to=to, share=part, source=source, masqueraded=masqueraded, marked=marked,
            words=_ending(kind, to, masqueraded, place, names, source),
        )
        for (kind, to, masqueraded, marked, source), part in found.items()
    ]  # fmt: skip


def _ending(kind: str, to: str, masqueraded: bool, place: Place, names: words.Names, source: str) -> str:
    if kind == "REJECT":
        return "REJECT: the caller is refused at once"
    if kind == "DROP":
        return "DROP: silence, and the caller waits until it gives up"
    if kind == "no route":
        return f"{place.name} has no route to {to}"
    sender = "with an address of the node as its source" if masqueraded else f"with its own source, {source}"
    if kind == "endpoint":
        return f"endpoint {names.end(to)}, {sender}"
    address = to if _is_address(to) else to.rpartition(":")[0].strip("[]")
    local = place.is_local(address)
    who = f"{place.name} itself" if to == address else f"a process of {place.name} that listens on {to}"
    where = who if local else f"{names.end(to)}, out by {place.route(address)}"
    said = "a rule lets it pass" if kind == "ACCEPT" else "no rule translates or stops it"
    return f"{said}: it goes on to {where}, {sender}"
