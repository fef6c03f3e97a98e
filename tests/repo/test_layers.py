"""The code: its layers, its sizes, its style."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "k8snet").rglob("*.py"))
LONGEST_MODULE, LONGEST_FUNCTION = 500, 50  # lines
EXCUSED: dict[str, str] = {}  # "module" or "module:function" -> why it may be longer
CORE = ("linux", "lab.py", "cni", "cluster", "controllers")
# DESIGN's nine thousand, checks field by field, three modes of kube-proxy, an edge for Ingress and Gateway API
CORE_LINES = 18_800
ONE_DOOR = {  # who else may start programs, and why
    "k8snet/linux/run.py": "the door itself",
    "k8snet/sandbox.py": "starts the sandbox",
    "k8snet/session.py": "gives the terminal to a shell",
    "k8snet/capture_cli.py": "gives the terminal to what is watched",
}


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("tool", [["lint-imports"], ["ruff", "check", "."], ["mypy"]], ids=lambda tool: tool[0])
def test_the_code_passes(tool):
    """import-linter holds the layers, ruff the style, mypy the types; settings are in pyproject.toml."""
    program = Path(sys.executable).with_name(tool[0])
    done = subprocess.run([program, *tool[1:]], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_can_be_read_at_one_sitting(path):
    name = str(path.relative_to(ROOT))
    assert lines_of(path) <= LONGEST_MODULE or name in EXCUSED
    long = [one.name for one in functions(path) if (one.end_lineno or 0) - one.lineno >= LONGEST_FUNCTION]
    assert [one for one in long if f"{name}:{one}" not in EXCUSED] == []


def test_functions_are_short():
    sizes = sorted((one.end_lineno or 0) - one.lineno + 1 for path in MODULES for one in functions(path))
    assert sizes[len(sizes) // 2] <= 10


def test_the_core_stays_small_enough_to_be_read_in_days():
    paths = [
        path
        for part in CORE
        for path in ([ROOT / "k8snet" / part] if "." in part else (ROOT / "k8snet" / part).rglob("*.py"))
    ]
    assert sum(map(lines_of, paths)) <= CORE_LINES


def test_programs_are_started_at_one_door():
    """In jupyter/ and the command line, Jupyter, sphinx and sandboxes are started, too."""
    for path in MODULES:
        name = str(path.relative_to(ROOT))
        if name in ONE_DOOR or name.startswith("k8snet/jupyter/") or name in {"k8snet/cli.py", "k8snet/doctor.py"}:
            continue
        imported = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert "subprocess" not in imported, name
        assert "os.system" not in path.read_text(), name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_exports(path):
    tree = ast.parse(path.read_text())
    public = [
        node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    named = any(
        isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "__all__" for t in node.targets)
        for node in tree.body
    )
    assert named or not public
    assert ast.get_docstring(tree)
    assert not any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(tree))


def test_nothing_in_the_repository_is_of_one_machine_only():
    """No path of a home folder and no address of a package registry or mirror."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    forbidden = ("/ro" + "ot/", "/wo" + "rk/", "index" + "-url", "pypi" + ".org/simple", "registry." + "npmjs")
    for name in listed.splitlines():
        path = ROOT / name
        if path.suffix in {".png", ".svg"} or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        assert [word for word in forbidden if word in text] == [], name
