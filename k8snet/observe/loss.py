"""Why a packet went no further, out of what the kernel holds: never a guess.

Where there is no evidence for a reason, it is said what has been looked at and is not the reason.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import dpkt

from k8snet.linux import link
from k8snet.observe.sighting import Sight, address_of

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = ["after", "before", "within"]

UNANSWERED = {"FAILED", "INCOMPLETE"}
INSIDE = (
    "it came inside VXLAN, and the kernel does not say what became of the outer packet. A rule that drops UDP to port "
    "8472, and a VXLAN interface that does not take it, are not ruled out."
)
COUNTED = re.compile(r"\[(\d+):\d+\] (-A \S+ .*-j (?:DROP|REJECT)\b.*)")


def before(netns: Netns, target: str) -> str:
    """Return why a packet to *target* was seen by no interface of its own netns."""
    way = netns.route_to(target)
    if "error" in way:
        return f"there is no route to {target} ({way['error']})."
    device = str(way.get("dev"))
    if not _is_up(netns, device):
        return f"{device}, which the route names, is down."
    return _unanswered(netns, str(way.get("gateway", target))) or "no interface saw it, and no rule dropped it."


def after(netns: Netns, sight: Sight) -> str:
    """Return why nobody received what an interface of *netns* has sent."""
    interface, target = sight.packet.interface, sight.packet.data[:6]
    mac = ":".join(f"{one:02x}" for one in target)
    remotes = [one.remote for one in netns.fdb() if one.port == interface and one.mac == mac and one.remote]
    if remotes:
        reason = _unanswered(netns, remotes[0])
        return f"{interface} sends it inside VXLAN to {remotes[0]}" + (f", and {reason}" if reason else ".")
    return f"{interface} sent it, and nobody received it."


def within(netns: Netns, sight: Sight, *, traced: bool) -> str:
    """Return why *netns* kept a packet that *sight* shows coming in.

    Args:
        traced: whether its rules of nf_tables would have told of it.
    """
    interface = sight.packet.interface
    if sight.outer:
        return INSIDE
    if wrong := _for_somebody_else(netns, sight):
        return wrong
    if dropped := _legacy(netns):
        return f"iptables-legacy, which tells of no packet, has a rule that has counted {dropped}"
    source, target = address_of(sight.ip.src), address_of(sight.ip.dst)
    way = netns.route_to(target, source=source, iif=interface)
    version, all_ = ("ipv6", "all.forwarding") if ":" in target else ("ipv4", "all.forwarding")
    if netns.route_to(target).get("type") != "local" and netns.sysctl(f"net.{version}.conf.{all_}") == "0":
        return f"it does not forward packets: net.{version}.conf.{all_} is 0."
    if "error" in way:
        back = netns.route_to(source).get("dev")
        settings = (f"net.ipv4.conf.{one}.rp_filter" for one in ("all", interface.replace(".", "/")))
        if ":" not in target and max(int(netns.sysctl(one)) for one in settings) == 1 and back != interface:
            return f"rp_filter is strict, and the way back to {source} is by {back}."
        return f"there is no way on to {target} ({way['error']})."
    if reason := _unanswered(netns, str(way.get("gateway", target))):
        return reason
    known = ["a rule of nf_tables"] if traced else []
    looked = [*known, "a rule of iptables-legacy", "forwarding", "a missing route", "rp_filter", "a silent neighbour"]
    return f"it gives no reason. It is not {', not '.join(looked)}."


def _is_up(netns: Netns, interface: str) -> bool:
    def body(ipr: object) -> bool:
        return any(one.get_attr("IFLA_IFNAME") == interface and one["flags"] & 1 for one in ipr.get_links())  # type: ignore[attr-defined]

    return bool(netns.netlink("list links", body))


def _unanswered(netns: Netns, address: str) -> str:
    """Return that a neighbour does not answer, if it was asked and did not."""
    for one in netns.neighbours():
        if one.address == address and one.state in UNANSWERED:
            return f"{address} does not answer for its MAC address on {one.interface} (neighbour {one.state})."
    return ""


def _for_somebody_else(netns: Netns, sight: Sight) -> str:
    """Return that the frame is for another MAC than the interface's, unless that is a port of a bridge."""
    interface, frame = sight.packet.interface, dpkt.ethernet.Ethernet(sight.packet.data)
    mac = ":".join(f"{one:02x}" for one in frame.dst)
    ports = {one.port for one in netns.fdb()}
    if interface == "lo" or interface in ports or frame.dst[0] & 1 or mac == link.mac_of(netns, interface):
        return ""
    return f"the frame is for {mac}, which is not the MAC of {interface}, so it is not for this netns."


def _legacy(netns: Netns) -> str:
    """Return a rule of iptables-legacy that has dropped or rejected something, with its counter."""
    saved = netns.iptables_save(backend="legacy", counters=True)
    for line in saved.splitlines():
        if (found := COUNTED.match(line)) and int(found[1]):
            return f"{found[1]} packets: {found[2]}"
    for policy in re.finditer(r"^:(\w+) DROP \[(\d+):", saved, re.MULTILINE):
        if int(policy[2]):
            return f"{policy[2]} packets: the policy of {policy[1]} is DROP"
    return ""
