"""A transcript's commands, typed anew: what they build in a fresh sandbox."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["replay"]


def replay(script: str, folder: Path) -> Any:
    """Run the text of *script* by bash in a sandbox of its own, and return the snapshot of what is there then."""
    file = folder / "script.sh"
    file.write_text(script)
    command = f"bash {file} >&2 && {sys.executable} -m k8snet.observe.snapshot"
    done = subprocess.run(
        [sys.executable, "-m", "k8snet.cli", "sandbox", "--writable", str(folder), "--", "sh", "-c", command],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)
