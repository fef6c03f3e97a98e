"""The cell magic `%%netns NAME`: bash inside a netns, shown like a terminal session."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from IPython.core.magic import Magics, cell_magic, magics_class

from k8snet.errors import CommandFailed, InvalidInput, K8snetError, NotFound, Timeout
from k8snet.jupyter.session import Session, commands_of
from k8snet.lab import Lab

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["NetnsMagics", "load", "looks_only"]

PROMPT = "\x1b[1;36m{netns}\x1b[0m\x1b[1m$\x1b[0m {first}{rest}"
# words that run another command, which decides
CARRIERS = re.compile(r"(?:sudo|timeout(?:\s+-\S+)*\s+[\d.]+s?|nsenter(?:\s+-\S+)+|ip\s+netns\s+exec\s+\S+)\s+")
# what only looks, and so is no part of how the network came to be
LOOKING = re.compile(
    r"(?:ping|arping|traceroute|tcpdump|curl|wget|nc|ncat|dig|nslookup|ss|netstat|conntrack\s+-L|cat|echo|ls|lsns|grep|id|"
    r"readlink|stat|hostname|ps|sleep|wait|nginx|python3?|ethtool|test|true|date|kill|printf|iperf3|socat)(?:\s|$)|"
    r"brctl\s+show|ip6?tables(?:-nft|-legacy)?-save|ipvsadm\s+(?:-[nc]*[Ll]|--list|--save|-S)|ipset\s+(?:list|save)|"
    r"sysctl\s+(?:-n\s+)?[\w./-]+\s*$|"
    r"ip6?tables(?:-nft|-legacy)?\s.*(?:-[nvx]*L\b|-S\b|--list)|nft\s+(?:-\w+\s+)*list\b|"
    r"ip\s+netns\s*(?:$|list|identify|pids)|"
    r"(?:ip|bridge)\s+(?:-\S+\s+(?:\w+\s+)?)*?(?:a|addr|address|l|link|r|ro|route|n|neigh|neighbour|neighbor|rule|fdb|vlan)"
    r"\s*(?:$|\||show\b|list\b|get\b|ls\b|dev\b)"
)
# a redirection to a file, which later commands may read
WRITES = re.compile(r"(?<![<>\d&-])\d?>{1,2}(?!&)\s*(?!/dev/(?:null|stdout|stderr)\b)\S")
ENDS_NETNS = re.compile(r"\bip\s+netns\s+del")
BETWEEN = re.compile(r"\s*(?:;|&&|\|\||\n)\s*")


def looks_only(command: str) -> bool:
    """Return whether a command leaves the network as it is, as far as its words tell."""
    if WRITES.search(re.sub(r"'[^']*'|\"[^\"]*\"", "''", command)):
        return False
    parts = [command] if "'" in command or '"' in command else BETWEEN.split(command)
    for part in filter(None, parts):
        text = part.strip()
        while carrier := CARRIERS.match(text):
            text = text[carrier.end() :]
        if not LOOKING.match(text):
            return False
    return True


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what was wrong, in place of ending the interpreter."""
        raise InvalidInput(f"%%netns: {message}. Write: %%netns [--may-fail] [--timeout SECONDS] NAME")


def _options(line: str) -> argparse.Namespace:
    parser = _Parser(prog="%%netns", add_help=False)
    parser.add_argument("--may-fail", action="store_true")
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--lab")
    parser.add_argument("netns")
    return parser.parse_args(shlex.split(line))


@magics_class
class NetnsMagics(Magics):
    """The magics of k8snet."""

    @cell_magic
    def netns(self, line: str, cell: str) -> None:
        """Run the cell as bash commands inside a netns of the lab.

        %%netns [--may-fail] [--timeout SECONDS] [--lab VARIABLE] NAME

        Each command is shown after its prompt, with what it printed below it. The first
        one that fails stops the cell; with --may-fail they all run. `host` is the netns
        that plays the machine.
        """
        options = _options(line)
        lab = self._lab(options.lab)
        netns = lab[options.netns]
        session = Session(netns.fd, commands_of(cell), resolv=netns.resolv)
        try:
            for number, command in enumerate(session.commands):
                sys.stdout.write(_prompt(options.netns, command))
                if ENDS_NETNS.search(command):
                    lab.let_go()
                code = session.step(options.timeout, sys.stdout.write)
                if session.last_output(number)[-1:] not in {"", "\n"}:
                    sys.stdout.write("\n")  # JSON of a plugin ends in the middle of a line; a prompt begins one
                sys.stdout.flush()
                if code != 0 and not options.may_fail:
                    session.end(signal.SIGTERM)
                    raise CommandFailed((command,), code, session.last_output(number), options.netns)
                if code == 0 and not looks_only(command):
                    lab.record_script(options.netns, command)
        except (KeyboardInterrupt, Timeout):
            session.end(signal.SIGKILL)
            raise
        finally:
            session.close()

    def _lab(self, variable: str | None) -> Lab:
        """Return the lab in the variable *variable*, else `lab`, else the only open one."""
        space: dict[str, object] = self.shell.user_ns if self.shell else {}
        if variable is not None and not isinstance(space.get(variable), Lab):
            raise NotFound(f"%%netns --lab {variable}: there is no lab in that variable")
        if isinstance(found := space.get(variable or "lab"), Lab):
            return found
        labs = {id(value): value for value in space.values() if isinstance(value, Lab) and value.open}
        if len(labs) == 1:
            return next(iter(labs.values()))
        hint = "make one first: lab = Lab()" if not labs else "say which: %%netns --lab VARIABLE NAME"
        raise NotFound(f"%%netns: {len(labs) or 'no'} labs are open here; {hint}")


def _prompt(netns: str, command: str) -> str:
    first, _, rest = command.partition("\n")
    more = "".join(f"\n\x1b[2m>\x1b[0m {line}" for line in rest.split("\n")) if rest else ""
    return PROMPT.format(netns=netns, first=first, rest=more) + "\n"


def _short(shell: InteractiveShell, kind: type[BaseException], error: BaseException, *_: object, **__: object) -> None:
    """Show an error that k8snet raised on purpose as one line: its text says what to do."""
    shown = [f"\x1b[1;31m{kind.__name__}\x1b[0m: {error}"]
    shell._showtraceback(kind, error, shown)  # noqa: SLF001  # the one hook that IPython offers for it


def load(shell: InteractiveShell) -> None:
    """Add the magics to a shell, and let our own errors be short in it."""
    shell.register_magics(NetnsMagics)
    shell.set_custom_exc((K8snetError,), _short)  # type: ignore[no-untyped-call]
    os.environ.setdefault("LC_ALL", "C.UTF-8")
