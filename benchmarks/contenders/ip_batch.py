"""`ip -batch`: one for all that is done on the node, and one inside each pod.

A batch cannot change its netns midway, so a pod costs one process instead of six.
"""
from __future__ import annotations

import subprocess

from benchmarks import plan
from benchmarks.contenders.common import ipv6_off
from benchmarks.play import play


def batch(lines: list[str], *options: str) -> None:
    """Run one batch, and insist that it succeeds."""
    argv = ["/sbin/ip", *options, "-batch", "-"]
    subprocess.run(argv, input="\n".join(lines), text=True, check=True)  # measured


class IpBatch:
    """One process a pod, and a few more."""

    def build(self, pods: int) -> None:
        """Make all netns, all pairs, then configure pod by pod."""
        self.pods = pods
        batch([f"netns add {plan.pod(n)}" for n in range(pods)])
        for number in range(pods):
            ipv6_off(plan.pod(number))
        batch([
            f"link add name {plan.BRIDGE} type bridge",
            f"address add {plan.GATEWAY}/{plan.PREFIX} brd + dev {plan.BRIDGE}",
            f"link set {plan.BRIDGE} up",
            *(
                f"link add name {plan.port(n)} master {plan.BRIDGE} up "
                f"type veth peer name eth0 netns {plan.pod(n)}"
                for n in range(pods)
            ),
        ])  # fmt: skip
        for number in range(pods):
            inside = [
                "link set lo up",
                "link set eth0 up",
                f"address add {plan.address(number)}/{plan.PREFIX} brd + dev eth0",
                f"route add default via {plan.GATEWAY}",
            ]
            batch(inside, "-n", plan.pod(number))

    def teardown(self) -> None:
        """Delete everything in one batch."""
        deletions = [f"netns delete {plan.pod(n)}" for n in range(self.pods)]
        batch([*deletions, f"link delete {plan.BRIDGE}"])


if __name__ == "__main__":
    play(IpBatch())
