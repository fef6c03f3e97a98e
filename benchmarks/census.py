"""Counts the netns that the kernel still keeps for this sandbox, dead ones included.

A netns whose name, processes and sockets are gone is taken apart in the background. No
file lists those, but the kernel counts them against max_net_namespaces of the user
namespace until they are gone: with the limit at N + 1, one can be made if at most N are
left. So we set the limit, and try.
"""
from __future__ import annotations

import ctypes
import errno
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from k8snet.linux import nsfs
from k8snet.linux.run import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["wait_until_left"]

LIMIT = Path("/proc/sys/user/max_net_namespaces")
TIMEOUT_S = 120.0
EVERY_S = 0.005

_libc = ctypes.CDLL(None, use_errno=True)


def wait_until_left(netns: int, *, timeout_s: float = TIMEOUT_S) -> None:
    """Wait until the kernel keeps at most *netns* netns for this sandbox.

    Raises:
        Timeout: more are left after *timeout_s* seconds: something holds them.
    """
    with _limit(netns + 1):
        what = f"the kernel has taken apart all but {netns} netns"
        wait_until(
            lambda: nsfs.in_thread(_one_can_be_made),
            what=what, timeout_s=timeout_s, every_s=EVERY_S,
        )  # fmt: skip


@contextmanager
def _limit(netns: int) -> Iterator[None]:
    before = LIMIT.read_text()
    LIMIT.write_text(str(netns))
    try:
        yield
    finally:
        LIMIT.write_text(before)


def _one_can_be_made() -> bool:
    if _libc.unshare(nsfs.CLONE_NEWNET) == 0:
        return True  # it ends with this thread
    number = ctypes.get_errno()
    if number != errno.ENOSPC:
        raise OSError(number, "unshare")
    return False
