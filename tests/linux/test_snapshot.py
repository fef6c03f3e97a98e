"""Snapshots: equal for the same network by whatever means, different for any other."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from k8snet import End, Lab
from k8snet.errors import NotFound

BY_HAND = """
    ip netns add client; ip netns add server
    for n in client server; do
        ip -n $n link set lo up
        ip netns exec $n sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.disable_ipv6=1 \
            net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
    done
    ip link add name veth-client netns client type veth peer name veth-server netns server
    ip -n client address add 10.0.0.11/24 dev veth-client
    ip -n server address add 10.0.0.12/24 dev veth-server
    ip -n client link set veth-client up; ip -n server link set veth-server up
"""


def test_by_hand_and_by_library_are_equal(lab):
    """The book's third promise, in its smallest form."""
    lab.host.sh(BY_HAND)
    by_hand = lab.snapshot()
    with Lab("test") as second:
        client, server = second.netns("client"), second.netns("server")
        second.veth(
            End(netns=client, name="veth-client", address="10.0.0.11/24"),
            End(netns=server, name="veth-server", address="10.0.0.12/24"),
        )
        assert second.snapshot() == by_hand, by_hand.diff(second.snapshot())


def test_traffic_does_not_change_a_snapshot(pair, lab):
    client, server = pair
    server.iptables("-A INPUT -p tcp --dport 80 -j ACCEPT")
    before = lab.snapshot()
    server.listen(80)
    client.fetch("http://10.0.0.12/")
    assert lab.snapshot() == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda netns: netns.add_address("veth-server", "10.0.0.13/24"), "interface veth-server addresses"),
        (lambda netns: netns.set_down("veth-server"), "interface veth-server up: yes → no"),
        (lambda netns: netns.set_mtu("veth-server", 1400), "1500 → 1400"),
        (lambda netns: netns.add_route("192.168.0.0/16", via="10.0.0.11"), "+ server: route"),
        (lambda netns: netns.iptables("-P FORWARD DROP"), ":FORWARD DROP"),
        (lambda netns: netns.iptables("-A INPUT -p tcp -j DROP", backend="legacy"), "iptables-legacy"),
        (lambda netns: netns.nft("add table inet t"), "+ server: nft"),
        (lambda netns: netns.ipset("create s hash:ip"), "+ server: ipset"),
        (lambda netns: netns.set_sysctl("net.ipv4.ip_forward", 1), "net.ipv4.ip_forward: 0 → 1"),
        (lambda netns: netns.add_bridge("br0"), "+ server: interface br0"),
        (lambda netns: netns.sh("ip rule add from 10.0.0.12 lookup 100"), "ip rule"),
        (
            lambda netns: netns.add_neighbour("10.0.0.11", interface="veth-server", mac="02:00:00:00:00:01"),
            "+ server: neighbour",
        ),
    ],
)
def test_every_change_shows_in_the_diff(pair, lab, change, told):
    _, server = pair
    before = lab.snapshot()
    change(server)
    after = lab.snapshot()
    assert before != after
    assert told in str(before.diff(after))


def test_the_host_that_was_pristine_is_not_told_as_new(lab):
    """lab.host is left out of what is compared until it holds something; a diff names that thing."""
    lab.host.run("true")
    before = lab.snapshot()
    lab.host.add_bridge("br0")
    for told in (str(before.diff(lab.snapshot())), str(lab.snapshot().diff(before))):
        assert "host: interface br0" in told
        assert "host: netns" not in told


def test_the_order_of_rules_counts(pair, lab):
    _, server = pair
    server.iptables("-A INPUT -p tcp -j ACCEPT")
    server.iptables("-A INPUT -p tcp -j DROP")
    before = lab.snapshot()
    server.iptables("-F INPUT")
    server.iptables("-A INPUT -p tcp -j DROP")
    server.iptables("-A INPUT -p tcp -j ACCEPT")
    assert lab.snapshot() != before


def test_peers_are_found_across_netns_with_equal_indexes(lab):
    """Interface 2 of every pod has a peer; only the kernel's netns ids tell which."""
    host = lab.host
    for number in range(4):
        pod = lab.netns(f"p{number}")
        lab.veth(End(netns=host, name=f"v{number}"), End(netns=pod, name="eth0"))
    state = lab.snapshot()
    for number in range(4):
        peer = state[f"p{number}"].interface("eth0").peer
        assert (peer.netns, peer.interface) == ("host", f"v{number}")
        back = state["host"].interface(f"v{number}").peer
        assert (back.netns, back.interface) == (f"p{number}", "eth0")


def test_a_snapshot_is_json(pair, lab):
    value = json.loads(lab.snapshot().to_json(everything=True))
    assert [one["name"] for one in value["client"]["interfaces"]] == ["lo", "veth-client"]


def test_an_unknown_netns_is_named(pair, lab):
    with pytest.raises(NotFound, match="there are: client, server"):
        lab.snapshot()["nobody"]


def test_the_transcript_builds_an_equal_network_in_a_fresh_sandbox(lab, tmp_path):
    """Everything that the library can build, in one network."""
    node, pod = lab.netns("node", forward=True), lab.netns("pod")
    node.add_bridge("cni0", address="10.244.1.1/24")
    lab.veth(End(netns=node, name="veth1", master="cni0"), End(netns=pod, name="eth0", address="10.244.1.2/24"))
    pod.add_route("default", via="10.244.1.1")
    node.set_hairpin("veth1", on=True)
    lab.veth(End(netns=node, name="eth0", address="172.18.0.1/16"), End(netns=lab.netns("switch"), name="port1"))
    node.add_vxlan("flannel.1", vni=1, local="172.18.0.1", device="eth0", mtu=1450)
    node.add_fdb("02:00:00:00:00:02", interface="flannel.1", remote="172.18.0.2")
    node.add_neighbour("10.244.2.0", interface="flannel.1", mac="02:00:00:00:00:02")
    node.add_route("10.244.2.0/24", via="10.244.2.0", device="flannel.1", onlink=True)
    node.add_route("192.0.2.0/24", kind="blackhole")
    node.add_macvlan("mv0", parent="eth0")
    node.iptables("-t nat -A POSTROUTING -s 10.244.0.0/16 ! -o cni0 -j MASQUERADE -m comment --comment 'a b'")
    node.iptables("-A FORWARD -p tcp --dport 81 -j DROP", backend="legacy")
    node.nft("table inet t {\n set s { type ipv4_addr; elements = { 10.0.0.2, 10.0.0.1 } }\n}")
    node.ipset("create blocked hash:ip")
    node.ipset("add blocked 10.0.0.9")
    script = tmp_path / "script.sh"
    script.write_text(lab.transcript.script())
    command = f"bash {script} && {sys.executable} -m k8snet.observe.snapshot"
    # a mount namespace with a /run/netns of its own is all that a fresh sandbox differs in
    fresh = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs tmpfs /run/netns && {command}"]
    done = subprocess.run(fresh, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == lab.snapshot().config()
