"""Node: a netns that plays a machine of the cluster, with a bridge for its pods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from k8snet.cluster.layout import gateway_of
from k8snet.linux.address import network

if TYPE_CHECKING:
    from pathlib import Path

    from k8snet.cluster.pod import Pod
    from k8snet.linux.netns import Netns

__all__ = ["BRIDGE", "UPLINK", "Node"]

BRIDGE, UPLINK = "cni0", "eth0"  # interfaces of every node


@dataclass(kw_only=True, eq=False)
class Node:
    """A machine of the cluster."""

    name: str
    number: int  # 1 for the first; its default addresses end with it
    netns: Netns
    addresses: Mapping[str, str]  # family -> address
    pod_cidrs: Mapping[str, str]  # family -> network
    labels: Mapping[str, str]
    unschedulable: bool = False
    folder: Path  # of its leases, cached results and daemons
    pods: dict[tuple[str, str], Pod] = field(default_factory=dict, repr=False)  # by (namespace, name)

    @property
    def address(self) -> str:
        """Its first address."""
        return next(iter(self.addresses.values()))

    @property
    def pod_cidr(self) -> str:
        """Its first pod CIDR."""
        return next(iter(self.pod_cidrs.values()))

    def gateway(self, family: str) -> str:
        """Return the address of the bridge, which is its pods' gateway."""
        return gateway_of(self.pod_cidrs[family])

    def gateway_with_length(self, family: str) -> str:
        """Return the bridge's address with its prefix length."""
        return f"{self.gateway(family)}/{network(self.pod_cidrs[family]).prefixlen}"

    def __repr__(self) -> str:
        """Return its name, address and pod CIDR."""
        return f"<node {self.name} {self.address}, pods {self.pod_cidr}>"
