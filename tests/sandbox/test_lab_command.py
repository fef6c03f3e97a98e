"""`k8snet lab`: a server on 127.0.0.1 that answers, in a working copy, and nothing left after it."""
from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from k8snet.jupyter.chapters import package_folder
from tests.sandbox.conftest import Identity, eventually, processes

PATIENCE = 60  # seconds until JupyterLab answers


@pytest.fixture
def server(identity: Identity, folder: Path, mark: str) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """A running `k8snet lab --no-browser`, its URL and its working copy; ended by its pid."""
    kernelspec = identity.python_with("-m", "k8snet.cli", "kernelspec", "install", "--prefix", str(folder))
    environment = {**identity.environment, "JUPYTER_PATH": str(folder / "share/jupyter"), "HOME": str(folder)}
    subprocess.run(kernelspec, env=environment, cwd="/tmp", check=True, capture_output=True)
    copy = folder / mark
    words = identity.python_with("-m", "k8snet.cli", "lab", "--no-browser", "--port", "18888", "--dir", str(copy))
    process = subprocess.Popen(words, env=environment, cwd="/tmp", stderr=subprocess.PIPE, text=True)
    try:
        yield process, _address(process), copy
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    deadline, seen = time.monotonic() + PATIENCE, ""
    while time.monotonic() < deadline and process.poll() is None:
        if select.select([process.stderr], [], [], 0.2)[0]:
            seen += os.read(process.stderr.fileno(), 65536).decode()
        if found := re.search(r"http://127\.0\.0\.1:\d+/\S+token=\w+", seen):
            return found[0]
    pytest.fail(f"no address was printed: {seen}")


def _answers(address: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=PATIENCE) as answer:
            return bool(answer.status == 200)
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):
            return False
        raise


def test_the_printed_address_answers_and_the_end_leaves_nothing(
    server: tuple[subprocess.Popen[str], str, Path], mark: str
) -> None:
    """It listens on 127.0.0.1 alone, since whoever reaches it can run programs as the reader."""
    process, address, copy = server
    assert eventually(lambda: _answers(address), within=PATIENCE)  # it is printed just before the server listens
    port = re.search(r":(\d+)/", address)
    assert port is not None
    listening = subprocess.run(["ss", "-Hltn", f"sport = :{port[1]}"], capture_output=True, text=True, check=True)
    assert [line.split()[3] for line in listening.stdout.splitlines()] == [f"127.0.0.1:{port[1]}"]
    published = package_folder("notebooks").glob("[0-9]*.ipynb")
    assert {path.name for path in published} == {path.name for path in copy.glob("[0-9]*.ipynb")}
    process.terminate()
    assert process.wait(PATIENCE) is not None
    assert eventually(lambda: not processes(mark)), processes(mark)
