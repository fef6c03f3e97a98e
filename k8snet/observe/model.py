"""The rules of the Kubernetes network model, probed for real.

    Every pod has an address of its own       read back from its netns
    Every pod reaches every pod, without NAT  TCP, UDP and ICMP; the server sees the pod's own address
    Agents of a node reach its pods           from the node's netns
    Containers of a pod share its network     one netns, one address and MAC, and each other on localhost

Source: https://kubernetes.io/docs/concepts/cluster-administration/networking/ . Pods with
hostNetwork have no network of their own, and the rules say nothing of them.
"""

from __future__ import annotations

import html
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from k8snet.linux import nsfs, probe
from k8snet.linux.sweep import Answer, Target, sweep
from k8snet.observe.reach import Matrix, Reach, address_of, sweep_pods

if TYPE_CHECKING:
    from collections.abc import Sequence

    from k8snet.cluster.cluster import Cluster
    from k8snet.cluster.node import Node
    from k8snet.cluster.pod import Pod

__all__ = ["ModelReport", "Rule", "Violation", "check"]

PORT = 47873  # of the servers that a check starts in every pod, and stops
PROBES = (("TCP", PORT), ("UDP", PORT), ("ICMP", 0))
SHOWN = 12  # violations of a rule that are written out


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One place where a rule does not hold."""

    source: str  # a pod's key, or a node's name
    target: str
    protocol: str
    reason: str

    def __str__(self) -> str:
        """Return it on one line."""
        return f"{self.source} -> {self.target} {self.protocol}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule of the model, how often it was tried, and where it does not hold."""

    text: str
    tried: int
    violations: tuple[Violation, ...]

    @property
    def ok(self) -> bool:
        """Whether it holds everywhere."""
        return not self.violations

    def __str__(self) -> str:
        """Return the rule, and below it the first violations."""
        lines = [f"{'✔' if self.ok else '✘'} {self.text} ({self.tried - len(self.violations)} of {self.tried})"]
        told: dict[tuple[str, str, str], list[str]] = {}  # protocols that say the same of a pair, on one line
        for one in self.violations:
            told.setdefault((one.source, one.target, one.reason), []).append(one.protocol)
        grouped = [
            Violation(source=source, target=target, protocol=", ".join(protocols), reason=reason)
            for (source, target, reason), protocols in told.items()
        ]
        lines += [f"    {one}" for one in grouped[:SHOWN]]
        more = len(grouped) - SHOWN
        return "\n".join([*lines, *([f"    and {more} more"] if more > 0 else [])])


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """Every rule, and the matrices that were probed for them."""

    rules: tuple[Rule, ...]
    reach: Reach

    @property
    def ok(self) -> bool:
        """Whether the cluster keeps every rule."""
        return all(one.ok for one in self.rules)

    @property
    def violations(self) -> list[Violation]:
        """Where a rule does not hold."""
        return [violation for rule in self.rules for violation in rule.violations]

    def __bool__(self) -> bool:
        """Return whether the cluster keeps every rule."""
        return self.ok

    def __str__(self) -> str:
        """Return the rules, one below the other."""
        return "\n".join(map(str, self.rules))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the rules, and the matrices folded below them."""
        items = "".join(f"<pre style='white-space:pre-wrap;margin:.2rem 0'>{html.escape(str(one))}</pre>"
                        for one in self.rules)  # fmt: skip
        return f"<div>{items}<details><summary>The matrices</summary>{self.reach._repr_html_()}</details></div>"


def check(cluster: Cluster, *, timeout_s: float = 1.0) -> ModelReport:
    """Probe every rule from every pod, in parallel, and say where and why one does not hold."""
    pods = [pod for pod in cluster.pods.values() if pod.addresses and not pod.host_network]
    rules, matrices = [_own_addresses(pods)], []
    for family in cluster.ip_families:
        answers, seen = _probe(pods, family, timeout_s)
        rules.append(_all_to_all(cluster, pods, answers, seen, family))
        rules.append(_node_to_pods(cluster, family, timeout_s))
        matrices += [
            Matrix(protocol=protocol, port=port, answers=answers[protocol, port]) for protocol, port in PROBES
        ]  # fmt: skip
    rules.append(_shared(pods, timeout_s))
    return ModelReport(
        rules=tuple(rules), reach=Reach(pods=tuple(pod.key for pod in pods), matrices=tuple(matrices))
    )  # fmt: skip


# -- addresses -------------------------------------------------------------------------


def _own_addresses(pods: Sequence[Pod]) -> Rule:
    owners: dict[str, str] = {}
    violations = []
    for pod in pods:
        live = _addresses_in(pod)
        for address in pod.addresses:
            if address not in live:
                has = ", ".join(sorted(live)) or "none"
                violations.append(_violation(pod.key, pod.key, "", f"eth0 does not have {address}; it has {has}"))
            elif owners.setdefault(address, pod.key) != pod.key:
                violations.append(_violation(pod.key, owners[address], "", f"both have {address}"))
    return Rule(text="Every pod has an address of its own.", tried=len(pods), violations=tuple(violations))


def _addresses_in(pod: Pod) -> set[str]:
    found = pod.netns.netlink("list addresses", lambda ipr: [one.get_attr("IFA_ADDRESS") for one in ipr.get_addr()])
    return set(found)


def _violation(source: str, target: str, protocol: str, reason: str) -> Violation:
    return Violation(source=source, target=target, protocol=protocol, reason=reason)


# -- pod to pod ------------------------------------------------------------------------

Answers = dict[tuple[str, int], dict[str, dict[str, Answer]]]


def _probe(pods: Sequence[Pod], family: str, timeout_s: float) -> tuple[Answers, dict[str, set[str]]]:
    """Return every pod's answers, and the addresses that each pod was pinged from."""
    anywhere = "0.0.0.0" if family == "v4" else "::"  # noqa: S104  # as a server in a pod does
    identity = int.from_bytes(os.urandom(2))
    with ExitStack() as stack:
        for pod in pods:
            for protocol in ("tcp", "udp"):
                stack.enter_context(pod.netns.listen(PORT, protocol=protocol, address=anywhere, name=pod.key))
        seen = stack.enter_context(_watching_echoes(pods, family, identity))
        answers = sweep_pods(pods, PROBES, family=family, timeout_s=timeout_s, identity=identity)
    return answers, seen


@contextmanager
def _watching_echoes(pods: Sequence[Pod], family: str, identity: int) -> Iterator[dict[str, set[str]]]:
    """Collect who each pod is pinged by, as it sees it: a raw socket gets a copy of each request."""
    four = family == "v4"

    def opened() -> socket.socket:
        kind = (socket.AF_INET, socket.IPPROTO_ICMP) if four else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
        sock = socket.socket(kind[0], socket.SOCK_RAW, kind[1])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.setblocking(False)
        return sock

    sockets = {pod.key: pod.netns.inside(opened) for pod in pods}
    seen: dict[str, set[str]] = {pod.key: set() for pod in pods}
    try:
        yield seen
        for key, sock in sockets.items():
            seen[key] = set(_echo_sources(sock, four, identity))
    finally:
        for sock in sockets.values():
            sock.close()


def _echo_sources(sock: socket.socket, four: bool, identity: int) -> Iterator[str]:
    wanted = probe.ICMP_ECHO_REQUEST if four else probe.ICMP6_ECHO_REQUEST
    while True:
        try:
            data, sender = sock.recvfrom(2048)
        except BlockingIOError:
            return
        message = data[(data[0] & 0x0F) * 4 :] if four else data
        if len(message) >= 8 and struct.unpack("!BBHH", message[:6])[::3] == (wanted, identity):
            yield str(sender[0])


def _all_to_all(
    cluster: Cluster, pods: Sequence[Pod], answers: Answers, seen: dict[str, set[str]], family: str
) -> Rule:
    violations = []
    tried = 0
    for protocol, port in PROBES:
        for source in pods:
            own = address_of(source, family)
            for target in pods:
                answer = answers[protocol, port][source.key][target.key]
                tried += 1
                seen_as = answer.seen or (None if protocol != "ICMP" or own in seen[target.key] else "another address")
                if not answer.ok:
                    reason = f"{answer.outcome}; {_why(cluster, source, target, family)}"
                elif seen_as not in (None, own):
                    reason = f"NAT: the server saw {seen_as}, not {own}"
                else:
                    continue
                violations.append(_violation(source.key, target.key, protocol, reason))
    text = "Every pod reaches every pod without NAT" + (", over IPv6." if family == "v6" else ".")
    return Rule(text=text, tried=tried, violations=tuple(violations))


def _why(cluster: Cluster, source: Pod, target: Pod, family: str) -> str:
    """Return what of the way between two pods is not as the pod network makes it."""
    for here, there, word in ((source, target, "there"), (target, source, "back")):
        if found := _wrong_hop(cluster, here, there, family):
            return f"the way {word}: {found}"
    return "routes and hops are as they should be; look at rules, neighbours and the pods themselves"


def _wrong_hop(cluster: Cluster, here: Pod, there: Pod, family: str) -> str:
    node, other = here.home, there.home
    destination = address_of(there, family)
    first = here.netns.route_to(destination)
    if "error" in first:
        return f"pod {here.key} has no route to {destination} ({first['error']})"
    if node is other:
        return ""
    wanted, device = cluster.pod_network.hop(node, other, family)
    answer = node.netns.route_to(destination, source=address_of(here, family), iif="cni0")
    if "error" in answer:
        return f"{node.name} has no route to {destination} ({answer['error']})"
    got = (answer.get("gateway") or answer.get("via", {}).get("host"), answer.get("dev"))
    if got == (wanted, device):
        return ""
    return (
        f"{node.name} has no route of its own to {other.pod_cidrs[family]}: it sends {destination} via {got[0]} "
        f"dev {got[1]}, not via {wanted} dev {device}"
    )


# -- node to pod, and inside a pod -----------------------------------------------------


def _node_to_pods(cluster: Cluster, family: str, timeout_s: float) -> Rule:
    plan: dict[Node, list[Pod]] = {
        node: [pod for pod in node.pods.values() if pod.addresses and not pod.host_network]
        for node in cluster.nodes.values()
    }
    targets = {
        node.netns: [Target(protocol="icmp", address=address_of(pod, family)) for pod in pods]
        for node, pods in plan.items()
    }
    found = sweep(targets, timeout_s=timeout_s)
    violations = [
        _violation(node.name, pod.key, "ICMP", answer.outcome)
        for node, pods in plan.items()
        for pod, answer in zip(pods, found[node.netns], strict=True) if not answer.ok
    ]  # fmt: skip
    text = "A node's agents reach the pods of that node" + (", over IPv6." if family == "v6" else ".")
    return Rule(text=text, tried=sum(map(len, plan.values())), violations=tuple(violations))


def _shared(pods: Sequence[Pod], timeout_s: float) -> Rule:
    """Check pods of several containers: their processes and their sockets are in one netns."""
    several = [pod for pod in pods if len(pod.containers) > 1]
    violations = []
    for pod in several:
        mine = pod.netns.inode
        pids = [(f"container {one.name}", pid) for one in pod.containers for pid in one.pids]
        pids += [("the pause process", pod.pause.pid)] if pod.pause else []
        for name, pid in pids:
            if nsfs.inode(f"/proc/{pid}/ns/net") != mine:
                violations.append(_violation(pod.key, name, "", "its process is in another netns"))
        ports = [(one, port) for one in pod.containers for port in one.ports if port.protocol == "TCP"]
        targets = [Target(protocol="tcp", address="127.0.0.1", port=port.number) for _, port in ports]
        for (one, port), answer in zip(ports, sweep({pod.netns: targets}, timeout_s=timeout_s)[pod.netns], strict=True):
            if not answer.ok:
                reason = f"{answer.outcome} on localhost; the container is {one.state} {one.reason}".rstrip()
                violations.append(_violation(pod.key, f"container {one.name}", str(port), reason))
    return Rule(
        text="Containers of a pod share its address and MAC, and reach each other on localhost.",
        tried=len(several), violations=tuple(violations),
    )  # fmt: skip
