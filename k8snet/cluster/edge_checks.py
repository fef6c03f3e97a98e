"""What Kubernetes refuses in the objects of the edge: Ingresses, Gateways, routes and Secrets for TLS.

Everything that becomes part of an nginx configuration is checked here: hosts, paths, headers, annotations.
A path may have a character such as `"` or a space as %22 or %20; control characters, `?` and `#` never.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import unquote_to_bytes

from lightkube.models.networking_v1 import HTTPIngressPath, IngressBackend  # noqa: TC002  # models
from lightkube.resources.core_v1 import Secret
from lightkube.resources.networking_v1 import Ingress

from k8snet.cluster import gateway_api as g
from k8snet.cluster.objects import KubeObject, Problem, meta, show

__all__ = ["ANNOTATIONS", "NGINX", "TLS_SECRET", "decoded", "edge_problems", "is_host"]

TLS_SECRET = "kubernetes.io/tls"  # noqa: S105  # a type of Secret
NGINX = "nginx.ingress.kubernetes.io/"
LONGEST = 1024  # of a path or a value; nginx takes no word of more than 4096 bytes in its configuration
MOST_WEIGHT = 1_000_000

_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*")
_PATH = re.compile(r"/(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9a-fA-F]{2})*")
_UNCLEAR = re.compile(r"//|/\.{1,2}(/|$)|%2f", re.IGNORECASE)  # nginx would make something else of it
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~]{1,256}")
_VALUE = re.compile(r"[ -~]+")  # printable ASCII
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
_FILTERS = {
    "RequestHeaderModifier": "requestHeaderModifier", "ResponseHeaderModifier": "responseHeaderModifier",
    "RequestRedirect": "requestRedirect", "URLRewrite": "urlRewrite", "RequestMirror": "requestMirror",
    "ExtensionRef": "extensionRef", "CORS": "cors", "ExternalAuth": "externalAuth",
}  # fmt: skip
_TRUTH = re.compile("true|false")
ANNOTATIONS: Mapping[str, tuple[re.Pattern[str], str]] = {  # of ingress-nginx, that are understood: what each may be
    "ssl-redirect": (_TRUTH, "true or false"),
    "force-ssl-redirect": (_TRUTH, "true or false"),
    "rewrite-target": (re.compile(_PATH.pattern.replace("$", "")), "a path, without $1 and its like"),
    "canary": (_TRUTH, "true or false"),
    "canary-weight": (re.compile("[0-9]{1,7}"), "a whole number"),
    "canary-weight-total": (re.compile("[1-9][0-9]{0,6}"), "a whole number above 0"),
    "canary-by-header": (re.compile("[A-Za-z0-9-]{1,256}"), "the name of a header"),
}


def edge_problems(obj: KubeObject) -> Iterator[Problem]:
    """Yield what is wrong with an object of the edge; nothing for other kinds."""
    if isinstance(obj, Ingress):
        yield from _ingress(obj)
    elif isinstance(obj, Secret):
        yield from _secret(obj)
    elif isinstance(obj, g.Gateway):
        yield from _gateway(obj)
    elif isinstance(obj, g.HTTPRoute):
        yield from _route(obj)
    elif isinstance(obj, g.GatewayClass | g.ReferenceGrant) and obj.spec is None:
        yield Problem("spec", "is missing")


def decoded(path: str) -> str:
    """Return a path as nginx compares it: without percent-encoding."""
    return unquote_to_bytes(path).decode("utf-8", "surrogateescape")


def is_host(text: str) -> bool:
    """Tell whether *text* is the name of a host, no wildcard and no address."""
    return bool(_HOST.fullmatch(text)) and not re.fullmatch(r"[0-9.]+", text)


def _host(path: str, host: str | None, *, wildcard: bool = True) -> Iterator[Problem]:
    if host is None:
        return
    if not is_host(host.removeprefix("*.") if wildcard else host):
        also = ", or *. and such a name" if wildcard else ""
        yield Problem(path, f"{show(host)} is not a host: lower-case letters, digits, '-' and '.', no address{also}")


def _path(path: str, text: str) -> Iterator[Problem]:
    if not _PATH.fullmatch(text) or _size(decoded(text)) > LONGEST:
        what = f"it begins with /, has no more than {LONGEST} characters, and others than those of RFC 3986 as %XX"
        yield Problem(path, f"{show(text)} is not a path: {what}")
    elif _UNCLEAR.search(text):
        yield Problem(path, f"{show(text)} is no path to compare with: //, /./, /../ and %2F have no place in it")
    else:
        try:
            good = not re.search(r"[\x00-\x1f\x7f?#]", decoded(text)) and bool(decoded(text).encode())
        except UnicodeEncodeError:
            good = False
        if not good:
            yield Problem(path, f"{show(text)}: what %XX stands for is not text, or it is a control character, ? or #")


def _size(text: str) -> int:
    """Return how long a text can get in nginx's configuration, where `$` is `${dollar}` and a backslash is four."""
    return len(text.encode(errors="replace")) + 8 * text.count("$") + 3 * text.count("\\")


def _words(path: str, word: str | None, words: Sequence[str]) -> Iterator[Problem]:
    if word is not None and word not in words:
        yield Problem(path, f"{show(word)} is not one of: {', '.join(words)}")


def _port(path: str, port: int | None) -> Iterator[Problem]:
    if port is not None and not 1 <= port <= 65535:
        yield Problem(path, f"{port} is not a port; ports are 1 to 65535")


# -- Ingress -------------------------------------------------------------------------------


def _ingress(ingress: Ingress) -> Iterator[Problem]:
    spec = ingress.spec
    for key, value in (meta(ingress).annotations or {}).items():
        pattern, what = ANNOTATIONS.get(key.removeprefix(NGINX), (None, "")) if key.startswith(NGINX) else (None, "")
        if pattern and not pattern.fullmatch(value):
            yield Problem(f"metadata.annotations.{key}", f"{show(value)} is not {what}")
        elif pattern and value.startswith("/"):
            yield from _path(f"metadata.annotations.{key}", value)
    if spec is None or not (spec.rules or spec.defaultBackend):
        yield Problem("spec", "has neither rules nor a defaultBackend; give it one of them")
        return
    if spec.defaultBackend:
        yield from _backend("spec.defaultBackend", spec.defaultBackend)
    for index, tls in enumerate(spec.tls or ()):
        for number, host in enumerate(tls.hosts or ()):
            yield from _host(f"spec.tls[{index}].hosts[{number}]", host)
    for index, rule in enumerate(spec.rules or ()):
        yield from _host(f"spec.rules[{index}].host", rule.host or None)
        for number, one in enumerate(rule.http.paths if rule.http else ()):
            yield from _ingress_path(f"spec.rules[{index}].http.paths[{number}]", one)


def _ingress_path(at: str, one: HTTPIngressPath) -> Iterator[Problem]:
    yield from _words(f"{at}.pathType", one.pathType, ("Exact", "Prefix", "ImplementationSpecific"))
    if one.path:
        yield from _path(f"{at}.path", one.path)
    elif one.pathType != "ImplementationSpecific":
        yield Problem(f"{at}.path", f"is missing; a path of type {one.pathType} begins with /")
    yield from _backend(f"{at}.backend", one.backend)


def _backend(at: str, backend: IngressBackend) -> Iterator[Problem]:
    service = backend.service
    if (service is None) == (backend.resource is None):
        yield Problem(at, "has a service or a resource, one of them")
    if service:
        port = service.port
        if port is None or bool(port.name) == bool(port.number):
            yield Problem(f"{at}.service.port", "has a name or a number, one of them")
        else:
            yield from _port(f"{at}.service.port.number", port.number or None)


def _secret(secret: Secret) -> Iterator[Problem]:
    if secret.type != TLS_SECRET:
        return
    for key in ("tls.crt", "tls.key"):
        value = (secret.data or {}).get(key)
        if value is None and not (secret.stringData or {}).get(key):
            yield Problem(f"data.{key}", f"is missing; a Secret of type {TLS_SECRET} has it, in PEM")
        try:
            base64.b64decode(str(value or ""), validate=True)
        except (binascii.Error, ValueError):
            yield Problem(f"data.{key}", "is not base64")


# -- Gateway API ---------------------------------------------------------------------------


def _gateway(gateway: g.Gateway) -> Iterator[Problem]:
    if gateway.spec is None or not gateway.spec.listeners:
        yield Problem("spec.listeners" if gateway.spec else "spec", "is missing; a Gateway listens somewhere")
        return
    seen: dict[tuple[object, ...], str] = {}
    for index, one in enumerate(gateway.spec.listeners):
        at = f"spec.listeners[{index}]"
        yield from _host(f"{at}.hostname", one.hostname or None)
        if not _HOST.fullmatch(one.name):
            yield Problem(f"{at}.name", f"{show(one.name)} is not a name: lower-case letters, digits, '-' and '.'")
        if not 1 <= one.port <= 65535:
            yield Problem(f"{at}.port", f"{one.port} is not a port; ports are 1 to 65535")
        for what in ((one.name,), (one.port, one.protocol, one.hostname or "")):
            if what in seen:
                yield Problem(at, f"is {seen[what]} again: no two have one name, or one port, protocol and hostname")
            seen[what] = at
        tls = one.tls
        if one.protocol == "HTTPS" and not (tls and tls.certificateRefs) and (tls is None or tls.mode != "Passthrough"):
            yield Problem(f"{at}.tls.certificateRefs", "is missing; a listener of protocol HTTPS has a certificate")
        yield from _words(f"{at}.tls.mode", tls.mode if tls else None, ("Terminate", "Passthrough"))
        spaces = one.allowedRoutes and one.allowedRoutes.namespaces
        yield from _words(
            f"{at}.allowedRoutes.namespaces.from", spaces.from_ if spaces else None, ("All", "Same", "Selector", "None")
        )


def _route(route: g.HTTPRoute) -> Iterator[Problem]:
    spec = route.spec
    if spec is None:
        yield Problem("spec", "is missing")
        return
    for index, host in enumerate(spec.hostnames or ()):
        yield from _host(f"spec.hostnames[{index}]", host)
    for index, rule in enumerate(spec.rules or ()):
        at = f"spec.rules[{index}]"
        for number, match in enumerate(rule.matches or ()):
            yield from _match(f"{at}.matches[{number}]", match)
        for number, one in enumerate(rule.filters or ()):
            yield from _filter(f"{at}.filters[{number}]", one)
        for number, ref in enumerate(rule.backendRefs or ()):
            yield from _backend_ref(f"{at}.backendRefs[{number}]", ref)


def _backend_ref(at: str, ref: g.BackendRef) -> Iterator[Problem]:
    yield from _port(f"{at}.port", ref.port)
    if ref.port is None and (ref.group or "", ref.kind or "Service") == ("", "Service"):
        yield Problem(f"{at}.port", "is missing; a Service is called by one of its ports")
    if ref.weight is not None and not 0 <= ref.weight <= MOST_WEIGHT:
        yield Problem(f"{at}.weight", f"{ref.weight} is not a weight; weights are 0 to {MOST_WEIGHT}")
    for number, one in enumerate(ref.filters or ()):
        yield from _filter(f"{at}.filters[{number}]", one)


def _match(at: str, match: g.RouteMatch) -> Iterator[Problem]:
    kind = match.path.type if match.path else None
    yield from _words(f"{at}.path.type", kind, ("Exact", "PathPrefix", "RegularExpression"))
    if kind == "RegularExpression":
        yield Problem(f"{at}.path.type", "RegularExpression is not supported; use Exact or PathPrefix")
    elif match.path and match.path.value is not None:
        yield from _path(f"{at}.path.value", match.path.value)
    yield from _words(f"{at}.method", match.method, _METHODS)
    for field, found in (("headers", match.headers), ("queryParams", match.queryParams)):
        for number, one in enumerate(found or ()):
            place = f"{at}.{field}[{number}]"
            yield from _words(f"{place}.type", one.type, ("Exact", "RegularExpression"))
            if one.type == "RegularExpression":
                yield Problem(f"{place}.type", "RegularExpression is not supported; use Exact")
            yield from _value(place, one.name, one.value, header=field == "headers")
            odd = len(re.sub("[A-Za-z0-9._~-]", "", 2 * one.name + one.value))  # each is a choice of several in nginx
            if field == "queryParams" and len(2 * one.name + one.value) + 24 * odd > 3 * LONGEST:
                yield Problem(place, "is too long, for nginx has to look for each of its encodings")


def _value(at: str, name: str, value: str, *, header: bool) -> Iterator[Problem]:
    if header and not re.fullmatch("[A-Za-z0-9-]{1,256}", name):
        yield Problem(f"{at}.name", f"{show(name)} is not a header that nginx knows: letters, digits and '-'")
    elif not _TOKEN.fullmatch(name):
        yield Problem(f"{at}.name", f"{show(name)} is not a name: letters, digits and !#$%&'*+-.^_`|~")
    if not _VALUE.fullmatch(value) or _size(value) > LONGEST:
        yield Problem(f"{at}.value", f"{show(value)} is not 1 to {LONGEST} printable characters of ASCII")


def _filter(at: str, one: g.Filter) -> Iterator[Problem]:
    yield from _words(f"{at}.type", one.type, tuple(_FILTERS))
    field = _FILTERS.get(one.type)
    if field and getattr(one, field) is None:
        yield Problem(f"{at}.{field}", f"is missing; a filter of type {one.type} has it")
    for other in _FILTERS.values():
        if other != field and getattr(one, other) is not None:
            yield Problem(f"{at}.{other}", f"has no place in a filter of type {one.type}")
    for name, modifier in (("request", one.requestHeaderModifier), ("response", one.responseHeaderModifier)):
        if modifier:
            yield from _modifier(f"{at}.{name}HeaderModifier", modifier)
    redirect = one.requestRedirect
    if redirect:
        yield from _words(f"{at}.requestRedirect.scheme", redirect.scheme, ("http", "https"))
        yield from _port(f"{at}.requestRedirect.port", redirect.port)
        if redirect.statusCode not in {None, 301, 302, 303, 307, 308}:
            yield Problem(f"{at}.requestRedirect.statusCode", f"{redirect.statusCode} is not 301, 302, 303, 307 or 308")
    for name, change in (("requestRedirect", redirect), ("urlRewrite", one.urlRewrite)):
        if change:
            yield from _host(f"{at}.{name}.hostname", change.hostname, wildcard=False)
            yield from _modified_path(f"{at}.{name}.path", change.path) if change.path else ()


def _modified_path(at: str, change: g.PathModifier) -> Iterator[Problem]:
    fields = {"ReplaceFullPath": "replaceFullPath", "ReplacePrefixMatch": "replacePrefixMatch"}
    yield from _words(f"{at}.type", change.type, tuple(fields))
    value = getattr(change, fields.get(change.type, ""), None)
    if change.type in fields and value is None:
        yield Problem(f"{at}.{fields[change.type]}", f"is missing; a path of type {change.type} has it")
    elif value:
        yield from _path(f"{at}.{fields[change.type]}", value)


def _modifier(at: str, modifier: g.HeaderModifier) -> Iterator[Problem]:
    for word in ("set", "add"):
        for number, one in enumerate(getattr(modifier, word) or ()):
            yield from _value(f"{at}.{word}[{number}]", one.name, one.value, header=True)
            yield from _framing(f"{at}.{word}[{number}].name", one.name)
    for number, name in enumerate(modifier.remove or ()):
        yield from _value(f"{at}.remove[{number}]", name, "x", header=True)
        yield from _framing(f"{at}.remove[{number}]", name)


def _framing(at: str, name: str) -> Iterator[Problem]:
    """Refuse the headers that say where a message ends: another value of them hides a second message in it."""
    if name.lower() in {"content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer"}:
        yield Problem(at, f"{show(name)} belongs to one connection; a route cannot change it")
