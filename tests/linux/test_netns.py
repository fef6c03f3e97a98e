"""Interfaces, addresses, routes, neighbours and settings: what a call asks for is what the kernel has."""

from __future__ import annotations

import json

import pytest

from k8snet import End
from k8snet.errors import KernelRefused


def link(netns, name):
    return json.loads(netns.run("ip", "-d", "-j", "link", "show", "dev", name).stdout)[0]


def test_a_veth_pair_joins_two_netns(pair):
    client, _server = pair
    assert client.ping("10.0.0.12").ok


def test_macs_follow_from_names_so_that_every_run_shows_the_same(lab, pair):
    client, _ = pair
    first = link(client, "veth-client")["address"]
    lab.remove("client")
    again = lab.netns("client")
    again.add_bridge("veth-client")
    assert link(again, "veth-client")["address"] == first


def test_a_bridge_switches_frames_between_its_ports(lab):
    host = lab.host
    host.add_bridge("br0", address="10.1.0.1/24")
    pods = [lab.netns(f"p{number}") for number in (1, 2)]
    for number, pod in enumerate(pods, 1):
        inner = End(netns=pod, name="eth0", address=f"10.1.0.{number + 1}/24")
        lab.veth(End(netns=host, name=f"v{number}", master="br0"), inner)
    assert pods[0].ping("10.1.0.3").ok
    assert host.ping("10.1.0.2").ok
    assert {entry.port for entry in host.fdb() if not entry.permanent} == {"v1", "v2"}


def test_a_bridge_learns_macs_from_what_passes(lab):
    host, pod = lab.host, lab.netns("p")
    host.add_bridge("br0", address="10.1.0.1/24")
    lab.veth(End(netns=host, name="v", master="br0"), End(netns=pod, name="eth0", address="10.1.0.2/24"))
    assert host.ping("10.1.0.2").ok
    mac = link(pod, "eth0")["address"]
    entry = next(entry for entry in host.fdb() if entry.mac == mac)
    assert (entry.port, entry.permanent) == ("v", False)
    assert entry.age_s is not None


def test_vxlan_carries_frames_between_netns(pair):
    client, server = pair
    for netns, own, other, inner in ((client, "10.0.0.11", "10.0.0.12", 1), (server, "10.0.0.12", "10.0.0.11", 2)):
        netns.add_vxlan("vx0", vni=42, local=own, mtu=1450)
        netns.add_fdb("00:00:00:00:00:00", interface="vx0", remote=other)
        netns.add_address("vx0", f"192.168.0.{inner}/24")
    assert client.ping("192.168.0.2").ok
    details = link(client, "vx0")
    assert (details["linkinfo"]["info_data"]["id"], details["mtu"]) == (42, 1450)


def test_macvlan_gives_an_interface_a_second_mac(pair):
    client, server = pair
    client.add_macvlan("mv0", parent="veth-client")
    client.add_address("mv0", "10.0.0.13/24")
    assert server.ping("10.0.0.13").ok


def test_a_moved_interface_loses_its_addresses_and_is_down(lab):
    a, b = lab.netns("a"), lab.netns("b")
    lab.veth(End(netns=a, name="e", address="10.0.0.1/24"), End(netns=a, name="f"))
    a.move("e", b)
    found = lab.snapshot()["b"].interface("e")
    assert (found.addresses, found.up) == ((), False)


def test_deleting_one_end_deletes_both(pair, lab):
    client, _ = pair
    client.delete_link("veth-client")
    assert lab.snapshot()["server"].interface("veth-server") is None


def test_routes_are_added_replaced_and_removed(pair):
    client, _ = pair
    client.add_route("192.168.9.0/24", via="10.0.0.12")
    client.add_route("192.168.9.0/24", via="198.51.100.1", device="veth-client", replace=True, onlink=True)
    assert client.route_to("192.168.9.1")["gateway"] == "198.51.100.1"
    client.delete_route("192.168.9.0/24")
    assert client.route_to("192.168.9.1")["error"] == "Network is unreachable"


@pytest.mark.parametrize(("kind", "outcome"), [("unreachable", "unreachable"), ("blackhole", "unreachable")])
def test_a_route_can_be_a_way_to_drop(pair, kind, outcome):
    client, _ = pair
    client.add_route("192.168.9.0/24", kind=kind)
    assert client.ping("192.168.9.1", timeout_s=1).outcome == outcome


def test_permanent_neighbours_need_no_question(pair):
    client, server = pair
    mac = link(server, "veth-server")["address"]
    client.add_neighbour("10.0.0.12", interface="veth-client", mac=mac)
    entry = next(entry for entry in client.neighbours() if entry.address == "10.0.0.12")
    assert (entry.state, entry.mac) == ("PERMANENT", mac)
    client.delete_neighbour("10.0.0.12", interface="veth-client")
    assert client.neighbours() == []


def test_settings_are_set_all_or_none(lab):
    netns = lab.netns("a")
    with pytest.raises(KernelRefused, match="rp_filter"):
        netns.set_sysctls({"net.ipv4.ip_forward": 1, "net.ipv4.conf.all.rp_filter": "nonsense"})
    assert netns.sysctl("net.ipv4.ip_forward") == "0"


def test_hairpin_mtu_mac_and_name_are_set(lab):
    host, pod = lab.host, lab.netns("p")
    host.add_bridge("br0")
    lab.veth(End(netns=host, name="v", master="br0", mtu=1400), End(netns=pod, name="e", mtu=1400))
    host.set_hairpin("v", on=True)
    pod.set_down("e")
    pod.rename("e", "eth0")
    pod.set_mac("eth0", "02:00:00:00:00:AA")
    pod.set_up("eth0")
    state = lab.snapshot()
    assert state["host"].interface("v").hairpin is True
    eth0 = state["p"].interface("eth0")
    assert (eth0.mac, eth0.mtu, eth0.up) == ("02:00:00:00:00:aa", 1400, True)


def test_a_command_that_fails_says_where_and_why(lab):
    from k8snet.errors import CommandFailed

    with pytest.raises(CommandFailed, match=r"in netns a ended with 1.*nope") as caught:
        lab.netns("a").run("ip", "link", "show", "dev", "nope")
    assert caught.value.code == 1


def test_a_script_stops_at_the_first_failure(lab):
    done = lab.netns("a").sh("echo one; false; echo two", check=False)
    assert (done.stdout, done.ok) == ("one\n", False)
