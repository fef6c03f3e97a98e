"""Exercises of chapter 04: reaching a private network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from k8snet.teach.exercise import Exercise
from k8snet.teach.grade import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from k8snet.observe.snapshot import Snapshot
    from k8snet.teach.grade import Prober

__all__ = ["EXERCISES"]

PUBLIC, OUTSIDE = "203.0.113.2", "203.0.113.10"
WEB, API = "the page of web", "the page of api"


def _gets(probe: Prober, name: str, url: str, wanted: str) -> Finding:
    answer = probe.fetch(name, url, timeout_s=1)
    if not answer.ok:
        return Finding(False, f"from {name}: {answer}")
    page = answer.body.strip()
    return Finding(page == wanted, f"{name} gets “{page}” from {url}")


# -- publish a second server ---------------------------------------------------------------


def _publish(_: Snapshot, probe: Prober) -> Iterator[Finding]:
    for caller in ("internet", "host", "client", "api"):
        yield _gets(probe, caller, f"http://{PUBLIC}:8081", API)
    yield _gets(probe, "internet", f"http://{PUBLIC}:8080", WEB)
    with probe.listen("internet", 8081):
        away = probe.fetch("client", f"http://{OUTSIDE}:8081", timeout_s=1)
    kept = away.ok and away.body.strip() != API
    text = "port 8081 of other machines is left alone" if kept else f"from client, for another machine: {away}"
    yield Finding(kept, text)


PUBLISH = Exercise(
    slug="04-publish",
    title="publish a second server",
    task=(
        f"`api` (172.17.0.4) serves a page on port 80. Publish it on port 8081 of {PUBLIC}, for all four kinds of "
        "callers: `internet`, `host`, `client`, and `api` itself. What containers send to port 8081 of others must "
        "arrive there."
    ),
    hints=(
        "`internet` needs two rules, `host` one more, and the containers another one.",
        "DNAT in `PREROUTING` and `OUTPUT` with `-d 203.0.113.2`; a rule in `FORWARD` for what comes out of that.",
        "The hairpin: `MASQUERADE` in `POSTROUTING` for what goes from 172.17.0.0/16 to 172.17.0.4 by `docker0`.",
    ),
    check=_publish,
)


# -- not for everyone ----------------------------------------------------------------------


def _not_for_everyone(_: Snapshot, probe: Prober) -> Iterator[Finding]:
    shut = probe.fetch("stranger", f"http://{PUBLIC}:8080", timeout_s=1)
    yield Finding(not shut.ok, f"stranger asks for the page of web: {shut.outcome}")
    yield _gets(probe, "internet", f"http://{PUBLIC}:8080", WEB)
    yield _gets(probe, "host", f"http://{PUBLIC}:8080", WEB)
    host = probe.ping("stranger", "192.0.2.2")
    yield Finding(host.ok, "stranger still reaches the host" if host.ok else f"from stranger: {host}")
    yield _gets(probe, "stranger", f"http://{PUBLIC}:8081", API)


NOT_FOR_EVERYONE = Exercise(
    slug="04-not-for-everyone",
    title="not for everyone",
    task=(
        "`stranger` (192.0.2.66) must not get the page of `web` on port 8080 any more. It may go on to ping the host, "
        "and to read the page of `api` on port 8081; for all others nothing changes."
    ),
    hints=(
        "A rule for port 8080 in `INPUT` counts nothing. Why not?",
        "In `FORWARD` the packet has the address and the port of `web`. The first rule that decides wins: `-I`.",
    ),
    check=_not_for_everyone,
)


# -- an address of its own -----------------------------------------------------------------


def _source_seen(probe: Prober, name: str) -> str:
    seen = probe.fetch(name, f"http://{OUTSIDE}", timeout_s=1).server_sees
    return seen[0].rpartition(":")[0] if seen else "nobody"


def _own_address(_: Snapshot, probe: Prober) -> Iterator[Finding]:
    for name, wanted in (("web", "203.0.113.7"), ("client", PUBLIC)):
        seen = _source_seen(probe, name)
        yield Finding(seen == wanted, f"when {name} calls, the internet sees {seen}")
    yield _gets(probe, "internet", f"http://{PUBLIC}:8080", WEB)


OWN_ADDRESS = Exercise(
    slug="04-own-address",
    title="an address of its own",
    task=(
        "When `web` calls the internet, let it be seen there as 203.0.113.7; `client` and the others as 203.0.113.2, "
        "as before."
    ),
    hints=(
        "Who must answer the ARP question for 203.0.113.7, and which of two rules in `POSTROUTING` wins?",
        "`ip address add 203.0.113.7/24 dev eth0` on the host; then `-j SNAT --to-source`, before the masquerade.",
    ),
    check=_own_address,
)


# -- localhost -----------------------------------------------------------------------------


def _localhost(_: Snapshot, probe: Prober) -> Iterator[Finding]:
    yield _gets(probe, "host", "http://127.0.0.1:8080", WEB)
    yield _gets(probe, "host", f"http://{PUBLIC}:8080", WEB)
    yield _gets(probe, "internet", f"http://{PUBLIC}:8080", WEB)


LOCALHOST = Exercise(
    slug="04-localhost",
    title="localhost, too",
    task="On the host, let http://127.0.0.1:8080 lead to the page of `web`, by netfilter and without a proxy.",
    hints=(
        "It takes three things: a destination changed, a source that `web` can answer, and a setting.",
        "Packets from 127.0.0.0/8 leave a machine only by interfaces with the sysctl `route_localnet`.",
        "DNAT in `OUTPUT`, `net.ipv4.conf.docker0.route_localnet=1`, and `MASQUERADE` for `-s 127.0.0.1 -o docker0`.",
    ),
    check=_localhost,
)

EXERCISES: tuple[Exercise, ...] = (PUBLISH, NOT_FOR_EVERYONE, OWN_ADDRESS, LOCALHOST)
