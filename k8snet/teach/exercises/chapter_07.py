"""Exercises of chapter 07: pods across nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from k8snet.teach.exercise import Exercise
from k8snet.teach.grade import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from k8snet.observe.snapshot import Snapshot
    from k8snet.observe.values import NetnsState
    from k8snet.teach.grade import Prober

__all__ = ["EXERCISES"]

OVERLAY = "flannel.1"
NODES = {1: "172.18.0.1", 2: "172.18.0.2", 3: "172.18.0.3"}
PODS = {"client": "10.244.1.2", "web": "10.244.2.2", "db": "10.244.3.2"}
BIG_PAGE, BIG = f"http://{PODS['web']}:8080", 4000  # bytes
BIRD_METRIC = 32  # what bird gives to routes that others need not


def _answers(probe: Prober, source: str, target: str) -> Finding:
    answer = probe.ping(source, PODS[target], timeout_s=0.8)
    return Finding(answer.ok, f"{source} reaches {target}" if answer.ok else f"from {source}, for {target}: {answer}")


def _missing(network: Snapshot) -> Finding | None:
    lost = [name for name in (*(f"node{n}" for n in NODES), *PODS) if name not in network]
    if not lost:
        return None
    return Finding(False, f"there is no netns `{lost[0]}`; run again from the cell that builds this cluster")


# -- a bird that keeps silent --------------------------------------------------------------


def _silent_bird(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    if missing := _missing(network):
        yield missing
        return
    for name in ("node1", "node2"):
        found = [one for one in network[name].routes if one.destination == "10.244.3.0/24"]
        text = f"{name} has no route to 10.244.3.0/24"
        if found:
            by_bird = found[0].metric == BIRD_METRIC and found[0].via == NODES[3]
            text = f"{name}: {found[0]}" + ("" if by_bird else ", which is not from its bird")
        yield Finding(bool(found) and by_bird, text)
    yield _answers(probe, "client", "db")
    yield _answers(probe, "db", "web")


SILENT_BIRD = Exercise(
    slug="07-silent-bird",
    title="a bird that keeps silent",
    task=(
        "`db` runs on node3, and nobody on the other nodes reaches it. The session of each pair of birds is up. Let "
        "the others learn the way to the pods of node3, from its bird and not by hand."
    ),
    hints=(
        "Who lacks the route: node3, or the other two? And what has node3 announced?",
        (
            "`birdc -s /run/k8snet/bird-node3/bird.ctl show protocols all`: compare the lines `Output filter` and "
            "`Routes` with those of node1."
        ),
        (
            '`export none` in `/run/k8snet/bird-node3/bird.conf` has to be `export where proto = "pods_ipv4"`, as in '
            "the files of the others; then `birdc … configure`."
        ),
    ),
    check=_silent_bird,
)


# -- a node joins --------------------------------------------------------------------------


def _entries(network: Snapshot, here: int, there: int) -> Iterator[Finding]:
    """Return whether a node has flannel's three entries for another one, each as it should be."""
    node, other = network[f"node{here}"], network[f"node{there}"].interface(OVERLAY)
    if other is None or other.mac is None:
        yield Finding(False, f"node{there} has no {OVERLAY}; run again from the cell that builds this cluster")
        return
    anchor, mac, address = f"10.244.{there}.0", other.mac, NODES[there]
    routes = [one for one in node.routes if one.destination == f"{anchor}/24"]
    right = [(one.via, one.device) for one in routes] == [(anchor, OVERLAY)]
    yield Finding(right, f"node{here}: {routes[0] if routes else f'no route to {anchor}/24'}")
    macs = [one.mac for one in node.neighbours if one.address == anchor and one.state == "PERMANENT"]
    known = f"is {macs[0]}" if macs else "is not written down"
    wrong = f", but node{there} has {mac}" if macs and macs != [mac] else ""
    yield Finding(macs == [mac], f"node{here}: the MAC of {anchor} {known}{wrong}")
    yield _behind(node, mac, address)


def _behind(node: NetnsState, mac: str, address: str) -> Finding:
    remotes = [one.remote for one in node.fdb if one.port == OVERLAY and one.mac == mac]
    behind = " and ".join(filter(None, remotes)) or "no node at all"
    return Finding(remotes == [address], f"{node.name}: frames for {mac} are sent to {behind}")


def _join_node(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    if missing := _missing(network):
        yield missing
        return
    for here in (1, 2):
        yield from _entries(network, here, 3)
    yield _answers(probe, "client", "db")
    yield _answers(probe, "db", "web")


JOIN_NODE = Exercise(
    slug="07-join-node",
    title="a node joins",
    task=(
        "node3 has come back, and knows the way to the pods of the two others. These know nothing of node3: write into "
        "node1 and node2 what flannel would, so that `db` on node3 reaches `client` and `web`, and they reach it."
    ),
    hints=(
        "It takes the three entries that you wrote by hand, on each of the two nodes.",
        "`ip -br link show flannel.1` on node3 tells its MAC; its anchor is 10.244.3.0, its address 172.18.0.3.",
        (
            "`ip route add 10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink`, then `ip neighbour replace … nud "
            "permanent`, then `bridge fdb append MAC dev flannel.1 dst 172.18.0.3`."
        ),
    ),
    check=_join_node,
)


# -- the wrong node ------------------------------------------------------------------------


def _wrong_node(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    if missing := _missing(network):
        yield missing
        return
    right = True
    for here in NODES:
        for there in NODES:
            if here != there:
                findings = list(_entries(network, here, there))
                right &= all(one.ok for one in findings)
    yield Finding(right, "every entry of every node is right" if right else "some node still sends frames elsewhere")
    for source in PODS:
        for target in PODS:
            if source != target:
                yield _answers(probe, source, target)


WRONG_NODE = Exercise(
    slug="07-wrong-node",
    title="the wrong node",
    task=(
        "Somebody has tidied up, and since then two pods of this cluster cannot talk to each other; which two differs "
        "each time you run the cell above. One entry of one node is wrong. Find it, and put it right."
    ),
    hints=(
        (
            "Two pods fail in both directions, though one way is good: capture on `eth0` of both nodes, and see which "
            "packet does not come where it should."
        ),
        "Compare what `bridge fdb show dev flannel.1` says on each node with the MAC of each `flannel.1`.",
        "`bridge fdb delete MAC dev flannel.1 dst WRONG`, then `bridge fdb append MAC dev flannel.1 dst RIGHT`.",
    ),
    check=_wrong_node,
)


# -- a black hole --------------------------------------------------------------------------


def _forbidden(node: NetnsState) -> bool:
    """Return whether the first rule for what a node sends drops ICMP `fragmentation needed`."""
    table, rules = "", []
    for line in node.lines("iptables-nft"):
        table = line if line.startswith("*") else table
        if table == "*filter" and line.startswith("-A OUTPUT "):
            rules.append(line)
    named = ("fragmentation-needed", "--icmp-type 3/4")
    return bool(rules) and rules[0].endswith("-j DROP") and any(name in rules[0] for name in named)


def _black_hole(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    if missing := _missing(network):
        yield missing
        return
    for caller in ("client", "db"):
        page = probe.fetch(caller, BIG_PAGE, timeout_s=1)
        got = page.ok and len(page.body) >= BIG
        yield Finding(got, f"{caller} gets {len(page.body)} bytes from port 8080 of web")
        yield Finding(probe.fetch(caller, f"http://{PODS['web']}").ok, f"{caller} asks for the small page")
    for number in NODES:
        node = network[f"node{number}"]
        kept = _forbidden(node)
        yield Finding(kept, f"{node.name} {'keeps' if kept else 'does not keep'} the rule of the security department")
        sizes = {name: one.mtu for name in ("eth0", OVERLAY) if (one := node.interface(name))}
        same = sizes == {"eth0": 1500, OVERLAY: 1450}
        if not same:
            yield Finding(False, f"{node.name}: the MTUs are {sizes}; leave eth0 at 1500 and {OVERLAY} at 1450")


BLACK_HOLE = Exercise(
    slug="07-black-hole",
    title="a black hole",
    task=(
        "Pods were made with an MTU of 1500, and the security department lets no node send ICMP `fragmentation "
        "needed`. Small pages come, the big one on port 8080 of `web` does not. Let it come, for `client` and for "
        "`db`. The rule has to stay, and so has the MTU of the nodes' interfaces."
    ),
    hints=(
        "Who makes the big packets, and what could tell it how big they may be, now that no node will?",
        "A pod's own MTU goes into the MSS that its TCP announces. `ip -n web link show eth0`, on any node.",
        (
            "`ip -n web link set dev eth0 mtu 1450`, and so for `client` and `db`. (Where pods cannot be touched, "
            "nodes can: `iptables -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu`.)"
        ),
    ),
    check=_black_hole,
)

EXERCISES: tuple[Exercise, ...] = (SILENT_BIRD, JOIN_NODE, WRONG_NODE, BLACK_HOLE)
