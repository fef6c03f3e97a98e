"""A Jupyter session with the kernelspec k8snet, in a process of its own: python session.py SCENARIO FOLDER MARK.

It plays the Jupyter server. Prints one JSON object; some scenarios end it by SIGKILL.
"""
from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path

from jupyter_client.manager import KernelManager

CHILD = """
import os, subprocess, time
child = subprocess.Popen(["unshare", "--net", "sh", "-c", "sleep 1000; : MARK"], start_new_session=True)
while os.stat(f"/proc/{child.pid}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino: time.sleep(0.01)
print(os.stat(f"/proc/{child.pid}/ns/net").st_ino)
"""
LONG = {
    "python": "import time; time.sleep(60)",
    "program": "import subprocess; subprocess.run(['sleep', '60'])",
    "shell": "!sleep 60",
}


class Session:
    """A running kernel, and a client of it."""

    def __init__(self, folder: Path, mark: str) -> None:
        """Start the kernel, its connection file named after *mark*."""
        self.manager = KernelManager(kernel_name="k8snet", connection_file=str(folder / f"{mark}.json"))
        self.manager.start_kernel()
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, code: str, *, interrupt_after: float | None = None) -> tuple[str, float]:
        """Run a cell; return what it printed or raised, and the seconds from the interrupt to its end."""
        request = self.client.execute(code)
        begun, interrupted, output = time.monotonic(), 0.0, ""
        while time.monotonic() < begun + 60:
            if interrupt_after and not interrupted and time.monotonic() > begun + interrupt_after:
                interrupted = time.monotonic()
                self.manager.interrupt_kernel()
            try:
                message = self.client.get_iopub_msg(timeout=0.05)
            except queue.Empty:
                continue
            content = message["content"]
            if message["parent_header"].get("msg_id") != request:
                continue
            output += str(content.get("text", "")) + str(content.get("ename", ""))
            if content.get("execution_state") == "idle":
                break
        return output, time.monotonic() - interrupted

    def tree(self) -> dict[str, int]:
        """Return the pids, outside, of the supervisor, of unshare, of pid 1 and of ipykernel."""
        pids, names = [self.manager.provisioner.pid], ("supervisor", "unshare", "first", "ipykernel")
        while len(pids) < len(names):
            children = Path(f"/proc/{pids[-1]}/task/{pids[-1]}/children").read_text().split()
            pids.append(int(children[0]))
        return dict(zip(names, pids, strict=True))


def main(scenario: str, folder: Path, mark: str) -> dict[str, object]:
    """Play one scenario."""
    session = Session(folder, mark)
    netns = int(session.run(CHILD.replace("MARK", mark))[0])
    if scenario == "interrupt":
        ends = {name: session.run(code, interrupt_after=0.5)[1] for name, code in LONG.items()}
        after = session.run("print('alive')")[0]
        session.manager.shutdown_kernel()
        return {"netns": netns, "ends": ends, "after": after}
    if scenario == "restart":
        session.manager.restart_kernel()
        session.client.wait_for_ready(timeout=60)
        after = session.run("print('child' in dir())")[0]
        left = subprocess.run(["pgrep", "-fc", f": {mark}"], capture_output=True, text=True, check=False)
        session.manager.shutdown_kernel()
        return {"netns": netns, "after": after, "children": int(left.stdout)}
    if scenario == "shutdown":
        session.manager.shutdown_kernel()
        return {"netns": netns}
    sys.stdout.write(json.dumps({"netns": netns}))
    sys.stdout.flush()
    victim = os.getpid() if scenario == "server" else session.tree()[scenario]
    os.kill(victim, signal.SIGKILL)
    time.sleep(1)  # the kernel's owner still lives, and has not noticed
    os._exit(0)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])))
