"""The records of a cluster: which names its objects have in DNS.

Source: the Kubernetes DNS specification 1.1.0 (kubernetes/dns, docs/specification.md); where that leaves a choice,
CoreDNS's plugin "kubernetes".
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from lightkube.resources.core_v1 import Namespace, Pod, Service
from lightkube.resources.discovery_v1 import EndpointSlice

from k8snet.cluster.objects import addresses_of, finished, labels_of, name_of, namespace_of
from k8snet.controllers.dns_table import Table, parents, reverse
from k8snet.controllers.endpoint_slice import SLICE_OF
from k8snet.errors import InvalidInput

__all__ = ["POD_MODES", "VERSION", "build", "domain", "fixed"]

VERSION = "1.1.0"  # of the specification
POD_MODES = ("insecure", "verified", "disabled")
SOA = (7200, 1800, 86_400, 5)  # seconds: refresh, retry, expire, and how long a "no" may be remembered
ZONE_PARTS = {4: 2, 6: 16}  # of an address that make the zone of its reverse names: a /16, a /64
KINDS = {4: "A", 6: "AAAA"}


def build(
    objects: Iterable[Any], *, zone: str = "cluster.local", pods: str = "insecure", namespaces: Iterable[str] = (),
    reverse_zones: Iterable[str] = (), addresses: Iterable[tuple[str, str]] | None = None, ttl: int = 5,
    serial: int = 1, upstream: str = "",
) -> Table:  # fmt: skip
    """Return what a cluster's DNS server knows.

    Args:
        pods: "insecure": every address has a name in each namespace. "verified": that of a pod of the namespace.
        namespaces: whose objects have names; none is all.
        reverse_zones: for whose names we answer alone; those of the addresses that are known are added.
        addresses: namespace and address of every pod; None takes them from the Pods among *objects*.
        upstream: see Table.

    Raises:
        InvalidInput: no such mode, or a zone that cannot be.
    """
    if pods not in POD_MODES:
        raise InvalidInput(f"pods {pods!r}: one of {', '.join(POD_MODES)}")
    everything, only = list(objects), set(namespaces)
    shown = [one for one in everything if not only or (namespace_of(one) or name_of(one)) in only]
    if addresses is None:
        running = [one for one in everything if isinstance(one, Pod) and not finished(one)]
        addresses = [(namespace_of(one), ip) for one in running for ip in addresses_of(one)]
    names = _Names(domain(zone), reverse_zones, serial)
    spaces = {name_of(one) if isinstance(one, Namespace) else namespace_of(one) for one in shown} - {""}
    names.spaces(sorted(spaces), pods != "disabled")
    slices = _slices(shown)
    for one in shown:
        if isinstance(one, Service) and one.spec:
            names.service(one, slices.pop((namespace_of(one), name_of(one)), []))
    for (namespace, name), rest in slices.items():  # no Service, but somebody has written where it would lead
        names.endpoints(f"{name}.{namespace}.svc.{names.zone}", rest, headless=False, pointers_only=True)
    if pods == "verified":
        for namespace, address in addresses:
            if not only or namespace in only:
                names.add(f"{_dashed(address)}.{namespace}.pod.{names.zone}", _kind(address), address)
    names.weigh()
    own = f"kube-dns.kube-system.svc.{names.zone}"  # who says all this; without that Service, CoreDNS's word
    names.add(names.zone, "NS", own if own in names.records else f"ns.dns.{names.zone}")
    return Table(
        zones=tuple(names.zones), names=names.records, ttl=ttl, upstream=upstream,
        pods=f"pod.{names.zone}" if pods == "insecure" else "",
    )  # fmt: skip


def fixed(names: Mapping[str, str], *, ttl: int = 60) -> Table:
    """Return a table of *names* with an address each, or another name; it answers for the whole of DNS.

    Raises:
        InvalidInput: one is no name.
    """
    found = _Names("", (), 1)
    for name, data in names.items():
        kind = _kind(data) if _is_address(data) else "CNAME"
        found.add(domain(name), kind, domain(data) if kind == "CNAME" else data)
    return Table(zones=("",), names=found.records, ttl=ttl)


def domain(text: str) -> str:
    """Return the name of a domain as tables have it.

    Raises:
        InvalidInput: it is none.
    """
    plain = _plain(text)
    good = all(0 < len(label) < 64 and label.replace("-", "").replace("_", "").isalnum() for label in plain.split("."))
    if not good or not plain.isascii() or len(plain) > 200:
        raise InvalidInput(f"{text!r} is not a domain; write it as in cluster.local")
    return plain


class _Names:
    """A table that grows."""

    def __init__(self, zone: str, reverse_zones: Iterable[str], serial: int) -> None:
        self.zone = zone
        self.zones: dict[str, None] = {}
        self.records: dict[str, dict[str, list[Any]]] = {}
        self._serial = serial
        self._srv: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)  # owner -> port and target
        for one in (zone, *map(_plain, reverse_zones)):
            self._open(one)
        if zone:
            self.add(f"dns-version.{zone}", "TXT", VERSION)

    def _open(self, zone: str) -> None:
        self.zones[zone] = None
        start = [f"ns.{zone}".rstrip("."), f"hostmaster.{zone}".rstrip("."), self._serial, *SOA]
        self.records.setdefault(zone, {})["SOA"] = [start]

    def add(self, name: str, kind: str, data: Any) -> None:
        """Add a record, and the names above its name."""
        here = self.records.get(name)
        if here is None:
            here = self.records[name] = {}
            for above in parents(name):
                if above in self.records or above in self.zones:
                    break
                self.records[above] = {}
        rows = here.setdefault(kind, [])
        if data not in rows:
            rows.append(data)

    def point(self, address: str, name: str) -> None:
        """Let a reverse name lead to a name."""
        owner = reverse(address)
        if not any(above in self.zones for above in parents(owner) if above):
            self._open(reverse(address, digits=ZONE_PARTS[ipaddress.ip_address(address).version]))
        self.add(owner, "PTR", name)

    def spaces(self, spaces: Iterable[str], with_pods: bool) -> None:
        """Add the names that have others below them."""
        for kind in ("svc", "pod"):
            self.records.setdefault(f"{kind}.{self.zone}", {})
            for space in spaces if kind == "svc" or with_pods else ():
                self.records.setdefault(f"{space}.{kind}.{self.zone}", {})

    def service(self, service: Service, slices: list[EndpointSlice]) -> None:
        """Add the names of a Service and of what is behind it."""
        spec = service.spec
        assert spec is not None  # noqa: S101  # seen to by build()
        base = f"{name_of(service)}.{namespace_of(service)}.svc.{self.zone}"
        if spec.type == "ExternalName":
            target = _plain(spec.externalName or "")
            if target and not _is_address(target):
                self.add(base, "CNAME", target)
            return
        ips = [one for one in dict.fromkeys([*(spec.clusterIPs or ()), spec.clusterIP or ""]) if one]
        headless = ips[:1] == ["None"]
        for ip in ips if not headless else ():
            self.add(base, _kind(ip), ip)
            self.point(ip, base)
            for port in spec.ports or ():
                self._port(base, port, base)
        self.endpoints(base, slices, headless=headless)

    def endpoints(
        self, base: str, slices: Iterable[EndpointSlice], *, headless: bool, pointers_only: bool = False
    ) -> None:
        """Add a name for each endpoint that is ready; those of a headless Service answer for it, too."""
        found = [(one, each) for one in slices if one.addressType != "FQDN" for each in one.endpoints or ()]
        ready = [(one, each) for one, each in found if not each.conditions or each.conditions.ready is not False]
        for part, endpoint, ip in ((part, each, ip) for part, each in ready for ip in each.addresses):
            name = f"{(endpoint.hostname or _dashed(ip)).lower()}.{base}"
            self.point(ip, name)
            if not pointers_only:
                self.add(name, _kind(ip), ip)
            if headless:
                self.add(base, _kind(ip), ip)
                for port in part.ports or ():
                    self._port(base, port, name)

    def _port(self, base: str, port: Any, target: str) -> None:
        """Add the SRV records of a port; one without a name has none."""
        if port.name and port.port:
            for owner in (base, f"_{port.name}._{(port.protocol or 'TCP').lower()}.{base}"):
                self._srv[owner].append((port.port, target))

    def weigh(self) -> None:
        """Make SRV records of all ports: those of one name share 100 evenly, as CoreDNS does it."""
        for owner, ports in self._srv.items():
            for port, target in ports:
                self.add(owner, "SRV", [0, max(100 // len(ports), 1), port, target])


def _slices(objects: Iterable[Any]) -> dict[tuple[str, str], list[EndpointSlice]]:
    found: dict[tuple[str, str], list[EndpointSlice]] = {}
    for one in objects:
        service = labels_of(one).get(SLICE_OF) if isinstance(one, EndpointSlice) else None
        if service:
            found.setdefault((namespace_of(one), service), []).append(one)
    return found


def _plain(name: str) -> str:
    return name.rstrip(".").lower()


def _kind(address: str) -> str:
    return KINDS[ipaddress.ip_address(address).version]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _dashed(address: str) -> str:
    return address.replace(".", "-").replace(":", "-")
