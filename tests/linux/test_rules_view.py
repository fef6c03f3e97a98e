"""The rules of a Service as a picture and in words, from live rules; and packets that go where the words say."""

from __future__ import annotations

import json

import pytest

from k8snet.errors import InvalidInput, NotFound
from k8snet.session import Session

SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {type: NodePort, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: guarded, namespace: shop}
spec: {type: LoadBalancer, selector: {app: web}, loadBalancerSourceRanges: [203.0.113.0/28],
       ports: [{port: 80, targetPort: 8080}]}
status: {loadBalancer: {ingress: [{ip: 198.51.100.7}]}}
---
apiVersion: v1
kind: Service
metadata: {name: near, namespace: shop}
spec: {type: NodePort, externalTrafficPolicy: Local, selector: {app: web},
       ports: [{port: 80, targetPort: 8080, nodePort: 30081}]}
---
apiVersion: v1
kind: Service
metadata: {name: two}
spec: {selector: {app: web}, ports: [{name: a, port: 80}, {name: b, port: 81}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere}
spec: {type: ExternalName, externalName: db.example.org}
---
apiVersion: v1
kind: Service
metadata: {name: others, labels: {service.kubernetes.io/service-proxy-name: mine}}
spec: {selector: {app: web}, ports: [{port: 80}]}
"""
MODES = pytest.mark.parametrize("mode", ["iptables", "nftables"])
CALLS = 40  # one of three endpoints is missed in one of 3,000,000 runs
BALANCER = "198.51.100.7"


def fill(cluster, mode):
    """Give a cluster of three nodes web-1 and web-3 on node1, web-2 on node2, and a client on node1."""
    for number, node in ((1, "node1"), (2, "node2"), (3, "node1")):
        cluster.run_pod(f"web-{number}", ports=[8080], node=node, namespace="shop", labels={"app": "web"})
    cluster.run_pod("client", image="pause", node="node1")
    cluster.apply(SERVICES)
    if mode:
        cluster.start_proxy(mode)
    return cluster


@pytest.fixture
def shop(cluster_of):
    """Build a cluster and fill it."""
    return lambda mode="iptables", **options: fill(cluster_of(3, **options), mode)


# -- the picture -------------------------------------------------------------------------


@MODES
def test_the_tree_of_a_service_leads_from_the_hooks_to_each_pod(shop, mode):
    found = shop(mode).rules("shop/web", node="node1", caption="What a call to the Service meets.")
    told = str(found)
    assert "Service shop/web, port http, any endpoint" in told
    for number, node in ((1, "node1"), (2, "node2"), (3, "node1")):
        assert f"8080, pod shop/web-{number} on {node}" in told
    assert told.count("DNAT to 10.244.") == 3
    assert told.count("from itself: mark for masquerade") == 3
    assert "not from a pod: mark for masquerade" in told
    assert "from outside the cluster" in told  # the node port's chain
    hooks = {"iptables": ["PREROUTING", "OUTPUT"], "nftables": ["nat-prerouting", "nat-output"]}[mode]
    assert list(found.roots[0].chains) == hooks
    assert "MASQUERADE" in told
    assert "guarded" not in told
    assert "nobody" not in told


@MODES
def test_every_rule_of_the_tree_is_one_that_the_kernel_has(shop, mode):
    cluster = shop(mode)
    node = cluster.node("node1").netns
    kernel = node.iptables_save(backend="nft") if mode == "iptables" else node.run("nft", "list", "ruleset").stdout
    told = cluster.rules("shop/web", node="node1").as_dict()
    rules = [line for box in told["chains"] for rule in box["rules"] for line in rule["rule"].splitlines()]
    assert len(rules) > 12
    for rule in rules:
        # one that draws lots is told as one for each outcome
        assert (rule if "numgen" not in rule else rule.partition(" vmap")[0]) in kernel
    assert json.loads(json.dumps(told)) == told


@MODES
def test_the_picture_changes_when_the_rules_do_and_not_before(shop, mode):
    """It is the kernel that is read, not what kube-proxy would write."""
    cluster = shop(mode)
    node = cluster.node("node1").netns
    before, commands = cluster.snapshot(), len(cluster.transcript)
    assert "OUTPUT" in str(cluster.rules("shop/web")).upper()
    assert cluster.snapshot() == before
    assert len(cluster.transcript) == commands
    if mode == "iptables":
        node.iptables("-t nat -F OUTPUT")
    else:
        node.nft("flush", "chain", "ip", "kube-proxy", "nat-output")
    assert len(cluster.rules("shop/web", node="node1").roots[0].chains) == 1
    assert len(cluster.rules("shop/web", node="node2").roots[0].chains) == 2
    (outcome,) = cluster.why("node1", "shop/web").outcomes
    assert outcome.kind == {"iptables": "on", "nftables": "REJECT"}[mode]  # nftables mode guards cluster IPs
    address = cluster.objects["Service", "shop", "web"].spec.clusterIP
    answer = node.connect(address, 80, timeout_s=0.3).outcome
    assert answer in {"iptables": {"timeout", "unreachable"}, "nftables": {"refused"}}[mode]


@MODES
def test_a_service_without_endpoints_says_reject_and_one_with_source_ranges_says_who_is_dropped(shop, mode):
    cluster = shop(mode)
    assert "REJECT" in str(cluster.rules("nobody"))
    assert "DNAT" not in str(cluster.rules("nobody"))
    told = str(cluster.rules("shop/guarded"))
    assert "203.0.113.0/28" in told
    assert "DROP" in told
    assert "who may use its load balancer" in told
    near = str(cluster.rules("shop/near", node="node3"))
    assert "DROP" in near
    assert "endpoints on this node" not in near
    assert "endpoints on this node" in str(cluster.rules("shop/near", node="node2"))


@MODES
def test_of_thirty_endpoints_three_are_drawn(shop, mode):
    cluster = shop(mode)
    ends = ", ".join(f"{{addresses: [10.9.0.{n}], nodeName: node1}}" for n in range(1, 31))
    cluster.apply(f"""
apiVersion: v1
kind: Service
metadata: {{name: many}}
spec: {{sessionAffinity: ClientIP, ports: [{{port: 80, targetPort: 8080}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: many-1, labels: {{kubernetes.io/service-name: many}}}}
addressType: IPv4
ports: [{{port: 8080}}]
endpoints: [{ends}]
""")
    found = cluster.rules("many")
    assert "… 27 more" in str(found)
    assert "… 27 more" in found._repr_html_()
    assert str(found).count("same client again, or") == 3
    outcomes = cluster.why("client", "many").outcomes
    assert len(outcomes) == 30
    assert [one.share for one in outcomes] == pytest.approx([1 / 30] * 30, rel=1e-4)


def test_rules_that_iptables_legacy_keeps_are_found_there(shop):
    """A node with more Services than one nft transaction takes has them all in the legacy tables."""
    cluster = shop()
    one = "apiVersion: v1\nkind: Service\nmetadata: {name: sN}\nspec: {selector: {app: web}, ports: [{port: 80}]}\n"
    cluster.apply("---\n".join(one.replace("sN", f"s{number}") for number in range(260)))
    assert "KUBE-SVC-" not in cluster.node("node1").netns.iptables_save(backend="nft")
    told = cluster.rules("shop/web")
    assert "table nat (legacy)" in str(told)
    assert "a rule for each port of each Service" in str(told)
    assert {one.kind for one in cluster.why("client", "shop/web").outcomes} == {"endpoint"}


@MODES
def test_the_other_family_of_a_dual_stack_service_has_rules_of_its_own(shop, mode):
    cluster = shop(mode, ip_families=("v4", "v6"))
    cluster.apply(SERVICES.replace("{type: NodePort, sel", "{type: NodePort, ipFamilyPolicy: PreferDualStack, sel"))
    told = str(cluster.rules("shop/web", family="v6"))
    assert "DNAT to [fd00:10:244:" in told
    assert "]:80/tcp, cluster IP" in told
    found = cluster.why("client", "shop/web", family="v6")
    assert len(found.outcomes) == 3
    client = cluster.pod("client")
    for one in found.outcomes:
        assert one.source == client.addresses[1]
    url = f"http://[{cluster.objects['Service', 'shop', 'web'].spec.clusterIPs[1]}]"
    ends = {one.to.replace("[", "").replace("]", "") for one in found.outcomes}
    assert {client.fetch(url).server_sees[1] for _ in range(CALLS)} == ends
    with pytest.raises(InvalidInput, match="has no cluster IP of family 'v6'"):
        cluster.rules("nobody", family="v6")


# -- why, and what packets do --------------------------------------------------------------

FLOWS = [
    ("client", "shop/web"), ("shop/web-1", "shop/web"), ("node1", "shop/web"), ("node3", "shop/web"),
    ("client", "nobody"), ("node1", "nobody"), ("client", "172.18.0.2:30080"), ("client", "172.18.0.3:30081"),
    ("203.0.113.10", "172.18.0.1:30080"), ("203.0.113.10", "172.18.0.3:30080"), ("203.0.113.10", "172.18.0.1:30081"),
    ("203.0.113.10", "172.18.0.3:30081"), ("203.0.113.10", f"{BALANCER}:80"), ("client", f"{BALANCER}:80"),
    ("node1", "172.18.0.1:30080"), ("node1", "127.0.0.1:30080"), ("node1", "127.0.0.1:9"),
    ("client", "10.244.1.2:8080"), ("client", "203.0.113.80:80"), ("shop/web-2", "172.18.0.2:30081"),
    ("node3", "172.18.0.3:30081"),
]  # fmt: skip


def live(cluster, source, target, count=CALLS):
    """Call, and return who was reached, by what sources each was called, and how it failed otherwise."""
    who = cluster.internet if source[0].isdigit() else cluster.node(source).netns if source in cluster.nodes else \
        cluster.pod(source)  # fmt: skip
    if ":" not in target:
        space, _, name = target.rpartition("/")
        target = f"{cluster.objects['Service', space or 'default', name].spec.clusterIP}:80"
    first = who.fetch(f"http://{target}", timeout_s=0.4)
    if not first.ok:
        return {}, first.outcome
    seen = {}
    for answer in [first, *(who.fetch(f"http://{target}") for _ in range(count))]:
        caller, server = answer.server_sees
        seen.setdefault(server, set()).add(caller.rpartition(":")[0])
    return seen, "ok"


@MODES
def test_packets_go_where_the_words_say(shop, mode):
    cluster = shop(mode)
    cluster.router.add_route(f"{BALANCER}/32", via="172.18.0.1")
    nodes = {one for node in cluster.nodes.values() for one in (node.address, node.gateway("v4"))}
    told = {}
    for source, target in FLOWS:
        found = cluster.why(source, target)
        seen, outcome = live(cluster, source, target)
        kinds = {one.kind for one in found.outcomes}
        told[source, target] = kinds
        if kinds == {"endpoint"} or outcome == "ok":
            assert seen.keys() == {one.to for one in found.outcomes}, (source, target)
            for one in found.outcomes:
                expected = nodes if one.masqueraded else {one.source}
                assert seen[one.to] <= expected, (source, target, one)
        else:
            (kind,) = kinds
            assert outcome == {"REJECT": "refused", "DROP": "timeout", "on": "refused"}[kind], (source, target)
    assert {kind for kinds in told.values() for kind in kinds} == {"endpoint", "REJECT", "DROP", "on"}


@MODES
def test_a_call_by_another_nodes_port_is_followed_to_that_node(shop, mode):
    cluster = shop(mode)
    steps = list(cluster.why("client", "172.18.0.2:30080"))
    assert {one.node for one in steps} == {"node1", "node2"}
    assert any("node1" in one.node and one.then.startswith("masquerade") for one in steps)
    here = cluster.why("client", "172.18.0.2:30080", node="node1")
    assert {one.node for one in here} == {"node1"}
    assert here.outcomes[0].kind == "on"


@MODES
def test_a_step_tells_the_rule_why_it_matched_and_what_follows(shop, mode):
    cluster = shop(mode)
    found = cluster.why("client", "shop/web")
    assert found.question.startswith("From 10.244.1.4 (pod client on node1) to 10.96.0.2")
    assert "(the cluster IP of shop/web), on node1" in found.question
    assert "first packet of a connection" in found.note
    lots = [one for one in found if one.why.startswith("by lot")]
    assert len(lots) == (2 if mode == "iptables" else 3)
    assert "taken once in three" in lots[0].why or "one outcome of three" in lots[0].why
    assert [one.share for one in lots] == pytest.approx([1 / 3] * len(lots), rel=1e-4)
    assert all(one.matched for one in found)
    everything = cluster.why("client", "shop/web", all=True)
    assert len(everything) > len(found)
    assert any("does not match" in one.why for one in everything)
    assert "=> 1 of 3: endpoint 10.244." in str(found)
    assert json.loads(json.dumps(found.as_dict()))["outcomes"][0]["kind"] == "endpoint"
    assert "<table class='k8snet-table'>" in found._repr_html_()


@MODES
def test_a_ping_of_a_cluster_ip_is_told_though_no_service_answers_it(shop, mode):
    """In iptables mode nobody knows of it; nftables mode refuses what is for a cluster IP and no port of a Service."""
    cluster = shop(mode)
    address = cluster.objects["Service", "shop", "web"].spec.clusterIP
    (outcome,) = cluster.why("client", address, protocol="icmp").outcomes
    assert (outcome.kind, outcome.to) == ({"iptables": "on", "nftables": "REJECT"}[mode], address)
    said = str(cluster.pod("client").ping(address, timeout_s=2))
    assert {"iptables": "172.18.0.254", "nftables": "10.244.1.1"}[mode] in said
    (outcome,) = cluster.why("203.0.113.10", "172.18.0.2", protocol="icmp").outcomes
    assert "it goes on to node2 itself" in outcome.words


def test_rules_that_somebody_wrote_by_hand_are_told_like_those_of_kube_proxy(shop):
    cluster = shop()
    node = cluster.node("node1").netns
    node.iptables("-t nat -I PREROUTING -d 10.96.0.99/32 -p tcp --dport 80 -j DNAT --to-destination 10.244.1.2:8080")
    node.iptables("-I FORWARD -s 10.244.1.4/32 -d 10.244.1.2/32 -j DROP")
    (outcome,) = cluster.why("client", "10.96.0.99:80").outcomes
    assert outcome.kind == "DROP"
    assert not cluster.pod("client").connect("10.96.0.99", 80, timeout_s=0.3).ok
    node.iptables("-D FORWARD -s 10.244.1.4/32 -d 10.244.1.2/32 -j DROP")
    (outcome,) = cluster.why("client", "10.96.0.99:80").outcomes
    assert (outcome.kind, outcome.to) == ("endpoint", "10.244.1.2:8080")
    assert cluster.pod("client").connect("10.96.0.99", 80).ok


# -- errors, and the shell -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "error", "said"),
    [
        (lambda c: c.rules("shop/none"), NotFound, "no Service 'shop/none'; there are: default/elsewhere, "),
        (lambda c: c.rules("shop/web", node="node9"), NotFound, "no node 'node9'; there are: node1, node2, node3"),
        (lambda c: c.rules("shop/web", port=81), NotFound, "has no port 81; it has: 80/tcp http"),
        (lambda c: c.rules("headless"), InvalidInput, r"is headless .* Ask for one of them, as in why\("),
        (lambda c: c.rules("elsewhere"), InvalidInput, "a name in DNS for db.example.org, .* Ask for the ad"),
        (lambda c: c.rules("others"), InvalidInput, "leaves it to another proxy; .* Take the label away"),
        (lambda c: c.rules("shop/web", family="v6"), InvalidInput, "the addresses of this cluster are 'v4'"),
        (lambda c: c.why("nobody-here", "shop/web"), NotFound, "is no pod, no node and no address; there are: node1"),
        (lambda c: c.why("fd00::1", "shop/web"), InvalidInput, "not of the family of the target"),
        (lambda c: c.why("client", "two"), InvalidInput, "several tcp ports; write two:a or two:b"),
        (lambda c: c.why("client", "shop/web", protocol="udp"), NotFound, "has no port udp; it has: 80/tcp http"),
        (lambda c: c.why("client", "shop/web", protocol="gre"), InvalidInput, "one of tcp, udp, sctp, icmp"),
        (lambda c: c.why("client", "10.96.0.20:80", protocol="icmp"), InvalidInput, "no port; write it as 10.96.0.20"),
        (lambda c: c.why("client", "10.96.0.20"), InvalidInput, "has no port; write it as 10.96.0.20:80"),
        (lambda c: c.why("client", "10.96.0.20:99999"), InvalidInput, "a number from 1 to 65535"),
        (lambda c: c.why("client", "[fd00::1]:80"), InvalidInput, "the addresses of this cluster are 'v4'"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_says_why_and_what_to_do(shop, ask, error, said):
    with pytest.raises(error, match=said):
        ask(shop())


def test_without_kube_proxy_there_are_no_rules_to_show(shop):
    cluster = shop(mode=None)
    for ask in (lambda: cluster.rules("shop/web"), lambda: cluster.why("client", "shop/web")):
        with pytest.raises(InvalidInput, match=r"no kube-proxy runs .* cluster.start_proxy\(\) starts one"):
            ask()


@MODES
def test_the_shell_of_a_cluster_tells_the_same(shop, mode):
    cluster = shop(mode)
    session = Session(cluster)
    told = session.do_rules("shop/web", as_json=False, node="node2", port=None, family="v4")
    assert told["out"] == str(cluster.rules("shop/web", node="node2"))
    parsed = json.loads(session.do_rules("shop/web", as_json=True, node=None, port="http", family="v4")["out"])
    assert parsed["service"] == "shop/web"
    options = {"node": None, "protocol": "tcp", "family": "v4"}
    told = session.do_why("client", "shop/web", as_json=False, all=True, **options)
    assert told["out"] == str(cluster.why("client", "shop/web", all=True))
    assert json.loads(session.do_why("client", "nobody", as_json=True, all=False, **options)["out"])["outcomes"]
