"""Who starts the sandbox, and what it left behind."""
from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = Path(pytest.__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A user, and a Python with k8snet that this user can run."""

    name: str
    before: tuple[str, ...]
    python: str
    environment: dict[str, str]

    def python_with(self, *words: str) -> list[str]:
        """Return the argument list of this user's Python."""
        return [*self.before, self.python, *words]

    def sandbox(self, *command: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Run a command in a sandbox of this user's."""
        words = [*self.before, *before, self.python, "-m", "k8snet.cli", "sandbox", "--", *command]
        return subprocess.run(
            words, env=self.environment, cwd="/tmp", capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a shell script in a sandbox of this user's."""
        return self.sandbox("sh", "-c", script)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that an ordinary user can reach, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="k8snet-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(params=["this user", "an ordinary user"])
def identity(request: pytest.FixtureRequest, folder: Path) -> Identity:
    """Whoever runs the tests; and, if that is root, an ordinary user as well."""
    path = os.pathsep.join([str(ROOT), str(PACKAGES)])
    environment = {**os.environ, "PYTHONPATH": path, "XDG_STATE_HOME": str(folder / "state")}
    environment.pop("JPY_PARENT_PID", None)
    if request.param == "this user":
        return Identity(name=request.param, before=(), python=sys.executable, environment=environment)
    if os.geteuid() != 0:
        pytest.skip("this user is an ordinary one")
    found = _ordinary_user()
    if found is None:
        pytest.skip("no ordinary user here has a Python that can import k8snet and its packages")
    os.chown(folder, found[0], -1)
    environment["HOME"] = str(folder)
    return Identity(name=request.param, before=found[1], python=found[2], environment=environment)


@functools.cache
def _ordinary_user() -> tuple[int, tuple[str, ...], str] | None:
    """Return the id of a user, the words that switch to it, and a Python that works for it."""
    version = f"python3.{sys.version_info.minor}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(PACKAGES)])}
    for user in pwd.getpwall():
        if not 1000 <= user.pw_uid < 60000:
            continue
        ids = (f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups")
        before = ("setpriv", *ids, "--", "env")  # setpriv itself may still execute what the user may not
        for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
            trial = [*before, python, "-c", "import k8snet.cli, ipykernel, jupyter_client"]
            if subprocess.run(trial, env=environment, cwd="/tmp", capture_output=True, check=False).returncode == 0:
                return user.pw_uid, before, python
    return None


@pytest.fixture
def mark() -> str:
    """A word that occurs in the argument list of every process of one test."""
    return f"k8snet-test-{uuid.uuid4().hex}"


def processes(mark: str) -> list[int]:
    """Return the ids of all processes with *mark* among their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def netns_alive(inode: int) -> bool:
    """Whether any process is in the netns of that inode."""
    for entry in Path("/proc").glob("[0-9]*/ns/net"):
        with contextlib.suppress(OSError):
            if entry.stat().st_ino == inode:
                return True
    return False


def eventually(condition: Callable[[], object], *, within: float = 10.0) -> bool:
    """Tell whether *condition* came to hold within so many seconds."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def network_of_the_machine() -> tuple[str, ...]:
    """Return what a lab might have changed: links, addresses, routes, rules, forwarding."""
    commands = ("ip -o link", "ip -o address", "ip route show table all", "ip rule", "iptables-save",
                "nft list ruleset", "sysctl net.ipv4.ip_forward")  # fmt: skip
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return tuple(
        subprocess.run(["env", f"PATH={path}", *command.split()], capture_output=True, text=True, check=False).stdout
        for command in commands
    )
