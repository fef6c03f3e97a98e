"""k8snet with its hand-encoded messages replaced: the same ones, encoded by pyroute2.

The difference to k8snet_lab is what the encoding by hand buys.
"""
from __future__ import annotations

from typing import Any

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from benchmarks.contenders.k8snet_lab import K8snet
from benchmarks.play import play
from k8snet.lab import Attachment
from k8snet.linux import address as check
from k8snet.linux import batch


def encoded(message: Any, kind: int, options: int, *, attributes: list[Any], **fields: int) -> bytes:
    """Return a message as pyroute2 encodes it."""
    message["header"]["type"] = kind
    message["header"]["flags"] = batch.NLM_F_REQUEST | options
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attributes
    message.encode()
    return bytes(message.data)


def pair_message(pod: Attachment, *, node: str, bridge_index: int, netns_fd: int) -> bytes:
    """Take the place of batch.pair_message()."""
    size = [["IFLA_MTU", pod.mtu]] if pod.mtu else []
    peer = [
        ["IFLA_IFNAME", pod.interface],
        ["IFLA_ADDRESS", check.mac_for(pod.netns, pod.interface)],
        *size,
        ["IFLA_NET_NS_FD", netns_fd],
    ]
    info = [
        ["IFLA_INFO_KIND", "veth"],
        ["IFLA_INFO_DATA", {"attrs": [["VETH_INFO_PEER", {"attrs": peer}]]}],
    ]
    attributes = [
        ["IFLA_IFNAME", pod.port],
        ["IFLA_ADDRESS", check.mac_for(node, pod.port)],
        *size,
        ["IFLA_MASTER", bridge_index],
        ["IFLA_LINKINFO", {"attrs": info}],
    ]
    options = batch.NLM_F_ACK | batch.NLM_F_CREATE_EXCL
    return encoded(ifinfmsg(), batch.RTM_NEWLINK, options, attributes=attributes, flags=1, change=1)


def inside_messages(pod: Attachment, *, index: int) -> bytes:
    """Take the place of batch.inside_messages(), for an IPv4 pod with a gateway."""
    own = check.interface_address(pod.address)
    addresses = [
        ["IFA_LOCAL", str(own.ip)],
        ["IFA_ADDRESS", str(own.ip)],
        ["IFA_BROADCAST", str(own.network.broadcast_address)],
    ]
    new, last = batch.NLM_F_CREATE_EXCL, batch.NLM_F_CREATE_EXCL | batch.NLM_F_ACK
    ups = [
        encoded(ifinfmsg(), batch.RTM_NEWLINK, 0, attributes=[], index=number, flags=1, change=1)
        for number in (batch.LOOPBACK_INDEX, index)
    ]
    address = encoded(
        ifaddrmsg(), batch.RTM_NEWADDR, new, attributes=addresses, family=2,
        prefixlen=own.network.prefixlen, index=index,
    )  # fmt: skip
    route = encoded(
        rtmsg(), batch.RTM_NEWROUTE, last, family=2, table=batch.RT_TABLE_MAIN,
        proto=batch.RTPROT_STATIC, type=batch.RTN_UNICAST,
        attributes=[["RTA_GATEWAY", pod.gateway], ["RTA_OIF", index]],
    )  # fmt: skip
    return b"".join((*ups, address, route))


if __name__ == "__main__":
    batch.pair_message, batch.inside_messages = pair_message, inside_messages
    play(K8snet())
