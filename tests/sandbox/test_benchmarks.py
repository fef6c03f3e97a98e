"""The benchmarks run: everybody builds what was asked for, and leaves nothing."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import cluster_report
from benchmarks.contenders.catalogue import ALL, CLUSTER
from benchmarks.referee import Sample
from benchmarks.report import BEGIN, END, Results, insert
from benchmarks.services import measure
from benchmarks.services import report as services_report
from benchmarks.services import results as services_results
from k8snet.errors import NotFound
from k8snet.teach.data import services_bench

ROOT = Path(__file__).parents[2]

REFEREE = """
import os, socket
from benchmarks import plan
from benchmarks.census import wait_until_left
from benchmarks.contenders.catalogue import CLUSTER
from benchmarks.fetch import pages
from benchmarks.ping import unanswered
from benchmarks.referee import ContenderFailed, count_pages
from k8snet.errors import Timeout
from k8snet.lab import Attachment, Lab
from k8snet.linux import nsfs

with Lab() as lab:
    node = lab.netns(plan.NODE)
    node.add_bridge(plan.BRIDGE, address="10.244.0.1/16")
    lab.attach_all(node, plan.BRIDGE, [
        Attachment(netns=plan.pod(0), port=plan.port(0), address="10.244.1.1/16"),
    ])
    assert unanswered(node.fd, ["10.244.1.1"]) == []
    assert unanswered(node.fd, ["10.244.1.1", "10.244.1.2"], timeout_s=1) == ["10.244.1.2"]
    node.start_nginx(port=80, body="alone says hello")
    vantage = str(nsfs.path_of(plan.NODE))
    assert pages(vantage, ["10.244.0.1", "10.244.1.1"], timeout_s=5) == {"10.244.0.1": "alone says hello\\n"}
    asked = {"vantage": vantage, "addresses": ["10.244.0.1", "10.244.0.1"]}
    try:
        count_pages(CLUSTER[0], asked, 2)
    except ContenderFailed as error:
        assert "2 pods were asked for, 1 have a page of their own" in str(error)
    else:
        raise SystemExit("one server stood for two pods, and nobody noticed")
nsfs.make("forgotten")
try:
    wait_until_left(0, timeout_s=1)
except Timeout:
    pass
else:
    raise SystemExit("a netns was left, and nobody noticed")
wait_until_left(1)
nsfs.delete("forgotten")
wait_until_left(0)
"""


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )


def test_every_contender_builds_pods_that_answer_and_leaves_nothing(tmp_path):
    """A table of who is fastest is worth nothing if one of them did less."""
    result = python("-m", "benchmarks", "--only", "build", "--sizes", "10", "--rounds", "1", "--out", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    samples = json.loads((tmp_path / "results.json").read_text())["samples"]
    assert [sample["contender"] for sample in samples] == [contender.name for contender in ALL]
    assert [sample["answered"] for sample in samples] == [10] * len(ALL)
    assert all(sample["build_s"] > 0 and sample["gone_s"] >= sample["teardown_s"] for sample in samples)
    assert "<svg" in (tmp_path / "build.svg").read_text()


def test_every_contender_builds_a_cluster_whose_pods_serve_and_leaves_nothing(tmp_path):
    """The referee fetches a page of its own from every pod, across nodes, before a time counts."""
    result = python(
        "-m", "benchmarks", "--only", "cluster", "--clusters", "2x4", "--rounds", "1", "--out", str(tmp_path)
    )
    assert result.returncode == 0, result.stdout + result.stderr
    samples = json.loads((tmp_path / "cluster.json").read_text())["samples"]
    assert [sample["contender"] for sample in samples] == [contender.name for contender in CLUSTER]
    assert [(sample["nodes"], sample["pods"], sample["answered"]) for sample in samples] == [(2, 4, 4)] * len(CLUSTER)
    assert all(sample["answered_s"] >= sample["build_s"] > 0 for sample in samples)
    assert all(sample["gone_s"] >= sample["teardown_s"] for sample in samples)
    assert "<svg" in (tmp_path / "cluster.svg").read_text()


def test_the_referee_notices_a_silent_pod_and_a_forgotten_netns():
    """The run above would pass with a referee that looks away."""
    result = python("-m", "k8snet.cli", "sandbox", "--", sys.executable, "-c", REFEREE)
    assert result.returncode == 0, result.stdout + result.stderr


def test_an_unknown_contender_is_named_with_those_there_are():
    """A slip of the pen should not cost a run of twenty minutes."""
    result = python("-m", "benchmarks", "--only", "k8snet,docker")
    assert result.returncode == 2
    assert "no contender docker; there are: lower-bound, k8snet" in result.stderr


def sample(contender: str, *, pods: int, build_s: float, nodes: int = 0) -> Sample:
    return Sample(
        contender=contender, round=1, pods=pods, nodes=nodes, answered=pods, build_s=build_s,
        answered_s=build_s + 0.5, teardown_s=0.1, gone_s=0.2, startup_s=0.3,
    )  # fmt: skip


def test_ratios_and_growth_are_of_the_cost_of_one_pod(tmp_path):
    """100 pods in 0.2 s are 2 ms each; 1000 in 4 s are 4 ms each, twice as much."""
    results = Results.of([
        sample("lower-bound", pods=100, build_s=0.1), sample("lower-bound", pods=1000, build_s=2.0),
        sample("k8snet", pods=100, build_s=0.2), sample("k8snet", pods=1000, build_s=4.0),
    ])  # fmt: skip
    assert results.growth("k8snet") == pytest.approx(2.0)
    readme = tmp_path / "README.md"
    readme.write_text(f"above\n{BEGIN}\nlast week\n{END}\nbelow\n")
    insert(results, readme, command="./run bench")
    text = readme.read_text()
    assert "| **k8snet** | 2.00 | 4.00 | 2.00 | 1.00 | 2.00 |" in text
    assert "| build, times the lower bound | 2.00 | at most 1.3 | **no** |" in text
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "last week" not in text


def test_a_cluster_counts_as_up_when_the_referee_has_every_answer(tmp_path):
    """5.7 s by its own account and 0.5 s until all answered are more than 6; and only its own table changes."""
    results = Results.of([
        sample("cluster-direct", nodes=2, pods=20, build_s=1.0),
        sample("cluster-direct", nodes=10, pods=300, build_s=5.7),
        sample("cluster-cni", nodes=2, pods=20, build_s=2.0),
        sample("cluster-cni", nodes=10, pods=300, build_s=11.4),
    ])  # fmt: skip
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\nbuild\n{END}\n{cluster_report.BEGIN}\nlast week\n{cluster_report.END}\nbelow\n")
    cluster_report.insert(results, readme, command="./run bench --only cluster")
    text = readme.read_text()
    assert "| **k8snet**, through Debian's CNI plugins | 2.00 | 2.50 | 11.40 | 11.90 | 38.00 | 2.00 |" in text
    assert "| up, wired by k8snet, s | 6.20 | at most 6 | **no** |" in text
    assert "| up, through CNI plugins, s | 11.90 | at most 30 | yes |" in text
    assert text.startswith(f"{BEGIN}\nbuild\n{END}\n")
    assert text.endswith("below\n")
    assert "last week" not in text


def test_every_way_to_program_services_is_measured_and_calls_are_answered(tmp_path):
    """10 Services, one round; each connection of the client has to stand before its time counts."""
    ways = "services-iptables,services-iptables-nft,services-nftables"
    result = python(
        "-m", "benchmarks", "--only", ways, "--services", "10,60", "--rounds", "2", "--calls", "20",
        "--out", str(tmp_path),
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    results = services_results.Results.read(tmp_path / "services.json")
    assert results.ways() == ["iptables-legacy", "iptables-nft", "nftables"]
    assert results.sizes("Latency") == [10, 60]
    for way in results.ways():
        assert results.first_packet(way, 60) > 0
        for what in ("full", "update"):
            assert results.load(way, what, 10, "k8snet_s") > 0
            assert results.load(way, what, 10, "tool_s") > 0
    assert results.load("iptables-nft", "full", 60, "k8snet_s") is None  # too large for one transaction
    assert "<svg" in (tmp_path / "services.svg").read_text()


def load(way: str, what: str, services: int, whole: float, tool: float | None, table: float = 0.5) -> measure.Load:
    return measure.Load(
        way=way, what=what, services=services, round=1, table_s=table, k8snet_s=whole, tool_s=tool, transactions=1,
        text_bytes=1000, own_cpu_s=0.25,
    )  # fmt: skip


def latency(way: str, services: int, milliseconds: float) -> measure.Latency:
    return measure.Latency(way=way, services=services, round=1, median_ms=milliseconds, p95_ms=1.0)


def test_a_share_is_what_the_tool_does_not_need_and_what_was_not_played_stays(tmp_path, monkeypatch):
    """4 s of which the tool needs 3 are a share of 25 %, and a third with a table of 0.5 s; and chapters find it."""
    older = services_results.Results.of(
        [load("nftables", "full", 1000, 2.0, 1.0), latency("nftables", 1000, 0.02)], calls=200
    ).with_guest("Linux 6.1, 2 CPUs", [latency("ipvs", 1000, 0.2)])
    newer = services_results.Results.of(
        [load("iptables-legacy", "full", 1000, 4.0, 3.0), latency("iptables-legacy", 1000, 0.05)], calls=200
    )
    results = newer.completed(older)
    assert results.share("iptables-legacy", "full", 1000) == pytest.approx(0.25)
    assert results.share("iptables-legacy", "full", 1000, table=True) == pytest.approx(1 / 3)
    readme = tmp_path / "README.md"
    readme.write_text(f"above\n{services_report.BEGIN}\nlast week\n{services_report.END}\nbelow\n")
    services_report.insert(results, readme, command="./run bench --only services")
    text = readme.read_text()
    assert "| iptables (legacy), all of them | 1,000 | 1 | 500.0 | 4,000.0 | 250.0 | 3,000.0 | 25% | 33% |" in text
    assert "| own share, nftables, 1,000 Services, all of them | 0.50 | at most 0.3 | **no** |" in text
    assert "| IPVS | 200.0 |" in text
    assert "last week" not in text
    results.write(tmp_path / "services.json")
    assert services_results.Results.read(tmp_path / "services.json") == results
    monkeypatch.setattr(services_report, "STORE", tmp_path / "stored" / "services_bench.json")
    services_report.store(results)
    stored = services_bench(services_report.STORE)
    assert stored.here.first_packet_ms == {"nftables": {1000: 0.02}, "iptables-legacy": {1000: 0.05}}
    assert stored.here.full_s["iptables-legacy"][1000] == 4.0
    assert stored.guest.first_packet_ms == {"ipvs": {1000: 0.2}}
    assert stored.guest.machine == "Linux 6.1, 2 CPUs"
    with pytest.raises(NotFound, match="bench --only services"):
        services_bench(tmp_path / "nothing.json")
