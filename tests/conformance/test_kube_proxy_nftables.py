"""kube-proxy in nftables mode against upstream's own tables: text, flows over the text, and flows through a kernel."""

from __future__ import annotations

import errno
import json
import re
import socket
import struct
from collections import defaultdict
from ipaddress import ip_address, ip_network

import pytest

from k8snet import End
from k8snet.cluster.manifests import load, parse
from k8snet.controllers.kube_proxy.nftables import Proxier, render
from k8snet.controllers.kube_proxy.service_ports import ProxyConfig, service_ports
from tests.conformance.conftest import DATA, read

pytestmark = pytest.mark.usefixtures("conformance")
OVERALL = DATA / "kube_proxy_nftables" / "overall"
CASES = sorted(one.parent.name for one in (DATA / "kube_proxy_iptables").glob("*/case.json"))


def statements(text):
    return [line for line in text.splitlines() if line and not line.startswith(("#", "flush"))]


def by_object(text):
    """Return the statements of each chain in their order, and those of every other object as a set."""
    found = defaultdict(list)
    for line in statements(text):
        _, kind, family, table, *rest = line.split()
        found[family, table, rest[0] if kind != "table" else "", kind].append(line)
    return {key: lines if key[-1] == "rule" else set(lines) for key, lines in found.items()}


@pytest.fixture
def overall():
    """What our renderer makes of upstream's overall case."""
    case = read("kube_proxy_nftables/overall/case.json")["config"]
    config = ProxyConfig(
        node_name=case["nodeName"], node_ips=(case["nodeIP"],), cluster_cidr=case["clusterCIDR"],
        service_cidrs=(case["serviceCIDRs"],), nodeport_addresses=tuple(case["nodePortAddresses"]),
    )  # fmt: skip
    assert config.masquerade_mark == case["masqueradeMark"]
    return render(service_ports(load(OVERALL / "manifests.yaml", lenient=True).objects, config), config)


@pytest.mark.parametrize("file", ["expected.nft", "expected.loadable.nft"])
def test_the_rules_equal_upstreams_object_by_object(overall, file):
    assert by_object(overall) == by_object((OVERALL / file).read_text())


def test_what_is_there_without_services_equals_upstreams(overall):
    config = ProxyConfig(node_name="n", node_ips=("192.168.0.2",), service_cidrs=("172.30.0.0/16",))
    assert by_object(render([], config)) == by_object((DATA / "kube_proxy_nftables" / "base_rules.nft").read_text())


def test_the_kernel_holds_the_same_after_our_rules_as_after_upstreams(overall, lab):
    """And as after ours twice: a second load replaces the first."""
    ours, theirs = lab.netns("ours"), lab.netns("theirs")
    for netns, text in ((theirs, (OVERALL / "expected.loadable.nft").read_text()), (ours, overall), (ours, overall)):
        netns.run("nft", "-f", "-", stdin=text)
    listed = [sorted(one.run("nft", "list", "ruleset").stdout.splitlines()) for one in (ours, theirs)]
    assert listed[0] == listed[1]
    assert len(listed[0]) > 150


# -- the flows of the iptables cases ---------------------------------------------------------


def config_of(case):
    given = case["config"]
    return ProxyConfig(
        node_name=given["nodeName"], node_ips=tuple(given["nodeIPs"]),
        cluster_cidr=given["clusterCIDR"] if given["localDetector"] == "ClusterCIDR" else None,
        masquerade_all=given["masqueradeAll"], masquerade_bit=given["masqueradeBit"],
        # iptables mode takes node ports on every address unless told otherwise, nftables mode on the primary one
        nodeport_addresses=tuple(given["nodePortAddresses"] or ["0.0.0.0/0"]),
    )  # fmt: skip


def states_of(name):
    """Yield the objects after each step of a case, and the flows of that step."""
    folder = DATA / "kube_proxy_iptables" / name
    case = read(f"kube_proxy_iptables/{name}/case.json")
    objects = {identity(one): one for one in load(folder / "manifests.yaml", lenient=True).objects}
    for step in case.get("steps") or [case]:
        for one in step.get("apply", []):
            (made,) = [o for o in parse(json.dumps(one), lenient=True).objects if o.kind == one["kind"]]
            objects[identity(made)] = made
        said = re.match(r"delete (\w+ \S+), sync", step.get("action", ""))
        for gone in step.get("delete") or ([said[1]] if said else []):
            del objects[gone]
        yield list(objects.values()), step.get("flows", [])


def identity(one):
    return f"{one.kind} {one.metadata.namespace}/{one.metadata.name}"


def expected(flow, objects):
    """Return what nftables mode does with a flow, where that is not what iptables mode does."""
    cluster_ips = {one.spec.clusterIP for one in objects if one.kind == "Service"}
    if flow["sourceIP"] == "127.0.0.1" or flow["output"] == "ACCEPT":
        return "", False  # no node ports on localhost; no rule for health checks, that nothing rejects
    if flow["output"] == "" and flow["destIP"] in cluster_ips:
        return "REJECT", False  # iptables mode lets it go on its way to nowhere
    return flow["output"], flow["masq"]


def with_flows():
    return [name for name in CASES if any(flows for _, flows in states_of(name))]


# -- evaluated -------------------------------------------------------------------------------


class Rules:
    """A ruleset of ours, and what becomes of a packet that meets it."""

    def __init__(self, text, local):
        self.local, self.chains, self.values = local, defaultdict(list), defaultdict(dict)
        for line in statements(text):
            verb, kind, _, _, name, rest = (*line.split(maxsplit=5), "")[:6] if "add table" not in line else [""] * 6
            if (verb, kind) == ("add", "rule"):
                self.chains[name].append(re.sub(r' comment "[^"]*"$', "", rest))
            elif (verb, kind) == ("add", "element"):
                key, _, verdict = re.sub(r' comment "[^"]*"', "", rest.strip("{} ")).partition(" : ")
                self.values[name][key] = verdict

    def run(self, flow):
        """Return output and mark as a case writes them."""
        self.lots, found, number = 1, [], 0
        while number < self.lots:
            self.choice, self.mark, self.target, self.flow = number, False, None, flow
            found.append((self._outcome(), self.mark))
            number += 1
        assert len({mark for _, mark in found}) == 1
        outputs = list(dict.fromkeys(output for output, _ in found))
        return ", ".join(outputs), found[0][1]

    def _outcome(self):
        outside = self.flow["sourceIP"] not in self.local
        first = "prerouting" if outside else "output"
        for chain in (f"filter-{first}-pre-dnat", f"nat-{first}", *([] if outside else ["filter-output"])):
            if (verdict := self._chain(chain)) in {"DROP", "REJECT"}:
                return verdict
        to_us = (self.target.partition(":")[0] if self.target else self.flow["destIP"]) in self.local
        last = "filter-input" if to_us else "filter-forward"
        verdict = self._chain(last) if to_us or outside else None
        return verdict if verdict in {"DROP", "REJECT"} else self.target or ""

    def _chain(self, name):
        for rule in self.chains[name]:
            verdict = self._rule(rule)
            if verdict is None:
                continue
            verb, _, target = verdict.partition(" ")
            if verb == "jump":
                inner = self._chain(target)
                if inner:
                    return inner
            elif verb == "goto":
                return self._chain(target)
            elif verb != "return":
                return verb.upper()
            else:
                return None
        return None

    def _rule(self, rule):
        """Return the verdict of a rule that matches, or None."""
        flow = self.flow
        address, port = self.target.split(":") if self.target else (flow["destIP"], str(flow["destPort"]))
        fields = {"ip daddr": address, "ip saddr": flow["sourceIP"], "th dport": port}
        fields["meta l4proto"] = flow["protocol"].lower()
        while rule:
            if found := re.match(r"numgen random mod (\d+) vmap \{ (.*) \}$", rule):
                self.lots = int(found[1])
                return found[2].split(" , ")[self.choice].partition(" : ")[2]
            if found := re.match(r"((?:(?:ip daddr|meta l4proto|th dport)(?: \. )?)+) vmap @(\S+)$", rule):
                key = " . ".join(fields[one] for one in found[1].split(" . "))
                return self.values[found[2]].get(key)
            if rule.startswith("dnat to "):
                self.target = rule.removeprefix("dnat to ")
                return "accept"
            if rule.startswith("mark set mark or "):
                self.mark = True
                return None
            if rule.startswith("update @") or rule == "masquerade fully-random":
                return None
            if re.match(r"jump|goto|drop|reject|return", rule):
                return rule
            found = re.match(r"(ct state new|fib ([sd])addr type local|meta l4proto (\w+)|"
                             r"ip ([sd])addr (!= )?(\{ .*? \}|\S+)) ?", rule)  # fmt: skip
            if not self._matches(found, fields):
                return None
            rule = rule[found.end() :]
        return None

    def _matches(self, found, fields):
        whole, fib, protocol, which, negated, operand = found.groups()
        if whole == "ct state new":
            return True
        if protocol:
            return fields["meta l4proto"] == protocol
        if fib:
            return fields[f"ip {fib}addr"] in self.local
        values = self.values[operand[1:]] if operand[0] == "@" else re.split(r" ?, ?", operand.strip("{} "))
        inside = any(ip_address(fields[f"ip {which}addr"]) in ip_network(one) for one in values)
        return inside != bool(negated)


@pytest.mark.parametrize("name", with_flows())
def test_the_rules_send_every_flow_where_it_belongs(name):
    config = config_of(read(f"kube_proxy_iptables/{name}/case.json"))
    for objects, flows in states_of(name):
        rules = Rules(render(service_ports(objects, config), config), {"127.0.0.1", "::1", *config.node_ips})
        for flow in flows:
            assert rules.run(flow) == expected(flow, objects), flow["name"]


# -- live ------------------------------------------------------------------------------------


@pytest.fixture
def node(lab):
    """A node, and the rest of the world behind its only interface: clients and endpoints alike."""
    node, world = lab.netns("node", forward=True), lab.netns("world")
    quiet = {f"net.ipv4.conf.{which}.send_redirects": 0 for which in ("all", "default")}
    node.set_sysctls({**quiet, "net.ipv4.icmp_ratelimit": 0, "net.ipv4.icmp_ratemask": 0})  # every REJECT is told
    lab.veth(
        End(netns=node, name="eth0", address="192.168.0.2/24"),
        End(netns=world, name="eth0", address="192.168.0.254/24"),
    )
    node.add_route("default", via="192.168.0.254")
    world.add_route("default", via="192.168.0.2")
    return node


def send(netns, flow, count):
    """Open *count* connections, wait until the node has seen them all, and return the errors that came back."""
    ways = {"TCP": (socket.SOCK_STREAM, 0), "UDP": (socket.SOCK_DGRAM, 0), "SCTP": (socket.SOCK_RAW, 132)}

    def body():
        socks = [socket.socket(socket.AF_INET, *ways[flow["protocol"]]) for _ in range(count)]
        for number, sock in enumerate(socks):
            sock.setblocking(False)
            sock.bind((flow["sourceIP"], 0))
            sock.connect_ex((flow["destIP"], flow["destPort"]))
            if flow["protocol"] != "TCP":
                sock.send(b"?" if flow["protocol"] == "UDP" else sctp_init(40000 + number, flow["destPort"]))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:  # what comes back for this came after the others
            last.connect(("192.168.0.2", 9))
            last.send(b"?")
            last.settimeout(5)
            with pytest.raises(ConnectionRefusedError):
                last.recv(1)
        found = {sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for sock in socks}
        for sock in socks:
            sock.close()
        return found

    return netns.inside(body)


def sctp_init(source, destination):
    """Return the packet that opens an SCTP association, with its CRC32c; RFC 9260, 3.3.2."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65535, 1, 1, 1)
    head, crc = struct.pack("!HHI", source, destination, 0), 0xFFFFFFFF
    for byte in head + bytes(4) + chunk:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return head + struct.pack("<I", crc ^ 0xFFFFFFFF) + chunk


def observed(node, flow, endpoints):
    """Send a flow often enough to meet every endpoint, and return output and masquerade as a case writes them."""
    node.delete_conntrack()
    source = "node" if flow["sourceIP"] in {*local_of(node), flow["destIP"]} else "world"
    errors = send(node._owner[source], flow, 1 if endpoints < 2 else 20 * endpoints)
    found = [
        one for one in node.conntrack(protocol=flow["protocol"].lower())
        if (one.original.source, one.original.destination, one.original.destination_port)
        == (flow["sourceIP"], flow["destIP"], flow["destPort"])
    ]  # fmt: skip
    if not found:
        return "REJECT" if errno.ECONNREFUSED in errors else "DROP", False
    masqueraded = {one.snat for one in found}  # fully-random: the port is another, where the address is the same
    assert len(masqueraded) == 1
    ends = sorted({f"{one.reply.source}:{one.reply.source_port}" for one in found if one.dnat})
    return ", ".join(ends), masqueraded.pop()


def local_of(netns):
    links = json.loads(netns.run("ip", "-j", "-4", "address").stdout)
    return {one["local"] for link in links for one in link["addr_info"]}


def populate(node, config, flows):
    """Give node and world the addresses that the flows of a case start from, and servers where they may end.

    A connection that a port refuses would be forgotten before it can be looked at.
    """
    for address in config.node_ips[1:]:
        if ":" not in address:
            node.add_address("lo", f"{address}/32")
    for flow in flows:
        source = flow["sourceIP"]
        if source not in local_of(node):
            where = node if source == flow["destIP"] else node._owner["world"]
            if source not in local_of(where):
                where.add_address("lo", f"{source}/32")
    ports = {("world", int(port)) for flow in flows for port in re.findall(r":(\d+)", flow["output"])}
    ports |= {("node", flow["destPort"]) for flow in flows if flow["destIP"] in local_of(node)}
    for name, port in ports:
        for protocol in ("tcp", "udp"):
            node._owner[name].listen(port, protocol=protocol)


@pytest.mark.parametrize("name", with_flows())
def test_a_kernel_sends_every_flow_where_it_belongs(node, name):
    """Each step of a case is an update of the rules that are loaded already."""
    config = config_of(read(f"kube_proxy_iptables/{name}/case.json"))
    states = list(states_of(name))
    populate(node, config, [flow for _, flows in states for flow in flows])
    proxier = Proxier(config)
    for objects, flows in states:
        proxier.apply(node, service_ports(objects, config))
        for flow in flows:
            wanted = expected(flow, objects)
            assert observed(node, flow, wanted[0].count(":")) == wanted, flow["name"]


# -- updates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_updates_lead_to_the_same_rules_as_loading_all_at_once(lab, name):
    """The nine successive syncs of sync_repeated, and the steps of the others."""
    config = config_of(read(f"kube_proxy_iptables/{name}/case.json"))
    updated, proxier = lab.netns("updated"), Proxier(config)
    for number, (objects, _) in enumerate(states_of(name)):
        ports = service_ports(objects, config)
        proxier.apply(updated, ports)
        assert proxier.sync(ports) == []
        whole = lab.netns(f"whole{number}")
        whole.run("nft", "-f", "-", stdin=render(ports, config))
        assert listing(updated) == listing(whole)


def listing(netns):
    """Return what nft lists, object by object; the order of chains is that of their making."""
    blocks = re.split(r"\n(?=\t(?:set|map|chain) )", netns.run("nft", "list", "ruleset").stdout)
    blocks = [re.sub(r"elements = \{(.*?)\}", _sorted_elements, one, flags=re.DOTALL) for one in blocks]
    return sorted(one.strip("}\n\t ") for one in blocks)


def _sorted_elements(match):
    return "elements = " + ", ".join(sorted(one.strip() for one in match[1].split(",")))
