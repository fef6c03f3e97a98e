"""Reach: who reaches whom, probed for real from every pod to every pod, as a matrix."""

from __future__ import annotations

import html
import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from k8snet.cluster.layout import family_of
from k8snet.controllers.network_policy.controller import table_of
from k8snet.errors import InvalidInput
from k8snet.linux import neighbour
from k8snet.linux.sweep import Answer, Target, sweep_waves
from k8snet.observe.pinned import Pinned

if TYPE_CHECKING:
    from k8snet.cluster.cluster import Cluster
    from k8snet.cluster.node import Node
    from k8snet.cluster.pod import Pod
    from k8snet.linux.netns import Netns

__all__ = ["Matrix", "Reach", "check_asked", "probe", "sweep_pods"]

SPARE = 128  # neighbours that are left to the machine's own network
MOST = 480  # that one part of a sweep makes, though there were room: others may sweep at the same time
FEW = 32  # silent probes that get a second chance
PORT = re.compile(r"(tcp|udp)/(\d+)|(icmp)", re.IGNORECASE)
EXPECTED = {True: "✔", False: "-"}
SIGNS = {"ok": "✔", "refused": "✘", "timeout": "…", "unreachable": "∅"}
WORDS = {"ok": "ok", "refused": "refused", "timeout": "timeout (silence)", "unreachable": "unreachable"}
COLOURS = {"ok": "rgba(21,128,61,.22)", "refused": "rgba(185,28,28,.22)",
           "timeout": "rgba(180,83,9,.25)", "unreachable": "rgba(110,64,170,.25)"}  # fmt: skip
FRAME = "outline:2px solid #b91c1c;outline-offset:-2px"


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One protocol and port: what each pod got from each pod."""

    protocol: str  # "TCP", "UDP" or "ICMP"
    port: int  # 0 for ICMP
    answers: Mapping[str, Mapping[str, Answer]]  # from -> to -> answer, by "namespace/name"
    expected: Mapping[str, Mapping[str, bool]] | None = None  # what NetworkPolicies allow; None: nobody asked

    def __getitem__(self, pair: tuple[str, str]) -> Answer:
        """Return what one pod got from another, by their keys."""
        return self.answers[pair[0]][pair[1]]

    @property
    def title(self) -> str:
        """Its protocol and port, as "TCP/80"."""
        return f"{self.protocol}/{self.port}" if self.port else self.protocol

    def count(self) -> Counter[str]:
        """Return how many probes had each outcome."""
        return Counter(answer.outcome for row in self.answers.values() for answer in row.values())

    def differs(self, source: str, target: str) -> bool:
        """Return whether a probe got through that policies deny, or none that they allow; who refuses was reached."""
        reached = self[source, target].outcome in {"ok", "refused"}
        return self.expected is not None and self.expected[source][target] != reached

    @property
    def summary(self) -> str:
        """Title, outcomes, and, where it was asked for, how many differ from what policies say."""
        counts = ", ".join(f"{number} {WORDS[outcome]}" for outcome, number in sorted(self.count().items()))
        number = sum(self.differs(source, target) for source, row in self.answers.items() for target in row)
        return f"{self.title}: {counts}" + (f"; {number or 'none'} not as expected" if self.expected else "")


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The matrices of several ports."""

    pods: tuple[str, ...]  # by "namespace/name"
    matrices: tuple[Matrix, ...]

    @property
    def differences(self) -> list[dict[str, Any]]:
        """Where what was seen is not what policies say, if that was asked for."""
        return [
            {"from": source, "to": target, "protocol": one.protocol, "port": one.port, "seen": answer.outcome,
             "expected": "denied" if answer.outcome in {"ok", "refused"} else "allowed"}
            for one in self.matrices for source, row in one.answers.items() for target, answer in row.items()
            if one.differs(source, target)
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON's types: pods, and for each port a matrix of outcomes, and of what was expected."""
        expected = any(one.expected is not None for one in self.matrices)
        return {
            "pods": list(self.pods), "probes": [_as_dict(one) for one in self.matrices],
            **({"differences": self.differences} if expected else {}),
        }  # fmt: skip

    def __str__(self) -> str:
        """Return one table a port, with numbers for the pods above the columns."""
        width = max((len(name) for name in self.pods), default=0) + 4
        numbers = "".join(f"{n:>4}" for n in range(1, len(self.pods) + 1))
        lines: list[str] = []
        for one in self.matrices:
            lines.append(one.summary)
            if one.expected:
                lines.append(f"{' ' * width}{'seen':^{len(numbers)}}    {'expected':^{len(numbers)}}".rstrip())
            lines.append(" " * width + numbers + (f"    {numbers}" if one.expected else ""))
            for number, source in enumerate(self.pods, 1):
                signs = "".join(f"{_sign(one, source, target):>4}" for target in self.pods)
                wanted = "".join(f"{EXPECTED[one.expected[source][target]]:>4}" for target in self.pods) \
                    if one.expected else ""
                lines.append(f"{number:>3} {source:{width - 4}}{signs}{'    ' if wanted else ''}{wanted}")
            lines.append("")
        legend = "   ".join(f"{sign} {WORDS[outcome]}" for outcome, sign in SIGNS.items())
        if any(one.expected for one in self.matrices):
            legend += f"   expected: {EXPECTED[True]} allowed, {EXPECTED[False]} denied; ! not so"
        return "\n".join([*lines, legend]) if self.matrices else "No pod has a port to be probed."

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return one table a port, as a notebook shows it, and what its signs mean."""
        if not self.matrices:
            return f"<p>{self}</p>"
        tables = "".join(map(self._table, self.matrices))
        return f"<div style='overflow-x:auto'>{tables}{_legend(any(one.expected for one in self.matrices))}</div>"

    def _table(self, one: Matrix) -> str:
        numbers = range(1, len(self.pods) + 1)
        head = "".join(f"<th title='{html.escape(name)}'>{n}</th>" for n, name in zip(numbers, self.pods, strict=True))
        rows = "".join(
            f"<tr><th style='text-align:left;font-weight:normal'>{number} {html.escape(source)}</th>"
            + "".join(_cell(source, target, one) for target in self.pods) + "</tr>"
            for number, source in zip(numbers, self.pods, strict=True)
        )  # fmt: skip
        return (
            f"<div style='margin:.4em 0'>{one.summary}</div>"  # a caption would be as narrow as the table
            f"<table class='k8snet-reach' aria-label='{one.summary}'>"
            f"<thead><tr><th style='text-align:left'>from \\ to</th>{head}</tr></thead><tbody>{rows}</tbody></table>"
        )


def _as_dict(one: Matrix) -> dict[str, Any]:
    found: dict[str, Any] = {
        "protocol": one.protocol, "port": one.port,
        "matrix": {
            source: {target: answer.outcome for target, answer in row.items()} for source, row in one.answers.items()
        },
    }  # fmt: skip
    if one.expected is not None:
        found["expected"] = {
            source: {target: "allowed" if allowed else "denied" for target, allowed in row.items()}
            for source, row in one.expected.items()
        }
    return found


def _sign(one: Matrix, source: str, target: str) -> str:
    return SIGNS[one[source, target].outcome] + ("!" if one.differs(source, target) else "")


def _legend(expected: bool) -> str:
    """Return what the signs of a notebook's table mean."""
    said = [f"<span style='background:{COLOURS[outcome]};padding:0 .35em'>{sign}</span> {WORDS[outcome]}"
            for outcome, sign in SIGNS.items()]  # fmt: skip
    if expected:
        said.append(f"<span style='{FRAME};padding:0 .35em'>!</span> not what policies say")
    items = "".join(f"<span style='margin-right:1em;white-space:nowrap'>{one}</span> " for one in said)
    return f"<div style='font-size:.9em;line-height:1.7;margin:.4em 0'>{items}</div>"


def _cell(source: str, target: str, one: Matrix) -> str:
    outcome = one[source, target].outcome
    told = html.escape(f"{source} to {target}: {WORDS[outcome]}")
    if one.expected is not None:
        told += f"; policies: {'allowed' if one.expected[source][target] else 'denied'}"
    style = f"text-align:center;background:{COLOURS[outcome]}"
    if one.differs(source, target):
        style += f";{FRAME}"
    return f"<td style='{style}' title='{told}'><span aria-label='{told}'>{_sign(one, source, target)}</span></td>"


def probe(
    cluster: Cluster, *, ports: Sequence[str] = (), timeout_s: float = 1.0, family: str = "v4", expected: bool = False
) -> Reach:
    """Probe every pod from every pod that has an address, all in parallel.

    Args:
        ports: as in "tcp/80", "udp/53", "icmp"; none means every port that a container declares.
        timeout_s: seconds without any answer after which what is open counts as lost.
        family: "v4" or "v6".
        expected: hold it against what the cluster's NetworkPolicies say, whether or not they are enforced.

    Raises:
        InvalidInput: no such port, or the cluster has no such family.
    """
    asked = check_asked(ports, family, cluster.ip_families)
    pods = [pod for pod in cluster.pods.values() if pod.addresses]
    declared = {
        (port.protocol, port.number): None for pod in pods for port in pod.ports
        if port.declared and port.protocol != "SCTP"
    }  # fmt: skip
    wanted = dict.fromkeys(asked or declared)
    truth = _truth(cluster, pods, list(wanted), family) if expected else {}
    denied = frozenset(
        (port, source, target) for port, rows in truth.items() for source, row in rows.items()
        for target, allowed in row.items() if not allowed
    )  # fmt: skip
    answers = sweep_pods(pods, list(wanted), family=family, timeout_s=timeout_s, denied=denied)
    return Reach(
        pods=tuple(pod.key for pod in pods),
        matrices=tuple(
            Matrix(protocol=port[0], port=port[1], answers=answers[port], expected=truth.get(port)) for port in wanted
        ),
    )


def _truth(
    cluster: Cluster, pods: Sequence[Pod], ports: Sequence[tuple[str, int]], family: str
) -> dict[tuple[str, int], dict[str, dict[str, bool]]]:
    table = table_of(cluster)
    parties = [(pod.key, table.party(pod.key, family)) for pod in pods]
    return {
        (protocol, port): {
            source: {target: table.allowed(mine, theirs, port, protocol) for target, theirs in parties}
            for source, mine in parties
        }
        for protocol, port in ports
    }


def check_asked(ports: Sequence[str], family: str, families: Sequence[str]) -> list[tuple[str, int]]:
    """Return the ports that a probe is to try; see probe().

    Raises:
        InvalidInput: no such port, or the cluster has no such family.
    """
    if family not in families:
        raise InvalidInput(f"family {family!r}: this cluster has {', '.join(families)}")
    return [parse_port(text) for text in (ports.split(",") if isinstance(ports, str) else ports)]


def parse_port(text: str) -> tuple[str, int]:
    """Return protocol and port of "tcp/80" or "icmp".

    Raises:
        InvalidInput: not written so.
    """
    found = PORT.fullmatch(str(text).strip())
    if found is None or (found[2] and not 1 <= int(found[2]) <= 65535):
        raise InvalidInput(f"port {text!r}: write it as in tcp/80, udp/53 or icmp")
    return ("ICMP", 0) if found[3] else (found[1].upper(), int(found[2]))


def sweep_pods(
    pods: Sequence[Pod], ports: Sequence[tuple[str, int]], *, family: str, timeout_s: float,
    identity: int | None = None, denied: Collection[tuple[tuple[str, int], str, str]] = (),
) -> dict[tuple[str, int], dict[str, dict[str, Answer]]]:  # fmt: skip
    """Probe every port of every pod from every pod: {(protocol, port): {from: {to: answer}}}.

    Args:
        denied: (port, from, to) of which silence surprises nobody.
    """
    kinds, jobs = dict.fromkeys(ports), _jobs(pods)
    ways = [{pod: [(port, one) for port in kinds for one in targets] for pod, targets in job.items()} for job in jobs]
    found = _sweep(ways, family, timeout_s, identity)
    silent: dict[Pod, list[tuple[tuple[str, int], Pod]]] = {}
    for (port, source, target), answer in found.items():
        if answer.outcome == "timeout" and (port, source.key, target.key) not in denied:
            silent.setdefault(source, []).append((port, target))
    if 0 < sum(map(len, silent.values())) <= FEW:  # one packet that was lost is not a verdict
        found |= _sweep([silent], family, timeout_s, identity)
    result: dict[tuple[str, int], dict[str, dict[str, Answer]]] = {port: {} for port in ports}
    for port in result:
        for source in pods:
            result[port][source.key] = {target.key: found[port, source, target] for target in pods}
    return result


_Way = tuple[tuple[str, int], "Pod"]  # a port, and whose


def _sweep(
    jobs: Sequence[Mapping[Pod, Sequence[_Way]]], family: str, timeout_s: float, identity: int | None
) -> dict[tuple[tuple[str, int], Pod, Pod], Answer]:
    """Probe one job after the other; the neighbours of each are out of the way when the next one comes."""
    plans: list[dict[Netns, list[Target]]] = []
    order: list[tuple[int, Netns, int, tuple[tuple[str, int], Pod, Pod]]] = []
    for job in jobs:
        plan: dict[Netns, list[Target]] = {}
        for source, wanted in job.items():
            targets = plan.setdefault(source.netns, [])  # pods with hostNetwork share one
            for port, target in wanted:
                order.append((len(plans), source.netns, len(targets), (port, source, target)))
                targets.append(Target(protocol=port[0].lower(), address=address_of(target, family), port=port[1]))
        plans.append(plan)

    pinned = Pinned()
    places = [_places({*job, *(target for wanted in job.values() for _, target in wanted)}) for job in jobs]
    try:
        found = sweep_waves(
            plans, timeout_s=timeout_s, identity=identity, after=lambda number: pinned.pin(places[number])
        )  # fmt: skip
        if len(jobs) > 1:
            pinned.pin(places[-1])
    finally:
        pinned.forget()
    return {key: found[wave][netns][place] for wave, netns, place, key in order}


_Job = dict["Pod", list["Pod"]]  # who probes whom


def _jobs(pods: Sequence[Pod]) -> list[_Job]:
    """Split "from all to all" so that no part makes more neighbours than the machine's kernel has room for.

    A pod and its node learn each other when it talks to another node, and two pods of one node do when they talk.
    """
    room = min(MOST, max(neighbour.room() - SPARE, SPARE))
    homes: dict[Node | None, list[Pod]] = {}
    for pod in pods:
        homes.setdefault(pod.node, []).append(pod)
    if 2 * len(pods) + sum(len(home) * (len(home) - 1) for home in homes.values()) <= room:
        return [{pod: list(pods) for pod in pods}]
    size = len(pods) if 2 * len(pods) <= room else max(1, room // 4)
    parts = [pods[start : start + size] for start in range(0, len(pods), size)]
    far = [
        {source: [one for one in targets if one.node is not source.node] for source in sources}
        for sources in parts for targets in parts
    ]  # fmt: skip
    return far + _near_jobs(list(homes.values()), room)


def _near_jobs(homes: Sequence[Sequence[Pod]], room: int) -> list[_Job]:
    """Return the probes between pods of one node, in as few parts as have room."""
    most = max(1, math.isqrt(room // 2))  # of two groups, all learn all of the other one
    jobs: list[_Job] = []
    used = room
    for home in homes:
        size = math.ceil(len(home) / math.ceil(len(home) / most))
        groups = [home[start : start + size] for start in range(0, len(home), size)]
        for one, other in itertools.combinations_with_replacement(groups, 2):
            cost = len(one) * (len(one) - 1) if one is other else 2 * len(one) * len(other)
            if used + cost > room or not jobs:
                jobs.append({})
                used = 0
            used += cost
            for sources, targets in ((one, other), (other, one))[: 1 if one is other else 2]:
                for source in sources:
                    jobs[-1].setdefault(source, []).extend(targets)
    return jobs


def _places(pods: Iterable[Pod]) -> set[Netns]:
    """Return the netns that learn something when these pods talk to each other."""
    return {netns for pod in pods if pod.node for netns in (pod.netns, pod.node.netns)}


def address_of(pod: Pod, family: str) -> str:
    """Return a pod's address of a family."""
    return next(one for one in pod.addresses if family_of(one) == family)
