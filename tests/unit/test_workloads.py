"""Workloads become pods with stable names, and pods find nodes as the scheduler would."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8snet.cluster import objects as o
from k8snet.cluster.manifests import load, parse
from k8snet.cluster.workloads import HOSTNAME, NodeSpec, node_specs, plan

MANIFESTS = Path(__file__).parents[2] / "notebooks" / "manifests"
THREE = [NodeSpec(name=f"n{number}") for number in (1, 2, 3)]


def workload(kind, name="web", *, spec="", pod="", ports="", meta=""):
    """Return the text of a workload; the options are flow mappings without their braces."""
    version = "batch/v1" if kind == "Job" else "apps/v1"
    selector = "" if kind == "Job" else f"selector: {{matchLabels: {{app: {name}}}}}, "
    restart = "restartPolicy: Never, " if kind == "Job" else ""
    container = f"{{name: a{f', ports: [{ports}]' if ports else ''}}}"
    template = f"{{metadata: {{labels: {{app: {name}}}}}, spec: {{{restart}{pod}containers: [{container}]}}}}"
    return (
        f"---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}{meta}}}\n"
        f"spec: {{{selector}{spec}template: {template}}}\n"
    )


def pod(name, *, spec="", meta="", status=""):
    return (
        f"---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}{meta}}}\n"
        f"spec: {{{spec}containers: [{{name: a}}]}}\nstatus: {{{status}}}\n"
    )


def owned(name, kind, owner, template=""):
    """Return the text of a pod as a live cluster has it, with what controls it."""
    labels = f", labels: {{pod-template-hash: {template}}}" if template else ""
    version = "batch/v1" if kind == "Job" else "apps/v1"
    reference = f"{{apiVersion: {version}, kind: {kind}, name: {owner}, uid: u, controller: true}}"
    return pod(name, spec="nodeName: n1, ", meta=f"{labels}, ownerReferences: [{reference}]")


def placed(*texts, nodes=THREE, before=()):
    """Return pod -> node for some manifests."""
    plans = plan(parse("".join(texts)).objects, nodes=nodes, placed=before)
    return {one.name: one.node for one in plans}


def only(*texts, nodes=THREE, before=()):
    (found,) = plan(parse("".join(texts)).objects, nodes=nodes, placed=before)
    return found


def affinity(requirements):
    """Return a required node affinity; without requirements its one term is empty, and holds for no node."""
    term = f"{{matchExpressions: [{{{requirements}}}]}}" if requirements else "{}"
    required = f"requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{term}]}}"
    return f"affinity: {{nodeAffinity: {{{required}}}}}, "


# -- which pods --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (workload("Deployment", spec="replicas: 2, "), ["web-1", "web-2"]),
        (workload("Deployment"), ["web-1"]),
        (workload("Deployment", spec="replicas: 0, "), []),
        (workload("ReplicaSet", spec="replicas: 2, "), ["web-1", "web-2"]),
        (workload("StatefulSet", spec="replicas: 2, "), ["web-0", "web-1"]),
        (workload("StatefulSet", spec="replicas: 2, ordinals: {start: 5}, "), ["web-5", "web-6"]),
        (workload("DaemonSet"), ["web-n1", "web-n2", "web-n3"]),
        (workload("Job"), ["web-1"]),
        (workload("Job", spec="parallelism: 3, "), ["web-1", "web-2", "web-3"]),
        (workload("Job", spec="parallelism: 3, completions: 2, "), ["web-1", "web-2"]),
        (workload("Job", spec="suspend: true, "), []),
        (workload("Job", spec="parallelism: 2, completions: 2, ") + "status: {succeeded: 1}", ["web-1"]),
        (workload("Job") + "status: {conditions: [{type: Complete, status: 'True'}]}", []),
        (pod("a", status="phase: Failed") + pod("b"), ["b"]),
    ],
)
def test_a_workload_becomes_pods_of_stable_names(text, names):
    assert list(placed(text)) == names


def test_names_that_two_workloads_would_share_have_the_kind_in_them():
    """A StatefulSet keeps its names whatever the order is: they are the identity of its pods."""
    texts = workload("Deployment", spec="replicas: 2, "), workload("Job"), workload("StatefulSet", spec="replicas: 2, ")
    assert list(placed(*texts)) == ["web-deployment-1", "web-deployment-2", "web-job-1", "web-0", "web-1"]


def test_a_pod_keeps_its_name_before_those_that_a_workload_makes():
    assert list(placed(workload("Deployment"), pod("web-1"))) == ["web-deployment-1", "web-1"]


def test_the_same_names_in_two_namespaces_are_no_collision():
    assert [one.key for one in plan(
        parse(workload("Deployment") + workload("Job", meta=", namespace: x")).objects, nodes=THREE
    )] == [("default", "web-1"), ("x", "web-1")]  # fmt: skip


def test_a_pod_of_a_workload_has_what_its_controller_would_write():
    found = only(workload("StatefulSet", spec="serviceName: peers, "))
    assert found.owner == "StatefulSet web"
    assert o.labels_of(found.pod) == {
        "app": "web", "statefulset.kubernetes.io/pod-name": "web-0", "apps.kubernetes.io/pod-index": "0",
    }  # fmt: skip
    spec, (reference,) = found.pod.spec, found.pod.metadata.ownerReferences
    assert (spec.hostname, spec.subdomain, spec.nodeName) == ("web-0", "peers", "n1")
    assert (reference.kind, reference.name, reference.controller) == ("StatefulSet", "web", True)


def test_a_plan_leaves_the_objects_as_they_were():
    objects = parse(workload("Deployment") + pod("a")).objects
    before = [one.to_dict() for one in objects]
    plan(objects, nodes=THREE)
    assert [one.to_dict() for one in objects] == before


# -- dumps of live clusters --------------------------------------------------------------------


def test_pods_of_a_live_dump_are_not_made_again_by_what_owns_them():
    """Deployment, ReplicaSets of two revisions and Pods, as `kubectl get deploy,rs,pod` lists them."""
    of_web = ", ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: web, uid: u, controller: true}]"
    texts = (
        workload("Deployment", spec="replicas: 2, "),
        workload("ReplicaSet", "web-old", spec="replicas: 0, ", meta=of_web),
        workload("ReplicaSet", "web-new", spec="replicas: 2, ", meta=of_web),
        owned("web-new-aa", "ReplicaSet", "web-new", "new"),
        owned("web-new-bb", "ReplicaSet", "web-new", "new"),
    )
    assert list(placed(*texts)) == ["web-new-aa", "web-new-bb"]
    assert list(placed(*texts[:-1])) == ["web-new-1", "web-new-aa"]  # the one that is missing is made
    assert list(placed(*texts[:3])) == ["web-new-1", "web-new-2"]


def test_a_deployment_knows_its_pods_without_their_replica_set():
    texts = workload("Deployment", spec="replicas: 2, "), owned("web-5d-aa", "ReplicaSet", "web-5d", "5d")
    assert list(placed(*texts)) == ["web-1", "web-5d-aa"]


@pytest.mark.parametrize(
    ("text", "there", "names"),
    [
        (workload("StatefulSet", spec="replicas: 2, "), owned("web-0", "StatefulSet", "web"), ["web-1", "web-0"]),
        (workload("DaemonSet"), owned("web-x7", "DaemonSet", "web"), ["web-n2", "web-n3", "web-x7"]),
        (workload("Job"), owned("web-x7", "Job", "web"), ["web-x7"]),
    ],
)
def test_pods_that_are_there_count_for_their_workload(text, there, names):
    assert list(placed(text, there)) == names


def test_the_address_of_a_live_pod_is_wanted_again_but_not_its_nodes():
    node, address = "nodeName: n1, ", "podIP: 10.244.1.5, podIPs: [{ip: 10.244.1.5}, {ip: 'fd00::5'}]"
    assert only(pod("a", spec=node, status=address)).wanted_addresses == ("10.244.1.5", "fd00::5")
    assert only(pod("a", spec=f"hostNetwork: true, {node}", status=address)).wanted_addresses == ()


# -- which node --------------------------------------------------------------------------------


def test_pods_spread_evenly_round_those_that_name_their_node():
    fixed = [pod(name, spec="nodeName: n1, ") for name in "ab"]
    found = placed(workload("Deployment", spec="replicas: 4, "), *fixed)
    assert Counter(found.values()) == {"n1": 2, "n2": 2, "n3": 2}


@given(st.integers(0, 40), st.integers(1, 6))
def test_no_node_has_two_pods_more_than_another(replicas, count):
    nodes = [NodeSpec(name=f"n{number}") for number in range(count)]
    found = Counter(placed(workload("Deployment", spec=f"replicas: {replicas}, "), nodes=nodes).values())
    assert sum(found.values()) == replicas
    assert max(found.values(), default=0) - min((found[node.name] for node in nodes), default=0) <= 1


@pytest.mark.parametrize(
    ("spec", "node"),
    [
        ("nodeSelector: {disk: ssd}, ", "n2"),
        ("nodeSelector: {kubernetes.io/hostname: n3}, ", "n3"),
        (affinity("key: disk, operator: Exists"), "n2"),
        (affinity("key: disk, operator: Exists}, {key: disk, operator: In, values: [hdd]"), None),
        (affinity("key: x, operator: Exists}]}, {matchFields: [{key: metadata.name, operator: In, values: [n3]"), "n3"),
        (affinity("key: cpus, operator: Gt, values: ['8']"), "n3"),
        (affinity("key: cpus, operator: Lt, values: ['8']"), "n1"),
        (affinity(""), None),
        ("nodeName: n4, ", "n4"),  # past the scheduler, onto a node that is cordoned
        ("nodeSelector: {kubernetes.io/hostname: n4}, ", None),
    ],
)  # fmt: skip
def test_a_pod_goes_where_its_selector_and_affinity_let_it(spec, node):
    nodes = [
        NodeSpec(name="n1", labels={"cpus": "4"}),
        NodeSpec(name="n2", labels={"disk": "ssd", "cpus": "many"}),
        NodeSpec(name="n3", labels={"cpus": "16"}),
        NodeSpec(name="n4", labels={"cpus": "32", "disk": "ssd"}, unschedulable=True),
    ]
    assert only(pod("a", spec=spec), nodes=nodes).node == node


@pytest.mark.parametrize(
    ("spec", "nodes", "reason"),
    [
        ("nodeName: n9, ", THREE, "there is no node n9"),
        ("nodeSelector: {disk: ssd, zone: a}, ", THREE, "no schedulable node fits disk=ssd, zone=a"),
        (affinity(""), THREE, "no schedulable node fits its node affinity"),
        ("", [], "no node is schedulable"),
        ("", [NodeSpec(name="n1", unschedulable=True)], "no node is schedulable"),
    ],
)
def test_a_pod_without_a_node_says_why(spec, nodes, reason):
    found = only(pod("a", spec=spec), nodes=nodes)
    assert (found.node, found.reason) == (None, reason)
    assert found.pod.spec.nodeName == ("n9" if "n9" in reason else None)


def test_a_pod_that_is_but_an_address_has_nothing_to_run():
    found = only("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: {podIP: 10.240.0.1}\n")
    assert (found.node, found.reason) == (None, "it has no containers")


@pytest.mark.parametrize(("option", "port"), [("hostNetwork: true, ", "{containerPort: 80}"),
                                              ("", "{containerPort: 8080, hostPort: 80}")])  # fmt: skip
def test_pods_with_one_port_of_the_node_go_to_different_nodes_and_one_too_many_waits(option, port):
    plans = plan(parse(workload("Deployment", spec="replicas: 4, ", pod=option, ports=port)).objects, nodes=THREE)
    assert [one.node for one in plans] == ["n1", "n2", "n3", None]
    assert plans[3].reason == "port TCP 80 of every node that fits is taken"


def test_the_same_port_of_another_protocol_is_free():
    udp, tcp = "{containerPort: 53, protocol: UDP}", "{containerPort: 53}"
    first, second = (workload("DaemonSet", name, pod="hostNetwork: true, ", ports=udp) for name in "ab")
    other = workload("DaemonSet", "c", pod="hostNetwork: true, ", ports=tcp)
    assert list(placed(first, other).values()) == ["n1", "n2", "n3"] * 2
    assert list(placed(first, second).values()) == ["n1", "n2", "n3", None, None, None]


def test_a_daemon_is_on_cordoned_nodes_too_but_only_where_its_selector_fits():
    nodes = [NodeSpec(name="n1", labels={"gpu": "yes"}, unschedulable=True), NodeSpec(name="n2")]
    assert placed(workload("DaemonSet", pod="nodeSelector: {gpu: 'yes'}, "), nodes=nodes) == {"web-n1": "n1"}


# -- a cluster that runs already ---------------------------------------------------------------


def test_what_runs_stays_where_it_is_and_what_is_new_spreads_round_it():
    objects = parse(workload("Deployment", spec="replicas: 3, ")).objects
    before = plan(objects, nodes=THREE)
    cordoned = [NodeSpec(name="n1", unschedulable=True), *THREE[1:]]
    more = parse(pod("first") + workload("Deployment", spec="replicas: 4, ")).objects
    after = {one.name: one.node for one in plan(more, nodes=cordoned, placed=before)}
    assert after == {"first": "n2", "web-1": "n1", "web-2": "n2", "web-3": "n3", "web-4": "n3"}


def test_what_runs_stays_even_where_it_is_crowded():
    before = plan(parse(pod("a")).objects, nodes=THREE)
    crowd = [pod(name, spec="nodeName: n1, ") for name in "bcd"]
    assert placed(*crowd, pod("a"), before=before)["a"] == "n1"


def test_pods_of_other_manifests_count_with_what_they_take():
    ports = "{containerPort: 1, hostPort: 80}"
    before = plan(parse(workload("Deployment", "old", spec="replicas: 2, ", ports=ports)).objects, nodes=THREE)
    assert only(pod("a"), before=before).node == "n3"
    text = workload("Deployment", spec="replicas: 1, ", ports=ports)
    assert only(text, before=before, nodes=THREE[:2]).reason == "port TCP 80 of every node that fits is taken"


def test_a_pod_whose_node_has_gone_or_no_longer_fits_is_placed_anew():
    before = plan(parse(pod("a")).objects, nodes=THREE)
    assert before[0].node == "n1"
    assert only(pod("a"), nodes=THREE[1:], before=before).node == "n2"
    assert only(pod("a", spec="nodeSelector: {kubernetes.io/hostname: n3}, "), before=before).node == "n3"


# -- nodes -------------------------------------------------------------------------------------


def test_nodes_come_with_their_networks_addresses_and_labels():
    nodes = node_specs(load(MANIFESTS / "three-nodes.yaml").objects)
    assert nodes[2] == NodeSpec(
        name="node3",
        labels={HOSTNAME: "node3", "topology.kubernetes.io/zone": "b"},
        pod_cidrs=("10.244.3.0/24",),
        addresses=("172.18.0.3",),
    )
    assert nodes[0].labels[HOSTNAME] == "node1"


def test_nodes_have_the_labels_by_which_agents_choose_them():
    """kube-flannel, kube-proxy, CoreDNS and ingress-nginx select nodes by what the kubelet gives every node."""
    linux = "nodeSelector: {kubernetes.io/os: linux, beta.kubernetes.io/os: linux}, "
    found = plan(parse(workload("DaemonSet", pod=linux)).objects, nodes=THREE)
    assert [one.node for one in found] == ["n1", "n2", "n3"]
    assert only(pod("a", spec="nodeSelector: {kubernetes.io/os: windows}, ")).node is None


def test_a_pod_with_an_address_goes_where_that_belongs():
    nodes = [NodeSpec(name=f"n{number}", pod_cidrs=(f"10.244.{number}.0/24",)) for number in (1, 2)]
    assert only(pod("a", status="podIP: 10.244.2.5"), nodes=nodes).node == "n2"
    assert only(pod("a", spec="nodeName: n1, ", status="podIP: 10.244.2.5"), nodes=nodes).node == "n1"


def test_a_dual_stack_node_has_two_pod_cidrs_and_a_cordon():
    text = (
        "apiVersion: v1\nkind: Node\nmetadata: {name: a, labels: {kubernetes.io/hostname: other}}\n"
        "spec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.1.0.0/24, 'fd00::/64'], unschedulable: true}\n"
        "status: {addresses: [{type: Hostname, address: a}, {type: InternalIP, address: 172.18.0.1}]}\n"
    )
    assert node_specs(parse(text).objects) == [
        NodeSpec(name="a", labels={HOSTNAME: "other"}, pod_cidrs=("10.1.0.0/24", "fd00::/64"),
                 addresses=("172.18.0.1",), unschedulable=True)
    ]  # fmt: skip


# -- the manifests of the book -----------------------------------------------------------------


def test_twelve_pods_spread_over_the_three_nodes_of_the_book():
    objects = load(MANIFESTS / "three-nodes.yaml").objects
    plans = plan(objects, nodes=node_specs(objects))
    assert Counter(one.node for one in plans) == {"node1": 4, "node2": 4, "node3": 4}
    assert next(one.node for one in plans if one.name == "store-0") == "node3"


def test_the_shop_has_its_pods_and_one_agent_a_node():
    plans = plan(load(MANIFESTS / "shop.yaml").objects, nodes=THREE)
    assert [one.name for one in plans if one.namespace == "shop"] == [
        "web-1", "web-2", "web-3", "cache-1", "db-0", "db-1", "client",
    ]  # fmt: skip
    assert {one.name: one.node for one in plans if one.namespace == "monitoring"} == {
        "agent-n1": "n1", "agent-n2": "n2", "agent-n3": "n3",
    }  # fmt: skip
    assert all(one.reason == "" for one in plans)
