"""The sandbox: what it refuses, what it lets through, and how it says that it cannot be."""
from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.sandbox.conftest import Identity, network_of_the_machine


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["sh", "-c", "exit 7"], 7),
        (["true"], 0),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["no-such-command-anywhere"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_the_exit_code_of_the_command_is_the_exit_code_of_the_sandbox(
    identity: Identity, command: list[str], code: int
) -> None:
    """Scripts branch on it; 126, 127 and 128 + signal are what a shell would say."""
    assert identity.sandbox(*command).returncode == code


@pytest.mark.parametrize(
    "forbidden",
    [
        "touch /etc/k8snet-test",
        "touch /usr/k8snet-test",
        "echo 1 > /proc/sys/vm/drop_caches",
        "echo 1 > /proc/sys/kernel/panic",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "ip link add name k8snet-test type bridge",
        "ip link set lo down",
        "ip route add 203.0.113.0/24 dev lo",
        "iptables -A INPUT -s 203.0.113.1 -j DROP",
        "setpriv --reuid 0 true",
    ],
)
def test_the_machine_cannot_be_changed_from_inside(identity: Identity, forbidden: str) -> None:
    """A reader may try anything, and as root, too."""
    before = network_of_the_machine()
    result = identity.shell(forbidden)
    words = ("Read-only", "denied", "not permitted", "Permission", "Invalid argument")
    assert result.returncode != 0
    assert any(word in result.stderr for word in words), result.stderr
    assert network_of_the_machine() == before


def test_a_lab_inside_changes_nothing_of_the_machine(identity: Identity) -> None:
    """Links, routes, rules and forwarding of the machine are the same before, during and after."""
    script = """
        ip netns add a || true; ip netns exec a ip link add name br0 type bridge
        ip netns exec a ip link set br0 up; ip -n a address add 203.0.113.1/24 dev br0
        ip netns exec a iptables -t nat -A POSTROUTING -j MASQUERADE
        ip netns exec a sysctl -qw net.ipv4.ip_forward=1
        ip netns exec a sysctl -n net.ipv4.ip_forward; ip -n a -br link show br0
        echo; ip -o link; ip route show table all"""
    before = network_of_the_machine()
    result = identity.shell(script)
    inside, _, seen = result.stdout.partition("\n\n")
    assert inside.split()[:2] == ["1", "br0"], result.stderr
    assert seen == before[0] + before[2]
    assert network_of_the_machine() == before


def test_a_netns_named_later_is_seen_inside_ip_netns_exec(identity: Identity) -> None:
    """`ip netns exec` makes a mount namespace; a long one must see what comes after it."""
    script = """
        fifo=/tmp/fifo$$; mkfifo $fifo
        ip netns add first 2>/dev/null
        ip netns exec first sh -c 'echo ready > $0; cat $0 > /dev/null; ip -n later -o link' $fifo &
        cat $fifo > /dev/null; ip netns add later 2>/dev/null; echo go > $fifo
        wait $!; code=$?; rm $fifo; exit $code"""
    result = identity.shell(script)
    assert result.returncode == 0, result.stderr
    assert "LOOPBACK" in result.stdout


def test_a_netns_named_in_a_mount_namespace_of_the_group_is_seen_outside_it(identity: Identity) -> None:
    """/run/netns is shared, so names travel both ways; `ip netns exec` alone leaves the group for good."""
    script = "unshare --mount --propagation unchanged ip netns add x 2>/dev/null; ip -n x -o link"
    result = identity.shell(script)
    assert "LOOPBACK" in result.stdout, result.stderr


def test_a_sandbox_can_be_made_inside_a_sandbox(identity: Identity) -> None:
    """A chapter shows the command `k8snet sandbox`, and a test may run inside one."""
    inner = "ip netns add x; ip -n x link add name a type veth peer name b && ls /run/netns"
    result = identity.sandbox(identity.python, "-m", "k8snet.cli", "sandbox", "--", "sh", "-c", inner)
    assert result.stdout.split() == ["x"], result.stderr


def test_standard_streams_signals_and_limits_are_as_a_program_expects_them(identity: Identity) -> None:
    """A closed pipe ends a writer quietly, many sockets can be open, a terminal can be made."""
    assert identity.shell("yes | head -n1").stderr == ""
    soft, hard = identity.shell("ulimit -Sn; ulimit -Hn").stdout.split()
    assert hard == "unlimited" or int(soft) == min(int(hard), 1 << 20)
    terminal = identity.sandbox(identity.python, "-c", "import os; print(os.ttyname(os.openpty()[1]))")
    assert terminal.stdout.startswith("/dev/pts/"), terminal.stderr


def test_the_folder_that_a_sandbox_may_write_is_the_one_asked_for(identity: Identity, folder: Path) -> None:
    """The working copy and /tmp can be written, a system folder never."""
    sandbox = identity.python_with("-m", "k8snet.cli", "sandbox")
    words = [*sandbox, "--writable", str(folder), "--", "touch", f"{folder}/made"]
    assert subprocess.run(words, env=identity.environment, cwd="/tmp", check=False).returncode == 0
    words[words.index("--writable") + 1] = "/etc"
    words[-1] = "/etc/k8snet-test"
    done = subprocess.run(words, env=identity.environment, cwd="/tmp", capture_output=True, text=True, check=False)
    assert "Read-only" in done.stderr


FEW_IDS = ("unshare", "--user", "--map-root-user", "--")


def test_forbidden_user_namespaces_are_one_clear_error(identity: Identity) -> None:
    """The reader learns which settings to look at, without a traceback."""
    no_more = (*FEW_IDS, "sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"', "sh")
    result = identity.sandbox("true", before=no_more)
    assert result.returncode == 125
    for word in ("user.max_user_namespaces", "unprivileged_userns_clone", "apparmor_restrict", "k8snet doctor"):
        assert word in result.stderr
    assert "Traceback" not in result.stderr


def test_a_container_with_a_masked_proc_is_told_what_to_do(identity: Identity) -> None:
    """Linux lets nobody mount a /proc that shows more than the one that is there."""
    hide = "mount -t tmpfs none /run && exec \"$@\""
    inner = [identity.python, "-m", "k8snet.cli", "sandbox", "--", "true"]
    result = identity.sandbox("unshare", "--mount", "--", "sh", "-c", hide, "sh", *inner)
    assert result.returncode == 125
    assert "unshare: mount /proc failed" in result.stderr
    assert "systempaths=unconfined" in result.stderr


def test_root_of_a_container_with_one_id_gets_a_sandbox_unless_it_is_the_machines_root(identity: Identity) -> None:
    """The machine's uid 0 may write every sysctl whatever its capabilities, so it is refused."""
    result = identity.sandbox("id", "-u", before=FEW_IDS)
    if os.geteuid() == 0 and identity.name == "this user":
        assert (result.returncode, result.stdout) == (125, "")
        assert "ordinary user" in result.stderr
    else:
        assert (result.returncode, result.stdout) == (0, "1000\n"), result.stderr
