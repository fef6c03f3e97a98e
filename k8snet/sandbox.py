"""A private user, mount and pid namespace around a Jupyter kernel or any command.

What runs inside is in the machine's own network namespace, so Jupyter's sockets
work, but owns none of it: the kernel answers EPERM to every change. Network
namespaces that it makes are its own, and die with it.

    supervisor (this module, outside)         watches its parent and its child
    └── unshare --fork --kill-child=SIGKILL   pdeathsig: dies with the supervisor
        └── sh, pid 1 inside                  dies with unshare, and takes all with it
            ├── python sandbox.py (enter)     makes / read-only, /run and /dev private
            └── the command

Started as root, the command runs under an id that the machine gives nobody: the
kernel grants uid 0 itself writes to /proc/sys that no capability is asked for.
Root's files stay readable, through a capability that counts inside only.
"""
from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

__all__ = ["arguments", "run", "state_folder", "supervise"]

# Outside this id is nobody's (65534 is "nobody", and some daemons do run as that).
UNUSED_ID = 65533
INSIDE_ID = 1000
SETUP_FAILED = 125  # exit code of a sandbox that could not be made, as of `env` and `timeout`

READ_ONLY_PROC = ("sys/vm", "sys/kernel", "sys/fs", "sys/dev", "sysrq-trigger")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "net/tun", "kvm")
KEPT_IN_RUN = ("user", "systemd/resolve")
SYSTEM_FOLDERS = ("/etc", "/usr", "/proc", "/sys", "/dev", "/run", "/var", "/boot", "/bin", "/lib")

MS_NOSUID, MS_NODEV, MS_BIND, MS_REC = 2, 4, 4096, 16384
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
SYS_MOUNT_SETATTR = 442  # the same number on every architecture
MOUNT_ATTR_RDONLY = 1
CLONE_NEWUSER = 0x10000000
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 1, 8, 47, 2
CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


# -- outside ---------------------------------------------------------------------------


def state_folder() -> Path:
    """Return the folder where k8snet keeps what outlives a lab (XDG_STATE_HOME/k8snet)."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "k8snet"


def arguments(command: list[str], *, writable: list[Path]) -> list[str]:
    """Return the argument list that runs *command* inside a new sandbox.

    Like: unshare --user --map-current-user --keep-caps --mount --propagation private
    --pid --fork --kill-child=SIGKILL --mount-proc -- sh -c '...' sh COMMAND

    Args:
        writable: the folders that stay writable, beside /tmp and the state folder.
    """
    user = [] if os.geteuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
    enter = json.dumps([str(path) for path in writable])
    script = (
        '"$1" -I -S "$2" "$3" || exit 125\n'
        'shift 3\ncd -- "$PWD" || exit 125\nunset JPY_PARENT_PID\n"$@"\nexit $?'
    )
    return [
        "unshare", *user, "--mount", "--propagation", "private", "--pid", "--fork",
        "--kill-child=SIGKILL", "--mount-proc", "--", "/bin/sh", "-c", script, "sh",
        sys.executable, str(Path(__file__).resolve()), enter, *command,
    ]  # fmt: skip


def writable_folders(working_copy: Path | None = None) -> list[Path]:
    """Return what a sandbox may write: the working copy, the state folder and /tmp.

    A folder that holds part of the system (/, /usr, ...) is never among them.
    """
    state = state_folder()
    state.mkdir(parents=True, exist_ok=True)
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
    return {
        **os.environ,
        "IPYTHONDIR": str(state / "ipython"),
        "MPLCONFIGDIR": str(state / "matplotlib"),
        "XDG_CACHE_HOME": str(state / "cache"),
        "XDG_STATE_HOME": str(state.parent),
        "PATH": os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/local/sbin:/usr/sbin:/sbin",
        "K8SNET_SANDBOX": "1",
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
        watch_parent: end the sandbox when the process that started us is gone.
    """
    parent = _open_pidfd(os.getppid()) if watch_parent else None
    as_root = os.geteuid() == 0

    def in_child() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if as_root:
            _become_nobody()
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    try:
        child = subprocess.Popen(  # noqa: S603  # an argument list, no shell
            arguments(command, writable=writable_folders(working_copy)),
            env=environment(), preexec_fn=in_child,  # noqa: PLW1509  # one thread here
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"k8snet: cannot start a sandbox: {error}. Ask `k8snet doctor`.\n")
        return SETUP_FAILED
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ours to pass on, the child's to obey
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: child.kill())
    code = _wait(child, parent)
    return 128 - code if code < 0 else code


def _wait(child: subprocess.Popen[bytes], parent: int | None) -> int:
    poller = select.poll()
    poller.register(os.pidfd_open(child.pid), select.POLLIN)
    if parent is not None:
        poller.register(parent, select.POLLIN)
    while child.poll() is None:
        if any(fd == parent for fd, _ in poller.poll()):
            child.kill()
            child.wait()
    return child.returncode


def _open_pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:  # gone already: whoever asked is not waiting for us
        sys.exit(SETUP_FAILED)


def _become_nobody() -> None:
    """Enter a new user namespace under an unused id, with every capability in it.

    A fork that stays outside, as root, writes the maps: all ids stay what they are,
    so that files keep their owners, and ours is one that owns nothing.
    """
    me = os.getpid()
    ready_read, ready_write = os.pipe()
    done_read, done_write = os.pipe()
    writer = os.fork()
    if writer == 0:
        os.close(ready_write)
        os.read(ready_read, 1)
        try:
            for kind in ("uid_map", "gid_map"):
                # INSIDE_ID inside is UNUSED_ID outside; the others are themselves
                lines = (f"0 0 {INSIDE_ID}\n{INSIDE_ID} {UNUSED_ID} 1\n"
                         f"{INSIDE_ID + 1} {INSIDE_ID + 1} {UNUSED_ID - INSIDE_ID - 1}\n")  # fmt: skip
                Path(f"/proc/{me}/{kind}").write_text(lines)
            os.write(done_write, b"y")
        finally:
            os._exit(0)
    os.close(done_write)
    _check(_libc.unshare(CLONE_NEWUSER), "unshare --user")
    os.write(ready_write, b"y")
    mapped = os.read(done_read, 1)
    os.waitpid(writer, 0)
    if not mapped:
        raise OSError("the ids of a user namespace cannot be mapped here")
    for fd in (ready_read, ready_write, done_read):
        os.close(fd)
    _prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
    os.setresuid(INSIDE_ID, INSIDE_ID, INSIDE_ID)
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    low, high = (1 << min(last + 1, 32)) - 1, (1 << max(last - 31, 0)) - 1
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(low, low, low, high, high, high)
    _check(_libc.capset(header, data), "capset")
    for capability in range(last + 1):
        _prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability)


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
    _set_attributes("/", add=MOUNT_ATTR_RDONLY, recursive=True)
    _set_attributes("/proc", remove=MOUNT_ATTR_RDONLY, recursive=False)  # netns sysctls
    for path in kept:
        try:
            _set_attributes(path, remove=MOUNT_ATTR_RDONLY, recursive=True)
        except PermissionError:  # something mounted below it was read-only before
            _set_attributes(path, remove=MOUNT_ATTR_RDONLY, recursive=False)
    _replace("/run", KEPT_IN_RUN, kept)
    for folder in ("netns", "lock"):
        Path("/run", folder).mkdir()
    _replace("/dev", DEVICES, kept)
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        Path("/dev", name).symlink_to(f"/proc/self/fd{target}")
    Path("/dev/shm").mkdir(mode=0o1777)  # noqa: S108  # the private one, made here
    for name in READ_ONLY_PROC:
        path = f"/proc/{name}"
        if Path(path).exists():
            _mount(path, path, flags=MS_BIND | MS_REC)
            _set_attributes(path, add=MOUNT_ATTR_RDONLY, recursive=True)


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


if __name__ == "__main__":
    try:
        enter(json.loads(sys.argv[1]))
    except OSError as failure:
        sys.stderr.write(f"k8snet: cannot make the sandbox: {failure.strerror or failure}. Ask `k8snet doctor`.\n")
        sys.exit(1)
