"""DNS of a cluster: a server that runs as a pod behind a Service, and what a pod needs in order to ask it.

    objects ── Table ── table.json ── the server in the pod kube-system/kube-dns   10.96.0.10, by kube-proxy
                                          │ names of others
                                      a server in the internet                     203.0.113.53
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from k8snet.cluster.manifests import parse
from k8snet.cluster.pod import Container, Program
from k8snet.controllers import dns_server
from k8snet.controllers.addresses import DNS_ADDRESS
from k8snet.controllers.dns_records import POD_MODES, build, domain, fixed
from k8snet.controllers.dns_resolv_conf import ResolvConf, of_pod
from k8snet.controllers.services import Services
from k8snet.errors import CapabilityMissing, CommandFailed, InvalidInput
from k8snet.linux.nsfs import RESOLVER
from k8snet.linux.run import wait_until

if TYPE_CHECKING:
    from k8snet.cluster.cluster import Cluster
    from k8snet.linux.netns import Netns
    from k8snet.linux.run import Process
    from k8snet.observe.table import Table as View

__all__ = ["OUTSIDE", "ClusterDns"]

IMAGE = "k8snet-dns"
OUTSIDE = "203.0.113.53"  # of the DNS server in the internet
KNOWN_OUTSIDE = {"example.com": "203.0.113.80", "www.example.com": "example.com"}
TTL = 30  # seconds; what kubeadm has CoreDNS say
MANIFEST = f"""
apiVersion: v1
kind: Service
metadata: {{name: kube-dns, namespace: kube-system, labels: {{k8s-app: kube-dns}}}}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {{k8s-app: kube-dns, image: {IMAGE}}}
  ports:
  - {{name: dns, port: 53, protocol: UDP}}
  - {{name: dns-tcp, port: 53, protocol: TCP}}
---
apiVersion: v1
kind: Pod
metadata: {{name: kube-dns, namespace: kube-system, labels: {{k8s-app: kube-dns, image: {IMAGE}}}}}
spec:
  dnsPolicy: Default
  containers:
  - name: dns
    image: {IMAGE}
    ports: [{{name: dns, containerPort: 53, protocol: UDP}}, {{name: dns-tcp, containerPort: 53, protocol: TCP}}]
"""


class ClusterDns:
    """The DNS of a cluster; sync() is called after each change of its pods."""

    def __init__(
        self, cluster: Cluster, *, zone: str = "cluster.local", pods: str = "insecure",
        outside: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Start the servers, and give every pod its resolv.conf. See Cluster.start_dns()."""
        if pods not in POD_MODES:
            raise InvalidInput(f"pods {pods!r}: one of {', '.join(POD_MODES)}")
        if any(isinstance(one, ClusterDns) for one in cluster.controllers):
            raise InvalidInput("DNS runs in this cluster already; stop() it first")
        if not any(isinstance(one, Services) for one in cluster.controllers):
            raise InvalidInput("kube-proxy does not run in this cluster, and DNS is a Service; start_proxy() first")
        if not RESOLVER.exists():
            raise CapabilityMissing(f"{RESOLVER} is not there, so pods can have none. Make it: sudo touch {RESOLVER}")
        self.cluster, self.zone, self.pods = cluster, domain(zone), pods
        self._folder = cluster.folder / "dns"
        self._told = ""  # what table.json has, without its serial number
        self._serial = 0
        self._outside: Process | None = None
        self._put(self._folder / "outside" / "table.json", fixed(outside or KNOWN_OUTSIDE).dump())
        cluster.internet.add_address("eth0", f"{OUTSIDE}/24")
        cluster.programs[IMAGE] = Program(start=self._start_pod, await_ready=self._await_pod)
        cluster.controllers.append(self)
        try:
            self._serve_outside()
            self._tell()
            cluster.apply(parse(MANIFEST, name="cluster DNS"))
        except BaseException:
            self.stop()
            raise

    def check(self, wanted: Iterable[Any]) -> None:
        """Refuse nothing: what has no name in DNS is refused where objects are loaded."""

    def sync(self) -> list[str]:
        """Let the server know what has changed, give new pods their resolv.conf, and return what was started again."""
        repaired = [] if self._outside and self._outside.running else ["DNS server in netns internet"]
        if repaired:
            self._serve_outside()
        self._tell()
        nodes = ResolvConf(servers=(OUTSIDE,))
        for node in self.cluster.nodes.values():
            node.netns.resolv = self._resolv(nodes)
        for pod in self.cluster.pods.values():
            if pod.own_netns and pod.resolv is None:
                pod.resolv = self._resolv(of_pod(
                    pod.model, namespace=pod.namespace, zone=self.zone, server=DNS_ADDRESS["v4"], node=nodes
                ))  # fmt: skip
                if not pod.host_network:
                    pod.netns.resolv = pod.resolv
        return repaired

    # -- what was asked --------------------------------------------------------------------

    @property
    def queries(self) -> list[dns_server.Query]:
        """The questions that the server in the pod was asked, in their order."""
        return dns_server.queries(self._folder / "pod" / "log")

    @property
    def log(self) -> View:
        """The same as a table: who asked what, and what the answer was. Like: kubectl logs, of a CoreDNS with `log`."""
        from k8snet.observe.table import Table

        names = {address: pod.key for pod in self.cluster.pods.values() for address in pod.addresses}
        rows = [
            (names.get(one.client, one.client), one.protocol, one.kind, one.name, one.rcode, str(one.answers), one.via)
            for one in self.queries
        ]
        return Table(("CLIENT", "PROTOCOL", "TYPE", "NAME", "RCODE", "RECORDS", "VIA"), tuple(rows))

    def clear(self) -> None:
        """Forget what was asked so far."""
        (self._folder / "pod" / "log").write_bytes(b"")

    def stop(self) -> None:
        """End the servers; pods have the machine's resolv.conf again."""
        cluster = self.cluster
        if self in cluster.controllers:
            cluster.controllers.remove(self)
        for kind in ("Pod", "Service"):
            if (kind, "kube-system", "kube-dns") in cluster.objects:
                cluster.delete(kind, "kube-dns", namespace="kube-system")
        cluster.programs.pop(IMAGE, None)
        if self._outside:
            self._outside.stop()
        cluster.internet.delete_address("eth0", f"{OUTSIDE}/24")
        for node in cluster.nodes.values():
            node.netns.resolv = None
        for pod in cluster.pods.values():
            pod.resolv = None
            if pod.own_netns:
                pod.netns.resolv = None

    # -- the servers -------------------------------------------------------------------------

    def _tell(self) -> None:
        """Write what the server in the pod knows, if it is something else; it reads that before its next answer."""
        pods = [(pod.namespace, one) for pod in self.cluster.pods.values() for one in pod.addresses]

        def text() -> str:
            return build(
                self.cluster.objects.values(), zone=self.zone, pods=self.pods, addresses=pods, ttl=TTL,
                serial=self._serial, upstream=f"{OUTSIDE}:53",
            ).dump()  # fmt: skip

        if text() != self._told:
            self._serial += 1
            self._told = text()
            self._put(self._folder / "pod" / "table.json", self._told)

    def _serve_outside(self) -> None:
        self._outside = self._start(self.cluster.internet, "outside")
        self._await(self._outside, "outside")

    def _start(self, netns: Netns, which: str, address: str = OUTSIDE) -> Process:
        (self._folder / which / "ready").unlink(missing_ok=True)
        module = ("-P", "-m", dns_server.__name__)
        return netns.popen(sys.executable, *module, str(self._folder / which), address, keep_output=True)

    def _await(self, process: Process, which: str) -> None:
        ready = self._folder / which / "ready"
        wait_until(
            lambda: ready.exists() or not process.running, what=f"DNS server in netns {process.netns}", timeout_s=20
        )
        if not process.running:
            raise CommandFailed(process.argv, process.popen.returncode, process.output(), process.netns)

    def _start_pod(self, container: Container) -> Process:
        both = any(":" in one for one in container.pod.addresses)
        return self._start(container.pod.netns, "pod", "::" if both else "0.0.0.0")  # noqa: S104  # as in any pod

    def _await_pod(self, _: Container, process: Process) -> None:
        self._await(process, "pod")

    def _resolv(self, conf: ResolvConf) -> Path:
        """Return a file of these lines; pods with the same ones share it."""
        text = str(conf)
        file = self._folder / f"resolv-{hashlib.sha256(text.encode()).hexdigest()[:12]}.conf"
        if not file.exists():
            self._put(file, text)
        return file

    def _put(self, file: Path, text: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f"{file.name}.new")
        fresh.write_text(text)
        fresh.rename(file)  # so that nobody reads half of it
