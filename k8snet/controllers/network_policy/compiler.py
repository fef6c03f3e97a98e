"""NetworkPolicy objects, pods and labels in; who may call whom out. Pure: nothing is programmed here.

    a pod that no policy selects for a direction    may do anything in it
    one that some do                                may do what one rule of one of them allows; no rule denies
    a connection                                    needs egress of its source and ingress of its destination
    always                                          a pod to itself, and to and from its own node

A pod with hostNetwork is its node: no policy selects it, and only an ipBlock can name it.

Source: the API's NetworkPolicy v1; kubernetes.io/docs/concepts/services-networking/network-policies .
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from lightkube.models.networking_v1 import NetworkPolicySpec

from k8snet.cluster.layout import family_of
from k8snet.cluster.objects import labels_of, matches, name_of, namespace_of
from k8snet.errors import InvalidInput, NotFound
from k8snet.linux.address import IPNetwork, host_address

if TYPE_CHECKING:
    from lightkube.models.meta_v1 import LabelSelector
    from lightkube.models.networking_v1 import NetworkPolicyPeer, NetworkPolicyPort
    from lightkube.resources.core_v1 import Namespace
    from lightkube.resources.networking_v1 import NetworkPolicy

__all__ = ["DIRECTIONS", "Block", "Group", "Party", "Policy", "PolicyPod", "PolicyTable", "Port", "Rule"]

DIRECTIONS = ("egress", "ingress")
NAMESPACE_LABEL = "kubernetes.io/metadata.name"  # the API server gives it to every namespace
PROTOCOLS = ("TCP", "UDP", "SCTP", "ICMP")
HIGHEST = 65535


@dataclass(frozen=True, kw_only=True)
class PolicyPod:
    """A pod, as far as policies care."""

    namespace: str
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()
    ports: tuple[tuple[str, str, int], ...] = ()  # name, protocol and number of those that have a name
    node: str | None = None
    host_network: bool = False

    @property
    def key(self) -> str:
        """Its namespace and name, as "shop/web-1"."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class Group:
    """Pods that are chosen by labels: those of a policy, or a peer of a rule."""

    title: str  # in words, the same for selectors that say the same
    members: frozenset[str]  # by "namespace/name"

    def has(self, party: Party) -> bool:
        """Return whether it is one of them."""
        return party.pod is not None and party.pod.key in self.members


@dataclass(frozen=True, kw_only=True)
class Block:
    """A network that is a peer of a rule, whoever lives there."""

    cidr: IPNetwork
    excepts: tuple[IPNetwork, ...] = ()

    @property
    def title(self) -> str:
        """It in words."""
        return f"ipBlock {self.cidr}" + (f" except {', '.join(map(str, self.excepts))}" if self.excepts else "")

    def has(self, party: Party) -> bool:
        """Return whether its address is in it."""
        address = host_address(party.address)
        return address in self.cidr and not any(address in one for one in self.excepts)


@dataclass(frozen=True, kw_only=True)
class Port:
    """Ports that a rule allows."""

    protocol: str
    first: int = 0  # 0: every port; where it has a name, that says which
    last: int = HIGHEST
    name: str = ""

    @property
    def title(self) -> str:
        """It in words, as "TCP 80", "UDP 32000-32768", "TCP named http", "SCTP"."""
        if self.name:
            return f"{self.protocol} named {self.name}"
        numbers = f" {self.first}" if self.first == self.last else f" {self.first}-{self.last}"
        return self.protocol + (numbers if self.first else "")

    def has(self, destination: Party, port: int, protocol: str) -> bool:
        """Return whether a port of the destination is one of them; a name means what that pod calls so."""
        if self.protocol != protocol:
            return False
        if self.name:
            return destination.pod is not None and (self.name, protocol, port) in destination.pod.ports
        return self.first <= port <= self.last


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One entry of `ingress` or `egress`: allows what one of its peers and one of its ports have."""

    peers: tuple[Group | Block, ...]  # none: everyone
    ports: tuple[Port, ...]  # none: all, of every protocol

    def allows(self, peer: Party, destination: Party, port: int, protocol: str) -> bool:
        """Return whether it allows a connection."""
        return (not self.peers or any(one.has(peer) for one in self.peers)) and (
            not self.ports or any(one.has(destination, port, protocol) for one in self.ports)
        )


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A NetworkPolicy, with its selectors resolved."""

    namespace: str
    name: str
    pods: Group
    rules: Mapping[str, tuple[Rule, ...]]  # of each direction that it is about

    @property
    def key(self) -> str:
        """Its namespace and name."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class Party:
    """One end of a connection: a pod, a node, or an address elsewhere."""

    title: str
    address: str
    pod: PolicyPod | None = None  # None for pods with hostNetwork, too
    node: str | None = None  # the pod's, or the node that it is


class PolicyTable:
    """What all policies of a cluster say together."""

    def __init__(
        self, policies: Iterable[NetworkPolicy], pods: Iterable[PolicyPod],
        namespaces: Mapping[str, Mapping[str, str]] | Iterable[Namespace] = (),
        nodes: Mapping[str, Sequence[str]] | None = None,
    ) -> None:  # fmt: skip
        """Resolve every selector.

        Args:
            namespaces: objects, or labels by name; each has the label kubernetes.io/metadata.name anyhow.
            nodes: the addresses of each node, by name.
        """
        self.pods = {pod.key: pod for pod in pods}
        self.nodes = {name: tuple(addresses) for name, addresses in (nodes or {}).items()}
        labels: dict[str, Mapping[str, str]] = {pod.namespace: {} for pod in self.pods.values()}
        labels |= namespaces if isinstance(namespaces, Mapping) else {name_of(o): labels_of(o) for o in namespaces}
        self.namespaces = {name: {**own, NAMESPACE_LABEL: name} for name, own in labels.items()}
        self._homes: dict[str, list[PolicyPod]] = {name: [] for name in self.namespaces}
        for pod in self.pods.values():
            if not pod.host_network:
                self._homes[pod.namespace].append(pod)
        self._groups: dict[str, Group] = {}
        self.policies = tuple(
            sorted((self._policy(one) for one in policies), key=lambda one: (one.namespace, one.name))
        )

    # -- selectors ---------------------------------------------------------------------

    def _policy(self, policy: NetworkPolicy) -> Policy:
        spec = policy.spec or NetworkPolicySpec()
        here = namespace_of(policy)
        types = spec.policyTypes or ["Ingress", *(["Egress"] if spec.egress else [])]
        rules = {
            "ingress": [(one.from_, one.ports) for one in spec.ingress or ()],
            "egress": [(one.to, one.ports) for one in spec.egress or ()],
        }
        return Policy(
            namespace=here, name=name_of(policy), pods=self._group(here, None, spec.podSelector),
            rules={
                word: tuple(self._rule(here, peers or (), ports or ()) for peers, ports in rules[word])
                for word in DIRECTIONS if word.title() in types
            },
        )  # fmt: skip

    def _rule(self, here: str, peers: Sequence[NetworkPolicyPeer], ports: Sequence[NetworkPolicyPort]) -> Rule:
        return Rule(peers=tuple(self._peer(here, one) for one in peers), ports=tuple(map(_port, ports)))

    def _peer(self, here: str, peer: NetworkPolicyPeer) -> Group | Block:
        if peer.ipBlock:
            texts = (peer.ipBlock.cidr, *(peer.ipBlock.except_ or ()))
            cidr, *excepts = (ipaddress.ip_network(one, strict=False) for one in texts)
            return Block(cidr=cidr, excepts=tuple(excepts))
        return self._group(here, peer.namespaceSelector, peer.podSelector)

    def _group(self, here: str, namespaces: LabelSelector | None, pods: LabelSelector | None) -> Group:
        where = f"namespace {here}" if namespaces is None else f"namespaces with {said}" \
            if (said := _said(namespaces)) else "every namespace"
        title = (f"pods with {_said(pods)}" if _said(pods) else "every pod") + f" of {where}"
        if title not in self._groups:
            homes = [here] if namespaces is None else [
                name for name, labels in self.namespaces.items() if matches(namespaces, labels)
            ]  # fmt: skip
            members = frozenset(
                pod.key for home in homes for pod in self._homes.get(home, ())
                if pods is None or matches(pods, pod.labels)
            )  # fmt: skip
            self._groups[title] = Group(title=title, members=members)
        return self._groups[title]

    @cached_property
    def selecting(self) -> dict[str, dict[str, tuple[Policy, ...]]]:
        """The policies that select each pod: direction -> pod -> policies."""
        found: dict[str, dict[str, tuple[Policy, ...]]] = {word: {} for word in DIRECTIONS}
        for policy in self.policies:
            for word in policy.rules:
                for key in policy.pods.members:
                    found[word][key] = (*found[word].get(key, ()), policy)
        return found

    # -- the truth table ---------------------------------------------------------------

    def allowed(
        self, source: str | Party, destination: str | Party, port: int, protocol: str = "TCP", *, family: str = "v4"
    ) -> bool:
        """Return whether a connection is allowed.

        Args:
            source: a pod ("shop/web-1"), a node's name, or an address.
            port: of the destination's, after translation; 0 for "ICMP".
            protocol: "TCP", "UDP", "SCTP", or "ICMP", which only rules without ports allow.
            family: whose addresses an ipBlock is asked for.

        Raises:
            NotFound, InvalidInput: there is nothing called so, or no such protocol.
        """
        here, there, protocol = self.party(source, family), self.party(destination, family), protocol.upper()
        if protocol not in PROTOCOLS:
            raise InvalidInput(f"protocol {protocol!r}: one of {', '.join(PROTOCOLS)}")
        return bool(self.exempt(here, there)) or all(
            self.direction(word, here, there, port, protocol) for word in DIRECTIONS
        )

    def direction(self, word: str, source: Party, destination: Party, port: int, protocol: str) -> bool:
        """Return whether one direction is allowed."""
        mine, peer = (source, destination) if word == "egress" else (destination, source)
        policies = self.selecting[word].get(mine.pod.key, ()) if mine.pod else ()
        return not policies or any(
            rule.allows(peer, destination, port, protocol) for one in policies for rule in one.rules[word]
        )

    def exempt(self, source: Party, destination: Party) -> str:
        """Return why no policy is asked about two ends, or ""."""
        if source.pod and source.pod is destination.pod:
            return "no policy keeps a pod from itself"
        for pod, other in ((source, destination), (destination, source)):
            if pod.pod and not other.pod and pod.node is not None and pod.node == other.node:
                return f"{other.title} is the own node of {pod.title}, to and from which all is allowed"
        return ""

    def party(self, who: str | Party, family: str = "v4") -> Party:
        """Return what is called so: a pod by "shop/web-1" (or "web-1" in default), a node, or an address.

        Raises:
            NotFound: nothing is; the message lists what there is.
        """
        if isinstance(who, Party):
            return who
        pod = self.pods.get(who if "/" in who else f"default/{who}")
        if pod:
            address = next((one for one in pod.addresses if family_of(one) == family), "")
            if not address:
                raise NotFound(f"pod {pod.key} has no address of family {family}")
            return Party(title=pod.key, address=address, pod=None if pod.host_network else pod, node=pod.node)
        if who in self.nodes:
            address = next((one for one in self.nodes[who] if family_of(one) == family), "")
            return Party(title=f"node {who}", address=address, node=who)
        return self._by_address(who)

    def _by_address(self, text: str) -> Party:
        try:
            address = str(ipaddress.ip_address(text))
        except ValueError:
            have = ", ".join([*self.pods, *self.nodes][:12]) or "none"
            raise NotFound(f"no pod, node or address {text!r}; pods and nodes: {have}") from None
        home = next((name for name, addresses in self.nodes.items() if address in addresses), None)
        if home:
            return Party(title=f"node {home} ({address})", address=address, node=home)
        pod = next((one for one in self.pods.values() if address in one.addresses), None)
        if pod is None:
            return Party(title=address, address=address)
        return Party(title=pod.key, address=address, pod=None if pod.host_network else pod, node=pod.node)


def _port(port: NetworkPolicyPort) -> Port:
    protocol = port.protocol or "TCP"
    if port.port is None:
        return Port(protocol=protocol)
    if isinstance(port.port, str):
        return Port(protocol=protocol, name=port.port)
    return Port(protocol=protocol, first=port.port, last=port.endPort or port.port)


def _said(selector: LabelSelector | None) -> str:
    """Return a selector as kubectl writes it: "app=web,tier in (db,web),!old"; "" for one that selects all."""
    if selector is None:
        return ""
    words = [f"{key}={value}" for key, value in sorted((selector.matchLabels or {}).items())]
    for one in selector.matchExpressions or ():
        values = ",".join(sorted(one.values or ()))
        words.append({
            "In": f"{one.key} in ({values})", "NotIn": f"{one.key} notin ({values})",
            "Exists": one.key, "DoesNotExist": f"!{one.key}",
        }[one.operator])  # fmt: skip
    return ",".join(words)
