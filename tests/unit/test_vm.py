"""The virtual machine, as far as it needs none: which kernel it takes, how much memory, how many at once."""
from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from k8snet.errors import CapabilityMissing, InvalidInput
from k8snet.jupyter import runner
from k8snet.jupyter.vm import image, machine

UBUNTU = """\
linux-image-generic
  Depends: linux-image-6.8.0-49-generic
  Depends: linux-modules-extra-6.8.0-49-generic
  Depends: linux-firmware
linux-image-6.8.0-49-generic
  Depends: kmod
 |Depends: linux-initramfs-tool
  Depends: linux-modules-6.8.0-49-generic
linux-modules-extra-6.8.0-49-generic
 |Depends: linux-image-6.8.0-49-generic
  Depends: linux-image-unsigned-6.8.0-49-generic
linux-firmware
kmod
linux-modules-6.8.0-49-generic
linux-image-unsigned-6.8.0-49-generic
"""
DEBIAN = """\
linux-image-amd64
  Depends: linux-image-6.12.57+deb13-amd64
linux-image-6.12.57+deb13-amd64
  Depends: kmod
  Depends: <linux-initramfs-tool>
    dracut
linux-image-6.12.57+deb13-amd64-unsigned
kmod
"""


@pytest.mark.parametrize(
    ("distribution", "package"),
    [
        ({"ID": "debian", "VERSION_ID": "12"}, "linux-image-amd64"),
        ({"ID": "debian", "VERSION_ID": "13"}, "linux-image-amd64"),
        ({"ID": "ubuntu", "ID_LIKE": "debian", "VERSION_ID": "24.04"}, "linux-image-generic"),
        ({"ID": "linuxmint", "ID_LIKE": "ubuntu debian"}, "linux-image-generic"),
        ({"ID": "linuxmint", "ID_LIKE": "debian"}, "linux-image-amd64"),
    ],
)
def test_the_kernel_is_the_distributions_with_all_modules(distribution: dict[str, str], package: str) -> None:
    """Ubuntu has packages without 9p, Debian a "cloud" kernel without it; these have it."""
    assert image.metapackage(distribution) == package


@pytest.mark.parametrize(
    ("distribution", "name"), [({"PRETTY_NAME": "Fedora 43", "ID": "fedora"}, "Fedora 43"), ({}, "this system")]
)
def test_a_distribution_whose_packages_are_unknown_is_named(distribution: dict[str, str], name: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(CapabilityMissing, match=f"{name} is neither"):
        image.metapackage(distribution)


def test_the_packages_are_the_kernel_and_its_modules_alone() -> None:
    """Firmware would be 400 MB more, the unsigned kernel is the same once again."""
    modules = ["linux-modules-6.8.0-49-generic", "linux-modules-extra-6.8.0-49-generic"]
    assert image.kernel_packages(UBUNTU) == ["linux-image-6.8.0-49-generic", *modules]
    assert image.kernel_packages(DEBIAN) == ["linux-image-6.12.57+deb13-amd64"]


@pytest.mark.parametrize("said", ["", "much", "-1", "255"])
def test_memory_that_is_no_number_is_refused(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU's own message would come from inside a kernelspec's log."""
    monkeypatch.setenv("K8SNET_VM_MEMORY", said)
    with pytest.raises(InvalidInput, match="K8SNET_VM_MEMORY"):
        machine.memory_mb()


@pytest.mark.parametrize(
    ("available", "most", "used", "guests"),
    [(8000, None, 0, 8), (8000, "max", 0, 8), (8000, 2048, 400, 1), (300, None, 0, 1), (2000, 8000, 0, 2)],
)
def test_as_many_guests_run_at_once_as_there_is_memory_for(
    available: int, most: object, used: int, guests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a Binder with 2 GB, one a core would end in the kernel's hands; the least of machine and container counts."""
    files = {"/proc/meminfo": [f"MemTotal: {99 << 20} kB", f"MemAvailable: {available << 10} kB"]}
    if most:
        files["/sys/fs/cgroup/memory.max"] = [str(most if most == "max" else int(str(most)) << 20)]
        files["/sys/fs/cgroup/memory.current"] = [str(used << 20)]
    monkeypatch.setattr(machine, "_lines", lambda path: files.get(path, []))
    monkeypatch.setenv("K8SNET_VM_MEMORY", "512")
    assert machine.at_once() == guests


def test_a_chapter_for_a_full_machine_waits_and_lets_others_pass() -> None:
    """Which would otherwise wait with it."""
    one, two = (SimpleNamespace(kernel=kernel) for kernel in ("k8snet-vm", "k8snet"))
    running = [SimpleNamespace(job=SimpleNamespace(kernel="k8snet-vm"))]
    assert runner._next([one, two], running, 1) is two  # type: ignore[arg-type, list-item]
    assert runner._next([one, two], running, 2) is one  # type: ignore[arg-type, list-item]
    assert runner._next([one], running, 1) is None  # type: ignore[arg-type, list-item]


def test_a_path_that_the_guests_linux_cannot_be_told_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command line knows quotation marks, and no way to quote one."""
    monkeypatch.setattr(machine, "qemu", lambda: "qemu")
    made = image.Image(folder=tmp_path, release="6.1", accelerator="tcg")
    with pytest.raises(InvalidInput, match="has a quotation mark"):
        machine.arguments(made, [tmp_path / 'a"b'], stream=3, accelerator="tcg", memory=512)
