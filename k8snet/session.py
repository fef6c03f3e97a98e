"""A cluster that a terminal works on: `k8snet up` builds it, and serves the commands typed in its shell.

    k8snet up       the cluster lives in this process, inside a sandbox
    ├── a shell, or the command after `--`, with K8SNET_LAB in its environment
    └── a thread that answers at the socket K8SNET_LAB: one JSON line asks, one answers
            k8snet get | apply | delete | exec | reach | check | diagram | rules | why | trace
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from k8snet.errors import InvalidInput, K8snetError, NotFound

if TYPE_CHECKING:
    from rich.console import Console

    from k8snet.cluster.cluster import Cluster
    from k8snet.cluster.manifests import Manifest

__all__ = ["LAB", "Session", "ask", "built", "enter", "serve", "up"]

LAB = "K8SNET_LAB"  # names the socket, in the environment of the shell
LONGEST = 64 << 20  # bytes of a request or an answer
SERVICES = ("Service", "EndpointSlice")  # which kube-proxy makes work
EDGE = ("Ingress", "IngressClass", "GatewayClass", "Gateway", "HTTPRoute")  # which needs Services that work
SHELL_RC = """\
[ -f ~/.bashrc ] && . ~/.bashrc
PS1='\\[\\e[1;36m\\][k8snet]\\[\\e[0m\\] \\w\\$ '
"""


# -- the process that holds the cluster ------------------------------------------------


def up(sources: Sequence[str], command: Sequence[str], *, lenient: bool = False, **options: Any) -> int:
    """Build the cluster that manifests describe, run a shell or *command* with it, and return its exit code.

    Args:
        options: of Cluster.

    Raises:
        InvalidManifest: one cannot be used; nothing was built.
    """
    from k8snet.cluster.manifests import load
    from k8snet.observe.status import troubles

    manifest = load(*sources, lenient=lenient)
    with built(manifest, **options) as cluster, serve(cluster) as path:
        from rich.console import Console

        console = Console(stderr=True, highlight=False)
        console.print(str(cluster.get("nodes")), markup=False, soft_wrap=True)
        console.print()
        console.print(str(cluster.get("pods")), markup=False, soft_wrap=True)
        for line in troubles(cluster):
            console.print(line, markup=False, soft_wrap=True)
        if not command:
            console.print("\nA shell with this cluster: k8snet get, exec, apply, delete, reach, check, diagram, rules, "
                          "why, trace, capture. Leave it with exit; nothing stays.", soft_wrap=True)  # fmt: skip
        return _run(list(command), path)


@contextlib.contextmanager
def built(
    manifest: Manifest, *, nodes: int | None = None, proxy_mode: str = "iptables", **options: Any
) -> Iterator[Cluster]:
    """Build a cluster with its progress on standard error, and close it at the end of the block.

    Args:
        proxy_mode: of kube-proxy: "iptables", "nftables" or "ipvs", or "none" for a cluster without one.
    """
    from rich.console import Console

    from k8snet.cluster.cluster import Cluster

    console = Console(stderr=True, highlight=False)
    for line in [*manifest.warnings, manifest.not_used_line, _unprogrammed(manifest, proxy_mode)]:
        if line:
            console.print(line, markup=False, soft_wrap=True)
    with _progress(console) as progress:
        cluster = Cluster.of(manifest, nodes=nodes, progress=progress, **options)
    with cluster:
        if proxy_mode != "none":
            cluster.start_proxy(proxy_mode)
        cluster.start_network_policy()
        for line in _open_edge(cluster):
            console.print(line, markup=False, soft_wrap=True)
        yield cluster


def _open_edge(cluster: Cluster) -> list[str]:
    """Run the load balancer and the nginx that the cluster's objects ask for and that do not run; say where it is."""
    from k8snet.controllers.ingress.controller import IngressController
    from k8snet.controllers.load_balancer import LoadBalancer
    from k8snet.controllers.services import Services

    def runs(kind: type) -> bool:
        return any(isinstance(one, kind) for one in cluster.controllers)

    classes = dict.fromkeys(_class_of(one) for key, one in cluster.objects.items() if key[0] in {"Ingress", "Gateway"})
    balanced = any(one.spec.type == "LoadBalancer" for key, one in cluster.objects.items() if key[0] == "Service")
    if not runs(Services) or not (classes or balanced):
        return []
    if not runs(LoadBalancer):
        cluster.start_load_balancer()
    known = {one.name for one in cluster.controllers if isinstance(one, IngressController)}
    said = []
    for name in classes:
        if name not in known:
            said.append(f"class {name}: nginx at {cluster.start_ingress(name=name).url}")
            known.add(name)
    return said


def _class_of(one: Any) -> str:
    """Return which class of Ingress or Gateway controllers an object asks for."""
    old = (one.metadata.annotations or {}).get("kubernetes.io/ingress.class")
    named = getattr(one.spec, "gatewayClassName", None) or getattr(one.spec, "ingressClassName", None)
    return str(named or old or "k8snet")


def _unprogrammed(manifest: Manifest, proxy_mode: str) -> str:
    from collections import Counter

    from k8snet.cluster.objects import kind_of

    kinds = (*EDGE, *SERVICES) if proxy_mode == "none" else ()
    counts = Counter(kind_of(one) for one in manifest.objects if kind_of(one) in kinds)
    told = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items()))
    return f"kept, but without effect here: {told}" if told else ""


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Show a line a kind of work on a terminal, and nothing in a log."""
    if not console.is_terminal:
        yield lambda *_: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield report


def _run(command: list[str], path: Path) -> int:
    """Run a command, or a shell, in the foreground of the terminal, and return its exit code."""
    ours = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])  # has `k8snet`
    environment = {**os.environ, LAB: str(path), "PATH": ours}
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command's to obey
    try:
        with tempfile.NamedTemporaryFile("w", suffix=".bashrc") as rc:
            rc.write(SHELL_RC)
            rc.flush()
            words = command or ["bash", "--rcfile", rc.name, "-i"]
            streams = {} if command or sys.stdin.isatty() else {"stdin": _terminal()}
            child = subprocess.Popen(words, env=environment, preexec_fn=_interruptible, **streams)
            code = child.wait()
    except FileNotFoundError:
        sys.stderr.write(f"k8snet: cannot run {command[0]!r}: not found\n")
        return 127
    finally:
        signal.signal(signal.SIGINT, before)
    return 128 - code if code < 0 else code


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _terminal() -> Any:
    """Return the terminal for a shell whose manifest came by standard input; nothing where there is none."""
    try:
        return Path("/dev/tty").open("rb")
    except OSError:
        return subprocess.DEVNULL


# -- the socket ------------------------------------------------------------------------


@contextlib.contextmanager
def serve(cluster: Cluster) -> Iterator[Path]:
    """Answer the commands of a shell while the block runs; yields the socket's path."""
    from k8snet.linux.run import scratch

    path = scratch() / f"cluster-{cluster.lab.name}.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)
        session = Session(cluster)

        def accept() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:  # closed: the block has ended
                    return
                threading.Thread(target=session.answer, args=(client,), daemon=True).start()

        threading.Thread(target=accept, name="k8snet-session", daemon=True).start()
        try:
            yield path
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            path.unlink(missing_ok=True)


class Session:
    """What the commands of a shell ask of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        """Serve *cluster*."""
        self.cluster = cluster

    def answer(self, client: socket.socket) -> None:
        """Read one request, and answer it: {"out": text} or {"error": text, "code": number}."""
        with client, client.makefile("rwb") as stream:
            try:
                asked = json.loads(stream.readline(LONGEST))
                told: dict[str, Any] = getattr(self, f"do_{asked.pop('verb')}")(**asked)
            except K8snetError as error:
                told = {"error": str(error), "code": exit_code(error)}
            except Exception as error:  # noqa: BLE001  # the one who asked must hear of it, and the cluster goes on
                told = {"error": f"{type(error).__name__}: {error}", "code": 1}
            stream.write(json.dumps(told).encode() + b"\n")

    def do_get(self, kind: str, names: list[str], namespace: str | None, output: str) -> dict[str, Any]:
        """Return tables, or objects as JSON or YAML."""
        with self.cluster.lock:
            self.cluster.sync()
            asked: list[tuple[str | None, str | None]] = [_split(word) for word in names]
            found = [
                self._found(one, space or namespace, name, output)
                for one in _kinds(kind) for space, name in asked or [(None, None)]
            ]  # fmt: skip
            notes = self._notes() if output in {"", "wide"} and "Pod" in _kinds(kind) else ""
        if output in {"json", "yaml"}:
            items = [item for each in found for item in each]
            whole = items[0] if len(names) == 1 == len(items) else {"apiVersion": "v1", "kind": "List", "items": items}
            return {"out": _dumped(whole, output)}
        if output == "name":
            return {"out": "\n".join(line for each in found for line in each)}
        tables: dict[tuple[str, ...], Any] = {}
        for each in found:
            before = tables.get(each.columns)
            tables[each.columns] = type(each)(each.columns, before.rows + each.rows) if before else each
        shown = [one for one in tables.values() if one.rows] or list(tables.values())[:1]
        return {"out": "\n\n".join(map(str, shown)), "note": notes}

    def _found(self, kind: str, namespace: str | None, name: str | None, output: str) -> Any:
        """Return what there is of a kind: objects, names or a table."""
        from k8snet.observe import status

        if output in {"json", "yaml"}:
            items = status.as_objects(self.cluster, kind, namespace=namespace)["items"]
            found: Any = [one for one in items if name in (None, one["metadata"]["name"])]
            there = bool(found)
        else:
            table = status.table(self.cluster, kind, namespace=namespace)
            place = table.columns.index("NAME")
            rows = tuple(row for row in table.rows if name in (None, row[place]))
            found = [f"{kind.lower()}/{row[place]}" for row in rows] if output == "name" else \
                type(table)(table.columns, rows)
            there = bool(rows)
        if name and not there:
            raise NotFound(f"no {kind} {name!r}{f' in namespace {namespace!r}' if namespace else ''}")
        return found

    def _notes(self) -> str:
        from k8snet.observe.status import troubles

        return "\n".join(troubles(self.cluster))

    def do_apply(self, text: str, name: str, lenient: bool) -> dict[str, Any]:
        """Apply the text of a manifest."""
        from k8snet.cluster.manifests import parse

        manifest = parse(text, name=name, lenient=lenient)
        done = [*manifest.warnings, *self.cluster.apply(manifest), *_open_edge(self.cluster)]
        return {"out": "\n".join(done), "note": self._notes()}

    def do_delete(self, kind: str, names: list[str], namespace: str) -> dict[str, Any]:
        """Delete objects."""
        from k8snet.cluster.objects import kind_named

        done = []
        for word in names:
            space, name = _split(word)
            self.cluster.delete(kind, name, namespace=space or namespace)
            done.append(f"{kind_named(kind).lower()}/{name} deleted")
        return {"out": "\n".join(done)}

    def do_delete_those(self, text: str, name: str, namespace: str) -> dict[str, Any]:
        """Delete the objects that the text of a manifest describes, the last one first."""
        from k8snet.cluster import objects
        from k8snet.cluster.manifests import parse

        manifest, done, missing = parse(text, name=name, lenient=True), [], []
        with self.cluster.lock:
            there = {*self.cluster.objects, *(("Node", "", node) for node in self.cluster.nodes)}
            for one in reversed(manifest.objects):
                key = objects.key_of(one)
                if key[0] == "Namespace" and key[2] in manifest.undeclared:
                    continue
                if key not in there:
                    missing.append(f"no {key[0]} {key[2]!r}{f' in namespace {key[1]!r}' if key[1] else ''}")
                elif key in self.cluster.objects or key[0] == "Node":  # else it went with what was deleted before it
                    self.cluster.delete(key[0], key[2], namespace=key[1] or namespace)
                    done.append(f"{key[0].lower()}/{key[2]} deleted")
        return {"out": "\n".join(done), "note": "\n".join(f"k8snet: {one}" for one in missing), "code": bool(missing)}

    def do_where(self, name: str, namespace: str, container: str | None) -> dict[str, Any]:
        """Return the netns of a pod, a node, or what joins the nodes, for a command that is to run there."""
        found = self._place(name, namespace)
        if isinstance(found, str):
            return {"out": found}
        if container:
            found.container(container)
        return {"out": found.netns.name}

    def _place(self, name: str, namespace: str) -> Any:
        """Return a pod, or the name of another netns, for "web-1", "shop/web-1", "deploy/web" or "node1"."""
        from k8snet.cluster.objects import kind_named

        cluster, (head, _, tail) = self.cluster, name.rpartition("/")
        if (head or namespace, tail) in cluster.pods:
            return cluster.pods[head or namespace, tail]
        if not head:
            if name in cluster.nodes:
                return cluster.node(name).netns.name
            fabric = (cluster.switch, cluster.router, cluster.internet)
            if name in (one.name for one in fabric):
                return name
            return cluster.pod(name, namespace=namespace)
        try:
            kind = kind_named(head)
        except NotFound:
            return cluster.pod(name)
        if kind == "Node":
            return cluster.node(tail).netns.name
        owner = namespace, f"{kind} {tail}"
        pods = [one for one in cluster.pods.values() if (one.namespace, one.plan.owner) == owner]
        if kind != "Pod" and not pods:
            raise NotFound(f"no pod of {kind} {tail!r} in namespace {namespace!r}")
        return pods[0] if pods else cluster.pod(tail, namespace=namespace)

    def do_reach(self, as_json: bool, **options: Any) -> dict[str, Any]:
        """Return the matrix of who reaches whom; the code is 1 where that is not what policies say."""
        found = self.cluster.reach(**options)
        text = json.dumps(found.to_dict(), indent=1) if as_json else str(found)
        return {"out": text, "code": 1 if found.differences else 0}

    def do_check(self, timeout_s: float) -> dict[str, Any]:
        """Return which rules of the network model hold."""
        report = self.cluster.check_model(timeout_s=timeout_s)
        return {"out": str(report), "code": 0 if report.ok else 1}

    def do_diagram(self, **options: Any) -> dict[str, Any]:
        """Return a drawing as SVG, and in words."""
        drawing = self.cluster.diagram(**options)
        return {"out": drawing.standalone(), "alt": drawing.alt}

    def do_rules(self, service: str, as_json: bool, **options: Any) -> dict[str, Any]:
        """Return the chains of a Service on a node."""
        found = self.cluster.rules(service, **options)
        return {"out": _dumped(found.as_dict(), "json") if as_json else str(found)}

    def do_why(self, source: str, target: str, as_json: bool, **options: Any) -> dict[str, Any]:
        """Return the rules that a packet passes."""
        found = self.cluster.why(source, target, **options)
        return {"out": _dumped(found.as_dict(), "json") if as_json else str(found)}

    def do_trace(self, form: str, **options: Any) -> dict[str, Any]:
        """Return the way of a packet, as text, JSON or a page."""
        found = self.cluster.trace(**options)
        told = {"text": found.__str__, "json": found.json, "html": found.page}[form]
        return {"out": told(), "code": 0 if found.request.arrived else 1}


ALL = ("Pod", "Service", "DaemonSet", "Deployment", "ReplicaSet", "StatefulSet", "Job")  # kubectl get all


def _kinds(words: str) -> list[str]:
    """Return the kinds that "pods", "pods,svc" or "all" means."""
    from k8snet.cluster.objects import kind_named

    return list(ALL) if words == "all" else [kind_named(word) for word in words.split(",")]


def _split(word: str) -> tuple[str | None, str]:
    """Return namespace and name of "shop/web-1"; None for the namespace of "web-1"."""
    head, _, tail = word.rpartition("/")
    return head or None, tail


def _dumped(value: Any, output: str) -> str:
    if output == "json":
        return json.dumps(value, indent=2)
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False)).rstrip()


# -- the commands in the shell ---------------------------------------------------------


def ask(verb: str, **arguments: Any) -> dict[str, Any]:
    """Ask the cluster of this shell, and return its answer.

    Raises:
        NotFound: this is no shell of `k8snet up`, or its cluster is gone.
    """
    path = os.environ.get(LAB)
    if not path:
        raise NotFound("there is no cluster here. This command works in the shell of one: k8snet up -f FILE")
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            with connection.makefile("rwb") as stream:
                stream.write(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
                stream.flush()
                answer: dict[str, Any] = json.loads(stream.readline(LONGEST))
    except (OSError, ValueError):
        raise NotFound(f"the cluster of this shell is gone (nothing answers at {path}); leave the shell") from None
    return answer


def enter(netns: str, command: Sequence[str]) -> None:
    """Become *command*, inside a netns. Like: nsenter --net=/run/netns/NETNS -- COMMAND."""
    if not command:
        raise InvalidInput("what is to run there? Write: k8snet exec POD -- COMMAND")
    words = ["nsenter", f"--net=/run/netns/{netns}", "--", *command]
    os.execvp(words[0], words)  # noqa: S606  # no shell is wanted


def exit_code(error: K8snetError) -> int:
    """Return the exit code that stands for an error: 2 for a manifest or configuration that cannot be used."""
    from k8snet.errors import InvalidConfig, InvalidManifest

    return 2 if isinstance(error, InvalidManifest | InvalidConfig) else 1
