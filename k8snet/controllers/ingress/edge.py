"""Objects -> Edge: pure. What Ingresses and routes have in common: classes, backends, certificates, notes."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightkube.resources.core_v1 import Secret, Service
from lightkube.resources.discovery_v1 import EndpointSlice

from k8snet.cluster.edge_checks import TLS_SECRET
from k8snet.cluster.objects import KubeObject, key_of, labels_of, name_of, namespace_of
from k8snet.controllers.endpoint_slice import SLICE_OF
from k8snet.controllers.ingress import from_gateway, from_ingress
from k8snet.controllers.ingress.model import (
    Certificate,
    Edge,
    Hostname,
    Match,
    Target,
    Upstream,
    VirtualHost,
    age,
    controller_of,
    ordered,
)
from k8snet.controllers.ingress.tls import unfit

__all__ = ["MODES", "Draft", "build"]

MODES = ("endpoints", "service")


def build(
    objects: Iterable[KubeObject], *, name: str | None = None, upstreams: str = "endpoints",
    ports: Mapping[int, bool] | None = None, default: Certificate | None = None, guess: bool = False,
) -> Edge:  # fmt: skip
    """Return what a controller serves for objects of a cluster.

    Args:
        name: of its classes; None takes the objects of every class.
        upstreams: "endpoints" calls the pods behind a Service, "service" its cluster IP.
        ports: that are served in any case -> whether TLS is spoken there.
        default: the certificate for hosts that have none.
        guess: call a Service by its cluster IP if it has no EndpointSlice at all, as in manifests that people write.
    """
    draft = Draft(list(objects), name=name, upstreams=upstreams, ports=dict(ports or {}), default=default, guess=guess)
    from_ingress.add(draft)
    from_gateway.add(draft)
    return draft.edge()


@dataclass
class Host:
    """A virtual host that is still being added to."""

    certificate: str | None = None
    matches: list[Match] = field(default_factory=list)


class Draft:
    """An Edge in the making."""

    def __init__(
        self, objects: Sequence[KubeObject], *, name: str | None, upstreams: str, ports: dict[int, bool],
        default: Certificate | None, guess: bool = False,
    ) -> None:  # fmt: skip
        """Begin with nothing but *ports*."""
        self.objects = {key_of(one): one for one in objects}
        self.name, self.mode, self.ports, self.default, self._guess = name, upstreams, ports, default, guess
        self.hosts: dict[tuple[int, Hostname], Host] = {}
        self.upstreams: dict[str, Upstream] = {}
        self.certificates: dict[str, Certificate] = {default.name: default} if default else {}
        self.notes: dict[str, None] = {}  # a set that keeps its order
        self.statuses: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._slices: dict[tuple[str, str], list[EndpointSlice]] = {}
        for one in objects:
            if isinstance(one, EndpointSlice):
                self._slices.setdefault((namespace_of(one), labels_of(one).get(SLICE_OF, "")), []).append(one)

    def of_kind(self, kind: str) -> list[Any]:
        """Return the objects of a kind, the oldest first; of equal age by namespace and name."""
        return sorted((one for key, one in self.objects.items() if key[0] == kind), key=age)

    def is_ours(self, kind: str, class_name: str) -> bool:
        """Tell whether a class, of kind IngressClass or GatewayClass, is this controller's."""
        known: Any = self.objects.get((kind, "", class_name))
        spec = known and known.spec
        word = spec and (spec.controller if kind == "IngressClass" else spec.controllerName)
        return self.name is None or class_name == self.name or word == controller_of(self.name)

    def note(self, obj: KubeObject, text: str) -> None:
        """Say what is not done, and why."""
        kind, namespace, name = key_of(obj)
        line = f"{kind} {f'{namespace}/' if namespace else ''}{name}: {text}"
        self.notes["".join(one if one.isprintable() else "?" for one in line)] = None

    def host(self, port: int, name: Hostname, *, tls: bool) -> Host:
        """Return the virtual host of a port and name, which is made where there is none yet."""
        self.ports.setdefault(port, tls)
        return self.hosts.setdefault((port, name), Host())

    def certificate(self, namespace: str, name: str) -> str | None:
        """Return the name of a Secret's certificate, or None if it has none that nginx takes; see why_not()."""
        if self.why_not(namespace, name):
            return None
        data = _data(self.objects["Secret", namespace, name])
        made = Certificate(name=f"{namespace}.{name}", chain=data["tls.crt"], key=data["tls.key"])
        self.certificates[made.name] = made
        return made.name

    def why_not(self, namespace: str, name: str) -> str:
        """Return why a Secret is no certificate, or ""."""
        found = self.objects.get(("Secret", namespace, name))
        if not isinstance(found, Secret) or found.type != TLS_SECRET:
            return f"there is no Secret {namespace}/{name} of type {TLS_SECRET}"
        data = _data(found)
        reason = unfit(data["tls.crt"], data["tls.key"])
        return f"Secret {namespace}/{name}: {reason}" if reason else ""

    def target(self, namespace: str, name: str, port: int | str, *, missing: int, weight: int = 1) -> Target:
        """Return where requests for a port of a Service go: its upstream, 503 without endpoints, or *missing*."""
        service = self.objects.get(("Service", namespace, name))
        if not isinstance(service, Service) or self.no_backend(namespace, name, port):
            return Target(status=missing, weight=weight)
        found = _port(service, port)
        upstream = Upstream(name=f"{namespace}.{name}.{found.port}", servers=self._servers(service, found))
        if not upstream.servers:
            return Target(status=503, weight=weight)
        self.upstreams[upstream.name] = upstream
        return Target(upstream=upstream.name, weight=weight)

    def no_backend(self, namespace: str, name: str, port: int | str) -> str:
        """Return why a port of a Service cannot be called at all, or ""."""
        service = self.objects.get(("Service", namespace, name))
        if not isinstance(service, Service) or service.spec is None:
            return f"there is no Service {namespace}/{name}"
        if service.spec.type == "ExternalName":
            return f"Service {namespace}/{name} is of type ExternalName, which could lead anywhere"
        if _port(service, port) is None:
            return f"Service {namespace}/{name} has no TCP port {port}"
        return ""

    def _servers(self, service: Service, port: Any) -> tuple[str, ...]:
        """Return the addresses behind a port of a Service: of IPv4 where there are any, else of IPv6."""
        slices = self._slices.get((namespace_of(service), name_of(service)), [])
        cluster_ip = service.spec.clusterIP if service.spec else None
        if (self.mode == "service" or (self._guess and not slices)) and cluster_ip not in {None, "", "None"}:
            return (_joined(str(cluster_ip), port.port),)
        for family in ("IPv4", "IPv6"):
            found = {
                _joined(endpoint.addresses[0], each.port)
                for one in slices if one.addressType == family
                for endpoint in one.endpoints or ()
                if endpoint.conditions is None or endpoint.conditions.ready is not False
                for each in one.ports or () if (each.name or "") == (port.name or "") and each.port
            }  # fmt: skip
            if found:
                return tuple(sorted(found))
        return ()

    def edge(self) -> Edge:
        """Return what has come together."""
        hosts = [
            VirtualHost(port=port, host=name, certificate=one.certificate, matches=ordered(one.matches))
            for (port, name), one in self.hosts.items()
        ]
        hosts.sort(key=lambda one: (one.host.order, one.port))
        return Edge(
            ports=dict(sorted(self.ports.items())), hosts=tuple(hosts), notes=tuple(self.notes), statuses=self.statuses,
            upstreams=tuple(one for _, one in sorted(self.upstreams.items())),
            certificates=tuple(one for _, one in sorted(self.certificates.items())),
            default_certificate=self.default.name if self.default else None,
        )  # fmt: skip


def _port(service: Service, port: int | str) -> Any:
    """Return the port of a Service that a name or a number means; None if it has none such of TCP."""
    for one in (service.spec.ports if service.spec else None) or ():
        if (one.protocol or "TCP") == "TCP" and port in {one.port, one.name}:
            return one
    return None


def _data(secret: KubeObject) -> dict[str, str]:
    """Return what a Secret for TLS holds, decoded."""
    assert isinstance(secret, Secret)  # noqa: S101  # its key says so
    found = {key: base64.b64decode(str(text)).decode(errors="replace") for key, text in (secret.data or {}).items()}
    return {"tls.crt": "", "tls.key": "", **found, **(secret.stringData or {})}


def _joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
