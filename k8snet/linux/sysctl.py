"""Kernel settings of a netns, as `sysctl` reads and writes them."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from k8snet.errors import CapabilityMissing, InvalidInput, KernelRefused, NotFound
from k8snet.linux import nsfs

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = ["exists", "get", "set_all"]

_KEY = re.compile(r"net(\.[A-Za-z0-9_:@-]+|/[A-Za-z0-9_.:@-]+)+")
BRIDGE_NF = "net.bridge.bridge-nf-call-iptables"


def path_of(key: str) -> Path:
    """Return the file of a setting: "net.ipv4.ip_forward" is /proc/sys/net/ipv4/ip_forward.

    As with `sysctl`, a key written with "/" may have dots in an interface's name.

    Raises:
        InvalidInput: not the name of a network setting; the others belong to the machine.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key) or ".." in key:
        raise InvalidInput(f"sysctl {key!r}: only settings of a netns, as in 'net.ipv4.ip_forward'")
    return Path("/proc/sys", key if "/" in key else key.replace(".", "/"))


def exists(netns: Netns, key: str) -> bool:
    """Return whether this kernel has a setting in a netns."""
    return nsfs.inside(netns.fd, path_of(key).exists)


def get(netns: Netns, key: str) -> str:
    """Return a setting. Like: sysctl -n KEY.

    Raises:
        NotFound: this kernel has no such setting.
    """
    path = path_of(key)
    try:
        return nsfs.inside(netns.fd, path.read_text).strip()
    except FileNotFoundError:
        raise NotFound(f"netns {netns.name} has no setting {key!r}") from None


def set_all(netns: Netns, values: Mapping[str, int | str]) -> None:
    """Change settings, all or none. Like: sysctl -w KEY=VALUE...

    Raises:
        InvalidInput: a key is not a network setting's.
        NotFound: this kernel has no such setting.
        CapabilityMissing: bridges cannot call iptables here.
        KernelRefused: the kernel does not take a value.
    """
    wanted = [(key, path_of(key), str(value)) for key, value in values.items()]
    before: list[tuple[Path, str]] = []

    def body() -> None:
        try:
            for _, path, value in wanted:
                old = path.read_text()
                before.append((path, old))
                path.write_text(value)
        except OSError as error:
            for path, old in reversed(before):
                path.write_text(old)
            key, _, value = wanted[max(len(before) - 1, 0)]
            raise _refused(netns.name, key, value, error) from None

    nsfs.inside(netns.fd, body)
    netns.record("sysctl", "-qw", *(f"{key}={value}" for key, _, value in wanted))


def _refused(netns: str, key: str, value: str, error: OSError) -> Exception:
    if not isinstance(error, FileNotFoundError):
        return KernelRefused(
            f"set {key}={value} in netns {netns}", error.errno or errno.EIO, error.strerror or str(error)
        )
    if key.startswith("net.bridge."):
        return CapabilityMissing("bridges cannot call iptables here. Load it: sudo modprobe br_netfilter")
    return NotFound(f"netns {netns} has no setting {key!r}")
