"""EndpointSlices: which pods are behind a Service, and in what state.

A Service with a selector has one slice for each address family and set of port numbers, or several
where there are more than 100 endpoints. One without a selector has those that somebody wrote by hand.

Source: kubernetes staging/src/k8s.io/endpointslice; the API's EndpointSlice v1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightkube.models.core_v1 import ObjectReference, ServicePort
from lightkube.models.discovery_v1 import Endpoint, EndpointConditions, EndpointPort
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.discovery_v1 import EndpointSlice

from k8snet.cluster.objects import name_of, namespace_of

if TYPE_CHECKING:
    from lightkube.resources.core_v1 import Service

__all__ = ["Backend", "render"]

MOST_ENDPOINTS = 100  # of a slice; upstream's default
SLICE_OF, MANAGED_BY, HEADLESS = (
    "kubernetes.io/service-name", "endpointslice.kubernetes.io/managed-by", "service.kubernetes.io/headless",
)  # fmt: skip
OURS = "endpointslice-controller.k8s.io"  # what upstream's controller calls itself
ADDRESS_TYPES = {4: "IPv4", 6: "IPv6"}


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A pod, as far as Services care."""

    namespace: str
    name: str
    labels: Mapping[str, str]
    node: str
    addresses: tuple[str, ...]
    ports: Mapping[tuple[str, str], int] = field(default_factory=dict)  # (port name, protocol) -> containerPort
    ready: bool = True
    terminating: bool = False
    hostname: str | None = None  # its name in DNS, below the Service that is called as subdomain says
    subdomain: str | None = None


def render(services: Iterable[Service], backends: Iterable[Backend]) -> list[EndpointSlice]:
    """Return the slices of every Service that has a selector, by namespace and name."""
    by_namespace: dict[str, list[Backend]] = {}
    for one in sorted(backends, key=lambda one: (one.namespace, one.name)):
        by_namespace.setdefault(one.namespace, []).append(one)
    found: list[EndpointSlice] = []
    for service in services:
        spec = service.spec
        if spec is None or not spec.selector or spec.type == "ExternalName":
            continue
        wanted = spec.selector.items()
        chosen = [one for one in by_namespace.get(namespace_of(service), ()) if wanted <= one.labels.items()]
        found += _slices(service, chosen)
    return sorted(found, key=lambda one: (namespace_of(one), name_of(one)))


def _slices(service: Service, chosen: Sequence[Backend]) -> Iterator[EndpointSlice]:
    """Yield the slices of a Service: of its families, and pods whose named ports differ in number cannot share one."""
    families = service.spec.ipFamilies if service.spec else None
    for version, kind in ADDRESS_TYPES.items():
        if families and kind not in families:
            continue
        groups: dict[tuple[tuple[str, int], ...], list[Backend]] = {}
        for one in chosen:
            if _address(one, version):
                groups.setdefault(_numbers(service, one), []).append(one)
        count = 0
        for numbers, members in groups.items():
            for start in range(0, len(members), MOST_ENDPOINTS):
                count += 1
                part = members[start : start + MOST_ENDPOINTS]
                yield _slice(service, part, dict(numbers), version, f"{name_of(service)}-{kind.lower()}-{count}")


def _slice(
    service: Service, members: Sequence[Backend], numbers: Mapping[str, int], version: int, name: str
) -> EndpointSlice:
    labels = {SLICE_OF: name_of(service), MANAGED_BY: OURS}
    if service.spec and service.spec.clusterIP == "None":
        labels[HEADLESS] = ""
    ports = [
        EndpointPort(name=port.name or "", port=numbers[_key(port)], protocol=port.protocol or "TCP")
        for port in _ports(service) if _key(port) in numbers
    ]  # fmt: skip
    return EndpointSlice(
        apiVersion="discovery.k8s.io/v1", kind="EndpointSlice", addressType=ADDRESS_TYPES[version],
        metadata=ObjectMeta(name=name, namespace=namespace_of(service), labels=labels), ports=ports,
        endpoints=[_endpoint(service, one, version) for one in members],
    )  # fmt: skip


def _endpoint(service: Service, backend: Backend, version: int) -> Endpoint:
    serving = backend.ready
    ready = (serving and not backend.terminating) or bool(service.spec and service.spec.publishNotReadyAddresses)
    return Endpoint(
        addresses=[_address(backend, version) or ""], nodeName=backend.node,
        hostname=backend.hostname if backend.subdomain == name_of(service) else None,
        conditions=EndpointConditions(ready=ready, serving=serving, terminating=backend.terminating),
        targetRef=ObjectReference(kind="Pod", namespace=backend.namespace, name=backend.name),
    )  # fmt: skip


def _ports(service: Service) -> Sequence[ServicePort]:
    return (service.spec.ports if service.spec else None) or ()


def _key(port: Any) -> str:
    return f"{port.name or ''}/{port.protocol or 'TCP'}"


def _numbers(service: Service, backend: Backend) -> tuple[tuple[str, int], ...]:
    """Return the number that each port of the Service has on this pod; a name that the pod lacks leaves it out."""
    found = []
    for port in _ports(service):
        target = port.targetPort if port.targetPort is not None else port.port
        if isinstance(target, str) and not target.isdigit():
            number = backend.ports.get((target, port.protocol or "TCP"))
        else:
            number = int(target) or port.port
        if number is not None:
            found.append((_key(port), number))
    return tuple(found)


def _address(backend: Backend, version: int) -> str | None:
    return next((one for one in backend.addresses if (":" in one) == (version == 6)), None)
