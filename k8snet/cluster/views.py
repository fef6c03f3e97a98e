"""Views: what a Cluster shows, and what runs on it, from the layers above; each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from k8snet.lab import Lab

if TYPE_CHECKING:
    from k8snet.cluster.cluster import Cluster
    from k8snet.cluster.workloads import PodPlan
    from k8snet.controllers.cluster_dns import ClusterDns
    from k8snet.controllers.egress_gateway import EgressGateway
    from k8snet.controllers.egress_masquerade import Masquerade
    from k8snet.controllers.ingress.controller import IngressController
    from k8snet.controllers.load_balancer import LoadBalancer
    from k8snet.controllers.network_policy.controller import NetworkPolicies
    from k8snet.controllers.services import Services
    from k8snet.observe.diagram import Diagram
    from k8snet.observe.model import ModelReport
    from k8snet.observe.policy import Explanation
    from k8snet.observe.reach import Reach
    from k8snet.observe.rules import RulesView
    from k8snet.observe.snapshot import Snapshot
    from k8snet.observe.table import Table
    from k8snet.observe.walk import Connection
    from k8snet.observe.why import Why

__all__ = ["Views"]


class Views:
    """Methods of a Cluster."""

    lab: Lab
    lock: Any  # threading.RLock

    def isolate(self) -> None:
        """Do what is due once pods have addresses, and before anything runs in them: policies replace this."""

    @property
    def _me(self) -> Cluster:
        return cast("Cluster", self)

    def get(self, kind: str = "pods", *, namespace: str | None = None) -> Table:
        """Return a table of objects with their live state. Like: kubectl get KIND -o wide.

        Args:
            kind: "pods", "nodes", "services", ... as kubectl names them.
            namespace: None shows all.

        Raises:
            NotFound: no such kind.
        """
        from k8snet.observe.status import table

        with self.lock:
            self._me.sync()
            return table(self._me, kind, namespace=namespace)

    def reach(
        self, *, ports: Sequence[str] = (), timeout_s: float = 1.0, family: str = "v4", expected: bool = False
    ) -> Reach:
        """Probe every pod from every pod, and return the matrix. See k8snet.observe.reach.probe()."""
        from k8snet.observe.reach import probe

        with self.lock:
            self._me.sync()
            return probe(self._me, ports=ports, timeout_s=timeout_s, family=family, expected=expected)

    def check_model(self, *, timeout_s: float = 1.0) -> ModelReport:
        """Probe the rules of the Kubernetes network model, and return what holds. See k8snet.observe.model."""
        from k8snet.observe.model import check

        with self.lock:
            self._me.sync()
            return check(self._me, timeout_s=timeout_s)

    def snapshot(self) -> Snapshot:
        """Return what the kernel holds. See Lab.snapshot()."""
        return self.lab.snapshot()

    def diagram(self, **options: Any) -> Diagram:
        """Return a drawing of nodes, pods and what joins them. See k8snet.observe.cluster_diagram.draw()."""
        from k8snet.observe.cluster_diagram import draw

        self.lab.worker  # noqa: B018  # raises LabClosed
        return draw(self._me, **options)

    def start_proxy(self, mode: str = "iptables") -> Services:
        """Make Services work: EndpointSlices, and kube-proxy on every node, in step with the pods from now on.

        Args:
            mode: "iptables", "nftables", or "ipvs" where the kernel has it.

        Raises:
            InvalidInput: no such mode, or kube-proxy runs already.
            CapabilityMissing: this kernel has no IPVS.
        """
        from k8snet.controllers.services import Services

        with self.lock:
            return Services(self._me, mode=mode)

    def start_dns(
        self, *, zone: str = "cluster.local", pods: str = "insecure", outside: Mapping[str, str] | None = None
    ) -> ClusterDns:
        """Run a DNS server as the pod kube-system/kube-dns behind 10.96.0.10, and give every pod an /etc/resolv.conf.

        Args:
            zone: the domain of the cluster.
            pods: "insecure": a name for every address, in each namespace. "verified": for a pod's. "disabled".
            outside: names that a DNS server in the internet knows, each with an address or another name;
                None: example.com and www.example.com, 203.0.113.80.

        Raises:
            InvalidInput: a domain or mode that cannot be, kube-proxy does not run, or DNS runs already.
            CapabilityMissing: this machine has no /etc/resolv.conf, and so pods can have none.
        """
        from k8snet.controllers.cluster_dns import ClusterDns

        with self.lock:
            return ClusterDns(self._me, zone=zone, pods=pods, outside=outside)

    def _services_of(self, plan: PodPlan, settled: Collection[Any]) -> Callable[[], Mapping[str, str]]:
        """Return what tells the environment variables of a new pod: of the Services that are there before it."""
        from k8snet.controllers.service_env import for_pod

        return for_pod(self._me, plan, settled)

    def start_load_balancer(self, mode: str = "arp", *, pool: str | Sequence[str] | None = None) -> LoadBalancer:
        """Give each Service of type LoadBalancer an address, and let the network know where it is, as MetalLB does.

        Args:
            mode: "arp": one node answers for an address, and another one when it dies. "bgp": all nodes announce it
                to the router, which spreads connections over them.
            pool: the network that addresses are taken from, or one of each family; None is 172.18.255.0/24,
                and fd00:172:18::255:0/112 where the cluster has IPv6.

        Raises:
            InvalidInput: no such mode, a pool that cannot be, or kube-proxy does not run.
            InvalidManifest: a Service asks for an address that it cannot have, or none is left.
        """
        from k8snet.controllers.load_balancer import LoadBalancer

        with self.lock:
            return LoadBalancer(self._me, mode=mode, pool=pool)

    def start_ingress(
        self, *, service_type: str = "LoadBalancer", upstreams: str = "endpoints", name: str = "k8snet",
        external_traffic_policy: str = "Cluster", node: str | None = None,
    ) -> IngressController:  # fmt: skip
        """Run nginx as the pod ingress/NAME behind a Service, configured by Ingresses, Gateways and HTTPRoutes.

        Args:
            service_type: "LoadBalancer" or "NodePort".
            upstreams: "endpoints": nginx sends to pods by itself. "service": to cluster IPs, and kube-proxy chooses.
            name: of pod, Service, IngressClass (the default one, if there is no other) and GatewayClass.
            external_traffic_policy: "Cluster", or "Local", which keeps the client's address.
            node: where nginx runs; None lets the scheduler choose.

        Raises:
            InvalidInput: an argument cannot be, kube-proxy does not run, or one of this name runs already.
            ProgramMissing: nginx or openssl is not installed.
        """
        from k8snet.controllers.ingress.controller import IngressController

        with self.lock:
            return IngressController(
                self._me, service_type=service_type, upstreams=upstreams, name=name,
                external_traffic_policy=external_traffic_policy, node=node,
            )  # fmt: skip

    def start_masquerade(
        self, *, non_masquerade_cidrs: Sequence[str] | None = None, masq_link_local: bool = False
    ) -> Masquerade:
        """Let packets leave a node as if from the node, with exceptions, by ip-masq-agent's rules.

        They take the place of the rule that the cluster came with, until stop().

        Args:
            non_masquerade_cidrs: networks that see pods by their own addresses; None: the private ones, 10.0.0.0/8,
                172.16.0.0/12 and 192.168.0.0/16, and fc00::/7 where the cluster has IPv6.
            masq_link_local: masquerade what goes to link-local addresses, too.

        Raises:
            InvalidAddress, InvalidInput: a network that cannot be, more than 64, or it runs already.
        """
        from k8snet.controllers.egress_masquerade import Masquerade

        with self.lock:
            return Masquerade(
                self._me, non_masquerade_cidrs=non_masquerade_cidrs, masq_link_local=masq_link_local
            )  # fmt: skip

    def start_egress_gateway(
        self, *, node: str | Sequence[str], address: str, destinations: Sequence[str],
        pods: Mapping[str, str] | None = None, namespace: str | None = "default",
    ) -> EgressGateway:  # fmt: skip
        """Let chosen pods leave for chosen networks by one node, with one address, wherever they run.

        Where several of these fit a packet, the one that was started last counts.

        Args:
            node: the gateway, or several nodes: the first that lives is it. If none does, the pods are refused.
            address: a free one on the nodes' network, which the gateway answers ARP for.
            destinations: networks; what is inside the cluster is left alone even by "0.0.0.0/0".
            pods: the labels that they have; None: all pods of the namespace.
            namespace: of the pods; None: every one.

        Raises:
            NotFound: there is no such node.
            InvalidAddress, InvalidInput: an address or a network that cannot be, or that somebody has.
        """
        from k8snet.controllers.egress_gateway import EgressGateway

        with self.lock:
            return EgressGateway(
                self._me, node=node, address=address, destinations=destinations, pods=pods, namespace=namespace
            )  # fmt: skip

    def start_network_policy(self) -> NetworkPolicies:
        """Enforce the cluster's NetworkPolicies on every node, in step with policies, pods and labels from now on.

        Raises:
            InvalidInput: they are enforced already.
        """
        from k8snet.controllers.network_policy.controller import NetworkPolicies

        with self.lock:
            return NetworkPolicies(self._me)

    def explain_policy(
        self, source: Any, destination: Any, port: int | str, *, protocol: str = "TCP", family: str = "v4"
    ) -> Explanation:
        """Return whether NetworkPolicies allow a connection, and why: what each rule that counts says of it.

        Args:
            source: a Pod, a pod's key ("shop/web-1"), a node, or an address.
            port: of the destination's, after a Service has been translated: 80, "udp/53", "icmp".
            family: "v4" or "v6", of the addresses that an ipBlock is asked for.

        Raises:
            NotFound: there is no such pod or node.
            InvalidInput: no such port or protocol, or the destination is a Service.
        """
        from k8snet.observe.policy import explain_policy

        with self.lock:
            return explain_policy(self._me, source, destination, port, protocol=protocol, family=family)

    def rules(
        self, service: str, *, node: str | None = None, port: str | int | None = None, family: str = "v4",
        caption: str | None = None,
    ) -> RulesView:  # fmt: skip
        """Return the chains of a Service as a node's kernel has them: a picture, or an indented tree.

        Like: iptables-save, or nft list ruleset

        Args:
            service: "web" in the namespace default, or "shop/web".
            node: None is the first.
            port: one of its ports, by name or number; None shows all.
            family: "v4" or "v6".
            caption: a full sentence that says what to see.

        Raises:
            NotFound: there is no such Service, port or node.
            InvalidInput: no kube-proxy runs, or it makes no rules for this Service; the message says why.
        """
        from k8snet.observe.rules import draw

        with self.lock:
            return draw(self._me, service, node=node, port=port, family=family, caption=caption)

    def trace(
        self, source: Any, target: str, *, protocol: str = "tcp", family: str = "v4", timeout_s: float = 2.0
    ) -> Connection:
        """Open a connection, and return the way of its first packet and of the first answer, as the kernel saw them.

        Args:
            source: a Pod, a pod's or a node's name, or that of a netns: "internet".
            target: "web.shop:80" or "shop/web:80" for a Service or a pod, "node1:30080", "10.96.0.20:80".
            protocol: "tcp" or "udp".
            family: "v4" or "v6", of the address that a name stands for.
            timeout_s: seconds of silence after which it counts as lost.

        Raises:
            NotFound: there is no such source or target.
            InvalidInput: an argument cannot be.
        """
        from k8snet.observe.trace_cluster import follow

        with self.lock:
            self._me.sync()
            return follow(self._me, source, target, protocol=protocol, family=family, timeout_s=timeout_s)

    def why(
        self, source: Any, target: str, *, protocol: str = "tcp", node: str | None = None, family: str = "v4",
        all: bool = False,  # noqa: A002  # as in `ls --all`
    ) -> Why:  # fmt: skip
        """Return why the first packet of a connection goes where it goes: the rules that it passes, in words.

        The rules are read from the node's kernel, whoever has made them.

        Args:
            source: a Pod, a pod's or a node's name, or an address.
            target: "shop/web", "shop/web:http", or an address and port: "10.96.0.20:80", "[fd00::1]:80".
            protocol: "tcp", "udp", "sctp", or "icmp" for a ping, whose target has no port.
            node: whose rules; None: those of the source's node, and then those of a node that is called.
            family: "v4" or "v6", of a Service's address.
            all: tell of the rules that do not match, too.

        Raises:
            NotFound, InvalidInput: as rules() does; or there is no such source.
        """
        from k8snet.observe.why import why

        with self.lock:
            return why(
                self._me, source, target, protocol=protocol, node=node, family=family, everything=all
            )  # fmt: skip
