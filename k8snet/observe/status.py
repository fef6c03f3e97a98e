"""What `kubectl get` shows: tables and objects with the state that the cluster has now."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from k8snet.cluster import objects
from k8snet.observe.table import Table

if TYPE_CHECKING:
    from k8snet.cluster.cluster import Cluster
    from k8snet.cluster.node import Node
    from k8snet.cluster.pod import Pod

__all__ = ["as_objects", "document", "table", "troubles"]

POD_COLUMNS = ("NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE")
NODE_COLUMNS = ("NAME", "STATUS", "INTERNAL-IP", "POD-CIDR", "PODS")


def document(one: Any) -> dict[str, Any]:
    """Return an object as a manifest has it."""
    found: dict[str, Any] = one.to_dict()
    kind = objects.kind_of(one)
    version = next(version for version, name in objects.KINDS if name == kind)
    return {"apiVersion": version, "kind": kind, **found}


def table(cluster: Cluster, kind: str, *, namespace: str | None = None) -> Table:
    """Return the table of a kind. See Cluster.get()."""
    canonical = objects.kind_named(kind)
    if canonical == "Pod":
        pods = [one for one in cluster.pods.values() if namespace in (None, one.namespace)]
        pods.sort(key=lambda one: (one.namespace, _natural(one.name)))
        return Table(POD_COLUMNS, tuple(map(_pod_row, pods)))
    if canonical == "Node":
        return Table(NODE_COLUMNS, tuple(map(_node_row, cluster.nodes.values())))
    columns, row = ROWS.get(canonical, ((), lambda _: ()))
    rows = [
        (*([key[1]] if key[1] else []), key[2], *row(cluster.objects[key]))
        for key in sorted(cluster.objects) if key[0] == canonical and namespace in (None, key[1])
    ]  # fmt: skip
    scoped = canonical in objects.CLUSTER_SCOPED
    return Table((*(() if scoped else ("NAMESPACE",)), "NAME", *columns), tuple(rows))


def _pod_row(pod: Pod) -> tuple[str, ...]:
    ready = sum(map(pod.is_ready, pod.containers)) if pod.addresses else 0
    restarts = sum(one.restarts for one in pod.containers)
    begun = min((one.started_at for one in pod.containers if one.started_at), default=None)
    return (
        pod.namespace, pod.name, f"{ready}/{len(pod.containers)}", pod.phase, str(restarts),
        _age(begun), ",".join(pod.addresses) or "<none>", pod.node.name if pod.node else "<none>",
    )  # fmt: skip


def troubles(cluster: Cluster) -> list[str]:
    """Return a line for each reason why pods are not Running, as `kubectl describe` would end with."""
    found: dict[tuple[str, str], list[str]] = {}
    for pod in cluster.pods.values():
        broken = [f"container {one.name}: {one.reason}" for one in pod.containers if one.state == "Error"]
        if pod.phase != "Running":
            found.setdefault((pod.phase, "; ".join(broken) or pod.reason), []).append(pod.key)
    return [
        f"{keys[0]}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''}: {phase}: {reason}"
        for (phase, reason), keys in found.items()
    ]


def _node_row(node: Node) -> tuple[str, ...]:
    state = ("Ready" if node.ready else "NotReady") + (",SchedulingDisabled" if node.unschedulable else "")
    return (
        node.name, state, ",".join(node.addresses.values()), ",".join(node.pod_cidrs.values()), str(len(node.pods))
    )  # fmt: skip


def _service_row(service: Any) -> tuple[str, ...]:
    spec, balancer = service.spec, service.status and service.status.loadBalancer
    given = [one.ip or one.hostname or "" for one in (balancer.ingress if balancer else None) or ()]
    outside = [*given, *(spec.externalIPs or ()), *([spec.externalName] if spec.externalName else [])]
    ports = [
        f"{one.port}{f':{one.nodePort}' if one.nodePort else ''}/{one.protocol or 'TCP'}" for one in spec.ports or ()
    ]
    return (
        spec.type or "ClusterIP", spec.clusterIP or "<none>",
        ",".join(outside) or ("<pending>" if spec.type == "LoadBalancer" else "<none>"), ",".join(ports) or "<none>",
    )  # fmt: skip


def _ingress_row(ingress: Any) -> tuple[str, ...]:
    spec, balancer = ingress.spec, ingress.status and ingress.status.loadBalancer
    hosts = dict.fromkeys(one.host or "*" for one in spec.rules or ())
    given = [one.ip or one.hostname or "" for one in (balancer.ingress if balancer else None) or ()]
    return (
        spec.ingressClassName or "<none>", ",".join(hosts) or "*", ",".join(given), "80, 443" if spec.tls else "80"
    )  # fmt: skip


def _gateway_row(gateway: Any) -> tuple[str, ...]:
    status = gateway.status or {}
    given = [str(one.get("value", "")) for one in status.get("addresses") or ()]
    return gateway.spec.gatewayClassName, ",".join(given), _condition(status, "Programmed")


def _condition(status: dict[str, Any], kind: str) -> str:
    return next((one["status"] for one in status.get("conditions") or () if one.get("type") == kind), "Unknown")


ROWS: dict[str, tuple[tuple[str, ...], Callable[[Any], tuple[str, ...]]]] = {  # beside namespace and name
    "Service": (("TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)"), _service_row),
    "Ingress": (("CLASS", "HOSTS", "ADDRESS", "PORTS"), _ingress_row),
    "IngressClass": (("CONTROLLER",), lambda one: (one.spec.controller if one.spec else "",)),
    "Gateway": (("CLASS", "ADDRESS", "PROGRAMMED"), _gateway_row),
    "GatewayClass": (("CONTROLLER",), lambda one: (one.spec.controllerName,)),
    "HTTPRoute": (("HOSTNAMES",), lambda one: (json.dumps(one.spec.hostnames or []),)),
}


def _natural(name: str) -> tuple[str, int]:
    head, _, tail = name.rpartition("-")
    return (head, int(tail)) if tail.isdigit() else (name, 0)


def _age(begun: float | None) -> str:
    if begun is None:
        return "<none>"
    seconds = int(time.time() - begun)
    return f"{seconds}s" if seconds < 120 else f"{seconds // 60}m"


def as_objects(cluster: Cluster, kind: str, *, namespace: str | None = None) -> dict[str, Any]:
    """Return the objects of a kind as a v1 List, with status, as `kubectl get KIND -o json` does."""
    canonical = objects.kind_named(kind)
    if canonical in SPECIAL:
        found = SPECIAL[canonical](cluster, namespace)
    else:
        found = [
            document(one) for key, one in sorted(cluster.objects.items(), key=lambda pair: pair[0])
            if key[0] == canonical and namespace in (None, key[1])
        ]  # fmt: skip
    return {"apiVersion": "v1", "kind": "List", "items": found}


def _pods(cluster: Cluster, namespace: str | None) -> list[dict[str, Any]]:
    return [_pod(one) for one in cluster.pods.values() if namespace in (None, one.namespace)]


def _pod(pod: Pod) -> dict[str, Any]:
    found = document(pod.model)
    found["spec"] = {**found["spec"], **({"nodeName": pod.node.name} if pod.node else {})}
    ready = "True" if pod.ready else "False"
    found["status"] = {
        "phase": "Running" if pod.own_netns else "Pending",
        "conditions": [{"type": "Ready", "status": ready, **({"message": pod.reason} if pod.reason else {})}],
        "containerStatuses": [
            {
                "name": one.name, "image": one.image, "imageID": "", "ready": pod.is_ready(one),
                "restartCount": one.restarts,
            }
            for one in pod.containers
        ],
    }  # fmt: skip
    if pod.node and pod.addresses:
        found["status"] |= {
            "hostIP": pod.node.address, "podIP": pod.addresses[0], "podIPs": [{"ip": one} for one in pod.addresses],
        }  # fmt: skip
    return found


def _nodes(cluster: Cluster, _namespace: str | None) -> list[dict[str, Any]]:
    return [
        {
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name, "labels": dict(node.labels)},
            "spec": {"podCIDR": node.pod_cidr, "podCIDRs": list(node.pod_cidrs.values())},
            "status": {"addresses": [
                *({"type": "InternalIP", "address": one} for one in node.addresses.values()),
                {"type": "Hostname", "address": node.name},
            ]},
        }
        for node in cluster.nodes.values()
    ]  # fmt: skip


SPECIAL: dict[str, Callable[[Any, str | None], list[dict[str, Any]]]] = {"Pod": _pods, "Node": _nodes}
