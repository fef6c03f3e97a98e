"""Many pods at once: the one place where netlink messages are encoded by hand.

A pod here is what the CNI bridge plugin makes: a netns, a veth pair, its node end up
in a bridge, its other end inside, with an address and a default route. Two sends make
one pod. The first goes to the node's netns and makes both ends:

    nlmsghdr    length, RTM_NEWLINK, flags, sequence, port
    ifinfomsg   family, type, index, flags=IFF_UP, change=IFF_UP
    ├── IFLA_IFNAME     the port's name, ended by a zero byte
    ├── IFLA_ADDRESS    its MAC, 6 bytes
    ├── IFLA_MTU        bytes, if asked for
    ├── IFLA_MASTER     index of the bridge
    └── IFLA_LINKINFO
        ├── IFLA_INFO_KIND   "veth"
        └── IFLA_INFO_DATA
            └── VETH_INFO_PEER   an ifinfomsg and attributes of the other end:
                                 IFLA_IFNAME, IFLA_ADDRESS, IFLA_MTU, IFLA_NET_NS_FD

With hairpin, one more finds the port by its name:

    RTM_NEWLINK    ifinfomsg, IFLA_IFNAME, IFLA_LINKINFO > IFLA_INFO_SLAVE_KIND "bridge",
                   IFLA_INFO_SLAVE_DATA > IFLA_BRPORT_MODE 1

The second goes to the pod's netns, four messages in one buffer, and only the last asks
to be acknowledged, since the kernel tells of an error anyhow:

    RTM_NEWLINK    ifinfomsg   lo up
    RTM_NEWLINK    ifinfomsg   eth0 up
    RTM_NEWADDR    ifaddrmsg   IFA_LOCAL, IFA_ADDRESS, IFA_BROADCAST (IPv4)
    RTM_NEWROUTE   rtmsg       RTA_GATEWAY, RTA_OIF, of a default route in table main

A pod with a second address, of the other family, has one more RTM_NEWADDR and RTM_NEWROUTE.

An attribute is its length and type, 2 bytes each, then its value, padded with zeros to
a multiple of 4. Numbers are in the machine's byte order, addresses in the network's.
Sources: man 7 netlink, man 7 rtnetlink, linux/rtnetlink.h, linux/if_link.h,
linux/veth.h. What this buys over pyroute2's encoder is in benchmarks/README.md.
"""
from __future__ import annotations

import ctypes
import errno
import functools
import os
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from k8snet.errors import CapabilityMissing, InvalidAddress, KernelRefused, NameTaken, NotFound
from k8snet.linux import address as check
from k8snet.linux import link, nsfs
from k8snet.linux.run import wait_until

__all__ = ["Attachment", "attach_all", "drop_all"]

PROGRESS_EVERY_S = 0.1
UNDO_TIMEOUT_S = 30.0
HINT = "Run this in a sandbox: k8snet sandbox -- ..."
REPLY_SIZE = 32768  # bytes; an error reply repeats the request that caused it

# man 7 netlink
NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE_EXCL = 0x1, 0x4, 0x600
NLMSG_ERROR = 2
# linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/veth.h
RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE = 16, 20, 24
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO = 1, 3, 4, 10, 18
IFLA_NET_NS_FD = 28
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA, IFLA_BRPORT_MODE = 4, 5, 4
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_F_NODAD = 1, 2, 4, 2
RTA_OIF, RTA_GATEWAY = 4, 5
RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST = 254, 4, 0, 1
IFF_UP = 1
LOOPBACK_INDEX = 1  # of lo in every netns

_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, 2 lengths, tos, table, ..., type, flags
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type
_NUMBER = struct.Struct("=HHI")  # an rtattr whose value is a 32-bit number
_ERROR = struct.Struct("=i")  # nlmsgerr begins with a negative errno; 0 is an ACK

# What Lab.netns() sets in a netns that does not forward.
SETTINGS = {
    "net/bridge/bridge-nf-call-iptables": "0",
    "net/ipv4/ip_forward": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
}
IPV6_OFF = {f"net/ipv6/conf/{which}/disable_ipv6": "1" for which in ("all", "default")}
IPV6_ON = {
    f"net/ipv6/conf/{which}/{key}": "0" for which in ("all", "default") for key in ("disable_ipv6", "accept_dad")
} | {"net/ipv6/conf/all/forwarding": "0"}

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """A netns to make, and how it hangs on a bridge."""

    netns: str  # name of the netns to make
    port: str  # name of the bridge port, on the node's side
    address: str  # with prefix length
    gateway: str | None = None  # next hop of the default route; None makes no route
    interface: str = "eth0"  # name inside the netns
    mtu: int | None = None  # bytes, of both ends; None leaves the kernel's 1500
    second_address: str | None = None  # of the other family, with prefix length
    second_gateway: str | None = None
    hairpin: bool = False  # let the port send a frame back to where it came from

    @property
    def addresses(self) -> list[tuple[str, str | None]]:
        """Each address with its gateway."""
        second = [(self.second_address, self.second_gateway)] if self.second_address else []
        return [(self.address, self.gateway), *second]


# -- what goes over the wire -----------------------------------------------------------


def _attribute(kind: int, value: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def _number(kind: int, value: int) -> bytes:
    return _NUMBER.pack(_NUMBER.size, kind, value)


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | flags, 0, 0) + body


def _end(name: str, owner: str, mtu: int | None) -> bytes:
    """Encode what both ends of a pair have: a name, a MAC, and perhaps an MTU."""
    mac = bytes.fromhex(check.mac_for(owner, name).replace(":", ""))
    size = _number(IFLA_MTU, mtu) if mtu else b""
    return _attribute(IFLA_IFNAME, name.encode() + b"\0") + _attribute(IFLA_ADDRESS, mac) + size


def pair_message(pod: Attachment, *, node: str, bridge_index: int, netns_fd: int) -> bytes:
    """Encode the message that makes the veth pair of *pod*, its node end up in the bridge.

    Args:
        node: name of the node's netns, from which the port's MAC is derived.
    """
    peer = (
        _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        + _end(pod.interface, pod.netns, pod.mtu)
        + _number(IFLA_NET_NS_FD, netns_fd)
    )
    data = _attribute(IFLA_INFO_DATA, _attribute(VETH_INFO_PEER, peer))
    info = _attribute(IFLA_INFO_KIND, b"veth") + data
    body = (
        _LINK.pack(socket.AF_UNSPEC, 0, 0, IFF_UP, IFF_UP)
        + _end(pod.port, node, pod.mtu)
        + _number(IFLA_MASTER, bridge_index)
        + _attribute(IFLA_LINKINFO, info)
    )
    return _message(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE_EXCL, body)


def hairpin_message(pod: Attachment) -> bytes:
    """Encode the message that lets the port of *pod* send a frame back to where it came from."""
    mode = _ATTRIBUTE.pack(_ATTRIBUTE.size + 1, IFLA_BRPORT_MODE) + b"\1\0\0\0"
    info = _attribute(IFLA_INFO_SLAVE_KIND, b"bridge\0") + _attribute(IFLA_INFO_SLAVE_DATA, mode)
    body = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _attribute(IFLA_IFNAME, pod.port.encode() + b"\0")
    return _message(RTM_NEWLINK, NLM_F_ACK, body + _attribute(IFLA_LINKINFO, info))


def inside_messages(pod: Attachment, *, index: int) -> bytes:
    """Encode the messages sent inside the netns of *pod*: lo up, eth0 up, address, route.

    Args:
        index: the ifindex of its interface.
    """
    messages = [_up(LOOPBACK_INDEX), _up(index)]
    for address, gateway in pod.addresses:
        messages += [_address(address, index), *([_default_route(gateway, index)] if gateway else [])]
    kind, flags = struct.unpack_from("=HH", messages[-1], 4)
    messages[-1] = _message(kind, flags | NLM_F_ACK, messages[-1][_HEADER.size :])
    return b"".join(messages)


def _up(index: int) -> bytes:
    return _message(RTM_NEWLINK, 0, _LINK.pack(socket.AF_UNSPEC, 0, index, IFF_UP, IFF_UP))


def _address(address: str, index: int) -> bytes:
    parsed = check.interface_address(address)
    packed, length = parsed.ip.packed, parsed.network.prefixlen
    attributes = _attribute(IFA_LOCAL, packed) + _attribute(IFA_ADDRESS, packed)
    family, flags = (socket.AF_INET, 0) if parsed.version == 4 else (socket.AF_INET6, IFA_F_NODAD)
    if parsed.version == 4 and length < 31:
        attributes += _attribute(IFA_BROADCAST, parsed.network.broadcast_address.packed)
    body = _ADDRESS.pack(family, length, flags, RT_SCOPE_UNIVERSE, index) + attributes
    return _message(RTM_NEWADDR, NLM_F_CREATE_EXCL, body)


def _default_route(gateway: str, index: int) -> bytes:
    parsed = check.host_address(gateway)
    family = socket.AF_INET if parsed.version == 4 else socket.AF_INET6
    head = (family, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST, 0)
    via = _attribute(RTA_GATEWAY, parsed.packed) + _number(RTA_OIF, index)
    return _message(RTM_NEWROUTE, NLM_F_CREATE_EXCL, _ROUTE.pack(*head) + via)


def errors_in(reply: bytes) -> Iterator[int]:
    """Yield the errno of each answer in *reply*; 0 is an acknowledgement."""
    offset = 0
    while offset < len(reply):
        size, kind, *_ = _HEADER.unpack_from(reply, offset)
        if kind == NLMSG_ERROR:
            yield -_ERROR.unpack_from(reply, offset + _HEADER.size)[0]
        offset += size + -size % 4


# -- checks, before the kernel is touched ----------------------------------------------


def _check_all(attachments: Sequence[Attachment], *, ipv6: bool) -> None:
    for pod in attachments:
        check.check_netns_name(pod.netns)
        check.check_interface_name(pod.port)
        check.check_interface_name(pod.interface)
        if pod.interface == "lo":
            raise NameTaken(f"netns {pod.netns} has an interface 'lo' from the start")
        if pod.mtu is not None:
            link.check_mtu(pod.mtu)
        _check_addresses(pod, ipv6=ipv6)
    for what in ("netns", "port"):
        twice = _repeated([getattr(pod, what) for pod in attachments])
        if twice:
            raise NameTaken(f"{what} {twice!r} is in the batch twice")
    twice = _repeated([str(check.interface_address(one).ip) for pod in attachments for one, _ in pod.addresses])
    if twice:
        raise InvalidAddress(f"address {twice} is in the batch twice")


def _check_addresses(pod: Attachment, *, ipv6: bool) -> None:
    where = f"of netns {pod.netns}"
    for address, via in pod.addresses:
        own = check.interface_address(address)
        if own.version == 6 and not ipv6:
            raise InvalidAddress(f"{address} {where}: IPv6 is off; ask for it with ipv6=True")
        if via is None:
            continue
        gateway = check.host_address(via)
        if gateway == own.ip:
            raise InvalidAddress(f"{via} is the gateway {where}, and its own address")
        link_local = own.version == gateway.version == 6 and gateway.is_link_local
        if gateway not in own.network and not link_local:
            raise InvalidAddress(f"gateway {via} {where} is not in its network {own.network}")


def _repeated(values: Sequence[str]) -> str | None:
    return next((value for value, times in Counter(values).items() if times > 1), None)


# -- what a new netns is like ----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Fresh:
    """What holds for every new netns of this machine."""

    writes: tuple[tuple[str, bytes], ...]  # the settings that differ from ours: path, our value
    next_index: int  # of the first interface made in it; above 2 where modules add tunnels


@functools.cache
def _fresh(*, ipv6: bool) -> _Fresh:
    """Make a netns, look, and drop it: once a process, so a later change is not seen.

    Writing "all/disable_ipv6" sets "default" too, so what is left to write is found by
    writing.
    """

    def body() -> _Fresh:
        _unshare("to look at")
        wanted = (IPV6_ON if ipv6 else IPV6_OFF) | SETTINGS
        return _Fresh(
            writes=tuple(
                (f"/proc/sys/{key}", value.encode())
                for key, value in wanted.items() if _differs(key, value)
            ),
            next_index=max(index for index, _ in socket.if_nameindex()) + 1,
        )  # fmt: skip

    return nsfs.in_thread(body)


def _differs(key: str, value: str) -> bool:
    """Return whether a setting had to be written; one that this kernel lacks had not."""
    file = Path("/proc/sys", key)
    if not file.exists() or file.read_text().strip() == value:
        return False
    file.write_text(value)
    return True


def _unshare(name: str) -> None:
    if _libc.unshare(nsfs.CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        if number == errno.EPERM:
            raise CapabilityMissing(f"cannot make netns {name}: not permitted. {HINT}")
        full = "there are as many as /proc/sys/user/max_net_namespaces allows"
        reason = full if number == errno.ENOSPC else os.strerror(number)
        raise KernelRefused(f"make netns {name}", number, reason)


# -- making ----------------------------------------------------------------------------


def attach_all(
    node_fd: int, node_name: str, bridge_index: int, attachments: Sequence[Attachment], *,
    ipv6: bool = False, progress: Callable[[int], None] | None = None,
) -> None:  # fmt: skip
    """Make many netns and attach each to one bridge: all of them, or none.

    Like, for each: ip netns add NETNS; ip link add name PORT master BRIDGE up type veth
    peer name eth0 netns NETNS; ip -n NETNS link set lo up; ip -n NETNS link set eth0 up;
    ip -n NETNS address add ADDRESS brd + dev eth0; ip -n NETNS route add default via GATEWAY

    Args:
        node_fd: the open netns that the bridge is in.
        node_name: that netns' name.
        bridge_index: the bridge's ifindex.
        ipv6: leave IPv6 on inside; off makes it much cheaper.
        progress: called in this thread now and then, with how many are made.

    Raises:
        InvalidName, InvalidAddress, InvalidInput: an attachment cannot be as asked.
        NameTaken: a netns or port of that name is there already, or twice in the batch.
        NotFound: the node has no interface *bridge_index*.
        CapabilityMissing: no netns can be made here.
        KernelRefused: the message names the attachment.
    """
    _check_all(attachments, ipv6=ipv6)
    builder = _Builder(node_fd=node_fd, node=node_name, bridge_index=bridge_index, ipv6=ipv6)
    report = progress or (lambda _: None)
    with ThreadPoolExecutor(1, thread_name_prefix="k8snet-batch") as pool:
        future = pool.submit(builder.build, attachments)
        try:
            while not _finished(future):
                report(len(builder.made))
        except BaseException:  # Ctrl-C, most likely: the thread undoes what it made
            builder.stop.set()
            wait([future])
            drop_all([pod.netns for pod in builder.made])  # it was done before it could see that
            raise
    future.result()
    report(len(builder.made))


def _finished(future: Future[None]) -> bool:
    return bool(wait([future], PROGRESS_EVERY_S, FIRST_COMPLETED).done)


class _StoppedError(Exception):
    """The caller does not want the batch any more."""


@dataclass(kw_only=True)
class _Builder:
    """One batch on its way; build() runs on a thread that goes from netns to netns."""

    node_fd: int
    node: str
    bridge_index: int
    ipv6: bool
    made: list[Attachment] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def build(self, attachments: Sequence[Attachment]) -> None:
        fresh = _fresh(ipv6=self.ipv6)
        nsfs.enter(self.node_fd)
        self._check_free(attachments)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as node:
            try:
                for pod in attachments:
                    self._attach(pod, node, fresh)
            except BaseException as error:
                self._undo()
                if not isinstance(error, _StoppedError):
                    raise

    def _check_free(self, attachments: Sequence[Attachment]) -> None:
        """Compare with what is there, from one dump and one listing."""
        interfaces = dict(socket.if_nameindex())
        if self.bridge_index not in interfaces:
            raise NotFound(f"netns {self.node} has no interface {self.bridge_index}")
        ports, netns = set(interfaces.values()), set(nsfs.names())
        for pod in attachments:
            if pod.port in ports:
                raise NameTaken(f"there is an interface {pod.port!r} in netns {self.node} already")
            if pod.netns in netns:
                raise NameTaken(f"there is a netns {pod.netns!r} already")

    def _attach(self, pod: Attachment, node: socket.socket, fresh: _Fresh) -> None:
        if self.stop.is_set():
            raise _StoppedError
        self._make_netns(pod)
        for path, value in fresh.writes:
            _write(path, value)
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            pair = pair_message(
                pod, node=self.node, bridge_index=self.bridge_index, netns_fd=here
            )
            _ask(node, pair, f"make {pod.port} in netns {self.node} for netns {pod.netns}")
            if pod.hairpin:
                _ask(node, hairpin_message(pod), f"set {pod.port} in netns {self.node} hairpin")
        finally:
            os.close(here)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as inside:
            rest = inside_messages(pod, index=fresh.next_index)
            _ask(inside, rest, f"configure {pod.interface} in netns {pod.netns}")

    def _make_netns(self, pod: Attachment) -> None:
        """Put this thread in a new netns, and give it a name as `ip netns add` does."""
        path = nsfs.FOLDER / pod.netns
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
        except FileExistsError:
            raise NameTaken(f"there is a netns {pod.netns!r} already") from None
        except OSError as error:
            raise CapabilityMissing(f"cannot make {path}: {error.strerror}. {HINT}") from None
        self.made.append(pod)
        _unshare(pod.netns)
        _mount_here(path)

    def _undo(self) -> None:
        """Drop what was made, and wait until the bridge has lost the ports."""
        nsfs.enter(self.node_fd)
        drop_all([pod.netns for pod in self.made])
        ports = {pod.port for pod in self.made}
        wait_until(
            lambda: ports.isdisjoint(name for _, name in socket.if_nameindex()),
            what=f"ports of netns {self.node} that go with their netns", timeout_s=UNDO_TIMEOUT_S,
        )  # fmt: skip
        self.made.clear()


def _mount_here(path: Path) -> None:
    source = b"/proc/thread-self/ns/net"
    if _libc.mount(source, os.fsencode(path), None, ctypes.c_ulong(nsfs.MS_BIND), None) != 0:
        number = ctypes.get_errno()
        raise KernelRefused(f"name a netns {path.name}", number, os.strerror(number))


def _write(path: str, value: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value)
    finally:
        os.close(fd)


def _ask(connection: socket.socket, messages: bytes, what: str) -> None:
    """Send *messages* and read the answers: errors as they come, then the last one's ACK.

    The kernel answers before send() returns, so recv() never waits.
    """
    connection.send(messages)
    for number in errors_in(connection.recv(REPLY_SIZE)):
        if number:
            raise KernelRefused(what, number, os.strerror(number))


# -- dropping --------------------------------------------------------------------------


def drop_all(names: Sequence[str]) -> None:
    """Drop the names of many netns. Like, for each: ip netns delete NAME.

    The kernel then ends the netns together, in the background, and with each the veth
    pair that had an end in it. A netns that a process lives in stays until that ends.

    Raises:
        NotFound: there is no netns of one of the names; the others are dropped.
    """
    missing = []
    for name in names:
        path = os.fsencode(nsfs.FOLDER / check.check_netns_name(name))
        _libc.umount2(path, nsfs.MNT_DETACH)  # a name whose making failed is a plain file
        try:
            os.unlink(path)  # noqa: PTH108  # a thousand of them, bytes already
        except FileNotFoundError:
            missing.append(name)
    if missing:
        raise NotFound(f"no netns {', '.join(missing)}")
