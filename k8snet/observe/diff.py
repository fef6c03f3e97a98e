"""What differs between two snapshots, thing by thing."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

__all__ = ["Change", "Diff", "compare"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing that is different."""

    netns: str
    what: str  # "interface eth0", "route", "rules of nft", ...
    before: str | None  # None: it was not there
    after: str | None  # None: it is gone

    def __str__(self) -> str:
        """Return it on one line, with the signs of a patch."""
        if self.before is None:
            return f"+ {self.netns}: {self.what}: {self.after}"
        if self.after is None:
            return f"- {self.netns}: {self.what}: {self.before}"
        return f"~ {self.netns}: {self.what}: {self.before} → {self.after}"


@dataclass(frozen=True)
class Diff:
    """All changes, in the order of the netns' names."""

    changes: tuple[Change, ...]

    def __bool__(self) -> bool:
        """Return whether there is any."""
        return bool(self.changes)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.changes)

    def __str__(self) -> str:
        """Return one change a line."""
        return "\n".join(map(str, self.changes)) or "no difference"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the changes as a notebook shows them."""
        return f'<pre class="k8snet-diff">{html.escape(str(self))}</pre>'


def compare(before: dict[str, Any], after: dict[str, Any]) -> Diff:
    """Return what is different between two results of Snapshot.config()."""
    changes: list[Change] = []
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            changes.append(Change(netns=name, what="netns", before=", ".join(before[name]["interfaces"]), after=None))
        elif name not in before:
            changes.append(Change(netns=name, what="netns", before=None, after=", ".join(after[name]["interfaces"])))
        else:
            changes += _within(name, before[name], after[name])
    return Diff(tuple(changes))


def _within(name: str, before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    found = []
    for interface in sorted(before["interfaces"].keys() | after["interfaces"].keys()):
        old, new = before["interfaces"].get(interface), after["interfaces"].get(interface)
        found += _interface(name, interface, old, new)
    for table in ("routes", "neighbours", "fdb"):
        found += _lines(name, table.removesuffix("s"), before[table], after[table])
    for program in sorted(before["rules"].keys() | after["rules"].keys()):
        found += _lines(name, program, before["rules"].get(program, []), after["rules"].get(program, []))
    for key in sorted(before["settings"].keys() | after["settings"].keys()):
        old, new = before["settings"].get(key), after["settings"].get(key)
        if old != new:
            found.append(Change(netns=name, what=key, before=old, after=new))
    return found


def _interface(name: str, interface: str, old: dict[str, Any] | None, new: dict[str, Any] | None) -> list[Change]:
    what = f"interface {interface}"
    if old is None or new is None:
        texts = [None if one is None else _summary(one) for one in (old, new)]
        return [Change(netns=name, what=what, before=texts[0], after=texts[1])]
    return [
        Change(netns=name, what=f"{what} {key}", before=_text(old[key]), after=_text(new[key]))
        for key in old if old[key] != new[key]
    ]  # fmt: skip


def _summary(interface: dict[str, Any]) -> str:
    words = [interface["kind"], *interface["addresses"], "up" if interface["up"] else "down"]
    words += [f"port of {interface['master']}"] if interface["master"] else []
    return " ".join(words)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}={inner}" for key, inner in value.items()) or "none"
    return (
        {True: "yes", False: "no", None: "none"}.get(value, str(value))
        if not isinstance(value, int) or isinstance(value, bool)
        else str(value)
    )


def _lines(name: str, what: str, old: list[str], new: list[str]) -> list[Change]:
    gone = [Change(netns=name, what=what, before=line, after=None) for line in old if line not in new]
    come = [Change(netns=name, what=what, before=None, after=line) for line in new if line not in old]
    if not gone and not come and old != new:
        return [Change(netns=name, what=f"order of {what}", before=" | ".join(old), after=" | ".join(new))]
    return gone + come
