"""kube-proxy in IPVS mode on a kernel that cannot; tests/vm has those on one that can."""

from __future__ import annotations

from pathlib import Path

import pytest

from k8snet.controllers.kube_proxy.ipvs import Proxier
from k8snet.controllers.kube_proxy.service_ports import ProxyConfig, ServicePort
from k8snet.errors import CapabilityMissing
from k8snet.linux import ipvs

pytestmark = pytest.mark.skipif(Path("/proc/net/ip_vs").exists(), reason="this Linux has IPVS")
SAID = r'this kernel has no IPVS\. Run it with the kernelspec "k8snet-vm", or: k8snet sandbox --vm -- '


def test_a_kernel_without_ipvs_says_where_to_run_before_anything_is_changed(lab):
    node = lab.netns("node")
    before, mark = lab.snapshot(), len(lab.transcript)
    port = ServicePort(
        namespace="shop", name="web", port_name="", protocol="TCP", cluster_ip="10.96.0.20", port=80
    )  # fmt: skip
    with pytest.raises(CapabilityMissing, match=SAID):
        Proxier(ProxyConfig(node_name="node")).apply(node, [port])
    assert lab.snapshot() == before
    assert not lab.transcript.since(mark).entries
    assert ipvs.virtual_servers(node) == []
    assert node.sysctl("net.ipv4.ip_forward") == "0"


def test_a_cluster_goes_on_without_a_mode_that_it_cannot_have(cluster_of):
    cluster = cluster_of(1)
    with pytest.raises(CapabilityMissing, match=SAID):
        cluster.start_proxy("ipvs")
    cluster.start_proxy("iptables")
