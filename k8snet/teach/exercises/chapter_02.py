"""Exercises of chapter 02: netns and veth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from k8snet.teach.exercise import Exercise
from k8snet.teach.grade import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from k8snet.observe.snapshot import Snapshot
    from k8snet.observe.values import Interface
    from k8snet.teach.grade import Prober

__all__ = ["EXERCISES"]

CLIENT, SERVER = "10.0.0.11", "10.0.0.12"


def _missing(network: Snapshot, *names: str) -> Iterator[Finding]:
    for name in names:
        if name not in network:
            yield Finding(False, f"there is no netns `{name}` yet")


def _joined(network: Snapshot, name: str, other: str) -> Iterator[Interface]:
    """Return the interfaces of netns *name* whose other end is in netns *other*."""
    for one in network[name].interfaces:
        if one.peer is not None and one.peer.netns == other:
            yield one


def _reaches(probe: Prober, name: str, address: str) -> Finding:
    answer = probe.ping(name, address)
    return Finding(answer.ok, f"{name} reaches {address}" if answer.ok else f"from {name}: {answer}")


# -- a third netns -----------------------------------------------------------------------


def _third_netns(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    if missing := list(_missing(network, "monitor", "server")):
        yield from missing
        return
    cable = next(_joined(network, "monitor", "server"), None)
    if cable is None or cable.peer is None:
        yield Finding(False, "no cable leads from monitor to server")
        return
    yield Finding(True, f"a cable leads from {cable.name} of monitor to {cable.peer.interface} of server")
    far = network["server"].interface(cable.peer.interface)
    for name, end, address in (("monitor", cable, "10.0.1.11/24"), ("server", far, "10.0.1.12/24")):
        held = end is not None and address in end.addresses
        yield Finding(held, f"{name}'s end has {address}" if held else f"{name}'s end of that cable lacks {address}")
    yield _reaches(probe, "monitor", "10.0.1.12")
    yield _reaches(probe, "monitor", "10.0.1.11")


THIRD_NETNS = Exercise(
    slug="02-third-netns",
    title="a third netns",
    task=(
        "Make a netns `monitor` and join it to `server` by a cable of its own: `monitor` has 10.0.1.11/24 on its end "
        "and `server` 10.0.1.12/24. `monitor` must reach `server`, and itself."
    ),
    hints=(
        "Five things: a netns, a veth pair, two addresses, and everything up that must be up. Count the interfaces.",
        "`ip link add name … netns monitor type veth peer name … netns server` puts both ends where they belong.",
        "If `monitor` reaches `server` but not 10.0.1.11: `ip -n monitor link set dev lo up`.",
    ),
    check=_third_netns,
)


# -- which end is it ---------------------------------------------------------------------


def _which_end(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    if missing := list(_missing(network, "client", "red", "green", "blue")):
        yield from missing
        return
    end = next(_joined(network, "client", "green"), None)
    if end is None:
        yield Finding(False, "the cable to green is gone; run the cell that plugs it in again, on a new lab")
        return
    right = end.addresses == ("10.0.2.11/24",)
    wrong = [one.name for one in network["client"].interfaces if one is not end and "10.0.2.11/24" in one.addresses]
    text = f"client's end of the cable to green has {', '.join(end.addresses) or 'no address'}"
    yield Finding(right, text)
    yield Finding(
        not wrong, f"{wrong[0]} has 10.0.2.11/24 and leads elsewhere" if wrong else "no other end has that address"
    )
    if right and not wrong:
        yield _reaches(probe, "client", "10.0.2.12")
        yield _reaches(probe, "green", "10.0.2.11")


WHICH_END = Exercise(
    slug="02-which-end",
    title="which end is it?",
    task=(
        "Three cables lead from `client`, by `eth1`, `eth2` and `eth3`, to `red`, `green` and `blue`. Give the cable "
        "to `green` an address at each end: 10.0.2.11/24 in `client`, 10.0.2.12/24 in `green`. The two must reach "
        "each other; the other cables stay as they are."
    ),
    hints=(
        "What stands behind the `@` of `far0` in `green`, and who has that number?",
        "`ip -n green link show dev far0`, then `ip -n client -o link`. The other way round, `link-netns` says it.",
    ),
    check=_which_end,
)


# -- no carrier --------------------------------------------------------------------------


def _no_carrier(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    if missing := list(_missing(network, "client", "server")):
        yield from missing
        return
    end = network["client"].interface("veth-client")
    if end is None:
        yield Finding(False, "veth-client is gone; the cable must stay. Run again from `The same by library`")
        return
    yield Finding(end.up, f"veth-client is {'up' if end.up else 'down, and was to stay up'}")
    yield Finding(
        not end.carrier, f"veth-client has {'carrier still' if end.carrier else 'no carrier: its peer is down'}"
    )
    kept = f"{CLIENT}/24" in end.addresses
    yield Finding(kept, f"veth-client {'has' if kept else 'has lost'} {CLIENT}/24")
    silent = not probe.ping("client", SERVER, timeout_s=0.5).ok
    yield Finding(silent, f"{SERVER} {'is silent' if silent else 'still answers client'}")


NO_CARRIER = Exercise(
    slug="02-no-carrier",
    title="pull the plug, at the far side",
    task=(
        "Let `client` see `NO-CARRIER` on `veth-client`, which is itself up and has its address. Type nothing "
        "inside `client`."
    ),
    hints=(
        "An end has carrier as long as its peer is up.",
        "`ip link set dev veth-server down`, and where do you type it?",
    ),
    check=_no_carrier,
)


# -- without a question ------------------------------------------------------------------


def _no_question(network: Snapshot, probe: Prober) -> Iterator[Finding]:
    if missing := list(_missing(network, "client", "server")):
        yield from missing
        return
    for name, other, address in (("client", "server", SERVER), ("server", "client", CLIENT)):
        far = network[other].interface(f"veth-{other}")
        entry = next((one for one in network[name].neighbours if one.address == address), None)
        if entry is None or entry.state != "PERMANENT":
            state = "is absent" if entry is None else f"is {entry.state}"
            yield Finding(False, f"in {name} the entry for {address} {state}; it was to be PERMANENT")
            continue
        right = far is not None and entry.mac == far.mac
        has = f"names {entry.mac}, which {other}'s end {'has' if right else 'does not have'}"
        yield Finding(right, f"the permanent entry of {name} {has}")
    yield _reaches(probe, "client", SERVER)


NO_QUESTION = Exercise(
    slug="02-no-question",
    title="a ping without a question",
    task=(
        f"Let `client` ({CLIENT}) reach `server` ({SERVER}) without one ARP question on the cable, in either "
        "direction, now or later."
    ),
    hints=(
        "Each of the two needs to know a MAC beforehand, for good. Who asks whom when the reply is due?",
        "`ip neighbour replace ADDRESS lladdr MAC dev INTERFACE nud permanent`, once in each netns, with both ends up.",
    ),
    check=_no_question,
)

EXERCISES: tuple[Exercise, ...] = (THIRD_NETNS, WHICH_END, NO_CARRIER, NO_QUESTION)
