"""Kubernetes networking, built live in your own kernel.

In a notebook with the kernelspec `k8snet`:

    %load_ext k8snet
    from k8snet import Lab
    lab = Lab()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {  # what readers use, and the module that it lives in
    "Attachment": "k8snet.lab",
    "Cluster": "k8snet.cluster.cluster",
    "End": "k8snet.lab",
    "Lab": "k8snet.lab",
    "Snapshot": "k8snet.observe.snapshot",
    "capture": "k8snet.observe.capture",
    "check": "k8snet.teach",
    "exercise": "k8snet.teach",
    "plot": "k8snet.observe.plot",
    "predict": "k8snet.teach",
}

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["__version__", "load_ipython_extension", *sorted(_HOME)]  # names of _HOME


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `k8snet --help` needs none of it."""
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'k8snet' has no attribute {name!r}")


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Add the cell magic `%%netns`; called by `%load_ext k8snet`."""
    from k8snet.jupyter.magics import load

    load(shell)
