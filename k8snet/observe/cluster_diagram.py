"""Diagrams of a cluster: nodes with their pods, the underlay on one side of them, the overlay on the other.

The shapes are those of diagram.py, laid out by hand so that each kind of thing has its place:

    frame "node"     a node's netns, with its pods; interfaces that lead out touch its edge
    rounded box      a pod: name, address, containers; dashed if its interface is down or it is not ready
    double box       a bridge; the wide one is the switch
    solid line       a cable (veth pair): the underlay, below the nodes, or to the right of them
    dashed line      a cable with an end that is down or has no carrier
    thin line        a pod's cable into its bridge
    dashed arc       a VXLAN tunnel, from FDB entries: the overlay, above the nodes, or to the left;
                     with an arrow where one end alone knows of the other
    dotted line      from a VXLAN interface to the one that its packets leave by
    thick, marked    what is new since an earlier snapshot, or what a packet passes, numbered
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from k8snet.errors import InvalidInput
from k8snet.observe.cluster_layout import WIDEST, Drawing
from k8snet.observe.diagram import Diagram, Options, checked_path
from k8snet.observe.svg import finished
from k8snet.observe.values import NetnsState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from k8snet.cluster.cluster import Cluster
    from k8snet.cluster.node import Node
    from k8snet.cluster.pod import Pod
    from k8snet.observe.snapshot import Snapshot
    from k8snet.observe.values import Interface

__all__ = ["Guest", "Home", "Link", "draw"]


def draw(
    cluster: Cluster, *, caption: str | None = None, since: Snapshot | None = None, only: Iterable[str] | None = None,
    routes: bool = False, rules: bool = False, pods: bool = True, fabric: bool = True,
    path: Iterable[str] = (), direction: str | None = None,
) -> Diagram:  # fmt: skip
    """Draw a cluster as it is now.

    Args:
        caption: a full sentence that says what to see.
        since: an earlier snapshot; what has changed since is marked.
        only: the names of the nodes to show; None shows all.
        routes: with each node's routing table.
        rules: with each node's netfilter rules.
        pods: with the pods.
        fabric: with switch, router, internet, and whatever else the lab has.
        path: the interfaces that a packet passes, in order, each as "netns/interface"; they are numbered.
        direction: "TB" puts nodes side by side, "LR" one under another; None takes what fits a page.

    Raises:
        NotFound: *only* or *path* names something that is not there.
        InvalidInput: no such direction.
    """
    if direction not in {None, "LR", "TB"}:
        raise InvalidInput(f"direction {direction!r}: 'LR', 'TB' or None")
    with cluster.lock:
        nodes = [cluster.node(name) for name in dict.fromkeys(cluster.nodes if only is None else only)]
        snapshot = cluster.snapshot()
        options = Options(
            routes=routes, rules=rules, loopback=False, macs=False, sockets=False, before=since,
            path=checked_path(snapshot, path),
        )  # fmt: skip
        homes = _homes(cluster, snapshot, nodes, waiting=only is None, pods=pods)
        beyond = _beyond(cluster, snapshot) if fabric else []
    links, before = _links([home.state for home in homes]), []
    if since:
        before = _links([state for home in homes if (state := since.find(home.state.name))])
    parts: dict[str, Any] = {
        "homes": homes, "beyond": beyond, "options": options, "links": links,
        "fresh": {one.ends for one in links} - {one.ends for one in before} if since else set(),
        "gone": [name for name in since.names if name not in snapshot] if since else [],
    }  # fmt: skip
    drawing = Drawing(**parts, down=direction != "LR")
    if direction is None and drawing.width > WIDEST and (other := Drawing(**parts, down=False)).width < drawing.width:
        drawing = other
    return Diagram(finished(drawing.svg()), _describe(drawing, cluster.pod_network.kind, snapshot), caption)


# -- facts -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Guest:
    """A pod, and the state of its netns."""

    pod: Pod
    state: NetnsState | None
    ready: bool

    @property
    def name(self) -> str:
        """Its name, with its namespace where that is not the default one."""
        return self.pod.key.removeprefix("default/")

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """All but lo."""
        return tuple(one for one in self.state.interfaces if one.kind != "loopback") if self.state else ()

    @property
    def addresses(self) -> list[str]:
        """The addresses that its netns has now, without their prefix length."""
        return [address.partition("/")[0] for one in self.interfaces for address in one.addresses]

    @property
    def trouble(self) -> str:
        """Why it is dashed; nothing if all is well."""
        if self.state is None or not self.interfaces:
            return self.pod.phase if self.pod.phase != "Running" else "no interface"
        found = next((one for one in self.interfaces if one.state != "up"), None)
        if found and not self.pod.host_network:
            return f"{found.name} {found.state}"
        return "" if self.ready else "not ready"

    def change(self, options: Options) -> str:
        """Return "new", "changed" or ""; a host's network tells nothing of its pods."""
        if options.before is None or self.state is None or self.pod.host_network:
            return ""
        if self.state.name not in options.before:
            return "new"
        return "changed" if any(options.mark(self.state, one) for one in self.interfaces) else ""

    @property
    def containers(self) -> list[str]:
        """Name, image without registry and tag, and state where it does not run."""
        return [
            f"{one.name}: {one.image.rpartition('/')[2].partition('@')[0].partition(':')[0]}"
            + (f" ({one.state})" if one.state != "Running" and self.state else "")
            for one in self.pod.containers
        ]


@dataclass(frozen=True, kw_only=True)
class Home:
    """A node with its pods; without a node, the pods that wait for one."""

    node: Node | None
    state: NetnsState
    guests: tuple[Guest, ...]

    def cables(self, guest: Guest) -> list[Interface]:
        """Return the node's ends of a pod's veth pairs."""
        own = None if guest.pod.host_network or guest.state is None else guest.state.name
        return [one for one in self.state.interfaces if own and one.peer and one.peer.netns == own]

    def outward(self) -> list[Interface]:
        """Return the interfaces that lead out of the node, or nowhere."""
        inside = {one.name for guest in self.guests for one in self.cables(guest)}
        kinds = {"loopback", "bridge", "vxlan"}
        return [one for one in self.state.interfaces if one.kind not in kinds and one.name not in inside]

    def of_kind(self, kind: str) -> list[Interface]:
        """Return the interfaces of a kind."""
        return [one for one in self.state.interfaces if one.kind == kind]


@dataclass(frozen=True)
class Link:
    """A VXLAN tunnel between two nodes, as the FDB entries of one or of both have it."""

    here: tuple[str, str]  # netns, interface
    there: tuple[str, str]
    vni: str
    mutual: bool  # False: the far end does not know of it

    @property
    def ends(self) -> frozenset[tuple[str, str]]:
        """Both ends, whichever knows of the other."""
        return frozenset((self.here, self.there))


def _homes(cluster: Cluster, snapshot: Snapshot, nodes: list[Node], *, waiting: bool, pods: bool) -> list[Home]:
    placed: list[tuple[Node | None, list[Pod]]] = [(node, list(node.pods.values()) if pods else []) for node in nodes]
    if waiting and pods and (homeless := [pod for pod in cluster.pods.values() if pod.node is None]):
        placed.append((None, homeless))
    every = [pod for _, some in placed for pod in some]
    with ThreadPoolExecutor(8, thread_name_prefix="k8snet-ready") as pool:  # a readiness probe may take a second
        ready = dict(zip(every, pool.map(lambda pod: pod.ready, every), strict=True))
    hidden = set() if pods else {pod.own_netns.name for pod in cluster.pods.values() if pod.own_netns}
    found = []
    for node, some in placed:
        states = [(pod, snapshot.find(pod.own_netns.name) if pod.own_netns else None) for pod in some]
        guests = tuple(Guest(pod=pod, state=state, ready=ready[pod]) for pod, state in states)
        name = node.netns.name if node else ""
        state = snapshot.find(name) or NetnsState(name=name, interfaces=())
        shown = tuple(one for one in state.interfaces if not (one.peer and one.peer.netns in hidden))
        found.append(Home(node=node, state=replace(state, interfaces=shown), guests=guests))
    return found


def _beyond(cluster: Cluster, snapshot: Snapshot) -> list[NetnsState]:
    """Return the switch, the router, the internet, and netns that somebody added by hand."""
    first = [cluster.switch.name, cluster.router.name, cluster.internet.name]
    inside = {node.netns.name for node in cluster.nodes.values()}
    inside |= {pod.own_netns.name for pod in cluster.pods.values() if pod.own_netns}
    rest = [state.name for state in snapshot if state.name not in {*first, *inside}]
    found = [state for name in [*first, *rest] if (state := snapshot.find(name))]
    return [state for state in found if not state.pristine]


def _links(states: list[NetnsState]) -> list[Link]:
    """Return the tunnels between netns: an FDB entry names the far one's address, its MAC the far interface."""
    holders = {address.partition("/")[0]: state for state in states for address in state.addresses}
    told: dict[tuple[tuple[str, str], tuple[str, str]], str] = {}
    for state in states:
        vnis = {one.name: dict(one.details)["id"] for one in state.interfaces if one.kind == "vxlan"}
        for entry in state.fdb:
            far, vni = holders.get(entry.remote or ""), vnis.get(entry.port)
            if far is None or far is state or vni is None:
                continue
            ends = [one for one in far.interfaces if one.kind == "vxlan" and dict(one.details)["id"] == vni]
            ends = [one for one in ends if one.mac == entry.mac] or ends  # frames to all have MAC 0
            told |= {((state.name, entry.port), (far.name, one.name)): vni for one in ends[:1]}
    order = {state.name: number for number, state in enumerate(states)}
    pairs = [pair for pair in told if pair[::-1] not in told or order[pair[0][0]] < order[pair[1][0]]]
    pairs.sort(key=lambda pair: [order[end[0]] for end in pair])
    return [Link(*pair, vni=told[pair], mutual=pair[::-1] in told) for pair in pairs]


# -- in words --------------------------------------------------------------------------


def _describe(drawing: Drawing, kind: str, snapshot: Snapshot) -> str:
    """Return what the drawing shows, in sentences."""
    homes, options = drawing.homes, drawing.options
    nodes = [home.node for home in homes if home.node]
    pods = sum(len(node.pods) for node in nodes) + sum(len(home.guests) for home in homes if not home.node)
    said = [f"A diagram of a cluster: {_count(len(nodes), 'node')}, {_count(pods, 'pod')}, pod network {kind}."]
    for home in homes:
        said.append(_home_in_words(home))
        said += [f"Its {table}: {'; '.join(lines)}." for table, lines in options.tables(home.state).items()]
    for state in drawing.beyond:
        ends = [one.peer.netns for one in state.interfaces if one.peer and one.peer.netns]
        addresses = f" has {', '.join(state.addresses)} and" if state.addresses else ""
        said.append(f"Underlay: {state.name}{addresses} is joined to {', '.join(ends) or 'nothing'}.")
    if drawing.links:
        said.append(f"Overlay (dashed): {'; '.join(map(_link_in_words, drawing.links))}.")
    if options.path:
        said.append(f"A packet passes {', then '.join(options.path)}.")
    if options.before is not None:
        changes = options.before.diff(snapshot).changes
        said.append(f"Changed since the last one: {'; '.join(map(str, changes)) or 'nothing'}.")
    return " ".join(said)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _home_in_words(home: Home) -> str:
    pods = "; ".join(map(_guest_in_words, home.guests)) or _count(len(home.node.pods) if home.node else 0, "pod")
    if home.node is None:
        return f"Pods that wait for a node: {pods}."
    have = [
        f"{one.name} {' and '.join(one.addresses)}".strip() + (f" ({one.state})" if one.state != "up" else "")
        for one in [*home.outward(), *home.of_kind("vxlan"), *home.of_kind("bridge")]
    ]
    cidrs = " and ".join(home.node.pod_cidrs.values())
    return f"{home.node.name} has {', '.join(have) or 'no interface'}, and the pod CIDR {cidrs}. On it: {pods}."


def _guest_in_words(guest: Guest) -> str:
    words = [guest.name, " and ".join(guest.pod.addresses if guest.pod.host_network else guest.addresses)]
    words += ["on the host network"] if guest.pod.host_network else []
    words += [f"({', '.join(guest.containers)})"]
    words += [guest.trouble] if guest.trouble else []
    return " ".join(filter(None, words))


def _link_in_words(link: Link) -> str:
    ends = ["/".join(link.here), "/".join(link.there)]
    return f"VXLAN {link.vni} {' and '.join(ends) if link.mutual else f'from {ends[0]} to {ends[1]} only'}"
