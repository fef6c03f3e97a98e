"""The cache: what ADD was asked and answered, kept for CHECK, DEL and GC in libcni's own format."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from k8snet.cni.result import Result, parse
from k8snet.errors import InvalidConfig

__all__ = ["Cache", "CachedAttachment"]

KIND = "cniCacheV1"


@dataclass(frozen=True, kw_only=True)
class CachedAttachment:
    """A container that was attached to a network, and is not detached."""

    network: str
    container_id: str
    interface: str
    netns: str = ""  # the path that ADD was given
    args: Mapping[str, str] = field(default_factory=dict)
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)  # the network as it was then
    raw_result: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from the other attachments of its network."""
        return self.container_id, self.interface

    @property
    def result(self) -> Result:
        """What ADD answered."""
        return parse(self.raw_result)


@dataclass(frozen=True)
class Cache:
    """A folder with a file an attachment."""

    folder: Path

    def path(self, network: str, container_id: str, interface: str) -> Path:
        """Return the file of an attachment."""
        return self.folder / f"{network}-{container_id}-{interface}"

    def write(self, one: CachedAttachment) -> None:
        """Keep an attachment; its file is there whole or not at all."""
        kept = {
            "kind": KIND, "containerId": one.container_id,
            "config": base64.b64encode(json.dumps(one.config).encode()).decode(),
            "ifName": one.interface, "networkName": one.network, "netns": one.netns,
            "cniArgs": [list(pair) for pair in one.args.items()], "capabilityArgs": one.capabilities,
            "result": one.raw_result,
        }  # fmt: skip
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", dir=self.folder)
        try:
            with os.fdopen(handle, "w") as file:
                json.dump({key: value for key, value in kept.items() if value}, file)
            Path(name).replace(self.path(one.network, one.container_id, one.interface))
        except BaseException:
            Path(name).unlink()
            raise

    def read(self, network: str, container_id: str, interface: str) -> CachedAttachment | None:
        """Return an attachment, or None."""
        return _read(self.path(network, container_id, interface))

    def forget(self, network: str, container_id: str, interface: str) -> None:
        """Drop an attachment; one that is not there is no error."""
        self.path(network, container_id, interface).unlink(missing_ok=True)

    def all(self, network: str | None = None) -> list[CachedAttachment]:
        """Return every attachment, or those of one network, by name; what cannot be read is left out, as by libcni."""
        found = []
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else []:
            with contextlib.suppress(InvalidConfig):
                found.append(None if path.name.startswith(".") else _read(path))
        return [one for one in found if one and network in {None, one.network}]


def _read(path: Path) -> CachedAttachment | None:
    try:
        kept = json.loads(path.read_text())
        if kept["kind"] != KIND:
            return None
        return CachedAttachment(
            network=kept["networkName"], container_id=kept["containerId"], interface=kept["ifName"],
            netns=kept.get("netns", ""), args=dict(kept.get("cniArgs") or []),
            capabilities=kept.get("capabilityArgs") or {},
            config=json.loads(base64.b64decode(kept["config"])), raw_result=kept.get("result") or {},
        )  # fmt: skip
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidConfig(f"{path}: not a cached attachment: {error}. Detach it by hand, and delete it") from None
