"""A Jupyter session with the kernelspec k8snet-vm, in a process of its own: python vm_session.py SCENARIO FOLDER MARK.

It plays the Jupyter server. Prints one JSON object; some scenarios end it, or a part of its kernel, by SIGKILL.
"""
from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from jupyter_client.manager import KernelManager

from tests.sandbox.conftest import eventually
from tests.sandbox.session import Session

BOOT_S = 180
LONG = {
    "sleep": "import time; time.sleep(300)",
    "loop": "while True: pass",
    "program": "import subprocess; subprocess.run(['sleep', '300'])",
}


class VmSession(Session):
    """A running kernel in a guest, and a client of it."""

    def __init__(self, folder: Path, mark: str) -> None:
        """Start the kernel, its connection file named after *mark*."""
        self.manager = KernelManager(kernel_name="k8snet-vm", connection_file=str(folder / f"{mark}.json"))
        self.manager.start_kernel()

    def wait(self) -> None:
        """Wait for ipykernel in the guest."""
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=BOOT_S)

    def qemu(self) -> int:
        """Return the pid of QEMU, the only child of the launcher, once it is there."""
        launcher = self.manager.provisioner.pid

        def children() -> list[int]:
            pids = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
            return [int(pid) for pid in pids if b"qemu" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]]

        assert eventually(children, within=60)
        return children()[0]


def interrupt(session: VmSession) -> dict[str, object]:
    """Interrupt cells that would not end, restart the kernel, and shut it down."""
    session.wait()
    ends = {name: session.run(code, interrupt_after=1.0)[0] for name, code in LONG.items()}
    after = session.run("x = 1; print('alive')")[0]
    session.manager.restart_kernel()
    session.client.wait_for_ready(timeout=BOOT_S)
    restarted = session.run("print('x' in dir())")[0]
    session.manager.shutdown_kernel()
    return {"ends": ends, "after": after, "restarted": restarted}


def main(scenario: str, folder: Path, mark: str) -> dict[str, object]:
    """Play one scenario."""
    session = VmSession(folder, mark)
    if scenario == "interrupt":
        return interrupt(session)
    if scenario == "qemu":
        session.wait()
        os.kill(session.qemu(), signal.SIGKILL)
        return {"noticed": eventually(lambda: not session.manager.is_alive(), within=30)}
    session.qemu()
    sys.stdout.write("{}")
    sys.stdout.flush()
    os.kill(os.getpid() if scenario == "server" else session.manager.provisioner.pid, signal.SIGKILL)
    os._exit(0)  # the launcher was killed, and its owner goes without a word to Jupyter


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])))
