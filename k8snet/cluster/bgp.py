"""BGP: one BIRD a node tells the others of its pod CIDR, and puts what it hears into the kernel.

    mesh        every node speaks to every other one, as Calico does by default
    reflector   every node speaks to the switch, which passes on what it hears

All are of one autonomous system (iBGP), on one link, so the next hop is the node itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from k8snet.cluster.node import UPLINK, Node
from k8snet.errors import CommandFailed
from k8snet.linux.address import network
from k8snet.linux.run import scratch, wait_until

if TYPE_CHECKING:
    from k8snet.cluster.fabric import Fabric
    from k8snet.linux.netns import Netns
    from k8snet.linux.run import Process

__all__ = ["AUTONOMOUS_SYSTEM", "CHANNEL", "CONVERGED_S", "DAEMON", "Bgp", "Bird", "session"]

AUTONOMOUS_SYSTEM = 64512  # of the nodes: the first private one (RFC 6996)
REFLECTOR = 253  # host part of the switch's address on the nodes' network
CONVERGED_S = 30.0
UNICAST = 1  # RTN_UNICAST
AWAIT = (  # as a person would wait, in the transcript's script
    'until [ "$({{ ip -o route show proto bird; ip -6 -o route show proto bird; }} | wc -l)" -ge {count} ]; '
    "do sleep 0.1; done"
)
CHANNEL = {"v4": "ipv4", "v6": "ipv6"}
REFLECT = "    rr client;\n"

DAEMON = """\
router id {router_id};
protocol device {{ scan time 1; }}  # soon after a link comes up, routes over it count
"""
KERNEL = """\
protocol kernel kernel_{channel} {{
    {channel} {{ import none; export where source = RTS_BGP; }};
}}
protocol static pods_{channel} {{
    {channel};
    route {cidr} blackhole;  # to be announced; the kernel has the real one, by {bridge}
}}
"""
SESSION = """\
protocol bgp {name}_{channel} {{
    local {own} as {number};
    neighbor {peer} as {peer_number};
    direct;  # the next hop is on this link
    hold time 9;  # seconds; a peer that is silent for so long is dead
    connect delay time 1;
    connect retry time 1;
    error wait time 1, 2;
    {channel} {{ import {accept}; export {what}; {more}}};
{client}}}
"""


class Bgp:
    """Routes between nodes that BIRD learns from its peers (bird.network.cz, user's guide 2.0)."""

    kind = "bgp"

    def __init__(self, fabric: Fabric, *, reflector: bool) -> None:
        """Prepare; a BIRD is started with each node that joins.

        Args:
            reflector: let the switch be a route reflector instead of a full mesh of nodes.
        """
        self._fabric, self._reflector = fabric, reflector
        self._daemons: dict[str, Bird] = {}  # by netns
        self._nodes: list[Node] = []
        self._beside: Mapping[str, str] = {}  # netns -> what its BIRD does beside this
        if reflector:
            self._reflectors = {family: str(net[REFLECTOR]) for family, net in fabric.networks.items()}
            for family, address in self._reflectors.items():
                fabric.switch.add_address("br0", f"{address}/{fabric.networks[family].prefixlen}")

    def mtu(self, families: Sequence[str]) -> int:  # noqa: ARG002  # the same for all
        """Return the MTU of the pods' interfaces, in bytes."""
        return 1500

    def join(self, node: Node, others: Sequence[Node]) -> None:
        """Start the node's BIRD, and tell the others of it."""
        self._nodes = [*others, node]
        self._configure()

    def leave(self, node: Node, others: Sequence[Node]) -> None:
        """Stop the node's BIRD; the others withdraw its routes when the session ends."""
        self._nodes = list(others)
        if daemon := self._daemons.pop(node.netns.name, None):
            daemon.process.stop()
        self._configure()
        self.settle()

    def also(self, texts: Mapping[str, str]) -> None:
        """Let the BIRDs of some netns do more: what is added to their configurations, by netns."""
        self._beside = texts
        self._configure()

    def repair(self, nodes: Sequence[Node]) -> list[str]:
        """Start each BIRD that has ended again, and return what that was."""
        away = {node.netns.name for node in self._nodes if node not in nodes}
        ended = [one for name, one in self._daemons.items() if not one.process.running and name not in away]
        for bird in ended:
            bird.start()
        if ended:
            self.settle()
        return [f"bird in netns {bird.netns.name}" for bird in ended]

    def settle(self) -> None:
        """Wait until every node that is ready has a route to the pods of every other such.

        Raises:
            Timeout: it still did not after 30 s.
        """
        nodes = [node for node in self._nodes if node.ready]
        for node in nodes:
            wanted = {cidr for other in nodes if other is not node for cidr in other.pod_cidrs.values()}
            wait_until(
                lambda node=node, wanted=wanted: _destinations(node.netns, wanted) == wanted,  # type: ignore[misc]
                what=f"routes of BGP on {node.name}; `birdc -s {self._daemons[node.netns.name].socket} show protocols` "
                "in a sandbox's shell says why", timeout_s=CONVERGED_S, every_s=0.05,
            )  # fmt: skip
        for node in nodes if len(nodes) > 1 else ():
            count = len(node.pod_cidrs) * (len(nodes) - 1)
            node.netns.record("timeout", f"{CONVERGED_S:g}", "bash", "-c", AWAIT.format(count=count))

    def hop(self, node: Node, other: Node, family: str) -> tuple[str, str]:  # noqa: ARG002  # the same on every node
        """Return the other node's address, on the nodes' own link."""
        return other.addresses[family], UPLINK

    def daemon(self, netns: str) -> Process:
        """Return the BIRD that runs in a netns."""
        return self._daemons[netns].process

    # -- what the daemons are told -----------------------------------------------------

    def _configure(self) -> None:
        """Give every BIRD its configuration; start those that are new."""
        places = {node.netns: self._for_node(node) for node in self._nodes}
        if self._reflector:
            places[self._fabric.switch] = self._for_reflector()
        for netns, own in places.items():
            text = own + self._beside.get(netns.name, "")
            if netns.name not in self._daemons:
                self._daemons[netns.name] = Bird(netns, text)
            else:
                self._daemons[netns.name].reconfigure(text)

    def _for_node(self, node: Node) -> str:
        parts = [DAEMON.format(router_id=_router_id(node))]
        for family, cidr in node.pod_cidrs.items():
            parts.append(KERNEL.format(channel=CHANNEL[family], cidr=network(cidr), bridge="cni0"))
            own = node.addresses[family]
            if self._reflector:
                peers = [("reflector", self._reflectors[family])]
            else:
                peers = [(f"node_{peer.number}", peer.addresses[family]) for peer in self._nodes if peer is not node]
            parts += [_inside(name, family, own, address, mine=True) for name, address in peers]
        return "".join(parts)

    def _for_reflector(self) -> str:
        parts = [DAEMON.format(router_id=self._reflectors["v4"])]
        for family, own in self._reflectors.items():
            parts += [
                _inside(f"node_{node.number}", family, own, node.addresses[family], mine=False)
                for node in self._nodes
            ]  # fmt: skip
        return "".join(parts)


def session(
    name: str, family: str, ends: tuple[str, str], *, numbers: tuple[int, int], accept: str, what: str, more: str = ""
) -> str:
    """Return the configuration of a BGP session, in which the next hop is the speaker itself, except for reflectors.

    Args:
        ends: the addresses of both ends, the own one first, and
        numbers: their autonomous systems.
        accept: which routes of the peer are believed, and
        what: which are told to it, as BIRD's filters say it.
        more: further lines.
    """
    return SESSION.format(
        name=name, channel=CHANNEL[family], own=ends[0], peer=ends[1], number=numbers[0], peer_number=numbers[1],
        accept=accept, what=what, more="" if more == REFLECT else "next hop self; ", client=more,
    )  # fmt: skip


def _inside(name: str, family: str, own: str, peer: str, *, mine: bool) -> str:
    """Return a session between nodes, in which one announces its own pods, or a reflector what it hears."""
    what = f'where proto = "pods_{CHANNEL[family]}"' if mine else "where source = RTS_BGP"
    return session(
        name, family, (own, peer), numbers=(AUTONOMOUS_SYSTEM, AUTONOMOUS_SYSTEM), accept="all", what=what,
        more="" if mine else REFLECT,
    )  # fmt: skip


def _router_id(node: Node) -> str:
    return node.addresses["v4"]


def _destinations(netns: Netns, wanted: set[str]) -> set[str]:
    def body(ipr: Any) -> set[str]:
        routes = [*ipr.get_routes(family=2), *ipr.get_routes(family=10)]
        return {f"{one.get_attr('RTA_DST')}/{one['dst_len']}" for one in routes if one["type"] == UNICAST} & wanted

    return netns.netlink("list routes", body)


class Bird:
    """A BIRD in a netns."""

    def __init__(self, netns: Netns, text: str) -> None:
        """Start it with a configuration."""
        self.netns = netns
        self.folder = scratch() / f"bird-{netns.name}"
        self.folder.mkdir(exist_ok=True)
        self.file, self.socket = self.folder / "bird.conf", self.folder / "bird.ctl"
        self.file.write_text(text)
        self._record(text, "bird", "-c", str(self.file), "-s", str(self.socket))
        self.start()

    def start(self) -> None:
        """Start it, and wait until it can be spoken to."""
        self.socket.unlink(missing_ok=True)
        self.process = self.netns.popen(
            "bird", "-f", "-c", str(self.file), "-s", str(self.socket), keep_output=True
        )
        wait_until(
            lambda: self.socket.exists() or not self.process.running, what=f"bird in netns {self.netns.name}"
        )
        if not self.process.running:
            code, said = self.process.popen.returncode, self.process.output()
            raise CommandFailed(self.process.argv, code, said, self.netns.name)

    def stop(self) -> None:
        """End it; it takes its routes away. Like: birdc down."""
        self.process.stop()
        self.netns.record("birdc", "-s", str(self.socket), "down")

    def reconfigure(self, text: str) -> None:
        """Let it read another configuration; sessions that stay the same go on."""
        if text == self.file.read_text():
            return
        self.file.write_text(text)
        self._record(text, "birdc", "-s", str(self.socket), "configure")
        with contextlib.suppress(CommandFailed):  # it has ended: repair() will start it with this configuration
            self.netns.run("birdc", "-s", str(self.socket), "configure")

    def _record(self, text: str, *command: str) -> None:
        self.netns.record("mkdir", "-p", str(self.folder))
        self.netns.record("tee", str(self.file), stdin=text)
        self.netns.record(*command)

