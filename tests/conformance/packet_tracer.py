"""A small iptables: what the rules of kube-proxy do with one packet, read from their text.

As upstream's own tracer: by-lot rules are all taken, so that every endpoint is found, and what depends on the past
(conntrack, recent, mark) never matches.
"""

from __future__ import annotations

import ipaddress
import shlex
from collections import defaultdict
from collections.abc import Iterable

STATEFUL = {"--ctstate", "--mark", "--rcheck"}
VERDICTS = {"ACCEPT", "REJECT", "DROP"}
FILTER = ("KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-PROXY-FIREWALL")


def chains(text: str) -> dict[tuple[str, str], list[str]]:
    """Return the rules of text for iptables-restore by table and chain, in their order."""
    table, found = "", defaultdict(list)
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            found[table, line[1:].split()[0]] = []
        elif line.startswith("-A "):
            found[table, line.split()[1]].append(line)
    return dict(found)


class Tracer:
    """Follows packets through rules."""

    def __init__(self, text: str, local: Iterable[str]) -> None:
        self.chains = {key: [shlex.split(rule) for rule in rules] for key, rules in chains(text).items()}
        self.local = {"127.0.0.1", "::1", *local}

    def trace(self, source: str, protocol: str, destination: str, port: int) -> tuple[str, bool]:
        """Return what becomes of a packet, as upstream's tests write it, and whether it is marked for masquerade."""
        self.outputs, self.masquerade = [], False
        self._chain("nat", "KUBE-SERVICES", (source, protocol, destination, port))
        if self.outputs:  # translated
            destination = self.outputs[0].rpartition(":")[0].strip("[]")
        for chain in FILTER:
            self._chain("filter", chain, (source, protocol, destination, port))
        return ", ".join(self.outputs), self.masquerade

    def _chain(self, table: str, name: str, packet: tuple[str, str, str, int]) -> bool:
        """Return whether the packet's way ends in a chain."""
        for words in self.chains[table, name]:
            target = words[words.index("-j") + 1] if "-j" in words else None
            if target is None or not self._matches(words, packet):
                continue
            if target == "RETURN":
                return False
            if target == "KUBE-MARK-MASQ":
                self.masquerade = True
                continue
            if target == "DNAT":
                self.outputs.append(words[words.index("--to-destination") + 1])
                ended = True
            elif target in VERDICTS:
                self.outputs.append(target)
                ended = True
            else:
                ended = self._chain(table, target, packet)
            if ended and "--probability" not in words:
                return True
        return False

    def _matches(self, words: list[str], packet: tuple[str, str, str, int]) -> bool:
        source, protocol, destination, port = packet
        if STATEFUL & {*words}:
            return False
        told = {
            "-s": lambda value: ipaddress.ip_address(source) in ipaddress.ip_network(value),
            "-d": lambda value: ipaddress.ip_address(destination) in ipaddress.ip_network(value),
            "-p": lambda value: value == protocol.lower(),
            "--dport": lambda value: int(value) == port,
            "--src-type": lambda value: source in self.local,
            "--dst-type": lambda value: destination in self.local,
        }
        for at, word in enumerate(words):
            if word in told and told[word](words[at + 1]) == (words[at - 1] == "!"):
                return False
        return True
