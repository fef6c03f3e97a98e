"""What came out for the cluster: tables and bars. Results and what else is shared: report.py."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.contenders.catalogue import CLUSTER, DIRECT, THROUGH_CNI
from benchmarks.report import GREY, Results, about, cell, put, pyplot_in_grey, ratio, table, verdicts

__all__ = ["BEGIN", "END", "draw", "insert", "markdown"]

BEGIN, END = "<!-- cluster: written by the command below -->", "<!-- end of cluster -->"
TITLES = {contender.name: contender.title for contender in CLUSTER}
COLOURS = {DIRECT: "#d55e00", THROUGH_CNI: "#cc79a7", "cluster-mininet": "#a08000"}  # as in report.LOOKS
PANELS = {"answered_s": "seconds until all pods answered", "gone_s": "seconds until all is gone"}


def _sizes(results: Results) -> dict[int, str]:
    """Return what each size is called, by its number of pods, smallest first."""
    nodes = {sample.pods: sample.nodes for sample in results.samples}
    return {pods: f"{nodes[pods]} nodes, {pods} pods" for pods in results.sizes}


def _pairs(results: Results, head: str, second: str, fields: tuple[str, str]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of a table with two columns a size."""
    heads = [head, *(word for size in _sizes(results).values() for word in (size, second))]
    rows = [
        [TITLES[name], *(cell(results.median(name, pods, field)) for pods in results.sizes for field in fields)]
        for name in results.contenders
    ]
    return heads, rows


def _up_table(results: Results) -> str:
    heads, rows = _pairs(results, "Up, s", "all answered", ("build_s", "answered_s"))
    largest = results.sizes[-1]
    base = results.median(DIRECT, largest, "build_s")
    for name, row in zip(results.contenders, rows, strict=True):
        row += [cell(results.a_pod(name, largest)), cell(ratio(results.median(name, largest, "build_s"), base))]
    return table([*heads, "ms a pod", "x direct"], rows)


def _targets(results: Results) -> str:
    """Return what the project asks of itself, and whether it holds."""
    largest = results.sizes[-1]
    wanted = (
        (DIRECT, "up, wired by k8snet, s", "answered_s", 6),
        (THROUGH_CNI, "up, through CNI plugins, s", "answered_s", 30),
        (DIRECT, "gone, wired by k8snet, s", "gone_s", 3),
        (THROUGH_CNI, "gone, through CNI plugins, s", "gone_s", 3),
    )
    rows = [(what, results.median(name, largest, field), "at most", most) for name, what, field, most in wanted]
    return verdicts(_sizes(results)[largest], rows)


def markdown(results: Results) -> str:
    """Return the tables as Markdown."""
    gone = table(*_pairs(results, "Teardown, s", "all gone", ("teardown_s", "gone_s")))
    return "\n\n".join(part for part in (about(results), _up_table(results), gone, _targets(results)) if part)


def insert(results: Results, readme: Path, *, command: str) -> None:
    """Put the tables between the markers of *readme*, and the command that makes them.

    Raises:
        ValueError: the markers are not there.
    """
    put(markdown(results), readme, begin=BEGIN, end=END, command=command)


def draw(results: Results, path: Path) -> None:
    """Draw bars for the largest cluster: how long until it is up, and until it is gone; as SVG."""
    pyplot = pyplot_in_grey()
    figure, both = pyplot.subplots(1, 2, figsize=(7.5, 2.4), sharey=True, layout="constrained")
    for axes, (field, title) in zip(both, PANELS.items(), strict=True):
        _panel(axes, results, field)
        axes.set_xlabel(title)
    figure.savefig(path, transparent=True, metadata={"Date": None})
    pyplot.close(figure)


def _panel(axes: Any, results: Results, field: str) -> None:
    largest = results.sizes[-1]
    names = [name for name in results.contenders if results.median(name, largest, field) is not None][::-1]
    bars = axes.barh(
        [TITLES[name].replace("`", "").replace("*", "").replace(", ", ",\n", 1) for name in names],
        [results.median(name, largest, field) for name in names], color=[COLOURS[name] for name in names], height=0.6,
    )  # fmt: skip
    axes.bar_label(bars, fmt="%.1f", padding=3, color=GREY)
    axes.margins(x=0.15)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
