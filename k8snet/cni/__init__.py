"""CNI: how a container runtime has plugins attach containers to networks (CNI spec 1.1.0)."""

from __future__ import annotations

from k8snet.cni.cache import CachedAttachment
from k8snet.cni.config import VERSIONS, NetworkConfig, NetworkList, load
from k8snet.cni.recorder import Call, Recorder
from k8snet.cni.result import Result, parse, side_by_side
from k8snet.cni.runtime import DEBIAN, OWN_PLUGINS, Runtime

__all__ = [
    "DEBIAN",
    "OWN_PLUGINS",
    "VERSIONS",
    "CachedAttachment",
    "Call",
    "NetworkConfig",
    "NetworkList",
    "Recorder",
    "Result",
    "Runtime",
    "load",
    "parse",
    "side_by_side",
]
