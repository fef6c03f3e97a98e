"""The command: python -m benchmarks [--only build|cluster|services|NAME,...] [--rounds N] [--sizes ...] ...."""
from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import cluster_report, report
from benchmarks.contenders import catalogue
from benchmarks.contenders.catalogue import Contender
from benchmarks.referee import ContenderFailed, match
from benchmarks.services import guest, measure
from benchmarks.services import report as services_report
from benchmarks.services.results import Results as ServicesResults
from k8snet import sandbox
from k8snet.errors import K8snetError

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks"
FEW, TURNS = 1000, 3  # so few are measured three times a round: by chance the kernel waits longer than we work
COLUMNS = (TextColumn("{task.description:42}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One table of the README, and who is in it."""

    name: str
    contenders: Sequence[Contender]
    sizes: str  # the option that says how large
    rounds: int  # by default
    json: str  # names of files
    plot: str
    markdown: Callable[[Any], str]
    draw: Callable[[Any, Path], None]
    insert: Callable[..., None]
    results: type[report.Results] | type[ServicesResults] = report.Results


BENCHMARKS = (
    Benchmark(
        name="build", contenders=catalogue.ALL, sizes="sizes", rounds=5, json="results.json", plot="build.svg",
        markdown=report.markdown, draw=report.draw, insert=report.insert,
    ),
    Benchmark(
        name="cluster", contenders=catalogue.CLUSTER, sizes="clusters", rounds=3, json="cluster.json",
        plot="cluster.svg", markdown=cluster_report.markdown, draw=cluster_report.draw, insert=cluster_report.insert,
    ),
    Benchmark(
        name="services", contenders=catalogue.SERVICES, sizes="services", rounds=5, json="services.json",
        plot="services.svg", markdown=services_report.markdown, draw=services_report.draw,
        insert=services_report.insert, results=ServicesResults,
    ),
)  # fmt: skip
BUILD, CLUSTER, SERVICES = BENCHMARKS


def arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [contender.name for one in BENCHMARKS for contender in one.contenders]
    kinds = [one.name for one in BENCHMARKS]
    parser.add_argument("--only", type=_words, default=kinds, help=f"{' or '.join(kinds)}, or of {','.join(names)}")
    parser.add_argument("--sizes", type=_pods, default=[(0, 10), (0, 100), (0, 1000)], help="build: as in 10,100,1000")
    parser.add_argument("--clusters", type=_clusters, default=[(2, 20), (10, 300)], help="cluster: as in 2x20,10x300")
    parser.add_argument(
        "--services", type=_numbers, default=[1, 10, 100, 1000, 10000], help="services: as in 1,10,100,1000,10000"
    )
    parser.add_argument("--calls", type=int, default=200, help="services: connections for a median (default: 200)")
    parser.add_argument("--guest-rounds", type=int, default=1, help="services: boots of the virtual machine")
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


def _numbers(text: str) -> list[int]:
    return sorted({int(word) for word in text.split(",")})


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


def play_services(options: argparse.Namespace, console: Console) -> ServicesResults:
    """Measure each way with each number of Services in turn, in each round, and return the results."""
    ways = [one.arguments[0] for one in chosen(SERVICES, options) if one.name != catalogue.IN_GUEST]
    turns = [
        (number, count, way)
        for number in range(1, (options.rounds or SERVICES.rounds) + 1) for count in options.services for way in ways
    ]  # fmt: skip
    samples: list[measure.Load | measure.Latency] = []
    with Progress(*COLUMNS, console=console) as bar:
        task = bar.add_task("", total=len(turns))
        for number, count, way in turns:
            bar.update(task, description=f"round {number}: {count} Services, {way}")
            for _ in range(TURNS if count <= FEW else 1):
                samples += measure.turn(way, count, number=number, calls=options.calls)
            bar.advance(task)
    return ServicesResults.of(samples, calls=options.calls)


def play_in_guest(results: ServicesResults, options: argparse.Namespace) -> ServicesResults:
    """Measure the same in the virtual machine, outside our sandbox, and print the tables of both.

    Raises:
        GuestFailed: it did not come to its end.
    """
    console = Console()
    with Progress(*COLUMNS[:1], COLUMNS[-1], console=console) as bar:
        task = bar.add_task("virtual machine: it boots")
        about, samples = guest.measure(
            options.services, rounds=options.guest_rounds, calls=options.calls,
            progress=lambda line: bar.update(task, description=line),
        )  # fmt: skip
    results = results.with_guest(about, samples)
    console.print(Markdown(services_report.markdown(results)))
    return results


def play_all(benchmark: Benchmark, options: argparse.Namespace, console: Console) -> report.Results:
    """Play all matches, contender after contender within each round, and return the results."""
    contenders = chosen(benchmark, options)
    matches = [
        (number, nodes, pods, contender)
        for number in range(1, (options.rounds or benchmark.rounds) + 1)
        for nodes, pods in getattr(options, benchmark.sizes)
        for contender in contenders
    ]
    samples = []
    with tempfile.TemporaryDirectory(dir="/run") as folder, Progress(*COLUMNS, console=console) as bar:
        program = catalogue.compiled(Path(folder)) if catalogue.ALL[0] in contenders else Path()
        task = bar.add_task("", total=len(matches))
        for number, nodes, pods, contender in matches:
            bar.update(task, description=f"round {number}: {pods} pods, {contender.name}")
            samples.append(match(contender, program, pods=pods, nodes=nodes, number=number))
            bar.advance(task)
    return report.Results.of(samples)


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
                results = benchmark.results.read(file)
                if benchmark is SERVICES and catalogue.IN_GUEST in {one.name for one in chosen(SERVICES, options)}:
                    try:
                        results = play_in_guest(results, options)
                    except guest.GuestFailed as error:
                        Console().print(f"benchmarks: {error}", style="red", markup=False)
                        code = 1
                if not (isinstance(results, ServicesResults) and results.empty):
                    write(benchmark, results, options, words)
        return code


def play_inside(options: argparse.Namespace) -> int:
    """Play, print the tables, and leave the results for the process outside."""
    console = Console()
    played = [benchmark for benchmark in BENCHMARKS if chosen(benchmark, options)]
    try:
        for contender in [one for benchmark in played for one in chosen(benchmark, options)]:
            contender.check()
        for benchmark in played:
            services = benchmark is SERVICES
            results = play_services(options, console) if services else play_all(benchmark, options, console)
            results.write(options.inside / benchmark.json)
            console.print(Markdown(benchmark.markdown(results)))
    except (K8snetError, ContenderFailed) as error:
        console.print(f"benchmarks: {error}", style="red", markup=False)
        return 1
    return 0


def write(
    benchmark: Benchmark, results: report.Results | ServicesResults, options: argparse.Namespace, words: list[str]
) -> None:
    """Write the files that were asked for; of Services, ways that were left out stay as they were."""
    public = published(benchmark, options)
    if isinstance(results, ServicesResults) and public and (FOLDER / benchmark.json).exists():
        results = results.completed(ServicesResults.read(FOLDER / benchmark.json))
    for folder in [*([options.out] if options.out else []), *([FOLDER] if public else [])]:
        folder.mkdir(parents=True, exist_ok=True)
        results.write(folder / benchmark.json)
        benchmark.draw(results, folder / benchmark.plot)
    if public and isinstance(results, ServicesResults):
        services_report.store(results)
    if public:
        benchmark.insert(results, FOLDER / "README.md", command=" ".join(["./run bench", *words]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
