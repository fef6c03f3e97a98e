"""Which pods the objects of a manifest ask for, and on which node each goes: pure, no pod is made here."""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from lightkube.models.core_v1 import NodeSelectorTerm, PodSpec
from lightkube.models.meta_v1 import ObjectMeta, OwnerReference
from lightkube.resources.apps_v1 import DaemonSet, ReplicaSet, StatefulSet
from lightkube.resources.batch_v1 import Job
from lightkube.resources.core_v1 import Node, Pod

from k8snet.cluster import objects as o
from k8snet.cluster.objects import HostPort, KubeObject, Workload
from k8snet.linux.address import host_address, network

__all__ = ["HOSTNAME", "NodeSpec", "PodPlan", "node_specs", "plan"]

HOSTNAME = "kubernetes.io/hostname"  # a label that every node has
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # Kubernetes's words for the kernel's
_ARCH = ARCHITECTURES.get(platform.machine(), platform.machine())
OF_KUBELET = {  # labels that manifests of agents and controllers select nodes by
    f"{prefix}kubernetes.io/{key}": value
    for prefix in ("", "beta.") for key, value in (("os", "linux"), ("arch", _ARCH))
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NodeSpec:
    """What the scheduler and the cluster need to know of a node."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)  # HOSTNAME and OF_KUBELET are added
    pod_cidrs: tuple[str, ...] = ()  # at most one of each family; () leaves the choice to the cluster
    addresses: tuple[str, ...] = ()  # InternalIPs, likewise
    unschedulable: bool = False  # cordoned: takes the pods that name it, and those of DaemonSets

    def __post_init__(self) -> None:
        """Add the labels that the kubelet gives every node."""
        object.__setattr__(self, "labels", {HOSTNAME: self.name, **OF_KUBELET, **self.labels})


@dataclass(frozen=True, kw_only=True)
class PodPlan:
    """One pod that is wanted, and where."""

    namespace: str
    name: str
    node: str | None  # None: it stays Pending
    reason: str = ""  # why there is no node for it
    pod: Pod  # its spec.nodeName is the node; pods of one workload share their containers
    wanted_addresses: tuple[str, ...] = ()  # () leaves them to IPAM
    owner: str = ""  # as in "Deployment web"; "" for a pod of its own

    @property
    def key(self) -> tuple[str, str]:
        """Return namespace and name."""
        return self.namespace, self.name

    @property
    def made_by(self) -> tuple[str, str, str]:
        """Return kind, namespace and name of the object that it is there for: its owner, or itself."""
        kind, _, name = (self.owner or f"Pod {self.name}").partition(" ")
        return kind, self.namespace, name


def node_specs(objects: Iterable[KubeObject]) -> list[NodeSpec]:
    """Return the nodes that *objects* declare."""
    return [
        NodeSpec(
            name=o.name_of(one),
            labels=o.labels_of(one),
            pod_cidrs=o.pod_cidrs(one),
            addresses=o.node_addresses(one),
            unschedulable=bool(one.spec and one.spec.unschedulable),
        )
        for one in objects
        if isinstance(one, Node)
    ]


def plan(objects: Sequence[KubeObject], *, nodes: Sequence[NodeSpec], placed: Sequence[PodPlan] = ()) -> list[PodPlan]:
    """Return every pod that *objects* ask for, in their order, each with its node or the reason why it has none.

    Pods of a Deployment, ReplicaSet or Job are NAME-1, NAME-2, ...; of a StatefulSet NAME-0, ...; of a
    DaemonSet NAME-NODE. Pods that are among *objects* already, as in a dump of a live cluster, count for
    the workloads that own them. A pod goes to its spec.nodeName, else to the node with the fewest pods of
    those that its nodeSelector, required node affinity and ports of the node leave; one whose address is
    given already goes where that belongs.

    Args:
        placed: the plans of pods that run already; they keep their node, and what they take of it.
    """
    wanted = list(_wanted(objects, nodes))
    here = {(o.namespace_of(pod), o.name_of(pod)) for pod, _ in wanted}
    kept = {one.key: one.node for one in placed if one.key in here}
    board = _Board(nodes, [one.pod for one in placed if one.key not in here])
    homes = {
        index: board.place(pod, home)
        for index, (pod, _) in enumerate(wanted)
        if (home := (pod.spec and pod.spec.nodeName) or kept.get((o.namespace_of(pod), o.name_of(pod)))
            or _home_of(o.addresses_of(pod)[:1], nodes))
    }  # those that have no choice come first, so that the others spread evenly round them
    homes |= {index: board.place(pod) for index, (pod, _) in enumerate(wanted) if index not in homes}
    return [_pod_plan(pod, owner, *homes[index]) for index, (pod, owner) in enumerate(wanted)]


def _home_of(addresses: Sequence[str], nodes: Sequence[NodeSpec]) -> str | None:
    """Return the node whose pod CIDR holds an address, if there is one."""
    for address in map(host_address, addresses):
        for node in nodes:
            if any(address in network(cidr) for cidr in node.pod_cidrs):
                return node.name
    return None


def _pod_plan(pod: Pod, owner: str, node: str | None, reason: str) -> PodPlan:
    spec = pod.spec or PodSpec(containers=[])
    spec = msgspec.structs.replace(spec, nodeName=node or spec.nodeName)
    return PodPlan(
        namespace=o.namespace_of(pod),
        name=o.name_of(pod),
        node=node,
        reason=reason,
        pod=msgspec.structs.replace(pod, spec=spec),
        wanted_addresses=() if spec.hostNetwork else o.addresses_of(pod),
        owner=owner,
    )


# -- which pods ----------------------------------------------------------------------------

_Owner = tuple[str, str, str]  # kind, namespace, name


def _wanted(objects: Sequence[KubeObject], nodes: Sequence[NodeSpec]) -> Iterator[tuple[Pod, str]]:
    """Yield the pods among *objects* and those that their workloads lack, each with its owner."""
    pods = [one for one in objects if isinstance(one, Pod)]
    running = [one for one in pods if not o.finished(one)]
    owned: defaultdict[_Owner, list[Pod]] = defaultdict(list)
    for pod in running:
        for owner in _owners(pod):
            owned[owner].append(pod)
    through = {owner for one in objects if isinstance(one, ReplicaSet) for owner in _owners(one)}
    taken = {(o.namespace_of(one), o.name_of(one)) for one in pods}
    workloads = [one for one in objects if isinstance(one, Workload) and o.key_of(one) not in through]
    made: dict[_Owner, list[Pod]] = {}
    for one in sorted(workloads, key=lambda one: not isinstance(one, StatefulSet)):  # whose names are identities
        made[o.key_of(one)] = _make(one, nodes, owned[o.key_of(one)], taken)
    for each in objects:
        if isinstance(each, Pod) and not o.finished(each):
            kind, _, name = next(_owners(each), ("", "", ""))
            yield each, f"{kind} {name}".strip()
        yield from ((pod, " ".join(o.key_of(each)[::2])) for pod in made.get(o.key_of(each), ()))


def _owners(obj: Pod | ReplicaSet) -> Iterator[_Owner]:
    """Yield what controls *obj*; for a pod of a Deployment's ReplicaSet, the Deployment too."""
    for one in o.meta(obj).ownerReferences or ():
        if one.controller:
            yield one.kind, o.namespace_of(obj), one.name
            template = o.labels_of(obj).get("pod-template-hash")
            if one.kind == "ReplicaSet" and template:
                yield "Deployment", o.namespace_of(obj), one.name.removesuffix(f"-{template}")


def _make(one: Workload, nodes: Sequence[NodeSpec], there: Sequence[Pod], taken: set[tuple[str, str]]) -> list[Pod]:
    """Return the pods that *one* lacks beside those *there*; their names are added to *taken*."""
    kind, namespace, name = o.key_of(one)
    have = {o.name_of(pod) for pod in there}
    suffixes = [each for each in _suffixes(one, nodes, there) if f"{name}-{each}" not in have]
    if any((namespace, f"{name}-{each}") in taken for each in suffixes):
        name = f"{name}-{kind.lower()}"
    taken |= {(namespace, f"{name}-{each}") for each in suffixes}
    return [_pod(one, f"{name}-{each}", each) for each in suffixes]


def _suffixes(one: Workload, nodes: Sequence[NodeSpec], there: Sequence[Pod]) -> list[str]:
    if isinstance(one, DaemonSet):
        busy = {pod.spec.nodeName for pod in there if pod.spec}
        spec = o.pod_spec(one) or PodSpec(containers=[])
        fitting = [node.name for node in nodes if spec.nodeName in {None, node.name} and _fits(spec, node)]
        return [name for name in fitting if name not in busy]
    if isinstance(one, Job):
        return [str(number) for number in range(1, _job_pods(one) - len(there) + 1)]
    replicas = 1 if one.spec is None or one.spec.replicas is None else one.spec.replicas
    if isinstance(one, StatefulSet):
        first = (one.spec and one.spec.ordinals and one.spec.ordinals.start) or 0
        return [str(number) for number in range(first, first + replicas)]
    return [str(number) for number in range(1, replicas - len(there) + 1)]


def _job_pods(job: Job) -> int:
    """Return how many pods *job* runs at once, now."""
    spec, status = job.spec, job.status
    states = {one.type for one in (status and status.conditions) or () if one.status == "True"}
    if spec is None or spec.suspend or states & {"Complete", "Failed"}:
        return 0
    parallel = 1 if spec.parallelism is None else spec.parallelism
    left = parallel if spec.completions is None else spec.completions - ((status and status.succeeded) or 0)
    return min(parallel, left)


def _pod(one: Workload, name: str, suffix: str) -> Pod:
    """Return the pod *name* that *one* makes, with the labels and names that its controller would give it."""
    kind, namespace, owner = o.key_of(one)
    template = one.spec.template if one.spec else None
    given = (template and template.metadata) or ObjectMeta()
    spec, extra = o.pod_spec(one) or PodSpec(containers=[]), {}
    if isinstance(one, StatefulSet):
        extra = {"statefulset.kubernetes.io/pod-name": name, "apps.kubernetes.io/pod-index": suffix}
        subdomain = spec.subdomain or (one.spec and one.spec.serviceName)
        spec = msgspec.structs.replace(spec, hostname=name, subdomain=subdomain)
    elif isinstance(one, DaemonSet):
        spec = msgspec.structs.replace(spec, nodeName=suffix)
    elif isinstance(one, Job):
        extra = {"batch.kubernetes.io/job-name": owner, "job-name": owner}
    version = one.apiVersion or ("batch/v1" if isinstance(one, Job) else "apps/v1")
    reference = OwnerReference(version, kind, owner, o.meta(one).uid or "", controller=True)
    labels = {**(given.labels or {}), **extra}
    metadata = ObjectMeta(
        name=name, namespace=namespace, labels=labels, annotations=given.annotations, ownerReferences=[reference]
    )
    return Pod(apiVersion="v1", kind="Pod", metadata=metadata, spec=spec)


# -- which node ----------------------------------------------------------------------------


class _Board:
    """The nodes, and what the pods placed so far take of them."""

    def __init__(self, nodes: Sequence[NodeSpec], placed: Iterable[Pod]) -> None:
        self._nodes = nodes
        self._count: Counter[str] = Counter()
        self._ports: defaultdict[str, list[HostPort]] = defaultdict(list)
        for pod in placed:
            if pod.spec and pod.spec.nodeName:
                self._take(pod.spec.nodeName, pod.spec)

    def place(self, pod: Pod, home: str | None = None) -> tuple[str | None, str]:
        """Return the node for *pod*, *home* if it can stay there, or None and the reason."""
        spec = pod.spec
        if spec is None or not spec.containers:
            return None, "it has no containers"
        fitting = [node for node in self._nodes if _may_be_on(node, spec, home)]
        if not fitting:
            return None, _misfit(spec)
        ports = o.host_ports(spec)
        clashes = {node.name: o.clash(ports, self._ports[node.name]) for node in fitting}
        free = [name for name, clash in clashes.items() if clash is None]
        if not free:
            where = f"node {fitting[0].name}" if len(fitting) == 1 else "every node that fits"
            return None, f"port {clashes[fitting[0].name]} of {where} is taken"
        best = home if home in free else min(free, key=lambda name: self._count[name])  # of equals the first
        self._take(best, spec)
        return best, ""

    def _take(self, node: str, spec: PodSpec) -> None:
        self._count[node] += 1
        self._ports[node] += o.host_ports(spec)


def _may_be_on(node: NodeSpec, spec: PodSpec, home: str | None) -> bool:
    if spec.nodeName:  # past the scheduler
        return node.name == spec.nodeName
    return _fits(spec, node) and (node.name == home or not node.unschedulable)


def _terms(spec: PodSpec) -> Sequence[NodeSelectorTerm] | None:
    affinity = spec.affinity and spec.affinity.nodeAffinity
    required = affinity and affinity.requiredDuringSchedulingIgnoredDuringExecution
    return required.nodeSelectorTerms if required else None


def _fits(spec: PodSpec, node: NodeSpec) -> bool:
    """Tell whether nodeSelector and required node affinity let the pod be on *node*."""
    if any(node.labels.get(key) != value for key, value in (spec.nodeSelector or {}).items()):
        return False
    terms = _terms(spec)
    return terms is None or any(_holds(term, node) for term in terms)


def _holds(term: NodeSelectorTerm, node: NodeSpec) -> bool:
    """Tell whether all of *term* holds; an empty one never does."""
    fields = {"metadata.name": node.name}
    checks = [o.holds(one.key, one.operator, one.values or (), node.labels) for one in term.matchExpressions or ()]
    checks += [o.holds(one.key, one.operator, one.values or (), fields) for one in term.matchFields or ()]
    return bool(checks) and all(checks)


def _misfit(spec: PodSpec) -> str:
    if spec.nodeName:
        return f"there is no node {spec.nodeName}"
    wishes = [f"{key}={value}" for key, value in (spec.nodeSelector or {}).items()]
    wishes += ["its node affinity"] if _terms(spec) is not None else []
    return f"no schedulable node fits {', '.join(wishes)}" if wishes else "no node is schedulable"
