"""Load balancer addresses by ARP and NDP: a speaker on every node, one of which answers for each address."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from k8snet.cluster.node import UPLINK
from k8snet.controllers import load_balancer_speaker
from k8snet.errors import CommandFailed
from k8snet.linux.run import wait_until

if TYPE_CHECKING:
    from k8snet.cluster.node import Node
    from k8snet.controllers.load_balancer import LoadBalancer
    from k8snet.linux.run import Process

__all__ = ["Announcement", "Speakers"]

PROGRAM = load_balancer_speaker.__file__


@dataclass(frozen=True, kw_only=True)
class Announcement:
    """The addresses of one Service, and the nodes that may announce them."""

    addresses: tuple[str, ...]
    nodes: tuple[str, ...]


class Speakers:
    """The speakers of a cluster."""

    def __init__(self, balancer: LoadBalancer) -> None:
        """Prepare; each node gets its speaker with the first sync()."""
        self.balancer, self.cluster = balancer, balancer.cluster
        self.processes: dict[str, Process] = {}  # by node
        self._texts: dict[str, str] = {}  # what each has been told, without the number
        self._generation = 0

    def check(self, wanted: Iterable[Any]) -> None:
        """Refuse nothing: the balancer does."""

    def sync(self) -> list[str]:
        """Tell every speaker what there is to announce, and start those that have ended; return which.

        Raises:
            CommandFailed: a speaker cannot run.
            Timeout: one does not do as it was told.
        """
        wanted = self.balancer.announcements()
        nodes = {node.name: node for node in self.cluster.nodes.values() if node.ready}
        for name in self.processes.keys() - self.cluster.nodes.keys():
            self.processes.pop(name).stop()
        told = [node for node in nodes.values() if self._tell(node, wanted)]
        ended = [name for name, one in self.processes.items() if name in nodes and not one.running]
        for name in [*ended, *(name for name in nodes if name not in self.processes)]:
            node = nodes[name]
            self._file(node, "state").unlink(missing_ok=True)
            self.processes[name] = node.netns.popen(
                sys.executable, "-I", PROGRAM, str(self._file(node, "json")), str(self._file(node, "state")),
                keep_output=True,
            )  # fmt: skip
            told = [*told, node]
        for node in told:
            self._await(node)
        return [f"speaker in netns {nodes[name].netns.name}" for name in ended]

    def who(self, address: str) -> list[str]:
        """Return the nodes whose speakers say that they announce *address* now."""
        running = [name for name in self.cluster.nodes if name in self.processes and self.processes[name].running]
        return [name for name in running if address in self._said(self.cluster.nodes[name]).get("announces", ())]

    def stop(self) -> None:
        """End every speaker."""
        for process in self.processes.values():
            process.stop()
        for name in self.processes.keys() & self.cluster.nodes.keys():
            for kind in ("json", "state"):
                self._file(self.cluster.nodes[name], kind).unlink(missing_ok=True)
        self.processes.clear()

    def _tell(self, node: Node, wanted: Sequence[Announcement]) -> bool:
        """Write a node's configuration, and return whether it is another one."""
        peers = {one.name: one.addresses["v4"] for one in self.cluster.nodes.values() if one is not node}
        config = {
            "node": node.name, "interface": UPLINK, "address": node.addresses["v4"],
            "address6": node.addresses.get("v6"), "peers": peers,
            "services": [{"addresses": one.addresses, "nodes": one.nodes} for one in wanted],
        }  # fmt: skip
        text = json.dumps(config)
        if self._texts.get(node.name) == text and self._file(node, "json").exists():
            return False
        self._texts[node.name], self._generation = text, self._generation + 1
        file, fresh = self._file(node, "json"), self._file(node, "json.new")
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps({**config, "generation": self._generation}))
        fresh.rename(file)  # so that nobody reads half of it
        return True

    def _await(self, node: Node) -> None:
        process = self.processes[node.name]
        generation = json.loads(self._file(node, "json").read_text())["generation"]
        wait_until(
            lambda: self._said(node).get("generation") == generation or not process.running,
            what=f"the speaker in netns {node.netns.name} has read its configuration",
        )
        if not process.running:
            raise CommandFailed(process.argv, process.popen.returncode, process.output(), node.netns.name)

    def _file(self, node: Node, kind: str) -> Path:
        return node.folder / f"speaker.{kind}"

    def _said(self, node: Node) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._file(node, "state").read_text())
        except FileNotFoundError:  # it has only just been started
            return {}
        return found
