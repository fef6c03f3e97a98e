"""Every error that k8snet raises on purpose.

K8snetError
├── InvalidInput            what was asked for cannot be; the lab is as it was
│   ├── InvalidAddress      not an address, or one that cannot be used there
│   ├── InvalidName         a name that Linux would refuse
│   ├── NameTaken           something of that name is there already
│   ├── PortTaken           a socket listens on that port already
│   ├── NotFound            nothing of that name is there
│   ├── InvalidManifest     a Kubernetes manifest that cannot be used
│   └── InvalidConfig       a CNI network configuration that cannot be used
├── ProgramMissing          a program is not installed
├── CapabilityMissing       this kernel or machine cannot do that
├── CommandFailed           a program ended with a non-zero code
├── PluginFailed            a CNI plugin answered with an error, or with nothing that can be read
├── KernelRefused           the kernel answered a netlink request with an error
├── Timeout                 something did not happen before its deadline
├── LabClosed               the lab was closed before this call
└── SandboxFailed           the sandbox could not be set up
"""

from __future__ import annotations

__all__ = [
    "CapabilityMissing",
    "CommandFailed",
    "InvalidAddress",
    "InvalidConfig",
    "InvalidInput",
    "InvalidManifest",
    "InvalidName",
    "K8snetError",
    "KernelRefused",
    "LabClosed",
    "NameTaken",
    "NotFound",
    "PluginFailed",
    "PortTaken",
    "ProgramMissing",
    "SandboxFailed",
    "Timeout",
]


class K8snetError(Exception):
    """Any error that k8snet raises on purpose."""


class InvalidInput(K8snetError, ValueError):
    """What was asked for cannot be; the lab is as it was."""


class InvalidAddress(InvalidInput):
    """Not an address, or one that cannot be used there."""


class InvalidName(InvalidInput):
    """A name that Linux would refuse."""


class NameTaken(InvalidInput):
    """Something of that name is there already."""


class PortTaken(InvalidInput):
    """A socket listens on that port already."""


class NotFound(InvalidInput, LookupError):
    """Nothing of that name is there."""


class InvalidManifest(InvalidInput):
    """A Kubernetes manifest that cannot be used; the message names file, object and field."""


class InvalidConfig(InvalidInput):
    """A CNI network configuration that cannot be used; the message names file, line and field."""


class ProgramMissing(K8snetError):
    """A program is not installed."""


class CapabilityMissing(K8snetError):
    """This kernel or machine cannot do that."""


class CommandFailed(K8snetError):
    """A program ended with a non-zero code."""

    def __init__(self, argv: tuple[str, ...], code: int, stderr: str, where: str = "") -> None:
        """Keep what was run, where, and how it ended."""
        self.argv, self.code, self.stderr, self.where = argv, code, stderr, where
        place = f" in netns {where}" if where else ""
        super().__init__(f"`{' '.join(argv)}`{place} ended with {code}: {stderr.strip()}")


class PluginFailed(K8snetError):
    """A CNI plugin answered with an error, or with nothing that can be read (CNI spec, "Error")."""

    def __init__(self, plugin: str, command: str, code: int, message: str, details: str = "") -> None:
        """Keep which plugin was asked to do what, and the three fields of its answer."""
        self.plugin, self.command, self.code = plugin, command, code
        self.message, self.details = message, details
        super().__init__(f"{plugin} {command}: code {code}: {message}{f'; {details}' if details else ''}")


class KernelRefused(K8snetError):
    """The kernel answered a netlink request with an error."""

    def __init__(self, what: str, errno: int, reason: str) -> None:
        """Keep the request in words and the kernel's errno."""
        self.errno = errno
        super().__init__(f"the kernel refused: {what}: {reason}")


class Timeout(K8snetError, TimeoutError):
    """Something did not happen before its deadline."""


class LabClosed(K8snetError):
    """The lab was closed before this call."""


class SandboxFailed(K8snetError):
    """The sandbox could not be set up."""
