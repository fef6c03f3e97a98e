"""`./run test`: which arguments choose which phases."""
from __future__ import annotations

import pytest

from k8snet.errors import ProgramMissing, SandboxFailed
from k8snet.jupyter.vm import launch
from tests import __main__ as wrapper

INSIDE = wrapper.Phase(name="in", folders=("unit", "linux"))


def test_with_nothing_chosen_a_phase_runs_its_folders() -> None:
    """Those that have tests."""
    assert wrapper.paths_of(INSIDE, []) == ["tests/unit", "tests/linux"]
    assert wrapper.paths_of(INSIDE, ["tests"]) == ["tests/unit", "tests/linux"]
    assert wrapper.paths_of(wrapper.Phase(name="none", folders=("no-such",)), []) == []


def test_what_is_chosen_goes_to_the_phase_that_it_belongs_to() -> None:
    """A test that needs a netns must not run outside a sandbox."""
    chosen = ["tests/unit/test_phases.py::test_x", "tests/sandbox/test_kernel.py"]
    assert wrapper.paths_of(INSIDE, chosen) == [chosen[0]]
    assert wrapper.paths_of(wrapper.Phase(name="out", folders=("sandbox",)), chosen) == [chosen[1]]


def test_the_result_of_each_phase_decides(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One failure is a failure; a filter that leaves nothing in a phase is not."""
    codes = iter([0, 5, 1])

    def run(*_: object, **__: object) -> object:
        return type("Done", (), {"returncode": next(codes)})()

    monkeypatch.setattr(wrapper.subprocess, "run", run)
    assert wrapper.main(["--fast", "tests/unit", "-k", "x"]) == 0
    assert wrapper.main(["--fast", "tests/unit", "-k", "x"]) == 0
    assert wrapper.main(["--fast", "tests/unit"]) == 1
    lines = [line.split() for line in capsys.readouterr().err.splitlines() if not line.startswith("--")]
    assert [line[3:-2] for line in lines] == [["ok"], ["no", "tests"], ["FAILED"]]


def test_tests_in_the_vm_run_in_a_guest_or_are_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no QEMU can be had the others still count; a guest that does not boot is a failure."""
    calls: list[list[str]] = []

    def run(words: list[str], **_: object) -> object:
        calls.append(words)
        return type("Done", (), {"returncode": 0})()

    def prepared(error: Exception | None) -> None:
        def body(_: object) -> None:
            if error:
                raise error

        monkeypatch.setattr(launch, "prepared", body)

    monkeypatch.setattr(wrapper.subprocess, "run", run)
    prepared(None)
    assert wrapper.main(["tests/vm", "tests/unit", "--fast"]) == 0
    assert [words[3:5] for words in calls] == [["sandbox", "--"]]
    assert wrapper.main(["tests/vm"]) == 0
    assert calls[-1][3:6] == ["sandbox", "--vm", "--"]
    prepared(ProgramMissing("no QEMU"))
    assert list(wrapper._run_in_vm(["tests/vm"], [])) == []
    assert "in the VM: left out, no QEMU" in capsys.readouterr().err
    prepared(SandboxFailed("panic"))
    assert [one.ok for one in wrapper._run_in_vm(["tests/vm"], [])] == [False]
