"""nftables rulesets larger than one transaction: cut so that packets never meet half of a change.

A transaction must fit a socket's send buffer, 208 KiB unless root lifts it. So a ruleset is loaded in
several, in an order in which what packets can reach is whole at every moment:

    0 tables        1 new sets, maps and chains      2 rules, of a chain before those of chains that go to it
    3 elements      4 rules of base chains           5 to 7 deleted elements, emptied chains, deleted sets
    8 deleted chains, in transactions of their own: before Linux 6.2 a chain counts as used for a moment longer
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from k8snet.errors import CapabilityMissing, CommandFailed, InvalidInput, Timeout
from k8snet.linux.run import Completed, wait_until
from k8snet.linux.uncollected import uncollected

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = ["LIMIT", "apply_script", "estimate", "split"]

LIMIT = 150_000  # bytes of netlink in one transaction; the send buffer takes 212,960
TOO_LONG, BUSY = "Message too long", "Device or resource busy"
PATIENCE_S = 5.0  # seconds that a chain may count as used after the last map element that named it
PHASES = {
    "add table": 0, "flush table": 0, "delete table": 0,
    "add set": 1, "flush set": 1, "add map": 1, "flush map": 1, "add chain": 1,
    "add rule": 2, "add element": 3, "delete element": 5, "flush chain": 6, "delete set": 7, "delete map": 7,
    "delete chain": 8,
}  # fmt: skip
RULES, HOOKED, NO_CHAINS = 2, 4, 8
CHANGES = frozenset({"add rule", "flush chain"})  # of one chain stay together
TARGET = re.compile(r"(?:jump|goto) ([\w./-]+)")
KEY = re.compile(r"\{ *(.*?) *(?: comment | : |\})")


Place = tuple[str, str, str]  # family, table and name of what a statement changes


@dataclass(slots=True)
class _Unit:
    """Statements that are not cut apart."""

    place: Place
    phase: int
    statements: list[str]


def estimate(statement: str) -> int:
    """Return how many bytes of netlink *statement* takes at most: as measured with nft 1.0.6, and some added."""
    size = len(statement) * 8 // 5
    for line in statement.splitlines() if "\n" in statement else (statement,):
        rule = line.startswith("add rule")
        size += (200 if rule else 60) + (150 + 40 * line.count(",") if rule and "{" in line else 0)
    return size


@uncollected()
def split(statements: Iterable[str], *, limit: int = LIMIT) -> list[list[str]]:
    """Return *statements* as transactions, each of which leaves whole what packets can reach.

    Args:
        statements: as nft takes them, each with its family: "add rule ip TABLE CHAIN ...". Together stay those
            that empty a chain and fill it again, that delete an element and add it again, and lines of one.
        limit: bytes of netlink in one transaction, by estimate(); what stays together may be larger.

    Raises:
        InvalidInput: one is no statement of this form.
    """
    found: list[list[str]] = []
    size = phase = 0
    for unit in _ordered(_units(statements)):
        weight = sum([estimate(one) for one in unit.statements])
        if not found or size + weight > limit or unit.phase == NO_CHAINS != phase:
            found.append([])
            size = 0
        found[-1] += unit.statements
        size, phase = size + weight, unit.phase
    return found


def _units(statements: Iterable[str]) -> list[_Unit]:
    texts = [one for one in statements if one.strip() and one[0] != "#"]
    hooked = {_parse(text)[2] for text in texts if text.startswith("add chain") and " hook " in text}
    units: dict[object, _Unit] = {}
    for number, text in enumerate(texts):
        what, kind, place = _parse(text)
        key: object = number
        if "\n" in text:
            what, kind, _ = _parse(text.splitlines()[-1])
        elif what in CHANGES:
            key = place
        elif kind == "element" and (match := KEY.search(text)):
            key = (*place, match[1])
        phase = HOOKED if kind == "rule" and place in hooked else PHASES[what]
        unit = units.get(key)
        if unit is None:
            units[key] = _Unit(place, phase, [text])
        else:
            unit.phase = phase
            unit.statements.append(text)
    return list(units.values())


def _parse(text: str) -> tuple[str, str, Place]:  # verb and kind, the kind alone, the place
    words = text.split(None, 5)
    what = " ".join(words[:2])
    if what not in PHASES or len(words) < 5 - (words[1] == "table"):
        raise InvalidInput(f"nft statement {text!r}: not `VERB KIND FAMILY TABLE [NAME] ...` as in {', '.join(PHASES)}")
    return what, words[1], (words[2], words[3], words[4] if len(words) > 4 else "")


def _ordered(units: Sequence[_Unit]) -> Iterator[_Unit]:
    """Yield *units* by phase; rules that go to a chain after the rules of that chain."""
    writers = {unit.place: unit for unit in units if unit.phase == RULES}
    seen: set[int] = set()

    def visit(unit: _Unit) -> Iterator[_Unit]:
        seen.add(id(unit))
        for name in TARGET.findall("\n".join(unit.statements)):
            target = writers.get((*unit.place[:2], name))
            if target and id(target) not in seen:
                yield from visit(target)
        yield unit

    for unit in sorted(units, key=attrgetter("phase")):
        if unit.phase != RULES:
            yield unit
        elif id(unit) not in seen:
            yield from visit(unit)


def apply_script(netns: Netns, statements: Iterable[str], *, limit: int = LIMIT) -> int:
    """Load *statements* in the transactions that split() makes of them; return how many. Like: nft -f -.

    Raises:
        CommandFailed: nft did not take a transaction; nothing of it is loaded, and all that came before it is.
        CapabilityMissing: what stays together is too large for this socket.
        InvalidInput: as in split().
    """
    transactions = split(statements, limit=limit)
    for one in transactions:
        _load(netns, one, halve=True)
    return len(transactions)


def _load(netns: Netns, statements: Sequence[str], *, halve: bool) -> None:
    script, tries = "".join(f"{one}\n" for one in statements), list[Completed]()

    def settled() -> bool:
        tries.append(netns.run("nft", "-f", "-", stdin=script, timeout_s=120, check=False, record=True))
        return BUSY not in tries[-1].stderr

    with suppress(Timeout):
        wait_until(settled, what="chains that no map names any more", timeout_s=PATIENCE_S, every_s=0.05)
    done = tries[-1]
    if TOO_LONG in done.stderr:
        size = sum(map(estimate, statements))
        parts = split(statements, limit=size // 2) if halve else []
        if len(parts) < 2:
            what = f"an nft transaction of about {size:,} bytes ({statements[0][:70]} ...)"
            raise CapabilityMissing(f"{what} is too large for a socket here: use fewer endpoints, or be root")
        for part in parts:
            _load(netns, part, halve=False)
    elif not done.ok:
        raise CommandFailed(done.argv, done.code, done.stderr, netns.name)
