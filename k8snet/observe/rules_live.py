"""What the views of rules ask of a cluster: which Service is meant, what a node has, what addresses are called."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from k8snet.cluster.objects import labels_of
from k8snet.controllers.addresses import SERVICE_NETWORK
from k8snet.controllers.kube_proxy.service_ports import OTHER_PROXY, ServicePort
from k8snet.controllers.services import Services
from k8snet.errors import InvalidInput, NotFound
from k8snet.linux import sysctl
from k8snet.observe.rules_read import read
from k8snet.observe.rules_words import PODS, Names
from k8snet.observe.ruleset import Place, Ruleset

if TYPE_CHECKING:
    from k8snet.cluster.cluster import Cluster
    from k8snet.cluster.node import Node

__all__ = ["check_family", "names_of", "place_of", "ports_of", "proxy_of", "rules_of"]


def proxy_of(cluster: Cluster) -> Services:
    """Return what makes Services work in a cluster.

    Raises:
        InvalidInput: nothing does.
    """
    for one in cluster.controllers:
        if isinstance(one, Services):
            return one
    raise InvalidInput(
        "no kube-proxy runs in this cluster, so its nodes have no rules for Services; cluster.start_proxy() starts one"
    )


def check_family(cluster: Cluster, family: str) -> None:
    """Check that a cluster has addresses of a family.

    Raises:
        InvalidInput: it has none.
    """
    if family not in cluster.ip_families:
        have = " and ".join(map(repr, cluster.ip_families))
        raise InvalidInput(f"family {family!r}: the addresses of this cluster are {have}")


# -- Services --------------------------------------------------------------------------


def ports_of(
    cluster: Cluster, node: Node, name: str, *, port: str | int | None = None, protocol: str = "", family: str = "v4"
) -> list[ServicePort]:
    """Return the ports of a Service that kube-proxy programs.

    Args:
        name: "web" in the namespace default, "shop/web", or with a port: "shop/web:http", "shop/web:80".
        port: one of its ports, by name or number.
        protocol: "tcp", "udp" or "sctp"; "" for all.

    Raises:
        NotFound: there is no such Service, or no such port.
        InvalidInput: kube-proxy has no rules for it; the message says why.
    """
    whole, _, own = name.partition(":")
    wanted = str(port) if port is not None else own
    space, _, short = whole.rpartition("/")
    key = ("Service", space or "default", short)
    if key not in cluster.objects:
        have = ", ".join(f"{one[1]}/{one[2]}" for one in sorted(cluster.objects) if one[0] == "Service")
        raise NotFound(f"no Service '{key[1]}/{short}'; there are: {have or 'none'}")
    title = f"Service {key[1]}/{short}"
    _check_programmed(cluster.objects[key], title)
    found = [one for one in proxy_of(cluster).ports(node, family) if (one.namespace, one.name) == key[1:]]
    if not found:
        raise InvalidInput(f"{title} has no cluster IP of family {family!r}; ask for the other one: family=")
    chosen = [one for one in found if wanted in {"", one.port_name, str(one.port)}]
    chosen = [one for one in chosen if protocol in {"", one.protocol.lower()}]
    if not chosen:
        have = ", ".join(f"{one.port}/{one.protocol.lower()} {one.port_name}".strip() for one in found)
        asked = " ".join(filter(None, [wanted, protocol]))
        raise NotFound(f"{title} has no port {asked}; it has: {have}")
    return chosen


def _check_programmed(service: Any, title: str) -> None:
    """Refuse a Service that has no rules."""
    spec = service.spec
    if spec is not None and spec.type == "ExternalName":
        raise InvalidInput(
            f"{title} is of type ExternalName: a name in DNS for {spec.externalName}, and no address; no rule is made. "
            f"Ask for the address that this name has"
        )
    if OTHER_PROXY in labels_of(service):
        raise InvalidInput(
            f"{title} has the label {OTHER_PROXY}, which leaves it to another proxy; kube-proxy makes no rules for it. "
            f"Take the label away, and it will"
        )
    if spec is None or spec.clusterIP in (None, "", "None"):
        raise InvalidInput(
            f"{title} is headless (clusterIP: None): its name leads to its pods' own addresses, and kube-proxy makes "
            f"no rules for it. Ask for one of them, as in why(source, 'ADDRESS:PORT')"
        )


# -- nodes -----------------------------------------------------------------------------


def rules_of(cluster: Cluster, node: Node, *, family: str = "v4") -> Ruleset:
    """Return the rules that a node has now."""
    legacy = any("legacy" in entry.typed() for entry in cluster.transcript.entries)
    return read(node.netns, family=family, legacy=legacy)


def place_of(node: Node) -> Place:
    """Return what rules can ask of a node, as its kernel has it now."""
    links, dump = node.netns.netlink("list addresses", lambda ipr: (list(ipr.get_links()), list(ipr.get_addr())))
    names = {one["index"]: one.get_attr("IFLA_IFNAME") for one in links}
    own = {one.get_attr("IFA_LOCAL") or one.get_attr("IFA_ADDRESS"): names.get(one["index"], "") for one in dump}
    calling = sysctl.exists(node.netns, sysctl.BRIDGE_NF) and node.netns.sysctl(sysctl.BRIDGE_NF) == "1"
    kinds = {names[one["index"]]: one.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") for one in links}
    bridges = frozenset(name for name, kind in kinds.items() if kind == "bridge" and calling)

    @cache
    def route(address: str) -> str:
        return str(node.netns.route_to(address).get("dev", ""))

    return Place(name=node.name, addresses=frozenset(own), route=route, interfaces=own, bridges=bridges)


def names_of(cluster: Cluster, node: Node, *, family: str = "v4") -> Names:
    """Return what the addresses of a cluster are called, to somebody on a node."""
    addresses = {one.gateway(family): f"cni0 of {one.name}" for one in cluster.nodes.values()}
    addresses |= {one.addresses[family]: one.name for one in cluster.nodes.values()}
    for pod in cluster.pods.values():
        if not pod.host_network and pod.node:
            title = f"pod {pod.key.removeprefix('default/')} on {pod.node.name}"
            addresses |= dict.fromkeys(pod.addresses, title)
    addresses |= dict(_of_services(proxy_of(cluster).ports(node, family)))
    networks = {one.pod_cidrs[family]: f"the pods of {one.name}" for one in cluster.nodes.values()}
    networks |= {str(cluster.cluster_networks[family]): PODS, SERVICE_NETWORK[family]: "the network of Services"}
    loopback = "127.0.0.0/8" if family == "v4" else "::1/128"
    return Names(addresses=addresses, networks={**networks, str(ipaddress.ip_network(loopback)): "localhost"})


def _of_services(ports: list[ServicePort]) -> Iterator[tuple[str, str]]:
    for one in ports:
        title = f"{one.namespace}/{one.name}"
        yield from ((address, f"an external address of {title}") for address in one.external_ips)
        yield from ((address, f"the load balancer's address of {title}") for address in one.load_balancer_ips)
        yield one.cluster_ip, f"the cluster IP of {title}"
