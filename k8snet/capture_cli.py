"""The command `k8snet capture`, in the shell of a cluster: what passes every interface of every netns."""
from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from k8snet.command_line import COMMAND_LAST
from k8snet.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from k8snet.observe.capture import Capture

# What the command needs is imported in it, so that `k8snet --help` starts at once.

__all__ = ["app"]

T = TypeVar("T")
EVERY_S = 0.1  # how often new packets are printed

app = typer.Typer(no_args_is_help=True, help="What passes the interfaces of a cluster.")


@app.command(context_settings=COMMAND_LAST)
def capture(
    command: Annotated[list[str] | None, typer.Argument(metavar="[-- COMMAND...]", help="Watch until it ends.")] = None,
    *,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write FILE.pcapng, for Wireshark; other names give a pcap file."),
    ] = None,
    netns: Annotated[
        list[str] | None, typer.Option("--netns", help="A node, a pod, or another netns; can be given again.",
                                       show_default="all")
    ] = None,
    filter_: Annotated[
        str, typer.Option("--filter", help="What to keep, as tcpdump says it: 'tcp port 80'.", show_default="all")
    ] = "",
    seconds: Annotated[
        float | None, typer.Option(min=0, help="Watch that long.", show_default="until Ctrl-C")
    ] = None,
) -> None:  # fmt: skip
    """Print the packets that pass the interfaces of this shell's cluster, or write them to a file."""
    from k8snet import sandbox
    from k8snet.linux import nsfs
    from k8snet.observe.capture import capture_all

    if sandbox.INSIDE not in os.environ:
        raise InvalidInput("`k8snet capture` works in the shell of a cluster: k8snet up -f FILE, or k8snet sandbox")
    if output and not output.absolute().parent.is_dir():
        raise NotFound(f"--output {output}: there is no folder {output.absolute().parent}")
    screen = None if output else _Screen()
    with capture_all(map(_Place, netns or nsfs.names()), filter_) as wire:
        code = _while_it_lasts(wire, command or [], seconds, screen)
    if screen:
        screen.show(wire)
    elif output:
        wire.save(output)
        typer.echo(f"{len(wire)} packets in {output}", err=True)
    if wire.lost:
        typer.echo(f"{wire.lost} packets were lost: give --filter or --netns, and fewer have to be kept", err=True)
    sys.exit(code)


class _Place:
    """A netns of this sandbox, which another process has made."""

    def __init__(self, name: str) -> None:
        from k8snet.linux import nsfs

        self.name, self.fd = name, os.open(nsfs.path_of(name), os.O_RDONLY | os.O_CLOEXEC)

    def inside(self, function: Callable[..., T], *arguments: object) -> T:
        from k8snet.linux import nsfs

        return nsfs.inside(self.fd, function, *arguments)


class _Screen:
    """The packets printed so far."""

    def __init__(self) -> None:
        self.printed = 0

    def show(self, wire: Capture, *, until_ns: float = float("inf")) -> None:
        """Print what has come, in the order of time; what is later than *until_ns* waits for other netns."""
        packets = sorted(wire, key=lambda one: one.time_ns)
        for one in packets[self.printed :]:
            if one.time_ns > until_ns:
                break
            ms, way = (one.time_ns - packets[0].time_ns) / 1e6, "out" if one.outgoing else "in"
            typer.echo(f"{ms:>10.3f} ms  {f'{one.netns}/{one.interface}':<24} {way:<3}  {one.decoded.summary}")
            self.printed += 1


def _while_it_lasts(wire: Capture, command: list[str], seconds: float | None, screen: _Screen | None) -> int:
    """Show what comes until the command ends, the time is over or somebody interrupts; return an exit code."""
    running = subprocess.Popen(command) if command else None  # the user's own
    deadline = time.monotonic() + seconds if seconds is not None else float("inf")
    with contextlib.suppress(KeyboardInterrupt):
        while time.monotonic() < deadline and (running is None or running.poll() is None):
            time.sleep(EVERY_S)
            if screen:
                screen.show(wire, until_ns=time.time_ns() - EVERY_S * 1e9)
    if running and running.poll() is None:  # the time is over, or an interrupt, which may not have reached it
        running.send_signal(signal.SIGINT)
    return running.wait() if running else 0
