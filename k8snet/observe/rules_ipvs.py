"""IPVS as rules: a look-up of the virtual server at two hooks, and one of its real servers, by its scheduler.

    INPUT    after the table filter    what is sent on to another machine passes OUTPUT and POSTROUTING next
    OUTPUT   before it

What a scheduler takes into account is told, and how likely each real server is as far as that can be read from
outside: whose turn it is with rr cannot, nor what the hash of sh leads to; who has the fewest connections can.

Source: Linux net/netfilter/ipvs, ip_vs_core.c and ip_vs_{rr,wrr,lc,wlc,sh}.c; ipvsadm(8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from k8snet.linux.ipvs import RealServer, VirtualServer
from k8snet.observe.ruleset import Chain, Condition, Rule, Verdict

__all__ = ["TABLE", "from_ipvs"]

TABLE = "IPVS"
HOOKS = {"input": 99, "output": -98}  # priority: NF_IP_PRI_NAT_SRC - 1, NF_IP_PRI_NAT_DST + 2
REFUSE = Verdict("reject", "by ICMP “port unreachable”")
COUNTS = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def from_ipvs(servers: Iterable[VirtualServer]) -> dict[tuple[str, str], Chain]:
    """Return two hooks and a chain for each virtual server; nothing where there is none."""
    listed = list(servers)
    keys = {(one.address, one.protocol.lower(), str(one.port)): one for one in listed}
    lookup = Rule(
        text="no virtual server", keys=("destination", "protocol", "port"), map_name="IPVS' hash table",
        map={key: Verdict("goto", str(one)) for key, one in keys.items()},
        texts={key: _head(one) for key, one in keys.items()},
    )  # fmt: skip
    chains = [
        Chain(
            table=TABLE, name=hook.upper(), hook=hook, kind="ipvs", priority=priority, lines=[lookup],
            parse=lambda rule: [rule],
        )
        for hook, priority in HOOKS.items() if listed
    ]  # fmt: skip
    chains += [
        Chain(
            table=TABLE, name=str(one), kind="ipvs", lines=[one], parse=lambda one: list(_rules(one)), about=_about(one)
        )
        for one in listed
    ]  # fmt: skip
    return {one.key: one for one in chains}


def _head(one: VirtualServer) -> str:
    """Return a virtual server as `ipvsadm -Ln` prints it."""
    sticky = f" persistent {one.persistence_s}" if one.persistence_s else ""
    return f"{one.protocol:4} {str(one).partition(' ')[2]} {one.scheduler}{sticky}"


def _about(one: VirtualServer) -> str:
    how = SCHEDULERS[one.scheduler].about if one.scheduler in SCHEDULERS else "as its scheduler likes"
    return f"{one.scheduler}: {how}" + (f", a client stays for {one.persistence_s} s" if one.persistence_s else "")


def _rules(one: VirtualServer) -> Iterator[Rule]:
    """Yield a rule for each real server, and what becomes of a packet where none takes it."""
    if one.persistence_s:
        yield Rule(text=f"persistent {one.persistence_s}", actions=(Verdict("remember"),))
    scheduler = SCHEDULERS.get(one.scheduler, OTHER)
    weights = [scheduler.weight(real) for real in one.real_servers]
    least = min((load for real in one.real_servers if (load := scheduler.load(real)) is not None), default=None)
    tied = [number for number, real in enumerate(one.real_servers) if weights[number] and scheduler.load(real) == least]
    left = sum(weights[number] for number in tied)
    for number, real in enumerate(one.real_servers):
        parts = weights[number] if number in tied else 0
        yield Rule(
            text=f"-> {real} {real.forward} {real.weight}", conditions=tuple(_conditions(real, scheduler, least)),
            lot=parts / left if parts else 1.0, actions=(_sent(real),),
            choice=scheduler.told(*_share(parts, weights, tied)) if parts else "",
            part=scheduler.part or _part(*_share(weights[number], weights, range(len(weights)))),
        )  # fmt: skip
        left -= parts
    if not tied:
        yield Rule(text="no real server", actions=(REFUSE,), choice="none gets new connections: matches")


def _sent(real: RealServer) -> Verdict:
    if not real.weight:
        return REFUSE  # by sh alone, as the others pass over it
    if real.forward != "Masq":
        return Verdict("other", f"{real.forward}: sent to {real.address}, and its destination stays as it is")
    return Verdict("dnat", str(real))


def _conditions(real: RealServer, scheduler: Scheduler, least: Fraction | None) -> Iterator[Condition]:
    if not scheduler.weight(real):
        yield Condition("never", (), note="its weight is 0, so it gets no new connections")
    elif (load := scheduler.load(real)) is not None:
        has = f"it has {real.active} active and {real.inactive} inactive connections"
        who = f"{'none' if load == least else 'another'} has fewer{scheduler.measure}"
        yield Condition("now", (load == least,), note=f"{has}, and {who}")


def _share(parts: int, weights: list[int], among: Iterable[int]) -> tuple[int, int]:
    """Return how many times in how many a real server is taken."""
    found = Fraction(parts, sum(weights[number] for number in among) or 1)
    return found.numerator, found.denominator


def _part(taken: int, of: int) -> str:
    return f"{taken} of {of}" if of > 1 else ""


# -- schedulers ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """How a real server is chosen for a new connection."""

    about: str
    told: Callable[[int, int], str]  # "3 in 4 times" as words
    weight: Callable[[RealServer], int] = lambda real: min(real.weight, 1)  # parts that it gets; 0: none
    load: Callable[[RealServer], Fraction | None] = lambda _: None  # the least takes all
    measure: str = ""
    part: str = ""


def _counted(taken: int, of: int) -> str:
    return " of ".join(COUNTS[one] if one < len(COUNTS) else str(one) for one in (taken, of))


def _or_only(words: str) -> Callable[[int, int], str]:
    def told(taken: int, of: int) -> str:
        return words.format(_counted(taken, of)) if of > 1 else "the only one that gets connections: matches"

    return told


def _tied(taken: int, of: int) -> str:
    return f"{_counted(taken, of)} that have so few" if of > 1 else ""


def _connections(real: RealServer) -> Fraction | None:
    """Return what lc compares: one that stands counts as much as 256 that do not."""
    return Fraction(real.active * 256 + real.inactive) if real.weight else None


SCHEDULERS = {
    "rr": Scheduler(about="each in turn", told=_or_only("in turn: {}")),
    "wrr": Scheduler(
        about="in turn, by weight", told=_or_only("in turn, by weight: {}"), weight=lambda real: real.weight
    ),
    "lc": Scheduler(
        about="who has the fewest connections", told=_tied, load=_connections,
        part="if it has the fewest",
    ),
    "wlc": Scheduler(
        about="who has the fewest connections for its weight", told=_tied,
        load=lambda real: (load := _connections(real)) and load / real.weight,
        measure=" for its weight", part="if it has the fewest",
    ),
    "sh": Scheduler(
        about="by a hash of the client's address", weight=lambda real: max(real.weight, 1),
        told=_or_only("by a hash of the source, {}: for one client always the same"),
    ),
}  # fmt: skip
OTHER = Scheduler(about="", told=_or_only("as its scheduler likes: {}"))
