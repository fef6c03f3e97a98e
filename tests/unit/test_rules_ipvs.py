"""IPVS mode as rules, out of what real programs printed on a node: no kernel is asked.

tests/unit/data/ipvs_node is of a node of three, whose Services are those of tests/linux/test_rules_view.py, one with
session affinity and an external IP, one of a load balancer with policy Local, and five virtual servers by hand:
10.96.0.91 to 95, with the schedulers wrr, lc, wlc, sh and sed, and the weights 3, 1 and 0.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from k8snet.linux import ipvs
from k8snet.linux.ipvs import RealServer, VirtualServer
from k8snet.observe.rules import RulesView, tree_of
from k8snet.observe.rules_ipvs import from_ipvs
from k8snet.observe.rules_read import from_save, sets_from_save
from k8snet.observe.rules_words import Names, reason
from k8snet.observe.ruleset import AddressSet, Journey, Packet, Place, Ruleset
from k8snet.observe.why import explain, outcomes

DATA = Path(__file__).parent / "data" / "ipvs_node"
CLIENT, WEB1, WEB2, WEB3 = "10.244.1.4", "10.244.1.2", "10.244.2.2", "10.244.1.3"
NAMES = Names(
    addresses={
        "10.96.0.20": "the cluster IP of shop/web", CLIENT: "pod client on node1", WEB1: "pod shop/web-1 on node1",
        WEB2: "pod shop/web-2 on node2", WEB3: "pod shop/web-3 on node1", "172.18.0.1": "node1",
    },
    networks={"10.244.0.0/16": "the pods' network", "127.0.0.0/8": "localhost"},
)  # fmt: skip


def text(name):
    return (DATA / name).read_text()


SETS = sets_from_save(text("ipset-save.txt"))
TIMEOUTS = {("TCP", address, 80): 10800 for address in ("10.96.0.26", "192.0.2.7")}
SERVERS = ipvs.parse(text("proc-net-ip_vs.txt"), TIMEOUTS)
RULES = Ruleset({**from_save(text("iptables-save.txt"), sets=SETS), **from_ipvs(SERVERS)})
DUMMY = {*SETS["KUBE-IPVS-IPS"].members, *(f"10.96.0.9{number}" for number in range(1, 6))}
INTERFACES = {"172.18.0.1": "eth0", "10.244.1.1": "cni0", **dict.fromkeys(DUMMY, "kube-ipvs0")}
NODE = Place(
    name="node1", addresses=frozenset(INTERFACES), interfaces=INTERFACES, bridges=frozenset({"cni0"}),
    route=lambda address: "cni0" if address.startswith("10.244.1.") else "eth0",
)  # fmt: skip


def packet(destination="10.96.0.20", port=80, source=CLIENT, **other):
    came = "cni0" if source.startswith("10.244.1.") else "eth0"
    given = {"protocol": "tcp", "came": came, **other}
    return Packet(source=source, destination=destination, port=port, **given)


def here(destination, port=80, source=None):
    """Return a packet of the node itself: it calls an own address from that address."""
    return packet(destination, port, source or destination, came="", here=True)


def ends(sent, rules=RULES):
    """Return what becomes of packets: kind, place, share, and whether the node's address is their source."""
    found = outcomes(Journey(rules, NODE, sent).ends, NODE, NAMES)
    assert sum(one.share for one in found) == pytest.approx(1)
    return {(one.kind, one.to, round(one.share, 3), one.masqueraded) for one in found}


def told(sent, rules=RULES, *, everything=False):
    return explain(Journey(rules, NODE, sent), NAMES, everything=everything)


def behind(*reals, scheduler="rr", **more):
    """Return the rules of IPVS with one virtual server."""
    one = VirtualServer(address="10.96.0.20", port=80, protocol="TCP", scheduler=scheduler, real_servers=reals, **more)
    return Ruleset(from_ipvs([one]))


def real(number, **more):
    return RealServer(address=f"10.0.0.{number}", port=80, **more)


# -- sets --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "member", "ways", "sent", "answer"),
    [
        ("hash:ip,port", "10.96.0.20,tcp:80", "dst,dst", {}, True),
        ("hash:ip,port", "10.96.0.20,tcp:80", "dst,dst", {"port": 81}, False),
        ("hash:ip,port", "10.96.0.20,tcp:80", "dst,dst", {"protocol": "udp"}, False),
        ("hash:ip,port", "10.96.0.20,tcp:80", "src,dst", {}, False),
        ("hash:ip,port", "10.244.1.4,tcp:80", "src,dst", {}, True),
        ("hash:ip,port", "10.244.1.4,tcp:80", "src,dst", {"source": None}, None),
        ("hash:ip,port", "10.244.1.4,tcp:81", "src,dst", {"source": None}, False),
        ("hash:ip,port", "10.244.1.4,tcp:80", "src", {}, False),
        ("hash:ip,port", "10.96.0.20,tcp:80", "dst,src", {}, None),
        ("hash:ip,port,ip", "10.96.0.20,tcp:80,10.244.1.4", "dst,dst,src", {}, True),
        ("hash:ip,port,net", "10.96.0.20,tcp:80,10.244.0.0/16", "dst,dst,src", {}, True),
        ("hash:ip,port,net", "10.96.0.20,tcp:80,10.245.0.0/16", "dst,dst,src", {}, False),
        ("hash:ip,port,net", "10.96.0.20,tcp:80,10.244.1.4", "dst,dst,src", {}, True),
        ("hash:net", "10.244.0.0/16", "src", {}, True),
        ("hash:ip", "fd00::20", "dst", {"destination": "fd00::20"}, True),
        ("bitmap:port", "80", "dst", {}, True),
        ("bitmap:port", "80", "dst", {"protocol": "udp"}, True),
        ("bitmap:port", "80", "dst", {"protocol": "sctp"}, False),
        ("hash:ip,port", "10.96.0.20,icmp:8/0", "dst,dst", {"protocol": "icmp", "port": 0}, True),
    ],
)  # fmt: skip
def test_a_set_has_a_packet_or_not_or_that_depends_on_who_sends_it(kind, member, ways, sent, answer):
    found = AddressSet("s", kind, frozenset({member, "10.9.9.9,tcp:9,10.9.9.9" if kind.count(",") == 2 else member}))
    assert found.has(replace(packet(), **sent), ways.split(",")) is answer


def test_sets_are_read_as_ipset_saves_them_but_for_kinds_that_are_not_understood():
    assert len(SETS) == 17
    assert SETS["KUBE-NODE-PORT-TCP"] == AddressSet(
        "KUBE-NODE-PORT-TCP", "bitmap:port", frozenset({"30000", "30001", "30080", "30081"})
    )
    assert sets_from_save("create a hash:mac\nadd a 00:00:00:00:00:01\n") == {}
    assert sets_from_save("create b hash:net\nadd b 10.0.0.0/8\nadd b 10.1.0.0/16 nomatch\n") == {}
    (chain,) = from_save("*nat\n:X - [0:0]\n-A X -m set --match-set a src -j DROP\nCOMMIT\n", sets=SETS).values()
    assert "is not understood here" in reason(chain.rules[0], packet(), NODE, NAMES)


# -- what IPVS has -------------------------------------------------------------------------


class Kernel:
    """A socket that answers dumps with what a kernel sent once."""

    def __init__(self, *_):
        self.frames, self.waiting, self.asked = json.loads(text("netlink.json")), [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    settimeout = __exit__

    def send(self, data):
        assert struct.unpack_from("=IHH", data) == (len(data), 42, 0x301)
        self.asked.append(data[16])
        self.waiting = [bytes.fromhex(one) for one in self.frames["services" if data[16] == 4 else "reals"]]

    def recv(self, _):
        return self.waiting.pop(0)


def test_what_the_kernel_leaves_out_of_its_text_is_asked_for_over_netlink(monkeypatch):
    """It counts virtual servers of its netns where it begins, and those of all where it goes on, after 4 kB."""
    kernel, listed = Kernel(), text("proc-net-ip_vs.txt")
    there = re.findall("^TCP", text("ipvsadm.txt"), re.MULTILINE)
    monkeypatch.setattr(ipvs, "_family", lambda: 42)
    monkeypatch.setattr(ipvs.socket, "socket", lambda *_: kernel)
    monkeypatch.setattr(ipvs.Path, "read_text", lambda _: listed)
    found = ipvs.read()
    assert (len(SERVERS), len(there), len(found)) == (21, 24, 24)
    assert kernel.asked == [4, 8, 8, 8]
    assert [one for one in found if one in SERVERS] == SERVERS
    for one in set(found) - set(SERVERS):
        weights = [(str(each), each.forward, each.weight, each.active, each.inactive) for each in one.real_servers]
        assert weights == [  # those of 10.96.0.92, as ipvsadm shows them
            (f"{WEB1}:8080", "Masq", 3, 1, 1), (f"{WEB3}:8080", "Masq", 1, 3, 0), (f"{WEB2}:8080", "Masq", 0, 0, 0),
        ]  # fmt: skip


def test_what_is_told_of_ipvs_is_what_ipvsadm_prints():
    lines = [" ".join(line.split()) for line in text("ipvsadm.txt").splitlines()]
    servers = [chain for (table, _), chain in RULES.chains.items() if table == "IPVS" and not chain.hook]
    assert len(servers) == 21
    for chain in servers:
        address, port = chain.name.partition(" ")[2].split(":")
        steps = told(packet(address, int(port), "203.0.113.10"))
        (head,) = [one for one in steps if one.table == "IPVS" and not one.depth]
        assert " ".join(head.rule.split()) in lines
        reals = [rule.text for rule in chain.rules if rule.text.startswith("->")]
        at = lines.index(" ".join(head.rule.split())) + 1
        assert all(line.startswith(f"{text} ") for line, text in zip(lines[at:], reals, strict=False))


# -- packets -------------------------------------------------------------------------------

ALL = [(f"{one}:8080", 0.333) for one in (WEB1, WEB2, WEB3)]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (packet(), {("endpoint", to, share, False) for to, share in ALL}),
        (packet(source=WEB1), {("endpoint", to, share, to.startswith(WEB1)) for to, share in ALL}),
        (packet(source="172.18.0.2"), {("endpoint", to, share, True) for to, share in ALL}),
        (here("10.96.0.20"), {("endpoint", to, share, True) for to, share in ALL}),
        (packet("172.18.0.1", 30080, "203.0.113.10"), {("endpoint", to, share, True) for to, share in ALL}),
        (packet("192.0.2.7", source="203.0.113.10"), {("endpoint", to, share, True) for to, share in ALL}),
        (packet("198.51.100.8", source="203.0.113.10"),
         {("endpoint", f"{WEB1}:8080", 0.5, False), ("endpoint", f"{WEB3}:8080", 0.5, False)}),
        (packet("198.51.100.7", source="203.0.113.10"), {("endpoint", to, share, True) for to, share in ALL}),
        (packet("198.51.100.7", source="203.0.113.100"), {("DROP", "198.51.100.7:80", 1, False)}),
        (here("198.51.100.7"), {("DROP", "198.51.100.7:80", 1, False)}),
        (packet("10.96.0.21"), {("REJECT", "10.96.0.21:80", 1, False)}),
        (here("10.96.0.21"), {("REJECT", "10.96.0.21:80", 1, False)}),
        (packet(port=81), {("REJECT", "10.96.0.20:81", 1, False)}),
        (packet(protocol="icmp", port=0), {("REJECT", "10.96.0.20", 1, False)}),
        (packet("172.18.0.1", 31000, "203.0.113.10"), {("ACCEPT", "172.18.0.1:31000", 1, False)}),
        (here("127.0.0.1", 30080), {("on", "127.0.0.1:30080", 1, False)}),
        (packet("10.244.2.2", 8080), {("on", "10.244.2.2:8080", 1, False)}),
        (packet("10.96.0.91"), {("endpoint", f"{WEB1}:8080", 0.75, False), ("endpoint", f"{WEB3}:8080", 0.25, False)}),
        (packet("10.96.0.92"), {("endpoint", f"{WEB1}:8080", 1, False)}),
        (packet("10.96.0.93"), {("endpoint", f"{WEB1}:8080", 1, False)}),
        (packet("10.96.0.94"), {("endpoint", f"{WEB1}:8080", 0.6, False), ("endpoint", f"{WEB3}:8080", 0.2, False),
                                ("REJECT", "10.96.0.94:80", 0.2, False)}),
        (packet("10.96.0.95"), {("endpoint", f"{WEB1}:8080", 0.5, False), ("endpoint", f"{WEB3}:8080", 0.5, False)}),
    ],
)  # fmt: skip
def test_a_packet_ends_where_ipvs_and_the_sets_send_it(sent, expected):
    assert ends(sent) == expected


def test_the_way_of_a_packet_is_the_filter_then_ipvs_then_what_leaves():
    steps = told(packet(source=WEB1))
    assert [(one.hook, one.table, one.chain) for one in steps] == [
        ("prerouting", "nat", "PREROUTING"), ("prerouting", "nat", "KUBE-SERVICES"),
        ("prerouting", "nat", "KUBE-SERVICES"), ("input", "filter", "INPUT"), ("input", "filter", "KUBE-IPVS-FILTER"),
        ("input", "IPVS", "INPUT"), *[("input", "IPVS", "TCP 10.96.0.20:80")] * 3,
        ("postrouting", "nat", "POSTROUTING"), *[("postrouting", "nat", "KUBE-POSTROUTING")] * 2,
    ]  # fmt: skip
    words = "\n".join(f"{one.why} -> {one.then}" for one in steps)
    for line in (
        "destination 10.96.0.20 (the cluster IP of shop/web) is an address of node1, on kube-ipvs0: matches",
        "the set KUBE-CLUSTER-IP has 10.96.0.20,tcp:80: matches -> RETURN",
        ("IPVS' hash table has the element 10.96.0.20 . tcp . 80: matches -> on to TCP 10.96.0.20:80: "
         "the cluster IP of shop/web; rr: each in turn"),
        f"in turn: one of three -> DNAT: its destination becomes {WEB1}:8080, pod shop/web-1 on node1",
        f"the set KUBE-LOOP-BACK has {WEB1},tcp:8080,{WEB1}: matches -> masquerade",
    ):  # fmt: skip
        assert line in words


def test_the_node_itself_passes_ipvs_before_the_filter_that_may_bar_it():
    steps = told(here("198.51.100.7"))
    assert [one.table for one in steps if one.hook == "output" and not one.depth] == ["nat", "IPVS", "filter"]
    assert steps[-1].why == (
        "source 198.51.100.7 is the one that the rule names, IPVS has translated it from 198.51.100.7:80/tcp, the "
        "rule's virtual server: matches"
    )
    barred = [one for one in told(here("10.96.0.20"), everything=True) if one.chain == "KUBE-IPVS-OUT-FILTER"]
    assert [one.matched for one in barred] == [False]


def test_what_is_no_virtual_server_is_told_only_when_asked_for():
    assert "IPVS" not in {one.table for one in told(packet("172.18.0.1", 9))}
    found = [one for one in told(packet("172.18.0.1", 9), everything=True) if one.table == "IPVS"]
    assert [(one.rule, one.why) for one in found] == [
        ("no virtual server", "IPVS' hash table has no element 172.18.0.1 . tcp . 9: does not match")
    ]


def test_a_rule_that_asks_for_the_port_of_a_bridge_knows_which_interfaces_are_bridges():
    """Of an external IP: who did not come in by a bridge is let go before the node's own addresses are asked for."""
    outside = told(packet("192.0.2.7", source="203.0.113.10"))
    assert any("it came in by eth0" in one.why and one.matched for one in outside)
    inside = told(packet("192.0.2.7"), everything=True)
    assert any("it came in by a port of cni0" in one.why and not one.matched for one in inside)


def test_without_the_sysctl_nothing_that_ipvs_translates_is_masqueraded():
    assert {masqueraded for *_, masqueraded in ends(here("10.96.0.20"), replace(RULES, tracked=False))} == {False}


def test_a_real_server_that_is_a_process_of_the_node_gets_its_packets_at_once():
    local = behind(RealServer(address="172.18.0.1", port=6443))
    assert ends(packet(), local) == {("endpoint", "172.18.0.1:6443", 1, False)}
    assert {one.hook for one in told(packet(), local)} == {"input"}
    assert ends(here("10.96.0.20"), local) == {("endpoint", "172.18.0.1:6443", 1, False)}


def test_an_address_that_the_node_does_not_have_leads_past_ipvs_but_not_for_the_node_itself():
    elsewhere = replace(NODE, addresses=NODE.addresses - {"10.96.0.20"})
    (end,) = outcomes(Journey(behind(real(1)), elsewhere, packet()).ends, elsewhere, NAMES)
    assert end.words.startswith("no rule translates or stops it: it goes on to 10.96.0.20:80")
    (end,) = Journey(behind(real(1)), elsewhere, here("10.96.0.20", source="172.18.0.1")).ends
    assert (end.destination, end.virtual) == ("10.0.0.1", ("tcp", "10.96.0.20", 80))


# -- schedulers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "reals", "expected"),
    [
        ("rr", [real(1), real(2, weight=5)], ["in turn: one of two", "in turn: one of two"]),
        ("rr", [real(1)], ["the only one that gets connections: matches"]),
        ("rr", [real(1, weight=0), real(2)],
         ["its weight is 0, so it gets no new connections: does not match",
          "the only one that gets connections: matches"]),
        ("wrr", [real(1, weight=6), real(2, weight=2)],
         ["in turn, by weight: three of four", "in turn, by weight: one of four"]),
        ("lc", [real(1, active=1), real(2, inactive=255)],
         ["it has 1 active and 0 inactive connections, and another has fewer: does not match",
          "it has 0 active and 255 inactive connections, and none has fewer: matches"]),
        ("lc", [real(1), real(2)],
         ["it has 0 active and 0 inactive connections, and none has fewer, one of two that have so few"] * 2),
        ("wlc", [real(1, active=3, weight=2), real(2, active=1, weight=1)],
         ["it has 3 active and 0 inactive connections, and another has fewer for its weight: does not match",
          "it has 1 active and 0 inactive connections, and none has fewer for its weight: matches"]),
        ("sh", [real(1), real(2)], ["by a hash of the source, one of two: for one client always the same"] * 2),
        ("nq", [real(1), real(2)], ["as its scheduler likes: one of two"] * 2),
    ],
)  # fmt: skip
def test_a_real_server_says_how_its_scheduler_comes_to_it(scheduler, reals, expected):
    steps = told(packet(), behind(*reals, scheduler=scheduler), everything=True)
    assert [one.why for one in steps if one.rule.startswith("->")] == expected


def test_shares_are_those_of_the_weights_one_after_the_other():
    reals = [real(number, weight=number) for number in (1, 2, 3, 4)]
    found = {to: share for _, to, share, _ in ends(packet(), behind(*reals, scheduler="wrr"))}
    assert found == {f"10.0.0.{number}:80": number / 10 for number in (1, 2, 3, 4)}


def test_without_a_real_server_for_new_connections_the_caller_is_refused():
    for reals in ((), (real(1, weight=0),)):
        last = told(packet(), behind(*reals))[-1]
        assert (last.rule, last.why) == ("no real server", "none gets new connections: matches")
        assert last.then == "REJECT: the caller is refused at once, by ICMP “port unreachable”"
        assert ends(packet(), behind(*reals)) == {("REJECT", "10.96.0.20:80", 1, False)}


def test_a_real_server_that_is_reached_without_translation_is_not_said_to_be_translated():
    """`ipvsadm -a` without -m sends packets on as they are, to the machine's MAC address."""
    steps = told(packet(), behind(real(1, forward="Route")))
    assert steps[-1].then.startswith("Route: sent to 10.0.0.1, and its destination stays as it is")


# -- the tree ------------------------------------------------------------------------------


def view(rules, *doors):
    sent = [Packet(source=None, destination=address, protocol="tcp", port=port) for address, port in doors]
    return RulesView(
        service="shop/web", doors=("its doors",), node="node1", mode="ipvs", family="v4",
        boxes=tuple(tree_of(rules, NODE, sent, NAMES)),
    )  # fmt: skip


WEB = """\
table nat
PREROUTING, OUTPUT   what arrives at the node, and what the node itself sends
└─ every packet
   KUBE-SERVICES   a rule for each set of Services
   │    from localhost: RETURN
   │    not from a pod, in KUBE-CLUSTER-IP: mark for masquerade
   │    in KUBE-CLUSTER-IP: ACCEPT
   └─ to an address of the node
      KUBE-NODE-PORT   the node ports
           in KUBE-NODE-PORT-TCP: mark for masquerade

table filter
INPUT   what is for the node itself
└─ every packet
   KUBE-IPVS-FILTER   lets in what is for a Service, and rejects the rest
        in KUBE-CLUSTER-IP: RETURN

table IPVS
INPUT, OUTPUT   what is for the node itself, and what the node itself sends
├─ IPVS' hash table: 10.96.0.20 . tcp . 80
│  TCP 10.96.0.20:80   the cluster IP of shop/web; rr: each in turn
│       1 of 3: to 10.244.1.2:8080, pod shop/web-1 on node1
│       1 of 3: to 10.244.1.3:8080, pod shop/web-3 on node1
│       1 of 3: to 10.244.2.2:8080, pod shop/web-2 on node2
└─ IPVS' hash table: 172.18.0.1 . tcp . 30080
   TCP 172.18.0.1:30080   node1; rr: each in turn
        1 of 3: to 10.244.1.2:8080, pod shop/web-1 on node1
        1 of 3: to 10.244.1.3:8080, pod shop/web-3 on node1
        1 of 3: to 10.244.2.2:8080, pod shop/web-2 on node2

table nat
POSTROUTING   what leaves
└─ every packet
   KUBE-POSTROUTING   masquerades what has the mark, and who calls itself
        in KUBE-LOOP-BACK: MASQUERADE
        no mark: RETURN
        MASQUERADE"""


def test_the_tree_has_the_sets_that_are_asked_and_the_real_servers_behind_each_address():
    found = view(RULES, ("10.96.0.20", 80), ("172.18.0.1", 30080))
    assert str(found).replace("\u00a0", " ").partition("\n\n")[2] == WEB
    assert "TCP 10.96.0.20:80" in found.svg
    rules = [line["rule"] for box in found.as_dict()["chains"] for line in box["rules"] if box["table"] == "IPVS"]
    assert rules[:3] == ["TCP  10.96.0.20:80 rr", "TCP  172.18.0.1:30080 rr", f"-> {WEB1}:8080 Masq 1"]


def test_the_tree_of_a_load_balancer_shows_who_is_dropped_where():
    told = str(view(RULES, ("198.51.100.7", 80)))
    assert "from 198.51.100.7, by this virtual server: DROP" in told
    assert "KUBE-SOURCE-RANGES-FIREWALL   who may use its load balancer" in told
    assert "in KUBE-LOAD-BALANCER-SOURCE-CIDR: RETURN\n           DROP" in told


def test_the_tree_shows_all_real_servers_whoever_has_the_fewest_connections_now():
    told = str(view(RULES, ("10.96.0.92", 80)))
    assert told.count("if it has the fewest: to 10.244.") == 2  # the third has the weight 0
    assert "lc: who has the fewest connections" in told
    sticky = str(view(RULES, ("10.96.0.26", 80)))
    assert "rr: each in turn, a client stays for 10800 s\n        remember the client\n" in sticky


def test_of_many_real_servers_three_are_drawn_and_the_rest_is_counted():
    found = view(behind(*(real(number) for number in range(1, 31))), ("10.96.0.20", 80))
    assert "… 27 more" in str(found)
    assert "… 27 more" in found.svg
    assert "10.0.0.30" not in found.svg
    assert "27 more" in found.alt
    (box,) = [one for one in found.as_dict()["chains"] if one["chains"] == ["TCP 10.96.0.20:80"]]
    assert len(box["rules"]) == 30
