"""Names and addresses of a cluster: fixed, memorable, and the same in all chapters.

    pods       10.244.N.0/24 for node N       fd00:10:244:N::/64
    nodes      172.18.0.N/16                  fd00:172:18::N/64
    services   10.96.0.0/12                   fd00:10:96::/112
    router     172.18.0.254, 203.0.113.1      fd00:172:18::fffe, 2001:db8:113::1
    internet   203.0.113.10 and .80           2001:db8:113::10 and ::80
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Sequence

from k8snet.errors import InvalidInput, InvalidManifest
from k8snet.linux.address import IPAddress, IPNetwork, network

__all__ = [
    "CLUSTER_NETWORK",
    "FAMILIES",
    "INTERNET",
    "NODE_NETWORK",
    "check_families",
    "container_id",
    "family_of",
    "gateway_of",
    "netns_name",
    "node_address",
    "pod_cidr",
    "port_name",
    "router_address",
    "short",
    "spanning",
    "unfit",
]

FAMILIES = ("v4", "v6")
CLUSTER_NETWORK = {"v4": "10.244.0.0/16", "v6": "fd00:10:244::/48"}  # of all pods
NODE_NETWORK = {"v4": "172.18.0.0/16", "v6": "fd00:172:18::/64"}
INTERNET = {  # the router's address, a client's, a server's
    "v4": ("203.0.113.1/24", "203.0.113.10/24", "203.0.113.80/24"),
    "v6": ("2001:db8:113::1/64", "2001:db8:113::10/64", "2001:db8:113::80/64"),
}
MOST_NODES = 250
LONGEST_NETNS = 63  # characters; see check_netns_name()


def check_families(families: Sequence[str]) -> tuple[str, ...]:
    """Return *families* if a cluster can have them: ("v4",), or ("v4", "v6") for dual-stack.

    Raises:
        InvalidInput: other ones.
    """
    if isinstance(families, str | None) or tuple(families) not in {("v4",), ("v4", "v6")}:
        raise InvalidInput(f'ip_families {families!r}: ("v4",), or ("v4", "v6") for dual-stack')
    return tuple(families)


def family_of(address: str | IPAddress | IPNetwork) -> str:
    """Return "v4" or "v6" for an address or a network."""
    return "v6" if ":" in str(address) else "v4"


def pod_cidr(number: int, family: str) -> str:
    """Return the pod CIDR of node *number*."""
    return f"10.244.{number}.0/24" if family == "v4" else f"fd00:10:244:{number:x}::/64"


def node_address(number: int, family: str) -> str:
    """Return the address of node *number*."""
    return f"172.18.0.{number}" if family == "v4" else f"fd00:172:18::{number:x}"


def router_address(nodes: IPNetwork) -> str:
    """Return the router's address on the network of the nodes: the last one before the broadcast address."""
    if str(nodes) == NODE_NETWORK["v4"]:
        return "172.18.0.254"
    return str(nodes[0xFFFE] if nodes.version == 6 else nodes[-2])


def gateway_of(cidr: str) -> str:
    """Return the address that a node's bridge has in its pod CIDR: the first one."""
    return str(network(cidr)[1])


def spanning(cidrs: Iterable[str], *, default: str) -> IPNetwork:
    """Return *default* if it holds all of *cidrs*, else the smallest network that does."""
    found = [ipaddress.ip_network(cidr, strict=False) for cidr in cidrs]
    wide = network(default)
    if all(one.version == wide.version and one.subnet_of(wide) for one in found):  # type: ignore[arg-type]  # as checked
        return wide
    wide = found[0]
    while not all(one.subnet_of(wide) for one in found):  # type: ignore[arg-type]  # a manifest's nodes have one family
        wide = wide.supernet()
    return wide.supernet(new_prefix=24) if wide.version == 4 and wide.prefixlen > 24 else wide


def netns_name(namespace: str, name: str, *, taken: Collection[str]) -> str:
    """Return the name of a pod's netns: the pod's own in the namespace default, else NAMESPACE.NAME.

    Args:
        taken: names that other things have: nodes, the switch, the router, the internet.
    """
    plain = namespace == "default" and "." not in name and name not in taken and name != "host"
    return short(name if plain else f"{namespace}.{name}")


def short(name: str) -> str:
    """Return *name* if it can be that of a netns, else its beginning and a digest of all of it."""
    return name if len(name) <= LONGEST_NETNS else f"{name[: LONGEST_NETNS - 9]}-{_digest(name)[:8]}"


def port_name(namespace: str, name: str) -> str:
    """Return the name of the node's end of a pod's veth pair; the bridge plugin draws one like it at random."""
    return f"veth{_digest(f'{namespace}/{name}')[:8]}"


def container_id(namespace: str, name: str) -> str:
    """Return the id under which a pod is known to CNI plugins: 64 hex digits, as container runtimes have."""
    return _digest(f"{namespace}/{name}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def unfit(cidr: IPNetwork) -> str:
    """Return why *cidr* cannot be the pod CIDR of a node, or ""."""
    if cidr.num_addresses < 4:
        return "is too small: it has no room for a gateway and a pod"
    if cidr.is_loopback or cidr.is_multicast or cidr.is_link_local:
        return "is not for pods: its addresses are loopback, link-local or multicast ones"
    far = network(str(ipaddress.ip_interface(INTERNET[family_of(cidr)][0]).network))
    if cidr.overlaps(far):
        return f"overlaps {far}, which is the internet of this lab"
    return ""


def check_disjoint(named: Sequence[tuple[str, str]]) -> None:
    """Check that no two of the (owner, network) pairs overlap.

    Raises:
        InvalidManifest: two do.
    """
    seen: list[tuple[str, IPNetwork]] = []
    for owner, cidr in named:
        mine = network(cidr)
        for other, theirs in seen:
            if mine.version == theirs.version and mine.overlaps(theirs):
                raise InvalidManifest(f"{owner} has {mine}, which overlaps {theirs} of {other}")
        seen.append((owner, mine))
