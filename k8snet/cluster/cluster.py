"""Cluster: nodes, their pods, and what joins them, live in one lab."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from k8snet.cluster import layout, objects, pod_networks
from k8snet.cluster.fabric import FABRIC, Fabric, port_for
from k8snet.cluster.manifests import Manifest, load, parse
from k8snet.cluster.node import BRIDGE, UPLINK, Node
from k8snet.cluster.pod import Pod, Program, drain
from k8snet.cluster.specs import check_addresses, check_change, check_new, complete, networks, of_family, pod_document
from k8snet.cluster.views import Views
from k8snet.cluster.wiring import WIRINGS, forget
from k8snet.cluster.workloads import NodeSpec, PodPlan, node_specs, plan
from k8snet.errors import InvalidInput, InvalidManifest, NameTaken, NotFound
from k8snet.lab import Lab
from k8snet.linux import link
from k8snet.linux.address import check_netns_name
from k8snet.linux.run import scratch

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns
    from k8snet.transcript import Transcript

__all__ = ["Cluster"]

Progress = Callable[[str, int, int], None]  # what is done, how many are, how many there are


class Controller(Protocol):
    """What keeps the kernel in step with the cluster's objects and pods."""

    def check(self, wanted: Iterable[Any]) -> None:
        """Refuse objects that cannot be, before anything is changed; raises InvalidManifest."""

    def sync(self) -> list[str] | None:
        """Look at the cluster, change what differs, and return what had ended and was started again."""


class Cluster(Views):
    """A cluster of nodes whose pods reach each other; gone when it, or its lab, is closed.

    In a notebook `cluster = Cluster(nodes=2)` is enough; a second one of the same name
    closes the first. In a program: `with Cluster(nodes=2) as cluster:`.
    """

    _settled: frozenset[tuple[str, str, str]] = frozenset()  # keys of objects that were there before the last change

    def __init__(
        self, nodes: int | Sequence[NodeSpec] = 2, *, name: str = "lab", pod_network: str = "routes",
        ip_families: Sequence[str] = ("v4",), wiring: str = "cni", masquerade: bool = True,
        route_reflector: bool = False, progress: Progress | None = None,
    ) -> None:  # fmt: skip
        """Build nodes on a switch, with a router and an internet beyond; there are no pods yet.

        Args:
            nodes: how many, or what they shall be.
            name: of its lab.
            pod_network: "routes", "vxlan" or "bgp"; see k8snet.cluster.pod_networks.
            ip_families: ("v4",), or ("v4", "v6") for dual-stack.
            wiring: "cni" lets Debian's CNI plugins attach the pods; "direct" does the same, faster.
            masquerade: let packets to addresses outside the cluster leave a node as if from the node.
            route_reflector: with bgp, let the switch pass on routes instead of a full mesh.
            progress: called with what is being done, how many are done, and of how many.

        Raises:
            InvalidInput: an argument cannot be.
            InvalidManifest: two nodes have the same name, or addresses that overlap.
            SandboxFailed: this process is not in a sandbox.
            ProgramMissing, CapabilityMissing: the machine lacks something.
        """
        self.ip_families = layout.check_families(ip_families)
        self.masquerade = masquerade
        self._progress: Progress = progress or (lambda *_: None)
        for what, value, choices in (("wiring", wiring, WIRINGS), ("pod_network", pod_network, pod_networks.KINDS)):
            if value not in choices:
                raise InvalidInput(f"{what} {value!r}: one of {', '.join(choices)}")
        specs = complete(nodes or 0, self.ip_families)
        self.cluster_networks, node_networks = networks(specs, self.ip_families)
        self.lab = Lab(name, ipv6="v6" in self.ip_families)
        self.objects: dict[tuple[str, str, str], Any] = {}  # (kind, namespace, name) -> lightkube model
        self.nodes: dict[str, Node] = {}
        self.pods: dict[tuple[str, str], Pod] = {}  # by (namespace, name)
        self.controllers: list[Controller] = []  # told after each change of the pods
        self.programs: dict[str, Program] = {}  # by image: what its containers run
        self.lock, self.stopped = threading.RLock(), False
        self.lab.keep(self)
        try:
            self.fabric = Fabric(self.lab, node_networks)
            self.pod_network = pod_networks.make(pod_network, self.fabric, reflector=route_reflector)
            self._wiring = WIRINGS[wiring](self.lab, mtu=self.pod_network.mtu(self.ip_families))
            for spec in specs:
                self._add_node(spec)
                self._progress("nodes", len(self.nodes), len(specs))
            self.pod_network.settle()
        except BaseException:
            self.lab.close()
            raise

    @classmethod
    def from_manifest(
        cls, *sources: str | Path, nodes: int | None = None, lenient: bool = False, **options: Any
    ) -> Cluster:
        """Build the cluster that manifests describe: its nodes from Node objects, and their pods.

        Args:
            sources: files, folders, or "-" for standard input.
            nodes: how many, where the manifests have no Node.
            lenient: warn of fields that are not known, instead of refusing them.

        Raises:
            InvalidManifest: one cannot be used; nothing was built.
        """
        manifest = load(*sources, lenient=lenient)
        return cls.of(manifest, nodes=nodes, **options)

    @classmethod
    def of(cls, manifest: Manifest, *, nodes: int | None = None, **options: Any) -> Cluster:
        """Build the cluster that a loaded manifest describes. See from_manifest()."""
        specs = node_specs(manifest.objects)
        if specs and nodes is not None and nodes != len(specs):
            raise InvalidManifest(f"the manifest has {len(specs)} Node objects, and {nodes} nodes were asked for")
        families = layout.check_families(options.get("ip_families", ("v4",)))
        nodes = 2 if nodes is None else nodes
        known = complete(specs or nodes, families)
        of_pods, of_nodes = networks(known, families)
        check_new(specs, taken=FABRIC, pods=of_pods, nodes=of_nodes)
        check_addresses(plan(manifest.objects, nodes=known), known)  # refused before anything is built
        cluster = cls(specs or nodes, **options)
        try:
            cluster.apply(manifest)
        except BaseException:
            cluster.close()
            raise
        return cluster

    def __enter__(self) -> Cluster:
        """Return itself; the end of the block closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """Return how many nodes and pods it has."""
        state = "closed" if self.stopped else f"{len(self.nodes)} nodes, {len(self.pods)} pods"
        return f"<Cluster {self.lab.name}: {state}, {self.pod_network.kind}>"

    def close(self) -> None:
        """End everything at once; a second call does nothing."""
        self.lab.close()

    def stop(self) -> None:
        """Forget what is on disk; called when the lab closes, which ends all else."""
        self.stopped = True
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def folder(self) -> Path:
        """Where files of its programs are, in the sandbox's own /run."""
        return scratch() / f"cluster-{self.lab.name}"

    # -- parts -------------------------------------------------------------------------

    @property
    def switch(self) -> Netns:
        """The netns that joins the nodes."""
        return self.fabric.switch

    @property
    def router(self) -> Netns:
        """The netns between the nodes and the internet."""
        return self.fabric.router

    @property
    def internet(self) -> Netns:
        """The netns beyond the router: a client, and a server on port 80 of 203.0.113.80."""
        return self.fabric.internet

    @property
    def transcript(self) -> Transcript:
        """What was done, as commands. See Lab.transcript."""
        return self.lab.transcript

    def node(self, name: str) -> Node:
        """Return a node by its name.

        Raises:
            NotFound: there is none of that name; the message lists those there are.
        """
        if name not in self.nodes:
            raise NotFound(f"no node {name!r}; there are: {', '.join(self.nodes) or 'none'}")
        return self.nodes[name]

    def pod(self, name: str, *, namespace: str | None = None) -> Pod:
        """Return a pod, by "web-1" in the namespace default, or by "shop/web-1".

        Raises:
            NotFound: there is none of that name; the message lists those of the namespace.
        """
        space, _, short = name.rpartition("/")
        key = (space or namespace or "default", short)
        if key not in self.pods:
            have = ", ".join(one.name for one in self.pods.values() if one.namespace == key[0])
            raise NotFound(f"no pod {short!r} in namespace {key[0]!r}; there are: {have or 'none'}")
        return self.pods[key]

    # -- nodes -------------------------------------------------------------------------

    def add_node(self, name: str | None = None, *, labels: Mapping[str, str] | None = None) -> Node:
        """Add a node, and let the others know the way to its pods; waiting pods and DaemonSets get theirs.

        Raises:
            InvalidName, NameTaken: it cannot be called so.
        """
        with self.lock:
            names = (f"node{number}" for number in range(self._free_number(), 2 * layout.MOST_NODES))
            name = name or next(one for one in names if one not in self.lab)
            spec = NodeSpec(name=name, labels=dict(labels or {}))
            made = self._add_node(complete([spec], self.ip_families, running=self._specs())[0])
            self.pod_network.settle()
            self._reconcile()
            return made

    def remove_node(self, name: str) -> None:
        """Take a node away with its pods; those of workloads get a place on another.

        Raises:
            NotFound: there is none of that name.
        """
        with self.lock:
            node = self.node(name)
            for pod in node.pods.values():
                if not pod.plan.owner:  # nothing would make it anew
                    self.objects.pop(("Pod", pod.namespace, pod.name), None)
            self._remove_pods(list(node.pods.values()))
            del self.nodes[name]
            self.objects.pop(("Node", "", name), None)
            self.pod_network.leave(node, list(self.nodes.values()))
            self.lab.remove(node.netns.name)
            forget(node)
            self._reconcile()

    def power_off(self, name: str) -> None:
        """Let a node fail: its cable is dead, and so is all that ran on it. Nobody is told.

        Others find out as they can, and the control plane at the next sync(), where a real one waits up to
        50 s for the kubelet (node-monitor-grace-period). Like: ip link set dev NODE down, in the switch.

        Raises:
            NotFound: there is none of that name.
        """
        with self.lock:
            node = self.node(name)
            self.switch.set_down(port_for(node.netns.name))
            node.halt()

    def power_on(self, name: str) -> None:
        """Give a node its power back; its pods come again, with the addresses they had. See power_off()."""
        with self.lock:
            node = self.node(name)
            self.switch.set_up(port_for(node.netns.name))
            link.await_carrier(node.netns, [UPLINK])
            self.sync()

    def _free_number(self) -> int:
        taken = {node.number for node in self.nodes.values()}
        return next(number for number in range(1, layout.MOST_NODES + 2) if number not in taken)

    def _add_node(self, spec: NodeSpec) -> Node:
        if spec.name in {*self.nodes, *FABRIC, "host"} or layout.short(spec.name) in self.lab:
            raise NameTaken(f"node {spec.name!r}: there is a netns of that name already")
        netns = self.lab.netns(check_netns_name(layout.short(spec.name)), forward=True)
        node = Node(
            name=spec.name, number=self._free_number(), netns=netns, labels=spec.labels,
            unschedulable=spec.unschedulable, folder=self.folder / spec.name,
            addresses={family: of_family(spec.addresses, family) for family in self.ip_families},
            pod_cidrs={family: of_family(spec.pod_cidrs, family) for family in self.ip_families},
        )  # fmt: skip
        self.fabric.plug(netns, node.addresses)
        netns.add_bridge(BRIDGE)
        for family in node.pod_cidrs:
            netns.add_address(BRIDGE, node.gateway_with_length(family))
            if self.masquerade:
                self.plain_masquerade(node, family)
        self.pod_network.join(node, list(self.nodes.values()))
        self.nodes[node.name] = node
        return node

    def plain_masquerade(self, node: Node, family: str, verb: str = "-A") -> None:
        """Let pods talk to what is outside as if the node did, as flannel's rule does; with "-D" no longer."""
        inside = str(self.cluster_networks[family])
        node.netns.iptables(
            "-t", "nat", verb, "POSTROUTING", "-s", node.pod_cidrs[family], "!", "-d", inside, "-j", "MASQUERADE",
            family=6 if family == "v6" else 4,
        )  # fmt: skip

    # -- objects -----------------------------------------------------------------------

    def apply(self, source: str | Path | Manifest | Iterable[Any], *, lenient: bool = False) -> list[str]:
        """Bring the cluster to what manifests say, and return a line for each object. Like: kubectl apply -f SOURCE.

        Args:
            source: a file, a folder, "-", the text of a manifest, or a Manifest.
            lenient: warn of fields that are not known, instead of refusing them.

        Raises:
            InvalidManifest: it cannot be used; the cluster is as it was.
        """
        self.lab.worker  # noqa: B018  # raises LabClosed
        manifest = source if isinstance(source, Manifest) else _loaded(source, lenient=lenient)
        with self.lock:
            merged = dict(self.objects)
            lines = []
            for one in manifest.beside(merged):
                key = objects.key_of(one)
                old = merged.get(key)
                word = "created" if old is None else "unchanged" if old.to_dict() == one.to_dict() else "configured"
                lines.append(f"{key[0].lower()}/{key[2]} {word}")
                merged[key] = one
            new = [spec for spec in node_specs(list(merged.values())) if spec.name not in self.nodes]
            specs = [*self._specs(), *complete(new, self.ip_families, running=self._specs())]
            check_change(node_specs(list(merged.values())), self._specs())
            check_new(
                specs[len(self.nodes) :], taken=[*FABRIC, *(one.name for one in self.lab)],
                pods=self.cluster_networks, nodes=self.fabric.networks,
            )  # fmt: skip
            plans = plan(list(merged.values()), nodes=specs, placed=self._placed())
            given = set(map(objects.key_of, manifest.objects))
            check_addresses([one for one in plans if ("Pod", *one.key) in given], specs)
            for controller in self.controllers:
                controller.check(merged.values())
            self.objects = merged
            for spec in specs[len(self.nodes) :]:
                self._add_node(spec)
            if new:
                self.pod_network.settle()
            self._reconcile(plans)
        return lines

    def run_pod(
        self, name: str, *, image: str = "nginx", ports: Sequence[int | str] = (), node: str | None = None,
        namespace: str = "default", labels: Mapping[str, str] | None = None, host_network: bool = False,
    ) -> Pod:  # fmt: skip
        """Start a pod of one container. Like: kubectl run NAME --image=IMAGE.

        Args:
            ports: that it serves, as 80 or "53/udp"; none leaves the image's own.
            node: where; None lets the scheduler choose.

        Raises:
            InvalidManifest: it cannot be; the cluster is as it was.
        """
        document = pod_document(
            name, image=image, ports=ports, node=node, namespace=namespace, labels=labels, host_network=host_network
        )
        if node is not None:
            self.node(node)
        self.apply(parse(json.dumps(document), name=f"pod {name}"))
        return self.pod(f"{namespace}/{name}")

    def delete(self, kind: str, name: str, *, namespace: str = "default") -> None:
        """Delete an object, and the pods that are there because of it. Like: kubectl delete KIND NAME.

        Raises:
            NotFound: there is no such object.
        """
        self.lab.worker  # noqa: B018  # raises LabClosed
        canonical = objects.kind_named(kind)
        with self.lock:
            if canonical == "Node":
                self.remove_node(name)
                return
            key = (canonical, "" if canonical in objects.CLUSTER_SCOPED else namespace, name)
            if canonical == "Pod" and key not in self.objects and (namespace, name) in self.pods:
                self._remove_pods([self.pod(name, namespace=namespace)])  # its workload makes it again
            elif key not in self.objects:
                raise NotFound(f"no {canonical} {name!r} in namespace {namespace!r}")
            elif canonical == "Namespace":
                self.objects = {k: one for k, one in self.objects.items() if k != key and k[1] != name}
            else:
                del self.objects[key]
            self._reconcile()

    def _specs(self) -> list[NodeSpec]:
        return [
            NodeSpec(
                name=node.name, labels=dict(node.labels), pod_cidrs=tuple(node.pod_cidrs.values()),
                addresses=tuple(node.addresses.values()), unschedulable=node.unschedulable or not node.ready,
            )
            for node in self.nodes.values()
        ]  # fmt: skip

    def _placed(self) -> list[PodPlan]:
        return [pod.plan for pod in self.pods.values() if pod.node]

    # -- pods --------------------------------------------------------------------------

    def _reconcile(self, plans: Sequence[PodPlan] | None = None) -> None:
        """Make and remove pods until they are those that the objects ask for."""
        self._look_at_nodes()
        if plans is None:
            plans = plan(list(self.objects.values()), nodes=self._specs(), placed=self._placed())
        wanted = {(one.namespace, one.name): one for one in plans}
        self._remove_pods([pod for key, pod in self.pods.items() if key not in wanted or pod.differs(wanted[key])])
        for key, one in wanted.items():
            (self.pods.get(key) or self._new_pod(one)).plan = one  # one that stays may have got other labels
        self._start_waiting()
        self._settled = frozenset(self.objects)
        for controller in self.controllers:
            controller.sync()

    def _look_at_nodes(self) -> None:
        for node in self.nodes.values():
            node.look()

    def _start_waiting(self) -> None:
        """Start the pods that are new, or whose node was away when they were."""
        self._start([
            pod for pod in self.pods.values() if pod.node and pod.node.ready and not (pod.own_netns or pod.reason)
        ])  # fmt: skip

    def _new_pod(self, one: PodPlan) -> Pod:
        node = self.nodes[one.node] if one.node else None
        told = self._services_of(one, self._settled)
        pod = Pod(plan=one, node=node, reason=one.reason, programs=self.programs, services=told)
        self.pods[pod.namespace, pod.name] = pod
        if node:
            node.pods[pod.namespace, pod.name] = pod
        return pod

    def _start(self, pods: list[Pod]) -> None:
        """Attach new pods, and start what runs in them."""
        placed: dict[Node, list[Pod]] = {}
        for pod in pods:
            if pod.host_network:
                pod.own_netns, pod.addresses = pod.home.netns, tuple(pod.home.addresses.values())
            else:
                placed.setdefault(pod.home, []).append(pod)
        count = 0

        def done(more: int) -> None:
            nonlocal count
            count += more
            self._progress("pods attached", count, len(pods))

        taken = {*self.nodes, *FABRIC}
        self._wiring.attach(placed, lambda pod: layout.netns_name(pod.namespace, pod.name, taken=taken), done)
        for node in placed:
            link.await_carrier(node.netns, link.ports_of(node.netns, BRIDGE))
        live = [pod for pod in pods if pod.own_netns]
        self.isolate()
        for number, pod in enumerate(live, 1):
            pod.start()
            self._progress("pods started", number, len(live))
        for pod in live:
            for container in pod.containers:
                container.await_ready()

    def _remove_pods(self, pods: Sequence[Pod]) -> None:
        drain(pods, [one.sync for one in self.controllers])
        for pod in pods:
            pod.stop()
            if pod.node:
                pod.node.pods.pop((pod.namespace, pod.name), None)
                if pod.own_netns and not pod.host_network:
                    self._wiring.detach(pod)
            pod.own_netns, pod.addresses, pod.reason = None, (), "it was deleted"
            del self.pods[pod.namespace, pod.name]

    def sync(self) -> list[str]:
        """Start again what has ended: containers, pause processes, BIRDs, speakers; return what that was.

        The kubelet does so all the time; a cluster does it before each look at its pods.
        """
        self.lab.worker  # noqa: B018  # raises LabClosed
        with self.lock:
            self._look_at_nodes()
            repaired = self.pod_network.repair([node for node in self.nodes.values() if node.ready])
            for pod in self.pods.values():
                repaired += pod.repair() if pod.node is None or pod.node.ready else []
            self._start_waiting()
            for controller in self.controllers:
                repaired += controller.sync() or []
            return repaired


def _loaded(source: str | Path | Iterable[Any], *, lenient: bool) -> Manifest:
    if isinstance(source, str) and ("\n" in source or source.lstrip()[:1] in {"", "{"}):
        return parse(source, lenient=lenient)
    if isinstance(source, str | Path):
        return load(source, lenient=lenient)
    raise InvalidInput("apply() takes a file, a folder, the text of a manifest, or a Manifest")
