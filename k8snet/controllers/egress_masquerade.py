"""Masquerade with exceptions: which packets leave a node as if from the node, by ip-masq-agent's rules.

On every node, in the table nat:

    POSTROUTING    -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT
    IP-MASQ-AGENT  -d 169.254.0.0/16 -j RETURN            link-local, unless it shall be masqueraded
                   -d 10.0.0.0/8 -j RETURN                one for each network that pods reach as themselves
                   -j MASQUERADE --random-fully           the rest; it must be the last

Source: https://github.com/kubernetes-sigs/ip-masq-agent , cmd/ip-masq-agent/ip-masq-agent.go. Its rules know no
source: a node's own packets pass the chain, too, and keep their address, which is the node's already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from k8snet.cluster.layout import family_of
from k8snet.controllers.joining import join
from k8snet.errors import CommandFailed, InvalidInput
from k8snet.linux.address import network

if TYPE_CHECKING:
    from k8snet.cluster.cluster import Cluster
    from k8snet.cluster.node import Node

__all__ = ["CHAIN", "DEFAULT", "Masquerade", "check_cidrs", "render"]

CHAIN = "IP-MASQ-AGENT"
DEFAULT = {"v4": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"), "v6": ("fc00::/7",)}  # upstream has none of IPv6
LINK_LOCAL = {"v4": "169.254.0.0/16", "v6": "fe80::/10"}
MOST = 64  # networks; upstream's cidrLimit, "to protect against really bad mistakes"
JUMP = (
    "POSTROUTING", "-m", "comment", "--comment",
    f"ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom {CHAIN} chain",
    "-m", "addrtype", "!", "--dst-type", "LOCAL", "-j", CHAIN,
)  # fmt: skip
LOCAL = "ip-masq-agent: local traffic is not subject to MASQUERADE"
OUTBOUND = "ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)"


class Masquerade:
    """What keeps the chain on every node of a cluster, in the place of the rule that the cluster came with."""

    def __init__(
        self, cluster: Cluster, *, non_masquerade_cidrs: Sequence[str] | None = None, masq_link_local: bool = False
    ) -> None:
        """Take the masquerade of *cluster* over. See Cluster.start_masquerade()."""
        if any(isinstance(one, Masquerade) for one in cluster.controllers):
            raise InvalidInput("masquerade with exceptions runs in this cluster already; stop() it first")
        self.cluster, self.masq_link_local = cluster, masq_link_local
        self.cidrs = check_cidrs(non_masquerade_cidrs, cluster.ip_families)
        self._done: set[tuple[Node, str]] = set()  # nodes, and a family, that have the chain
        self._was_on = cluster.masquerade
        cluster.masquerade = False  # nodes to come get our chain alone
        try:
            join(cluster, self)
        except BaseException:
            cluster.masquerade = self._was_on
            raise

    def check(self, wanted: Iterable[Any]) -> None:
        """Refuse nothing: it does not depend on objects."""

    def sync(self) -> None:
        """Give each node that has none yet the chain; then, so that nothing slips by, take its old rule away."""
        present = set(self.cluster.nodes.values())
        self._done = {key for key in self._done if key[0] in present}
        for node in self.cluster.nodes.values():
            for family in self.cluster.ip_families:
                if node.ready and (node, family) not in self._done:
                    self._apply(node, family)

    def stop(self) -> None:
        """Take the chain away, and put back what the cluster came with."""
        self.cluster.masquerade = self._was_on
        self.cluster.controllers.remove(self)
        for node, family in self._done:
            if self.cluster.nodes.get(node.name) is node:
                if self._was_on:
                    self.cluster.plain_masquerade(node, family)
                for words in (("-D", *JUMP), ("-F", CHAIN), ("-X", CHAIN)):
                    with contextlib.suppress(CommandFailed):  # somebody took it away before us
                        node.netns.iptables("-t", "nat", *words, family=_number(family))
        self._done.clear()

    def _apply(self, node: Node, family: str) -> None:
        text = render(self.cidrs, masq_link_local=self.masq_link_local, family=family)
        node.netns.iptables_restore(text, family=_number(family))
        node.netns.iptables("-t", "nat", "-A", *JUMP, family=_number(family))
        if self._was_on:
            with contextlib.suppress(CommandFailed):  # somebody took it away before us
                self.cluster.plain_masquerade(node, family, "-D")
        self._done.add((node, family))


def check_cidrs(cidrs: Sequence[str] | None, families: Sequence[str]) -> tuple[str, ...]:
    """Return the networks that are not masqueraded; None stands for DEFAULT.

    Raises:
        InvalidAddress: one is no network, or has host bits set.
        InvalidInput: over 64, a family that the cluster does not have, or no list.
    """
    if cidrs is None:
        return tuple(one for family in families for one in DEFAULT[family])
    if isinstance(cidrs, str):
        raise InvalidInput(f'non_masquerade_cidrs {cidrs!r} is no list; write it as in ["10.0.0.0/8"]')
    if len(cidrs) > MOST:
        raise InvalidInput(f"{len(cidrs)} networks that are not masqueraded; ip-masq-agent takes up to {MOST}")
    for one in cidrs:
        if family_of(network(one)) not in families:
            raise InvalidInput(f"{one}: the cluster has no IPv6; make it with ip_families=('v4', 'v6')")
    return tuple(str(network(one)) for one in cidrs)


def render(cidrs: Sequence[str], *, masq_link_local: bool = False, family: str = "v4") -> str:
    """Return what iptables-restore is given for one family; it replaces what is in the chain, at once."""
    spared = [] if masq_link_local else [LINK_LOCAL[family]]
    spared += [one for one in cidrs if family_of(one) == family]
    lines = [f'-A {CHAIN} -m comment --comment "{LOCAL}" -d {one} -j RETURN' for one in spared]
    last = f'-A {CHAIN} -m comment --comment "{OUTBOUND}" -j MASQUERADE --random-fully'
    return "\n".join(["*nat", f":{CHAIN} - [0:0]", *lines, last, "COMMIT", ""])


def _number(family: str) -> int:
    return 6 if family == "v6" else 4
