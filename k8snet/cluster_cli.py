"""The commands of a cluster: `k8snet up`, and what its shell offers."""
from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from k8snet.command_line import COMMAND_LAST, AsJson, InVm, in_sandbox, stop_on_error, tell
from k8snet.errors import InvalidInput, NotFound

# What a command needs is imported in it, so that `k8snet --help` starts at once.

__all__ = ["app"]

app = typer.Typer()

Files = Annotated[
    list[str],
    typer.Option("-f", "--filename", help="A manifest: YAML or JSON, a folder of them, or - for standard input."),
]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="The Kubernetes namespace.")]
Lenient = Annotated[bool, typer.Option("--lenient", help="Warn of unknown fields instead of refusing them.")]
Ports = Annotated[
    str, typer.Option("--ports", help="As in tcp/80,udp/53,icmp.", show_default="every declared containerPort")
]
TimeoutS = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds of silence that count as lost.")]
PROXY_MODES = ("iptables", "nftables", "ipvs", "none")


def _cluster_options(
    *,
    nodes: Annotated[int | None, typer.Option(min=1, help="How many.", show_default="the manifest's, or 2")] = None,
    pod_network: Annotated[str, typer.Option(help="What joins pods of two nodes: routes, vxlan or bgp.")] = "routes",
    ip_families: Annotated[str, typer.Option(help="v4, or v4,v6 for dual-stack.")] = "v4",
    wiring: Annotated[str, typer.Option(help="What attaches pods: cni (plugins), or direct (faster).")] = "cni",
    proxy_mode: Annotated[str, typer.Option(help="How Services work: iptables, nftables, ipvs or none.")] = "iptables",
    lenient: Lenient = False,
    vm: InVm = False,
) -> dict[str, Any]:
    if proxy_mode not in PROXY_MODES:
        raise InvalidInput(f"--proxy-mode {proxy_mode!r}: one of {', '.join(PROXY_MODES)}")
    return {
        "nodes": nodes, "pod_network": pod_network, "ip_families": tuple(map(str.strip, ip_families.split(","))),
        "wiring": wiring, "proxy_mode": proxy_mode, "lenient": lenient, "vm": vm,
    }  # fmt: skip


def _of_a_cluster(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a cluster, and hand it what they say as `options`."""
    own = dict(inspect.signature(command, eval_str=True).parameters)
    shared = inspect.signature(_cluster_options, eval_str=True).parameters
    del own["options"]

    @functools.wraps(command)
    def body(**given: Any) -> None:
        command(options=_cluster_options(**{name: given.pop(name) for name in shared}), **given)

    body.__signature__ = inspect.Signature([*own.values(), *shared.values()])  # type: ignore[attr-defined]  # what typer reads
    return body


@app.command(context_settings=COMMAND_LAST)
@_of_a_cluster
def up(
    files: Files,
    command: Annotated[list[str] | None, typer.Argument(help="What to run; without it, a shell.")] = None,
    *,
    options: dict[str, Any],  # of _cluster_options()
) -> None:
    """Build the cluster that manifests describe, and open a shell, or run COMMAND, with it.

    In that shell, `k8snet get`, `exec`, `apply`, `delete`, `reach`, `check` and `diagram` work on the cluster.
    It is gone when the shell ends. Exits with COMMAND's exit code, and with 2 if a manifest cannot be used.
    """
    if options["vm"] and "-" in files and not command:
        raise InvalidInput("a shell in the virtual machine needs standard input: name a file with -f, or a command")
    _in_own_sandbox(vm=options.pop("vm"))
    from k8snet import session

    sys.exit(session.up(files, command or [], **options))


@app.command()
def get(
    kind: Annotated[str, typer.Argument(help="pods, nodes, deployments, pods,services, all, ...")] = "pods",
    names: Annotated[list[str] | None, typer.Argument(help="Some of them.")] = None,
    *,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="The Kubernetes namespace.", show_default="all")
    ] = None,
    every: Annotated[bool, typer.Option("--all-namespaces", "-A", help="All namespaces, as without -n.")] = False,
    output: Annotated[str, typer.Option("--output", "-o", help="wide, name, json or yaml.")] = "wide",
) -> None:
    """List objects of the cluster of this shell, with their live state."""
    output = output.removeprefix("=")  # kubectl takes -o=json, too
    if output not in {"", "wide", "name", "json", "yaml"}:
        raise typer.BadParameter("wide, name, json or yaml", param_hint="--output")
    kind, named = _kind_and_names(kind, names)
    tell("get", kind=kind, names=named, namespace=None if every else namespace, output=output)


@app.command()
def apply(files: Files, *, lenient: Lenient = False) -> None:
    """Bring the cluster of this shell to what manifests say."""
    for file in files:
        for name, text in _texts(file):
            tell("apply", text=text, name=name, lenient=lenient)


@app.command()
def delete(
    kind: Annotated[str | None, typer.Argument(help="pod, deployment, ...; or KIND/NAME.")] = None,
    names: Annotated[list[str] | None, typer.Argument(help="Which ones.")] = None,
    *,
    files: Annotated[
        list[str] | None, typer.Option("-f", "--filename", help="Manifests whose objects are to go.")
    ] = None,
    namespace: Namespace = "default",
) -> None:
    """Delete objects of the cluster of this shell."""
    if files:
        for file in files:
            for name, text in _texts(file):
                tell("delete_those", text=text, name=name, namespace=namespace)
        return
    kind, named = _kind_and_names(kind or "", names)
    if not named:
        raise typer.BadParameter("write KIND NAME, KIND/NAME or -f FILE", param_hint="what to delete")
    tell("delete", kind=kind, names=named, namespace=namespace)


@app.command("exec", context_settings=COMMAND_LAST)
def exec_(
    pod: Annotated[str, typer.Argument(help="A pod (NAME, NAMESPACE/NAME or deploy/NAME), or a node.")],
    command: Annotated[list[str], typer.Argument(help="The command and its arguments.")],
    *,
    namespace: Namespace = "default",
    container: Annotated[
        str | None, typer.Option("--container", "-c", help="One of the pod's; they share its network.")
    ] = None,
    stdin: Annotated[bool, typer.Option("--stdin", "-i", help="As kubectl has it; it is always passed on.")] = False,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="As kubectl has it; the terminal is this one.")] = False,
) -> None:
    """Run COMMAND in the network of a pod of this shell's cluster."""
    del stdin, tty
    from k8snet import session

    command, own = _own_options(command)
    asked = {"namespace": namespace, "container": container, **own}
    answer = session.ask("where", name=pod, **asked)
    stop_on_error(answer)
    session.enter(answer["out"], command)


@app.command()
@_of_a_cluster
def reach(
    files: Annotated[
        list[str] | None,
        typer.Option("-f", "--filename", help="Manifests to build a cluster of.", show_default="this shell's cluster"),
    ] = None,
    *,
    ports: Ports = "",
    as_json: AsJson = False,
    timeout: TimeoutS = 1.0,
    family: Annotated[str, typer.Option("--family", help="v4 or v6.")] = "v4",
    expected: Annotated[
        bool, typer.Option("--expected", help="Show beside it what NetworkPolicies say; exit with 1 if they differ.")
    ] = False,
    options: dict[str, Any],
) -> None:
    """Probe every pod from every pod, and print who reaches whom."""
    wanted = [word for word in ports.split(",") if word]
    asked: dict[str, Any] = {"ports": wanted, "timeout_s": timeout, "family": family, "expected": expected}
    if not files:
        tell("reach", **asked, as_json=as_json)
        return
    _in_own_sandbox(vm=options.pop("vm"))
    from k8snet import session
    from k8snet.cluster.manifests import load
    from k8snet.observe.reach import check_asked
    from k8snet.observe.status import troubles

    check_asked(wanted, family, options["ip_families"])
    with session.built(load(*files, lenient=options.pop("lenient")), **options) as cluster:
        for line in troubles(cluster):
            typer.echo(line, err=True)
        answer = session.Session(cluster).do_reach(**asked, as_json=as_json)
        typer.echo(answer["out"])
        code = answer["code"]
    raise typer.Exit(code)


@app.command()
@_of_a_cluster
def trace(
    files: Annotated[
        list[str] | None,
        typer.Option("-f", "--filename", help="Manifests to build a cluster of.", show_default="this shell's cluster"),
    ] = None,
    *,
    source: Annotated[str, typer.Option("--from", help="NAMESPACE/POD, a node, or internet.")],
    target: Annotated[str, typer.Option("--to", help="HOST:PORT: web.shop:80, node1:30080, 10.96.0.20:80.")],
    udp: Annotated[bool, typer.Option("--udp", help="A datagram instead of a connection.")] = False,
    as_json: AsJson = False,
    page: Annotated[Path | None, typer.Option("--html", help="Write it as a page into this file.")] = None,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds of silence that count as lost.")] = 2.0,
    family: Annotated[str, typer.Option("--family", help="v4 or v6, of the address that a name stands for.")] = "v4",
    options: dict[str, Any],
) -> None:
    """Send a packet, and print its way through every interface, hook and rule; exit with 1 if it did not arrive."""
    if page and not page.absolute().parent.is_dir():
        raise NotFound(f"--html {page}: there is no folder {page.absolute().parent}")
    asked: dict[str, Any] = {
        "source": source, "target": target, "protocol": "udp" if udp else "tcp", "timeout_s": timeout,
        "family": family, "form": "html" if page else "json" if as_json else "text",
    }  # fmt: skip
    from k8snet import session

    if not files:
        answer = session.ask("trace", **asked)
        stop_on_error(answer)
    else:
        _in_own_sandbox(vm=options.pop("vm"))
        from k8snet.cluster.manifests import load

        with session.built(load(*files, lenient=options.pop("lenient")), **options) as cluster:
            answer = session.Session(cluster).do_trace(**asked)
    if page:
        page.write_text(answer["out"])
    else:
        typer.echo(answer["out"])
    raise typer.Exit(answer["code"])


@app.command()
def check(*, timeout: TimeoutS = 1.0) -> None:
    """Probe the rules of the Kubernetes network model in this shell's cluster; exit with 1 if one does not hold."""
    tell("check", timeout_s=timeout)


@app.command()
def diagram(
    *,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="An .svg file.", show_default="words")] = None,
    routes: Annotated[bool, typer.Option("--routes", help="With each node's routing table.")] = False,
) -> None:
    """Draw the cluster of this shell, or describe it in words."""
    from k8snet import session

    if output is not None and output.suffix != ".svg":
        raise typer.BadParameter("the name of an .svg file", param_hint="--output")
    answer = session.ask("diagram", routes=routes)
    stop_on_error(answer)
    if output is None:
        typer.echo(answer["alt"])
        return
    try:
        output.write_text(answer["out"])
    except OSError as error:
        typer.echo(f"k8snet: cannot write {output}: {error.strerror}", err=True)
        sys.exit(1)


def _in_own_sandbox(*, vm: bool) -> None:
    """Go on in a sandbox that holds no other cluster."""
    from k8snet.session import LAB

    if os.environ.get(LAB):
        raise InvalidInput("this is the shell of a cluster already; leave it with exit, or use another terminal")
    in_sandbox(vm=vm)


def _texts(file: str) -> list[tuple[str, str]]:
    """Return name and text of a manifest, or of each in a folder."""
    from k8snet.cluster.manifests import texts

    return list(texts(file))


def _kind_and_names(kind: str, names: list[str] | None) -> tuple[str, list[str]]:
    """Return the kind and the names of "pod web-1 web-2" or "pod/web-1"."""
    if "/" not in kind:
        return kind, list(names or [])
    parts = [word.partition("/") for word in [kind, *(names or [])]]
    if any(not name or head != parts[0][0] for head, _, name in parts):
        raise typer.BadParameter("write KIND NAME ..., or KIND/NAME of one kind", param_hint="what")
    return parts[0][0], [name for _, _, name in parts]


def _own_options(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return a command, and what stood before it, as kubectl allows: POD -it -n NAMESPACE -- COMMAND."""
    own: dict[str, str] = {}
    valued = {"-n": "namespace", "--namespace": "namespace", "-c": "container", "--container": "container"}
    while words and words[0].startswith("-"):
        word, *words = words
        name, _, value = word.partition("=")
        if word == "--":
            break
        if name in valued and (value or words):
            own[valued[name]] = value or words.pop(0)
        elif word not in {"-i", "-t", "-it", "-ti", "--stdin", "--tty"}:
            raise typer.BadParameter(f"no such option: {word}; write: k8snet exec POD -- COMMAND", param_hint="exec")
    return words, own
