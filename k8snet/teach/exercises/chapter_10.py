"""Exercises of chapter 10: IPVS and nftables."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from k8snet.teach.exercise import Exercise
from k8snet.teach.grade import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from k8snet.observe.snapshot import Snapshot
    from k8snet.teach.grade import Prober

__all__ = ["EXERCISES"]

CANARY, ORDERS, USERS, FIRST, SECOND = (f"10.96.0.{last}" for last in (99, 30, 31, 97, 98))
TURNS = 8


def _answers(probe: Prober, source: str, address: str, count: int) -> Counter[str]:
    """Return who answers *source* at a virtual address, or how its calls fail, and how often."""
    pages = (probe.fetch(source, f"http://{address}", timeout_s=1) for _ in range(count))
    return Counter(one.body.split()[0] if one.ok else one.outcome for one in pages)


def _told(found: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(found.items()))


def _is(probe: Prober, source: str, address: str, **wanted: int) -> Finding:
    """Whether so many calls are answered by each; names are written with _ for -."""
    expected = Counter({name.replace("_", "-"): count for name, count in wanted.items()})
    found = _answers(probe, source, address, sum(expected.values()))
    return Finding(found == expected, f"{source} calls {address}: {_told(found)}")


def _bound(network: Snapshot, address: str) -> Finding:
    there = any(f"{address}/32" in one.addresses for one in network["node1"].interfaces)
    return Finding(there, f"node1 {'has' if there else 'does not have'} the address {address}")


# -- by weight ---------------------------------------------------------------------------


def _weights(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    servers = [line for line in network["node1"].lines("ipvs") if f" {CANARY}:80 " in line]
    yield Finding(bool(servers), f"IPVS on node1 has {'a' if servers else 'no'} virtual server {CANARY}:80")
    yield _bound(network, CANARY)
    yield _is(probe, "client", CANARY, stable=3 * TURNS // 4, canary=TURNS // 4)


WEIGHTS = Exercise(
    slug="10-weights",
    title="a quarter, exactly",
    task=(
        f"Make {CANARY}, port 80, lead to `stable` (10.244.1.3) and `canary` (10.244.2.2), port 8080, for pods of "
        "`node1`: of each four connections exactly three to `stable`. Use IPVS, on `node1`."
    ),
    hints=(
        "Which scheduler knows weights? `ipvsadm -a … -w N` gives a real server one.",
        "A virtual server is not enough for packets of pods. What did `client` get before the node had the address?",
        f"`-s wrr`, weights 3 and 1, and `ip address add {CANARY}/32 dev kube-ipvs0`.",
    ),
    check=_weights,
)


# -- a missing address ---------------------------------------------------------------------


def _missing_address(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    yield _bound(network, ORDERS)
    yield _is(probe, "client", ORDERS, orders=2)
    yield _is(probe, "node1", ORDERS, orders=2)
    yield _is(probe, "users-1", ORDERS, orders=1)


MISSING_ADDRESS = Exercise(
    slug="10-missing-address",
    title="the node reaches it, its pods do not",
    task=(
        f"`node1` reaches `orders` at {ORDERS}, and pods of `node1` do not, though the virtual server is as it was. "
        "Find what was tidied away, and put it back."
    ),
    hints=(
        "Compare `ip route get` for this address with that for 10.96.0.31, from 10.244.1.2 and iif cni0.",
        "The addresses of `kube-ipvs0` on `node2` are one more than on `node1`.",
    ),
    check=_missing_address,
)


# -- drained -------------------------------------------------------------------------------


def _drain(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    servers = [line for line in network["node1"].lines("ipvs") if f"{USERS}:80 -r 10.244.2.3:8080" in line]
    kept = "is still a real server" if servers else "is no real server any more: its connections are cut"
    yield Finding(bool(servers), f"10.244.2.3:8080 {kept}")
    yield _is(probe, "client", USERS, users_1=4)
    elsewhere = _answers(probe, "canary", USERS, 4)
    yield Finding(elsewhere["users-2"] == 2, f"canary, on node2, calls {USERS}: {_told(elsewhere)}")


DRAIN = Exercise(
    slug="10-drain",
    title="drained, not deleted",
    task=(
        f"`users` ({USERS}) has two pods. On `node1`, let `users-2` (10.244.2.3) get no new connections, and cut none "
        "of those that it has. `node2` stays as it is."
    ),
    hints=(
        "`ipvsadm -d` would delete the real server, and its connections would end with it.",
        "A real server's weight says how many of the new connections it gets. What would none be?",
        "`ipvsadm -e` edits a real server; it takes the same words as `-a`.",
    ),
    check=_drain,
)


# -- one rule --------------------------------------------------------------------------------


def _entries(network: Snapshot, kind: str) -> list[dict[str, Any]]:
    """Return the objects of a kind, "map" or "rule", that node1 has in tables of nftables' own."""
    found = (json.loads(line) for line in network["node1"].lines("nft"))
    return [one[kind] for one in found if kind in one]


def _one_rule(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    maps = json.dumps([one.get("elem", []) for one in _entries(network, "map")])
    for address in (FIRST, SECOND):
        there = f'"{address}"' in maps
        yield Finding(there, f"{address} is {'an element' if there else 'no element'} of a map on node1")
    named = [one for one in _entries(network, "rule") if any(ip in json.dumps(one) for ip in (FIRST, SECOND))]
    yield Finding(not named, f"rules that name an address of a Service themselves: {len(named)}")
    yield _is(probe, "client", FIRST, stable=2)
    yield _is(probe, "client", SECOND, canary=2)


ONE_RULE = Exercise(
    slug="10-one-rule",
    title="one rule for all",
    task=(
        f"On `node1`, and for its pods, let {FIRST}, port 80, lead to `stable` (10.244.1.3) and {SECOND}, port 80, to "
        "`canary` (10.244.2.2), port 8080 both. Use a table of nftables' own, with a map that names the two "
        "addresses, so that no rule has to."
    ),
    hints=(
        "The chapter's first table is nearly it: a map with two elements, and a chain for each.",
        "A map can lead to endpoints themselves: `type ipv4_addr . inet_service : ipv4_addr . inet_service`.",
        "In a chain at `hook prerouting`: `meta l4proto tcp dnat to ip daddr . tcp dport map @services`.",
    ),
    check=_one_rule,
)

EXERCISES: tuple[Exercise, ...] = (WEIGHTS, MISSING_ADDRESS, DRAIN, ONE_RULE)
