"""Fabric: what joins the nodes: a switch, a router, and an "internet" beyond it.

    node1   node2   node3          each node's eth0 is a cable into the switch
      └───────┼───────┘
           switch                  one bridge, br0
              │ eth0
           router                  routes between the nodes' network and the internet
              │ eth1
           internet                a client's address and a server's
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from k8snet.cluster.layout import INTERNET, family_of, router_address
from k8snet.cluster.node import UPLINK
from k8snet.errors import NameTaken
from k8snet.linux import nsfs
from k8snet.linux.link import End

if TYPE_CHECKING:
    from k8snet.lab import Lab
    from k8snet.linux.address import IPNetwork
    from k8snet.linux.netns import Netns

__all__ = ["FABRIC", "Fabric"]

FABRIC = ("switch", "router", "internet")  # names of netns
SWITCH_BRIDGE = "br0"
ANYWHERE = {"v4": "default", "v6": "::/0"}


class Fabric:
    """The netns that join the nodes."""

    def __init__(self, lab: Lab, networks: Mapping[str, IPNetwork]) -> None:
        """Build switch, router and internet.

        Args:
            networks: family -> the network of the nodes.

        Raises:
            NameTaken: another cluster is open.
        """
        if FABRIC[0] in nsfs.names():
            raise NameTaken(f"another cluster is open in this sandbox, with a {FABRIC[0]} of its own; close it first")
        self.lab, self.networks = lab, networks
        self.router_addresses = {family: router_address(network) for family, network in networks.items()}
        self.switch = lab.netns("switch")
        self.switch.add_bridge(SWITCH_BRIDGE)
        self.router = lab.netns("router", forward=True)
        self._plug(self.router, "router", self.router_addresses)
        self.internet = lab.netns("internet")
        lab.veth(End(netns=self.router, name="eth1"), End(netns=self.internet, name="eth0"))
        for family in networks:
            near, *far = INTERNET[family]
            self.router.add_address("eth1", near)
            for address in far:
                self.internet.add_address("eth0", address)
            self.internet.add_route(ANYWHERE[family], via=near.partition("/")[0])
        for protocol in ("tcp", "udp"):
            self.internet.listen(80, protocol=protocol)
            if "v6" in networks:
                self.internet.listen(80, protocol=protocol, address="::")

    def plug(self, node: Netns, addresses: Mapping[str, str]) -> None:
        """Join a node to the switch, with a default route to the router."""
        self._plug(node, node.name, addresses)
        for family in addresses:
            node.add_route(ANYWHERE[family], via=self.router_addresses[family])

    def _plug(self, netns: Netns, port: str, addresses: Mapping[str, str]) -> None:
        lab_end = End(netns=self.switch, name=port_for(port), master=SWITCH_BRIDGE)
        self.lab.veth(lab_end, End(netns=netns, name=UPLINK))
        for address in addresses.values():
            netns.add_address(UPLINK, f"{address}/{self.networks[family_of(address)].prefixlen}")


def port_for(node: str) -> str:
    """Return the name of the switch's port to a node: the node's, where Linux takes it."""
    return node if len(node.encode()) <= 15 else f"p-{hashlib.sha256(node.encode()).hexdigest()[:12]}"
