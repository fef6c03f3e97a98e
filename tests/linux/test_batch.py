"""The batch of pods: equal to what is made one by one, all or nothing, and gone at once."""
from __future__ import annotations

import socket
import threading
from functools import partial
from pathlib import Path

import pytest

from k8snet.errors import (
    InvalidAddress,
    InvalidInput,
    InvalidName,
    KernelRefused,
    NameTaken,
    NotFound,
)
from k8snet.lab import Attachment, End, Lab
from k8snet.linux import batch, nsfs
from k8snet.linux.run import wait_until

COUNTED = {
    "IFLA_STATS", "IFLA_STATS64", "IFLA_AF_SPEC", "IFLA_LINK", "IFLA_INFO_SLAVE_DATA",
    "IFLA_LINK_NETNSID",  # a number for the peer's netns, taken anew while the last one's cleanup runs
    "IFA_CACHEINFO", "RTA_CACHEINFO", "RTA_OIF",
}  # fmt: skip


@pytest.fixture(params=[False, True], ids=["ipv4", "dual-stack"])
def ipv6(request):
    return request.param


@pytest.fixture
def lab(request):
    wanted = request.getfixturevalue("ipv6") if "ipv6" in request.fixturenames else False
    with Lab("batch", ipv6=wanted) as opened:
        yield opened


@pytest.fixture
def node(lab):
    made = lab.netns("node1", forward=True)
    made.add_bridge("cni0", address="10.244.1.1/24")
    if lab.ipv6:
        made.add_address("cni0", "fd00:10:244:1::1/64")
    return made


def index_of(node, name="cni0"):
    return node.inside(socket.if_nametoindex, name)


def pods(count, *, first=0):
    return [
        Attachment(
            netns=f"pod{n}", port=f"veth{n}", address=f"10.244.1.{n + 10}/24", gateway="10.244.1.1"
        )
        for n in range(first, first + count)
    ]


def ports(node):
    return {name for _, name in node.inside(socket.if_nameindex)} - {"lo", "cni0"}


def flat(message):
    """Return what a netlink message says, without what is counted, and indexes, which count up."""
    attributes = {
        name: flat(value) if isinstance(value, dict) and "attrs" in value else value
        for name, value in message["attrs"] if name not in COUNTED
    }  # fmt: skip
    fields = {
        key: value for key, value in message.items()
        if key not in {"index", "ifi_index"} and isinstance(value, (int, str))
    }  # fmt: skip
    return {**attributes, **fields}


def described(netns, *, interface):
    """Return an interface, and all addresses and routes of its netns, as plain values."""

    def ask(ipr):
        links = [flat(link) for link in ipr.get_links(ifname=interface)]
        addresses = [flat(address) for address in ipr.get_addr()]
        routes = [flat(route) for family in (2, 10) for route in ipr.get_routes(family=family)]
        return links, addresses, sorted(routes, key=repr)

    return netns.netlink("look", ask)


def settled(*all_netns):
    """Links come up, and IPv6 asks around for its link-local addresses, a moment later."""
    pending = ("-6 address show tentative", "link show up type veth")
    words = [netns.run("ip", *what.split()).stdout for netns in all_netns for what in pending]
    return not any(words[0::2]) and all("state UP" in text for text in words[1::2])


def settings(netns):
    keys = [*batch.SETTINGS, *batch.IPV6_ON]
    per_interface = [f"net/ipv{v}/conf/{i}/{k}" for i in ("lo", "eth0")
                     for v, k in ((4, "rp_filter"), (4, "forwarding"), (6, "disable_ipv6"))]  # fmt: skip
    return {key: netns.sysctl(key) for key in (*keys, *per_interface)}


def one_by_one(lab, node, wanted):
    netns = lab.netns(wanted.netns)
    lab.veth(
        End(netns=node, name=wanted.port, master="cni0", mtu=wanted.mtu),
        End(netns=netns, name=wanted.interface, address=wanted.address, mtu=wanted.mtu),
    )
    netns.add_route("default", via=wanted.gateway)
    return netns


@pytest.mark.parametrize("mtu", [None, 1400])
def test_a_batch_makes_what_the_calls_one_by_one_make(lab, node, ipv6, mtu):
    """Else a lab would behave in one way when small and in another when large."""
    network = "fd00:10:244:1::" if ipv6 else "10.244.1."
    address, gateway = f"{network}5/{64 if ipv6 else 24}", f"{network}1"
    wanted = Attachment(netns="pod", port="veth-pod", address=address, gateway=gateway, mtu=mtu)
    seen = []
    for make in (one_by_one, lambda *_: lab.attach_all(node, "cni0", [wanted])):
        make(lab, node, wanted)
        pod = lab["pod"]
        wait_until(partial(settled, node, pod), what="links up, no address tentative")
        seen.append((
            described(pod, interface="eth0"), settings(pod),
            described(node, interface="veth-pod"), pod.ping(gateway).ok,
        ))  # fmt: skip
        lab.remove("pod")
        wait_until(lambda: not ports(node), what="the port goes with its pod")
    assert seen[0] == seen[1]
    assert seen[1][-1] is True


def test_every_pod_of_a_batch_answers_the_node(lab, node):
    """The bridge carries frames to each port."""
    lab.attach_all(node, "cni0", pods(20))
    assert [node.ping(f"10.244.1.{n + 10}").ok for n in range(20)] == [True] * 20


def test_no_file_stays_open_for_a_pod(lab, node):
    """A netns held by a forgotten file would outlive its name, and 1000 pods the limit."""
    lab.attach_all(node, "cni0", pods(2))
    before = len(list(Path("/proc/self/fd").iterdir()))
    lab.attach_all(node, "cni0", pods(30, first=2))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


WRONG = [
    ({"netns": "a/b"}, InvalidName, "netns name"),
    ({"port": "a-name-of-17-bytes"}, InvalidName, "at most 15"),
    ({"interface": ""}, InvalidName, "needs a name"),
    ({"interface": "lo"}, NameTaken, "has an interface 'lo' from the start"),
    ({"address": "10.244.1.7"}, InvalidAddress, "no prefix length"),
    ({"address": "10.244.1.0/24"}, InvalidAddress, "the network's own address"),
    ({"address": "fd00::5/64", "gateway": None}, InvalidAddress, "IPv6 is off"),
    ({"address": "10.244.1.10/24"}, InvalidAddress, "in the batch twice"),
    ({"gateway": "10.9.9.9"}, InvalidAddress, "not in its network"),
    ({"gateway": "fd00::1"}, InvalidAddress, "not in its network"),
    ({"gateway": "10.244.1.99"}, InvalidAddress, "and its own address"),
    ({"gateway": "nowhere"}, InvalidAddress, "not an IPv4 or IPv6 address"),
    ({"mtu": 20}, InvalidInput, "MTU 20"),
    ({"netns": "pod0"}, NameTaken, "netns 'pod0' is in the batch twice"),
    ({"port": "veth0"}, NameTaken, "port 'veth0' is in the batch twice"),
    ({"netns": "node1"}, NameTaken, "there is a netns 'node1' already"),
    ({"port": "cni0"}, NameTaken, "there is an interface 'cni0' in netns node1 already"),
]


@pytest.mark.parametrize(("changes", "error", "words"), WRONG, ids=[words for *_, words in WRONG])
def test_one_bad_attachment_leaves_the_lab_as_it_was(lab, node, changes, error, words):
    """Half of a batch would be worse than none: all input is checked before anything is made."""
    plain = {
        "netns": "bad", "port": "veth-bad", "address": "10.244.1.99/24", "gateway": "10.244.1.1",
    }  # fmt: skip
    with pytest.raises(error, match=words):
        lab.attach_all(node, "cni0", [*pods(3), Attachment(**{**plain, **changes})])
    assert (nsfs.names(), ports(node)) == (["node1"], set())


def test_a_bridge_that_is_not_there_is_named_before_anything_is_made(node):
    """The kernel would say no more than 'no such device'."""
    with pytest.raises(NotFound, match="node1 has no interface 4711"):
        batch.attach_all(node.fd, "node1", 4711, pods(3))
    assert nsfs.names() == ["node1"]


def test_a_refusal_midway_names_the_pod_and_undoes_what_was_made(node):
    """The interface lo is no bridge, which only the kernel knows at this point."""
    with pytest.raises(KernelRefused, match="make veth0 in netns node1 for netns pod0"):
        batch.attach_all(node.fd, "node1", index_of(node, "lo"), pods(3))
    assert (nsfs.names(), ports(node)) == (["node1"], set())


def test_a_refusal_late_in_the_batch_undoes_all_of_it(node, monkeypatch):
    """A pod whose address the kernel will not take, after 30 that were fine."""
    real = batch.inside_messages

    def poisoned(pod, *, index):
        return real(pod, index=999 if pod.netns == "pod30" else index)

    monkeypatch.setattr(batch, "inside_messages", poisoned)
    with pytest.raises(KernelRefused, match="configure eth0 in netns pod30"):
        batch.attach_all(node.fd, "node1", index_of(node), pods(40))
    assert (nsfs.names(), ports(node)) == (["node1"], set())


def test_running_out_of_netns_says_so_and_undoes_the_batch(node):
    """The kernel's own words would be 'no space left on device'."""
    limit = Path("/proc/sys/user/max_net_namespaces")
    batch.attach_all(node.fd, "node1", index_of(node), pods(1, first=50))  # looks at a fresh one
    before = limit.read_text()
    limit.write_text("10")
    try:
        with pytest.raises(KernelRefused, match="as many as /proc/sys/user/max_net_namespaces allows"):
            batch.attach_all(node.fd, "node1", index_of(node), pods(40))
    finally:
        limit.write_text(before)
    assert (nsfs.names(), ports(node)) == (["node1", "pod50"], {"veth50"})
    batch.drop_all(["pod50"])


def test_an_interrupt_undoes_the_batch_before_it_is_raised(node):
    """Ctrl-C in a notebook; the callback that says how far we are is as good a place."""

    def interrupt(made):
        if made:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch.attach_all(node.fd, "node1", index_of(node), pods(200), progress=interrupt)
    assert (nsfs.names(), ports(node)) == (["node1"], set())


def test_an_interrupt_after_the_last_pod_undoes_the_batch_too(node, monkeypatch):
    """The thread is done, and the caller hears of the interrupt only."""

    def late(future):
        batch.wait([future])
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "_finished", late)
    with pytest.raises(KeyboardInterrupt):
        batch.attach_all(node.fd, "node1", index_of(node), pods(3))
    assert nsfs.names() == ["node1"]


def test_progress_is_told_in_the_callers_thread_and_ends_with_all(node):
    """A progress bar in a notebook belongs to the thread of its cell."""
    told = []
    batch.attach_all(
        node.fd, "node1", index_of(node), pods(5),
        progress=lambda made: told.append((made, threading.current_thread())),
    )  # fmt: skip
    assert told[-1] == (5, threading.current_thread())
    batch.drop_all([f"pod{n}" for n in range(5)])


def test_dropping_takes_the_ports_from_the_bridge_with_their_pods(node):
    """The veth pair has one life: its end on the node goes with the netns of the other."""
    batch.attach_all(node.fd, "node1", index_of(node), pods(50))
    batch.drop_all([f"pod{n}" for n in range(50)])
    assert nsfs.names() == ["node1"]
    wait_until(lambda: not ports(node), what="the bridge has lost its ports")


def test_dropping_what_is_not_there_names_it_and_drops_the_others(node):
    """A lab that closes must get rid of all it can."""
    batch.attach_all(node.fd, "node1", index_of(node), pods(2))
    with pytest.raises(NotFound, match="no netns ghost"):
        batch.drop_all(["pod0", "ghost", "pod1"])
    assert nsfs.names() == ["node1"]
