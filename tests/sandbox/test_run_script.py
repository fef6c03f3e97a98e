"""./run: silent when nothing is missing, opens no port, and says what it cannot install."""
from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAKES = {  # an ordinary user without sudo, on a machine that has all packages but two
    "id": 'if [ "$1" = -u ]; then echo 1000; else exec /usr/bin/id "$@"; fi',
    "sudo": "exit 1",
    "dpkg-query": '/usr/bin/dpkg-query "$@" | grep -v -e " nginx$" -e " ipset$"; '
                  'for word; do case $word in nginx|ipset) ;; -*) ;; *) echo "installed $word" ;; esac; done',
    "apt-get": "echo apt-get was started >&2; exit 1",
}  # fmt: skip


def fake(folder: Path, *names: str) -> None:
    """Put programs of these names in *folder*, which stand for the machine's."""
    for name in names:
        (folder / name).write_text(f"#!/bin/sh\n{FAKES[name]}\n")
        (folder / name).chmod(0o755)


def run(
    *words: str, path: str = "", before: Sequence[str] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run ./run, with nobody at the terminal."""
    environment = {**os.environ, "PATH": path + os.environ["PATH"], "K8SNET_VENV": sys.prefix, **variables}
    return subprocess.run(
        [*before, str(ROOT / "run"), *words], env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def marked(mark: str) -> set[str]:
    """Return the ids of the processes that inherited *mark*."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (entry / "environ").read_bytes():
                found.add(entry.name)
    return found


def test_set_up_once_more_is_silent_and_quick_and_leaves_no_process(mark: str) -> None:
    """Every command sets up first, so the reader waits for it; with no process, nothing listens."""
    if run("setup").returncode != 0:
        pytest.skip("this machine cannot be set up from here")
    begun = time.monotonic()
    again = run("setup", MARK=mark)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert time.monotonic() - begun < 2.0
    assert not marked(mark)


def test_what_is_installed_is_not_started(folder: Path) -> None:
    """Debian starts nginx and BIRD when it installs them, unless policy-rc.d forbids it.

    The /usr/sbin of a private mount namespace stands for the machine's.
    """
    fake(folder, "dpkg-query", "apt-get")
    (folder / "apt-get").write_text(
        f"#!/bin/sh\n/usr/sbin/policy-rc.d; echo \"$? $*\" >> {folder}/calls; exit 0\n"
    )
    private = ["unshare", "--user", "--map-root-user", "--mount", "--", "sh", "-c",
               'mount -t tmpfs tmpfs /usr/sbin && "$@"; code=$?; ls /usr/sbin; exit $code', "sh"]  # fmt: skip
    done = run("setup", path=f"{folder}:", before=private)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    update, install = (folder / "calls").read_text().splitlines()
    assert update.startswith("101 ")
    assert install == "101 -q install -y --no-install-recommends ipset nginx"


def test_without_root_and_sudo_the_missing_packages_are_named_and_nothing_is_done(folder: Path) -> None:
    """The line can be sent to whoever runs the machine."""
    fake(folder, *FAKES)
    done = run("setup", path=f"{folder}:")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].strip() == "apt-get install --no-install-recommends ipset nginx"


def test_an_unknown_command_is_an_error_and_help_is_not() -> None:
    """A typing error must not look like success in a script."""
    wrong = run("tset")
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1] == "run: no command 'tset'"
    assert run("help").returncode == 0
