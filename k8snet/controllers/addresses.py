"""Addresses and node ports of Services that do not name their own, as the API server hands them out.

Fixed where the API server draws at random: the same manifests give the same addresses in every run.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from k8snet.cluster.objects import name_of, namespace_of
from k8snet.controllers.kube_proxy.service_ports import EXPOSED
from k8snet.errors import InvalidManifest

if TYPE_CHECKING:
    from lightkube.resources.core_v1 import Service

__all__ = ["DNS_ADDRESS", "SERVICE_NETWORK", "assign", "families_of"]

SERVICE_NETWORK = {"v4": "10.96.0.0/12", "v6": "fd00:10:96::/112"}
DNS_ADDRESS = {"v4": "10.96.0.10", "v6": "fd00:10:96::a"}  # of kube-system/kube-dns
FIRST = 20  # of the addresses that are handed out; those before are for what a cluster itself needs
NODE_PORTS = range(30_000, 32_768)
WORDS = {"v4": "IPv4", "v6": "IPv6"}  # as the API says it


def assign(services: Iterable[Service], families: Sequence[str]) -> list[Service]:
    """Return the Services with a cluster IP of each family that they have, and node ports where their type needs them.

    Raises:
        InvalidManifest: no address or node port is left.
    """
    everything = list(services)
    taken = {ip for one in everything for ip in _ips(one)}
    ports = {
        (port.nodePort, port.protocol or "TCP") for one in everything for port in _spec_ports(one) if port.nodePort
    }  # fmt: skip
    ports |= {(one.spec.healthCheckNodePort, "TCP") for one in everything if one.spec and one.spec.healthCheckNodePort}
    pools = {family: _free(family, taken) for family in families}
    return [_with_node_ports(_with_addresses(one, families, pools), ports) for one in everything]


def _ips(service: Service) -> list[str]:
    spec = service.spec
    found = [*(spec.clusterIPs or ()), spec.clusterIP] if spec else []
    return [ip for ip in found if ip and ip != "None"]


def _spec_ports(service: Service) -> Sequence[Any]:
    return (service.spec.ports if service.spec else None) or ()


def _free(family: str, taken: set[str]) -> Iterator[str]:
    network = ipaddress.ip_network(SERVICE_NETWORK[family])
    for number in range(FIRST, network.num_addresses - 1):
        address = str(network[number])
        if address not in taken:
            yield address


def _with_addresses(service: Service, families: Sequence[str], pools: dict[str, Iterator[str]]) -> Service:
    spec = service.spec
    if spec is None or spec.type == "ExternalName":
        return service
    mine = families_of(service, families)
    spec = msgspec.structs.replace(spec, ipFamilies=[WORDS[family] for family in mine])
    if spec.clusterIP == "None":
        return msgspec.structs.replace(service, spec=spec)
    have = _ips(service)
    found = []
    for family in mine:
        own = next((ip for ip in have if (":" in ip) == (family == "v6")), None)
        is_dns = (namespace_of(service), name_of(service)) == ("kube-system", "kube-dns")
        found.append(own or (DNS_ADDRESS[family] if is_dns else _next(pools[family], service)))
    return msgspec.structs.replace(
        service, spec=msgspec.structs.replace(spec, clusterIP=found[0], clusterIPs=found)
    )  # fmt: skip


def families_of(service: Service, families: Sequence[str]) -> list[str]:
    """Return the families that a Service has in a cluster of *families*, in its order: first those it names.

    Source: kubernetes pkg/registry/core/service/storage/alloc.go, initIPFamilyFields.
    """
    spec = service.spec
    policy = (spec.ipFamilyPolicy if spec else None) or ""
    named = [_family(word) for word in (spec.ipFamilies if spec else None) or ()]
    wanted = dict.fromkeys(named or ["v6" if ":" in ip else "v4" for ip in _ips(service)])
    found = [one for one in wanted if one in families] or list(families[:1])
    if policy == "SingleStack":
        return found[:1]
    return [*found, *(one for one in families if policy and one not in found)]


def _family(word: str) -> str:
    return "v6" if word == "IPv6" else "v4"


def _next(pool: Iterator[str], service: Service) -> str:
    address = next(pool, None)
    if address is None:
        raise InvalidManifest(f"Service {namespace_of(service)}/{name_of(service)}: no cluster IP is left")
    return address


def _with_node_ports(service: Service, taken: set[tuple[int, str]]) -> Service:
    """Return a Service with its node ports, and one for health checks where a load balancer needs to ask for them."""
    spec = service.spec
    if spec is None or spec.type not in EXPOSED:
        return service
    ports, health = list(_spec_ports(service)), spec.healthCheckNodePort
    if spec.allocateLoadBalancerNodePorts is not False:
        ports = [
            msgspec.structs.replace(one, nodePort=one.nodePort or _node_port(service, one.protocol or "TCP", taken))
            for one in ports
        ]
    if spec.type == "LoadBalancer" and spec.externalTrafficPolicy == "Local":
        health = health or _node_port(service, "TCP", taken)
    return msgspec.structs.replace(
        service, spec=msgspec.structs.replace(spec, ports=ports, healthCheckNodePort=health)
    )  # fmt: skip


def _node_port(service: Service, protocol: str, taken: set[tuple[int, str]]) -> int:
    number = next((one for one in NODE_PORTS if (one, protocol) not in taken), None)
    if number is None:
        raise InvalidManifest(f"Service {namespace_of(service)}/{name_of(service)}: no node port is left")
    taken.add((number, protocol))
    return number
