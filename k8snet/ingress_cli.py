"""The command `k8snet ingress`: what nginx would serve, without a kernel."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from k8snet.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable

# What the command needs is imported in it, so that `k8snet --help` starts at once.

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="What an nginx at the edge would serve.")


@app.callback()
def main() -> None:
    """Keep `render` a command of its own."""


@app.command()
def render(
    files: Annotated[
        list[str], typer.Option("-f", "--filename", help="Manifests: YAML or JSON, a folder, or - for stdin.")
    ],
    *,
    class_name: Annotated[
        str | None,
        typer.Option("--class", help="Take the objects of this IngressClass or GatewayClass.", show_default="all"),
    ] = None,
    upstreams: Annotated[
        str, typer.Option(help="endpoints: the pods of EndpointSlices. service: cluster IPs.")
    ] = "endpoints",
    output: Annotated[
        Path | None,
        typer.Option(help="Write nginx.conf and certificates into this folder.", show_default="standard output"),
    ] = None,
) -> None:
    """Print the nginx configuration for Ingresses, Gateways and HTTPRoutes.

    Test it: k8snet ingress render -f FILE --output DIR && nginx -t -p DIR -c DIR/nginx.conf (both absolute).
    A Service without EndpointSlices is called by its cluster IP. What is ignored or refused is said on standard error.
    """
    from k8snet.cluster.manifests import load
    from k8snet.controllers.ingress.edge import MODES, build
    from k8snet.controllers.ingress.nginx import render as text_of

    if upstreams not in MODES:
        raise InvalidInput(f"--upstreams {upstreams!r}: one of {', '.join(MODES)}")
    manifest = load(*files, lenient=True)
    edge = build(_with_addresses(manifest.objects), name=class_name, upstreams=upstreams, guess=True)
    for line in (*(f"warning: {one}" for one in manifest.warnings), *(f"note: {one}" for one in edge.notes)):
        typer.echo(line, err=True)
    text = text_of(edge, live=False)
    if output is None:
        typer.echo(text, nl=False)
        return
    (output / "tls").mkdir(parents=True, exist_ok=True)
    (output / "nginx.conf").write_text(text)
    for one in edge.certificates:
        for ending, data in (("crt", one.chain), ("key", one.key)):
            file = output / "tls" / f"{one.name}.{ending}"
            file.touch(mode=0o600)
            file.write_text(data)


def _with_addresses(objects: Iterable[Any]) -> list[Any]:
    """Return *objects*, each Service with the cluster IP that a cluster of ours would give it, if it has none."""
    from lightkube.resources.core_v1 import Service

    from k8snet.cluster.objects import key_of
    from k8snet.controllers.addresses import assign

    found = list(objects)
    given = {key_of(one): one for one in assign([one for one in found if isinstance(one, Service)], ("v4",))}
    return [given.get(key_of(one), one) for one in found]
