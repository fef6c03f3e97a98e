"""Neighbours and forwarding databases: who has which MAC, and behind which port."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from k8snet.errors import KernelRefused, NotFound
from k8snet.linux import address as check
from k8snet.linux import link

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = [
    "FdbEntry",
    "Neighbour",
    "add_fdb",
    "add_neighbour",
    "delete_fdb",
    "delete_neighbour",
    "fdb",
    "forget_learnt",
    "neighbours",
    "room",
]

STATES = {
    0x01: "INCOMPLETE",
    0x02: "REACHABLE",
    0x04: "STALE",
    0x08: "DELAY",
    0x10: "PROBE",
    0x20: "FAILED",
    0x40: "NOARP",
    0x80: "PERMANENT",
}
PERMANENT, NOARP = 0x80, 0x40
NTF_SELF, NTF_MASTER = 0x02, 0x04
AF_BRIDGE = 7
ENOENT = 2
TABLE_LIMIT, TABLE_USED = 1024, 128  # neighbours; Linux's default, and a guess, where they cannot be read


@dataclass(frozen=True, kw_only=True, order=True)
class Neighbour:
    """What a netns believes about the MAC of an address."""

    address: str
    interface: str
    mac: str | None  # None while the question is open, or after it failed
    state: str  # REACHABLE, STALE, PERMANENT, INCOMPLETE, FAILED, ...


@dataclass(frozen=True, kw_only=True, order=True)
class FdbEntry:
    """Where a bridge or VXLAN sends frames for a MAC."""

    mac: str
    port: str  # interface name
    remote: str | None = None  # the other end of a VXLAN tunnel
    permanent: bool = False  # False for what was learnt
    age_s: float | None = None  # seconds since last seen; None for a permanent entry


def _names(ipr: Any) -> dict[int, str]:
    return {message["index"]: message.get_attr("IFLA_IFNAME") for message in ipr.get_links()}


def neighbours(netns: Netns) -> list[Neighbour]:
    """Return the neighbour table, without entries that need no question. Like: ip neighbour."""

    def body(ipr: Any) -> list[Neighbour]:
        names = _names(ipr)
        return sorted(
            (
                Neighbour(
                    address=message.get_attr("NDA_DST"), interface=names.get(message["ifindex"], "?"),
                    mac=message.get_attr("NDA_LLADDR"), state=STATES.get(message["state"], "NONE"),
                )
                for message in ipr.get_neighbours()
                if message["family"] in {2, 10} and not message["state"] & NOARP
            ),
            key=lambda entry: (entry.interface, entry.address),
        )  # fmt: skip

    return netns.netlink("list neighbours", body)


def add_neighbour(netns: Netns, address: str, *, interface: str, mac: str) -> None:
    """Set the MAC of an address for good. Like: ip neighbour replace ADDRESS lladdr MAC dev INTERFACE nud permanent."""
    check.host_address(address)
    lowered, index = check.check_mac(mac), link.index_of(netns, interface)
    netns.netlink(
        f"set the neighbour {address}",
        lambda ipr: ipr.neigh("replace", dst=address, lladdr=lowered, ifindex=index, state=PERMANENT),
    )
    netns.record("ip", "neighbour", "replace", address, "lladdr", lowered, "dev", interface, "nud", "permanent")


def delete_neighbour(netns: Netns, address: str, *, interface: str) -> None:
    """Forget the MAC of an address. Like: ip neighbour delete ADDRESS dev INTERFACE.

    Raises:
        NotFound: nothing is known of it.
    """
    check.host_address(address)
    index = link.index_of(netns, interface)
    try:
        netns.netlink(f"forget the neighbour {address}", lambda ipr: ipr.neigh("del", dst=address, ifindex=index))
    except KernelRefused as error:
        if error.errno == ENOENT:
            raise NotFound(f"{interface} in netns {netns.name} knows no neighbour {address}") from None
        raise
    netns.record("ip", "neighbour", "delete", address, "dev", interface)


def forget_learnt(netns: Netns) -> None:
    """Forget every neighbour that was learnt. Like: ip neighbour flush all."""

    def body(ipr: Any) -> None:
        for message in ipr.get_neighbours():
            if message["family"] in {2, 10} and not message["state"] & (PERMANENT | NOARP):
                with contextlib.suppress(NetlinkError):  # gone meanwhile
                    ipr.neigh(
                        "del", dst=message.get_attr("NDA_DST"), ifindex=message["ifindex"], family=message["family"]
                    )

    from pyroute2.netlink.exceptions import NetlinkError

    netns.netlink("forget neighbours", body)


def room() -> int:
    """Return how many more neighbours the kernel can learn: all netns of a machine, its own too, share one limit.

    arp(7), gc_thresh3. Past it, packets to new neighbours are dropped, everywhere.
    """
    used, limit = TABLE_USED, TABLE_LIMIT
    with contextlib.suppress(OSError, ValueError, IndexError):  # in some containers neither can be seen
        used = int(Path("/proc/net/stat/arp_cache").read_text().splitlines()[1].split()[0], 16)
        limit = int(Path("/proc/sys/net/ipv4/neigh/default/gc_thresh3").read_text())
    return limit - used


def fdb(netns: Netns) -> list[FdbEntry]:
    """Return the forwarding databases, without the kernel's own multicast entries. Like: bridge fdb show."""

    def body(ipr: Any) -> list[FdbEntry]:
        names = _names(ipr)
        entries = []
        for message in ipr.fdb("dump"):
            mac, master = message.get_attr("NDA_LLADDR"), message.get_attr("NDA_MASTER")
            if message["flags"] & NTF_SELF and message.get_attr("NDA_DST") is None:
                continue  # what the interface itself listens to
            if int(mac[:2], 16) & 1:
                continue
            permanent = bool(message["state"] & (PERMANENT | NOARP))
            info = message.get_attr("NDA_CACHEINFO")
            age = None if permanent or not info else info["ndm_updated"] / 100  # USER_HZ
            if master is not None and permanent and message["ifindex"] == master:
                continue  # the bridge's own MAC
            entries.append(
                FdbEntry(
                    mac=mac, port=names.get(message["ifindex"], "?"), remote=message.get_attr("NDA_DST"),
                    permanent=permanent, age_s=age,
                )
            )  # fmt: skip
        return sorted(entries, key=lambda entry: (entry.port, entry.mac, entry.remote or ""))

    return netns.netlink("list forwarding databases", body)


def add_fdb(netns: Netns, mac: str, *, interface: str, remote: str) -> None:
    """Tell a VXLAN interface where a MAC is. Like: bridge fdb append MAC dev INTERFACE dst REMOTE.

    The MAC 00:00:00:00:00:00 stands for all that have no entry: frames are flooded there.
    """
    lowered, index = check.check_mac(mac), link.index_of(netns, interface)
    check.host_address(remote)
    netns.netlink(
        f"add {mac} to the forwarding database",
        lambda ipr: ipr.fdb("append", lladdr=lowered, ifindex=index, dst=remote),
    )
    netns.record("bridge", "fdb", "append", lowered, "dev", interface, "dst", remote)


def delete_fdb(netns: Netns, mac: str, *, interface: str, remote: str) -> None:
    """Remove what add_fdb() added. Like: bridge fdb delete MAC dev INTERFACE dst REMOTE."""
    lowered, index = check.check_mac(mac), link.index_of(netns, interface)
    netns.netlink(
        f"remove {mac} from the forwarding database",
        lambda ipr: ipr.fdb("del", lladdr=lowered, ifindex=index, dst=remote),
    )
    netns.record("bridge", "fdb", "delete", lowered, "dev", interface, "dst", remote)
