"""What came out for Services: tables, plots, and the file that chapters read. What is shared: benchmarks/report.py."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.report import GREY, cell, put, pyplot_in_grey, table, verdicts
from benchmarks.services.results import Results

__all__ = ["BEGIN", "END", "STORE", "draw", "insert", "markdown", "store"]

BEGIN, END = "<!-- services: written by the command below -->", "<!-- end of services -->"
STORE = Path(__file__).parents[2] / "k8snet" / "teach" / "data" / "services_bench.json"
MOST = 0.3  # of the whole may be k8snet's own
TITLES = {
    "iptables-legacy": "iptables (legacy)", "iptables-nft": "iptables (nft)", "nftables": "nftables", "ipvs": "IPVS",
}  # fmt: skip
LOOKS = {  # colour, marker and line; told apart without colour
    "iptables-legacy": ("#d55e00", "o", "-"), "iptables-nft": ("#cc79a7", "v", ":"),
    "nftables": ("#0072b2", "s", "--"), "ipvs": ("#009e73", "D", "-."),
}  # fmt: skip
WHAT = {"full": "all of them", "update": "one changes"}


def _times(value: float | None, factor: float, form: str = "{:,.1f}") -> str:
    return cell(None if value is None else value * factor, form)


def _sizes(results: Results) -> list[int]:
    """Return the numbers of Services that tables of loads have: from 100 on, if there are any."""
    found = results.sizes("Load")
    return [size for size in found if size >= 100] or found


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _load_table(results: Results) -> str:
    rows = []
    for way in results.ways():
        for what, title in WHAT.items():
            for size in _sizes(results):
                fields = [results.load(way, what, size, key) for key in ("table_s", "k8snet_s", "own_cpu_s", "tool_s")]
                if fields[-1] is not None:
                    shares = [results.share(way, what, size, table=one) for one in (False, True)]
                    count = f"{results.load(way, what, size, 'transactions'):.0f}"
                    rows.append([
                        f"{TITLES[way]}, {title}", f"{size:,}", count, *(_times(one, 1e3) for one in fields),
                        *map(_share, shares),
                    ])  # fmt: skip
    heads = ["", "Services", "transactions", "table, ms", "render + apply, ms", "of it our CPU", "tool alone, ms",
             "own share", "with the table"]  # fmt: skip
    return table(heads, rows) if rows else ""


def _first_packet_table(results: Results, place: str, head: str) -> str:
    sizes = results.sizes("Latency", place)
    rows = [
        [TITLES[way], *(_times(results.first_packet(way, size, place), 1e3) for size in sizes)]
        for way in results.ways(place)
    ]
    return table([head, *(f"{size:,}" for size in sizes)], rows) if rows else ""


def _guest_load_table(results: Results) -> str:
    sizes = results.sizes("Load", "vm")
    rows = [
        [f"{TITLES[way]}, {title}", *(_times(results.load(way, what, size, "k8snet_s", "vm"), 1) for size in sizes)]
        for way in results.ways("vm") for what, title in WHAT.items()
    ]  # fmt: skip
    return table(["Render + apply in the virtual machine, s", *(f"{size:,}" for size in sizes)], rows) if rows else ""


def _targets(results: Results) -> str:
    rows = [
        (f"own share, {TITLES[way]}, {size:,} Services, {WHAT[what]}", results.share(way, what, size), "at most", MOST)
        for way in results.ways() for what in WHAT for size in _sizes(results)
    ]  # fmt: skip
    return verdicts("render + apply", rows)


def markdown(results: Results) -> str:
    """Return the tables as Markdown."""
    about = f"Medians of {results.rounds} interleaved rounds, {results.date}. {results.machine}."
    guest = f"In the virtual machine: {results.guest}." if results.guest else ""
    head = "First packet, µs, by number of Services"
    parts = (
        about if results.samples else "", _load_table(results), _targets(results),
        _first_packet_table(results, "here", head), guest,
        _first_packet_table(results, "vm", f"{head}, in the virtual machine"), _guest_load_table(results),
    )  # fmt: skip
    return "\n\n".join(part for part in parts if part)


def insert(results: Results, readme: Path, *, command: str) -> None:
    """Put the tables between the markers of *readme*, and the command that makes them.

    Raises:
        ValueError: the markers are not there.
    """
    put(markdown(results), readme, begin=BEGIN, end=END, command=command)


def store(results: Results) -> None:
    """Put the medians into the package, where chapters find them."""
    STORE.parent.mkdir(exist_ok=True)
    STORE.write_text(json.dumps(results.stored(), indent=1) + "\n")


def draw(results: Results, path: Path) -> None:
    """Draw what it takes to program Services, and what a first packet takes, over their number; as SVG."""
    pyplot = pyplot_in_grey()
    places = [place for place in ("here", "vm") if results.ways(place)]
    figure, grid = pyplot.subplots(
        len(places), 2, figsize=(7.5, 3.2 * len(places)), layout="constrained", squeeze=False
    )
    for row, place in zip(grid, places, strict=True):
        where = "\nin the virtual machine" if place == "vm" else ""
        for way in results.ways(place):
            sizes = results.sizes("Load", place)
            for what, width in (("full", 2.2), ("update", 1.0)):
                points = [(size, results.load(way, what, size, "k8snet_s", place)) for size in sizes]
                _line(row[0], way, points, width=width)
            points = [(size, results.first_packet(way, size, place)) for size in results.sizes("Latency", place)]
            _line(row[1], way, points, width=1.8)
        _dress(row[0], f"s to program all (thick), one change (thin){where}")
        _dress(row[1], f"ms for a first packet{where}")
        row[0].set_yscale("log")
        row[1].set_ylim(bottom=0)
        row[1].legend(frameon=False, fontsize=9, labelcolor=GREY)
        for axes in row:
            axes.minorticks_off()
            axes.yaxis.set_major_formatter("{x:g}")
    figure.savefig(path, transparent=True, metadata={"Date": None})
    pyplot.close(figure)


def _line(axes: Any, way: str, points: list[tuple[int, float | None]], *, width: float) -> None:
    known = [(size, value) for size, value in points if value is not None]
    if known:
        colour, marker, style = LOOKS[way]
        axes.plot(
            *zip(*known, strict=True), color=colour, marker=marker, markersize=4, linestyle=style, linewidth=width,
            label=TITLES[way],
        )  # fmt: skip


def _dress(axes: Any, what: str) -> None:
    axes.set(xscale="log", xlabel="Services")
    axes.set_ylabel(what, fontsize=9)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.grid(visible=True, color=GREY, alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
