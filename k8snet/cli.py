"""The command `k8snet`."""
from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from k8snet.capture_cli import app as capture
from k8snet.cluster_cli import app as cluster
from k8snet.command_line import COMMAND_LAST, AsJson, InVm, in_sandbox, run_inside
from k8snet.discovery_cli import app as discovery
from k8snet.errors import K8snetError, NotFound
from k8snet.ingress_cli import app as ingress
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
app.add_typer(capture)
app.add_typer(cluster)
app.add_typer(cni, name="cni")
kernelspec = typer.Typer(no_args_is_help=True, help="The kernelspec k8snet, for a Jupyter of another environment.")
app.add_typer(discovery)
app.add_typer(ingress, name="ingress")
app.add_typer(kernelspec, name="kernelspec")
app.add_typer(proxy, name="proxy")
app.add_typer(rules)
app.add_typer(vm, name="vm")

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


@app.command()
def doctor(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False
) -> None:
    """Try what this machine can do, and say what is missing and how to get it.

    Exits with 1 where something is missing that no part of the book can do without.
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
    sys.exit(run_inside(command, writable, vm=vm))


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
    in_sandbox()
    import json

    from k8snet.cni.conformance import check_plugin
    from k8snet.lab import Lab

    with Lab("cni-check") as lab:
        report = check_plugin(file, lab)
        typer.echo(json.dumps(report.to_dict(), indent=1) if as_json else str(report))
    sys.exit(0 if report.ok else 1)


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
