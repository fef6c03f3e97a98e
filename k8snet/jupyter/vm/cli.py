"""The commands `k8snet vm`."""
from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

# What a command needs is imported in it, so that `k8snet --help` starts at once.

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The virtual machine for what this Linux lacks (kernelspec k8snet-vm).")


@app.command()
def prepare(
    *, again: Annotated[bool, typer.Option("--again", help="Make it anew, as after an upgrade.")] = False
) -> None:
    """Fetch a kernel, once, and boot it to see that it works; nothing is installed, and no root is needed."""
    from k8snet.jupyter.vm import image, launch, machine

    def say(line: str) -> None:
        said.append(line)
        typer.echo(line, err=True)

    said: list[str] = []
    begun = time.monotonic()
    machine.qemu()
    made = image.prepare(say, launch.check) if again else launch.prepared(say)
    when = f"in {time.monotonic() - begun:.0f} s" if said else "already"
    how = "with KVM" if made.accelerator == "kvm" else "by emulation"
    typer.echo(f"prepared {when}: Linux {made.release}, {how}")


@app.command()
def status() -> None:
    """Say what is prepared; exit with 1 if the virtual machine cannot be used yet."""
    from k8snet.errors import K8snetError
    from k8snet.jupyter.vm import image, machine

    try:
        program, found = machine.qemu(), image.find()
    except K8snetError as error:
        typer.echo(str(error))
        sys.exit(1)
    size = sum(path.stat().st_size for path in found.folder.rglob("*") if path.is_file())
    typer.echo(f"Linux {found.release} in {found.folder}, {size / 1e6:.0f} MB")
    typer.echo(f"{program}, accelerator {found.accelerator}, {machine.memory_mb()} MB a guest")


@app.command()
def clean() -> None:
    """Remove what was prepared."""
    from k8snet.jupyter.vm import image

    typer.echo(f"removed: {image.clean()}")
