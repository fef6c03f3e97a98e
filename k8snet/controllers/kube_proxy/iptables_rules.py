"""The rules that one service port has in iptables mode. iptables.py draws where they stand.

Source: kubernetes pkg/proxy/iptables, proxier.go (1.33).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

from k8snet.controllers.kube_proxy.service_ports import Endpoint, ProxyConfig, ServicePort, categorize

__all__ = ["Built", "build"]

PROTOCOLS = {one.upper(): (one, f"-m {one} -p {one}") for one in ("tcp", "udp", "sctp")}
PAIRS = tuple(map("".join, product("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", repeat=2)))  # of letters: 10 bits of base32


class Built(NamedTuple):
    """The rules of one service port."""

    shared: tuple[tuple[str, str, str], ...]  # (table, chain, rule): in chains that all Services share
    own: dict[str, tuple[str, ...]]  # chain of nat -> its rules


def build(port: ServicePort, config: ProxyConfig, *, comments: bool = True) -> Built:
    """Return the rules of one service port.

    Args:
        comments: whether those of its endpoints have comments, too.
    """
    made = _Port(port, config, comments=comments)
    return Built(tuple(made.shared()), made.own())


class _Port:
    def __init__(self, port: ServicePort, config: ProxyConfig, *, comments: bool) -> None:
        self.port, self.config, self.comments, self.name = port, config, comments, port.key
        self.protocol, self.transport = PROTOCOLS[port.protocol]
        self.found = found = categorize(port)
        self.any = found.any_anywhere
        self.inside = self.any and bool(found.local or not port.internal_local)
        self.outside = self.any and bool(found.local or not port.external_local)
        self.guarded = self.any and bool(port.load_balancer_ips and port.source_ranges)
        self.digest = _digest(self.name + self.protocol)
        self.svc, self.svl = f"KUBE-SVC-{self.digest}", f"KUBE-SVL-{self.digest}"
        self.to_cluster_ip = self.to(port.cluster_ip)

    @property
    def ext(self) -> str:
        return f"KUBE-EXT-{self.digest}"

    @property
    def fw(self) -> str:
        return f"KUBE-FW-{self.digest}"

    def to(self, address: str) -> str:
        return f"{self.transport} -d {address} --dport {self.port.port}"

    # in chains that all Services share

    def shared(self) -> Iterator[tuple[str, str, str]]:
        if self.inside:
            yield self._caught("cluster IP", self.to_cluster_ip, self.svl if self.port.internal_local else self.svc)
        else:
            yield self._refused("KUBE-SERVICES", self.to_cluster_ip)
        if self.port.externally_accessible:
            yield from self._from_elsewhere()
        if self.port.health_check_node_port:
            comment = f'-m comment --comment "{self.name} health check node port"'
            tail = f"-m tcp -p tcp --dport {self.port.health_check_node_port} -j ACCEPT"
            yield "filter", "KUBE-NODEPORTS", f"-A KUBE-NODEPORTS {comment} {tail}"

    def _from_elsewhere(self) -> Iterator[tuple[str, str, str]]:
        for address in self.port.external_ips:
            if self.any:
                yield self._caught("external IP", self.to(address), self.ext)
            if not self.outside:
                yield self._refused("KUBE-EXTERNAL-SERVICES", self.to(address))
        yield from self._load_balanced()
        yield from self._node_port()

    def _caught(self, what: str, match: str, chain: str) -> tuple[str, str, str]:
        return "nat", "KUBE-SERVICES", f'-A KUBE-SERVICES -m comment --comment "{self.name} {what}" {match} -j {chain}'

    def _refused(self, chain: str, match: str) -> tuple[str, str, str]:
        """Return the rule for what no endpoint is there for; it is silent where another node has one."""
        what, verdict = ("no local endpoints", "DROP") if self.any else ("no endpoints", "REJECT")
        return "filter", chain, f'-A {chain} -m comment --comment "{self.name} has {what}" {match} -j {verdict}'

    def _load_balanced(self) -> Iterator[tuple[str, str, str]]:
        for address in self.port.load_balancer_ips:
            if self.any:
                yield self._caught("loadbalancer IP", self.to(address), self.fw if self.guarded else self.ext)
            if self.guarded:
                comment = f'-m comment --comment "{self.name} traffic not accepted by {self.fw}"'
                yield (
                    "filter", "KUBE-PROXY-FIREWALL",
                    f"-A KUBE-PROXY-FIREWALL {comment} {self.to(address)} -j DROP",
                )  # fmt: skip
        if not self.outside:
            for address in self.port.load_balancer_ips:
                yield self._refused("KUBE-EXTERNAL-SERVICES", self.to(address))

    def _node_port(self) -> Iterator[tuple[str, str, str]]:
        port, transport = self.port, self.transport
        match = f"--dport {port.node_port}"
        head = f"-A KUBE-NODEPORTS -m comment --comment {self.name} {transport}"
        if port.node_port and self.any:
            if self.config.localhost_nodeports and self.config.family == "v4":  # upstream has it where nfacct can count
                count = " -m nfacct --nfacct-name localhost_nps_accepted_pkts" if self.config.nfacct else ""
                yield "nat", "KUBE-NODEPORTS", f"{head} -d 127.0.0.0/8 {match}{count} -j {self.ext}"
            yield "nat", "KUBE-NODEPORTS", f"{head} {match} -j {self.ext}"
        if port.node_port and not self.outside:
            yield self._refused("KUBE-EXTERNAL-SERVICES", f"-m addrtype --dst-type LOCAL {transport} {match}")

    # in chains of its own

    def own(self) -> dict[str, tuple[str, ...]]:
        port, found, names = self.port, self.found, {}
        chains: dict[str, tuple[str, ...]] = {}
        head, comment = self.name + self.protocol, f" -m comment --comment {self.name}" if self.comments else ""
        sticky = port.affinity_s is not None
        for one in found.reachable:
            text = str(one)
            name = f"KUBE-SEP-{_digest(head + text)}"
            names[one.address, one.port] = name, text
            recent = f" -m recent --name {name} --set" if sticky else ""
            chains[name] = (
                f"-A {name}{comment} -s {one.address} -j KUBE-MARK-MASQ",
                f"-A {name}{comment}{recent} {self.transport} -j DNAT --to-destination {text}",
            )
        for chain, ends in ((self.svc, found.cluster), (self.svl, found.local)):
            called = self.inside and port.internal_local == (chain is self.svl)  # by who calls the cluster IP
            if called or ends:
                first = self._masquerade_of_cluster_ip(chain) if called else []
                chains[chain] = (*first, *self._to_endpoints(chain, ends, names))
        if self.any and port.externally_accessible:
            chains[self.ext] = tuple(f"-A {self.ext} {rule}" for rule in self._from_outside())
        if self.guarded:
            chains[self.fw] = tuple(f"-A {self.fw} -m comment --comment {rule}" for rule in self._source_ranges())
        return chains

    def _masquerade_of_cluster_ip(self, chain: str) -> list[str]:
        """Return the rule for who calls the cluster IP from outside the cluster: answers have to come back this way."""
        head = f'-A {chain} -m comment --comment "{self.name} cluster IP" {self.to_cluster_ip}'
        if self.config.masquerade_all:
            return [f"{head} -j KUBE-MARK-MASQ"]
        return [f"{head} ! -s {self.config.cluster_cidr} -j KUBE-MARK-MASQ"] if self.config.cluster_cidr else []

    def _from_outside(self) -> Iterator[str]:
        to, local = f'for {self.name} external destinations"', "-m addrtype --src-type LOCAL"
        if not self.port.external_local:
            yield f'-m comment --comment "masquerade traffic {to} -j KUBE-MARK-MASQ'
        else:  # who is here already has been let in, and may go to any node
            if self.config.cluster_cidr:
                yield f'-m comment --comment "pod traffic {to} -s {self.config.cluster_cidr} -j {self.svc}'
            yield f'-m comment --comment "masquerade LOCAL traffic {to} {local} -j KUBE-MARK-MASQ'
            yield f'-m comment --comment "route LOCAL traffic {to} {local} -j {self.svc}'
        if self.outside:
            yield f"-j {self.svl if self.port.external_local else self.svc}"

    def _source_ranges(self) -> Iterator[str]:
        ranges, balanced = self.port.source_ranges, f'"{self.name} loadbalancer IP"'
        yield from (f"{balanced} -s {one} -j {self.ext}" for one in ranges)
        node = next((one for one in self.config.node_ips if (":" in one) == (self.config.family == "v6")), None)
        if node and any(ipaddress.ip_address(node) in ipaddress.ip_network(one) for one in ranges):
            # where the node has the balancer's address as its own, it calls it from that address
            yield from (f"{balanced} -s {one} -j {self.ext}" for one in self.port.load_balancer_ips)
        yield f'"other traffic to {self.name} will be dropped by KUBE-PROXY-FIREWALL"'

    def _to_endpoints(
        self, chain: str, endpoints: Sequence[Endpoint], names: Mapping[tuple[str, int], tuple[str, str]]
    ) -> list[str]:
        found, lots, left = [], [], len(endpoints)
        for one in endpoints:
            goal, text = names[one.address, one.port]
            head = f'-A {chain} -m comment --comment "{self.name} -> {text}"' if self.comments else f"-A {chain}"
            if self.port.affinity_s is not None:
                recent = f"-m recent --name {goal} --rcheck --seconds {self.port.affinity_s} --reap"
                found.append(f"{head} {recent} -j {goal}")
            lots.append(f"{head}{_lot(left)} -j {goal}")
            left -= 1
        return found + lots


@cache
def _lot(left: int) -> str:
    return f" -m statistic --mode random --probability {1 / left:.10f}" if left > 1 else ""


def _digest(text: str) -> str:
    """Return 16 letters of 5 bits, as base64.b32encode() does; two at a time that is done in half of the time."""
    bits = int.from_bytes(hashlib.sha256(text.encode()).digest()[:10])
    return (
        PAIRS[bits >> 70] + PAIRS[bits >> 60 & 1023] + PAIRS[bits >> 50 & 1023] + PAIRS[bits >> 40 & 1023]
        + PAIRS[bits >> 30 & 1023] + PAIRS[bits >> 20 & 1023] + PAIRS[bits >> 10 & 1023] + PAIRS[bits & 1023]
    )  # fmt: skip
