"""QEMU, and our end of the one stream that leads into its guest.

The machine has no network card and no disk. QEMU runs as the user who asks, without new
privileges, and gets SIGKILL when the process that started it ends, however that ends.
"""
from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from k8snet import sandbox
from k8snet.errors import InvalidInput, ProgramMissing, SandboxFailed, Timeout
from k8snet.jupyter.vm import guest
from k8snet.jupyter.vm.image import Image

__all__ = [
    "INSTALL", "Plan", "arguments", "at_once", "code_within", "has_kvm", "memory_mb", "qemu", "run", "terminal_size",
    "writable_folders",
]  # fmt: skip

QEMU = "qemu-system-x86_64"
INSTALL = "sudo apt-get install --no-install-recommends qemu-system-x86"
MEMORY = "K8SNET_VM_MEMORY"
BOOT_S = 120.0  # seconds; two under emulation on an idle laptop
DRAIN_S = 2.0  # seconds for our clients to take the last words of the command
TRANSLATED_MB = 256  # MB of code that emulation keeps; QEMU's own choice is up to 1024, too much for a Binder
OVERHEAD_MB = TRANSLATED_MB + 150  # MB of QEMU itself
LAST_LINES = 25
MACHINE = "q35,usb=off,sata=off,smbus=off,vmport=off,smm=off"  # a microvm has no clock but TSC: 1 boot of 6 hung
LINUX = "quiet loglevel=3 panic=-1 mitigations=off tsc=reliable random.trust_cpu=on console=ttyS0"
NOT_FOR_QEMU = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"  # system calls


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What runs in the guest."""

    command: Sequence[str]
    writable: Sequence[Path] = ()  # folders that the guest shares with this machine; nothing else is kept
    files: dict[str, str] = field(default_factory=dict)  # name and text of files that only the guest gets
    size: tuple[int, int] | None = None  # rows, columns: gives the command a terminal

    def as_dict(self) -> dict[str, Any]:
        """Return what the guest is told."""
        own = {sandbox.GUEST: "1", "TMPDIR": "/tmp", "IPYTHONDIR": "/tmp/ipython"}  # noqa: S108  # the guest's /tmp
        return {
            "command": list(self.command), "files": self.files, "size": self.size, "time": time.time(),
            "environment": {**sandbox.environment(), **own}, "folder": str(Path.cwd()),
        }  # fmt: skip


def qemu() -> str:
    """Return the path of QEMU.

    Raises:
        ProgramMissing: it is not installed.
    """
    if found := shutil.which(QEMU):
        return found
    raise ProgramMissing(f"`{QEMU}` is not installed. Debian, Ubuntu: {INSTALL}")


def terminal_size() -> tuple[int, int]:
    """Return rows and columns of the terminal that is our standard output."""
    size = os.get_terminal_size(1)
    return size.lines, size.columns


def memory_mb() -> int:
    """Return the memory of a guest: $K8SNET_VM_MEMORY, or 512 MB.

    Raises:
        InvalidInput: the variable is no number from 256 on.
    """
    said = os.environ.get(MEMORY, "512")
    if not said.isdigit() or int(said) < 256:
        raise InvalidInput(f"{MEMORY} is {said!r}: give the guest's memory in MB, 256 or more")
    return int(said)


def at_once() -> int:
    """Return how many guests the memory of this machine, or of our container, has room for; one at least."""
    free = [int(line.split()[1]) >> 10 for line in _lines("/proc/meminfo") if line.startswith("MemAvailable:")]
    with contextlib.suppress(ValueError, IndexError):  # no such group, or "max"
        most, used = (int(_lines(f"/sys/fs/cgroup/memory.{name}")[0]) >> 20 for name in ("max", "current"))
        free.append(most - used)
    return max(1, min(free) // (memory_mb() + OVERHEAD_MB))


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def has_kvm() -> bool:
    """Tell whether /dev/kvm is there for us; a guest may still not boot on it."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def writable_folders(working_copy: Path | None = None) -> list[Path]:
    """Return what a guest shares: what a sandbox may write, but for /tmp, which is the guest's own."""
    folders = {path for path in sandbox.writable_folders(working_copy) if path != Path("/tmp")}  # noqa: S108
    return sorted(folders, key=lambda path: len(path.parts))  # the outer ones are mounted first


def code_within(writable: Sequence[Path]) -> list[Path]:
    """Return which folders of Python code lie in shared ones.

    The guest sees them read-only and caches them; else each module of an import asks the host
    a dozen times, and `k8snet --help` takes 30 s instead of 3.
    """
    code = {Path(sys.prefix).resolve(), Path(sandbox.__file__).resolve().parent}
    return sorted(
        folder for folder in code
        if any(folder.is_relative_to(path) and folder != path for path in writable)
        and not any(path.is_relative_to(folder) for path in writable)
    )  # fmt: skip


def arguments(image: Image, writable: Sequence[Path], *, stream: int, accelerator: str, memory: int) -> list[str]:
    """Return the argument list of QEMU.

    Args:
        stream: the open socket that becomes the guest's /dev/vport0p1.
        accelerator: kvm or tcg.
        memory: MB.

    Raises:
        InvalidInput: a path that has to be told to the guest's Linux has a quotation mark in it.
    """
    told = {"IMAGE": image.folder, "PYTHON": sys.executable, "GUEST": Path(guest.__file__).resolve()}
    told |= {f"SHARE{number}": path for number, path in enumerate(writable)}
    told |= {f"CODE{number}": path for number, path in enumerate(code_within(writable))}
    if bad := [str(path) for path in told.values() if '"' in str(path)]:
        raise InvalidInput(f"a virtual machine cannot be told of {bad[0]}: it has a quotation mark in its name")
    emulation = f",tb-size={TRANSLATED_MB}" if accelerator == "tcg" else ""
    linux = " ".join([LINUX, *(f'{name}="{path}"' for name, path in told.items())])
    words = [
        qemu(), "-machine", MACHINE, "-accel", accelerator + emulation, "-cpu", "max", "-m", str(memory),
        "-smp", str(min(os.cpu_count() or 1, 2)), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-sandbox", NOT_FOR_QEMU, "-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", linux,
        "-serial", "stdio", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=stream,fd={stream}", "-device", "virtserialport,chardev=stream",
    ]  # fmt: skip
    shares = [("root", Path("/")), *((f"share{number}", path) for number, path in enumerate(writable))]
    for tag, path in shares:
        only = ",readonly=on" if tag == "root" else ""
        name = str(path).replace(",", ",,")
        words += ["-fsdev", f"local,id={tag},path={name},security_model=none,multidevs=remap{only}"]
        words += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    return words


def run(
    plan: Plan, image: Image, *, listeners: Sequence[socket.socket] = (), watched: Sequence[int] = (),
    accelerator: str = "", boot_s: float = BOOT_S, streams: Sequence[int] = (0, 1, 2), signals: int = -1,
    started: Callable[[], object] = lambda: None,
) -> int:  # fmt: skip
    """Run the command of *plan* in a new guest, and return its exit code; 128 + the number of a signal.

    Args:
        listeners: sockets here whose clients are connected to the same port of the guest.
        watched: open files; the guest is ended when one of them can be read.
        accelerator: kvm or tcg, instead of what worked when the image was prepared and is here now.
        boot_s: seconds that the guest may take to start.
        streams: open files for the command's input, output and errors.
        signals: an open file with the number of each signal that came to us (signal.set_wakeup_fd).
        started: is called when the guest has started.

    Raises:
        SandboxFailed: the guest did not start, or ended before its command; with the end of what it printed.
        Timeout: the guest did not start within *boot_s*.
    """
    accelerator = accelerator or (image.accelerator if has_kvm() else "tcg")
    with _started(plan, image, accelerator) as (fd, console):
        host = _Host(fd, plan, streams, started)
        host.listen(listeners)
        if signals >= 0:
            host.mux.watched[signals] = lambda: host.hear(signals)
        for one in watched:
            host.mux.watched[one] = host.end
        try:
            return host.serve(boot_s)
        except Timeout as error:
            raise Timeout(f"{error}. {_last_words(console)}") from None
        except (EOFError, ConnectionError):
            raise SandboxFailed(f"the virtual machine ended early. {_last_words(console)}") from None


@contextlib.contextmanager
def _started(plan: Plan, image: Image, accelerator: str) -> Iterator[tuple[int, IO[bytes]]]:
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.TemporaryFile() as console:
        words = arguments(
            image, plan.writable, stream=theirs.fileno(), accelerator=accelerator, memory=memory_mb()
        )
        limits = ["setpriv", "--no-new-privs", "--pdeathsig", "KILL", "--"]
        machine = subprocess.Popen(
            [*limits, *words], stdin=subprocess.DEVNULL, stdout=console, stderr=console,
            pass_fds=[theirs.fileno()], start_new_session=True,
        )  # fmt: skip
        try:
            theirs.close()
            ours.setblocking(False)
            yield ours.fileno(), console
        finally:
            machine.kill()
            machine.wait()


def _last_words(console: IO[bytes]) -> str:
    console.seek(0)
    lines = console.read().decode(errors="replace").strip().splitlines()[-LAST_LINES:]
    return "It printed:\n" + "\n".join(lines) if lines else "It printed nothing."


class _Host:
    """Our end: the ports, the standard streams, and what the guest tells."""

    def __init__(self, fd: int, plan: Plan, streams: Sequence[int], started: Callable[[], object]) -> None:
        self.mux = guest.Mux(fd, told=self.told)
        self.ready, self.started = False, started
        self.code: int | None = None
        self.channel = guest.ERRORS
        stdin, stdout, stderr = streams
        self.mux.streams[guest.INPUT] = guest.Stream(source=stdin)
        self.mux.streams[guest.OUTPUT] = guest.Stream(sink=stdout)
        self.mux.streams[guest.ERRORS] = guest.Stream(sink=stderr)
        self.mux.tell(plan=plan.as_dict())

    def told(self, what: dict[str, Any]) -> None:
        if "ready" in what:
            self.ready = True
            self.started()
        if "exit" in what:
            self.code = what["exit"]

    def hear(self, signals: int) -> None:
        """Pass on an interrupt, and a new size of the terminal."""
        for number in os.read(signals, 64):
            if number == signal.SIGINT and not self.ready:
                self.code = -number
            elif number == signal.SIGINT:
                self.mux.tell(signal=number)
            elif number == signal.SIGWINCH:
                self.mux.tell(size=terminal_size())

    def end(self) -> None:
        """End as if the command had been killed."""
        self.code = -9

    def listen(self, listeners: Sequence[socket.socket]) -> None:
        """Bring each client of *listeners* to the same port of the guest."""

        def accept(listener: socket.socket) -> Callable[[], None]:
            def body() -> None:
                sock, _ = listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.channel += 1
                self.mux.streams[self.channel] = guest.Stream(sock=sock)
                self.mux.send(guest.OPEN, self.channel, str(listener.getsockname()[1]).encode())

            return body

        for listener in listeners:
            self.mux.watched[listener.fileno()] = accept(listener)

    def serve(self, boot_s: float) -> int:
        deadline = time.monotonic() + boot_s
        while self.code is None:
            self.mux.step(None if self.ready else 1.0)
            if not self.ready and time.monotonic() > deadline:
                raise Timeout(f"the virtual machine did not start within {boot_s:g} s")
        deadline = time.monotonic() + DRAIN_S
        while any(one.todo for one in self.mux.streams.values()) and time.monotonic() < deadline:
            self.mux.step(0.1)
        return 128 - self.code if self.code < 0 else self.code
