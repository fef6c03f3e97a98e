"""Load balancer addresses by BGP: nodes announce them to the router, which spreads connections over these nodes.

    node1 ──┐  each: 10.0.0.1/32 is here          a BIRD each; that of the pod network, where this is BGP
    node2 ──┼── router   10.0.0.1 proto bird      equal paths are merged into one route of several next hops,
    node3 ──┘     nexthop via node1, node2, ...   and a hash of addresses and ports (fib_multipath_hash_policy) chooses

BFD tells within about a second that a node is dead; the hold time of BGP alone would let it seem alive for longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from k8snet.cluster import bgp
from k8snet.cluster.layout import family_of
from k8snet.cluster.node import UPLINK
from k8snet.linux.address import host_address
from k8snet.linux.run import wait_until

if TYPE_CHECKING:
    from k8snet.cluster.node import Node
    from k8snet.controllers.load_balancer import LoadBalancer
    from k8snet.controllers.load_balancer_arp import Announcement
    from k8snet.linux.netns import Netns

__all__ = ["Sessions"]

ROUTER_SYSTEM = 64513  # the autonomous system of the router
HASH_POLICY = {"v4": "net.ipv4.fib_multipath_hash_policy", "v6": "net.ipv6.fib_multipath_hash_policy"}
WITH_PORTS = 1  # addresses, protocol and ports; 0 would be the addresses alone
FULL = {"v4": 32, "v6": 128}
BFD = "    bfd yes;\n"
WATCH = """\
protocol bfd {{
    interface "{interface}" {{ interval 200 ms; multiplier 5; }};
}}
"""
MERGED = """\
protocol kernel kernel_{channel} {{
    merge paths yes limit 16;
    {channel} {{ import none; export where source = RTS_BGP; }};
}}
"""
BALANCED = """\
protocol static balancer_{channel} {{
    {channel};
{routes}}}
"""
AWAIT = (  # as a person would wait, in the transcript's script
    'until [ "$({{ ip route show proto bird; ip -6 route show proto bird; }} | grep -c via)" -eq {count} ]; '
    "do sleep 0.1; done"
)


class Sessions:
    """The BGP sessions between nodes and router."""

    def __init__(self, balancer: LoadBalancer) -> None:
        """Let the router spread connections; the BIRDs are started with the first sync()."""
        self.balancer, self.cluster, self.pools = balancer, balancer.cluster, balancer.pools
        network, router = self.cluster.pod_network, self.cluster.router
        self.pod_network = network if isinstance(network, bgp.Bgp) else None
        self.daemons: dict[str, bgp.Bird] = {}  # by netns; without those of the pod network
        self._expected: dict[str, set[str]] = {}  # the next hops of each address
        self._before = {HASH_POLICY[family]: router.sysctl(HASH_POLICY[family]) for family in self.pools}
        router.set_sysctls(dict.fromkeys(self._before, WITH_PORTS))

    def check(self, wanted: Iterable[Any]) -> None:
        """Refuse nothing: the balancer does."""

    def sync(self) -> list[str]:
        """Tell every BIRD what there is to announce, and start those that have ended; return which.

        Raises:
            Timeout: the router still does not know all after 30 s.
        """
        nodes, wanted = self.cluster.nodes, self.balancer.announcements()
        for name in self.daemons.keys() - {"router", *(node.netns.name for node in nodes.values())}:
            self.daemons.pop(name).process.stop()
        texts = {self.cluster.router: self._for_router()}
        if self.pod_network:
            self.pod_network.also({node.netns.name: self._for_node(node, wanted) for node in nodes.values()})
        else:
            texts |= {
                node.netns: bgp.DAEMON.format(router_id=node.addresses["v4"]) + self._for_node(node, wanted)
                for node in nodes.values() if node.ready
            }  # fmt: skip
        repaired = [f"bird in netns {netns.name}" for netns, text in texts.items() if self._run(netns, text)]
        expected = {
            address: {nodes[name].addresses[family_of(address)] for name in one.nodes if nodes[name].ready}
            for one in wanted for address in one.addresses
        }  # fmt: skip
        if repaired or expected != self._expected:
            self._settle({address: hops for address, hops in expected.items() if hops})
            self._expected = expected
        return repaired

    def who(self, address: str) -> list[str]:
        """Return the nodes that the router's kernel sends packets for *address* to."""
        hops = self._hops(family_of(address)).get(address, set())
        return [node.name for node in self.cluster.nodes.values() if hops & set(node.addresses.values())]

    def stop(self) -> None:
        """End what was started, and forget what was announced."""
        if self.pod_network:
            self.pod_network.also({})
        for daemon in self.daemons.values():
            daemon.stop()
        self.daemons.clear()
        self.cluster.router.set_sysctls(self._before)

    def _run(self, netns: Netns, text: str) -> bool:
        """Let a BIRD run with a configuration, and return whether it had ended."""
        if netns.name not in self.daemons:
            self.daemons[netns.name] = bgp.Bird(netns, text)
            return False
        self.daemons[netns.name].reconfigure(text)
        ended = not self.daemons[netns.name].process.running
        if ended:
            self.daemons[netns.name].start()
        return ended

    def _for_node(self, node: Node, wanted: Sequence[Announcement]) -> str:
        parts = [WATCH.format(interface=UPLINK)]
        for family in self.pools:
            channel, own = bgp.CHANNEL[family], node.addresses[family]
            mine = [each for one in wanted if node.name in one.nodes for each in one.addresses]
            routes = "".join(
                f"    route {each}/{FULL[family]} blackhole;  # to be announced; kube-proxy's rules do the work\n"
                for each in mine if family_of(each) == family
            )  # fmt: skip
            parts.append(BALANCED.format(channel=channel, routes=routes))
            parts.append(bgp.session(
                "router", family, (own, self.cluster.fabric.router_addresses[family]), accept="none",
                numbers=(bgp.AUTONOMOUS_SYSTEM, ROUTER_SYSTEM), what=f'where proto = "balancer_{channel}"', more=BFD,
            ))  # fmt: skip
        return "".join(parts)

    def _for_router(self) -> str:
        own = self.cluster.fabric.router_addresses
        parts = [bgp.DAEMON.format(router_id=own["v4"]), WATCH.format(interface=UPLINK)]
        for family, pool in self.pools.items():
            parts.append(MERGED.format(channel=bgp.CHANNEL[family]))
            parts += [
                bgp.session(
                    f"node_{node.number}", family, (own[family], node.addresses[family]), what="none", more=BFD,
                    numbers=(ROUTER_SYSTEM, bgp.AUTONOMOUS_SYSTEM), accept=f"where net ~ [ {pool}+ ]",
                )
                for node in self.cluster.nodes.values()
            ]  # fmt: skip
        return "".join(parts)

    def _settle(self, wanted: dict[str, set[str]]) -> None:
        """Wait until the router sends packets for each address to all nodes that announce it, and to no other."""

        def known() -> bool:
            found = {address: hops for family in self.pools for address, hops in self._hops(family).items()}
            return found == wanted

        wait_until(
            known, what=f"routes of BGP on the router; `birdc -s {self.daemons['router'].socket} show protocols` in a "
            "sandbox's shell says why", timeout_s=bgp.CONVERGED_S, every_s=0.05,
        )  # fmt: skip
        count = sum(map(len, wanted.values()))
        self.cluster.router.record("timeout", f"{bgp.CONVERGED_S:g}", "bash", "-c", AWAIT.format(count=count))

    def _hops(self, family: str) -> dict[str, set[str]]:
        """Return the next hops of every route to one address of the pool that the router's kernel has."""
        number = 2 if family == "v4" else 10

        def body(ipr: Any) -> dict[str, set[str]]:
            found: dict[str, set[str]] = {}
            for route in ipr.get_routes(family=number):
                address = route.get_attr("RTA_DST")
                hops = {path.get_attr("RTA_GATEWAY") for path in route.get_attr("RTA_MULTIPATH") or [route]} - {None}
                if hops and route["dst_len"] == FULL[family] and host_address(address) in self.pools[family]:
                    found.setdefault(address, set()).update(hops)
            return found

        return self.cluster.router.netlink("list routes", body)
