"""Follow a packet in a cluster: from a pod, a node or the internet to a pod, a Service or an address."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from k8snet.errors import InvalidInput, NotFound
from k8snet.observe import rules_words as words
from k8snet.observe.rules_live import check_family, names_of, rules_of
from k8snet.observe.trace import Meaning, trace

if TYPE_CHECKING:
    from k8snet.cluster.cluster import Cluster
    from k8snet.linux.netns import Netns
    from k8snet.observe.walk import Connection

__all__ = ["follow"]


def follow(
    cluster: Cluster, source: Any, target: str, *, protocol: str = "tcp", family: str = "v4", timeout_s: float = 2.0
) -> Connection:
    """Send a packet, and return its way. See Cluster.trace()."""
    check_family(cluster, family)
    netns = _from(cluster, source)
    host, _, port = target.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise InvalidInput(f"target {target!r}: write HOST:PORT, as in web.shop:80 or 10.96.0.20:80")
    address = _address(cluster, host.strip("[]"), family)
    meaning = _meaning(cluster, "v6" if ":" in address else "v4")
    return trace(cluster.lab, netns, address, int(port), protocol=protocol, timeout_s=timeout_s, meaning=meaning)


def _from(cluster: Cluster, source: Any) -> Netns:
    """Return the netns of a Pod, a node, a netns, or of what has that name."""
    name = str(getattr(source, "key", None) or getattr(source, "name", None) or source)
    space, _, short = name.rpartition("/")
    if pod := cluster.pods.get((space or "default", short)):
        if pod.own_netns is None:
            raise InvalidInput(f"pod {pod.key} does not run: {pod.reason or pod.phase}")
        return pod.own_netns
    if name in cluster.nodes:
        return cluster.nodes[name].netns
    if name in cluster.lab:
        return cluster.lab[name]
    have = ", ".join([*cluster.nodes, "internet", *(one.key for one in cluster.pods.values())])
    raise NotFound(f"source {name!r} is no pod, no node and no netns; there are: {have}")


def _address(cluster: Cluster, host: str, family: str) -> str:
    """Return an address: as it is written, of a Service (web, web.shop, shop/web), or of a pod or a node."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    space, _, short = host.rpartition("/")
    if not space and "." in host:
        short, space = host.split(".")[:2]  # as cluster DNS has it: web.shop.svc.cluster.local
    key = space or "default", short
    if service := cluster.objects.get(("Service", *key)):
        found = [one for one in (service.spec.clusterIPs or [service.spec.clusterIP]) if one not in {None, "", "None"}]
        what = f"Service {'/'.join(key)}"
    elif pod := cluster.pods.get(key):
        found, what = list(pod.addresses), f"pod {pod.key}"
    elif host in cluster.nodes:
        found, what = list(cluster.nodes[host].addresses.values()), host
    else:
        raise NotFound(f"there is no Service, no pod and no node {'/'.join(key)!r}, and it is no address either")
    chosen = next((one for one in found if (":" in one) == (family == "v6")), None)
    if chosen is None:
        raise InvalidInput(f"{what} has no address of family {family!r}; ask for one that it leads to")
    return str(chosen)


def _meaning(cluster: Cluster, family: str) -> Meaning:
    """Return what says what a chain of a node is for."""

    @cache
    def known(node: str) -> tuple[Mapping[tuple[str, str], Any], words.Names]:
        try:
            names = names_of(cluster, cluster.nodes[node], family=family)
        except InvalidInput:  # no kube-proxy runs
            names = words.Names()
        return rules_of(cluster, cluster.nodes[node], family=family).chains, names

    def meaning(netns: str, table: str, name: str) -> str:
        if netns not in cluster.nodes:
            return ""
        chains, names = known(netns)
        own = "ip6" if family == "v6" else "ip"
        chain = next((chains[key] for key in ((table, name), (f"{own} {table}", name), (f"inet {table}", name))
                      if key in chains), None)  # fmt: skip
        return words.meaning(chain, names) if chain is not None and not chain.hook else ""

    return meaning
