"""Connection tracking after a change: UDP has no end, so what conntrack remembers of a Service outlives its endpoints.

Source: kubernetes pkg/proxy/conntrack, cleanup.go.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from k8snet.controllers.kube_proxy.service_ports import ServicePort

if TYPE_CHECKING:
    from k8snet.linux.netfilter import Flow
    from k8snet.linux.netns import Netns

__all__ = ["forget"]


def forget(netns: Netns, before: Iterable[ServicePort], after: Iterable[ServicePort], *, family: str) -> int:
    """Forget UDP connections to a Service that do not lead to one of its endpoints; return how many.

    Like: conntrack -D -p udp -s CLIENT -d SERVICE ...
    """
    allowed: dict[tuple[str, int | None], set[tuple[str, int]]] = {}  # address ("": of this node), port -> endpoints
    for ports, serve in ((before, False), (after, True)):
        for port in ports:
            if port.protocol == "UDP":
                ends = {(one.address, one.port) for one in port.endpoints if one.serving} if serve else set()
                for address in (port.cluster_ip, *port.external_ips, *port.load_balancer_ips):
                    allowed.setdefault((address, port.port), set()).update(ends)
                if port.node_port:
                    allowed.setdefault(("", port.node_port), set()).update(ends)
    if not allowed:
        return 0
    stale = []
    for one in netns.conntrack(protocol="udp", family=6 if family == "v6" else 4):
        to = one.original.destination, one.original.destination_port
        found = allowed.get(to, allowed.get(("", to[1])))
        if found is not None and (one.reply.source, one.reply.source_port) not in found:
            stale.append(one.original)
    for flow in stale:
        _delete(netns, flow)
    return len(stale)


def _delete(netns: Netns, flow: Flow) -> None:
    words = ["-s", flow.source, "-d", flow.destination]
    words += ["--sport", str(flow.source_port), "--dport", str(flow.destination_port)]
    netns.run("conntrack", "-D", "-p", "udp", *words, check=False)  # it may have timed out since
