"""Probes tell refused, timeout and unreachable apart, and who said so."""

from __future__ import annotations

import pytest

from k8snet import End
from k8snet.errors import PortTaken


def test_ping_measures_the_round_trip(pair):
    client, _ = pair
    result = client.ping("10.0.0.12", count=3)
    assert (result.ok, result.sent, result.received) == (True, 3, 3)
    assert 0 < result.rtt_ms < 1000


def test_a_port_where_nobody_listens_is_refused(pair):
    client, _ = pair
    assert client.connect("10.0.0.12", 81).outcome == "refused"
    assert client.connect("10.0.0.12", 81, protocol="udp").outcome == "refused"


def test_a_packet_that_is_dropped_is_silence(pair):
    client, server = pair
    server.iptables("-A INPUT -p tcp --dport 80 -j DROP")
    server.listen(80)
    assert client.connect("10.0.0.12", 80, timeout_s=0.3).outcome == "timeout"


def test_no_route_is_known_at_once(pair):
    client, _ = pair
    result = client.ping("192.0.2.1")
    assert (result.outcome, result.reason, result.reporter) == ("unreachable", "network is unreachable", None)


def test_a_neighbour_that_is_not_there_is_unreachable(pair):
    """ARP is given up after three questions, one a second."""
    client, _ = pair
    assert client.connect("10.0.0.99", 80).outcome == "unreachable"


def test_an_end_without_carrier_drops_what_its_owner_sends(pair):
    """Where the neighbour is known no ARP is lost first: the queue itself refuses the packet, with ENOBUFS."""
    client, server = pair
    assert client.ping("10.0.0.12").ok
    server.set_down("veth-server")
    pinged = client.ping("10.0.0.12", timeout_s=0.3)
    for result in (pinged, client.connect("10.0.0.12", 53, protocol="udp", timeout_s=0.3)):
        assert (result.outcome, result.ok) == ("timeout", False)
        assert "no carrier" in result.reason
    assert client.connect("10.0.0.12", 80, timeout_s=0.3).outcome == "timeout"


def test_the_router_that_says_no_is_named(lab):
    client, router, server = lab.netns("client"), lab.netns("router", forward=True), lab.netns("server")
    lab.veth(End(netns=client, name="e", address="10.0.1.2/24"), End(netns=router, name="c", address="10.0.1.1/24"))
    lab.veth(End(netns=server, name="e", address="10.0.2.2/24"), End(netns=router, name="s", address="10.0.2.1/24"))
    client.add_route("default", via="10.0.1.1")
    result = client.ping("192.0.2.1")
    assert (result.outcome, result.reporter) == ("unreachable", "10.0.1.1")
    router.iptables("-A FORWARD -p tcp -j REJECT --reject-with icmp-admin-prohibited")
    blocked = client.connect("10.0.2.2", 80)
    assert (blocked.outcome, blocked.reporter) == ("unreachable", "10.0.1.1")


def test_fetch_shows_both_views_of_a_translated_connection(lab):
    client, router, server = lab.netns("client"), lab.netns("router", forward=True), lab.netns("server")
    lab.veth(End(netns=client, name="e", address="10.0.1.2/24"), End(netns=router, name="c", address="10.0.1.1/24"))
    lab.veth(End(netns=server, name="e", address="10.0.2.2/24"), End(netns=router, name="s", address="10.0.2.1/24"))
    client.add_route("default", via="10.0.1.1")
    server.add_route("default", via="10.0.2.1")
    router.iptables("-t nat -A PREROUTING -d 10.0.1.1 -p tcp --dport 8080 -j DNAT --to-destination 10.0.2.2:80")
    server.nginx(body="hello from nginx")
    page = client.fetch("http://10.0.1.1:8080/")
    assert page.body.strip() == "hello from nginx"
    assert page.client_sees[1] == "10.0.1.1:8080"
    assert page.server_sees[1] == "10.0.2.2:80"
    assert page.client_sees[0] == page.server_sees[0]
    connection = next(one for one in router.conntrack(protocol="tcp") if one.original.destination_port == 8080)
    assert (connection.dnat, connection.snat, connection.reply.source) == (True, False, "10.0.2.2")


def test_listeners_of_many_netns_run_in_one_process(lab):
    for number in range(5):
        netns = lab.netns(f"n{number}")
        netns.listen(80)
        assert netns.fetch("http://127.0.0.1/").body.startswith(f'{{"name": "n{number}"')


def test_udp_listeners_answer_from_the_address_that_was_asked(pair):
    client, server = pair
    server.listen(53, protocol="udp")
    result = client.connect("10.0.0.12", 53, protocol="udp")
    assert result.ok
    assert "saw 10.0.0.11:" in result.answer


def test_a_port_can_be_had_once(pair):
    _, server = pair
    server.listen(80)
    with pytest.raises(PortTaken, match="tcp port 80"):
        server.listen(80)
    with pytest.raises(PortTaken, match="tcp port 80"):
        server.nginx()
    server.listen(80, protocol="udp")


def test_a_stopped_listener_frees_its_port(pair):
    client, server = pair
    with server.listen(80):
        assert client.connect("10.0.0.12", 80).ok
    assert client.connect("10.0.0.12", 80).outcome == "refused"
    with server.listen(80):
        assert client.connect("10.0.0.12", 80).ok


def test_a_large_packet_that_must_not_be_cut_is_refused_by_the_mtu(pair):
    client, server = pair
    client.set_mtu("veth-client", 1400)
    server.set_mtu("veth-server", 1400)
    assert client.ping("10.0.0.12", size=1372, fragment=False).ok
    assert client.ping("10.0.0.12", size=1373, fragment=False).outcome == "unreachable"
    assert client.ping("10.0.0.12", size=3000).ok
