"""Exercises of chapter 01: the network stack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from k8snet.teach.exercise import Exercise
from k8snet.teach.grade import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from k8snet.observe.snapshot import Snapshot
    from k8snet.teach.grade import Prober

__all__ = ["EXERCISES"]

APP, ROUTER, FAR = "10.1.0.2", "10.1.0.1", "203.0.113.1"


def _answers(probe: Prober, name: str, address: str) -> Finding:
    answer = probe.ping(name, address)
    return Finding(answer.ok, f"{name} reaches {address}" if answer.ok else f"from {name}: {answer}")


# -- a netns that reaches itself ---------------------------------------------------------


def _new_netns(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    if "empty" not in network:
        yield Finding(False, "there is no netns `empty` yet")
        return
    others = [one.name for one in network["empty"].interfaces if one.kind != "loopback"]
    yield Finding(
        not others, f"empty has {', '.join(others)} besides lo" if others else "empty has no interface but lo"
    )
    yield _answers(probe, "empty", "127.0.0.1")
    yield _answers(probe, "empty", "10.5.0.1")
    more = probe.ping("empty", "10.5.0.2")
    yield Finding(
        not more.ok, "10.5.0.2 answers too: /32 is one address" if more.ok else "10.5.0.1 is one address, not a network"
    )


NEW_NETNS = Exercise(
    slug="01-new-netns",
    title="it talks to itself",
    task=(
        "Make a netns `empty` that has no interface but `lo`, and that reaches itself under 127.0.0.1 and under "
        "10.5.0.1 (this one address, not its neighbours)."
    ),
    hints=(
        "What must be up for 127.0.0.1, and must an address be on an interface that leads somewhere?",
        "`ip -n empty address add 10.5.0.1/32 dev lo`. With a shorter prefix on `lo`, every address of it is local.",
    ),
    check=_new_netns,
)


# -- a server for insiders ---------------------------------------------------------------


def _only_local(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    inside = probe.fetch("app", "http://127.0.0.1:8080")
    yield Finding(inside.ok, "app gets a page from 127.0.0.1:8080" if inside.ok else f"in app: {inside}")
    outside = probe.connect("router", APP, 8080)
    text = f"to router, {APP}:8080 is {outside.outcome}"
    yield Finding(outside.outcome == "refused", text)
    rules = network["app"].lines("iptables-nft")
    about = [line for line in rules if "8080" in line]
    yield Finding(not about, f"without a rule for it, please: {about[0]}" if about else "no rule is needed for that")


ONLY_LOCAL = Exercise(
    slug="01-only-local",
    title="a server for insiders",
    task=(
        "Let a server of `app` listen on port 8080 in such a way that processes in `app` get a page from it, and that "
        "`router` is refused, as if nobody were there. Use no netfilter rule."
    ),
    hints=(
        "A server listens on an address. Which of the addresses of `app` is unknown to `router`?",
        '`app.listen(8080, address=…)`, or `python3 -m http.server --bind …` with a `&` in a cell of `%%netns app`.',
    ),
    check=_only_local,
)


# -- a route that says no ----------------------------------------------------------------


def _say_no(_: Snapshot, probe: Prober) -> Iterator[Finding]:
    far = probe.ping("app", FAR)
    said = far.outcome == "unreachable" and far.reporter is None
    yield Finding(said, f"app to {FAR}: {far.outcome}" + ("" if said else "; it was to be unreachable, said by app"))
    yield Finding(far.reason == "no route to host", f"the kernel's words are: {far.reason or 'none, it answered'}")
    yield _answers(probe, "app", ROUTER)
    other = probe.ping("app", "203.0.113.9", timeout_s=0.5)
    kept = other.reason != "no route to host" or other.reporter is not None
    yield Finding(kept, "203.0.113.9 still goes to the router" if kept else "203.0.113.9 is cut off as well")


SAY_NO = Exercise(
    slug="01-say-no",
    title="a route that says no",
    task=(
        f"Let `app` itself answer every attempt to reach {FAR} with *No route to host*, at once. The router, and all "
        "other far addresses, must remain as reachable as before. Use no netfilter rule."
    ),
    hints=(
        "In which table is the decision made, and which of two lines that fit wins there?",
        "A line need not lead anywhere: see the types `unreachable`, `blackhole` and `prohibit` in ip-route(8).",
    ),
    check=_say_no,
)


# -- a rule that tells a guest from oneself ----------------------------------------------


def _no_answer(_: Snapshot, probe: Prober) -> Iterator[Finding]:
    guest = probe.ping("router", APP, timeout_s=0.5)
    silent = guest.outcome == "timeout"
    yield Finding(silent, f"router's ping to {APP}: {guest.outcome}")
    yield _answers(probe, "app", ROUTER)
    yield _answers(probe, "app", APP)
    with probe.listen("app", 8181):
        page = probe.fetch("router", f"http://{APP}:8181")
    yield Finding(page.ok, "servers of app are still reached by router" if page.ok else f"from router: {page}")


NO_ANSWER = Exercise(
    slug="01-no-answer",
    title="not at home to guests",
    task=(
        f"Let `app` leave pings of others unanswered, in silence. Its own pings, to the router and to {APP}, must go "
        "on working, and so must its servers for everybody."
    ),
    hints=(
        "Which of request and reply must not come in, and by which interface do guests come?",
        "`-p icmp --icmp-type echo-request` tells a request from a reply, and `-i` a guest from oneself.",
        "The rule goes to `INPUT` of `app`, with `-j DROP`.",
    ),
    check=_no_answer,
)

EXERCISES: tuple[Exercise, ...] = (NEW_NETNS, ONLY_LOCAL, SAY_NO, NO_ANSWER)
