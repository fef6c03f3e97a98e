"""Exercises of chapter 03: bridges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from k8snet.teach.exercise import Exercise
from k8snet.teach.grade import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from k8snet.observe.snapshot import Snapshot
    from k8snet.observe.values import Interface
    from k8snet.teach.grade import Prober

__all__ = ["EXERCISES"]

BRIDGE = "docker0"
MACHINE = "192.168.1.10"  # the host's own address on its LAN
NOISY = "02:42:ac:11:00:0c"
PINNED = "02:42:ac:11:00:14"  # the MAC of eth0 in the netns that the engine made


def _port_of(network: Snapshot, name: str) -> Interface | None:
    """Return the interface of the host that a container's eth0 is joined to."""
    eth0 = network[name].interface("eth0") if name in network else None
    if eth0 is None or eth0.peer is None or eth0.peer.netns != "host":
        return None
    return network["host"].interface(eth0.peer.interface)


# -- a container plugged in --------------------------------------------------------------


def _plug_in(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    if "cache" not in network:
        yield Finding(False, "there is no netns `cache` yet")
        return
    eth0 = network["cache"].interface("eth0")
    right = eth0 is not None and eth0.addresses == ("172.17.0.6/16",)
    yield Finding(right, "cache has eth0 with 172.17.0.6/16" if right else "look at `ip address` inside cache")
    port = _port_of(network, "cache")
    if port is None:
        yield Finding(False, "the other end of cache's cable is not in the host")
        return
    plugged = port.master == BRIDGE and port.up
    yield Finding(plugged, f"{port.name} is {'a live' if plugged else 'not yet a live'} port of {BRIDGE}")
    met = probe.ping("client", "172.17.0.6").ok
    yield Finding(met, f"client {'reaches' if met else 'does not reach'} 172.17.0.6")
    out = probe.ping("cache", MACHINE)
    yield Finding(out.ok, f"cache reaches {MACHINE} beyond the bridge" if out.ok else f"from cache: {out}")


PLUG_IN = Exercise(
    slug="03-plug-in",
    title="one more container",
    task=(
        "Plug a container `cache` into `docker0`: a netns of that name whose `eth0` has `172.17.0.6/16`. "
        "It must answer `client`, and it must itself reach the machine at `192.168.1.10`, "
        "which is not on its network."
    ),
    hints=(
        "It takes the four steps that made `web1`, and one more that came later, for what is not on the network.",
        "If a ping from `client` gets silence, is the new port in the list of `bridge link` on the host, and up?",
        (
            "`ip netns add cache`, then `ip link add … type veth peer name eth0 netns cache`; on the host "
            "`ip link set dev … master docker0 up`; inside `cache` an address, `eth0` up, and "
            "`ip route add default via 172.17.0.1`."
        ),
    ),
    check=_plug_in,
)


# -- one port number, many servers -------------------------------------------------------


def _listens(network: Snapshot, name: str) -> bool:
    return any((one.protocol, one.port) == ("tcp", 80) for one in network[name].sockets)


def _two_servers(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    for name, address in (("host", MACHINE), ("cache", "172.17.0.6")):
        if name not in network:
            yield Finding(False, f"there is no netns `{name}`; the exercise before this one makes it")
            return
        found = _listens(network, name)
        yield Finding(
            found, f"{name} has a socket on port 80" if found else f"nobody listens on port 80 in the netns `{name}`"
        )
        answer = probe.fetch("client", f"http://{address}")
        yield Finding(answer.ok, f"http://{address} answers client" if answer.ok else f"from client: {answer}")


TWO_SERVERS = Exercise(
    slug="03-port-80",
    title="port 80, once more",
    task=(
        "Serve port 80 twice on this machine: once by a server of the host network, which `client` reaches at "
        "`http://192.168.1.10`, and once in `cache`, at `http://172.17.0.6`. Both must answer at the same time."
    ),
    hints=(
        "In which netns must each of the two sockets be made so that they never compete?",
        '`lab["cache"].nginx()` starts an nginx in that netns; which netns does the host network mean?',
    ),
    check=_two_servers,
)


# -- the port behind a MAC ---------------------------------------------------------------


def _find_the_port(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    by_mac = {one.mac: state.name for state in network for one in state.interfaces if one.name == "eth0"}
    culprit = by_mac.get(NOISY)
    port = _port_of(network, culprit) if culprit else None
    if culprit is None or port is None:
        yield Finding(False, f"the cable of {NOISY} is gone. Run again from `The same by library`, and unplug it only")
        return
    off = port.master is None
    yield Finding(off, f"the port of {NOISY} is {'off the bridge' if off else 'still a port of the bridge'}")
    yield Finding(
        port.up, "that interface itself is left up" if port.up else "the interface was taken down; that is not asked"
    )
    others = {state.name: _port_of(network, state.name) for state in network if state.name not in {culprit, "host"}}
    lost = [name for name, one in others.items() if one and one.name.startswith("veth") and one.master != BRIDGE]
    whose = ", ".join(lost)
    yield Finding(not lost, f"a port too many is off: look at {whose}" if lost else "nobody else was unplugged")
    silent = not probe.ping("client", "172.17.0.12", timeout_s=0.5).ok
    yield Finding(silent, f"172.17.0.12 {'is cut off' if silent else 'still answers client'}")


FIND_THE_PORT = Exercise(
    slug="03-find-the-port",
    title="the port behind a MAC",
    task=(
        "Three jobs were plugged in, and somebody complains that the MAC `02:42:ac:11:00:0c` floods the switch. "
        "Find out behind which port of `docker0` it is, and take that port off the bridge. Leave the interface up, "
        "and every other port where it is."
    ),
    hints=(
        "One table of the kernel has MACs on the left and ports on the right.",
        "It forgets after 300 seconds of silence. To make its owner speak: `ping -c 1 172.17.0.12` from the host.",
        "`bridge fdb show br docker0 | grep 02:42:ac:11:00:0c`, then `ip link set dev PORT nomaster`.",
    ),
    check=_find_the_port,
)


# -- the netns of an engine --------------------------------------------------------------


def _engine_netns(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    if "worker" not in network:
        yield Finding(False, "`ip netns list` on the host knows no `worker` yet")
        return
    eth0 = network["worker"].interface("eth0")
    same = eth0 is not None and eth0.mac == PINNED
    yield Finding(
        same,
        "worker is the netns that the engine made"
        if same
        else "there is a netns `worker`, but it is another one: the engine's has an eth0 with the MAC " + PINNED,
    )
    if not same:
        return
    out = probe.ping("worker", MACHINE)
    yield Finding(out.ok, f"worker reaches {MACHINE}" if out.ok else f"from worker: {out}")


ENGINE_NETNS = Exercise(
    slug="03-engine-netns",
    title="a netns that somebody else made",
    task=(
        "An engine has pinned a container's netns at `/run/docker/netns/5f3a9c2e7b10`, and plugged it into "
        "`docker0`. Let `ip netns exec worker …` enter that very netns, and add what it lacks to reach the machine "
        "at `192.168.1.10`."
    ),
    hints=(
        "`ip netns` looks in one folder only. What can stand there for a file that is elsewhere?",
        "`ln -s /run/docker/netns/5f3a9c2e7b10 /run/netns/worker` on the host; then look at `ip route` in it.",
        "`ip netns exec worker ip route add default via 172.17.0.1`",
    ),
    check=_engine_netns,
)

EXERCISES: tuple[Exercise, ...] = (PLUG_IN, TWO_SERVERS, FIND_THE_PORT, ENGINE_NETNS)
