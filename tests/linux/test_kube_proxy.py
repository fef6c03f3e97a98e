"""kube-proxy in iptables mode, in the kernel: loaded, changed step by step, taken away, and asked by real clients."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import replace

import pytest

from k8snet import End, Lab
from k8snet.controllers.kube_proxy.iptables import JUMPS, Proxier, render
from k8snet.controllers.kube_proxy.service_ports import Endpoint, ProxyConfig, ServicePort
from k8snet.errors import CommandFailed
from k8snet.linux.run import wait_until
from k8snet.linux.sweep import Target, sweep
from tests.chance import chi_square_p
from tests.conformance.live_service import Stage

CONFIG = ProxyConfig(node_name="node", node_ips=("192.168.0.2",), cluster_cidr="10.0.0.0/8")
ADDRESS = "172.30.0.41"


def service(name="web", *, ends=1, first=1, **fields):
    """Return a service port with endpoints 10.180.0.1, 10.180.0.2, ..., the first of them on this node."""
    several = tuple(Endpoint(address=f"10.180.0.{n}", port=80, local=n == first) for n in range(first, first + ends))
    return ServicePort(**{
        "namespace": "shop", "name": name, "port_name": "http", "protocol": "TCP", "cluster_ip": ADDRESS, "port": 80,
        "endpoints": several, **fields,
    })  # fmt: skip


def many(count):
    return [service(f"web-{n:03}", ends=2, cluster_ip=f"172.30.{n // 200}.{n % 200 + 1}") for n in range(count)]


def stage_of(lab, *ports, sources=("203.0.113.2",)):
    """Return a node, its callers and the endpoints of *ports*."""
    ends = {(one.address, one.port, port.protocol) for port in ports for one in port.endpoints}
    flows = [{"sourceIP": one, "destIP": "0.0.0.0", "destPort": 0, "output": ""} for one in sources]
    return Stage(lab, CONFIG, flows, ends)


def rules_of(netns, backend="nft", family=4):
    return sorted(line for line in netns.iptables_save(backend=backend, family=family).splitlines() if line[0] == "-")


# -- what connections see --------------------------------------------------------------


@pytest.mark.parametrize("ends", [1, 2, 3, 10])
def test_connections_are_shared_out_evenly(lab, ends):
    port = service(ends=ends)
    stage = stage_of(lab, port)
    Proxier(CONFIG).apply(stage.node, [port])
    answers = sweep({stage.world: [Target(protocol="tcp", address=ADDRESS, port=80)] * 3000}, timeout_s=5)
    assert Counter(one.outcome for one in answers[stage.world]) == {"ok": 3000}
    counts = Counter(one.reply.source for one in stage.node.conntrack(protocol="tcp"))
    assert counts.total() > 2800  # a client's port that was used again has replaced its first entry
    assert set(counts) == {one.address for one in port.endpoints}
    assert ends == 1 or chi_square_p(list(counts.values())) > 1e-6


def test_a_client_keeps_its_endpoint_with_session_affinity_and_others_get_others(lab):
    sources = [f"203.0.113.{n}" for n in range(2, 26)]
    port = service(ends=3, affinity_s=10800)
    stage = stage_of(lab, port, sources=sources)
    Proxier(CONFIG).apply(stage.node, [port])
    chosen = defaultdict(set)
    for source in sources * 4:
        assert stage.world.connect(ADDRESS, 80, source=source).ok
    for one in stage.node.conntrack(protocol="tcp"):
        chosen[one.original.source].add(one.reply.source)
    assert {source: len(several) for source, several in chosen.items()} == dict.fromkeys(sources, 1)
    assert len(set.union(*chosen.values())) > 1  # by lot it is one for all once in 3^23


def test_without_session_affinity_a_client_gets_several_endpoints(lab):
    port = service(ends=3)
    stage = stage_of(lab, port)
    Proxier(CONFIG).apply(stage.node, [port])
    for _ in range(40):
        assert stage.world.connect(ADDRESS, 80, source="203.0.113.2").ok
    assert len({one.reply.source for one in stage.node.conntrack(protocol="tcp")}) == 3


def test_a_pod_reaches_itself_through_its_service_as_somebody_else(cluster_of):
    """Hairpin: without the masquerade it would answer itself directly, and not know the connection."""
    cluster = cluster_of(1)
    pod = cluster.run_pod("web", ports=[80])
    node = pod.home
    config = ProxyConfig(node_name=node.name, node_ips=(node.address,), cluster_cidr="10.244.0.0/16")
    port = service(cluster_ip="10.96.0.20", endpoints=(Endpoint(address=pod.address, port=80, local=True),))
    proxier = Proxier(config)
    proxier.apply(node.netns, [port])
    page = pod.netns.fetch("http://10.96.0.20/")
    assert page.ok
    (seen,) = [one for one in node.netns.conntrack(protocol="tcp") if one.original.destination == "10.96.0.20"]
    assert (seen.original.source, seen.reply.source) == (pod.address, pod.address)
    assert seen.snat
    chain = next(one for one in render([port], config).nat if one.startswith("KUBE-SEP-"))
    node.netns.iptables("-t", "nat", "-D", chain, "1")
    assert not pod.netns.fetch("http://10.96.0.20/", timeout_s=0.5).ok


def test_no_endpoints_is_told_at_once_and_no_local_ones_in_silence(lab):
    none = service("none", ends=0)
    away = service(
        "away", cluster_ip="172.30.0.42", external_ips=("198.51.100.7",), external_local=True,
        endpoints=(Endpoint(address="10.180.0.9", port=80),),
    )  # fmt: skip
    stage = stage_of(lab, none, away)
    proxier = Proxier(CONFIG)
    proxier.apply(stage.node, [none, away])
    assert stage.world.connect(ADDRESS, 80).outcome == "refused"
    assert stage.world.connect("198.51.100.7", 80, timeout_s=0.3).outcome == "timeout"
    assert stage.node.connect("198.51.100.7", 80).ok  # who is on the node may go to other nodes
    proxier.apply(stage.node, [none, replace(away, external_local=False)])
    assert stage.world.connect("198.51.100.7", 80).ok


def test_udp_goes_to_another_endpoint_as_soon_as_its_own_is_gone(lab):
    """Conntrack would send the same client to the endpoint that is gone for as long as it keeps asking."""
    port = service(ends=2, protocol="UDP")
    stage = stage_of(lab, port)
    proxier = Proxier(CONFIG)
    one, other = (replace(port, endpoints=(end,)) for end in port.endpoints)
    proxier.apply(stage.node, [one])

    def ask():
        assert stage.world.connect(ADDRESS, 80, protocol="udp", source_port=5000).ok
        return [seen.reply.source for seen in stage.node.conntrack(protocol="udp")]

    assert ask() == ["10.180.0.1"]
    assert proxier.apply(stage.node, [one]).forgotten == 0
    assert ask() == ["10.180.0.1"]
    assert proxier.apply(stage.node, [other]).forgotten == 1
    assert ask() == ["10.180.0.2"]
    assert proxier.apply(stage.node, []).forgotten == 1
    assert stage.node.conntrack(protocol="udp") == []


def test_ipv6_is_served_too():
    with Lab("test", ipv6=True) as lab:
        node, client, pod = lab.netns("node", forward=True), lab.netns("client"), lab.netns("pod")
        for number, other in enumerate((client, pod)):
            lab.veth(
                End(netns=node, name=f"to-{other.name}", address=f"fd00:{number}::1/64"),
                End(netns=other, name="eth0", address=f"fd00:{number}::2/64"),
            )
            wait_until(lambda net=other, n=number: net.ping(f"fd00:{n}::1", timeout_s=0.1).ok, what="IPv6 on a link")
            other.add_route("default", via=f"fd00:{number}::1")
        pod.listen(80, address="::")
        end = Endpoint(address="fd00:1::2", port=80)
        port = service(cluster_ip="fd00:10:96::20", node_port=30080, endpoints=(end,))
        config = replace(CONFIG, node_ips=("fd00:0::1",), family="v6", cluster_cidr="fd00:1::/64")
        proxier = Proxier(config)
        proxier.apply(node, [port])
        assert client.connect("fd00:10:96::20", 80).ok
        assert client.connect("fd00:0::1", 30080).ok
        assert {one.reply.source for one in node.conntrack(protocol="tcp", family=6)} == {"fd00:1::2"}
        assert not node.connect("::1", 30080).ok  # IPv6 has no route_localnet
        proxier.remove(node)
        assert rules_of(node, family=6) == []


# -- what is in the kernel -------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 60], ids=["nft", "legacy"])
def test_remove_leaves_what_others_have(lab, count):
    node = lab.netns("node")
    backend = "legacy" if count > 1 else "nft"
    for line in ("-A INPUT -p icmp -j ACCEPT", "-N MINE", "-t nat -N MINE", "-t nat -A OUTPUT -j MINE"):
        node.iptables(line, backend=backend)
    before = rules_of(node, backend), node.sysctl("net.ipv4.conf.all.route_localnet")
    proxier = Proxier(CONFIG)
    done = proxier.apply(node, many(count))
    assert (done.backend, done.full) == (backend, True)
    assert len(rules_of(node, backend)) > len(before[0]) + len(JUMPS)
    assert node.sysctl("net.ipv4.conf.all.route_localnet") == "1"
    proxier.remove(node)
    assert (rules_of(node, backend), node.sysctl("net.ipv4.conf.all.route_localnet")) == before
    assert "KUBE" not in node.iptables_save(backend=backend)
    assert proxier.apply(node, many(count)).full  # it starts anew


def test_the_first_jump_of_each_chain_is_the_one_that_upstream_puts_first(lab):
    node = lab.netns("node")
    node.iptables("-A INPUT -p icmp -j ACCEPT", backend="nft")
    Proxier(CONFIG).apply(node, [service()])
    lines = node.iptables_save(backend="nft").splitlines()
    found = {
        chain: [line.split()[-1] for line in lines if line.startswith(f"-A {chain} ")]
        for chain in ("INPUT", "FORWARD", "OUTPUT", "PREROUTING", "POSTROUTING")
    }
    outputs = ["KUBE-FIREWALL", "KUBE-PROXY-FIREWALL", "KUBE-SERVICES"]
    assert found["INPUT"] == [
        "KUBE-FIREWALL", "KUBE-PROXY-FIREWALL", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "ACCEPT"
    ]  # fmt: skip
    assert found["FORWARD"] == ["KUBE-PROXY-FIREWALL", "KUBE-FORWARD", "KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES"]
    assert sorted(found["OUTPUT"]) == sorted([*outputs, "KUBE-SERVICES"])  # of filter, and of nat
    assert (found["PREROUTING"], found["POSTROUTING"]) == (["KUBE-SERVICES"], ["KUBE-POSTROUTING"])


def test_syncs_in_steps_end_where_one_sync_would(lab):
    """Services come, change and go; the kernel holds what a kube-proxy that has just started would write."""
    node, other = lab.netns("node"), lab.netns("other")
    proxier, three = Proxier(CONFIG), many(3)
    several = [
        three,
        [*three, service("new", node_port=30080)],
        [three[0], replace(three[1], endpoints=three[1].endpoints[:1]), service("new", affinity_s=60)],
        [three[2], replace(three[0], endpoints=())],
        [],
    ]
    for number, ports in enumerate(several):
        done = proxier.apply(node, ports)
        assert done.full is (number == 0)
        fresh = Proxier(CONFIG)
        fresh.apply(other, ports)
        assert rules_of(node) == rules_of(other)
        fresh.remove(other)


def test_a_change_of_one_service_rewrites_its_chains_and_no_others(lab):
    node, three = lab.netns("node"), many(3)
    proxier = Proxier(CONFIG)
    proxier.apply(node, three)
    done = proxier.apply(node, [*three[:2], replace(three[2], endpoints=three[2].endpoints[:1])])
    assert not done.full
    assert len(re.findall(r"^-A KUBE-SVC-\S+ -m comment --comment \"\S+ cluster IP\"", done.text, re.MULTILINE)) == 1
    assert len(re.findall("^-X KUBE-SEP-", done.text, re.MULTILINE)) == 1
    assert len(re.findall("^-A KUBE-SERVICES .*cluster IP", done.text, re.MULTILINE)) == 3
    assert proxier.apply(node, [*three[:2], replace(three[2], endpoints=three[2].endpoints[:1])]).text == ""


def test_a_jump_that_is_not_ours_makes_the_next_sync_a_whole_one(lab):
    node, three = lab.netns("node"), many(3)
    proxier = Proxier(CONFIG)
    proxier.apply(node, three)
    going = next(one for one in render(three[2:], CONFIG).nat if one.startswith("KUBE-SEP-"))
    holder = next(one for one in render(three[:1], CONFIG).nat if one.startswith("KUBE-SVC-"))
    node.iptables("-t", "nat", "-A", holder, "-j", going, backend="nft")
    assert proxier.apply(node, three[:2]).full
    other = lab.netns("other")
    Proxier(CONFIG).apply(other, three[:2])
    assert rules_of(node) == rules_of(other)


def test_a_jump_from_a_chain_of_others_is_an_error_and_nothing_changes(lab):
    node, two = lab.netns("node"), many(2)
    proxier = Proxier(CONFIG)
    proxier.apply(node, two)
    going = next(one for one in render(two[1:], CONFIG).nat if one.startswith("KUBE-SEP-"))
    node.iptables("-t", "nat", "-A", "OUTPUT", "-j", going, backend="nft")
    before = rules_of(node)
    with pytest.raises(CommandFailed):
        proxier.apply(node, two[:1])
    assert [rule for rule in rules_of(node) if "KUBE-S" in rule] == [rule for rule in before if "KUBE-S" in rule]
    node.iptables("-t", "nat", "-D", "OUTPUT", "-j", going, backend="nft")
    assert proxier.apply(node, two[:1]).full
    assert going not in str(rules_of(node))


def test_a_kube_proxy_that_starts_again_takes_over(lab):
    node, three = lab.netns("node"), many(3)
    Proxier(CONFIG).apply(node, three)
    again = Proxier(CONFIG)
    again.apply(node, three[:1])
    other = lab.netns("other")
    Proxier(CONFIG).apply(other, three[:1])
    assert rules_of(node) == rules_of(other)
    again.remove(node)
    assert rules_of(node) == []


def test_more_rules_than_one_nft_transaction_takes_are_loaded_with_iptables_legacy(lab):
    """And those that were loaded with iptables-nft before go; a Service is served all the time."""
    port = service()
    stage = stage_of(lab, port)
    proxier = Proxier(CONFIG)
    assert proxier.apply(stage.node, [port, *many(20)]).backend == "nft"
    assert stage.world.connect(ADDRESS, 80).ok
    done = proxier.apply(stage.node, [port, *many(400)])
    assert (done.backend, done.full) == ("legacy", True)
    assert rules_of(stage.node) == []
    assert stage.world.connect(ADDRESS, 80).ok
    done = proxier.apply(stage.node, [port, *many(399)])
    assert (done.backend, done.full) == ("legacy", False)
    assert stage.world.connect(ADDRESS, 80).ok
    proxier.remove(stage.node)
    assert rules_of(stage.node, "legacy") == []


def test_with_many_endpoints_stale_chains_wait_for_the_next_clean_up(lab):
    node, now = lab.netns("node"), 100.0
    proxier = Proxier(CONFIG, clock=lambda: now)
    ports = many(501)  # 1,002 endpoints
    proxier.apply(node, ports)
    assert " -> " not in str(rules_of(node, "legacy"))
    assert "\n-X" not in proxier.apply(node, ports[:-1] + many(502)[501:]).text
    now += 31
    assert proxier.apply(node, ports[:-1] + many(503)[502:]).text.count("\n-X KUBE-S") == 6
