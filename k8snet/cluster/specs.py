"""What a cluster shall have, where a manifest or a call leaves something open."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from k8snet.cluster import layout
from k8snet.cluster.workloads import NodeSpec
from k8snet.errors import InvalidInput

__all__ = ["complete", "of_family", "pod_document"]


def complete(nodes: int | Sequence[NodeSpec], families: Sequence[str], *, taken: Iterable[int] = ()) -> list[NodeSpec]:
    """Return nodes with every address and pod CIDR that they need, those given kept.

    Args:
        nodes: how many, or what is known of each.
        families: of the cluster.
        taken: numbers of nodes that are there already.

    Raises:
        InvalidInput: too many nodes.
        InvalidManifest: two pod CIDRs overlap.
    """
    busy = set(taken)
    if isinstance(nodes, int):
        if isinstance(nodes, bool) or not 1 <= nodes <= layout.MOST_NODES:
            raise InvalidInput(f"nodes {nodes!r} is not a whole number from 1 to {layout.MOST_NODES}")
        nodes = [NodeSpec(name=f"node{number}") for number in range(1, nodes + 1)]
    if len(nodes) + len(busy) > layout.MOST_NODES:
        raise InvalidInput(f"{len(nodes) + len(busy)} nodes are too many; {layout.MOST_NODES} at most")
    free = (number for number in range(1, layout.MOST_NODES + 1) if number not in busy)
    done = []
    for spec, number in zip(nodes, free, strict=False):
        addresses = [of_family(spec.addresses, one) or layout.node_address(number, one) for one in families]
        cidrs = [of_family(spec.pod_cidrs, one) or layout.pod_cidr(number, one) for one in families]
        done.append(dataclasses.replace(spec, addresses=tuple(addresses), pod_cidrs=tuple(cidrs)))
    layout.check_disjoint([(f"Node {one.name}", cidr) for one in done for cidr in one.pod_cidrs])
    return done


def of_family(values: Iterable[str], family: str) -> str:
    """Return the first of *values* that is of a family, or nothing."""
    return next((one for one in values if layout.family_of(one) == family), "")


def pod_document(
    name: str, *, image: str, ports: Sequence[int | str], node: str | None, namespace: str,
    labels: Mapping[str, str] | None, host_network: bool,
) -> dict[str, Any]:  # fmt: skip
    """Return the manifest of a pod of one container. See Cluster.run_pod() for the arguments."""
    split = [str(port).upper().partition("/") for port in ports]
    container = {
        "name": name, "image": image,
        "ports": [{"containerPort": _whole(number), "protocol": word or "TCP"} for number, _, word in split],
    }  # fmt: skip
    spec = {"containers": [container], "nodeName": node, "hostNetwork": host_network or None}
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels or {"run": name})},
        "spec": {key: value for key, value in spec.items() if value is not None},
    }  # fmt: skip


def _whole(text: str) -> int | str:
    """Return a port number; what is none is left for the loader to refuse."""
    return int(text) if text.isdecimal() else text
