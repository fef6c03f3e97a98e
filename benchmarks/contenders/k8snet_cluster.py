"""k8snet: a Cluster from a manifest, as a chapter uses it. Its wiring is the argument: direct or cni."""
from __future__ import annotations

import sys
from pathlib import Path

import pyroute2  # noqa: F401  # loaded when a lab first needs it; a reader's kernel has it

from benchmarks.play import play
from k8snet import Cluster

MANIFEST = """\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: {pods}
  selector:
    matchLabels: {{app: web}}
  template:
    metadata:
      labels: {{app: web}}
    spec:
      containers:
      - name: nginx
        image: nginx
        ports:
        - containerPort: 80
"""
FILE = Path("/run/bench-cluster.yaml")


class K8snetCluster:
    """The library, from a manifest to a closed cluster."""

    def __init__(self, wiring: str) -> None:
        """Take the wiring: "direct" or "cni"."""
        self.wiring = wiring

    def build(self, nodes: int, pods: int) -> dict[str, object]:
        """Read the manifest and build what it asks for, until nginx listens in each pod."""
        FILE.write_text(MANIFEST.format(pods=pods))
        self.cluster = Cluster.from_manifest(FILE, nodes=nodes, wiring=self.wiring)
        addresses = [pod.address for pod in self.cluster.pods.values() if pod.address]
        return {"addresses": addresses, "vantage": f"/run/netns/{self.cluster.node('node1').netns.name}"}

    def teardown(self) -> None:
        """Close the cluster."""
        self.cluster.close()


if __name__ == "__main__":
    play(K8snetCluster(sys.argv[1]))
