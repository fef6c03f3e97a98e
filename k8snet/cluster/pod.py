"""Pod: containers that share one netns, which a pause process holds.

A container's servers are real: nginx for images called so, else sockets of our own that
answer with who was asked, and by whom (k8snet/linux/listener.py). A pod without declared
ports has no server; the command of a manifest is not run.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from k8snet.cluster.layout import container_id, family_of
from k8snet.errors import K8snetError, NotFound, Timeout
from k8snet.linux import link, web
from k8snet.linux.run import Process, wait_until
from k8snet.linux.sockets import callers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from k8snet.cluster.node import Node
    from k8snet.cluster.workloads import PodPlan
    from k8snet.linux.netns import Netns
    from k8snet.linux.probe import Connect, Fetch, Listener, Ping
    from k8snet.linux.run import Completed

__all__ = ["Container", "Pod", "Port", "Program", "drain"]

ECHO_PORTS = (("TCP", 8080), ("UDP", 8080))  # of agnhost and its like, where a manifest names none
ECHO_IMAGES = {"agnhost", "echo-server", "echoserver", "http-echo", "whoami", "hello-app"}
READY_TIMEOUT_S = 1.0
DRAIN_S = 0.5  # seconds that open connections have to end before their pod does


@dataclass(frozen=True, kw_only=True)
class Port:
    """A port that a container serves."""

    number: int
    protocol: str  # "TCP", "UDP" or "SCTP"
    name: str | None = None
    host_port: int | None = None
    declared: bool = True  # by the manifest; False for what the image serves anyhow

    def __str__(self) -> str:
        """Return it as "80/TCP"."""
        return f"{self.number}/{self.protocol}"


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a container of some image runs, where that is not a server of ours."""

    start: Callable[[Container], Process]
    await_ready: Callable[[Container, Process], object]  # returns when it serves; raises K8snetError if it does not


@dataclass(kw_only=True, eq=False, repr=False)
class Container:
    """A container of a pod."""

    pod: Pod
    name: str
    image: str
    ports: tuple[Port, ...]
    state: str = "Waiting"  # "Running", "Waiting" or "Error"
    reason: str = ""
    restarts: int = 0
    started_at: float | None = None  # seconds since 1970
    servers: list[Process | Listener] = field(default_factory=list)

    def __repr__(self) -> str:
        """Return its name, image and state."""
        return f"<container {self.name} ({self.image}): {self.state}{f', {self.reason}' if self.reason else ''}>"

    @property
    def pids(self) -> list[int]:
        """The processes of its own; empty where its ports are served from the notebook's process."""
        return [one.pid for one in self.servers if isinstance(one, Process)]

    @property
    def base(self) -> str:
        """Its image without registry, tag and digest."""
        return self.image.rpartition("/")[2].split("@")[0].split(":")[0]

    @property
    def program(self) -> Program | None:
        """What it runs, if the cluster has a program for its image."""
        return self.pod.programs.get(self.base)

    @property
    def kind(self) -> str:
        """What its image is taken for: "nginx", "pause" or "echo"."""
        base = self.base
        return "pause" if base == "pause" else "nginx" if base.startswith("nginx") else "echo"

    def start(self) -> None:
        """Start its servers; await_ready() tells when they answer. An error becomes the container's state."""
        self.state, self.reason, self.started_at = "Running", "", time.time()
        try:
            if self.program:
                self.servers.append(self.program.start(self))
                return
            for port in {(one.protocol, one.number): one for one in self.ports}.values():  # some have two names
                self._serve(port)
        except (K8snetError, OSError) as error:
            self._fail(str(error))

    def _fail(self, reason: str) -> None:
        self.stop()
        self.state, self.reason = "Error", reason

    def _serve(self, port: Port) -> None:
        netns, ipv6 = self.pod.netns, any(family_of(one) == "v6" for one in self.pod.addresses)
        if port.protocol == "SCTP":
            self.reason = f"port {port} is not served: this kernel has no SCTP"
        elif self.kind == "nginx" and port.protocol == "TCP":
            self.servers.append(netns.start_nginx(port=port.number, body=f"{self.pod.name} says hello", ipv6=ipv6))
        else:
            name = self.pod.name if len(self.pod.containers) == 1 else f"{self.pod.name}/{self.name}"
            for address in ("0.0.0.0", *(["::"] if ipv6 else [])):  # noqa: S104  # as a server in a pod does
                protocol = port.protocol.lower()
                self.servers.append(netns.listen(port.number, protocol=protocol, address=address, name=name))

    def await_ready(self) -> None:
        """Wait until what start() started listens; an error becomes the container's state."""
        try:
            for process in self.servers:
                if self.program and isinstance(process, Process):
                    self.program.await_ready(self, process)
                elif isinstance(process, Process):  # of a listener the socket is there at once
                    web.await_nginx(self.pod.netns, process, timeout_s=20)  # many start at once
        except K8snetError as error:
            self._fail(str(error))

    def stop(self) -> None:
        """End its servers; the pod's netns stays."""
        for one in self.servers:
            one.stop()
        self.servers.clear()
        self.state, self.reason = "Waiting", "stopped"

    def restart(self) -> None:
        """Stop it and start it again, in the same netns: address, routes and the other containers stay."""
        self.stop()
        self.restarts += 1
        self.start()
        self.await_ready()

    @property
    def alive(self) -> bool:
        """Whether every server of it still runs."""
        return all(one.running if isinstance(one, Process) else not one.stopped for one in self.servers)


@dataclass(kw_only=True, eq=False, repr=False)
class Pod:
    """A pod of the cluster."""

    plan: PodPlan  # what was asked for
    node: Node | None  # None: it waits for one
    own_netns: Netns | None = None  # the node's with hostNetwork; None where there is none yet
    addresses: tuple[str, ...] = ()
    reason: str = ""  # why it is not what it should be
    pause: Process | None = None
    containers: list[Container] = field(default_factory=list)
    programs: Mapping[str, Program] = field(default_factory=dict)  # by image
    services: Callable[[], Mapping[str, str]] = dict  # returns the variables that tell of Services, once they have IPs
    resolv: Path | None = None  # what its programs see as /etc/resolv.conf; None: the machine's
    terminating: bool = False  # it is about to end: Services send it no new connections

    def __post_init__(self) -> None:
        """Take the containers from the model."""
        for one in self.model.spec.containers:
            container = Container(pod=self, name=one.name, image=one.image or "", ports=())
            container.ports = _ports(one, container.kind, container.image)
            self.containers.append(container)

    def __repr__(self) -> str:
        """Return its name, node, address and phase."""
        return f"<pod {self.key} on {self.node.name if self.node else 'no node'} {self.address or '-'}: {self.phase}>"

    # -- what it is ----------------------------------------------------------------------

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return self.plan.namespace

    @property
    def name(self) -> str:
        """Its name in the namespace."""
        return self.plan.name

    @property
    def model(self) -> Any:
        """The lightkube Pod that was asked for."""
        return self.plan.pod

    @property
    def key(self) -> str:
        """Its namespace and name, as "shop/web-1"."""
        return f"{self.namespace}/{self.name}"

    @property
    def id(self) -> str:
        """The id under which CNI plugins know it."""
        return container_id(self.namespace, self.name)

    @property
    def host_network(self) -> bool:
        """Whether it has no netns of its own, but its node's."""
        return bool(self.model.spec.hostNetwork)

    @property
    def netns(self) -> Netns:
        """Its netns.

        Raises:
            NotFound: it has none: it waits for a node, or was deleted.
        """
        if self.own_netns is None:
            raise NotFound(f"pod {self.key} has no netns: {self.reason or 'it was deleted'}")
        return self.own_netns

    @property
    def home(self) -> Node:
        """Its node.

        Raises:
            NotFound: it waits for one.
        """
        if self.node is None:
            raise NotFound(f"pod {self.key} is on no node: {self.reason}")
        return self.node

    @property
    def address(self) -> str | None:
        """Its first address."""
        return self.addresses[0] if self.addresses else None

    @property
    def mac(self) -> str:
        """The MAC of its eth0, read from the kernel."""
        return link.mac_of(self.netns, "eth0")

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels."""
        return self.model.metadata.labels or {}

    @property
    def env(self) -> Mapping[str, str]:
        """The environment variables that tell its programs of Services: those older than the pod."""
        return self.services()

    @property
    def ports(self) -> list[Port]:
        """The ports of all its containers."""
        return [port for container in self.containers for port in container.ports]

    @property
    def phase(self) -> str:
        """What `kubectl get pods` shows as its status."""
        if self.node is None or not self.addresses:
            return "Pending"
        broken = next((one for one in self.containers if one.state == "Error"), None)
        return "Error" if broken else "Running"

    @property
    def ready(self) -> bool:
        """Whether every container runs, and its readiness probe, if it has one, succeeds now."""
        return self.phase == "Running" and all(map(self.is_ready, self.containers))

    def is_ready(self, container: Container) -> bool:
        """Return whether a container runs, on a node that is ready, and answers its readiness probe."""
        if container.state != "Running" or not container.alive or not (self.node and self.node.ready):
            return False
        model = next(one for one in self.model.spec.containers if one.name == container.name)
        probe = model.readinessProbe
        asked = (probe.httpGet or probe.tcpSocket) if probe else None
        if asked is None or not self.addresses:
            return True
        port = _number(asked.port, container.ports)
        if port is None:
            return False
        netns, address = self.node.netns, self.addresses[0]
        if not probe.httpGet:
            return netns.connect(address, port, timeout_s=READY_TIMEOUT_S).ok
        host = f"[{address}]" if ":" in address else address
        return netns.fetch(f"http://{host}:{port}{asked.path or '/'}", timeout_s=READY_TIMEOUT_S).ok

    def container(self, name: str) -> Container:
        """Return a container by its name.

        Raises:
            NotFound: it has none of that name; the message lists those there are.
        """
        for one in self.containers:
            if one.name == name:
                return one
        have = ", ".join(one.name for one in self.containers)
        raise NotFound(f"pod {self.key} has no container {name!r}; it has: {have}")

    # -- its life ------------------------------------------------------------------------

    def differs(self, wanted: PodPlan) -> bool:
        """Return whether it has to be made anew to be as wanted; a pod of its own gets other labels where it stands."""
        ours, theirs = self.model, wanted.pod
        if not wanted.owner:
            ours, theirs = (msgspec.structs.replace(one, metadata=None) for one in (ours, theirs))
        return self.plan.node != wanted.node or ours.to_dict() != theirs.to_dict()

    def start(self) -> None:
        """Start its pause process, which holds the netns, and its containers."""
        if not self.host_network:
            self.pause = self.netns.popen("sleep", "infinity")
        for container in self.containers:
            container.start()
            if len(self.containers) > 1:  # in their order: the first one gets a port that two want
                container.await_ready()

    def stop(self) -> None:
        """End its containers and its pause process."""
        for container in self.containers:
            container.stop()
        if self.pause:
            self.pause.stop()

    def halt(self) -> None:
        """End all that runs in it at once, as when its node loses power; repair() starts it again."""
        for one in [*(server for each in self.containers for server in each.servers), self.pause]:
            if isinstance(one, Process):
                one.stop(grace_s=0)
            elif one:
                one.stop()

    def repair(self) -> list[str]:
        """Start again what has ended, as the kubelet does, and return what that was."""
        if self.own_netns is None:
            return []
        if not self.own_netns.exists:
            self.reason = "its netns is gone; delete the pod, and its workload makes it anew"
            self.addresses = ()
            return []
        found = []
        if self.pause and not self.pause.running:
            self.pause = self.netns.popen("sleep", "infinity")
            found.append(f"pause process of pod {self.key}")
        for container in self.containers:
            if container.state == "Running" and not container.alive:
                container.restart()
                found.append(f"container {container.name} of pod {self.key}")
        return found

    # -- what is done in it --------------------------------------------------------------

    def ping(self, destination: str | Pod, **options: Any) -> Ping:
        """Ping an address, or another pod, from here. See k8snet.linux.probe.ping()."""
        return self.netns.ping(_address(destination), **options)

    def connect(self, destination: str | Pod, port: int, **options: Any) -> Connect:
        """Try a port of an address, or of another pod, from here. See k8snet.linux.probe.connect()."""
        return self.netns.connect(_address(destination), port, **options)

    def fetch(self, url: str | Pod, **options: Any) -> Fetch:
        """Ask an HTTP server, or another pod's port 80, for a page. See k8snet.linux.probe.fetch()."""
        return self.netns.fetch(f"http://{_address(url)}" if isinstance(url, Pod) else url, **options)

    def run(self, *argv: str, **options: Any) -> Completed:
        """Run a program in its netns, with its environment. Like: kubectl exec POD -- ARGV. See Netns.run()."""
        return self.netns.run(*argv, **{"env": {**os.environ, **self.env}, "resolv": self.resolv, **options})

    def sh(self, script: str, **options: Any) -> Completed:
        """Run a bash script in its netns. See Netns.sh()."""
        return self.run("bash", "-euo", "pipefail", "-c", script, **options)


def drain(pods: Iterable[Pod], syncs: Sequence[Callable[[], object]]) -> None:
    """Have controllers send nothing new to pods that are about to end, and wait for the connections that these have.

    Without it connections meet a pod that is gone, and conntrack remembers for two minutes that they went there:
    a client that uses the same port again within that time is sent there, too.

    Args:
        syncs: of the controllers; where there are none, nobody needs to be told.
    """
    live = [pod for pod in pods if pod.own_netns and not pod.host_network and pod.home.ready]
    if not live or not syncs:
        return
    for pod in live:
        pod.terminating = True
    for sync in syncs:
        sync()
    for pod in live:
        ports = {port.number for port in pod.ports}
        with contextlib.suppress(Timeout, OSError):  # some stay open, and a kernel without sock_diag(7) cannot tell
            wait_until(lambda: not callers(pod.netns) & ports, what="open connections", timeout_s=DRAIN_S)  # noqa: B023  # it is called in this turn


def _address(destination: str | Pod) -> str:
    if not isinstance(destination, Pod):
        return destination
    if destination.address is None:
        raise NotFound(f"pod {destination.key} has no address: {destination.reason or destination.phase}")
    return destination.address


def _ports(model: Any, kind: str, image: str) -> tuple[Port, ...]:
    declared = tuple(
        Port(number=one.containerPort, protocol=one.protocol or "TCP", name=one.name, host_port=one.hostPort)
        for one in model.ports or ()
    )
    if declared or kind == "pause":
        return declared
    if kind == "nginx":
        return (Port(number=80, protocol="TCP", declared=False),)
    base = image.rpartition("/")[2].split("@")[0].split(":")[0]
    return tuple(
        Port(number=number, protocol=protocol, declared=False)
        for protocol, number in ECHO_PORTS if base in ECHO_IMAGES
    )  # fmt: skip


def _number(port: int | str, ports: tuple[Port, ...]) -> int | None:
    """Return the number of a port that a probe gives by number or by name."""
    if str(port).isdigit():
        return int(port)
    return next((one.number for one in ports if one.name == port), None)
