"""Which chapters need the virtual machine here, and why."""
from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from k8snet.errors import K8snetError
from k8snet.jupyter.chapters import Chapter
from k8snet.jupyter.vm import image, machine
from k8snet.linux import run as programs

__all__ = ["KERNELSPEC", "reasons"]

KERNELSPEC = "k8snet-vm"
DOCTOR_S = 120.0
TRIAL = "import sys; from k8snet import sandbox; sys.exit(sandbox.run(['true']))"
PACKAGE = "sudo apt-get install"  # how a remedy begins that helps here, and without which no guest helps
FORBIDDEN = "user namespaces are forbidden here"


def reasons(chapters: Sequence[Chapter]) -> dict[str, str]:
    """Return the names of the chapters that need the virtual machine, and what for.

    Raises:
        K8snetError: some need it, and it cannot be used yet; the message says what to do.
    """
    found = _reasons(chapters)
    if found:
        try:
            image.find()
            machine.qemu()
        except K8snetError as error:
            name, why = next(iter(found.items()))
            raise type(error)(f"{name} needs the virtual machine, because {why}: {error}") from None
    return found


def _reasons(chapters: Sequence[Chapter]) -> dict[str, str]:
    if not _sandboxes_work():
        return {chapter.name: FORBIDDEN for chapter in chapters}
    asking = [chapter for chapter in chapters if chapter.requires]
    lacking = _lacking() if asking else set()
    return {
        chapter.name: f"this Linux lacks {', '.join(names)}"
        for chapter in asking
        if (names := [name for name in chapter.requires if name.casefold() in lacking])
    }


def _lacking() -> set[str]:
    """Return what `k8snet doctor` misses and a package of this machine would not bring."""
    done = programs.run([sys.executable, "-m", "k8snet.cli", "doctor", "--json"], timeout_s=DOCTOR_S, check=False)
    try:
        findings = json.loads(done.stdout)["findings"]
    except (ValueError, KeyError):
        raise K8snetError(f"`k8snet doctor` ended with {done.code}: {done.stderr.strip()}") from None
    return {one["ability"].casefold() for one in findings if not one["ok"] and not one["remedy"].startswith(PACKAGE)}


def _sandboxes_work() -> bool:
    return programs.run([sys.executable, "-c", TRIAL], check=False).ok
