"""The commands `k8snet rules` and `k8snet why`, in the shell of a cluster: its Services' rules, in words."""
from __future__ import annotations

from typing import Annotated

import typer

from k8snet.command_line import AsJson, tell
from k8snet.errors import InvalidInput

# What a command needs is imported in it, so that `k8snet --help` starts at once.

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The rules of a Service, read back from a node's kernel.")
Family = Annotated[str, typer.Option("--family", help="v4 or v6.")]
ServiceName = Annotated[str, typer.Argument(help="A Service: NAME, or NAMESPACE/NAME.")]


@app.command()
def rules(
    service: ServiceName,
    *,
    node: Annotated[str | None, typer.Option("--node", help="On which node.", show_default="the first")] = None,
    port: Annotated[str | None, typer.Option("--port", help="One port, by name or number.", show_default="all")] = None,
    family: Family = "v4",
    as_json: AsJson = False,
) -> None:
    """Print the chains of SERVICE in this shell's cluster as a tree, from the hooks of the kernel to the endpoints."""
    tell("rules", service=service, node=node, port=port, family=family, as_json=as_json)


@app.command()
def why(
    source: Annotated[str, typer.Argument(metavar="FROM", help="A pod, a node or an address.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="A Service, or an address and port: 10.96.0.20:80.")],
    *,
    udp: Annotated[bool, typer.Option("--udp", help="UDP instead of TCP.")] = False,
    icmp: Annotated[bool, typer.Option("--icmp", help="A ping; TO has no port.")] = False,
    node: Annotated[str | None, typer.Option("--node", help="On which node.", show_default="that of FROM")] = None,
    every: Annotated[bool, typer.Option("--all", help="With the rules that do not match.")] = False,
    family: Family = "v4",
    as_json: AsJson = False,
) -> None:
    """Print the rules that a packet FROM somewhere TO a Service passes, why, and what becomes of it."""
    if udp and icmp:
        raise InvalidInput("--udp and --icmp: one of them")
    protocol = "udp" if udp else "icmp" if icmp else "tcp"
    asked = {"node": node, "protocol": protocol, "all": every, "family": family}
    tell("why", source=source, target=target, **asked, as_json=as_json)
