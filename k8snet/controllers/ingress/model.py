"""What comes in at the edge, and where it goes: one model, whether Ingresses or HTTPRoutes say so.

    Edge ── ports, certificates, upstreams
      └── VirtualHost    of a port and a hostname: those of Ingresses, and those that routes and listeners share
            └── Match    path, and conditions on method, headers, query; in the order of their precedence
                  └── Action    redirect, rewrite, headers, and
                        └── Target    an upstream, or a status, with its weight
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from k8snet.cluster.objects import KubeObject, meta, name_of, namespace_of

__all__ = [
    "Action",
    "Certificate",
    "Condition",
    "Edge",
    "HeaderChange",
    "Hostname",
    "Location",
    "Match",
    "PathChange",
    "Redirect",
    "Target",
    "Upstream",
    "VirtualHost",
    "age",
    "controller_of",
    "locations",
    "ordered",
]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something that a request can be sent to."""

    upstream: str = ""  # the name of one; "" answers with status
    status: int = 0
    weight: int = 1


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """The servers behind a port of a Service."""

    name: str  # as in "shop.web.80"
    servers: tuple[str, ...]  # as in "10.244.1.2:80"


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A certificate and its key, in PEM."""

    name: str  # as in "shop.web-tls"
    chain: str
    key: str = field(repr=False)


@dataclass(frozen=True, kw_only=True, order=True)
class Condition:
    """What a request must have, beside its path."""

    what: str  # "method", "header" or "query"
    name: str = ""  # of the header or parameter
    value: str


@dataclass(frozen=True, kw_only=True)
class PathChange:
    """What becomes of the path."""

    prefix: str | None  # that value replaces; None: of the whole path
    value: str


@dataclass(frozen=True, kw_only=True)
class Redirect:
    """An answer that sends the client elsewhere; what is None stays as it was asked for."""

    status: int = 302
    scheme: str | None = None
    host: str | None = None
    port: int | None = None  # None: that of the scheme
    path: PathChange | None = None


@dataclass(frozen=True, kw_only=True)
class HeaderChange:
    """A header of the request or of the answer that is set, added to or removed."""

    what: str  # "set", "add" or "remove"
    name: str
    value: str = ""
    response: bool = False


@dataclass(frozen=True, kw_only=True)
class Action:
    """What is done with a request."""

    origin: str  # whose rule it is, as in "HTTPRoute shop/web, rule 0"
    targets: tuple[Target, ...] = ()
    redirect: Redirect | None = None
    path: PathChange | None = None
    host: str | None = None  # that the backend is asked for
    headers: tuple[HeaderChange, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Match:
    """Which requests an action is for."""

    path: str  # decoded; without a slash at its end where it is a prefix, but "/"
    exact: bool = False
    conditions: tuple[Condition, ...] = ()
    action: Action
    rank: tuple[str | int, ...] = ()  # of those that are equal otherwise the lowest comes first

    def covers(self, path: str) -> bool:
        """Return whether every path below *path*, and itself, begins with this prefix, element by element."""
        return not self.exact and (self.path == "/" or path == self.path or path.startswith(f"{self.path}/"))


@dataclass(frozen=True, kw_only=True, order=True)
class Hostname:
    """The hosts of a virtual host."""

    name: str = ""  # "a.example", a wildcard, or "" for any
    deep: bool = False  # a wildcard stands for one label or more (Gateway API), not for one only (Ingress)

    def __post_init__(self) -> None:
        """Make those the same that mean the same."""
        object.__setattr__(self, "deep", self.deep and self.name.startswith("*."))

    def holds(self, other: Hostname) -> bool:
        """Return whether each host of *other* is one of these."""
        if not self.name or self == other:
            return True
        if not self.name.startswith("*.") or not other.name.endswith(self.name[1:]):
            return False
        labels = other.name.removesuffix(self.name[1:]).count(".") + 1
        return self.deep or (labels == 1 and not other.deep)

    @property
    def order(self) -> tuple[int, int, bool, str]:
        """What to sort by: those that say more come first."""
        kind = 2 if not self.name else 1 if self.name.startswith("*.") else 0
        return kind, -len(self.name) if kind else 0, self.deep, self.name


@dataclass(frozen=True, kw_only=True)
class VirtualHost:
    """What is served for the hosts of one name, on one port."""

    port: int
    host: Hostname
    certificate: str | None = None  # its name; None on a port with TLS: the default one
    matches: tuple[Match, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Edge:
    """All that is served, in an order that does not depend on that of the manifests."""

    ports: Mapping[int, bool]  # -> whether TLS is spoken there
    hosts: tuple[VirtualHost, ...] = ()
    upstreams: tuple[Upstream, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    default_certificate: str | None = None  # None: no handshake for hosts without one
    notes: tuple[str, ...] = ()  # what was ignored or refused, and why
    statuses: Mapping[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)  # of all that is served


def controller_of(name: str) -> str:
    """Return what a controller is called in the IngressClass and GatewayClass that are its own."""
    return f"k8snet.example/{name}"


def age(one: KubeObject) -> tuple[str, str]:
    """Return what to sort by so that the oldest object is first; of equal age by namespace and name."""
    created = meta(one).creationTimestamp
    return created.isoformat() if created else "", f"{namespace_of(one)}/{name_of(one)}"


def ordered(matches: Iterable[Match]) -> tuple[Match, ...]:
    """Return matches in the order of their precedence, of those that are the same the first one only.

    The longest path, exact before prefix (both APIs); then a method, the most headers, the most query parameters.
    """

    def precedence(one: Match) -> tuple[object, ...]:
        counts = [-sum(each.what == what for each in one.conditions) for what in ("method", "header", "query")]
        return -len(one.path), not one.exact, counts, one.rank

    found: dict[object, Match] = {}
    for one in sorted(matches, key=precedence):
        found.setdefault((one.path, one.exact, one.conditions), one)
    return tuple(found.values())


@dataclass(frozen=True, kw_only=True)
class Location:
    """What nginx finds for a path by itself, and what is then tried in turn."""

    path: str
    exact: bool
    matches: tuple[Match, ...]  # all but the last have conditions; none: 404


def locations(matches: Sequence[Match]) -> list[Location]:
    """Return the locations of a virtual host whose matches are in their order.

    A prefix /foo is two: `= /foo` and `/foo/`, so that it does not match /foobar. Each has the matches of the
    prefixes above it, too, for requests that fulfil none of its own conditions.
    """
    places = {("/", False)}
    for one in matches:
        if one.exact:
            places.add((one.path, True))
            if one.path != "/" and one.path.endswith("/"):
                places.add((one.path[:-1], True))  # else nginx redirects from there, for the sake of the slash
        elif one.path != "/":
            places |= {(one.path, True), (f"{one.path}/", False)}
    return [_location(path, exact, matches) for path, exact in sorted(places)]


def _location(path: str, exact: bool, matches: Sequence[Match]) -> Location:
    below = path if exact else path[:-1] or "/"
    found: list[Match] = []
    for one in matches:
        if one.covers(below) or (one.exact and exact and one.path == path):
            found.append(one)
            if not one.conditions:
                break
    return Location(path=path, exact=exact, matches=tuple(found))
