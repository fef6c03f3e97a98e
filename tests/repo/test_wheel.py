"""The wheel: what `pip install` puts on a reader's machine."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this working tree; hatchling comes from the package index if it is not here."""
    folder = tmp_path_factory.mktemp("wheel")
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    words = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", *isolation]
    done = subprocess.run([*words, "-w", str(folder), str(ROOT)], capture_output=True, text=True, check=False)
    if done.returncode and "hatchling" in done.stderr:
        pytest.skip("hatchling is not here, and cannot be downloaded")
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_jupyter_finds_the_kernelspecs_after_a_plain_install(wheel: zipfile.ZipFile) -> None:
    """A wheel's data/ goes below the environment's prefix, where Jupyter looks."""
    names = sorted(name for name in wheel.namelist() if name.endswith("kernel.json") and ".data/" in name)
    for name, kernel in zip(names, ("k8snet-vm", "k8snet"), strict=True):
        assert name.endswith(f".data/data/share/jupyter/kernels/{kernel}/kernel.json")
        assert wheel.read(name) == (ROOT / f"k8snet/jupyter/kernels/{kernel}/kernel.json").read_bytes()


def test_the_book_is_in_the_wheel_as_it_is_in_the_repository(wheel: zipfile.ZipFile) -> None:
    """`k8snet lab` copies it from there, and `k8snet book` builds it."""
    names = set(wheel.namelist())
    for chapter in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"k8snet/_book/notebooks/{chapter.name}" in names
    assert "k8snet/_book/book/conf.py" in names
    assert not [name for name in names if "/_build/" in name or name.startswith("tests/")]
