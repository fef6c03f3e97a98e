"""Exercises of chapter 14: network policies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from k8snet.teach.exercise import Exercise
from k8snet.teach.grade import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from k8snet.observe.snapshot import Snapshot
    from k8snet.teach.grade import Prober

__all__ = ["EXERCISES"]

DNS, OUTSIDE, BALANCED = "10.96.0.10", "203.0.113.80", "172.18.255.1"
PORT, OTHER = 8080, 9  # of every pod; nobody listens there, and whoever is not kept from it is refused


def _address(network: Snapshot, pod: str) -> str:
    """Return the address of a pod; its netns is called "shop.db"."""
    eth0 = network[pod].interface("eth0")
    return eth0.addresses[0].partition("/")[0] if eth0 and eth0.addresses else "127.0.0.1"


def _call(
    probe: Prober, source: str, called: str, address: str, port: int = PORT, *, protocol: str = "tcp", good: bool = True
) -> Finding:
    """Try a port that is to be open, or one that is not."""
    found = probe.connect(source, address, port, protocol=protocol, timeout_s=1 if good else 0.4)
    return Finding(found.ok is good, f"{source} calls {called}, {protocol} {port}: {found.outcome}")


def _shut(
    probe: Prober, source: str, called: str, address: str, port: int = OTHER, *, protocol: str = "tcp"
) -> Finding:  # fmt: skip
    """Try a port where nobody listens: whatever is heard of it has passed."""
    found = probe.connect(source, address, port, protocol=protocol, timeout_s=0.4)
    return Finding(found.outcome == "timeout", f"{source} calls {called}, {protocol} {port}: {found.outcome}")


# -- the database is for the API ---------------------------------------------------------


def _only_api(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    db = _address(network, "shop.db")
    yield _call(probe, "shop.api", "shop.db", db)
    for stranger in ("shop.web", "shop.copy", "ops.shell"):
        yield _call(probe, stranger, "shop.db", db, good=False)
    yield _shut(probe, "shop.api", "shop.db", db)
    yield _call(probe, "shop.db", "shop.api", _address(network, "shop.api"))
    yield _call(probe, "node1", "shop.db", db)


ONLY_API = Exercise(
    slug="14-only-api",
    title="the database is for the API",
    task=(
        "Let `db` in the namespace `shop` be called by the pod `api` of that namespace, at TCP port 8080, and by no "
        "other pod. `db` itself may call whom it likes. Pods have the label `app`."
    ),
    hints=(
        "Which pod must the policy select, and for which direction? Who is its peer?",
        "`podSelector: {matchLabels: {app: db}}`, and one rule in `ingress`, with `from` and `ports`; no `egress`.",
        "The policy `api` above has this form; `db` takes the place of `api` in it, and `api` that of `web`.",
    ),
    check=_only_api,
)


# -- nowhere but there -------------------------------------------------------------------


def _names(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    yield _call(probe, "shop.db", "shop.web", _address(network, "shop.web"), good=False)
    yield _call(probe, "shop.db", "the internet", OUTSIDE, 80, good=False)
    yield _shut(probe, "shop.db", "the internet", OUTSIDE, 53, protocol="udp")
    yield _call(probe, "shop.db", "shop.api", _address(network, "shop.api"))
    yield _shut(probe, "shop.db", "shop.api", _address(network, "shop.api"))
    for protocol in ("udp", "tcp"):
        yield _call(probe, "shop.db", "DNS", DNS, 53, protocol=protocol)
    yield _call(probe, "shop.api", "shop.db", _address(network, "shop.db"))


NAMES = Exercise(
    slug="14-names",
    title="nowhere but there",
    task=(
        "`db` shall send nothing to anybody, with two exceptions: it calls `api` at TCP port 8080, and it asks the "
        "cluster's DNS for names. Leave the policy of the last exercise as it is."
    ),
    hints=(
        "Another policy can select the same pod for the other direction. Which two rules does it need?",
        "DNS is a pod in `kube-system` with the label `k8s-app: kube-dns`, and it is asked by UDP and by TCP.",
        "In the policy `names` above, `namespaceSelector` and `podSelector` are *one* element of `to`.",
    ),
    check=_names,
)


# -- and, not or ---------------------------------------------------------------------------


def _one_element(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    web = _address(network, "shop.web")
    yield _call(probe, "ops.metrics", "shop.web", web)
    for stranger in ("ops.shell", "shop.copy", "shop.api"):
        yield _call(probe, stranger, "shop.web", web, good=False)


ONE_ELEMENT = Exercise(
    slug="14-one-element",
    title="and, not or",
    task=(
        "`web` is to be called by the pod `metrics` of the namespace `ops`, and by no other pod. The policy `read` "
        "lets more of them in. Find out whom, and why, and mend it."
    ),
    hints=(
        '`cluster.explain_policy("ops/shell", "shop/web", 8080)` names the element that lets `ops/shell` in.',
        "How many elements has the list `from`? One dash makes the difference.",
    ),
    check=_one_element,
)


# -- who calls from outside ----------------------------------------------------------------


def _keep_the_address(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    yield _call(probe, "internet", "the load balancer", BALANCED, 80)
    yield _call(probe, "router", "the load balancer", BALANCED, 80, good=False)
    yield _call(probe, "node1", "shop.api", _address(network, "shop.api"), good=False)


KEEP_THE_ADDRESS = Exercise(
    slug="14-keep-the-address",
    title="who calls from outside",
    task=(
        f"Clients in 203.0.113.0/24 shall reach `api` at {BALANCED}, and nobody else: neither `router`, 172.18.0.254, "
        "nor `node1`. The policy `clients` says just that, and stays as it is. Why does a client wait?"
    ),
    hints=(
        "The address is announced by one node, and the pod is on another. Whom does the policy see there?",
        "What does `externalTrafficPolicy` change about the node that is called, and about the address that is seen?",
        '`service("externalTrafficPolicy: Local,")`',
    ),
    check=_keep_the_address,
)

EXERCISES: tuple[Exercise, ...] = (ONLY_API, NAMES, ONE_ELEMENT, KEEP_THE_ADDRESS)
