"""Who takes part."""
from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from k8snet.errors import ProgramMissing
from k8snet.linux.run import require, run

__all__ = [
    "ALL",
    "CLUSTER",
    "DIRECT",
    "IN_GUEST",
    "LOWER_BOUND",
    "OURS",
    "SERVICES",
    "THROUGH_CNI",
    "Contender",
    "compiled",
]

HERE = Path(__file__).parent
OURS = "k8snet"
LOWER_BOUND = "lower-bound"
DIRECT, THROUGH_CNI = "cluster-direct", "cluster-cni"
IN_GUEST = "services-vm"
SYSTEM_PYTHON = "/usr/bin/python3"  # Debian packages Mininet for it


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to build a bridge with pods, or a cluster."""

    name: str
    title: str  # as the table has it
    module: str = ""  # in this folder; empty for the C program
    arguments: tuple[str, ...] = ()
    python: str = sys.executable
    in_node: bool = True  # runs inside the node's netns, made by the referee
    needs: tuple[str, ...] = ()  # files
    package: str = ""  # of Debian, that has them

    def argv(self, program: Path) -> list[str]:
        """Return how to start it; *program* is the compiled lower bound."""
        if not self.module:
            return [str(program)]
        return [self.python, "-m", f"benchmarks.contenders.{self.module}", *self.arguments]

    def check(self) -> None:
        """Check that it can run here.

        Raises:
            ProgramMissing: something that it needs is not installed.
        """
        for path in self.needs:
            if not Path(path).exists():
                raise ProgramMissing(
                    f"{self.name} needs {path}. Debian, Ubuntu: apt-get install {self.package} "
                    f"(`./run bench` does that), or leave it out with --only"
                )


ALL = (
    Contender(
        name=LOWER_BOUND, title="C, raw netlink: the lower bound",
        needs=("/usr/bin/gcc",), package="gcc libc6-dev",
    ),
    Contender(name=OURS, title="**k8snet**", module="k8snet_lab", in_node=False),
    Contender(
        name="k8snet-pyroute2", title="k8snet, messages encoded by pyroute2",
        module="k8snet_pyroute2_encoder", in_node=False,
    ),
    Contender(
        name="ip-batch", title="`ip -batch`, one a pod", module="ip_batch",
        needs=("/sbin/ip",), package="iproute2",
    ),
    Contender(
        name="ip", title="`ip`, one process a command", module="ip_commands",
        needs=("/sbin/ip",), package="iproute2",
    ),
    Contender(name="pyroute2", title="pyroute2, as documented", module="pyroute2_documented"),
    Contender(
        name="cni", title="CNI plugin `bridge` (Debian)", module="cni_bridge",
        needs=("/usr/lib/cni/bridge", "/usr/lib/cni/host-local"), package="containernetworking-plugins",
    ),
    Contender(
        name="mininet", title="Mininet, `LinuxBridge`", module="mininet_hosts",
        python=SYSTEM_PYTHON,
        needs=("/usr/lib/python3/dist-packages/mininet", "/usr/sbin/brctl"), package="mininet bridge-utils",
    ),
)  # fmt: skip

CLUSTER = (
    Contender(
        name=DIRECT, title="**k8snet**, which wires the pods itself", module="k8snet_cluster", arguments=("direct",),
        in_node=False, needs=("/usr/sbin/nginx",), package="nginx",
    ),
    Contender(
        name=THROUGH_CNI, title="**k8snet**, through Debian's CNI plugins", module="k8snet_cluster",
        arguments=("cni",), in_node=False, needs=("/usr/sbin/nginx", "/usr/lib/cni/bridge", "/usr/lib/cni/portmap"),
        package="nginx containernetworking-plugins",
    ),
    Contender(
        name="cluster-mininet", title="Mininet, `LinuxBridge` and routers", module="mininet_cluster",
        python=SYSTEM_PYTHON,
        needs=("/usr/sbin/nginx", "/usr/lib/python3/dist-packages/mininet", "/usr/sbin/brctl"),
        package="nginx mininet bridge-utils",
    ),
)  # fmt: skip

SERVICES = (  # nobody to race with: a way, and the tool that it needs
    Contender(
        name="services-iptables", title="kube-proxy in iptables mode", arguments=("iptables-legacy",),
        needs=("/usr/sbin/iptables-legacy-restore",), package="iptables",
    ),
    Contender(
        name="services-iptables-nft", title="the same rules in iptables-nft", arguments=("iptables-nft",),
        needs=("/usr/sbin/iptables-nft-restore",), package="iptables",
    ),
    Contender(
        name="services-nftables", title="kube-proxy in nftables mode", arguments=("nftables",),
        needs=("/usr/sbin/nft",), package="nftables",
    ),
    Contender(
        name=IN_GUEST, title="all of them and IPVS, in the virtual machine",
        needs=("/usr/bin/qemu-system-x86_64",), package="qemu-system-x86",
    ),
)  # fmt: skip


def compiled(folder: Path) -> Path:
    """Compile the lower bound into *folder*, and return the program.

    Raises:
        ProgramMissing, CommandFailed: it cannot be compiled here.
    """
    program = folder / "lower_bound"
    source = HERE / "lower_bound.c"
    run([require("gcc"), "-O2", "-Wall", "-Werror", "-o", str(program), str(source)])
    return program
