"""The Kubernetes kinds that k8snet knows, as lightkube's models, and what one object says."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin

import msgspec
from lightkube.models.core_v1 import PodSpec  # noqa: TC002  # as for all models: at run time, where they are read
from lightkube.models.meta_v1 import LabelSelector, ObjectMeta
from lightkube.resources.apps_v1 import DaemonSet, Deployment, ReplicaSet, StatefulSet
from lightkube.resources.batch_v1 import Job
from lightkube.resources.core_v1 import Namespace, Node, Pod, Secret, Service
from lightkube.resources.discovery_v1 import EndpointSlice
from lightkube.resources.networking_v1 import Ingress, IngressClass, NetworkPolicy

from k8snet.cluster.gateway_api import Gateway, GatewayClass, HTTPRoute, ReferenceGrant
from k8snet.errors import NotFound

__all__ = [
    "CLUSTER_SCOPED",
    "KINDS",
    "HostPort",
    "KubeObject",
    "Problem",
    "Workload",
    "addresses_of",
    "check_fields",
    "clash",
    "finished",
    "holds",
    "host_ports",
    "key_of",
    "kind_named",
    "kind_of",
    "labels_of",
    "matches",
    "meta",
    "name_of",
    "namespace_of",
    "node_addresses",
    "pod_cidrs",
    "pod_spec",
    "refusal",
    "show",
]


Workload = Deployment | ReplicaSet | StatefulSet | DaemonSet | Job
KubeObject = (
    Namespace | Node | Pod | Workload | Service | EndpointSlice | Ingress | IngressClass | NetworkPolicy | Secret
    | GatewayClass | Gateway | HTTPRoute | ReferenceGrant
)

KINDS: dict[tuple[str, str], type[KubeObject]] = {
    **{("v1", model.__name__): model for model in (Namespace, Node, Pod, Service, Secret)},
    **{("apps/v1", model.__name__): model for model in (Deployment, ReplicaSet, StatefulSet, DaemonSet)},
    ("batch/v1", "Job"): Job,
    ("discovery.k8s.io/v1", "EndpointSlice"): EndpointSlice,
    **{("networking.k8s.io/v1", model.__name__): model for model in (Ingress, IngressClass, NetworkPolicy)},
    **{("gateway.networking.k8s.io/v1", model.__name__): model for model in (GatewayClass, Gateway, HTTPRoute)},
    ("gateway.networking.k8s.io/v1beta1", "ReferenceGrant"): ReferenceGrant,
}
SHORT = {  # kubectl's
    "Pod": ("po",), "Node": ("no",), "Namespace": ("ns",), "Service": ("svc",), "Deployment": ("deploy",),
    "ReplicaSet": ("rs",), "StatefulSet": ("sts",), "DaemonSet": ("ds",), "Ingress": ("ing",),
    "NetworkPolicy": ("netpol",), "Gateway": ("gtw",),
}  # fmt: skip
CLUSTER_SCOPED = frozenset({"Namespace", "Node", "IngressClass", "GatewayClass"})

_OF_KUBERNETES = frozenset({"networking.k8s.io", "discovery.k8s.io", "gateway.networking.k8s.io"})  # and all undotted
_NOT_USED = {  # the other kinds of those groups: no effect on the network
    "Binding", "ComponentStatus", "ConfigMap", "ControllerRevision", "CronJob", "Endpoints", "Event",
    "HorizontalPodAutoscaler", "IPAddress", "LimitRange", "PersistentVolume", "PersistentVolumeClaim",
    "PodDisruptionBudget", "PodSecurityPolicy", "PodTemplate", "ResourceQuota", "ServiceAccount", "ServiceCIDR",
}  # fmt: skip
_POLICY = "a NetworkPolicy (networking.k8s.io/v1)"
_ROUTE = "an HTTPRoute (gateway.networking.k8s.io/v1) or an Ingress (networking.k8s.io/v1)"
_SERVICE = "a Service with an EndpointSlice of its own"
_INSTEAD = {  # network kinds that would be missing in silence: group, or kind and group -> what does that here
    "ReplicationController": "a Deployment (apps/v1)",
    **{f"{kind}.gateway.networking.k8s.io": "an HTTPRoute" for kind in ("GRPCRoute", "TLSRoute", "BackendTLSPolicy")},
    **{f"{kind}.gateway.networking.k8s.io": "a Service of type LoadBalancer" for kind in ("TCPRoute", "UDPRoute")},
    **dict.fromkeys(("crd.projectcalico.org", "projectcalico.org", "cilium.io", "crd.antrea.io"), _POLICY),
    **dict.fromkeys(("policy.networking.k8s.io", "security.istio.io", "policy.linkerd.io", "k8s.ovn.org"), _POLICY),
    **dict.fromkeys(("networking.istio.io", "gateway.networking.x-k8s.io", "split.smi-spec.io"), _ROUTE),
    **dict.fromkeys(("traefik.io", "traefik.containo.us", "projectcontour.io", "k8s.nginx.org"), _ROUTE),
    "multicluster.x-k8s.io": _SERVICE,
    "metallb.io": "a Service of type LoadBalancer",
    "k8s.cni.cncf.io": "a CNI configuration list; every pod has one network here",
}


def refusal(version: str, kind: str) -> str:
    """Return why an object of that kind cannot be accepted, or ""."""
    group = version.rpartition("/")[0]
    instead = _INSTEAD.get(f"{kind}.{group}".rstrip("."), _INSTEAD.get(group))
    if instead:
        return f"kind {show(kind)} of {show(version)} is not supported; use {instead}, or take it out"
    known = {name: right for right, name in KINDS}
    if kind in known and known[kind] != version and ("." not in group or group.endswith(".k8s.io")):
        return f"{kind} has no apiVersion {show(version)}; use {known[kind]}"
    ours = "." not in group or group in _OF_KUBERNETES  # other groups are those of CustomResourceDefinitions
    if ours and kind not in known and kind not in _NOT_USED:
        return f"there is no kind {show(kind)} in {show(version)}{_suggestion(kind, {*known, *_NOT_USED})}"
    return ""


def meta(obj: KubeObject) -> ObjectMeta:
    """Return the metadata of *obj*, empty if it has none."""
    return obj.metadata or ObjectMeta()


def kind_of(obj: KubeObject) -> str:
    """Return the kind of *obj*, as in "Pod"."""
    return obj.kind or type(obj).__name__


def kind_named(word: str) -> str:
    """Return the kind that kubectl's word for it means: "Pod" for "po", "pod" and "pods".

    Raises:
        NotFound: no kind that a cluster keeps; the message lists those.
    """
    lowered = word.lower()
    for kind in {kind for _, kind in KINDS}:
        plural = f"{kind.lower()}es" if kind.endswith(("ss", "x")) else f"{kind.lower()[:-1]}ies" \
            if kind.endswith("cy") else f"{kind.lower()}s"
        if lowered in {kind.lower(), plural, *SHORT.get(kind, ())}:
            return kind
    kinds = ", ".join(sorted(kind.lower() for _, kind in KINDS))
    raise NotFound(f"no kind {word!r}; there are: {kinds}")


def name_of(obj: KubeObject) -> str:
    """Return the name of *obj*."""
    return meta(obj).name or ""


def namespace_of(obj: KubeObject) -> str:
    """Return the namespace of *obj*: "default" where none is written, "" for kinds that are in none."""
    return "" if kind_of(obj) in CLUSTER_SCOPED else meta(obj).namespace or "default"


def labels_of(obj: KubeObject) -> dict[str, str]:
    """Return the labels of *obj*."""
    return meta(obj).labels or {}


def key_of(obj: KubeObject) -> tuple[str, str, str]:
    """Return kind, namespace and name: what no two objects of a cluster share."""
    return kind_of(obj), namespace_of(obj), name_of(obj)


def pod_spec(obj: KubeObject) -> PodSpec | None:
    """Return the spec of the pod that *obj* is, or of those that it makes."""
    if isinstance(obj, Pod):
        return obj.spec
    template = obj.spec.template if isinstance(obj, Workload) and obj.spec else None
    return template.spec if template else None


def addresses_of(pod: Pod) -> tuple[str, ...]:
    """Return the addresses that the status of *pod* gives, as `kubectl get pod -o yaml` shows it."""
    status = pod.status
    several = [one.ip for one in status.podIPs or ()] if status else []
    return tuple(dict.fromkeys([*([status.podIP] if status and status.podIP else []), *several]))


def pod_cidrs(node: Node) -> tuple[str, ...]:
    """Return the pod CIDRs of *node*, at most one of each family."""
    spec = node.spec
    first = [spec.podCIDR] if spec and spec.podCIDR else []
    return tuple((spec.podCIDRs if spec else None) or first)


def node_addresses(node: Node) -> tuple[str, ...]:
    """Return the InternalIPs of *node*."""
    found = (node.status.addresses if node.status else None) or ()
    return tuple(one.address for one in found if one.type == "InternalIP")


def finished(pod: Pod) -> bool:
    """Tell whether *pod* has ended; its address may be another pod's by now."""
    return pod.status is not None and pod.status.phase in {"Succeeded", "Failed"}


# -- label selectors -----------------------------------------------------------------------


def matches(selector: LabelSelector | None, labels: Mapping[str, str]) -> bool:
    """Tell whether *selector* selects an object with *labels*: an empty one does, None does not."""
    if selector is None:
        return False
    return all(labels.get(key) == value for key, value in (selector.matchLabels or {}).items()) and all(
        holds(one.key, one.operator, one.values or (), labels) for one in selector.matchExpressions or ()
    )


def holds(key: str, operator: str, values: Sequence[str], labels: Mapping[str, str]) -> bool:
    """Tell whether one requirement of a selector, or of a node affinity, holds for *labels*."""
    value = labels.get(key)
    match operator:
        case "In":
            return value in values
        case "NotIn":  # a missing label is not in the list either
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt" if value is not None and values:
            try:
                ours, bound = int(value), int(values[0])
            except ValueError:
                return False
            return ours > bound if operator == "Gt" else ours < bound
    return False


# -- ports of the node ---------------------------------------------------------------------


class HostPort(NamedTuple):
    """A port of its node that a pod takes."""

    protocol: str
    port: int
    address: str = ""  # the node's address; "" for all

    def __str__(self) -> str:
        """Return it as in "TCP 9100"."""
        return f"{self.protocol} {f'{self.address}:' if self.address else ''}{self.port}"


def host_ports(spec: PodSpec | None) -> list[HostPort]:
    """Return the ports of its node that a pod takes: hostPorts, and all ports of a hostNetwork pod."""
    found = []
    for container in spec.containers if spec else ():
        for port in container.ports or ():
            number = port.hostPort or (port.containerPort if spec and spec.hostNetwork else 0)
            if number:
                address = "" if port.hostIP in {None, "0.0.0.0", "::"} else str(port.hostIP)  # noqa: S104
                found.append(HostPort(port.protocol or "TCP", number, address))
    return found


def clash(wanted: Iterable[HostPort], taken: Iterable[HostPort]) -> HostPort | None:
    """Return the first of *wanted* that cannot be had beside *taken*."""
    addresses: dict[tuple[str, int], set[str]] = {}
    for one in taken:
        addresses.setdefault(one[:2], set()).add(one.address)
    for one in wanted:
        there = addresses.get(one[:2])
        if there and (not one.address or there & {"", one.address}):
            return one
    return None


# -- a document against its model ----------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """What is wrong with one field of an object."""

    path: str  # as in spec.containers[0].name
    text: str
    unknown: bool = False  # Kubernetes has no such field: lightkube would drop it in silence

    def __str__(self) -> str:
        """Return path and text."""
        return f"{self.path}: {self.text}" if self.path else self.text


class _Shape(NamedTuple):
    what: str  # "fields", "list", "map", "anything", or a key of _SCALARS
    inner: Any = None  # fields: the model; list and map: the shape of each element


_SCALARS: dict[str, tuple[frozenset[type], str]] = {
    # what it is: (the types that YAML and JSON give for it, what to do)
    "text": (frozenset({str}), "put it in quotes"),
    "a whole number": (frozenset({int}), "write it as in 80"),
    "true or false": (frozenset({bool}), "write one of these words, without quotes"),
    "a whole number or text": (frozenset({int, str}), "write it as in 80 or http"),
    "a quantity": (frozenset({int, float, str}), "write it as in 500m or 64Mi"),
    "a time": (frozenset({str}), "write it as in '2026-01-31T12:00:00Z'"),
}
_NAMES: dict[Any, str] = {str: "text", int: "a whole number", bool: "true or false", datetime: "a time"}
_QUANTITIES = frozenset({"sizeLimit", "divisor", "quantity", "perContainer", "perPod"})
_MAPS: dict[str, _Shape] = {
    **dict.fromkeys(
        ("labels", "annotations", "matchLabels", "nodeSelector", "selector"), _Shape("map", _Shape("text"))
    ),
    **dict.fromkeys(("limits", "requests", "capacity", "allocatable", "overhead"), _Shape("map", _Shape("a quantity"))),
}
_QUANTITY = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?")


def check_fields(model: type[KubeObject], document: Any) -> list[Problem]:
    """Return what keeps *document*, as YAML or JSON give it, from being a *model*.

    Afterwards quantities in *document* are text, and lists that must be there are, as the API server does.
    """
    found: list[Problem] = []
    _walk(_Shape("fields", model), document, "", found)
    return found


def show(value: object) -> str:
    """Return *value* as a message shows it: on one line, and short."""
    if value is None or isinstance(value, bool | dict | list):
        return "null" if value is None else {bool: str(value).lower(), dict: "a mapping", list: "a list"}[type(value)]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}...{text[-1]}"


def _suggestion(word: object, words: Iterable[str]) -> str:
    """Return "; did you mean 'X'?" for the one of *words* that is most like *word*, or nothing."""
    close = difflib.get_close_matches(str(word), list(words), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


@functools.cache
def _fields(model: type[msgspec.Struct]) -> tuple[dict[str, _Shape], tuple[str, ...]]:
    """Return the shape of each field of *model*, and the names of those that must be there."""
    infos = msgspec.structs.fields(model)
    shapes = {one.encode_name: _shape(one.type, one.name) for one in infos}
    return shapes, tuple(one.encode_name for one in infos if one.required)


def _shape(hint: Any, name: str) -> _Shape:
    args = [one for one in get_args(hint) if one is not NoneType]
    if get_origin(hint) is list:
        return _Shape("list", _shape(args[0], name))
    if hint is dict or get_origin(hint) is dict:  # lightkube does not say of what
        return _MAPS.get(name, _Shape("map", _Shape("anything")))
    if args:  # X | None, or int | str
        return _shape(args[0], name) if len(args) == 1 else _Shape("a whole number or text")
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return _Shape("fields", hint)
    return _Shape("a quantity" if name in _QUANTITIES else _NAMES.get(hint, "anything"))


def _walk(shape: _Shape, value: Any, path: str, found: list[Problem]) -> Any:
    """Note in *found* what is wrong below *path*, and return *value*, mended."""
    what, inner = shape
    if what in _SCALARS:
        return _walk_scalar(what, value, path, found)
    if what == "anything":
        return value
    if what == "list":
        if not isinstance(value, list):
            found.append(Problem(path, f"{show(value)} is not a list; start each element with '- '"))
        else:
            value[:] = [_walk(inner, one, f"{path}[{index}]", found) for index, one in enumerate(value)]
    elif not isinstance(value, dict):
        found.append(Problem(path, f"{show(value)} is not a mapping; write it as in 'name: value'"))
    elif what == "fields":
        _walk_fields(inner, value, path, found)
    else:
        for key, one in value.items():
            if not isinstance(key, str):
                found.append(Problem(path, f"the key {show(key)} is not text; put it in quotes"))
            value[key] = _walk(inner, one, f"{path}.{key}", found)
    return value


def _walk_fields(model: type[msgspec.Struct], value: dict[Any, Any], path: str, found: list[Problem]) -> None:
    shapes, required = _fields(model)
    dot = f"{path}." if path else ""
    for key, one in value.items():
        shape = shapes.get(key)
        if shape is None:
            text = f"unknown field of {model.__name__}{_suggestion(key, shapes)}"
            found.append(Problem(f"{dot}{key}", text, unknown=True))
        elif one is not None:
            value[key] = _walk(shape, one, f"{dot}{key}", found)
    for key in required:
        if value.get(key) is None:
            what = shapes[key].what
            if what in {"list", "map"}:  # the API server takes nothing for an empty one
                value[key] = [] if what == "list" else {}
            else:
                advice = f"; {_SCALARS[what][1]}" if what in _SCALARS and what != "text" else ""
                found.append(Problem(f"{dot}{key}", f"is missing{advice}"))


def _walk_scalar(what: str, value: Any, path: str, found: list[Problem]) -> Any:
    types, advice = _SCALARS[what]
    good = type(value) in types
    if good and what == "a quantity":
        value = str(value)
        good = _QUANTITY.fullmatch(value) is not None
    elif good and what == "a time":
        try:
            msgspec.convert(value, datetime)
        except msgspec.ValidationError:
            good = False
    if not good:
        found.append(Problem(path, f"{show(value)} is not {what}; {advice}"))
    return value
