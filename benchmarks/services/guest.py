"""The same measurements in the virtual machine, which has IPVS: one boot for each round."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile

from benchmarks.services.measure import WAYS, Latency, Load
from benchmarks.services.results import sample_of

__all__ = ["MEMORY_MB", "MOST", "GuestFailed", "measure"]

MEMORY_MB = 1536
MOST = 1000  # Services; more take minutes under emulation
ROOT = Path(__file__).parents[2]


class GuestFailed(Exception):  # it reads as what happened
    """The virtual machine did not come to its end."""


def measure(
    sizes: Sequence[int], *, rounds: int, calls: int, progress: Callable[[str], None]
) -> tuple[str, list[Load | Latency]]:
    """Return what the guest is, and all of its samples.

    Args:
        progress: called with each line that the guest says.

    Raises:
        GuestFailed: it did not come to its end; what it said is in the message.
    """
    about, samples = "", []
    counts = ",".join(str(size) for size in sizes if size <= MOST) or str(MOST)
    for number in range(1, rounds + 1):
        words = ["-m", "benchmarks.services.guest", counts, str(calls), *WAYS, "ipvs"]
        for line in _lines(words):
            if not line.startswith("{"):
                about = line if line.startswith("Linux ") else about
                continue
            found = json.loads(line)
            progress(f"virtual machine, round {number}: {found['services']} Services, {found['way']}")
            samples.append(sample_of({**found, "round": number}))
    return f"{about}, {MEMORY_MB} MB", samples


def _lines(words: Sequence[str]) -> Iterator[str]:
    argv = [sys.executable, "-m", "k8snet.cli", "sandbox", "--vm", "--", sys.executable, *words]
    env = {**os.environ, "K8SNET_VM_MEMORY": str(MEMORY_MB)}
    with TemporaryFile("w+") as said, subprocess.Popen(
        argv, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, text=True
    ) as process:
        for line in process.stdout or ():
            yield line.strip()
        if process.wait():
            said.seek(0)
            raise GuestFailed(f"the virtual machine ended with {process.returncode}: {said.read()[-2000:]}")


if __name__ == "__main__":
    from benchmarks.services.measure import main

    about = os.uname()
    print(f"Linux {about.release}, {os.cpu_count()} CPUs", flush=True)
    main(sys.argv[1:])
