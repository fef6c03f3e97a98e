"""What several command lines share: options, how a command goes on in a sandbox, and what a shell's cluster answers."""
from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["COMMAND_LAST", "AsJson", "InVm", "in_sandbox", "run_inside", "stop_on_error", "tell"]

COMMAND_LAST = {"allow_interspersed_args": False}  # with or without -- before it
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
InVm = Annotated[bool, typer.Option("--vm", help="In the small virtual machine that `k8snet vm prepare` made.")]


def run_inside(command: list[str], writable: Path | None = None, *, vm: bool) -> int:
    """Run *command* in a sandbox, or in a virtual machine unless this is one, and return its exit code."""
    from k8snet import sandbox as _sandbox

    if not vm or _sandbox.GUEST in os.environ:
        return _sandbox.run(command, working_copy=writable)
    from k8snet.jupyter.vm.launch import run_in_vm

    return run_in_vm(command, working_copy=writable)


def in_sandbox(*, vm: bool = False) -> None:
    """Go on in a sandbox: the same command is run in a new one, unless this is one already."""
    from k8snet import sandbox as _sandbox

    if (_sandbox.GUEST if vm else _sandbox.INSIDE) not in os.environ:
        sys.exit(run_inside([sys.executable, "-m", "k8snet.cli", *sys.argv[1:]], vm=vm))


def tell(verb: str, **arguments: object) -> None:
    """Ask the cluster of this shell, and print what it answers."""
    from k8snet import session

    answer = session.ask(verb, **arguments)
    stop_on_error(answer)
    if answer["out"]:
        typer.echo(answer["out"])
    if answer.get("note"):
        typer.echo(answer["note"], err=True)
    if answer.get("code"):
        sys.exit(int(answer["code"]))


def stop_on_error(answer: dict[str, object]) -> None:
    """End with the error that the cluster of this shell answered, if it is one."""
    if "error" in answer:
        typer.echo(f"k8snet: {answer['error']}", err=True)
        sys.exit(int(str(answer["code"])))
