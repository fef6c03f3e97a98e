"""The hand-encoded messages of the batch, read back by pyroute2's decoders."""
from __future__ import annotations

import struct

import pytest
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from k8snet.linux import batch
from k8snet.linux.address import mac_for

CLASSES = {batch.RTM_NEWLINK: ifinfmsg, batch.RTM_NEWADDR: ifaddrmsg, batch.RTM_NEWROUTE: rtmsg}
EVERY_PADDING = [f"veth{'x' * extra}" for extra in range(8)]


def pod(**changes):
    plain = {"netns": "pod1", "port": "veth1", "address": "10.244.1.5/24", "gateway": "10.244.1.1"}
    return batch.Attachment(**{**plain, **changes})


def decoded(data):
    """Return the messages in *data*; each must end where its header says."""
    found = []
    while data:
        length, kind = struct.unpack_from("=IH", data)
        assert length % 4 == 0
        assert length <= len(data)
        message = CLASSES[kind](data[:length])
        message.decode()
        found.append(message)
        data = data[length:]
    return found


def pair(attachment):
    [message] = decoded(batch.pair_message(attachment, node="node1", bridge_index=7, netns_fd=42))
    return message


def flags_of(message):
    return message["header"]["flags"]


@pytest.mark.parametrize("port", EVERY_PADDING)
def test_names_of_any_length_are_padded_to_whole_attributes(port):
    """A byte too few and all that follows is read at the wrong place."""
    message = pair(pod(port=port))
    assert message.get_attr("IFLA_IFNAME") == port
    assert message.get_attr("IFLA_MASTER") == 7


def test_one_message_makes_both_ends_of_the_pair():
    """Name, MAC and place of both, and the node's end up: nothing is left for a second one."""
    message = pair(pod(mtu=1400))
    peer = message.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA", "VETH_INFO_PEER")
    assert message.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "veth"
    assert (message["flags"], message["change"]) == (1, 1)
    assert message.get_attr("IFLA_ADDRESS") == mac_for("node1", "veth1")
    assert peer.get_attr("IFLA_IFNAME") == "eth0"
    assert peer.get_attr("IFLA_ADDRESS") == mac_for("pod1", "eth0")
    assert peer.get_attr("IFLA_NET_NS_FD") == 42
    assert [end.get_attr("IFLA_MTU") for end in (message, peer)] == [1400, 1400]


def test_no_mtu_is_sent_unless_asked_for():
    """0 would be an MTU too, and a refused one."""
    message = pair(pod())
    peer = message.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA", "VETH_INFO_PEER")
    assert [end.get_attr("IFLA_MTU") for end in (message, peer)] == [None, None]


def test_the_inside_of_a_pod_takes_four_messages_and_one_acknowledgement():
    """Errors are told anyhow, so that only the last needs to say that all is done."""
    messages = decoded(batch.inside_messages(pod(), index=2))
    assert [message["header"]["type"] for message in messages] == [16, 16, 20, 24]
    assert [bool(flags_of(message) & batch.NLM_F_ACK) for message in messages] == [False] * 3 + [True]
    assert [message["index"] for message in messages[:3]] == [1, 2, 2]


def test_without_a_gateway_the_address_is_the_last_message():
    """Somebody must be acknowledged, or the reader of answers waits for ever."""
    *_, last = decoded(batch.inside_messages(pod(gateway=None), index=2))
    assert last["header"]["type"] == batch.RTM_NEWADDR
    assert flags_of(last) & batch.NLM_F_ACK


@pytest.mark.parametrize(
    ("address", "broadcast"),
    [("10.244.1.5/24", "10.244.1.255"), ("10.0.0.2/31", None), ("10.0.0.2/32", None)],
)
def test_an_ipv4_address_has_a_broadcast_address_where_its_network_has_one(address, broadcast):
    """As `brd +` has it."""
    *_, message = decoded(batch.inside_messages(pod(address=address, gateway=None), index=2))
    assert message.get_attr("IFA_LOCAL") == address.partition("/")[0]
    assert message.get_attr("IFA_BROADCAST") == broadcast


def test_an_ipv6_address_is_usable_at_once():
    """With duplicate address detection the first packets of a lab would be lost."""
    both = pod(address="fd00:10:244:1::5/64", gateway="fd00:10:244:1::1")
    address, route = decoded(batch.inside_messages(both, index=2))[2:]
    assert (address["family"], address["prefixlen"], address["flags"]) == (10, 64, 2)
    assert (route["family"], route["dst_len"]) == (10, 0)
    assert route.get_attr("RTA_GATEWAY") == "fd00:10:244:1::1"


def test_an_error_among_several_answers_is_seen():
    """The kernel goes on after a message it refused, and acknowledges a later one."""
    answers = [
        struct.pack("=IHHIIi", 20 + len(echo), batch.NLMSG_ERROR, 0, 0, 0, code) + echo
        for code, echo in ((-17, b"0123456789abcdef0123"), (0, b"0123456789abcdef"))
    ]
    assert list(batch.errors_in(b"".join(answers))) == [17, 0]
