"""kube-proxy in IPVS mode on a kernel that can: what is programmed, who answers, who is lost, and what is left."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from dataclasses import replace

import pytest

from k8snet.controllers.kube_proxy.ipvs import Proxier, render
from k8snet.controllers.kube_proxy.ipvs_rules import SETS, name_of_set
from k8snet.controllers.kube_proxy.service_ports import Endpoint, ProxyConfig, ServicePort
from k8snet.lab import Lab
from k8snet.linux import ipvs
from k8snet.linux.run import wait_until
from tests.conformance.ipvs_cases import DATA, cases
from tests.linux.test_kube_proxy_nftables import calls, make_node, pod
from tests.linux.test_kube_proxy_nftables import served as _served

CONFIG = ProxyConfig(node_name="node", node_ips=("172.18.0.2",), cluster_cidr="10.244.0.0/16")
VIP = "10.96.0.20"


@pytest.fixture
def node(lab):
    """A node with five pods: pod0 calls, the others serve."""
    node, _, pods = make_node(lab, pods=5)
    for one in pods:
        one.listen(8080)
    return node


def endpoint(number, **more):
    return Endpoint(**{"address": f"10.244.1.{number + 10}", "port": 8080, "local": True, **more})


def service(*numbers, **more):
    ends = tuple(endpoint(n) for n in numbers)
    given = {"name": "web", "cluster_ip": VIP, "port": 80, "protocol": "TCP", "endpoints": ends, **more}
    return ServicePort(namespace="shop", port_name="http", **given)


def served(node, before=None):
    """Return how many requests each pod has answered that was asked, since *before*."""
    return +_served(node, before)


def weights(netns):
    """Return the last number of each real server's pod with its weight, by virtual server."""
    return {
        f"{one.address}:{one.port}": {int(r.address.rpartition(".")[2]) - 10: r.weight for r in one.real_servers}
        for one in ipvs.virtual_servers(netns)
    }  # fmt: skip


# -- what is programmed ------------------------------------------------------------------------


@pytest.mark.skipif(not DATA.is_dir(), reason="no conformance data")
def test_every_case_is_in_the_kernel_as_in_the_model(lab):
    """One netns for all: each case is an update of the one before."""
    lab.close()
    with Lab("test", ipv6=True) as both:
        netns, tried = both.netns("node", forward=True), cases()
        for case in tried:
            Proxier(case.config).apply(netns, case.ports)
            program = render(case.ports, case.config)
            family = 6 if case.config.family == "v6" else 4
            found = [one for one in ipvs.virtual_servers(netns) if (":" in one.address) == (family == 6)]
            assert found == sorted(program.virtual_servers, key=lambda one: one.key), case.name
            assert members(netns, case.config.family) == {n: set(m) for n, m in program.sets.items()}, case.name
            shown = netns.run("ip", f"-{family}", "-brief", "address", "show", "dev", "kube-ipvs0").stdout.split()
            addresses = {one.partition("/")[0] for one in shown[2:] if "fe80" not in one}
            assert addresses == set(program.addresses), case.name
    assert len(tried) >= 7


def members(netns, family):
    """Return the sets of one family with their members."""
    found = {name_of_set(name, family): set() for name in SETS}
    for line in netns.run("ipset", "save").stdout.splitlines():
        verb, name, *rest = line.split()
        if verb == "add" and name in found:
            found[name].add(rest[0])
    return found


def test_a_second_apply_changes_nothing_a_new_proxier_neither_and_remove_leaves_nothing(lab):
    node, port = lab.netns("node", forward=True), service(1, 2, node_port=30080, affinity_s=60)
    before = lab.snapshot()
    first = Proxier(CONFIG)
    assert first.apply(node, [port]) > 10
    programmed, typed = lab.snapshot(), [entry.typed() for entry in lab.transcript.entries]
    loads, sets = (next(n for n, one in enumerate(typed) if word in one) for word in ("ipvsadm", "net.ipv4.vs."))
    assert loads < sets  # a person's kernel has these sysctls only when it has loaded IPVS
    assert "-A -t 10.96.0.20:80 -s rr -p 60" in programmed["node"].lines("ipvs")
    assert "+ node: ipvs: -A -t 172.18.0.2:30080 -s rr -p 60" in str(before.diff(programmed))
    assert first.apply(node, [port]) == 0
    mark = len(lab.transcript)
    assert Proxier(CONFIG).apply(node, [port]) == 1  # the rules are loaded anew, as they were
    assert [entry.words[0] for entry in lab.transcript.since(mark).entries] == ["iptables-nft-restore"]
    assert lab.snapshot() == programmed, programmed.diff(lab.snapshot())
    first.remove(node)
    first.remove(node)  # nothing there is nothing to do
    assert lab.snapshot() == before, before.diff(lab.snapshot())


def test_each_node_of_many_services_is_read_whole(lab):
    """After the first 4 kB of its text the kernel goes on where it should only if no other netns has any Service."""
    nodes = [lab.netns(f"node{number}", forward=True) for number in (1, 2)]
    wanted = [service(1, 2, cluster_ip=f"10.97.0.{number}") for number in range(1, 151)]
    for node in nodes:
        Proxier(CONFIG).apply(node, wanted)
    for node in nodes:
        shown = node.run("cat", "/proc/net/ip_vs").stdout
        assert shown.count("TCP ") < len(wanted)  # or the kernel has learned to count
        assert list(weights(node).values()) == [{1: 1, 2: 1}] * len(wanted)
        assert Proxier(CONFIG).apply(node, wanted) == 1  # the rules are loaded anew, as they were


def test_a_change_touches_what_has_changed_and_a_service_that_is_gone_is_gone_everywhere(node):
    lab, proxier = node._owner, Proxier(CONFIG)
    both = [service(1), service(2, name="other", cluster_ip="10.96.0.21")]
    proxier.apply(node, both)
    mark = len(lab.transcript)
    assert proxier.apply(node, [service(1, 3), both[1]]) == 2  # a real server, and a way back for its own calls
    typed = {entry.words[0]: entry.stdin for entry in lab.transcript.since(mark).entries}
    assert typed == {
        "ipvsadm": "-a -t 10.96.0.20:80 -r 10.244.1.13:8080 -m -w 1\n",
        "ipset": "add KUBE-LOOP-BACK 10.244.1.13,tcp:8080,10.244.1.13\n",
    }
    assert calls(pod(node, 0), 4) == {"ok": 4}
    proxier.apply(node, [both[0]])
    assert list(weights(node)) == ["10.96.0.20:80"]
    assert "10.96.0.21" not in node.run("ipset", "save").stdout + node.run("ip", "address").stdout
    proxier.apply(node, [replace(both[0], cluster_ip="10.96.0.22")])
    assert list(weights(node)) == ["10.96.0.22:80"]


# -- who answers -------------------------------------------------------------------------------


def test_round_robin_gives_each_endpoint_as_many_connections_as_the_others(lab):
    """300 connections, and no count is more than 1 from another; one pod plays all endpoints, by its ports."""
    node, _, (client, server) = make_node(lab, pods=2)
    listeners = [server.listen(8000 + number) for number in range(10)]
    proxier = Proxier(CONFIG)
    for count in (1, 2, 3, 10):
        proxier.apply(node, [service(endpoints=tuple(endpoint(1, port=8000 + n) for n in range(count)))])
        before = [len(one.served) for one in listeners]
        assert calls(client, 300) == {"ok": 300}
        counts = [len(one.served) - old for one, old in zip(listeners, before, strict=True)][:count]
        assert sum(counts) == 300
        assert max(counts) - min(counts) <= 1, counts


def test_everything_that_leads_to_a_service_is_answered_and_who_is_seen_calling_is_the_policys_choice(node):
    """Cluster: the node, so that the answer comes back its way. Local: the client."""
    outside, proxier = node._owner["outside"], Proxier(CONFIG)
    port = service(1, node_port=30080, external_ips=("192.0.2.7",), load_balancer_ips=("198.51.100.7",))
    proxier.apply(node, [port])
    ways = (("172.18.0.2", 30080), ("192.0.2.7", 80), ("198.51.100.7", 80))
    for address, number in ((VIP, 80), *ways):
        seen = outside.fetch(f"http://{address}:{number}/").server_sees[0]
        assert seen.startswith("10.244.1.1:"), address
    for address, number in ((VIP, 80), ways[0]):
        assert node.connect(address, number).ok, address
    assert pod(node, 0).fetch(f"http://{VIP}/").server_sees[0].startswith("10.244.1.10:")
    proxier.apply(node, [replace(port, external_local=True)])
    for address, number in ways:
        seen = outside.fetch(f"http://{address}:{number}/").server_sees[0]
        assert seen.startswith("172.18.0.100:"), address


def test_a_pod_reaches_itself_and_other_ports_and_services_without_endpoints_are_refused(node):
    nobody = service(name="nobody", cluster_ip="10.96.0.21")
    Proxier(CONFIG).apply(node, [service(1), nobody])
    page = pod(node, 1).fetch(f"http://{VIP}/")  # hairpin: the node calls, as it seems
    assert page.ok
    assert page.server_sees[0].startswith("10.244.1.1:")
    assert pod(node, 0).connect("10.96.0.21", 80).outcome == "refused"
    node.listen(81)
    assert pod(node, 0).connect("10.244.1.1", 81).ok
    assert pod(node, 0).connect(VIP, 81).outcome == "refused"  # the address is the node's, but for this port


def test_a_ping_of_a_cluster_ip_is_answered_by_the_node_but_for_one_rule_of_new_versions(node):
    """The address is on kube-ipvs0; since 1.27 KUBE-IPVS-FILTER rejects whatever is no Service of it."""
    Proxier(CONFIG).apply(node, [service(1)])
    assert pod(node, 0).ping(VIP, timeout_s=2).outcome == "unreachable"
    node.iptables("-F KUBE-IPVS-FILTER", backend="nft")
    assert pod(node, 0).ping(VIP, timeout_s=2).ok


def test_a_client_comes_back_to_the_endpoint_that_it_had(node):
    proxier, port = Proxier(CONFIG), service(1, 2, 3, affinity_s=60)
    proxier.apply(node, [port])
    assert calls(pod(node, 0), 1) == {"ok": 1}  # and the others when the choice is known
    assert calls(pod(node, 0), 8) == {"ok": 8}
    ((kept, _),) = served(node).items()
    proxier.apply(node, [replace(port, endpoints=tuple(endpoint(n) for n in (1, 2, 3) if f"pod{n}" != kept))])
    before = served(node)
    assert calls(pod(node, 0), 1) == calls(pod(node, 0), 1) == {"ok": 1}  # it is there for old connections only
    ((other, _),) = served(node, before).items()
    assert other != kept
    assert weights(node)[f"{VIP}:80"][int(kept[3:])] == 0


def test_a_udp_client_that_never_changes_its_port_follows_the_endpoints(node):
    """For IPVS and conntrack the datagrams of one socket are one connection, for as long as any come."""
    for number in (1, 2):
        pod(node, number).listen(5353, protocol="udp")
    ends = [endpoint(n, port=5353) for n in (1, 2)]
    port, proxier = service(protocol="UDP", port=53, endpoints=(ends[0],)), Proxier(CONFIG)
    proxier.apply(node, [port])

    def ask(sock):
        sock.send(b"?\n")
        return sock.recv(100).split()[0]

    with pod(node, 0).inside(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        sock.connect((VIP, 53))
        assert [ask(sock), ask(sock)] == [b"pod1"] * 2
        proxier.apply(node, [replace(port, endpoints=(ends[1],))])
        assert weights(node)[f"{VIP}:53"] == {2: 1}  # UDP has no end to wait for
        wait_until(lambda: answer(ask, sock) == b"pod2", what="the new endpoint", timeout_s=10)


def answer(ask, sock):
    """Return who answers, or None: the datagram that finds its endpoint gone is lost."""
    try:
        return ask(sock)
    except (TimeoutError, ConnectionRefusedError):
        return None


def test_source_ranges_let_in_who_is_in_them_and_the_node_only_if_it_is(node):
    outside, proxier = node._owner["outside"], Proxier(CONFIG)
    port = service(1, node_port=30080, load_balancer_ips=("198.51.100.7",), source_ranges=("203.0.113.0/24",))
    proxier.apply(node, [port])
    assert outside.connect("198.51.100.7", 80, timeout_s=0.5).outcome == "timeout"
    assert node.connect("198.51.100.7", 80, timeout_s=0.5).outcome == "timeout"
    assert outside.connect("172.18.0.2", 30080).ok
    for ranges in (("172.18.0.0/16",), ("0.0.0.0/0",)):
        proxier.apply(node, [replace(port, source_ranges=ranges)])
        assert outside.connect("198.51.100.7", 80).ok, ranges
        assert node.connect("198.51.100.7", 80).ok, ranges
    proxier.apply(node, [replace(port, source_ranges=("172.18.0.100/32",))])
    assert outside.connect("198.51.100.7", 80).ok


def test_no_call_is_lost_while_an_endpoint_comes_and_another_drains(node):
    """A connection that stands stays where it is, and goes on; new ones go to those that are left."""
    outcomes, stop = Counter(), threading.Event()
    proxier = Proxier(CONFIG)
    proxier.apply(node, [service(1, 2)])

    def client():
        while not stop.is_set():
            outcomes.update(calls(pod(node, 0), 8))

    thread = threading.Thread(target=client)
    with pod(node, 0).inside(socket.create_connection, (VIP, 80), 5) as standing:
        thread.start()
        try:
            for numbers in ((1, 2, 3), (2, 3), (3, 4), (1,)):
                proxier.apply(node, [service(*numbers)])
        finally:
            stop.set()
            thread.join()
        standing.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert standing.recv(200).startswith(b"HTTP/1.")
    assert outcomes.keys() == {"ok"}
    assert outcomes["ok"] >= 16
    found = weights(node)[f"{VIP}:80"]
    assert found.pop(1) == 1
    assert set(found.values()) <= {0}
    before = served(node)
    assert calls(pod(node, 0), 6) == {"ok": 6}
    assert served(node, before) == {"pod1": 6}


def test_what_has_drained_goes_with_the_next_apply_and_what_comes_back_is_used_again(node):
    proxier = Proxier(CONFIG)
    proxier.apply(node, [service(1, 2)])
    assert calls(pod(node, 0), 4) == {"ok": 4}
    proxier.apply(node, [service(1)])
    assert weights(node)[f"{VIP}:80"] == {1: 1, 2: 0}
    proxier.apply(node, [service(1, 2)])
    assert weights(node)[f"{VIP}:80"] == {1: 1, 2: 1}
    proxier.apply(node, [service(1, 2, 3)])  # nobody has called the third
    proxier.apply(node, [service(1, 2)])
    assert weights(node)[f"{VIP}:80"] == {1: 1, 2: 1}


def test_other_schedulers_serve_too(node):
    """Scheduler sh chooses by the client's address: always the same."""
    for scheduler in ("wrr", "lc", "sh"):
        Proxier(replace(CONFIG, ipvs_scheduler=scheduler)).apply(node, [service(1, 2)])
        assert ipvs.virtual_servers(node)[0].scheduler == scheduler
        before = served(node)
        assert calls(pod(node, 0), 8) == {"ok": 8}
        assert len(served(node, before)) == (1 if scheduler == "sh" else 2)


def test_ipv6_services_answer_too_beside_ipv4_and_each_is_removed_alone(lab):
    lab.close()
    with Lab("test", ipv6=True) as six:
        node, outside, pods = make_node(six, pods=3, network="fd00:10:244:1::", uplink="fd00:18::", bits=(64, 64))
        for one in pods[1:]:
            one.listen(8080, address="::")
        before = six.snapshot()
        config = replace(CONFIG, node_ips=("fd00:18::2",), family="v6", cluster_cidr="fd00:10:244::/48")
        ends = tuple(Endpoint(address=f"fd00:10:244:1::{n}", port=8080, local=True) for n in (11, 12))
        port = service(
            cluster_ip="fd00:10:96::20", node_port=30080, affinity_s=60, source_ranges=("fd00:18::/64",),
            load_balancer_ips=("2001:db8::7",), endpoints=ends,
        )  # fmt: skip
        none = service(name="none", cluster_ip="fd00:10:96::21")
        four, proxier = Proxier(CONFIG), Proxier(config)
        four.apply(node, [service()])
        proxier.apply(node, [port, none])
        assert calls(pods[0], 4, "fd00:10:96::20") == {"ok": 4}
        assert calls(pods[1], 4, "fd00:10:96::20") == {"ok": 4}
        assert calls(outside, 2, "fd00:18::2", 30080) == {"ok": 2}
        assert calls(outside, 2, "2001:db8::7") == {"ok": 2}
        assert pods[0].connect("2001:db8::7", 80, timeout_s=0.5).outcome == "timeout"  # not of the source ranges
        assert pods[0].connect("fd00:10:96::21", 80).outcome == "refused"
        proxier.remove(node)
        assert list(weights(node)) == [f"{VIP}:80"]
        assert six.snapshot()["node"].interface("kube-ipvs0").addresses == (f"{VIP}/32",)
        four.remove(node)
        assert six.snapshot() == before, before.diff(six.snapshot())


def test_a_cluster_runs_in_ipvs_mode(cluster_of):
    cluster = cluster_of(2)
    cluster.apply(
        "kind: Service\napiVersion: v1\nmetadata: {name: web}\n"
        "spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, nodePort: 30080}]}\n"
    )
    cluster.run_pod("web", ports=[80], labels={"app": "web"}, node="node2")
    client = cluster.run_pod("client", image="pause", node="node1")
    proxies = cluster.start_proxy("ipvs")
    address = cluster.objects["Service", "default", "web"].spec.clusterIP
    assert client.fetch(f"http://{address}/").ok
    assert cluster.internet.fetch("http://172.18.0.1:30080/").ok
    proxies.stop()
    assert not client.connect(address, 80, timeout_s=0.5).ok
    assert not any(ipvs.virtual_servers(one.netns) for one in cluster.nodes.values())
