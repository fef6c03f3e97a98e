"""Views: what a Cluster shows, and what runs on it, from the layers above; each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from k8snet.lab import Lab

if TYPE_CHECKING:
    from k8snet.cluster.cluster import Cluster
    from k8snet.controllers.services import Services
    from k8snet.observe.diagram import Diagram
    from k8snet.observe.model import ModelReport
    from k8snet.observe.reach import Reach
    from k8snet.observe.snapshot import Snapshot
    from k8snet.observe.table import Table

__all__ = ["Views"]


class Views:
    """Methods of a Cluster."""

    lab: Lab
    lock: Any  # threading.RLock

    @property
    def _me(self) -> Cluster:
        return cast("Cluster", self)

    def get(self, kind: str = "pods", *, namespace: str | None = None) -> Table:
        """Return a table of objects with their live state. Like: kubectl get KIND -o wide.

        Args:
            kind: "pods", "nodes", "services", ... as kubectl names them.
            namespace: None shows all.

        Raises:
            NotFound: no such kind.
        """
        from k8snet.observe.status import table

        with self.lock:
            self._me.sync()
            return table(self._me, kind, namespace=namespace)

    def reach(self, *, ports: Sequence[str] = (), timeout_s: float = 1.0, family: str = "v4") -> Reach:
        """Probe every pod from every pod, and return the matrix. See k8snet.observe.reach.probe()."""
        from k8snet.observe.reach import probe

        with self.lock:
            self._me.sync()
            return probe(self._me, ports=ports, timeout_s=timeout_s, family=family)

    def check_model(self, *, timeout_s: float = 1.0) -> ModelReport:
        """Probe the rules of the Kubernetes network model, and return what holds. See k8snet.observe.model."""
        from k8snet.observe.model import check

        with self.lock:
            self._me.sync()
            return check(self._me, timeout_s=timeout_s)

    def snapshot(self) -> Snapshot:
        """Return what the kernel holds. See Lab.snapshot()."""
        return self.lab.snapshot()

    def diagram(self, **options: Any) -> Diagram:
        """Return a drawing of nodes, pods and what joins them. See k8snet.observe.cluster_diagram.draw()."""
        from k8snet.observe.cluster_diagram import draw

        self.lab.worker  # noqa: B018  # raises LabClosed
        return draw(self._me, **options)

    def start_proxy(self, mode: str = "iptables") -> Services:
        """Make Services work: EndpointSlices, and kube-proxy on every node, in step with the pods from now on.

        Args:
            mode: "iptables" or "nftables".

        Raises:
            InvalidInput: no such mode, or kube-proxy runs already.
        """
        from k8snet.controllers.services import Services

        with self.lock:
            return Services(self._me, mode=mode)
