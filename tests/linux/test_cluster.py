"""The cluster: nodes, pods, and what becomes of them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from k8snet import Cluster
from k8snet.cluster.manifests import load, parse
from k8snet.errors import InvalidInput, InvalidManifest, K8snetError, LabClosed, NameTaken, NotFound
from k8snet.linux import nsfs
from k8snet.linux.run import scratch, wait_until
from tests.replay import replay

TWO = """
apiVersion: v1
kind: Pod
metadata: {name: two}
spec:
  containers:
  - {name: web, image: nginx, ports: [{containerPort: 80, hostPort: 8080}]}
  - {name: side, image: agnhost, ports: [{containerPort: 8081}, {containerPort: 53, protocol: UDP}]}
"""
WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: nginx, ports: [{containerPort: 80}]}]}
"""
AGENT = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec: {hostNetwork: true, containers: [{name: agent, image: x, ports: [{containerPort: 9100}]}]}
"""


def processes_in(netns):
    return netns.run("ip", "netns", "pids", netns.name).stdout.split()


def leases(cluster):
    return sorted(path.name for path in (scratch() / f"cluster-{cluster.lab.name}").glob("*/networks/k8snet/*.*.*.*"))


# -- what is built ---------------------------------------------------------------------


def test_addresses_are_the_ones_of_the_books_plan(cluster_of):
    cluster = cluster_of(2)
    cluster.apply(WEB)
    assert [(node.address, node.pod_cidr) for node in cluster.nodes.values()] == [
        ("172.18.0.1", "10.244.1.0/24"), ("172.18.0.2", "10.244.2.0/24"),
    ]  # fmt: skip
    found = {pod.name: (pod.address, pod.node.name) for pod in cluster.pods.values()}
    assert found == {
        "web-1": ("10.244.1.2", "node1"), "web-2": ("10.244.2.2", "node2"), "web-3": ("10.244.1.3", "node1")
    }  # fmt: skip


@pytest.mark.parametrize("network", ["routes", "vxlan"])
@pytest.mark.parametrize("families", [("v4",), ("v4", "v6")], ids="+".join)
def test_pods_wired_by_cni_plugins_and_by_k8snet_leave_the_same_state(cluster_of, network, families):
    """Rules, leases and hairpin ports too: the fast way must not be another way."""
    seen = []
    for wiring in ("direct", "cni"):
        cluster = cluster_of(2, wiring=wiring, pod_network=network, ip_families=families)
        cluster.apply(TWO)
        cluster.apply(WEB)
        seen.append((cluster.snapshot(), leases(cluster), {pod.key: pod.mac for pod in cluster.pods.values()}))
        cluster.close()
    assert seen[0][0] == seen[1][0], seen[0][0].diff(seen[1][0])
    assert seen[0][1:] == seen[1][1:]


@pytest.mark.parametrize("wiring", ["direct", "cni"])
@pytest.mark.parametrize("network", ["routes", "vxlan", "bgp"])
def test_the_transcript_of_a_cluster_builds_it_in_a_fresh_sandbox(cluster_of, tmp_path, wiring, network):
    cluster = cluster_of(2, wiring=wiring, pod_network=network, ip_families=("v4", "v6"))
    cluster.apply(TWO)
    cluster.apply(WEB)
    cluster.delete("pod", "two")
    assert replay(cluster.transcript.script(), tmp_path) == json.loads(cluster.snapshot().to_json())


def test_a_pod_reaches_the_internet_as_its_node_and_another_pod_as_itself(cluster_of):
    cluster = cluster_of(2)
    a, b = cluster.run_pod("a", node="node1"), cluster.run_pod("b", node="node2")
    assert a.fetch("http://203.0.113.80").server_sees[0].startswith("172.18.0.1:")
    assert a.fetch(b).server_sees[0].startswith("10.244.1.2:")
    assert not cluster.internet.ping("10.244.1.2", timeout_s=0.3).ok


def test_without_masquerade_the_answer_from_the_internet_finds_no_way_back(cluster_of):
    cluster = cluster_of(1, masquerade=False)
    pod = cluster.run_pod("a")
    assert pod.connect("203.0.113.80", 80, timeout_s=0.5).outcome == "timeout"


def test_a_manifest_may_be_the_text_of_one_line(cluster_of):
    cluster = cluster_of(1)
    cluster.apply(' {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}')
    assert ("Namespace", "", "shop") in cluster.objects
    with pytest.raises(InvalidManifest, match="missing"):
        cluster.apply("missing.yaml")


def test_containers_of_a_pod_share_one_netns_that_the_pause_process_holds(cluster_of):
    cluster = cluster_of(1)
    cluster.apply(TWO)
    pod = cluster.pod("two")
    inodes = {nsfs.inode(f"/proc/{pid}/ns/net") for pid in [pod.pause.pid, *pod.container("web").pids]}
    assert inodes == {pod.netns.inode}
    assert pod.connect("127.0.0.1", 80).ok
    assert pod.connect("127.0.0.1", 8081).ok


def test_a_second_container_on_the_same_port_ends_in_an_error_and_the_first_one_goes_on(cluster_of):
    """EADDRINUSE: one netns has one set of ports."""
    cluster = cluster_of(1)
    cluster.apply(TWO.replace("containerPort: 8081", "containerPort: 80"))
    pod = cluster.pod("two")
    assert (pod.phase, pod.ready) == ("Error", False)
    assert "is taken" in pod.container("side").reason
    assert pod.connect("127.0.0.1", 80).ok
    assert cluster.get("pods").rows[0][2:4] == ("1/2", "Error")


def test_a_container_that_restarts_keeps_the_pods_network(cluster_of):
    cluster = cluster_of(1)
    pod = cluster.run_pod("a")
    before, inode = cluster.snapshot(), pod.netns.inode
    pod.container("a").restart()
    assert (cluster.snapshot(), pod.netns.inode) == (before, inode)
    assert pod.container("a").restarts == 1
    assert cluster.node("node1").netns.fetch(f"http://{pod.address}").ok


def test_host_network_pods_have_their_nodes_address_and_ports(cluster_of):
    cluster = cluster_of(2)
    cluster.apply(AGENT)
    assert {pod.key: pod.address for pod in cluster.pods.values()} == {
        "default/agent-node1": "172.18.0.1", "default/agent-node2": "172.18.0.2"
    }  # fmt: skip
    other = cluster.run_pod("other", node="node1", host_network=True, image="x", ports=[9100])
    assert other.phase in {"Error", "Pending"}


@pytest.mark.parametrize("wiring", ["direct", "cni"])
def test_a_host_port_is_reached_at_the_node_and_its_rules_go_with_the_pod(cluster_of, wiring):
    cluster = cluster_of(1, wiring=wiring)
    before = cluster.snapshot()
    cluster.apply(TWO)
    assert cluster.internet.fetch("http://172.18.0.1:8080").body.startswith("two says")
    cluster.delete("pod", "two")
    rules = cluster.snapshot()["node1"].lines("iptables-nft")
    assert not any("8080" in line for line in rules)
    assert set(before["node1"].lines("iptables-nft")) <= set(rules)


def test_readiness_follows_the_probe_of_the_manifest(cluster_of):
    cluster = cluster_of(1)
    text = TWO.replace("image: agnhost,", "image: agnhost, readinessProbe: {tcpSocket: {port: 8081}},")
    cluster.apply(text)
    pod = cluster.pod("two")
    assert pod.ready
    pod.netns.iptables("-A INPUT -p tcp --dport 8081 -j REJECT")
    assert (pod.ready, cluster.get().rows[0][2]) == (False, "1/2")


# -- what changes ----------------------------------------------------------------------


@pytest.mark.parametrize("wiring", ["direct", "cni"])
def test_a_deleted_pod_frees_address_lease_interfaces_rules_and_processes(cluster_of, wiring):
    cluster = cluster_of(1, wiring=wiring)
    before = cluster.snapshot()
    cluster.run_pod("a")
    pids = [cluster.pod("a").pause.pid, *cluster.pod("a").container("a").pids]
    assert leases(cluster) == ["10.244.1.2"]
    cluster.delete("pod", "a")
    assert (cluster.snapshot(), leases(cluster)) == (before, [])
    assert not [pid for pid in pids if Path(f"/proc/{pid}/ns/net").exists()]
    assert "a" not in cluster.lab


def test_a_workloads_pod_that_is_deleted_comes_again(cluster_of):
    cluster = cluster_of(2)
    cluster.apply(WEB)
    cluster.delete("pod", "web-2", namespace="shop")
    assert cluster.pod("shop/web-2").ready
    cluster.delete("deployment", "web", namespace="shop")
    assert cluster.pods == {}


def test_replicas_and_templates_that_change_make_only_the_pods_that_differ(cluster_of):
    cluster = cluster_of(2)
    cluster.apply(WEB)
    kept = cluster.pod("shop/web-1")
    assert "deployment/web configured" in cluster.apply(WEB.replace("replicas: 3", "replicas: 2"))
    assert sorted(pod.name for pod in cluster.pods.values()) == ["web-1", "web-2"]
    assert cluster.pod("shop/web-1") is kept
    assert "deployment/web unchanged" in cluster.apply(WEB.replace("replicas: 3", "replicas: 2"))
    cluster.apply(WEB.replace("containerPort: 80", "containerPort: 81"))
    assert cluster.pod("shop/web-1") is not kept
    assert cluster.node("node1").netns.fetch(f"http://{cluster.pod('shop/web-1').address}:81").ok


@pytest.mark.parametrize("network", ["routes", "vxlan", "bgp"])
def test_nodes_come_and_go_and_the_others_know_the_way(cluster_of, network):
    cluster = cluster_of(2, pod_network=network)
    cluster.apply(WEB)
    cluster.apply(AGENT)
    cluster.add_node()
    assert "agent-node3" in {pod.name for pod in cluster.pods.values()}
    cluster.run_pod("c", node="node3")
    assert cluster.check_model().ok
    cluster.remove_node("node1")
    assert {pod.node.name for pod in cluster.pods.values()} == {"node2", "node3"}
    assert len([pod for pod in cluster.pods.values() if pod.namespace == "shop"]) == 3
    report = cluster.check_model()
    assert report.ok, str(report)
    state = cluster.snapshot()["node2"]
    assert not [route for route in state.routes if route.destination == "10.244.1.0/24"]
    assert not [entry for entry in state.fdb if entry.remote == "172.18.0.1"]


def test_a_pod_waits_for_a_node_that_fits_and_gets_it(cluster_of):
    cluster = cluster_of(1)
    cluster.apply(WEB.replace("spec: {containers", "spec: {nodeSelector: {disk: ssd}, containers"))
    assert {pod.phase for pod in cluster.pods.values()} == {"Pending"}
    assert "disk" in cluster.pod("shop/web-1").reason
    with pytest.raises(NotFound, match="has no netns"):
        cluster.pod("shop/web-1").ping("10.244.1.1")
    cluster.add_node("fast", labels={"disk": "ssd"})
    assert {pod.node.name for pod in cluster.pods.values()} == {"fast"}


def test_more_pods_than_addresses_leave_some_pending_with_the_reason(cluster_of):
    from k8snet.cluster.workloads import NodeSpec

    cluster = cluster_of([NodeSpec(name="small", pod_cidrs=("10.99.0.0/29",))])
    cluster.apply(WEB.replace("replicas: 3", "replicas: 7"))
    pending = [pod for pod in cluster.pods.values() if pod.phase == "Pending"]
    assert len(pending) == 2
    assert "10.99.0.0/29" in pending[0].reason
    assert len(leases(cluster)) == 5


# -- what is killed --------------------------------------------------------------------


def test_a_killed_nginx_is_started_again_by_the_next_look_and_counted(cluster_of):
    cluster = cluster_of(1)
    pod = cluster.run_pod("a")
    [pid] = pod.container("a").pids
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not pod.container("a").alive, what="the end of nginx")
    assert not pod.ready
    assert cluster.get().rows[0][2:5] == ("1/1", "Running", "1")
    assert cluster.node("node1").netns.fetch(f"http://{pod.address}").ok


def test_a_killed_pause_process_is_started_again(cluster_of):
    cluster = cluster_of(1)
    pod = cluster.run_pod("a")
    os.kill(pod.pause.pid, signal.SIGKILL)
    wait_until(lambda: not pod.pause.running, what="the end of pause")
    assert cluster.sync() == ["pause process of pod default/a"]
    assert nsfs.inode(f"/proc/{pod.pause.pid}/ns/net") == pod.netns.inode


@pytest.mark.parametrize("reflector", [False, True])
def test_a_killed_bird_is_started_again_and_its_routes_come_back(cluster_of, reflector):
    cluster = cluster_of(3, pod_network="bgp", route_reflector=reflector)
    a, b = cluster.run_pod("a", node="node1"), cluster.run_pod("b", node="node2")
    os.kill(cluster.pod_network.daemon("node1").pid, signal.SIGKILL)
    node = cluster.node("node1").netns
    wait_until(lambda: not cluster.pod_network.daemon("node1").running, what="the end of bird")
    node.run("ip", "route", "flush", "proto", "bird")  # a killed bird leaves its routes behind
    assert not a.ping(b, timeout_s=0.3).ok
    assert cluster.sync() == ["bird in netns node1"]
    assert a.ping(b).ok


def test_a_pod_whose_netns_was_deleted_by_hand_is_reported_and_can_be_deleted(cluster_of):
    cluster = cluster_of(1)
    pod = cluster.run_pod("a")
    pod.stop()
    cluster.lab.let_go()
    cluster.lab.host.run("ip", "netns", "delete", "a")
    assert cluster.get().rows[0][3] == "Pending"
    assert "netns is gone" in pod.reason
    cluster.delete("pod", "a")
    assert leases(cluster) == []
    assert cluster.run_pod("a").ready


def test_a_plugin_killed_in_the_middle_of_add_leaves_the_pod_pending_and_nothing_else(cluster_of, tmp_path):
    """The chain's second plugin dies by SIGKILL: what the bridge plugin made before must go."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    for name in ("bridge", "host-local"):
        (folder / name).symlink_to(f"/usr/lib/cni/{name}")
    killer = folder / "portmap"
    killer.write_text('#!/bin/sh\n[ "$CNI_COMMAND" = ADD ] && kill -9 $$\nexit 0\n')
    killer.chmod(0o755)
    cluster = cluster_of(1, wiring="cni")
    before = cluster.snapshot()
    os.environ["CNI_PATH"] = str(folder)
    try:
        pod = cluster.run_pod("a")
    finally:
        del os.environ["CNI_PATH"]
    assert (pod.phase, cluster.snapshot(), leases(cluster)) == ("Pending", before, [])
    assert "portmap ADD" in pod.reason
    cluster.delete("pod", "a")
    assert cluster.run_pod("a").ready


# -- what is refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nodes": 0}, "nodes 0 is not a whole number from 1 to"),
        ({"nodes": True}, "nodes True is not"),
        ({"nodes": 251}, "nodes 251"),
        ({"nodes": "2"}, "nodes '2' is neither"),
        ({"nodes": []}, "not a whole number from 1"),
        ({"ip_families": "v4"}, "ip_families 'v4'"),
        ({"pod_network": "ipip"}, "pod_network 'ipip': one of routes, vxlan, bgp"),
        ({"wiring": "hand"}, "wiring 'hand': one of"),
        ({"ip_families": ("v6",)}, "ip_families"),
        ({"name": "a/b"}, "netns name 'a/b'"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_and_leaves_nothing(options, said):
    with pytest.raises(InvalidInput, match=said):
        Cluster(**{"name": "test", **options})
    assert nsfs.names() == []


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda c: c.run_pod("Web"), InvalidManifest, "'Web'"),
        (lambda c: c.run_pod("b", ports=[0]), InvalidManifest, "containerPort"),
        (lambda c: c.run_pod("b", ports=["x"]), InvalidManifest, "containerPort"),
        (lambda c: c.run_pod("b", ports=["80/icmp"]), InvalidManifest, "ICMP"),
        (lambda c: c.run_pod("b", node="node7"), NotFound, "no node 'node7'; there are: node1"),
        (lambda c: c.pod("zzz"), NotFound, "no pod 'zzz' in namespace 'default'; there are: a"),
        (lambda c: c.pod("shop/zzz"), NotFound, "there are: none"),
        (lambda c: c.node("zzz"), NotFound, "no node 'zzz'"),
        (lambda c: c.add_node("node1"), NameTaken, "node 'node1'"),
        (lambda c: c.add_node("router"), NameTaken, "node 'router'"),
        (lambda c: c.add_node("a"), NameTaken, "there is a netns of that name already"),
        (lambda c: c.add_node("no de"), K8snetError, "no de"),
        (lambda c: c.remove_node("zzz"), NotFound, "no node 'zzz'"),
        (lambda c: c.delete("pod", "zzz"), NotFound, "no Pod 'zzz'"),
        (lambda c: c.delete("zzz", "a"), NotFound, "no kind 'zzz'"),
        (lambda c: c.get("zzz"), NotFound, "no kind 'zzz'; there are:"),
        (lambda c: c.apply("nowhere.yaml"), InvalidManifest, "nowhere.yaml"),
        (lambda c: c.apply("a:\n- b: ]\n"), InvalidManifest, "line"),
        (lambda c: c.apply(3), InvalidInput, "apply"),
        (lambda c: c.reach(ports=["80"]), InvalidInput, "write it as in tcp/80"),
        (lambda c: c.reach(ports=["tcp/70000"]), InvalidInput, "70000"),
        (lambda c: c.reach(family="v6"), InvalidInput, "this cluster has v4"),
        (lambda c: c.reach(ports=[80]), InvalidInput, "port 80: write it as in tcp/80"),
        (lambda c: c.apply(""), InvalidManifest, "no Kubernetes object"),
        (lambda c: c.pod("a").container("b"), NotFound, "it has: a"),
    ],
)
def test_a_call_that_cannot_be_is_refused_and_the_cluster_is_as_it_was(cluster_of, call, error, said):
    cluster = cluster_of(1)
    cluster.run_pod("a")
    before = (cluster.snapshot(), leases(cluster), set(cluster.pods), set(cluster.objects))
    with pytest.raises(error, match=said):
        call(cluster)
    assert (cluster.snapshot(), leases(cluster), set(cluster.pods), set(cluster.objects)) == before


NODE = "apiVersion: v1\nkind: Node\nmetadata: {name: %s}\nspec: {podCIDR: %s}\n"
AT = "status: {addresses: [{type: InternalIP, address: %s}]}\n"
POD = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {%scontainers: [{name: a}]}\nstatus: {podIP: %s}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (NODE % ("x", "10.244.1.0/24"), "Node x has 10.244.1.0/24, which overlaps 10.244.1.0/24 of Node node1"),
        (NODE % ("x", "10.244.9.0/24") + AT % "172.18.0.1", "Node x: status.addresses: 172.18.0.1 is Node node1's"),
        (NODE % ("x", "10.244.9.0/24") + AT % "192.168.0.1", "192.168.0.1 is outside 172.18.0.0/16"),
        (NODE % ("x", "10.9.0.0/24"), "spec.podCIDR: 10.9.0.0/24 is outside 10.244.0.0/16"),
        (NODE % ("switch", "10.244.9.0/24"), "Node switch: metadata.name"),
        (NODE % ("a", "10.244.9.0/24"), "Node a: metadata.name"),
        (POD % ("", "10.9.9.9"), "Pod default/p: status.podIP: 10.9.9.9 is outside 10.244.1.0/24, the pod CIDR"),
        (POD % ("nodeName: node1, ", "10.244.1.1"), "it is its gateway"),
        (POD % ("", "10.244.1.255"), "it is its broadcast address"),
    ],
)  # fmt: skip
def test_what_has_no_place_in_a_running_cluster_is_refused_and_it_is_as_it_was(cluster_of, text, said):
    cluster = cluster_of(1)
    cluster.run_pod("a")
    before = (cluster.snapshot(), leases(cluster), set(cluster.pods), set(cluster.objects), set(cluster.nodes))
    with pytest.raises(InvalidManifest, match=said):
        cluster.apply(text)
    assert (cluster.snapshot(), leases(cluster), set(cluster.pods), set(cluster.objects), set(cluster.nodes)) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (NODE % ("router", "10.244.9.0/24"), "Node router: metadata.name"),
        (NODE % ("x", "10.9.0.0/24") + AT % "10.9.0.7", "10.9.0.0/24 holds 10.9.0.7, the InternalIP of Node x"),
        (NODE % ("x", "172.18.0.0/24"), "172.18.0.0/24 holds 172.18.0.1"),
        (NODE % ("x", "10.9.0.0/24") + AT % "127.0.0.1", "no node can have 127.0.0.1"),
        (NODE % ("x", "10.9.0.0/24") + AT % "172.18.0.254", "172.18.0.254 is the router's"),
        (NODE % ("x", "10.9.0.0/24") + AT % "11.0.0.1" + "---\n" + NODE % ("y", "10.9.1.0/24") + AT % "192.168.0.1",
         "no network of nodes holds all InternalIPs"),
        (POD % ("", "10.244.1.0"), "it is the network's own address"),
        ("---\n".join(NODE % (f"n{n}", f"10.{n // 250}.{n % 250}.0/24") for n in range(251)), "251 nodes are too many"),
    ],
)  # fmt: skip
def test_a_manifest_whose_nodes_cannot_be_is_refused_before_anything_is_built(text, said):
    with pytest.raises(InvalidManifest, match=said):
        Cluster.of(parse(text), name="test")
    assert nsfs.names() == []


def test_nodes_without_an_address_get_one_that_no_other_node_has(cluster_of):
    """A dump of kind has nodes at 172.18.0.2 and on; a node that is added must not share one."""
    text = NODE % ("x", "10.244.1.0/24") + AT % "172.18.0.2" + "---\n" + NODE % ("y", "10.244.0.0/24")
    with Cluster.of(parse(text + "---" + WEB), name="test", wiring="direct") as cluster:
        cluster.add_node()
        assert len({node.address for node in cluster.nodes.values()}) == 3
        report = cluster.check_model()
        assert report.ok, str(report)


def test_a_dual_stack_node_runs_in_a_cluster_of_ipv4():
    text = "apiVersion: v1\nkind: Node\nmetadata: {name: x}\nspec: {podCIDRs: [10.244.5.0/24, 'fd00:5::/64']}\n"
    with Cluster.of(parse(text), name="test") as cluster:
        assert cluster.node("x").pod_cidrs == {"v4": "10.244.5.0/24"}
        assert cluster.apply(text) == ["node/x unchanged"]


def test_names_of_kubernetes_may_be_longer_than_those_of_netns(cluster_of):
    name = f"ip-10-0-0-1.{'n' * 60}.internal"
    cluster = cluster_of(2, pod_network="bgp")
    pod = cluster.run_pod("p" * 200 + ".q", node=cluster.add_node(name).name)
    assert (pod.phase, pod.node.name) == ("Running", name)
    assert cluster.run_pod("b").ping(pod).ok
    cluster.remove_node(name)
    assert name not in cluster.nodes


def test_one_port_with_two_names_is_served_once(cluster_of):
    ports = "[{containerPort: 80, name: http}, {containerPort: 80, name: metrics}]"
    cluster = cluster_of(1)
    spec = f"{{containers: [{{name: a, ports: {ports}}}]}}"
    cluster.apply(f"apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {spec}\n")
    assert cluster.pod("a").ready
    assert cluster.node("node1").netns.connect(cluster.pod("a").address, 80).ok


@pytest.mark.parametrize(
    "call",
    [lambda c: c.run_pod("b"), lambda c: c.get(), lambda c: c.apply(WEB), lambda c: c.delete("pod", "a"),
     lambda c: c.add_node(), lambda c: c.remove_node("node1"), lambda c: c.sync(), lambda c: c.reach(),
     lambda c: c.check_model(), lambda c: c.diagram()],
)  # fmt: skip
def test_a_cluster_that_is_closed_says_so(cluster_of, call):
    cluster = cluster_of(1)
    cluster.run_pod("a")
    cluster.close()
    cluster.close()
    with pytest.raises(LabClosed, match="is closed"):
        call(cluster)


def test_a_second_cluster_in_a_sandbox_is_refused_and_the_first_one_goes_on(cluster_of):
    cluster = cluster_of(1)
    pod = cluster.run_pod("a")
    with pytest.raises(NameTaken, match="another cluster is open"):
        Cluster(name="second")
    assert cluster.node("node1").netns.ping(pod.address).ok


def test_a_node_that_runs_cannot_get_another_pod_cidr(cluster_of):
    cluster = cluster_of(1)
    node = 'apiVersion: v1\nkind: Node\nmetadata: {name: node1}\nspec: {podCIDR: "10.244.9.0/24"}\n'
    with pytest.raises(InvalidManifest, match="cannot change it"):
        cluster.apply(node)


# -- manifests -------------------------------------------------------------------------


def test_node_objects_give_names_pod_cidrs_and_addresses(cluster_of):
    text = """
apiVersion: v1
kind: Node
metadata: {name: alpha, labels: {disk: ssd}}
spec: {podCIDR: 10.77.0.0/24}
status: {addresses: [{type: InternalIP, address: 192.168.7.5}]}
---
apiVersion: v1
kind: Node
metadata: {name: beta}
spec: {podCIDR: 10.77.1.0/24}
status: {addresses: [{type: InternalIP, address: 192.168.7.6}]}
"""
    with Cluster.of(parse(text + "---" + WEB), name="test", wiring="direct") as cluster:
        assert {node.name: (node.address, node.pod_cidr) for node in cluster.nodes.values()} == {
            "alpha": ("192.168.7.5", "10.77.0.0/24"), "beta": ("192.168.7.6", "10.77.1.0/24"),
        }  # fmt: skip
        report = cluster.check_model()
        assert report.ok, str(report)
    with pytest.raises(InvalidManifest, match="2 Node objects, and 3 nodes were asked for"):
        Cluster.of(parse(text), nodes=3, name="test")


def test_the_pods_of_a_live_dump_get_their_own_addresses(cluster_of):
    text = TWO + "status: {podIP: 10.244.1.77}\n"
    for wiring in ("direct", "cni"):
        cluster = cluster_of(1, wiring=wiring)
        cluster.apply(text)
        assert cluster.pod("two").address == "10.244.1.77"
        assert leases(cluster) == ["10.244.1.77"]
        cluster.close()


def test_what_get_prints_as_json_can_be_applied_to_another_cluster(cluster_of):
    from k8snet.observe.status import as_objects

    cluster = cluster_of(2)
    cluster.apply(WEB)
    dumped = {kind: json.dumps(as_objects(cluster, kind)) for kind in ("nodes", "pods", "deployments")}
    addresses = {pod.key: pod.address for pod in cluster.pods.values()}
    cluster.close()
    with Cluster.of(load_texts(dumped), name="test", wiring="direct") as copy:
        assert {pod.key: pod.address for pod in copy.pods.values()} == addresses


def load_texts(texts):
    return parse(json.dumps({
        "apiVersion": "v1", "kind": "List",
        "items": [one for text in texts.values() for one in json.loads(text)["items"]],
    }))  # fmt: skip


@pytest.mark.parametrize("name", ["shop", "three-nodes", "two-containers"])
def test_the_manifests_of_the_book_run(name):
    file = Path(__file__).resolve().parents[2] / "notebooks/manifests" / f"{name}.yaml"
    with Cluster.of(load(file), name="test", wiring="direct") as cluster:
        assert all(pod.ready for pod in cluster.pods.values()), str(cluster.get())
