"""The same Services for everybody: each with two endpoints, one on this node and one on another."""
from __future__ import annotations

from typing import Any

from lightkube.resources.core_v1 import Service
from lightkube.resources.discovery_v1 import EndpointSlice

from k8snet.controllers.kube_proxy.service_ports import ProxyConfig

__all__ = ["CONFIG", "PORT", "address", "changed", "objects"]

CONFIG = ProxyConfig(
    node_name="node1", node_ips=("172.18.0.1",), cluster_cidr="10.244.0.0/16", service_cidrs=("10.96.0.0/12",)
)
PORT = 80
A_BLOCK = 250  # addresses of a /24


def address(number: int) -> str:
    """Return the cluster IP of a Service; they count from 0."""
    return f"10.97.{number // A_BLOCK}.{number % A_BLOCK + 1}"


def objects(count: int) -> list[Any]:
    """Return so many Services, each with its EndpointSlice."""
    return [one for number in range(count) for one in (_service(number), _slice(number, endpoints=2))]


def changed(found: list[Any]) -> list[Any]:
    """Return the same objects, but the Service in the middle has lost an endpoint."""
    middle = len(found) // 4
    return [*found[: 2 * middle + 1], _slice(middle, endpoints=1), *found[2 * middle + 2 :]]


def _name(number: int) -> str:
    return f"service-{number:05}"  # so that the last one comes last in the rules, too


def _service(number: int) -> Service:
    ports = [{"name": "http", "port": PORT, "protocol": "TCP", "targetPort": 8080}]
    spec = {"type": "ClusterIP", "clusterIP": address(number), "selector": {"app": _name(number)}, "ports": ports}
    return Service.from_dict({"metadata": {"name": _name(number), "namespace": "bench"}, "spec": spec})


def _slice(number: int, *, endpoints: int) -> EndpointSlice:
    ready = {"ready": True, "serving": True, "terminating": False}
    return EndpointSlice.from_dict({
        "metadata": {
            "name": f"{_name(number)}-ipv4-1", "namespace": "bench",
            "labels": {"kubernetes.io/service-name": _name(number)},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {"addresses": [f"10.244.{number // A_BLOCK + 100 * at}.{number % A_BLOCK + 1}"],
             "nodeName": f"node{at + 1}", "conditions": ready}
            for at in range(endpoints)
        ],
    })  # fmt: skip
