"""`k8snet doctor`: tries for real, from outside a sandbox, from inside one, and without one."""
from __future__ import annotations

import json
import subprocess

import pytest

from k8snet import doctor
from tests.sandbox.conftest import Identity
from tests.sandbox.test_sandbox import FEW_IDS


def look(identity: Identity, *, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run `k8snet doctor --json`."""
    words = [*identity.before, *before, identity.python, "-m", "k8snet.cli", "doctor", "--json"]
    return subprocess.run(
        words, env=identity.environment, cwd="/tmp", capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_abilities_of_the_first_chapters_are_found_as_any_user(identity: Identity) -> None:
    """The tests themselves need them, so a no would be doctor's own mistake."""
    done = look(identity)
    report = json.loads(done.stdout)
    wrong = [finding for finding in report["findings"] if finding["core"] and not finding["ok"]]
    assert (done.returncode, report["ok"], wrong) == (0, True, []), done.stderr


def test_doctor_looks_the_same_inside_a_sandbox(identity: Identity) -> None:
    """Chapter 00 calls it in a cell, where a sandbox in a sandbox would say less."""
    done = identity.sandbox(identity.python, "-m", "k8snet.cli", "doctor", "--json")
    assert done.returncode == 0, done.stderr
    outside, inside = json.loads(look(identity).stdout), json.loads(done.stdout)
    assert [(one["ability"], one["ok"]) for one in inside["findings"]] == [
        (one["ability"], one["ok"]) for one in outside["findings"]
    ]


def test_without_user_namespaces_doctor_says_what_to_change_and_exits_1(identity: Identity) -> None:
    """What needs a sandbox could not be tried, and nothing is claimed of it."""
    no_more = (*FEW_IDS, "sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"', "sh")
    done = look(identity, before=no_more)
    report = json.loads(done.stdout)
    first, *others = report["findings"]
    assert (done.returncode, report["ok"], first["ability"], first["ok"]) == (1, False, "user namespaces", False)
    assert "user.max_user_namespaces" in first["remedy"]
    assert {finding["ability"] for finding in others if finding["ok"]} <= {"/dev/kvm"}


def test_a_probe_that_hangs_or_fails_is_a_no_and_the_others_are_not_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One broken daemon must not hide what the rest of the machine can do."""
    trials = (
        doctor.Ability(name="hangs", needed_by="-", script="sleep 60"),
        doctor.Ability(name="fails", needed_by="-", script="echo because >&2; exit 3"),
        doctor.Ability(name="lacks", needed_by="-", script="no-such-program", programs=("no-such-program",)),
        doctor.Ability(name="works", needed_by="-", script="true"),
    )
    monkeypatch.setattr(doctor, "ABILITIES", trials)
    monkeypatch.setattr(doctor, "PROBE_S", 0.5)
    monkeypatch.setattr(doctor, "BEFORE_PROBE", ())
    _, hangs, fails, lacks, works = doctor.probe_all()
    assert (hangs.ok, hangs.reason) == (False, "no answer after 0.5 s")
    assert (fails.ok, fails.reason) == (False, "because")
    assert (lacks.ok, lacks.remedy) == (False, "sudo apt-get install no-such-program")
    assert works.ok
