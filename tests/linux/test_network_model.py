"""The Kubernetes network model, probed: it holds in every pod network, and a fault is named."""

from __future__ import annotations

import pytest

from k8snet.errors import InvalidInput
from k8snet.linux.run import wait_until
from k8snet.observe import reach

WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 30
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: nginx, ports: [{containerPort: 80}]}]}
"""
NETWORKS = [("routes", {}), ("vxlan", {}), ("bgp", {}), ("bgp", {"route_reflector": True})]


@pytest.mark.parametrize("families", [("v4",), ("v4", "v6")], ids="+".join)
@pytest.mark.parametrize(("network", "more"), NETWORKS, ids=["routes", "vxlan", "mesh", "reflector"])
def test_ten_pods_on_each_of_three_nodes_keep_every_rule(cluster_of, network, more, families):
    cluster = cluster_of(3, pod_network=network, ip_families=families, **more)
    cluster.apply(WEB)
    report = cluster.check_model(timeout_s=2)
    assert report.ok, str(report)
    assert [rule.tried for rule in report.rules] == [30, *([2700, 30] * len(families)), 0]


@pytest.mark.parametrize("network", ["routes", "vxlan", "bgp"])
def test_a_route_that_is_taken_away_is_named_with_the_pair_that_lost_it(cluster_of, network):
    cluster = cluster_of(3, pod_network=network)
    a = cluster.run_pod("a", node="node1")
    cluster.run_pod("b", node="node2")
    cluster.run_pod("c", node="node3")
    cluster.node("node1").netns.delete_route("10.244.2.0/24")
    report = cluster.check_model(timeout_s=0.5)
    assert not report.ok
    assert {(one.source, one.target) for one in report.violations} == {
        ("default/a", "default/b"), ("default/b", "default/a")
    }  # fmt: skip
    there, back = (
        next(one for one in report.violations if one.source == f"default/{name}" and one.protocol == "TCP")
        for name in "ab"
    )
    assert "the way there: node1 has no route of its own to 10.244.2.0/24" in there.reason
    assert "the way back: node1 has no route of its own to 10.244.2.0/24" in back.reason
    assert "default/a -> default/b TCP" in str(report)
    assert a.ping(cluster.pod("c")).ok


def test_nat_between_pods_is_a_violation_though_every_probe_is_answered(cluster_of):
    """Flannel without its exception, or a bridge plugin with ipMasq, does this."""
    cluster = cluster_of(2)
    cluster.run_pod("a", node="node1")
    cluster.run_pod("b", node="node2")
    cluster.node("node1").netns.iptables("-t nat -I POSTROUTING -s 10.244.1.0/24 -o eth0 -j MASQUERADE")
    report = cluster.check_model()
    told = {(one.source, one.target, one.protocol): one.reason for one in report.violations}
    assert told["default/a", "default/b", "TCP"] == "NAT: the server saw 172.18.0.1, not 10.244.1.2"
    assert told["default/a", "default/b", "UDP"] == "NAT: the server saw 172.18.0.1, not 10.244.1.2"
    assert told["default/a", "default/b", "ICMP"].startswith("NAT")
    assert {pair[:2] for pair in told} == {("default/a", "default/b")}


def test_an_address_that_two_pods_have_is_a_violation(cluster_of):
    cluster = cluster_of(1)
    a, b = cluster.run_pod("a"), cluster.run_pod("b")
    b.netns.delete_address("eth0", f"{b.address}/24")
    b.netns.add_address("eth0", f"{a.address}/24")
    assert "eth0 does not have 10.244.1.3; it has" in str(cluster.check_model(timeout_s=0.3).rules[0])


def test_a_node_that_may_not_reach_its_pods_is_a_violation(cluster_of):
    cluster = cluster_of(1)
    cluster.run_pod("a")
    cluster.node("node1").netns.iptables("-A OUTPUT -p icmp -j DROP")
    report = cluster.check_model(timeout_s=0.3)
    assert [(one.source, one.target) for one in report.violations] == [("node1", "default/a")]


def test_the_check_leaves_no_socket_and_no_process(cluster_of):
    cluster = cluster_of(1)
    pod = cluster.run_pod("a", image="pause")
    before = pod.netns.sockets()
    assert cluster.check_model().ok
    assert pod.netns.sockets() == before


# -- the matrix ------------------------------------------------------------------------


def test_the_matrix_has_every_declared_port_and_every_pair(cluster_of):
    cluster = cluster_of(2)
    cluster.run_pod("web", ports=[80])
    cluster.run_pod("dns", image="x", ports=["53/udp"])
    cluster.run_pod("client", image="agnhost")  # serves ports that it does not declare
    found = cluster.reach(timeout_s=0.5).to_dict()
    assert found["pods"] == ["default/web", "default/dns", "default/client"]
    assert [(one["protocol"], one["port"]) for one in found["probes"]] == [("TCP", 80), ("UDP", 53)]
    web, dns = (one["matrix"] for one in found["probes"])
    assert {source: row["default/web"] for source, row in web.items()} == dict.fromkeys(found["pods"], "ok")
    assert {source: row["default/dns"] for source, row in dns.items()} == dict.fromkeys(found["pods"], "ok")
    assert web["default/web"]["default/client"] == "refused"
    assert all(list(row) == found["pods"] for row in web.values())


def test_each_outcome_has_its_word(cluster_of):
    cluster = cluster_of(1)
    pods = {name: cluster.run_pod(name, image="x", ports=[80]) for name in ("open", "shut", "drop", "reject")}
    pods["shut"].container("shut").stop()
    pods["drop"].netns.iptables("-A INPUT -p tcp -j DROP")
    pods["reject"].netns.iptables("-A INPUT -p tcp -j REJECT --reject-with icmp-host-prohibited")
    row = cluster.reach(ports=["tcp/80"], timeout_s=0.3).to_dict()["probes"][0]["matrix"]["default/open"]
    assert row == {
        "default/open": "ok", "default/shut": "refused", "default/drop": "timeout", "default/reject": "unreachable"
    }  # fmt: skip


def test_a_cluster_without_ports_says_so(cluster_of):
    assert str(cluster_of(1).reach()) == "No pod has a port to be probed."


@pytest.mark.parametrize("text", ["80", "tcp", "tcp/0", "tcp/65536", "sctp/80", "tcp/80/x", ""])
def test_a_port_that_cannot_be_read_is_refused(text):
    with pytest.raises(InvalidInput, match="write it as in tcp/80"):
        reach.parse_port(text)


def test_a_sweep_is_split_so_that_the_machines_neighbour_table_never_overflows(monkeypatch):
    """All netns share one table of 1,024, the machine's own too; past it, packets are dropped everywhere."""

    class Pod:
        def __init__(self, number):
            self.node = number % 4

    for count, room, most in ((100, 900, 8), (300, 900, 70), (300, 300, 400), (8, 900, 1), (5, 0, 5)):
        monkeypatch.setattr(reach.neighbour, "room", lambda room=room: room)
        pods = [Pod(number) for number in range(count)]
        jobs = reach._jobs(pods)
        pairs = [(source, target) for job in jobs for source, targets in job.items() for target in targets]
        assert len(pairs) == len(set(pairs)) == count * count
        for job in jobs:
            learnt = {
                pair for source, targets in job.items() for target in targets if source is not target
                for one, other in (
                    [(source, target)] if source.node == target.node
                    else [(source, source.node), (target, target.node)]
                ) for pair in ((one, other), (other, one))
            }  # fmt: skip
            assert len(learnt) <= min(reach.MOST, max(room - reach.SPARE, reach.SPARE))
        assert len(jobs) <= most


def test_a_split_sweep_forgets_the_neighbours_that_it_made(cluster_of, monkeypatch):
    cluster = cluster_of(1)
    # UDP: the last packets of a TCP connection may come after the end of the probe, and make some anew
    pods = [cluster.run_pod(f"p{number}", image="x", ports=["80/udp"]) for number in range(4)]
    monkeypatch.setattr(reach, "SPARE", 3)
    monkeypatch.setattr(reach.neighbour, "room", lambda: 6)
    assert cluster.reach().matrices[0].count() == {"ok": 16}
    wait_until(lambda: not any(pod.netns.neighbours() for pod in pods), what="neighbours that were forgotten")
