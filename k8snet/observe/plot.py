"""Plots: measured numbers as a figure that follows the page's theme, with the numbers in words beside it."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from k8snet.errors import InvalidInput
from k8snet.observe.diagram import Diagram
from k8snet.observe.labels import ACCENT, INK, LINE, MUTED, NEW
from k8snet.observe.svg import finished

__all__ = ["plot"]

LOOKS = ((ACCENT, "o", "-"), (NEW, "s", "--"), (INK, "^", ":"), (MUTED, "D", "-."))  # told apart without colour
WIDTH, HEIGHT = 6.4, 3.4  # inches


def plot(
    series: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str, caption: str,
    log: bool = False, bars: bool = False,
) -> Diagram:  # fmt: skip
    """Draw measured numbers.

    Args:
        series: for each name, (x, y) points in the order of x.
        x: what the x axis is, with its unit.
        y: what the y axis is, with its unit.
        caption: a full sentence that says what to see.
        log: both axes in powers of ten.
        bars: a bar a point, with its number on it, in place of a line.

    Raises:
        InvalidInput: no series, more than four, or an empty one.
    """
    if not 1 <= len(series) <= len(LOOKS) or not all(series.values()):
        raise InvalidInput(f"plot: one to {len(LOOKS)} series, none of them empty")
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    for number, ((name, points), (colour, marker, style)) in enumerate(zip(series.items(), LOOKS, strict=False)):
        xs, ys = [point[0] for point in points], [point[1] for point in points]
        if bars:
            width = 0.8 / len(series)
            drawn = axes.bar(
                [at + (number - (len(series) - 1) / 2) * width for at in range(len(xs))],
                ys,
                width,
                color=colour,
                label=name,
            )
            axes.bar_label(drawn, fmt="%.3g", color=INK, fontsize=8)
            axes.set_xticks(range(len(xs)), [f"{value:g}" for value in xs])
        else:
            axes.plot(xs, ys, color=colour, marker=marker, linestyle=style, label=name)
    if log:
        axes.set_xscale("log")
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
        if not bars and all(isinstance(at, int) for points in series.values() for at, _ in points):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # nothing is counted in halves
    _dress(axes, x, y, legend=len(series) > 1)
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": caption}):  # text as text; ids of this figure alone
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return Diagram(finished(text.getvalue(), keep_ids=True), _in_words(series, x, y), caption)


def _dress(axes: object, x: str, y: str, *, legend: bool) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)  # noqa: S101  # for mypy: add_subplot() says Any
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.tick_params(which="both", colors=INK)
    axes.grid(visible=True, color=LINE, alpha=0.35, linewidth=0.6)
    for name, spine in axes.spines.items():
        spine.set_color(LINE)
        spine.set_visible(name in {"left", "bottom"})
    if legend:
        axes.legend(labelcolor=INK, frameon=False)


def _in_words(series: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str) -> str:
    parts = [f"{name}: {', '.join(f'{at:g} → {value:.3g}' for at, value in points)}" for name, points in series.items()]
    return " ".join(itertools.chain([f"A plot of {y} by {x}."], (f"{part}." for part in parts)))
