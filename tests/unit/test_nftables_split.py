"""Rulesets cut into transactions: nothing is lost, nothing is too large, and nothing is half done in between."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8snet.controllers.kube_proxy.nftables import Proxier, name_of_chain, render
from k8snet.controllers.kube_proxy.service_ports import Endpoint, ProxyConfig, ServicePort
from k8snet.errors import InvalidInput
from k8snet.linux.nftables import LIMIT, estimate, split

CONFIG = ProxyConfig(node_name="n1", node_ips=("172.18.0.2",), cluster_cidr="10.244.0.0/16")
SIZES = {  # measured with nft 1.0.6: what a statement adds to a transaction
    "add table ip kube-proxy": 44,
    "add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }": 132,
    "add chain ip kube-proxy services": 52,
    "add chain ip kube-proxy endpoint-5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80": 92,
    "add rule ip kube-proxy filter-output ct state new jump cluster-ips-check": 276,
    "add rule ip kube-proxy masquerading mark and 0x4000 == 0 return": 264,
    "add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips": 256,
    "add rule ip kube-proxy service-U-ns1/svc1/tcp/p80 ip daddr 172.30.0.41 ip saddr != 10.0.0.0/8 jump m": 320,
    "add rule ip kube-proxy s numgen random mod 1 vmap { 0 : goto endpoint-5OJB2KTY-ns1/svc1/tcp/p80__1/80 }": 436,
    "add rule ip kube-proxy firewall-HVFWP5L3-ns5/svc5/tcp/p80 ip saddr != { 203.0.113.0/25 } drop": 292,
    "add element ip kube-proxy cluster-ips { 172.30.0.41 }": 80,
    "add element ip kube-proxy service-ips { 172.30.0.41 . tcp . 80 : goto service-ULMVA6XW-ns1/svc1/tcp/p80 }": 144,
    "flush chain ip kube-proxy services": 52,
    "delete element ip kube-proxy service-ips { 172.30.0.41 . tcp . 80 }": 80,
}  # fmt: skip


@pytest.mark.parametrize("statement", SIZES)
def test_no_statement_is_larger_than_its_estimate(statement):
    assert SIZES[statement] <= estimate(statement) <= 3 * SIZES[statement]


def test_chains_come_first_then_rules_then_elements_then_jumps_and_deletions_last():
    given_order = [
        "delete chain ip t old", "delete set ip t s", "flush chain ip t old", "delete element ip t m { 2 }",
        "add rule ip t hook jump new", "add element ip t m { 1 : goto new }", "add rule ip t new accept",
        "add chain ip t hook { type nat hook output priority 0 ; }", "add chain ip t new",
        "add map ip t m { type inet_service : verdict ; }", "add table ip t",
    ]  # fmt: skip
    first, last = split(given_order)
    assert first == [
        "add table ip t", "add chain ip t hook { type nat hook output priority 0 ; }", "add chain ip t new",
        "add map ip t m { type inet_service : verdict ; }", "add rule ip t new accept",
        "add element ip t m { 1 : goto new }", "add rule ip t hook jump new", "delete element ip t m { 2 }",
        "flush chain ip t old", "delete set ip t s",
    ]  # fmt: skip
    assert last == ["delete chain ip t old"]


def test_a_chain_is_filled_before_the_chains_that_go_to_it():
    rules = ["add rule ip t a jump b", "add rule ip t b meta mark vmap { 0 : goto c }", "add rule ip t c drop"]
    assert split(rules, limit=1) == [[rules[2]], [rules[1]], [rules[0]]]


def test_what_replaces_something_stays_in_one_transaction_with_what_it_replaces():
    chain = ["flush chain ip t a", "add rule ip t a drop"]
    element = ["delete element ip t m { 1 . tcp }", 'add element ip t m { 1 . tcp comment "x" : goto a }']
    lines = "flush chain ip t b\nadd rule ip t b goto a"
    assert split([chain[0], element[0], lines, chain[1], element[1]], limit=1) == [chain, [lines], element]


@pytest.mark.parametrize("bad", ["mend the table", "add counter ip t c", "list ruleset", "add rule services drop"])
def test_what_is_no_statement_is_refused(bad):
    with pytest.raises(InvalidInput, match="nft statement"):
        split(["add table ip t", bad])


# -- properties ------------------------------------------------------------------------------

ENDPOINTS = [Endpoint(address=f"10.244.{n % 2 + 1}.{n}", port=8080, local=n % 2 == 0) for n in range(1, 6)]


@st.composite
def service(draw, number):
    kept = draw(st.lists(st.sampled_from(ENDPOINTS), unique=True, max_size=4))
    return ServicePort(
        namespace="shop", name=f"s{number}", port_name="http", protocol="TCP", cluster_ip=f"10.96.0.{number}", port=80,
        node_port=draw(st.sampled_from([0, 30000 + number])), external_ips=draw(st.sampled_from([(), ("192.0.2.7",)])),
        load_balancer_ips=draw(st.sampled_from([(), (f"198.51.100.{number}",)])),
        source_ranges=draw(st.sampled_from([(), ("203.0.113.0/24",)])),
        affinity_s=draw(st.sampled_from([None, 60, 10800])), internal_local=draw(st.booleans()),
        external_local=draw(st.booleans()), endpoints=tuple(kept),
    )  # fmt: skip


clusters = st.tuples(*(st.none() | service(n) for n in (1, 2, 3))).map(lambda found: [one for one in found if one])


class Table:
    """What a kernel would hold; refuses what it would refuse."""

    def __init__(self):
        self.chains, self.elements, self.sets = {}, defaultdict(dict), {}

    def load(self, transaction):
        for line in (line for statement in transaction for line in statement.splitlines()):
            verb, kind, _, _, name, rest = [*line.split(maxsplit=5), "", ""][:6]
            getattr(self, f"{verb}_{kind}")(name, rest)
        text = f"{self.chains.values()} {self.elements.values()}"
        assert set(re.findall(r"(?:jump|goto) ([\w./-]+)", text)) <= self.chains.keys()
        assert set(re.findall(r"@(affinity[\w./-]+)", text)) <= self.sets.keys()

    def add_table(self, name, rest): ...
    def flush_table(self, name, rest): ...
    def delete_table(self, name, rest): ...
    def flush_set(self, name, rest): ...
    def flush_map(self, name, rest): ...
    def add_map(self, name, rest): ...

    def add_set(self, name, rest):
        assert self.sets.get(name, rest) == rest
        self.sets[name] = rest

    def delete_set(self, name, rest):
        del self.sets[name]

    def add_chain(self, name, rest):
        assert name not in self.chains
        self.chains[name] = []

    def delete_chain(self, name, rest):
        assert self.chains.pop(name) == []

    def flush_chain(self, name, rest):
        self.chains[name].clear()

    def add_rule(self, name, rest):
        self.chains[name].append(rest)

    def add_element(self, name, rest):
        key, _, value = re.sub(' comment "[^"]*"', "", rest[2:-2]).partition(" : ")
        assert self.elements[name].get(key, value) == value
        self.elements[name][key] = value

    def delete_element(self, name, rest):
        del self.elements[name][rest[2:-2]]

    def seen(self, port):
        """Return all that packets to a service port meet, chains replaced by what is in them."""
        addresses = {port.cluster_ip, *port.load_balancer_ips}  # the external IP is everybody's here
        found = [
            (name, key, self.unfold(value))
            for name, elements in self.elements.items() for key, value in elements.items()
            if key.split(" . ")[0] in addresses or key == f"tcp . {port.node_port}"
            if name != "cluster-ips"
        ]  # fmt: skip
        return sorted(found)

    def unfold(self, text):
        text = re.sub(r"@(affinity[\w./-]+)", lambda found: self.sets[found[1]], text)
        return re.sub(r"(?:jump|goto) ([\w./-]+)", lambda found: self.unfold(" / ".join(self.chains[found[1]])), text)


def loaded(ports):
    table, proxier = Table(), Proxier(CONFIG)
    for transaction in split(proxier.sync(ports)):
        table.load(transaction)
    proxier._loaded = proxier._state(ports)
    return table, proxier


@settings(max_examples=150, deadline=None)
@given(clusters, clusters, st.integers(300, 6000))
def test_between_two_transactions_every_service_is_as_before_or_as_after(before, after, limit):
    """A packet that arrives there meets all of the old rules of its Service, or all of the new ones."""
    table, proxier = loaded(before)
    wanted, _ = loaded(after)
    either = {name: [one for one in (*before, *after) if one.name == name] for name in ("s1", "s2", "s3")}
    old, new = ({name: [held.seen(one) for one in either[name]] for name in either} for held in (table, wanted))
    for transaction in split(proxier.sync(after), limit=limit):
        table.load(transaction)
        for name, ones in either.items():
            assert [table.seen(one) for one in ones] in (old[name], new[name])
    assert (table.chains, table.sets) == (wanted.chains, wanted.sets)
    assert {k: v for k, v in table.elements.items() if v} == {k: v for k, v in wanted.elements.items() if v}


@settings(max_examples=150, deadline=None)
@given(clusters, clusters, st.integers(1, 6000))
def test_no_statement_is_lost_and_no_transaction_is_too_large_that_could_be_cut(before, after, limit):
    _, proxier = loaded(before)
    for statements in (proxier.sync(after), Proxier(CONFIG).sync(after)):
        transactions = split(statements, limit=limit)
        assert Counter(one for part in transactions for one in part) == Counter(statements)
        for part in transactions:
            fits = sum(map(estimate, part)) <= limit
            assert fits or len({tuple(one.split()[2:5]) for one in part}) == 1


@pytest.mark.parametrize(("family", "network"), [("v4", "10.96.{}.{}"), ("v6", "fd00:10:96::{}:{}")])
def test_a_thousand_services_fit_transactions_and_no_packet_meets_them_before_the_last(family, network):
    ports = [
        ServicePort(namespace="n", name=f"s{n}", port_name="", protocol="TCP", port=80,
                    cluster_ip=network.format(n // 250, n % 250 + 1), endpoints=tuple(ENDPOINTS[:2]))
        for n in range(1000)
    ]  # fmt: skip
    transactions = split(render(ports, replace(CONFIG, family=family)).splitlines())
    assert 10 < len(transactions) < 30
    assert max(sum(map(estimate, part)) for part in transactions) <= LIMIT
    assert all(not re.search("add rule ip6? kube-proxy (nat|filter)-", "\n".join(part)) for part in transactions[:-1])


def test_names_of_chains_are_upstreams_and_no_longer_than_nft_takes():
    end = Endpoint(address="fd00::1", port=80)
    port = ServicePort(
        namespace="n" * 63, name="s" * 63, port_name="p" * 63, protocol="TCP", cluster_ip="fd01::1", port=80
    )
    short = name_of_chain("service", ServicePort(
        namespace="ns1", name="svc1", port_name="p80", protocol="TCP", cluster_ip="172.30.0.41", port=80))  # fmt: skip
    assert short == "service-ULMVA6XW-ns1/svc1/tcp/p80"
    assert name_of_chain("endpoint", port, end).endswith("__fd00..1/80")
    long = Endpoint(address="2001:1234:1234:1234:1234:1234:1234:1234", port=65535)
    assert name_of_chain("endpoint", port, long).endswith("...")
    assert len(name_of_chain("endpoint", port, long)) == len("endpoint-") + 240
