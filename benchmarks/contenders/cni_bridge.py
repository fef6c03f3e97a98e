"""Debian's CNI plugins `bridge` and `host-local`: CNI ADD and DEL for each pod.

We play the container runtime, as cheaply as one can: a netns is made in this process.
"""
from __future__ import annotations

import json
import shutil
import subprocess
import tempfile

from benchmarks import plan
from benchmarks.contenders.common import ipv6_off
from benchmarks.play import play
from k8snet.linux import nsfs
from k8snet.linux.batch import drop_all

FOLDER = "/usr/lib/cni"


class CniBridge:
    """Runs inside the node's netns, which is where the plugin makes its bridge."""

    def build(self, pods: int) -> dict[str, object]:
        """Make each pod, and return the addresses that host-local gave."""
        self.pods, self.data = pods, tempfile.mkdtemp(prefix="cni-", dir="/run")
        addresses = []
        for number in range(pods):
            nsfs.make(plan.pod(number))
            ipv6_off(plan.pod(number))
            result = json.loads(self._call("ADD", number))
            addresses.append(result["ips"][0]["address"].partition("/")[0])
        return {"addresses": addresses}

    def _call(self, command: str, number: int) -> str:
        pod = plan.pod(number)
        environment = {
            "CNI_COMMAND": command, "CNI_CONTAINERID": pod, "CNI_IFNAME": "eth0",
            "CNI_NETNS": f"{nsfs.FOLDER}/{pod}", "CNI_PATH": FOLDER, "PATH": "/usr/sbin:/usr/bin",
        }  # fmt: skip
        done = subprocess.run(  # this is what is measured
            [f"{FOLDER}/bridge"], env=environment, input=json.dumps(self._config()),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"CNI {command} for {pod}: {done.stdout}{done.stderr}")
        return done.stdout

    def _config(self) -> dict[str, object]:
        subnet = {"subnet": f"{plan.GATEWAY.rpartition('.')[0]}.0/{plan.PREFIX}"}
        return {
            "cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": plan.BRIDGE,
            "isDefaultGateway": True,
            "ipam": {"type": "host-local", "ranges": [[subnet]], "dataDir": self.data},
        }  # fmt: skip

    def teardown(self) -> None:
        """CNI DEL for each pod, then drop all netns; the bridge ends with the node."""
        for number in range(self.pods):
            self._call("DEL", number)
        drop_all([plan.pod(number) for number in range(self.pods)])
        subprocess.run(["/sbin/ip", "link", "delete", plan.BRIDGE], check=True)
        shutil.rmtree(self.data)


if __name__ == "__main__":
    play(CniBridge())
