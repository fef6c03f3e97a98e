"""DNS: which names there are, what is answered, on the wire too, and how pods are told to ask."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import subprocess
import sys

import dnslib
import pytest
from typer.testing import CliRunner

from k8snet.cluster.manifests import parse
from k8snet.controllers.dns_records import build, fixed
from k8snet.controllers.dns_resolv_conf import ResolvConf, of_pod
from k8snet.controllers.dns_server import Ask, Server, queries
from k8snet.controllers.dns_table import Table
from k8snet.discovery_cli import app
from k8snet.errors import InvalidInput, InvalidManifest, PortTaken
from k8snet.linux.run import wait_until

HEADLESS = """
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, ports: [{name: sql, port: 5432}, {name: web, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 5432}, {name: web, port: 8080}]
endpoints:
- {addresses: [10.244.1.2], hostname: db-0}
- {addresses: [10.244.1.3], conditions: {ready: true}}
- {addresses: [10.244.1.4], conditions: {ready: false, serving: true, terminating: true}}
"""
WEB = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.20, ports: [{port: 80}]}
"""
ALIAS = """
apiVersion: v1
kind: Service
metadata: {name: %s}
spec: {type: ExternalName, externalName: %s}
---
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {containers: [{name: web, image: nginx}]%s}
status: {podIP: 10.244.1.9}
"""
ZONE = "cluster.local"


def table(text, **options):
    return build(parse(text).objects, **options)


def data(found, kind="A"):
    return sorted(str(one[2]) for one in found.answer if one[1] == kind)


# -- names -----------------------------------------------------------------------------------


def test_a_headless_service_has_the_addresses_of_its_ready_endpoints_and_a_name_for_each():
    names = table(HEADLESS)
    assert data(names.find(f"db.default.svc.{ZONE}", "A")) == ["10.244.1.2", "10.244.1.3"]
    assert data(names.find(f"db-0.db.default.svc.{ZONE}", "A")) == ["10.244.1.2"]
    assert data(names.find(f"10-244-1-3.db.default.svc.{ZONE}", "A")) == ["10.244.1.3"]
    assert names.find(f"10-244-1-4.db.default.svc.{ZONE}", "A").rcode == "NXDOMAIN"
    assert data(names.find("2.1.244.10.in-addr.arpa", "PTR"), "PTR") == [f"db-0.db.default.svc.{ZONE}"]


def test_srv_records_have_a_target_for_each_endpoint_and_the_endpoints_port():
    found = table(HEADLESS).find(f"_web._tcp.db.default.svc.{ZONE}", "SRV")
    assert [(port, target.partition(".")[0]) for _, _, (_, _, port, target) in found.answer] == [
        (8080, "db-0"), (8080, "10-244-1-3"),
    ]  # fmt: skip
    assert {one[2] for one in found.additional} == {"10.244.1.2", "10.244.1.3"}


def test_a_headless_service_without_ready_endpoints_has_no_name():
    """Specification 2.4.1."""
    text = HEADLESS.split("---")[0]
    assert table(text).find(f"db.default.svc.{ZONE}", "A").rcode == "NXDOMAIN"


def test_an_unnamed_port_has_no_srv_record():
    found = table(WEB).find(f"web.default.svc.{ZONE}", "SRV")
    assert (found.rcode, found.answer, len(found.authority)) == ("NOERROR", [], 1)


def test_a_name_that_only_has_names_below_it_is_there_without_data():
    """RFC 8020: NXDOMAIN would say that there is nothing below, either."""
    names = table(HEADLESS)
    for name in (f"_tcp.db.default.svc.{ZONE}", f"default.svc.{ZONE}", f"svc.{ZONE}", ZONE, f"default.pod.{ZONE}"):
        assert names.find(name, "A").rcode == "NOERROR", name
    assert names.find(f"nosuch.svc.{ZONE}", "A").rcode == "NXDOMAIN"


def test_the_zone_names_the_service_that_answers_for_it():
    dns = WEB.replace("name: web", "name: kube-dns, namespace: kube-system")
    found = table(dns).find(ZONE, "NS")
    assert data(found, "NS") == [f"kube-dns.kube-system.svc.{ZONE}"]
    assert [one[2] for one in found.additional] == ["10.96.0.20"]
    assert data(table(WEB).find(ZONE, "NS"), "NS") == [f"ns.dns.{ZONE}"]


def test_an_alias_is_followed_inside_the_zone_and_its_end_named_outside():
    text = ALIAS % ("in", f"web.default.svc.{ZONE}.") + ALIAS % ("out", "db.example.com") + WEB
    inside = table(text).find(f"in.default.svc.{ZONE}", "A")
    assert [one[1] for one in inside.answer] == ["CNAME", "A"]
    outside = table(text).find(f"out.default.svc.{ZONE}", "A")
    assert (outside.outside, data(outside, "CNAME")) == ("db.example.com", ["db.example.com"])
    assert table(text).find(f"out.default.svc.{ZONE}", "CNAME").outside is None


def test_aliases_in_a_circle_end():
    text = ALIAS % ("a", f"b.default.svc.{ZONE}") + ALIAS % ("b", f"a.default.svc.{ZONE}")
    assert len(table(text).find(f"a.default.svc.{ZONE}", "A").answer) == 8


@pytest.mark.parametrize(("mode", "there", "elsewhere", "other"), [
    ("insecure", "NOERROR", "NOERROR", "NOERROR"),
    ("verified", "NOERROR", "NXDOMAIN", "NXDOMAIN"),
    ("disabled", "NXDOMAIN", "NXDOMAIN", "NXDOMAIN"),
])  # fmt: skip
def test_names_of_pods_are_as_the_mode_says(mode, there, elsewhere, other):
    names = table(POD % "" + "---" + WEB.replace("name: web", "name: web, namespace: shop"), pods=mode)
    assert names.find(f"10-244-1-9.default.pod.{ZONE}", "A").rcode == there
    assert names.find(f"10-244-1-9.shop.pod.{ZONE}", "A").rcode == elsewhere
    assert names.find(f"10-9-9-9.default.pod.{ZONE}", "A").rcode == other
    assert names.find(f"10-244-1-9.nosuch.pod.{ZONE}", "A").rcode == "NXDOMAIN"
    assert names.find(f"x.10-244-1-9.default.pod.{ZONE}", "A").rcode == "NXDOMAIN"


def test_insecure_names_of_ipv6_addresses_are_answered_with_aaaa():
    found = table(WEB).find(f"fd00-10-244-1--9.default.pod.{ZONE}", "AAAA")
    assert data(found, "AAAA") == ["fd00:10:244:1::9"]


def test_a_table_survives_its_file():
    names = table(HEADLESS, upstream="203.0.113.53:53")
    assert Table.load(names.dump()) == names


@pytest.mark.parametrize("zone", ["", "a b", "-.local", "x" * 64, "ü.local", "a..b"])
def test_a_zone_that_is_no_domain_is_refused(zone):
    with pytest.raises(InvalidInput, match=r"write it as in cluster\.local"):
        table(WEB, zone=zone)


def test_pods_of_an_unknown_mode_are_refused():
    with pytest.raises(InvalidInput, match="insecure, verified, disabled"):
        table(WEB, pods="no")


# -- the wire --------------------------------------------------------------------------------


def ask(server, name, kind="A", *, tcp=False, size=None, **header):
    query = dnslib.DNSRecord.question(name, kind)
    for key, value in header.items():
        setattr(query.header, key, value)
    if size:
        query.add_ar(dnslib.EDNS0(udp_len=size))
    wire = server.at_once(bytes(query.pack()), "192.0.2.1", tcp=tcp)
    return dnslib.DNSRecord.parse(wire), len(wire)


def rcode(reply):
    return dnslib.RCODE[reply.header.rcode]


def many(count):
    endpoints = "".join(f"- {{addresses: [10.244.{n // 250}.{n % 250 + 1}]}}\n" for n in range(count))
    return table(f"{HEADLESS.split('endpoints:')[0]}endpoints:\n{endpoints}")


def test_a_name_is_answered_in_the_case_in_which_it_was_asked():
    """Some resolvers draw the case at random, and want to see it again: it is hard to guess."""
    reply, _ = ask(Server(table(WEB)), "wEb.DEFAULT.svc.Cluster.local")
    assert str(reply.rr[0].rname) == "wEb.DEFAULT.svc.Cluster.local."


def test_an_answer_too_long_for_udp_says_so_and_comes_whole_by_tcp():
    server, name = Server(many(400)), f"db.default.svc.{ZONE}"
    short, size = ask(server, name)
    assert (short.header.tc, size <= 512, 0 < len(short.rr) < 400) == (1, True, True)
    longer, size = ask(server, name, size=4096)
    assert (longer.header.tc, 512 < size <= 1232, len(longer.rr) > len(short.rr)) == (1, True, True)
    whole, _ = ask(server, name, tcp=True)
    assert (whole.header.tc, len(whole.rr)) == (0, 400)


def test_additional_records_go_first_and_leave_no_mark():
    reply, size = ask(Server(many(6)), f"_sql._tcp.db.default.svc.{ZONE}", "SRV")
    assert (reply.header.tc, len(reply.rr), reply.ar, size <= 512) == (0, 6, [], True)


def test_edns0_is_answered_with_edns0_and_an_unknown_version_with_badvers():
    server = Server(table(WEB))
    assert [one.rtype for one in ask(server, f"web.default.svc.{ZONE}", size=1400)[0].ar] == [dnslib.QTYPE.OPT]
    assert ask(server, f"web.default.svc.{ZONE}")[0].ar == []
    query = dnslib.DNSRecord.question(f"web.default.svc.{ZONE}")
    query.add_ar(dnslib.EDNS0(udp_len=1400, version=1))
    reply = dnslib.DNSRecord.parse(server.at_once(bytes(query.pack()), "192.0.2.1", tcp=False))
    assert (reply.ar[0].ttl >> 24, reply.rr) == (1, [])  # the upper bits of 16, BADVERS


def test_a_name_of_others_is_refused_without_an_upstream_and_asked_for_with_one():
    assert rcode(ask(Server(table(WEB)), "example.com")[0]) == "REFUSED"
    forwarding = Server(table(WEB, upstream="192.0.2.53:53"))
    assert isinstance(forwarding.at_once(bytes(dnslib.DNSRecord.question("example.com").pack()), "", tcp=False), Ask)


def test_what_is_no_plain_question_is_told_so():
    server = Server(table(WEB))
    assert rcode(ask(server, "x.cluster.local", opcode=5)[0]) == "NOTIMP"
    two = dnslib.DNSRecord(questions=[dnslib.DNSQuestion("a"), dnslib.DNSQuestion("b")])
    assert dnslib.DNSRecord.parse(server.at_once(bytes(two.pack()), "", tcp=False)).header.rcode == dnslib.RCODE.FORMERR
    assert server.at_once(bytes(dnslib.DNSRecord.question("a").reply().pack()), "", tcp=False) is None
    assert server.at_once(b"?\n", "", tcp=False)[:4] == b"?\n\x80\x01"  # a probe sees that somebody is there


def test_a_dot_inside_a_label_makes_no_other_name():
    query = dnslib.DNSRecord.question("x")
    query.q.qname = dnslib.DNSLabel([b"web.default", b"svc", b"cluster", b"local"])
    reply = Server(table(WEB)).at_once(bytes(query.pack()), "", tcp=False)
    assert reply[3] & 15 == dnslib.RCODE.NXDOMAIN


def test_a_changed_table_is_answered_from_at_once_and_a_broken_one_not_at_all(tmp_path):
    file = tmp_path / "table.json"
    file.write_text(table(WEB).dump())
    server, name = Server(file), f"web.default.svc.{ZONE}"
    assert ask(server, name)[0].short() == "10.96.0.20"
    file.write_text(table(WEB.replace("10.96.0.20", "10.96.0.99")).dump())
    assert ask(server, name)[0].short() == "10.96.0.99"
    file.write_text("{")
    assert ask(server, name)[0].short() == "10.96.0.99"
    file.unlink()
    assert ask(server, name)[0].short() == "10.96.0.99"


def test_the_log_has_each_question_once_however_strange_its_name(tmp_path):
    server = Server(table(WEB), log=tmp_path / "log")
    for _ in range(2):
        ask(server, f"web.default.svc.{ZONE}")
    query = dnslib.DNSRecord.question("x")
    query.q.qname = dnslib.DNSLabel([b"a\tb\nc\\", b"local"])
    server.at_once(bytes(query.pack()), "192.0.2.1", tcp=True)
    found = queries(tmp_path / "log")
    assert [(one.name, one.rcode, one.answers) for one in found[:2]] == [(f"web.default.svc.{ZONE}.", "NOERROR", 1)] * 2
    assert (len(found), found[2].protocol, found[2].rcode) == (3, "tcp", "REFUSED")


# -- the program -----------------------------------------------------------------------------


@contextlib.contextmanager
def served(tmp_path, text, *options):
    """Run `k8snet dns serve` for a manifest, and return its port."""
    file = tmp_path / "manifest.yaml"
    file.write_text(text)
    code = "from k8snet.discovery_cli import app; app()"
    argv = [sys.executable, "-c", code, "dns", "serve", "-f", str(file), "--listen", "127.0.0.1:0", *options]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as program:
        try:
            yield int(re.search(r"127\.0\.0\.1:(\d+)", program.stderr.readline())[1])
            assert program.poll() is None
        finally:
            program.terminate()
            assert program.wait(10) == 0


def dig(port, *words):
    argv = ["dig", "@127.0.0.1", "-p", str(port), "+time=5", "+tries=1", *words]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_the_command_answers_dig_by_udp_and_tcp(tmp_path):
    web = WEB.replace("clusterIP: 10.96.0.20, ", "selector: {app: web}, ")
    pod = (POD % ", hostname: first, subdomain: web").replace("name: web}\nspec", "name: p, labels: {app: web}}\nspec")
    with served(tmp_path, f"{web}---{pod}", "--pods", "verified", "--zone", "lab.example") as port:
        for how in ("+notcp", "+tcp"):
            assert dig(port, how, "+short", "web.default.svc.lab.example") == "10.96.0.20\n"
            assert dig(port, how, "+short", "first.web.default.svc.lab.example") == "10.244.1.9\n"
            assert dig(port, how, "+short", "-x", "10.244.1.9") == "first.web.default.svc.lab.example.\n"
            assert dig(port, how, "+short", "10-244-1-9.default.pod.lab.example") == "10.244.1.9\n"
            assert "status: NXDOMAIN" in dig(port, how, "10-244-1-8.default.pod.lab.example")
            assert "status: REFUSED" in dig(port, how, "web.default.svc.cluster.local")


def test_a_thousand_malformed_packets_and_a_burst_of_questions_later_it_still_answers(tmp_path):
    chance = random.Random(5)
    good = bytes(dnslib.DNSRecord.question(f"web.default.svc.{ZONE}").pack())
    with served(tmp_path, WEB) as port, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        for number in range(1000):
            packet = bytearray(good if number % 2 else chance.randbytes(chance.randrange(600)))
            for _ in range(chance.randrange(1, 8) if packet else 0):
                packet[chance.randrange(len(packet))] = chance.randrange(256)
            sock.send(packet)
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as stream:
                if number % 50 == 0:  # by TCP, too, with lengths that do not hold
                    stream.sendall(bytes(packet))
        assert dig(port, "+short", "+tcp", f"web.default.svc.{ZONE}") == "10.96.0.20\n"
    with served(tmp_path, WEB) as port, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", port))
        sock.settimeout(10)
        for start in range(0, 4000, 100):
            for number in range(start, start + 100):
                sock.send(number.to_bytes(2) + good[2:])
            assert {int.from_bytes(sock.recv(512)[:2]) for _ in range(100)} == set(range(start, start + 100))


def test_the_command_forwards_by_udp_and_tcp_and_says_servfail_of_a_silent_upstream(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    known = {"db.example.com": "203.0.113.80", "a.example.com": "db.example.com"}
    (outside / "table.json").write_text(fixed(known).dump())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = subprocess.Popen([sys.executable, "-m", "k8snet.controllers.dns_server", outside, "127.0.0.1", port])
    text = ALIAS % ("out", "a.example.com") + WEB
    try:
        with served(tmp_path, text, "--upstream", f"127.0.0.1:{port}") as ours:
            wait_until((outside / "ready").exists, what="the upstream listens", timeout_s=20)
            for how in ("+notcp", "+tcp"):
                assert dig(ours, how, "+short", "a.example.com") == "db.example.com.\n203.0.113.80\n"
                lines = dig(ours, how, "+short", f"out.default.svc.{ZONE}").splitlines()
                assert lines == ["a.example.com.", "db.example.com.", "203.0.113.80"]
                assert "status: NXDOMAIN" in dig(ours, how, "nosuch.example.com")
            program.terminate()
            program.wait()
            assert "status: SERVFAIL" in dig(ours, "a.example.com")
            alias = dig(ours, f"out.default.svc.{ZONE}")  # what we know ourselves is said in any case
            assert "status: SERVFAIL" in alias
            assert "CNAME\ta.example.com." in alias
            assert dig(ours, "+short", f"web.default.svc.{ZONE}") == "10.96.0.20\n"
    finally:
        program.terminate()
        program.wait()


def test_the_command_refuses_what_cannot_be(tmp_path):
    file = tmp_path / "manifest.yaml"
    file.write_text(WEB)

    def error(*words):
        return CliRunner().invoke(app, ["dns", "serve", "-f", str(file), *words]).exception

    assert "write it as in 127.0.0.1:5353" in str(error("--listen", "127.0.0.1:x"))
    assert isinstance(error("--pods", "some", "--listen", "127.0.0.1:0"), InvalidInput)
    assert isinstance(error("--zone", "a b", "--listen", "127.0.0.1:0"), InvalidInput)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert isinstance(error("--listen", f"127.0.0.1:{taken.getsockname()[1]}"), PortTaken)


# -- resolv.conf -----------------------------------------------------------------------------


def conf(spec):
    node = ResolvConf(search=("corp.example",), servers=("203.0.113.53",))
    return str(of_pod(
        parse(POD % spec).objects[0], namespace="shop", zone=ZONE, server="10.96.0.10", node=node
    ))  # fmt: skip


CLUSTER_FIRST = f"""\
search shop.svc.{ZONE} svc.{ZONE} {ZONE} corp.example
nameserver 10.96.0.10
options ndots:5
"""
DEFAULT = "search corp.example\nnameserver 203.0.113.53\n"


@pytest.mark.parametrize(("spec", "wanted"), [
    ("", CLUSTER_FIRST),
    (", dnsPolicy: ClusterFirst, hostNetwork: true", DEFAULT),
    (", dnsPolicy: ClusterFirstWithHostNet, hostNetwork: true", CLUSTER_FIRST),
    (", dnsPolicy: Default", DEFAULT),
    (", dnsPolicy: None, dnsConfig: {nameservers: [192.0.2.1], searches: [a.example], options: [{name: rotate}]}",
     "search a.example\nnameserver 192.0.2.1\noptions rotate\n"),
    (", dnsConfig: {searches: [a.example, corp.example], options: [{name: ndots, value: '2'}, {name: use-vc}]}",
     CLUSTER_FIRST.replace("ple\n", "ple a.example\n").replace("ndots:5", "ndots:2 use-vc")),
    (", dnsConfig: {nameservers: [192.0.2.1, 192.0.2.2, 192.0.2.3]}",
     CLUSTER_FIRST.replace("options", "nameserver 192.0.2.1\nnameserver 192.0.2.2\noptions")),
])  # fmt: skip
def test_resolv_conf_is_as_dns_policy_and_dns_config_ask(spec, wanted):
    assert conf(spec) == wanted


@pytest.mark.parametrize(("spec", "problem"), [
    ("dnsPolicy: None", "nameservers: is missing"),
    ("dnsPolicy: Sometimes", "dnsPolicy: 'Sometimes' is not one of"),
    ("dnsConfig: {nameservers: [1.1.1.1, 2.2.2.2, 3.3.3.3, 4.4.4.4]}", "no more than 3"),
    ("dnsConfig: {nameservers: [dns.example]}", "nameservers: "),
    ("dnsConfig: {searches: ['a b']}", r"searches\[0\]"),
    ("dnsConfig: {options: [{value: '2'}]}", r"options\[0\]"),
    ("hostname: a.b", "hostname: 'a.b' is not a name"),
])  # fmt: skip
def test_what_would_make_no_resolv_conf_or_no_name_is_refused(spec, problem):
    with pytest.raises(InvalidManifest, match=problem):
        parse(POD % f", {spec}")


def test_an_external_name_that_is_none_is_refused():
    for name in ("''", "a_b", "-"):
        with pytest.raises(InvalidManifest, match=r"spec\.externalName"):
            parse(ALIAS % ("x", name))
