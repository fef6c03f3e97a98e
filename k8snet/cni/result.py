"""Results: what a plugin made, in every format since 0.1.0 (CNI spec, section 5)."""

from __future__ import annotations

import copy
import html
import ipaddress
import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from itertools import zip_longest
from typing import Any, TypeVar

from k8snet.cni.config import VERSIONS, at_least
from k8snet.errors import InvalidConfig

__all__ = ["DNS", "IP", "Interface", "Result", "Route", "SideBySide", "parse", "side_by_side"]

T = TypeVar("T")
_KINDS = {"str": str, "int | None": int, "tuple[str, ...]": list}  # of a field's annotation in JSON


def _prefix(text: str) -> None:
    if "/" not in text:
        raise ValueError(f"{text!r} has no prefix length")
    ipaddress.ip_interface(text)


def _key(since: str, default: Any = MISSING, *, key: str = "", check: Callable[[Any], object] | None = None) -> Any:
    """Describe a field: the spec version that brought it, its name in JSON if it has another, and who checks it."""
    return field(default=default, metadata={"since": since, "key": key, "check": check})


@dataclass(frozen=True, kw_only=True)
class Interface:
    """An interface that a plugin made."""

    name: str = _key("0.3.0")
    mac: str = _key("0.3.0", "")
    sandbox: str = _key("0.3.0", "")  # the path of its netns; empty on the node's side
    mtu: int | None = _key("1.1.0", None)  # bytes
    socket_path: str = _key("1.1.0", "", key="socketPath")
    pci_id: str = _key("1.1.0", "", key="pciID")


@dataclass(frozen=True, kw_only=True)
class IP:
    """An address that was given to an interface."""

    interface: int | None = _key("0.3.0", None)  # its place in Result.interfaces
    address: str = _key("0.1.0", check=_prefix)  # with prefix length
    gateway: str = _key("0.1.0", "", check=ipaddress.ip_address)


@dataclass(frozen=True, kw_only=True)
class Route:
    """A route inside the container's netns."""

    dst: str = _key("0.1.0", check=_prefix)
    gw: str = _key("0.1.0", "", check=ipaddress.ip_address)
    mtu: int | None = _key("1.1.0", None)  # bytes
    advmss: int | None = _key("1.1.0", None)  # bytes
    priority: int | None = _key("1.1.0", None)
    table: int | None = _key("1.1.0", None)
    scope: int | None = _key("1.1.0", None)


@dataclass(frozen=True, kw_only=True)
class DNS:
    """What the container's /etc/resolv.conf should say."""

    nameservers: tuple[str, ...] = _key("0.1.0", ())
    domain: str = _key("0.1.0", "")
    search: tuple[str, ...] = _key("0.1.0", ())
    options: tuple[str, ...] = _key("0.1.0", ())


def _take(kind: type[T], raw: Any, path: str) -> T:
    """Return the part of a result at *path* as a value, with every field's type checked."""
    if not isinstance(raw, dict):
        raise InvalidConfig(f"result: {path}: must be an object, not {json.dumps(raw)}")
    values: dict[str, Any] = {}
    for one in fields(kind):  # type: ignore[arg-type]  # each kind is a dataclass
        key, expected = one.metadata["key"] or one.name, _KINDS[str(one.type)]
        value: Any = raw.get(key)
        if value is None or value == "":
            if one.default is MISSING:
                raise InvalidConfig(f"result: {path}: {key!r} is missing")
            continue
        if not isinstance(value, expected) or isinstance(value, bool):
            raise InvalidConfig(f"result: {path}.{key}: must be {expected.__name__}, not {json.dumps(value)}")
        try:
            if one.metadata["check"]:
                one.metadata["check"](value)
        except ValueError as error:
            raise InvalidConfig(f"result: {path}.{key}: {error}") from None
        values[one.name] = tuple(str(inner) for inner in value) if isinstance(value, list) else value
    return kind(**values)


def _give(item: Any, version: str) -> dict[str, Any]:
    """Return a part of a result as the JSON of a spec version."""
    found = {
        one.metadata["key"] or one.name: getattr(item, one.name) for one in fields(item)
        if at_least(version, one.metadata["since"])
    }  # fmt: skip
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in found.items() if value not in (None, "", ())
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Result:
    """What ADD made, whatever the format it was written in."""

    cni_version: str
    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IP, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = field(default_factory=DNS)
    _raw: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)  # as it came

    def to(self, version: str) -> dict[str, Any]:
        """Return it in the format of a spec version; in its own, exactly as it came.

        0.1.0 and 0.2.0 have room for one address a family, and for no interface.

        Raises:
            InvalidConfig: there is no such version.
        """
        _known(version)
        if version == self.cni_version and self._raw:
            return copy.deepcopy(self._raw) | {"cniVersion": version}
        return {"cniVersion": version} | (self._new(version) if at_least(version, "0.3.0") else self._old(version))

    def _new(self, version: str) -> dict[str, Any]:
        ips = [_give(one, version) for one in self.ips]
        if not at_least(version, "1.0.0"):
            ips = [{"version": str(_family(one["address"])), **one} for one in ips]
        lists = {
            "interfaces": [_give(one, version) for one in self.interfaces], "ips": ips,
            "routes": [_give(one, version) for one in self.routes],
        }  # fmt: skip
        dns = _give(self.dns, version)
        return {key: value for key, value in lists.items() if value} | ({"dns": dns} if dns else {})

    def _old(self, version: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for one in self.ips:
            routes = [_give(way, version) for way in self.routes if _family(way.dst) == _family(one.address)]
            entry = {"ip": one.address} | ({"gateway": one.gateway} if one.gateway else {})
            found.setdefault(f"ip{_family(one.address)}", entry | ({"routes": routes} if routes else {}))
        return found | {"dns": _give(self.dns, version)}

    def __str__(self) -> str:
        """Return its JSON."""
        return pretty(self.to(self.cni_version))

    def _repr_html_(self) -> str:
        """Return its JSON as a notebook shows it."""
        return f'<pre class="k8snet-json">{html.escape(str(self))}</pre>'


def pretty(value: Any, indent: str = "") -> str:
    """Return JSON to be read: what fits a line of 72 columns stands on one."""
    line = json.dumps(value)
    if len(indent) + len(line) <= 72 or not isinstance(value, dict | list):
        return line
    deeper = f"{indent}  "
    parts = [
        (f"{json.dumps(key)}: " if isinstance(value, dict) else "") + pretty(inner, deeper)
        for key, inner in (value.items() if isinstance(value, dict) else enumerate(value))
    ]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return f",\n{deeper}".join(parts).join([f"{begin}\n{deeper}", f"\n{indent}{end}"])


def _family(prefix: str) -> int:
    return ipaddress.ip_interface(prefix).version


def _known(version: Any) -> str:
    if version not in VERSIONS:
        raise InvalidConfig(f"result: cniVersion: {version!r}: the versions of the spec are {', '.join(VERSIONS)}")
    return str(version)


def parse(source: Mapping[str, Any] | str, *, default_version: str = "0.1.0") -> Result:
    """Return what a plugin printed after ADD as a value.

    Args:
        default_version: the format of a result that does not say it: its configuration's version.

    Raises:
        InvalidConfig: it is not a result; the message names the field.
    """
    try:
        raw = json.loads(source) if isinstance(source, str) else copy.deepcopy(dict(source))
    except ValueError as error:
        raise InvalidConfig(f"result: not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise InvalidConfig(f"result: must be an object, not {json.dumps(raw)}")
    version = _known(raw.get("cniVersion") or default_version)
    parts = raw if at_least(version, "0.3.0") or not raw.keys() & {"ip4", "ip6"} else _modern(raw)
    lists: dict[str, Any] = {}
    kinds: dict[str, type] = {"interfaces": Interface, "ips": IP, "routes": Route}
    for key, kind in kinds.items():
        listed = parts.get(key) or []
        if not isinstance(listed, list):
            raise InvalidConfig(f"result: {key}: must be a list, not {json.dumps(listed)}")
        lists[key] = tuple(_take(kind, one, f"{key}[{number}]") for number, one in enumerate(listed))
    result = Result(cni_version=version, dns=_take(DNS, raw.get("dns") or {}, "dns"), **lists)
    object.__setattr__(result, "_raw", raw)
    return result


def _modern(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the addresses and routes of a result of 0.1.0 or 0.2.0 under their newer keys."""
    found: dict[str, Any] = {"ips": [], "routes": []}
    for key in ("ip4", "ip6"):
        if entry := raw.get(key):
            if not isinstance(entry, dict):
                raise InvalidConfig(f"result: {key}: must be an object, not {json.dumps(entry)}")
            found["ips"].append({"address": entry.get("ip", ""), "gateway": entry.get("gateway")})
            found["routes"] += entry.get("routes") or []
    return found


@dataclass(frozen=True)
class SideBySide:
    """One result in several formats, next to each other."""

    texts: Mapping[str, str]  # the JSON of each version

    def __str__(self) -> str:
        """Return the formats as columns."""
        columns = [[version, "", *text.split("\n")] for version, text in self.texts.items()]
        widths = [max(map(len, column)) for column in columns]
        rows = zip_longest(*columns, fillvalue="")
        return "\n".join("   ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the formats as the columns of a table; what not all of them have is bold."""
        lines = {version: text.split("\n") for version, text in self.texts.items()}
        common = set.intersection(*({one.strip(" ,") for one in text} for text in lines.values()))
        column = f"text-align:left;vertical-align:top;width:{100 / len(lines):g}%"
        wrap = "white-space:pre-wrap;overflow-wrap:anywhere;margin:0"
        head = "".join(f"<th style='{column}'>{html.escape(version)}</th>" for version in lines)
        cells = [
            "\n".join(html.escape(one) if one.strip(" ,") in common else f"<b>{html.escape(one)}</b>" for one in text)
            for text in lines.values()
        ]
        body = "".join(f"<td style='{column}'><pre style='{wrap}'>{cell}</pre></td>" for cell in cells)
        table = "<table class='k8snet-json' style='table-layout:fixed;width:100%'>"
        return f"{table}<tr>{head}</tr><tr>{body}</tr></table>"


def side_by_side(result: Result, versions: tuple[str, ...] = ("0.2.0", "1.0.0")) -> SideBySide:
    """Return one result in several formats, next to each other.

    Raises:
        InvalidConfig: there is no such version.
    """
    return SideBySide({version: pretty(result.to(version)) for version in versions})
