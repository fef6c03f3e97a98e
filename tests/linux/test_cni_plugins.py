"""Each of Debian's plugins once, for real; and the conformance check on good plugins and on broken ones."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from k8snet import End, Lab
from k8snet.cni import DEBIAN, OWN_PLUGINS, Runtime
from k8snet.cni.conformance import check_plugin
from k8snet.errors import InvalidConfig, PluginFailed, ProgramMissing
from k8snet.linux import nsfs
from k8snet.linux.run import scratch

OURS = (OWN_PLUGINS / "k8snet-bridge").read_text()


@pytest.fixture
def node(lab):
    return lab.netns("node", forward=True)


@pytest.fixture
def runtime(node):
    return Runtime(node, path=[OWN_PLUGINS, *DEBIAN])


@pytest.fixture
def data():
    with tempfile.TemporaryDirectory(prefix="leases-", dir=scratch()) as folder:
        yield Path(folder)


def host_local(data: Path, subnet: str = "10.1.0.0/24") -> dict[str, object]:
    return {"type": "host-local", "ranges": [[{"subnet": subnet}]], "dataDir": str(data)}


def net(*plugins: dict[str, object]) -> dict[str, object]:
    return {"cniVersion": "1.0.0", "name": "dbnet", "plugins": list(plugins)}


# -- Debian's, one by one -------------------------------------------------------------------


def test_loopback_takes_lo_up(lab, runtime):
    pod = lab.netns("a", loopback=False)
    result = runtime.add(net({"type": "loopback"}), container_id="c1", netns=pod, interface="lo")
    assert (result.interfaces[0].name, result.ips[0].address) == ("lo", "127.0.0.1/8")
    assert pod.ping("127.0.0.1").ok
    runtime.check(net({"type": "loopback"}), container_id="c1", netns=pod, interface="lo")
    runtime.delete(net({"type": "loopback"}), container_id="c1", netns=pod, interface="lo")
    assert not lab.snapshot()["a"].interface("lo").up


def test_host_local_alone_hands_out_addresses(lab, data, runtime):
    config = net({"type": "host-local", "ipam": host_local(data)})
    pod = lab.netns("a")
    assert runtime.add(config, container_id="c1", netns=pod).ips[0].address == "10.1.0.2/24"
    assert runtime.add(config, container_id="c2", netns=pod).ips[0].address == "10.1.0.3/24"
    runtime.delete(config, container_id="c1")
    assert [one.name for one in (data / "dbnet").iterdir() if one.name[0].isdigit()] == ["10.1.0.3"]


def test_static_gives_the_address_that_is_written(lab, runtime):
    ipam = {"type": "static", "addresses": [{"address": "10.1.0.9/24", "gateway": "10.1.0.1"}]}
    config = net({"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam})
    pod = lab.netns("a")
    assert runtime.add(config, container_id="c1", netns=pod).ips[0].address == "10.1.0.9/24"
    assert pod.ping("10.1.0.1").ok


def test_ptp_needs_no_bridge(lab, node, data, runtime):
    config = net({"type": "ptp", "ipam": host_local(data)})
    pod = lab.netns("a")
    runtime.add(config, container_id="c1", netns=pod)
    assert pod.ping("10.1.0.1").ok
    assert not [one for one in lab.snapshot()["node"].interfaces if one.kind == "bridge"]
    runtime.delete(config, container_id="c1", netns=pod)
    assert [one.name for one in lab.snapshot()["node"].interfaces] == ["lo"]


def test_macvlan_puts_a_container_on_the_nodes_own_network(lab, node, data, runtime):
    other = lab.netns("other")
    ends = [End(netns=one, name="eth0", address=f"10.1.0.{number}/24") for number, one in ((1, node), (200, other))]
    lab.veth(*ends)
    config = net({"type": "macvlan", "master": "eth0", "mode": "bridge", "ipam": host_local(data)})
    pod = lab.netns("a")
    runtime.add(config, container_id="c1", netns=pod)
    assert lab.snapshot()["a"].interface("eth0").kind == "macvlan"
    assert pod.ping("10.1.0.200").ok
    runtime.delete(config, container_id="c1", netns=pod)
    assert lab.snapshot()["a"].interface("eth0") is None


def test_bandwidth_tuning_and_firewall_follow_a_bridge_in_a_chain(lab, node, data, runtime):
    config = net(
        {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": host_local(data)},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        {"type": "tuning", "capabilities": {"mac": True}, "sysctl": {"net.core.somaxconn": "500"}, "mtu": 1400},
        {"type": "firewall"},
    )
    pod = lab.netns("a")
    offered = {"bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 100_000}, "mac": "02:00:00:00:00:42"}
    result = runtime.add(config, container_id="c1", netns=pod, capabilities=offered)
    assert [one.mac for one in result.interfaces if one.sandbox] == ["02:00:00:00:00:42"]
    assert pod.sysctl("net.core.somaxconn") == "500"
    assert lab.snapshot()["a"].interface("eth0").mtu == 1400
    cable = result.interfaces[1].name
    assert "tbf" in node.run("tc", "qdisc", "show", "dev", cable).stdout
    assert "-d 10.1.0.2/32" in node.run("iptables-save").stdout
    runtime.delete(config, container_id="c1", netns=pod)
    assert "10.1.0.2" not in node.run("iptables-save").stdout


def test_portmap_without_a_mapping_passes_the_result_through(lab, data, runtime):
    bridge = {"type": "bridge", "bridge": "cni0", "ipam": host_local(data)}
    config = net(bridge, {"type": "portmap", "capabilities": {"portMappings": True}})
    with runtime.recording() as calls:
        result = runtime.add(config, container_id="c1", netns=lab.netns("a"))
    assert json.loads(calls[0].stdout) == json.loads(calls[1].stdout) == result.to("1.0.0")


# -- our own -------------------------------------------------------------------------------------


def test_our_plugin_serves_two_families(data):
    with Lab("six", ipv6=True) as lab:
        node, pod = lab.netns("node", forward=True), lab.netns("a")
        ipam = {**host_local(data), "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]]}
        config = net({"type": "k8snet-bridge", "isDefaultGateway": True, "mtu": 1400, "ipam": ipam})
        runtime = Runtime(node, path=[OWN_PLUGINS, *DEBIAN])
        result = runtime.add(config, container_id="c1", netns=pod)
        assert [one.address for one in result.ips] == ["10.1.0.2/24", "fd00:1::2/64"]
        assert pod.ping("10.1.0.1").ok
        assert pod.ping("fd00:1::1").ok
        assert lab.snapshot()["a"].interface("eth0").mtu == 1400
        assert {one.via for one in lab.snapshot()["a"].routes if one.via} == {"10.1.0.1", "fd00:1::1"}


def test_our_plugin_says_what_it_cannot_do(lab, data, runtime):
    config = net({"type": "k8snet-bridge", "ipMasq": True, "ipam": host_local(data)})
    with pytest.raises(PluginFailed, match="unsupported field ipMasq: True") as caught:
        runtime.add(config, container_id="c1", netns=lab.netns("a"))
    assert caught.value.code == 2


def test_our_plugin_leaves_nothing_when_it_fails_half_way(lab, node, data, runtime):
    """A route that the kernel refuses, after cable, address and lease."""
    ipam = {**host_local(data), "routes": [{"dst": "192.0.2.0/24", "gw": "203.0.113.9"}]}
    config = net({"type": "k8snet-bridge", "isGateway": True, "ipam": ipam})
    with runtime.recording() as calls, pytest.raises(PluginFailed, match=r"route replace 192.0.2.0/24"):
        runtime.add(config, container_id="c1", netns=lab.netns("a"))
    assert calls[0].code == 1
    assert [one.name for one in lab.snapshot()["node"].interfaces] == ["lo", "cni0"]
    assert [one.name for one in (data / "dbnet").iterdir() if one.name[0].isdigit()] == []


def test_our_plugin_needs_nothing_but_the_standard_library():
    """It is a program to be read, and may run where k8snet is not installed."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(OWN_PLUGINS / "k8snet-bridge")],
        env={"CNI_COMMAND": "VERSION", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]


# -- the conformance check -------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", ["bridge", "ptp", "k8snet-bridge", "host-local", "loopback"])
def test_good_plugins_conform(lab, plugin):
    report = check_plugin(plugin, lab)
    assert report.ok, str(report)
    assert {row.what: row.outcome for row in report.rows}["DEL"] == "ok"
    assert nsfs.names() == []
    assert len(lab.transcript) == 0


@pytest.mark.parametrize("version", ["0.1.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_our_plugin_conforms_in_every_version(lab, data, version):
    config = {"cniVersion": version, "isGateway": True, "ipam": host_local(data)}
    report = check_plugin("k8snet-bridge", lab, config=config)
    assert report.ok, str(report)


def test_what_debians_plugins_do_not_know_is_no_failure(lab):
    outcomes = {row.what: row.outcome for row in check_plugin("bridge", lab).rows}
    assert [outcomes["STATUS"], outcomes["GC"]] == ["not supported", "not supported"]
    ours = {row.what: row.outcome for row in check_plugin("k8snet-bridge", lab).rows}
    assert set(ours.values()) == {"ok"}


BREAKS = {  # what a reader may get wrong: the text that is replaced, and the row that says so
    "VERSION": ('"supportedVersions": VERSIONS', '"versions": VERSIONS'),
    "ADD": ('return {**result, "cniVersion": version}', 'return {**result, "cniVersion": "1.0.0"}'),
    "The interface": ('"address", "add", str(address)', '"address", "add", f"{address.ip + 9}/24"'),
    "Ping to the gateway": ('run("ip", "address", "replace"', 'run("true", "address", "replace"'),
    "ADD a second time": ("if cable in links() or interface", "if cable in links(): return {}\n    if interface"),
    "CHECK": ("        raise Failed(CONFIG, \"CHECK needs prevResult\")", "        pass\n    raise Failed(OURS, 'no')"),
    "DEL": ("    ipam(config, \"DEL\")\n", ""),
    "DEL a second time": ("    if cable in links():\n        run", "    if 1:\n        run"),
    "CHECK of a container that lost its interface": ('    ipam(config, "CHECK")\n', "    return\n"),
    "DEL of a container that is gone": (
        '"DEL": ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"]', '"DEL": ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]',
    ),
    "ADD without a variable that it needs": ('"ADD": ["CNI_CONTAINERID", ', '"ADD": ['),
    "A command that does not exist": ('raise Failed(ENVIRONMENT, f"unknown', 'raise Failed(OURS, f"unknown'),
    "A configuration that is not JSON": ("except (ValueError, AttributeError) as", "except AttributeError as"),
    "A configuration without a name": ("[A-Za-z0-9][A-Za-z0-9_.-]*\", name", "[A-Za-z0-9_.-]*\", name"),
    "A cniVersion that nobody knows": ("if version not in VERSIONS or", "if version in VERSIONS and"),
    "STATUS": ("def status(config):\n", "def status(config):\n    raise Failed(NOT_AVAILABLE, 'gone fishing')\n"),
    "GC": ("tuple(owner) not in valid", "True"),
    "Standard output": ("    command, version = os.environ", "    print('hello')\n    command, version = os.environ"),
}  # fmt: skip


@pytest.mark.parametrize("row", BREAKS)
def test_a_broken_plugin_is_found_out(lab, tmp_path, row):
    old, new = BREAKS[row]
    assert OURS.count(old) >= 1
    plugin = tmp_path / "mine"
    plugin.write_text(OURS.replace(old, new))
    plugin.chmod(0o755)
    report = check_plugin(plugin, lab)
    assert not report.ok
    found = {one.what: one for one in report.rows}
    assert found[row].outcome == "failed", str(report)
    assert found[row].expected in str(report)
    assert nsfs.names() == []


def test_a_plugin_that_only_prints_a_traceback_gets_a_whole_report(lab, tmp_path):
    plugin = tmp_path / "mine"
    plugin.write_text("#!/bin/sh\necho Traceback >&2\nexit 1\n")
    plugin.chmod(0o755)
    report = check_plugin(plugin, lab)
    assert not report.ok
    assert "Traceback" in str(report)
    assert report.calls[0].stderr == "Traceback\n"
    assert json.loads(json.dumps(report.to_dict()))["ok"] is False
    assert "✗ failed" in report._repr_html_()


def test_what_is_no_plugin_is_refused(lab, tmp_path):
    with pytest.raises(ProgramMissing, match="'nosuch'"):
        check_plugin(tmp_path / "nosuch", lab)
    with pytest.raises(InvalidConfig, match="ipam"):
        check_plugin("bridge", lab, config={"ipam": 5})
    assert nsfs.names() == []
