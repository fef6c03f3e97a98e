"""pyroute2 as its documentation has it: netns.create, IPRoute, and a NetNS for each pod."""
from __future__ import annotations

from pyroute2 import IPRoute, NetNS, netns

from benchmarks import plan
from benchmarks.contenders.common import ipv6_off
from benchmarks.play import play


class Documented:
    """Runs inside the node's netns, which is where IPRoute() is then."""

    def build(self, pods: int) -> None:
        """Make the bridge, then pod by pod."""
        self.pods = pods
        with IPRoute() as node:
            node.link("add", ifname=plan.BRIDGE, kind="bridge")
            [bridge] = node.link_lookup(ifname=plan.BRIDGE)
            node.addr("add", index=bridge, address=plan.GATEWAY, prefixlen=plan.PREFIX)
            node.link("set", index=bridge, state="up")
            for number in range(pods):
                self._add(node, bridge, number)

    def _add(self, node: IPRoute, bridge: int, number: int) -> None:
        pod, port = plan.pod(number), plan.port(number)
        netns.create(pod)
        ipv6_off(pod)
        node.link("add", ifname=port, kind="veth", peer={"ifname": "eth0", "net_ns_fd": pod})
        [index] = node.link_lookup(ifname=port)
        node.link("set", index=index, master=bridge, state="up")
        with NetNS(pod) as inside:
            [loopback] = inside.link_lookup(ifname="lo")
            inside.link("set", index=loopback, state="up")
            [eth0] = inside.link_lookup(ifname="eth0")
            inside.link("set", index=eth0, state="up")
            address = plan.address(number)
            inside.addr("add", index=eth0, address=address, prefixlen=plan.PREFIX)
            inside.route("add", dst="default", gateway=plan.GATEWAY)

    def teardown(self) -> None:
        """Remove pod by pod, then the bridge."""
        for number in range(self.pods):
            netns.remove(plan.pod(number))
        with IPRoute() as node:
            [bridge] = node.link_lookup(ifname=plan.BRIDGE)
            node.link("del", index=bridge)


if __name__ == "__main__":
    play(Documented())
