"""Captures: what passed an interface, in order, and nothing else."""

from __future__ import annotations

import subprocess

import pytest

from k8snet import capture
from k8snet.errors import InvalidInput, NotFound


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
