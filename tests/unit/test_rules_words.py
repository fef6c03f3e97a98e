"""Rules in words: read from text, evaluated, and told; no kernel is asked."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from k8snet import rules_cli, session
from k8snet.observe.rules import Box, Line, RulesView, folded, tree_of
from k8snet.observe.rules_read import from_nft, from_save
from k8snet.observe.rules_words import Names, label, meaning, reason
from k8snet.observe.ruleset import Journey, Packet, Place, Ruleset
from k8snet.observe.why import explain, outcomes, share

NAMES = Names(
    addresses={
        "10.96.0.20": "the cluster IP of shop/web", "10.96.0.10": "the cluster IP of kube-system/kube-dns",
        "10.244.1.3": "pod shop/web-1 on node1", "10.244.1.2": "pod client on node1", "172.18.0.1": "node1",
    },
    networks={"10.244.0.0/16": "the pods' network"},
)  # fmt: skip
NODE = Place(name="node1", addresses=frozenset({"172.18.0.1"}), route=lambda _: "eth0")
TO = "-d 10.96.0.20/32 -p tcp -m comment --comment \"shop/web:http cluster IP\" -m tcp --dport 80"


def packet(**other):
    return Packet(**{
        "source": "10.244.1.2", "destination": "10.96.0.20", "protocol": "tcp", "port": 80, "came": "cni0", **other,
    })  # fmt: skip


def rule(text, table="nat"):
    """Return a rule of a chain X, as iptables-save prints it."""
    (chain,) = from_save(f"*{table}\n:X - [0:0]\n-A X {text}\nCOMMIT\n").values()
    return chain.rules[0]


def nat(*rules, chains=("A", "B", "C")):
    """Return a ruleset whose rules are met in PREROUTING."""
    heads = [":PREROUTING ACCEPT [0:0]", *(f":{one} - [0:0]" for one in chains)]
    return Ruleset(from_save("\n".join(["*nat", *heads, *rules, "COMMIT", ""])))


@pytest.mark.parametrize(
    ("text", "sent", "told"),
    [
        (f"{TO} -j A", {}, "destination 10.96.0.20 is the cluster IP of shop/web, port 80/tcp is the rule's: matches"),
        (f"{TO} -j A", {"destination": "10.96.0.10"},
         ("destination 10.96.0.10 (the cluster IP of kube-system/kube-dns) is not 10.96.0.20 (the cluster IP of "
          "shop/web): does not match")),
        (f"{TO} -j A", {"port": 81}, "port 81 is not 80: does not match"),
        (f"{TO} -j A", {"protocol": "udp"}, "protocol udp is not tcp: does not match"),
        ("! -s 10.244.0.0/16 -j A", {},
         ("source 10.244.1.2 (pod client on node1) is in 10.244.0.0/16 (the pods' network), and the rule is for all "
          "others: does not match")),
        ("! -s 10.244.0.0/16 -j A", {"source": "172.18.0.1"},
         "source 172.18.0.1 (node1) is not in 10.244.0.0/16 (the pods' network): matches"),
        ("-s 10.244.1.3/32 -j A", {},
         "source 10.244.1.2 (pod client on node1) is not 10.244.1.3 (pod shop/web-1 on node1): does not match"),
        ("-m statistic --mode random --probability 0.33333333349 -j A", {}, "by lot: taken once in three"),
        ("-m statistic --mode random --probability 0.25000000000 -j A", {}, "by lot: taken once in four"),
        ("-m statistic --mode random --probability 0.40000000037 -j A", {}, "by lot: taken with probability 0.4"),
        ("-m statistic --mode nth --every 2 --packet 0 -j A", {}, "by lot: taken once in two"),
        ("-m addrtype --dst-type LOCAL -j A", {"destination": "172.18.0.1"},
         "destination 172.18.0.1 (node1) is an address of node1: matches"),
        ("-m addrtype ! --dst-type LOCAL -j A", {},
         "destination 10.96.0.20 (the cluster IP of shop/web) is no address of node1: matches"),
        ("-m conntrack --ctstate NEW -j A", {}, "a first packet is NEW: matches"),
        ("-m conntrack --ctstate RELATED,ESTABLISHED -j A", {},
         "a first packet is not RELATED or ESTABLISHED: does not match"),
        ("-m conntrack --ctstate DNAT -j A", {"translated": True}, "it has been translated, as DNAT says: matches"),
        ("-m mark ! --mark 0x4000/0x4000 -j RETURN", {}, "it does not have the mark 0x4000: matches"),
        ("-m mark --mark 0x4000/0x4000 -j A", {"mark": 0x4001}, "it has the mark 0x4000: matches"),
        ("-m recent --rcheck --seconds 10800 --reap --name A --mask 255.255.255.255 --rsource -j A", {},
         "nothing is remembered of a client that calls for the first time: does not match"),
        ("-i cni+ -j A", {}, "it came in by cni0: matches"),
        ("-i eth0 -j A", {}, "it came in by cni0, not eth0: does not match"),
        ("-m set --match-set blocked src -j A", {},
         "“--match-set blocked src” is not understood here, and taken as not matching: does not match"),
        ("-j A", {}, "every packet: matches"),
    ],
)  # fmt: skip
def test_a_rule_says_why_it_takes_a_packet_or_does_not(text, sent, told):
    assert reason(rule(text), packet(**sent), NODE, NAMES) == told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{TO} -j A", "to 10.96.0.20:80/tcp"),
        ("-p tcp -m tcp --dport 80 -j A", "to port 80/tcp"),
        ("-d 127.0.0.0/8 -p tcp -m tcp --dport 80 -j A", "to 127.0.0.0/8, port 80/tcp"),
        (f"! -s 10.244.0.0/16 {TO} -j A", "to 10.96.0.20:80/tcp, not from a pod"),
        ("-s 10.244.1.3/32 -j A", "from pod shop/web-1"),
        ("-m statistic --mode random --probability 0.33333333349 -j A", "1 of 3: p 0.333"),
        ("-m statistic --mode random --probability 0.40000000037 -j A", "p 0.400"),
        ("-m addrtype --src-type LOCAL -j A", "from the node itself"),
        ("-m mark ! --mark 0x4000/0x4000 -j RETURN", "no mark"),
        ("-m conntrack --ctstate NEW -j A", ""),
    ],
)
def test_a_line_of_the_picture_has_few_words(text, told):
    assert label(rule(text), packet(), NAMES) == told


@pytest.mark.parametrize(
    ("name", "comment", "told"),
    [
        ("KUBE-SVC-AAAA", "shop/web:http cluster IP", "Service shop/web, port http, any endpoint"),
        ("KUBE-SVL-AAAA", "shop/web -> 10.0.0.1:80", "Service shop/web, endpoints on this node"),
        ("KUBE-EXT-AAAA", "masquerade traffic for shop/web:p external destinations",
         "Service shop/web, port p, from outside the cluster"),
        ("KUBE-FW-AAAA", "shop/web:p loadbalancer IP", "Service shop/web, port p, who may use its load balancer"),
        ("KUBE-SERVICES", "", "a rule for each port of each Service"),
        ("MINE", "", ""),
    ],
)  # fmt: skip
def test_a_chain_says_what_it_is_for(name, comment, told):
    told_by = f'-m comment --comment "{comment}" ' if comment else ""
    (chain,) = from_save(f"*nat\n:{name} - [0:0]\n-A {name} {told_by}-j RETURN\nCOMMIT\n").values()
    assert meaning(chain, NAMES) == told


def test_shares_are_those_of_the_lots_one_after_the_other():
    rules = nat(
        "-A PREROUTING -j A",
        "-A A -m statistic --mode random --probability 0.25000000000 -j DNAT --to-destination 10.0.0.1:1",
        "-A A -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination 10.0.0.2:1",
        "-A A -j DNAT --to-destination 10.0.0.3:1",
    )
    journey = Journey(rules, NODE, packet())
    found = outcomes(journey.ends, NODE, NAMES)
    assert [(one.to, share(one.share)) for one in found] == [
        ("10.0.0.1:1", "1 of 4"), ("10.0.0.2:1", "37.5%"), ("10.0.0.3:1", "37.5%"),
    ]  # fmt: skip
    assert explain(journey, NAMES)[-1].why == "what the lots have left: matches"


def test_return_goes_back_and_goto_does_not_come_back():
    rules = nat(
        "-A PREROUTING -j A", "-A PREROUTING -j DNAT --to-destination 10.0.0.9:1",
        "-A A -g B", "-A A -j DNAT --to-destination 10.0.0.1:1",
        "-A B -j RETURN", "-A B -j DNAT --to-destination 10.0.0.2:1",
    )  # fmt: skip
    (end,) = Journey(rules, NODE, packet()).ends
    assert end.destination == "10.0.0.9"


def test_a_packet_that_one_table_has_translated_is_not_translated_by_another():
    """Both programs that keep iptables' rules may be in use; a connection is translated once at a hook."""
    first = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j DNAT --to-destination [fd00::1]:8080\nCOMMIT\n"
    second = first.replace("fd00::1", "fd00::2")
    (end,) = Journey(Ruleset({**from_save(first), **from_save(second, mark=" (legacy)")}), NODE, packet()).ends
    assert (end.destination, end.port) == ("fd00::1", 8080)


def test_the_policy_of_a_chain_drops_what_no_rule_lets_pass():
    text = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -i cni0 -p udp -j ACCEPT\nCOMMIT\n"
    rules = Ruleset(from_save(text))
    assert [one.fate for one in Journey(rules, NODE, packet()).ends] == ["DROP"]
    assert [one.fate for one in Journey(rules, NODE, packet(protocol="udp")).ends] == [""]
    assert explain(Journey(rules, NODE, packet()), NAMES)[-1].rule == "policy drop"


def test_a_packet_without_a_way_out_ends_there():
    place = Place(name="node1", addresses=frozenset(), route=lambda _: "")
    journey = Journey(Ruleset({}), place, packet())
    assert outcomes(journey.ends, place, NAMES)[0].words == "node1 has no route to 10.96.0.20:80"


def test_rules_that_do_not_match_are_told_only_when_asked_for():
    rules = nat("-A PREROUTING -j A", "-A A -s 10.0.0.1/32 -j RETURN", "-A A -j DNAT --to-destination 10.0.0.1:1")
    journey = Journey(rules, NODE, packet())
    assert [one.matched for one in explain(journey, NAMES)] == [True, True]
    assert [one.matched for one in explain(journey, NAMES, everything=True)] == [True, False, True]


def test_a_jump_that_led_to_nothing_says_so():
    told = explain(Journey(nat("-A PREROUTING -j A", "-A A -s 10.0.0.1/32 -j RETURN"), NODE, packet()), NAMES)
    assert [one.then for one in told] == ["on to A; none of its rules matches"]


# -- nft ---------------------------------------------------------------------------------


def payload(field):
    return {"payload": {"protocol": "ip", "field": field}}


def nft(*expressions, sets=()):
    """Return the rules of a chain of table "ip t", from nft's JSON."""
    table = {"family": "ip", "table": "t"}
    objects = [*({kind: {**table, **body}} for kind, body in sets), {"chain": {**table, "name": "c"}}]
    objects += [{"rule": {**table, "chain": "c", "handle": n, "expr": one}} for n, one in enumerate(expressions, 1)]
    return from_nft(objects, {"ip t": "table ip t {\n\tchain c {\n\t\tthe text itself # handle 1\n\t}\n}"})["ip t", "c"]


def test_nft_draws_lots_with_one_rule_that_is_told_as_one_for_each_outcome():
    ends = [[n, {"goto": {"target": f"e{n}"}}] for n in range(3)]
    rules = nft([{"vmap": {"key": {"numgen": {"mode": "random", "mod": 3}}, "data": {"set": ends}}}]).rules
    assert [one.lot for one in rules] == [1 / 3, 1 / 2, 1]
    assert [label(one, packet(), NAMES) for one in rules] == ["1 of 3"] * 3
    assert rules[1].text.endswith("vmap { … , 1 : goto e1 , … }")


def test_nft_finds_the_element_of_a_map_that_a_packet_hits_and_says_when_there_is_none():
    port = {"payload": {"protocol": "th", "field": "dport"}}
    key = {"concat": [payload("daddr"), {"meta": {"key": "l4proto"}}, port]}
    hit = [{"elem": {"val": {"concat": ["10.96.0.20", "tcp", 80]}, "comment": "x"}}, {"drop": None}]
    vmap = [{"vmap": {"key": key, "data": "@service-ips"}}]
    (found,) = nft(vmap, sets=[("map", {"name": "service-ips", "elem": [hit]})]).rules
    assert found.text == "the text itself"
    assert reason(found, packet(), NODE, NAMES) == "@service-ips has the element 10.96.0.20 . tcp . 80: matches"
    assert [one.kind for one in found.does(packet())] == ["drop"]
    assert reason(found, packet(port=81), NODE, NAMES) == \
        "@service-ips has no element 10.96.0.20 . tcp . 81: does not match"  # fmt: skip


def test_nft_reads_sets_marks_and_where_addresses_are():
    rules = nft(
        [{"match": {"op": "==", "left": payload("daddr"), "right": "@mine"}}, {"accept": None}],
        [{"match": {"op": "==", "left": payload("saddr"), "right": "@seen"}}, {"drop": None}],
        [{"match": {"op": "!=", "left": payload("saddr"), "right": {"set": [
            {"prefix": {"addr": "10.244.0.0", "len": 16}}, "1.2.3.4"]}}}, {"drop": None}],
        [{"match": {"op": "==", "left": {"&": [{"meta": {"key": "mark"}}, 16384]}, "right": 0}}, {"return": None}],
        [{"match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["saddr"]}}, "right": "local"}},
         {"mangle": {"key": {"meta": {"key": "mark"}}, "value": {"|": [{"meta": {"key": "mark"}}, 16384]}}}],
        [{"dnat": {"addr": "fd00::1", "port": 80}}],
        sets=[("set", {"name": "mine", "elem": ["10.96.0.20"]}), ("set", {"name": "seen", "timeout": 10800})],
    ).rules  # fmt: skip
    told = [reason(one, packet(), NODE, NAMES) for one in rules[:5]]
    assert told[0] == "destination 10.96.0.20 (the cluster IP of shop/web) is in @mine: matches"
    assert "first time: does not match" in told[1]
    assert told[2].startswith("source 10.244.1.2 (pod client on node1) is in 10.244.0.0/16 (the pods' network) or 1.2.")
    assert told[3] == "it does not have the mark 0x4000: matches"
    assert told[4] == "source 10.244.1.2 (pod client on node1) is no address of node1: does not match"
    assert rules[4].actions[0].on(packet(), filters=False).mark == 0x4000
    assert rules[5].actions[0].target == "[fd00::1]:80"


# -- the tree ----------------------------------------------------------------------------

ANYBODYS = Packet(source=None, destination="10.96.0.20", protocol="tcp", port=80)


def service(count):
    """Return what a Service of some endpoints has in nat, beside another that is not asked for."""
    lots = [
        f"-A SVC -m statistic --mode random --probability {1 / (count - n):.11f} -j E{n}" if n < count - 1 else
        f"-A SVC -j E{n}" for n in range(count)
    ]  # fmt: skip
    ends = [f"-A E{n} -p tcp -j DNAT --to-destination 10.0.0.{n}:80" for n in range(count)]
    other = ["-A S -d 10.96.0.9/32 -p tcp -m tcp --dport 80 -j OTHER", "-A OTHER -j DNAT --to-destination 10.0.1.1:80"]
    return nat(
        "-A PREROUTING -j S", *other, f"-A S {TO} -j SVC", *lots, *ends,
        chains=("S", "SVC", "OTHER", *(f"E{n}" for n in range(count))),
    )  # fmt: skip


def view(rules):
    boxes = tuple(tree_of(rules, NODE, [ANYBODYS], NAMES))
    return RulesView(
        service="shop/web", doors=("10.96.0.20:80/tcp, cluster IP",), node="node1", mode="iptables", family="v4",
        boxes=boxes, caption="What a packet meets.",
    )  # fmt: skip


def test_the_tree_has_the_chains_of_the_service_and_no_others():
    found = view(service(2))
    assert [box.chains for box in found.boxes] == [("PREROUTING",), ("S",), ("SVC",), ("E0",), ("E1",)]
    assert [line.asks for line in found.box("nat SVC").lines] == ["1 of 2: p 0.500", "what is left"]
    assert "OTHER" not in str(found)
    assert "10.96.0.9" not in json.dumps(found.as_dict())


def test_of_many_endpoints_three_are_drawn_and_the_rest_is_counted():
    found = view(service(30))
    assert folded(found.box("nat SVC")) == (["nat E0", "nat E1", "nat E2"], 27)
    assert "… 27 more" in str(found)
    assert "… 27 more" in found.svg
    assert "E29" not in found.svg
    assert len([one for one in found.as_dict()["chains"] if one["chains"][0].startswith("E")]) == 30
    assert folded(view(service(4)).box("nat SVC"))[1] == 0


def test_the_picture_has_words_for_who_cannot_see_it_and_colours_of_the_theme():
    drawn = view(service(2))
    page = drawn._repr_html_()
    assert 'role="img" aria-label="The rules of Service shop/web on node1' in page
    assert "<figcaption>What a packet meets.</figcaption>" in page
    assert "var(--k8s-ink)" in page
    assert "SVC" in drawn.alt
    assert drawn.standalone().startswith("<svg")


def test_two_rules_that_lead_to_one_chain_make_one_line():
    lines = (Line(rule="", asks="same client again", does="", to="x"), Line(rule="", asks="1 of 2", does="", to="x"))
    box = Box(key="k", table="nat", chains=("A",), hook=False, meaning="", lines=lines)
    assert box.jumps == {"x": ["same client again", "1 of 2"]}


# -- the commands ------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """What the commands ask of the cluster of their shell; it answers with the same."""
    seen = []

    def ask(verb, **arguments):
        seen.append((verb, arguments))
        return {"error": "no Service 'x'", "code": 1} if "x" in arguments.values() else {"out": "told"}

    monkeypatch.setattr(session, "ask", ask)
    return seen


def test_the_commands_ask_the_cluster_of_their_shell(asked):
    runner = CliRunner()
    assert runner.invoke(rules_cli.app, ["rules", "shop/web", "--node", "node2", "--json"]).output == "told\n"
    assert runner.invoke(rules_cli.app, ["why", "client", "kube-system/dns", "--udp", "--all"]).output == "told\n"
    assert asked == [
        ("rules", {"service": "shop/web", "node": "node2", "port": None, "family": "v4", "as_json": True}),
        ("why", {"source": "client", "target": "kube-system/dns", "node": None, "protocol": "udp", "all": True,
                 "family": "v4", "as_json": False}),
    ]  # fmt: skip


def test_an_error_is_one_line_and_an_exit_code(asked):
    done = CliRunner().invoke(rules_cli.app, ["rules", "x"])
    assert (done.exit_code, done.stderr) == (1, "k8snet: no Service 'x'\n")
