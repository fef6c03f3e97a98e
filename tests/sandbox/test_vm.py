"""The virtual machine, as root and as an ordinary user: IPVS in it, a kernelspec, and nothing left behind.

Where it is not prepared, the image is fetched, once, into the state folder of whoever runs the tests.
"""
from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from k8snet import doctor
from k8snet.errors import CapabilityMissing, InvalidInput, ProgramMissing, SandboxFailed
from k8snet.jupyter import kernelspec
from k8snet.jupyter.chapters import find_chapters
from k8snet.jupyter.runner import run_chapters
from k8snet.jupyter.vm import image, launch, machine, need
from tests.sandbox.conftest import Identity, eventually, processes

pytestmark = pytest.mark.skipif(
    os.environ.get("K8SNET_TEST_VM") != "1", reason="minutes under emulation, and a download: set K8SNET_TEST_VM=1"
)
SESSION = Path(__file__).with_name("vm_session.py")
RUN_IN_VM = "import sys; from k8snet.jupyter.vm.launch import run_in_vm; sys.exit(run_in_vm(sys.argv[1:]))"
LOOK = """
id -u; ls /sys/class/net; touch /etc/k8snet-test && echo kept nowhere
echo from the guest > "$0"; cat; echo to standard error >&2; exit 7"""
IPVS = """
import json
from pyroute2 import IPVS, IPVSDest, IPVSService
from k8snet import End, Lab

def program():
    with IPVS() as ipvs:
        service = IPVSService(addr="10.96.0.10", port=80, protocol=6, sched_name="rr")
        ipvs.service("add", service=service)
        for number in (1, 2):
            ipvs.dest("add", service=service, dest=IPVSDest(addr=f"10.0.{number}.2", port=8080, fwd_method=0))
        return len(list(ipvs.service("dump")))

with Lab() as lab:
    director, client = lab.netns("director", forward=True), lab.netns("client")
    for number, netns in enumerate((client, lab.netns("one"), lab.netns("two"))):
        lab.veth(End(netns=director, name=f"eth{number}", address=f"10.0.{number}.1/24"),
                 End(netns=netns, name="eth0", address=f"10.0.{number}.2/24"))
        netns.run("ip", "route", "add", "default", "via", f"10.0.{number}.1")
        if netns is not client:
            netns.listen(8080)
    director.sh("ip link add name kube-ipvs0 type dummy; ip address add 10.96.0.10/32 dev kube-ipvs0")
    services = director.inside(program)
    answers = [client.run("curl", "-s", "--max-time", "10", "http://10.96.0.10/").stdout for _ in range(20)]
    print(json.dumps({"services": services, "answers": answers}))
"""


@pytest.fixture(scope="session")
def prepared() -> image.Image:
    """The image, made now if it is not there."""
    try:
        machine.qemu()
        try:
            return image.find()
        except CapabilityMissing:
            return image.prepare(lambda _: None, launch.check)
    except (CapabilityMissing, ProgramMissing) as missing:
        pytest.skip(f"no virtual machine here: {missing}")


@pytest.fixture
def owner(identity: Identity, folder: Path, mark: str, prepared: image.Image) -> Identity:
    """Whoever starts guests. The image and the kernelspec are where this user finds them; *mark* is in QEMU's words."""
    shutil.copytree(prepared.folder, folder / "state/k8snet/vm" / prepared.folder.name, symlinks=True)
    spec = json.loads((kernelspec.SOURCE.with_name("k8snet-vm") / "kernel.json").read_text())
    spec["argv"][0] = identity.python
    kernel = folder / "share/jupyter/kernels/k8snet-vm"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps(spec))
    (folder / mark).mkdir()
    jupyter = {f"JUPYTER_{kind}_DIR": str(folder / "jupyter") for kind in ("DATA", "CONFIG", "RUNTIME")}
    identity.environment.update(jupyter, JUPYTER_PATH=str(folder / "share/jupyter"), K8SNET_WORKDIR=str(folder / mark))
    subprocess.run(["chmod", "-R", "a+rwX", str(folder)], check=True)
    return identity


def in_vm(owner: Identity, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command in a guest of this user's."""
    return subprocess.run(
        owner.python_with("-c", RUN_IN_VM, *command), input=stdin, env=owner.environment,
        cwd=owner.environment["K8SNET_WORKDIR"], capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def test_a_guest_gives_a_command_its_streams_and_the_working_copy_and_nothing_else(
    owner: Identity, folder: Path, mark: str
) -> None:
    """No network card, no root, a read-only machine below; and the exit code comes back."""
    done = in_vm(owner, "sh", "-c", LOOK, str(folder / mark / "note"), stdin="through\n")
    assert (done.returncode, done.stderr) == (7, "to standard error\n")
    assert done.stdout.split("\n")[:-1] == ["1000", "lo", "kept nowhere", "through"]
    assert (folder / mark / "note").read_text() == "from the guest\n"
    assert not Path("/etc/k8snet-test").exists()


def test_ipvs_balances_a_virtual_server_over_two_real_ones_in_a_lab(owner: Identity, folder: Path, mark: str) -> None:
    """This is what the guest is for: each of 20 connections goes to the other server."""
    script = folder / mark / "ipvs.py"
    script.write_text(IPVS)
    done = in_vm(owner, owner.python, str(script))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["services"] == 1
    turns = ["one" if "one" in answer else "two" for answer in found["answers"] if "one" in answer or "two" in answer]
    assert turns in (["one", "two"] * 10, ["two", "one"] * 10), found["answers"]


def test_papermill_executes_a_notebook_in_a_guest(owner: Identity, folder: Path, mark: str) -> None:
    """As `k8snet run` does, with the kernelspec k8snet-vm."""
    cells = [
        nbformat.v4.new_code_cell("import platform, os\nx = platform.release(), os.environ['K8SNET_SANDBOX']"),
        nbformat.v4.new_code_cell("print(*x)"),
    ]
    source, target = folder / mark / "in.ipynb", folder / mark / "out.ipynb"
    spec = {"name": "k8snet-vm", "display_name": "k8snet-vm", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec}), source)
    code = "import sys, papermill; papermill.execute_notebook(*sys.argv[1:], progress_bar=False, start_timeout=180)"
    done = subprocess.run(
        owner.python_with("-c", code, str(source), str(target)), env=owner.environment, cwd="/tmp",
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert nbformat.read(target, as_version=4).cells[1].outputs[0].text == f"{image.find().release} 1\n"
    assert eventually(lambda: not processes(mark)), processes(mark)


Play = Callable[[str], dict[str, object]]


@pytest.fixture
def play(owner: Identity, folder: Path, mark: str) -> Play:
    """Play a scenario of vm_session.py, and return what it found."""

    def body(scenario: str) -> dict[str, object]:
        done = subprocess.run(
            owner.python_with(str(SESSION), scenario, str(folder), mark), env=owner.environment, cwd="/tmp",
            capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
        assert done.stdout, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found

    return body


def test_interrupts_restart_and_shutdown_work_as_in_any_kernel(play: Play, mark: str) -> None:
    """Interrupts travel as messages; a loop of Python, a sleep and a program obey them."""
    found = play("interrupt")
    for name, output in dict(found["ends"]).items():  # type: ignore[call-overload]
        assert "KeyboardInterrupt" in output, name
    assert (found["after"], found["restarted"]) == ("alive\n", "False\n")
    assert eventually(lambda: not processes(mark)), processes(mark)


@pytest.mark.parametrize("victim", ["qemu", "launcher", "server"])
def test_sigkill_of_any_part_leaves_no_process(play: Play, mark: str, victim: str) -> None:
    """QEMU dies with its launcher, the launcher with Jupyter, and the kernel's end is noticed."""
    found = play(victim)
    assert found.get("noticed", True)
    assert eventually(lambda: not processes(mark)), processes(mark)


def chapter(folder: Path, *sources: str, requires: tuple[str, ...] = ()) -> None:
    """Write a chapter with these cells."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"k8snet": {"requires": list(requires)}})
    nbformat.write(notebook, folder / "01-small.ipynb")


def test_a_chapter_needs_the_guest_for_what_doctor_misses_and_only_for_that(
    folder: Path, prepared: image.Image
) -> None:
    """A missing program is missing in the guest as well; what a kernel lacks is not."""
    has_ipvs = doctor.look()["IPVS"].ok
    chapter(folder, "1", requires=("ipvs", "veth", "netns"))
    reasons = need.reasons(find_chapters(source=folder))
    assert reasons == ({} if has_ipvs else {"01-small": "this Linux lacks ipvs"})


def test_without_a_prepared_guest_the_run_does_not_begin_and_says_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One clear error, before anything else was executed."""
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    monkeypatch.setattr(need, "_lacking", lambda: {"ipvs"})
    chapter(folder, "1", requires=("IPVS",))
    with pytest.raises(CapabilityMissing, match=r"01-small needs .* this Linux lacks IPVS: .*k8snet vm prepare"):
        run_chapters([], output=folder / "out", jobs=1, source=folder)
    assert not (folder / "out").exists()


@pytest.mark.parametrize("said", ["", "much", "-1", "255"])
def test_memory_that_is_no_number_is_refused(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU's own message would come from inside a kernelspec's log."""
    monkeypatch.setenv("K8SNET_VM_MEMORY", said)
    with pytest.raises(InvalidInput, match="K8SNET_VM_MEMORY"):
        machine.memory_mb()


def test_an_image_that_does_not_boot_is_not_kept(prepared: image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole or not at all: what was there before stays, and the reason is what the guest printed."""
    before = sorted(path.name for path in image.folder().iterdir())

    def make(new: Path, *_: object) -> str:
        shutil.copytree(prepared.folder, new, symlinks=True, dirs_exist_ok=True)
        (new / "initramfs").write_bytes(b"nothing")
        return prepared.release

    monkeypatch.setattr(image, "_make", make)
    with pytest.raises(SandboxFailed, match=r"(?s)ended early. It printed:.*panic"):
        image.prepare(lambda _: None, launch.check)
    assert sorted(path.name for path in image.folder().iterdir()) == before


FEW_IDS = ("unshare", "--user", "--map-root-user", "--")
FORBID = ("sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"', "sh", "setpriv", "--no-new-privs", "--")
RUN = "import sys; from k8snet.jupyter.runner import run_chapters as run; from pathlib import Path; "
RUN += "sys.exit(run([], output=None, jobs=1, source=Path(sys.argv[1])))"


def test_where_user_namespaces_are_forbidden_chapters_run_in_a_guest(owner: Identity, folder: Path, mark: str) -> None:
    """As on some public Binders: no privileges, no namespaces; the lab of the chapter works all the same."""
    chapter(folder / mark, "from k8snet import Lab\nwith Lab() as lab:\n    lab.netns('a').run('true')")
    words = [*owner.before, *FEW_IDS, *FORBID, owner.python, "-c", RUN, str(folder / mark)]
    done = subprocess.run(
        words, env=owner.environment, cwd="/tmp", capture_output=True, text=True, timeout=280, check=False
    )
    assert "01-small runs in a virtual machine (k8snet-vm): user namespaces are forbidden here" in done.stdout
    assert "01-small: 1 cells" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
