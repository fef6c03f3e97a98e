"""Node: a netns that plays a machine of the cluster, with a bridge for its pods."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from k8snet.cluster.layout import gateway_of
from k8snet.linux import link
from k8snet.linux.address import network
from k8snet.linux.run import run

if TYPE_CHECKING:
    from pathlib import Path

    from k8snet.cluster.pod import Pod
    from k8snet.linux.netns import Netns

__all__ = ["BRIDGE", "UPLINK", "Node"]

BRIDGE, UPLINK = "cni0", "eth0"  # interfaces of every node
IFF_LOWER_UP = 0x10000  # it is up, and so is the other end of the cable


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
    ready: bool = True  # as far as the control plane knows; see look()

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

    def look(self) -> None:
        """See whether it can be reached, by its uplink; a real control plane waits for the kubelet's lease."""
        index = link.find(self.netns, UPLINK)
        self.ready = index is not None and self.netns.netlink(
            f"look at {UPLINK}", lambda ipr: bool(ipr.get_links(index)[0]["flags"] & IFF_LOWER_UP)
        )

    def halt(self) -> None:
        """End all that runs on it and in its pods, at once."""
        for pod in self.pods.values():
            pod.halt()
        inside = [self.netns, *(pod.own_netns for pod in self.pods.values() if pod.own_netns)]
        for name in {one.name for one in inside if one.exists}:
            for pid in run(["ip", "netns", "pids", name]).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)

    def __repr__(self) -> str:
        """Return its name, address and pod CIDR."""
        return f"<node {self.name} {self.address}, pods {self.pod_cidr}>"
