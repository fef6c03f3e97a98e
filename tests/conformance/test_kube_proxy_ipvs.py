"""kube-proxy in IPVS mode against upstream's own tables: names, types and rules, and every case's servers."""

from __future__ import annotations

import re

import pytest

from k8snet.controllers.kube_proxy.ipvs import DUMMY, SYSCTLS, render
from k8snet.controllers.kube_proxy.ipvs_rules import SETS, name_of_set
from k8snet.controllers.kube_proxy.service_ports import Endpoint, ProxyConfig, ServicePort
from tests.conformance.ipvs_cases import cases, structure

pytestmark = pytest.mark.usefixtures("conformance")
DATA = structure()
MOVED = {  # since 1.17: set -> table, chain and target of its rule
    "KUBE-LOAD-BALANCER-FW": ("filter", "KUBE-PROXY-FIREWALL", "KUBE-SOURCE-RANGES-FIREWALL"),
    "KUBE-LOAD-BALANCER-SOURCE-CIDR": ("filter", "KUBE-SOURCE-RANGES-FIREWALL", "RETURN"),
    "KUBE-LOAD-BALANCER-SOURCE-IP": ("filter", "KUBE-SOURCE-RANGES-FIREWALL", "RETURN"),
}


def everything():
    """Return a program in which each set has members."""
    ports = []
    for number, protocol in enumerate(("TCP", "UDP", "SCTP"), start=1):
        for local in (False, True):
            here = number + 3 * local
            ports.append(
                ServicePort(
                    namespace="shop", name=f"s{here}", port_name="", protocol=protocol, cluster_ip=f"10.96.0.{here}",
                    port=80, node_port=30000 + here, external_ips=(f"192.0.2.{here}",), external_local=local,
                    load_balancer_ips=(f"198.51.100.{here}",), source_ranges=("172.18.0.0/16",),
                    health_check_node_port=32000 + here if local else 0,
                    endpoints=(Endpoint(address=f"10.244.1.{here}", port=8080, local=True),),
                )
            )  # fmt: skip
    return render(ports, ProxyConfig(node_name="node", node_ips=("172.18.0.2",), cluster_cidr="10.244.0.0/16"))


def test_the_sets_have_upstreams_names_types_and_comments():
    for one in DATA["ipsets"]:
        assert SETS[one["name"]] == (one["type"], one["comment"]), one["name"]
    for one in DATA["ipsetsNewer"]:
        kind, comment = SETS[one["name"]]
        assert (kind, comment) == (one["type"], one.get("comment", comment)), one["name"]
    assert len(SETS) == len(DATA["ipsets"]) + len(DATA["ipsetsNewer"])


def test_those_of_ipv6_have_upstreams_prefix():
    names = [name_of_set(name, "v6") for name in SETS]
    assert all(name.startswith(DATA["ipv6Prefix"]) and len(name) <= 31 for name in names)
    assert len(set(names)) == len(SETS)


def test_the_dummy_interface_and_the_scheduler_are_upstreams():
    program = everything()
    assert program.to_dict()["dummyInterface"] == DATA["dummyInterface"] == DUMMY
    assert {one.scheduler for one in program.virtual_servers} == {DATA["defaultScheduler"]}


def test_the_settings_are_upstreams_but_for_those_that_it_does_not_set_any_more():
    """For conn_reuse_mode that is so since Linux 5.9; strict ARP is an option there."""
    theirs = {key.replace("/", "."): value for key, value in DATA["sysctls"].items()}
    assert SYSCTLS.items() <= theirs.items()
    assert theirs.keys() - SYSCTLS.keys() == {
        "net.ipv4.conf.all.route_localnet", "net.bridge.bridge-nf-call-iptables", "net.ipv4.vs.conn_reuse_mode",
        "net.ipv4.conf.all.arp_ignore", "net.ipv4.conf.all.arp_announce",
    }  # fmt: skip


@pytest.mark.parametrize("one", DATA.get("ipsetIptablesNat_2019", ()), ids=lambda one: one["set"])
def test_each_set_is_looked_into_by_upstreams_rule(one):
    table, chain, target = MOVED.get(one["set"], ("nat", one["fromChain"], one["to"]))
    protocol = f"-p {one['proto']} " if one["proto"] else ""
    comment = f'-m comment --comment "{SETS[one["set"]][1]}"'
    rule = f"-A {chain} {protocol}{comment} -m set --match-set {one['set']} {one['match']} -j {target}"
    assert rule in everything().tables[table]


def test_of_one_protocol_the_ports_of_policy_local_come_first():
    rules = [rule for rule in everything().tables["nat"] if rule.startswith("-A KUBE-NODE-PORT ")]
    names = [re.search(r"--match-set (\S+)", rule)[1] for rule in rules]
    theirs = [one["set"] for one in DATA["ipsetIptablesNat_2019"] if one["fromChain"] == "KUBE-NODE-PORT"]
    assert sorted(names) == sorted(theirs)
    for protocol in ("TCP", "UDP", "SCTP-HASH"):
        assert names.index(f"KUBE-NODE-PORT-LOCAL-{protocol}") < names.index(f"KUBE-NODE-PORT-{protocol}")


def test_the_filter_of_other_ports_is_upstreams():
    """Their text is what iptables-save prints, which adds what REJECT does by itself."""
    ours = [rule for rule in everything().tables["filter"] if rule.startswith("-A KUBE-IPVS-FILTER")]
    assert ours == [one.removesuffix(" --reject-with icmp-port-unreachable") for one in DATA["ipvsFilterChainNewer"]]


# -- cases -----------------------------------------------------------------------------------


def by_key(servers):
    return sorted(servers, key=lambda one: one.key)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_a_case_gives_upstreams_servers_members_and_rules(case):
    program = render(case.ports, case.config)
    if case.servers is None:
        timeout = int(re.search(r"every virtual server has persistence timeout (\d+)", case.raw["assertion"])[1])
        assert {one.persistence_s for one in program.virtual_servers} == {timeout}
        assert {one.address for one in program.virtual_servers} == {"10.20.30.41", "100.101.102.103", "50.60.70.81"}
    else:
        assert by_key(program.virtual_servers) == by_key(case.servers)
    for name, members in case.raw.get("ipsetEntries", {}).items():
        assert list(program.sets[name]) == members
    for one in case.raw.get("iptables", ()):
        head, tail = f"-A {one['chain']} ", f" -j {one['jump']}"
        match = f"--match-set {one['matchSet']} " if "matchSet" in one else ""
        assert any(one.startswith(head) and one.endswith(tail) and match in one for one in program.tables["nat"])


def test_there_are_cases():
    assert len(cases()) >= 7
