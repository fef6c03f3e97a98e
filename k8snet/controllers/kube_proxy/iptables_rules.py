"""The rules that one service port has in iptables mode. iptables.py draws where they stand.

Source: kubernetes pkg/proxy/iptables, proxier.go (1.33).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from hashlib import sha256
from itertools import product
from typing import NamedTuple

from k8snet.controllers.kube_proxy.service_ports import Endpoint, ProxyConfig, ServicePort, categorize

__all__ = ["Built", "build"]

PROTOCOLS = {one.upper(): (one, f"-m {one} -p {one}") for one in ("tcp", "udp", "sctp")}
PAIRS = tuple(map("".join, product("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", repeat=2)))  # of letters: 10 bits of base32


class Built(NamedTuple):
    """The rules of one service port."""

    shared: Sequence[tuple[str, str, str]]  # (table, chain, rule): in chains that all Services share
    own: dict[str, str]  # chain of nat -> its rules, a line each: text is what Python's collector need not look at


def build(port: ServicePort, config: ProxyConfig, *, comments: bool = True) -> Built:
    """Return the rules of one service port.

    Args:
        comments: whether those of its endpoints have comments, too.
    """
    made = _Port(port, config, comments=comments)
    return Built(made.shared(), made.own())


class _Port:
    __slots__ = (
        "any", "comments", "config", "digest", "found", "guarded", "inside", "name", "outside", "port", "protocol",
        "svc", "to_cluster_ip", "transport",
    )  # fmt: skip

    def __init__(self, port: ServicePort, config: ProxyConfig, *, comments: bool) -> None:
        self.port, self.config, self.comments, self.name = port, config, comments, port.key
        self.protocol, self.transport = PROTOCOLS[port.protocol]
        self.found = found = categorize(port)
        self.any = found.any_anywhere
        self.inside = self.any and bool(found.local or not port.internal_local)
        self.outside = self.any and bool(found.local or not port.external_local)
        self.guarded = self.any and bool(port.load_balancer_ips and port.source_ranges)
        self.digest = _digest(self.name + self.protocol)
        self.svc = f"KUBE-SVC-{self.digest}"
        self.to_cluster_ip = self.to(port.cluster_ip)

    @property
    def svl(self) -> str:
        return f"KUBE-SVL-{self.digest}"

    @property
    def ext(self) -> str:
        return f"KUBE-EXT-{self.digest}"

    @property
    def fw(self) -> str:
        return f"KUBE-FW-{self.digest}"

    def to(self, address: str) -> str:
        return f"{self.transport} -d {address} --dport {self.port.port}"

    # in chains that all Services share

    def shared(self) -> list[tuple[str, str, str]]:
        port = self.port
        if self.inside:
            found = [self._caught("cluster IP", self.to_cluster_ip, self.svl if port.internal_local else self.svc)]
        else:
            found = [self._refused("KUBE-SERVICES", self.to_cluster_ip)]
        if port.externally_accessible:
            found += self._from_elsewhere()
        if port.health_check_node_port:
            comment = f'-m comment --comment "{self.name} health check node port"'
            tail = f"-m tcp -p tcp --dport {port.health_check_node_port} -j ACCEPT"
            found.append(("filter", "KUBE-NODEPORTS", f"-A KUBE-NODEPORTS {comment} {tail}"))
        return found

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

    def own(self) -> dict[str, str]:
        port, found, names = self.port, self.found, {}
        chains: dict[str, str] = {}
        head, comment = self.name + self.protocol, f" -m comment --comment {self.name}" if self.comments else ""
        sticky = port.affinity_s is not None
        for one in found.reachable:
            text = str(one)
            name = f"KUBE-SEP-{_digest(head + text)}"
            names[one.address, one.port] = name, text
            recent = f" -m recent --name {name} --set" if sticky else ""
            chains[name] = (
                f"-A {name}{comment} -s {one.address} -j KUBE-MARK-MASQ\n"
                f"-A {name}{comment}{recent} {self.transport} -j DNAT --to-destination {text}"
            )
        local = port.internal_local
        if (self.inside and not local) or found.cluster:
            chains[self.svc] = self._choice(self.svc, found.cluster, names, called=self.inside and not local)
        if (self.inside and local) or found.local:
            chains[self.svl] = self._choice(self.svl, found.local, names, called=self.inside and local)
        if self.any and port.externally_accessible:
            chains[self.ext] = "\n".join(f"-A {self.ext} {rule}" for rule in self._from_outside())
        if self.guarded:
            chains[self.fw] = "\n".join(f"-A {self.fw} -m comment --comment {rule}" for rule in self._source_ranges())
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

    def _choice(
        self, chain: str, endpoints: Sequence[Endpoint], names: Mapping[tuple[str, int], tuple[str, str]], *,
        called: bool,
    ) -> str:  # fmt: skip
        """Return the rules of a chain that chooses an endpoint.

        Args:
            called: whether callers of the cluster IP come here.
        """
        lots, left, found = [], len(endpoints), self._masquerade_of_cluster_ip(chain) if called else []
        for one in endpoints:
            goal, text = names[one.address, one.port]
            head = f'-A {chain} -m comment --comment "{self.name} -> {text}"' if self.comments else f"-A {chain}"
            if self.port.affinity_s is not None:
                recent = f"-m recent --name {goal} --rcheck --seconds {self.port.affinity_s} --reap"
                found.append(f"{head} {recent} -j {goal}")
            lots.append(f"{head}{_lot(left)} -j {goal}")
            left -= 1
        return "\n".join([*found, *lots])


@cache
def _lot(left: int) -> str:
    return f" -m statistic --mode random --probability {1 / left:.10f}" if left > 1 else ""


def _digest(text: str) -> str:
    """Return 16 letters of 5 bits, as base64.b32encode() does; two at a time that is done in half of the time."""
    bits = int.from_bytes(sha256(text.encode()).digest()[:10])
    high, low = bits >> 40, bits & 0xFFFFFFFFFF
    return (
        f"{PAIRS[high >> 30]}{PAIRS[high >> 20 & 1023]}{PAIRS[high >> 10 & 1023]}{PAIRS[high & 1023]}"
        f"{PAIRS[low >> 30]}{PAIRS[low >> 20 & 1023]}{PAIRS[low >> 10 & 1023]}{PAIRS[low & 1023]}"
    )
