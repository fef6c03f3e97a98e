"""Upstream's IPVS cases as objects of ours, and what each expects of one address family.

They are of 2019, when one proxier had both families: now each has virtual servers and real servers of its own only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from k8snet.cluster.manifests import parse
from k8snet.controllers.kube_proxy.service_ports import ProxyConfig, ServicePort, service_ports
from k8snet.linux.ipvs import RealServer, VirtualServer
from tests.conformance.conftest import DATA, read

__all__ = ["DATA", "Case", "cases", "structure"]


def structure() -> dict:
    """Return upstream's names, types, rules and settings."""
    return read("kube_proxy_ipvs/structure.json") or {}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case, of one family."""

    name: str
    config: ProxyConfig
    ports: list[ServicePort]
    servers: list[VirtualServer] | None  # None: the case has an assertion only
    raw: dict


def cases() -> list[Case]:
    """Return every case, once for each family that its Services have."""
    found = []
    for raw in (read("kube_proxy_ipvs/cases.json") or {"cases": []})["cases"]:
        for family in sorted({family_of(one["spec"]["clusterIP"]) for one in raw["services"]}):
            config = ProxyConfig(
                node_name="node", node_ips=tuple(raw.get("nodeIPs", ())), family=family,
                nodeport_addresses=tuple(raw.get("nodePortAddresses", ())),
            )  # fmt: skip
            ports = service_ports(objects_of(raw), config)
            servers = [server for one in raw.get("virtualServers", ()) for server in server_of(one, family)]
            found.append(
                Case(name=f"{raw['goTest']} {family}", config=config, ports=ports, raw=raw,
                     servers=servers if "virtualServers" in raw else None)
            )  # fmt: skip
    return found


def family_of(address):
    return "v6" if ":" in address else "v4"


def server_of(one, family):
    """Yield a virtual server as the proxier of *family* has it."""
    if family_of(one["address"]) == family:
        reals = tuple(RealServer(**real) for real in one["realServers"] if family_of(real["address"]) == family)
        yield VirtualServer(
            address=one["address"], port=one["port"], protocol=one["protocol"], scheduler=one["scheduler"],
            real_servers=reals,
        )  # fmt: skip


def objects_of(raw):
    """Return Services, and an EndpointSlice for each family of a port's endpoints."""
    items = [{"apiVersion": "v1", "kind": "Service", **one} for one in raw["services"]]
    for key, endpoints in raw["endpoints"].items():
        namespace, _, rest = key.partition("/")
        service, _, port = rest.partition(":")
        (spec,) = [p for one in raw["services"] if one["metadata"]["name"] == service for p in one["spec"]["ports"]]
        for number, text in enumerate(endpoints):
            address, _, target = text.rpartition(":")
            address = address.strip("[]")
            items.append({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": f"{service}-{number}", "namespace": namespace,
                             "labels": {"kubernetes.io/service-name": service}},
                "addressType": "IPv6" if ":" in address else "IPv4", "endpoints": [{"addresses": [address]}],
                "ports": [{"name": port, "port": int(target), "protocol": spec["protocol"]}],
            })  # fmt: skip
    return parse(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}), lenient=True).objects
