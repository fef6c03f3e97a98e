"""Exercises of chapter 11: types of Services."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from k8snet.teach.exercise import Exercise
from k8snet.teach.grade import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from k8snet.observe.snapshot import Snapshot
    from k8snet.teach.grade import Prober

__all__ = ["EXERCISES"]

BASKET, AUDIT, LEGACY = "172.18.255.1", "172.18.255.2", "172.18.0.200"
CLIENT = "203.0.113.10"  # as the router knows it
CALLS = 12


def _served(probe: Prober, source: str, address: str) -> Finding:
    page = probe.fetch(source, f"http://{address}", timeout_s=1)
    return Finding(page.ok, f"{source} calls {address}: {page.outcome}")


# -- one client, one pod -------------------------------------------------------------------


def _one_pod(_: Snapshot, probe: Prober) -> Iterator[Finding]:
    for source in ("internet", "router"):
        pages = [probe.fetch(source, f"http://{BASKET}", timeout_s=1) for _ in range(CALLS)]
        got = Counter(one.body.split()[0] if one.ok else one.outcome for one in pages)
        told = ", ".join(f"{name} {count}" for name, count in sorted(got.items()))
        yield Finding(len(got) == 1 and pages[0].ok, f"{CALLS} calls of {source}: {told}")
    yield _served(probe, "node1", BASKET)


ONE_POD = Exercise(
    slug="11-one-pod",
    title="one client, one pod",
    task=(
        f"The pods behind `basket` ({BASKET}) keep what a client has put into the basket in their memory. Let every "
        "client come to the same pod with each of its calls. There stay four pods, and one address."
    ),
    hints=(
        "What do the rules with `-m recent` remember, and which field of a Service asks for them?",
        "`sessionAffinity: ClientIP` in the spec of `basket`, applied anew.",
    ),
    check=_one_pod,
)


# -- who calls -----------------------------------------------------------------------------


def _who_calls(_: Snapshot, probe: Prober) -> Iterator[Finding]:
    pages = [probe.fetch("internet", f"http://{AUDIT}", timeout_s=1) for _ in range(4)]
    served = sum(one.ok for one in pages)
    yield Finding(served == len(pages), f"{served} of {len(pages)} calls from the internet to {AUDIT} are served")
    seen = {one.server_sees[0].rpartition(":")[0] for one in pages if one.server_sees}
    yield Finding(seen == {CLIENT}, f"the pod sees itself called by {', '.join(sorted(seen)) or 'nobody'}")
    yield _served(probe, "router", BASKET)


WHO_CALLS = Exercise(
    slug="11-who-calls",
    title="who calls?",
    task=(
        f"`audit` ({AUDIT}) must write down who calls it, and it sees nothing but addresses of nodes. Let its pods see "
        "the addresses of their clients in the internet. Watch which node announces the address before and after."
    ),
    hints=(
        "Why does a node masquerade a call from outside at all, and when need it not?",
        "`externalTrafficPolicy: Local`: then calls go to pods of the node that they have come to, and nowhere else.",
    ),
    check=_who_calls,
)


# -- not for everybody ---------------------------------------------------------------------


def _not_for_everybody(_: Snapshot, probe: Prober) -> Iterator[Finding]:
    yield _served(probe, "router", BASKET)
    yield _served(probe, "node2", BASKET)
    outside = probe.connect("internet", BASKET, 80, timeout_s=0.5)
    yield Finding(not outside.ok, f"internet calls {BASKET}: {outside.outcome}")
    yield _served(probe, "internet", AUDIT)


NOT_FOR_EVERYBODY = Exercise(
    slug="11-not-for-everybody",
    title="not for everybody",
    task=(
        f"`basket` ({BASKET}) is to be used from the network of the nodes, 172.18.0.0/16, alone: from `router` as "
        "before, and no longer from `internet`. `audit` stays open to all. The Service can say so itself."
    ),
    hints=(
        "Which field of a Service's spec has networks in it? `kubectl explain service.spec` lists the fields.",
        "`loadBalancerSourceRanges: [172.18.0.0/16]`, beside what the spec of `basket` says already.",
        "Look at the chain KUBE-FW- that has come, and at KUBE-PROXY-FIREWALL in the table filter.",
    ),
    check=_not_for_everybody,
)


# -- an address moves ----------------------------------------------------------------------


def _take_over(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    page = probe.fetch("internet", f"http://{LEGACY}", timeout_s=1)
    yield Finding(page.ok, f"internet calls {LEGACY}: {page.outcome}")
    eth0, port = network["node2"].interface("eth0"), network["switch"].interface("node1")
    known = next((one.mac for one in network["router"].neighbours if one.address == LEGACY), None)
    yield Finding(eth0 is not None and known == eth0.mac, f"the router has {known or 'no MAC'} for {LEGACY}")
    yield Finding(port is not None and not port.up, "node1 is still without power")


TAKE_OVER = Exercise(
    slug="11-take-over",
    title="an address moves",
    task=(
        f"`legacy` has an external IP, {LEGACY}, which somebody once gave to the `eth0` of `node1`; no load balancer "
        "looks after it. `node1` has just lost its power. Let `node2` answer for the address, and let the client be "
        "served at once. kube-proxy has its rules for the address on every node."
    ),
    hints=(
        "Two things were missing when 172.18.255.9 lost its node. Which command did which of them?",
        f"On `node2`: `ip address add {LEGACY}/32 dev eth0`. And who must be told?",
        f"`arping -U -c 1 -S {LEGACY} -i eth0 {LEGACY}` tells everybody on the link.",
    ),
    check=_take_over,
)

EXERCISES: tuple[Exercise, ...] = (ONE_POD, WHO_CALLS, NOT_FOR_EVERYBODY, TAKE_OVER)
