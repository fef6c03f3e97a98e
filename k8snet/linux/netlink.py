"""Netlink on a thread of its own: pyroute2's sockets, one a netns, kept for a while.

A notebook cell runs inside an event loop, where pyroute2's own loop cannot start;
and the thread that talks to a netns must be in it. So one worker does both.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from k8snet.errors import KernelRefused
from k8snet.linux import nsfs

__all__ = ["Worker"]

T = TypeVar("T")
KEPT = 64  # sockets; each costs four file descriptors

HINTS = {
    "EPERM": "not allowed here; run this in a sandbox (k8snet sandbox -- ...)",
    "ENOTSUP": "this kernel cannot do that; `k8snet doctor` says what it can",
}


class Worker:
    """A thread that enters netns and speaks netlink there."""

    def __init__(self) -> None:
        """Start with no socket open."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="k8snet-netlink")
        self._sockets: OrderedDict[int, Any] = OrderedDict()

    def call(self, fd: int, what: str, function: Callable[[Any], T]) -> T:
        """Call *function* with an open pyroute2.IPRoute of the netns open as *fd*.

        Raises:
            KernelRefused: the kernel answered with an error; *what* was asked.
        """
        return self._pool.submit(self._serve, fd, what, function).result()

    def inside(self, fd: int, function: Callable[[], T]) -> T:
        """Call *function* on the worker, inside the netns open as *fd*."""

        def body() -> T:
            nsfs.enter(fd)
            return function()

        return self._pool.submit(body).result()

    def forget(self, fd: int) -> None:
        """Close the socket kept for a netns, so that it does not hold the netns."""
        self._pool.submit(self._forget, fd).result()

    def close(self) -> None:
        """Close all sockets and end the thread."""
        self._pool.submit(self._forget_all).result()
        self._pool.shutdown()

    def _serve(self, fd: int, what: str, function: Callable[[Any], T]) -> T:
        from pyroute2.netlink.exceptions import NetlinkError

        nsfs.enter(fd)
        try:
            return function(self._socket(fd))
        except NetlinkError as error:
            name = _errno_name(error.code)
            reason = HINTS.get(name, os.strerror(error.code))
            raise KernelRefused(what, error.code, f"{reason} ({name})") from None

    def _socket(self, fd: int) -> Any:
        from pyroute2 import IPRoute

        if fd not in self._sockets:
            while len(self._sockets) >= KEPT:
                self._sockets.popitem(last=False)[1].close()
            self._sockets[fd] = IPRoute()
        self._sockets.move_to_end(fd)
        return self._sockets[fd]

    def _forget(self, fd: int) -> None:
        if fd in self._sockets:
            self._sockets.pop(fd).close()

    def _forget_all(self) -> None:
        for fd in list(self._sockets):
            self._forget(fd)


def _errno_name(number: int) -> str:
    import errno

    return errno.errorcode.get(number, str(number))
