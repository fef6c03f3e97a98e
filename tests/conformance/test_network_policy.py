"""NetworkPolicies of Cyclonus and of Kubernetes's own end-to-end tests: by truth table, and live through sockets."""

from __future__ import annotations

import copy
import json
import os

import pytest
import yaml
from lightkube.resources.networking_v1 import NetworkPolicy

from k8snet import Cluster
from k8snet.cluster.manifests import parse
from k8snet.cluster.workloads import NodeSpec
from k8snet.controllers.network_policy.compiler import PolicyPod, PolicyTable
from k8snet.linux import neighbour, nsfs
from k8snet.linux.run import wait_until
from k8snet.observe.policy import explain

from .conftest import DATA, read

CYCLONUS = read("network_policy/cyclonus_cases.json") or {"cases": [], "initial": {}}
WORDS = ("TCP", "UDP", "SCTP")
PORTS = tuple((f"serve-{number}-{word.lower()}", word, number) for number in (80, 81) for word in WORDS)
LIVE = 46  # of Cyclonus's cases, evenly spread; K8SNET_LIVE_POLICIES=all takes every one
ROOM = 300  # neighbours that a sweep may need; all netns of a machine share 1,024
needs_data = pytest.mark.skipif(not CYCLONUS["cases"], reason=f"no conformance data in {DATA}")


def upstream():
    path = DATA / "network_policy" / "upstream_e2e_subset.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(), loader) if path.is_file() else {"cases": [], "initial": {}}


def cases():
    """Return name, initial state and case of each."""
    found = []
    for name, data in (("cyclonus", CYCLONUS), ("e2e", upstream())):
        found += [pytest.param(data["initial"], one, id=f"{name}-{one['index']}") for one in data["cases"]]
    return found


ALL = cases()


def live():
    ours = [one for one in ALL if one.id.startswith("cyclonus")]
    step = 1 if os.environ.get("K8SNET_LIVE_POLICIES") == "all" else max(1, len(ours) // LIVE)
    late = [one for one in ours if len(one.values[1]["steps"]) > 1]
    chosen = {one.id: one for one in (*ours[::step], *late)}
    return [*chosen.values(), *(one for one in ALL if one.id.startswith("e2e"))]


class State:
    """Namespaces, pods and policies of a case, as its actions change them."""

    def __init__(self, initial):
        self.namespaces = copy.deepcopy(initial["namespaces"])
        self.pods = {(one["namespace"], one["name"]): copy.deepcopy(one) for one in initial["pods"]}
        self.policies = {}

    def act(self, action):
        ((verb, what),) = action.items()
        match verb:
            case "createPolicy" | "updatePolicy":
                self.policies[what["metadata"]["namespace"], what["metadata"]["name"]] = what
            case "deletePolicy":
                del self.policies[what["namespace"], what["name"]]
            case "createNamespace" | "setNamespaceLabels":
                self.namespaces[what["namespace"]] = what["labels"]
            case "deleteNamespace":
                del self.namespaces[what]
                self.pods = {key: one for key, one in self.pods.items() if key[0] != what}
            case "createPod":
                self.pods[what["namespace"], what["name"]] = dict(what)
            case "deletePod":
                del self.pods[what["namespace"], what["name"]]
            case "setPodLabels":
                self.pods[what["namespace"], what["name"]]["labels"] = what["labels"]
            case _:
                raise ValueError(verb)

    def table(self):
        pods = [
            PolicyPod(namespace=space, name=name, labels=one["labels"], addresses=(one["ip"],), ports=PORTS)
            for (space, name), one in self.pods.items()
        ]
        return PolicyTable(map(NetworkPolicy.from_dict, self.policies.values()), pods, self.namespaces)

    def objects(self):
        """Return it as manifests; each pod has the address that the case gives it."""
        yield from (
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
            for name, labels in self.namespaces.items()
        )
        ports = [{"name": name, "protocol": word, "containerPort": number} for name, word, number in PORTS]
        for (space, name), one in self.pods.items():
            yield {
                "apiVersion": "v1", "kind": "Pod", "status": {"podIP": one["ip"]},
                "metadata": {"name": name, "namespace": space, "labels": one["labels"]},
                "spec": {"containers": [{"name": "server", "image": "agnhost", "ports": ports}]},
            }  # fmt: skip
        yield from self.policies.values()


def pairs(expected):
    """Yield from, to and whether that is allowed; a pod always reaches itself, whatever the table says."""
    for source, row in expected["combined"].items():
        for target, sign in zip(expected["order"], row, strict=True):
            if source != target:
                yield source, target, sign == "."


@needs_data
@pytest.mark.parametrize(("initial", "case"), ALL)
def test_the_truth_table_is_the_one_of_the_case_in_each_direction(initial, case):
    state = State(initial)
    for step in case["steps"]:
        for action in step["actions"] or ():
            state.act(action)
        table = state.table()
        for expected in step["expected"]:
            port, protocol = expected["port"], expected["protocol"]
            for source, target, allowed in pairs(expected):
                assert table.allowed(source, target, port, protocol) == allowed, (source, target, port, protocol)
            for word in ("ingress", "egress"):
                for source, target, allowed in pairs({**expected, "combined": expected[word]}):
                    here, there = table.party(source), table.party(target)
                    assert table.direction(word, here, there, port, protocol) == allowed
            source, target, allowed = next(pairs(expected))
            assert explain(table, source, target, port, protocol).allowed == allowed


@pytest.fixture(scope="module")
def cluster():
    """One cluster for all cases: a node for each namespace's network, and one for what cases add."""
    nodes = [NodeSpec(name=f"node{number}", pod_cidrs=(f"192.168.{number}.0/24",)) for number in (1, 2, 3, 9)]
    with Cluster(nodes, name="policies", wiring="direct") as made:
        made.start_network_policy()
        yield made
    assert nsfs.names() == []


def bring(cluster, state):
    """Apply a state, and delete what it does not have."""
    wanted = list(state.objects())
    manifest = parse(json.dumps({"apiVersion": "v1", "kind": "List", "items": wanted}))
    keys = {(one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]) for one in wanted}
    for kind, space, name in [key for key in cluster.objects if key not in keys]:
        if (kind, space, name) in cluster.objects and kind in {"NetworkPolicy", "Pod", "Namespace"}:
            cluster.delete(kind, name, namespace=space)
    cluster.apply(manifest)


@needs_data
@pytest.mark.parametrize(("initial", "case"), live())
def test_what_sockets_reach_is_what_the_case_expects(cluster, initial, case):
    """TCP and UDP; SCTP's rules are there, but few kernels let a socket try them."""
    state = State(initial)
    for step in case["steps"]:
        for action in step["actions"] or ():
            state.act(action)
        bring(cluster, state)
        wait_until(lambda: neighbour.room() > ROOM, what="room for neighbours: another program has taken it",
                   timeout_s=120, every_s=0.5)  # fmt: skip
        asked = [one for one in step["expected"] if one["protocol"] != "SCTP"]
        ports = [f"{one['protocol'].lower()}/{one['port']}" for one in asked]
        seen = cluster.reach(ports=ports, timeout_s=0.5, expected=True)
        assert seen.differences == []
        for matrix, expected in zip(seen.matrices, asked, strict=True):
            for source, target, allowed in pairs(expected):
                assert matrix[source, target].ok == allowed, (matrix.title, source, target)
