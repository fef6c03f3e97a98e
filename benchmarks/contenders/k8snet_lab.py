"""k8snet: a Lab, opened and closed, with its transcript, as a chapter uses it."""
from __future__ import annotations

import pyroute2  # noqa: F401  # loaded when a lab first needs it; a reader's kernel has it

from benchmarks import plan
from benchmarks.play import play
from k8snet.lab import Attachment, Lab


class K8snet:
    """The library, from an empty lab to a closed one."""

    def build(self, pods: int) -> None:
        """Open a lab with a node, its bridge and the pods."""
        self.lab = Lab("bench")
        node = self.lab.netns(plan.NODE)
        node.add_bridge(plan.BRIDGE, address=f"{plan.GATEWAY}/{plan.PREFIX}")
        wanted = [
            Attachment(
                netns=plan.pod(n), port=plan.port(n), gateway=plan.GATEWAY,
                address=f"{plan.address(n)}/{plan.PREFIX}",
            )
            for n in range(pods)
        ]  # fmt: skip
        self.lab.attach_all(node, plan.BRIDGE, wanted)

    def teardown(self) -> None:
        """Close the lab."""
        self.lab.close()


if __name__ == "__main__":
    play(K8snet())
