"""The way of a packet: each walk is held against the one that first principles give, hop by hop."""

from __future__ import annotations

import json
import threading

import pytest

from k8snet import End
from k8snet.errors import InvalidInput, NotFound
from k8snet.linux.nftrace import TABLE
from k8snet.linux.sweep import Target, sweep

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  clusterIP: 10.96.0.20
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080}, {name: dns, port: 53, protocol: UDP}]
"""


@pytest.fixture
def shop(cluster_of):
    """Build two nodes with a client on the first, and a server on the node that is asked for."""

    def build(mode="iptables", *, server="node2", **options):
        cluster = cluster_of(2, wiring="direct", **options)
        cluster.apply(SERVICE)
        cluster.run_pod("web", labels={"app": "web"}, ports=[8080, "53/udp"], node=server)
        cluster.run_pod("client", node="node1")
        cluster.start_proxy(mode)
        return cluster

    return build


def way(walk, cluster):
    """Return the hops, with the cluster's own names for ports whose names are drawn."""
    ports = _ports(cluster)
    return [" ".join(ports.get(word, word) for word in key) for key in walk.keys]


def _ports(cluster):
    """Return what a node's ports are called here, by the pods that they lead to."""
    found = {}
    for node in cluster.nodes.values():
        for entry in node.netns.fdb():
            for pod in node.pods.values():
                if entry.mac == pod.mac and entry.port != "cni0":
                    found[entry.port] = f"port-of-{pod.name}"
    return found


def seen(*stations):
    """Return hops of interfaces: "node1/eth0>" sends it, "node1/eth0<" receives it."""
    return [
        f"seen {netns} {interface[:-1]} {'out' if interface[-1] == '>' else 'in'}"
        for netns, interface in (one.split("/") for one in stations)
    ]


def chain(netns, hook, name, *more):
    return " ".join(["chain", netns, hook, name, "accept", *more])


def translated(mode, netns):
    """Return what prerouting does on the node that a Service is called on."""
    if mode == "iptables":
        return [chain(netns, "prerouting", "nat/PREROUTING", "dnat")]
    return [
        chain(netns, "prerouting", "kube-proxy/filter-prerouting-pre-dnat"),
        chain(netns, "prerouting", "kube-proxy/nat-prerouting", "dnat"),
    ]


def passed(mode, netns, *nat):
    """Return what a node does with a packet that it routes."""
    if mode == "iptables":
        return [chain(netns, "forward", "filter/FORWARD"), chain(netns, "postrouting", "nat/POSTROUTING", *nat)]
    return [
        chain(netns, "forward", "kube-proxy/filter-forward"),
        chain(netns, "postrouting", "kube-proxy/nat-postrouting", *nat),
        *([] if nat else [chain(netns, "postrouting", "nat/POSTROUTING")]),
    ]


def untouched(mode, netns):
    if mode == "iptables":
        return [chain(netns, "prerouting", "nat/PREROUTING")]
    return [
        chain(netns, "prerouting", "kube-proxy/filter-prerouting-pre-dnat"),
        chain(netns, "prerouting", "kube-proxy/nat-prerouting"),
    ]


# -- without a cluster -----------------------------------------------------------------


def test_a_packet_within_one_netns_goes_out_and_comes_in_by_lo(lab):
    netns = lab.netns("a")
    netns.listen(80)
    found = lab.trace(netns, "127.0.0.1", 80)
    assert [" ".join(key) for key in found.request.keys] == ["route a dev lo", "seen a lo in"]
    assert found.request.arrived


def test_on_one_bridge_it_passes_the_ports_and_no_rule(lab):
    node = lab.netns("node")
    node.run("ip", "link", "add", "br0", "type", "bridge")
    node.run("ip", "link", "set", "br0", "up")
    for number in (1, 2):
        inside = End(netns=lab.netns(f"c{number}"), name="eth0", address=f"10.0.0.{number}/24")
        lab.veth(inside, End(netns=node, name=f"port{number}"))
        node.run("ip", "link", "set", f"port{number}", "master", "br0")
    lab["c2"].listen(80)
    found = lab.trace(lab["c1"], "10.0.0.2", 80)
    wanted = ["route c1 dev eth0", *seen("c1/eth0>", "node/port1<", "node/port2>", "c2/eth0<")]
    assert [" ".join(key) for key in found.request.keys] == wanted
    assert [" ".join(key) for key in found.reply.keys] == seen("c2/eth0>", "node/port2<", "node/port1>", "c1/eth0<")


def test_a_rule_that_drops_is_where_the_walk_ends(pair):
    client, server = pair
    server.listen(80)
    server.nft("table inet t {\n chain c {\n type filter hook input priority 0\n tcp dport 80 drop\n }\n}\n")
    found = client._owner.trace(client, "10.0.0.12", 80, timeout_s=0.2)
    assert found.request.keys[-1] == ("chain", "server", "input", "t/c", "drop")
    assert "dropped by tcp dport 80 drop" in found.request.ended
    assert (found.request.arrived, found.reply) == (False, None)


def test_a_closed_port_answers_and_the_answer_has_its_walk(pair):
    client, _ = pair
    found = client._owner.trace(client, "10.0.0.12", 81)
    assert found.request.arrived
    assert found.outcome.startswith("tcp 10.0.0.12:81: refused")
    assert [" ".join(key) for key in found.reply.keys][-1] == "seen client veth-client in"


def test_where_nobody_has_the_address_the_neighbour_is_named(lab):
    router = lab.netns("router", forward=True)
    for number in (1, 2):
        host = End(netns=lab.netns(f"h{number}"), name="eth0", address=f"10.0.{number}.2/24")
        lab.veth(host, End(netns=router, name=f"eth{number}", address=f"10.0.{number}.1/24"))
    lab["h1"].run("ip", "route", "add", "default", "via", "10.0.1.1")
    found = lab.trace(lab["h1"], "10.0.2.99", 80, timeout_s=0.3)
    assert found.request.keys[-1] == ("seen", "router", "eth1", "in")
    assert "10.0.2.99 does not answer for its MAC address on eth2" in found.request.ended


def test_without_a_route_it_never_leaves(lab):
    found = lab.trace(lab.netns("a"), "10.9.9.9", 80)
    assert found.request.hops == ()
    assert "never left a: there is no route to 10.9.9.9" in found.request.ended


# -- in a cluster ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
@pytest.mark.parametrize("network", ["routes", "vxlan", "bgp"])
def test_from_a_pod_to_a_service_whose_pod_is_on_another_node(shop, mode, network):
    cluster = shop(mode, pod_network=network)
    found = cluster.trace("client", "web:80")
    tunnel = network == "vxlan"
    route = "via 10.244.2.0 dev flannel.1" if tunnel else "via 172.18.0.2 dev eth0"
    underlay = seen("node1/eth0>", "switch/node1<", "switch/node2>", "node2/eth0<")
    wanted = [
        "route client via 10.244.1.1 dev eth0",
        *seen("client/eth0>", "node1/port-of-client<"), *translated(mode, "node1"), *seen("node1/cni0<"),
        f"route node1 {route}", *passed(mode, "node1"),
        *(seen("node1/flannel.1>") if tunnel else []),
        *([f"{one} encapsulated" for one in underlay] if tunnel else underlay),
        *(seen("node2/flannel.1<") if tunnel else []),
        *untouched(mode, "node2"), "route node2 dev cni0", *passed(mode, "node2"),
        *seen("node2/cni0>", "node2/port-of-web>", "web/eth0<"),
    ]  # fmt: skip
    assert way(found.request, cluster) == wanted
    assert found.request.hops[-1].destination == "10.244.2.2:8080"
    assert found.reply.hops[-1].source == "10.96.0.20:80"
    assert found.outcome.startswith("tcp 10.96.0.20:80: ok")


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_on_one_node_the_bridge_hands_it_over(shop, mode):
    cluster = shop(mode, server="node1")
    found = cluster.trace("client", "web:80")
    keys = way(found.request, cluster)
    assert keys[:2] == ["route client via 10.244.1.1 dev eth0", "seen client eth0 out"]
    assert keys[2:3] == seen("node1/port-of-client<")
    assert keys[3 : 3 + len(translated(mode, "node1"))] == translated(mode, "node1")
    assert keys[-2:] == seen("node1/port-of-web>", "web/eth0<")


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_a_node_port_translates_both_ends(shop, mode):
    cluster = shop(mode)
    found = cluster.trace("internet", "node1:30080")
    keys = way(found.request, cluster)
    assert keys[:4] == [
        "route internet via 203.0.113.1 dev eth0", *seen("internet/eth0>", "router/eth1<"), "route router dev eth0",
    ]  # fmt: skip
    assert keys[4:8] == seen("router/eth0>", "switch/router<", "switch/node1>", "node1/eth0<")
    nat = [one for one in keys if one.endswith("nat")]
    assert nat == [translated(mode, "node1")[-1], passed(mode, "node1", "snat")[1]]
    assert found.request.hops[-1].source.startswith("172.18.0.1:")
    assert found.reply.hops[-1].source == "172.18.0.1:30080"


def test_a_datagram_is_followed_too(shop):
    cluster = shop()
    found = cluster.trace("client", "web:53", protocol="udp")
    assert found.outcome.startswith("udp 10.96.0.20:53: ok")
    assert way(found.request, cluster)[-3:] == seen("node2/cni0>", "node2/port-of-web>", "web/eth0<")
    assert found.reply.hops[-1].source == "10.96.0.20:53"


def test_with_ipv6_it_is_the_same_way(shop):
    cluster = shop(ip_families=("v4", "v6"))
    address = cluster.pod("web").addresses[1]
    found = cluster.trace("client", f"[{address}]:8080")
    assert [one.key[1:] for one in found.request if one.kind == "seen"][-1] == ("web", "eth0", "in")
    assert found.request.hops[-1].destination == f"[{address}]:8080"


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_what_is_sent_again_is_told_once(shop, family):
    """A SYN is sent again after 1 s, with IPv6 the same to the byte; so is the answer that finds no way back."""
    cluster = shop(ip_families=("v4", "v6"))
    pod, client = cluster.pod("web"), cluster.pod("client")
    there, back = (one.addresses[family == "v6"] for one in (pod, client))
    ip = ["ip", "-6"] if family == "v6" else ["ip"]
    cluster.node("node2").netns.run(*ip, "route", "replace", "blackhole", f"{back}/{128 if family == 'v6' else 32}")
    host = f"[{there}]" if family == "v6" else there
    found = cluster.trace("client", f"{host}:8080", timeout_s=2.5)
    assert found.request.arrived
    assert len(set(found.request.keys)) == len(found.request)
    assert not found.reply.arrived
    assert len(set(found.reply.keys)) == len(found.reply)
    assert "Lost on node2: there is no way on" in found.reply.ended


def test_a_policy_that_drops_is_named(shop):
    cluster = shop()
    cluster.apply("""
        {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: none},
         spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}}
    """)
    cluster.start_network_policy()
    found = cluster.trace("client", "web:80", timeout_s=0.3)
    last = found.request.hops[-1]
    assert (last.kind, last.netns, last.verdict) == ("chain", "node2", "drop")
    assert "policy" in last.table
    assert "Lost on node2: dropped by" in found.request.ended


# -- where packets are lost ------------------------------------------------------------


def on(node, command):
    return lambda cluster: cluster.node(node).netns.run(*command.split())


def in_pod(command):
    return lambda cluster: cluster.pod("client").run(*command.split())


def stale_tunnel(cluster):
    node = cluster.node("node1").netns
    entry = next(one for one in node.fdb() if one.port == "flannel.1" and one.remote)
    node.run("bridge", "fdb", "replace", entry.mac, "dev", "flannel.1", "dst", "172.18.0.99", "self")


def asymmetric(cluster):
    node = cluster.node("node2").netns
    node.run("sysctl", "-w", "net.ipv4.conf.all.rp_filter=1")
    node.run("ip", "route", "replace", "10.244.1.0/24", "dev", "cni0")


LOSSES = {  # by what is wrong: the pod network, what does it, whom the client calls, and how the walk ends
    "no forwarding": ("routes", on("node1", "sysctl -w net.ipv4.ip_forward=0"), "web:80",
                      "Lost on node1: it does not forward packets: net.ipv4.conf.all.forwarding is 0."),
    "a gateway that nobody is": ("routes", in_pod("ip route replace default via 10.244.1.99"), "web:80",
                                 "It never left client: 10.244.1.99 does not answer for its MAC address on eth0"),
    "a pod without a route": ("routes", in_pod("ip route del default"), "web:80",
                              "It never left client: there is no route to 10.96.0.20"),
    "lo is down": ("routes", in_pod("ip link set lo down"), "127.0.0.1:80",
                   "It never left client: lo, which the route names, is down."),
    "no way to the other pods": ("routes", on("node1", "ip route del 10.244.2.0/24"), "web:80",
                                 "Lost on router: there is no way on to 10.244.2.2"),
    "policy of FORWARD": ("routes", on("node1", "iptables -P FORWARD DROP"), "10.244.2.2:8080",
                          "Lost on node1: dropped by policy of FORWARD, in filter FORWARD at forward."),
    "a rule of iptables-legacy": ("routes", on("node1", "iptables-legacy -A FORWARD -j DROP"), "10.244.2.2:8080",
                                  "Lost on node1: iptables-legacy, which tells of no packet, has a rule that has"),
    "rp_filter": ("routes", asymmetric, "10.244.2.2:8080",
                  "Lost on node2: rp_filter is strict, and the way back to 10.244.1.2 is by cni0."),
    "a wrong neighbour": (
        "routes", on("node1", "ip neigh replace 172.18.0.2 lladdr 02:00:00:00:00:99 dev eth0 nud permanent"),
        "10.244.2.2:8080", "the frame is for 02:00:00:00:00:99, which is not the MAC of eth0",
    ),
    "a tunnel to nobody": ("vxlan", stale_tunnel, "10.244.2.2:8080",
                           "Lost after node1: flannel.1 sends it inside VXLAN to 172.18.0.99, and 172.18.0.99 does"),
    "a tunnel that is dropped": ("vxlan", on("node2", "iptables -A INPUT -p udp --dport 8472 -j DROP"),
                                 "10.244.2.2:8080", "Lost on node2: it came inside VXLAN, and the kernel does not say"),
    "nobody has the address": ("routes", lambda _: None, "10.244.2.99:80",
                               "Lost on node2: 10.244.2.99 does not answer for its MAC address on cni0"),
    "no endpoints": ("routes", lambda cluster: cluster.delete("pod", "web"), "web:80",
                     'default/web:http has no endpoints"'),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_a_lost_packet_ends_where_it_was_lost_with_the_reason(shop, name):
    network, spoil, target, said = LOSSES[name]
    cluster = shop(pod_network=network)
    spoil(cluster)
    found = cluster.trace("client", target, timeout_s=0.4)
    assert not found.request.arrived
    assert said in found.request.ended


def test_an_answer_that_is_lost_has_a_walk_of_its_own(shop):
    """No masquerade: the server in the internet knows no way to the pod, and the router neither."""
    cluster = shop()
    cluster.node("node1").netns.iptables("-t nat -F POSTROUTING")
    found = cluster.trace("client", "203.0.113.80:80", timeout_s=0.4)
    assert found.request.arrived
    assert not found.reply.arrived
    assert "Lost on router" in found.reply.ended


def test_twenty_walks_beside_other_connections_are_the_same(shop):
    """Others open connections from the same pod to the same Service all the time."""
    cluster = shop()
    client, stop = cluster.pod("client").netns, threading.Event()
    goal = Target(protocol="tcp", address="10.96.0.20", port=80)

    def call():
        while not stop.is_set():
            sweep({client: [goal] * 20}, timeout_s=1.0)

    first = cluster.trace("client", "web:80").request
    caller = threading.Thread(target=call)
    caller.start()
    try:
        walks = [cluster.trace("client", "web:80").request for _ in range(20)]
    finally:
        stop.set()
        caller.join()
    assert [one.diff(first) for one in walks] == [""] * 20


def test_two_modes_differ_in_their_chains_alone(shop, cluster_of):
    iptables = shop("iptables").trace("client", "web:80").request
    nftables = shop("nftables").trace("client", "web:80").request
    lines = iptables.diff(nftables).splitlines()[2:]
    changes = [line for line in lines if line[0] in "+-"]
    assert changes
    assert all(line[1:].startswith("chain") for line in changes)


def test_chains_are_told_in_the_words_of_kubernetes(shop):
    cluster = shop()
    text = str(cluster.trace("client", "web.default.svc.cluster.local:80"))
    assert "Service default/web, port http" in text
    assert "endpoint 10.244.2.2:8080, pod web on node2" in text


def test_a_walk_is_a_value_that_json_and_a_page_can_hold(shop):
    found = shop().trace("client", "web:80")
    told = json.loads(found.json())
    assert len(told["request"]["hops"]) == len(found.request)
    assert told["request"]["hops"][1]["placed_by"] == "timestamp"
    page = found.page()
    assert page.startswith("<!doctype html>")
    assert "KUBE-SVC-" in page
    assert "http:" not in page.replace("default/web:http", "")


def test_nothing_of_the_trace_stays_also_after_an_interrupt(shop, monkeypatch):
    cluster = shop()
    before = cluster.snapshot()
    cluster.trace("client", "web:80")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(cluster.pod("client").netns), "connect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cluster.trace("client", "web:80")
    assert cluster.snapshot() == before
    assert all(TABLE not in str(one.nft_list()) for one in cluster.lab)


@pytest.mark.parametrize(
    ("source", "target", "error", "said"),
    [
        ("nobody", "web:80", NotFound, "'nobody' is no pod"), ("client", "web", InvalidInput, "HOST:PORT"),
        ("client", "web:http", InvalidInput, "HOST:PORT"), ("client", "db:80", NotFound, "default/db"),
        ("client", "web:80", InvalidInput, "family 'v6'"),
    ],
)  # fmt: skip
def test_what_cannot_be_traced_is_said(shop, source, target, error, said):
    cluster = shop()
    with pytest.raises(error, match=said):
        cluster.trace(source, target, family="v6" if "v6" in said else "v4")


def test_a_protocol_that_cannot_be_followed_is_refused(pair):
    with pytest.raises(InvalidInput, match="'tcp' or 'udp'"):
        pair[0]._owner.trace(pair[0], "10.0.0.12", 80, protocol="sctp")
