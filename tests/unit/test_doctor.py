"""What `k8snet doctor` concludes from what it found, and which remedy it names."""
from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from k8snet import doctor

MACHINE = doctor.Machine(
    linux="6.1", python="3.11", user="an ordinary one", memory_mb=2000, memory_free_mb=1000,
    disk_free_mb=5000, working_copy="/home/r/book", state="/home/r/state",
)  # fmt: skip


def report(**found: bool) -> doctor.Report:
    core = {"veth", "bridge"}
    findings = [
        doctor.Finding(ability=name, ok=ok, core=name in core, needed_by="<b>", reason="" if ok else "why")
        for name, ok in found.items()
    ]
    return doctor.Report(machine=MACHINE, findings=tuple(findings))


def test_only_what_the_first_chapters_need_decides() -> None:
    """A reader without IPVS can start all the same."""
    assert report(veth=True, ipvs=True).verdict == "Every chapter can run here."
    lacking = report(veth=True, ipvs=False)
    assert lacking.ok
    assert lacking.verdict == "The book can run here, but for what needs ipvs; the table says what that is."
    broken = report(veth=False, bridge=True, ipvs=False)
    assert (broken.ok, broken.verdict) == (False, "Not ready: the first chapters need veth.")


def test_where_sandboxes_are_forbidden_a_virtual_machine_decides_and_a_missing_program_still_counts() -> None:
    """In it the same programs run, on a Linux that has all the rest."""
    sandbox = doctor.Finding(ability="user namespaces", ok=False, core=True, needed_by="-", remedy="sysctl")
    veth = doctor.Finding(ability="veth", ok=False, core=True, needed_by="-", remedy=doctor.NOT_TRIED)
    nginx = dataclasses.replace(veth, ability="nginx", remedy="sudo apt-get install nginx")
    guest = doctor.Finding(ability="virtual machine", ok=True, core=False, needed_by="-")
    ready = doctor.Report(machine=MACHINE, findings=(sandbox, veth, guest))
    assert ready.ok
    assert "forbidden here: every chapter runs in the virtual machine" in ready.verdict
    assert not dataclasses.replace(ready, findings=(sandbox, veth, nginx, guest)).ok
    assert not dataclasses.replace(ready, findings=(sandbox, veth)).ok


def test_a_report_is_text_html_and_json() -> None:
    """It is shown in a terminal, in a notebook, and to programs."""
    one = report(veth=True, ipvs=False)
    assert "ipvs  no   <b>" in str(one)
    assert "(it said: why)" in str(one)
    assert "&lt;b&gt;" in one._repr_html_()
    assert "<b>yes</b>" in one._repr_html_()
    assert json.loads(json.dumps(one.as_dict()))["findings"][1]["reason"] == "why"
    assert one["ipvs"].ok is False


def test_the_remedy_is_a_package_then_a_module_then_what_the_ability_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first thing that helps, as a line to copy."""
    ability = doctor.Ability(name="x", needed_by="-", script="", programs=("no-such-birdc",), modules=("br_netfilter",))
    assert doctor.remedy(ability) == "sudo apt-get install no-such-birdc"
    ability = dataclasses.replace(ability, programs=("sh",))
    monkeypatch.setattr(doctor, "MODULES", tmp_path)
    assert doctor.remedy(ability).startswith("a Linux that has it")
    (tmp_path / "modules.dep").write_text("kernel/net/bridge/br_netfilter.ko.xz: kernel/net/bridge/bridge.ko.xz\n")
    monkeypatch.setattr(doctor, "LOADED", tmp_path / "loaded")
    assert doctor.remedy(ability) == "sudo modprobe br_netfilter"
    assert doctor.remedy(dataclasses.replace(ability, modules=(), remedy="ask")) == "ask"


def test_every_ability_has_a_name_of_its_own_and_a_remedy() -> None:
    """Chapters name abilities in their metadata, and a reader is never left with a bare no."""
    names = [ability.name for ability in (doctor.SANDBOX, *doctor.ABILITIES)]
    assert len(set(names)) == len(names)
    assert all(ability.programs or ability.modules or ability.remedy for ability in doctor.ABILITIES)
