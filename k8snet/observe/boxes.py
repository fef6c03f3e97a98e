"""Boxes with words, and lines, as SVG: for drawings that are laid out by hand.

Lengths are in points. Colours are those of labels.py, which svg.py turns into the page's.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from k8snet.observe.labels import FONT, INK, LINE, MONO, PAPER

__all__ = ["Box", "Point", "Row", "Span", "path", "text", "width"]

NARROW, WIDE = frozenset("fijlrtI.,:;/|!'()[] \xa0-"), frozenset("mwMW@%")
WEIGHT = {False: "normal", True: "bold"}
LEADING = 1.32  # height of a row, as a multiple of its type
Point = tuple[float, float]


class Span(NamedTuple):
    """Words in one type."""

    text: str
    colour: str = INK
    size: float = 10
    bold: bool = False
    mono: bool = False

    @property
    def width(self) -> float:
        """About how wide DejaVu Sans is; rather too much than too little."""
        if self.mono:
            return 0.603 * self.size * len(self.text)
        em = sum(0.36 if one in NARROW else 0.98 if one in WIDE else 0.64 for one in self.text)
        return em * self.size * (1.09 if self.bold else 1)


Row = tuple[Span, ...]


def width(row: Row) -> float:
    """Return how wide a row is."""
    return sum(one.width for one in row) + 4 * (len(row) - 1)


def text(
    row: Row, x: float, y: float, *, anchor: str = "start", upward: bool = False, halo: str = ""
) -> str:  # fmt: skip
    """Return a row whose words stand on y.

    Args:
        anchor: what stands at x: their "start", "middle" or "end".
        upward: they read from bottom to top.
        halo: a colour around the letters, that keeps a line behind them off.
    """
    words = "".join(
        f'<tspan dx="{4 if number else 0}" font-size="{one.size}" font-weight="{WEIGHT[one.bold]}" '
        f'fill="{one.colour}">{html.escape(one.text)}</tspan>'
        for number, one in enumerate(row)
    )
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if upward else ""
    round_ = f' stroke="{halo}" stroke-width="4" paint-order="stroke"' if halo else ""
    face = MONO if row[0].mono else FONT
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-family="{face}"{turn}{round_}>{words}</text>'


def path(points: Sequence[Point], colour: str, *, thick: float = 1, dash: str = "", curved: bool = False) -> str:
    """Return a line through points; one that is curved has four, the two in the middle draw it to themselves."""
    start, *rest = (f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    course = f"M{start} {'C' if curved else 'L'}{' '.join(rest)}"
    return f'<path d="{course}" fill="none" stroke="{colour}" stroke-width="{thick}"{dashes}/>'


@dataclass(kw_only=True, eq=False)
class Box:
    """A box with rows of words; who lays it out gives it its place."""

    rows: list[Row]
    fill: str = PAPER
    stroke: str = LINE
    dash: str = ""  # as SVG's stroke-dasharray
    thick: bool = False
    double: bool = False
    round: float = 3
    centred: bool = False
    upward: bool = False  # read from bottom to top
    x: float = 0
    y: float = 0
    width: float = field(init=False)
    height: float = field(init=False)

    def __post_init__(self) -> None:
        """Take the size that the words need."""
        self.width = max(map(width, self.rows), default=0) + 2 * self.pad
        self.height = sum(map(_height, self.rows)) + 2 * self.pad - 3
        if self.upward:
            self.width, self.height = self.height, self.width

    @property
    def pad(self) -> float:
        """The room between border and words."""
        return 8 if self.double else 5

    @property
    def right(self) -> float:
        """Its right side."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """Its lower side."""
        return self.y + self.height

    @property
    def middle(self) -> Point:
        """Its centre."""
        return self.x + self.width / 2, self.y + self.height / 2

    def move(self, x: float, y: float) -> None:
        """Put its upper left corner there."""
        self.x, self.y = x, y

    def svg(self) -> str:
        """Return it as it is drawn."""
        dash = f' stroke-dasharray="{self.dash}"' if self.dash else ""
        parts = []
        for inset in (0, 2.5) if self.double else (0,):
            size = f'width="{self.width - 2 * inset:.1f}" height="{self.height - 2 * inset:.1f}" rx="{self.round}"'
            parts.append(
                f'<rect x="{self.x + inset:.1f}" y="{self.y + inset:.1f}" {size} fill="{self.fill}" '
                f'stroke="{self.stroke}" stroke-width="{2.2 if self.thick else 1}"{dash}/>'
            )
        return "".join([*parts, *self._words()])

    def _words(self) -> Iterator[str]:
        (x, y), tall = self.middle, sum(map(_height, self.rows))
        base = x - tall / 2 if self.upward else self.y + self.pad - 1.5
        for row in self.rows:
            base += _height(row)
            if self.upward:
                yield text(row, base - 0.3 * _height(row), y, anchor="middle", upward=True)
            elif self.centred:
                yield text(row, x, base - 0.3 * _height(row), anchor="middle")
            else:
                yield text(row, self.x + self.pad, base - 0.3 * _height(row))


def _height(row: Row) -> float:
    return LEADING * max(one.size for one in row)
