"""A node, its pods and the world around it in three netns, so that any address may call any other."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from collections.abc import Iterable

from k8snet import End
from k8snet.controllers.kube_proxy.service_ports import ProxyConfig
from k8snet.lab import Lab
from k8snet.linux import probe
from k8snet.linux.netns import Netns

GIVE_UP_S = 0.5  # seconds of silence
TRIES = {0: 2, 1: 4, 2: 40, 3: 70}  # endpoints -> connections; each is missed less than once in 10^11 runs


class Stage:
    """The node under test; what calls it lives in "world", what it calls in "pods"."""

    def __init__(
        self, lab: Lab, config: ProxyConfig, flows: Iterable[dict], ends: Iterable[tuple[str, int, str]]
    ) -> None:
        self.node, self.world, self.pods = (lab.netns(name) for name in ("node", "world", "pods"))
        own = {one for one in config.node_ips if ":" not in one}
        pods = {address for address, _, _ in ends}
        callers = {flow["sourceIP"] for flow in flows} - own - pods - {flow["destIP"] for flow in flows}
        for name, other, link in (("world", self.world, "198.18.0"), ("pods", self.pods, "198.18.1")):
            lab.veth(
                End(netns=self.node, name=f"to-{name}", address=f"{link}.1/24"),
                End(netns=other, name="eth0", address=f"{link}.2/24"),
            )
            other.add_route("default", via=f"{link}.1")
        self.node.add_bridge("own")
        self.node.set_up("own")
        redirects = {f"net/ipv4/conf/{one}/send_redirects": 0 for one in ("all", "to-world")}
        self.node.set_sysctls({"net.ipv4.ip_forward": 1, **redirects})  # it answers for addresses that nobody has
        self.node.add_route("default", via="198.18.0.2")
        for netns, interface, addresses in (
            (self.node, "own", own), (self.world, "eth0", callers), (self.pods, "eth0", pods)
        ):  # fmt: skip
            for address in sorted(addresses):
                netns.add_address(interface, f"{address}/32")
        for address in sorted(pods):
            self.node.add_route(f"{address}/32", via="198.18.1.2")
        for address, port, protocol in ends:
            if protocol != "SCTP":
                self.pods.listen(port, protocol=protocol.lower(), address=address)
        for port in {flow["destPort"] for flow in flows if flow["output"] == "ACCEPT"}:
            self.node.listen(port)
        self.own, self.served, self.callers = own | {"127.0.0.1"}, pods, callers

    def tell(self, flow: dict) -> tuple[str, bool]:
        """Send packets, and return where they went and whether they were masqueraded, as upstream's tests write it."""
        source, here = flow["sourceIP"], self._home(flow["sourceIP"])
        wanted = [one for one in flow["output"].split(", ") if ":" in one]
        borrowed = here is self.node and source not in self.own  # a load balancer's address that the node has
        if borrowed:
            self.node.add_address("own", f"{source}/32")
        self.node.delete_conntrack()
        target = flow["protocol"], flow["destIP"], flow["destPort"]
        outcomes = here.inside(_call, source, target, TRIES[min(3, len(wanted))])
        tracked = [
            one for one in self.node.conntrack(protocol=flow["protocol"].lower())
            if (one.original.destination, one.original.destination_port) == target[1:]
        ]  # fmt: skip
        if borrowed:
            self.node.delete_address("own", f"{source}/32")
        translated = [one for one in tracked if one.dnat]
        if translated:
            assert len(translated) == len(outcomes), "all of them, or none"
            assert set(outcomes.values()) == {"ok"}
            found = {f"{one.reply.source}:{one.reply.source_port}" for one in translated}
            masqueraded = {one.snat for one in translated}
            assert len(masqueraded) == 1
            order = [one for one in wanted if one in found]
            return ", ".join([*order, *sorted(found.difference(order))]), masqueraded.pop()
        (outcome,) = set(outcomes.values())
        if outcome == "ok":
            return "ACCEPT", any(one.snat for one in tracked)
        if tracked:  # it has passed all rules
            return "", any(one.snat for one in tracked)
        return {"ICMP": "REJECT", "RST": "", "silence": "DROP"}[outcome], False

    def _home(self, address: str) -> Netns:
        if address in self.served:
            return self.pods
        return self.world if address in self.callers else self.node


def _call(source: str, target: tuple[str, str, int], count: int) -> dict[int, str]:
    """Open connections, or send datagrams, from an address; return what became of each, by its own port."""
    protocol, address, port = target
    kind = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
    waiting, found = {}, {}
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(socket.socket(socket.AF_INET, kind))
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_IP, probe.IP_RECVERR, 1)
            sock.bind((source, 0))
            code = sock.connect_ex((address, port))
            assert code in {0, errno.EINPROGRESS, errno.ECONNREFUSED}, errno.errorcode[code]
            with contextlib.suppress(OSError):
                sock.send(b"?\n") if kind == socket.SOCK_DGRAM else None
            waiting[sock.fileno()] = sock
        deadline = time.monotonic() + GIVE_UP_S
        while waiting and time.monotonic() < deadline:
            lists = [list(waiting.values()), list(waiting.values()) if kind == socket.SOCK_STREAM else []]
            for sock in {one for some in select.select(*lists, [], 0.05)[:2] for one in some}:
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                found[sock.getsockname()[1]] = _outcome(sock, error)
                del waiting[sock.fileno()]
                deadline = time.monotonic() + GIVE_UP_S
        found |= {sock.getsockname()[1]: "silence" for sock in waiting.values()}
    return found


def _outcome(sock: socket.socket, error: int) -> str:
    if error != errno.ECONNREFUSED:
        return "silence" if error else "ok"
    return "ICMP" if probe.error_reporter(sock) else "RST"
