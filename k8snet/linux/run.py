"""The one door to programs: every one that a lab starts is started here."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from k8snet.errors import CommandFailed, ProgramMissing, Timeout
from k8snet.linux import nsfs

__all__ = ["Completed", "Process", "begin", "require", "run", "scratch", "start", "start_shell", "wait_until"]

PACKAGES = {  # the Debian package of a program, where its name is another
    "arping": "arping", "bird": "bird2", "birdc": "bird2", "bridge": "iproute2", "brctl": "bridge-utils",
    "dig": "bind9-dnsutils", "dnsmasq": "dnsmasq-base", "dot": "graphviz", "ip": "iproute2",
    "ip6tables": "iptables", "iptables-save": "iptables", "iptables-restore": "iptables",
    "iptables-legacy": "iptables", "iptables-nft": "iptables", "nc": "netcat-openbsd", "nft": "nftables",
    "ping": "iputils-ping", "ss": "iproute2", "sysctl": "procps", "tc": "iproute2",
}  # fmt: skip
EXTRA_PATH = ("/usr/sbin", "/sbin", "/usr/local/sbin")


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A program that has ended."""

    argv: tuple[str, ...]
    code: int
    stdout: str
    stderr: str
    seconds: float
    netns: str = ""  # the name of the netns it ran in; empty outside any lab

    @property
    def ok(self) -> bool:
        """Whether the program ended with 0."""
        return self.code == 0

    def __str__(self) -> str:
        """Return what it printed, as a terminal would show it."""
        return self.stdout + self.stderr


@dataclass(kw_only=True, repr=False)
class Process:
    """A program that runs on, in a session of its own, until stopped or until its lab closes."""

    argv: tuple[str, ...]
    netns: str
    popen: subprocess.Popen[bytes]
    log: Path | None = None  # where its output goes; None throws it away
    on_stop: list[Callable[[], None]] = field(default_factory=list)
    stopped: bool = False  # by stop(); its number may be another process's by now

    def __repr__(self) -> str:
        """Return what runs where."""
        state = f"pid {self.pid}" if self.running else f"ended with {self.popen.returncode}"
        return f"<{Path(self.argv[0]).name} in netns {self.netns}, {state}>"

    @property
    def pid(self) -> int:
        """The process id, inside the sandbox."""
        return self.popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.popen.poll() is None

    def output(self) -> str:
        """Return what it has printed so far, both streams in order."""
        return self.log.read_text(errors="replace") if self.log else ""

    def stop(self, *, grace_s: float = 1.0) -> None:
        """End it and all that it started: SIGTERM first, SIGKILL after *grace_s* seconds."""
        if self.stopped:
            return
        self.stopped = True
        for number, patience in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.popen.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(patience)
                if number == signal.SIGKILL or not _group_lives(self.popen.pid):
                    break
        while self.on_stop:
            self.on_stop.pop()()
        if self.log:
            self.log.unlink(missing_ok=True)

    def __enter__(self) -> Process:
        """Return itself; the end of the block stops it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def require(program: str) -> str:
    """Return the path of *program*.

    Raises:
        ProgramMissing: it is not installed; the message has the command that installs it.
    """
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), *EXTRA_PATH])
    found = shutil.which(program, path=search)
    if not found:
        package = PACKAGES.get(program, program)
        raise ProgramMissing(f"`{program}` is not installed. Debian, Ubuntu: apt-get install {package}")
    return found


def run(
    argv: Sequence[str], *, fd: int | None = None, netns: str = "", stdin: str = "",
    timeout_s: float = 30.0, check: bool = True, env: Mapping[str, str] | None = None, resolv: Path | None = None,
) -> Completed:  # fmt: skip
    """Run a program to its end, and return what it printed.

    Args:
        fd: the open netns to run it in; None stays where we are.
        netns: that netns' name, for messages.
        resolv: what it sees as /etc/resolv.conf in that netns; None is the machine's.
        check: raise if it ends with anything but 0.

    Raises:
        ProgramMissing: it is not installed.
        CommandFailed: it ended with a non-zero code, and *check* is set.
        Timeout: it was still running after *timeout_s* seconds, and was killed.
    """
    finish = begin(argv, fd=fd, netns=netns, stdin=stdin, timeout_s=timeout_s, check=check, env=env, resolv=resolv)
    return finish()


def begin(
    argv: Sequence[str], *, fd: int | None = None, netns: str = "", stdin: str = "",
    timeout_s: float = 30.0, check: bool = True, env: Mapping[str, str] | None = None, resolv: Path | None = None,
) -> Callable[[], Completed]:  # fmt: skip
    """Start a program, and return what waits for its end and does the rest of run(); it must be called."""
    words = tuple(str(word) for word in argv)
    begun = time.monotonic()
    pipe = subprocess.PIPE
    with _file_of(stdin) as source:
        child = _spawn(words, fd=fd, resolv=resolv, stdin=source, stdout=pipe, stderr=pipe, env=env)

    def finish() -> Completed:
        try:
            stdout, stderr = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise Timeout(f"`{' '.join(words)}` was still running after {timeout_s:g} s") from None
        finally:
            if child.poll() is None:  # too long, or interrupted: it and its children go
                os.killpg(child.pid, signal.SIGKILL)
                child.communicate()
        done = Completed(
            argv=words, code=child.returncode, stdout=stdout.decode(errors="replace"),
            stderr=stderr.decode(errors="replace"), seconds=time.monotonic() - begun, netns=netns,
        )  # fmt: skip
        if check and not done.ok:
            raise CommandFailed(words, done.code, done.stderr or done.stdout, netns)
        return done

    return finish


def start(
    argv: Sequence[str], *, fd: int | None = None, netns: str = "", keep_output: bool = False,
    env: Mapping[str, str] | None = None, resolv: Path | None = None,
) -> Process:  # fmt: skip
    """Start a program that runs on. See run() for the arguments.

    Args:
        keep_output: collect what it prints, for Process.output().

    Raises:
        ProgramMissing: it is not installed.
    """
    words = tuple(str(word) for word in argv)
    log: Path | None = None
    sink: IO[bytes] | int = subprocess.DEVNULL
    if keep_output:
        handle, name = tempfile.mkstemp(prefix="output-", suffix=".log", dir=scratch())
        log, sink = Path(name), os.fdopen(handle, "wb")
    try:
        child = _spawn(words, fd=fd, resolv=resolv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=env)
    except BaseException:
        if log:
            log.unlink()
        raise
    finally:
        if not isinstance(sink, int):
            sink.close()
    return Process(argv=words, netns=netns, popen=child, log=log)


def scratch() -> Path:
    """Return the folder for files of running programs: in the sandbox's own /run, gone with it."""
    folder = Path("/run/k8snet")
    folder.mkdir(exist_ok=True)
    return folder


def _file_of(text: str) -> IO[bytes]:
    """Return a file in memory that holds *text*; a program reads it without waiting for us, as it does from a pipe."""
    file = os.fdopen(os.memfd_create("stdin"), "w+b")
    if text:
        file.write(text.encode())
        file.seek(0)  # and what is buffered is written
    return file


def start_shell(
    script: str, *, fd: int, output: int, keep: Sequence[int], resolv: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start bash in the netns open as *fd* for a by-hand cell.

    Args:
        output: the open file that takes both output streams.
        keep: other open files that the script reads.
        resolv: see run().
    """
    return _spawn(
        ("bash", "-c", script), fd=fd, resolv=resolv, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        pass_fds=tuple(keep),
    )  # fmt: skip


def _spawn(
    words: tuple[str, ...], *, fd: int | None, resolv: Path | None, **streams: object
) -> subprocess.Popen[bytes]:
    path = require(words[0])

    def body() -> subprocess.Popen[bytes]:
        if fd is not None and resolv:
            nsfs.see_resolver(resolv)
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
            words, executable=path, start_new_session=True, **streams
        )

    return body() if fd is None else nsfs.inside(fd, body)


def wait_until(condition: Callable[[], bool], *, what: str, timeout_s: float = 5.0, every_s: float = 0.01) -> None:
    """Wait until *condition* holds.

    Raises:
        Timeout: it still did not after *timeout_s* seconds; the message says *what*.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise Timeout(f"{what}: not within {timeout_s:g} s")
        time.sleep(every_s)
