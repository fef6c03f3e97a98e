"""NetworkPolicy: what manifests may say, the truth table, its reasons, and the rules that come of it."""

from __future__ import annotations

import re

import pytest

from k8snet.cluster.manifests import parse
from k8snet.controllers.network_policy.compiler import PolicyPod, PolicyTable
from k8snet.controllers.network_policy.rules import _changes, program, render
from k8snet.errors import InvalidInput, InvalidManifest, NotFound
from k8snet.linux.nftables import split
from k8snet.observe.policy import explain

HEAD = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: x, namespace: shop}\n"
AT = "document 1, NetworkPolicy shop/x: spec."
NODES = {"node1": ("172.18.0.1", "10.244.1.1", "fd00:172:18::1"), "node2": ("172.18.0.2", "fd00:172:18::2")}
HTTP = (("http", "TCP", 80), ("dns", "UDP", 53))


def pod(key, address, *, node="node1", ports=HTTP, host_network=False, **labels):
    namespace, name = key.split("/")
    addresses = (address, f"fd00:10:244::{address.rpartition('.')[2]}")
    return PolicyPod(
        namespace=namespace, name=name, labels=labels, addresses=addresses, node=node, ports=ports,
        host_network=host_network,
    )  # fmt: skip


PODS = [
    pod("shop/web", "10.244.1.2", app="web"),
    pod("shop/api", "10.244.1.3", app="api", tier="back", ports=(("http", "TCP", 8080),)),
    pod("shop/db", "10.244.2.4", node="node2", app="db", tier="back"),
    pod("other/web", "10.244.2.5", node="node2", app="web"),
    pod("shop/agent", "172.18.0.1", app="web", host_network=True),
]
NAMESPACES = {"shop": {"team": "a"}, "other": {"team": "b"}}


def policies(*specs):
    texts = [HEAD.replace("name: x", f"name: x{number}") + f"spec: {spec}\n" for number, spec in enumerate(specs)]
    return [one for one in parse("---\n".join(texts)).objects if one.kind == "NetworkPolicy"] if texts else []


def table(*specs, pods=PODS):
    return PolicyTable(policies(*specs), pods, NAMESPACES, NODES)


# -- what manifests may say ------------------------------------------------------------

BAD = {
    "an operator that is none": (
        "{podSelector: {matchExpressions: [{key: a, operator: Is, values: [b]}]}}",
        "podSelector.matchExpressions[0].operator: 'Is' is not one of: In, NotIn, Exists, DoesNotExist"),
    "In without values": (
        "{podSelector: {matchExpressions: [{key: a, operator: In}]}}",
        "podSelector.matchExpressions[0].values: In takes at least one value"),
    "Exists with values": (
        "{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}",
        "podSelector.matchExpressions[0].values: Exists takes no values"),
    "a key that is none": (
        "{podSelector: {matchExpressions: [{key: -a, operator: Exists}]}}",
        "podSelector.matchExpressions[0].key: '-a' is not the key of a label"),
    "a value that is none": (
        "{podSelector: {matchExpressions: [{key: a, operator: In, values: [b c]}]}}",
        "podSelector.matchExpressions[0].values[0]: 'b c' is not the value of a label"),
    "a label that cannot be": (
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {a/b/c: d}}}]}]}",
        "ingress[0].from[0].namespaceSelector.matchLabels: 'a/b/c' is not the key of a label"),
    "a peer that is nobody": (
        "{podSelector: {}, ingress: [{from: [{}]}]}", "ingress[0].from[0]: is no peer; give it a podSelector"),
    "a peer that is two": (
        "{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}",
        "egress[0].to[0]: has an ipBlock and a selector"),
    "an address that is no network": (
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.1}}]}]}",
        "ingress[0].from[0].ipBlock.cidr: '10.0.0.1' is not a network; write it as in 10.0.0.0/8"),
    "a network that cannot be": (
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]}",
        "ingress[0].from[0].ipBlock.cidr: '10.0.0.0/33' is not a network"),
    "an ipBlock without a network": (
        "{podSelector: {}, ingress: [{from: [{ipBlock: {}}]}]}", "ingress[0].from[0].ipBlock.cidr: is missing"),
    "an exception from elsewhere": (
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 11.0.0.0/16]}}]}]}",
        "ingress[0].from[0].ipBlock.except[1]: 11.0.0.0/16 is not inside 10.0.0.0/8"),
    "an exception of all": (
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}",
        "ingress[0].from[0].ipBlock.except[0]: 10.0.0.0/8 is not inside 10.0.0.0/8"),
    "an exception of the other family": (
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/8']}}]}]}",
        "ingress[0].from[0].ipBlock.except[0]: fd00::/8 is not inside 10.0.0.0/8"),
    "an exception that is no network": (
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [web]}}]}]}",
        "ingress[0].from[0].ipBlock.except[0]: 'web' is not a network"),
    "a range without a beginning": (
        "{podSelector: {}, ingress: [{ports: [{endPort: 90}]}]}",
        "ingress[0].ports[0].endPort: 90: there is no port that the range begins with"),
    "a range that goes down": (
        "{podSelector: {}, egress: [{ports: [{port: 80, endPort: 79}]}]}",
        "egress[0].ports[0].endPort: 79: it is below 80, the port"),
    "a range from a name": (
        "{podSelector: {}, ingress: [{ports: [{port: http, endPort: 90}]}]}",
        "ingress[0].ports[0].endPort: 90: a range begins with a number, and 'http' is a name"),
    "a range beyond all ports": (
        "{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 70000}]}]}",
        "ingress[0].ports[0].endPort: 70000 is not a port"),
    "a port beyond all ports": (
        "{podSelector: {}, ingress: [{ports: [{port: 0}]}]}", "ingress[0].ports[0].port: 0 is not a port"),
    "a name that no port can have": (
        "{podSelector: {}, ingress: [{ports: [{port: '80'}]}]}",
        "ingress[0].ports[0].port: '80' is neither a port nor the name of one"),
    "a protocol that is none": (
        "{podSelector: {}, ingress: [{ports: [{protocol: ICMP}]}]}",
        "ingress[0].ports[0].protocol: 'ICMP' is not one of: TCP, UDP, SCTP"),
    "a policyType that is none": (
        "{podSelector: {}, policyTypes: [Ingres]}", "policyTypes[0]: 'Ingres' is not one of: Ingress, Egress"),
    "a policyType twice": (
        "{podSelector: {}, policyTypes: [Egress, Egress]}", "policyTypes[1]: 'Egress' is written twice"),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "message"), BAD.values(), ids=BAD)
def test_a_policy_that_the_api_refuses_gets_one_line_with_object_field_and_reason(spec, message):
    with pytest.raises(InvalidManifest) as caught:
        policies(spec)
    assert "\n" not in str(caught.value)
    assert AT.replace("shop/x", "shop/x0") + message in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        "{podSelector: {}}", "{}", "{podSelector: {}, ingress: [], egress: null}", "{podSelector: {}, ingress: [{}]}",
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.2.3/8, except: [10.1.0.0/16, 10.1.2.0/24]}}]}]}",
        "{podSelector: {}, egress: [{to: [{podSelector: {}, namespaceSelector: {}}], ports: [{port: 1, endPort: 1}]}]}",
        "{podSelector: {}, ingress: [{ports: [{}]}], policyTypes: []}",
    ],
)  # fmt: skip
def test_a_policy_that_the_api_takes_is_taken(spec):
    assert len(policies(spec)) == 1


# -- the truth table -------------------------------------------------------------------


def test_policy_types_are_ingress_and_where_there_are_egress_rules_egress():
    for spec, expected in {
        "{podSelector: {}}": {"ingress"},
        "{podSelector: {}, egress: []}": {"ingress"},
        "{podSelector: {}, egress: [{}]}": {"ingress", "egress"},
        "{podSelector: {}, policyTypes: [Egress]}": {"egress"},
        "{podSelector: {}, ingress: [{}], policyTypes: [Egress]}": {"egress"},
    }.items():
        assert set(table(spec).policies[0].rules) == expected


def test_lists_that_are_empty_or_missing_mean_everyone_and_every_port():
    for rule in ("{}", "{from: []}", "{from: null, ports: []}"):
        assert table(f"{{podSelector: {{}}, ingress: [{rule}]}}").allowed("other/web", "shop/web", 80, "SCTP")
    assert not table("{podSelector: {}, ingress: []}").allowed("other/web", "shop/web", 80)


def test_rules_and_policies_add_up_and_none_takes_away():
    deny = "{podSelector: {}}"
    allow = "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}]}"
    both = table(deny, allow)
    assert both.allowed("shop/api", "shop/web", 80)
    assert not both.allowed("shop/db", "shop/web", 80)
    assert not both.allowed("shop/web", "shop/api", 80)


@pytest.mark.parametrize(
    ("expression", "chosen"),
    [
        ("{key: app, operator: In, values: [web, api]}", {"shop/web", "shop/api"}),
        ("{key: tier, operator: NotIn, values: [front]}", {"shop/web", "shop/api", "shop/db"}),
        ("{key: tier, operator: Exists}", {"shop/api", "shop/db"}),
        ("{key: tier, operator: DoesNotExist}", {"shop/web"}),
    ],
)
def test_each_operator_chooses_its_pods_and_hostnetwork_is_never_among_them(expression, chosen):
    found = table(f"{{podSelector: {{matchExpressions: [{expression}]}}}}").policies[0]
    assert found.pods.members == chosen


def test_a_namespace_is_chosen_by_the_name_that_the_api_server_writes_on_it():
    peer = "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}}"
    one = table(f"{{podSelector: {{}}, ingress: [{{from: [{peer}]}}]}}")
    assert one.allowed("other/web", "shop/db", 80)
    assert not one.allowed("shop/web", "shop/db", 80)


def test_selectors_of_pods_and_namespaces_in_one_peer_are_both_meant_and_in_two_either():
    together = "[{podSelector: {matchLabels: {app: web}}, namespaceSelector: {matchLabels: {team: b}}}]"
    apart = "[{podSelector: {matchLabels: {app: web}}}, {namespaceSelector: {matchLabels: {team: b}}}]"
    for peers, callers in ((together, {"other/web"}), (apart, {"other/web", "shop/web"})):
        one = table(f"{{podSelector: {{matchLabels: {{app: db}}}}, ingress: [{{from: {peers}}}]}}")
        assert {key for key in ("shop/web", "shop/api", "other/web") if one.allowed(key, "shop/db", 80)} == callers


def test_a_named_port_is_the_number_that_each_destination_calls_so():
    one = table("{podSelector: {}, ingress: [{ports: [{port: http}]}]}")
    assert one.allowed("other/web", "shop/web", 80)
    assert one.allowed("other/web", "shop/api", 8080)
    assert not one.allowed("other/web", "shop/api", 80)
    assert not one.allowed("other/web", "shop/web", 80, "UDP")
    out = table("{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}")
    assert out.allowed("shop/web", "shop/api", 8080)
    assert not out.allowed("shop/web", "203.0.113.80", 80)


def test_a_range_has_both_its_ends():
    one = table("{podSelector: {}, ingress: [{ports: [{port: 32000, endPort: 32768, protocol: UDP}]}]}")
    assert [one.allowed("other/web", "shop/db", port, "UDP") for port in (31999, 32000, 32768, 32769)] == [
        False, True, True, False
    ]  # fmt: skip


def test_an_ip_block_means_addresses_of_either_family_without_its_exceptions():
    one = table(
        "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 203.0.113.0/24, "
        "except: [203.0.113.64/26, 203.0.113.80/32]}}, {ipBlock: {cidr: '2001:db8::/32'}}]}]}"
    )
    assert one.allowed("shop/web", "203.0.113.10", 80)
    assert not one.allowed("shop/web", "203.0.113.80", 80)
    assert one.allowed("shop/web", "2001:db8::1", 80, family="v6")
    assert not one.allowed("shop/web", "shop/db", 80, family="v6")


def test_a_pod_reaches_itself_and_its_own_node_reaches_it_whatever_policies_say():
    one = table("{podSelector: {}, policyTypes: [Ingress, Egress]}")
    assert one.allowed("shop/web", "shop/web", 80)
    for node in ("node1", "172.18.0.1", "10.244.1.1", "shop/agent"):
        assert one.allowed(node, "shop/web", 80)
        assert one.allowed("shop/web", node, 80)
    assert not one.allowed("node2", "shop/web", 80)
    assert not one.allowed("shop/web", "node2", 80)


def test_a_pod_with_hostnetwork_is_its_node_which_only_an_ip_block_can_name():
    by_label = table("{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}")
    by_block = table("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 172.18.0.1/32}}]}]}")
    assert not by_label.allowed("shop/agent", "shop/db", 80)
    assert by_block.allowed("shop/agent", "shop/db", 80)
    assert by_block.allowed("shop/db", "shop/agent", 80)


def test_pings_need_a_rule_without_ports():
    assert table("{podSelector: {}, ingress: [{}]}").allowed("other/web", "shop/web", 0, "ICMP")
    assert not table("{podSelector: {}, ingress: [{ports: [{protocol: TCP}]}]}").allowed(
        "other/web", "shop/web", 0, "ICMP"
    )


def test_what_is_not_there_is_named_with_what_is():
    with pytest.raises(NotFound, match="no pod, node or address 'shop/none'; pods and nodes: shop/web"):
        table().allowed("shop/none", "shop/web", 80)
    with pytest.raises(InvalidInput, match="protocol 'QUIC'"):
        table().allowed("shop/db", "shop/web", 80, "quic")


# -- in words --------------------------------------------------------------------------


def test_the_work_shows_who_selects_which_rule_allows_and_why_the_others_do_not():
    one = table(
        "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}]}, "
        "{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.244.2.0/24]}}], ports: [{port: http}]}]}",
        "{podSelector: {matchLabels: {app: db}}}",
    )
    found = explain(one, "shop/db", "shop/web", 80)
    assert (found.allowed, found.allowing, found.selecting) == (False, (), ("shop/x0",))
    text = str(found)
    for line in (
        "✘ shop/db to shop/web, TCP/80: denied",
        "from[0]: pods with app=api of namespace shop: shop/db is none of them; shop/db has app=db, tier=back",
        "from[0]: ipBlock 10.0.0.0/8 except 10.244.2.0/24: 10.244.2.4 is excepted",
        "✔ ports[0]: TCP named http: yes, shop/web has http=80/TCP, dns=53/UDP",
        "policy shop/x1 selects it, but its policyTypes leave out Egress",
        "policy shop/x1 does not select it: it is for pods with app=db of namespace shop; shop/web has app=web",
    ):
        assert line in text
    good = explain(one, "shop/api", "shop/web", 80)
    assert good.allowing == ("shop/x0 ingress[0]", "shop/x0 ingress[1]")
    assert "ingress[0] allows it" in str(good)
    assert "the own node of shop/web" in str(explain(one, "node1", "shop/web", 80))
    assert "has no ingress rule: it allows nothing" in str(explain(one, "shop/api", "shop/db", 80))


def test_every_line_of_the_work_is_in_its_html_escaped():
    found = explain(table("{podSelector: {}}"), "shop/db", "shop/web", 80)
    page = found._repr_html_()
    assert page.count("<div style") == len(str(found).splitlines())
    assert not re.search("<(?!/?(div|span))", page)


# -- rules -----------------------------------------------------------------------------

ALLOW = (
    "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress], "
    "ingress: [{from: [{podSelector: {matchLabels: {tier: back}}}, {ipBlock: {cidr: 10.0.0.0/8, except: "
    "[10.1.0.0/16, 10.1.2.0/24]}}], ports: [{port: http}, {port: 80}, {port: 81, endPort: 90}, {protocol: SCTP}]}]}"
)


def test_a_node_has_the_rules_of_the_policies_that_select_its_own_pods():
    one = table(ALLOW, "{podSelector: {matchLabels: {app: db}}}")
    first, second = program(one, "node1"), program(one, "node2")
    assert "ingress-shop/x0" in first.chains
    assert "ingress-shop/x1" not in first.chains
    assert "ingress-shop/x1" in second.chains
    assert first.elements["ingress-v4"] == {"10.244.1.2"}
    assert first.chains["ingress-shop/x0"][-1] == (
        "ip saddr 10.0.0.0/8 ip saddr != { 10.1.0.0/16 } ip daddr . meta l4proto . th dport @port-http-tcp-v4 accept"
    )
    assert any("tcp dport { 80-90 } accept" in rule for rule in first.chains["ingress-shop/x0"])
    assert first.chains["egress"][-1].startswith("counter drop")


def test_a_changed_label_changes_elements_of_sets_and_no_rule():
    before = program(table(ALLOW), "node1")
    changed = [pod("shop/db", "10.244.2.4", node="node2", app="db") if one.name == "db" else one for one in PODS]
    statements = list(_changes(before, program(table(ALLOW, pods=changed), "node1")))
    assert len(statements) == 1
    assert re.fullmatch(r"delete element inet k8snet-policy pods-\w{8}-v4 \{ 10\.244\.2\.4 \}", statements[0])
    assert list(_changes(before, before)) == []


def test_a_policy_that_is_gone_takes_each_of_its_sets_and_chains_away_and_the_last_one_the_table():
    one, two = program(table(ALLOW), "node1"), program(table(ALLOW, "{podSelector: {}}"), "node1")
    statements = list(_changes(two, one))
    gone = {("set", name) for name in two.sets.keys() - one.sets.keys()}
    gone |= {("chain", name) for name in two.chains.keys() - one.chains.keys()}
    assert len(gone) == 2  # the set of every pod, and the policy's chain
    for kind, name in gone:
        assert f"delete {kind} inet k8snet-policy {name}" in statements
    assert split(statements)
    assert list(_changes(one, program(table(), "node1"))) == [
        "add table inet k8snet-policy", "delete table inet k8snet-policy"
    ]  # fmt: skip
    assert render(table(), "node1") == ""


def test_a_node_whose_pods_no_policy_selects_has_no_table():
    one = table("{podSelector: {matchLabels: {app: db}}}")
    assert (render(one, "node1"), bool(render(one, "node2"))) == ("", True)


def test_the_whole_text_makes_each_chain_before_a_rule_goes_to_it():
    lines = render(table(ALLOW), "node1", ("v4", "v6")).splitlines()
    assert lines[0] == "add table inet k8snet-policy"
    made: set[str] = set()
    for line in lines:
        words = line.split()
        made |= {words[4]} if words[:2] == ["add", "chain"] else set()
        for target in re.findall(r"(?:jump|goto) (\S+)", line):
            assert target in made
