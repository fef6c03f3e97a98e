"""What came out: medians, ratios, tables, a plot."""
from __future__ import annotations

import json
import platform
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.contenders.catalogue import ALL, LOWER_BOUND, OURS
from benchmarks.referee import Sample

__all__ = [
    "GREY",
    "Results",
    "about",
    "cell",
    "draw",
    "insert",
    "machine",
    "markdown",
    "put",
    "pyplot_in_grey",
    "ratio",
    "table",
    "verdicts",
]

BEGIN, END = "<!-- results: written by the command below -->", "<!-- end of results -->"
GREY = "#808080"  # legible on white and on black
LOOKS = {  # colour and marker of a contender; Okabe and Ito's colours, made mid-toned
    LOWER_BOUND: (GREY, "x"),
    OURS: ("#d55e00", "o"),
    "ip-batch": ("#0072b2", "s"),
    "ip": ("#3a9ad9", "^"),
    "pyroute2": ("#009e73", "D"),
    "cni": ("#cc79a7", "v"),
    "mininet": ("#a08000", "P"),
}
TITLES = {contender.name: contender.title for contender in ALL}


@dataclass(frozen=True, kw_only=True)
class Results:
    """All samples, and the machine that they are from."""

    samples: Sequence[Sample]
    machine: str

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Results:
        """Return the results of this machine."""
        return cls(samples=tuple(samples), machine=machine())

    @classmethod
    def read(cls, file: Path) -> Results:
        """Return what write() wrote."""
        found = json.loads(file.read_text())
        samples = tuple(Sample(**sample) for sample in found["samples"])
        return cls(samples=samples, machine=found["machine"])

    def write(self, file: Path) -> None:
        """Write everything as JSON."""
        file.write_text(json.dumps(self.as_dict(), indent=1) + "\n")

    @property
    def contenders(self) -> list[str]:
        """Who took part, in the order of the catalogue, which is that of the samples."""
        return list(dict.fromkeys(sample.contender for sample in self.samples))

    @property
    def sizes(self) -> list[int]:
        """How many pods there were, smallest first."""
        return sorted({sample.pods for sample in self.samples})

    @property
    def rounds(self) -> int:
        """How many rounds were played."""
        return max(sample.round for sample in self.samples)

    def median(self, contender: str, pods: int, field: str) -> float | None:
        """Return the median of a field of the samples, in seconds; None if there are none."""
        values = [getattr(s, field) for s in self.samples if (s.contender, s.pods) == (contender, pods)]
        known = [value for value in values if value is not None]
        return median(known) if known else None

    def a_pod(self, contender: str, pods: int) -> float | None:
        """Return the median cost of building one pod, in milliseconds."""
        whole = self.median(contender, pods, "build_s")
        return None if whole is None else whole / pods * 1e3

    def growth(self, contender: str) -> float | None:
        """Return how much dearer a pod is among the most than among the second most."""
        if len(self.sizes) < 2:  # growth is between two
            return None
        return ratio(*(self.a_pod(contender, pods) for pods in reversed(self.sizes[-2:])))

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        medians: dict[str, dict[str, Any]] = defaultdict(dict)
        for name in self.contenders:
            for pods in self.sizes:
                fields = ("build_s", "answered_s", "teardown_s", "gone_s", "startup_s")
                found = {field: self.median(name, pods, field) for field in fields}
                if found["build_s"] is not None:
                    medians[name][str(pods)] = found
        samples = [sample.as_dict() for sample in self.samples]
        return {"machine": self.machine, "rounds": self.rounds, "medians": medians, "samples": samples}


def ratio(value: float | None, base: float | None) -> float | None:
    """Return *value* / *base*, or None where one is not known."""
    return value / base if value is not None and base else None


def machine() -> str:
    """Return what this machine is: distribution, kernel, processors, Python."""
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    )
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = cpus[0].partition(": ")[2].strip() if cpus else platform.machine()
    number = Path("/proc/cpuinfo").read_text().count("processor\t") or 1
    return (
        f"{release.get('PRETTY_NAME', 'Linux').strip(chr(34))}, Linux {platform.release()}, "
        f"{number} x {model}, Python {platform.python_version()}"
    )


# -- tables ----------------------------------------------------------------------------


def cell(value: float | None, form: str = "{:.2f}") -> str:
    """Return a number as a table has it."""
    return "–" if value is None else form.format(value)


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    rule = ["---", *("--:" for _ in heads[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, rule, *rows))


def _build_table(results: Results) -> str:
    largest = results.sizes[-1]
    heads = ["Build, ms a pod", *(f"{pods} pods" for pods in results.sizes)]
    heads += ["x lower bound", "x k8snet", "growth"]
    rows = [
        [
            TITLES[name],
            *(cell(results.a_pod(name, pods)) for pods in results.sizes),
            *(cell(_against(results, name, base, pods=largest)) for base in (LOWER_BOUND, OURS)),
            cell(results.growth(name)),
        ]
        for name in results.contenders
    ]
    return table(heads, rows)


def _against(results: Results, name: str, base: str, *, pods: int) -> float | None:
    return ratio(results.a_pod(name, pods), results.a_pod(base, pods))


def _teardown_table(results: Results) -> str:
    heads = ["Teardown, s"]
    for pods in results.sizes:
        heads += [f"{pods} pods", "all gone"]
    rows = [
        [
            TITLES[name],
            *(
                cell(results.median(name, pods, field), "{:.3f}")
                for pods in results.sizes for field in ("teardown_s", "gone_s")
            ),
        ]
        for name in results.contenders
    ]  # fmt: skip
    return table(heads, rows)


def _targets(results: Results) -> str:
    """Return what the project asks of itself, and whether it holds."""
    largest = results.sizes[-1]
    beside = partial(_against, results, pods=largest)
    rows = (
        ("build, times the lower bound", beside(OURS, LOWER_BOUND), "at most", 1.3),
        ("one `ip` process a command, times k8snet", beside("ip", OURS), "at least", 5),
        ("the CNI plugin, times k8snet", beside("cni", OURS), "at least", 5),
        ("teardown until all is gone, s", results.median(OURS, largest, "gone_s"), "at most", 2),
        ("growth, times the lower bound's", ratio(results.growth(OURS), results.growth(LOWER_BOUND)), "at most", 1.3),
        ("encoding by pyroute2, times k8snet", beside("k8snet-pyroute2", OURS), "at least", 1.1),
    )
    return verdicts(f"{largest} pods", rows)


def verdicts(head: str, rows: Sequence[tuple[str, float | None, str, float]]) -> str:
    """Return a table of what was measured, and what is wanted; rows that were not measured are left out."""
    measured = [
        [what, cell(value), f"{side} {limit}", "yes" if _holds(value, side, limit) else "**no**"]
        for what, value, side, limit in rows if value is not None
    ]  # fmt: skip
    return table([head, "measured", "wanted", "holds"], measured) if measured else ""


def _holds(value: float, side: str, limit: float) -> bool:
    return value <= limit if side == "at most" else value >= limit


def about(results: Results) -> str:
    """Return what the numbers of a table are, and where they are from."""
    return f"Medians of {results.rounds} interleaved rounds. {results.machine}."


def markdown(results: Results) -> str:
    """Return the tables as Markdown."""
    parts = (about(results), _build_table(results), _teardown_table(results), _targets(results))
    return "\n\n".join(part for part in parts if part)


def insert(results: Results, readme: Path, *, command: str) -> None:
    """Put the tables between the markers of *readme*, and the command that makes them.

    Raises:
        ValueError: the markers are not there.
    """
    put(markdown(results), readme, begin=BEGIN, end=END, command=command)


def put(text: str, readme: Path, *, begin: str, end: str, command: str) -> None:
    """Put *text* between two markers of *readme*, and the command that made it.

    Raises:
        ValueError: the markers are not there.
    """
    before, _, rest = readme.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{readme} has no markers {begin!r} and {end!r}")
    readme.write_text(f"{before}{begin}\n\n{text}\n\nMade by:\n\n    {command}\n\n{end}{after}")


# -- the plot --------------------------------------------------------------------------


def pyplot_in_grey() -> Any:
    """Return pyplot, for SVG that is legible on white and on black, and the same for the same numbers."""
    import matplotlib as mpl  # a second to load, and not always needed

    mpl.use("svg")
    mpl.rcParams.update({
        "svg.hashsalt": "k8snet", "text.color": GREY, "axes.labelcolor": GREY, "axes.edgecolor": GREY,
        "xtick.color": GREY, "ytick.color": GREY, "font.size": 11,
    })  # fmt: skip
    from matplotlib import pyplot

    return pyplot


def draw(results: Results, path: Path) -> None:
    """Draw the time to build over the number of pods, both logarithmic, as SVG."""
    pyplot = pyplot_in_grey()
    figure, axes = pyplot.subplots(figsize=(7.5, 4.6), layout="constrained")
    for name in results.contenders:
        if name in LOOKS:
            _line(axes, results, name)
    axes.set(xscale="log", yscale="log", xlabel="pods on one bridge", ylabel="seconds to build them")
    axes.set_xticks(results.sizes, [str(pods) for pods in results.sizes])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(visible=True, color=GREY, alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), labelcolor=GREY)
    figure.savefig(path, transparent=True, metadata={"Date": None})
    pyplot.close(figure)


def _line(axes: Any, results: Results, name: str) -> None:
    colour, marker = LOOKS[name]
    points = [(pods, results.median(name, pods, "build_s")) for pods in results.sizes]
    known = [(pods, seconds) for pods, seconds in points if seconds is not None]
    title = TITLES[name].replace("`", "").replace("*", "")
    axes.plot(
        *zip(*known, strict=True), color=colour, marker=marker, label=title,
        linewidth=3 if name == OURS else 1.6, linestyle="--" if name == LOWER_BOUND else "-",
    )  # fmt: skip
