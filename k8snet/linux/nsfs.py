"""Network namespaces: made, named, entered and dropped.

The interpreter's main thread never enters a netns: from a user namespace it could
not come back to the machine's own. A short-lived thread does, or the lab's worker.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from k8snet.errors import CapabilityMissing, KernelRefused, NameTaken, NotFound
from k8snet.linux.address import check_netns_name

__all__ = ["FOLDER", "delete", "enter", "inode", "inside", "make", "names", "path_of", "see_resolver"]

FOLDER = Path("/run/netns")  # where `ip netns` looks, too
RESOLVER = Path("/etc/resolv.conf")
CLONE_NEWNET, CLONE_NEWNS = 0x40000000, 0x20000
MS_BIND, MNT_DETACH = 4096, 2
INTERRUPTED_S = 0.5  # seconds that an interrupt waits for the thread

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise KernelRefused(what, number, os.strerror(number))


def path_of(name: str) -> Path:
    """Return the file that stands for the netns *name*.

    Raises:
        NotFound: there is no netns of that name; the message lists those there are.
    """
    path = FOLDER / check_netns_name(name)
    if not path.exists():
        raise NotFound(f"no netns {name!r}; there are: {', '.join(names()) or 'none'}")
    return path


def names() -> list[str]:
    """Return the names of all netns, sorted. Like: ip netns list."""
    return sorted(path.name for path in FOLDER.iterdir()) if FOLDER.is_dir() else []


def inode(path: Path | str) -> int:
    """Return the number by which the kernel knows a netns, as in `net:[4026531840]`."""
    return Path(path).stat().st_ino


def enter(fd: int) -> None:
    """Move the calling thread into the netns open as *fd*; never the main thread.

    Raises:
        KernelRefused: the netns is not ours to enter.
    """
    if threading.current_thread() is threading.main_thread():
        raise RuntimeError("the main thread must stay in its netns; use inside()")
    _check(_libc.setns(fd, CLONE_NEWNET), "enter a netns")


def inside(fd: int, function: Callable[..., T], *arguments: object) -> T:
    """Call *function* on a short-lived thread inside the netns open as *fd*.

    Sockets and child processes that it makes stay in that netns. Its exception, if
    any, is raised here.
    """

    def body() -> T:
        enter(fd)
        return function(*arguments)

    return in_thread(body)


def see_resolver(file: Path) -> None:
    """Let the calling thread, and what it starts, see *file* as /etc/resolv.conf; it takes 0.1 ms.

    The names of netns go on being the same for all, as the sandbox has it.

    Like: unshare --mount; mount --bind FILE /etc/resolv.conf
    """
    _check(_libc.unshare(CLONE_NEWNS), "unshare the mounts")
    bound = _libc.mount(str(file).encode(), str(RESOLVER).encode(), None, ctypes.c_ulong(MS_BIND), None)
    _check(bound, f"mount {file} at {RESOLVER}")


def in_thread(function: Callable[[], T]) -> T:
    """Call *function* on a short-lived thread, and return or raise what it does."""
    results: list[T] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001  # raised again in the caller's thread
            failures.append(error)

    thread = threading.Thread(target=body, name="k8snet-netns", daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        thread.join(INTERRUPTED_S)  # so that what it makes can be taken back
        raise
    if failures:
        raise failures[0]
    return results[0]


def make(name: str) -> None:
    """Make a netns and its name. Like: ip netns add NAME.

    Raises:
        InvalidName: see check_netns_name.
        NameTaken: there is a netns of that name already.
        CapabilityMissing: no netns can be made here.
    """
    path = FOLDER / check_netns_name(name)
    try:
        path.touch(mode=0o444, exist_ok=False)
    except FileExistsError:
        raise NameTaken(f"there is a netns {name!r} already") from None
    except OSError as error:
        raise CapabilityMissing(
            f"cannot make {path}: {error.strerror}. Run this in a sandbox: k8snet sandbox -- ..."
        ) from None

    def body() -> None:
        if _libc.unshare(CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise CapabilityMissing(f"cannot make a netns: {reason}. Ask `k8snet doctor`.")
        result = _libc.mount(b"/proc/thread-self/ns/net", str(path).encode(), None, ctypes.c_ulong(MS_BIND), None)
        _check(result, f"name a netns {name}")

    try:
        in_thread(body)
    except BaseException:  # an interrupt, too: then the thread may have mounted it by now
        _libc.umount2(str(path).encode(), MNT_DETACH)
        path.unlink(missing_ok=True)
        raise


def delete(name: str) -> None:
    """Drop the name of a netns. Like: ip netns delete NAME.

    The netns itself ends when no process, socket or open file holds it any more.

    Raises:
        NotFound: there is no netns of that name.
    """
    path = path_of(name)
    _libc.umount2(str(path).encode(), MNT_DETACH)  # a name whose making failed is a plain file
    path.unlink()
