"""Exercises of chapter 09: Services and iptables."""

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

CANARY, ORDERS, USERS = "10.96.0.99", "10.96.0.30", "10.96.0.31"
CALLS = 160
FEW = 3  # calls whose ports conntrack remembers from before there were rules
QUARTER = range(18, 64)  # of 160 calls; a quarter is 40, and four standard deviations are 22


def _answers(probe: Prober, source: str, address: str, server: str) -> Finding:
    """Whether the page that *source* gets of a virtual address is that of *server*."""
    page = probe.fetch(source, f"http://{address}", timeout_s=1)
    got = page.body.split()[0] if page.ok else page.outcome
    return Finding(got == server, f"{source} calls {address}: {got}")


# -- an unfair lot -------------------------------------------------------------------------


def _canary(_: Snapshot, probe: Prober) -> Iterator[Finding]:
    first = probe.fetch("client", f"http://{CANARY}", timeout_s=1)
    if not first.ok:
        yield Finding(False, f"client calls {CANARY}: {first.outcome}")
        return
    pages = [probe.fetch("client", f"http://{CANARY}", timeout_s=1) for _ in range(CALLS)]
    got = Counter(one.body.split()[0] if one.ok else one.outcome for one in pages)
    answered = got["stable"] + got["canary"]
    yield Finding(answered >= CALLS - FEW, f"stable and canary have answered {answered} of {CALLS} calls")
    yield Finding(got["canary"] in QUARTER, f"canary has answered {got['canary']} of {CALLS} calls")


CANARY_EXERCISE = Exercise(
    slug="09-canary",
    title="a quarter for the canary",
    task=(
        f"A new version of `stable` is called `canary`. Make {CANARY}, port 80, lead to both, port 8080, for pods of "
        "`node1`: one connection in four to `canary` (10.244.2.2), the others to `stable` (10.244.1.3). "
        "No object of Kubernetes can say so; rules on `node1` can."
    ),
    hints=(
        "It takes the two rules of the chapter's beginning. Which one comes first, and which has no condition?",
        "`-m statistic --mode random --probability 0.25` goes with the rule of `canary`, and that rule is first.",
    ),
    check=_canary,
)


# -- two refusals --------------------------------------------------------------------------


def _two_refusals(_: Snapshot, probe: Prober) -> Iterator[Finding]:
    yield _answers(probe, "client", ORDERS, "orders")
    yield _answers(probe, "client", USERS, "users")
    yield _answers(probe, "stable", USERS, "users")


TWO_REFUSALS = Exercise(
    slug="09-two-refusals",
    title="two refusals",
    task=(
        f"`orders` ({ORDERS}) and `users` ({USERS}) refuse. Look at who refuses, find what is wrong with each of the "
        "two Services, and apply manifests that are right. The pods stay as they are."
    ),
    hints=(
        "`client.connect(...)` tells who said no, if it was not the server. What does a node do without endpoints?",
        'Compare `cluster.objects["EndpointSlice", "default", "users-ipv4-1"]` with `pod.ports` and `pod.labels`.',
        "One selector has a letter too few. One `targetPort` is not what the pod listens on.",
    ),
    check=_two_refusals,
)


# -- the node, too -------------------------------------------------------------------------


def _the_node_too(_: Snapshot, probe: Prober) -> Iterator[Finding]:
    yield _answers(probe, "client", ORDERS, "orders")
    yield _answers(probe, "node1", ORDERS, "orders")
    yield _answers(probe, "node1", USERS, "users")


THE_NODE_TOO = Exercise(
    slug="09-the-node-too",
    title="the node, too",
    task=(
        "Pods of `node1` reach every Service, and `node1` itself reaches none. Agents on the node need them. Let it "
        f"reach {ORDERS} and {USERS} again, and every Service that is still to come."
    ),
    hints=(
        "Which hook does a packet of the node's own pass, and a pod's does not?",
        "`iptables -t nat -S` on `node2` has a line that `node1` no longer has.",
    ),
    check=_the_node_too,
)


# -- itself --------------------------------------------------------------------------------


def _itself(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    page = probe.fetch("orders", f"http://{ORDERS}", timeout_s=1)
    yield Finding(page.ok, f"orders calls its own Service: {page.outcome}")
    seen = page.server_sees[0].rpartition(":")[0] if page.server_sees else "nobody"
    yield Finding(seen == "10.244.1.1", f"it sees itself called by {seen}")
    eth0 = network["orders"].interface("eth0")
    yield Finding(eth0 is not None and "10.244.1.4/24" in eth0.addresses, "orders has 10.244.1.4/24")
    yield _answers(probe, "client", ORDERS, "orders")


ITSELF = Exercise(
    slug="09-itself",
    title="itself",
    task=(
        f"`orders` is alone behind {ORDERS}. `client` reaches it there, and `orders` itself does not. Mend it, and "
        "leave the rules of kube-proxy alone."
    ),
    hints=(
        "Listen at `eth0` of `orders` while it calls. The SYN goes out; does it come back in?",
        "By which port of `cni0` would it have to leave the bridge, and by which has it entered?",
        "`bridge -d link` on `node1` shows each port's `hairpin`, and `bridge link set dev … hairpin on` sets it.",
    ),
    check=_itself,
)

EXERCISES: tuple[Exercise, ...] = (CANARY_EXERCISE, TWO_REFUSALS, THE_NODE_TOO, ITSELF)
