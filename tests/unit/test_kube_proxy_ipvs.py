"""kube-proxy in IPVS mode: what is rendered, what changes, and what goes over the wire; no kernel is asked."""

from __future__ import annotations

import json
import struct
import sys
from itertools import pairwise

import pytest
from pyroute2.netlink.generic.ipvs import ipvsmsg

from k8snet import cli
from k8snet.controllers.kube_proxy.ipvs import Proxier, render
from k8snet.controllers.kube_proxy.proxier import MODES, make
from k8snet.controllers.kube_proxy.service_ports import Endpoint, ProxyConfig, ServicePort
from k8snet.errors import InvalidInput
from k8snet.linux import ipvs
from k8snet.linux.ipvs import Change, RealServer, VirtualServer, changes, parse

CONFIG = {"node_name": "node", "node_ips": ("127.0.0.1", "172.18.0.2", "fd00:18::2"), "cluster_cidr": "10.244.0.0/16"}


def endpoint(number, **more):
    return Endpoint(**{"address": f"10.244.1.{number}", "port": 8080, **more})


def port(*endpoints, **more):
    given = {"cluster_ip": "10.96.0.20", "port": 80, "protocol": "TCP", "name": "web", **more}
    return ServicePort(namespace="shop", port_name="http", endpoints=endpoints, **given)


def made(*ports, **config):
    return render(ports, ProxyConfig(**{**CONFIG, **config}))


def reals(program):
    """Return the last numbers of the real servers' addresses, by virtual server."""
    return {
        f"{one.address}:{one.port}": [int(real.address.rpartition(".")[2]) for real in one.real_servers]
        for one in program.virtual_servers
    }  # fmt: skip


def members(program):
    return {name: list(found) for name, found in program.sets.items() if found}


def rules(program, table, chain):
    return [rule.removeprefix(f"-A {chain} ") for rule in program.tables[table] if rule.startswith(f"-A {chain} ")]


EVERYWHERE = {"node_port": 30080, "external_ips": ("192.0.2.7",), "load_balancer_ips": ("198.51.100.7",)}

# -- who serves --------------------------------------------------------------------------


def test_each_address_of_a_service_has_a_virtual_server_and_is_bound_unless_the_node_has_it():
    program = made(port(endpoint(7), endpoint(8), **EVERYWHERE))
    assert list(reals(program)) == ["10.96.0.20:80", "192.0.2.7:80", "198.51.100.7:80", "172.18.0.2:30080"]
    assert all(found == [7, 8] for found in reals(program).values())
    assert program.addresses == ("10.96.0.20", "192.0.2.7", "198.51.100.7")
    assert members(program)["KUBE-IPVS-IPS"] == ["10.96.0.20", "192.0.2.7", "198.51.100.7"]
    own = made(port(endpoint(7), external_ips=("172.18.0.2",)))
    assert own.addresses == ("10.96.0.20",)
    assert "172.18.0.2:80" in reals(own)


def test_policy_local_is_for_what_comes_from_outside_and_falls_back_on_all_endpoints():
    """As upstream has it (pull request 97081): else the node's own pods would reach nobody."""
    ends = (endpoint(7, local=True), endpoint(8))
    found = reals(made(port(*ends, **EVERYWHERE, external_local=True)))
    assert found.pop("10.96.0.20:80") == [7, 8]
    assert set(map(tuple, found.values())) == {(7,)}
    nobody = reals(made(port(endpoint(8), **EVERYWHERE, external_local=True)))
    assert set(map(tuple, nobody.values())) == {(8,)}


def test_internal_policy_local_has_this_nodes_endpoints_or_none():
    ends = (endpoint(7, local=True), endpoint(8))
    assert reals(made(port(*ends, internal_local=True))) == {"10.96.0.20:80": [7]}
    assert reals(made(port(endpoint(8), internal_local=True))) == {"10.96.0.20:80": []}
    both = reals(made(port(*ends, internal_local=True, node_port=30080)))
    assert both == {"10.96.0.20:80": [7], "172.18.0.2:30080": [7, 8]}


def test_terminating_endpoints_serve_only_where_no_ready_one_does():
    leaving = endpoint(8, ready=False, serving=True, terminating=True)
    dead = endpoint(9, ready=False, serving=False, terminating=True)
    assert reals(made(port(endpoint(7), leaving, dead))) == {"10.96.0.20:80": [7]}
    assert reals(made(port(leaving, dead))) == {"10.96.0.20:80": [8]}


def test_session_affinity_is_the_persistence_of_every_virtual_server():
    assert {one.persistence_s for one in made(port(**EVERYWHERE, affinity_s=90)).virtual_servers} == {90}
    assert {one.persistence_s for one in made(port(**EVERYWHERE)).virtual_servers} == {None}


@pytest.mark.parametrize("scheduler", ["rr", "wrr", "lc", "sh"])
def test_the_scheduler_is_the_one_that_was_asked_for(scheduler):
    assert {one.scheduler for one in made(port(**EVERYWHERE), ipvs_scheduler=scheduler).virtual_servers} == {scheduler}


def test_another_scheduler_is_refused():
    with pytest.raises(InvalidInput, match="IPVS scheduler 'random': one of rr, wrr, lc, sh"):
        made(ipvs_scheduler="random")


@pytest.mark.parametrize(
    ("networks", "taking"),
    [
        ((), ["172.18.0.2", "172.19.0.2"]),
        (("172.19.0.0/16", "127.0.0.0/8"), ["172.19.0.2"]),
        (("0.0.0.0/0",), ["172.18.0.2", "172.19.0.2"]),
        (("fd00::/8",), ["172.18.0.2", "172.19.0.2"]),
        (("10.0.0.0/8",), []),
    ],
)
def test_node_ports_are_served_on_the_addresses_that_were_named_and_never_on_localhost(networks, taking):
    ips = ("127.0.0.1", "172.18.0.2", "172.19.0.2", "fd00:18::2")
    program = made(port(endpoint(7), node_port=30080), node_ips=ips, nodeport_addresses=networks)
    assert sorted(reals(program)) == ["10.96.0.20:80", *(f"{one}:30080" for one in taking)]
    assert ("KUBE-NODE-PORT-TCP" in members(program)) == bool(taking)


def test_of_two_services_that_claim_one_address_and_port_the_first_has_it():
    one = port(endpoint(7), name="a", external_ips=("192.0.2.7",))
    two = port(endpoint(8), name="b", cluster_ip="10.96.0.21", external_ips=("192.0.2.7",))
    assert reals(made(one, two))["192.0.2.7:80"] == [7]


# -- sets ----------------------------------------------------------------------------------


def test_only_endpoints_of_this_node_can_call_themselves():
    assert members(made(port(endpoint(7, local=True), endpoint(8))))["KUBE-LOOP-BACK"] == [
        "10.244.1.7,tcp:8080,10.244.1.7"
    ]


def test_what_keeps_the_clients_address_is_in_the_sets_of_policy_local_too():
    found = members(made(port(**EVERYWHERE, external_local=True, health_check_node_port=32000)))
    assert found["KUBE-NODE-PORT-TCP"] == found["KUBE-NODE-PORT-LOCAL-TCP"] == ["30080"]
    assert found["KUBE-LOAD-BALANCER"] == found["KUBE-LOAD-BALANCER-LOCAL"] == ["198.51.100.7,tcp:80"]
    assert found["KUBE-EXTERNAL-IP-LOCAL"] == ["192.0.2.7,tcp:80"]
    assert "KUBE-EXTERNAL-IP" not in found
    assert found["KUBE-HEALTH-CHECK-NODE-PORT"] == ["32000"]
    other = members(made(port(**EVERYWHERE)))
    assert not [name for name in other if "LOCAL" in name]
    assert other["KUBE-EXTERNAL-IP"] == ["192.0.2.7,tcp:80"]


def test_node_ports_of_sctp_are_listed_with_each_address():
    program = made(port(node_port=30080, protocol="SCTP", external_local=True), node_ips=("172.18.0.2", "172.19.0.2"))
    wanted = ["172.18.0.2,sctp:30080", "172.19.0.2,sctp:30080"]
    assert members(program)["KUBE-NODE-PORT-SCTP-HASH"] == wanted
    assert members(program)["KUBE-NODE-PORT-LOCAL-SCTP-HASH"] == wanted


def test_source_ranges_without_the_node_bar_the_node_and_with_it_let_the_balancers_address_call():
    ranged = {"load_balancer_ips": ("198.51.100.7",)}
    without = made(port(**ranged, source_ranges=("203.0.113.0/25",)))
    assert members(without)["KUBE-LOAD-BALANCER-FW"] == ["198.51.100.7,tcp:80"]
    assert members(without)["KUBE-LOAD-BALANCER-SOURCE-CIDR"] == ["198.51.100.7,tcp:80,203.0.113.0/25"]
    assert "KUBE-LOAD-BALANCER-SOURCE-IP" not in members(without)
    assert rules(without, "filter", "KUBE-IPVS-OUT-FILTER") == [
        "-s 198.51.100.7 -m ipvs --vaddr 198.51.100.7 --vproto tcp --vport 80 -j DROP"
    ]
    with_it = made(port(**ranged, source_ranges=("203.0.113.0/25", "172.18.0.0/16")))
    assert members(with_it)["KUBE-LOAD-BALANCER-SOURCE-IP"] == ["198.51.100.7,tcp:80,198.51.100.7"]
    assert rules(with_it, "filter", "KUBE-IPVS-OUT-FILTER") == []


def test_a_source_range_of_everybody_is_two_halves():
    """A set of this type refuses a network of length 0, and so nobody would be let in."""
    program = made(port(load_balancer_ips=("198.51.100.7",), source_ranges=("0.0.0.0/0",)))
    assert members(program)["KUBE-LOAD-BALANCER-SOURCE-CIDR"] == [
        "198.51.100.7,tcp:80,0.0.0.0/1", "198.51.100.7,tcp:80,128.0.0.0/1",
    ]  # fmt: skip


# -- rules ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({}, "KUBE-CLUSTER-IP dst,dst ! -s 10.244.0.0/16"),
        ({"masquerade_all": True}, "KUBE-CLUSTER-IP dst,dst"),
        ({"cluster_cidr": None}, "KUBE-CLUSTER-IP src,dst"),
    ],
)
def test_who_is_masqueraded_on_the_way_to_a_cluster_ip(config, match):
    found = rules(made(port(), **config), "nat", "KUBE-SERVICES")
    assert sum(rule.endswith(f"--match-set {match} -j KUBE-MARK-MASQ") for rule in found) == 1


def test_a_set_without_members_is_not_looked_into_and_every_rule_names_a_set_or_chain_that_is_there():
    for program in (made(), made(port()), made(port(**EVERYWHERE, external_local=True))):
        text = program.rules
        assert "--match-set KUBE-NODE-PORT-LOCAL-UDP" not in text
        local = "KUBE-EXTERNAL-IP-LOCAL"
        assert (f"{local} dst,dst -m physdev" in text) == (local in members(program))
        words = text.replace("\n", " ").split()
        named = {word for before, word in pairwise(words) if before == "--match-set"}
        assert named <= program.sets.keys()
        declared = {line[1:].split()[0] for line in text.splitlines() if line.startswith(":")}
        targets = {word for before, word in pairwise(words) if before == "-j"}
        assert {one for one in targets if one.startswith("KUBE-")} <= declared


def test_the_mark_and_random_ports_are_as_configured():
    text = made(port(), masquerade_bit=3, random_fully=True).rules
    assert "--or-mark 0x8" in text
    assert "0x4000" not in text
    assert "-j MASQUERADE --random-fully" in text


def test_an_ipv6_proxier_has_ipv6_only():
    six = port(
        endpoint(0, address="fd00:10:244:1::7"), cluster_ip="fd00:10:96::20", node_port=30080,
        load_balancer_ips=("2001:db8::7",), source_ranges=("fd00:18::/64",),
    )  # fmt: skip
    program = made(six, family="v6", cluster_cidr="fd00:10:244::/48")
    assert [one.address for one in program.virtual_servers] == ["fd00:10:96::20", "2001:db8::7", "fd00:18::2"]
    assert all(name.startswith("KUBE-6-") for name in program.sets)
    assert program.sets["KUBE-6-LOAD-BALANCER-SOURCE-CID"] == ("2001:db8::7,tcp:80,fd00:18::/64",)
    assert "-A KUBE-SERVICES -s ::1/128 -j RETURN" in program.tables["nat"]
    assert " KUBE-CLUSTER-IP " not in program.rules


# -- what changes --------------------------------------------------------------------------


def server(*numbers, **more):
    found = tuple(RealServer(address=f"10.244.1.{number}", port=8080) for number in numbers)
    return VirtualServer(**{"address": "10.96.0.20", "port": 80, "protocol": "TCP", "real_servers": found, **more})


def told(before, after):
    return list(map(str, changes(before, after)))


def test_changes_are_what_ipvsadm_would_be_told():
    at = "-t 10.96.0.20:80"
    assert told([], [server(7)]) == [f"-A {at} -s rr", f"-a {at} -r 10.244.1.7:8080 -m -w 1"]
    turn = [f"-a {at} -r 10.244.1.9:8080 -m -w 1", f"-d {at} -r 10.244.1.7:8080"]
    assert told([server(7, 8)], [server(8, 9)]) == turn
    assert told([server(7)], [server(7, scheduler="lc", persistence_s=60)]) == [f"-E {at} -s lc -p 60"]
    drained = RealServer(address="10.244.1.7", port=8080, weight=0)
    assert told([server(7)], [server(real_servers=(drained,))]) == [f"-e {at} -r 10.244.1.7:8080 -m -w 0"]
    assert told([server(7)], []) == [f"-D {at}"]
    assert told([server(7, 8)], [server(8, 7)]) == []
    six = server(address="fd00::20", protocol="UDP")
    assert told([six], [server(address="fd00::20", protocol="SCTP")]) == [
        "-A --sctp-service [fd00::20]:80 -s rr", "-D -u [fd00::20]:80",
    ]  # fmt: skip


def decoded(monkeypatch, steps):
    """Return what the kernel would get, as pyroute2 reads it."""
    sent = []

    class Socket:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def bind(self, _):
            pass

        settimeout = bind

        def send(self, data):
            sent.append(data)

        def recv(self, _):
            count, rest = -1, sent[-1]
            while rest:
                count, rest = count + 1, rest[struct.unpack_from("=I", rest)[0] :]
            return struct.pack("=IHHIIi", 20, 2, 0, count, 0, 0)

    monkeypatch.setattr(ipvs, "_family", lambda: 42)
    monkeypatch.setattr(ipvs.socket, "socket", lambda *_: Socket())
    ipvs._send(steps)
    found = []
    for data in sent:
        rest = data
        while rest:
            length = struct.unpack_from("=I", rest)[0]
            message = ipvsmsg(rest[:length])
            message.decode()
            found.append(message)
            rest = rest[length:]
    return found, len(sent)


def fields(message, kind):
    inner = message.get_attr(f"IPVS_CMD_ATTR_{kind}")
    prefix = "IPVS_SVC_ATTR_" if kind == "SERVICE" else "IPVS_DEST_ATTR_"
    return {name.removeprefix(prefix): value for name, value in inner["attrs"]}


def test_a_virtual_and_a_real_server_are_encoded_as_the_kernel_reads_them(monkeypatch):
    (new, real, six), sends = decoded(monkeypatch, [
        Change("-A", server(persistence_s=60)), Change("-a", server(), server(7).real_servers[0]),
        Change("-A", server(address="fd00::20", scheduler="lc")),
    ])  # fmt: skip
    assert sends == 1
    assert [one["cmd"] for one in (new, real, six)] == [1, 5, 1]
    assert [one["header"]["flags"] for one in (new, real, six)] == [1, 1, 5]  # the last asks for an answer
    assert fields(new, "SERVICE") == {
        "AF": 2, "PROTOCOL": 6, "ADDR": "10.96.0.20", "PORT": 80, "SCHED_NAME": "rr", "TIMEOUT": 60,
        "FLAGS": {"flags": 1, "mask": 0xFFFFFFFF}, "NETMASK": "255.255.255.255",
    }  # fmt: skip
    assert fields(real, "SERVICE") == {"AF": 2, "PROTOCOL": 6, "ADDR": "10.96.0.20", "PORT": 80}
    assert {**fields(real, "DEST"), "ADDR": ""} == {
        "ADDR": "", "PORT": 8080, "ADDR_FAMILY": 2, "FWD_METHOD": 0, "WEIGHT": 1, "U_THRESH": 0, "L_THRESH": 0
    }  # fmt: skip
    assert fields(six, "SERVICE")["ADDR"] == "fd00::20"
    assert fields(six, "SERVICE")["NETMASK"] == "128.0.0.0"  # a prefix length in the machine's byte order
    assert fields(six, "SERVICE")["FLAGS"]["flags"] == 0


def test_many_changes_go_in_few_sends(monkeypatch):
    messages, sends = decoded(monkeypatch, [Change("-A", server(port=number)) for number in range(1, 1202)])
    assert (len(messages), sends) == (1201, 3)
    assert [number for number, one in enumerate(messages) if one["header"]["flags"] == 5] == [499, 999, 1200]


PROC = """IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600014:0050 rr persistent 2700000 FFFFFFFF
  -> 0AF40108:1F90      Masq    1      2          3
  -> 0AF40107:1F90      Masq    0      0          0
UDP  [fd00:0010:0096:0000:0000:0000:0000:0014]:0035 lc
  -> [fd00:0010:0244:0001:0000:0000:0000:0007]:14E9      Masq    1      0          0
TCP  AC120002:7580 rr
"""


def test_what_the_kernel_lists_is_read_back():
    tcp, node, udp = parse(PROC, {("TCP", "10.96.0.20", 80): 10800})
    assert tcp == server(persistence_s=10800, real_servers=(
        RealServer(address="10.244.1.7", port=8080, weight=0), RealServer(address="10.244.1.8", port=8080),
    ))  # fmt: skip
    assert [real.connections for real in tcp.real_servers] == [0, 5]
    assert node == server(address="172.18.0.2", port=30080)
    assert (udp.address, udp.port, udp.scheduler) == ("fd00:10:96::14", 53, "lc")
    assert udp.real_servers[0].address == "fd00:10:244:1::7"
    assert parse("", {}) == []


def test_the_mode_is_one_of_those_that_there_are():
    assert "ipvs" in MODES
    assert isinstance(make("ipvs", ProxyConfig(**CONFIG)), Proxier)


# -- the command ---------------------------------------------------------------------------


@pytest.fixture
def printed(tmp_path, monkeypatch, capsys):
    """Run `k8snet proxy render --mode ipvs` in this process, and return what it printed as a value."""

    def ask(*arguments):
        file = tmp_path / "shop.json"
        service = {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.20", "type": "NodePort", "sessionAffinity": "ClientIP",
                     "ports": [{"name": "http", "port": 80, "nodePort": 30080}]},
        }  # fmt: skip
        slices = {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "endpoints": [{"addresses": ["10.244.1.2"], "nodeName": "node1"}],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        }  # fmt: skip
        file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": [service, slices]}))
        words = ["k8snet", "proxy", "render", "--mode", "ipvs", "-f", str(file), "--node-name", "node1"]
        monkeypatch.setattr(sys, "argv", [*words, "--node-ip", "172.18.0.1", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert (ended.value.code, err) == (0, "")
        return json.loads(out)

    yield ask
    import gc

    gc.enable()


def test_the_command_prints_one_json_object(printed):
    found = printed("--cluster-cidr", "10.244.0.0/16")
    assert list(found) == [
        "family", "dummyInterface", "addresses", "virtualServers", "ipsets", "iptables", "sysctls",
    ]  # fmt: skip
    assert found["virtualServers"][0] == {
        "address": "10.96.0.20", "port": 80, "protocol": "TCP", "scheduler": "rr", "persistence_s": 10800,
        "realServers": [{"address": "10.244.1.2", "port": 8080, "weight": 1}],
    }  # fmt: skip
    assert found["addresses"] == ["10.96.0.20"]
    assert found["ipsets"]["KUBE-CLUSTER-IP"] == {
        "type": "hash:ip,port", "members": ["10.96.0.20,tcp:80"],
        "comment": "Kubernetes service cluster ip + port for masquerade purpose",
    }  # fmt: skip
    assert found["sysctls"]["net.ipv4.vs.conntrack"] == 1
    assert found["iptables"].startswith("*nat\n")
    assert found["iptables"].count("COMMIT\n") == 2


def test_its_options_do_what_they_say(printed):
    assert {one["scheduler"] for one in printed("--ipvs-scheduler", "sh")["virtualServers"]} == {"sh"}
    whole, ours = printed()["iptables"].splitlines(), printed("--external-chains-only")["iptables"].splitlines()
    assert len([line for line in whole if line.startswith("-I ")]) == 9
    assert [line for line in whole if not line.startswith("-I ")] == ours
    assert printed("--ip-family", "v6")["virtualServers"] == []
