"""NetworkPolicy in a cluster: what passes and what is dropped, as policies, labels, pods and nodes change."""

from __future__ import annotations

import json
import socket

import pytest

from k8snet.cluster.pod import Pod
from k8snet.errors import InvalidInput, NotFound

SHOP = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: a}}
"""
DENY = "{podSelector: {}, policyTypes: [Ingress, Egress]}"
FROM_API = "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]}"
FAST = {"timeout_s": 0.3}


def pod(name, node, *, app=None, ports="{name: http, containerPort: 80}", more=""):
    return (
        f"---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {app or name}}}}}\n"
        f"spec: {{nodeName: {node}, containers: [{{name: a, image: agnhost, ports: [{ports}]{more}}}]}}\n"
    )


def policy(spec, name="x"):
    head = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
    return f"{head}metadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"


PODS = pod("web", "node1") + pod("api", "node1") + pod("db", "node2")


@pytest.fixture
def shop(cluster_of):
    """Build a cluster with a web server, and callers on its node and on another one."""

    def build(text="", **options):
        cluster = cluster_of(2, **options)
        cluster.apply(SHOP + PODS + text)
        cluster.start_network_policy()
        return cluster

    return build


def opens(cluster, source, target="shop/web", port=80, **options):
    return cluster.pod(f"shop/{source}").connect(
        cluster.pod(target) if "/" in target else target, port, **FAST, **options
    ).outcome  # fmt: skip


# -- what is enforced ------------------------------------------------------------------


def test_what_no_policy_selects_is_open_and_what_one_denies_is_silent(shop):
    cluster = shop()
    assert {opens(cluster, "api"), opens(cluster, "db")} == {"ok"}
    cluster.apply(SHOP + policy(FROM_API))
    assert (opens(cluster, "api"), opens(cluster, "db")) == ("ok", "timeout")
    assert not cluster.pod("shop/db").ping(cluster.pod("shop/web"), timeout_s=0.3).ok
    cluster.delete("networkpolicy", "x", namespace="shop")
    assert opens(cluster, "db") == "ok"


def test_a_changed_label_of_a_pod_counts_at_once_for_callers_and_for_those_called(shop):
    cluster = shop(policy(FROM_API))
    cluster.apply(SHOP + pod("db", "node2", app="api") + pod("api", "node1", app="other"))
    assert (opens(cluster, "api"), opens(cluster, "db")) == ("timeout", "ok")
    cluster.apply(SHOP + pod("web", "node1", app="none"))
    assert (opens(cluster, "api"), opens(cluster, "db")) == ("ok", "ok")


def test_a_pod_gets_other_labels_where_it_stands_and_its_namespace_keeps_its_own(shop):
    cluster = shop(policy(FROM_API))
    pause = cluster.pod("shop/db").pause
    cluster.apply(pod("db", "node2", app="api"))  # the namespace is used here, and not declared
    assert cluster.pod("shop/db").pause is pause
    assert cluster.pod("shop/db").labels == {"app": "api"}
    assert opens(cluster, "db") == "ok"
    assert cluster.objects["Namespace", "", "shop"].metadata.labels["team"] == "a"


def test_a_changed_label_of_a_namespace_counts_at_once(shop):
    team = "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: a}}}]}]}"
    cluster = shop(policy(team))
    assert opens(cluster, "db") == "ok"
    cluster.apply(SHOP.replace("team: a", "team: b"))
    assert opens(cluster, "db") == "timeout"


def test_new_pods_and_new_nodes_are_under_the_policies_that_there_are(shop):
    cluster = shop(policy(FROM_API))
    cluster.add_node()
    cluster.apply(SHOP + pod("web-3", "node3", app="web") + pod("api-3", "node3", app="api"))
    assert opens(cluster, "api-3") == "ok"
    assert opens(cluster, "db", "shop/web-3") == "timeout"
    assert opens(cluster, "api", "shop/web-3") == "ok"
    cluster.remove_node("node3")
    assert opens(cluster, "api") == "ok"


def test_a_pod_is_under_its_policies_before_anything_runs_in_it(shop, monkeypatch):
    """Source: kubernetes.io, Network Policies, "Pod lifecycle": isolated before its first container starts."""
    known, start = [], Pod.start

    def watched(pod):
        known.append(pod.address in str(pod.home.netns.nft_list()))
        start(pod)

    cluster = shop(policy(DENY))
    monkeypatch.setattr(Pod, "start", watched)
    cluster.apply(pod("late", "node1") + pod("later", "node2"))
    assert known == [True, True]


def test_a_named_port_is_looked_up_in_each_pod_that_is_called(shop):
    spec = "{podSelector: {matchLabels: {app: api}}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}"
    other = pod("other", "node2", ports="{name: http, containerPort: 8080}, {name: admin, containerPort: 80}")
    cluster = shop(other + policy(spec))
    assert opens(cluster, "api", "shop/web", 80) == "ok"
    assert opens(cluster, "api", "shop/other", 8080) == "ok"
    assert opens(cluster, "api", "shop/other", 80) == "timeout"


def test_udp_ranges_and_protocols_are_told_apart(shop):
    ports = "{containerPort: 80}, {containerPort: 5000, protocol: UDP}, {containerPort: 5001, protocol: UDP}"
    spec = "{podSelector: {matchLabels: {app: many}}, ingress: [{ports: [{protocol: UDP, port: 5001, endPort: 6000}]}]}"
    cluster = shop(pod("many", "node2", ports=ports) + policy(spec))
    assert opens(cluster, "api", "shop/many", 5001, protocol="udp") == "ok"
    assert opens(cluster, "api", "shop/many", 5000, protocol="udp") == "timeout"
    assert opens(cluster, "api", "shop/many", 80) == "timeout"


def test_an_ip_block_with_an_exception_holds_for_the_internet_and_for_pods(shop):
    block = "{ipBlock: {cidr: 0.0.0.0/0, except: [203.0.113.10/32, 10.244.1.0/24]}}"
    spec = f"{{podSelector: {{matchLabels: {{app: db}}}}, policyTypes: [Egress], egress: [{{to: [{block}]}}]}}"
    cluster = shop(policy(spec))
    cluster.internet.listen(8080)
    assert opens(cluster, "db", "203.0.113.80", 80) == "ok"
    assert opens(cluster, "db", "203.0.113.10", 8080) == "timeout"
    assert opens(cluster, "db", "shop/web") == "timeout"


def test_a_pods_own_node_always_reaches_it_and_another_node_does_not(shop):
    cluster = shop(pod("probed", "node1", more=", readinessProbe: {tcpSocket: {port: 80}}") + policy(DENY))
    address = cluster.pod("shop/web").address
    for node in ("node1", "node2"):
        cluster.node(node).netns.listen(9000)
    assert cluster.node("node1").netns.connect(address, 80, **FAST).outcome == "ok"
    assert cluster.node("node2").netns.connect(address, 80, **FAST).outcome == "timeout"
    assert opens(cluster, "web", "172.18.0.1", 9000) == "ok"
    assert opens(cluster, "web", "172.18.0.2", 9000) == "timeout"
    assert cluster.pod("shop/probed").ready


def test_answers_come_back_through_a_direction_that_is_shut(shop):
    shut = "egress: [], policyTypes: [Ingress, Egress]"
    cluster = shop(policy(FROM_API.replace("}]}]}", f"}}]}}], {shut}}}")))
    assert (opens(cluster, "api"), opens(cluster, "db")) == ("ok", "timeout")
    assert opens(cluster, "web", "shop/api") == "timeout"


def test_a_policy_counts_for_connections_that_stand_and_lets_them_go_on_when_it_goes(shop):
    cluster = shop()
    web, db = cluster.pod("shop/web"), cluster.pod("shop/db")
    call = db.netns.inside(socket.create_connection, (web.address, 80), 0.3)
    cluster.apply(SHOP + policy(DENY))
    with call:
        call.sendall(b"hello\n")
        with pytest.raises(TimeoutError):
            call.recv(200)
        cluster.delete("networkpolicy", "x", namespace="shop")
        call.settimeout(10)  # TCP sends it again
        assert b"web at 10.244.1.2:80 saw 10.244.2.2" in call.recv(200)


def test_a_udp_port_that_is_used_again_is_no_way_round_a_policy(shop):
    """Conntrack remembers for 30 s that it was answered, and would take the next question for part of the same."""
    cluster = shop(pod("names", "node1", ports="{containerPort: 53, protocol: UDP}"))
    question = {"protocol": "udp", "source_port": 40000}
    assert opens(cluster, "db", "shop/names", 53, **question) == "ok"
    cluster.apply(SHOP + policy(DENY))
    assert opens(cluster, "db", "shop/names", 53, **question) == "timeout"


def test_a_pod_with_hostnetwork_is_a_node_which_labels_do_not_name(shop):
    agent = pod("agent", "node2", app="api").replace("spec: {", "spec: {hostNetwork: true, ")
    cluster = shop(agent + policy(FROM_API))
    assert opens(cluster, "agent") == "timeout"
    assert cluster.explain_policy("shop/agent", "shop/web", 80).allowed is False
    block = "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 172.18.0.2/32}}]}]}"
    cluster.apply(SHOP + policy(block, name="nodes"))
    assert opens(cluster, "agent") == "ok"


def test_both_families_are_enforced_and_neighbour_discovery_goes_on(shop):
    """Neighbours are asked for by IPv6 packets, which pass the same hook; who may send little needs them, too."""
    block = "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{ipBlock: {cidr: 'fd00:10:244:1::/64'}}]}]}"
    to_web = "egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]"
    only_web = f"{{podSelector: {{matchLabels: {{app: shy}}}}, policyTypes: [Egress], {to_web}}}"
    cluster = shop(
        policy("{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchExpressions: "
               "[{key: app, operator: In, values: [api, shy]}]}}]}]}")
        + policy(block, name="db") + policy(only_web, name="shy") + pod("shy", "node1"), ip_families=("v4", "v6"),
    )  # fmt: skip
    for netns in (cluster.pod("shop/shy").netns, cluster.pod("shop/web").netns):
        netns.run("ip", "-6", "neighbour", "flush", "all")
    for address in cluster.pod("shop/web").addresses:
        seen = [opens(cluster, one, address) for one in ("shy", "api", "db")]
        assert seen == ["ok", "ok", "timeout"]
    for address, outcome in zip(cluster.pod("shop/db").addresses, ("timeout", "ok"), strict=True):
        assert opens(cluster, "api", address) == outcome
        assert opens(cluster, "shy", address) == "timeout"
    assert cluster.reach(ports=["tcp/80"], family="v6", timeout_s=0.3, expected=True).differences == []


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_behind_a_service_policies_see_the_pod_and_its_port_and_the_true_caller(shop, mode):
    service = (
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n"
        "spec: {type: NodePort, selector: {app: web}, ports: [{port: 8080, targetPort: 80, nodePort: 30080}]}\n"
    )
    peers = "{from: [{podSelector: {matchLabels: {app: api}}}]"
    cluster = shop(service + policy(f"{{podSelector: {{}}, ingress: [{peers}, ports: [{{port: 80}}]}}]}}"))
    cluster.start_proxy(mode)
    vip = cluster.objects["Service", "shop", "web"].spec.clusterIP
    assert (opens(cluster, "api", vip, 8080), opens(cluster, "db", vip, 8080)) == ("ok", "timeout")
    assert opens(cluster, "web", vip, 8080) == "ok"  # itself: out and in again by the same port, as its node
    assert cluster.internet.connect("172.18.0.1", 30080, **FAST).outcome == "timeout"
    cluster.apply(SHOP + policy(f"{{podSelector: {{}}, ingress: [{peers}, ports: [{{port: 8080}}]}}]}}"))
    assert opens(cluster, "api", vip, 8080) == "timeout"
    outside = "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}]}]}"
    cluster.apply(SHOP + policy(outside))
    assert cluster.internet.connect("172.18.0.1", 30080, **FAST).outcome == "ok"
    with pytest.raises(InvalidInput, match="is the Service shop/web: policies see the pod behind it"):
        cluster.explain_policy("shop/api", vip, 8080)


# -- coming and going ------------------------------------------------------------------


def test_stopped_it_leaves_every_node_as_it_was_and_all_is_open(cluster_of):
    cluster = cluster_of(2, ip_families=("v4", "v6"))
    cluster.apply(SHOP + PODS + policy(FROM_API) + policy(DENY, name="deny"))
    before = cluster.snapshot()
    policies = cluster.start_network_policy()
    assert cluster.snapshot() != before
    with pytest.raises(InvalidInput, match="enforced in this cluster already"):
        cluster.start_network_policy()
    policies.stop()
    assert cluster.snapshot() == before, before.diff(cluster.snapshot())
    assert opens(cluster, "db") == "ok"
    assert cluster.start_network_policy() is not policies
    assert opens(cluster, "db") == "timeout"


def test_policies_that_come_and_go_leave_no_set_and_no_chain_behind(shop):
    cluster = shop()
    before = cluster.snapshot()
    assert "k8snet-policy" not in cluster.node("node1").netns.run("nft", "list", "tables").stdout
    cluster.apply(SHOP + policy(FROM_API) + policy(DENY, name="deny"))
    assert "k8snet-policy" in cluster.node("node1").netns.run("nft", "list", "tables").stdout
    for name in ("x", "deny"):
        cluster.delete("networkpolicy", name, namespace="shop")
    assert cluster.snapshot() == before, before.diff(cluster.snapshot())


def test_a_table_that_somebody_took_away_is_made_anew_with_the_next_change(shop):
    cluster = shop(policy(FROM_API))
    cluster.node("node1").netns.run("nft", "delete", "table", "inet", "k8snet-policy")
    assert opens(cluster, "db") == "ok"
    cluster.apply(SHOP + policy(DENY, name="deny"))
    assert opens(cluster, "db") == "timeout"


def test_many_policies_are_loaded_in_transactions_that_fit_the_socket(shop):
    """150 policies on one pod are some 300 kB of netlink: more than one transaction, and the last one counts, too."""
    rule = "ingress: [{{from: [{{podSelector: {{matchLabels: {{app: a{n}}}}}}}], ports: [{{port: {p}}}]}}]"
    specs = [f"{{podSelector: {{}}, {rule.format(n=n, p=1000 + n)}}}" for n in range(150)]
    cluster = shop("".join(policy(spec, name=f"p{n}") for n, spec in enumerate(specs)))
    assert opens(cluster, "api") == "timeout"
    cluster.apply(SHOP + policy(FROM_API, name="z"))
    assert opens(cluster, "api") == "ok"
    assert opens(cluster, "db") == "timeout"


# -- what is shown ---------------------------------------------------------------------


def test_a_sweep_can_be_held_against_what_policies_say(shop):
    cluster = shop(policy(FROM_API))
    found = cluster.reach(ports=["tcp/80", "icmp"], timeout_s=0.3, expected=True)
    assert found.differences == []
    assert "none not as expected" in str(found)
    probe = json.loads(json.dumps(found.to_dict()))["probes"][0]
    assert probe["expected"]["shop/db"] == {"shop/web": "denied", "shop/api": "allowed", "shop/db": "allowed"}
    assert probe["matrix"]["shop/db"]["shop/web"] == "timeout"
    cluster.node("node1").netns.run("nft", "flush", "chain", "inet", "k8snet-policy", "forward")
    wrong = cluster.reach(ports=["tcp/80"], timeout_s=0.3, expected=True)
    assert wrong.differences == [
        {"from": "shop/db", "to": "shop/web", "protocol": "TCP", "port": 80, "seen": "ok", "expected": "denied"}
    ]
    assert "✔!" in str(wrong)
    assert [one._repr_html_().count("outline:") for one in (found, wrong)] == [1, 2]  # the legend's, and the cell's
    plain = cluster.reach(ports=["tcp/80"], timeout_s=0.3)
    assert "differences" not in plain.to_dict()
    assert "timeout (silence)" in plain._repr_html_()
    assert "outline:" not in plain._repr_html_()


def test_neighbours_that_a_sweep_has_learnt_are_forgotten_and_others_stay(shop, monkeypatch):
    """With room for few of them a sweep goes in parts, and holds what it has learnt out of the kernel's count."""
    from k8snet.linux.neighbour import neighbours
    from k8snet.observe import reach

    cluster = shop(pod("more", "node1") + pod("even-more", "node1"), pod_network="vxlan")
    fixed = [one for one in neighbours(cluster.node("node1").netns) if one.state == "PERMANENT"]
    monkeypatch.setattr(reach, "SPARE", 3)
    monkeypatch.setattr(reach.neighbour, "room", lambda: 6)
    assert cluster.reach(ports=["tcp/80"]).matrices[0].count() == {"ok": 25}
    assert [one for one in neighbours(cluster.node("node1").netns) if one.state == "PERMANENT"] == fixed != []
    assert not [one for one in neighbours(cluster.pod("shop/web").netns) if one.state == "PERMANENT"]


def test_the_reason_is_told_for_pods_nodes_and_addresses(shop):
    cluster = shop(policy(FROM_API))
    good = cluster.explain_policy(cluster.pod("shop/api"), cluster.pod("shop/web"), 80)
    assert good.allowed
    assert good.allowing == ("shop/x ingress[0]",)
    assert not cluster.explain_policy(cluster.node("node2"), "shop/web", "udp/53").allowed
    assert cluster.explain_policy(cluster.node("node1"), "shop/web", "icmp").allowed
    assert cluster.explain_policy("10.244.1.3", "10.244.1.2", 80).destination == "shop/web"
    with pytest.raises(NotFound, match="no pod, node or address 'shop/nobody'"):
        cluster.explain_policy("shop/nobody", "shop/web", 80)
    with pytest.raises(InvalidInput, match="write it as in 80, udp/53"):
        cluster.explain_policy("shop/api", "shop/web", "http")
