"""The virtual machine, as root and as an ordinary user: a command, a terminal, a kernelspec, and nothing left behind.

Where it is not prepared, the image is made, once, in the state folder of whoever runs the tests.
A guest boots in some 10 s under emulation, so each test asks much of one.
"""
from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from k8snet import doctor
from k8snet.errors import CapabilityMissing, ProgramMissing, SandboxFailed
from k8snet.jupyter import kernelspec
from k8snet.jupyter.chapters import find_chapters
from k8snet.jupyter.runner import run_chapters
from k8snet.jupyter.vm import image, launch, need
from tests.sandbox.conftest import ROOT, Identity, eventually, processes

SESSION = Path(__file__).with_name("vm_session.py")
PATIENCE_S = 800
pytestmark = pytest.mark.timeout(900)  # seconds; a machine with other work takes several times as long
WITHOUT_ROOT = pytest.mark.parametrize(
    "identity", ["an ordinary user" if os.geteuid() == 0 else "this user"], indirect=True
)
LOOK = """
id -u; ls /sys/class/net; touch /etc/k8snet-test && echo kept nowhere
echo from the guest > note; cat; echo to standard error >&2
k8snet() { python=$1; shift; "$python" -m k8snet.cli "$@"; }
k8snet "$0" sandbox --vm -- sh -c 'echo inside again; exit 3' || echo $?
trap 'echo interrupted; exit 9' INT; echo up; while :; do sleep 0.1; done"""


@pytest.fixture(scope="session")
def prepared() -> image.Image:
    """The image, made now if it is not there."""
    try:
        return launch.prepared(lambda _: None)
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


def test_a_command_in_a_guest_has_its_streams_its_folder_and_its_interrupts_and_nothing_else(
    owner: Identity, folder: Path, mark: str
) -> None:
    """No network card, no root, the machine below read-only; sandboxes in it; Ctrl-C and the exit code come through."""
    words = owner.python_with("-m", "k8snet.cli", "sandbox", "--vm", "--", "sh", "-c", LOOK, owner.python)
    running = subprocess.Popen(
        words, env=owner.environment, cwd=folder / mark, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stdin
    assert running.stdout
    assert running.stderr
    running.stdin.write("through\n")
    running.stdin.close()
    said = []
    while line := running.stdout.readline():
        said.append(line.strip())
        if said[-1] == "up":
            running.send_signal(signal.SIGINT)
    assert (running.wait(), running.stderr.read()) == (9, "to standard error\n")
    assert said == ["1000", "lo", "kept nowhere", "through", "inside again", "3", "up", "interrupted"]
    assert (folder / mark / "note").read_text() == "from the guest\n"
    assert not Path("/etc/k8snet-test").exists()
    assert eventually(lambda: not processes(mark)), processes(mark)


PODS = """
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
 "spec": {"containers": [{"name": "nginx", "image": "nginx", "ports": [{"containerPort": 80}]}]}}
"""


@WITHOUT_ROOT
def test_the_shell_of_a_cluster_in_a_guest_has_the_terminal(owner: Identity, folder: Path, mark: str) -> None:
    """Keys, Ctrl-C and the size of the window travel, `k8snet get` works, and the terminal is left as it was."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (31, 97))
    before = termios.tcgetattr(theirs)
    (folder / mark / "pods.yaml").write_text(PODS)
    running = subprocess.Popen(
        owner.python_with("-m", "k8snet.cli", "up", "--vm", "-f", "pods.yaml"), env=owner.environment,
        cwd=folder / mark, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    said = b""

    def until(*texts: bytes) -> None:
        nonlocal said
        while not all(text in said for text in texts):
            assert running.poll() is None, said.decode(errors="replace")
            said += os.read(ours, 65536)

    until(b"nothing stays")
    os.write(ours, b"sh -c 'stty size; exec sleep 200'\n")
    until(b"31 97")
    os.write(ours, b"\x03")
    until(b"^C")
    os.write(ours, f"{owner.python} -m k8snet.cli get pods -o name; exit 6\n".encode())
    until(b"pod/web")
    assert running.wait() == 6
    assert termios.tcgetattr(theirs) == before
    os.close(theirs)
    os.close(ours)
    assert eventually(lambda: not processes(mark)), processes(mark)


Play = Callable[[str], dict[str, object]]


@pytest.fixture
def play(owner: Identity, folder: Path, mark: str) -> Play:
    """Play a scenario of vm_session.py, and return what it found."""

    def body(scenario: str) -> dict[str, object]:
        done = subprocess.run(
            owner.python_with(str(SESSION), scenario, str(folder), mark), env=owner.environment, cwd="/tmp",
            capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.stdout, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found

    return body


@WITHOUT_ROOT
def test_a_kernel_in_a_guest_has_ipvs_and_is_interrupted_restarted_and_ended(play: Play, mark: str) -> None:
    """IPVS in a lab is what the guest is for; a loop of Python, a sleep and a program obey interrupts."""
    found = play("life")
    turns = str(found["ipvs"]).split()
    assert turns in (["one", "two"] * 5, ["two", "one"] * 5), found["ipvs"]
    for name, output in dict(found["ends"]).items():  # type: ignore[call-overload]
        assert "KeyboardInterrupt" in output, name
    assert (found["after"], found["restarted"], found["noticed"]) == ("alive\n", "False\n", True)
    assert eventually(lambda: not processes(mark)), processes(mark)


@pytest.mark.parametrize("victim", ["launcher", "server"])
def test_sigkill_of_what_started_a_guest_ends_it(play: Play, mark: str, victim: str) -> None:
    """QEMU dies with its launcher, and the launcher with Jupyter."""
    play(victim)
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


# -- as on a public Binder -------------------------------------------------------------

ALL_CHAPTERS = "K8SNET_TEST_BINDER"  # if set, 09 runs there as well, which takes minutes
BINDER = (  # an enclosing namespace without user namespaces, capabilities and KVM
    "unshare", "--user", "--map-current-user", "--keep-caps", "--mount", "--", "sh", "-c",
    """set -e; test ! -e /dev/kvm || mount --bind /dev/null /dev/kvm; echo 0 > /proc/sys/user/max_user_namespaces
    exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all --ambient-caps=-all -- "$@" """, "sh",
)  # fmt: skip
ARGV = "from jupyter_client.kernelspec import get_kernel_spec as s; print(*s('k8snet').argv)"


@pytest.mark.timeout(1800)
@WITHOUT_ROOT
def test_where_a_binder_forbids_user_namespaces_everything_goes_on_in_the_guest(
    owner: Identity, folder: Path, mark: str
) -> None:
    """No namespaces, no KVM: doctor says so, `k8snet run` chooses the guest, and so does the kernelspec k8snet."""

    def on_binder(*words: str) -> subprocess.CompletedProcess[str]:
        whole = [*owner.before, *BINDER, *words]
        return subprocess.run(whole, env=owner.environment, cwd=ROOT, capture_output=True, text=True, check=False)

    me = folder / mark / "k8snet"
    me.write_text(f'#!/bin/sh\nexec {owner.python} -m k8snet.cli "$@"\n')
    me.chmod(0o755)
    owner.environment["PATH"] = f"{me.parent}:{os.environ['PATH']}"
    findings = {one["ability"]: one for one in json.loads(on_binder("k8snet", "doctor", "--json").stdout)["findings"]}
    assert [findings[name]["ok"] for name in ("user namespaces", "/dev/kvm", "virtual machine")] == [False, False, True]
    assert "every chapter runs in the virtual machine" in on_binder("k8snet", "doctor").stdout
    owner.environment.pop("JUPYTER_PATH")
    started = on_binder("binder/start", owner.python, "-c", ARGV)
    assert "k8snet.jupyter.vm.launch" in started.stdout, started.stderr
    owner.environment["JUPYTER_PATH"] = str(folder / "share/jupyter")
    chapters = ["02", "09"] if os.environ.get(ALL_CHAPTERS) else ["02"]
    done = on_binder("k8snet", "run", *chapters)
    assert done.returncode == 0, done.stdout + done.stderr
    for number in chapters:
        name = find_chapters([number])[0].name
        assert f"{name} runs in a virtual machine (k8snet-vm): user namespaces are forbidden here" in done.stdout
    assert eventually(lambda: not processes(mark)), processes(mark)
