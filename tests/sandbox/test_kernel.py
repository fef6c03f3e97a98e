"""The kernelspec k8snet under a real Jupyter client: interrupts at once, and leaves nothing."""
from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sandbox.conftest import Identity, eventually, netns_alive, processes

SESSION = Path(__file__).with_name("session.py")
Play = Callable[[str], dict[str, object]]


@pytest.fixture
def play(identity: Identity, folder: Path, mark: str) -> Play:
    """Play a scenario of session.py, and return what it found."""
    environment = {**identity.environment, "JUPYTER_PATH": str(folder / "share/jupyter")}
    environment["JUPYTER_DATA_DIR"] = environment["JUPYTER_CONFIG_DIR"] = str(folder / "jupyter")
    install = identity.python_with("-m", "k8snet.cli", "kernelspec", "install", "--prefix", str(folder))
    subprocess.run(install, env=environment, cwd="/tmp", check=True, capture_output=True)

    def body(scenario: str) -> dict[str, object]:
        words = identity.python_with(str(SESSION), scenario, str(folder), mark)
        done = subprocess.run(
            words, env=environment, cwd="/tmp", capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.stdout, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found

    return body


@pytest.mark.parametrize("victim", ["shutdown", "supervisor", "unshare", "first", "ipykernel", "server"])
def test_the_end_of_any_part_leaves_no_process_and_no_netns(play: Play, mark: str, victim: str) -> None:
    """A child was running in a netns; without a pid namespace it lived on."""
    netns = int(str(play(victim)["netns"]))
    assert eventually(lambda: not processes(mark)), processes(mark)
    assert eventually(lambda: not netns_alive(netns))


def test_an_interrupt_ends_a_cell_within_a_second(play: Play, mark: str) -> None:
    """Whether the cell sleeps in Python, waits for a program, or runs a shell command."""
    found = play("interrupt")
    assert found["after"] == "alive\n"
    for name, seconds in dict(found["ends"]).items():  # type: ignore[call-overload]
        assert seconds < 1.0, name
    assert eventually(lambda: not processes(mark))


def test_a_restart_leaves_nothing_of_the_kernel_before(play: Play, mark: str) -> None:
    """Restart is what a reader does when a lab went wrong."""
    found = play("restart")
    assert found["after"] == "False\n"
    assert found["children"] == 0
    assert eventually(lambda: not processes(mark) and not netns_alive(int(str(found["netns"]))))
