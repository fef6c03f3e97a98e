"""Captures: what passed an interface, in order, and nothing else."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest

from k8snet import End, capture
from k8snet.errors import InvalidInput, NotFound
from k8snet.linux.packet_ring import PacketRing


def test_the_first_ping_asks_for_a_mac_first(pair):
    client, server = pair
    with capture(server, "veth-server", "arp or icmp") as wire:
        assert client.ping("10.0.0.12").ok
    assert [packet.decoded.protocol for packet in wire] == ["arp", "arp", "icmp", "icmp"]
    assert [packet.outgoing for packet in wire] == [False, True, False, True]
    assert "who has 10.0.0.12? Tell 10.0.0.11" in str(wire)


def test_a_filter_keeps_the_rest_out(pair):
    client, server = pair
    server.listen(80)
    with capture(server, "veth-server", "tcp[tcpflags] & tcp-syn != 0") as wire:
        client.fetch("http://10.0.0.12/")
        client.ping("10.0.0.12")
    assert [packet.decoded.flags for packet in wire] == ["SYN", "SYN ACK"]


def test_loopback_shows_each_packet_once(lab):
    netns = lab.netns("a")
    with capture(netns, "lo", "icmp") as wire:
        netns.ping("127.0.0.1")
    assert [packet.decoded.flags for packet in wire] == ["echo request", "echo reply"]


def test_a_saved_capture_is_read_by_tcpdump(pair, tmp_path):
    client, server = pair
    with capture(server, "veth-server", "icmp") as wire:
        client.ping("10.0.0.12", count=2)
    wire.save(tmp_path / "x.pcap")
    text = subprocess.run(["tcpdump", "-nr", tmp_path / "x.pcap"], capture_output=True, text=True, check=True).stdout
    assert text.count("ICMP echo request") == 2


def test_a_wrong_filter_says_so_before_the_capture(pair):
    _, server = pair
    with pytest.raises(InvalidInput, match="filter 'no such thing'"):
        capture(server, "veth-server", "no such thing")
    with pytest.raises(NotFound, match="veth-server"):
        capture(server, "eth9")


# -- every interface of a lab ----------------------------------------------------------


@pytest.fixture
def bridged(lab):
    """Two clients on a bridge of a node."""
    node = lab.netns("node", forward=True)
    node.run("ip", "link", "add", "br0", "type", "bridge")
    node.run("ip", "link", "set", "br0", "up")
    for number in (1, 2):
        client = lab.netns(f"c{number}")
        inside = End(netns=client, name="eth0", address=f"10.0.0.{number}/24")
        lab.veth(inside, End(netns=node, name=f"port{number}"))
        node.run("ip", "link", "set", f"port{number}", "master", "br0")
    assert lab["c1"].ping("10.0.0.2").ok
    return lab


def test_a_packet_is_seen_by_every_interface_of_the_lab_in_the_order_of_its_way(bridged):
    with bridged.capture("icmp[icmptype] == icmp-echo") as wire:
        bridged["c1"].ping("10.0.0.2")
    way = [(one.netns, one.interface, one.outgoing) for one in wire]
    assert way == [
        ("c1", "eth0", True), ("node", "port1", False), ("node", "port2", True), ("c2", "eth0", False),
    ]  # fmt: skip
    assert [one.time_ns for one in wire] == sorted(one.time_ns for one in wire)
    assert "node/port1" in str(wire)
    assert "every interface of the lab" in wire._repr_html_()


def test_an_interface_made_while_the_lab_is_watched_is_seen_too(lab):
    netns = lab.netns("a")
    with lab.capture("icmp") as wire:
        lab.veth(End(netns=netns, name="new", address="10.0.0.1/24"), End(netns=lab.netns("b"), name="other"))
        netns.ping("10.0.0.2", timeout_s=0.2)
        netns.run("ip", "link", "add", "second", "type", "bridge")
        netns.run("ip", "addr", "add", "10.0.1.1/24", "dev", "second")
        netns.run("ip", "link", "set", "second", "up")
        netns.run("ip", "neigh", "add", "10.0.1.2", "lladdr", "02:00:00:00:00:01", "dev", "second")
        netns.ping("10.0.1.2", timeout_s=0.2)
    assert {one.interface for one in wire} == {"second"}


def tshark(path, *fields):
    words = [word for one in fields for word in ("-e", one)]
    done = subprocess.run(
        ["tshark", "-n", "-r", path, "-T", "fields", "-E", "separator=|", "-E", "occurrence=f", *words],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [line.split("|") for line in done.stdout.splitlines()]


def test_tshark_reads_every_packet_of_a_saved_capture_as_we_do(bridged, tmp_path):
    """Interface, direction, time, addresses, ports, TTL and length, of ARP, ICMP, TCP, UDP and what is larger."""
    client, server = bridged["c1"], bridged["c2"]
    server.listen(80)
    with bridged.capture() as wire:
        client.run("ip", "neigh", "flush", "all")
        client.fetch("http://10.0.0.2/")
        client.ping("10.0.0.2", count=2)
        client.connect("10.0.0.2", 9, protocol="udp")
        client.run("ping", "-c1", "-s", "4000", "10.0.0.2")
    path = tmp_path / "lab.pcapng"
    wire.save(path)
    rows = tshark(
        path, "frame.interface_name", "frame.packet_flags_direction", "frame.time_epoch", "frame.len", "eth.src",
        "eth.dst", "ip.src", "ip.dst", "ip.ttl", "tcp.srcport", "tcp.dstport", "udp.srcport", "udp.dstport",
    )  # fmt: skip
    assert len(rows) == len(wire) > 40
    for row, one in zip(rows, wire, strict=True):
        what = one.decoded
        assert row[0] == f"{one.netns}/{one.interface}"
        assert int(row[1], 0) == (2 if one.outgoing else 1)
        assert int(row[2].replace(".", "")) == one.time_ns
        assert (int(row[3]), row[4], row[5]) == (one.length, what.source_mac, what.destination_mac)
        if row[6]:
            assert (row[6], row[7], int(row[8])) == (what.source, what.destination, what.ttl)
        if what.protocol in ("tcp", "udp"):
            ports = row[9:11] if what.protocol == "tcp" else row[11:]
            assert [int(text) for text in ports] == [what.source_port, what.destination_port]
    seen = {one.decoded.protocol for one in wire}
    assert seen >= {"arp", "icmp", "tcp", "udp"}


def test_packets_that_found_no_room_are_counted(pair):
    client, server = pair
    ring = PacketRing(server)
    try:
        client.run("ping", "-q", "-i", "0.002", "-c", "60", "-s", "60000", "10.0.0.12")
        kept = sum(one.length for one in ring.read())
        assert kept < 2 << 20
        assert ring.lost > 0
    finally:
        ring.close()


def test_no_socket_is_left_behind_however_the_block_ends(bridged):
    def sockets():
        found = 0
        for one in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the listing's own
                found += str(one.readlink()).startswith("socket:")
        return found

    before = sockets()
    with pytest.raises(KeyboardInterrupt), bridged.capture():
        raise KeyboardInterrupt
    with pytest.raises(InvalidInput, match="nothing of the kind"):
        bridged.capture("nothing of the kind")
    with pytest.raises(InvalidInput, match="no netns"):
        bridged.capture(netns=[])
    assert sockets() == before
