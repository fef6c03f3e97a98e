"""What a cluster shall have, where a manifest or a call leaves something open."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from k8snet.cluster import layout
from k8snet.cluster.workloads import NodeSpec, PodPlan
from k8snet.errors import InvalidInput, InvalidManifest
from k8snet.linux.address import IPNetwork, host_address, network

__all__ = ["check_addresses", "check_change", "check_new", "complete", "networks", "of_family", "pod_document"]


def complete(
    nodes: int | Sequence[NodeSpec], families: Sequence[str], *, running: Sequence[NodeSpec] = ()
) -> list[NodeSpec]:
    """Return nodes with every address and pod CIDR that they need, those given kept.

    Args:
        nodes: how many, or what is known of each.
        families: of the cluster.
        running: nodes that are there already.

    Raises:
        InvalidInput: not a number of nodes.
        InvalidManifest: too many, or two share an address or overlap in their pod CIDRs.
    """
    if isinstance(nodes, int):
        if isinstance(nodes, bool) or not 1 <= nodes <= layout.MOST_NODES:
            raise InvalidInput(f"nodes {nodes!r} is not a whole number from 1 to {layout.MOST_NODES}")
        nodes = [NodeSpec(name=f"node{number}") for number in range(1, nodes + 1)]
    if isinstance(nodes, str) or not isinstance(nodes, Sequence) or not all(isinstance(one, NodeSpec) for one in nodes):
        raise InvalidInput(f"nodes {nodes!r} is neither a whole number nor a list of NodeSpec")
    if len(nodes) + len(running) > layout.MOST_NODES:
        raise InvalidManifest(f"{len(nodes) + len(running)} nodes are too many; {layout.MOST_NODES} at most")
    numbers, done = _free_numbers([*nodes, *running], families), list(running)
    for spec in nodes:
        addresses = [of_family(spec.addresses, one) for one in families]
        cidrs = [of_family(spec.pod_cidrs, one) for one in families]
        number = 0 if all(addresses + cidrs) else next(numbers)
        addresses = [had or layout.node_address(number, one) for had, one in zip(addresses, families, strict=True)]
        cidrs = [had or layout.pod_cidr(number, one) for had, one in zip(cidrs, families, strict=True)]
        done.append(dataclasses.replace(spec, addresses=tuple(addresses), pod_cidrs=tuple(cidrs)))
    _check_nodes(done)
    return done[len(running) :]


def _free_numbers(given: Sequence[NodeSpec], families: Sequence[str]) -> Iterator[int]:
    """Yield the numbers whose addresses and pod CIDRs no node has been given."""
    addresses = {host_address(one) for spec in given for one in spec.addresses}
    cidrs = [network(one) for spec in given for one in spec.pod_cidrs]
    for number in range(1, layout.MOST_NODES + 1):
        own = [network(layout.pod_cidr(number, family)) for family in families]
        if addresses.isdisjoint(host_address(layout.node_address(number, family)) for family in families) and not any(
            one.overlaps(other) for one in own for other in cidrs if one.version == other.version
        ):
            yield number
    raise InvalidManifest("the Node objects leave no address for a node without one; give it an InternalIP and podCIDR")


def _check_nodes(nodes: Sequence[NodeSpec]) -> None:
    layout.check_disjoint([(f"Node {one.name}", cidr) for one in nodes for cidr in one.pod_cidrs])
    owners: dict[Any, str] = {}
    for spec in nodes:
        for text in spec.addresses:
            address = host_address(text)
            if address.is_loopback or address.is_multicast or address.is_unspecified:
                raise InvalidManifest(f"Node {spec.name}: status.addresses: no node can have {text}")
            other = owners.setdefault(address, spec.name)
            if other != spec.name:
                raise InvalidManifest(f"Node {spec.name}: status.addresses: {text} is Node {other}'s already")
    for spec in nodes:
        for cidr in map(network, spec.pod_cidrs):
            if reason := layout.unfit(cidr):
                raise InvalidManifest(f"Node {spec.name}: spec.podCIDR: {cidr} {reason}")
            if inside := next((one for one in owners if one in cidr), None):
                text = f"{cidr} holds {inside}, the InternalIP of Node {owners[inside]}; pods and nodes need their own"
                raise InvalidManifest(f"Node {spec.name}: spec.podCIDR: {text}")


def networks(specs: Sequence[NodeSpec], families: Sequence[str]) -> tuple[dict[str, IPNetwork], dict[str, IPNetwork]]:
    """Return the network of all pods and the network of all nodes, of each family.

    Raises:
        InvalidManifest: the nodes are too far apart for one network, or one has the router's address.
    """
    pods = {
        family: layout.spanning([of_family(one.pod_cidrs, family) for one in specs], default=wide)
        for family, wide in layout.CLUSTER_NETWORK.items() if family in families
    }  # fmt: skip
    nodes = {
        family: layout.spanning([of_family(one.addresses, family) for one in specs], default=wide)
        for family, wide in layout.NODE_NETWORK.items() if family in families
    }  # fmt: skip
    for family, wide in nodes.items():
        if wide.prefixlen < 8:
            raise InvalidManifest(f"status.addresses: no network of nodes holds all InternalIPs; {wide} would")
        for spec in specs:
            if of_family(spec.addresses, family) == layout.router_address(wide):
                address = layout.router_address(wide)
                raise InvalidManifest(f"Node {spec.name}: status.addresses: {address} is the router's of this lab")
    return pods, nodes


def check_new(
    specs: Sequence[NodeSpec], *, taken: Iterable[str], pods: Mapping[str, IPNetwork], nodes: Mapping[str, IPNetwork]
) -> None:
    """Check that nodes find a place in a cluster.

    Args:
        taken: names of netns that are no nodes.
        pods: family -> the network of all pods, of which the cluster's rules speak; *nodes* likewise.

    Raises:
        InvalidManifest: one does not.
    """
    names = {"host", *taken}
    for spec in specs:
        if layout.short(spec.name) in names:
            raise InvalidManifest(f"Node {spec.name}: metadata.name: something else of this lab is called so")
        for field, values, of_all in (
            ("status.addresses", spec.addresses, nodes), ("spec.podCIDR", spec.pod_cidrs, pods),
        ):  # fmt: skip
            for one in values:
                whole = of_all.get(layout.family_of(one))
                if whole and network(one).network_address not in whole:
                    text = f"{field}: {one} is outside {whole}, the network of all of this cluster"
                    raise InvalidManifest(f"Node {spec.name}: {text}")


def check_change(wanted: Iterable[NodeSpec], running: Iterable[NodeSpec]) -> None:
    """Check that no running node is to get another pod CIDR.

    Raises:
        InvalidManifest: one is.
    """
    have = {spec.name: spec.pod_cidrs for spec in running}
    for spec in wanted:
        for cidr in spec.pod_cidrs:
            has = of_family(have.get(spec.name, ()), layout.family_of(cidr))
            if has and network(has) != network(cidr):
                raise InvalidManifest(f"Node {spec.name}: spec.podCIDR: a running node cannot change it to {cidr}")


def check_addresses(plans: Iterable[PodPlan], nodes: Sequence[NodeSpec]) -> None:
    """Check that every pod that wants an address can have it on its node, or where it names none on any.

    Raises:
        InvalidManifest: one cannot.
    """
    for plan in plans:
        there = [one for one in nodes if plan.node == one.name]
        for text in plan.wanted_addresses if there else ():
            address = host_address(text)
            cidrs = [one for one in map(network, there[0].pod_cidrs) if one.version == address.version]
            what = f"Pod {plan.namespace}/{plan.name}: status.podIP: {text}"
            if cidrs and address not in cidrs[0]:
                raise InvalidManifest(f"{what} is outside {cidrs[0]}, the pod CIDR of Node {there[0].name}")
            edges = [cidrs[0][0], cidrs[0][1], *([cidrs[0][-1]] if address.version == 4 else [])] if cidrs else []
            if address in edges:
                word = ("the network's own address", "its gateway", "its broadcast address")[edges.index(address)]
                raise InvalidManifest(f"{what} is no pod's in {cidrs[0]}: it is {word}")


def of_family(values: Iterable[str], family: str) -> str:
    """Return the first of *values* that is of a family, or nothing."""
    return next((one for one in values if layout.family_of(one) == family), "")


def pod_document(
    name: str, *, image: str, ports: Sequence[int | str], node: str | None, namespace: str,
    labels: Mapping[str, str] | None, host_network: bool,
) -> dict[str, Any]:  # fmt: skip
    """Return the manifest of a pod of one container. See Cluster.run_pod() for the arguments."""
    split = [str(port).upper().partition("/") for port in ([ports] if isinstance(ports, int | str) else ports)]
    container = {
        "name": str(name).replace(".", "-")[:63].rstrip("-"), "image": image,
        "ports": [{"containerPort": _whole(number), "protocol": word or "TCP"} for number, _, word in split],
    }  # fmt: skip
    spec = {"containers": [container], "nodeName": node, "hostNetwork": host_network or None}
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": namespace, "labels": dict(labels or {"run": str(name)[:63].rstrip("-.")}),
        },
        "spec": {key: value for key, value in spec.items() if value is not None},
    }  # fmt: skip


def _whole(text: str) -> int | str:
    """Return a port number; what is none is left for the loader to refuse."""
    return int(text) if text.isdecimal() else text
