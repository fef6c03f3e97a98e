"""The rules of a Service in IPVS mode as a picture and in words, from a live kernel; packets go where the words say.

Services, callers and calls are those of tests/linux/test_rules_view.py, in one cluster for all tests of this file.
"""

from __future__ import annotations

import contextlib
import json
import socket

import pytest

from k8snet import Cluster
from k8snet.observe.rules_live import proxy_of
from tests.linux.test_rules_view import BALANCER, FLOWS, fill, live

LATER = [("203.0.113.10", "172.18.0.3:30081"), ("client", "172.18.0.3:30081")]  # who is not answered the same way
FLOWS = [*(one for one in FLOWS if one not in LATER), ("node1", f"{BALANCER}:80"), ("client", "172.18.0.1:30080")]
CALLS = 5  # in turn, so that each of three endpoints is met
STICKY = """
apiVersion: v1
kind: Service
metadata: {name: sticky, namespace: shop}
spec: {sessionAffinity: ClientIP, ipFamilyPolicy: PreferDualStack, externalIPs: [192.0.2.7], selector: {app: web},
       ports: [{port: 80, targetPort: 8080}]}
"""


@pytest.fixture(scope="module")
def cluster():
    with contextlib.closing(Cluster(3, name="test", wiring="direct", ip_families=("v4", "v6"))) as made:
        fill(made, "ipvs").apply(STICKY)
        for address in (BALANCER, "192.0.2.7"):
            made.router.add_route(f"{address}/32", via="172.18.0.1")
        yield made


@pytest.fixture
def spoilt(cluster):
    """The cluster, for a test that changes what kube-proxy has made."""
    yield cluster
    proxy_of(cluster).stop()
    cluster.start_proxy("ipvs")


def vip(cluster, name="web"):
    return cluster.objects["Service", "shop", name].spec.clusterIP


def ends(cluster, *asked, **options):
    """Return what becomes of a packet: kind, place and share."""
    return {(one.kind, one.to, round(one.share, 3)) for one in cluster.why(*asked, **options).outcomes}


def test_the_tree_has_only_what_the_kernel_has_and_all_that_leads_to_each_pod(cluster):
    node = cluster.node("node1").netns
    found = cluster.rules("shop/web", node="node1", caption="What a call to the Service meets.")
    told = str(found).replace("\u00a0", " ")
    assert f"{vip(cluster)}:80/tcp, cluster IP, on kube-ipvs0\n" in told
    assert "172.18.0.1:30080/tcp, node port, on eth0\n" in told
    for number, where in ((1, "node1"), (2, "node2"), (3, "node1")):
        assert told.count(f":8080, pod shop/web-{number} on {where}") == 2
    assert f"TCP {vip(cluster)}:80   the cluster IP of shop/web; rr: each in turn\n" in told
    for line in ("in KUBE-NODE-PORT-TCP: mark for masquerade", "in KUBE-LOOP-BACK: MASQUERADE",
                 "not from a pod, in KUBE-CLUSTER-IP: mark for masquerade"):  # fmt: skip
        assert line in told
    assert "guarded" not in told
    assert "KUBE-LOOP-BACK" in found._repr_html_()
    kernel = node.iptables_save(backend="nft") + "\n".join(
        " ".join(line.split()) for line in node.run("ipvsadm", "-L", "-n").stdout.splitlines()
    )
    rules = [line for box in found.as_dict()["chains"] for rule in box["rules"] for line in rule["rule"].splitlines()]
    assert len(rules) > 15
    for rule in rules:
        assert (rule if rule.startswith("-A ") else " ".join(rule.split())) in kernel
    assert json.loads(json.dumps(found.as_dict())) == found.as_dict()


def test_packets_go_where_the_words_say_in_ipvs_mode(cluster):
    nodes = {one for node in cluster.nodes.values() for one in (node.address, node.gateway("v4"))}
    kinds = {}
    for source, target in FLOWS:
        found = cluster.why(source, target)
        seen, outcome = live(cluster, source, target, CALLS)
        kinds[source, target] = {one.kind for one in found.outcomes}
        if kinds[source, target] == {"endpoint"} or outcome == "ok":
            assert seen.keys() == {one.to for one in found.outcomes}, (source, target)
            for one in found.outcomes:
                assert seen[one.to] <= (nodes if one.masqueraded else {one.source}), (source, target, one)
        else:
            (kind,) = kinds[source, target]
            assert outcome == {"REJECT": "refused", "DROP": "timeout", "on": "refused"}[kind], (source, target)
    assert {kind for found in kinds.values() for kind in found} == {"endpoint", "REJECT", "DROP", "on"}


def test_without_an_endpoint_on_the_node_policy_local_reaches_all_and_the_answer_goes_another_way(cluster):
    """As upstream's: the words are of the way there, which IPVS's own table of connections knows, too."""
    node = cluster.node("node3").netns
    found = cluster.why("203.0.113.10", "172.18.0.3:30081")
    assert {(one.kind, one.masqueraded) for one in found.outcomes} == {("endpoint", False)}
    assert cluster.internet.connect("172.18.0.3", 30081, timeout_s=0.3).outcome == "timeout"
    lines = [line.split() for line in node.run("ipvsadm", "-L", "-n", "-c").stdout.splitlines()]
    (known,) = [words for words in lines if words[-2] == "172.18.0.3:30081" and words[3].startswith("203.0.113.10:")]
    assert known[2] == "SYN_RECV"
    assert known[-1] in {one.to for one in found.outcomes}


def test_a_ping_of_a_cluster_ip_is_rejected_by_the_rule_that_is_named(cluster):
    address, node = vip(cluster), cluster.node("node1").netns
    for target in ("shop/web", address):
        found = cluster.why("client", target, protocol="icmp")
        assert "KUBE-IPVS-FILTER" in found.steps[-1].rule
        assert "the set KUBE-IPVS-IPS has" in found.steps[-1].why
        assert [(one.kind, one.to) for one in found.outcomes] == [("REJECT", address)]
    assert cluster.pod("client").ping(address, timeout_s=2).outcome == "unreachable"
    node.iptables("-I INPUT -p icmp -j ACCEPT")
    (outcome,) = cluster.why("client", address, protocol="icmp").outcomes
    assert outcome.words.startswith("a rule lets it pass: it goes on to node1 itself")
    assert cluster.pod("client").ping(address, timeout_s=2).ok
    node.iptables("-D INPUT -p icmp -j ACCEPT")


def test_each_scheduler_is_told_as_it_is(cluster):
    node, client, address = cluster.node("node1").netns, cluster.pod("client"), vip(cluster)
    web1, web2, web3 = (f"{cluster.pod(f'shop/web-{number}').address}:8080" for number in (1, 2, 3))

    def schedule(name, **weights):
        node.run("ipvsadm", "-E", "-t", f"{address}:80", "-s", name)
        for real, weight in zip((web1, web2, web3), weights.values(), strict=True):
            node.run("ipvsadm", "-e", "-t", f"{address}:80", "-r", real, "-m", "-w", str(weight))
        return cluster.why("client", "shop/web")

    def called(count):
        seen = [client.fetch(f"http://{address}").server_sees[1] for _ in range(count)]
        return {one: seen.count(one) / count for one in seen}

    found = schedule("wrr", one=3, two=1, three=0)
    assert {one.to: one.share for one in found.outcomes} == called(8) == {web1: 0.75, web2: 0.25}
    found = schedule("sh", one=1, two=1, three=1)
    assert {one.to for one in found.outcomes} == {web1, web2, web3}
    assert "for one client always the same" in str(found)
    assert list(called(4).values()) == [1]
    schedule("lc", one=1, two=1, three=1)
    (held,) = called(1)
    with client.netns.inside(socket.create_connection, (address, 80)) as first:
        (where,) = [one for one in node.run("ipvsadm", "-L", "-n", "-c").stdout.splitlines() if "ESTABLISHED" in one]
        assert f":{first.getsockname()[1]} " in where
        free = {one.to for one in cluster.why("client", "shop/web").outcomes}
        assert where.split()[-1] not in free
        assert set(called(1)) <= free
    assert held in {web1, web2, web3}
    schedule("rr", one=1, two=1, three=1)


def test_session_affinity_and_external_ips_are_told_too(cluster):
    assert "a client stays for 10800 s" in str(cluster.rules("shop/sticky"))
    found = cluster.why("client", "shop/sticky")
    assert any(one.rule == "persistent 10800" and one.then == "the client is remembered" for one in found)
    told = cluster.why("203.0.113.10", "192.0.2.7:80", node="node1")
    seen, outcome = live(cluster, "203.0.113.10", "192.0.2.7:80", CALLS)
    assert (outcome, len(seen)) == ("ok", 1)
    assert seen.keys() <= {one.to for one in told.outcomes}
    assert all(one.masqueraded for one in told.outcomes)
    assert set.union(*seen.values()) <= {"172.18.0.1", "10.244.1.1"}


def test_the_other_family_has_sets_and_virtual_servers_of_its_own(cluster):
    told = str(cluster.rules("shop/sticky", node="node1", family="v6")).replace("\u00a0", " ")
    assert "in KUBE-6-CLUSTER-IP" in told
    assert "]:80/tcp, cluster IP, on kube-ipvs0" in told
    found = cluster.why("client", "shop/sticky", family="v6")
    client, address = cluster.pod("client"), cluster.objects["Service", "shop", "sticky"].spec.clusterIPs[1]
    seen = {client.fetch(f"http://[{address}]").server_sees[1] for _ in range(CALLS)}
    assert len(found.outcomes) == 3
    assert seen <= {one.to.replace("[", "").replace("]", "") for one in found.outcomes}
    assert ends(cluster, "client", address, protocol="icmp") == {("REJECT", address, 1)}
    with pytest.raises(ValueError, match="not of the family"):
        cluster.why("10.244.1.9", f"[{address}]:80")


def test_what_is_told_follows_the_kernel_and_not_kube_proxy(spoilt):
    cluster = spoilt
    node, client, address = cluster.node("node1").netns, cluster.pod("client"), vip(cluster)
    web1 = f"{cluster.pod('shop/web-1').address}:8080"
    node.run("ipvsadm", "-e", "-t", f"{address}:80", "-r", web1, "-m", "-w", "0")
    assert web1 not in {to for _, to, _ in ends(cluster, "client", "shop/web")}
    assert len(ends(cluster, "client", "shop/web")) == 2
    assert str(cluster.rules("shop/web", node="node1")).count(f"to {web1}") == 1  # by the node port
    node.run("ipset", "del", "KUBE-CLUSTER-IP", f"{address},tcp:80")
    assert ends(cluster, "client", "shop/web") == {("REJECT", f"{address}:80", 1)}
    assert client.connect(address, 80).outcome == "refused"
    node.run("ipset", "add", "KUBE-CLUSTER-IP", f"{address},tcp:80")
    node.iptables("-P INPUT DROP")
    assert ends(cluster, "client", "shop/web") == {("DROP", f"{address}:80", 1)}
    assert client.connect(address, 80, timeout_s=0.3).outcome == "timeout"
    node.iptables("-P INPUT ACCEPT")
    node.run("ip", "address", "delete", f"{address}/32", "dev", "kube-ipvs0")
    assert f"{address}:80/tcp, cluster IP, on no interface" in str(cluster.rules("shop/web", node="node1"))
    assert {kind for kind, *_ in ends(cluster, "client", "shop/web")} == {"on"}
    assert not client.connect(address, 80, timeout_s=0.3).ok
    assert {one.masqueraded for one in cluster.why("node1", "172.18.0.1:30080").outcomes} == {True}
    node.set_sysctl("net.ipv4.vs.conntrack", 0)
    assert {one.masqueraded for one in cluster.why("node1", "172.18.0.1:30080").outcomes} == {False}
