"""What no two Services of one cluster can have: one cluster IP, or one port of every node.

The API server hands both out and never twice, so a manifest in which it happens was not taken from one cluster.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from lightkube.resources.core_v1 import Service
from lightkube.resources.discovery_v1 import EndpointSlice

from k8snet.cluster.objects import KubeObject, kind_of, labels_of, name_of, namespace_of
from k8snet.controllers.kube_proxy.service_ports import SLICE_OF
from k8snet.errors import InvalidManifest
from k8snet.linux.address import host_address

__all__ = ["check", "check_slices"]


def check(objects: Iterable[KubeObject]) -> None:
    """Refuse Services that share a cluster IP, or a node port of one protocol.

    Raises:
        InvalidManifest: two do; it names both.
    """
    owners: dict[tuple[Any, ...], KubeObject] = {}
    for one in objects:
        if not isinstance(one, Service) or one.spec is None or one.spec.type == "ExternalName":
            continue
        spec = one.spec
        for text in dict.fromkeys([spec.clusterIP, *(spec.clusterIPs or ())]):
            if text and text != "None":
                first = owners.setdefault((str(host_address(text)),), one)
                if first is not one:
                    _refuse(one, "spec.clusterIP", f"{text} is the cluster IP of {_title(first)} already")
        for index, port in enumerate(spec.ports or ()):
            key = port.protocol or "TCP", port.nodePort
            first = owners.setdefault(key, one) if port.nodePort else one
            if first is not one:
                path = f"spec.ports[{index}].nodePort"
                _refuse(one, path, f"{key[0]} {port.nodePort} is a node port of {_title(first)} already")


def check_slices(objects: Iterable[KubeObject]) -> None:
    """Refuse EndpointSlices that do not tell which Service they are of: no proxy would use them.

    Raises:
        InvalidManifest: one has no label kubernetes.io/service-name.
    """
    for one in objects:
        if isinstance(one, EndpointSlice) and not labels_of(one).get(SLICE_OF):
            _refuse(one, "metadata.labels", f"there is no {SLICE_OF}; without it the slice is of no Service")


def _title(one: KubeObject) -> str:
    return f"{kind_of(one)} {namespace_of(one)}/{name_of(one)}"


def _refuse(one: KubeObject, path: str, text: str) -> NoReturn:
    raise InvalidManifest(f"{_title(one)}: {path}: {text}")
