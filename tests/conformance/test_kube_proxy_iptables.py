"""kube-proxy in iptables mode against upstream's own test tables: text, chains, syncs and flows, and live."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from k8snet.cluster.manifests import parse
from k8snet.cluster.objects import key_of
from k8snet.controllers.kube_proxy.iptables import Proxier, render
from k8snet.controllers.kube_proxy.service_ports import Endpoint, ProxyConfig, ServicePort, service_ports
from tests.conformance.conftest import DATA, read
from tests.conformance.live_service import Stage
from tests.conformance.packet_tracer import Tracer, chains

FOLDER = DATA / "kube_proxy_iptables"
CASES = {path.parent.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*/case.json"))}
NFACCT = re.compile(r" -m nfacct --nfacct-name \S+")
pytestmark = pytest.mark.usefixtures("conformance")


def config_of(case: dict, **other: object) -> ProxyConfig:
    given = case["config"]
    return ProxyConfig(
        node_name=given["nodeName"], node_ips=tuple(given["nodeIPs"]), family=given["ipFamily"].replace("IP", ""),
        cluster_cidr=given["clusterCIDR"] if given["localDetector"] == "ClusterCIDR" else None,
        masquerade_all=given["masqueradeAll"], masquerade_bit=given["masqueradeBit"],
        localhost_nodeports=given["localhostNodePorts"], nodeport_addresses=tuple(given["nodePortAddresses"] or ()),
        random_fully=given["hasRandomFully"], tcp_liberal=given["conntrackTCPLiberal"], **other,
    )  # fmt: skip


class Objects(dict):
    """The objects of a case, changed by its steps."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.apply((FOLDER / name / "manifests.yaml").read_text())

    def apply(self, text: str) -> None:
        self.update({key_of(one): one for one in parse(text, lenient=True).objects})

    def step(self, step: dict) -> None:
        self.apply(json.dumps({"kind": "List", "items": step["apply"]})) if step.get("apply") else None
        said = re.findall(r"(?:Service|EndpointSlice) \S+/\S+?(?=[ ,]|$)", step["action"])
        for one in step.get("delete", said if step["action"].startswith("delete") else []):
            kind, _, name = one.partition(" ")
            del self[(kind, *name.split("/"))]

    def ports(self, config: ProxyConfig) -> list[ServicePort]:
        return service_ports(self.values(), config)


def stages(name: str) -> list[tuple[dict, list[dict]]]:
    """Return the steps of a case and what is tried after each."""
    case = CASES[name]
    steps = case.get("steps") or [{"action": "apply", "flows": case.get("flows", [])}]
    return [(step, step.get("flows", [])) for step in steps]


def flows() -> list:
    return [
        pytest.param(name, number, flow, id=f"{name}-{number}-{flow['name']}")
        for name in CASES
        for number, (_, several) in enumerate(stages(name))
        for flow in several
    ]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "expectedRulesFile" in case])
def test_the_text_is_upstreams_to_the_letter(name):
    expected = (FOLDER / name / CASES[name]["expectedRulesFile"]).read_text()
    config = config_of(CASES[name], nfacct=True)
    assert str(render(Objects(name).ports(config), config, external_chains_only=True)) == expected


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "expectedRulesFile" in case])
def test_without_nfacct_every_chain_is_the_same_but_for_that_match(name):
    expected = NFACCT.sub("", (FOLDER / name / CASES[name]["expectedRulesFile"]).read_text())
    config = config_of(CASES[name])
    assert chains(str(render(Objects(name).ports(config), config, external_chains_only=True))) == chains(expected)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "expectedChains" in case])
def test_chains_have_the_expected_rules(name):
    config = config_of(CASES[name], nfacct=True)
    found = chains(str(render(Objects(name).ports(config), config, external_chains_only=True)))
    for one in CASES[name]["expectedChains"]:
        assert found.get((one["table"], one["chain"]), []) == one["rules"]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "expectedRuleWithDestinationInChain" in case])
def test_a_load_balancers_address_has_a_rule_where_upstream_has_one(name):
    config, wanted = config_of(CASES[name]), CASES[name]["expectedRuleWithDestinationInChain"]
    found = chains(str(render(Objects(name).ports(config), config)))[wanted["table"], wanted["chain"]]
    assert any(f" -d {wanted['destination']} " in rule for rule in found) is wanted["exists"]


@pytest.mark.parametrize(("name", "number", "flow"), flows())
def test_a_packet_goes_where_upstream_sends_it(name, number, flow):
    config, objects = config_of(CASES[name]), Objects(name)
    for step, _ in stages(name)[1 : number + 1]:
        objects.step(step)
    tracer = Tracer(str(render(objects.ports(config), config)), config.node_ips)
    found = tracer.trace(flow["sourceIP"], flow["protocol"], flow["destIP"], flow["destPort"])
    assert found == (flow["output"], flow["masq"])


def test_each_sync_writes_what_upstream_writes():
    """The last one follows a failure: a jump that is not ours held a chain that was to go."""
    case, objects, total = CASES["sync_repeated"], Objects("sync_repeated"), 0
    config = config_of(case, nfacct=True)
    proxier = Proxier(config)
    for number, step in enumerate(case["steps"]):
        objects.step(step) if number else None
        ports = objects.ports(config)
        if "fails" in step["action"]:
            proxier.sync(ports)
            proxier.failed()
        text = str(proxier.sync(ports))
        assert text == (FOLDER / "sync_repeated" / step["expectedRulesFile"]).read_text(), step["action"]
        rules = str(render(ports, config)).split("*nat")[1].count("-A KUBE-")
        if number:
            assert rules - total == step["natRulesTotalDelta"], step["action"]
        total = rules


def test_probabilities_are_printed_as_upstream_prints_them():
    table = (read("kube_proxy_iptables/probabilities.json") or {})["computeProbability"]
    for text, expected in table.items():
        if int(text) <= 10_000:
            ends = tuple(Endpoint(address=f"10.0.{n // 250}.{n % 250}", port=80) for n in range(int(text)))
            port = ServicePort(
                namespace="a", name="b", port_name="", protocol="TCP", cluster_ip="10.96.0.1", port=80, endpoints=ends
            )
            rules = str(render([port], ProxyConfig(node_name="n")))
            found = re.findall(r"--probability (\S+)", rules)
            assert [*found, "1.0000000000"][0] == expected
            assert sorted(set(found)) == found  # one of n, of n - 1, ...: always more likely


@pytest.mark.parametrize("name", [name for name in CASES if any(several for _, several in stages(name))])
def test_live_connections_go_where_upstream_sends_them(lab, name):
    """Real SYNs from the given address to the given one; the node's conntrack tells endpoint and masquerade."""
    config, objects = config_of(CASES[name]), Objects(name)
    several = [flow for _, flows in stages(name) for flow in flows if flow["protocol"] in {"TCP", "UDP"}]
    ends = {(one.address, one.port, port.protocol) for port in objects.ports(config) for one in port.endpoints}
    stage, proxier = Stage(lab, config, several, ends), Proxier(config)
    for number, (step, here) in enumerate(stages(name)):
        objects.step(step) if number else None
        proxier.apply(stage.node, objects.ports(config))
        for flow in here:
            if flow in several:
                assert stage.tell(flow) == (flow["output"], flow["masq"]), flow["name"]
    proxier.remove(stage.node)
    assert "KUBE" not in stage.node.iptables_save(backend="nft")


def test_every_case_of_the_data_was_tried():
    assert Path(FOLDER).is_dir()
    assert len(CASES) >= 15
    assert len(flows()) >= 80
