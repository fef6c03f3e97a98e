"""The kinds of the Gateway API v1 that k8snet knows, with the field names of its own; lightkube has no models of them.

Source: kubernetes-sigs/gateway-api apis/v1 (GatewayClass, Gateway, HTTPRoute) and apis/v1beta1 (ReferenceGrant).
"""

from __future__ import annotations

from typing import Any

import msgspec
from lightkube.core.schema import DictMixin
from lightkube.models.meta_v1 import LabelSelector, ObjectMeta  # noqa: TC002  # as for all models: read at run time

__all__ = [
    "BackendRef",
    "Filter",
    "Gateway",
    "GatewayClass",
    "HTTPRoute",
    "HeaderModifier",
    "Listener",
    "ParentRef",
    "PathModifier",
    "RedirectFilter",
    "ReferenceGrant",
    "RouteMatch",
    "RouteRule",
]
# ruff: noqa: N815, D101  # the fields are called as in Kubernetes; what the structs are is in the specification


class Kind(DictMixin):
    """What every object has."""

    apiVersion: str | None = None
    kind: str | None = None
    metadata: ObjectMeta | None = None
    status: dict[str, Any] | None = None


class GatewayClassSpec(DictMixin):
    controllerName: str
    description: str | None = None
    parametersRef: dict[str, Any] | None = None


class GatewayClass(Kind):
    spec: GatewayClassSpec | None = None


class ObjectRef(DictMixin):
    name: str
    group: str | None = None
    kind: str | None = None
    namespace: str | None = None


class ListenerTls(DictMixin):
    mode: str | None = None
    certificateRefs: list[ObjectRef] | None = None
    options: dict[str, Any] | None = None
    frontendValidation: dict[str, Any] | None = None


class RouteNamespaces(DictMixin):
    from_: str | None = msgspec.field(name="from", default=None)
    selector: LabelSelector | None = None


class RouteKind(DictMixin):
    kind: str
    group: str | None = None


class AllowedRoutes(DictMixin):
    namespaces: RouteNamespaces | None = None
    kinds: list[RouteKind] | None = None


class Listener(DictMixin):
    name: str
    port: int
    protocol: str
    hostname: str | None = None
    tls: ListenerTls | None = None
    allowedRoutes: AllowedRoutes | None = None


class GatewaySpec(DictMixin):
    gatewayClassName: str
    listeners: list[Listener]
    addresses: list[dict[str, Any]] | None = None
    infrastructure: dict[str, Any] | None = None
    allowedListeners: dict[str, Any] | None = None
    backendTLS: dict[str, Any] | None = None
    tls: dict[str, Any] | None = None


class Gateway(Kind):
    spec: GatewaySpec | None = None


class ParentRef(DictMixin):
    name: str
    group: str | None = None
    kind: str | None = None
    namespace: str | None = None
    sectionName: str | None = None
    port: int | None = None


class PathMatch(DictMixin):
    type: str | None = None
    value: str | None = None


class ValueMatch(DictMixin):
    name: str
    value: str
    type: str | None = None


class RouteMatch(DictMixin):
    path: PathMatch | None = None
    headers: list[ValueMatch] | None = None
    queryParams: list[ValueMatch] | None = None
    method: str | None = None


class Header(DictMixin):
    name: str
    value: str


class HeaderModifier(DictMixin):
    set: list[Header] | None = None
    add: list[Header] | None = None
    remove: list[str] | None = None


class PathModifier(DictMixin):
    type: str
    replaceFullPath: str | None = None
    replacePrefixMatch: str | None = None


class RedirectFilter(DictMixin):
    scheme: str | None = None
    hostname: str | None = None
    path: PathModifier | None = None
    port: int | None = None
    statusCode: int | None = None


class RewriteFilter(DictMixin):
    hostname: str | None = None
    path: PathModifier | None = None


class Filter(DictMixin):
    type: str
    requestHeaderModifier: HeaderModifier | None = None
    responseHeaderModifier: HeaderModifier | None = None
    requestRedirect: RedirectFilter | None = None
    urlRewrite: RewriteFilter | None = None
    requestMirror: dict[str, Any] | None = None
    extensionRef: dict[str, Any] | None = None
    cors: dict[str, Any] | None = None
    externalAuth: dict[str, Any] | None = None


class BackendRef(ObjectRef):
    port: int | None = None
    weight: int | None = None
    filters: list[Filter] | None = None


class RouteRule(DictMixin):
    name: str | None = None
    matches: list[RouteMatch] | None = None
    filters: list[Filter] | None = None
    backendRefs: list[BackendRef] | None = None
    timeouts: dict[str, Any] | None = None
    retry: dict[str, Any] | None = None
    sessionPersistence: dict[str, Any] | None = None


class HTTPRouteSpec(DictMixin):
    parentRefs: list[ParentRef] | None = None
    hostnames: list[str] | None = None
    rules: list[RouteRule] | None = None
    useDefaultGateways: str | None = None


class HTTPRoute(Kind):
    spec: HTTPRouteSpec | None = None


class GrantFrom(DictMixin):
    group: str
    kind: str
    namespace: str


class GrantTo(DictMixin):
    group: str
    kind: str
    name: str | None = None


class ReferenceGrantSpec(DictMixin):
    from_: list[GrantFrom] = msgspec.field(name="from")
    to: list[GrantTo]


class ReferenceGrant(Kind):
    spec: ReferenceGrantSpec | None = None
