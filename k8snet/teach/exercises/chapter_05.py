"""Exercises of chapter 05: the pod."""

from __future__ import annotations

from typing import TYPE_CHECKING

from k8snet.teach.exercise import Exercise
from k8snet.teach.grade import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from k8snet.observe.snapshot import Snapshot
    from k8snet.observe.values import Interface, NetnsState
    from k8snet.teach.grade import Prober

__all__ = ["EXERCISES"]

NODES = {"node1": "172.18.0.1", "node2": "172.18.0.2"}
LOCAL, STRANGE, METRICS = 9090, 4242, 9100  # ports
JOBS = ("job1", "job2", "job3")


def _listens(state: NetnsState, protocol: str, port: int) -> bool:
    return any((one.protocol, one.port) == (protocol, port) for one in state.sockets)


def _address(network: Snapshot, pod: str) -> str | None:
    """Return the address of a pod's eth0, without its length."""
    eth0 = network[pod].interface("eth0") if pod in network else None
    return eth0.addresses[0].partition("/")[0] if eth0 and eth0.addresses else None


# -- one more container ------------------------------------------------------------------


def _join(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    address = _address(network, "web")
    if address is None:
        yield Finding(False, "the pod `web` is gone; run again from `The same by library`")
        return
    found = _listens(network["web"], "tcp", LOCAL)
    where = "" if found or not _listens(network["node1"], "tcp", LOCAL) else ", but somebody does in `node1`"
    text = f"a socket of web's netns has port {LOCAL}" if found else f"nobody in web's netns has port {LOCAL}{where}"
    yield Finding(found, text)
    inside = probe.connect("web", "127.0.0.1", LOCAL)
    yield Finding(inside.ok, f"from a container of web: {inside}")
    outside = probe.connect("node1", address, LOCAL, timeout_s=0.5)
    text = f"it is open to others: {outside}" if outside.ok else f"from node1, {address}:{LOCAL} is {outside.outcome}"
    yield Finding(not outside.ok, text)
    page = probe.fetch("node1", f"http://{address}")
    yield Finding(page.ok, "nginx still answers" if page.ok else f"nginx: {page}")


JOIN = Exercise(
    slug="05-join",
    title="a container for its neighbours",
    task=(
        f"Give `web` a third container, a server on port {LOCAL} (what it says does not matter). The other "
        f"containers of the pod must reach it at `127.0.0.1:{LOCAL}`; from `node1`, at the address of the pod, it must "
        "not be reached. No rule of a firewall is needed."
    ),
    hints=(
        "In which netns must the process be, and on which of its addresses may it listen?",
        "`%%netns web` starts what you type in that netns. `socat TCP-LISTEN:…` takes `bind=ADDRESS`.",
        f"`socat TCP-LISTEN:{LOCAL},bind=127.0.0.1,reuseaddr,fork EXEC:date &`",
    ),
    check=_join,
)


# -- the pod of a process ----------------------------------------------------------------


def _cable(network: Snapshot, pod: str) -> Interface | None:
    """Return the node's end of a pod's cable."""
    eth0 = network[pod].interface("eth0") if pod in network else None
    if eth0 is None or eth0.peer is None or eth0.peer.netns is None:
        return None
    return network[eth0.peer.netns].interface(eth0.peer.interface)


def _whose(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    pods = [name for name in JOBS if name in network]
    culprit = next((name for name in pods if _listens(network[name], "udp", STRANGE)), None)
    if culprit is None:
        yield Finding(False, "the process was ended; it is asked to live. Run the cell before the exercise again")
        return
    yield Finding(True, "the process still runs")
    port = _cable(network, culprit)
    off = port is not None and not port.up
    yield Finding(off, "the cable of its pod is cut" if off else "the cable of its pod is not cut")
    address = _address(network, culprit)
    kept = address is not None and "eth0" in [one.name for one in network[culprit].interfaces]
    yield Finding(kept, "the pod keeps its eth0 and its address" if kept else "its eth0 was taken apart; cut it only")
    for name in (*(one for one in pods if one != culprit), "web"):
        answer = probe.ping("node1", _address(network, name) or "192.0.2.1", timeout_s=0.5)
        yield Finding(answer.ok, f"{name} is reached as before" if answer.ok else f"{name} was cut off, too: {answer}")


WHOSE = Exercise(
    slug="05-whose",
    title="whose process is it?",
    task=(
        "All that is known of a process is its id, which is printed above. It is in one of the pods `job1`, `job2` and "
        "`job3`. Find out in which, and cut that pod off: on `node1`, take the end of its cable down. Let the process "
        "live, as evidence, and leave the other pods alone."
    ),
    hints=(
        "`/proc/PID/ns/net` is the same number for all processes of a pod; one command of `ip netns` knows its name.",
        "`ip netns identify PID`. Then read `eth0@ifN` in that netns: N is the number of the other end, on `node1`.",
        "On `node1`: `ip link set dev veth… down`, with the name that `ip link` has for that number.",
    ),
    check=_whose,
)


# -- two containers, two ports -----------------------------------------------------------


def _two_ports(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    address = _address(network, "shop-2")
    if address is None:
        yield Finding(False, "there is no pod `shop-2` yet")
        return
    yield Finding(True, f"shop-2 has one address, {address}")
    for port in (80, 8080):
        found = _listens(network["shop-2"], "tcp", port)
        yield Finding(found, f"port {port} of its netns is {'taken' if found else 'nobody’s'}")
        answer = probe.fetch("web", f"http://{address}:{port}", timeout_s=1)
        yield Finding(answer.ok, f"web gets a page from {address}:{port}" if answer.ok else f"from web: {answer}")


TWO_PORTS = Exercise(
    slug="05-two-ports",
    title="two servers, two ports",
    task=(
        "Both containers of the pod `shop` want port 80, and one of them fails. The ports of a pod that exists cannot "
        "be changed, so make a second one from a better manifest: `shop-2`, whose `front` serves port 80 and whose "
        "`admin` serves port 8080, both at the one address of `shop-2`."
    ),
    hints=(
        "A container's `ports` in the manifest say on which port k8snet lets it listen; without them, nginx takes 80.",
        (
            "`cluster.apply` takes the text of a manifest; the cell before the exercise has one. Change the name of "
            "the pod, and add one line to `admin`: `ports: [{containerPort: 8080}]`"
        ),
    ),
    check=_two_ports,
)


# -- in the node's own network -----------------------------------------------------------


def _on_every_node(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    for node, address in NODES.items():
        if node not in network:
            yield Finding(False, f"there is no `{node}`; run the cell before the exercise")
            return
        own = _listens(network[node], "tcp", METRICS)
        text = f"a socket of {node}'s own netns has port {METRICS}"
        yield Finding(own, text if own else f"no socket of {node}'s own netns has port {METRICS}")
        answer = probe.connect("web", address, METRICS, timeout_s=1)
        yield Finding(answer.ok, f"from web: {answer}")


ON_EVERY_NODE = Exercise(
    slug="05-on-every-node",
    title="one on every node",
    task=(
        f"Start a pod on each of the two nodes that serves port {METRICS} in the network of its node, so that `web` "
        f"reaches them at `{NODES['node1']}:{METRICS}` and `{NODES['node2']}:{METRICS}`."
    ),
    hints=(
        "Which field of a pod lets it do without a netns of its own?",
        "`cluster.run_pod(NAME, node=…, host_network=True, ports=[…])`, once for each node; or a DaemonSet.",
    ),
    check=_on_every_node,
)

EXERCISES: tuple[Exercise, ...] = (JOIN, WHOSE, TWO_PORTS, ON_EVERY_NODE)
