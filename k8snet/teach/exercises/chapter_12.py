"""Exercises of chapter 12: service discovery."""

from __future__ import annotations

from typing import TYPE_CHECKING

from k8snet.teach.exercise import Exercise
from k8snet.teach.grade import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from k8snet.observe.snapshot import Snapshot
    from k8snet.teach.grade import Prober

__all__ = ["EXERCISES"]

CLIENT = "till"
SLOW_S = 3.5  # seconds; a stub resolver waits 5 before it asks again


def _found(probe: Prober, name: str, wanted: set[str]) -> Finding:
    got = probe.look_up(CLIENT, name).addresses
    return Finding(set(got) == wanted, f"{CLIENT} looks up {name}: {', '.join(got) or 'nothing'}")


# -- a name for each pod -------------------------------------------------------------------


def _address(network: Snapshot, name: str) -> str:
    eth0 = network[name].interface("eth0")
    return eth0.addresses[0].partition("/")[0] if eth0 and eth0.addresses else ""


def _by_name(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    pods = {name: _address(network, name) for name in ("db-0", "db-1")}
    for name, address in pods.items():
        yield _found(probe, f"{name}.db", {address})
    yield _found(probe, "db", set(pods.values()))


BY_NAME = Exercise(
    slug="12-by-name",
    title="a name for each pod",
    task=(
        "The pods of the StatefulSet `db` keep copies of each other's data, and clients have to write to `db-0` and "
        "to nobody else. Let `till` find each pod by its own name, `db-0.db` and `db-1.db`, and both by `db`. The "
        "StatefulSet is as it should be; what it lacks is a Service."
    ),
    hints=(
        "Which kind of Service has the addresses of its pods in DNS, instead of one of its own?",
        (
            "`serviceName: db` gives the pods `db` for a subdomain, so the Service must be called that. It selects "
            "them by `app: db`, and has `clusterIP: None`."
        ),
    ),
    check=_by_name,
)


# -- two queries ---------------------------------------------------------------------------


def _two_queries(_: Snapshot, probe: Prober) -> Iterator[Finding]:
    outside = probe.look_up(CLIENT, "www.example.com")
    count = len(outside.asked)
    yield Finding(outside.ok and 0 < count <= 2, f"{CLIENT} looks up www.example.com: {count} queries")
    for name in ("web", "web.default"):
        inside = probe.look_up(CLIENT, name)
        page = probe.fetch(CLIENT, f"http://{inside.addresses[0]}") if inside.ok else None
        served = bool(page and page.ok)
        yield Finding(served, f"{CLIENT} looks up {name}, and {'is' if served else 'is not'} served")


TWO_QUERIES = Exercise(
    slug="12-two-queries",
    title="two queries",
    task=(
        "`till` calls `www.example.com` all day, and writes the name just so. Let a look-up of it cost two queries, "
        "one for each family of addresses. `web` and `web.default` must still be found. You may change the pod, and "
        "not what its program writes."
    ),
    hints=(
        "How many dots has the name, and from how many on is a name tried as it is?",
        (
            "`dnsConfig` in the spec of the pod; `options` has a list of `name` and `value`, and the value is a text. "
            'A real API server lets nobody change that of a pod that is there: `cluster.delete("pod", "till")` first.'
        ),
        (
            'With `{name: ndots, value: "2"}` a name of two dots is tried as it is, and `web.default`, of one, is '
            "searched as before."
        ),
    ),
    check=_two_queries,
)


# -- a name that moves ---------------------------------------------------------------------


def _elsewhere(_: Snapshot, probe: Prober) -> Iterator[Finding]:
    for client in (CLIENT, "late"):
        found = probe.look_up(client, "pay")
        if not found.ok:
            yield Finding(False, f"{client} looks up pay: nothing")
            continue
        page = probe.fetch(client, f"http://{found.addresses[0]}")
        right = "pay-1" in page.body
        who = "pay-1 answers" if right else "somebody else answers" if page.ok else page.outcome
        yield Finding(right, f"{client} calls http://pay, {found.addresses[0]}: {who}")


ELSEWHERE = Exercise(
    slug="12-elsewhere",
    title="a name that moves",
    task=(
        "`pay` has been a name for `www.example.com` up to now. Payments have come into the house: they are served by "
        "the Service `pay` in the namespace `money`. Let all who say `pay`, `till` and `late` among them, come there. "
        "Nothing is changed in the pods, or in the namespace `money`."
    ),
    hints=(
        "An alias may lead to any name, one of this cluster among them.",
        "The Service `pay` of the namespace `default`, with another `externalName`.",
        "`externalName: pay.money.svc.cluster.local`: it is taken as it is, so it must be the whole name.",
    ),
    check=_elsewhere,
)


# -- five seconds --------------------------------------------------------------------------


def _five_seconds(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    lines = [line for one in network["node2"].rules for line in one.lines]
    raw = lines[lines.index("*raw") :] if "*raw" in lines else []
    first = next((line for line in raw if line.startswith("-A PREROUTING")), "")
    lossy = all(word in first for word in ("statistic", "10.96.0.10", "DROP"))
    yield Finding(lossy, f"node2 {'still' if lossy else 'no longer'} loses every fifth query")
    for _ in range(4):
        found = probe.look_up("audit", "web", timeout_s=SLOW_S)
        took = f"{found.seconds:.1f} s" if found.ok else f"nothing within {SLOW_S} s"
        yield Finding(found.ok, f"audit looks up web: {took}")
        if not found.ok:
            return


FIVE_SECONDS = Exercise(
    slug="12-five-seconds",
    title="five seconds",
    task=(
        "`node2` loses every fifth query to 10.96.0.10, and nobody can mend it before Monday. Until then no look-up of "
        f"`web` in the pod `audit` may take more than {SLOW_S} seconds. The rule that stands for the fault stays."
    ),
    hints=(
        "Who waits five seconds, and where does he read how long he has to wait?",
        "`timeout` and `attempts`, or `use-vc`, are options of resolv.conf(5). How does a pod get options?",
        'In a new `audit`: `dnsConfig: {options: [{name: timeout, value: "1"}, {name: attempts, value: "5"}]}`.',
    ),
    check=_five_seconds,
)

EXERCISES: tuple[Exercise, ...] = (BY_NAME, TWO_QUERIES, ELSEWHERE, FIVE_SECONDS)
