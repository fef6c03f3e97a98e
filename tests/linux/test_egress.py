"""The way out: who the outside sees, by masquerade with exceptions, by an egress gateway, and when ports run out."""

from __future__ import annotations

import contextlib
import json
import re
import socket

import pytest

from k8snet.errors import InvalidAddress, InvalidInput, NotFound
from tests.replay import replay

SERVER, ADDRESS = "203.0.113.80", "172.18.0.100"
OUTSIDE = ["203.0.113.0/24"]


def seen(pod, target=SERVER, port=80):
    """Return as whom a pod is seen, or what became of the call."""
    url = f"http://[{target}]:{port}" if ":" in target else f"http://{target}:{port}"
    page = pod.fetch(url, timeout_s=0.7)
    return page.server_sees[0].rpartition(":")[0].strip("[]") if page.ok else page.outcome


def nat(cluster, node, family=4):
    text = cluster.node(node).netns.iptables_save(family=family)
    return [re.sub(r'-m comment --comment "[^"]*" ', "", one) for one in text.splitlines() if one.startswith("-A")]


# -- masquerade with exceptions --------------------------------------------------------


def test_exceptions_see_pods_as_they_are_and_the_rest_sees_the_node(cluster_of):
    """A router that is told the way back can do without masquerade; the server beyond it is never asked."""
    cluster = cluster_of(2)
    pod = cluster.run_pod("web", ports=[80], node="node1")
    cluster.router.listen(80)
    cluster.router.add_route("10.244.1.0/24", via="172.18.0.1")
    before = cluster.snapshot()
    assert (seen(pod), seen(pod, "172.18.0.254")) == ("172.18.0.1", "172.18.0.1")
    agent = cluster.start_masquerade()
    assert (seen(pod), seen(pod, "172.18.0.254")) == ("172.18.0.1", "10.244.1.2")
    assert nat(cluster, "node1") == [
        "-A POSTROUTING -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT",
        *(f"-A IP-MASQ-AGENT -d {one} -j RETURN" for one in (
            "169.254.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")),
        "-A IP-MASQ-AGENT -j MASQUERADE --random-fully",
    ]  # fmt: skip
    agent.stop()
    assert cluster.snapshot() == before
    cluster.start_masquerade(non_masquerade_cidrs=["10.244.0.0/16"])
    assert seen(pod, "172.18.0.254") == "172.18.0.1"


def test_nodes_that_come_later_get_the_chain_alone(cluster_of):
    cluster = cluster_of(1)
    agent = cluster.start_masquerade()
    cluster.add_node()
    assert nat(cluster, "node2") == nat(cluster, "node1")
    assert seen(cluster.run_pod("web", node="node2")) == "172.18.0.2"
    cluster.remove_node("node1")
    agent.stop()
    assert nat(cluster, "node2") == ["-A POSTROUTING -s 10.244.2.0/24 ! -d 10.244.0.0/16 -j MASQUERADE"]


def test_a_list_without_the_pods_own_network_breaks_the_network_model(cluster_of):
    """The rules ask for no source: the last node on the way masquerades as well, and is the one that is seen."""
    cluster = cluster_of(2)
    for number in (1, 2):
        cluster.run_pod(f"web-{number}", ports=[80], node=f"node{number}")
    assert cluster.check_model().ok
    cluster.start_masquerade(non_masquerade_cidrs=["172.16.0.0/12"])
    assert not cluster.check_model().ok
    assert seen(cluster.pod("web-1"), cluster.pod("web-2").address) == "10.244.2.1"


def test_both_families_have_their_exceptions(cluster_of):
    cluster = cluster_of(2, ip_families=("v4", "v6"))
    pod = cluster.run_pod("web", node="node1")
    cluster.start_masquerade(non_masquerade_cidrs=["10.244.0.0/16", "fd00:10:244::/48"], masq_link_local=True)
    assert "-A IP-MASQ-AGENT -d fd00:10:244::/48 -j RETURN" in nat(cluster, "node1", 6)
    assert not [one for one in nat(cluster, "node1", 6) if "fe80" in one]
    assert seen(pod, "2001:db8:113::80") == "fd00:172:18::1"


def test_a_second_one_and_bad_lists_are_refused_and_change_nothing(cluster_of):
    cluster = cluster_of(1)
    before = cluster.snapshot()
    with pytest.raises(InvalidAddress):
        cluster.start_masquerade(non_masquerade_cidrs=["10.244.0.1/16"])
    assert cluster.snapshot() == before
    cluster.start_masquerade()
    with pytest.raises(InvalidInput, match="stop"):
        cluster.start_masquerade()


# -- an egress gateway -----------------------------------------------------------------


@pytest.fixture
def shop(cluster_of):
    """Build a cluster whose pods pay-1 on node1 and pay-2 on node2 leave by node2, and other on node1 does not."""

    def build(nodes=3, *, node="node2", destinations=OUTSIDE, **options):
        cluster = cluster_of(nodes, **options)
        for number in (1, 2):
            cluster.run_pod(f"pay-{number}", ports=[80], node=f"node{number}", labels={"app": "pay"})
        cluster.run_pod("other", ports=[80], node="node1")
        gateway = cluster.start_egress_gateway(
            node=node, address=ADDRESS, pods={"app": "pay"}, destinations=destinations
        )
        return cluster, gateway

    return build


def as_seen(cluster, target=SERVER):
    return [seen(cluster.pod(one), target) for one in ("pay-1", "pay-2", "other")]


@pytest.mark.parametrize("pod_network", ["routes", "vxlan", "bgp"])
def test_chosen_pods_are_seen_with_one_address_wherever_they_run(shop, pod_network):
    cluster, gateway = shop(pod_network=pod_network)
    assert as_seen(cluster) == [ADDRESS, ADDRESS, "172.18.0.1"]
    assert repr(gateway) == f"<egress gateway {ADDRESS} on node2, pods: 2>"
    known = {one.address: one.mac for one in cluster.router.neighbours()}
    assert known[ADDRESS] == cluster.snapshot()["node2"].interface("eth0").mac


def test_other_destinations_and_the_cluster_itself_are_left_alone(shop):
    cluster, _ = shop(destinations=["203.0.113.10/32"])
    assert as_seen(cluster) == ["172.18.0.1", "172.18.0.2", "172.18.0.1"]
    assert as_seen(cluster, "203.0.113.10") == [ADDRESS, ADDRESS, "172.18.0.1"]


def test_everywhere_does_not_mean_the_pods_and_nodes_of_the_cluster(shop):
    cluster, _ = shop(destinations=["0.0.0.0/0"])
    assert as_seen(cluster) == [ADDRESS, ADDRESS, "172.18.0.1"]
    inside, pod = cluster.run_pod("web", ports=[80], node="node3"), cluster.pod("pay-1")
    assert seen(pod, inside.address) == pod.address
    way = cluster.node("node1").netns.route_to(inside.address, source=pod.address, iif="cni0")
    assert way["gateway"] == "172.18.0.3"  # and no detour by node2
    assert cluster.check_model().ok


def test_a_pod_in_the_netns_of_its_node_leaves_as_the_node(shop):
    cluster, gateway = shop()
    pod = cluster.run_pod("pay-3", node="node1", labels={"app": "pay"}, host_network=True)
    assert pod not in gateway.pods
    assert seen(cluster.node("node1").netns) == "172.18.0.1"


def test_pods_that_come_go_and_change_are_followed(shop):
    cluster, gateway = shop()
    late = cluster.run_pod("pay-3", node="node3", labels={"app": "pay"})
    assert seen(late) == ADDRESS
    foreign = cluster.run_pod("pay-4", node="node3", labels={"app": "pay"}, namespace="else")
    assert seen(foreign) == "172.18.0.3"
    old = late.address
    cluster.delete("pod", "pay-3")
    assert [one.name for one in gateway.pods] == ["pay-1", "pay-2"]
    assert not cluster.node("node3").netns.run("ip", "rule", "show", "from", old).stdout
    assert f"-s {old}" not in " ".join(nat(cluster, "node2"))
    model = cluster.pod("pay-1").model.to_dict()
    model["metadata"]["labels"] = {"app": "free"}
    cluster.apply(str(model) + "\n")
    assert seen(cluster.pod("pay-1")) == "172.18.0.1"


def test_connections_are_lost_until_the_cluster_knows_that_the_gateway_is_dead(shop):
    """Then they are refused: with another address the packets would be worth less than nothing."""
    cluster, gateway = shop()
    cluster.power_off("node2")
    assert seen(cluster.pod("pay-1")) in {"timeout", "unreachable"}
    cluster.sync()
    assert gateway.node is None
    assert seen(cluster.pod("pay-1")) == "unreachable"
    assert seen(cluster.pod("other")) == "172.18.0.1"
    cluster.power_on("node2")
    assert as_seen(cluster) == [ADDRESS, ADDRESS, "172.18.0.1"]


def test_the_next_node_takes_over_and_gives_back(shop):
    cluster, gateway = shop(node=["node2", "node3"])
    assert seen(cluster.pod("pay-1")) == ADDRESS  # the router has the MAC of node2 now
    cluster.power_off("node2")
    cluster.sync()
    assert (gateway.node, seen(cluster.pod("pay-1"))) == ("node3", ADDRESS)
    cluster.power_on("node2")
    assert (gateway.node, as_seen(cluster)) == ("node2", [ADDRESS, ADDRESS, "172.18.0.1"])
    cluster.remove_node("node2")
    assert (gateway.node, seen(cluster.pod("pay-1"))) == ("node3", ADDRESS)


def test_a_thousand_pods_fit(cluster_of):
    """An ordinary user's netlink socket takes some 500 rules of iptables at once."""
    cluster = cluster_of(1)
    pod = cluster.run_pod("web", node="node1")
    gateway = cluster.start_egress_gateway(
        node="node1", address=ADDRESS, destinations=[f"198.51.{number}.0/24" for number in range(100)] * 2 + OUTSIDE
    )
    pod.addresses += tuple(f"10.244.200.{number}" for number in range(1, 11))  # as if it had eleven
    cluster.sync()
    pod.addresses = pod.addresses[:1]
    assert sum("SNAT" in one for one in nat(cluster, "node1")) == 11 * 101
    assert seen(pod) == ADDRESS
    gateway.stop()


def test_it_leaves_nothing_behind(shop):
    cluster, gateway = shop(node=["node3", "node2"])
    cluster.add_node()
    cluster.run_pod("pay-4", node="node4", labels={"app": "pay"})
    with_it = cluster.snapshot()
    gateway.stop()
    assert as_seen(cluster) == ["172.18.0.1", "172.18.0.2", "172.18.0.1"]
    without = cluster.snapshot()
    again = cluster.start_egress_gateway(
        node=["node3", "node2"], address=ADDRESS, pods={"app": "pay"}, destinations=OUTSIDE
    )
    assert cluster.snapshot() == with_it
    again.stop()
    assert cluster.snapshot() == without
    for name in cluster.nodes:
        assert nat(cluster, name) == [
            f"-A POSTROUTING -s 10.244.{name[-1]}.0/24 ! -d 10.244.0.0/16 -j MASQUERADE"
        ]  # fmt: skip
        assert len(cluster.node(name).netns.run("ip", "rule").stdout.splitlines()) == 3


def test_what_somebody_took_away_by_hand_is_no_obstacle(shop):
    cluster, gateway = shop()
    agent = cluster.start_masquerade()
    before = cluster.run_pod("pay-3", node="node1", labels={"app": "pay"})
    for name in ("node1", "node2"):
        node = cluster.node(name).netns
        node.sh(
            "iptables -t nat -F POSTROUTING; ip rule flush; ip rule add lookup main; ip route flush table 101 || true"
        )
    cluster.node("node2").netns.delete_address("eth0", f"{ADDRESS}/32")
    cluster.delete("pod", before.name)
    gateway.stop()
    agent.stop()
    assert as_seen(cluster) == ["172.18.0.1", "172.18.0.2", "172.18.0.1"]


def test_the_gateway_started_last_counts_on_every_node(shop):
    cluster, first = shop(node="node3")
    second = cluster.start_egress_gateway(node="node2", address="172.18.0.101", destinations=OUTSIDE)
    assert as_seen(cluster) == ["172.18.0.101"] * 3
    first.stop()
    assert as_seen(cluster) == ["172.18.0.101"] * 3
    second.stop()
    assert as_seen(cluster) == ["172.18.0.1", "172.18.0.2", "172.18.0.1"]


def test_masquerade_with_exceptions_does_not_get_in_its_way(shop):
    cluster, _ = shop()
    cluster.start_masquerade()
    assert as_seen(cluster) == [ADDRESS, ADDRESS, "172.18.0.1"]


def test_services_do_not_get_in_its_way(shop):
    cluster, _ = shop()
    cluster.start_proxy("iptables")
    cluster.sync()
    assert as_seen(cluster) == [ADDRESS, ADDRESS, "172.18.0.1"]


def test_an_ipv6_address_serves_as_well(cluster_of):
    cluster = cluster_of(2, ip_families=("v4", "v6"), pod_network="vxlan")
    pod = cluster.run_pod("pay", node="node1")
    gateway = cluster.start_egress_gateway(node="node2", address="fd00:172:18::100", destinations=["2001:db8:113::/64"])
    assert seen(pod, "2001:db8:113::80") == "fd00:172:18::100"
    assert seen(pod) == "172.18.0.1"
    gateway.stop()
    assert seen(pod, "2001:db8:113::80") == "fd00:172:18::1"


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"node": "node9"}, NotFound, "no node 'node9'; there are: node1, node2"),
        ({"node": []}, InvalidInput, "needs a node"),
        ({"address": "172.18.0.300"}, InvalidAddress, "not an IPv4"),
        ({"address": "203.0.113.99"}, InvalidInput, "no host of 172.18.0.0/16"),
        ({"address": "172.18.255.255"}, InvalidInput, "no host of 172.18.0.0/16"),
        ({"address": "172.18.0.2"}, InvalidInput, "node node2 has it"),
        ({"address": "172.18.0.254"}, InvalidInput, "the router has it"),
        ({"address": "172.18.0.77"}, InvalidInput, "another egress gateway has it"),
        ({"address": "fd00::1"}, InvalidInput, "no IPv6"),
        ({"destinations": "203.0.113.0/24"}, InvalidInput, "a list of networks"),
        ({"destinations": []}, InvalidInput, "a list of networks"),
        ({"destinations": ["203.0.113.1/24"]}, InvalidAddress, "did you mean 203.0.113.0/24"),
        ({"destinations": ["2001:db8::/32"]}, InvalidInput, "another family"),
    ],
)
def test_what_cannot_be_a_gateway_is_refused_and_changes_nothing(cluster_of, change, error, says):
    cluster = cluster_of(2)
    cluster.start_egress_gateway(node="node1", address="172.18.0.77", destinations=OUTSIDE)
    before = cluster.snapshot()
    with pytest.raises(error, match=says):
        cluster.start_egress_gateway(**{"node": "node1", "address": ADDRESS, "destinations": OUTSIDE, **change})
    assert cluster.snapshot() == before
    assert len(cluster.controllers) == 1


def test_the_transcript_builds_the_same(shop, tmp_path):
    cluster, _ = shop()
    cluster.start_masquerade()
    assert replay(cluster.transcript.script(), tmp_path) == json.loads(cluster.snapshot().to_json())


# -- ports that run out ----------------------------------------------------------------


def test_the_fifth_connection_through_four_ports_is_dropped_and_counted(cluster_of):
    """Conntrack cannot insert an entry whose answers it could not tell from those of another."""
    cluster = cluster_of(1)
    node = cluster.node("node1").netns
    pods = [cluster.run_pod(f"web-{number}", node="node1") for number in (1, 2)]
    node.iptables(
        "-t nat -I POSTROUTING -p tcp -s 10.244.1.0/24 -d 203.0.113.0/24 -j SNAT --to-source 172.18.0.1:40000-40003"
    )
    with contextlib.ExitStack() as held:

        def dial(pod, address=SERVER):
            return held.enter_context(pod.netns.inside(socket.create_connection, (address, 80), 0.6))

        for number in range(4):
            dial(pods[number % 2])
        assert refused(node) == 0
        with pytest.raises(TimeoutError):
            dial(pods[0])
        assert refused(node) > 0
        dial(pods[0], "203.0.113.10")  # the same ports serve for another destination
        entries = [one for one in node.conntrack(protocol="tcp") if one.original.destination == SERVER]
        assert sorted(one.reply.destination_port for one in entries) == [40000, 40001, 40002, 40003]


def refused(node):
    """Return how many entries conntrack could not insert. Like: conntrack -S."""
    return sum(map(int, re.findall(r"insert_failed=(\d+)", node.run("conntrack", "-S").stdout)))
