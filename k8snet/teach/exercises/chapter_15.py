"""Exercises of chapter 15: two families."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from k8snet.teach.exercise import Exercise
from k8snet.teach.grade import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from k8snet.observe.snapshot import Snapshot
    from k8snet.teach.grade import Prober

__all__ = ["EXERCISES"]

WEB, LATE = "fd00:10:244:2::2", "fd00:10:244:2::3"
GATEWAY = "fd00:10:244:2::1"  # of late
SHOP, SHOP_V4 = "fd00:10:96::99", "10.96.0.20"
NODE, NODE_V4, NODE_PORT, BIG_PORT = "fd00:172:18::1", "172.18.0.1", 30080, 30081
BIG = 4000  # bytes
MTUS = {("router", "eth1"): 1280, ("web", "eth0"): 1500}  # bytes
ROUTER_FAR = "2001:db8:113::1"
WATCH_S = 1.0  # three advertisements


def _answers(probe: Prober, source: str, address: str) -> Finding:
    answer = probe.ping(source, address, timeout_s=3)
    return Finding(answer.ok, f"{source}: {answer}")


def _served(probe: Prober, source: str, url: str) -> Finding:
    page = probe.fetch(source, url, timeout_s=1)
    return Finding(page.ok, f"{source} calls {url}: {page.outcome}")


def _default_routes(network: Snapshot, pod: str) -> Finding:
    """Have one; whether it leads anywhere is seen by calling, as the gateway has a link-local address, too."""
    found = [one.via for one in network[pod].routes if one.destination == "::/0"]
    told = " and ".join(f"via {one}" for one in found) or "missing"
    return Finding(len(found) == 1, f"the IPv6 default route of {pod}: {told}")


# -- a second family -----------------------------------------------------------------------


def _second_family(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    eth0 = network["late"].interface("eth0")
    have = [one for one in eth0.addresses if ":" in one] if eth0 else []
    yield Finding(have == [f"{LATE}/64"], f"IPv6 addresses of late beside its link-local one: {', '.join(have) or '-'}")
    yield _default_routes(network, "late")
    yield _answers(probe, "client", LATE)
    yield _answers(probe, "late", NODE)


SECOND_FAMILY = Exercise(
    slug="15-second-family",
    title="a second family",
    task=(
        f"`late` was attached with an old configuration, which has IPv4 alone. Give it {LATE}, as the cluster believes "
        "it has, and let it talk to pods and nodes everywhere."
    ),
    hints=(
        "What did `client` have at the end of the first part, that `late` has not? `ip -6 address`, `ip -6 route`.",
        f"`ip address add {LATE}/64 dev eth0 nodad`; without `nodad`, give it two seconds.",
        f"`ip route add default via {GATEWAY}`: `ip` sees by the address which family you mean.",
    ),
    check=_second_family,
)


# -- two doors -----------------------------------------------------------------------------


def _two_doors(_: Snapshot, probe: Prober) -> Iterator[Finding]:
    yield _served(probe, "client", f"http://[{SHOP}]")
    yield _served(probe, "client", f"http://{SHOP_V4}")
    yield _served(probe, "internet", f"http://[{NODE}]:{NODE_PORT}")
    yield _served(probe, "internet", f"http://{NODE_V4}:{NODE_PORT}")


TWO_DOORS = Exercise(
    slug="15-two-doors",
    title="two doors of each kind",
    task=(
        f"`shop` has the cluster IP {SHOP_V4} and the node port {NODE_PORT}, both for IPv4. Let it be called by IPv6 "
        f"as well: at {SHOP}, which is already printed in a manual, and at the same node port. IPv4 stays as it is."
    ),
    hints=(
        "Which policy gives a Service both families? The other field in question is a list.",
        (
            f"`ipFamilyPolicy: PreferDualStack`, and `clusterIPs` with both addresses, {SHOP_V4} first; the rest of "
            "the spec as before."
        ),
    ),
    check=_two_doors,
)


# -- too big -------------------------------------------------------------------------------


def _too_big(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    sizes = [one.mtu for end in MTUS for one in [network[end[0]].interface(end[1])] if one]
    told = ", ".join(f"{netns}/{name} has {mtu}" for (netns, name), mtu in zip(MTUS, sizes, strict=False))
    yield Finding(sizes == list(MTUS.values()), f"the MTUs are as they were: {told}")
    for host in (f"[{NODE}]", NODE_V4):
        page = probe.fetch("internet", f"http://{host}:{BIG_PORT}", timeout_s=2)
        yield Finding(len(page.body) >= BIG, f"internet loads {len(page.body)} bytes from {host}:{BIG_PORT}")
    ping = probe.ping("internet", ROUTER_FAR, timeout_s=0.5)
    yield Finding(not ping.ok, f"a ping of {ROUTER_FAR}: {ping.outcome}")


TOO_BIG = Exercise(
    slug="15-too-big",
    title="too big",
    task=(
        "The link beyond the router takes 1280 bytes, and somebody has told the router to keep quiet. Over IPv6, the "
        f"page at node port {BIG_PORT} never comes. Let it come, without touching any MTU. That the router does not "
        "answer pings was the wish of a committee, and stays."
    ),
    hints=(
        "Capture `icmp6` on `eth0` of the router while the page is loaded. What should be there, and is not?",
        "`ip6tables -S OUTPUT` in the router. Which types does it let out, and which one do senders wait for?",
        "`ip6tables -I OUTPUT -p ipv6-icmp --icmpv6-type packet-too-big -j ACCEPT`.",
    ),
    check=_too_big,
)


# -- another router ------------------------------------------------------------------------


def _another_router(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    yield _default_routes(network, "client")
    until, answer = time.monotonic() + WATCH_S, probe.ping("client", WEB, timeout_s=0.3)
    while answer.ok and time.monotonic() < until:
        answer = probe.ping("client", WEB, timeout_s=0.3)
    yield Finding(answer.ok, f"client, for {WATCH_S:.0f} s: {answer}")
    yield _answers(probe, "client", NODE)


ANOTHER_ROUTER = Exercise(
    slug="15-another-router",
    title="another router",
    task=(
        "Since a moment ago `client` reaches no pod of node2 over IPv6, and over IPv4 all is well. Mend `client`, and "
        "see to it that it does not happen again."
    ),
    hints=(
        "`ip -6 route` in `client`: who is its router, and which protocol says so?",
        "`ip -6 route flush proto ra` takes the routes away. For how long? Which setting of `eth0` lets them in?",
        "First `sysctl -w net.ipv6.conf.eth0.accept_ra=0`, then flush.",
    ),
    check=_another_router,
)

EXERCISES: tuple[Exercise, ...] = (SECOND_FAMILY, TWO_DOORS, TOO_BIG, ANOTHER_ROUTER)
