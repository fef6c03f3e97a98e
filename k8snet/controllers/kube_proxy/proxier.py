"""The modes of kube-proxy: one table of service ports, one interface, one file a data plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from k8snet.errors import InvalidInput

if TYPE_CHECKING:
    from k8snet.controllers.kube_proxy.service_ports import ProxyConfig, ServicePort
    from k8snet.linux.netns import Netns

__all__ = ["MODES", "Proxy", "make"]

MODES = ("iptables", "nftables", "ipvs")


class Proxy(Protocol):
    """kube-proxy on one node, for one address family."""

    def apply(self, netns: Netns, ports: Sequence[ServicePort]) -> object:
        """Bring the rules of a node in step with *ports*; what has not changed is not touched."""

    def remove(self, netns: Netns) -> None:
        """Take every rule of ours away."""


def make(mode: str, config: ProxyConfig) -> Proxy:
    """Return a kube-proxy that has programmed nothing yet.

    Raises:
        InvalidInput: no such mode.
    """
    if mode == "iptables":
        from k8snet.controllers.kube_proxy.iptables import Proxier as Iptables

        return Iptables(config)
    if mode == "nftables":
        from k8snet.controllers.kube_proxy.nftables import Proxier as Nftables

        return Nftables(config)
    if mode == "ipvs":
        from k8snet.controllers.kube_proxy.ipvs import Proxier as Ipvs

        return Ipvs(config)
    raise InvalidInput(f"proxy mode {mode!r}: one of {', '.join(MODES)}")
