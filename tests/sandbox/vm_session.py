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

IMPORTS = "from k8snet import End, Lab; from pyroute2 import IPVS, IPVSDest, IPVSService"
IPVS = """
def program():
    with IPVS() as ipvs:
        service = IPVSService(addr="10.96.0.10", port=80, protocol=6, sched_name="rr")
        ipvs.service("add", service=service)
        for number in (1, 2):
            ipvs.dest("add", service=service, dest=IPVSDest(addr=f"10.0.{number}.2", port=8080, fwd_method=0))

with Lab() as lab:
    director, client = lab.netns("director", forward=True), lab.netns("client")
    for number, netns in enumerate((client, lab.netns("one"), lab.netns("two"))):
        lab.veth(End(netns=director, name=f"eth{number}", address=f"10.0.{number}.1/24"),
                 End(netns=netns, name="eth0", address=f"10.0.{number}.2/24"))
        netns.run("ip", "route", "add", "default", "via", f"10.0.{number}.1")
        if netns is not client:
            netns.listen(8080)
    director.sh("ip link add name kube-ipvs0 type dummy; ip address add 10.96.0.10/32 dev kube-ipvs0")
    director.inside(program)
    answers = [client.run("curl", "-s", "--max-time", "10", "http://10.96.0.10/").stdout for _ in range(10)]
    print(*("one" if "one" in answer else "two" if "two" in answer else repr(answer) for answer in answers))
"""


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


def whole_life(session: VmSession) -> dict[str, object]:
    """Use IPVS, interrupt cells that would not end, restart the kernel, and kill its machine."""
    session.wait()
    session.run(IMPORTS)
    ipvs = session.run(IPVS)[0]
    ends = {name: session.run(code, interrupt_after=1.0)[0] for name, code in LONG.items()}
    after = session.run("x = 1; print('alive')")[0]
    session.manager.restart_kernel()
    session.client.wait_for_ready(timeout=BOOT_S)
    restarted = session.run("print('x' in dir())")[0]
    os.kill(session.qemu(), signal.SIGKILL)
    noticed = eventually(lambda: not session.manager.is_alive(), within=30)
    return {"ipvs": ipvs, "ends": ends, "after": after, "restarted": restarted, "noticed": noticed}


def main(scenario: str, folder: Path, mark: str) -> dict[str, object]:
    """Play one scenario."""
    session = VmSession(folder, mark)
    if scenario == "life":
        return whole_life(session)
    session.qemu()
    sys.stdout.write("{}")
    sys.stdout.flush()
    os.kill(os.getpid() if scenario == "server" else session.manager.provisioner.pid, signal.SIGKILL)
    os._exit(0)  # the launcher was killed, and its owner goes without a word to Jupyter


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])))
