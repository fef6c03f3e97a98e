"""What is measured of Services in one turn: to program them, to change one of them, and to open connections.

    python -m benchmarks.services.measure COUNT,... CALLS WAY...

measures where it runs, as root of a netns, and prints a line of JSON for each sample: for the virtual machine.
"""
from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.services.objects import CONFIG, address, changed, objects
from benchmarks.services.stage import Stage
from k8snet.controllers.kube_proxy import iptables, proxier
from k8snet.controllers.kube_proxy.service_ports import service_ports
from k8snet.lab import Lab
from k8snet.linux import nsfs
from k8snet.linux.netfilter import LEGACY_TABLES
from k8snet.linux.nftables import BUSY
from k8snet.linux.run import require

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = ["WAYS", "Latency", "Load", "Run", "turn"]

WAYS = ("iptables-legacy", "iptables-nft", "nftables")  # and "ipvs", where the kernel has it

A_CHUNK = 200  # rules that one transaction of iptables-nft takes in a user namespace
SAVES = {f"iptables-{one}-restore": f"iptables-{one}-save" for one in ("legacy", "nft")}
TOOLS = {*SAVES, "nft"}

Run = tuple[tuple[str, ...], str]  # a program's argument list, and what it reads


@dataclass(frozen=True, kw_only=True)
class Load:
    """One time that Services were programmed, or one of them was changed."""

    way: str  # one of WAYS, or "ipvs"
    what: str  # "full" or "update"
    services: int
    round: int
    table_s: float  # from objects to the table of service ports, which all modes share
    k8snet_s: float  # from the table to the kernel: render and apply
    tool_s: float | None  # the same tool with the same text in the same chunks, without us; None: not measured
    transactions: int
    text_bytes: int
    own_cpu_s: float | None = None  # of k8snet_s: the CPU time of our own process, which other work does not lengthen


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long a new connection to the last of the Services takes to stand."""

    way: str
    services: int
    round: int
    median_ms: float
    p95_ms: float


def turn(way: str, count: int, *, number: int, calls: int, replay: bool = True) -> Iterator[Load | Latency]:
    """Program *count* Services, call the last of them, change one, and let the tool do the same alone.

    Args:
        number: which round it is; in even ones the tool comes first.
        calls: new connections to the last Service.
        replay: measure the tool alone, too.
    """
    found = objects(count)
    with Lab("bench") as lab, TemporaryDirectory(dir="/run") as folder:
        stage = Stage(lab)
        rules = iptables.render(service_ports(found, CONFIG), CONFIG)
        if way == "iptables-nft" and rules.size > iptables.ONE_TRANSACTION:  # kube-proxy would take iptables-legacy
            for text in _in_chunks(rules):
                stage.node.iptables_restore(text, backend="nft")
            yield _call(stage, way, count, number, calls)
            return
        steps = [_Step("full", found), _Step("update", changed(found))]
        if replay:
            _rehearse(lab, way, steps)
        if number % 2 == 0 and replay:
            _alone(lab, Path(folder, "text"), steps)
        proxy = _proxy(way)
        for step in steps:
            _measure(lab, stage.node, proxy, step)
            if step.what == "full":
                yield _call(stage, way, count, number, calls)
        if number % 2 and replay:
            _alone(lab, Path(folder, "text"), steps)
        for step in steps:
            texts = [text for _, text in step.runs if text]
            yield Load(
                way=way, what=step.what, services=count, round=number, table_s=step.table_s, k8snet_s=step.k8snet_s,
                tool_s=step.tool_s, transactions=len(texts), text_bytes=sum(map(len, texts)),
                own_cpu_s=step.own_cpu_s,
            )  # fmt: skip


@dataclass
class _Step:
    """What is to be programmed, and how long that took."""

    what: str
    objects: list[Any]
    runs: list[Run] = field(default_factory=list)
    table_s: float = 0.0
    k8snet_s: float = 0.0
    own_cpu_s: float = 0.0
    tool_s: float | None = None


def _call(stage: Stage, way: str, count: int, number: int, calls: int) -> Latency:
    median_ms, p95_ms = stage.first_packet_ms(address(count - 1), calls)
    return Latency(way=way, services=count, round=number, median_ms=median_ms, p95_ms=p95_ms)


def _proxy(way: str) -> Any:
    mode, _, backend = way.partition("-")
    made: Any = proxier.make(mode, CONFIG)
    if backend:
        made.backend = backend
    return made


def _measure(lab: Lab, netns: Netns, proxy: Any, step: _Step) -> None:
    transcript = lab.transcript
    mark, begun = len(transcript), time.perf_counter()
    ports = service_ports(step.objects, CONFIG)
    table, cpu = time.perf_counter(), time.process_time()
    proxy.apply(netns, ports)
    done, step.own_cpu_s = time.perf_counter(), time.process_time() - cpu
    step.table_s, step.k8snet_s = table - begun, done - table
    entries = [one for one in transcript.since(mark).entries if one.words and one.words[0] in TOOLS]
    step.runs = [(one.words, one.stdin) for one in entries]
    if step.what == "full" and step.runs and step.runs[0][0][0] in SAVES:  # it looks at what is there first
        step.runs.insert(0, ((SAVES[step.runs[0][0][0]],), ""))


def _in_chunks(rules: iptables.Rules) -> Iterator[str]:
    """Yield texts of *rules* that each fit into a transaction of iptables-nft; a chain comes after those it names.

    kube-proxy does not do this, and a packet meets half of the rules while they are loaded.
    """
    yield str(iptables.Rules(filter=rules.filter, nat={}, jumps=(), active=frozenset()))
    order = sorted(rules.nat, key=lambda chain: ("KUBE-SEP-", "KUBE-SVC-", "KUBE-S").index(
        next((one for one in ("KUBE-SEP-", "KUBE-SVC-") if chain.startswith(one)), "KUBE-S")))  # fmt: skip
    common = [chain for chain in order if not chain.startswith(("KUBE-SEP-", "KUBE-SVC-"))]
    lines = [f":{chain} - [0:0]" for chain in common]
    for chain in order:
        lines += [] if chain in common else [f":{chain} - [0:0]"]
        for rule in rules.nat[chain].splitlines():
            lines.append(rule)
            if len(lines) >= A_CHUNK:
                yield "\n".join(["*nat", *lines, "COMMIT", ""])
                lines = []
    jumps = {table: [rule for at, rule in rules.jumps if at == table] for table in ("nat", "filter")}
    yield "\n".join(["*nat", *lines, *jumps["nat"], "COMMIT", "*filter", *jumps["filter"], "COMMIT", ""])


def _rehearse(lab: Lab, way: str, steps: Sequence[_Step]) -> None:
    """Do it once in another netns, to know what the tool will read; whoever comes next finds the kernel as warm."""
    netns, proxy = lab.netns("rehearsal"), _proxy(way)
    for step in steps:
        _measure(lab, netns, proxy, step)
    lab.remove("rehearsal")


# -- the tool alone --------------------------------------------------------------------


def _alone(lab: Lab, file: Path, steps: Sequence[_Step]) -> None:
    """Measure the tool for each step, in a netns of its own."""
    netns = lab.netns("alone")
    for step in steps:
        step.tool_s = sum(_run(netns, file, words, text) for words, text in step.runs)
    lab.remove("alone")


def _run(netns: Netns, file: Path, words: Sequence[str], text: str) -> float:
    """Return the seconds of one run; the text is in a file, so that nobody has to pass it on."""
    file.write_text(text)
    begun = time.perf_counter()
    done = _once(netns, file, words)
    while done.returncode and BUSY in done.stderr:  # an older Linux counts a chain as used for a moment longer
        begun = time.perf_counter()
        done = _once(netns, file, words)
    if done.returncode and "tables_names" in done.stderr:  # an ordinary user may not list them, but may ask for each
        for table in LEGACY_TABLES:
            _once(netns, file, [*words, "-t", table])
    elif done.returncode:
        raise RuntimeError(f"{words[0]}: {done.stderr}")
    return time.perf_counter() - begun


def _once(netns: Netns, file: Path, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    program = require(words[0])
    with file.open() as stdin:
        return nsfs.inside(netns.fd, lambda: subprocess.run(  # the tool
            [program, *words[1:]], stdin=stdin, capture_output=True, text=True, check=False
        ))  # fmt: skip


def main(words: list[str]) -> None:
    """Measure each way with each number of Services, once, without the tool alone."""
    counts, calls, *ways = words
    for way in ways:  # the first run of a program reads it from disk, and the kernel its modules
        list(turn(way, 1, number=1, calls=2, replay=False))
    for count in map(int, counts.split(",")):
        for way in ways:
            for sample in turn(way, count, number=1, calls=int(calls), replay=False):
                print(json.dumps({"kind": type(sample).__name__, **asdict(sample)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
