"""Health checks: kube-proxy tells a load balancer in front of the nodes whether it is worth coming here.

With externalTrafficPolicy Local a Service of type LoadBalancer has a healthCheckNodePort. There every node answers
GET with 200 if it has a ready endpoint of the Service, else with 503, so that clouds send nothing to nodes that
would drop it. (MetalLB does not ask: it announces from such nodes alone.) Source: kubernetes pkg/proxy/healthcheck.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from k8snet.cluster.node import Node
    from k8snet.controllers.kube_proxy.service_ports import ServicePort
    from k8snet.lab import Lab

__all__ = ["HealthChecks"]


@dataclass(kw_only=True)
class _Check:
    """What one node answers for one Service."""

    service: tuple[str, str]  # namespace and name
    endpoints: int  # that are ready, on this node
    server: ThreadingTCPServer = field(init=False)
    stopped: bool = False

    def start(self, node: Node, port: int) -> None:
        self.server = node.netns.inside(_Server, ("0.0.0.0", port), self._handler())  # noqa: S104  # on every address
        threading.Thread(target=self.server.serve_forever, args=(0.1,), daemon=True, name="k8snet-health").start()

    def stop(self) -> None:
        """Close the port; a second call does nothing."""
        if not self.stopped:
            self.stopped = True
            self.server.shutdown()
            self.server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        check = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # http.server's word
                namespace, name = check.service
                text = json.dumps({
                    "service": {"namespace": namespace, "name": name}, "localEndpoints": check.endpoints,
                    "serviceProxyHealthy": True,
                })  # fmt: skip
                self.send_response(200 if check.endpoints else 503)
                self.send_header("Content-Type", "application/json")
                self.send_header("X-Load-Balancing-Endpoint-Weight", str(check.endpoints))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                """Say nothing: the answer does."""

        return Handler


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


class HealthChecks:
    """The health checks of every node."""

    def __init__(self, lab: Lab) -> None:
        """Start with none."""
        self._lab = lab
        self._checks: dict[tuple[Node, int, str, str], _Check] = {}  # by node, port, namespace and name

    def sync(self, nodes: Mapping[Node, Sequence[ServicePort]]) -> None:
        """Answer on nodes for those of their Services that have a port for it, and nowhere else."""
        wanted: dict[tuple[Node, int, str, str], set[str]] = {}
        for node, ports in nodes.items():
            for port in ports:
                if number := port.health_check_node_port:
                    ready = {one.address for one in port.endpoints if one.ready and one.local}
                    wanted.setdefault((node, number, port.namespace, port.name), set()).update(ready)
        for key in self._checks.keys() - wanted.keys():
            self._checks.pop(key).stop()
        for key, ready in wanted.items():
            if key not in self._checks:
                self._checks[key] = check = _Check(service=key[2:], endpoints=len(ready))
                check.start(*key[:2])
                self._lab.keep(check)
            self._checks[key].endpoints = len(ready)

    def stop(self) -> None:
        """Answer no more."""
        while self._checks:
            self._checks.popitem()[1].stop()
