"""The picture of a Service's rules: dot draws the chains, from the hooks of the kernel down to the endpoints.

double box    what hangs at hooks of the kernel    solid line    a jump, with what the rule asks
rounded box   a chain                              dashed box    more of the same, folded away
"""

from __future__ import annotations

import html
import re
import textwrap
from typing import TYPE_CHECKING

import graphviz

from k8snet.observe.labels import ACCENT, BRIDGE, FONT, INK, LINE, MONO, MUTED, PAD, PAPER
from k8snet.observe.rules import alternatives, folded
from k8snet.observe.svg import finished

if TYPE_CHECKING:
    from collections.abc import Iterable

    from k8snet.observe.rules import Box, RulesView

__all__ = ["picture"]

WIDE = 36  # characters of a line in a box
NFT_NAME = re.compile(r"([a-z]+-[A-Z0-9]{8}-).*")


def picture(view: RulesView) -> str:
    """Return the chains as SVG, ready for a page."""
    graph = graphviz.Digraph(engine="dot")
    graph.attr(rankdir="TB", bgcolor="transparent", nodesep="0.25", ranksep="0.42", pad="0.1")
    graph.attr("node", shape="plain", fontname=FONT, fontsize="10", fontcolor=INK)
    graph.attr("edge", color=ACCENT, penwidth="1.4", arrowsize="0.6", fontname=FONT, fontsize="9", fontcolor=INK)
    drawn = view.drawn
    for box in view.boxes:
        if box.key in drawn:
            graph.node(_id(box.key), label=_label(box))
            _edges(graph, box)
    return finished(graph.pipe(format="svg", encoding="utf-8"))


def _edges(graph: graphviz.Digraph, box: Box) -> None:
    shown, more = folded(box)
    for key in shown:
        lines = [line for asks in alternatives(box.jumps[key]) for line in textwrap.wrap(asks, 30)]
        graph.edge(_id(box.key), _id(key), label="".join(f"  {line}\\l" for line in lines))
    if more:
        rest = f"{_id(box.key)}-more"
        graph.node(rest, label=_table([_row(f"… {more} more", colour=MUTED)], STYLE="ROUNDED,DASHED"))
        graph.edge(_id(box.key), rest)


def _id(key: str) -> str:
    return re.sub(r"[^\w]", "_", key)


def _label(box: Box) -> str:
    names = ", ".join(NFT_NAME.sub(r"\1…", one) for one in box.chains)
    spare = PAD * (1 + len(names) // 10)  # bold letters are wider than dot takes them for
    title = f'{PAD}<FONT FACE="{MONO}" POINT-SIZE="9"><B>{names}</B>{spare}</FONT>'
    rows = ['<TR><TD HEIGHT="3"></TD></TR>', f'<TR><TD ALIGN="LEFT">{title}</TD></TR>']
    rows += [_row(f"table {box.table}", colour=MUTED)] if box.hook and not box.table.endswith("kube-proxy") else []
    rows += [_row(line, colour=MUTED) for line in textwrap.wrap(box.meaning, WIDE)]
    for one in box.ends:
        first, *rest = textwrap.wrap(one, WIDE) or [""]
        rows += [_row(f"• {first}"), *(_row(f"   {each}") for each in rest)]
    if box.hook:
        inner = _table(rows, BGCOLOR=BRIDGE)[1:-1]
        return _table([f"<TR><TD>{inner}</TD></TR>"], CELLSPACING="2", CELLPADDING="0")
    return _table(rows, BGCOLOR=PAPER)


def _row(text: str, *, colour: str = INK) -> str:
    spare = PAD * (1 + len(text) // 24)  # the longer, the more a browser draws than dot has measured
    words = html.escape(text).replace("  ", PAD * 2)
    return f'<TR><TD ALIGN="LEFT"><FONT POINT-SIZE="9" COLOR="{colour}">{PAD}{words}{spare}</FONT></TD></TR>'


def _table(rows: Iterable[str], **attributes: str) -> str:
    look = {"BORDER": "1", "CELLBORDER": "0", "CELLSPACING": "0", "CELLPADDING": "1", "STYLE": "ROUNDED", "COLOR": LINE}
    words = " ".join(f'{name}="{value}"' for name, value in {**look, **attributes}.items())
    return f"<<TABLE {words}>{''.join(rows)}</TABLE>>"
