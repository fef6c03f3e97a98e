"""One bash that runs the commands of a cell one by one, and says where each of them ends."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path

from k8snet.errors import InvalidInput, Timeout
from k8snet.linux import run as _run

__all__ = ["Session", "commands_of"]

END_MARK = "\x1e"  # ASCII's record separator: no program prints it
_MARKED = re.compile(rb"\x1e(\d+)\x1e")


def commands_of(cell: str) -> list[str]:
    """Return the complete commands of a script: loops, heredocs and continued lines stay together.

    Raises:
        InvalidInput: bash cannot read it; the message is bash's.
    """
    commands: list[str] = []
    open_lines: list[str] = []
    for line in cell.rstrip().split("\n"):
        if not open_lines and (not line.strip() or line.lstrip().startswith("#")):
            continue
        open_lines.append(line)
        if not line.endswith("\\") and _complete("\n".join(open_lines)):
            commands.append("\n".join(open_lines))
            open_lines = []
    if open_lines:
        problem = _run.run(["bash", "-n"], stdin="\n".join(open_lines), check=False).stderr.strip()
        raise InvalidInput(f"bash cannot read this: {problem}")
    return commands


def _complete(text: str) -> bool:
    done = _run.run(["bash", "-n"], stdin=text, check=False)
    return done.ok and "here-document" not in done.stderr


class Session:
    """A bash inside a netns that runs one command a step."""

    def __init__(self, fd: int, commands: list[str], *, resolv: Path | None = None) -> None:
        """Start bash in the netns open as *fd*; nothing runs before the first step. See k8snet.linux.run.run()."""
        self.commands = commands
        self._outputs: list[bytes] = []
        steps_read, self._steps = os.pipe()
        self._output, output = os.pipe()
        try:
            self._bash = _run.start_shell(
                _driver(commands, steps_read), fd=fd, output=output, keep=(steps_read,), resolv=resolv
            )
        finally:
            os.close(steps_read)
            os.close(output)
        self._rest = b""

    def step(self, timeout_s: float, write: Callable[[str], object]) -> int:
        """Run the next command, hand on what it prints as it comes, and return its exit code.

        Raises:
            Timeout: it had not ended after *timeout_s* seconds.
        """
        os.write(self._steps, b"\n")
        seen, decode = b"", codecs.getincrementaldecoder("utf-8")("replace").decode
        deadline = time.monotonic() + timeout_s
        while (found := _MARKED.search(self._rest)) is None:
            whole, self._rest = _showable(self._rest)
            seen += whole
            write(decode(whole))
            if not select.select([self._output], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Timeout(
                    f"the command had not ended after {timeout_s:g} s; give it more with %%netns --timeout SECONDS"
                )
            chunk = os.read(self._output, 65536)
            if not chunk:  # bash itself is gone: `exit`, or a signal
                self._outputs.append(seen + self._rest)
                write(decode(self._rest, final=True))
                return self._bash.wait()
            self._rest += chunk
        seen += self._rest[: found.start()]
        write(decode(self._rest[: found.start()], final=True))
        self._rest = self._rest[found.end() :]
        self._outputs.append(seen)
        return int(found[1])

    def last_output(self, number: int) -> str:
        """Return what a command printed."""
        return self._outputs[number].decode(errors="replace")

    def end(self, number: signal.Signals) -> None:
        """Send a signal to bash and what it runs in the foreground."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._bash.pid, number)

    def close(self) -> None:
        """Let bash end; servers that the cell put into the background live on."""
        os.close(self._steps)
        with contextlib.suppress(Exception):
            self._bash.wait(2)
        os.close(self._output)


def _driver(commands: list[str], steps: int) -> str:
    """Return a script that awaits a line before each command, and marks the end of each with its code."""
    wait, mark = f"read -r -u {steps} k8snet_step || exit 0", "printf '\\036%d\\036' \"$?\""
    return "exec 2>&1\n" + "".join(f"{wait}\n{command}\n{mark}\n" for command in commands)


def _showable(data: bytes) -> tuple[bytes, bytes]:
    """Return what can be shown, and a tail that may be the start of a mark."""
    at = data.find(END_MARK.encode())
    return (data, b"") if at < 0 else (data[:at], data[at:])
