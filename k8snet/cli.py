"""The command `k8snet`."""
from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from k8snet.errors import InvalidInput, K8snetError, NotFound
from k8snet.jupyter.vm.cli import app as vm
from k8snet.proxy_cli import app as proxy
from k8snet.rules_cli import app as rules

# What a command needs is imported in it, so that `k8snet --help` and `k8snet sandbox` start at once.

__all__ = ["main"]

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Kubernetes networking, built live in your own kernel.",
)  # fmt: skip
cni = typer.Typer(no_args_is_help=True, help="CNI plugins.")
app.add_typer(cni, name="cni")
kernelspec = typer.Typer(no_args_is_help=True, help="The kernelspec k8snet, for a Jupyter of another environment.")
app.add_typer(kernelspec, name="kernelspec")
app.add_typer(proxy, name="proxy")
app.add_typer(rules)
app.add_typer(vm, name="vm")

COMMAND_LAST = {"allow_interspersed_args": False}  # with or without -- before it
CORES = os.cpu_count() or 1

Folder = Annotated[
    Path | None,
    typer.Option("--dir", help="The working copy.", show_default="$K8SNET_WORKDIR, or ~/k8snet-book"),
]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="How many chapters run at the same time.")]
Chapters = Annotated[
    list[str] | None,
    typer.Argument(help="Chapters by number, slug or name: 02, bridge, 03-bridge.", show_default="all"),
]


Files = Annotated[
    list[str],
    typer.Option("-f", "--filename", help="A manifest: YAML or JSON, a folder of them, or - for standard input."),
]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="The Kubernetes namespace.")]
Lenient = Annotated[bool, typer.Option("--lenient", help="Warn of unknown fields instead of refusing them.")]
Ports = Annotated[
    str, typer.Option("--ports", help="As in tcp/80,udp/53,icmp.", show_default="every declared containerPort")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TimeoutS = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds of silence that count as lost.")]
PROXY_MODES = ("iptables", "nftables", "ipvs", "none")
InVm = Annotated[bool, typer.Option("--vm", help="In the small virtual machine that `k8snet vm prepare` made.")]


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


@app.command()
def doctor(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False
) -> None:
    """Try what this machine can do, and say what is missing and how to get it.

    Exits with 1 where something is missing that chapters 00 to 08 need.
    """
    import json

    from k8snet import doctor as _doctor

    report = _doctor.look()
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _doctor.show(report)
    sys.exit(0 if report.ok else 1)


@app.command()
def lab(
    *,
    folder: Folder = None,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="TCP port on 127.0.0.1; the next free one if taken.")
    ] = 8888,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the web browser, too.")] = True,
) -> None:
    """Open the book in JupyterLab, in a working copy of your own."""
    from k8snet.jupyter import workdir

    where = folder.absolute() if folder else workdir.default_folder()
    for line in workdir.update(where):
        typer.echo(line, err=True)
    typer.echo(f"Your working copy: {where}", err=True)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # this environment's kernelspec, not an older one of the user's
    command, environment = workdir.lab_command(where, port=port, browser=browser)
    os.execve(command[0], command, environment)  # noqa: S606  # no shell is wanted


@app.command()
def reset(
    chapter: Annotated[str, typer.Argument(help="A chapter by number, slug or name.")], *, folder: Folder = None
) -> None:
    """Restore CHAPTER in your working copy; an edited one is kept beside it."""
    from k8snet.jupyter import workdir

    done = workdir.reset(chapter, folder or workdir.default_folder())
    if done.edited:
        typer.echo(f"Your version is kept: {done.edited}")
    typer.echo(f"As published: {done.chapter}")


@app.command()
def run(
    chapters: Chapters = None,
    *,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the executed notebooks.", show_default="thrown away")
    ] = None,
    jobs: Jobs = CORES,
    kernel: Annotated[
        str | None, typer.Option(help="The kernelspec to use.", show_default="what a chapter needs here")
    ] = None,
    vm: InVm = False,
) -> None:
    """Execute chapters live, without a browser; exit with 1 if one fails."""
    from k8snet.jupyter import runner
    from k8snet.jupyter.vm import need

    kernel = need.KERNELSPEC if vm else kernel
    sys.exit(runner.run_chapters(chapters or [], output=output, jobs=jobs, kernel=kernel))


@app.command()
def book(
    *,
    output: Annotated[Path, typer.Option(help="Folder for the pages.")] = Path("out/book"),
    executed: Annotated[
        Path | None,
        typer.Option(help="Folder of chapters that `k8snet run --output` made.", show_default="they are executed now"),
    ] = None,
    jobs: Jobs = CORES,
) -> None:
    """Execute every chapter and build the static pages, which need no server."""
    from k8snet.jupyter import book as _book

    sys.exit(_book.build(output=output, executed=executed, jobs=jobs))


@kernelspec.command()
def install(
    *,
    user: Annotated[bool, typer.Option("--user", help="For every Jupyter of this user (the default).")] = False,
    sys_prefix: Annotated[
        bool, typer.Option("--sys-prefix", help="For the Jupyter of this Python's environment.")
    ] = False,
    prefix: Annotated[Path | None, typer.Option(help="For the Jupyter of that environment.")] = None,
    name: Annotated[str, typer.Option(help="What Jupyter lists it as.")] = "k8snet",
) -> None:
    """Write a kernelspec that starts this Python by its absolute path."""
    from k8snet.jupyter import kernelspec as _kernelspec

    if user + sys_prefix + (prefix is not None) > 1:
        raise typer.BadParameter("choose one of --user, --sys-prefix and --prefix")
    typer.echo(_kernelspec.install(name=name, prefix=Path(sys.prefix) if sys_prefix else prefix))


@app.command(context_settings=COMMAND_LAST)
def sandbox(
    command: Annotated[list[str], typer.Argument(help="The command and its arguments.")],
    *,
    writable: Annotated[
        Path | None, typer.Option(help="The folder it may write.", show_default="the current one")
    ] = None,
    vm: InVm = False,
) -> None:
    """Run COMMAND inside a fresh sandbox, and exit with its exit code."""
    sys.exit(_run_inside(command, writable, vm=vm))


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
    _tell("get", kind=kind, names=named, namespace=None if every else namespace, output=output)


@app.command()
def apply(files: Files, *, lenient: Lenient = False) -> None:
    """Bring the cluster of this shell to what manifests say."""
    for file in files:
        for name, text in _texts(file):
            _tell("apply", text=text, name=name, lenient=lenient)


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
                _tell("delete_those", text=text, name=name, namespace=namespace)
        return
    kind, named = _kind_and_names(kind or "", names)
    if not named:
        raise typer.BadParameter("write KIND NAME, KIND/NAME or -f FILE", param_hint="what to delete")
    _tell("delete", kind=kind, names=named, namespace=namespace)


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
    _stop_on_error(answer)
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
    options: dict[str, Any],
) -> None:
    """Probe every pod from every pod, and print who reaches whom."""
    wanted = [word for word in ports.split(",") if word]
    asked: dict[str, Any] = {"ports": wanted, "timeout_s": timeout, "family": family}
    if not files:
        _tell("reach", **asked, as_json=as_json)
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
        typer.echo(session.Session(cluster).do_reach(**asked, as_json=as_json)["out"])


@app.command()
def check(*, timeout: TimeoutS = 1.0) -> None:
    """Probe the rules of the Kubernetes network model in this shell's cluster; exit with 1 if one does not hold."""
    _tell("check", timeout_s=timeout)


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
    _stop_on_error(answer)
    if output is None:
        typer.echo(answer["alt"])
        return
    try:
        output.write_text(answer["out"])
    except OSError as error:
        typer.echo(f"k8snet: cannot write {output}: {error.strerror}", err=True)
        sys.exit(1)


@cni.command("check")
def cni_check(
    plugin: Annotated[str, typer.Argument(help="The plugin's file, or the name of an installed one.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Try a CNI plugin against the specification; exit with 1 if it fails."""
    file = Path(plugin)
    if ("/" in plugin or file.exists()) and not (file.is_file() and os.access(file, os.X_OK)):
        what = "is a folder" if file.is_dir() else "is not executable: chmod +x" if file.exists() else "is not there"
        raise NotFound(f"{plugin} {what}; the check runs a plugin's executable file")
    file = file.absolute() if file.exists() else file
    _in_sandbox()
    import json

    from k8snet.cni.conformance import check_plugin
    from k8snet.lab import Lab

    with Lab("cni-check") as lab:
        report = check_plugin(file, lab)
        typer.echo(json.dumps(report.to_dict(), indent=1) if as_json else str(report))
    sys.exit(0 if report.ok else 1)


def _run_inside(command: list[str], writable: Path | None = None, *, vm: bool) -> int:
    """Run *command* in a sandbox, or in a virtual machine unless this is one, and return its exit code."""
    from k8snet import sandbox as _sandbox

    if not vm or _sandbox.GUEST in os.environ:
        return _sandbox.run(command, working_copy=writable)
    from k8snet.jupyter.vm.launch import run_in_vm

    return run_in_vm(command, working_copy=writable)


def _in_sandbox(*, vm: bool = False) -> None:
    """Go on in a sandbox: the same command is run in a new one, unless this is one already."""
    from k8snet import sandbox as _sandbox

    if (_sandbox.GUEST if vm else _sandbox.INSIDE) not in os.environ:
        sys.exit(_run_inside([sys.executable, "-m", "k8snet.cli", *sys.argv[1:]], vm=vm))


def _in_own_sandbox(*, vm: bool) -> None:
    """Go on in a sandbox that holds no other cluster."""
    from k8snet.session import LAB

    if os.environ.get(LAB):
        raise InvalidInput("this is the shell of a cluster already; leave it with exit, or use another terminal")
    _in_sandbox(vm=vm)


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


def _tell(verb: str, **arguments: object) -> None:
    """Ask the cluster of this shell, and print what it answers."""
    from k8snet import session

    answer = session.ask(verb, **arguments)
    _stop_on_error(answer)
    if answer["out"]:
        typer.echo(answer["out"])
    if answer.get("note"):
        typer.echo(answer["note"], err=True)
    if answer.get("code"):
        sys.exit(int(answer["code"]))


def _stop_on_error(answer: dict[str, object]) -> None:
    if "error" in answer:
        typer.echo(f"k8snet: {answer['error']}", err=True)
        sys.exit(int(str(answer["code"])))


@app.command()
def version() -> None:
    """Print the version of k8snet."""
    from k8snet import __version__

    typer.echo(__version__)


def main() -> None:
    """Run the command line; an error of k8snet's own is one line, not a traceback."""
    try:
        app()
    except K8snetError as error:
        from k8snet.session import exit_code

        typer.echo(f"k8snet: {error}", err=True)
        sys.exit(exit_code(error))


if __name__ == "__main__":
    main()
