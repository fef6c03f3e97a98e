"""The way of one packet, as a value: what saw it, which rules it met, and what became of it.

    Connection            a packet that was sent, and the one that answered it
    └── PacketWalk        one packet, through every netns
        └── Hop           an interface that saw it, a chain that judged it, or a route that was chosen for it
"""

from __future__ import annotations

import difflib
import html
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

__all__ = ["Connection", "Hop", "Met", "PacketWalk"]

TIMESTAMP, HOOK_ORDER, TTL = "timestamp", "hook order", "its TTL fell"
STYLE = (
    ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;margin:1.5rem}"
    "table{border-collapse:collapse;margin-bottom:1.5rem}caption{font-weight:600;padding-bottom:.5rem}"
    "th,td{padding:.2rem .7rem;vertical-align:top;border-bottom:1px solid #8884}code{font-size:13px}"
)
COLUMNS = ("µs", "netns", "", "what", "packet")
WHAT = 3  # the column whose text may be long


@dataclass(frozen=True, kw_only=True)
class Met:
    """A rule that matched the packet."""

    chain: str
    rule: str  # as its program writes it: "-A KUBE-SERVICES ... -j KUBE-SVC-..."
    verdict: str  # "jump KUBE-SVC-...", "accept", "drop", "return", "continue"
    means: str = ""  # what the chain that it leads to, or stands in, is for


@dataclass(frozen=True, kw_only=True)
class Hop:
    """One station."""

    kind: str  # "seen": an interface saw it; "chain": a chain judged it; "route": how it went on was chosen;
    # "conntrack": it was translated as the first packet of its connection had been
    netns: str
    placed_by: str  # how its place in the order is known: TIMESTAMP, HOOK_ORDER or TTL
    time_us: float | None = None  # of "seen": microseconds since the first one
    interface: str = ""
    outgoing: bool = False
    source: str = ""  # as the packet had it when it came here: address and port
    destination: str = ""
    ttl: int | None = None
    outer: str = ""  # of an encapsulated packet: "VXLAN 1, 172.18.0.1 > 172.18.0.2"
    hook: str = ""  # of "chain": "prerouting", "input", "forward", "output" or "postrouting"
    table: str = ""
    chain: str = ""
    met: tuple[Met, ...] = ()  # the rules that matched, in their order
    verdict: str = ""  # "accept" or "drop"
    translates: bool = False  # of "chain": whether it is one of type nat
    now_source: str = ""  # where it was translated: what it has been since
    now_destination: str = ""
    route: str = ""  # of "route": "via 172.18.0.2 dev eth0"

    @property
    def key(self) -> tuple[str, ...]:
        """What is the same in every run: without times and ports that are drawn."""
        where = (self.kind, self.netns)
        if self.kind == "seen":
            return (*where, self.interface, "out" if self.outgoing else "in", *["encapsulated"] * bool(self.outer))
        if self.kind == "route":
            return (*where, self.route)
        nat = ("snat",) * bool(self.now_source) + ("dnat",) * bool(self.now_destination)
        if self.kind == "conntrack":
            return (*where, *nat)
        return (*where, self.hook, f"{self.table}/{self.chain}", self.verdict, *nat)

    @property
    def what(self) -> str:
        """In words, what happened here."""
        if self.kind == "seen":
            return f"{self.interface} {'sends it' if self.outgoing else 'receives it'}"
        if self.kind == "route":
            return f"route: {self.route}"
        to = [f"source becomes {self.now_source}"] * bool(self.now_source)
        to += [f"destination becomes {self.now_destination}"] * bool(self.now_destination)
        if self.kind == "conntrack":
            return f"conntrack remembers the connection: {', '.join(to)}"
        did = ", ".join([*to, *["DROPS it"] * (self.verdict == "drop")])
        return f"{self.hook}, {self.table} {self.chain}{f': {did}' if did else ''}"

    @property
    def packet(self) -> str:
        """What the packet says of itself here."""
        if self.kind != "seen":
            return ""
        inner = f"{self.source} > {self.destination}, TTL {self.ttl}"
        return f"{self.outer} {{ {inner} }}" if self.outer else inner


@dataclass(frozen=True, kw_only=True)
class PacketWalk:
    """The way of one packet."""

    title: str
    hops: tuple[Hop, ...]
    arrived: bool  # whether it came to the netns that it was for
    ended: str = ""  # of one that did not: where, and why, as far as the kernel says
    remarks: tuple[str, ...] = ()  # what this walk cannot tell, such as rules of iptables-legacy

    def __iter__(self) -> Iterator[Hop]:
        """Return the hops."""
        return iter(self.hops)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.hops)

    @property
    def keys(self) -> list[tuple[str, ...]]:
        """What is the same in every run, hop by hop."""
        return [one.key for one in self.hops]

    def diff(self, other: PacketWalk) -> str:
        """Return how *other* differs: lines that begin with -, + or a space; "" if it does not."""
        mine, theirs = ([" ".join(key) for key in one.keys] for one in (self, other))
        if mine == theirs:
            return ""
        lines = difflib.unified_diff(mine, theirs, "this walk", "the other", lineterm="", n=len(mine))
        return "\n".join(line for line in lines if not line.startswith("@@"))

    def json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    def __str__(self) -> str:
        """Return a line for each hop, and for each rule that it met one more."""
        width = max((len(one.netns) for one in self.hops), default=0)
        lines = [self.title]
        for one in self.hops:
            when = f"{one.time_us:9.1f} µs" if one.time_us is not None else " " * 12
            lines.append(f"{when}  {one.netns:<{width}}  {one.what}{f'  {one.packet}' if one.packet else ''}")
            lines += [f"{'':<{16 + width}}{met.rule}{f'   ({met.means})' if met.means else ''}" for met in one.met]
        return "\n".join([*lines, *([self.ended] if self.ended else []), *(f"({one})" for one in self.remarks)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        head = "".join(f"<th scope='col' style='text-align:left'>{name}</th>" for name in COLUMNS)
        body = "".join(_row(one, before) for one, before in zip(self.hops, (None, *self.hops), strict=False))
        notes = "".join(f"<p>{html.escape(one)}</p>" for one in (self.ended, *self.remarks) if one)
        return (
            "<div style='overflow-x:auto'><table class='k8snet-walk'>"
            f"<caption style='text-align:left'>{html.escape(self.title)}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{notes}"
        )


@dataclass(frozen=True, kw_only=True)
class Connection:
    """What was tried, and the walks of its first packet and of the first answer."""

    outcome: str  # as k8snet.linux.probe.Connect says it
    request: PacketWalk
    reply: PacketWalk | None = None

    def __str__(self) -> str:
        """Return both walks and the outcome."""
        walks = [str(one) for one in (self.request, self.reply) if one]
        return "\n\n".join([*walks, self.outcome])

    __repr__ = __str__

    def json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    def page(self) -> str:
        """Return both tables as a page that needs nothing else."""
        return (
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
            f"<meta name='viewport' content='width=device-width'><title>{html.escape(self.request.title)}</title>"
            f"<style>{STYLE}</style></head><body>{self._repr_html_()}</body></html>\n"
        )

    def _repr_html_(self) -> str:
        """Return both tables."""
        walks = "".join(one._repr_html_() for one in (self.request, self.reply) if one)
        return f"{walks}<p>{html.escape(self.outcome)}</p>"


def _row(one: Hop, before: Hop | None) -> str:
    when = f"{one.time_us:.1f}" if one.time_us is not None else ""
    netns = html.escape(one.netns) if before is None or before.netns != one.netns else ""
    sign = ("→" if one.outgoing else "←") if one.kind == "seen" else ""
    rules = "".join(
        f"<br><code>{html.escape(met.rule)}</code>{f' <em>{html.escape(met.means)}</em>' if met.means else ''}"
        for met in one.met
    )
    cells = [when, netns, sign, html.escape(one.what) + rules, html.escape(one.packet)]
    styles = [f"text-align:left{';white-space:nowrap' if number != WHAT else ''}" for number in range(len(cells))]
    return "<tr>" + "".join(f"<td style='{how}'>{one}</td>" for how, one in zip(styles, cells, strict=True)) + "</tr>"
