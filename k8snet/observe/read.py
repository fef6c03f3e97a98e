"""Read what one netns holds: a few netlink dumps, and the rules as their own programs print them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from k8snet.errors import CommandFailed, ProgramMissing
from k8snet.linux import ipvs, sockets, sysctl
from k8snet.linux.netfilter import LEGACY_TABLES
from k8snet.observe.values import Interface, NetnsState, Peer, Route, RuleSet

if TYPE_CHECKING:
    from collections.abc import Callable

    from k8snet.linux.netns import Netns

__all__ = ["link_ids", "read"]

IFF_UP, IFF_LOOPBACK, IFF_LOWER_UP = 0x1, 0x8, 0x10000
RT_TABLE_LOCAL, RT_TABLE_DEFAULT = 255, 253
RTM_F_CLONED = 0x200
ROUTE_KINDS = {1: "unicast", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
INTERFACE_SETTINGS = (
    "forwarding",
    "rp_filter",
    "proxy_arp",
    "route_localnet",
    "accept_local",
    "arp_ignore",
    "arp_announce",
)
NETNS_SETTINGS = (
    "net.ipv4.ip_forward",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv6.conf.all.disable_ipv6",
    "net.ipv4.ip_unprivileged_port_start",
)
DETAILS = {
    "vxlan": {
        "id": "IFLA_VXLAN_ID",
        "local": "IFLA_VXLAN_LOCAL",
        "local6": "IFLA_VXLAN_LOCAL6",
        "port": "IFLA_VXLAN_PORT",
        "learning": "IFLA_VXLAN_LEARNING",
    },
    "macvlan": {"mode": "IFLA_MACVLAN_MODE"},
}
IPTABLES_TABLES = {"raw", "mangle", "nat", "filter", "security"}
ADDRESS_FAMILIES = {2: "", 10: "6"}


def read(netns: Netns, *, legacy: bool) -> tuple[NetnsState, list[Any]]:
    """Return the state of a netns, and its link messages for link_ids().

    Args:
        legacy: whether iptables-legacy was used, where the kernel does not let us ask.
    """
    dumps = netns.netlink("read everything", _dump)
    names = {message["index"]: message.get_attr("IFLA_IFNAME") for message in dumps["links"]}
    interfaces = tuple(_interface(message, names, dumps["addresses"]) for message in dumps["links"])
    keys = [*NETNS_SETTINGS, *([sysctl.BRIDGE_NF] if any(one.kind == "bridge" for one in interfaces) else [])]
    live, values, legacy_tables, balanced = netns.inside(_from_proc, keys)
    state = NetnsState(
        name=netns.name, interfaces=tuple(sorted(interfaces, key=lambda one: one.index)),
        routes=tuple(sorted(_routes(dumps["routes"], names), key=str)),
        neighbours=tuple(netns.neighbours()), fdb=tuple(netns.fdb()),
        rules=(*_rules(netns, dumps["rules"], legacy_tables, legacy=legacy), *balanced),
        sockets=tuple(sorted(live)), settings=values,
    )  # fmt: skip
    return state, dumps["links"]


def _dump(ipr: Any) -> dict[str, list[Any]]:
    return {
        "links": list(ipr.get_links()),
        "addresses": list(ipr.get_addr()),
        "routes": list(ipr.get_routes(family=2)) + list(ipr.get_routes(family=10)),
        "rules": list(ipr.get_rules(family=2)) + list(ipr.get_rules(family=10)),
    }


def _from_proc(
    keys: list[str],
) -> tuple[set[Any], tuple[tuple[str, str], ...], dict[str, list[str] | None], tuple[RuleSet, ...]]:
    """Return listening sockets, sysctls, iptables-legacy's tables (None: not ours to know), and IPVS' servers."""
    values = tuple((key, path.read_text().strip()) for key in keys if (path := sysctl.path_of(key)).exists())
    tables: dict[str, list[str] | None] = {}
    for suffix in ADDRESS_FAMILIES.values():
        try:
            tables[suffix] = Path(f"/proc/thread-self/net/ip{suffix}_tables_names").read_text().split()
        except FileNotFoundError:
            tables[suffix] = []
        except PermissionError:
            tables[suffix] = None
    servers = tuple(str(change) for change in ipvs.changes((), ipvs.read()))
    return sockets.read(), values, tables, (RuleSet(program="ipvs", lines=servers),) if servers else ()


# -- interfaces ------------------------------------------------------------------------


def _interface(message: Any, names: dict[int, str], addresses: list[Any]) -> Interface:
    kind, details, hairpin = _kind(message)
    flags, index = message["flags"], message["index"]
    master, parent = message.get_attr("IFLA_MASTER"), message.get_attr("IFLA_LINK")
    return Interface(
        name=names[index], index=index, kind=kind, mac=message.get_attr("IFLA_ADDRESS"),
        mtu=message.get_attr("IFLA_MTU"), up=bool(flags & IFF_UP), carrier=bool(flags & IFF_LOWER_UP),
        addresses=tuple(sorted(_address(one) for one in addresses if one["index"] == index and _ours(one))),
        master=names.get(master) if master else None,
        parent=names.get(parent) if parent and kind == "macvlan" else None,
        hairpin=hairpin, details=details, settings=_settings(message),
    )  # fmt: skip


def _kind(message: Any) -> tuple[str, tuple[tuple[str, str], ...], bool]:
    info = message.get_attr("IFLA_LINKINFO")
    if info is None or info.get_attr("IFLA_INFO_KIND") is None:
        return ("loopback" if message["flags"] & IFF_LOOPBACK else ""), (), False
    kind = str(info.get_attr("IFLA_INFO_KIND"))
    data, port = info.get_attr("IFLA_INFO_DATA"), info.get_attr("IFLA_INFO_SLAVE_DATA")
    wanted = DETAILS.get(kind, {})
    told = {key: data.get_attr(name) for key, name in wanted.items()} if data is not None else {}
    details = tuple((key, str(value)) for key, value in told.items() if value is not None)
    hairpin = bool(port is not None and hasattr(port, "get_attr") and port.get_attr("IFLA_BRPORT_MODE"))
    return kind, details, hairpin


def _settings(message: Any) -> tuple[tuple[str, int], ...]:
    """Return what differs from 0 among the IPv4 settings of an interface."""
    spec = message.get_attr("IFLA_AF_SPEC")
    found = spec.get_attr("AF_INET") if spec is not None else None
    return tuple((key, found[key]) for key in INTERFACE_SETTINGS if found and found.get(key))


def _address(message: Any) -> str:
    address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    return f"{address}/{message['prefixlen']}"


def _ours(message: Any) -> bool:
    """Return whether an address was given by somebody; link-local ones make themselves."""
    return not (message["family"] == 10 and message["scope"] == 253)


def link_ids(messages: list[Any]) -> dict[int, tuple[int, int | None]]:
    """Return, for each veth by its ifindex, its other end's ifindex and netns id (None: the same)."""
    found = {}
    for message in messages:
        info = message.get_attr("IFLA_LINKINFO")
        if info is not None and info.get_attr("IFLA_INFO_KIND") == "veth" and message.get_attr("IFLA_LINK"):
            found[message["index"]] = (message.get_attr("IFLA_LINK"), message.get_attr("IFLA_LINK_NETNSID"))
    return found


def with_peers(state: NetnsState, peers: dict[int, Peer]) -> NetnsState:
    """Return *state* with the other ends of its veths filled in."""
    from dataclasses import replace

    return replace(state, interfaces=tuple(replace(one, peer=peers.get(one.index)) for one in state.interfaces))


# -- routes and policy -----------------------------------------------------------------


def _routes(messages: list[Any], names: dict[int, str]) -> list[Route]:
    found = []
    for message in messages:
        table = message.get_attr("RTA_TABLE") or message["table"]
        if table == RT_TABLE_LOCAL or message["type"] not in ROUTE_KINDS or message["flags"] & RTM_F_CLONED:
            continue  # cloned: a path MTU that was learnt
        destination = message.get_attr("RTA_DST")
        if message["family"] == 10 and destination and destination.startswith(("fe80:", "ff00:")):
            continue  # comes and goes with each interface
        prefix = (
            f"{destination}/{message['dst_len']}" if destination else "default" if message["family"] == 2 else "::/0"
        )
        hops = [(one.get_attr("RTA_GATEWAY"), one["oif"]) for one in message.get_attr("RTA_MULTIPATH") or ()]
        found += [
            Route(
                destination=prefix, via=via, device=names.get(index), source=message.get_attr("RTA_PREFSRC"),
                metric=message.get_attr("RTA_PRIORITY") or 0, table=table, kind=ROUTE_KINDS[message["type"]],
            )
            for via, index in hops or [(message.get_attr("RTA_GATEWAY"), message.get_attr("RTA_OIF") or 0)]
        ]  # fmt: skip
    return found


def _policy(messages: list[Any]) -> tuple[str, ...]:
    """Return the rules of the routing policy that are not there in every netns."""
    lines = []
    for message in messages:
        priority, table = message.get_attr("FRA_PRIORITY") or 0, message.get_attr("FRA_TABLE")
        if (priority, table) in {(0, RT_TABLE_LOCAL), (32766, 254), (32767, RT_TABLE_DEFAULT)}:
            continue
        words = [f"{priority}:"]
        for word, name in (("from", "FRA_SRC"), ("to", "FRA_DST"), ("iif", "FRA_IIFNAME"), ("fwmark", "FRA_FWMARK")):
            value = message.get_attr(name)
            words += [word, str(value)] if value else []
        lines.append(" ".join([*words, "lookup", str(table)]))
    return tuple(lines)


# -- netfilter -------------------------------------------------------------------------


def _rules(
    netns: Netns, policy: list[Any], legacy_tables: dict[str, list[str] | None], *, legacy: bool
) -> tuple[RuleSet, ...]:
    objects = _quietly(netns.nft_list) or []
    found = [RuleSet(program="ip rule", lines=_policy(policy))]
    for family, suffix in ADDRESS_FAMILIES.items():
        number = 4 if family == 2 else 6
        if any(_of_iptables(one, f"ip{suffix}") for one in objects):
            found.append(
                RuleSet(
                    program=f"ip{suffix}tables-nft", lines=_saved(netns.iptables_save(backend="nft", family=number))
                )
            )
        lines = _legacy(netns, suffix, legacy_tables[suffix], legacy=legacy)
        found.append(RuleSet(program=f"ip{suffix}tables-legacy", lines=lines))
    found.append(RuleSet(program="nft", lines=_native(objects)))
    if any("--match-set" in line or '"@' in line for one in found for line in one.lines) or _has_sets(netns):
        saved = _quietly(lambda: netns.run("ipset", "save", "-sorted", record=False).stdout) or ""
        lines = tuple(re.sub(r" initval \S+", "", line) for line in saved.splitlines())  # a random seed
        found.append(RuleSet(program="ipset", lines=lines))
    return tuple(one for one in found if one.lines)


def _quietly(function: Callable[[], Any]) -> Any:
    """Return what *function* does, or None where this machine has not the program for it."""
    try:
        return function()
    except (ProgramMissing, CommandFailed):
        return None


def _has_sets(netns: Netns) -> bool:
    return bool(_quietly(lambda: netns.run("ipset", "list", "-name", record=False).stdout.strip()))


def _of_iptables(entry: dict[str, Any], family: str) -> bool:
    """Return whether an nft table is one that iptables-nft keeps."""
    chain = entry.get("chain", {})
    return (
        chain.get("family") == family
        and chain.get("table") in IPTABLES_TABLES
        and bool(chain["name"].isupper() or "-" in chain["name"])
    )


def _legacy(netns: Netns, suffix: str, tables: list[str] | None, *, legacy: bool) -> tuple[str, ...]:
    if tables is None:  # an ordinary user may not read the list, but may ask for each table
        tables = list(LEGACY_TABLES) if legacy else []
    program = f"ip{suffix}tables-legacy-save"
    saved = [netns.run(program, "-t", table, check=False).stdout for table in tables]
    return tuple(line for text in saved for line in _saved(text))


def _saved(text: str) -> tuple[str, ...]:
    """Return what iptables-save printed without comments and counters; empty tables left out."""
    tables: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("*"):
            current = tables.setdefault(line, [])
        elif line.startswith(":"):
            chain, policy, *_ = line.split()
            if policy not in {"ACCEPT"}:
                current.append(f"{chain} {policy}")
        elif line.startswith("-"):
            current.append(line)
    lines = []
    for table in sorted(tables):
        chains = sorted(line for line in tables[table] if line.startswith(":"))
        rules = sorted((line for line in tables[table] if line.startswith("-")), key=lambda line: line.split()[1])
        lines += [table, *chains, *rules] if chains or rules else []
    return tuple(lines)


def _native(objects: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return nft's own tables, one JSON object a line, without handles and counters."""
    theirs = {
        (one["chain"]["family"], one["chain"]["table"])
        for one in objects
        if "chain" in one and _of_iptables(one, one["chain"]["family"])
    }
    lines = []
    for entry in objects:
        ((kind, body),) = entry.items()
        place = (body.get("family"), body.get("name" if kind == "table" else "table"))
        if kind == "metainfo" or place in theirs:
            continue
        cleaned = {key: _without_counters(value) for key, value in body.items() if key != "handle"}
        lines.append(json.dumps({kind: cleaned}, sort_keys=True))
    return tuple(lines)


def _without_counters(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"counter"} and isinstance(value["counter"], dict):
            return {"counter": None}
        return {key: _without_counters(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_counters(inner) for inner in value]
    return value
