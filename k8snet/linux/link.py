"""Interfaces: veth pairs, bridges, VXLAN, macvlan and dummies, as `ip link` makes them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from k8snet.errors import CapabilityMissing, InvalidInput, KernelRefused, NameTaken, NotFound, Timeout
from k8snet.linux import address as check
from k8snet.linux.run import wait_until

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = [
    "End",
    "add_bridge",
    "add_dummy",
    "add_macvlan",
    "add_veth",
    "add_vxlan",
    "await_carrier",
    "check_kind",
    "delete",
    "delete_pairs",
    "enslave",
    "index_of",
    "mac_of",
    "move",
    "ports_of",
    "rename",
    "set_hairpin",
    "set_mac",
    "set_mtu",
    "set_state",
]

MTU_RANGE = (68, 65535)  # bytes; RFC 791's smallest, and what veth takes at most
ENOTSUP = 95
CARRIER_S = 2.0  # seconds; on an idle machine it takes less than one millisecond
VXLAN_PORT = 8472  # Linux's default, and flannel's; the registered one is 4789
VXLAN_OVERHEAD = 50  # bytes of Ethernet, IPv4, UDP and VXLAN headers
MACVLAN_MODES = ("bridge", "private", "vepa", "passthru")


@dataclass(frozen=True, kw_only=True)
class End:
    """One end of a veth pair, as it shall be."""

    netns: Netns
    name: str
    address: str | None = None  # with prefix length
    mac: str | None = None  # None derives one from the names
    mtu: int | None = None  # bytes; None leaves the kernel's 1500
    up: bool = True
    master: str | None = None  # a bridge in the same netns


def index_of(netns: Netns, name: str) -> int:
    """Return the ifindex of an interface.

    Raises:
        NotFound: there is none of that name; the message lists those there are.
    """
    check.check_interface_name(name)
    found = find(netns, name)
    if found is None:
        have = netns.netlink("list interfaces", lambda ipr: [link.get("ifname") for link in ipr.get_links()])
        raise NotFound(f"no interface {name!r} in netns {netns.name}; there are: {', '.join(have)}")
    return found


def mac_of(netns: Netns, name: str) -> str:
    """Return the MAC of an interface.

    Raises:
        NotFound: there is none of that name.
    """
    index = index_of(netns, name)
    return netns.netlink(f"look at {name}", lambda ipr: str(ipr.get_links(index)[0].get_attr("IFLA_ADDRESS")))


def ports_of(netns: Netns, bridge: str) -> list[str]:
    """Return the names of the ports of a bridge. Like: ip link show master BRIDGE.

    Raises:
        NotFound: there is no such bridge.
    """
    index = index_of(netns, bridge)
    links = netns.netlink(f"list the ports of {bridge}", lambda ipr: list(ipr.get_links()))
    return [one.get_attr("IFLA_IFNAME") for one in links if one.get_attr("IFLA_MASTER") == index]


def find(netns: Netns, name: str) -> int | None:
    """Return the ifindex of an interface, or None."""
    found = netns.netlink(f"find {name}", lambda ipr: ipr.link_lookup(ifname=name))
    return int(found[0]) if found else None


def check_free(netns: Netns, name: str) -> None:
    """Check that *name* can be given to a new interface.

    Raises:
        InvalidName: Linux would not take it.
        NameTaken: an interface of that name is in the netns already.
    """
    check.check_interface_name(name)
    if find(netns, name) is not None:
        raise NameTaken(f"there is an interface {name!r} in netns {netns.name} already")


def check_mtu(mtu: int) -> int:
    """Return *mtu*, in bytes, if a veth takes it.

    Raises:
        InvalidInput: it does not.
    """
    return check.check_range("MTU", mtu, *MTU_RANGE)


def check_kind(netns: Netns, name: str, kind: str) -> int:
    """Return the ifindex of an interface that is of a kind.

    Raises:
        NotFound: there is none of that name.
        InvalidInput: it is of another kind.
    """
    index = index_of(netns, name)
    found = netns.netlink(f"look at {name}", lambda ipr: kind_of(ipr.get_links(index)[0]))
    if found != kind:
        raise InvalidInput(f"{name} in netns {netns.name} is a {found or 'plain interface'}, not a {kind}")
    return index


def kind_of(message: Any) -> str:
    """Return the kind of interface that a link message tells of: "veth", "bridge", or ""."""
    info = message.get_attr("IFLA_LINKINFO")
    return str(info.get_attr("IFLA_INFO_KIND")) if info else ""


# -- making ----------------------------------------------------------------------------


def add_veth(end: End, peer: End) -> None:
    """Join two netns with a veth pair: what enters one end leaves the other.

    Like: ip -n N link add name A address MAC type veth peer name B address MAC netns M

    Raises:
        InvalidName, InvalidAddress, InvalidInput: one of the ends cannot be as asked.
        NameTaken: an interface of that name is in the netns already.
        NotFound: no such bridge to attach an end to.
    """
    if (end.netns.name, end.name) == (peer.netns.name, peer.name):
        raise NameTaken(f"both ends of the pair are called {end.name!r} in netns {end.netns.name}")
    for side in (end, peer):
        _check_end(side)
    macs = [side.mac or check.mac_for(side.netns.name, side.name) for side in (end, peer)]
    request = {
        "address": macs[0], **_mtu(end),
        "peer": {"ifname": peer.name, "address": macs[1], "net_ns_fd": peer.netns.fd, **_mtu(peer)},
    }  # fmt: skip
    make(end.netns, end.name, kind="veth", **request)
    end.netns.record(
        "ip", "link", "add", "name", end.name, *_mtu_words(end), "address", macs[0], "type", "veth",
        "peer", "name", peer.name, *_mtu_words(peer), "address", macs[1], "netns", peer.netns.name,
    )  # fmt: skip
    try:
        for side in (end, peer):
            _finish_end(side)
    except BaseException:
        end.netns.netlink(f"remove {end.name}", lambda ipr: ipr.link("del", ifname=end.name))
        raise
    if end.up and peer.up:
        for side in (end, peer):
            await_carrier(side.netns, [side.name])


def _check_end(end: End) -> None:
    check_free(end.netns, end.name)
    if end.address is not None:
        check.interface_address(end.address)
    if end.mac is not None:
        check.check_mac(end.mac)
    if end.mtu is not None:
        check_mtu(end.mtu)
    if end.master is not None:
        check_kind(end.netns, end.master, "bridge")


def _finish_end(end: End) -> None:
    if end.master:
        enslave(end.netns, end.name, end.master)
    if end.address:
        end.netns.add_address(end.name, end.address)
    if end.up:
        set_state(end.netns, end.name, up=True)


def await_carrier(netns: Netns, names: Iterable[str]) -> None:
    """Wait until interfaces can send: for a moment after a link comes up, the kernel drops what they are given."""
    wanted = set(names)

    def sends() -> bool:
        links = netns.netlink("look at interfaces", lambda ipr: list(ipr.get_links()))
        ready = {one.get_attr("IFLA_IFNAME") for one in links if one.get_attr("IFLA_OPERSTATE") == "UP"}
        return wanted <= ready

    with contextlib.suppress(Timeout):  # somebody has taken the other end down: then that is so
        wait_until(sends, what="carrier", timeout_s=CARRIER_S, every_s=0.001)


def _mtu(end: End) -> dict[str, int]:
    return {"mtu": end.mtu} if end.mtu else {}


def _mtu_words(end: End) -> list[str]:
    return ["mtu", str(end.mtu)] if end.mtu else []


def _add(netns: Netns, name: str, request: dict[str, Any], words: list[str]) -> None:
    """Make an interface of one end, up, with the MAC that its name gives."""
    mac = check.mac_for(netns.name, name)
    kind = words[0]
    make(netns, name, kind=kind, address=mac, **request)
    netns.record("ip", "link", "add", "name", name, "address", mac, "type", *words)
    set_state(netns, name, up=True)


def make(netns: Netns, name: str, *, kind: str, **request: Any) -> None:
    """Ask the kernel for an interface.

    Raises:
        CapabilityMissing: this kernel has no interfaces of that kind.
        KernelRefused: it does, but refused.
    """
    try:
        netns.netlink(f"add {kind} {name}", lambda ipr: ipr.link("add", ifname=name, kind=kind, **request))
    except KernelRefused as error:
        if error.errno == ENOTSUP:
            raise CapabilityMissing(
                f"this kernel has no {kind} interfaces. Load them: sudo modprobe {kind}; or ask `k8snet doctor`"
            ) from None
        raise


def add_bridge(netns: Netns, name: str, *, address: str | None = None) -> None:
    """Make a bridge, up: a switch inside a netns.

    Like: ip link add name NAME type bridge; ip address add ADDRESS dev NAME; ip link set NAME up

    Args:
        address: the bridge's own address with prefix length, which makes it a gateway.

    Raises:
        NameTaken: an interface of that name is in the netns already.
        InvalidAddress: *address* has no prefix length, or is the network's own.
    """
    check_free(netns, name)
    if address is not None:
        check.interface_address(address)
    _add(netns, name, {}, ["bridge"])
    if address is not None:
        netns.add_address(name, address)


def add_dummy(netns: Netns, name: str) -> None:
    """Make a dummy, up: an interface that drops what is sent, to hold addresses.

    Like: ip link add name NAME type dummy; ip link set NAME up

    Raises:
        NameTaken: an interface of that name is in the netns already.
    """
    check_free(netns, name)
    _add(netns, name, {}, ["dummy"])


def add_macvlan(netns: Netns, name: str, *, parent: str, mode: str = "bridge") -> None:
    """Give the interface *parent* a second MAC, with an interface of its own.

    Like: ip link add link PARENT name NAME type macvlan mode MODE; ip link set NAME up

    Raises:
        NameTaken: an interface of that name is in the netns already.
        NotFound: there is no *parent*.
        InvalidInput: no such *mode*.
    """
    check_free(netns, name)
    if mode not in MACVLAN_MODES:
        raise InvalidInput(f"macvlan mode {mode!r}: one of {', '.join(MACVLAN_MODES)}")
    index, mac = index_of(netns, parent), check.mac_for(netns.name, name)
    make(netns, name, kind="macvlan", link=index, macvlan_mode=mode, address=mac)
    netns.record("ip", "link", "add", "link", parent, "name", name, "address", mac, "type", "macvlan", "mode", mode)
    set_state(netns, name, up=True)


def add_vxlan(
    netns: Netns, name: str, *, vni: int, local: str, port: int = VXLAN_PORT,
    device: str | None = None, mtu: int | None = None, learning: bool = False,
) -> None:  # fmt: skip
    """Make a VXLAN interface, up: Ethernet frames inside UDP.

    Like: ip link add name NAME type vxlan id VNI local LOCAL dstport PORT nolearning

    Args:
        vni: the number of the overlay, 0 to 2**24 - 1.
        local: the address that outer packets come from.
        port: the outer UDP port.
        device: the interface that outer packets leave by; None lets the route decide.
        mtu: bytes of an inner packet; None leaves what the kernel computes.
        learning: fill the FDB from what arrives, as a switch does.

    Raises:
        NameTaken, InvalidAddress, InvalidInput, NotFound: an argument cannot be.
        KernelRefused: with *device*, an MTU above its own minus 50 bytes.
    """
    check_free(netns, name)
    check.check_range("VXLAN network identifier", vni, 0, 2**24 - 1)
    key = "vxlan_local" if check.host_address(local).version == 4 else "vxlan_local6"
    check.check_port(port)
    request: dict[str, Any] = {
        "vxlan_id": vni, key: local, "vxlan_port": port, "vxlan_learning": int(learning),
    }  # fmt: skip
    words = ["vxlan", "id", str(vni), "local", local, "dstport", str(port), "learning" if learning else "nolearning"]
    if device is not None:
        request["vxlan_link"] = index_of(netns, device)
        words += ["dev", device]
    if mtu is not None:
        check_mtu(mtu)
    _add(netns, name, request, words)
    if mtu is not None:
        try:
            set_mtu(netns, name, mtu)
        except KernelRefused:
            delete(netns, name)
            raise


# -- changing --------------------------------------------------------------------------


def _set(netns: Netns, name: str, request: dict[str, Any], *words: str) -> None:
    index = index_of(netns, name)
    netns.netlink(f"set {name} {' '.join(words)}", lambda ipr: ipr.link("set", index=index, **request))
    netns.record("ip", "link", "set", "dev", name, *words)


def set_state(netns: Netns, name: str, *, up: bool) -> None:
    """Take an interface up or down. Like: ip link set dev NAME up|down."""
    word = "up" if up else "down"
    _set(netns, name, {"state": word}, word)


def set_mtu(netns: Netns, name: str, mtu: int) -> None:
    """Set the largest packet, in bytes, that an interface takes. Like: ip link set dev NAME mtu MTU."""
    check_mtu(mtu)
    _set(netns, name, {"mtu": mtu}, "mtu", str(mtu))


def set_mac(netns: Netns, name: str, mac: str) -> None:
    """Give an interface another MAC. Like: ip link set dev NAME address MAC."""
    lowered = check.check_mac(mac)
    _set(netns, name, {"address": lowered}, "address", lowered)


def rename(netns: Netns, name: str, new: str) -> None:
    """Give an interface another name. Like: ip link set dev NAME name NEW.

    Raises:
        NameTaken: an interface called *new* is there already.
    """
    check_free(netns, new)
    _set(netns, name, {"ifname": new}, "name", new)


def enslave(netns: Netns, name: str, bridge: str | None) -> None:
    """Make an interface a port of *bridge*, or of none. Like: ip link set dev NAME master BRIDGE.

    Raises:
        NotFound: there is no such interface or bridge.
        InvalidInput: *bridge* is not a bridge.
    """
    if bridge is None:
        _set(netns, name, {"master": 0}, "nomaster")
    else:
        _set(netns, name, {"master": check_kind(netns, bridge, "bridge")}, "master", bridge)


def set_hairpin(netns: Netns, port: str, *, on: bool) -> None:
    """Let a bridge port send a frame back to where it came from.

    Like: bridge link set dev PORT hairpin on|off
    """
    index = index_of(netns, port)
    word = "on" if on else "off"
    netns.netlink(f"set {port} hairpin {word}", lambda ipr: ipr.brport("set", index=index, IFLA_BRPORT_MODE=int(on)))
    netns.record("bridge", "link", "set", "dev", port, "hairpin", word)


def move(netns: Netns, name: str, to: Netns) -> None:
    """Move an interface to another netns; it loses its addresses and is down there.

    Like: ip link set dev NAME netns TO

    Raises:
        NotFound: there is no such interface.
        NameTaken: the other netns has one of that name.
        KernelRefused: it cannot leave its netns (lo, bridges, VXLAN of some kernels).
    """
    index_of(netns, name)
    check_free(to, name)
    _set(netns, name, {"net_ns_fd": to.fd}, "netns", to.name)


def delete(netns: Netns, name: str) -> None:
    """Remove an interface; a veth takes its other end with it. Like: ip link delete dev NAME."""
    index = index_of(netns, name)
    netns.netlink(f"remove {name}", lambda ipr: ipr.link("del", index=index))
    netns.record("ip", "link", "delete", "dev", name)


def delete_pairs(netns: Netns) -> list[str]:
    """Remove every veth of a netns, and so the other ends at once, wherever they are; return their names."""

    def body(ipr: Any) -> list[str]:
        names = []
        while pairs := [message for message in ipr.get_links() if kind_of(message) == "veth"]:
            ipr.link("del", index=pairs[0]["index"])  # which may take another one of the list with it
            names.append(pairs[0].get_attr("IFLA_IFNAME"))
        return names

    return netns.netlink("remove all veth pairs", body)
