"""Follow a packet: send one, and put together from what the kernel tells of it the way that it took.

    every interface of the lab     sees it: a ring of frames each, with the kernel's time   (capture.py)
    every netns with rules         judges it: the messages of nf_tables, in their order      (linux/nftrace.py)
    every netns that routes it     is asked how it would send it

A packet is known again by what nobody on its way may change: TCP's sequence number, and the identification of IP.
Messages have no time. Their place follows from the order of the hooks: after the interface that the packet came in by,
before the one that it left by; with br_netfilter, prerouting comes before the bridge itself has it.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import dpkt

from k8snet.errors import InvalidInput
from k8snet.linux import sysctl
from k8snet.linux.address import host_address
from k8snet.linux.nftrace import TABLE, has_rules
from k8snet.observe import loss
from k8snet.observe.capture import Packet
from k8snet.observe.listener import Group, Listener, listening
from k8snet.observe.sighting import ACK, SYN_OR_RST, VXLAN, Sight, address_of, end_of, headers_of, same, sight_of
from k8snet.observe.walk import HOOK_ORDER, TIMESTAMP, TTL, Connection, Hop, Met, PacketWalk

if TYPE_CHECKING:
    from k8snet.lab import Lab
    from k8snet.linux.netns import Netns

__all__ = ["Meaning", "trace"]

Meaning = Callable[[str, str, str], str]  # (netns, table, chain) -> what the chain is for; "" where that is not known

SOURCE_PORTS = range(20000, 29999)  # below those that the kernel and node ports take
SIZES = range(1000, 1200)  # of TCP's segments: odd ones, that no other connection is likely to offer
INNER = 30  # bytes from VXLAN's UDP header to the inner IP header
FILTERS = {
    "tcp": (
        f"(tcp[tcpflags] & 6 != 0) or (ip6[6] = 6 and ip6[53] & 6 != 0) or icmp or icmp6 or (udp port {VXLAN} and "
        f"((udp[{INNER}] & 0xf0 = 0x40 and udp[{INNER + 9}] = 6 and udp[{INNER + 33}] & 6 != 0) or "
        f"(udp[{INNER}] & 0xf0 = 0x60 and udp[{INNER + 6}] = 6 and udp[{INNER + 53}] & 6 != 0)))"
    ),
    "udp": f"(udp and not udp port {VXLAN}) or icmp or icmp6 or (udp port {VXLAN} and (udp[{INNER + 9}] = 17 or "
           f"udp[{INNER + 6}] = 17))",
}  # fmt: skip


# -- sending and listening -------------------------------------------------------------


def trace(
    lab: Lab, source: Netns, destination: str, port: int, *, protocol: str = "tcp", timeout_s: float = 2.0,
    meaning: Meaning | None = None,
) -> Connection:  # fmt: skip
    """Open a connection, or send a datagram, and return the way of its first packet and of the first answer.

    Args:
        source: a netns of *lab*.
        protocol: "tcp" or "udp".
        timeout_s: seconds of silence after which it counts as lost.
        meaning: what chains are for, where the caller knows.

    Raises:
        InvalidAddress, InvalidInput: an argument cannot be.
    """
    if protocol not in FILTERS:
        raise InvalidInput(f"protocol {protocol!r}: 'tcp' or 'udp'")
    target, own, mss = str(host_address(destination)), random.choice(SOURCE_PORTS), random.choice(SIZES)  # noqa: S311
    with (
        listening([one for one in lab if has_rules(one)], _marks(protocol, own, mss)) as listeners,
        lab.capture(FILTERS[protocol]) as wire,
    ):
        done = source.connect(target, port, protocol=protocol, timeout_s=timeout_s, source_port=own, mss=mss)
    for one in listeners:
        if one.messages:
            one.learn()
    told = _Told(lab=lab, packets=list(wire), listeners=listeners, meaning=meaning or (lambda *_: ""))
    sent = next((one for one in told.sights if _is_first(one, source.name, own)), None)
    remarks = [f"{wire.lost} packets came too fast to be seen"] * bool(wire.lost)
    full = [one.netns.name for one in listeners if one.socket.lost]
    remarks += [f"{name} had more trace messages than there was room for" for name in full]
    remarks += [f"{name} has rules of iptables-legacy, which tell nothing" for name in _legacy(lab)]
    title = f"{protocol} from {source.name} to {end_of(target, port)}"
    if sent is None:
        return Connection(outcome=str(done), request=told.unsent(title, source, target, remarks))
    answer = told.answer(sent, own)
    request = told.walk(title, sent, source, remarks, answered=answer is not None)
    reply = told.walk(f"the answer to {source.name}", answer, None, remarks, answered=done.ok) if answer else None
    return Connection(outcome=str(done), request=request, reply=reply)


def _marks(protocol: str, port: int, mss: int) -> list[str]:
    """Return what rules know our packets by, so that other connections make no messages.

    A masquerade may change the port, but not the size of segments that a SYN offers. An answer to a changed port is
    seen by interfaces alone, and the walk says so.
    """
    if protocol == "udp":
        return [f"udp {end} {port}" for end in ("sport", "dport")]
    some = "tcp flags & (syn | rst) != 0"
    return [f"tcp sport {port} {some}", f"tcp dport {port} {some}", f"tcp option maxseg size {mss} {some}"]


def _is_first(one: Sight, netns: str, port: int) -> bool:
    way_out = one.packet.outgoing or one.packet.interface == "lo"
    return one.packet.netns == netns and way_out and one.layer4.sport == port


def _legacy(lab: Lab) -> list[str]:
    """Return the netns for which somebody has used iptables-legacy."""
    users = {entry.netns for entry in lab.transcript.entries if entry.words and "legacy" in entry.words[0]}
    return sorted(users)


# -- putting together ------------------------------------------------------------------


class _Told:
    """All that the kernel has said, and what can be concluded from it."""

    def __init__(self, *, lab: Lab, packets: list[Packet], listeners: list[Listener], meaning: Meaning) -> None:
        self.lab, self.packets, self.meaning = lab, packets, meaning
        self.listeners = {one.netns.name: one for one in listeners}
        self.sights = [one for one in map(sight_of, packets) if one]

    def answer(self, sent: Sight, port: int) -> Sight | None:
        """Return where the first answer was seen first."""
        for one in self.sights:
            if one.packet.time_ns < sent.packet.time_ns or one.identity == sent.identity:
                continue
            if isinstance(sent.layer4, dpkt.tcp.TCP):
                if isinstance(one.layer4, dpkt.tcp.TCP) and one.layer4.flags & ACK and one.layer4.flags & SYN_OR_RST \
                        and one.layer4.ack == (sent.layer4.seq + 1) & 0xFFFFFFFF:  # fmt: skip
                    return one
            elif one.layer4.dport == port and one.packet.netns == sent.packet.netns and not one.packet.outgoing:
                return next(other for other in self.sights if other.identity == one.identity)
        return None

    def unsent(self, title: str, source: Netns, target: str, remarks: Sequence[str]) -> PacketWalk:
        """Return the walk of a packet that no interface has seen."""
        groups = [one for one in self._groups(None) if one.netns == source.name]
        hops = [self._chain(one, None) for one in groups]
        dropped = bool(hops) and hops[-1].verdict == "drop"
        ended = f"It never left {source.name}: {_dropped(hops[-1]) if dropped else loss.before(source, target)}"
        return PacketWalk(title=title, hops=tuple(hops), arrived=False, ended=ended, remarks=tuple(remarks))

    def walk(
        self, title: str, first: Sight, source: Netns | None, remarks: Sequence[str], *, answered: bool
    ) -> PacketWalk:
        """Return the way of the packet that was seen as *first*."""
        every = [one for one in self.sights if one.identity == first.identity]
        sights, groups = _once(every), self._groups(first)
        if len(sights) < len(every):  # it was sent again, and its messages came again, too
            groups = list({(one.netns, one.key, headers_of(one.first)): one for one in reversed(groups)}.values())[::-1]
        if not isinstance(first.layer4, dpkt.tcp.TCP):
            ends = {one.ends for one in sights}
            groups = [one for one in groups if (headers_of(one.first) or ((), ()))[0] in ends]
        items = self._routed(self._merged(sights, groups), source)
        hops = self._hops(items, sights[0].packet.time_ns)
        end = sights[-1].packet
        arrived = answered or (not end.outgoing and self._is_own(end.netns, sights[-1]) and hops[-1].verdict != "drop")
        ended = "" if arrived else self._ending(sights[-1], hops)
        silent = {one.netns for one in hops if one.kind == "route"} & self.listeners.keys()
        silent -= {one.netns for one in hops if one.kind == "chain"}
        remarks = [*remarks, *(f"{name} has rules, but they told nothing of this packet" for name in sorted(silent))]
        return PacketWalk(title=title, hops=tuple(hops), arrived=arrived, ended=ended, remarks=tuple(remarks))

    # the order of things

    def _groups(self, first: Sight | None) -> list[Group]:
        """Return what chains said of the packet, in each netns in the order of the kernel."""
        found: list[Group] = []
        for name, listener in self.listeners.items():
            current: dict[int, Group | None] = {}
            for message in listener.messages:
                if message.network:
                    told = headers_of(message)
                    ours = told is not None and (first is None or same(told[1], first.identity))
                    current[message.id] = Group(netns=name) if ours else None
                    if (made := current[message.id]) and message.table != TABLE:
                        found.append(made)
                if group := current.get(message.id):
                    group.messages.append(message)
        return found

    def _merged(self, sights: Sequence[Sight], groups: Iterable[Group]) -> list[Sight | Group]:
        """Return both in one order: each group before the sight that its hook comes before."""
        before: dict[int, list[Group]] = defaultdict(list)
        cursors: dict[str, int] = defaultdict(int)
        for group in groups:
            at, cursors[group.netns] = self._place(group, sights, cursors[group.netns])
            before[at].append(group)
        merged: list[Sight | Group] = []
        for number, one in enumerate(sights):
            merged += [*before[number], one]
        return merged + before[len(sights)]

    def _place(self, group: Group, sights: Sequence[Sight], cursor: int) -> tuple[int, int]:
        """Return before which sight a group comes, and from which on the next group of its netns is looked for."""
        listener, hook = self.listeners[group.netns], self._hook(group)[0]
        iif, oif = (listener.interfaces.get(one or 0, "") for one in (group.first.iif, group.first.oif))
        here = [n for n, one in enumerate(sights) if n >= cursor and one.packet.netns == group.netns]
        coming = [n for n in here if not sights[n].packet.outgoing]
        going = [n for n in here if sights[n].packet.outgoing]
        if hook == "prerouting":
            exact = [n for n in coming if sights[n].packet.interface == iif]
            if exact and self._bridged(group.netns, sights, exact[0]):
                return exact[0], exact[0]
            at = (exact or coming or [cursor - 1])[0] + 1
            return at, at
        if hook == "input":
            at = coming[-1] + 1 if coming else cursor
            return at, at
        exact = [n for n in going if sights[n].packet.interface == oif]
        if exact or going:
            at = (exact or going)[0]
            return at, at
        return (coming[-1] + 1 if coming else cursor), cursor

    def _bridged(self, netns: str, sights: Sequence[Sight], at: int) -> bool:
        """Return whether prerouting was on a port of the bridge that sees the packet at *at*."""
        before = sights[at - 1] if at else None
        if before is None or before.packet.netns != netns or before.packet.outgoing or before.outer != sights[at].outer:
            return False
        place = self.lab[netns]
        return sysctl.exists(place, sysctl.BRIDGE_NF) and place.sysctl(sysctl.BRIDGE_NF) == "1"

    def _routed(self, items: Sequence[Sight | Group], source: Netns | None) -> list[Sight | Group | Hop]:
        """Put in how the packet was sent on, where it was: at its source, and wherever its TTL fell."""
        found: list[Sight | Group | Hop] = []
        came: dict[str, Sight] = {}
        first = next(one for one in items if isinstance(one, Sight))
        if source is not None:
            way = _route(source, first.ends, None)
            found += [Hop(kind="route", netns=source.name, placed_by=HOOK_ORDER, route=way)] if way else []
        for one in items:
            if isinstance(one, Sight):
                netns = one.packet.netns
                if one.packet.outgoing and netns in came and came[netns].ttl == one.ttl + 1:
                    self._insert_route(found, one, came.pop(netns))
                elif not one.packet.outgoing:
                    came[netns] = one
            found.append(one)
        return found

    def _insert_route(self, found: list[Sight | Group | Hop], out: Sight, came: Sight) -> None:
        netns = out.packet.netns
        way = _route(self.lab[netns], (came.ends[0], out.ends[1]), came.packet.interface)
        at = len(found)
        while at and isinstance(one := found[at - 1], Group) and self._hook(one)[0] in {"forward", "postrouting"}:
            at -= 1
        if way:
            found.insert(at, Hop(kind="route", netns=netns, placed_by=TTL, route=way))

    # hops

    def _hops(self, items: Sequence[Sight | Group | Hop], start_ns: int) -> list[Hop]:
        hops: list[Hop] = []
        ends: tuple[str, str] | None = None
        for one in items:
            if isinstance(one, Hop):
                hops.append(one)
                continue
            now = one.ends if isinstance(one, Sight) else (headers_of(one.first) or (ends, ()))[0]
            if ends and now and now != ends:
                self._translated(hops, ends, now)
            ends = now or ends
            hops.append(self._seen(one, start_ns) if isinstance(one, Sight) else self._chain(one, ends))
        return hops

    def _translated(self, hops: list[Hop], before: tuple[str, str], now: tuple[str, str]) -> None:
        """Say at the last chain of type nat that it translated the packet, or that conntrack did by itself."""
        changes = {
            "now_source": now[0] if now[0] != before[0] else "",
            "now_destination": now[1] if now[1] != before[1] else "",
        }
        for at in reversed(range(len(hops))):
            if hops[at].kind == "seen":
                break
            if hops[at].translates:
                hops[at] = replace(hops[at], **changes)  # type: ignore[arg-type]
                return
        told = Hop(kind="conntrack", netns=hops[-1].netns, placed_by=HOOK_ORDER, **changes)  # type: ignore[arg-type]
        routed = hops[-1].kind == "route" and bool(told.now_destination)  # which the route was asked for after
        hops.insert(len(hops) - routed, told)

    def _seen(self, one: Sight, start_ns: int) -> Hop:
        packet, ends = one.packet, one.ends
        return Hop(
            kind="seen", netns=packet.netns, placed_by=TIMESTAMP, time_us=(packet.time_ns - start_ns) / 1000,
            interface=packet.interface, outgoing=packet.outgoing, source=ends[0], destination=ends[1], ttl=one.ttl,
            outer=one.outer,
        )  # fmt: skip

    def _hook(self, group: Group) -> tuple[str, str]:
        return self.listeners[group.netns].hooks.get(group.key, ("", ""))

    def _chain(self, group: Group, ends: tuple[str, str] | None) -> Hop:
        listener, first = self.listeners[group.netns], group.first
        hook, kind = self._hook(group)
        met: list[Met] = []
        verdict = "accept"
        for one in group.messages:
            text = listener.texts.get((one.family, one.table, one.handle), "")
            if one.kind == "rule" and one.handle and text:
                does = f"{one.verdict} {one.target}".strip()
                means = self.meaning(group.netns, one.table, one.target or one.chain)
                met.append(Met(chain=one.chain, rule=text, verdict=does, means=means))
            elif met and met[-1].verdict.split(" ", 1)[1:] == [one.chain]:
                met.pop()  # a chain that was jumped to, and had no rule for it
            if one.verdict in {"accept", "drop"}:
                verdict = one.verdict
        if verdict == "drop" and (not group.messages or group.messages[-1].kind == "policy"):
            met.append(Met(chain=first.chain, rule=f"policy of {first.chain}", verdict="drop"))
        return Hop(
            kind="chain", netns=group.netns, placed_by=HOOK_ORDER, hook=hook, met=tuple(met), verdict=verdict,
            table=first.table, chain=first.chain, translates=kind == "nat",
            source=ends[0] if ends else "", destination=ends[1] if ends else "",
        )  # fmt: skip

    # how it ended

    def _is_own(self, netns: str, sight: Sight) -> bool:
        place = self.lab[netns]
        return place.route_to(address_of(sight.ip.dst)).get("type") == "local" if netns in self.lab else False

    def _ending(self, last: Sight, hops: Sequence[Hop]) -> str:
        """Return where a packet was lost, and why, as far as there is evidence."""
        packet = last.packet
        if hops[-1].kind == "chain" and hops[-1].verdict == "drop":
            return f"Lost on {hops[-1].netns}: {_dropped(hops[-1])}"
        if packet.outgoing:
            return f"Lost after {packet.netns}: {loss.after(self.lab[packet.netns], last)}"
        errors = [one for one in self.packets if "unreachable" in one.decoded.flags and one.time_ns > packet.time_ns]
        if errors:
            return f"Lost on {packet.netns}; {errors[0].decoded.source} said: {errors[0].decoded.flags}."
        told = loss.within(self.lab[packet.netns], last, traced=packet.netns in self.listeners)
        return f"Lost on {packet.netns}: {told}"


def _once(sights: Sequence[Sight]) -> Sequence[Sight]:
    """Return what was seen before a packet was sent again: a retransmission is the same to the byte with IPv6."""
    start = sights[0].packet
    for number, one in enumerate(sights[1:], 1):
        again = (one.packet.netns, one.packet.interface, one.packet.outgoing)
        if again == (start.netns, start.interface, start.outgoing):
            return sights[:number]
    return sights


def _dropped(hop: Hop) -> str:
    rule = hop.met[-1].rule if hop.met else "a rule"
    means = f" ({hop.met[-1].means})" if hop.met and hop.met[-1].means else ""
    return f"dropped by {rule}{means}, in {hop.table} {hop.chain} at {hop.hook}."


def _route(netns: Netns, ends: tuple[str, str], interface: str | None) -> str:
    source, target = (one.rpartition(":")[0].strip("[]") for one in ends)
    way = netns.route_to(target, source=source, iif=interface) if interface else netns.route_to(target)
    if "error" in way:
        return ""
    return f"via {way['gateway']} dev {way['dev']}" if "gateway" in way else f"dev {way.get('dev')}"
