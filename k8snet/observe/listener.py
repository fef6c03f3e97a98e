"""The trace messages of each netns with rules, and what the numbers in them mean."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from k8snet.linux.nftrace import TABLE, TraceMessage, TraceSocket, marked

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = ["Group", "Listener", "listening"]

EVERY_S = 0.05  # how often it is asked whether it is done


@dataclass(kw_only=True)
class Group:
    """What the rules of one chain at a hook, and of those that it jumps to, said of a packet."""

    netns: str
    messages: list[TraceMessage] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, str]:
        """Which chain it is."""
        return self.first.family, self.first.table, self.first.chain

    @property
    def first(self) -> TraceMessage:
        """The message that has the headers."""
        return self.messages[0]


@dataclass(kw_only=True)
class Listener:
    """One netns with rules: its messages, and what handles and numbers mean there."""

    netns: Netns
    socket: TraceSocket
    messages: list[TraceMessage] = field(default_factory=list)
    hooks: dict[tuple[str, str, str], tuple[str, str]] = field(default_factory=dict)  # chain -> hook, type
    texts: dict[tuple[str, str, int], str] = field(default_factory=dict)  # family, table, handle -> the rule
    interfaces: dict[int, str] = field(default_factory=dict)

    def learn(self) -> None:
        """Read what is needed to understand the messages."""
        self.interfaces = dict(self.netns.inside(socket.if_nameindex))
        listed = self.netns.nft_list()
        rules: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        for one in listed:
            if chain := one.get("chain"):
                key = chain["family"], chain["table"], chain["name"]
                self.hooks[key] = chain.get("hook", ""), chain.get("type", "")
            elif rule := one.get("rule"):
                rules[rule["family"], rule["table"], rule["chain"]].append(rule["handle"])
        self._read_nft()
        for family, version in (("ip", 4), ("ip6", 6)):
            if any(key[0] == family for key in rules):
                self._read_iptables(family, version, rules)

    def _read_nft(self) -> None:
        family = table = ""
        for line in self.netns.run("nft", "-a", "list", "ruleset", record=False).stdout.splitlines():
            if found := re.match(r"table (\w+) (\S+) \{", line):
                family, table = found.groups()
            elif found := re.match(r"\t\t(.*) # handle (\d+)$", line):
                self.texts[family, table, int(found[2])] = found[1]

    def _read_iptables(self, family: str, version: int, rules: dict[tuple[str, str, str], list[int]]) -> None:
        """Call iptables' rules as iptables-save does, which lists them in the same order."""
        lines: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        table = ""
        for line in self.netns.iptables_save(backend="nft", family=version).splitlines():
            if line.startswith("*"):
                table = line[1:]
            elif line.startswith("-A "):
                lines[family, table, line.split(" ", 2)[1]].append(line)
        for key, found in lines.items():
            if len(found) == len(rules[key]):
                self.texts |= {(*key[:2], handle): line for handle, line in zip(rules[key], found, strict=True)}


@contextlib.contextmanager
def listening(places: Iterable[Netns], matches: Sequence[str]) -> Iterator[list[Listener]]:
    """Have packets traced in these netns; afterwards there is neither a rule nor a socket of ours."""
    listeners: list[Listener] = []
    table, done = marked(matches), threading.Event()
    reader = threading.Thread(target=_read, args=(listeners, done), name="k8snet-trace", daemon=True)
    try:
        for netns in places:
            listeners.append(Listener(netns=netns, socket=TraceSocket(netns)))
            netns.run("nft", "-f", "-", stdin=table, record=False)
        reader.start()
        yield listeners
    finally:
        done.set()
        if reader.ident:
            reader.join()
        for one in listeners:
            one.socket.close()
            one.netns.run("nft", "delete", "table", "inet", TABLE, check=False, record=False)


def _read(listeners: Sequence[Listener], done: threading.Event) -> None:
    """Take messages as they come, and the last ones when it is done."""
    while True:
        last = done.is_set()
        select.select([one.socket for one in listeners], [], [], 0 if last else EVERY_S)
        for one in listeners:
            one.messages += one.socket.read()
        if last:
            return
