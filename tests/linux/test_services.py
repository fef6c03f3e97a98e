"""Services in a cluster: the pods behind them, reached by an address that belongs to nobody."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from k8snet.errors import InvalidInput

SHOP = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: nginx, ports: [{name: http, containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{name: http, port: 8080, targetPort: http, nodePort: 30080}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
"""
NO_IPVS = pytest.mark.skipif(not Path("/proc/net/ip_vs").exists(), reason="this Linux has no IPVS; see tests/vm")
pytestmark = pytest.mark.parametrize("mode", ["iptables", "nftables", pytest.param("ipvs", marks=NO_IPVS)])


def address(cluster, name):
    return cluster.objects["Service", "default", name].spec.clusterIP


def servers(source, url, count=24):
    return Counter(source.fetch(url).body.split()[0] for _ in range(count))


def test_a_service_is_reached_from_pods_of_every_node_from_nodes_and_by_the_node_port(cluster_of, mode):
    cluster = cluster_of(2)
    cluster.apply(SHOP)
    clients = [cluster.run_pod(f"client{n}", image="pause", node=f"node{n}") for n in (1, 2)]
    cluster.start_proxy(mode)
    url = f"http://{address(cluster, 'web')}:8080"
    for client in [*clients, cluster.node("node1").netns]:
        assert set(servers(client, url)) == {"web-1", "web-2", "web-3"}
    for node in ("172.18.0.1", "172.18.0.2"):
        assert cluster.internet.fetch(f"http://{node}:30080").ok


def test_a_pod_reaches_itself_by_its_service(cluster_of, mode):
    """Hairpin: the packet leaves by the port that it came from, and is masqueraded so that the answer comes back."""
    cluster = cluster_of(1)
    cluster.apply(SHOP.replace("replicas: 3", "replicas: 1"))
    cluster.start_proxy(mode)
    answer = cluster.pod("web-1").fetch(f"http://{address(cluster, 'web')}:8080")
    assert answer.ok
    assert answer.server_sees[0].startswith("10.244.1.1:")


def test_a_service_without_endpoints_says_no_at_once(cluster_of, mode):
    cluster = cluster_of(1)
    client = cluster.run_pod("client", image="pause")
    cluster.apply(SHOP)
    cluster.start_proxy(mode)
    assert client.connect(address(cluster, "nobody"), 80).outcome == "refused"


def test_the_pods_behind_a_service_follow_its_workload_and_its_nodes(cluster_of, mode):
    cluster = cluster_of(2)
    client = cluster.run_pod("client", image="pause", node="node2")
    cluster.apply(SHOP)
    cluster.start_proxy(mode)
    url = f"http://{address(cluster, 'web')}:8080"
    cluster.apply(SHOP.replace("replicas: 3", "replicas: 1"))
    assert set(servers(client, url)) == {"web-1"}
    cluster.add_node()
    cluster.apply(SHOP.replace("replicas: 3", "replicas: 4"))
    assert set(servers(client, url, 60)) == {"web-1", "web-2", "web-3", "web-4"}
    third = cluster.run_pod("third", image="pause", node="node3")
    assert third.fetch(url).ok
    cluster.remove_node("node1")
    assert set(servers(client, url, 60)) == {pod.name for pod in cluster.pods.values() if pod.name.startswith("web")}


def test_a_pod_that_is_not_ready_gets_no_traffic(cluster_of, mode):
    cluster = cluster_of(1)
    client = cluster.run_pod("client", image="pause")
    probed = SHOP.replace("image: nginx,", "image: nginx, readinessProbe: {tcpSocket: {port: http}},")
    cluster.apply(probed)
    cluster.start_proxy(mode)
    cluster.pod("web-2").netns.iptables("-A INPUT -p tcp --dport 80 -s 10.244.1.1 -j REJECT")
    cluster.sync()
    assert set(servers(client, f"http://{address(cluster, 'web')}:8080")) == {"web-1", "web-3"}
    assert "web-ipv4-1" in str(cluster.get("endpointslices"))


def test_both_families_of_a_dual_stack_service_work(cluster_of, mode):
    cluster = cluster_of(2, ip_families=("v4", "v6"))
    client = cluster.run_pod("client", image="pause")
    cluster.apply(SHOP.replace("type: NodePort,", "type: NodePort, ipFamilyPolicy: PreferDualStack,"))
    cluster.start_proxy(mode)
    four, six = cluster.objects["Service", "default", "web"].spec.clusterIPs
    assert set(servers(client, f"http://{four}:8080")) == set(servers(client, f"http://[{six}]:8080"))


def test_stopped_it_leaves_the_nodes_as_they_were_and_their_addresses_silent(cluster_of, mode):
    cluster = cluster_of(2)
    client = cluster.run_pod("client", image="pause")
    cluster.apply(SHOP)
    before = cluster.snapshot()
    services = cluster.start_proxy(mode)
    vip = address(cluster, "web")
    assert client.connect(vip, 8080).ok
    with pytest.raises(InvalidInput, match="runs in this cluster already"):
        cluster.start_proxy(mode)
    services.stop()
    assert not client.connect(vip, 8080, timeout_s=0.3).ok
    assert cluster.snapshot() == before, before.diff(cluster.snapshot())


def test_a_mode_that_does_not_exist_is_refused(cluster_of, mode):
    with pytest.raises(InvalidInput, match="proxy mode 'ebpf': one of iptables, nftables, ipvs"):
        cluster_of(1).start_proxy("ebpf")
