"""The transcript: what a lab did, as the commands that a person would have typed."""

from __future__ import annotations

import html
import re
import shlex
from dataclasses import dataclass, field

__all__ = ["Entry", "Transcript"]

HOST = "host"  # the netns of by-hand cells: "the machine" of a lab

PREAMBLE = """\
#!/usr/bin/env bash
# Builds the network of the lab "{name}", command by command.
# Run it where it can do no harm: k8snet sandbox -- bash THIS-FILE
set -euo pipefail
if [ -z "${{K8SNET_INSIDE-}}" ]; then
    K8SNET_INSIDE=1 exec unshare --net -- bash "$0" "$@"
fi
mkdir -p /run/netns
touch /run/netns/{host}
mount --bind /proc/self/ns/net /run/netns/{host}
"""
_PLAIN = re.compile(r"[\w./:,@+=-]+( +[\w./:,@+=-]+)*")  # a command that needs no shell


@dataclass(frozen=True)
class Entry:
    """One command, or one piece of a shell script."""

    netns: str  # where it runs
    words: tuple[str, ...] = ()  # an argument list; empty for a script
    script: str = ""  # one complete bash command, which may span lines
    stdin: str = ""

    def typed(self) -> str:
        """Return it as somebody inside the netns would type it."""
        text = self.script or shlex.join(self.words)
        return f"{text} <<'END'\n{self.stdin.rstrip()}\nEND" if self.stdin else text

    def shell(self) -> str:
        """Return it as somebody in the netns `host` would type it."""
        if self.netns == HOST:
            return self.typed()
        words = tuple(self.script.split()) if _PLAIN.fullmatch(self.script) else self.words
        if words[:1] in {("ip",), ("bridge",)} and not words[1].startswith("-"):
            return shlex.join([words[0], "-n", self.netns, *words[1:]])
        if words:
            return f"ip netns exec {self.netns} {self.typed()}"
        return f"ip netns exec {self.netns} bash -eu <<'K8SNET'\n{self.script}\nK8SNET"


@dataclass
class Transcript:
    """Commands in the order in which they were given."""

    name: str
    entries: list[Entry] = field(default_factory=list)

    def __len__(self) -> int:
        """Return how many commands there are."""
        return len(self.entries)

    def since(self, mark: int) -> Transcript:
        """Return what came after the first *mark* commands; take `len(transcript)` as the mark."""
        return Transcript(self.name, self.entries[mark:])

    def of(self, netns: str) -> Transcript:
        """Return what was done inside one netns."""
        return Transcript(self.name, [entry for entry in self.entries if entry.netns == netns])

    def commands(self) -> list[str]:
        """Return the commands, as typed on the lab's host."""
        return [entry.shell() for entry in self.entries]

    def script(self) -> str:
        """Return a bash script that builds the same network in a fresh sandbox."""
        return "\n".join([PREAMBLE.format(name=self.name, host=HOST), *self.commands(), ""])

    def __str__(self) -> str:
        """Return one command a line."""
        return "\n".join(self.commands())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the commands as a notebook shows them."""
        hanging = "padding-left:4ch;text-indent:-4ch"  # a command that is too long goes on further to the right
        lines = str(self).splitlines() or ["nothing yet"]
        shown = "".join(f'<div style="{hanging}">{html.escape(line) or "<br>"}</div>' for line in lines)
        wrap = "white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere;padding:0"
        return f'<pre class="k8snet-transcript" style="{wrap}">{shown}</pre>'
