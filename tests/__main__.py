"""Pass the tests, each kind where it belongs: `./run test [--fast] [PYTEST ARGUMENT...]`.

    unit, linux, conformance           inside a sandbox, two at a time
    vm                                 inside a guest, in one boot; left out where none can be had
    sandbox, repo, notebooks, browser  on the machine itself, since they make sandboxes
    unit                               once more on every other supported Python that is here

Arguments go to pytest. Files and folders among them choose the phases that are run.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUPPORTED = (11, 12, 13)  # minor versions of Python 3
NO_TESTS = 5  # pytest's exit code where a filter leaves nothing
UNIT_TOOLS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis")
SLOW = ("notebooks", "browser")  # what --fast leaves out, with the virtual machine and the other Pythons
NO_GUESTS = "--ignore=tests/sandbox/test_vm.py"


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One run of pytest."""

    name: str
    folders: tuple[str, ...]
    before: tuple[str, ...] = ()  # words before `python -m pytest`
    python: str = sys.executable
    options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a phase ended."""

    name: str
    result: str
    ok: bool
    seconds: float = 0.0


SANDBOX = (sys.executable, "-m", "k8snet.cli", "sandbox", "--")
TWO = ("-n", "2", "--dist", "worksteal")
IN_SANDBOX = Phase(name="in a sandbox", folders=("unit", "linux", "conformance"), before=SANDBOX, options=TWO)
NOT_NEEDED = ("hypothesispytest", "anyio", "xdist", "xdist.looponfail")  # and slow to import under emulation
IN_VM = Phase(
    name="in the VM", folders=("vm",), before=(*SANDBOX[:-1], "--vm", "--"),
    options=tuple(word for name in NOT_NEEDED for word in ("-p", f"no:{name}")),
)  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run the phases that *arguments* ask for, and return 1 if one of them failed."""
    fast = "--fast" in arguments
    words = [word for word in arguments if word != "--fast"]
    chosen = [word for word in words if _path(word).exists()]
    options = [word for word in words if word not in chosen]
    outcomes = list(_run_all(chosen, options, fast=fast))
    width = max((len(outcome.name) for outcome in outcomes), default=0)
    for outcome in outcomes:
        _say(f"{outcome.name:{width}}  {outcome.result:8}  {outcome.seconds:6.1f} s")
    if not outcomes:
        _say("no tests there")
    return 0 if outcomes and all(outcome.ok for outcome in outcomes) else 1


def _run_all(chosen: list[str], options: list[str], *, fast: bool) -> Iterator[Outcome]:
    outside = tuple(name for name in ("sandbox", "repo", *SLOW) if not fast or name not in SLOW)
    if paths := paths_of(IN_SANDBOX, chosen):
        yield _run(IN_SANDBOX, paths, options)
    if not fast and paths_of(Phase(name="", folders=(*IN_VM.folders, "notebooks")), chosen):  # chapters need it, too
        yield from _run_in_vm(paths_of(IN_VM, chosen), options)
    phase = Phase(name="outside", folders=outside)
    if paths := paths_of(phase, chosen):
        yield _run(phase, paths, [*options, *([NO_GUESTS] if fast else [])])
    if fast or not paths_of(Phase(name="", folders=("unit",)), chosen):
        return
    for minor in SUPPORTED:
        if minor != sys.version_info.minor:
            yield from _run_on(minor, chosen, options)


def _run_in_vm(paths: list[str], options: list[str]) -> Iterator[Outcome]:
    """Run tests, if any, in a guest, and prepare it before."""
    from k8snet.errors import CapabilityMissing, K8snetError, ProgramMissing
    from k8snet.jupyter.vm import launch

    begun = time.monotonic()
    try:
        launch.prepared(lambda line: _say(f"-- preparing the virtual machine, {line}"))
    except (CapabilityMissing, ProgramMissing) as missing:
        _say(f"{IN_VM.name}: left out, {missing}")
    except K8snetError as error:
        _say(f"{IN_VM.name}: {error}")
        yield Outcome(name=IN_VM.name, result="no guest", ok=False, seconds=time.monotonic() - begun)
    else:
        if paths:
            yield _run(IN_VM, paths, options)


def _run_on(minor: int, chosen: list[str], options: list[str]) -> Iterator[Outcome]:
    """Run the unit tests on Python 3.*minor*, if it is here."""
    name = f"unit, Python 3.{minor}"
    python = find_python(minor)
    if python is None:
        _say(f"{name}: left out, there is no python3.{minor} here")
        return
    begun = time.monotonic()
    executable = prepare(python, minor)
    if executable is None:
        yield Outcome(name=name, result="no venv", ok=False, seconds=time.monotonic() - begun)
        return
    sandbox = tuple(executable if word == sys.executable else word for word in SANDBOX)
    phase = Phase(name=name, folders=("unit",), before=sandbox, python=executable, options=TWO)
    yield _run(phase, paths_of(phase, chosen), options)


def _run(phase: Phase, paths: list[str], options: list[str]) -> Outcome:
    own = () if any(word.startswith(("-n", "--pdb", "--numprocesses")) for word in options) else phase.options
    _say(f"-- {phase.name}: {' '.join(paths)}")
    begun = time.monotonic()
    # A folder of its own: in a sandbox of root's we have a user's name and another id, and pytest
    # names its folder after the one and checks the other.
    with tempfile.TemporaryDirectory(prefix="k8snet-tests-", ignore_cleanup_errors=True) as folder:
        code = subprocess.run(
            [*phase.before, phase.python, "-m", "pytest", *own, *options, *paths],
            cwd=ROOT, env={**os.environ, "PYTEST_DEBUG_TEMPROOT": folder}, check=False,
        ).returncode  # fmt: skip
    result = {0: "ok", NO_TESTS: "no tests"}.get(code, "FAILED")
    return Outcome(name=phase.name, result=result, ok=code in (0, NO_TESTS), seconds=time.monotonic() - begun)


def paths_of(phase: Phase, chosen: list[str]) -> list[str]:
    """Return what of *chosen* belongs to the phase; with nothing chosen, its folders with tests."""
    folders = [ROOT / "tests" / name for name in phase.folders]
    everything = not chosen or any(_path(word) == ROOT / "tests" for word in chosen)
    if everything:
        return [str(folder.relative_to(ROOT)) for folder in folders if any(folder.rglob("test_*.py"))]
    return [word for word in chosen if any(_path(word).is_relative_to(folder) for folder in folders)]


def _path(word: str) -> Path:
    """Return the file that an argument of pytest names, as in tests/unit/test_x.py::test_y."""
    return (Path.cwd() / (word.split("::")[0] or "-")).resolve()


def find_python(minor: int) -> str | None:
    """Return a Python 3.*minor* that starts: from PATH, else one that pyenv built."""
    built = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3.{minor}"))
    for candidate in (shutil.which(f"python3.{minor}"), *map(str, reversed(built))):
        check = f"import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, {minor}))"
        if candidate and subprocess.run([candidate, "-c", check], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


def prepare(python: str, minor: int) -> str | None:
    """Return the Python of a virtual environment for the unit tests, made once; None if it cannot be."""
    folder = Path(sys.prefix) / f"unit-3.{minor}"
    requirements, tools = ROOT / "binder/requirements.txt", ROOT / "tests/requirements.txt"
    stamp, state = folder / ".k8snet", requirements.read_text() + tools.read_text()
    executable = folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == state and os.access(executable, os.X_OK):
        return str(executable)
    _say(f"-- setting up {folder}")
    pip = [str(executable), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    make = [] if os.access(executable, os.X_OK) else [[python, "-m", "venv", "--clear", str(folder)]]
    for command in (*make, [*pip, "-r", str(requirements), "-c", str(tools), *UNIT_TOOLS]):
        if subprocess.run(command, check=False).returncode:
            return None
    stamp.write_text(state)
    return str(executable)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
