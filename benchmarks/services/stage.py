"""A node between a client and its pods, and how long the client's connections take to stand."""
from __future__ import annotations

import socket
import time
from statistics import median, quantiles
from typing import TYPE_CHECKING

from benchmarks.services.objects import PORT
from k8snet.lab import End

if TYPE_CHECKING:
    from k8snet.lab import Lab

__all__ = ["Stage"]

WARM_UP = 20  # connections that do not count
PODS = "10.244.0.0/16"


class Stage:
    """Three netns in a row: client, node, and one that answers for every pod there could be."""

    def __init__(self, lab: Lab) -> None:
        """Build it in *lab*; the node has no rules yet."""
        self.node, self.client, self.pods = (lab.netns(name) for name in ("node", "client", "pods"))
        for other, network in ((self.client, "198.18.0"), (self.pods, "198.18.1")):
            lab.veth(
                End(netns=self.node, name=f"to-{other.name}", address=f"{network}.1/24"),
                End(netns=other, name="eth0", address=f"{network}.2/24"),
            )
            other.add_route("default", via=f"{network}.1")
        self.node.set_sysctls({"net.ipv4.ip_forward": 1})
        self.node.add_route(PODS, via="198.18.1.2")
        self.pods.run("ip", "route", "add", "local", PODS, "dev", "lo")

    def first_packet_ms(self, address: str, count: int) -> tuple[float, float]:
        """Return the median and the 95th percentile of how long *count* new connections take, in milliseconds.

        The server's end is taken and closed between two connections, outside the measured time.
        """

        def listener() -> socket.socket:
            sock = socket.socket()
            sock.bind(("", 8080))
            sock.listen(16)
            return sock

        with self.pods.inside(listener) as listening:
            took: list[float] = self.client.inside(_connect, listening, address, WARM_UP + count)
        return median(took[WARM_UP:]), quantiles(took[WARM_UP:], n=20)[-1]


def _connect(listening: socket.socket, address: str, count: int) -> list[float]:
    took = []
    for _ in range(count):
        with socket.socket() as sock:
            sock.settimeout(10)
            begun = time.perf_counter()
            sock.connect((address, PORT))
            took.append((time.perf_counter() - begun) * 1e3)
            listening.accept()[0].close()
    return took
