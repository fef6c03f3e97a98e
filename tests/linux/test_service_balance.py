"""A Service shares its connections out evenly, and loses none while endpoints come, are drained, and go."""

from __future__ import annotations

import json
import socket
import struct
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import pytest

from k8snet.controllers.kube_proxy import proxier
from k8snet.controllers.kube_proxy.service_ports import Endpoint, ProxyConfig, ServicePort
from k8snet.lab import Attachment, End
from k8snet.linux.run import wait_until
from k8snet.linux.sockets import callers
from tests import calls
from tests.chance import chi_square_p

CONFIG = ProxyConfig(node_name="node", node_ips=("172.18.0.2",), cluster_cidr="10.244.0.0/16")
VIP, PORT = "10.96.0.20", 80
SCTP = 132
NETLINK_NETFILTER, SO_SNDBUFFORCE = 12, 32
both_modes = pytest.mark.parametrize("mode", ["iptables", "nftables"])


def endpoint(number, **more):
    return Endpoint(**{"address": f"10.244.1.{number + 10}", "port": 8080, "local": True, **more})


def service(*ends, protocol="TCP"):
    return ServicePort(
        namespace="shop", name="web", port_name="http", protocol=protocol, cluster_ip=VIP, port=PORT, endpoints=ends
    )


def make_node(lab):
    """Build a node with a bridge for pods, and somebody outside who sends to Services by way of the node."""
    node, outside = lab.netns("node", forward=True), lab.netns("outside")
    lab.veth(
        End(netns=node, name="eth0", address="172.18.0.2/16"),
        End(netns=outside, name="eth0", address="172.18.0.100/16"),
    )
    node.add_bridge("cni0", address="10.244.1.1/24")
    outside.add_route("default", via="172.18.0.2")
    return node, outside


def add_pods(lab, node, numbers):
    made = [
        Attachment(netns=f"pod{n}", port=f"veth{n}", address=f"10.244.1.{n + 10}/24", gateway="10.244.1.1")
        for n in numbers
    ]
    return lab.attach_all(node, "cni0", made)


def python(netns, *words):
    return netns.popen(sys.executable, calls.__file__, *words, keep_output=True)


def serve(pod, number):
    process = python(pod, "serve", "8080", f"10.244.1.{number + 10}")
    wait_until(lambda: any(one.port == 8080 for one in pod.sockets()), what="a server", timeout_s=20)
    return process


@contextmanager
def calling(*clients, address=VIP, port=PORT):
    """Keep calling from netns; the list that is given has a Counter of who has answered for each, after the block."""
    processes = [python(one, "keep", address, str(port)) for one in clients]
    found = []
    try:
        yield found
    finally:
        for one in processes:
            one.popen.terminate()
            one.popen.wait(40)
            found.append(Counter(json.loads(one.output())))
            one.stop()


def test_the_chi_square_of_these_tests_is_the_one_of_the_tables():
    """The 5 % points of 1, 2, 3 and 9 degrees of freedom, and one of 10^-6."""
    for degrees, point, p in ((1, 3.8415, 0.05), (2, 5.9915, 0.05), (3, 7.8147, 0.05), (9, 16.9190, 0.05),
                              (9, 45.0762, 8.9e-7)):  # fmt: skip
        away = (point * 1000 / 2) ** 0.5
        assert chi_square_p([1000 + away, 1000 - away, *[1000] * (degrees - 1)]) == pytest.approx(p, rel=0.02)
    assert chi_square_p([3000]) == 1.0


@both_modes
@pytest.mark.parametrize("ends", [1, 2, 3, 10])
def test_3000_connections_are_shared_out_evenly(lab, mode, ends):
    """The rules that have the wrong probabilities give p < 10^-6 here: 1/n in each gives 1,500, 750, 750 of three."""
    node, outside = make_node(lab)
    (pod,) = add_pods(lab, node, [0])
    several = [endpoint(n) for n in range(1, ends + 1)]
    for one in several:  # one netns and one server with all of their addresses
        pod.add_address("eth0", f"{one.address}/24")
    python(pod, "serve", "8080", *(one.address for one in several))
    wait_until(lambda: len(pod.sockets()) == ends, what="the server", timeout_s=20)
    proxier.make(mode, CONFIG).apply(node, [service(*several)])
    done = outside.run(sys.executable, calls.__file__, "call", VIP, str(PORT), "3000", timeout_s=120)
    counts = json.loads(done.stdout)
    assert counts.keys() == {one.address for one in several}
    assert sum(counts.values()) == 3000
    assert chi_square_p(list(counts.values())) > 1e-6


@both_modes
def test_no_connection_is_lost_while_endpoints_come_and_others_are_drained_and_go(lab, mode):
    """Drained is: not ready, serving, terminating. It gets nothing new, ends what it has, and then really goes."""
    node, outside = make_node(lab)
    (inside,) = add_pods(lab, node, [0])
    proxy, servers, ends = proxier.make(mode, CONFIG), {}, {}

    def start(number):
        (pod,) = add_pods(lab, node, [number])
        servers[number], ends[number] = (pod, serve(pod, number)), endpoint(number)
        proxy.apply(node, [service(*ends.values())])

    def drain(number):
        ends[number] = replace(ends[number], ready=False, terminating=True)
        proxy.apply(node, [service(*ends.values())])
        pod, process = servers.pop(number)
        wait_until(lambda: 8080 not in callers(pod), what="connections of before", timeout_s=20)
        del ends[number]
        proxy.apply(node, [service(*ends.values())])
        process.stop()
        lab.remove(pod.name)

    start(1)
    start(2)
    with calling(inside, outside) as found:
        for number in range(3, 9):
            start(number)
            time.sleep(0.05)  # so that each has its share
            drain(number - 2)
    for counts in found:
        assert [name for name in counts if " " in name] == [], counts
        assert sum(counts.values()) > 150
        assert set(counts) >= {f"10.244.1.{n + 10}" for n in range(2, 8)}
    stale = [one for one in node.conntrack(protocol="tcp") if "UNREPLIED" in one.flags]
    assert stale == []


@both_modes
def test_no_call_is_lost_while_pods_of_a_cluster_come_and_go(cluster_of, mode):
    """Once pods were ended first: a SYN met a dead pod, conntrack remembered it, and who used that port again was lost.

    Ports come round after some 3,000 connections, so that it was a call of much later.
    """
    cluster = cluster_of(2)
    client = cluster.run_pod("client", image="pause", node="node1")

    def web(number):
        cluster.run_pod(f"web-{number}", ports=[8080], node=f"node{number % 2 + 1}", labels={"app": "web"})

    for number in (1, 2, 3):
        web(number)
    cluster.apply(f"""
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{clusterIP: {VIP}, selector: {{app: web}}, ports: [{{port: {PORT}, targetPort: 8080}}]}}
""")
    cluster.start_proxy(mode)
    with calling(client.netns, cluster.node("node2").netns) as found:
        for number in range(4, 10):
            web(number)
            cluster.delete("pod", f"web-{number - 3}")
    for counts in found:
        assert [name for name in counts if " " in name] == [], counts
        assert sum(counts.values()) > 150
        assert len(counts) > 3
    for node in cluster.nodes.values():
        assert [one for one in node.netns.conntrack(protocol="tcp") if "UNREPLIED" in one.flags] == []


@both_modes
def test_a_thousand_services_load_as_an_ordinary_user(lab, mode):
    """Their rules do not fit into the send buffer of a socket, and only root of the machine may make that larger."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock, pytest.raises(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1_000_000)
    node, outside = make_node(lab)
    (pod,) = add_pods(lab, node, [1])
    pod.listen(8080)
    several = [
        replace(service(endpoint(1), endpoint(2)), name=f"web-{n:03}", cluster_ip=f"10.97.{n // 250}.{n % 250 + 1}")
        for n in range(999)
    ]
    proxy = proxier.make(mode, CONFIG)
    proxy.apply(node, [*several, service(endpoint(1))])
    assert outside.connect(VIP, PORT).ok
    several[500] = replace(several[500], endpoints=(endpoint(1),))
    proxy.apply(node, [*several, service(endpoint(1))])
    assert outside.connect(several[500].cluster_ip, PORT).ok
    assert outside.connect(VIP, PORT).ok


# -- SCTP ------------------------------------------------------------------------------


def crc32c(data):
    """Return the checksum of SCTP. Source: RFC 9260, appendix A."""
    rest = 0xFFFFFFFF
    for byte in data:
        rest ^= byte
        for _ in range(8):
            rest = rest >> 1 ^ (0x82F63B78 if rest & 1 else 0)
    return rest ^ 0xFFFFFFFF


def init(source_port, port):
    """Return the packet that asks for an association. Source: RFC 9260, 3.3.2."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, source_port, 65536, 1, 1, 1)  # its own number as the tag
    head = struct.pack("!HHI", source_port, port, 0)
    return head + struct.pack("<I", crc32c(head + b"\0\0\0\0" + chunk)) + chunk


@both_modes
def test_the_first_packet_of_sctp_is_translated_like_any_other(lab, mode):
    """Whole packets and a socket that takes all of them: this needs no SCTP of the kernel's own, only its netfilter."""
    node, outside = make_node(lab)
    pods = add_pods(lab, node, [1, 2])
    proxier.make(mode, CONFIG).apply(node, [service(endpoint(1), endpoint(2), protocol="SCTP")])
    ears = [pod.inside(socket.socket, socket.AF_INET, socket.SOCK_RAW, SCTP) for pod in pods]
    mouth = outside.inside(socket.socket, socket.AF_INET, socket.SOCK_RAW, SCTP)
    for number in range(40):
        mouth.sendto(init(5000 + number, PORT), (VIP, 0))
    got = {}
    for pod, ear in zip(pods, ears, strict=True):
        ear.settimeout(0.5)
        try:
            while True:
                data = ear.recv(4096)[20:]
                port, _, checksum, _, tag = struct.unpack("!xxHI4sII", data[:20])
                assert port == 8080
                assert checksum == struct.pack("<I", crc32c(data[:8] + b"\0\0\0\0" + data[12:]))
                got[tag] = pod.name
        except TimeoutError:
            ear.close()
    mouth.close()
    assert set(got) == set(range(5000, 5040))
    assert set(got.values()) == {"pod1", "pod2"}  # one of them alone: once in 10^11
    tracked = node.conntrack(protocol="sctp")
    assert {f"pod{one.reply.source.rpartition('.')[2]}" for one in tracked} == {"pod11", "pod12"}
    assert {one.original.destination for one in tracked} == {VIP}


@both_modes
def test_sctp_associations_stand_through_a_service(lab, mode):
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, SCTP).close()
    except OSError as error:
        pytest.skip(f"this kernel has no SCTP sockets (module sctp): {error}")
    node, outside = make_node(lab)
    pods = add_pods(lab, node, [1, 2])
    proxier.make(mode, CONFIG).apply(node, [service(endpoint(1), endpoint(2), protocol="SCTP")])

    def listener():
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, SCTP)
        sock.bind(("", 8080))
        sock.listen(64)
        return sock

    ears = [pod.inside(listener) for pod in pods]

    def call():
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, SCTP) as sock:
            sock.settimeout(5)
            sock.connect((VIP, PORT))

    for _ in range(40):
        outside.inside(call)
    for ear in ears:
        ear.close()
    assert {one.reply.source for one in node.conntrack(protocol="sctp")} == {"10.244.1.11", "10.244.1.12"}
