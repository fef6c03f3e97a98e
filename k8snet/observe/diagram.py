"""Diagrams: a snapshot as a drawing, in which the same shape always means the same thing.

rounded frame   a netns                      solid line    a veth pair
box             an interface                 thin line     a port of its bridge
double box      a bridge                     dashed line   a VXLAN tunnel
dashed box      an interface that is down    dotted line   a macvlan and its parent
thick, marked   what is new since an earlier snapshot
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import graphviz

from k8snet.errors import InvalidInput, NotFound
from k8snet.observe import labels
from k8snet.observe.labels import ACCENT, FONT, FRAME, INK, LINE, MUTED, NEW
from k8snet.observe.svg import figure, finished, standalone

if TYPE_CHECKING:
    from collections.abc import Iterable

    from k8snet.observe.snapshot import Snapshot
    from k8snet.observe.values import Interface, NetnsState

__all__ = ["Diagram", "Options", "checked_path", "draw"]

@dataclass(frozen=True)
class Diagram:
    """A drawing, as SVG with a caption and a description in words."""

    svg: str
    alt: str
    caption: str | None = None

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:  # noqa: ARG002
        """Return the drawing for a notebook, and the description for a terminal."""
        return {"text/html": figure(self.svg, self.alt, self.caption), "text/plain": self.alt}

    def standalone(self) -> str:
        """Return the drawing as the text of an SVG file."""
        return standalone(self.svg)

    def __str__(self) -> str:
        """Return the description in words."""
        return self.alt

    __repr__ = __str__


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to show, what to mark."""

    routes: bool
    loopback: bool
    macs: bool
    sockets: bool
    rules: bool
    before: Snapshot | None
    path: tuple[str, ...]

    def tables(self, state: NetnsState) -> dict[str, tuple[str, ...]]:
        """Return the lines of each table that is to be shown, where there are any."""
        asked = {"routes": self.routes, "rules": self.rules, "sockets": self.sockets}
        return {kind: lines for kind, wanted in asked.items() if wanted and (lines := _table(state, kind))}

    def steps(self, state: NetnsState, one: Interface) -> list[int]:
        """Return the numbers of a packet's steps at an interface."""
        return [number for number, place in enumerate(self.path, 1) if place == f"{state.name}/{one.name}"]

    def on_path(self, here: tuple[str, str], there: tuple[str, str]) -> bool:
        """Return whether a packet goes from one of two interfaces to the other at once."""
        ends = {"/".join(here), "/".join(there)}
        return any(set(pair) == ends for pair in itertools.pairwise(self.path))

    def mark(self, state: NetnsState, one: Interface) -> str:
        """Return "new", "changed" or "" for an interface."""
        if self.before is None:
            return ""
        old = state_before.interface(one.name) if (state_before := self.before.find(state.name)) else None
        if old is None:
            return "new"
        now = (one.addresses, one.up, one.master, one.peer, one.mtu, one.hairpin, one.carrier)
        return (
            "" if now == (old.addresses, old.up, old.master, old.peer, old.mtu, old.hairpin, old.carrier) else "changed"
        )

    def fresh(self, state: NetnsState, kind: str) -> set[str]:
        """Return the lines of a table ("routes" or "rules") that were not there before."""
        if self.before is None:
            return set()
        old = self.before.find(state.name)
        return set(_table(state, kind)) - set(_table(old, kind) if old else ())


def draw(
    snapshot: Snapshot, *, caption: str | None = None, since: Snapshot | None = None, only: Iterable[str] | None = None,
    routes: bool = False, rules: bool = False, sockets: bool = False, loopback: bool = False, macs: bool = True,
    path: Iterable[str] = (), direction: str = "LR",
) -> Diagram:  # fmt: skip
    """Draw what a snapshot holds.

    Args:
        caption: a full sentence that says what to see.
        since: an earlier snapshot; what has changed since is marked.
        only: the names of the netns to show; None shows all.
        routes: with each netns' routing table.
        rules: with each netns' netfilter rules.
        sockets: with the ports that somebody listens on.
        loopback: with lo.
        macs: with MACs.
        path: the interfaces that a packet passes, in order, each as "netns/interface";
            they are numbered.
        direction: "LR" from left to right, "TB" from top to bottom.

    Raises:
        NotFound: *only* or *path* names something that is not in the snapshot.
        InvalidInput: no such direction.
    """
    if direction not in {"LR", "TB"}:
        raise InvalidInput(f"direction {direction!r}: 'LR' or 'TB'")
    names = set(snapshot.names if only is None else only)
    for name in names - set(snapshot.names):
        raise NotFound(f"no netns {name!r} in this snapshot; there are: {', '.join(snapshot.names)}")
    states = [
        state
        for state in snapshot
        if state.name in names and not (state.name == "host" and state.pristine and only is None)
    ]
    options = Options(
        routes=routes, loopback=loopback, macs=macs, sockets=sockets, rules=rules, before=since,
        path=checked_path(snapshot, path),
    )  # fmt: skip
    graph = _graph(direction)
    for state in reversed(states):  # dot puts the last cluster on top
        _netns(graph, state, options)
    _edges(graph, states, options)
    return Diagram(finished(graph.pipe(format="svg", encoding="utf-8")), describe(states, options, snapshot), caption)


def checked_path(snapshot: Snapshot, path: Iterable[str]) -> tuple[str, ...]:
    """Return *path*, whose interfaces are all there.

    Raises:
        NotFound: one is not.
    """
    steps = tuple(path)
    for place in steps:
        netns, _, name = place.partition("/")
        if snapshot[netns].interface(name) is None:
            raise NotFound(f"path: no interface {name!r} in netns {netns}")
    return steps


def _graph(direction: str) -> graphviz.Graph:
    graph = graphviz.Graph(engine="dot")
    graph.attr(rankdir=direction, bgcolor="transparent", nodesep="0.22", ranksep="0.55", pad="0.1", compound="true")
    graph.attr("node", shape="plain", fontname=FONT, fontsize="11", fontcolor=INK)
    graph.attr("edge", color=LINE, penwidth="2.2", fontname=FONT, fontsize="9", fontcolor=MUTED)
    return graph


def _id(netns: str, name: str) -> str:
    return f"{netns}|{name}".replace(":", "_").replace("\\", "_")


def _netns(graph: graphviz.Graph, state: NetnsState, options: Options) -> None:
    new = options.before is not None and state.name not in options.before
    with graph.subgraph(name=f"cluster_{state.name}") as cluster:
        cluster.attr(label=labels.title(state.name, new=new), style="rounded,filled", fillcolor=FRAME, margin="12")
        cluster.attr(fontcolor=INK, fontname=FONT, fontsize="12", labeljust="l")
        cluster.attr(color=NEW if new else LINE, penwidth="2.4" if new else "1")
        shown = [one for one in state.interfaces if options.loopback or one.kind != "loopback"]
        for one in shown:
            changed, path = options.mark(state, one), options.steps(state, one)
            label = labels.interface(one, changed=changed, path=path, mac=options.macs)
            cluster.node(_id(state.name, one.name), label=label)
        tables = options.tables(state)
        for kind, lines in tables.items():
            cluster.node(_id(state.name, f"#{kind}"), label=labels.note(kind, lines, options.fresh(state, kind)))
        if not shown and not tables:
            cluster.node(_id(state.name, "#empty"), label=f"<{labels.small('lo, and nothing else')}>")


def _table(state: NetnsState, kind: str) -> tuple[str, ...]:
    if kind == "routes":
        return tuple(str(one) for one in state.routes)
    if kind == "sockets":
        return tuple(f"{one.protocol} {one.address}:{one.port}" for one in state.sockets)
    return tuple(itertools.chain.from_iterable(one.lines for one in state.rules if one.program != "nft"))


# -- edges -----------------------------------------------------------------------------


def _edges(graph: graphviz.Graph, states: list[NetnsState], options: Options) -> None:
    shown = {(state.name, one.name) for state in states for one in state.interfaces}
    holders = {
        address.partition("/")[0]: (state.name, one.name)
        for state in states
        for one in state.interfaces
        for address in one.addresses
    }
    drawn: set[frozenset[tuple[str, str]]] = set()
    for state in states:
        for one in state.interfaces:
            here = (state.name, one.name)
            if one.master:
                _edge(graph, (state.name, one.master), here, options, penwidth="1.2")
            if one.parent:
                graph.edge(_id(state.name, one.parent), _id(*here), style="dotted")
            there = (one.peer.netns or "", one.peer.interface) if one.peer else None
            if there in shown and frozenset((here, there)) not in drawn:
                drawn.add(frozenset((here, there)))
                first, second = sorted((here, there), key=lambda end: _place(states, end))
                _edge(graph, first, second, options, color=NEW if options.mark(state, one) == "new" else ACCENT)
        _tunnels(graph, state, holders)


def _place(states: list[NetnsState], end: tuple[str, str]) -> int:
    """Return how far right an end goes: a switch's uplink comes to it from the left, its ports lead to the right."""
    (state,) = (one for one in states if one.name == end[0])
    if not any(one.kind == "bridge" for one in state.interfaces):
        return 1
    one = state.interface(end[1])
    return 0 if one and one.master else 2


def _edge(graph: graphviz.Graph, here: tuple[str, str], there: tuple[str, str], options: Options, **look: str) -> None:
    if options.on_path(here, there):
        look |= {"color": NEW, "penwidth": "3.4"}
    graph.edge(_id(*here), _id(*there), **look)


def _tunnels(graph: graphviz.Graph, state: NetnsState, holders: dict[str, tuple[str, str]]) -> None:
    for entry in state.fdb:
        if entry.remote in holders and not entry.mac.startswith("00:00:00"):
            graph.edge(
                _id(state.name, entry.port),
                _id(*holders[entry.remote]),
                style="dashed",
                penwidth="1.2",
                constraint="false",
            )


# -- in words --------------------------------------------------------------------------


def describe(states: list[NetnsState], options: Options, snapshot: Snapshot) -> str:
    """Return what the drawing shows, in sentences."""
    count = len(states)
    sentences = [f"A diagram of {count} netns." if count else "An empty diagram: the lab has no netns."]
    for state in states:
        parts = [_in_words(one) for one in state.interfaces if options.loopback or one.kind != "loopback"]
        sentences.append(f"{state.name} has {', '.join(parts)}." if parts else f"{state.name} has only lo.")
        sentences += [f"Its {kind}: {'; '.join(lines)}." for kind, lines in options.tables(state).items()]
    if options.path:
        sentences.append(f"A packet passes {', then '.join(options.path)}.")
    if options.before is not None:
        changes = options.before.diff(snapshot)
        sentences.append(f"Changed since the last one: {'; '.join(map(str, changes.changes)) or 'nothing'}.")
    return " ".join(sentences)


def _in_words(one: Interface) -> str:
    words = [f"the {one.kind} {one.name}" if one.kind not in {"", "loopback"} else one.name]
    words += ["with " + " and ".join(one.addresses)] if one.addresses else []
    words += [f"({one.state})"]
    words += [f"as a port of {one.master}"] if one.master else []
    words += [f"joined to {one.peer.interface} in {one.peer.netns}"] if one.peer and one.peer.netns else []
    return " ".join(words)
