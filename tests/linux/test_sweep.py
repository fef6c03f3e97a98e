"""Many probes at the same time, each with an outcome of its own."""

from __future__ import annotations

import pytest

from k8snet.errors import InvalidAddress, InvalidInput
from k8snet.linux import sweep as module
from k8snet.linux.run import wait_until
from k8snet.linux.sweep import Target, sweep, sweep_waves


def target(protocol, port=0, address="10.0.0.12"):
    return Target(protocol=protocol, address=address, port=port)


def test_each_target_has_its_own_outcome_in_the_order_of_the_targets(pair):
    client, server = pair
    server.listen(80)
    server.listen(53, protocol="udp")
    client.add_route("192.0.2.0/24", via="10.0.0.12")  # where the server says no
    client.add_route("198.51.100.0/24", kind="unreachable")
    targets = [
        target("tcp", 80), target("udp", 53), target("icmp"), target("tcp", 81), target("udp", 54),
        target("tcp", 80, "198.51.100.1"), target("icmp", 0, "10.0.0.99"),
    ]  # fmt: skip
    found = sweep({client: targets}, timeout_s=0.5)[client]
    assert [one.outcome for one in found] == ["ok", "ok", "ok", "refused", "refused", "unreachable", "timeout"]
    assert [one.target for one in found] == targets


def test_the_server_tells_which_address_it_saw(pair):
    client, server = pair
    server.listen(80)
    server.listen(53, protocol="udp")
    for answer in sweep({client: [target("tcp", 80), target("udp", 53)]})[client]:
        assert (answer.client, answer.seen, answer.translated) == ("10.0.0.11", "10.0.0.11", False)
    server.nginx(port=8080)
    assert sweep({client: [target("tcp", 8080)]})[client][0].seen == "10.0.0.11"


def test_an_address_that_was_translated_on_the_way_is_seen(lab, pair):
    """The rule that a probe must find out: the server believes in another client."""
    client, server = pair
    server.listen(80)
    client.add_address("veth-client", "10.0.0.13/24")
    client.iptables("-t nat -A POSTROUTING -p tcp -j SNAT --to-source 10.0.0.13")
    answer = sweep({client: [target("tcp", 80)]})[client][0]
    assert (answer.client, answer.seen, answer.translated) == ("10.0.0.11", "10.0.0.13", True)


def test_silence_costs_one_time_out_and_not_many(pair):
    """All that are silent wait together: the packets are on their way at the same time."""
    client, server = pair
    server.iptables("-A INPUT -p tcp -j DROP")
    found = sweep({client: [target("tcp", port) for port in range(1000, 1100)]}, timeout_s=0.4)[client]
    assert {one.outcome for one in found} == {"timeout"}


def test_a_server_that_says_nothing_is_reached_all_the_same(pair):
    client, server = pair
    server.popen("socat", "-u", "TCP-LISTEN:70,fork", "/dev/null")
    wait_until(lambda: client.connect("10.0.0.12", 70).ok, what="socat")
    answer = sweep({client: [target("tcp", 70)]}, timeout_s=0.3)[client][0]
    assert (answer.outcome, answer.seen) == ("ok", None)


def test_both_families_are_swept(lab):
    from k8snet import End, Lab

    lab.close()
    with Lab("test", ipv6=True) as six:
        a, b = six.netns("a"), six.netns("b")
        six.veth(End(netns=a, name="x", address="fd00::1/64"), End(netns=b, name="y", address="fd00::2/64"))
        b.listen(80, address="::")
        b.listen(53, protocol="udp", address="::")
        wait_until(lambda: a.ping("fd00::2", timeout_s=0.1).ok, what="IPv6 on a link that has just come up")
        found = sweep({a: [target(*one, "fd00::2") for one in (("tcp", 80), ("udp", 53), ("icmp", 0))]})[a]
        assert [one.outcome for one in found] == ["ok"] * 3
        assert [one.seen for one in found] == ["fd00::1", "fd00::1", None]


@pytest.mark.parametrize(
    ("bad", "error", "said"),
    [
        (target("sctp", 80), InvalidInput, "protocol 'sctp'"),
        (target("tcp", 0), InvalidInput, "port 0"),
        (target("tcp", 80, "web"), InvalidAddress, "'web' is not an IPv4 or IPv6 address"),
    ],
)
def test_a_target_that_cannot_be_is_refused_before_any_packet(pair, bad, error, said):
    with pytest.raises(error, match=said):
        sweep({pair[0]: [bad]})


def test_waves_go_one_after_the_other_and_answers_come_in_their_order(pair):
    """A wave that is silent does not hold up the next one, and what answers late is still heard."""
    client, server = pair
    server.listen(80)
    server.iptables("-A INPUT -p tcp --dport 81 -j DROP")
    heard = []
    waves = [{client: [target("tcp", 81), target("tcp", 80)]}, {server: [target("tcp", 80, "10.0.0.11")]},
             {client: [target("icmp")], server: [target("tcp", 81, "10.0.0.11")]}]  # fmt: skip
    found = sweep_waves(waves, timeout_s=0.5, after=heard.append)
    assert [[one.outcome for one in answers] for wave in found for answers in wave.values()] == [
        ["timeout", "ok"], ["refused"], ["ok"], ["refused"]
    ]  # fmt: skip
    assert heard == [0, 1]


def test_with_few_sockets_left_a_sweep_takes_its_time_and_misses_nothing(pair, monkeypatch):
    client, server = pair
    server.listen(80)
    server.iptables("-A INPUT -p tcp --dport 81 -j DROP")
    monkeypatch.setattr(module, "IN_FLIGHT", 3)
    targets = [target("tcp", 80 + number % 2) for number in range(10)]
    found = sweep({client: targets}, timeout_s=0.2)[client]
    assert [one.outcome for one in found] == ["ok", "timeout"] * 5
