"""The command: python -m benchmarks [--only build|cluster|NAME,...] [--rounds N] [--sizes ...] [--clusters ...]."""
from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import cluster_report, report
from benchmarks.contenders import catalogue
from benchmarks.contenders.catalogue import Contender
from benchmarks.referee import ContenderFailed, Sample, match
from k8snet import sandbox
from k8snet.errors import K8snetError

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One table of the README, and who is in it."""

    name: str
    contenders: Sequence[Contender]
    sizes: str  # the option that says how large
    rounds: int  # by default
    json: str  # names of files
    plot: str
    markdown: Callable[[report.Results], str]
    draw: Callable[[report.Results, Path], None]
    insert: Callable[..., None]


BENCHMARKS = (
    Benchmark(
        name="build", contenders=catalogue.ALL, sizes="sizes", rounds=5, json="results.json", plot="build.svg",
        markdown=report.markdown, draw=report.draw, insert=report.insert,
    ),
    Benchmark(
        name="cluster", contenders=catalogue.CLUSTER, sizes="clusters", rounds=3, json="cluster.json",
        plot="cluster.svg", markdown=cluster_report.markdown, draw=cluster_report.draw, insert=cluster_report.insert,
    ),
)  # fmt: skip


def arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [contender.name for one in BENCHMARKS for contender in one.contenders]
    kinds = [one.name for one in BENCHMARKS]
    parser.add_argument("--only", type=_words, default=kinds, help=f"{' or '.join(kinds)}, or of {','.join(names)}")
    parser.add_argument("--sizes", type=_pods, default=[(0, 10), (0, 100), (0, 1000)], help="build: as in 10,100,1000")
    parser.add_argument("--clusters", type=_clusters, default=[(2, 20), (10, 300)], help="cluster: as in 2x20,10x300")
    rounds = ", ".join(f"{one.rounds} for {one.name}" for one in BENCHMARKS)
    parser.add_argument("--rounds", type=int, help=f"how often; the medians count (default: {rounds})")
    parser.add_argument("--out", type=Path, help="write medians, every sample and the drawing into that folder")
    parser.add_argument(
        "--publish", action=argparse.BooleanOptionalAction,
        help="write them into benchmarks/, and the tables into its README.md (default: of what is played "
             "with the default sizes, rounds and contenders)",
    )  # fmt: skip
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)  # we are in the sandbox
    parsed = parser.parse_args(words)
    unknown = set(parsed.only) - {*names, *kinds}
    if unknown:
        parser.error(f"no contender {', '.join(sorted(unknown))}; there are: {', '.join([*names, *kinds])}")
    return parsed


def _pods(text: str) -> list[tuple[int, int]]:
    return sorted({(0, int(word)) for word in text.split(",")})


def _clusters(text: str) -> list[tuple[int, int]]:
    """Return (nodes, pods) of each; the tables tell them apart by their pods."""
    found = {}
    for word in text.split(","):
        nodes, _, pods = word.partition("x")
        found[int(pods)] = int(nodes)
    return sorted((nodes, pods) for pods, nodes in found.items())


def _words(text: str) -> list[str]:
    return text.split(",")


def chosen(benchmark: Benchmark, options: argparse.Namespace) -> list[Contender]:
    """Return who takes part."""
    if benchmark.name in options.only:
        return list(benchmark.contenders)
    return [contender for contender in benchmark.contenders if contender.name in options.only]


def published(benchmark: Benchmark, options: argparse.Namespace) -> bool:
    """Return whether what came out shall stand in the README."""
    if options.publish is not None:
        return bool(options.publish)
    default = arguments([])
    same = getattr(options, benchmark.sizes) == getattr(default, benchmark.sizes) and options.rounds is None
    return same and len(chosen(benchmark, options)) == len(benchmark.contenders)


def play_all(benchmark: Benchmark, options: argparse.Namespace, console: Console) -> list[Sample]:
    """Play all matches, contender after contender within each round, and return the samples."""
    contenders = chosen(benchmark, options)
    matches = [
        (number, nodes, pods, contender)
        for number in range(1, (options.rounds or benchmark.rounds) + 1)
        for nodes, pods in getattr(options, benchmark.sizes)
        for contender in contenders
    ]
    columns = (TextColumn("{task.description:42}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    samples = []
    with tempfile.TemporaryDirectory(dir="/run") as folder, Progress(*columns, console=console) as bar:
        program = catalogue.compiled(Path(folder)) if catalogue.ALL[0] in contenders else Path()
        task = bar.add_task("", total=len(matches))
        for number, nodes, pods, contender in matches:
            bar.update(task, description=f"round {number}: {pods} pods, {contender.name}")
            samples.append(match(contender, program, pods=pods, nodes=nodes, number=number))
            bar.advance(task)
    return samples


def main(words: list[str]) -> int:
    """Play inside a sandbox, write what came out outside it; return the exit code."""
    options = arguments(words)
    if options.inside:
        return play_inside(options)
    with tempfile.TemporaryDirectory(prefix="k8snet-bench-") as folder:
        inside = [sys.executable, "-m", "benchmarks", *words, "--inside", folder]
        code = sandbox.run(inside, working_copy=ROOT)
        for benchmark in BENCHMARKS:  # one that was played to its end counts, whatever came after
            file = Path(folder, benchmark.json)
            if file.exists():
                write(benchmark, report.Results.read(file), options, words)
        return code


def play_inside(options: argparse.Namespace) -> int:
    """Play, print the tables, and leave the results for the process outside."""
    console = Console()
    played = [benchmark for benchmark in BENCHMARKS if chosen(benchmark, options)]
    try:
        for contender in [one for benchmark in played for one in chosen(benchmark, options)]:
            contender.check()
        for benchmark in played:
            results = report.Results.of(play_all(benchmark, options, console))
            console.print(Markdown(benchmark.markdown(results)))
            results.write(options.inside / benchmark.json)
    except (K8snetError, ContenderFailed) as error:
        console.print(f"benchmarks: {error}", style="red", markup=False)
        return 1
    return 0


def write(benchmark: Benchmark, results: report.Results, options: argparse.Namespace, words: list[str]) -> None:
    """Write the files that were asked for."""
    public = published(benchmark, options)
    for folder in [*([options.out] if options.out else []), *([FOLDER] if public else [])]:
        folder.mkdir(parents=True, exist_ok=True)
        results.write(folder / benchmark.json)
        benchmark.draw(results, folder / benchmark.plot)
    if public:
        benchmark.insert(results, FOLDER / "README.md", command=" ".join(["./run bench", *words]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
