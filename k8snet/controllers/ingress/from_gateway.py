"""Gateway and HTTPRoute (gateway.networking.k8s.io/v1) -> virtual hosts on the ports of listeners.

Source: https://gateway-api.sigs.k8s.io/reference/spec/ ; what a route's backend cannot do is answered with 500 there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from k8snet.cluster import gateway_api as g
from k8snet.cluster.edge_checks import decoded
from k8snet.cluster.objects import key_of, labels_of, matches, name_of, namespace_of
from k8snet.controllers.ingress.model import (
    Action,
    Condition,
    HeaderChange,
    Hostname,
    Match,
    PathChange,
    Redirect,
    Target,
    age,
    controller_of,
)

if TYPE_CHECKING:
    from k8snet.controllers.ingress.edge import Draft

__all__ = ["add"]

GROUP = "gateway.networking.k8s.io"
SUPPORTED = {"RequestHeaderModifier", "ResponseHeaderModifier", "RequestRedirect", "URLRewrite"}
PORTS = {"http": 80, "https": 443}
Path = tuple[str, bool]  # and whether it is exact


@dataclass(eq=False)
class _Listener:
    gateway: Any
    model: g.Listener
    reason: str = ""  # why it does not work: a word of the specification
    message: str = ""
    certificate: str | None = None
    routes: int = 0  # that are attached

    @property
    def host(self) -> Hostname:
        return Hostname(name=self.model.hostname or "", deep=True)

    @property
    def tls(self) -> bool:
        return self.model.protocol == "HTTPS"


def add(draft: Draft) -> None:
    """Add what the Gateways of a draft's classes say, and the HTTPRoutes that are attached to them."""
    gateways = [
        one for one in draft.of_kind("Gateway") if draft.is_ours("GatewayClass", one.spec.gatewayClassName)
    ]  # fmt: skip
    listeners: list[_Listener] = []
    for gateway in gateways:
        for one in gateway.spec.listeners:
            listeners.append(_listener(draft, gateway, one, listeners))
    for listener in listeners:
        if listener.reason:
            draft.note(listener.gateway, f"listener {listener.model.name}: {listener.message}")
        else:  # a host of its own, so that no other listener's routes are found for it
            host = draft.host(listener.model.port, listener.host, tls=listener.tls)
            host.certificate = host.certificate or listener.certificate
    for route in draft.of_kind("HTTPRoute"):
        parents = [
            (ref, [one for one in listeners if _is_parent(ref, route, one)]) for ref in route.spec.parentRefs or ()
        ]
        for ref, _ in parents:
            space = ref.namespace or namespace_of(route)
            if (ref.kind or "Gateway") == "Gateway" and ("Gateway", space, ref.name) not in draft.objects:
                draft.note(route, f"there is no Gateway {space}/{ref.name}")
        if any(found for _, found in parents):
            _Route(draft, route, listeners).attach(parents)
    for gateway in gateways:
        draft.statuses[key_of(gateway)] = _gateway_status([one for one in listeners if one.gateway is gateway])


# -- listeners -----------------------------------------------------------------------------


def _listener(draft: Draft, gateway: Any, model: g.Listener, others: Iterable[_Listener]) -> _Listener:
    found = _Listener(gateway, model)
    tls = model.tls
    if model.protocol not in {"HTTP", "HTTPS"} or (tls and tls.mode == "Passthrough"):
        what = "TLS that is passed through" if model.protocol in {"HTTPS", "TLS"} else f"protocol {model.protocol}"
        found.reason, found.message = "UnsupportedProtocol", f"{what} is not served; HTTP and HTTPS are"
    elif draft.ports.get(model.port, found.tls) != found.tls or any(
        one.model.port == model.port and one.tls != found.tls for one in others if not one.reason
    ):
        found.reason = "ProtocolConflict"
        found.message = f"port {model.port} speaks {'HTTP' if found.tls else 'HTTPS'} already"
    elif found.tls and tls:
        _certify(draft, found, tls.certificateRefs or [])
    return found


def _certify(draft: Draft, listener: _Listener, refs: list[g.ObjectRef]) -> None:
    """Give a listener its certificate: that of its first reference; nginx is not told of others."""
    ref, namespace = refs[0], namespace_of(listener.gateway)
    space = ref.namespace or namespace
    if (ref.group or "", ref.kind or "Secret") != ("", "Secret"):
        listener.reason, listener.message = "InvalidCertificateRef", f"{ref.kind} {ref.name} is not a Secret"
    elif space != namespace and not _granted(draft, listener.gateway, "Secret", space, ref.name):
        listener.reason = "RefNotPermitted"
        listener.message = f"no ReferenceGrant in namespace {space} lets it use Secret {space}/{ref.name}"
    else:
        listener.certificate = draft.certificate(space, ref.name)
        if listener.certificate is None:
            listener.reason, listener.message = "InvalidCertificateRef", draft.why_not(space, ref.name)
    if len(refs) > 1:
        draft.note(listener.gateway, f"listener {listener.model.name}: only the first of its certificates is used")


def _granted(draft: Draft, source: Any, kind: str, namespace: str, name: str) -> bool:
    """Tell whether a ReferenceGrant lets *source* refer to an object of another namespace."""
    for grant in draft.of_kind("ReferenceGrant"):
        asks = any(
            (one.group, one.kind, one.namespace) == (GROUP, key_of(source)[0], namespace_of(source))
            for one in grant.spec.from_
        )
        to = any((one.group, one.kind) == ("", kind) and one.name in {None, "", name} for one in grant.spec.to)
        if namespace_of(grant) == namespace and asks and to:
            return True
    return False


def _is_parent(ref: g.ParentRef, route: Any, listener: _Listener) -> bool:
    """Tell whether a parentRef means a listener, or its whole Gateway."""
    space = ref.namespace or namespace_of(route)
    return (
        (ref.group or GROUP, ref.kind or "Gateway") == (GROUP, "Gateway")
        and (space, ref.name) == (namespace_of(listener.gateway), name_of(listener.gateway))
        and ref.sectionName in {None, listener.model.name} and ref.port in {None, listener.model.port}
    )  # fmt: skip


def _allows(draft: Draft, listener: _Listener, route: Any) -> bool:
    """Tell whether a listener lets routes of this namespace and kind be attached."""
    allowed = listener.model.allowedRoutes
    kinds = (allowed.kinds if allowed else None) or [g.RouteKind(kind="HTTPRoute")]
    if not any((one.group or GROUP, one.kind) == (GROUP, "HTTPRoute") for one in kinds):
        return False
    spaces = allowed and allowed.namespaces
    word = (spaces.from_ if spaces else None) or "Same"
    if word == "Selector":
        namespace = draft.objects.get(("Namespace", "", namespace_of(route)))
        return matches(spaces.selector if spaces else None, labels_of(namespace) if namespace else {})
    return word == "All" or (word == "Same" and namespace_of(route) == namespace_of(listener.gateway))


def _condition(kind: str, holds: bool, reason: str, message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": "True" if holds else "False", "reason": reason, "message": message}


def _gateway_status(listeners: list[_Listener]) -> dict[str, Any]:
    good = [one for one in listeners if not one.reason]
    return {
        "conditions": [
            _condition("Accepted", bool(good), "Accepted" if good else "ListenersNotValid"),
            _condition("Programmed", bool(good), "Programmed" if good else "Invalid"),
        ],
        "listeners": [
            {
                "name": one.model.name, "attachedRoutes": one.routes,
                "supportedKinds": [{"group": GROUP, "kind": "HTTPRoute"}],
                "conditions": [_condition("Programmed", not one.reason, one.reason or "Programmed", one.message)],
            }
            for one in listeners
        ],
    }  # fmt: skip


# -- routes --------------------------------------------------------------------------------


class _Route:
    def __init__(self, draft: Draft, model: Any, listeners: list[_Listener]) -> None:
        self.draft, self.model, self.listeners = draft, model, listeners
        self.namespace, self.title = namespace_of(model), f"HTTPRoute {namespace_of(model)}/{name_of(model)}"
        self.reason = ""  # of the first reference that leads nowhere

    def attach(self, parents: list[tuple[g.ParentRef, list[_Listener]]]) -> None:
        """Add its rules to the listeners that take it, and say in its status which do."""
        status = []
        for ref, found in parents:
            if not found:
                continue
            allowed = [one for one in found if not one.reason and _allows(self.draft, one, self.model)]
            taken = [one for one in allowed if self._add(one)]
            reason = "Accepted" if taken else "NoMatchingListenerHostname" if allowed else "NotAllowedByListeners"
            if not taken:
                self.draft.note(self.model, f"Gateway {ref.name} does not take it: {reason}")
            status.append({
                "parentRef": {"name": ref.name, "namespace": ref.namespace or self.namespace},
                "controllerName": controller_of(self.draft.name or "any"),
                "conditions": [
                    _condition("Accepted", bool(taken), reason),
                    _condition("ResolvedRefs", not self.reason, self.reason or "ResolvedRefs"),
                ],
            })  # fmt: skip
        self.draft.statuses[key_of(self.model)] = {"parents": status}

    def _add(self, listener: _Listener) -> bool:
        """Add its rules to one listener for the hosts of both; return whether there are any."""
        own = [Hostname(name=one, deep=True) for one in self.model.spec.hostnames or ()]
        both = [_both(listener.host, one) for one in own] if own else [listener.host]
        names = [one for one in both if one is not None]
        for name in dict.fromkeys(names):
            if not self._is_anothers(name, listener):
                host = self.draft.host(listener.model.port, name, tls=listener.tls)
                host.certificate = host.certificate or listener.certificate
                host.matches += self._matches(listener)
        listener.routes += bool(names)
        return bool(names)

    def _is_anothers(self, name: Hostname, listener: _Listener) -> bool:
        """Tell whether all hosts of a name belong to a listener that says more than this one."""
        return any(
            one.model.port == listener.model.port and not one.reason and one.host != listener.host
            and one.host.holds(name) and listener.host.holds(one.host)
            for one in self.listeners
        )  # fmt: skip

    def _matches(self, listener: _Listener) -> Iterator[Match]:
        for number, rule in enumerate(self.model.spec.rules or [g.RouteRule()]):
            targets = tuple(self._targets(rule, number))
            for index, match in enumerate(rule.matches or [g.RouteMatch()]):
                exact = match.path is not None and match.path.type == "Exact"
                path = decoded((match.path and match.path.value) or "/")
                path = path if exact else path.rstrip("/") or "/"
                action = self._action(rule, number, targets, (path, exact), listener)
                rank = (*age(self.model), number, index)
                yield Match(path=path, exact=exact, conditions=tuple(_conditions(match)), rank=rank, action=action)

    def _targets(self, rule: g.RouteRule, number: int) -> Iterator[Target]:
        for index, ref in enumerate(rule.backendRefs or ()):
            weight = 1 if ref.weight is None else ref.weight
            space = ref.namespace or self.namespace
            reason, why = "BackendNotFound", self.draft.no_backend(space, ref.name, ref.port or 0)
            if (ref.group or "", ref.kind or "Service") != ("", "Service"):
                reason, why = "InvalidKind", f"{ref.kind} {ref.name} is not a Service"
            elif space != self.namespace and not _granted(self.draft, self.model, "Service", space, ref.name):
                reason, why = "RefNotPermitted", f"no ReferenceGrant in {space} lets it use Service {space}/{ref.name}"
            elif ref.filters:
                reason, why = "UnsupportedValue", "filters of a backend are not supported"
            if why:
                self.reason = self.reason or reason
                self.draft.note(self.model, f"rules[{number}].backendRefs[{index}]: {why}; it is answered with 500")
                yield Target(status=500, weight=weight)
            else:
                yield self.draft.target(space, ref.name, ref.port or 0, missing=500, weight=weight)

    def _action(
        self, rule: g.RouteRule, number: int, targets: tuple[Target, ...], path: Path, listener: _Listener
    ) -> Action:
        origin = f"{self.title} rules[{number}]"
        for field in ("timeouts", "retry", "sessionPersistence"):
            if getattr(rule, field):
                self.draft.note(self.model, f"rules[{number}].{field} is ignored")
        failed = _unsupported(rule.filters or (), exact=path[1])
        if failed:
            self.draft.note(self.model, f"rules[{number}]: {failed} is not supported; it is answered with 500")
            return Action(origin=origin, targets=(Target(status=500),))
        changes: dict[str, Any] = {"targets": targets or (Target(status=500),)}
        headers: list[HeaderChange] = []
        for one in rule.filters or ():
            headers += _headers(one.requestHeaderModifier, response=False)
            headers += _headers(one.responseHeaderModifier, response=True)
            if one.requestRedirect:
                changes["redirect"] = _redirect(one.requestRedirect, path, listener)
            if one.urlRewrite:
                changes |= {"host": one.urlRewrite.hostname, "path": _change(one.urlRewrite.path, path[0])}
        return Action(origin=origin, headers=tuple(headers), **changes)


def _unsupported(filters: Iterable[g.Filter], *, exact: bool) -> str:
    """Return what of some filters nginx does not do here, or ""; a filter is never left out in silence."""
    for one in filters:
        redirect = one.requestRedirect
        change = (redirect or one.urlRewrite or g.RewriteFilter()).path
        prefix = change is not None and change.type == "ReplacePrefixMatch"
        if one.type not in SUPPORTED:
            return f"filter {one.type}"
        if prefix and exact:
            return "replacing a prefix of an exact path"
        if prefix and redirect and redirect.statusCode not in {None, 301, 302}:
            return f"a redirect with {redirect.statusCode} that replaces a prefix"
    return ""


def _both(listener: Hostname, route: Hostname) -> Hostname | None:
    """Return the hosts that a listener and a route have both, as the name that says more."""
    return route if listener.holds(route) else listener if route.holds(listener) else None


def _conditions(match: g.RouteMatch) -> Iterator[Condition]:
    if match.method:
        yield Condition(what="method", value=match.method)
    for what, found in (("header", match.headers), ("query", match.queryParams)):
        seen = set()
        for one in found or ():
            name = one.name.lower() if what == "header" else one.name
            if name not in seen:  # of one name the first counts
                yield Condition(what=what, name=name, value=one.value)
            seen.add(name)


def _change(path: g.PathModifier | None, prefix: str) -> PathChange | None:
    if path is None:
        return None
    if path.type == "ReplaceFullPath":
        return PathChange(prefix=None, value=decoded(path.replaceFullPath or "/"))
    return PathChange(prefix=prefix, value=decoded(path.replacePrefixMatch or "/").rstrip("/") or "/")


def _redirect(one: g.RedirectFilter, path: Path, listener: _Listener) -> Redirect:
    """Return a redirect; its port is that of the scheme if it names one, else the listener's."""
    scheme = one.scheme or ("https" if listener.tls else "http")
    port = one.port or (PORTS[scheme] if one.scheme else listener.model.port)
    return Redirect(
        status=one.statusCode or 302, scheme=scheme, host=one.hostname, path=_change(one.path, path[0]),
        port=None if port == PORTS[scheme] else port,
    )  # fmt: skip


def _headers(modifier: g.HeaderModifier | None, *, response: bool) -> list[HeaderChange]:
    if modifier is None:
        return []
    found = [
        HeaderChange(what=what, name=one.name, value=one.value, response=response)
        for what, headers in (("set", modifier.set), ("add", modifier.add)) for one in headers or ()
    ]  # fmt: skip
    return found + [HeaderChange(what="remove", name=one, response=response) for one in modifier.remove or ()]
