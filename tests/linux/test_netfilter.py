"""Rules, sets and connection tracking, in both backends of iptables and in nft."""

from __future__ import annotations

import pytest

from k8snet.errors import CommandFailed


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_an_iptables_rule_stops_packets(pair, backend):
    client, server = pair
    server.iptables("-A INPUT -p icmp -j DROP", backend=backend)
    assert client.ping("10.0.0.12", timeout_s=0.3).outcome == "timeout"
    assert "-A INPUT -p icmp -j DROP" in server.iptables_save(backend=backend)


def test_iptables_restore_loads_all_or_none(pair):
    _, server = pair
    server.iptables("-A INPUT -p icmp -j ACCEPT")
    before = server.iptables_save()
    with pytest.raises(CommandFailed, match=r"line 3|nonsense"):
        server.iptables_restore("*filter\n-A INPUT -p tcp -j ACCEPT\n-A INPUT -j nonsense\nCOMMIT\n")
    assert [line for line in server.iptables_save().splitlines() if line[0] != "#"] == [
        line for line in before.splitlines() if line[0] != "#"
    ]


def test_nft_takes_commands_and_scripts(pair):
    client, server = pair
    server.nft("add table inet t")
    server.nft("table inet t {\n chain in { type filter hook input priority 0; ip protocol icmp counter drop; }\n}")
    assert client.ping("10.0.0.12", timeout_s=0.3).outcome == "timeout"
    kinds = [next(iter(entry)) for entry in server.nft_list()]
    assert kinds.count("rule") == 1


def test_a_rule_can_match_a_set(pair):
    client, server = pair
    server.ipset("create blocked hash:ip")
    server.ipset("add blocked 10.0.0.11")
    server.iptables("-A INPUT -m set --match-set blocked src -j DROP")
    assert client.ping("10.0.0.12", timeout_s=0.3).outcome == "timeout"
    server.ipset("del blocked 10.0.0.11")
    assert client.ping("10.0.0.12").ok


def test_a_connection_is_tracked_with_both_directions(pair):
    client, server = pair
    server.iptables("-A INPUT -m conntrack --ctstate NEW -j ACCEPT")
    server.listen(80)
    page = client.fetch("http://10.0.0.12/")
    (found,) = server.conntrack(protocol="tcp")
    assert str(found.original) == f"{page.client_sees[0]} -> 10.0.0.12:80"
    assert str(found.reply) == f"10.0.0.12:80 -> {page.client_sees[0]}"
    assert "ASSURED" in found.flags
    assert server.delete_conntrack(destination="10.0.0.12") == 1
    assert server.conntrack() == []
