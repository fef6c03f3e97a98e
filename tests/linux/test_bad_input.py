"""Bad input gets one clear error, and the network is as it was."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from k8snet import Attachment, End
from k8snet import errors as e


@pytest.fixture
def network(lab):
    """A node with a bridge, a pod on it, and a second netns."""
    node, pod, other = lab.netns("node", forward=True), lab.netns("pod"), lab.netns("other")
    node.add_bridge("br0", address="10.1.0.1/24")
    lab.veth(End(netns=node, name="veth1", master="br0"), End(netns=pod, name="eth0", address="10.1.0.2/24"))
    pod.add_route("default", via="10.1.0.1")
    return Network(lab, node, pod, other)


@dataclass(frozen=True)
class Network:
    lab: object
    node: object
    pod: object
    other: object


def veth(n, **change):
    end = {"netns": n.node, "name": "x0"} | change
    n.lab.veth(End(**end), End(netns=n.other, name="y0"))


def attach(n, *attachments):
    n.lab.attach_all(n.node, "br0", [Attachment(**one) for one in attachments])


GOOD = {"netns": "new1", "port": "p1", "address": "10.1.0.7/24"}

CASES = {
    # name: (the call, the error, what its message says)
    "a netns name with a slash": (lambda n: n.lab.netns("a/b"), e.InvalidName, "netns name 'a/b'"),
    "an empty netns name": (lambda n: n.lab.netns(""), e.InvalidName, "1 to 63 letters"),
    "a netns name that leads upwards": (lambda n: n.lab.netns(".."), e.InvalidName, "not '.' or '-' at the start"),
    "a netns name that is taken": (lambda n: n.lab.netns("pod"), e.NameTaken, r"lab\['pod'\] is it"),
    "the name of the host netns": (lambda n: n.lab.netns("host"), e.NameTaken, r"lab\['host'\] is it"),
    "a netns that is not there": (lambda n: n.lab["nobody"], e.NotFound, "there are: node, other, pod"),
    "an interface name of 16 bytes": (
        lambda n: n.node.add_bridge("bridge-number-16"), e.InvalidName, "has 16 bytes; Linux takes at most 15"),
    "an interface name with a slash": (lambda n: n.node.add_bridge("br/0"), e.InvalidName, "no '/'"),
    "an interface name with a space": (lambda n: n.node.add_bridge("br 0"), e.InvalidName, "white space"),
    "an interface name that looks like an option": (lambda n: n.node.add_bridge("-br"), e.InvalidName, "no '-'"),
    "a bridge whose name is taken": (lambda n: n.node.add_bridge("br0"), e.NameTaken, "'br0' in netns node already"),
    "a bridge address without prefix length": (
        lambda n: n.node.add_bridge("br1", address="10.2.0.1"), e.InvalidAddress, "has no prefix length"),
    "the network's own address": (
        lambda n: n.pod.add_address("eth0", "10.2.0.0/24"), e.InvalidAddress, "first usable one is 10.2.0.1"),
    "the broadcast address": (
        lambda n: n.pod.add_address("eth0", "10.2.0.255/24"), e.InvalidAddress, "last usable one is 10.2.0.254"),
    "a multicast address": (lambda n: n.pod.add_address("eth0", "224.0.0.1/24"), e.InvalidAddress, "multicast"),
    "an octet over 255": (lambda n: n.pod.add_address("eth0", "10.0.0.300/24"), e.InvalidAddress, "10.0.0.300"),
    "a prefix length over 32": (lambda n: n.pod.add_address("eth0", "10.0.0.1/33"), e.InvalidAddress, "10.0.0.1/33"),
    "an address that is there already": (
        lambda n: n.pod.add_address("eth0", "10.1.0.2/24"), e.InvalidAddress, "has 10.1.0.2/24 already"),
    "an address on an interface that is not there": (
        lambda n: n.pod.add_address("eth1", "10.2.0.1/24"), e.NotFound, "'eth1' in netns pod; there are: lo, eth0"),
    "taking an address that is not there": (
        lambda n: n.pod.delete_address("eth0", "10.9.0.1/24"), e.NotFound, "does not have 10.9.0.1/24"),
    "a route to a host address with a prefix": (
        lambda n: n.pod.add_route("10.9.0.1/24", via="10.1.0.1"), e.InvalidAddress, "did you mean 10.9.0.0/24"),
    "a route without a way": (lambda n: n.pod.add_route("10.9.0.0/24"), e.InvalidInput, "needs via=ADDRESS"),
    "a next hop on no network": (
        lambda n: n.pod.add_route("10.9.0.0/24", via="192.0.2.1"), e.InvalidAddress, "192.0.2.1 is on no network"),
    "a next hop of the other family": (
        lambda n: n.pod.add_route("10.9.0.0/24", via="fd00::1"), e.InvalidAddress, "other address family"),
    "a second default route": (
        lambda n: n.pod.add_route("default", via="10.1.0.3"), e.NameTaken, "a route to default already"),
    "an unknown type of route": (
        lambda n: n.pod.add_route("10.9.0.0/24", kind="teapot"), e.InvalidInput, "one of unicast, blackhole"),
    "removing a route that is not there": (
        lambda n: n.pod.delete_route("10.9.0.0/24"), e.NotFound, "no route to 10.9.0.0/24"),
    "an MTU of 0": (lambda n: n.pod.set_mtu("eth0", 0), e.InvalidInput, "from 68 to 65535"),
    "an MTU that is text": (lambda n: n.pod.set_mtu("eth0", "1500"), e.InvalidInput, "not a whole number"),
    "a MAC of five octets": (
        lambda n: n.pod.set_mac("eth0", "02:00:00:00:01"), e.InvalidAddress, "not a MAC; write it as in"),
    "a multicast MAC": (lambda n: n.pod.set_mac("eth0", "01:00:5e:00:00:01"), e.InvalidAddress, "multicast MAC"),
    "enslaving to what is no bridge": (
        lambda n: n.node.enslave("veth1", "lo"), e.InvalidInput, "lo in netns node is a plain interface, not a bridge"),
    "a name that another interface has": (lambda n: n.node.rename("veth1", "br0"), e.NameTaken, "'br0'"),
    "moving onto a name that is taken": (
        lambda n: n.node.move("veth1", n.pod.add_bridge("veth1") or n.pod), e.NameTaken, "'veth1' in netns pod"),
    "a veth with the same name twice": (
        lambda n: n.lab.veth(End(netns=n.pod, name="a"), End(netns=n.pod, name="a")), e.NameTaken, "both ends"),
    "a veth end with a bad address": (lambda n: veth(n, address="10.0.0.1"), e.InvalidAddress, "no prefix length"),
    "a veth end with a bad MAC": (lambda n: veth(n, mac="zz"), e.InvalidAddress, "'zz' is not a MAC"),
    "a veth end on a bridge that is not there": (lambda n: veth(n, master="br9"), e.NotFound, "'br9'"),
    "a veth end with a name that is taken": (lambda n: veth(n, name="br0"), e.NameTaken, "'br0' in netns node"),
    "a VXLAN number of 25 bits": (
        lambda n: n.node.add_vxlan("vx0", vni=2**24, local="10.1.0.1"), e.InvalidInput, "from 0 to 16777215"),
    "a VXLAN from no address": (
        lambda n: n.node.add_vxlan("vx0", vni=1, local="here"), e.InvalidAddress, "'here' is not an IPv4 or IPv6"),
    "a VXLAN over a device that is not there": (
        lambda n: n.node.add_vxlan("vx0", vni=1, local="10.1.0.1", device="eth7"), e.NotFound, "eth7"),
    "an unknown macvlan mode": (
        lambda n: n.pod.add_macvlan("mv", parent="eth0", mode="loud"), e.InvalidInput, "one of bridge, private"),
    "a macvlan on nothing": (lambda n: n.pod.add_macvlan("mv", parent="eth9"), e.NotFound, "eth9"),
    "a neighbour without a MAC": (
        lambda n: n.pod.add_neighbour("10.1.0.9", interface="eth0", mac=""), e.InvalidAddress, "not a MAC"),
    "forgetting a neighbour that nobody knows": (
        lambda n: n.pod.delete_neighbour("10.1.0.9", interface="eth0"), e.NotFound, "knows no neighbour"),
    "a setting of the whole machine": (
        lambda n: n.pod.set_sysctl("kernel.hostname", "x"), e.InvalidInput, "only settings of a netns"),
    "a setting that leads out of its folder": (
        lambda n: n.pod.set_sysctl("net/../vm/drop_caches", 1), e.InvalidInput, "only settings of a netns"),
    "a setting that is not there": (lambda n: n.pod.sysctl("net.ipv4.teapot"), e.NotFound, "net.ipv4.teapot"),
    "an unknown iptables chain": (
        lambda n: n.node.iptables("-A NOWHERE -j ACCEPT"), e.CommandFailed, "in netns node ended with"),
    "an unknown iptables backend": (
        lambda n: n.node.iptables("-A INPUT -j DROP", backend="pf"), e.InvalidInput, "one of 'nft', 'legacy'"),
    "an iptables rule with an open quote": (
        lambda n: n.node.iptables("-A INPUT -m comment --comment 'x"), e.InvalidInput, "No closing quotation"),
    "an nft script with a mistake": (lambda n: n.node.nft("table inet t { chain"), e.CommandFailed, "syntax error"),
    "pinging a name": (lambda n: n.pod.ping("web"), e.InvalidAddress, "'web' is not an IPv4 or IPv6 address"),
    "pinging a network": (lambda n: n.pod.ping("10.1.0.0/24"), e.InvalidAddress, "leave the prefix length out"),
    "a time-out below zero": (lambda n: n.pod.ping("10.1.0.1", timeout_s=-1), e.InvalidInput, "seconds above 0"),
    "port 0": (lambda n: n.pod.connect("10.1.0.1", 0), e.InvalidInput, "port 0 is not a whole number from 1 to 65535"),
    "an unknown protocol": (
        lambda n: n.pod.connect("10.1.0.1", 80, protocol="sctp"), e.InvalidInput, "'tcp' or 'udp'"),
    "a URL of another scheme": (lambda n: n.pod.fetch("https://10.1.0.1/"), e.InvalidInput, "only http://"),
    "a URL with a bad port": (lambda n: n.pod.fetch("http://10.1.0.1:99999/"), e.InvalidInput, "99999"),
    "listening on an address of others": (
        lambda n: n.pod.listen(80, address="192.0.2.1"), e.InvalidAddress, "does not have the address"),
    "an nginx page that breaks its configuration": (
        lambda n: n.pod.nginx(body='"; evil'), e.InvalidInput, "no \", \\$, backslash or line break"),
    "a program that is not installed": (
        lambda n: n.pod.run("no-such-program"), e.ProgramMissing, "apt-get install no-such-program"),
    "many netns, one with a bad address": (
        lambda n: attach(n, GOOD, {"netns": "new2", "port": "p2", "address": "10.1.0.8"}),
        e.InvalidAddress, "10.1.0.8"),
    "many netns, two of one name": (lambda n: attach(n, GOOD, GOOD | {"port": "p2"}), e.NameTaken, "new1"),
    "many netns, one with a port that is taken": (
        lambda n: attach(n, GOOD, {"netns": "new2", "port": "veth1", "address": "10.1.0.8/24"}), e.NameTaken, "veth1"),
    "many netns on a bridge that is not there": (
        lambda n: n.lab.attach_all(n.node, "br7", [Attachment(**GOOD)]), e.NotFound, "br7"),
    "a diagram of a netns that is not there": (lambda n: n.lab.diagram(only=["x"]), e.NotFound, "no netns 'x'"),
    "a diagram from left to nowhere": (lambda n: n.lab.diagram(direction="UP"), e.InvalidInput, "'LR' or 'TB'"),
    "a path over an interface that is not there": (
        lambda n: n.lab.diagram(path=["pod/eth9"]), e.NotFound, "no interface 'eth9' in netns pod"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_and_changes_nothing(network, case):
    call, error, message = CASES[case]
    before, typed = network.lab.snapshot(), len(network.lab.transcript)
    with pytest.raises(error, match=message) as caught:
        call(network)
    assert isinstance(caught.value, e.K8snetError)
    after = network.lab.snapshot()
    if case == "moving onto a name that is taken":  # which had to make the name first
        network.pod.delete_link("veth1")
        after = network.lab.snapshot()
    else:
        assert len(network.lab.transcript) == typed
    assert after == before, before.diff(after)
