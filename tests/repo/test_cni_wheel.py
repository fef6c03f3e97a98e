"""Our CNI plugin in the wheel: a program, so its mode matters."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from tests.repo.test_wheel import wheel  # noqa: F401  # a fixture


def test_our_plugin_can_be_run_after_an_install(wheel: zipfile.ZipFile, tmp_path: Path) -> None:  # noqa: F811
    """CNI starts the file itself; one without its mode would be no plugin."""
    words = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*words, "--target", str(tmp_path), str(wheel.filename)], check=True, timeout=120)
    plugin = tmp_path / "k8snet/cni/plugins/k8snet-bridge"
    env = {"CNI_COMMAND": "VERSION", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([str(plugin)], env=env, capture_output=True, text=True, check=True, timeout=30)
    assert "1.1.0" in done.stdout
