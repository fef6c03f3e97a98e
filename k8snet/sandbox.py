"""A private user, mount and pid namespace around a Jupyter kernel or any command.

What runs inside is in the machine's own network namespace, so Jupyter's sockets
work, but owns none of it: the kernel answers EPERM to every change. Network
namespaces that it makes are its own, and die with it.

    supervisor (this module, outside)         watches its parent and its child
    └── unshare --fork --kill-child=SIGKILL   pdeathsig: dies with the supervisor
        └── sh, pid 1 inside                  dies with unshare, and takes all with it
            └── python sandbox.py (enter)     makes / read-only, /run and /dev private,
                                              and becomes the command

Started as root, the command runs under an id that the machine gives nobody: the
kernel grants uid 0 itself writes to /proc/sys that no capability is asked for.
Root's files stay readable, through a capability that counts inside only, and the
capabilities that lead back to uid 0 are gone.
"""
from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["FORBIDDEN", "GUEST", "INSIDE", "arguments", "run", "state_folder", "supervise"]

# Outside this id is nobody's (65534 is "nobody", and some daemons do run as that).
UNUSED_ID = 65533
INSIDE_ID = 1000
SETUP_FAILED = 125  # exit code of a sandbox that could not be made, as of `env` and `timeout`
OPEN_FILES = 1 << 20  # the most that the soft limit is raised to; some daemons try every number
INSIDE = "K8SNET_SANDBOX"  # this variable is set inside
MARK = Path("/run/k8snet-sandbox")  # and this file is there, for what a variable is not enough
GUEST = "K8SNET_VM"  # this variable is set in a virtual machine of ours, where the whole network is a sandbox's

READ_ONLY_PROC = ("sys/vm", "sys/kernel", "sys/fs", "sys/dev", "sysrq-trigger")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "net/tun", "kvm")
KEPT_IN_RUN = ("user", "systemd/resolve")
SYSTEM_FOLDERS = ("/etc", "/usr", "/proc", "/sys", "/dev", "/run", "/var", "/boot", "/bin", "/lib")

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_SHARED = 2, 4, 8, 4096, 16384, 1 << 20
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
SYS_MOUNT_SETATTR = 442  # the same number on every architecture
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 1, 2
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_CAPBSET_DROP, PR_SET_SECUREBITS = 1, 8, 24, 28
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, SECBIT_NO_SETUID_FIXUP = 47, 2, 4
CAP_SETGID, CAP_SETUID = 6, 7
CAPABILITY_VERSION_3 = 0x20080522

FORBIDDEN = """\
user namespaces, or a part of them, are forbidden here. `k8snet doctor` tells more; look at:
    sysctl kernel.unprivileged_userns_clone               must be 1, where it exists
    sysctl user.max_user_namespaces                       must be above 0
    sysctl kernel.apparmor_restrict_unprivileged_userns   must be 0, where it exists (Ubuntu)
    in a container, its options: docker run --security-opt seccomp=unconfined \\
                                            --security-opt systempaths=unconfined
or do without them, in a small virtual machine: k8snet vm prepare; then k8snet run, or k8snet sandbox --vm"""

_libc = ctypes.CDLL(None, use_errno=True)


# -- outside ---------------------------------------------------------------------------


def state_folder() -> Path:
    """Return the folder where k8snet keeps what outlives a lab (XDG_STATE_HOME/k8snet)."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "k8snet"


def arguments(command: list[str], *, writable: list[Path], ready: int = -1) -> list[str]:
    """Return the argument list that runs *command* inside, from a new user namespace.

    Like: unshare --mount --propagation private --pid --fork --kill-child=SIGKILL
    --mount-proc -- sh -c '...' sh COMMAND

    Args:
        writable: the folders that stay writable, beside /tmp and the state folder.
        ready: an open file that is told when the sandbox stands; -1 for none.
    """
    plan = json.dumps({"writable": [str(path) for path in writable], "ready": ready, "folder": str(Path.cwd())})
    return [
        "unshare", "--mount", "--propagation", "private", "--pid", "--fork",
        "--kill-child=SIGKILL", "--mount-proc", "--", "/bin/sh", "-c", '"$@"; exit $?',
        "sh", sys.executable, "-I", "-S", str(Path(__file__).resolve()), plan, *command,
    ]  # fmt: skip


def writable_folders(working_copy: Path | None = None) -> list[Path]:
    """Return what a sandbox may write: the working copy, the state folder and /tmp.

    A folder that holds part of the system (/, /usr, ...) is never among them.
    """
    state = state_folder()
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"no folder {state}: {error.strerror}. Name another: XDG_STATE_HOME=FOLDER") from None
    asked = [working_copy] if working_copy else [Path.cwd()]
    asked += [Path(extra) for extra in os.environ.get("K8SNET_WRITABLE", "").split(":") if extra]
    return [path.resolve() for path in asked if not _is_system(path.resolve())] + [state.resolve(), Path("/tmp")]  # noqa: S108  # the sandbox's own rule, not a temporary file


def _is_system(folder: Path) -> bool:
    return any(
        Path(system).is_relative_to(folder) or folder.is_relative_to(system)
        for system in SYSTEM_FOLDERS
    )


def environment() -> dict[str, str]:
    """Return the environment of a command in a sandbox: caches go where it may write."""
    state = state_folder()
    parent = {"JPY_PARENT_PID": "1"} if "JPY_PARENT_PID" in os.environ else {}  # ipykernel need not watch
    return {
        **os.environ,
        **parent,
        "IPYTHONDIR": str(state / "ipython"),
        "MPLCONFIGDIR": str(state / "matplotlib"),
        "XDG_CACHE_HOME": str(state / "cache"),
        "XDG_STATE_HOME": str(state.parent),
        "PATH": os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/local/sbin:/usr/sbin:/sbin",
        INSIDE: "1",
    }


def run(command: list[str], *, working_copy: Path | None = None) -> int:
    """Run *command* in a new sandbox and return its exit code.

    Signals count as 128 + their number. 125 says that the sandbox could not be made;
    why is on standard error.
    """
    return supervise(command, working_copy=working_copy, watch_parent=False)


def supervise(
    command: list[str], *, working_copy: Path | None = None, watch_parent: bool = True
) -> int:
    """Run *command* in a new sandbox, end it when our parent ends, return its exit code.

    Args:
        watch_parent: end the sandbox when the process that started us is gone, or the
            Jupyter server that JPY_PARENT_PID names.
    """
    watched = _watched() if watch_parent else []
    told, ready = os.pipe()
    try:
        child = _start(command, working_copy, ready)
    except OSError as error:
        sys.stderr.write(f"k8snet: cannot make a sandbox: {error.strerror or error}\n")
        return SETUP_FAILED
    finally:
        os.close(ready)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ours to pass on, the child's to obey
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: child.kill())
    code = _wait(child, watched)
    if code > 0 and not os.read(told, 1):  # the command was never come to
        sys.stderr.write(f"k8snet: cannot make a sandbox. The line above says why; if that is unshare's: {FORBIDDEN}\n")
        return SETUP_FAILED
    return 128 - code if code < 0 else code


def _start(command: list[str], working_copy: Path | None, ready: int) -> subprocess.Popen[bytes]:
    """Start `unshare` in a new user namespace; raise OSError with the reason if that fails."""
    us, as_root = os.getpid(), os.geteuid() == 0
    reason_read, reason_write = os.pipe()

    def in_child() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            _new_user_namespace(as_root=as_root)
        except OSError as error:
            os.write(reason_write, f"{error.strerror or error}: {FORBIDDEN}".encode())
            raise
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # last: a change of ids forgets it
        if os.getppid() != us:
            os._exit(SETUP_FAILED)

    try:
        return subprocess.Popen(  # an argument list, no shell
            arguments(command, writable=writable_folders(working_copy), ready=ready),
            env=environment(), preexec_fn=in_child, pass_fds=[ready],  # one thread here
        )  # fmt: skip
    except FileNotFoundError:
        raise OSError("`unshare` is not installed. Debian, Ubuntu: apt-get install util-linux") from None
    except subprocess.SubprocessError:
        raise OSError(os.read(reason_read, 4096).decode()) from None
    finally:
        os.close(reason_read)
        os.close(reason_write)


def _watched() -> list[int]:
    """Return a pidfd of each process whose end is ours: our parent and the Jupyter server."""
    pids = {os.getppid()}
    with contextlib.suppress(KeyError, ValueError):
        pids.add(int(os.environ["JPY_PARENT_PID"]))
    try:
        return [os.pidfd_open(pid) for pid in pids]
    except OSError:  # gone already: whoever asked is not waiting for us
        sys.exit(SETUP_FAILED)


def _wait(child: subprocess.Popen[bytes], watched: list[int]) -> int:
    poller = select.poll()
    for fd in (os.pidfd_open(child.pid), *watched):
        poller.register(fd, select.POLLIN)
    while child.poll() is None:
        if any(fd in watched for fd, _ in poller.poll()):
            child.kill()
            child.wait()
    return child.returncode


def _new_user_namespace(*, as_root: bool) -> None:
    """Enter a new user namespace with every capability in it, under an id that is not root's.

    Raises:
        OSError: user namespaces are forbidden, or give no capabilities.
    """
    if as_root:
        _become_nobody()
    elif MARK.exists():  # a sandbox in a sandbox: we are in a user namespace, with capabilities
        return
    else:
        uid, gid = os.geteuid(), os.getegid()
        _check(_libc.unshare(CLONE_NEWUSER), "unshare --user")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    _keep_capabilities(without=(CAP_SETGID, CAP_SETUID) if as_root else ())
    _check(_libc.unshare(CLONE_NEWNS), "unshare --mount in a new user namespace")


def _become_nobody() -> None:
    """Enter a new user namespace under an unused id.

    A fork that stays outside, as root, writes the maps: all ids stay what they are,
    so that files keep their owners, but ours and an unused one change places.
    """
    me = os.getpid()
    maps = {kind: shifted(Path(f"/proc/self/{kind}").read_text()) for kind in ("uid_map", "gid_map")}

    def write() -> None:
        for kind, lines in maps.items():
            Path(f"/proc/{me}/{kind}").write_text(lines)

    finish = _in_a_fork(write)
    _check(_libc.unshare(CLONE_NEWUSER), "unshare --user")
    if not finish():
        raise OSError("the ids of a user namespace cannot be mapped")
    _prctl(PR_SET_KEEPCAPS, 1)
    if Path("/proc/self/setgroups").read_text().strip() == "allow":
        os.setgroups([])
    os.setresgid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
    os.setresuid(INSIDE_ID, INSIDE_ID, INSIDE_ID)


def _in_a_fork(work: Callable[[], None]) -> Callable[[], bool]:
    """Fork; the fork does *work* when the returned function is called, which tells if it went well."""
    (ready_read, ready_write), (done_read, done_write) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ready_write)
        try:
            if os.read(ready_read, 1):
                work()
                os.write(done_write, b"y")
        finally:
            os._exit(0)
    os.close(done_write)
    os.close(ready_read)

    def finish() -> bool:
        os.write(ready_write, b"y")
        os.close(ready_write)
        good = bool(os.read(done_read, 1))
        os.close(done_read)
        os.waitpid(pid, 0)
        return good

    return finish


def shifted(id_map: str) -> str:
    """Return the map of a new user namespace in which INSIDE_ID and an unused id change places.

    Args:
        id_map: what /proc/self/uid_map says here: lines of first id, first id outside, count.
            A container may have few ids; then the highest is taken to be unused.
    """
    extents = [(int(first), int(count)) for first, _, count in map(str.split, id_map.splitlines())]
    known = any(first <= UNUSED_ID < first + count for first, count in extents)
    unused = UNUSED_ID if known else max(first + count - 1 for first, count in extents)
    places = {INSIDE_ID: unused, unused: INSIDE_ID}
    lines = []
    for first, count in extents:  # one line may not span two of the parent's
        inside = sorted(outer for outer in places if first <= outer < first + count)
        edges = sorted({first, first + count, *inside, *(outer + 1 for outer in inside)})
        for begin, end in itertools.pairwise(edges):
            lines.append(f"{places.get(begin, begin)} {begin} {end - begin}\n")
    return "".join(lines)


def _keep_capabilities(*, without: tuple[int, ...]) -> None:
    """Keep all capabilities but *without* through exec, for programs of whatever id.

    access() forgets them, for ids that are not root's, unless SECBIT_NO_SETUID_FIXUP is set;
    Python, nginx and others ask it before they write.
    """
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    kept = [number for number in range(last + 1) if number not in without]
    bits = sum(1 << number for number in kept)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(low, low, low, high, high, high)
    _check(_libc.capset(header, data), "capset in a new user namespace")
    _prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    for number in without:
        _prctl(PR_CAPBSET_DROP, number)
    for number in kept:
        _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)


def _prctl(*values: int) -> None:
    padded = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:5]]
    _check(_libc.prctl(*padded), f"prctl{values}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


# -- inside ----------------------------------------------------------------------------


def enter(writable: list[str]) -> None:
    """Make / read-only but for *writable*, and /run, /dev and part of /proc private.

    Runs inside, before the command; only the standard library is there.

    Raises:
        OSError: the kernel refused a mount.
    """
    kept = [path for path in writable if Path(path).is_dir()]
    for path in kept:
        _mount(path, path, flags=MS_BIND | MS_REC)
    _set_attributes("/", add=MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, recursive=True)
    _set_attributes("/proc", remove=MOUNT_ATTR_RDONLY, recursive=False)  # netns sysctls
    for path in kept:
        try:
            _set_attributes(path, remove=MOUNT_ATTR_RDONLY, recursive=True)
        except PermissionError:  # something mounted below it was read-only before
            _set_attributes(path, remove=MOUNT_ATTR_RDONLY, recursive=False)
    _private_run(kept)
    _private_dev(kept)
    for name in READ_ONLY_PROC:
        path = f"/proc/{name}"
        if Path(path).exists():
            _mount(path, path, flags=MS_BIND | MS_REC)
            _set_attributes(path, add=MOUNT_ATTR_RDONLY, recursive=True)
    if GUEST not in os.environ and os.access("/proc/sys/net/ipv4/ip_forward", os.W_OK):
        raise OSError(
            "this container has no other id than root's, which may change the machine's "
            "network settings. Start k8snet as an ordinary user, or give the container more ids"
        )


def _private_run(kept: list[str]) -> None:
    _replace("/run", KEPT_IN_RUN, kept)
    for folder in ("netns", "lock"):
        Path("/run", folder).mkdir()
    # Shared, so that a netns named here is seen in the mount namespaces made here before and
    # after (`ip netns exec` makes one), and the other way round where those did not leave the group.
    _mount("tmpfs", "/run/netns", kind="tmpfs", flags=MS_NOSUID | MS_NODEV | MS_NOEXEC, data="mode=755")
    _mount("", "/run/netns", flags=MS_SHARED)
    MARK.touch()


def _private_dev(kept: list[str]) -> None:
    _replace("/dev", DEVICES, kept)
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        Path("/dev", name).symlink_to(f"/proc/self/fd{target}")
    Path("/dev/pts").mkdir()  # of our own: Linux makes no terminal for a /dev/ptmx from elsewhere
    _mount("devpts", "/dev/pts", kind="devpts", flags=MS_NOSUID | MS_NOEXEC, data="newinstance,ptmxmode=0666,mode=620")
    Path("/dev/ptmx").symlink_to("pts/ptmx")
    Path("/dev/shm").mkdir(mode=0o1777)  # noqa: S108  # the private one, made here


def become(command: list[str], folder: str) -> None:
    """Turn into *command*, in *folder*, with Python's own settings undone; return only if it cannot."""
    with contextlib.suppress(OSError):  # the old current folder lies below the new mounts
        os.chdir(folder)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execvp(command[0], command)  # noqa: S606  # no shell is wanted


def _replace(folder: str, names: tuple[str, ...], kept: list[str]) -> None:
    """Mount a new tmpfs on *folder* that shows only *names* (and *kept*) of the old one."""
    below = tuple(os.path.relpath(path, folder) for path in kept if path.startswith(folder + "/"))
    old = {}
    for name in (*names, *below):
        path = Path(folder, name)
        if path.exists():
            old[path] = (os.open(path, os.O_PATH), path.is_dir())
    _mount("tmpfs", folder, kind="tmpfs", flags=MS_NOSUID | MS_NODEV, data="mode=755")
    for path, (fd, is_folder) in old.items():
        (path if is_folder else path.parent).mkdir(parents=True, exist_ok=True)
        if not is_folder:
            path.touch()
        _mount(f"/proc/self/fd/{fd}", str(path), flags=MS_BIND | MS_REC)
        os.close(fd)


def _mount(source: str, target: str, *, kind: str = "", flags: int = 0, data: str = "") -> None:
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode() or None,
        ctypes.c_ulong(flags), data.encode() or None,
    )  # fmt: skip
    _check(result, f"mount {source} on {target}")


def _set_attributes(path: str, *, add: int = 0, remove: int = 0, recursive: bool) -> None:
    attributes = (ctypes.c_uint64 * 4)(add, remove, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(SYS_MOUNT_SETATTR), AT_FDCWD, path.encode(),
        ctypes.c_uint(AT_RECURSIVE if recursive else 0), attributes, ctypes.c_size_t(32),
    )  # fmt: skip
    _check(result, f"mount_setattr {path} (needs Linux 5.12)")


def _exists(program: str) -> bool:
    folders = [""] if "/" in program else os.get_exec_path()
    return any(os.path.exists(os.path.join(folder, program)) for folder in folders)  # noqa: PTH110, PTH118  # no error for what may not be read


def main(plan: dict[str, object], command: list[str]) -> int:
    """Make the sandbox around this process, and become *command*; return an exit code if it cannot."""
    ready = int(str(plan["ready"]))
    try:
        enter([str(path) for path in plan["writable"]])  # type: ignore[attr-defined]  # from JSON
    except OSError as failure:
        sys.stderr.write(f"k8snet: cannot make the sandbox: {failure.strerror or failure}. Ask `k8snet doctor`.\n")
        code = SETUP_FAILED
    else:
        code = 0
    if ready >= 0:
        os.write(ready, b"y")
        os.close(ready)
    if code:
        return code
    try:
        become(command, str(plan["folder"]))
    except OSError as failure:
        found = _exists(command[0])  # a folder of PATH that may not be read hides "not found"
        reason = failure.strerror if found else "not found"
        sys.stderr.write(f"k8snet: cannot run {command[0]!r}: {reason}\n")
        return 126 if found else 127
    return SETUP_FAILED


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1]), sys.argv[2:]))
