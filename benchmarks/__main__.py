"""The command: python -m benchmarks [--sizes 10,100,1000] [--rounds 5] [--only NAME,...]."""
from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import report
from benchmarks.contenders import catalogue
from benchmarks.referee import ContenderFailed, Sample, match
from k8snet import sandbox
from k8snet.errors import K8snetError

ROOT = Path(__file__).parent.parent


def arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [contender.name for contender in catalogue.ALL]
    parser.add_argument("--sizes", type=_numbers, default=[10, 100, 1000], help="pods, as in 10,100,1000")
    parser.add_argument("--rounds", type=int, default=5, help="how often; the medians count (default: 5)")
    parser.add_argument("--only", type=_words, default=names, help=f"contenders, of {','.join(names)}")
    parser.add_argument("--json", type=Path, help="write medians and every sample there")
    parser.add_argument("--plot", type=Path, help="draw the build times there, as SVG")
    parser.add_argument(
        "--publish", action=argparse.BooleanOptionalAction,
        help="write results.json, build.svg and the tables in README.md of benchmarks/ "
             "(default: if sizes, rounds and contenders are the default ones)",
    )  # fmt: skip
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)  # we are in the sandbox
    parsed = parser.parse_args(words)
    unknown = set(parsed.only) - set(names)
    if unknown:
        parser.error(f"no contender {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
    if parsed.publish is None:
        whole = all(getattr(parsed, key) == parser.get_default(key) for key in ("sizes", "rounds", "only"))
        parsed.publish = whole
    return parsed


def _numbers(text: str) -> list[int]:
    return sorted({int(word) for word in text.split(",")})


def _words(text: str) -> list[str]:
    return text.split(",")


def play_all(options: argparse.Namespace, console: Console) -> list[Sample]:
    """Play all matches, contender after contender within each round, and return the samples."""
    chosen = [contender for contender in catalogue.ALL if contender.name in options.only]
    for contender in chosen:
        contender.check()
    matches = [
        (number, pods, contender)
        for number in range(1, options.rounds + 1)
        for pods in options.sizes
        for contender in chosen
    ]
    columns = (TextColumn("{task.description:42}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    samples = []
    with tempfile.TemporaryDirectory(dir="/run") as folder, Progress(*columns, console=console) as bar:
        program = catalogue.compiled(Path(folder))
        task = bar.add_task("", total=len(matches))
        for number, pods, contender in matches:
            bar.update(task, description=f"round {number}: {pods} pods, {contender.name}")
            samples.append(match(contender, program, pods=pods, number=number))
            bar.advance(task)
    return samples


def main(words: list[str]) -> int:
    """Play inside a sandbox, write what came out outside it; return the exit code."""
    options = arguments(words)
    if options.inside:
        return play_inside(options)
    with tempfile.TemporaryDirectory(prefix="k8snet-bench-") as folder:
        file = Path(folder) / "results.json"
        inside = [sys.executable, "-m", "benchmarks", *words, "--inside", str(file)]
        code = sandbox.run(inside, working_copy=ROOT)
        if code == 0:
            write(report.Results.read(file), options, words)
        return code


def play_inside(options: argparse.Namespace) -> int:
    """Play, print the tables, and leave the results for the process outside."""
    console = Console()
    try:
        results = report.Results.of(play_all(options, console))
    except (K8snetError, ContenderFailed) as error:
        console.print(f"benchmarks: {error}", style="red", markup=False)
        return 1
    console.print(report.tables(results))
    results.write(options.inside)
    return 0


def write(results: report.Results, options: argparse.Namespace, words: list[str]) -> None:
    """Write the files that were asked for."""
    if options.json:
        results.write(options.json)
    if options.plot:
        report.draw(results, options.plot)
    if options.publish:
        folder = ROOT / "benchmarks"
        results.write(folder / "results.json")
        report.draw(results, folder / "build.svg")
        report.insert(results, folder / "README.md", command=" ".join(["./run bench", *words]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
