"""Start ipykernel in a sandbox: what Jupyter runs for the kernelspec `k8snet`.

Usage: python -m k8snet.jupyter.launch -f CONNECTION_FILE
"""
from __future__ import annotations

import os
import sys
from pathlib import Path

from k8snet import sandbox

__all__ = ["main"]

# Only errors: at every start ipykernel warns that its sockets, which are on 127.0.0.1, are not encrypted.
QUIET = "--IPKernelApp.log_level=40"


def main(arguments: list[str]) -> int:
    """Run ipykernel in a sandbox until it ends, or until Jupyter does."""
    home = os.environ.get("K8SNET_WORKDIR")
    command = [sys.executable, "-m", "ipykernel_launcher", QUIET, *arguments]
    return sandbox.supervise(command, working_copy=Path(home) if home else None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
