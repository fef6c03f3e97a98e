"""Exercises of chapter 13: egress and ingress."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from k8snet.teach.exercise import Exercise
from k8snet.teach.grade import Finding

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from k8snet.observe.snapshot import Snapshot
    from k8snet.teach.grade import Prober

__all__ = ["EXERCISES"]

ARCHIVE, BANK, FIXED = "http://172.18.0.254:8080", "http://203.0.113.80", "172.18.0.100"
NEXT_DOOR = "http://203.0.113.10"  # in the network of the bank
EDGE = "http://172.18.255.1"
NODES = {"shop-1": "172.18.0.1", "cart-1": "172.18.0.3"}  # pods, and the addresses of their nodes
REQUESTS, FEWEST, MOST = 600, 78, 168  # a share of 1 in 5 fails once in 300,000 times; 1 in 10 passes once in 100


def _address(network: Snapshot, pod: str) -> str:
    eth0 = network[pod].interface("eth0")
    return next((one.partition("/")[0] for one in eth0.addresses), "") if eth0 else ""


def _seen(probe: Prober, pod: str, url: str, wanted: Container[str], who: str) -> Finding:
    page = probe.fetch(pod, url)
    seen = page.server_sees[0].rpartition(":")[0] if page.server_sees else f"nobody: {page.outcome}"
    return Finding(seen in wanted, f"{who} sees {pod} as {seen}")


# -- exceptions ----------------------------------------------------------------------------


def _exceptions(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    for pod in NODES:
        yield _seen(probe, pod, ARCHIVE, {_address(network, pod)}, "the archive")
    for pod, node in NODES.items():
        yield _seen(probe, pod, BANK, {node}, "the internet")
    inside = f"http://{_address(network, 'cart-1')}:8080"
    yield _seen(probe, "shop-1", inside, {_address(network, "shop-1")}, "cart-1")


EXCEPTIONS = Exercise(
    slug="13-exceptions",
    title="as they are",
    task=(
        "The archive, 172.18.0.254:8080, writes down which pod calls, and it knows the way to every pod. Now it sees "
        "nothing but nodes. Let it see pods by their own addresses. The internet shall see nodes, as before, and pods "
        "shall see each other as they are."
    ),
    hints=(
        "Which rule of each node masquerades, and which destinations does it spare? 172.18.0.0/16 shall be one more.",
        "`cluster.start_masquerade(non_masquerade_cidrs=[...])`. And what of calls between pods of two nodes?",
    ),
    check=_exceptions,
)


# -- one address that stays ----------------------------------------------------------------


def _fixed_address(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    for pod in ("pay-1", "pay-2"):
        yield _seen(probe, pod, BANK, {FIXED}, "the bank")
    for pod, node in NODES.items():
        yield _seen(probe, pod, BANK, {node}, "the bank")
    for pod, node in (("pay-1", NODES["shop-1"]), ("pay-2", NODES["cart-1"])):
        yield _seen(probe, pod, NEXT_DOOR, {node}, "203.0.113.10")
        yield _seen(probe, pod, ARCHIVE, {_address(network, pod), node}, "the archive")  # as the first exercise left it
    homes = [state.name for state in network if f"{FIXED}/32" in state.addresses or f"{FIXED}/16" in state.addresses]
    told = ", ".join(homes) or "nobody"
    yield Finding(len(homes) == 1 and homes[0].startswith("node"), f"{FIXED} is an address of {told}")


FIXED_ADDRESS = Exercise(
    slug="13-fixed-address",
    title="one address for the bank",
    task=(
        f"The bank, 203.0.113.80, lets in {FIXED} and nobody else. The pods with the label `app: pay`, on two nodes, "
        "must get there; all other pods shall go on to be seen as their nodes. What `pay-1` and `pay-2` say to others, "
        "such as 203.0.113.10, is not to change."
    ),
    hints=(
        "Three things make an egress gateway: a way, somebody who does not masquerade, and somebody who does SNAT.",
        "`cluster.start_egress_gateway(node=..., address=..., pods=..., destinations=[...])` does all three.",
    ),
    check=_fixed_address,
)


# -- host and path -------------------------------------------------------------------------


def _host_and_path(_: Snapshot, probe: Prober) -> Iterator[Finding]:
    for path, wanted in (("/", "shop-1"), ("/carts", "shop-1"), ("/cart", "cart-1"), ("/cart/42", "cart-1")):
        got = _who(probe, "shop.example", path)
        yield Finding(got == wanted, f"shop.example{path} is answered by {got}")
    got = _who(probe, "new.example", "/cart")
    yield Finding(got == "new-1", f"new.example/cart is answered by {got}")
    got = _who(probe, "other.example", "/cart")
    yield Finding(got == "404", f"other.example/cart: {got}")


def _who(probe: Prober, host: str, path: str) -> str:
    """Return which pod answers a request from the internet, or with what status or outcome it ends."""
    page = probe.fetch("internet", f"{EDGE}{path}", headers={"Host": host})
    if not page.ok:
        return str(page.status or page.outcome)
    return page.body.partition('"name": "')[2].partition('"')[0] or "somebody"


HOST_AND_PATH = Exercise(
    slug="13-host-and-path",
    title="one door, three Services",
    task=(
        "Requests for `shop.example` shall be answered by the Service `shop`, and those whose path is `/cart` or below "
        f"it, like `/cart/42`, by `cart`. What is asked of `new.example`, `/cart` or else, shall be answered by `new`. "
        f"The door is {EDGE.removeprefix('http://')}. Other hosts get 404, as now."
    ),
    hints=(
        "An `Ingress` with a rule for each host, one of them with two paths; or a `Gateway` and two `HTTPRoute`s.",
        "`pathType: Prefix` compares whole elements of the path, and the longest one that fits wins.",
        "The function `ingress()` of this chapter applies what `shop.example` needs. Write another for `new.example`.",
    ),
    check=_host_and_path,
)


# -- a canary ------------------------------------------------------------------------------


def _canary(_: Snapshot, probe: Prober) -> Iterator[Finding]:
    shares = Counter(_who(probe, "beta.example", "/") for _ in range(REQUESTS))
    told, new = ", ".join(f"{name} {count}" for name, count in sorted(shares.items())), shares["new-1"]
    yield Finding(shares.keys() <= {"shop-1", "new-1"}, f"{REQUESTS} requests for beta.example: {told}")
    yield Finding(FEWEST <= new <= MOST, f"new-1 has {new} of them, some {REQUESTS // 5} are right")
    got = _who(probe, "shop.example", "/")
    yield Finding(got in ("shop-1", "404"), f"shop.example/ is answered by {got}")  # 404: without the third exercise


CANARY = Exercise(
    slug="13-canary",
    title="one in five",
    task=(
        "Requests for `beta.example` shall be answered by the Service `shop`, but one in five, on average, by `new`. "
        "`shop.example` stays as it is."
    ),
    hints=(
        "An `Ingress` has no weights. Which object has?",
        "A `Gateway` of the class `k8snet` with a listener for port 80, and an `HTTPRoute` for the host.",
        "`backendRefs` with `weight: 4` and `weight: 1`: a weight is a share of the sum.",
    ),
    check=_canary,
)

EXERCISES: tuple[Exercise, ...] = (EXCEPTIONS, FIXED_ADDRESS, HOST_AND_PATH, CANARY)
