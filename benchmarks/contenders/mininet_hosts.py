"""Mininet: a LinuxBridge switch and its hosts. Runs with the system's Python.

Inside the node's netns and the sandbox's pid namespace: Mininet's switches live in the
netns that it is started in, and its own cleanup ends processes by name.
"""
from __future__ import annotations

import subprocess
from typing import Any

from mininet.log import setLogLevel  # type: ignore[import-not-found]  # of the system's Python
from mininet.net import Mininet  # type: ignore[import-not-found]
from mininet.node import Host  # type: ignore[import-not-found]
from mininet.nodelib import LinuxBridge  # type: ignore[import-not-found]

from benchmarks import plan
from benchmarks.play import play


class PodHost(Host):  # type: ignore[misc]  # Mininet has no types
    """A host with IPv6 off, by its own shell."""

    def __init__(self, name: str, **parameters: Any) -> None:
        """Start the host's shell, and switch IPv6 off before it gets an interface."""
        super().__init__(name, **parameters)
        self.cmd("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")


class MininetHosts:
    """A switch and its hosts, by Mininet's own calls."""

    def build(self, pods: int) -> None:
        """Make the switch, then the hosts, then start."""
        Mininet.inited = True  # init() insists on uid 0, and wants to set limits of the machine
        self.net = Mininet(switch=LinuxBridge, host=PodHost, controller=None, build=False)
        switch = self.net.addSwitch(plan.BRIDGE)
        for number in range(pods):
            host = self.net.addHost(
                plan.pod(number), ip=f"{plan.address(number)}/{plan.PREFIX}",
                defaultRoute=f"via {plan.GATEWAY}",
            )  # fmt: skip
            self.net.addLink(host, switch)
        self.net.start()
        gateway = f"{plan.GATEWAY}/{plan.PREFIX}"
        subprocess.run(["/sbin/ip", "address", "add", gateway, "dev", plan.BRIDGE], check=True)

    def teardown(self) -> None:
        """Let Mininet stop what it started."""
        self.net.stop()


if __name__ == "__main__":
    setLogLevel("error")  # not that bridges call iptables here: there are no rules
    play(MininetHosts())
