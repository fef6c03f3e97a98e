"""Load balancer addresses: who gets which, who announces it, and what becomes of it when a node dies."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from k8snet.errors import InvalidInput, InvalidManifest, NotFound
from k8snet.linux.run import wait_until

SERVICE = """
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{type: {type}, selector: {{app: web}}, {more} ports: [{{port: 80, targetPort: 8080}}]}}
"""


def service(name="web", *, type="LoadBalancer", more=""):  # noqa: A002  # the API's word
    return SERVICE.format(name=name, type=type, more=f"{more}," if more else "")


@pytest.fixture
def shop(cluster_of):
    """Build a cluster with a pod web-N on each of some nodes, a Service web, and kube-proxy."""

    def build(nodes=3, *, on=None, more="", mode="iptables", **options):
        cluster = cluster_of(nodes, **options)
        for number in on or range(1, nodes + 1):
            cluster.run_pod(f"web-{number}", ports=[8080], node=f"node{number}", labels={"app": "web"})
        cluster.apply(service(more=more))
        cluster.start_proxy(mode)
        return cluster

    return build


@contextlib.contextmanager
def calling(cluster, address):
    """Let the client in the internet open one connection after the other; yield the outcomes so far."""
    outcomes, done = [], threading.Event()

    def call():
        while not done.is_set():
            outcomes.append(cluster.internet.connect(address, 80, timeout_s=0.2).outcome)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield outcomes
    finally:
        done.set()
        thread.join()


def goes_on(outcomes, count=10):
    """Wait until *count* calls from now have been served."""
    begin = len(outcomes)
    wait_until(lambda: outcomes[begin:].count("ok") >= count, what="calls are served again", timeout_s=15)


def mac_at_router(cluster, address):
    return next((one.mac for one in cluster.router.neighbours() if one.address == address), None)


def entries(cluster, address, count=90):
    """Count by which nodes connections come in: with policy Cluster a server sees an address of the node."""
    known = {one: node.name for node in cluster.nodes.values() for one in (node.address, node.gateway("v4"))}
    seen = (cluster.internet.fetch(f"http://{address}").server_sees for _ in range(count))
    return Counter(known[one[0].rpartition(":")[0]] for one in seen if one)


# -- addresses -------------------------------------------------------------------------


def test_services_get_addresses_in_order_keep_them_and_free_them(shop):
    cluster = shop(1)
    cluster.apply(service("inside", type="ClusterIP") + service("cloud", more="loadBalancerClass: example.com/cloud"))
    balancer = cluster.start_load_balancer()
    cluster.apply(service("api"))
    assert (balancer.address("web"), balancer.address("api")) == ("172.18.255.1", "172.18.255.2")
    for name in ("inside", "cloud"):
        assert cluster.objects["Service", "default", name].status is None
    ingress = cluster.objects["Service", "default", "api"].status.loadBalancer.ingress
    assert [(one.ip, one.ipMode) for one in ingress] == [("172.18.255.2", "VIP")]
    cluster.delete("service", "web")
    cluster.apply(service("api", more="sessionAffinity: ClientIP"))  # a manifest has no status
    assert balancer.address("api") == "172.18.255.2"
    assert not cluster.internet.connect("172.18.255.1", 80, timeout_s=0.3).ok
    cluster.apply(service("late"))
    assert balancer.address("late") == "172.18.255.1"
    cluster.apply(service("late", type="ClusterIP"))
    with pytest.raises(NotFound, match=r"no Service 'late' .* these do: api"):
        balancer.address("late")


def test_a_service_of_another_namespace_is_named_with_it_in_one_word_or_two(shop):
    cluster = shop(1)
    cluster.run_pod("web", namespace="shop", ports=[8080], labels={"app": "web"})
    cluster.apply(service("far, namespace: shop"))
    balancer = cluster.start_load_balancer()
    assert balancer.address("shop/far") == balancer.address("far", namespace="shop") == "172.18.255.2"
    assert balancer.announcers("shop/far") == balancer.announcers("far", namespace="shop") == ["node1"]
    assert balancer.announcers("default/web", namespace="shop") == ["node1"]
    with pytest.raises(NotFound, match=r"no Service 'web' in namespace 'shop' .* these do: far"):
        balancer.announcers("shop/web")


def test_services_are_shown_with_what_leads_to_them(shop):
    cluster = shop(1)
    cluster.apply(service("old", type="ClusterIP", more="externalIPs: [198.51.100.7]"))
    assert cluster.get("services").rows == (
        ("default", "old", "ClusterIP", "10.96.0.21", "198.51.100.7", "80/TCP"),
        ("default", "web", "LoadBalancer", "10.96.0.20", "<pending>", "80:30000/TCP"),
    )
    cluster.start_load_balancer()
    assert cluster.get("services").rows[1][4] == "172.18.255.1"


def test_a_service_can_ask_for_an_address_of_the_pool(shop):
    cluster = shop(1)
    balancer = cluster.start_load_balancer()
    cluster.apply(service("old", more="loadBalancerIP: 172.18.255.77"))
    annotated = service("new").replace(
        "{name: new}", "{name: new, annotations: {metallb.io/loadBalancerIPs: 172.18.255.78}}"
    )
    cluster.apply(annotated)
    assert (balancer.address("old"), balancer.address("new")) == ("172.18.255.77", "172.18.255.78")
    assert cluster.internet.connect("172.18.255.78", 80).ok


@pytest.mark.parametrize(
    ("names", "asked", "said"),
    [
        ("a", "10.0.0.1", "Service default/a: 10.0.0.1 is not in the pool 172.18.255.0/30"),
        ("a", "172.18.255.1", "Service default/a: 172.18.255.1 is the address of Service default/web already"),
        ("a", "web.example", "Service default/a: .*'web.example'"),
        ("abc", "", "Service default/c: no address of the pool 172.18.255.0/30 is left"),
    ],
)
def test_what_cannot_be_given_is_refused_and_nothing_is_changed(shop, names, asked, said):
    cluster = shop(1)
    balancer = cluster.start_load_balancer(pool="172.18.255.0/30")
    with pytest.raises(InvalidManifest, match=said):
        cluster.apply("".join(service(name, more=asked and f"loadBalancerIP: {asked}") for name in names))
    assert list(balancer.addresses) == [("Service", "default", "web")]
    assert ("Service", "default", "a") not in cluster.objects


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "ospf"}, "load balancer mode 'ospf': one of arp, bgp"),
        ({"pool": "172.18.0.0/24"}, "pool 172.18.0.0/24 holds 172.18.0.254, which a node or the router has"),
        ({"pool": "198.51.100.0/24"}, "outside 172.18.0.0/16, the nodes' network, .* use mode bgp"),
        ({"pool": "10.244.9.0/24"}, "overlaps 10.244.0.0/16, the network of the pods"),
        ({"pool": "10.96.7.0/24"}, "overlaps 10.96.0.0/12, the network of cluster IPs"),
        ({"pool": "203.0.113.0/28", "mode": "bgp"}, "overlaps 203.0.113.0/24, the network of the internet"),
        ({"pool": "fd00:172:18::255:0/112"}, "pool fd00:172:18::255:0/112: the cluster has no IPv6"),
        ({"pool": ["172.18.255.0/24", "172.18.254.0/24"]}, "pool 172.18.254.0/24: the cluster has one of that family"),
        ({"pool": []}, "needs a pool of addresses"),
        ({"pool": "everything"}, "'everything'"),
    ],
)
def test_a_load_balancer_that_cannot_be_is_refused_and_leaves_nothing(shop, options, said):
    cluster = shop(1)
    before = cluster.snapshot(), list(cluster.controllers)
    with pytest.raises(InvalidInput, match=said):
        cluster.start_load_balancer(**options)
    assert (cluster.snapshot(), cluster.controllers) == before


def test_it_needs_a_kube_proxy_and_there_is_one_of_it(cluster_of):
    cluster = cluster_of(1)
    with pytest.raises(InvalidInput, match=r"start_proxy\(\) first"):
        cluster.start_load_balancer()
    cluster.start_proxy()
    cluster.start_load_balancer()
    with pytest.raises(InvalidInput, match="runs in this cluster already"):
        cluster.start_load_balancer()


# -- by ARP ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_one_node_answers_arp_for_an_address_that_no_interface_has(shop, mode):
    cluster = shop(mode=mode)
    balancer = cluster.start_load_balancer()
    [owner] = balancer.announcers("web")
    said = cluster.router.run("arping", "-c", "3", "-W", "0.1", "-I", "eth0", "172.18.255.1").stdout
    macs = {line.split()[3] for line in said.splitlines() if "bytes from" in line}
    assert macs == {cluster.snapshot()[owner].interface("eth0").mac}
    interfaces = [one for state in cluster.snapshot().netns for one in state.interfaces]
    assert not any("172.18.255.1" in str(one.addresses) for one in interfaces)
    assert entries(cluster, "172.18.255.1", 20) == {owner: 20}


def test_who_announces_is_decided_as_metallb_does_it(shop):
    """By a hash of node and address: stable, and different for different Services."""
    cluster = shop(3, on=[1])
    cluster.apply("".join(service(f"s{number}") for number in range(8)))
    balancer = cluster.start_load_balancer()
    for name in ["web", *(f"s{number}" for number in range(8))]:
        address = balancer.address(name)
        first = min(cluster.nodes, key=lambda node: hashlib.sha256(f"{node}#{address}".encode()).digest())
        assert balancer.announcers(name) == [first]
    assert {balancer.announcers(f"s{number}")[0] for number in range(8)} == set(cluster.nodes)


def test_when_the_node_dies_another_takes_the_address_over(shop):
    """No one tells the speakers: they miss its heartbeats. A client that keeps calling is served again."""
    cluster = shop()
    balancer = cluster.start_load_balancer()
    [owner] = balancer.announcers("web")
    with calling(cluster, "172.18.255.1") as outcomes:
        goes_on(outcomes)
        assert set(outcomes) == {"ok"}
        cluster.power_off(owner)
        goes_on(outcomes)
        [heir] = balancer.announcers("web")
        assert heir != owner
        assert mac_at_router(cluster, "172.18.255.1") == cluster.snapshot()[heir].interface("eth0").mac
        cluster.sync()  # now the control plane has noticed, too: the node's pods are no endpoints any more
        begin = len(outcomes) + 1
        goes_on(outcomes)
        assert set(outcomes[begin:]) == {"ok"}
        cluster.power_on(owner)
        wait_until(lambda: balancer.announcers("web") == [owner], what="the first one has it back")
        goes_on(outcomes)


def test_a_killed_speaker_is_replaced_by_another_nodes_and_started_again_by_the_next_look(shop):
    cluster = shop()
    balancer = cluster.start_load_balancer()
    [owner] = balancer.announcers("web")
    os.kill(balancer.announcer.processes[owner].pid, signal.SIGKILL)
    others = [[name] for name in cluster.nodes if name != owner]
    wait_until(lambda: balancer.announcers("web") in others, what="another speaker has taken over", timeout_s=15)
    assert cluster.sync() == [f"speaker in netns {owner}"]
    wait_until(lambda: balancer.announcers("web") == [owner], what="it has come back")
    assert cluster.sync() == []


def test_a_speaker_whose_heartbeats_do_not_arrive_is_dead_to_the_others_and_both_announce(shop):
    """A network that is split in two has two opinions: MetalLB's as well."""
    cluster = shop(2)
    balancer = cluster.start_load_balancer()
    for node in cluster.nodes.values():
        node.netns.iptables("-I INPUT -p udp --dport 7946 -j DROP")
    wait_until(lambda: balancer.announcers("web") == ["node1", "node2"], what="both announce", timeout_s=15)
    for node in cluster.nodes.values():
        node.netns.iptables("-D INPUT -p udp --dport 7946 -j DROP")
    wait_until(lambda: len(balancer.announcers("web")) == 1, what="one has given it up", timeout_s=15)


# -- by BGP ----------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["routes", "bgp"])
def test_by_bgp_the_router_spreads_connections_over_the_nodes_that_live(shop, network):
    cluster = shop(pod_network=network)
    balancer = cluster.start_load_balancer("bgp", pool="198.51.100.0/24")
    assert balancer.announcers("web") == ["node1", "node2", "node3"]
    route = cluster.router.run("ip", "route", "show", "198.51.100.1").stdout
    assert route.count("nexthop via") == 3
    routes = [one for one in cluster.snapshot()["router"].routes if one.destination == "198.51.100.1/32"]
    assert [one.via for one in routes] == ["172.18.0.1", "172.18.0.2", "172.18.0.3"]
    assert cluster.router.sysctl("net.ipv4.fib_multipath_hash_policy") == "1"
    assert set(entries(cluster, "198.51.100.1")) == set(cluster.nodes)
    cluster.power_off("node2")
    wait_until(lambda: balancer.announcers("web") == ["node1", "node3"], what="BFD has missed node2", timeout_s=15)
    cluster.sync()
    assert entries(cluster, "198.51.100.1").keys() == {"node1", "node3"}
    assert sum(entries(cluster, "198.51.100.1").values()) == 90
    cluster.power_on("node2")
    assert balancer.announcers("web") == ["node1", "node2", "node3"]
    assert set(entries(cluster, "198.51.100.1")) == set(cluster.nodes)


def test_a_killed_bird_takes_its_path_with_it_and_is_started_again(shop):
    cluster = shop(2)
    balancer = cluster.start_load_balancer("bgp")
    os.kill(balancer.announcer.daemons["node1"].process.pid, signal.SIGKILL)
    wait_until(lambda: balancer.announcers("web") == ["node2"], what="the path of node1 is gone", timeout_s=15)
    assert cluster.sync() == ["bird in netns node1"]
    assert balancer.announcers("web") == ["node1", "node2"]


def test_nodes_come_and_go_and_the_paths_with_them(shop):
    cluster = shop(2)
    balancer = cluster.start_load_balancer("bgp")
    cluster.add_node()
    assert balancer.announcers("web") == ["node1", "node2", "node3"]
    cluster.remove_node("node1")
    assert balancer.announcers("web") == ["node2", "node3"]
    assert sum(entries(cluster, "172.18.255.1", 30).values()) == 30


def test_the_transcript_builds_the_routes_of_the_router_in_a_fresh_sandbox(shop, tmp_path):
    cluster = shop(2)
    cluster.start_load_balancer("bgp")
    script = tmp_path / "script.sh"
    script.write_text(cluster.transcript.script())
    command = f"bash {script} >&2 && {sys.executable} -m k8snet.observe.snapshot"
    done = subprocess.run(
        [sys.executable, "-m", "k8snet.cli", "sandbox", "--writable", str(tmp_path), "--", "sh", "-c", command],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == json.loads(cluster.snapshot().to_json())


# -- by both ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["arp", "bgp"])
def test_with_policy_local_only_nodes_with_endpoints_announce_and_servers_see_the_client(shop, how):
    cluster = shop(3, on=[2], more="externalTrafficPolicy: Local")
    balancer = cluster.start_load_balancer(how)
    assert balancer.announcers("web") == ["node2"]
    assert cluster.internet.fetch("http://172.18.255.1").server_sees[0].startswith("203.0.113.10:")
    cluster.run_pod("web-3", ports=[8080], node="node3", labels={"app": "web"})
    cluster.delete("pod", "web-2")
    assert balancer.announcers("web") == ["node3"]
    assert cluster.internet.connect("172.18.255.1", 80).ok
    cluster.delete("pod", "web-3")
    assert balancer.announcers("web") == []
    assert not cluster.internet.connect("172.18.255.1", 80, timeout_s=0.3).ok


@pytest.mark.parametrize("how", ["arp", "bgp"])
def test_both_families_of_a_dual_stack_service_are_reached(shop, how):
    cluster = shop(2, ip_families=("v4", "v6"), more="ipFamilyPolicy: PreferDualStack")
    balancer = cluster.start_load_balancer(how)
    four, six = balancer.addresses["Service", "default", "web"]
    assert (four, six) == ("172.18.255.1", "fd00:172:18::255:1")
    for url in (f"http://{four}", f"http://[{six}]"):
        assert all(cluster.internet.fetch(url).ok for _ in range(5))
    if how == "arp":
        [owner] = balancer.announcers("web")
        cluster.power_off(owner)
        cluster.sync()
        wait_until(lambda: balancer.announcers("web") not in ([], [owner]), what="the other took over", timeout_s=15)
        wait_until(lambda: cluster.internet.fetch(f"http://[{six}]").ok, what="IPv6 calls are served", timeout_s=15)


@pytest.mark.parametrize("how", ["arp", "bgp"])
def test_stopped_it_leaves_the_cluster_as_it_was_and_closed_no_process(shop, how):
    cluster = shop(2)
    before = cluster.snapshot()
    balancer = cluster.start_load_balancer(how)
    assert cluster.internet.connect("172.18.255.1", 80).ok
    balancer.stop()
    assert cluster.snapshot() == before, before.diff(cluster.snapshot())
    assert cluster.objects["Service", "default", "web"].status is None
    assert not cluster.internet.connect("172.18.255.1", 80, timeout_s=0.3).ok
    cluster.start_load_balancer(how)
    netns = [cluster.router, *(node.netns for node in cluster.nodes.values())]
    pids = [pid for one in netns for pid in one.run("ip", "netns", "pids", one.name).stdout.split()]
    running = [Path("/proc", pid) for pid in pids if Path("/proc", pid).exists()]
    assert len(running) >= 2
    cluster.close()
    assert [one for one in running if one.exists()] == []


# -- health checks, and nodes that fail --------------------------------------------------


def test_with_policy_local_every_node_tells_balancers_whether_to_come(shop):
    cluster = shop(2, on=[1], more="externalTrafficPolicy: Local")
    port = cluster.objects["Service", "default", "web"].spec.healthCheckNodePort
    answers = {name: cluster.internet.fetch(f"http://{node.address}:{port}") for name, node in cluster.nodes.items()}
    assert {name: one.status for name, one in answers.items()} == {"node1": 200, "node2": 503}
    assert json.loads(answers["node1"].body) == {
        "service": {"namespace": "default", "name": "web"}, "localEndpoints": 1, "serviceProxyHealthy": True,
    }  # fmt: skip
    cluster.run_pod("web-2", ports=[8080], node="node2", labels={"app": "web"})
    assert cluster.internet.fetch(f"http://172.18.0.2:{port}").status == 200
    cluster.apply(service())
    assert not cluster.internet.connect("172.18.0.2", port, timeout_s=0.3).ok


def test_a_node_without_power_is_not_ready_nor_are_its_pods_and_both_come_back(shop):
    cluster = shop(2)
    pod, web1 = cluster.pod("web-2"), cluster.run_pod("nginx", node="node2")
    cluster.power_off("node2")
    assert not cluster.node("node1").netns.ping("172.18.0.2", timeout_s=0.3).ok
    assert cluster.sync() == []
    assert "NotReady" in str(cluster.get("nodes"))
    assert not any(one.ready for one in (pod, web1))
    [first, second] = cluster.objects["EndpointSlice", "default", "web-ipv4-1"].endpoints
    assert (first.conditions.ready, second.conditions.ready) == (True, False)
    assert cluster.run_pod("elsewhere").node.name == "node1"
    waiting = cluster.run_pod("waiting", node="node2")
    assert waiting.phase == "Pending"
    cluster.power_on("node2")
    assert waiting.ready
    assert pod.ready
    assert web1.ready
    assert web1.containers[0].restarts == 1
    assert cluster.pod("web-1").fetch("http://10.244.2.2:8080").ok
