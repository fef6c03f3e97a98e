"""An egress gateway: what chosen pods send to chosen networks leaves by one node, with one address that stays.

A firewall far away can then know these pods, wherever they run. On every node that is not the gateway:

    ip rule add from POD to DESTINATION lookup 101      the pod's packets do not take the node's own way out,
    ip route add default via GATEWAY table 101          but that of packets for the gateway's pods, VXLAN included
    EGRESS-1  -s POD -d DESTINATION -j ACCEPT           and nobody masquerades them yet

and on the gateway, which answers ARP for ADDRESS, since its eth0 has it:

    EGRESS-1  -s POD -d DESTINATION -j SNAT --to-source ADDRESS

Answers come to ADDRESS, and from the gateway to the pod as from any other pod. If no node can be the gateway, the
others refuse: a packet with another address would be worse than none. The control plane is as slow as ever to
notice that a node is dead: until the next sync() packets go to it, and are lost.
Sources: https://docs.cilium.io/en/stable/network/egress-gateway/ ,
https://ovn-kubernetes.io/features/cluster-egress-controls/egress-ip/
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from k8snet.cluster.layout import family_of
from k8snet.cluster.node import UPLINK
from k8snet.controllers.joining import join
from k8snet.errors import CommandFailed, InvalidInput, NotFound
from k8snet.linux.address import host_address, network

if TYPE_CHECKING:
    from k8snet.cluster.cluster import Cluster
    from k8snet.cluster.node import Node
    from k8snet.cluster.pod import Pod

__all__ = ["EgressGateway", "NodeConfig"]

TABLE, PRIORITY = 100, 1000  # of the routing policy; gateway N has table 100 + N and priorities below 1000 - 2N
AT_ONCE = 300  # lines in one transaction; some 500 are too many for an ordinary user's netlink socket


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """What one node has of a gateway, as the programs are given it."""

    address: str | None = None  # on eth0; of the gateway node alone
    route: tuple[str, ...] = ()  # the one in its table; of the others
    rules: tuple[str, ...] = ()  # of the routing policy; of the others
    chain: tuple[str, ...] = ()  # in the table nat


class EgressGateway:
    """One gateway of a cluster, kept in step with its pods and nodes."""

    def __init__(
        self, cluster: Cluster, *, node: str | Sequence[str], address: str, destinations: Sequence[str],
        pods: Mapping[str, str] | None = None, namespace: str | None = "default",
    ) -> None:  # fmt: skip
        """Start it. See Cluster.start_egress_gateway()."""
        self.cluster = cluster
        self.candidates = (node,) if isinstance(node, str) else tuple(node)
        if not self.candidates:
            raise InvalidInput("an egress gateway needs a node, or several, of which the first that lives is it")
        for name in self.candidates:
            cluster.node(name)  # raises NotFound
        self.labels, self.namespace = dict(pods or {}), namespace
        self.address, self.family = _free(cluster, address), family_of(address)
        self.destinations = _destinations(destinations, self.family)
        others = [one.number for one in cluster.controllers if isinstance(one, EgressGateway)]
        self.number: int = 1 + max(others, default=0)  # a later one goes before an earlier one
        self.chain = f"EGRESS-{self.number}"
        self._has: dict[Node, NodeConfig] = {}
        join(cluster, self)

    def __repr__(self) -> str:
        """Return its address, its node, and how many pods use it."""
        return f"<egress gateway {self.address} on {self.node or 'no node'}, pods: {len(self.pods)}>"

    @property
    def node(self) -> str | None:
        """The node that is the gateway, as far as the control plane knows: the first candidate that is ready."""
        nodes = self.cluster.nodes
        return next((one for one in self.candidates if one in nodes and nodes[one].ready), None)

    @property
    def pods(self) -> list[Pod]:
        """The pods that use it."""
        return [
            pod for pod in self.cluster.pods.values()
            if self.namespace in {None, pod.namespace} and self.labels.items() <= pod.labels.items()
            and pod.node and pod.addresses and not pod.host_network
        ]  # fmt: skip

    def check(self, wanted: Iterable[Any]) -> None:
        """Refuse nothing: it does not depend on objects."""

    def sync(self) -> None:
        """Bring the nodes in step: the address leaves its old node, comes to the new one, and then it is used."""
        current = set(self.cluster.nodes.values())
        self._has = {node: had for node, had in self._has.items() if node in current}
        wanted = self.config()
        for node, want in wanted.items():
            had = self._has.get(node, NodeConfig())
            if had.address and not want.address:
                self._forget_address(node)
        for node in sorted(wanted, key=lambda one: one.name != self.node):
            if self._has.get(node, NodeConfig()) != wanted[node]:
                self._apply(node, self._has.get(node), wanted[node])
                self._has[node] = wanted[node]

    def config(self) -> dict[Node, NodeConfig]:
        """Return what each node that is ready shall have; no kernel is asked."""
        networks = self.cluster.cluster_networks[self.family], self.cluster.fabric.networks[self.family]
        inside = [str(one) for one in networks if any(one.overlaps(network(to)) for to in self.destinations)]
        pods, found = self.pods, {}
        for node in self.cluster.nodes.values():
            if node.name == self.node:
                found[node] = NodeConfig(
                    address=self._on_link, chain=self._chain(pods, inside, f"SNAT --to-source {self.address}")
                )
            elif node.ready and (mine := [pod for pod in pods if pod.node is node]):
                found[node] = NodeConfig(
                    route=self._route(node), rules=self._policy(mine, inside), chain=self._chain(mine, inside, "ACCEPT")
                )
            elif node.ready:
                found[node] = NodeConfig()
        return found

    def stop(self) -> None:
        """Take it away: new connections of the pods leave by their own nodes again."""
        self.cluster.controllers.remove(self)
        for node, had in self._has.items():
            if self.cluster.nodes.get(node.name) is node:
                self._apply(node, had, NodeConfig())
                if had.address:
                    self._forget_address(node)
                for words in (("-D", "POSTROUTING", "-j", self.chain), ("-X", self.chain)):
                    with contextlib.suppress(CommandFailed):  # somebody took it away before us
                        node.netns.iptables("-t", "nat", *words, family=self._number)
        self._has.clear()

    # -- one node ----------------------------------------------------------------------

    @property
    def _number(self) -> int:
        return 6 if self.family == "v6" else 4

    @property
    def _on_link(self) -> str:
        return f"{self.address}/{host_address(self.address).max_prefixlen}"

    def _sources(self, pods: Sequence[Pod]) -> list[str]:
        return [one for pod in pods for one in pod.addresses if family_of(one) == self.family]

    def _chain(self, pods: Sequence[Pod], inside: Sequence[str], verdict: str) -> tuple[str, ...]:
        chosen = [f"-s {pod} -d {to} -j {verdict}" for pod in self._sources(pods) for to in self.destinations]
        return (*(f"-d {to} -j RETURN" for to in inside), *chosen)

    def _policy(self, pods: Sequence[Pod], inside: Sequence[str]) -> tuple[str, ...]:
        table, priority = TABLE + self.number, PRIORITY - 2 * self.number
        rules = [(to, "main", priority - 1) for to in inside]
        rules += [(to, str(table), priority) for to in self.destinations]
        return tuple(
            f"from {pod} to {to} lookup {where} priority {when}"
            for pod in self._sources(pods) for to, where, when in rules
        )  # fmt: skip

    def _route(self, node: Node) -> tuple[str, ...]:
        if self.node is None:
            return ("unreachable", "default")
        hop, device = self.cluster.pod_network.hop(node, self.cluster.nodes[self.node], self.family)
        return ("default", "via", hop, "dev", device, "onlink")

    def _apply(self, node: Node, had: NodeConfig | None, want: NodeConfig) -> None:
        """Change a node, in an order in which no packet leaves with an address that it should not have."""
        before, table = had or NodeConfig(), ("table", str(TABLE + self.number))
        if want.route and want.route != before.route:
            self._ip(node, "route", "replace", *want.route, *table)
        new = want.address and not before.address
        if new:
            node.netns.add_address(UPLINK, self._on_link)
        lines = [f":{self.chain} - [0:0]", *(f"-A {self.chain} {one}" for one in want.chain)]  # the first empties it
        for start in range(0, len(lines), AT_ONCE):
            text = "\n".join(["*nat", *lines[start : start + AT_ONCE], "COMMIT", ""])
            node.netns.iptables_restore(text, family=self._number)
        if had is None:
            node.netns.iptables("-t", "nat", "-I", "POSTROUTING", "-j", self.chain, family=self._number)
        self._rules(node, "add", [one for one in want.rules if one not in before.rules])
        self._rules(node, "del", [one for one in before.rules if one not in want.rules])
        if before.route and not want.route:
            self._ip(node, "route", "flush", *table, check=False)
        if new and self.family == "v4":  # an IPv6 router finds out when its entry grows old
            tell = f"arping -U -c 1 -w 0.2 -i {UPLINK} -S {self.address} {self.address} || true"  # nobody answers
            node.netns.sh(tell, record=True)

    def _rules(self, node: Node, verb: str, rules: Sequence[str]) -> None:
        if rules:
            text = "".join(f"rule {verb} {one}\n" for one in rules)
            self._ip(node, "-force", "-batch", "-", stdin=text, check=verb == "add")

    def _ip(self, node: Node, *words: str, stdin: str = "", check: bool = True) -> None:
        family = ["-6"] if self.family == "v6" else []
        node.netns.run("ip", *family, *words, stdin=stdin, check=check, record=True)

    def _forget_address(self, node: Node) -> None:
        with contextlib.suppress(NotFound):  # somebody took it away before us
            node.netns.delete_address(UPLINK, self._on_link)


def _free(cluster: Cluster, address: str) -> str:
    """Return *address* if the router would ask for it on the nodes' link, and nobody has it.

    Raises:
        InvalidAddress, InvalidInput: it cannot be a gateway's.
    """
    family, parsed = family_of(address), host_address(address)
    if family not in cluster.ip_families:
        raise InvalidInput(f"egress address {address}: the cluster has no IPv6")
    link = cluster.fabric.networks[family]
    if parsed not in link or parsed in {link[0], link[-1]}:
        raise InvalidInput(f"egress address {address} is no host of {link}, the nodes' network: nobody asks for it")
    taken = {one.addresses[family]: f"node {one.name}" for one in cluster.nodes.values()}
    taken[cluster.fabric.router_addresses[family]] = "the router"
    taken |= {one.address: "another egress gateway" for one in cluster.controllers if isinstance(one, EgressGateway)}
    if str(parsed) in taken:
        raise InvalidInput(f"egress address {address}: {taken[str(parsed)]} has it")
    return str(parsed)


def _destinations(texts: Sequence[str], family: str) -> tuple[str, ...]:
    """Return networks that packets leave for by the gateway.

    Raises:
        InvalidAddress, InvalidInput: one cannot be, or there is none.
    """
    if isinstance(texts, str) or not texts:
        raise InvalidInput(f'destinations {texts!r}: a list of networks, as in ["203.0.113.0/24"]')
    if other := next((one for one in texts if family_of(network(one)) != family), None):
        raise InvalidInput(f"destination {other} is of another family than the egress address")
    return tuple(dict.fromkeys(str(network(one)) for one in texts))
