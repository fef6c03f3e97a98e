"""Pod networks: how a packet for a pod of another node gets there.

    routes   as flannel's host-gw: a route to each other node's pod CIDR, via that node
    vxlan    as flannel's vxlan: frames inside UDP 8472, with static neighbours and FDB entries
    bgp      one BIRD a node tells the others of its pod CIDR (bgp.py)

A pod network has four verbs: join() a node, leave() it, repair() what has ended, and
hop(), which says where a node should send packets for another node's pods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from k8snet.cluster.node import UPLINK, Node
from k8snet.errors import InvalidInput, NotFound
from k8snet.linux.address import mac_for, network

if TYPE_CHECKING:
    from k8snet.cluster.fabric import Fabric

__all__ = ["KINDS", "PodNetwork", "Routes", "Vxlan", "make"]

ETHERNET_MTU = 1500  # bytes
VNI = 1  # flannel's
VXLAN_DEVICE = {"v4": "flannel.1", "v6": "flannel-v6.1"}
OVERHEAD = {"v4": 50, "v6": 70}  # bytes: outer IP header 20 or 40, UDP 8, VXLAN 8, inner Ethernet 14


class PodNetwork(Protocol):
    """What carries packets between the pods of two nodes."""

    kind: str

    def mtu(self, families: Sequence[str]) -> int:
        """Return the MTU of the pods' interfaces, in bytes."""

    def join(self, node: Node, others: Sequence[Node]) -> None:
        """Make *node* and *others* reach each other's pods."""

    def leave(self, node: Node, others: Sequence[Node]) -> None:
        """Let *others* forget the pods of *node*."""

    def settle(self) -> None:
        """Wait until every node knows the way."""

    def repair(self, nodes: Sequence[Node]) -> list[str]:
        """Start again what has ended, and return what that was."""

    def hop(self, node: Node, other: Node, family: str) -> tuple[str, str]:
        """Return the next hop and the interface by which *node* sends to the pods of *other*."""


class Routes:
    """A route to each other node's pod CIDR, via that node's address: they share a link."""

    kind = "routes"

    def mtu(self, families: Sequence[str]) -> int:  # noqa: ARG002  # the same for all
        """Return the MTU of the pods' interfaces, in bytes."""
        return ETHERNET_MTU

    def join(self, node: Node, others: Sequence[Node]) -> None:
        """Make *node* and *others* reach each other's pods. Like: ip route add PODCIDR via NODE dev eth0."""
        for here, there in _both_ways(node, others):
            for family, cidr in there.pod_cidrs.items():
                here.netns.add_route(cidr, via=there.addresses[family], device=UPLINK)

    def leave(self, node: Node, others: Sequence[Node]) -> None:
        """Let *others* forget the pods of *node*."""
        _forget_routes(node, others)

    def settle(self) -> None:
        """Return at once: a route holds as soon as it is there."""

    def repair(self, nodes: Sequence[Node]) -> list[str]:  # noqa: ARG002  # no process to look after
        """Return nothing: the kernel does it all."""
        return []

    def hop(self, node: Node, other: Node, family: str) -> tuple[str, str]:  # noqa: ARG002  # the same on every node
        """Return the other node's address, on the nodes' own link."""
        return other.addresses[family], UPLINK


class Vxlan:
    """Frames inside UDP; what ARP and flooding would find out is written down beforehand.

    On every node, for each other node M, as flannel does it:

        ip route add 10.244.M.0/24 via 10.244.M.0 dev flannel.1 onlink
        ip neighbour replace 10.244.M.0 lladdr MAC-OF-M dev flannel.1 nud permanent
        bridge fdb append MAC-OF-M dev flannel.1 dst 172.18.0.M
    """

    kind = "vxlan"

    def mtu(self, families: Sequence[str]) -> int:
        """Return the MTU of the pods' interfaces, in bytes: what the outer headers leave."""
        return ETHERNET_MTU - max(OVERHEAD[family] for family in families)

    def join(self, node: Node, others: Sequence[Node]) -> None:
        """Make *node* and *others* reach each other's pods."""
        for family, cidr in node.pod_cidrs.items():
            device = VXLAN_DEVICE[family]
            node.netns.add_vxlan(
                device, vni=VNI, local=node.addresses[family], device=UPLINK,
                mtu=ETHERNET_MTU - OVERHEAD[family],
            )  # fmt: skip
            node.netns.add_address(device, f"{_anchor(cidr)}/{network(cidr).max_prefixlen}")
        for here, there in _both_ways(node, others):
            for family, cidr in there.pod_cidrs.items():
                device, mac = VXLAN_DEVICE[family], _mac(there, family)
                here.netns.add_neighbour(_anchor(cidr), interface=device, mac=mac)
                here.netns.add_fdb(mac, interface=device, remote=there.addresses[family])
                here.netns.add_route(cidr, via=_anchor(cidr), device=device, onlink=True)

    def leave(self, node: Node, others: Sequence[Node]) -> None:
        """Let *others* forget the pods of *node*."""
        _forget_routes(node, others)
        for other in others:
            for family, cidr in node.pod_cidrs.items():
                device = VXLAN_DEVICE[family]
                other.netns.delete_neighbour(_anchor(cidr), interface=device)
                other.netns.delete_fdb(_mac(node, family), interface=device, remote=node.addresses[family])

    def settle(self) -> None:
        """Return at once: a route holds as soon as it is there."""

    def repair(self, nodes: Sequence[Node]) -> list[str]:  # noqa: ARG002  # no process to look after
        """Return nothing: the kernel does it all."""
        return []

    def hop(self, node: Node, other: Node, family: str) -> tuple[str, str]:  # noqa: ARG002  # the same on every node
        """Return the other node's anchor, inside the overlay."""
        return _anchor(other.pod_cidrs[family]), VXLAN_DEVICE[family]


KINDS = ("routes", "vxlan", "bgp")


def make(kind: str, fabric: Fabric, *, reflector: bool) -> PodNetwork:
    """Return a pod network of one of the KINDS.

    Args:
        reflector: for bgp, let the switch be a route reflector instead of a full mesh of nodes.

    Raises:
        InvalidInput: no such kind.
    """
    from k8snet.cluster.bgp import Bgp

    if kind not in KINDS:
        raise InvalidInput(f"pod_network {kind!r}: one of {', '.join(KINDS)}")
    return Bgp(fabric, reflector=reflector) if kind == "bgp" else Vxlan() if kind == "vxlan" else Routes()


def _both_ways(node: Node, others: Sequence[Node]) -> list[tuple[Node, Node]]:
    return [pair for other in others for pair in ((node, other), (other, node))]


def _forget_routes(node: Node, others: Sequence[Node]) -> None:
    for other in others:
        for cidr in node.pod_cidrs.values():
            try:
                other.netns.delete_route(cidr)
            except NotFound:  # somebody took it away before us, perhaps to see what happens
                continue


def _anchor(cidr: str) -> str:
    """Return the address of a node inside the overlay: the first of its pod CIDR, which no pod gets."""
    return str(network(cidr)[0])


def _mac(node: Node, family: str) -> str:
    return mac_for(node.name, VXLAN_DEVICE[family])
