"""Wiring: how a pod gets its netns, its cable to the node's bridge, and its addresses.

    cni      as a container runtime does: a netns with nothing but lo, then CNI ADD of a chain
             of Debian's plugins (bridge with host-local, portmap) in the node's netns
    direct   k8snet does what that chain does, many pods at once, over netlink

Both leave the same state, leases on disk included; a test compares them. A pod with host
ports takes the way of cni in either, since portmap writes the rules.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import TYPE_CHECKING, Any

from k8snet.cluster.layout import port_name
from k8snet.cluster.node import BRIDGE, Node
from k8snet.cni.config import NetworkList, load
from k8snet.cni.ipam import Leases
from k8snet.cni.runtime import Runtime
from k8snet.errors import InvalidInput, K8snetError, KernelRefused, NotFound
from k8snet.lab import Attachment
from k8snet.linux.address import mac_for, network

if TYPE_CHECKING:
    from k8snet.cluster.pod import Pod
    from k8snet.lab import Lab

__all__ = ["WIRINGS", "Cni", "Direct", "forget", "network_list"]

NETWORK = "k8snet"  # name of the CNI network, and of the folder of its leases
INTERFACE = "eth0"
AT_ONCE = 4  # nodes whose plugins run at the same time
DEFAULT_ROUTE = {"v4": "0.0.0.0/0", "v6": "::/0"}


def network_list(node: Node, *, mtu: int) -> dict[str, Any]:
    """Return the CNI configuration list of a node, as it would stand in /etc/cni/net.d."""
    ranges = [[{"subnet": cidr, "gateway": node.gateway(family)}] for family, cidr in node.pod_cidrs.items()]
    return {
        "cniVersion": "1.0.0",
        "name": NETWORK,
        "plugins": [
            {
                "type": "bridge", "bridge": BRIDGE, "isGateway": True, "hairpinMode": True, "mtu": mtu,
                "capabilities": {"ips": True, "mac": True},
                "ipam": {
                    "type": "host-local", "dataDir": str(node.folder / "networks"), "ranges": ranges,
                    "routes": [{"dst": DEFAULT_ROUTE[family]} for family in node.pod_cidrs],
                },
            },
            {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}},
        ],
    }  # fmt: skip


class Cni:
    """Pods attached by CNI plugins."""

    def __init__(self, lab: Lab, *, mtu: int) -> None:
        """Prepare for pods with an MTU in bytes."""
        self.lab, self.mtu = lab, mtu

    def runtime(self, node: Node) -> Runtime:
        """Return the CNI runtime of a node."""
        return Runtime(node.netns, cache=node.folder / "results")

    def network(self, node: Node) -> NetworkList:
        """Return the CNI configuration of a node."""
        return load(network_list(node, mtu=self.mtu))

    def attach(self, placed: dict[Node, list[Pod]], names: Callable[[Pod], str], done: Callable[[int], None]) -> None:
        """Give each pod its netns and addresses; one that cannot have them gets a reason.

        Args:
            placed: new pods, by node.
            names: the name of a pod's netns.
            done: told how many pods were attached.
        """
        for pods in placed.values():
            for pod in pods:
                pod.own_netns = self.lab.netns(names(pod))

        def work(node: Node, pods: list[Pod]) -> None:  # one by one, so that addresses come in order
            for pod in pods:
                self._add(node, pod)
                done(1)

        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="k8snet-cni") as pool:
            for future in [pool.submit(work, node, pods) for node, pods in placed.items()]:
                future.result()

    def _add(self, node: Node, pod: Pod) -> None:
        capabilities: dict[str, Any] = {"mac": mac_for(pod.netns.name, INTERFACE)}
        if pod.plan.wanted_addresses:
            lengths = {network(cidr).version: network(cidr).prefixlen for cidr in node.pod_cidrs.values()}
            capabilities["ips"] = [f"{one}/{lengths[6 if ':' in one else 4]}" for one in pod.plan.wanted_addresses]
        if mappings := _port_mappings(pod):
            capabilities["portMappings"] = mappings
        try:
            result = self.runtime(node).add(
                self.network(node), container_id=pod.id, netns=pod.netns, interface=INTERFACE, capabilities=capabilities
            )
        except K8snetError as error:
            self.lab.remove(pod.netns.name)
            pod.own_netns, pod.reason = None, str(error)
            return
        pod.addresses = tuple(one.address.partition("/")[0] for one in result.ips)

    def detach(self, pod: Pod) -> None:
        """Let the plugins free what they took, and end the netns."""
        netns = pod.netns if pod.netns.exists else None
        self.runtime(pod.home).delete(self.network(pod.home), container_id=pod.id, netns=netns, interface=INTERFACE)
        if netns:
            self.lab.remove(netns.name)


class Direct(Cni):
    """Pods attached by k8snet itself, many at once."""

    def attach(self, placed: dict[Node, list[Pod]], names: Callable[[Pod], str], done: Callable[[int], None]) -> None:
        """Reserve addresses, and make netns, cables, addresses and routes in one batch a node."""
        for node, pods in placed.items():
            for mapped, group in groupby(pods, key=lambda pod: bool(_port_mappings(pod))):  # addresses come in order
                if mapped:
                    super().attach({node: list(group)}, names, done)
                else:
                    batch = list(group)
                    self._attach_batch(node, batch, names)
                    done(len(batch))

    def _attach_batch(self, node: Node, pods: list[Pod], names: Callable[[Pod], str]) -> None:
        batch = {pod: addresses for pod in pods if (addresses := self._reserve(node, pod))}
        wanted = [self._attachment(node, pod, names(pod), found) for pod, found in batch.items()]
        try:
            made = self.lab.attach_all(node.netns, BRIDGE, wanted)
        except BaseException:
            for pod in batch:
                self._release(node, pod)
            raise
        for netns, (pod, addresses) in zip(made, batch.items(), strict=True):
            pod.own_netns, pod.addresses = netns, tuple(one.partition("/")[0] for one in addresses)

    def detach(self, pod: Pod) -> None:
        """Free the addresses, and end the netns."""
        if _port_mappings(pod):
            super().detach(pod)
            return
        if pod.netns.exists:
            self.lab.remove(pod.netns.name)
        else:  # deleted by hand: the kernel may not have come round to the cable
            self.lab.adopt()
            with contextlib.suppress(NotFound, KernelRefused):  # it may come round to it just now
                pod.home.netns.delete_link(port_name(pod.namespace, pod.name))
        self._release(pod.home, pod)

    def _leases(self, node: Node) -> list[Leases]:
        folder = node.folder / "networks" / NETWORK
        return [
            Leases(folder, cidr, gateway=node.gateway(family), range_number=number)
            for number, (family, cidr) in enumerate(node.pod_cidrs.items())
        ]

    def _reserve(self, node: Node, pod: Pod) -> list[str]:
        """Return an address of each family, or nothing, and then the pod has a reason."""
        found: list[str] = []
        try:
            for leases in self._leases(node):
                asked = [one for one in pod.plan.wanted_addresses if (":" in one) == (":" in leases.subnet)]
                found.append(leases.reserve(pod.id, INTERFACE, wanted=asked[0] if asked else None))
        except InvalidInput as error:
            self._release(node, pod)
            pod.reason = str(error)
            return []
        return found

    def _release(self, node: Node, pod: Pod) -> None:
        for leases in self._leases(node):
            leases.release(pod.id, INTERFACE)

    def _attachment(self, node: Node, pod: Pod, netns: str, addresses: Sequence[str]) -> Attachment:
        gateways = [node.gateway(family) for family in node.pod_cidrs]
        second = {"second_address": addresses[1], "second_gateway": gateways[1]} if len(addresses) > 1 else {}
        return Attachment(
            netns=netns, port=port_name(pod.namespace, pod.name), address=addresses[0], gateway=gateways[0],
            mtu=self.mtu, hairpin=True, **second,
        )  # fmt: skip


WIRINGS = {"cni": Cni, "direct": Direct}


def forget(node: Node) -> None:
    """Remove what is kept on disk for a node that is gone."""
    shutil.rmtree(node.folder, ignore_errors=True)


def _port_mappings(pod: Pod) -> list[dict[str, Any]]:
    return [
        {"hostPort": port.host_port, "containerPort": port.number, "protocol": port.protocol.lower()}
        for port in pod.ports if port.host_port
    ]  # fmt: skip

