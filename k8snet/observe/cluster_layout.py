"""Layout of a cluster's diagram: where everything stands, and the lines between. The legend is in cluster_diagram.py.

Nodes stand side by side ("down": the switch is below them, tunnels are above), or one
under another (the switch is at the right, tunnels are at the left).
"""

from __future__ import annotations

import html
import itertools
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from k8snet.observe import boxes
from k8snet.observe.boxes import Box, Point, Row, Span
from k8snet.observe.labels import ACCENT, BRIDGE, FRAME, INK, LINE, MUTED, NEW, NOTE, USUAL_MTU, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from k8snet.observe.cluster_diagram import Guest, Home, Link
    from k8snet.observe.diagram import Options
    from k8snet.observe.values import Interface, NetnsState

__all__ = ["WIDEST", "Drawing"]

OVERLAY = "#9568d0"  # of VXLAN; as clear on light paper as on dark
PAGE = 800  # points; on 800 pixels, type of 9 points is then 9 pixels high
WIDEST = 850  # points; beyond that, type gets too small
MARGIN, GAP = 10.0, 6.0  # points
RAIL = 16.0  # points at the right of a node, for the lines between the interfaces at its edges
UPLINK = "eth0"  # the interface of a pod that needs no name
STRETCH = 2.3  # how much wider than its words a pod may be
DASHES = {"up": "", "down": "4 3", "no carrier": "1.5 2.5"}


def _mark(kind: str) -> Row:
    return (Span(f"{'+' if kind == 'new' else '±'} {kind}", NEW, 9, bold=True),) if kind else ()


def _numbers(found: list[int]) -> Row:
    return (Span(" ".join(f"({one})" for one in found), NEW, 9, bold=True),) if found else ()


def _small(text: str) -> Row:
    return (Span(text, MUTED, 9),) if text else ()


def _rows(state: NetnsState, one: Interface, options: Options) -> list[Row]:
    """Return name and kind of an interface, its addresses, and what is not as usual."""
    sign = Span("●" if one.state == "up" else "○", MUTED, 9)
    marks = (*_mark(options.mark(state, one)), *_numbers(options.steps(state, one)))
    odd = ["" if one.state == "up" else one.state, "" if one.mtu in USUAL_MTU else f"mtu {one.mtu}"]
    rows: list[Row] = [(sign, Span(one.name, bold=True), *_small(kind_of(one)), *marks)]
    rows += [(Span(address),) for address in one.addresses] or [()]
    rows[-1] += _small(", ".join(filter(None, odd)))
    return [row for row in rows if row]


def _interface(state: NetnsState, one: Interface, options: Options) -> Box:
    changed = bool(options.mark(state, one))
    rows, look = _rows(state, one, options), {}
    if one.kind == "bridge":  # it is wide, so its first address stands beside its name
        rows, look = [tuple(itertools.chain(*rows[:2])), *rows[2:]], {"fill": BRIDGE, "double": True}
    return Box(rows=rows, dash=DASHES[one.state], stroke=NEW if changed else LINE, thick=changed, **look)  # type: ignore[arg-type]


def _netns(state: NetnsState, options: Options, *, wide: bool) -> Box:
    """Return the box of a netns beyond the nodes; the switch's looks like the bridge that it holds."""
    new = options.before is not None and state.name not in options.before
    bridges = [one for one in state.interfaces if one.kind == "bridge"]
    shown = bridges or [one for one in state.interfaces if one.kind != "loopback"]
    rows: list[Row] = [(Span("netns", MUTED, 9), Span(state.name, bold=True), *_mark("new" if new else ""))]
    for one in shown:
        first, *more = _rows(state, one, options)
        rows += [(*first, *more[0]) if more else first, *((Span("\xa0" * 10), *row) for row in more[1:])]
    look: dict[str, Any] = {"fill": FRAME, "round": 8}
    if bridges:
        rows = [(*rows[0], Span("\xa0"), *itertools.chain(*rows[1:]))]
        look = {"fill": BRIDGE, "double": True, "centred": True, "upward": not wide}
    return Box(rows=rows, stroke=NEW if new else LINE, thick=new, **look)


def _guest_box(guest: Guest, options: Options) -> Box:
    space, _, short = guest.name.rpartition("/")
    change, own = guest.change(options), None if guest.pod.host_network else guest.state
    steps = {one.name: _numbers(options.steps(own, one)) for one in guest.interfaces} if own else {}
    name = (*_small(space and f"{space}/"), Span(short, bold=True), *_mark(change), *steps.get(UPLINK, ()))
    rows: list[Row] = [name]
    if guest.pod.host_network:
        rows += [*((Span(one),) for one in guest.pod.addresses), _small("host network")]
    for one in guest.interfaces if own else ():
        known: list[Row] = [(Span(address.partition("/")[0]),) for address in one.addresses]
        first, *more = known or [_small("no address")]
        rows += [first if one.name == UPLINK else (*_small(one.name), *first, *steps[one.name]), *more]
    rows += [_small(text) for text in guest.containers]
    rows += [(Span(f"○ {guest.trouble}", size=9),)] if guest.trouble else []
    dash = "4 3" if guest.trouble else ""
    return Box(rows=rows, round=7, dash=dash, stroke=NEW if change else LINE, thick=bool(change))


def _note(kind: str, lines: tuple[str, ...], fresh: set[str], room: float) -> Box:
    rows: list[Row] = [(Span(kind, MUTED, 9, bold=True),)]
    for line in lines:
        colour, sign = (NEW, "+ ") if line in fresh else (INK, "")
        wrapped = textwrap.wrap(sign + line, max(38, int((room - 10) / 5.43)), subsequent_indent="\xa0\xa0")
        rows += [(Span(text, colour, 9, mono=True),) for text in wrapped]
    return Box(rows=rows, fill=NOTE, stroke="none", round=0)


# -- layout ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """How pods stand in their nodes."""

    columns: int
    width: float  # of a pod
    gutter: float  # on the left of each, for its cable

    @classmethod
    def of(cls, homes: list[Home], options: Options, *, down: bool) -> _Grid:
        """Return a grid in which all nodes together fit a page."""
        width = max((_guest_box(one, options).width for home in homes for one in home.guests), default=0)
        gutter = 13.0
        nodes = [home for home in homes if home.node]
        room = PAGE / max(1, len(nodes)) - RAIL - 1.6 * MARGIN if down else 0.6 * PAGE
        most = max((len(home.guests) for home in nodes), default=1) or 1
        columns = min(most, max(1, int((room - 2 * MARGIN) / (gutter + width + GAP))))
        return cls(columns=-(-most // -(-most // columns)), width=width, gutter=gutter)  # no row half empty

    @property
    def room(self) -> float:
        return self.columns * (self.gutter + self.width + GAP) - GAP

    def place(self, pods: list[Box], x: float, y: float, room: float) -> float:
        """Give each pod its place, from a corner on, and return where the next thing can stand."""
        width = min((room + GAP) / self.columns - self.gutter - GAP, STRETCH * self.width)
        for row in (pods[start : start + self.columns] for start in range(0, len(pods), self.columns)):
            tall = max(one.height for one in row)
            for number, one in enumerate(row):
                one.move(x + self.gutter + number * (self.gutter + width + GAP), y)
                one.width, one.height = width, tall
            y += tall + GAP
        return y


@dataclass(kw_only=True, eq=False)
class _Frame:
    """A node as it is drawn."""

    home: Home
    grid: _Grid
    options: Options
    down: bool
    box: Box = field(init=False)
    title: Row = field(init=False)
    tunnels: dict[str, Box] = field(init=False)  # by interface
    bridges: dict[str, Box] = field(init=False)
    uplinks: dict[str, Box] = field(init=False)
    pods: list[tuple[Guest, Box]] = field(init=False)
    notes: list[Box] = field(init=False)

    def __post_init__(self) -> None:
        """Make the boxes, and arrange them in as little room as they need."""
        home, options = self.home, self.options
        new = options.before is not None and home.node is not None and home.state.name not in options.before
        self.title = _small("pods that wait for a node")
        if home.node:
            gone = "" if home.state.interfaces else "its netns is gone"
            name = Span(home.node.name, size=12, bold=True)
            self.title = (*_small("node"), name, *_mark("new" if new else ""), *_small(gone))
        dash = "" if home.node else "4 3"
        self.box = Box(rows=[], fill=FRAME, round=9, stroke=NEW if new else LINE, thick=new, dash=dash)
        self.tunnels, self.bridges, self.uplinks = (
            {one.name: _interface(home.state, one, options) for one in some}
            for some in (home.of_kind("vxlan"), home.of_kind("bridge"), home.outward())
        )
        self.pods = [(guest, _guest_box(guest, options)) for guest in home.guests]
        tables = options.tables(home.state).items()
        room = self._inner()
        self.notes = [_note(kind, lines, options.fresh(home.state, kind), room) for kind, lines in tables]
        self.arrange(0, 0)

    @property
    def places(self) -> dict[str, Box]:
        """Every interface that has a box of its own."""
        return self.tunnels | self.bridges | self.uplinks

    @property
    def margins(self) -> float:
        """What is left and right of bridges and pods; at the right go the lines between interfaces."""
        rail = self.down and (self.tunnels or (self.home.node and self.options.path))
        return 2 * MARGIN + (RAIL if rail else 0)

    def _inner(self) -> float:
        return max(self.grid.room, *(one.width for one in self.bridges.values()), 0)

    def _least_width(self) -> float:
        top = [self.tunnels] if self.down else [self.tunnels, self.uplinks]
        ends = sum(max((one.width for one in some.values()), default=0) for some in top)
        low = sum(one.width + GAP for one in self.uplinks.values()) if self.down else 0
        inner = max(self._inner(), low, *(one.width for one in self.notes), 0) + self.margins
        return max(inner, ends + boxes.width(self.title) + 3 * MARGIN)

    def arrange(self, x: float, y: float, *, width: float = 0, height: float = 0) -> None:
        """Give everything its place, with the frame's corner at a point, and at least so wide and high."""
        box = self.box
        box.move(x, y)
        box.width = max(width, self._least_width())
        if self.down:
            top = _stack(self.tunnels.values(), y, right=box.right - MARGIN)
        else:
            top = _stack(self.tunnels.values(), y + GAP, left=x)
            top = max(top, _stack(self.uplinks.values(), y + GAP, right=box.right))
        low = self._fill(max(y + 22, top) + GAP)
        tall = max((one.height for one in self.uplinks.values()), default=0) if self.down else 0
        box.height = max(height, low - y + (tall or MARGIN - GAP))
        side = box.right - MARGIN
        for one in self.uplinks.values() if self.down else ():
            one.move(side - one.width, box.bottom - one.height)
            side = one.x - GAP

    def _fill(self, y: float) -> float:
        """Give bridges, pods and notes their places from a height on, and return where they end."""
        x, room, rest = self.box.x + MARGIN, self.box.width - self.margins, list(self.pods)
        for name, bridge in self.bridges.items():
            ports = [pair for pair in rest if any(one.master == name for one in self.home.cables(pair[0]))]
            bridge.move(x, y)
            bridge.width = room
            y = self.grid.place([box for _, box in ports], x, bridge.bottom + GAP + 2, room)
            rest = [pair for pair in rest if pair not in ports]
        y = self.grid.place([box for _, box in rest], x, y, room)
        for one in self.notes:
            one.width = room
        return _stack(self.notes, y, left=x, gap=GAP)

    # -- its lines ---------------------------------------------------------------------

    def svg(self, drawing: Drawing) -> str:
        """Return the frame with all that is in it."""
        x = self.box.x if self.down else max((one.right for one in self.tunnels.values()), default=self.box.x)
        parts = [self.box.svg(), boxes.text(self.title, x + MARGIN, self.box.y + 17)]
        parts += [*sorted(self._cables(drawing), key=lambda line: NEW in line), *self._ways_out()]
        parts += [one.svg() for one in (*self.places.values(), *self.notes)]
        parts += [f'<g class="pod" data-pod="{html.escape(guest.name)}">{box.svg()}</g>' for guest, box in self.pods]
        return f'<g class="node" data-netns="{html.escape(self.home.state.name)}">{"".join(parts)}</g>'

    def _cables(self, drawing: Drawing) -> Iterator[str]:
        """Yield the lines from a bridge to its pods, with the numbers of their ends in the node."""
        name = self.home.state.name
        for guest, box in self.pods:
            for number, one in enumerate(self.home.cables(guest)):
                x, y = box.x - self.grid.gutter + 5, box.y + 13 + 9 * number
                bridge = self.bridges.get(one.master or "")
                points = [*([(x, bridge.bottom)] if bridge else []), (x, y), (box.x, y)]
                places = [f"{name}/{one.name}", f"{name}/{one.master}"]
                places += [f"{guest.state.name}/{one.peer.interface}"] if guest.state and one.peer else []
                new = guest.change(self.options) == "new"
                yield drawing.line(points, places, new=new, colour=LINE, thick=1.2)
                if steps := _numbers(self.options.steps(self.home.state, one)):
                    yield boxes.text(steps, x - 2, y - 5.5, anchor="middle", halo=FRAME)

    def _ways_out(self) -> Iterator[str]:
        """Yield the line from each tunnel to what its packets leave by, and a packet's way between interfaces."""
        for tunnel in self.home.of_kind("vxlan"):
            local = {dict(tunnel.details).get(key) for key in ("local", "local6")}
            for one in self.home.outward():
                if local & {address.partition("/")[0] for address in one.addresses}:
                    points = self._between(self.tunnels[tunnel.name], self.uplinks[one.name])
                    yield boxes.path(points, OVERLAY, thick=1.6, dash="1.6 3")
        for pair in itertools.pairwise(self.options.path):
            a, b = (self.places.get(place.removeprefix(f"{self.home.state.name}/")) for place in pair)
            if a and b and a is not b:
                yield boxes.path(self._between(a, b), NEW, thick=2.4)

    def _between(self, a: Box, b: Box) -> list[Point]:
        """Return the way between two interfaces: straight, or by the rail."""
        upper, lower = sorted((a, b), key=lambda one: one.y)
        if not self.down:
            if set(self.bridges.values()) & {a, b}:
                return [(upper.middle[0], upper.bottom), (upper.middle[0], lower.y)]
            y, (left, right) = min(a.bottom, b.bottom) - 5, sorted((a, b), key=lambda one: one.x)
            return [(left.right, y), (right.x, y)]
        x = self.box.right - MARGIN - 5
        top = (x, upper.bottom) if upper.right > x else (upper.right, upper.middle[1])
        low = (x, lower.y) if lower.right > x else (lower.right, lower.middle[1])
        return [top, (x, top[1]), (x, low[1]), low]


def _stack(
    some: Iterable[Box], y: float, *, left: float | None = None, right: float | None = None, gap: float = 0
) -> float:
    """Put boxes one under another, with their left or their right sides on a line, and return where they end."""
    for one in some:
        one.move(left if left is not None else (right or 0) - one.width, y)
        y = one.bottom + gap
    return y


@dataclass(kw_only=True, eq=False)
class Drawing:
    """Everything that is drawn, in its place."""

    homes: list[Home]
    beyond: list[NetnsState]  # the switch, and what else is no node
    links: list[Link]
    fresh: set[frozenset[tuple[str, str]]]  # ends of those that are new
    gone: list[str]  # netns that were there before
    options: Options
    down: bool
    frames: list[_Frame] = field(init=False)
    fabric: dict[str, Box] = field(init=False)  # by netns; the first is the switch

    def __post_init__(self) -> None:
        """Lay it out."""
        grid = _Grid.of(self.homes, self.options, down=self.down)
        self.frames = [_Frame(home=home, grid=grid, options=self.options, down=self.down) for home in self.homes]
        wide = max((one.box.width for one in self.frames), default=0)
        tall = max((one.box.height for one in self.frames), default=0)
        along = end = 0.0
        for one in self.frames:  # side by side they are equally high, one under another equally wide
            start = end + 1.6 * MARGIN if end else 0
            one.arrange(*((start, 0) if self.down else (0, start)), width=wide, height=tall if self.down else 0)
            end = one.box.right if self.down else one.box.bottom
            along = end if one.home.node else along
        self.fabric = {one.name: _netns(one, self.options, wide=self.down) for one in self.beyond}
        if self.fabric:
            self._place_fabric(*self.fabric.values(), along=along, across=tall if self.down else wide)

    def _place_fabric(self, switch: Box, *rest: Box, along: float, across: float) -> None:
        """Put the switch, as long as all nodes together, beside them, and the rest beyond it."""
        far = across + (32 if self.frames else 0)
        if self.down:
            switch.move(0, far)
            length = sum(one.width for one in rest) + 26 * (len(rest) - 1)
            switch.width = max(along, switch.width, length)
            at, middle = (switch.width - length) / 2, switch.bottom + 24 + max((b.height for b in rest), default=0) / 2
            for one in rest:
                one.move(at, middle - one.height / 2)
                at = one.right + 26
        else:
            switch.move(far, 0)
            length = sum(one.height for one in rest) + 26 * (len(rest) - 1)
            switch.height = max(along, switch.height, length)
            at, middle = (switch.height - length) / 2, switch.right + 28 + max((b.width for b in rest), default=0) / 2
            for one in rest:
                one.move(middle - one.width / 2, at)
                at = one.bottom + 26

    # -- lines -------------------------------------------------------------------------

    def line(self, points: list[Point], places: list[str], *, new: bool, colour: str, thick: float, **look: Any) -> str:
        """Return a line that is thick if it is new, or if a packet passes two of these places at once."""
        if new or any(set(pair) <= set(places) for pair in itertools.pairwise(self.options.path)):
            colour, thick = NEW, thick + 1.2
        return boxes.path(points, colour, thick=thick, **look)

    def _places(self) -> dict[str, tuple[NetnsState, Interface, Box]]:
        """Return what cables between netns can end at, by netns and interface."""
        found: dict[str, tuple[NetnsState, Interface, Box]] = {}
        for frame in self.frames:
            state = frame.home.state
            found |= {f"{state.name}/{one.name}": (state, one, frame.uplinks[one.name]) for one in frame.home.outward()}
            for guest, box in frame.pods:
                if guest.state and not guest.pod.host_network:
                    found |= {f"{guest.state.name}/{one.name}": (guest.state, one, box) for one in guest.interfaces}
        for state in self.beyond:
            found |= {f"{state.name}/{one.name}": (state, one, self.fabric[state.name]) for one in state.interfaces}
        return found

    def _underlay(self) -> Iterator[str]:
        """Yield the cables between netns, but for those of pods into their node; numbers stand at the switch's end."""
        places = self._places()
        for place, (state, one, box) in places.items():
            other = f"{one.peer.netns}/{one.peer.interface}" if one.peer else ""
            if other not in places or (other, place) < (place, other):
                continue
            far_state, far, far_box = places[other]
            names = [place, other, f"{state.name}/{one.master}", f"{far_state.name}/{far.master}"]
            new = "new" in {self.options.mark(state, one), self.options.mark(far_state, far)}
            points, dead = _straight(box, far_box), {one.state, far.state} != {"up"}
            look: dict[str, Any] = {"colour": ACCENT, "thick": 2.2}
            if dead:
                look = {"colour": LINE, "thick": 1.2, "dash": DASHES["down"]}
            yield self.line(points, names, new=new, **look)
            for (x, y), end in zip(points, ((state, one), (far_state, far)), strict=True):
                if end[1].master and (steps := _numbers(self.options.steps(*end))):
                    away = max(points, key=lambda point: abs(point[0] - x) + abs(point[1] - y))
                    level, before = away[1] == y, away < (x, y)
                    spot = (x + (-3 if before else 3), y - 5) if level else (x + 4, y - 5 if before else y + 12)
                    yield boxes.text(steps, *spot, anchor="end" if level and before else "start")

    def _overlay(self) -> Iterator[str]:
        """Yield the tunnels as arcs, those between near nodes inside those between far ones, and their names."""
        order = {one.home.state.name: number for number, one in enumerate(self.frames)}
        named: dict[str, Point] = {}
        for link in self.links:
            i, j, depth = order[link.here[0]], order[link.there[0]], self._depth(link, order)
            start, end = self._foot(i, j, link.here[1]), self._foot(j, i, link.there[1])
            arc = self._turned([start, (start[0], -depth), (end[0], -depth), end])
            names = ["/".join(link.here), "/".join(link.there)]
            look: dict[str, Any] = {"colour": OVERLAY, "thick": 1.6, "dash": "5 3.5", "curved": True}
            drawn = self.line(arc, names, new=link.ends in self.fresh, **look)
            arrow = "" if link.mutual else self._arrow(end)
            yield f'<g class="overlay" data-ends="{html.escape(" ".join(names))}">{drawn}{arrow}</g>'
            top = ((start[0] + end[0]) / 2, -0.75 * depth - 4)
            named[link.vni] = min(named.get(link.vni, top), top, key=lambda point: point[1])
        for vni, point in named.items():
            x, y = self._turned([point])[0]
            yield boxes.text((Span(f"VXLAN {vni}", bold=True),), x, y, anchor="middle", upward=not self.down)

    def _foot(self, here: int, there: int, interface: str) -> Point:
        """Return where an arc leaves a node's tunnel towards another; to a far one nearer the middle."""
        frame, count = self.frames[here], len(self.frames)
        box, first = frame.tunnels[interface], next(iter(frame.tunnels.values()))
        middle, room = (first.middle[0], first.width) if self.down else (box.middle[1], box.height)
        step = min(6.0, (room / 2 - 5) / count)
        toward = 1 if there > here else -1
        return middle + toward * (count - abs(there - here)) * step, 0

    def _depth(self, link: Link, order: dict[str, int]) -> float:
        """Return how far an arc's inner points are away; it reaches three quarters of that."""
        rank = list(self.frames[order[link.here[0]]].tunnels).index(link.here[1])
        return 16 + 15 * abs(order[link.here[0]] - order[link.there[0]]) + 9 * rank

    def _turned(self, points: list[Point]) -> list[Point]:
        return points if self.down else [(y, x) for x, y in points]

    def _arrow(self, foot: Point) -> str:
        points = self._turned([foot, (foot[0] - 4, foot[1] - 9), (foot[0] + 4, foot[1] - 9)])
        return f'<polygon points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="{OVERLAY}"/>'

    # -- all of it ---------------------------------------------------------------------

    @property
    def bounds(self) -> tuple[Point, Point]:
        """The upper left and the lower right corner of it all."""
        every = [*(one.box for one in self.frames), *self.fabric.values()]
        order = {one.home.state.name: number for number, one in enumerate(self.frames)}
        reach = max((0.75 * self._depth(link, order) + 16 for link in self.links), default=0) + 4
        right, low = (max((getattr(one, side) for one in every), default=0) + 4 for side in ("right", "bottom"))
        return (-4.0, -reach) if self.down else (-reach, -4.0), (right, low + (16 if self.gone else 0))

    @property
    def width(self) -> float:
        """How wide it is."""
        return self.bounds[1][0] - self.bounds[0][0]

    def svg(self) -> str:
        """Return the whole drawing."""
        (x, y), (right, low) = self.bounds
        parts = [*self._underlay(), *(one.svg(self) for one in self.frames)]
        parts += [f'<g data-netns="{html.escape(name)}">{box.svg()}</g>' for name, box in self.fabric.items()]
        parts += self._overlay()
        if self.gone:
            parts.append(boxes.text((Span(f"− gone: {', '.join(self.gone)}", NEW, 9, bold=True),), 0, low - 6))
        size = f'width="{right - x:.0f}pt" height="{low - y:.0f}pt"'
        view = f"{x:.1f} {y:.1f} {right - x:.1f} {low - y:.1f}"
        return f'<svg {size} viewBox="{view}" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'


def _straight(a: Box, b: Box) -> list[Point]:
    """Return a straight line between two boxes, at a right angle to their sides where that can be."""
    for one, other, turned in ((a, b, False), (b, a, True)):
        x, y = one.middle
        if other.x < x < other.right:
            line = [(x, one.bottom), (x, other.y)] if one.y < other.y else [(x, one.y), (x, other.bottom)]
        elif other.y < y < other.bottom:
            line = [(one.right, y), (other.x, y)] if one.x < other.x else [(one.x, y), (other.right, y)]
        else:
            continue
        return line[::-1] if turned else line
    return [a.middle, b.middle]
