"""Start ipykernel, or any command, in a guest: what Jupyter runs for the kernelspec `k8snet-vm`.

Usage: python -m k8snet.jupyter.vm.launch -f CONNECTION_FILE
"""
from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from k8snet.errors import CapabilityMissing, InvalidInput, K8snetError
from k8snet.jupyter.launch import QUIET
from k8snet.jupyter.vm import image, machine

__all__ = ["check", "main", "prepared", "run_in_vm"]

KVM_BOOT_S = 20.0  # seconds after which KVM counts as one that does not work
PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


def main(arguments: list[str]) -> int:
    """Run ipykernel in a guest until it ends, or until Jupyter does."""
    home = os.environ.get("K8SNET_WORKDIR")
    with contextlib.ExitStack() as stack, _signals_end_us():
        try:
            file = Path(arguments[arguments.index("-f") + 1])
            listeners = [stack.enter_context(one) for one in _listen(file)]
            plan = machine.Plan(
                command=[sys.executable, "-m", "ipykernel_launcher", QUIET, *arguments],
                writable=machine.writable_folders(Path(home) if home else None),
                files={str(file): file.read_text()},
            )
            return machine.run(
                plan, image.find(), listeners=listeners, watched=_owners(), streams=_without_input()
            )
        except (K8snetError, OSError) as error:
            sys.stderr.write(f"k8snet: {error}\n")
            return 1


def run_in_vm(command: Sequence[str], *, working_copy: Path | None = None) -> int:
    """Run *command* in a new guest, with our standard streams, and return its exit code.

    Like: k8snet sandbox --vm -- COMMAND

    Raises:
        CapabilityMissing: no guest is prepared here.
        ProgramMissing: QEMU is not installed.
        SandboxFailed: the guest did not start.
    """
    found = image.find()
    has_terminal = all(map(os.isatty, (0, 1, 2)))
    plan = machine.Plan(
        command=command, writable=machine.writable_folders(working_copy),
        size=machine.terminal_size() if has_terminal else None,
    )  # fmt: skip
    with contextlib.ExitStack() as stack, _signals_end_us(), _signals_heard(has_terminal) as signals:
        return machine.run(
            plan, found, signals=signals,
            started=lambda: stack.enter_context(_raw_terminal()) if has_terminal else None,
        )  # fmt: skip


def prepared(say: Callable[[str], None]) -> image.Image:
    """Return the image, made now where there is none.

    Raises:
        CapabilityMissing: no kernel can be had here.
        ProgramMissing: QEMU is not installed.
        K8snetError: the image does not boot.
    """
    machine.qemu()
    try:
        return image.find()
    except CapabilityMissing:
        return image.prepare(say, check)


def check(new: image.Image) -> str:
    """Boot *new* with KVM if that works here, else without; return which of them it was.

    Raises:
        SandboxFailed: it boots with neither; the message has the end of what it printed.
    """
    plan = machine.Plan(command=[sys.executable, "-I", "-S", "-c", "import socket"], writable=())
    if machine.has_kvm():
        with contextlib.suppress(K8snetError):
            if machine.run(plan, new, accelerator="kvm", boot_s=KVM_BOOT_S, streams=_without_input()) == 0:
                return "kvm"
    if code := machine.run(plan, new, accelerator="tcg", streams=_without_input()):
        raise K8snetError(f"the guest boots, but {sys.executable} ends with {code} in it")
    return "tcg"


def _without_input() -> tuple[int, int, int]:
    return os.open(os.devnull, os.O_RDONLY), 1, 2  # closed when it is read to its end


def _listen(file: Path) -> Iterator[socket.socket]:
    """Yield a listening socket for each port of a connection file."""
    told = json.loads(file.read_text())
    if told["transport"] != "tcp":
        raise InvalidInput(f"{file} says {told['transport']}: a virtual machine is reached by tcp only")
    for name in PORTS:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((told["ip"], told[name]))
        listener.listen()
        yield listener


def _owners() -> list[int]:
    """Return a pidfd of each process whose end is ours: our parent and the Jupyter server."""
    pids = {os.getppid()}
    with contextlib.suppress(KeyError, ValueError):
        pids.add(int(os.environ["JPY_PARENT_PID"]))
    return [os.pidfd_open(pid) for pid in pids]


@contextlib.contextmanager
def _signals_end_us() -> Iterator[None]:
    """Turn signals into an orderly end, which takes QEMU with us."""

    def end(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    yield


@contextlib.contextmanager
def _signals_heard(has_terminal: bool) -> Iterator[int]:
    """Yield an open file that says when the guest has to hear of Ctrl-C, or of another size of the terminal."""
    heard, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    for number in (signal.SIGINT, *([signal.SIGWINCH] if has_terminal else [])):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    try:
        yield heard
    finally:
        signal.set_wakeup_fd(-1)
        os.close(heard)
        os.close(wakeup)


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Let every key travel to the guest's terminal, which knows what Ctrl-C means."""
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
