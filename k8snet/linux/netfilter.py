"""Packet filter, NAT, sets and connection tracking: iptables, nft, ipset, conntrack.

The programs themselves are run: what they print is what a reader will see on a node.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from k8snet.errors import CommandFailed, InvalidInput
from k8snet.linux import address as check
from k8snet.linux import run as _run

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns
    from k8snet.linux.run import Completed

__all__ = [
    "Connection",
    "Flow",
    "begin_iptables_save",
    "conntrack",
    "delete_conntrack",
    "ipset",
    "iptables",
    "iptables_restore",
    "iptables_save",
    "nft",
    "nft_list",
]

LEGACY_TABLES = ("filter", "nat", "mangle", "raw")
BACKENDS = {None: "", "nft": "-nft", "legacy": "-legacy"}
LOOKING = {
    "-L",
    "--list",
    "-S",
    "--list-rules",
    "-C",
    "--check",
    "-V",
    "--version",
    "list",
    "save",
    "test",
    "-n",
    "-nvL",
    "-vnL",
    "-nL",
}


def _words(arguments: tuple[str, ...]) -> list[str]:
    """Return an argument list; one argument with spaces in it is taken as a command line."""
    if len(arguments) == 1:
        try:
            return shlex.split(arguments[0])
        except ValueError as error:
            raise InvalidInput(f"{arguments[0]!r}: {error}") from None
    return [str(argument) for argument in arguments]


def _program(base: str, backend: str | None, family: int) -> str:
    if backend not in BACKENDS:
        raise InvalidInput(
            f"iptables backend {backend!r}: one of 'nft', 'legacy', or None for what this machine calls iptables"
        )
    if family not in {4, 6}:
        raise InvalidInput(f"address family {family!r}: 4 or 6")
    middle = BACKENDS[backend]
    return f"{'ip6' if family == 6 else 'ip'}tables{middle}{base}"


def iptables(netns: Netns, *arguments: str, backend: str | None = None, family: int = 4) -> Completed:
    """Run iptables. Like: iptables ARGUMENTS.

    Args:
        arguments: as words, or as one string: `"-t nat -A POSTROUTING -j MASQUERADE"`.
        backend: "nft" or "legacy"; None is what this machine calls `iptables`.
        family: 4, or 6 for ip6tables.

    Raises:
        CommandFailed: iptables did not take it; nothing has changed then.
        InvalidInput: no such backend or family.
        ProgramMissing: it is not installed.
    """
    words = [_program("", backend, family), *_words(arguments)]
    return netns.run(*words, record=not LOOKING & set(words))


def iptables_save(netns: Netns, *, backend: str | None = None, family: int = 4, counters: bool = False) -> str:
    """Return all rules as text. Like: iptables-save."""
    return begin_iptables_save(netns, backend=backend, family=family, counters=counters)()


def begin_iptables_save(
    netns: Netns, *, backend: str | None = None, family: int = 4, counters: bool = False
) -> Callable[[], str]:
    """Start to read all rules, and return what waits for them; it must be called. See iptables_save()."""
    words = [_program("-save", backend, family), *(["-c"] if counters else [])]
    finish = _run.begin(words, fd=netns.fd, netns=netns.name, check=False)

    def saved() -> str:
        done = finish()
        if not done.ok and "tables_names" in done.stderr:  # not ours to list, as no uid 0 is mapped here; but to ask
            return "".join(netns.run(*words, "-t", table, check=False).stdout for table in LEGACY_TABLES)
        if not done.ok:
            raise CommandFailed(done.argv, done.code, done.stderr, netns.name)
        return done.stdout

    return saved


def iptables_restore(
    netns: Netns, rules: str, *, backend: str | None = None, family: int = 4, flush: bool = False
) -> None:
    """Load rules at once, all or none. Like: iptables-restore --noflush.

    Args:
        rules: what iptables-save prints.
        flush: empty the tables named in *rules* first.

    Raises:
        CommandFailed: a line was not taken, and none has been; the message names it.
    """
    program = _program("-restore", backend, family)
    netns.run(program, *([] if flush else ["--noflush"]), stdin=rules, record=True)


def nft(netns: Netns, *arguments: str) -> Completed:
    """Run nft with a command, or with a script of several lines. Like: nft ARGUMENTS, or nft -f -.

    Raises:
        CommandFailed: nft did not take it; nothing has changed then.
    """
    if len(arguments) == 1 and ("\n" in arguments[0] or arguments[0].lstrip().startswith("table")):
        return netns.run("nft", "-f", "-", stdin=arguments[0], record=True)
    words = _words(arguments)
    return netns.run("nft", *words, record=not LOOKING & set(words))


def nft_list(netns: Netns) -> list[dict[str, Any]]:
    """Return the whole ruleset as nft's JSON objects, with handles. Like: nft -j -a list ruleset."""
    found: list[dict[str, Any]] = json.loads(netns.run("nft", "-j", "-a", "list", "ruleset", record=False).stdout)[
        "nftables"
    ]
    return found


def ipset(netns: Netns, *arguments: str) -> Completed:
    """Run ipset. Like: ipset ARGUMENTS.

    Raises:
        CommandFailed: ipset did not take it.
    """
    words = _words(arguments)
    return netns.run("ipset", *words, record=not LOOKING & set(words))


# -- connection tracking ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Flow:
    """One direction of a connection."""

    source: str
    destination: str
    source_port: int | None = None  # None for protocols without ports
    destination_port: int | None = None

    def __str__(self) -> str:
        """Return it as "10.0.0.1:40000 -> 10.0.0.2:80"."""
        ports = [f":{port}" if port is not None else "" for port in (self.source_port, self.destination_port)]
        return f"{self.source}{ports[0]} -> {self.destination}{ports[1]}"


@dataclass(frozen=True, kw_only=True)
class Connection:
    """An entry of the connection tracking table."""

    protocol: str
    state: str | None  # of TCP: ESTABLISHED, TIME_WAIT, ...
    timeout_s: int | None  # seconds until it is forgotten; None on its way out
    original: Flow  # as the first packet had it
    reply: Flow  # as answers are expected
    flags: tuple[str, ...] = ()  # ASSURED, UNREPLIED, ...
    mark: int = 0

    @property
    def dnat(self) -> bool:
        """Whether the destination is translated."""
        return (self.original.destination, self.original.destination_port) != (
            self.reply.source,
            self.reply.source_port,
        )

    @property
    def snat(self) -> bool:
        """Whether the source is translated."""
        return (self.original.source, self.original.source_port) != (
            self.reply.destination,
            self.reply.destination_port,
        )

    def __str__(self) -> str:
        """Return both directions on one line."""
        rest = " ".join([*([self.state] if self.state else []), *(f"[{flag}]" for flag in self.flags)])
        return f"{self.protocol} {self.original}  |  {self.reply}  {rest} {self.timeout_s or 0} s"


_PAIR = re.compile(r"(\w+)=(\S+)")


def _flow(pairs: list[tuple[str, str]]) -> Flow:
    values = dict(pairs)
    ports = {key: int(values[key]) if key in values else None for key in ("sport", "dport")}
    return Flow(
        source=values["src"], destination=values["dst"], source_port=ports["sport"], destination_port=ports["dport"]
    )


def parse_connection(line: str) -> Connection:
    """Return the entry that one line of `conntrack -L` tells of."""
    head, *_ = line.partition("src=")
    words = head.split()
    pairs = _PAIR.findall(line)
    cut = [number for number, (key, _) in enumerate(pairs) if key == "src"][1]
    return Connection(
        protocol=words[0], state=words[3] if len(words) > 3 else None,
        timeout_s=int(words[2]) if len(words) > 2 else None,
        original=_flow(pairs[:cut]), reply=_flow(pairs[cut:]),
        flags=tuple(re.findall(r"\[(\w+)\]", line)), mark=int(dict(pairs).get("mark", "0")),
    )  # fmt: skip


def conntrack(netns: Netns, *, protocol: str | None = None, family: int = 4) -> list[Connection]:
    """Return the connection tracking table. Like: conntrack -L.

    Args:
        protocol: "tcp", "udp", "icmp", ...; None for all.
        family: 4 or 6.
    """
    words = ["conntrack", "-L", "-f", "ipv6" if family == 6 else "ipv4"]
    words += ["-p", protocol] if protocol else []
    lines = netns.run(*words, record=False).stdout.splitlines()
    return [parse_connection(line) for line in lines if line]


def delete_conntrack(netns: Netns, *, destination: str | None = None, protocol: str | None = None) -> int:
    """Forget connections, all or those to a destination; return how many. Like: conntrack -D."""
    words = ["conntrack", "-D"]
    words += ["-p", protocol] if protocol else []
    words += ["-d", str(check.host_address(destination))] if destination else []
    done = netns.run(*words, check=False, record=False)  # ends with 1 if there were none
    return len([line for line in done.stdout.splitlines() if line])
