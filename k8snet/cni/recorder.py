"""Recorder: each call of a plugin, exactly what it got and gave."""

from __future__ import annotations

import html
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from k8snet.cni.result import pretty
from k8snet.errors import PluginFailed, Timeout
from k8snet.linux import run as _run

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = ["Call", "Recorder"]

INTERNAL = 999  # libcni's code for what is not the plugin's own answer
READ_ONLY = "read-only file system"
CANNOT_EXECUTE = 126  # the shell's code for a file that is no program
SYSTEM_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")  # as a daemon has it
RECORD_TO = "K8SNET_CNI_RECORD"  # the variable with the folder that a shim writes to
SHIM = """\
#!{python} -IS
# Stands before the plugin of the same name on CNI_PATH: keeps what it gets and gives, and passes all on.
import json, os, pathlib, shutil, subprocess, sys, time
own = pathlib.Path(sys.argv[0])
path = [part for part in os.environ["CNI_PATH"].split(":") if part != str(own.parent)]
stdin, begun = sys.stdin.read(), time.monotonic_ns()
done = subprocess.run([shutil.which(own.name, path=":".join(path))], input=stdin, capture_output=True, text=True)
call = dict(
    plugin=own.name, command=os.environ.get("CNI_COMMAND", ""), stdin=stdin, stdout=done.stdout, stderr=done.stderr,
    env={{key: value for key, value in os.environ.items() if key.startswith("CNI_")}}, code=done.returncode,
    seconds=(time.monotonic_ns() - begun) / 1e9,
)
if folder := os.environ.get("K8SNET_CNI_RECORD"):
    pathlib.Path(folder, f"{{begun:020}}-{{os.getpid()}}").write_text(json.dumps(call))
sys.stdout.write(done.stdout)
sys.stderr.write(done.stderr)
sys.exit(done.returncode if done.returncode >= 0 else 128 - done.returncode)
"""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a plugin."""

    plugin: str
    command: str  # "ADD", "DEL", ...
    env: Mapping[str, str]  # without PATH, which is that of the runtime
    stdin: str
    stdout: str
    stderr: str
    code: int  # its exit code; negative: the signal that killed it
    seconds: float
    delegated: tuple[Call, ...] = ()  # the calls that it made itself, seen by shims

    @property
    def title(self) -> str:
        """What was called, and how it ended."""
        end = "ok" if self.code == 0 else f"signal {-self.code}" if self.code < 0 else f"exit code {self.code}"
        return f"{self.plugin} {self.command}: {end}, {self.seconds * 1000:.0f} ms"

    def failure(self) -> PluginFailed | None:
        """Return how it failed, as an error; None if it did not (CNI spec, section 5, "Error")."""
        if self.code == 0:
            return None
        said, message = self.stderr.strip(), f"ended with {self.code}, and what it printed is no CNI error"
        if self.code < 0:
            message = f"killed by {signal.Signals(-self.code).name}"
            return PluginFailed(self.plugin, self.command, INTERNAL, message, said)
        try:
            answer = json.loads(self.stdout)
            code, message, details = int(answer["code"]), str(answer["msg"]), str(answer.get("details") or "")
        except (ValueError, KeyError, TypeError):
            return PluginFailed(self.plugin, self.command, INTERNAL, message, self.stdout.strip() or said)
        hint = 'give "ipam" a "dataDir" below /run: the rest is read-only in a sandbox' if READ_ONLY in message else ""
        return PluginFailed(self.plugin, self.command, code, message, "; ".join(filter(None, [details, hint, said])))

    def parts(self) -> dict[str, str]:
        """Return what it got and gave, each as text; JSON is indented to be read."""
        env = "\n".join(f"{key}={value}" for key, value in self.env.items())
        found = {"environment": env, "stdin": _pretty(self.stdin)}
        return found | {"stdout": _pretty(self.stdout), "stderr": self.stderr.rstrip()}

    def __str__(self) -> str:
        """Return it as text."""
        lines = [self.title]
        for name, text in self.parts().items():
            lines += [f"  {name}:", *(f"    {line}" for line in text.splitlines())] if text else []
        for call in self.delegated:
            lines += [f"  | {line}" for line in f"it called {call}".splitlines()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return it as a notebook shows it: a line that opens."""
        rows = "".join(
            f"<tr><th style='text-align:left;vertical-align:top'>{name}</th><td style='text-align:left'>"
            f"<pre style='margin:0;white-space:pre-wrap'>{html.escape(text)}</pre></td></tr>"
            for name, text in self.parts().items() if text
        )  # fmt: skip
        inner = "".join(call._repr_html_() for call in self.delegated)
        return (
            f"<details class='k8snet-call'><summary>{html.escape(self.title)}</summary>"
            f"<table>{rows}</table></details><div style='margin-left:2em'>{inner}</div>"
        )


@dataclass(eq=False)
class Recorder:
    """Calls in the order in which they ended."""

    calls: list[Call] = field(default_factory=list)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.calls)

    def __iter__(self) -> Iterator[Call]:
        """Return the calls."""
        return iter(list(self.calls))

    def __getitem__(self, number: int) -> Call:
        """Return one call."""
        return self.calls[number]

    def __str__(self) -> str:
        """Return all of them as text."""
        return "\n\n".join(f"{number}. {call}" for number, call in enumerate(self.calls, 1)) or "no plugin was called"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return them as a notebook shows them."""
        return "".join(call._repr_html_() for call in self.calls) or f"<p>{self}</p>"


def _pretty(text: str) -> str:
    try:
        return pretty(json.loads(text))
    except ValueError:
        return text.rstrip()


@contextmanager
def shim_folder(path: Sequence[Path]) -> Iterator[Path]:
    """Make a folder whose bin/ has a recording program for every plugin on *path*."""
    folder = Path(tempfile.mkdtemp(prefix="cni-shims-", dir=_run.scratch()))
    try:
        (folder / "bin").mkdir()
        (folder / "shim").write_text(SHIM.format(python=sys.executable))
        (folder / "shim").chmod(0o755)
        names = {one.name for part in path if part.is_dir() for one in part.iterdir() if os.access(one, os.X_OK)}
        for name in names:
            (folder / "bin" / name).symlink_to(folder / "shim")
        yield folder
    finally:
        shutil.rmtree(folder)


def invoke(
    node: Netns, path: Path, *, env: Mapping[str, str], stdin: str, timeout_s: float, shims: Path | None = None
) -> Call:
    """Run a plugin once in the node's netns, whatever comes of it.

    Args:
        shims: a folder of shim_folder(), whose bin/ stands first on CNI_PATH.
    """
    told = {RECORD_TO: tempfile.mkdtemp(prefix="calls-", dir=shims)} if shims else {}
    search = {"PATH": os.pathsep.join([*SYSTEM_PATH, os.environ.get("PATH", "")])}
    try:
        done = node.run(str(path), stdin=stdin, timeout_s=timeout_s, check=False, env={**search, **env, **told})
    except (Timeout, OSError) as error:  # it was killed with all that it started; or it is no program
        code = -signal.SIGKILL if isinstance(error, Timeout) else CANNOT_EXECUTE
        done = _run.Completed(argv=(), code=code, stdout="", stderr=f"{error}", seconds=timeout_s)
    seen = [Call(**json.loads(file.read_text())) for folder in told.values() for file in sorted(Path(folder).iterdir())]
    return Call(
        plugin=path.name, command=env.get("CNI_COMMAND", ""), env=env, stdin=stdin, stdout=done.stdout,
        stderr=done.stderr, code=done.code, seconds=done.seconds, delegated=tuple(seen),
    )  # fmt: skip
