"""Exercises of chapter 06: pod to pod, on one node."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from k8snet.teach.exercise import Exercise
from k8snet.teach.grade import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from k8snet.observe.snapshot import Snapshot
    from k8snet.observe.values import Interface
    from k8snet.teach.grade import Prober

__all__ = ["EXERCISES"]

NODE, BRIDGE = "node1", "cni0"
POD_CIDR = ip_network("10.244.1.0/24")
CLIENT, API, WEB, FIFTH = (f"10.244.1.{last}" for last in (2, 3, 4, 5))
INTERNET = "203.0.113.80"


def _port_of(network: Snapshot, name: str) -> Interface | None:
    """Return the interface of the node that a pod's eth0 is joined to."""
    eth0 = network[name].interface("eth0") if name in network else None
    if eth0 is None or eth0.peer is None or eth0.peer.netns != NODE:
        return None
    return network[NODE].interface(eth0.peer.interface)


def _answers(probe: Prober, name: str, address: str) -> Finding:
    answer = probe.ping(name, address)
    return Finding(answer.ok, f"{name} reaches {address}" if answer.ok else f"from {name}: {answer}")


def _gets(probe: Prober, name: str, address: str) -> Finding:
    answer = probe.fetch(name, f"http://{address}", timeout_s=1)
    return Finding(answer.ok, f"{name} gets the page of {address}" if answer.ok else f"from {name}: {answer}")


# -- a pod, wired by hand ------------------------------------------------------------------


def _wire_a_pod(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    if "cache" not in network:
        yield Finding(False, "there is no netns `cache` yet")
        return
    eth0 = network["cache"].interface("eth0")
    right = eth0 is not None and eth0.addresses == (f"{FIFTH}/24",)
    yield Finding(right, f"cache has eth0 with {FIFTH}/24" if right else "look at `ip address` inside cache")
    port = _port_of(network, "cache")
    if port is None:
        yield Finding(False, f"the other end of cache's cable is not in {NODE}")
        return
    plugged = port.master == BRIDGE and port.up
    yield Finding(plugged, f"{port.name} is {'a live' if plugged else 'not yet a live'} port of {BRIDGE}")
    yield Finding(port.hairpin, f"hairpin is {'on' if port.hairpin else 'off'} at {port.name}")
    yield _answers(probe, "client", FIFTH)
    yield _answers(probe, "cache", INTERNET)


WIRE_A_POD = Exercise(
    slug="06-wire-a-pod",
    title="one more pod, by hand",
    task=(
        f"Wire a pod `cache` to `node1`, as CNI's bridge plugin would: `eth0` with `{FIFTH}/24`, its other end a port "
        f"of `cni0` with hairpin on. It must answer `client`, and reach {INTERNET} in the internet."
    ),
    hints=(
        "It takes what `client` took: a netns, a cable, an address, a route. And one setting that came later.",
        "If `client` is answered and the internet is not, look at `ip -n cache route`. What is the second line there?",
        (
            "`ip netns add cache`, `ip link add … type veth peer name eth0 netns cache`, `ip link set dev … master "
            "cni0 up`, `bridge link set dev … hairpin on`; in `cache` an address, `eth0` and `lo` up, and "
            "`ip route add default via 10.244.1.1`."
        ),
    ),
    check=_wire_a_pod,
)


# -- what is switched can be filtered --------------------------------------------------------


def _not_the_page(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    shut = probe.fetch("client", f"http://{WEB}", timeout_s=1)
    yield Finding(not shut.ok, f"client asks for the page of web: {shut.outcome}")
    yield _answers(probe, "client", WEB)
    yield _gets(probe, "client", API)
    yield _gets(probe, "api", WEB)
    inside = [name for name in ("client", "web") if name in network and network[name].rules]
    where = f"there are rules inside {' and '.join(inside)}" if inside else "the pods themselves have no rules"
    yield Finding(not inside, where)


NOT_THE_PAGE = Exercise(
    slug="06-not-the-page",
    title="not this page",
    task=(
        f"`client` ({CLIENT}) must not get the page of `web` ({WEB}, port 80) any more. It may go on to ping `web` and "
        "to read the page of `api`, and others may read the page of `web`. Both pods are on `node1`: do it there, and "
        "leave the pods as they are."
    ),
    hints=(
        "The packets are switched. Which chain of `node1` counted switched packets nevertheless?",
        "One rule: source, destination, protocol, port, and `-j DROP`.",
    ),
    check=_not_the_page,
)


# -- who asks? -------------------------------------------------------------------------------


def _source_seen(probe: Prober, name: str, address: str) -> str:
    seen = probe.fetch(name, f"http://{address}", timeout_s=1).server_sees
    return seen[0].rpartition(":")[0] if seen else "nobody"


def _who_asks(_: Snapshot, probe: Prober) -> Iterator[Finding]:
    for name, whom, address, wanted in (
        ("api", "web", WEB, API), ("web", "api", API, WEB), ("api", "the internet", INTERNET, "172.18.0.1"),
    ):  # fmt: skip
        seen = _source_seen(probe, name, address)
        yield Finding(seen == wanted, f"when {name} calls, {whom} sees {seen}")


WHO_ASKS = Exercise(
    slug="06-who-asks",
    title="who asks?",
    task=(
        f"Restore the second rule of the model: a pod that is called by a pod sees the caller's own address. What goes "
        f"to the internet ({INTERNET}) must be seen there as from the node, 172.18.0.1, as before."
    ),
    hints=(
        (
            "`iptables -t nat -S POSTROUTING` on `node1`: two rules lend the node's address. What does one say that "
            "the other does not?"
        ),
        "A rule that masquerades must leave alone what goes to a pod: `! -d 10.244.0.0/16`.",
        "`iptables -t nat -D POSTROUTING 1` removes the first rule.",
    ),
    check=_who_asks,
)


# -- two owners ------------------------------------------------------------------------------


def _two_owners(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    if "queue" not in network or "cache" not in network:
        yield Finding(False, "both `queue` and `cache` must be there; the cells before this one make them")
        return
    owners: dict[str, list[str]] = {}
    for state in network:
        for address in state.addresses:
            owners.setdefault(address.partition("/")[0], []).append(state.name)
    have = owners.get(FIFTH, [])
    yield Finding(have == ["queue"], f"{FIFTH} belongs to {' and '.join(have) or 'nobody'}")
    mine = [address for address, names in owners.items() if "cache" in names]
    free = [one for one in mine if ip_address(one) in POD_CIDR and owners[one] == ["cache"]]
    good = len(mine) == len(free) == 1
    yield Finding(good, f"cache has {', '.join(mine) or 'no address'}" + ("" if good else ", not one of its own"))
    if not good:
        return
    page = probe.fetch("client", f"http://{FIFTH}", timeout_s=1)
    right = page.ok and page.body.startswith("queue")
    text = f"client gets the page of queue from {FIFTH}" if right else f"client asks {FIFTH} for queue's page: {page}"
    yield Finding(right, text)
    yield _answers(probe, "client", free[0])
    yield _answers(probe, "cache", INTERNET)


TWO_OWNERS = Exercise(
    slug="06-two-owners",
    title="two owners",
    task=(
        f"Since `queue` was started, {FIFTH} is not to be relied on: at times it is `queue`, at times somebody else. "
        "Find the second owner. `queue` has the address from IPAM and keeps it; give the other one an address of "
        "`node1`'s pod CIDR that is free. Then each must answer `client` at its own, and what the other reached "
        "before, it must reach again."
    ),
    hints=(
        f"In `client`, count the answers to `arping -c 2 {FIFTH}`. How many MACs are there, and whose are they?",
        "With an interface's last address, the routes that need it go, too. Look at `ip route` after the change.",
        (
            "In `cache`: `ip address delete`, `ip address add 10.244.1.200/24`, `ip route add default via 10.244.1.1`. "
            "In those that talked to it: `ip neighbour flush all`, as their tables still have the old MAC."
        ),
    ),
    check=_two_owners,
)

EXERCISES: tuple[Exercise, ...] = (WIRE_A_POD, NOT_THE_PAGE, WHO_ASKS, TWO_OWNERS)
