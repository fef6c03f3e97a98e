"""Mininet: the same cluster, of its switches and hosts. Runs with the system's Python.

A node is a LinuxBridge switch for its pods and a host that routes between that and the
core switch; a pod is a host with an nginx. Started as mininet_hosts.py is, and why.
"""
from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from mininet.log import setLogLevel  # type: ignore[import-not-found]  # of the system's Python
from mininet.net import Mininet  # type: ignore[import-not-found]
from mininet.nodelib import LinuxBridge  # type: ignore[import-not-found]

from benchmarks import plan
from benchmarks.contenders.mininet_hosts import PodHost
from benchmarks.play import play

TIMEOUT_S = 60.0
EVERY_S = 0.01
NGINX = """\
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 80 default_server;
        location / {{ default_type text/plain; return 200 "{name} says hello\\n"; }}
    }}
}}
"""


class MininetCluster:
    """Switches, routers and hosts, by Mininet's own calls."""

    def build(self, nodes: int, pods: int) -> dict[str, object]:
        """Make all switches and hosts, start, then start nginx in each pod and wait for it."""
        Mininet.inited = True  # init() insists on uid 0, and wants to set limits of the machine
        self.net = Mininet(switch=LinuxBridge, host=PodHost, controller=None, build=False)
        self.folder = tempfile.TemporaryDirectory(prefix="mininet-", dir="/run")
        core = self.net.addSwitch("core0")  # Mininet wants a number in each switch's name
        numbers = range(1, nodes + 1)
        routers = {number: self._node(number, core) for number in numbers}
        hosts = [self._pod(number, nodes) for number in range(pods)]
        self.net.start()
        for number, router in routers.items():
            ways = [f"ip route add {plan.pod_cidr(n)} via {plan.node_address(n)}" for n in numbers if n != number]
            router.cmd("; ".join(["sysctl -qw net.ipv4.ip_forward=1", *ways]))
        self.servers = [self._nginx(host) for host in hosts]
        self._await_servers(hosts)
        return {"addresses": [host.IP() for host in hosts], "vantage": f"/proc/{routers[1].pid}/ns/net"}

    def _node(self, number: int, core: Any) -> Any:
        switch = self.net.addSwitch(f"cni{number}")
        router = self.net.addHost(f"node{number}", ip=f"{plan.pod_gateway(number)}/24")
        self.net.addLink(router, switch)
        self.net.addLink(router, core, params1={"ip": f"{plan.node_address(number)}/16"})
        return router

    def _pod(self, number: int, nodes: int) -> Any:
        node = 1 + number % nodes
        gateway = plan.pod_gateway(node)
        address = f"{gateway.rpartition('.')[0]}.{2 + number // nodes}/24"
        host = self.net.addHost(plan.pod(number), ip=address, defaultRoute=f"via {gateway}")
        self.net.addLink(host, self.net.get(f"cni{node}"))
        return host

    def _nginx(self, host: Any) -> subprocess.Popen[bytes]:
        folder = Path(self.folder.name, host.name)
        folder.mkdir()
        file = folder / "nginx.conf"
        file.write_text(NGINX.format(folder=folder, name=host.name))
        argv = ["nginx", "-p", str(folder), "-c", str(file)]
        server: subprocess.Popen[bytes] = host.popen(argv, stdout=subprocess.DEVNULL, stderr=None)
        return server

    def _await_servers(self, hosts: list[Any]) -> None:
        """Wait for the files that nginx writes once its sockets listen."""
        deadline = time.monotonic() + TIMEOUT_S
        for host, server in zip(hosts, self.servers, strict=True):
            while not Path(self.folder.name, host.name, "nginx.pid").exists():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"nginx in {host.name} does not start")
                time.sleep(EVERY_S)

    def teardown(self) -> None:
        """End the servers, and let Mininet stop what it started."""
        for server in self.servers:
            server.terminate()
        for server in self.servers:
            server.wait()
        self.net.stop()
        self.folder.cleanup()


if __name__ == "__main__":
    setLogLevel("error")
    play(MininetCluster())
