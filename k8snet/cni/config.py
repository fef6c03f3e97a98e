"""Network configurations: what an administrator writes for the runtime (CNI spec, section 1)."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from k8snet.errors import InvalidConfig

__all__ = ["VERSIONS", "NetworkConfig", "NetworkList", "at_least", "load"]

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")  # of the spec, oldest first
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # of networks and containers
_KEY = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:')
_JSON_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
_Path = tuple[str | int, ...]


def at_least(version: str, minimum: str) -> bool:
    """Return whether a spec version is *minimum* or newer."""
    return VERSIONS.index(version) >= VERSIONS.index(minimum)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The configuration of one plugin."""

    type: str  # the file name of its executable
    capabilities: tuple[str, ...] = ()  # what it takes in runtimeConfig
    raw: Mapping[str, Any] = field(repr=False)  # as written

    def request(
        self, network: NetworkList, *, previous: Mapping[str, Any] | None = None, capabilities: Mapping[str, Any] = {},
    ) -> dict[str, Any]:  # fmt: skip
        """Return what the plugin gets on its standard input (CNI spec, section 3).

        Args:
            previous: the result to hand on as prevResult.
            capabilities: what the runtime offers; only what the plugin asks for is passed on.
        """
        own = {key: copy.deepcopy(value) for key, value in self.raw.items() if key != "capabilities"}
        injected = {"cniVersion": network.cni_version, "name": network.name, "type": self.type}
        request = injected | own | injected  # the first for the order, the last for the values
        if wanted := {key: capabilities[key] for key in self.capabilities if key in capabilities}:
            request["runtimeConfig"] = wanted
        return request if previous is None else request | {"prevResult": previous}


@dataclass(frozen=True, kw_only=True)
class NetworkList:
    """A network: plugins, called one after the other."""

    name: str
    cni_version: str  # the one that is spoken: the highest of cni_versions
    cni_versions: tuple[str, ...]  # all that the configuration lists and we know
    plugins: tuple[NetworkConfig, ...]
    disable_check: bool = False
    disable_gc: bool = False
    load_only_inlined_plugins: bool = False
    raw: Mapping[str, Any] = field(repr=False)  # as written


@dataclass(frozen=True)
class _Document:
    """A configuration, and where it was written: what an error has to name."""

    where: str
    value: Any
    text: str = ""  # empty: it was not written as text

    def error(self, path: _Path, what: str) -> InvalidConfig:
        name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        place = self.where
        if self.text:
            at = _locate(self.text, path)
            line, column = self.text.count("\n", 0, at) + 1, at - self.text.rfind("\n", 0, at)
            place += f", line {line}, column {column}"
        return InvalidConfig(f"{place}: {name + ': ' if name else ''}{what}")

    def take(self, path: _Path, kind: type, *, default: Any = None) -> Any:
        """Return the value at *path*; without a default it must be there, and not be empty."""
        holder: Any = self.value
        for part in path[:-1]:
            holder = holder[part]
        found = holder.get(path[-1]) if isinstance(path[-1], str) else holder[path[-1]]
        if found is None and default is not None:
            return default
        if kind is bool and isinstance(found, str) and found.lower() in {"true", "false"}:
            return found.lower() == "true"  # the spec once said that it is a string
        if found is None:
            raise self.error(path[:-1], f"{path[-1]!r} is missing")
        if not isinstance(found, kind):
            raise self.error(path, f"must be {_JSON_NAMES[kind]}, not {json.dumps(found)}")
        if default is None and not found:
            raise self.error(path, "must not be empty")
        return found


def _locate(text: str, path: _Path) -> int:
    """Return where in *text*, which is JSON, the value at *path* begins; or what should hold it."""
    decode = json.JSONDecoder().raw_decode

    def skip(at: int) -> int:
        return at + len(text[at:]) - len(text[at:].lstrip())

    at = skip(0)
    for part in path:
        inner, number = skip(at + 1), 0
        while text[inner] not in "]}":
            key: Any = number
            if text[at] == "{":
                key, inner = decode(text, inner)
                inner = skip(skip(inner) + 1)
            if key == part:
                at = inner
                break
            inner, number = skip(decode(text, inner)[1]), number + 1
            inner = skip(inner + 1) if text[inner] == "," else inner
        else:
            return at
    return at


def _read(source: str | Path | Mapping[str, Any]) -> _Document:
    if isinstance(source, Mapping):
        try:
            return _Document("configuration", json.loads(json.dumps(dict(source))))
        except (TypeError, ValueError) as error:
            raise InvalidConfig(f"configuration: not JSON: {error}") from None
    where, text = "configuration", str(source)
    if isinstance(source, Path) or (text.strip() and text.lstrip()[0] not in "{[" and "\n" not in text):
        where = text
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InvalidConfig(f"{where}: {getattr(error, 'strerror', None) or error}") from None
    try:
        return _Document(where, json.loads(text), text)
    except json.JSONDecodeError as error:
        keys = _KEY.findall(text[: error.pos])
        place = f"{where}, line {error.lineno}, column {error.colno}{f', field {keys[-1]!r}' if keys else ''}"
        hint = ". A comma may not stand before } or ]" if text[: error.pos].rstrip().endswith(",") else ""
        raise InvalidConfig(f"{place}: not JSON: {error.msg}{hint}") from None
    except RecursionError:
        raise InvalidConfig(f"{where}: nested too deep") from None


def load(source: NetworkList | str | Path | Mapping[str, Any]) -> NetworkList:
    """Return a network from a file (.conflist, or .conf for a single plugin), JSON text or a dict.

    Raises:
        InvalidConfig: it cannot be used; the message names file, line, column and field.
    """
    if isinstance(source, NetworkList):
        return source
    document = _read(source)
    if not isinstance(document.value, dict):
        raise document.error((), "a configuration is an object: { ... }")
    single = "plugins" not in document.value and "type" in document.value
    name = document.take(("name",), str)
    if not NAME.fullmatch(name):
        raise document.error(("name",), f"{name!r}: letters, digits, '_', '.' and '-', a letter or digit first")
    only_inlined = document.take(("loadOnlyInlinedPlugins",), bool, default=False)
    plugins = [_plugin(document, ())] if single else _plugins(document, name, only_inlined=only_inlined)
    versions = _versions(document)
    return NetworkList(
        name=name, cni_version=versions[-1], cni_versions=versions, plugins=tuple(plugins),
        disable_check=document.take(("disableCheck",), bool, default=False),
        disable_gc=document.take(("disableGC",), bool, default=False),
        load_only_inlined_plugins=only_inlined, raw=document.value,
    )  # fmt: skip


def _versions(document: _Document) -> tuple[str, ...]:
    """Return the spec versions that the configuration lists and we know, oldest first."""
    listed = document.take(("cniVersions",), list, default=[])
    for number, version in enumerate(listed):
        if not isinstance(version, str) or not re.fullmatch(r"\d+\.\d+\.\d+", version):
            raise document.error(("cniVersions", number), f"{json.dumps(version)} is not a version such as '1.0.0'")
    alone = document.take(("cniVersion",), str, default="")
    if not listed and not alone:
        return VERSIONS[:1]  # a configuration older than the field
    known = tuple(version for version in VERSIONS if version in {alone, *listed})
    if not known or (alone and not re.fullmatch(r"\d+\.\d+\.\d+", alone)):
        path = ("cniVersion",) if alone else ("cniVersions",)
        raise document.error(path, f"{alone or listed!r}: the versions of the spec are {', '.join(VERSIONS)}")
    return known


def _plugins(document: _Document, name: str, *, only_inlined: bool) -> list[NetworkConfig]:
    """Return the plugins of a list; those in the folder NAME beside its file, too, unless told not to."""
    folder = Path(document.where).parent / name
    files = [] if only_inlined or document.where == "configuration" else sorted(folder.glob("*.conf"))
    beside = [_plugin(found, ()) for found in map(_read, files)]
    if beside and "plugins" not in document.value:
        return beside
    listed: Sequence[Any] = document.take(("plugins",), list)
    return [_plugin(document, ("plugins", number)) for number in range(len(listed))] + beside


def _plugin(document: _Document, path: _Path) -> NetworkConfig:
    raw = document.take(path, dict) if path else document.value
    kind = document.take((*path, "type"), str)
    if "/" in kind:
        raise document.error((*path, "type"), f"{kind!r} is the file name of a plugin, without its folder")
    capabilities = document.take((*path, "capabilities"), dict, default={})
    for key in capabilities:
        document.take((*path, "capabilities", key), bool, default=False)
    for key in ("ipam", "dns", "args"):
        document.take((*path, key), dict, default={})
    document.take((*path, "ipam", "type"), str, default="") if raw.get("ipam") else None
    return NetworkConfig(type=kind, capabilities=tuple(key for key, on in capabilities.items() if on), raw=raw)
