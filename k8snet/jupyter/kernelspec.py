"""The kernelspec `k8snet`, written for a Jupyter of another environment."""
from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from jupyter_client.kernelspec import KernelSpecManager

from k8snet.errors import InvalidName, K8snetError

__all__ = ["SOURCE", "install"]

SOURCE = Path(__file__).resolve().parent / "kernels" / "k8snet"


def install(*, name: str = "k8snet", prefix: Path | None = None) -> Path:
    """Write a kernelspec that starts this very Python, and return its folder.

    Args:
        name: what Jupyter lists it as.
        prefix: the environment it is for (its share/jupyter/kernels); None means
            the user's own, which every Jupyter of that user reads.

    Raises:
        InvalidName: Jupyter accepts no such name.
        K8snetError: the folder cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder, "spec")
        shutil.copytree(SOURCE, draft)
        spec = json.loads((SOURCE / "kernel.json").read_text())
        spec["argv"][0] = sys.executable
        (draft / "kernel.json").write_text(json.dumps(spec, indent=2) + "\n")
        manager = KernelSpecManager()
        try:
            where = manager.install_kernel_spec(
                str(draft), kernel_name=name, user=prefix is None,
                prefix=str(prefix) if prefix else None,
            )  # fmt: skip
        except ValueError:
            raise InvalidName(f"{name!r} is no name for a kernelspec: letters, digits, '.', '_' and '-' only") from None
        except OSError as error:
            raise K8snetError(f"cannot write {error.filename}: {error.strerror}. Try: --user, or --prefix") from None
    return Path(where)
