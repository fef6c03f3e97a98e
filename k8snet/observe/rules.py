"""The rules of one Service on one node as a tree of chains, read back from the kernel.

For each address and port that leads to the Service a packet is sent through the rules, as nobody's: its source is
not known, so that every way is found that some caller could take. A chain that no such packet comes to because of
its destination is left out. What is drawn:

    hook ── chain ── chain ── …    a line for each jump, with what the rule asks; a chain has one box, however many
                                   lines lead to it
    in a box                       rules that jump nowhere: a mark for masquerade, DNAT, REJECT, DROP;
                                   a virtual server of IPVS has its real servers
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from k8snet.observe import rules_words as words
from k8snet.observe.rules_ipvs import TABLE as IPVS
from k8snet.observe.rules_live import check_family, names_of, place_of, ports_of, proxy_of, rules_of
from k8snet.observe.ruleset import Chain, Journey, Packet, Place, Ruleset, Step, Verdict

if TYPE_CHECKING:
    from k8snet.cluster.cluster import Cluster
    from k8snet.controllers.kube_proxy.service_ports import ServicePort

__all__ = ["Box", "Line", "RulesView", "draw", "tree_of"]

SHOWN = 3  # endpoints of a chain that are drawn, where it has more than one other


@dataclass(frozen=True, kw_only=True)
class Line:
    """A rule of a chain."""

    rule: str  # its own text
    asks: str  # in a few words; "" for what takes every packet
    does: str  # in a few words; "" for a jump
    to: str = ""  # the box that it jumps to


@dataclass(frozen=True, kw_only=True)
class Box:
    """A chain, or several that hang at hooks and do the same."""

    key: str  # table and names
    table: str
    chains: tuple[str, ...]
    hook: bool
    meaning: str
    lines: tuple[Line, ...]

    @property
    def ends(self) -> list[str]:
        """Its rules that jump nowhere, as they are told; of many real servers some, and how many more."""
        listed = [told(one) for one in self.lines if not one.to]
        more = len(listed) - SHOWN if self.table == IPVS and len(listed) > SHOWN + 1 else 0
        return [*listed[:SHOWN], f"… {more} more"] if more else listed

    @property
    def jumps(self) -> dict[str, list[str]]:
        """What each box that this one leads to is reached by."""
        found: dict[str, list[str]] = {}
        for one in self.lines:
            if one.to:
                found.setdefault(one.to, []).append(one.asks)
        return found


@dataclass(frozen=True, kw_only=True)
class RulesView:
    """The chains of one Service on one node."""

    service: str  # namespace and name
    doors: tuple[str, ...]  # what leads to it, as "10.96.0.20:80/tcp, cluster IP"
    node: str
    mode: str
    family: str
    boxes: tuple[Box, ...]
    caption: str | None = None

    def box(self, key: str) -> Box:
        """Return a box."""
        return next(one for one in self.boxes if one.key == key)

    @property
    def roots(self) -> list[Box]:
        """What hangs at the hooks of the kernel."""
        return [one for one in self.boxes if one.hook]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as values that JSON has; nothing is folded."""
        boxes = [
            {
                "table": one.table, "chains": list(one.chains), "hook": one.hook, "meaning": one.meaning,
                "rules": [
                    {"rule": line.rule, "asks": line.asks, "does": line.does, "jumps_to": self.box(line.to).chains[0]}
                    if line.to else {"rule": line.rule, "asks": line.asks, "does": line.does}
                    for line in one.lines
                ],
            }
            for one in self.boxes
        ]  # fmt: skip
        return {
            "service": self.service, "node": self.node, "mode": self.mode, "family": self.family,
            "doors": list(self.doors), "chains": boxes,
        }  # fmt: skip

    def __str__(self) -> str:
        """Return the tree, indented; a chain that several lead to is written out once."""
        seen: set[str] = set()
        lines = [f"Service {self.service} on {self.node}, kube-proxy in {self.mode} mode"]
        lines += [f"  {one}" for one in self.doors]
        for root in self.roots:
            lines += ["", f"table {root.table}", *self._tree(root, "", seen)]
        return "\n".join(lines)

    __repr__ = __str__

    def _tree(self, box: Box, pad: str, seen: set[str]) -> Iterator[str]:
        """Yield a chain's line, its rules, and what it leads to."""
        known = box.key in seen
        seen.add(box.key)
        what = "as above" if known else box.meaning
        yield f"{pad}{', '.join(box.chains)}{f'   {what}' if what else ''}"
        if known:
            return
        shown, more = folded(box)
        bar = "│" if shown else " "
        yield from (f"{pad}{bar}    {one}" for one in box.ends)
        for key in shown:
            last = key == shown[-1] and not more
            yield f"{pad}{'└' if last else '├'}─ {joined(box.jumps[key])}"
            yield from self._tree(self.box(key), f"{pad}{' ' if last else '│'}  ", seen)
        if more:
            yield f"{pad}└─ … {more} more"

    @property
    def alt(self) -> str:
        """The picture in sentences."""
        said = [f"The rules of Service {self.service} on {self.node}, in {self.mode} mode."]
        for one in self.boxes:
            parts = one.ends
            shown, more = folded(one)
            parts += [f"{joined(one.jumps[key])} goes to {self.box(key).chains[0]}" for key in shown]
            parts += [f"{more} more"] if more else []
            if one.key in self.drawn:
                said.append(f"{', '.join(one.chains)} of table {one.table} ({one.meaning}): {'; '.join(parts)}.")
        return " ".join(said)

    @property
    def drawn(self) -> set[str]:
        """The boxes that are not folded away."""
        found: set[str] = set()
        waiting = [one.key for one in self.roots]
        while waiting:
            key = waiting.pop()
            if key not in found:
                found.add(key)
                waiting += folded(self.box(key))[0]
        return found

    @property
    def svg(self) -> str:
        """The picture, for a page."""
        from k8snet.observe.rules_picture import picture

        return picture(self)

    def standalone(self) -> str:
        """Return the picture as the text of an SVG file."""
        from k8snet.observe.svg import standalone

        return standalone(self.svg)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:  # noqa: ARG002
        """Return the picture for a notebook, and the tree for a terminal."""
        return {"text/html": self._repr_html_(), "text/plain": str(self)}

    def _repr_html_(self) -> str:
        """Return the picture with its caption."""
        from k8snet.observe.svg import figure

        return figure(self.svg, self.alt, self.caption)


def told(line: Line) -> str:
    """Return a rule that jumps nowhere."""
    return f"{line.asks}: {line.does}" if line.asks else line.does


def alternatives(asks: Iterable[str]) -> list[str]:
    """Return what leads from one box to another, any of which is enough; nothing where every packet goes there."""
    listed = list(asks)
    return [] if "" in listed else [one if not number else f"or {one}" for number, one in enumerate(listed)]


def joined(asks: Iterable[str]) -> str:
    """Return what leads from one box to another, on one line."""
    return ", ".join(alternatives(asks)) or "every packet"


def folded(box: Box) -> tuple[list[str], int]:
    """Return the boxes that are drawn below a box, and how many more there are."""
    keys = list(box.jumps)
    return (keys, 0) if len(keys) <= SHOWN + 1 else (keys[:SHOWN], len(keys) - SHOWN)


# -- in a cluster ----------------------------------------------------------------------


def draw(
    cluster: Cluster, service: str, *, node: str | None = None, port: str | int | None = None, family: str = "v4",
    caption: str | None = None,
) -> RulesView:  # fmt: skip
    """Return the chains of a Service as a node has them now. See Cluster.rules()."""
    mode = proxy_of(cluster).mode
    check_family(cluster, family)
    where = cluster.node(node) if node else next(iter(cluster.nodes.values()))
    ports = ports_of(cluster, where, service, port=port, family=family)
    ruleset, place = rules_of(cluster, where, family=family), place_of(where)
    doors = list(_doors(ports, where.addresses[family], place if mode == "ipvs" else None))
    boxes = tree_of(ruleset, place, [packet for packet, _ in doors], names_of(cluster, where, family=family))
    shown = [f"{words.door(one.destination, one.port, one.protocol)}, {what}" for one, what in doors]
    return RulesView(
        service=f"{ports[0].namespace}/{ports[0].name}", doors=tuple(shown), node=where.name, mode=mode, family=family,
        boxes=tuple(boxes), caption=caption,
    )  # fmt: skip


def _doors(ports: Sequence[ServicePort], node_address: str, place: Place | None) -> Iterator[tuple[Packet, str]]:
    """Yield what packets to the Service look like, and what leads them there.

    Args:
        place: of whose addresses they must be; None where that does not matter.
    """
    for one in ports:
        title = f" of port {one.port_name}" if one.port_name and len(ports) > 1 else ""
        places = [(one.cluster_ip, "cluster IP")]
        places += [(address, "external IP") for address in one.external_ips]
        places += [(address, "load balancer") for address in one.load_balancer_ips]
        protocol = one.protocol.lower()
        for address, what in places:
            yield _anybodys(address, one.port, protocol), what + title + _on(address, place)
        if one.node_port:
            yield _anybodys(node_address, one.node_port, protocol), "node port" + title + _on(node_address, place)
        if one.health_check_node_port:
            yield _anybodys(node_address, one.health_check_node_port, "tcp"), "health check of the load balancer"


def _on(address: str, place: Place | None) -> str:
    return f", on {place.interfaces.get(address, 'no interface')}" if place else ""


def _anybodys(address: str, port: int, protocol: str) -> Packet:
    return Packet(source=None, destination=address, protocol=protocol, port=port)


# -- the tree --------------------------------------------------------------------------

Key = tuple[str, str]  # table and name of a chain


def tree_of(ruleset: Ruleset, place: Place, packets: Sequence[Packet], names: words.Names) -> list[Box]:
    """Return the chains that packets come to because of where they are sent to, hooks first."""
    tree = _Tree(ruleset, names, brief=len(packets) == 1)
    for packet in packets:
        for here in (False, True):
            tree.add(Journey(ruleset, place, replace(packet, here=here)).steps, packet)
    return tree.boxes()


class _Tree:
    """What several journeys have in common: each chain once, with the rules that have matched."""

    def __init__(self, ruleset: Ruleset, names: words.Names, *, brief: bool) -> None:
        self.ruleset, self.names, self.brief = ruleset, names, brief
        self.found: dict[Key, dict[tuple[int, tuple[Verdict, ...]], Step]] = {}  # in the order in which they were met
        self.meant: set[Key] = set()  # chains with a rule for just these packets, and all below such a rule
        self.said: set[int] = set()  # such rules, by id
        self.inside: set[int] = set()  # those below such a rule, by id

    def add(self, steps: Iterable[Step], sent: Packet) -> None:
        """Take up a journey."""
        below: int | None = None  # the depth of a rule for just these packets, whose jump we are in
        for step in steps:
            below = None if below is not None and step.depth <= below else below
            if step.matched:
                self.found.setdefault(step.chain.key, {}).setdefault((id(step.rule), step.verdicts), step)
                if below is not None:
                    self.inside.add(id(step.rule))
                if below is None and _for_it(step, sent):
                    below = step.depth
                if below is not None:
                    self.meant.add(step.chain.key)
                    self.said.add(id(step.rule))

    def boxes(self) -> list[Box]:
        """Return the chains that are worth showing, hooks that do the same as one."""
        order = {key: number for number, key in enumerate(self.found)}
        hooks = list(words.HOOKS)
        kept = [chain for key in self.found if self._kept(chain := self.ruleset.chains[key])]
        # what IPVS does is the same at two hooks, and is shown after what INPUT does before it
        where = {one.key: "input" if one.kind == "ipvs" else one.hook for one in kept}
        kept.sort(key=lambda one: (0, hooks.index(where[one.key])) if one.hook else (1, order[one.key]))
        merged: dict[Any, Box] = {}
        for chain in kept:
            box = self._box(chain)
            same = (box.table, *((one.asks, one.does, one.to) for one in box.lines)) if box.hook else box.key
            merged[same] = _both(merged[same], box) if same in merged else box
        return list(merged.values())

    def _kept(self, chain: Chain, above: frozenset[Key] = frozenset()) -> bool:
        if chain.only_marks or chain.key in above:
            return False
        targets = [self._target(step) for step in self.found.get(chain.key, {}).values()]
        return chain.key in self.meant or any(self._kept(one, above | {chain.key}) for one in targets if one)

    def _target(self, step: Step) -> Chain | None:
        jumps = [one.target for one in step.verdicts if one.kind in {"jump", "goto"}]
        return self.ruleset.chains.get((step.chain.table, jumps[0])) if jumps else None

    def _box(self, chain: Chain) -> Box:
        return Box(
            key=f"{chain.table} {chain.name}", table=chain.table, chains=(chain.name,), hook=bool(chain.hook),
            meaning=words.meaning(chain, self.names), lines=tuple(self._lines(chain)),
        )  # fmt: skip

    def _lines(self, chain: Chain) -> Iterator[Line]:
        order = {id(rule): number for number, rule in enumerate(chain.rules)}
        steps = sorted(self.found[chain.key].values(), key=lambda one: order.get(id(one.rule), 0))
        lots = any(one.rule.lot < 1 for one in steps) and chain.kind != "ipvs"
        for step in steps:
            target = self._target(step)
            brief = self.brief and id(step.rule) in self.inside
            asks = words.label(step.rule, step.packet, self.names, brief=brief)
            asks = "what is left" if lots and not asks and not step.rule.conditions else asks
            asks = "from itself" if _itself(chain, step) else asks
            if target is None or target.only_marks:
                does = "mark for masquerade" if target else _short(step.verdicts)
                if chain.kind == "ipvs" and step.verdicts[0].kind == "dnat":
                    does = f"to {self.names.end(step.verdicts[0].target)}"
                if does and (id(step.rule) in self.said or not chain.hook):
                    yield Line(rule=step.rule.told(step.packet), asks=asks, does=does)
            elif self._kept(target):
                yield Line(rule=step.rule.told(step.packet), asks=asks, does="", to=f"{target.table} {target.name}")


def _itself(chain: Chain, step: Step) -> bool:
    """Return whether a rule is for packets from the endpoint that a chain sends them to."""
    actions = [verdict for rule in chain.rules for verdict in rule.actions if verdict.kind == "dnat"]
    ends = {verdict.on(step.packet, filters=False).destination for verdict in actions}
    sources = [one for one in step.rule.conditions if one.kind == "source" and not one.negated]
    hosts = {str(network.network_address) for one in sources for network in one.values if _hosts((network,))}
    return bool(ends) and hosts == ends


def _for_it(step: Step, sent: Packet) -> bool:
    """Return whether a rule is for packets that are sent to just this place, or, as they leave, for marked ones."""
    packet, kinds = step.packet, {one.kind for one in step.rule.conditions}
    if step.hook == "postrouting":
        asked = any(one.kind == "mark" for each in step.chain.rules for one in each.conditions) and packet.marked
        return (asked or "set" in kinds) and any(verdict.kind == "masquerade" for verdict in step.verdicts)
    if "virtual" in kinds:
        return True
    return (packet.destination, packet.port) == (sent.destination, sent.port) and _first(step)


def _first(step: Step) -> bool:
    """Return whether a rule looks at where a packet is sent to."""
    return step.rule.map is not None or any(
        one.kind == "port"
        or (one.kind == "destination" and not one.negated and _hosts(one.values))
        or (one.kind == "set" and not one.negated and "dst" in one.values[1])
        for one in step.rule.conditions
    )


def _hosts(networks: tuple[Any, ...]) -> bool:
    return bool(networks) and all(one.num_addresses == 1 for one in networks)


def _both(one: Box, other: Box) -> Box:
    """Return two hooks that do the same as one box."""
    lines = [
        replace(mine, rule="\n".join(dict.fromkeys([mine.rule, theirs.rule])))
        for mine, theirs in zip(one.lines, other.lines, strict=True)
    ]
    meanings = dict.fromkeys([*one.meaning.split(", and "), other.meaning])
    return replace(
        one, chains=(*one.chains, *other.chains), meaning=", and ".join(meanings), lines=tuple(lines)
    )  # fmt: skip


def _short(verdicts: Iterable[Verdict]) -> str:
    return ", ".join(filter(None, (SHORT.get(one.kind, "").format(one.target) for one in verdicts)))


SHORT = {
    "dnat": "DNAT to {}", "reject": "REJECT", "drop": "DROP", "accept": "ACCEPT", "masquerade": "MASQUERADE",
    "return": "RETURN", "remember": "remember the client",
}  # fmt: skip
