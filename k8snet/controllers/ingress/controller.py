"""An Ingress and Gateway controller: real nginx in a pod behind a Service, in step with the cluster.

    Ingress, IngressClass, Secret ─────┐
    Gateway, HTTPRoute, ReferenceGrant ┼── Edge ── nginx.conf ── nginx -t ── SIGHUP ── the pod ingress/k8snet
    Service, EndpointSlice ────────────┘
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from lightkube.models.core_v1 import ServicePort
from lightkube.models.networking_v1 import IngressLoadBalancerIngress, IngressLoadBalancerStatus, IngressStatus

from k8snet.cluster.edge_checks import TLS_SECRET, is_host
from k8snet.cluster.manifests import parse
from k8snet.cluster.pod import Container, Pod, Program
from k8snet.controllers.ingress.edge import MODES, build
from k8snet.controllers.ingress.from_ingress import DEFAULT_CLASS, HTTP, HTTPS, is_default
from k8snet.controllers.ingress.model import Edge, controller_of
from k8snet.controllers.ingress.nginx import render
from k8snet.controllers.ingress.tls import Authority, self_signed
from k8snet.controllers.services import Services
from k8snet.errors import CommandFailed, InvalidInput, NotFound
from k8snet.linux import run as _run
from k8snet.linux.run import wait_until
from k8snet.transcript import HOST

if TYPE_CHECKING:
    from k8snet.cluster.cluster import Cluster
    from k8snet.linux.run import Process
    from k8snet.observe.table import Table

__all__ = ["IngressController"]

NAMESPACE = "ingress"
IMAGE = "k8snet-ingress"
TYPES = ("LoadBalancer", "NodePort")
POLICIES = ("Cluster", "Local")
READY_S = 20.0  # seconds; machines are slow at times
ENDED = re.compile(r"gracefully shutting down|\[emerg\]")  # what nginx logs when a reload is through, or has failed


class IngressController:
    """The edge of a cluster; sync() is called after each change of its objects and pods."""

    def __init__(
        self, cluster: Cluster, *, service_type: str = "LoadBalancer", upstreams: str = "endpoints",
        name: str = "k8snet", external_traffic_policy: str = "Cluster", node: str | None = None,
    ) -> None:  # fmt: skip
        """Start nginx, and serve what is there already. See Cluster.start_ingress()."""
        for what, value, words in (
            ("service_type", service_type, TYPES), ("upstreams", upstreams, MODES),
            ("external_traffic_policy", external_traffic_policy, POLICIES),
        ):  # fmt: skip
            if value not in words:
                raise InvalidInput(f"{what} {value!r}: one of {', '.join(words)}")
        if not is_host(name) or "." in name:
            raise InvalidInput(f"name {name!r}: lower-case letters, digits and '-'")
        if any(isinstance(one, IngressController) and one.name == name for one in cluster.controllers):
            raise InvalidInput(f"the Ingress controller {name!r} runs in this cluster already; stop() it first")
        if not any(isinstance(one, Services) for one in cluster.controllers):
            raise InvalidInput("kube-proxy does not run in this cluster, and makes Services work; start_proxy() first")
        self.cluster, self.upstreams = cluster, upstreams
        self.name: str = name
        self.folder = cluster.folder / "ingress" / name
        self.reloads = 0
        self.refused = ""  # what nginx said of the last configuration; "": it took it
        self.notes: tuple[str, ...] = ()
        self._told: tuple[object, ...] = ()  # the configuration that nginx has, or refused
        self._process: Process | None = None
        (self.folder / "tls").mkdir(parents=True, mode=0o700, exist_ok=True)
        cluster.lab.record(HOST, ("mkdir", "-p", str(self.folder)))
        self._authority = Authority(self.folder, self._openssl)
        self._default = self_signed(self.folder, self._openssl, "default")
        self._image = f"{IMAGE}-{name}"
        cluster.programs[self._image] = Program(start=self._start, await_ready=self._await)
        cluster.controllers.append(self)
        try:
            self._tell(self._edge())
            cluster.apply(parse(self._manifest(service_type, external_traffic_policy, node), name="ingress.json"))
        except BaseException:
            self.stop()
            raise

    def check(self, wanted: Iterable[Any]) -> None:
        """Refuse nothing: what cannot be served is in the notes, and what cannot be at all is no manifest."""

    def sync(self) -> None:
        """Bring nginx, its Service's ports and the status of what it serves in step with the cluster.

        Raises:
            CommandFailed: nginx refuses the configuration; it goes on with the one before. Said once.
        """
        edge = self._edge()
        self.notes = edge.notes
        self._open(edge)
        self._tell(edge)
        self._tell_status(edge)

    # -- what it serves ------------------------------------------------------------------------

    def config(self) -> str:
        """Return the configuration that nginx has."""
        return (self.folder / "nginx.conf").read_text()

    @property
    def pod(self) -> Pod:
        """The pod that nginx runs in."""
        return self.cluster.pod(self.name, namespace=NAMESPACE)

    @property
    def ca(self) -> Path:
        """The certificate of the lab CA. Like: curl --cacert FILE."""
        return self._authority.file

    @property
    def address(self) -> str:
        """Where it is reached from outside: by the load balancer's address, or a node's.

        Raises:
            NotFound: it is behind a load balancer, and there is none.
        """
        found = self._addresses()
        if not found:
            raise NotFound(f"Service {NAMESPACE}/{self.name} has no address; start_load_balancer() gives it one")
        return found[0]

    @property
    def url(self) -> str:
        """Its address as a URL, with the port where that is a node's."""
        return self._url("http", HTTP)

    @property
    def tls_url(self) -> str:
        """The same for TLS."""
        return self._url("https", HTTPS)

    def issue(self, *hosts: str, secret: str) -> Path:
        """Have the lab CA sign a certificate for *hosts*, keep it as a Secret, and return its file.

        Like: openssl req ...; openssl x509 -req ...; kubectl create secret tls SECRET --cert FILE --key FILE

        Args:
            secret: its name: "shop/web-tls", or "web-tls" in the namespace default.

        Raises:
            InvalidInput: not names of hosts, or of a Secret.
        """
        space, _, short = secret.rpartition("/")
        space = space or "default"
        for one in (space, short, *(host.removeprefix("*.") for host in hosts or ("",))):
            if not is_host(one):
                what = "the name of a host or Secret: lower-case letters, digits, '-' and '.'"
                raise InvalidInput(f"{one!r} is not {what}")
        made = self._authority.issue(hosts, f"{space}.{short}")
        document = {
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": short, "namespace": space}, "type": TLS_SECRET,
            "stringData": {"tls.crt": made.chain, "tls.key": made.key},
        }  # fmt: skip
        self.cluster.apply(parse(json.dumps(document), name=f"secret {secret}"))
        return self.folder / f"{made.name}.crt"

    @property
    def log(self) -> Table:
        """The requests that nginx had, as a table. Like: kubectl logs, of an ingress-nginx."""
        from k8snet.observe.table import Table

        file = self.folder / "access.log"
        lines = [json.loads(one) for one in file.read_text().splitlines()] if file.exists() else []
        keys = ("client", "scheme", "host", "request", "status", "service", "upstream")
        return Table(tuple(key.upper() for key in keys), tuple(tuple(one[key] for key in keys) for one in lines))

    def clear(self) -> None:
        """Forget the requests so far."""
        (self.folder / "access.log").write_bytes(b"")

    def stop(self) -> None:
        """End nginx, and take away its Service, its classes, and the addresses of what it served."""
        cluster = self.cluster
        if self in cluster.controllers:
            cluster.controllers.remove(self)
        for key in self._edge().statuses:
            cluster.objects[key] = msgspec.structs.replace(cluster.objects[key], status=None)
        for kind, space in (("Pod", NAMESPACE), ("Service", NAMESPACE), ("IngressClass", ""), ("GatewayClass", "")):
            if (kind, space, self.name) in cluster.objects:
                cluster.delete(kind, self.name, namespace=space)
        cluster.programs.pop(self._image, None)

    # -- nginx -----------------------------------------------------------------------------------

    def _edge(self) -> Edge:
        return build(
            self.cluster.objects.values(), name=self.name, upstreams=self.upstreams,
            ports={HTTP: False, HTTPS: True}, default=self._default,
        )  # fmt: skip

    def _tell(self, edge: Edge) -> None:
        """Let nginx have another configuration if it is another one: tested first, then by SIGHUP."""
        text = render(edge, ipv6="v6" in self.cluster.ip_families)
        files = {
            f"tls/{one.name}.{ending}": data
            for one in edge.certificates for ending, data in (("crt", one.chain), ("key", one.key))
        }  # fmt: skip
        if (text, files) == self._told:
            return
        self._told = text, files
        for name, data in {**files, "nginx.conf.new": text}.items():
            _put(self.folder / name, data)
        fresh = self.folder / "nginx.conf.new"
        words = ("nginx", "-t", "-q", "-e", "stderr", "-p", str(self.folder), "-c", str(fresh))
        done = self.cluster.switch.run(*words, check=False)
        self.refused = "" if done.ok else done.stderr.strip()
        if not done.ok:
            raise CommandFailed(done.argv, done.code, done.stderr)
        fresh.rename(self.folder / "nginx.conf")
        if self._process and self._process.running:
            self._reload(self._process)
        for file in (self.folder / "tls").iterdir():
            if f"tls/{file.name}" not in files:
                file.unlink()

    def _reload(self, process: Process) -> None:
        """Have nginx start workers with the new configuration, and wait until those with the old one take no more."""
        log = self.folder / "error.log"
        before = log.stat().st_size
        os.kill(process.pid, signal.SIGHUP)

        def said() -> str:
            with log.open() as file:
                file.seek(before)
                return file.read()

        told, self._told = self._told, ()  # if it does not say that it is through, the next sync() tells it again
        wait_until(lambda: bool(ENDED.search(said())), what="nginx reads its configuration", timeout_s=READY_S)
        self._told = told
        self.reloads += 1
        if "[emerg]" in said():
            self.refused = said().strip()
            raise CommandFailed(process.argv, 0, self.refused, process.netns)

    def _start(self, container: Container) -> Process:
        for name in ("nginx.pid", "error.log"):
            (self.folder / name).unlink(missing_ok=True)
        words = ("nginx", "-e", "stderr", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf"))
        self._process = container.pod.netns.popen(*words, keep_output=True)
        return self._process

    def _await(self, _: Container, process: Process) -> None:
        ready = self.folder / "error.log"  # a worker that has started serves; before that its sockets listen
        wait_until(
            lambda: (ready.exists() and "start worker process " in ready.read_text()) or not process.running,
            what=f"nginx in netns {process.netns}", timeout_s=READY_S,
        )  # fmt: skip
        if not process.running:
            raise CommandFailed(process.argv, process.popen.returncode, process.output(), process.netns)

    def _openssl(self, *words: str) -> None:
        _run.run(("openssl", *words))
        self.cluster.lab.record(HOST, ("openssl", *words))

    # -- its objects -----------------------------------------------------------------------------

    def _manifest(self, service_type: str, policy: str, node: str | None) -> str:
        labels, controller = {"app": self._image}, controller_of(self.name)
        default = not any(is_default(one) for key, one in self.cluster.objects.items() if key[0] == "IngressClass")
        meta = {"name": self.name, "namespace": NAMESPACE, "labels": labels}
        ports = {"http": HTTP, "https": HTTPS}.items()
        opened = [{"name": word, "containerPort": number} for word, number in ports]
        place = {"nodeName": node} if node else {}
        pod = {"containers": [{"name": "nginx", "image": self._image, "ports": opened}], **place}
        service = {
            "type": service_type, "externalTrafficPolicy": policy, "selector": labels,
            "ipFamilyPolicy": "PreferDualStack", "ports": [{"name": word, "port": number} for word, number in ports],
        }  # fmt: skip
        items = [
            {"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "spec": {"controller": controller},
             "metadata": {"name": self.name, "annotations": {DEFAULT_CLASS: str(default).lower()}}},
            {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": self.name},
             "spec": {"controllerName": controller}},
            {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": service},
            {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": pod},
        ]  # fmt: skip
        return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})

    @property
    def _service(self) -> Any:
        return self.cluster.objects.get(("Service", NAMESPACE, self.name))

    def _open(self, edge: Edge) -> None:
        """Give its Service the ports that Gateways listen on, beside 80 and 443."""
        service = self._service
        if service is None:
            return
        have = {one.port: one for one in service.spec.ports}
        if have.keys() == edge.ports.keys():
            return
        ports = [have.get(one) or ServicePort(port=one, name=_port_name(one), protocol="TCP") for one in edge.ports]
        spec = msgspec.structs.replace(service.spec, ports=ports)
        self.cluster.objects["Service", NAMESPACE, self.name] = msgspec.structs.replace(service, spec=spec)
        for one in self.cluster.controllers:
            if isinstance(one, Services):
                one.sync()

    def _addresses(self) -> list[str]:
        service, pod = self._service, self.cluster.pods.get((NAMESPACE, self.name))
        if service is None:
            return []
        if service.spec.type == "NodePort":
            return [*pod.node.addresses.values()] if pod and pod.node else []
        balancer = service.status and service.status.loadBalancer
        return [one.ip for one in (balancer.ingress if balancer else None) or () if one.ip]

    def _url(self, scheme: str, port: int) -> str:
        address = self.address
        host = f"[{address}]" if ":" in address else address
        given = next(one for one in self._service.spec.ports if one.port == port)
        return f"{scheme}://{host}:{given.nodePort}" if self._service.spec.type == "NodePort" else f"{scheme}://{host}"

    def _tell_status(self, edge: Edge) -> None:
        """Write into Ingresses, Gateways and routes what has become of them."""
        addresses, objects = self._addresses(), self.cluster.objects
        given = [IngressLoadBalancerIngress(ip=one) for one in addresses]
        for key, found in edge.statuses.items():
            status: Any = found
            if key[0] == "Ingress":
                status = IngressStatus(loadBalancer=IngressLoadBalancerStatus(ingress=given))
            elif key[0] == "Gateway":
                status = {"addresses": [{"type": "IPAddress", "value": one} for one in addresses], **found}
            if objects[key].status != status:
                objects[key] = msgspec.structs.replace(objects[key], status=status)


def _port_name(number: int) -> str:
    return {HTTP: "http", HTTPS: "https"}.get(number, f"port-{number}")


def _put(file: Path, text: str) -> None:
    """Write a file that only we read, whole or not at all."""
    fresh = file.with_name(f"{file.name}.part")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.rename(file)
