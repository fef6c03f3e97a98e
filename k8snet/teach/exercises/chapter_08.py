"""Exercises of chapter 08: CNI."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from k8snet.teach.exercise import Exercise
from k8snet.teach.grade import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from k8snet.observe.snapshot import Snapshot
    from k8snet.observe.values import Interface
    from k8snet.teach.grade import Prober

__all__ = ["EXERCISES"]

NODE, CLIENT = "node1", "outside"
GATEWAY = "10.244.1.1"
PUBLISHED = "203.0.113.2"  # the node's address on its LAN


def _eth0(network: Snapshot, name: str) -> Interface | None:
    """Return a container's eth0."""
    return network[name].interface("eth0") if name in network else None


def _wired(network: Snapshot, name: str, subnet: str, bridge: str) -> tuple[str, list[Finding]]:
    """Return the address that a container has in *subnet*, if any, and what is to be said about its cable."""
    eth0 = _eth0(network, name)
    if eth0 is None:
        return "", [Finding(False, f"there is no eth0 in {name}: no plugin has been called for it, or its ADD failed")]
    inside = ipaddress.ip_network(subnet)
    found = [one for one in eth0.addresses if ipaddress.ip_interface(one).ip in inside]
    here = Finding(bool(found), f"{name} has {found[0]}" if found else f"eth0 of {name} has no address of {subnet}")
    peer = eth0.peer
    port = network[NODE].interface(peer.interface) if peer and peer.netns == NODE else None
    plugged = port is not None and port.master == bridge
    cable = Finding(plugged, f"its cable is {'a' if plugged else 'no'} port of {bridge} on {NODE}")
    return (found[0] if found else ""), [here, cable]


# -- a fixed address -----------------------------------------------------------------------


def _fixed(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    address, findings = _wired(network, "db", "10.244.1.0/24", "cni0")
    yield from findings
    if not address:
        return
    right = address == "10.244.1.50/24"
    yield Finding(right, "that is the address asked for" if right else "but 10.244.1.50/24 was asked for")
    known = any(line.startswith("-A POSTROUTING -s 10.244.1.50/32 ") for line in network[NODE].lines("iptables-nft"))
    text = "`bridge` has a rule for it" if known else "but `bridge` has no rule for 10.244.1.50: who gave it?"
    yield Finding(known, text)
    default = [one for one in network["db"].routes if one.destination == "default"]
    way = bool(default) and default[0].via == GATEWAY
    yield Finding(way, f"db has {'its' if way else 'no'} default route via {GATEWAY}")
    met = probe.ping("web", "10.244.1.50")
    yield Finding(met.ok, "web reaches it" if met.ok else f"from web: {met}")


FIXED = Exercise(
    slug="08-fixed-address",
    title="an address on request",
    task=(
        "Attach `db` to `podnet`, as container `db1`, by calling the `bridge` plugin. It must get **10.244.1.50**, "
        "from the plugin and not by a later `ip address`. The configuration is in `/run/cni/bridge.json`."
    ),
    hints=(
        "host-local takes an address that is asked for. Who may ask: the environment, or the configuration?",
        'In the configuration it is `"args": {"cni": {"ips": ["10.244.1.50"]}}`, on the level of `"ipam"`.',
        'In the environment it is `CNI_ARGS="IgnoreUnknown=1;IP=10.244.1.50"`. A failed attempt wants a DEL first.',
    ),
    check=_fixed,
)


# -- a configuration list ------------------------------------------------------------------


def _conflist(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    address, findings = _wired(network, "shop", "10.244.2.0/24", "shop0")
    yield from findings
    if not address:
        return
    rules = network[NODE].lines("iptables-nft")
    published = any(line.startswith("-A CNI-DN-") and "--dport 8080 " in line for line in rules)
    yield Finding(published, f"portmap has {'a' if published else 'no'} rule for port 8080")
    default = any(one.destination == "default" for one in network["shop"].routes)
    yield Finding(default, "shop has a default route" if default else "shop has no route by which to answer strangers")
    if any((one.protocol, one.port) == ("tcp", 80) for one in network["shop"].sockets):
        answer = probe.connect(CLIENT, PUBLISHED, 8080)
    else:
        with probe.listen("shop", 80):
            answer = probe.connect(CLIENT, PUBLISHED, 8080)
    text = f"{CLIENT} gets in at {PUBLISHED}:8080" if answer.outcome == "ok" else f"from {CLIENT}: {answer}"
    yield Finding(answer.outcome == "ok", text)


CONFLIST = Exercise(
    slug="08-conflist",
    title="a network that publishes nothing",
    task=(
        "The configuration list above was copied together. It cannot even be read; once it can, nothing complains, "
        "and still port 8080 of the node leads nowhere. Mend it, and attach `shop` with it, so that `outside` reaches "
        "port 80 of `shop` at `203.0.113.2:8080`."
    ),
    hints=(
        "`load()` names the line of the first mistake. The other two are keys that are missing, not wrong.",
        "Print what portmap gets on its standard input. Where are the ports? And which route has `shop`?",
        (
            '`"capabilities": {"portMappings": true}` for portmap, `"isDefaultGateway": true` for bridge. '
            "Then `runtime.delete()` what you attached, and `runtime.add()` it again."
        ),
    ),
    check=_conflist,
)


# -- leaked leases -------------------------------------------------------------------------


def _leak(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    kept, findings = _wired(network, "keeper", "10.99.0.0/29", "jobs0")
    well = bool(kept) and all(one.ok for one in findings) and probe.ping("keeper", "10.99.0.1").ok
    yield Finding(well, "keeper is as it was, and works" if well else "keeper has lost its network; only the dead may")
    late, findings = _wired(network, "late", "10.99.0.0/29", "jobs0")
    yield from findings
    if not late:
        return
    size = late.endswith("/29")
    yield Finding(size, "the network is still a /29" if size else "the network was made larger; that is not asked")
    own = late != kept
    yield Finding(own, "it is late's own" if own else "late and keeper share an address: no lease was free")
    met = probe.ping("late", "10.99.0.1")
    yield Finding(met.ok, "late reaches its gateway" if met.ok else f"from late: {met}")


LEAK = Exercise(
    slug="08-leak",
    title="room for one more",
    task=(
        "The network `jobs`, a /29, hands out no address any more, though `keeper` is the only container that lives. "
        "Free what the dead ones hold, and attach `late`, as container `late`. `keeper` must not notice."
    ),
    hints=(
        "Compare the leases in `/run/cni/networks/jobs` with the containers that there are.",
        "`runtime.gc()` wants to know who stays: pairs of container id and interface.",
        '`runtime.gc(jobs, valid=[("keeper", "eth0")])`, then `runtime.add(jobs, container_id="late", …)`.',
    ),
    check=_leak,
)


# -- a plugin ------------------------------------------------------------------------------


def _plugin(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    address, findings = _wired(network, "guest", "10.244.1.0/24", "cni0")
    yield from findings
    eth0 = _eth0(network, "guest")
    if not address or eth0 is None:
        return
    wanted = "0a:58:" + ":".join(f"{part:02x}" for part in ipaddress.ip_interface(address).ip.packed)
    right = eth0.mac == wanted
    yield Finding(right, f"its MAC is {eth0.mac}" if right else f"its MAC is {eth0.mac}, and should be {wanted}")
    met = probe.ping("guest", GATEWAY)
    yield Finding(met.ok, "it reaches its gateway" if met.ok else f"from guest: {met}")
    seen = probe.ping("web", address.partition("/")[0])
    yield Finding(seen.ok, "web reaches it" if seen.ok else f"from web: {seen}")


PLUGIN = Exercise(
    slug="08-plugin",
    title="a plugin for the second place",
    task=(
        "Some networks derive a pod's MAC from its address: `0a:58:`, and then the four bytes of the IPv4 address in "
        "hex. Write a plugin `/run/cni/bin/mac` that does so, to stand after `bridge` in a list, and attach `guest` to "
        "`podnet` with both, as container `guest1`."
    ),
    hints=(
        "What comes before it in the chain has given the address. In which field does your plugin find it?",
        "`prevResult.ips[0].address`; the interface is `CNI_IFNAME` in `CNI_NETNS`. What does ADD have to print?",
        (
            "`nsenter --net=$CNI_NETNS ip link set dev $CNI_IFNAME address 0a:58:…`, then print prevResult. "
            "On DEL there is nothing to do, and on VERSION it names its versions."
        ),
    ),
    check=_plugin,
)

EXERCISES: tuple[Exercise, ...] = (FIXED, CONFLIST, LEAK, PLUGIN)
