"""One `ip` process a command, as a shell script does it. Runs inside the node's netns."""
from __future__ import annotations

import subprocess

from benchmarks import plan
from benchmarks.contenders.common import ipv6_off
from benchmarks.play import play


def ip(*words: str) -> None:
    """Run one command, and insist that it succeeds."""
    subprocess.run(["/sbin/ip", *words], check=True)  # this is what is measured


class IpCommands:
    """Six processes a pod."""

    def build(self, pods: int) -> None:
        """Make the bridge, then pod by pod."""
        ip("link", "add", "name", plan.BRIDGE, "type", "bridge")
        ip("address", "add", f"{plan.GATEWAY}/{plan.PREFIX}", "brd", "+", "dev", plan.BRIDGE)
        ip("link", "set", plan.BRIDGE, "up")
        self.pods = pods
        for number in range(pods):
            self._add(plan.pod(number), plan.port(number), plan.address(number))

    def _add(self, pod: str, port: str, address: str) -> None:
        ip("netns", "add", pod)
        ipv6_off(pod)
        peer = ("type", "veth", "peer", "name", "eth0", "netns", pod)
        ip("link", "add", "name", port, "master", plan.BRIDGE, "up", *peer)
        ip("-n", pod, "link", "set", "lo", "up")
        ip("-n", pod, "link", "set", "eth0", "up")
        ip("-n", pod, "address", "add", f"{address}/{plan.PREFIX}", "brd", "+", "dev", "eth0")
        ip("-n", pod, "route", "add", "default", "via", plan.GATEWAY)

    def teardown(self) -> None:
        """Delete pod by pod, then the bridge."""
        for number in range(self.pods):
            ip("netns", "delete", plan.pod(number))
        ip("link", "delete", plan.BRIDGE)


if __name__ == "__main__":
    play(IpCommands())
