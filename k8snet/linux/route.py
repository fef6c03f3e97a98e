"""Addresses and routes: `ip address` and `ip route`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from k8snet.errors import InvalidAddress, InvalidInput, KernelRefused, NameTaken, NotFound
from k8snet.linux import address as check
from k8snet.linux import link

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = ["add_address", "add_route", "delete_address", "delete_route", "route_to"]

TYPES = ("unicast", "blackhole", "unreachable", "prohibit")
EEXIST, ESRCH, EADDRNOTAVAIL, ENETUNREACH = 17, 3, 99, 101


def add_address(netns: Netns, interface: str, address: str) -> None:
    """Give an interface an address. Like: ip address add ADDRESS dev INTERFACE.

    Args:
        address: with prefix length, as in "10.0.0.11/24".

    Raises:
        InvalidAddress: see interface_address(); or the interface has it already.
        NotFound: there is no such interface.
    """
    parsed = check.interface_address(address)
    index = link.index_of(netns, interface)
    request: dict[str, Any] = {"index": index, "address": str(parsed.ip), "prefixlen": parsed.network.prefixlen}
    if parsed.version == 4 and parsed.network.prefixlen < 31:
        request["broadcast"] = str(parsed.network.broadcast_address)
    elif parsed.version == 6:
        request["flags"] = 2  # IFA_F_NODAD: usable at once; our addresses are unique by plan
    try:
        netns.netlink(f"add {address} to {interface}", lambda ipr: ipr.addr("add", **request))
    except KernelRefused as error:
        if error.errno == EEXIST:
            raise InvalidAddress(f"{interface} in netns {netns.name} has {address} already") from None
        raise
    words = ["brd", "+"] if "broadcast" in request else ["nodad"] if parsed.version == 6 else []
    netns.record("ip", "address", "add", str(parsed), *words, "dev", interface)


def delete_address(netns: Netns, interface: str, address: str) -> None:
    """Take an address from an interface. Like: ip address delete ADDRESS dev INTERFACE.

    Raises:
        NotFound: there is no such interface, or it does not have the address.
    """
    parsed = check.interface_address(address)
    index = link.index_of(netns, interface)
    try:
        netns.netlink(
            f"take {address} from {interface}",
            lambda ipr: ipr.addr("delete", index=index, address=str(parsed.ip), prefixlen=parsed.network.prefixlen),
        )
    except KernelRefused as error:
        if error.errno == EADDRNOTAVAIL:
            raise NotFound(f"{interface} in netns {netns.name} does not have {address}") from None
        raise
    netns.record("ip", "address", "delete", str(parsed), "dev", interface)


def _request(
    netns: Netns, destination: str, *, via: str | None, device: str | None, source: str | None,
    metric: int | None, table: int | None, kind: str, onlink: bool,
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    if kind not in TYPES:
        raise InvalidInput(f"route type {kind!r}: one of {', '.join(TYPES)}")
    if kind == "unicast" and via is None and device is None:
        raise InvalidInput(f"a route to {destination} needs via=ADDRESS or device=INTERFACE")
    target = check.network(destination)
    if via is not None and destination == "default" and check.host_address(via).version == 6:
        target = check.network("::/0")
    request: dict[str, Any] = {"dst": str(target), "type": kind, "family": 2 if target.version == 4 else 10}
    words = [] if kind == "unicast" else [kind]
    words.append(destination if destination == "default" else str(target))
    for key, word, text in (("gateway", "via", via), ("prefsrc", "src", source)):
        if text is None:
            continue
        if check.host_address(text).version != target.version:
            raise InvalidAddress(f"route to {destination}: {word} {text} is of the other address family")
        request[key] = text
        words += [word, text]
    if device is not None:
        request["oif"] = link.index_of(netns, device)
        words += ["dev", device]
    if onlink:
        request["flags"] = 4  # RTNH_F_ONLINK
        words.append("onlink")
    _numbers(request, words, metric, table)
    return request, words


def _numbers(request: dict[str, Any], words: list[str], metric: int | None, table: int | None) -> None:
    for key, word, number in (("priority", "metric", metric), ("table", "table", table)):
        if number is not None:
            request[key] = check.check_range(word, number, 0, 2**32 - 1)
            words += [word, str(number)]


def add_route(
    netns: Netns, destination: str, *, via: str | None = None, device: str | None = None,
    source: str | None = None, metric: int | None = None, table: int | None = None,
    kind: str = "unicast", onlink: bool = False, replace: bool = False,
) -> None:  # fmt: skip
    """Add a route. Like: ip route add DESTINATION via VIA dev DEVICE.

    Args:
        destination: a prefix, or "default".
        via: the next hop's address; it must be reachable over a link, unless *onlink*.
        source: the address that packets from here get.
        metric: among equal prefixes, the lowest wins.
        table: the routing table; None is main.
        kind: "unicast", or "blackhole", "unreachable", "prohibit": three ways to drop.
        replace: put it in the place of one for the same destination.

    Raises:
        InvalidAddress, InvalidInput, NotFound: an argument cannot be.
        NameTaken: there is a route to *destination* already.
        KernelRefused: the next hop is on no network of this netns.
    """
    request, words = _request(
        netns, destination, via=via, device=device, source=source, metric=metric,
        table=table, kind=kind, onlink=onlink,
    )  # fmt: skip
    verb = "replace" if replace else "add"
    try:
        netns.netlink(f"{verb} route {' '.join(words)}", lambda ipr: ipr.route(verb, **request))
    except KernelRefused as error:
        if error.errno == EEXIST:
            raise NameTaken(f"netns {netns.name} has a route to {destination} already; use replace=True") from None
        if error.errno == ENETUNREACH:
            raise InvalidAddress(f"the next hop {via} is on no network of netns {netns.name} that is up") from None
        raise
    netns.record("ip", *(["-6"] if request["family"] == 10 else []), "route", verb, *words)


def delete_route(
    netns: Netns, destination: str, *, via: str | None = None, device: str | None = None, table: int | None = None
) -> None:
    """Remove a route. Like: ip route delete DESTINATION.

    Raises:
        NotFound: there is no such route.
    """
    target = check.network(destination)
    request: dict[str, Any] = {"dst": str(target), "family": 2 if target.version == 4 else 10}
    words = [destination]
    if via is not None:
        request["gateway"] = str(check.host_address(via))
        words += ["via", via]
    if device is not None:
        request["oif"] = link.index_of(netns, device)
        words += ["dev", device]
    if table is not None:
        request["table"] = table
        words += ["table", str(table)]
    try:
        netns.netlink(f"remove route {destination}", lambda ipr: ipr.route("del", **request))
    except KernelRefused as error:
        if error.errno == ESRCH:
            raise NotFound(f"netns {netns.name} has no route to {destination}") from None
        raise
    netns.record("ip", *(["-6"] if request["family"] == 10 else []), "route", "delete", *words)


def route_to(
    netns: Netns, destination: str, *, source: str | None = None, iif: str | None = None, mark: int = 0
) -> dict[str, Any]:
    """Ask the kernel how it would send a packet. Like: ip -j route get DESTINATION.

    Returns:
        The keys of `ip -j route get`: "dst", "gateway", "dev", "prefsrc", ...; only
        "error", the reason, where there is no way.
    """
    import json

    words = ["ip", "-j", "route", "get", str(check.host_address(destination))]
    if source is not None:
        words += ["from", str(check.host_address(source))]
    if iif is not None:
        words += ["iif", iif]
    if mark:
        words += ["mark", str(mark)]
    done = netns.run(*words, check=False, record=False)
    if not done.ok:
        return {"error": done.stderr.strip().removeprefix("RTNETLINK answers: ")}
    answer: dict[str, Any] = json.loads(done.stdout)[0]
    return answer
