"""NetworkPolicy in a cluster: the rules of every node, in step with policies, pods, labels and namespaces."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lightkube.resources.core_v1 import Namespace
from lightkube.resources.networking_v1 import NetworkPolicy

from k8snet.cluster.objects import labels_of, name_of
from k8snet.controllers.joining import join
from k8snet.controllers.network_policy.compiler import PolicyPod, PolicyTable
from k8snet.controllers.network_policy.rules import Enforcer, program
from k8snet.errors import InvalidInput

if TYPE_CHECKING:
    from k8snet.cluster.cluster import Cluster
    from k8snet.cluster.node import Node
    from k8snet.cluster.pod import Pod

__all__ = ["NetworkPolicies", "table_of"]


class NetworkPolicies:
    """What enforces the NetworkPolicies of a cluster; sync() is called after each change of its objects and pods."""

    def __init__(self, cluster: Cluster) -> None:
        """Start on every node of *cluster*.

        Raises:
            InvalidInput: it runs already.
        """
        if any(isinstance(one, NetworkPolicies) for one in cluster.controllers):
            raise InvalidInput("NetworkPolicies are enforced in this cluster already; stop() that first")
        self.cluster = cluster
        self.table = PolicyTable([], [])
        self._inputs: object = None  # of the table; nothing is done while they stay the same
        self._enforcers: dict[Node, Enforcer] = {}
        join(cluster, self)
        cluster.isolate = self.sync  # type: ignore[method-assign]

    def check(self, wanted: Iterable[Any]) -> None:
        """Refuse nothing: policies never contradict each other, they only add up."""

    def sync(self) -> None:
        """Bring every node's rules in step with the cluster's policies, namespaces and pods."""
        nodes = [node for node in self.cluster.nodes.values() if node.ready]
        inputs = _inputs(self.cluster)
        known = inputs == self._inputs
        if known and all(node in self._enforcers for node in nodes):
            return
        self._inputs = None  # until the nodes have it
        self.table = self.table if known else PolicyTable(*inputs)
        present = set(self.cluster.nodes.values())
        self._enforcers = {node: one for node, one in self._enforcers.items() if node in present}
        for node in nodes:
            enforcer = self._enforcers.setdefault(node, Enforcer())
            enforcer.apply(node.netns, program(self.table, node.name, self.cluster.ip_families))
        if len(nodes) == len(present):
            self._inputs = inputs

    def stop(self) -> None:
        """Take every node's rules away: all is allowed again."""
        for node, one in self._enforcers.items():
            if self.cluster.nodes.get(node.name) is node:
                one.remove(node.netns)
        self._enforcers.clear()
        self.cluster.controllers.remove(self)
        del self.cluster.isolate  # the class's is left


def table_of(cluster: Cluster) -> PolicyTable:
    """Return what the policies of a cluster say together, whether or not they are enforced."""
    return PolicyTable(*_inputs(cluster))


def _inputs(cluster: Cluster) -> tuple[Any, ...]:
    objects = cluster.objects.values()
    nodes = {
        node.name: (*node.addresses.values(), *(node.gateway(family) for family in node.pod_cidrs))
        for node in cluster.nodes.values()
    }  # fmt: skip
    return (
        [one for one in objects if isinstance(one, NetworkPolicy)],
        [_pod(pod) for pod in cluster.pods.values() if pod.node and pod.addresses],
        {name_of(one): dict(labels_of(one)) for one in objects if isinstance(one, Namespace)}, nodes,
    )  # fmt: skip


def _pod(pod: Pod) -> PolicyPod:
    ports = tuple((port.name, port.protocol, port.number) for port in pod.ports if port.name)
    return PolicyPod(
        namespace=pod.namespace, name=pod.name, labels=pod.labels, addresses=pod.addresses, ports=ports,
        node=pod.home.name, host_network=pod.host_network,
    )  # fmt: skip
