"""Environment variables: how a pod's programs are told of Services without DNS, as the kubelet does it.

A container gets them when it starts, so only Services that are older than its pod are among them.

Source: kubernetes pkg/kubelet/envvars/envvars.go, and getServiceEnvVarMap in pkg/kubelet/kubelet_pods.go.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lightkube.resources.core_v1 import Service

from k8snet.cluster.objects import key_of, meta, name_of, namespace_of
from k8snet.controllers.addresses import assign

if TYPE_CHECKING:
    from k8snet.cluster.cluster import Cluster
    from k8snet.cluster.workloads import PodPlan

__all__ = ["environment", "for_pod", "from_services", "older", "visible"]

Key = tuple[str, str, str]  # kind, namespace and name
MASTER = ("default", "kubernetes")  # the API server's Service: every pod is told of it


def from_services(services: Iterable[Service]) -> list[tuple[str, str]]:
    """Return name and value of each variable, in the order of the Services; those without a cluster IP give none."""
    return [pair for one in services if _address(one) for pair in _of(one)]


def _of(service: Service) -> Iterator[tuple[str, str]]:
    prefix, address = _name(name_of(service)), _address(service)
    ports = (service.spec.ports if service.spec else None) or []
    yield f"{prefix}_SERVICE_HOST", address
    if ports:
        yield f"{prefix}_SERVICE_PORT", str(ports[0].port)
    for port in ports:
        if port.name:
            yield f"{prefix}_SERVICE_PORT_{_name(port.name)}", str(port.port)
    host = f"[{address}]" if ":" in address else address
    for index, port in enumerate(ports):  # the variables of Docker's links, which came before Kubernetes
        protocol = (port.protocol or "TCP").lower()
        url, link = f"{protocol}://{host}:{port.port}", f"{prefix}_PORT_{port.port}_{protocol.upper()}"
        if index == 0:
            yield f"{prefix}_PORT", url
        yield link, url
        yield f"{link}_PROTO", protocol
        yield f"{link}_PORT", str(port.port)
        yield f"{link}_ADDR", address


def _name(text: str) -> str:
    return text.upper().replace("-", "_")


def _address(service: Service) -> str:
    """Return the cluster IP of a Service, the first one where it has two, or ""."""
    spec = service.spec
    found = (spec.clusterIP or next(iter(spec.clusterIPs or ()), None)) if spec else None
    return "" if found in {None, "None"} else str(found)


def visible(services: Iterable[Service], *, namespace: str, links: bool = True) -> list[Service]:
    """Return the Services that a pod of *namespace* is told of: its own, and `kubernetes` of the namespace default.

    Args:
        links: the pod's enableServiceLinks; without it, only `kubernetes` of default is left.
    """
    found: dict[str, Service] = {}  # by name: one of the pod's own namespace takes the place of default/kubernetes
    for one in services:
        if not _address(one):
            continue
        if (namespace_of(one), name_of(one)) == MASTER:
            found.setdefault(name_of(one), one)
        elif links and namespace_of(one) == namespace:
            found[name_of(one)] = one
    return list(found.values())


def older(objects: Mapping[Key, Any], plan: PodPlan, *, settled: Collection[Key] = ()) -> list[Service]:
    """Return the Services that were there before a pod: by creationTimestamp, and where one has none, by their order.

    Args:
        objects: in the order in which they were applied.
        settled: what was there before the last change, and so before any pod that comes of it.
    """
    born, passed, found = meta(plan.pod).creationTimestamp, False, []
    for key, one in objects.items():
        passed = passed or (key == plan.made_by and key not in settled)
        if isinstance(one, Service):
            theirs = meta(one).creationTimestamp
            there = not passed or key in settled or key[1:] == MASTER  # that one is as old as the cluster
            if theirs <= born if theirs and born else there:
                found.append(one)
    return found


def for_pod(cluster: Cluster, plan: PodPlan, settled: Collection[Key]) -> Callable[[], Mapping[str, str]]:
    """Return what tells the variables of a new pod of a cluster; it is asked when the Services have their addresses.

    Args:
        settled: see older().
    """
    before = [key_of(one) for one in older(cluster.objects, plan, settled=settled)]

    @functools.cache
    def told() -> Mapping[str, str]:
        services = [one for one in cluster.objects.values() if isinstance(one, Service)]
        there = {key_of(one): one for one in assign(services, cluster.ip_families)}
        return environment((there[key] for key in before if key in there), plan.pod)

    return told


def environment(services: Iterable[Service], pod: Any) -> dict[str, str]:
    """Return the variables that tell a pod's programs of *services*, those older than it. Like: env."""
    links = not (pod.spec and pod.spec.enableServiceLinks is False)
    return dict(from_services(visible(services, namespace=namespace_of(pod), links=links)))
