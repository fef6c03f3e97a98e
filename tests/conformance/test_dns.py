"""CoreDNS's own tables of questions and answers, asked over UDP and TCP of a server that runs as its users run it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys

import dnslib
import pytest

from k8snet.cluster.manifests import load
from k8snet.controllers.dns_records import build
from k8snet.linux.run import wait_until
from tests.conformance.conftest import DATA, read

FILES = [one for one in ("service", "namespace", "reverse", "pod_insecure") if read(f"dns/cases_{one}.json")]
HOW = {False: "udp", True: "tcp"}
CASES = [
    pytest.param(f"dns/cases_{file}.json", index, tcp, id=f"{file}-{case['qtype']}-{case['qname']}-{HOW[tcp]}")
    for file in FILES for index, case in enumerate(read(f"dns/cases_{file}.json")["cases"])
    for tcp in ([False] if case.get("truncated") else [False, True])  # by TCP an answer is never cut short
]  # fmt: skip
SKIP = pytest.mark.skipif(not CASES, reason="no conformance data; K8SNET_CONFORMANCE names the folder")
OWN_TARGET = ("ext.interwebs.", "ext.interwebs.test.")  # the cases write the first, the fixture has the second


class Upstream:
    """A server of one answer for the case that CoreDNS has one for: the address of an alias's target, cut short."""

    def __enter__(self):
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.program = subprocess.Popen(
            [sys.executable, "-c", ANSWER], stdin=self.sock.fileno(), stdout=subprocess.DEVNULL
        )
        return f"127.0.0.1:{self.sock.getsockname()[1]}"

    def __exit__(self, *_):
        self.program.kill()
        self.program.wait()
        self.sock.close()


ANSWER = """
import dnslib, socket
sock = socket.socket(fileno=0)
while True:
    data, client = sock.recvfrom(4096)
    reply = dnslib.DNSRecord.parse(data).reply()
    reply.header.tc = 1
    reply.add_answer(*dnslib.RR.fromZone("ext.interwebs.test. 5 A 1.2.3.4"))
    sock.sendto(reply.pack(), client)
"""


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """The port of a server for each of the data's files."""
    with contextlib.ExitStack() as stack:
        ports = {}
        for file in FILES:
            data = read(f"dns/cases_{file}.json")
            folder = tmp_path_factory.mktemp(file)
            upstream = stack.enter_context(Upstream()) if file == "service" else ""
            table = build(
                load(str(DATA / "dns" / data["fixtures"])).objects, zone=data["zone"],
                pods=data.get("podMode", "disabled"), namespaces=data.get("exposedNamespaces") or (),
                reverse_zones=data.get("zones", [])[1:], ttl=data["ttl"], upstream=upstream,
            )  # fmt: skip
            (folder / "table.json").write_text(table.dump())
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                ports[f"dns/cases_{file}.json"] = port = free.getsockname()[1]
            program = subprocess.Popen(
                [sys.executable, "-m", "k8snet.controllers.dns_server", folder, "127.0.0.1", str(port)]
            )
            stack.callback(program.wait)
            stack.callback(program.terminate)
            wait_until((folder / "ready").exists, what="the server listens", timeout_s=20)
        yield ports


def rows(records):
    """The records of a section as the data has them: owner, TTL, type, and data without the weight of SRV."""
    found = set()
    for one in records:
        kind, data = dnslib.QTYPE[one.rtype], str(one.rdata)
        if kind == "SRV":
            data = " ".join(data.split()[:1] + data.split()[2:])
        found.add((str(one.rname).lower(), one.ttl, kind, data.strip('"')))
    return found


def wanted(records):
    found = set()
    for one in records:
        name, data = (one[key].replace(*OWN_TARGET) for key in ("name", "data"))
        if one["type"] == "SRV":
            data = " ".join(data.split()[:1] + data.split()[2:])
        found.add((name, one["ttl"], one["type"], data))
    return found


@SKIP
@pytest.mark.parametrize(("file", "index", "tcp"), CASES)
def test_a_question_of_corednss_table_has_its_answer(servers, file, index, tcp):
    case = read(file)["cases"][index]
    query = dnslib.DNSRecord.question(case["qname"], case["qtype"])
    query.add_ar(dnslib.EDNS0(udp_len=1232))
    reply = dnslib.DNSRecord.parse(query.send("127.0.0.1", servers[file], tcp=tcp, timeout=5))
    assert dnslib.RCODE[reply.header.rcode] == case["rcode"]
    assert rows(reply.rr) == wanted(case["answer"])
    assert bool(reply.header.tc) == bool(case.get("truncated"))
    assert reply.header.aa
    negative = [one for one in case["authority"] if one["type"] == "SOA"]
    assert [(str(one.rname), dnslib.QTYPE[one.rtype]) for one in reply.auth] == [
        (one["name"], "SOA") for one in negative
    ]
    extra = [one for one in reply.ar if one.rtype != dnslib.QTYPE.OPT]
    assert rows(extra) == wanted(case["additional"])
    kinds = [dnslib.QTYPE[one.rtype] for one in reply.rr]
    assert kinds == sorted(kinds, key=lambda kind: kind != "CNAME")  # an alias comes before what it leads to


@SKIP
def test_a_namespace_that_is_not_exposed_has_no_names(servers):
    query = dnslib.DNSRecord.question("svc1.unexposedns.svc.cluster.local.")
    reply = dnslib.DNSRecord.parse(query.send("127.0.0.1", servers["dns/cases_service.json"], timeout=5))
    assert dnslib.RCODE[reply.header.rcode] == "NXDOMAIN"
