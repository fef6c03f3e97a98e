"""Labels of a diagram's vertices, as the tables that dot draws (graphviz.org/doc/info/shapes.html#html)."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from k8snet.observe.values import Interface

__all__ = ["interface", "kind_of", "mark", "note", "small", "title"]

# what dot is told; svg.py turns each into a colour of the page's light or dark theme
INK, MUTED, LINE, ACCENT, NEW, PAPER, FRAME, BRIDGE, NOTE = (f"#0b00{number:02x}" for number in range(1, 10))
FONT, MONO = "DejaVu Sans", "DejaVu Sans Mono"
PAD = "&#160;"  # dot trims plain spaces, and measures a little less than browsers draw
USUAL_MTU = {1500, 65536}  # bytes: of Ethernet, and of lo
STYLES = {"up": "ROUNDED", "down": "ROUNDED,DASHED", "no carrier": "ROUNDED,DOTTED"}


def _font(text: str, *, colour: str = INK, size: int | None = None, mono: bool = False) -> str:
    face = f' FACE="{MONO}"' if mono else ""
    points = f' POINT-SIZE="{size}"' if size else ""
    return f'<FONT{face}{points} COLOR="{colour}">{PAD}{text}{PAD}</FONT>'


def _row(content: str) -> str:
    return f'<TR><TD ALIGN="LEFT">{content}</TD></TR>'


def _space(height: int) -> str:
    """Return an empty row, `height` points high: dot sets text nearer to the top than to the bottom."""
    return f'<TR><TD HEIGHT="{height}"></TD></TR>'


def _table(rows: Iterable[str], **attributes: object) -> str:
    words = " ".join(f'{name}="{value}"' for name, value in attributes.items())
    return f'<TABLE CELLBORDER="0" {words}>{"".join(rows)}</TABLE>'


def small(text: str) -> str:
    """Return a remark."""
    return _font(html.escape(text), colour=MUTED, size=9) if text else ""


def mark(kind: str) -> str:
    """Return the sign of a change: "new" or "changed"."""
    return _font(f"<B>{'+' if kind == 'new' else '±'} {kind}</B>", colour=NEW) if kind else ""


def steps(numbers: list[int]) -> str:
    """Return the numbers of a packet's steps at a vertex."""
    return _font(f"<B>{' '.join(f'({number})' for number in numbers)}</B>", colour=NEW) if numbers else ""


def title(name: str, *, new: bool) -> str:
    """Return the heading of a netns."""
    words = f"{_font('netns', colour=MUTED, size=10)}<B>{html.escape(name)}</B>{mark('new' if new else '')}"
    return f"<{_table([_space(3), _row(words)], BORDER=0, CELLSPACING=0, CELLPADDING=0)}>"


def interface(one: Interface, *, changed: str, path: list[int], mac: bool) -> str:
    """Return the label of an interface: name and kind, addresses, MAC, state.

    Args:
        changed: "new", "changed" or "".
        path: the numbers of a packet's steps here.
        mac: whether to show the MAC.
    """
    heading = f"<B>{html.escape(one.name)}</B>{small(kind_of(one))}{mark(changed)}{steps(path)}"
    rows = [_space(3), _row(f"{PAD}{heading}{PAD}")]
    rows += [_row(f"{PAD}{html.escape(address)}{PAD * 2}") for address in one.addresses]
    if mac and one.mac and one.kind != "loopback":
        rows.append(_row(_font(one.mac + PAD, colour=MUTED, size=9, mono=True)))
    words = [one.state, "hairpin" if one.hairpin else "", "" if one.mtu in USUAL_MTU else f"mtu {one.mtu}"]
    rows.append(_row(small(f"{'●' if one.state == 'up' else '○'} {', '.join(filter(None, words))}")))
    colour = NEW if changed else LINE
    look = {"STYLE": STYLES[one.state], "COLOR": colour, "BGCOLOR": BRIDGE if one.kind == "bridge" else PAPER}
    box = _table(rows, BORDER=2 if changed else 1, CELLSPACING=0, CELLPADDING=2, **look)
    if one.kind == "bridge":
        box = _table([_row(box)], BORDER=1, CELLSPACING=2, CELLPADDING=0, STYLE="ROUNDED", COLOR=colour)
    return f"<{box}>"


def kind_of(one: Interface) -> str:
    """Return what an interface is, in words; nothing for a veth."""
    words = [one.kind if one.kind not in {"loopback", "veth"} else ""]
    words += [f"id {dict(one.details)['id']}"] if one.kind == "vxlan" else []
    words += [f"of {one.parent}"] if one.parent else []
    return " ".join(words)


def note(heading: str, lines: tuple[str, ...], fresh: set[str]) -> str:
    """Return a table of lines, such as routes; those in *fresh* are marked as new."""
    rows = [_space(1), _row(_font(f"<B>{heading}</B>", colour=MUTED, size=9))]
    for line in lines:
        colour, sign = (NEW, "+ ") if line in fresh else (INK, "")
        spare = PAD * (2 + len(line) // 40)  # the longer, the more a browser draws than dot has measured
        rows.append(_row(_font(html.escape(sign + line) + spare, colour=colour, size=9, mono=True)))
    return f"<{_table(rows, BORDER=0, CELLSPACING=0, CELLPADDING=2, BGCOLOR=NOTE)}>"
