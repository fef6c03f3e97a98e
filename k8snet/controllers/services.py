"""Services of a cluster: addresses, EndpointSlices, and kube-proxy on every node, kept in step with the pods.

    Service ──────┐
                  ├── EndpointSlice ── ServicePort ── rules in each node's netns, one kube-proxy each
    Pod ──────────┘
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lightkube.resources.core_v1 import Service
from lightkube.resources.discovery_v1 import EndpointSlice

from k8snet.cluster.objects import key_of, labels_of
from k8snet.controllers.addresses import SERVICE_NETWORK, assign
from k8snet.controllers.endpoint_slice import MANAGED_BY, OURS, Backend, render
from k8snet.controllers.joining import join
from k8snet.controllers.kube_proxy import conflicts, proxier
from k8snet.controllers.kube_proxy.service_ports import ProxyConfig, ServicePort, service_ports
from k8snet.controllers.load_balancer_health import HealthChecks
from k8snet.errors import InvalidInput

if TYPE_CHECKING:
    from k8snet.cluster.cluster import Cluster
    from k8snet.cluster.node import Node
    from k8snet.cluster.pod import Pod

__all__ = ["Services"]


class Services:
    """What makes Services work in a cluster; sync() is called after each change of its pods."""

    def __init__(self, cluster: Cluster, *, mode: str = "iptables") -> None:
        """Start kube-proxy on every node of *cluster*, in a mode: "iptables", "nftables" or "ipvs".

        Raises:
            InvalidInput: no such mode, or kube-proxy runs already.
            CapabilityMissing: mode "ipvs" where the kernel has no IPVS.
        """
        if mode not in proxier.MODES:
            raise InvalidInput(f"proxy mode {mode!r}: one of {', '.join(proxier.MODES)}")
        if any(isinstance(one, Services) for one in cluster.controllers):
            raise InvalidInput("kube-proxy runs in this cluster already; stop() it first")
        self.cluster, self.mode = cluster, mode
        self._proxies: dict[tuple[str, str], Any] = {}  # (node, family) -> its kube-proxy
        self._health = HealthChecks(cluster.lab)
        self.check(cluster.objects.values())
        join(cluster, self)

    def check(self, wanted: Iterable[Any]) -> None:
        """Refuse Services that have one cluster IP or one node port.

        Raises:
            InvalidManifest: two have; the message names both.
        """
        conflicts.check(wanted)

    def sync(self) -> None:
        """Bring addresses, slices and every node's rules in step with the cluster's objects and pods."""
        objects = self.cluster.objects
        services = assign([one for one in objects.values() if isinstance(one, Service)], self.cluster.ip_families)
        objects.update({key_of(one): one for one in services})
        backends = [_backend(pod) for pod in self.cluster.pods.values() if pod.node and pod.addresses]
        mine = {key_of(one): one for one in render(services, backends)}
        for key in [key for key, one in objects.items() if _ours(one) and key not in mine]:
            del objects[key]
        objects.update(mine)
        present = {node.name for node in self.cluster.nodes.values()}
        self._proxies = {key: one for key, one in self._proxies.items() if key[0] in present}
        nodes = [node for node in self.cluster.nodes.values() if node.ready]
        for node in nodes:
            for family in self.cluster.ip_families:
                self._proxy(node, family).apply(node.netns, self.ports(node, family))
        self._health.sync({node: self.ports(node) for node in nodes})

    def ports(self, node: Node, family: str = "v4") -> list[ServicePort]:
        """Return what kube-proxy on a node programs, before it is made into rules."""
        return service_ports(self.cluster.objects.values(), self.config(node, family))

    def config(self, node: Node, family: str = "v4") -> ProxyConfig:
        """Return the configuration of a node's kube-proxy."""
        return ProxyConfig(
            node_name=node.name, node_ips=(node.addresses[family], node.gateway(family)), family=family,
            cluster_cidr=str(self.cluster.cluster_networks[family]), service_cidrs=(SERVICE_NETWORK[family],),
        )  # fmt: skip

    def stop(self) -> None:
        """Take every node's rules away."""
        for (name, _), one in self._proxies.items():
            if name in self.cluster.nodes:
                one.remove(self.cluster.nodes[name].netns)
        self._proxies.clear()
        self._health.stop()
        self.cluster.controllers.remove(self)

    def _proxy(self, node: Node, family: str) -> Any:
        key = node.name, family
        if key not in self._proxies:
            self._proxies[key] = proxier.make(self.mode, self.config(node, family))
        return self._proxies[key]


def _backend(pod: Pod) -> Backend:
    spec = pod.model.spec
    return Backend(
        namespace=pod.namespace, name=pod.name, labels=pod.labels, node=pod.home.name, addresses=pod.addresses,
        ports={(port.name, port.protocol): port.number for port in pod.ports if port.name},
        ready=pod.ready, terminating=pod.terminating, hostname=spec.hostname,
        subdomain=spec.subdomain,
    )  # fmt: skip


def _ours(one: Any) -> bool:
    return isinstance(one, EndpointSlice) and labels_of(one).get(MANAGED_BY) == OURS
