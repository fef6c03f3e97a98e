"""resolv.conf: how a pod's programs ask DNS, by its dnsPolicy and dnsConfig; resolv.conf(5).

Source: kubernetes pkg/kubelet/network/dns/dns.go.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["NDOTS", "ResolvConf", "of_pod"]

NDOTS = "ndots:5"  # a name with fewer dots is tried with the search list first
MOST_SERVERS = 3  # that glibc and musl read; the kubelet writes no more


@dataclass(frozen=True, kw_only=True)
class ResolvConf:
    """The lines of /etc/resolv.conf."""

    search: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the file, in the order in which container runtimes write it."""
        lines = [f"search {' '.join(self.search)}"] if self.search else []
        lines += [f"nameserver {one}" for one in self.servers[:MOST_SERVERS]]
        lines += [f"options {' '.join(self.options)}"] if self.options else []
        return "".join(f"{line}\n" for line in lines)


def of_pod(pod: Any, *, namespace: str, zone: str, server: str, node: ResolvConf) -> ResolvConf:
    """Return what a pod gets.

    Args:
        zone: the domain of the cluster.
        server: the address of the cluster's DNS Service.
        node: what the pod's node has.
    """
    spec = pod.spec
    policy = spec.dnsPolicy or "ClusterFirst"
    if policy == "None":
        found = ResolvConf()
    elif policy == "Default" or (policy == "ClusterFirst" and spec.hostNetwork):
        found = node
    else:
        search = [f"{namespace}.svc.{zone}", f"svc.{zone}", zone]
        found = ResolvConf(search=_once([*search, *node.search]), servers=(server,), options=(NDOTS,))
    more = spec.dnsConfig
    if more is None:
        return found
    options = {one.partition(":")[0]: one for one in found.options}
    for one in more.options or ():
        options[one.name or ""] = f"{one.name}:{one.value}" if one.value else one.name or ""
    return ResolvConf(
        search=_once([*found.search, *(more.searches or ())]),
        servers=_once([*found.servers, *(more.nameservers or ())]),
        options=tuple(options.values()),
    )


def _once(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))
