"""How a controller begins its work in a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from k8snet.cluster.cluster import Cluster, Controller

__all__ = ["join"]


def join(cluster: Cluster, one: Controller) -> None:
    """Have *one* told of each change from now on, and sync it; if that fails, it does not run."""
    cluster.controllers.append(one)
    try:
        one.sync()
    except BaseException:
        cluster.controllers.remove(one)
        raise
