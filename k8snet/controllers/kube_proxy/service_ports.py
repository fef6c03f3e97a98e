"""The table of service ports: what every mode of kube-proxy programs, worked out of Services and EndpointSlices.

    Service + EndpointSlices  ->  ServicePort       one a port of a Service, of one address family
                                  ├── endpoints     sorted by address and port, each once
                                  └── categories    which of them this node may send to, from where

Source: kubernetes pkg/proxy, serviceport.go, endpointslicecache.go and topology.go.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lightkube.resources.core_v1 import Service
from lightkube.resources.discovery_v1 import EndpointSlice

from k8snet.cluster.objects import labels_of, name_of, namespace_of
from k8snet.linux.uncollected import uncollected

__all__ = ["Categories", "Endpoint", "ProxyConfig", "ServicePort", "categorize", "service_ports"]

SLICE_OF = "kubernetes.io/service-name"  # label of an EndpointSlice
OTHER_PROXY = "service.kubernetes.io/service-proxy-name"  # label of what another proxy serves
HEADLESS = "service.kubernetes.io/headless"
ADDRESS_TYPE = {"v4": "IPv4", "v6": "IPv6"}
AFFINITY_S = 10_800  # seconds; the API's default
EXPOSED = ("NodePort", "LoadBalancer")


@dataclass(frozen=True, kw_only=True)
class ProxyConfig:
    """What kube-proxy on one node has to know beside the objects."""

    node_name: str
    node_ips: tuple[str, ...] = ()
    family: str = "v4"  # "v4" or "v6"
    cluster_cidr: str | None = None  # of all pods; None: no local detector
    masquerade_all: bool = False
    masquerade_bit: int = 14
    localhost_nodeports: bool = True  # iptables mode, IPv4
    nodeport_addresses: tuple[str, ...] = ()  # networks; () is any address (iptables), or the first one (nftables)
    service_cidrs: tuple[str, ...] = ()  # nftables mode: what belongs to Services and to nobody else
    random_fully: bool = False  # iptables and ipvs mode: masquerade to random ports
    tcp_liberal: bool = False  # iptables mode: conntrack forgives; what it calls INVALID is not dropped
    nfacct: bool = False  # iptables mode: count dropped and localhost packets; few kernels can
    ipvs_scheduler: str = "rr"  # ipvs mode: "rr", "wrr", "lc" or "sh"

    @property
    def masquerade_mark(self) -> str:
        """The mark that asks for masquerading, as rules have it."""
        return f"{1 << self.masquerade_bit:#x}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """An address and port behind a Service."""

    address: str
    port: int
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    local: bool = False  # on this node

    def __str__(self) -> str:
        """Return it as "10.0.0.1:80" or "[fd00::1]:80"."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServicePort:
    """One port of one Service, in one address family."""

    namespace: str
    name: str
    port_name: str  # "" for the only port of a Service
    protocol: str  # "TCP", "UDP" or "SCTP"
    cluster_ip: str
    port: int
    node_port: int = 0  # 0: none
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()  # of ipMode VIP
    source_ranges: tuple[str, ...] = ()  # loadBalancerSourceRanges
    health_check_node_port: int = 0  # 0: none
    affinity_s: int | None = None  # seconds of ClientIP affinity; None: none
    internal_local: bool = False  # internalTrafficPolicy: Local
    external_local: bool = False  # externalTrafficPolicy: Local, and reached from outside at all
    endpoints: tuple[Endpoint, ...] = field(default=(), compare=True)

    @property
    def key(self) -> str:
        """Namespace, name and port, as "shop/web:http"; without the port's name where it has none."""
        return f"{self.namespace}/{self.name}{f':{self.port_name}' if self.port_name else ''}"

    @property
    def externally_accessible(self) -> bool:
        """Whether anything but its cluster IP leads to it."""
        return bool(self.node_port or self.load_balancer_ips or self.external_ips)

    @property
    def uses_cluster_endpoints(self) -> bool:
        """Whether endpoints of every node count for some traffic."""
        return not self.internal_local or self.externally_accessible

    @property
    def uses_local_endpoints(self) -> bool:
        """Whether this node's endpoints alone count for some traffic."""
        return self.internal_local or (self.external_local and self.externally_accessible)


class Categories(NamedTuple):
    """The endpoints of a service port, by what may be sent to them."""

    cluster: tuple[Endpoint, ...]  # for traffic with policy Cluster
    local: tuple[Endpoint, ...]  # for traffic with policy Local
    reachable: tuple[Endpoint, ...]  # all that have to be programmed
    any_anywhere: bool  # whether there is an endpoint on some node: decides between DROP and REJECT


def categorize(port: ServicePort) -> Categories:
    """Return which endpoints of *port* are used; terminating ones only where there are no ready ones."""
    ready = tuple([one for one in port.endpoints if one.ready])
    draining: tuple[Endpoint, ...] = ()
    if len(ready) < len(port.endpoints):
        draining = tuple([one for one in port.endpoints if not one.ready and one.serving and one.terminating])
    cluster = (ready or draining) if port.uses_cluster_endpoints else ()
    if not port.uses_local_endpoints:
        return Categories(cluster=cluster, local=(), reachable=cluster, any_anywhere=bool(cluster))
    local = tuple(one for one in ready if one.local) or tuple(one for one in draining if one.local)
    reachable = tuple(one for one in port.endpoints if one in cluster or one in local)
    return Categories(cluster=cluster, local=local, reachable=reachable, any_anywhere=bool(ready or draining))


@uncollected()
def service_ports(objects: Iterable[Any], config: ProxyConfig) -> list[ServicePort]:
    """Return every service port of a family that kube-proxy on a node programs, by key.

    Headless Services, those of type ExternalName, and those of another proxy have none.
    """
    slices: defaultdict[tuple[str, str], list[EndpointSlice]] = defaultdict(list)
    services, kind = [], ADDRESS_TYPE[config.family]
    for one in objects:
        if isinstance(one, EndpointSlice):
            labels = labels_of(one)
            service_name = labels.get(SLICE_OF)
            if service_name and one.addressType == kind and not (OTHER_PROXY in labels or HEADLESS in labels):
                slices[namespace_of(one), service_name].append(one)
        elif isinstance(one, Service) and not _skipped(one):
            services.append(one)
    found, family = [], config.family
    for service in services:
        cluster_ip = _cluster_ip(service, family)
        if cluster_ip:
            owner = namespace_of(service), name_of(service)
            ends = _endpoints(slices.get(owner, ()), config.node_name)
            found += [_service_port(service, owner, port, cluster_ip, family, ends) for port in _spec_ports(service)]
    return sorted(found, key=lambda port: (port.key, port.protocol))


def _skipped(service: Service) -> bool:
    spec = service.spec
    none = spec is None or spec.clusterIP in (None, "", "None") or spec.type == "ExternalName"
    labels = labels_of(service)
    return none or OTHER_PROXY in labels or HEADLESS in labels


def _spec_ports(service: Service) -> Sequence[Any]:
    return (service.spec.ports if service.spec else None) or ()


def _cluster_ip(service: Service, family: str) -> str | None:
    spec = service.spec
    for one in (*(spec.clusterIPs or ()), spec.clusterIP) if spec else ():
        if one and (":" in one) == (family == "v6"):
            return _canonical(one)
    return None


def _of_family(texts: Sequence[str | None], family: str) -> tuple[str, ...]:
    if not texts:  # as for most: it is asked four times a port
        return ()
    return tuple([_canonical(one) for one in texts if one and (":" in one) == (family == "v6")])


def _canonical(text: str) -> str:
    """Return an address or network as kube-proxy writes it: fd00::1, and 10.0.0.0/8 for 10.1.2.3/8."""
    if "/" in text:
        return str(ipaddress.ip_network(text, strict=False))
    return str(ipaddress.ip_address(text)) if ":" in text else text


def _service_port(
    service: Service, owner: tuple[str, str], port: Any, cluster_ip: str, family: str,
    endpoints: Mapping[tuple[str, str], Sequence[Endpoint]],
) -> ServicePort:  # fmt: skip
    spec, protocol = service.spec, port.protocol or "TCP"
    assert spec is not None  # noqa: S101  # one without is skipped
    ingress = (service.status.loadBalancer.ingress if service.status and service.status.loadBalancer else None) or ()
    outside_local = spec.externalTrafficPolicy == "Local" and (spec.type in EXPOSED or bool(spec.externalIPs))
    vips = [one.ip for one in ingress if one.ipMode in (None, "VIP")] if ingress else ()
    affinity = spec.sessionAffinityConfig.clientIP if spec.sessionAffinityConfig else None
    seconds = (affinity.timeoutSeconds if affinity else None) or AFFINITY_S
    return ServicePort(
        namespace=owner[0], name=owner[1], port_name=port.name or "", protocol=protocol,
        cluster_ip=cluster_ip, port=port.port, node_port=port.nodePort or 0,
        external_ips=_of_family(spec.externalIPs or (), family), load_balancer_ips=_of_family(vips, family),
        source_ranges=_of_family([text.strip() for text in spec.loadBalancerSourceRanges or ()], family),
        health_check_node_port=(spec.healthCheckNodePort or 0) if spec.type == "LoadBalancer" and outside_local else 0,
        affinity_s=seconds if spec.sessionAffinity == "ClientIP" else None,
        internal_local=spec.internalTrafficPolicy == "Local", external_local=outside_local,
        endpoints=tuple(endpoints.get((port.name or "", protocol), ())),
    )  # fmt: skip


def _endpoints(slices: Iterable[EndpointSlice], node: str) -> dict[tuple[str, str], list[Endpoint]]:
    """Return the endpoints of a Service's slices by port name and protocol, each once, in kube-proxy's order."""
    found: defaultdict[tuple[str, str], dict[str, Endpoint]] = defaultdict(dict)
    for one in slices:
        for port in one.ports or ():
            if port.port is None:  # all ports: nothing that a rule can translate to
                continue
            known = found[port.name or "", port.protocol or "TCP"]
            for endpoint in one.endpoints or ():
                made = _endpoint(endpoint, port.port, node)
                if made is None:
                    continue
                text = str(made)
                if made.local or text not in known:
                    known[text] = made
    return {key: [known[text] for text in sorted(known)] for key, known in found.items()}


def _endpoint(endpoint: Any, port: int, node: str) -> Endpoint | None:
    if not endpoint.addresses:
        return None
    state = endpoint.conditions
    return Endpoint(
        address=_canonical(endpoint.addresses[0]), port=port, ready=state is None or state.ready is not False,
        serving=state is None or state.serving is not False, terminating=bool(state and state.terminating),
        local=endpoint.nodeName == node,
    )  # fmt: skip
