"""Tables, as kubectl prints them and as a notebook shows them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Table"]


@dataclass(frozen=True)
class Table:
    """Rows of text under headings."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self.rows)

    def column(self, name: str) -> list[str]:
        """Return the cells under a heading."""
        place = self.columns.index(name)
        return [row[place] for row in self.rows]

    def __str__(self) -> str:
        """Return lines of columns three spaces apart, as kubectl prints them."""
        if not self.rows:
            return "No resources found."
        lines: Sequence[Sequence[str]] = (self.columns, *self.rows)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("   ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        if not self.rows:
            return f"<p>{self}</p>"
        head = "".join(f"<th style='text-align:left'>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(
            f"<tr>{''.join(f'<td style=text-align:left>{html.escape(cell)}</td>' for cell in row)}</tr>"
            for row in self.rows
        )
        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        return (
            "<div style='overflow-x:auto'><table class='k8snet-table'>"
            f"{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )
