"""The command `k8snet proxy`: what kube-proxy would program, without a kernel."""
from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from k8snet.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable

    from k8snet.cluster.manifests import Manifest
    from k8snet.cluster.objects import KubeObject
    from k8snet.controllers.kube_proxy.service_ports import ProxyConfig, ServicePort

# What the command needs is imported in it, so that `k8snet --help` starts at once.

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="What kube-proxy would program.")
FAMILIES = {"v4": "v4", "v6": "v6", "4": "v4", "6": "v6", "ipv4": "v4", "ipv6": "v6"}


@app.callback()
def main() -> None:
    """Keep `render` a command of its own."""


Files = Annotated[
    list[str],
    typer.Option("-f", "--filename", help="Services and EndpointSlices: YAML or JSON, a folder, or - for stdin."),
]
NodeName = Annotated[str, typer.Option(help="The node whose rules are wanted, as in nodeName of endpoints.")]
Mode = Annotated[str, typer.Option(help="iptables, nftables or ipvs.")]
NodeIps = Annotated[
    list[str] | None, typer.Option(help="An address of the node; give it for each. The first is the main one.")
]
ClusterCidr = Annotated[str | None, typer.Option(help="The network of all pods.")]
Detector = Annotated[
    str | None,
    typer.Option(
        help="How a pod of the cluster is known: cluster-cidr or none.",
        show_default="cluster-cidr where --cluster-cidr is given",
    ),
]
Addresses = Annotated[
    list[str] | None, typer.Option(help="A network whose addresses serve node ports.", show_default="all addresses")
]


@app.command()
def render(
    files: Files,
    *,
    node_name: NodeName,
    mode: Mode = "iptables",
    node_ip: NodeIps = None,
    cluster_cidr: ClusterCidr = None,
    local_detector: Detector = None,
    masquerade_all: Annotated[bool, typer.Option(help="Masquerade everything that goes to a cluster IP.")] = False,
    masquerade_bit: Annotated[int, typer.Option(min=0, max=31, help="The bit of the mark for masquerade.")] = 14,
    localhost_nodeports: Annotated[bool, typer.Option(help="Serve node ports on 127.0.0.1, too.")] = True,
    nodeport_addresses: Addresses = None,
    ip_family: Annotated[str, typer.Option(help="v4 or v6.")] = "v4",
    external_chains_only: Annotated[
        bool, typer.Option("--external-chains-only", help="Without the jumps from the kernel's own chains.")
    ] = False,
    random_fully: Annotated[bool, typer.Option("--random-fully", help="Masquerade to random ports.")] = False,
    conntrack_tcp_be_liberal: Annotated[
        bool, typer.Option("--conntrack-tcp-be-liberal", help="Let pass what conntrack calls invalid.")
    ] = False,
    nfacct: Annotated[bool, typer.Option("--nfacct", help="With the counters of kernels that have nfacct.")] = False,
    ipvs_scheduler: Annotated[str, typer.Option(help="rr, wrr, lc or sh.")] = "rr",
) -> None:
    """Print the complete ruleset of one node's kube-proxy, and nothing else.

    iptables: for `iptables-restore --noflush`. nftables: for `nft -f -`. ipvs: JSON, {"family", "dummyInterface",
    "addresses", "virtualServers": [{"address", "port", "protocol", "scheduler", "persistence_s" where there is any,
    "realServers": [{"address", "port", "weight"}]}], "ipsets": {NAME: {"type", "comment", "members"}}, "iptables": for
    `iptables-restore --noflush`, "sysctls": {KEY: VALUE}}. Warnings go to standard error.
    """
    from k8snet.cluster.manifests import load
    from k8snet.controllers.kube_proxy.proxier import MODES
    from k8snet.controllers.kube_proxy.service_ports import ProxyConfig, service_ports

    family = _one_of("--ip-family", ip_family, FAMILIES)
    config = ProxyConfig(
        node_name=node_name, node_ips=_addresses(node_ip or []), family=family,
        cluster_cidr=_detector(local_detector, cluster_cidr, family), masquerade_all=masquerade_all,
        masquerade_bit=masquerade_bit, localhost_nodeports=localhost_nodeports,
        nodeport_addresses=_networks("--nodeport-addresses", nodeport_addresses or []), random_fully=random_fully,
        tcp_liberal=conntrack_tcp_be_liberal, nfacct=nfacct, ipvs_scheduler=ipvs_scheduler,
    )  # fmt: skip
    _one_of("--mode", mode, {one: one for one in MODES})
    gc.disable()  # this process ends soon; with 10,000 Services the collector would take a third of its time
    manifest = load(*files, lenient=True)
    _check(manifest)
    sys.stdout.write(_text(mode, service_ports(manifest.objects, config), config, external_chains_only))


def _text(mode: str, ports: list[ServicePort], config: ProxyConfig, external_chains_only: bool) -> str:
    if mode == "iptables":
        from k8snet.controllers.kube_proxy import iptables

        return str(iptables.render(ports, config, external_chains_only=external_chains_only))
    if mode == "nftables":
        from k8snet.controllers.kube_proxy import nftables

        return nftables.render(ports, config)
    import json

    from k8snet.controllers.kube_proxy import ipvs

    program = ipvs.render(ports, config, external_chains_only=external_chains_only)
    return json.dumps(program.to_dict(), indent=1) + "\n"


def _check(manifest: Manifest) -> None:
    """Refuse what no cluster can have, and warn of what will have no rules."""
    from k8snet.controllers.kube_proxy import conflicts

    conflicts.check(manifest.objects)
    conflicts.check_slices(manifest.objects)
    for line in (*manifest.warnings, *_without_address(manifest.objects)):
        typer.echo(f"warning: {line}", err=True)


def _without_address(objects: Iterable[KubeObject]) -> Iterable[str]:
    from lightkube.resources.core_v1 import Service

    from k8snet.cluster.objects import name_of, namespace_of

    for one in objects:
        spec = one.spec if isinstance(one, Service) else None
        if spec and spec.type != "ExternalName" and not spec.clusterIP and not spec.clusterIPs:
            yield f"Service {namespace_of(one)}/{name_of(one)} has no clusterIP yet, and so no rules"


def _one_of(option: str, word: str, words: dict[str, str]) -> str:
    found = words.get(word.lower())
    if found is None:
        raise InvalidInput(f"{option} {word!r}: one of {', '.join(dict.fromkeys(words.values()))}")
    return found


def _detector(detector: str | None, cidr: str | None, family: str) -> str | None:
    """Return the network that tells pods of the cluster, of several the one of *family*, or None."""
    found = _one_of("--local-detector", detector or ("cluster-cidr" if cidr else "none"), {
        "cluster-cidr": "cluster-cidr", "clustercidr": "cluster-cidr", "none": "none",
    })  # fmt: skip
    if found == "none":
        return None
    if not cidr:
        raise InvalidInput("--local-detector cluster-cidr needs --cluster-cidr, the network of all pods")
    networks = _networks("--cluster-cidr", [cidr])
    return next((one for one in networks if (":" in one) == (family == "v6")), None)


def _addresses(texts: list[str]) -> tuple[str, ...]:
    from k8snet.linux.address import host_address

    return tuple(str(host_address(one)) for text in texts for one in text.split(","))


def _networks(option: str, texts: list[str]) -> tuple[str, ...]:
    import ipaddress

    found = []
    for text in ",".join(texts).split(",") if texts else ():
        try:
            found.append(str(ipaddress.ip_network(text, strict=False)))
        except ValueError as error:
            raise InvalidInput(f"{option} {text!r}: {error}; write it as in 10.244.0.0/16") from None
    return tuple(found)
