"""`why` against upstream's tables: rules loaded into a kernel, read back, and evaluated, packet by packet.

packet_tracer.py evaluates the text that the renderer writes, and knows no more than that text; here the product reads
what iptables-save and nft tell, whoever wrote it. Neither uses the other.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from k8snet.controllers.kube_proxy import iptables, nftables
from k8snet.controllers.kube_proxy.service_ports import service_ports
from k8snet.observe.rules_live import place_of
from k8snet.observe.rules_read import read
from k8snet.observe.rules_words import Names
from k8snet.observe.ruleset import Journey, Packet
from k8snet.observe.why import outcomes
from tests.conformance import test_kube_proxy_iptables as by_iptables
from tests.conformance import test_kube_proxy_nftables as by_nftables

pytestmark = pytest.mark.usefixtures("conformance")
SOME = 60  # flows of each mode, at least


@pytest.fixture
def node(lab):
    """A node with a way out."""
    made = lab.netns("node", forward=True)
    made.add_bridge("own")
    made.set_up("own")
    made.add_address("own", "198.18.0.1/24")
    made.add_route("default", via="198.18.0.254")
    return made


def told(node, flow):
    """Return what becomes of a flow as upstream's tests write it, by the rules that the kernel has."""
    place = place_of(SimpleNamespace(name="node", netns=node))
    source = flow["sourceIP"]
    packet = Packet(
        source=source, destination=flow["destIP"], protocol=flow["protocol"].lower(), port=flow["destPort"],
        here=place.is_local(source), came="eth0",
    )  # fmt: skip
    journey = Journey(read(node), place, packet)
    found = outcomes(journey.ends, place, Names())
    assert sum(one.share for one in found) == pytest.approx(1)
    kinds = {one.kind for one in found}
    marked = {one.marked for one in found}
    assert len(marked) == 1
    if kinds == {"endpoint"}:
        assert [one.share for one in found] == pytest.approx([1 / len(found)] * len(found))
        return ", ".join(one.to for one in found), marked.pop()
    (kind,) = kinds
    return kind if kind in {"REJECT", "DROP", "ACCEPT"} else "", marked.pop()


def give(node, addresses):
    for address in addresses:
        if ":" not in address:
            node.add_address("own", f"{address}/32")


@pytest.mark.parametrize("name", [one for one in by_iptables.CASES if any(f for _, f in by_iptables.stages(one))])
def test_the_live_rules_of_iptables_mode_send_every_flow_where_upstream_does(node, name):
    config, objects = by_iptables.config_of(by_iptables.CASES[name]), by_iptables.Objects(name)
    give(node, config.node_ips)
    proxier = iptables.Proxier(config)
    for number, (step, flows) in enumerate(by_iptables.stages(name)):
        objects.step(step) if number else None
        proxier.apply(node, objects.ports(config))
        for flow in flows:
            assert told(node, flow) == (flow["output"], flow["masq"]), flow["name"]


@pytest.mark.parametrize("name", by_nftables.with_flows())
def test_the_live_rules_of_nftables_mode_send_every_flow_where_it_belongs(node, name):
    config = by_nftables.config_of(by_nftables.read(f"kube_proxy_iptables/{name}/case.json"))
    give(node, config.node_ips)
    proxier = nftables.Proxier(config)
    for objects, flows in by_nftables.states_of(name):
        proxier.apply(node, service_ports(objects, config))
        for flow in flows:
            assert told(node, flow) == by_nftables.expected(flow, objects), flow["name"]


def test_every_flow_of_the_data_was_tried():
    assert len(by_iptables.flows()) >= SOME
    assert sum(len(flows) for name in by_nftables.with_flows() for _, flows in by_nftables.states_of(name)) >= SOME
