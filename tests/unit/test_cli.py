"""The command line: quick to start, every option explained, errors without a traceback."""
from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer

from k8snet import cli


def k8snet(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "k8snet.cli", *words], env={**os.environ, **environment},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


HEAVY = ("IPython", "jupyter_client", "jupyter_server", "matplotlib", "papermill", "pyroute2", "rich.table", "sphinx")


def test_help_is_there_at_once() -> None:
    """Half a second is felt; the heavy imports belong to the commands that need them."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert k8snet("--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 0.5  # seconds of CPU, since other tests run at the same time
    code = f"import sys, k8snet.cli; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def commands(group: click.Group, before: str = "") -> list[tuple[str, click.Command]]:
    found = []
    for name, command in group.commands.items():
        nested = commands(command, f"{before}{name} ") if hasattr(command, "commands") else [(before + name, command)]  # type: ignore[arg-type]
        found += nested
    return found


def test_every_command_and_every_option_has_help() -> None:
    """`--help` is the manual."""
    group = typer.main.get_command(cli.app)
    found = commands(group)  # type: ignore[arg-type]
    wanted = {"doctor", "lab", "run", "book", "reset", "kernelspec install", "sandbox", "version"}
    assert wanted <= {name for name, _ in found}
    for name, command in found:
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reset", "no-such-chapter"], "k8snet: no chapter"),
        (["kernelspec", "install", "--prefix", "/tmp/unused", "--name", "a b"], "k8snet: 'a b' is no name"),
        (["kernelspec", "install", "--prefix", "/proc/none"], "k8snet: cannot write"),
        (["lab", "--dir", "/proc/none/book"], "k8snet: cannot make /proc/none/book"),
    ],
)
def test_an_error_of_our_own_is_one_line_and_exit_code_1(words: list[str], message: str, tmp_path: Path) -> None:
    """A traceback says nothing to a reader."""
    done = k8snet(*words, K8SNET_WORKDIR=str(tmp_path), XDG_STATE_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1


def test_a_kernelspec_for_another_jupyter_names_this_python(tmp_path: Path) -> None:
    """Another environment's `python` has no k8snet."""
    done = k8snet("kernelspec", "install", "--prefix", str(tmp_path), "--name", "k8snet-here")
    folder = tmp_path / "share/jupyter/kernels/k8snet-here"
    assert done.stdout.strip() == str(folder)
    assert json.loads((folder / "kernel.json").read_text())["argv"][0] == sys.executable


def test_only_one_place_can_be_named_for_a_kernelspec() -> None:
    """Two would leave open which of them counts."""
    assert k8snet("kernelspec", "install", "--user", "--sys-prefix").returncode == 2


def test_version_is_the_packages() -> None:
    """Reports of errors quote it."""
    from k8snet import __version__

    assert k8snet("version").stdout.strip() == __version__
