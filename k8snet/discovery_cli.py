"""The commands `k8snet env` and `k8snet dns`: how pods find Services, without a kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from k8snet.errors import InvalidInput, NotFound, PortTaken

if TYPE_CHECKING:
    from collections.abc import Iterable

    from k8snet.cluster.manifests import Manifest
    from k8snet.cluster.workloads import PodPlan

# What a command needs is imported in it, so that `k8snet --help` starts at once.

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)
dns = typer.Typer(no_args_is_help=True, help="The names of a cluster.")
app.add_typer(dns, name="dns")

Files = Annotated[
    list[str], typer.Option("-f", "--filename", help="Manifests: YAML or JSON, a folder, or - for stdin.")
]
Listen = Annotated[str, typer.Option(help="ADDRESS:PORT for UDP and TCP; port 0 takes a free one.")]
Zones = Annotated[
    list[str] | None,
    typer.Option(
        help="The domain of the cluster; further ones are zones of reverse names, as in 96.10.in-addr.arpa.",
        show_default="cluster.local",
    ),
]
Upstream = Annotated[str, typer.Option(help="ADDRESS:PORT of a server that is asked for all other names.")]
Pods = Annotated[
    str, typer.Option(help="Names of pods: insecure (of every address), verified (of those there are) or disabled.")
]


@app.command()
def env(files: Files, pod: Annotated[str, typer.Argument(help="NAMESPACE/NAME, or NAME in default.")]) -> None:
    """Print the environment variables that tell a pod of Services, as NAME=value, in the kubelet's order.

    Those of Services that are older than the pod: by creationTimestamp, else by their order in the manifests.
    """
    from k8snet.cluster.layout import check_families
    from k8snet.cluster.manifests import load
    from k8snet.cluster.objects import key_of
    from k8snet.cluster.specs import complete
    from k8snet.cluster.workloads import node_specs, plan
    from k8snet.controllers.service_env import environment, older

    manifest = load(*files, lenient=True)
    _warn(manifest)
    nodes = complete(node_specs(manifest.objects) or 2, check_families(("v4",)))
    found = _pod(pod, plan(manifest.objects, nodes=nodes))
    objects = _with_addresses(manifest.objects)
    for name, value in environment(older({key_of(one): one for one in objects}, found), found.pod).items():
        typer.echo(f"{name}={value}")


def _pod(word: str, plans: Iterable[PodPlan]) -> PodPlan:
    space, _, name = word.rpartition("/")
    known = {one.key: one for one in plans}
    if (space or "default", name) not in known:
        have = ", ".join("/".join(key) for key in known) or "none"
        raise NotFound(f"no pod {space or 'default'}/{name} comes of these manifests; these do: {have}")
    return known[space or "default", name]


@dns.callback()
def main() -> None:
    """Keep `serve` a command of its own."""


@dns.command()
def serve(
    files: Files, *, listen: Listen = "127.0.0.1:5353", zone: Zones = None, pods: Pods = "insecure",
    upstream: Upstream = "",
) -> None:  # fmt: skip
    """Answer DNS questions for what manifests describe, until interrupted: `dig -p PORT @ADDRESS NAME`.

    Services without a cluster IP get one, and those with a selector the endpoints of Pods whose status has an address.
    """
    import asyncio
    import errno

    from k8snet.cluster.manifests import load
    from k8snet.controllers.dns_records import build
    from k8snet.controllers.dns_server import Server, bind

    host, port = _endpoint("--listen", listen)
    if upstream:
        _endpoint("--upstream", upstream)
    manifest = load(*files, lenient=True)
    _warn(manifest)
    first, *rest = zone or ["cluster.local"]
    objects = _with_slices(_with_addresses(manifest.objects))
    table = build(objects, zone=first, pods=pods, reverse_zones=rest, upstream=upstream)
    try:
        udp, tcp = bind(host, port)
    except OSError as error:
        kind = PortTaken if error.errno == errno.EADDRINUSE else InvalidInput
        raise kind(f"--listen {listen}: {error.strerror}; `ss -lntu` shows what is taken") from None
    where = f"[{host}]" if ":" in host else host
    typer.echo(f"answering on {where}:{udp.getsockname()[1]}, UDP and TCP; Ctrl-C ends it", err=True)
    asyncio.run(Server(table).run(udp, tcp))


def _endpoint(option: str, text: str) -> tuple[str, int]:
    from k8snet.controllers.dns_server import endpoint
    from k8snet.linux.address import host_address

    try:
        host, port = endpoint(text)
    except ValueError:
        host, port = "", -1
    if not host or not 0 <= port <= 65_535:
        raise InvalidInput(f"{option} {text!r}: write it as in 127.0.0.1:5353 or [::1]:5353")
    return str(host_address("127.0.0.1" if host == "localhost" else host)), port


def _warn(manifest: Manifest) -> None:
    for line in manifest.warnings:
        typer.echo(f"warning: {line}", err=True)


def _with_addresses(objects: Iterable[Any]) -> list[Any]:
    """Return *objects*, each Service with a cluster IP, as a cluster would give one to those that have none."""
    from lightkube.resources.core_v1 import Service

    from k8snet.cluster.objects import key_of
    from k8snet.controllers.addresses import assign

    found = list(objects)
    given = {key_of(one): one for one in assign([one for one in found if isinstance(one, Service)], ("v4", "v6"))}
    fixed = {key_of(one) for one in found if isinstance(one, Service) and one.spec and one.spec.clusterIP}
    return [one if key_of(one) in fixed else given.get(key_of(one), one) for one in found]


def _with_slices(objects: list[Any]) -> list[Any]:
    """Return *objects*, and EndpointSlices of the Services whose selector has none among them."""
    from lightkube.resources.core_v1 import Pod, Service
    from lightkube.resources.discovery_v1 import EndpointSlice

    from k8snet.cluster.objects import addresses_of, finished, labels_of, name_of, namespace_of
    from k8snet.controllers.endpoint_slice import SLICE_OF, Backend, render

    slices = [one for one in objects if isinstance(one, EndpointSlice)]
    have = {(namespace_of(one), labels_of(one).get(SLICE_OF)) for one in slices}
    lacking = [one for one in objects if isinstance(one, Service) and (namespace_of(one), name_of(one)) not in have]
    backends = []
    for pod in (one for one in objects if isinstance(one, Pod) and addresses_of(one) and not finished(one)):
        spec = pod.spec
        ports = [port for each in (spec.containers if spec else ()) for port in each.ports or ()]
        backends.append(Backend(
            namespace=namespace_of(pod), name=name_of(pod), labels=labels_of(pod), node="",
            addresses=addresses_of(pod), ready=_ready(pod), hostname=spec.hostname if spec else None,
            subdomain=spec.subdomain if spec else None,
            ports={(port.name, port.protocol or "TCP"): port.containerPort for port in ports if port.name},
        ))  # fmt: skip
    return [*objects, *render(lacking, backends)]


def _ready(pod: Any) -> bool:
    """Return whether the status of a pod says that it is ready; one that says nothing is."""
    found = (pod.status.conditions if pod.status else None) or ()
    return all(one.status == "True" for one in found if one.type == "Ready")
