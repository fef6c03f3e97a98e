"""kube-proxy in nftables mode on a real node: who is answered, by whom, and who is refused or dropped."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from dataclasses import replace

import pytest

from k8snet.controllers.kube_proxy.nftables import Proxier, name_of_chain, render
from k8snet.controllers.kube_proxy.service_ports import Endpoint, ProxyConfig, ServicePort
from k8snet.errors import CapabilityMissing, CommandFailed
from k8snet.lab import Attachment, End, Lab
from k8snet.linux.nftables import apply_script, split
from k8snet.linux.sweep import Target, sweep
from tests.chance import chi_square_p

CONFIG = ProxyConfig(
    node_name="node", node_ips=("172.18.0.2",), cluster_cidr="10.244.0.0/16", service_cidrs=("10.96.0.0/12",)
)
VIP = "10.96.0.20"


def make_node(lab, *, pods, network="10.244.1.", uplink="172.18.0.", bits=(24, 16)):
    """Build a node with pods on a bridge, and a client outside that sends to Services by way of the node."""
    node, client = lab.netns("node", forward=True), lab.netns("outside")
    lab.veth(
        End(netns=node, name="eth0", address=f"{uplink}2/{bits[1]}"),
        End(netns=client, name="eth0", address=f"{uplink}100/{bits[1]}"),
    )
    node.set_sysctls({"net.ipv4.icmp_ratemask": 0})  # each of many refusals is told
    node.add_bridge("cni0", address=f"{network}1/{bits[0]}")
    node.add_route("default", via=f"{uplink}100")
    client.add_route("default", via=f"{uplink}2")
    made = [
        Attachment(netns=f"pod{n}", port=f"veth{n}", address=f"{network}{n + 10}/{bits[0]}", gateway=f"{network}1",
                   hairpin=True)
        for n in range(pods)
    ]  # fmt: skip
    return node, client, lab.attach_all(node, "cni0", made)


@pytest.fixture
def node(lab):
    """A node with eleven pods: pod0 calls, the others can serve."""
    node, _, pods = make_node(lab, pods=11)
    for pod in pods:
        pod.listen(8080)
    return node


def endpoint(number, **more):
    return Endpoint(address=f"10.244.1.{number + 10}", port=8080, local=True, **more)


def service(*numbers, name="web", **more):
    given = {"cluster_ip": VIP, "port": 80, "protocol": "TCP", **more}
    ends = tuple(endpoint(n) for n in sorted(numbers, key=str))
    return ServicePort(namespace="shop", name=name, port_name="http", endpoints=ends, **given)


def pod(node, number):
    return node._owner[f"pod{number}"]


def calls(netns, count, address=VIP, port=80, *, protocol="tcp"):
    """Open *count* connections and count their outcomes."""
    target = Target(protocol=protocol, address=address, port=port)
    return Counter(one.outcome for one in sweep({netns: [target] * count}, timeout_s=2)[netns])


def served(node, before=None):
    """Return how many requests each pod has answered, or how many since *before*."""
    found = Counter(
        {one.netns: len(one.served) for one in node._owner._kept if hasattr(one, "served") and one.netns != "node"}
    )
    return found - before if before else found


def ruleset(netns):
    return netns.run("nft", "list", "ruleset").stdout


# -- what is loaded ----------------------------------------------------------------------------


def test_a_change_touches_the_rules_of_one_service_and_removal_leaves_nothing(node):
    proxier = Proxier(CONFIG)
    both = [service(1, 2), service(3, name="other", cluster_ip="10.96.0.21", affinity_s=60)]
    proxier.apply(node, both)
    assert proxier.sync(both) == []
    changed = [service(1, 4), both[1]]
    statements = "\n".join(proxier.sync(changed))
    assert "other" not in statements
    assert "10.96.0.21" not in statements
    assert proxier.apply(node, changed) == 2  # all of it, then the chain of the endpoint that is gone
    assert name_of_chain("endpoint", both[0], endpoint(2)) not in ruleset(node)
    assert calls(pod(node, 0), 20) == {"ok": 20}
    assert proxier.apply(node, [both[0]]) == 2
    assert "other" not in ruleset(node)
    assert proxier.apply(node, []) == 2
    assert "shop" not in ruleset(node)
    proxier.remove(node)
    proxier.remove(node)  # nothing there is nothing to do
    assert ruleset(node) == ""


def test_every_transaction_is_in_the_transcript_as_it_was_loaded(node):
    mark = len(node._owner.transcript)
    proxier = Proxier(CONFIG)
    proxier.apply(node, [service(1)])
    proxier.remove(node)
    entries = node._owner.transcript.since(mark).entries
    assert [one.words for one in entries] == [("nft", "-f", "-")] * 2
    assert set(render([service(1)], CONFIG).splitlines()) < set(entries[0].stdin.splitlines())


def test_after_an_error_the_next_call_makes_the_table_anew(node):
    proxier = Proxier(CONFIG)
    proxier.apply(node, [service(1)])
    node.nft("delete", "table", "ip", "kube-proxy")
    with pytest.raises(CommandFailed, match="No such file or directory"):
        proxier.apply(node, [service(1, 2)])
    proxier.apply(node, [service(1, 2)])
    assert calls(pod(node, 0), 4) == {"ok": 4}


def test_another_proxier_takes_over_what_a_first_one_left(node):
    Proxier(CONFIG).apply(node, [service(1), service(3, name="gone", cluster_ip="10.96.0.21")])
    Proxier(CONFIG).apply(node, [service(2)])
    assert "gone" not in ruleset(node)
    before = served(node)
    assert calls(pod(node, 0), 4) == {"ok": 4}
    assert served(node, before) == {"pod2": 4}


def test_another_affinity_timeout_makes_the_set_anew(node):
    """Linux keeps the timeout that a set was made with, and says nothing."""
    proxier = Proxier(CONFIG)
    proxier.apply(node, [service(1, affinity_s=10800)])
    assert "timeout 3h" in ruleset(node)
    proxier.apply(node, [service(1, affinity_s=90)])
    assert "timeout 1m30s" in ruleset(node)
    assert "timeout 3h" not in ruleset(node)
    proxier.apply(node, [service(1)])
    assert "timeout" not in ruleset(node)


# -- transactions ------------------------------------------------------------------------------


def many(count, first=0):
    ports = []
    for n in range(first, first + count):
        address = f"10.97.{n // 250}.{n % 250 + 1}"
        ports.append(service(n % 10 + 1, (n + 1) % 10 + 1, name=f"s{n}", cluster_ip=address))
    return ports


def test_a_thousand_services_load_in_a_user_namespace(node):
    """One transaction cannot: only root on the machine may raise the send buffer above its default."""
    ports = many(1000)
    whole = node.run("nft", "-f", "-", stdin=render(ports, CONFIG), check=False)
    assert "Message too long" in whole.stderr
    assert ruleset(node) == ""
    proxier = Proxier(CONFIG)
    assert proxier.apply(node, ports) > 10
    for one in (ports[0], ports[500], ports[-1]):
        assert calls(pod(node, 0), 4, one.cluster_ip) == {"ok": 4}
    assert proxier.apply(node, [replace(ports[0], endpoints=(endpoint(5),)), *ports[1:]]) <= 2


def test_a_transaction_that_the_kernel_finds_too_long_is_halved_once(node):
    statements = render(many(100), CONFIG).splitlines()
    assert len(split(statements, limit=10**9)) == 1
    apply_script(node, statements, limit=10**9)
    assert calls(pod(node, 0), 4, "10.97.0.1") == {"ok": 4}
    with pytest.raises(CapabilityMissing, match="too large for a socket"):
        apply_script(node, render(many(400), CONFIG).splitlines(), limit=10**9)


def test_a_chain_that_counts_as_used_for_a_moment_longer_is_deleted_then(node):
    """Before Linux 6.2 that is so for every chain that a map named; here a rule plays its part."""
    node.nft("add table ip t\nadd chain ip t used\nadd chain ip t user\nadd rule ip t user jump used")
    later = threading.Timer(0.3, node.nft, ["flush", "chain", "ip", "t", "user"])
    later.start()
    apply_script(node, ["delete chain ip t used"])
    later.join()
    assert "used" not in ruleset(node)


def test_one_service_that_is_too_large_is_refused_with_its_size(node):
    ends = tuple(Endpoint(address=f"10.244.{n // 250}.{n % 250 + 1}", port=80) for n in range(4000))
    with pytest.raises(CapabilityMissing, match=r"about [\d,]+ bytes .*use fewer endpoints"):
        Proxier(CONFIG).apply(node, [replace(service(), endpoints=ends)])


def test_between_any_two_transactions_of_a_change_the_other_services_answer(node):
    """And the one that changes answers too: by its old endpoint or by its new one."""
    steady, moving = service(1, 2), service(3, name="moving", cluster_ip="10.96.0.21", node_port=30080)
    proxier = Proxier(CONFIG)
    proxier.apply(node, [steady, moving])
    after = [steady, replace(moving, endpoints=(endpoint(4), endpoint(5))), *many(5)]
    transactions = split(proxier.sync(after), limit=600)
    assert len(transactions) > 20
    for one in transactions:
        node.run("nft", "-f", "-", stdin="".join(f"{statement}\n" for statement in one))
        assert calls(pod(node, 0), 4) == {"ok": 4}
        assert calls(pod(node, 0), 4, "10.96.0.21") == {"ok": 4}
        assert calls(node._owner["outside"], 2, "172.18.0.2", 30080) == {"ok": 2}
    before = served(node)
    assert calls(pod(node, 0), 12, "10.96.0.21") == {"ok": 12}
    assert served(node, before).keys() == {"pod4", "pod5"}


def test_no_call_is_lost_while_endpoints_and_services_come_and_go(node):
    proxier, outcomes, stop = Proxier(CONFIG), Counter(), threading.Event()
    proxier.apply(node, [service(1, 2)])

    def client():
        while not stop.is_set():
            outcomes.update(calls(pod(node, 0), 8))

    thread = threading.Thread(target=client)
    thread.start()
    try:
        for n in range(12):  # the endpoint that was added last is drained next
            proxier.apply(node, [service(1, 2 + n % 9), *many(3 * n % 7)])
    finally:
        stop.set()
        thread.join()
    assert outcomes.keys() == {"ok"}
    assert outcomes["ok"] >= 24


# -- who answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_connections_are_spread_evenly_over_the_endpoints(node, count):
    Proxier(CONFIG).apply(node, [service(*range(1, count + 1))])
    assert calls(pod(node, 0), 3000) == {"ok": 3000}
    counts = [served(node)[f"pod{n}"] for n in range(1, count + 1)]
    assert sum(counts) == 3000
    assert chi_square_p(counts) > 1e-6


def test_a_client_comes_back_to_the_endpoint_that_it_had(node):
    port = service(1, 2, 3, 4, 5, affinity_s=10800)
    proxier = Proxier(CONFIG)
    proxier.apply(node, [port])
    for caller in range(6, 11):
        before = served(node)
        assert calls(pod(node, caller), 1) == {"ok": 1}  # and the others when the choice is known
        assert calls(pod(node, caller), 11) == {"ok": 11}
        (kept,) = served(node, before)
    rest = [end for end in port.endpoints if end != endpoint(int(kept[3:]))]
    proxier.apply(node, [replace(port, endpoints=tuple(rest))])
    before = served(node)
    assert calls(pod(node, 10), 1) == calls(pod(node, 10), 1) == {"ok": 1}
    (other,) = served(node, before)  # its endpoint is gone: another one, from now on
    assert other != kept


def test_a_pod_reaches_itself_through_its_service_and_sees_the_node_call(node):
    Proxier(CONFIG).apply(node, [service(1)])
    page = pod(node, 1).fetch(f"http://{VIP}/")
    assert page.ok
    assert page.server_sees[0].startswith("10.244.1.1:")
    assert pod(node, 0).fetch(f"http://{VIP}/").server_sees[0].startswith("10.244.1.10:")


def test_a_udp_service_answers(node):
    pod(node, 1).listen(5353, protocol="udp")
    port = ServicePort(namespace="kube-system", name="dns", port_name="dns", protocol="UDP", cluster_ip="10.96.0.10",
                       port=53, endpoints=(Endpoint(address="10.244.1.11", port=5353),))  # fmt: skip
    Proxier(CONFIG).apply(node, [port])
    assert calls(pod(node, 0), 5, "10.96.0.10", 53, protocol="udp") == {"ok": 5}


def test_a_udp_client_that_never_changes_its_port_follows_the_endpoints(node):
    """For conntrack the datagrams of one socket are one connection, for as long as any come."""
    for number in (1, 2):
        pod(node, number).listen(5353, protocol="udp")
    ends = [Endpoint(address=f"10.244.1.{n}", port=5353) for n in (11, 12)]
    port = replace(service(protocol="UDP", port=53), endpoints=(ends[0],))
    proxier = Proxier(CONFIG)
    proxier.apply(node, [port])

    def ask(sock):
        sock.send(b"?\n")
        return sock.recv(100).split()[0]

    with pod(node, 0).inside(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.connect((VIP, 53))
        assert [ask(sock), ask(sock)] == [b"pod1"] * 2
        proxier.apply(node, [replace(port, endpoints=(ends[1],))])
        assert ask(sock) == b"pod2"


def test_everything_that_leads_to_a_service_is_answered_from_outside(node):
    Proxier(CONFIG).apply(node, [
        service(1, node_port=30080, external_ips=("192.0.2.7",), load_balancer_ips=("198.51.100.7",))
    ])  # fmt: skip
    outside = node._owner["outside"]
    for address, port in ((VIP, 80), ("172.18.0.2", 30080), ("192.0.2.7", 80), ("198.51.100.7", 80)):
        assert outside.fetch(f"http://{address}:{port}/").server_sees[0].startswith("10.244.1.1:"), address
        assert node.connect(address, port).ok, address


def test_policy_local_keeps_the_address_of_the_client(node):
    Proxier(CONFIG).apply(node, [service(1, node_port=30080, external_local=True)])
    page = node._owner["outside"].fetch("http://172.18.0.2:30080/")
    assert page.server_sees[0].startswith("172.18.0.100:")


def test_ipv6_services_answer_too(lab):
    lab.close()
    with Lab("test", ipv6=True) as six:
        node, outside, pods = make_node(six, pods=3, network="fd00:10:244:1::", uplink="fd00:18::", bits=(64, 64))
        for one in pods[1:]:
            one.listen(8080, address="::")
        config = ProxyConfig(
            node_name="node", node_ips=("172.18.0.2", "fd00:18::2"), family="v6", cluster_cidr="fd00:10:244::/48",
            service_cidrs=("10.96.0.0/12", "fd00:10:96::/112"),
        )  # fmt: skip
        ends = tuple(Endpoint(address=f"fd00:10:244:1::{n}", port=8080) for n in (11, 12))
        port = replace(
            service(cluster_ip="fd00:10:96::20", node_port=30080, affinity_s=60, source_ranges=("fd00:18::/64",),
                    load_balancer_ips=("2001:db8::7",)),
            port_name="", endpoints=ends,
        )  # fmt: skip
        none = service(name="none", cluster_ip="fd00:10:96::21")
        proxier = Proxier(config)
        proxier.apply(node, [port, none])
        assert calls(pods[0], 8, "fd00:10:96::20") == {"ok": 8}
        assert calls(outside, 2, "fd00:18::2", 30080) == {"ok": 2}
        assert calls(outside, 2, "2001:db8::7") == {"ok": 2}
        assert pods[0].connect("2001:db8::7", 80, timeout_s=0.3).outcome == "timeout"  # not of the source ranges
        assert pods[0].connect("fd00:10:96::21", 80).outcome == "refused"
        proxier.remove(node)
        assert ruleset(node) == ""


# -- who is turned away ------------------------------------------------------------------------


def test_without_endpoints_every_way_in_is_refused(node):
    port = service(node_port=30080, external_ips=("192.0.2.7",), load_balancer_ips=("198.51.100.7",))
    Proxier(CONFIG).apply(node, [port])
    assert pod(node, 0).connect(VIP, 80).outcome == "refused"
    assert node.connect(VIP, 80).outcome == "refused"
    for address, number in (("172.18.0.2", 30080), ("192.0.2.7", 80), ("198.51.100.7", 80)):
        assert node._owner["outside"].connect(address, number).outcome == "refused", address


def test_without_local_endpoints_policy_local_drops_what_comes_from_outside_and_serves_the_nodes_own_pods(node):
    """What calls from the node itself takes the short cut to all endpoints."""
    elsewhere = replace(service(), endpoints=(replace(endpoint(1), local=False),), node_port=30080, external_local=True)
    Proxier(CONFIG).apply(node, [elsewhere])
    assert node._owner["outside"].connect("172.18.0.2", 30080, timeout_s=0.3).outcome == "timeout"
    assert pod(node, 0).connect("172.18.0.2", 30080).ok
    assert node.connect("172.18.0.2", 30080).ok
    internal = replace(elsewhere, node_port=0, external_local=False, internal_local=True)
    Proxier(CONFIG).apply(node, [internal])
    assert pod(node, 0).connect(VIP, 80, timeout_s=0.3).outcome == "timeout"


def test_source_ranges_drop_everybody_else_at_the_load_balancers_address_only(node):
    port = service(1, node_port=30080, load_balancer_ips=("198.51.100.7",), source_ranges=("203.0.113.0/24",))
    proxier, outside = Proxier(CONFIG), node._owner["outside"]
    proxier.apply(node, [port])
    assert outside.connect("198.51.100.7", 80, timeout_s=0.3).outcome == "timeout"
    assert outside.connect("172.18.0.2", 30080).ok
    proxier.apply(node, [replace(port, source_ranges=("203.0.113.0/24", "172.18.0.9/16"))])
    assert outside.connect("198.51.100.7", 80).ok


def test_another_port_of_a_cluster_ip_and_a_ping_are_refused_and_an_unused_cluster_ip_is_silent(node):
    """All three would go on their way to nowhere in iptables mode."""
    Proxier(CONFIG).apply(node, [service(1)])
    assert pod(node, 0).connect(VIP, 81).outcome == "refused"
    pinged = pod(node, 0).ping(VIP, timeout_s=1)
    assert (pinged.outcome, pinged.reporter) == ("unreachable", "10.244.1.1")
    assert pod(node, 0).connect("10.96.99.99", 80, timeout_s=0.3).outcome == "timeout"


@pytest.mark.parametrize(
    ("networks", "answering"),
    [
        ((), {"172.18.0.2"}),
        (("172.19.0.0/16", "127.0.0.1/32", "fd00::/8"), {"172.19.0.2"}),
        (("0.0.0.0/0",), {"172.18.0.2", "172.19.0.2", "10.244.1.1"}),
    ],
)
def test_node_ports_answer_on_the_addresses_that_were_named(node, networks, answering):
    """Nothing named is the primary address: iptables mode would take any."""
    node.add_address("lo", "172.19.0.2/32")
    config = replace(CONFIG, node_ips=("172.18.0.2", "172.19.0.2"), nodeport_addresses=networks)
    Proxier(config).apply(node, [service(1, node_port=30080)])
    tried = ("172.18.0.2", "172.19.0.2", "10.244.1.1")
    assert {one for one in tried if node._owner["outside"].connect(one, 30080).ok} == answering
    assert node.connect("127.0.0.1", 30080).outcome == "refused"
