"""The cell magic `%%netns`: a terminal session in a cell."""

from __future__ import annotations

import time

import pytest
from IPython.core.interactiveshell import InteractiveShell

from k8snet.errors import CommandFailed, InvalidInput, NotFound, Timeout
from k8snet.jupyter.session import commands_of


@pytest.fixture
def cell(lab, capsys):
    """Run a cell as a notebook would, and return what it printed without colours."""
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "k8snet")
    shell.user_ns["lab"] = lab
    lab.netns("a")

    def run(first: str, text: str) -> str:
        capsys.readouterr()
        shell.run_cell_magic("netns", first, text)
        out = capsys.readouterr().out
        for code in ("\x1b[1;36m", "\x1b[0m", "\x1b[1m", "\x1b[2m"):
            out = out.replace(code, "")
        return out

    return run


def test_each_command_is_shown_after_its_prompt_with_its_output_under_it(cell):
    assert cell("a", "echo one\necho two\n") == "a$ echo one\none\na$ echo two\ntwo\n"


def test_a_prompt_begins_a_line_of_its_own(cell):
    assert cell("a", "printf one\ntrue\nprintf two") == "a$ printf one\none\na$ true\na$ printf two\ntwo\n"


def test_commands_share_one_shell(cell):
    assert cell("a", "x=5\ncd /tmp\necho $x $PWD").endswith("5 /tmp\n")


def test_a_failing_command_stops_the_cell_with_its_output(cell, lab):
    with pytest.raises(CommandFailed, match=r"in netns a ended with 1: .*nope"):
        cell("a", "ip link show dev nope\nip link add name br0 type bridge")
    assert lab.snapshot()["a"].interface("br0") is None


def test_what_may_fail_runs_on(cell):
    assert "after" in cell("--may-fail a", "false\necho after")


def test_what_changes_the_netns_is_recorded_and_what_looks_is_not(cell, lab):
    mark = len(lab.transcript)
    cell(
        "a",
        "ip link show\nip -br a\nip route get 127.0.0.1\nping -c1 127.0.0.1\n"
        "iptables -t nat -nvL\nsysctl net.ipv4.ip_forward\n"
        "ip link add name br0 type bridge\niptables -A INPUT -j ACCEPT\nsysctl -qw net.ipv4.ip_forward=1",
    )
    assert lab.transcript.since(mark).commands() == [
        "ip -n a link add name br0 type bridge",
        "ip netns exec a iptables -A INPUT -j ACCEPT",
        "ip netns exec a sysctl -qw net.ipv4.ip_forward=1",
    ]


def test_a_failed_command_is_not_recorded(cell, lab):
    mark = len(lab.transcript)
    cell("--may-fail a", "ip link delete dev nope")
    assert len(lab.transcript) == mark


def test_the_host_netns_is_where_netns_are_made(cell, lab):
    assert set(cell("host", "ip netns add b\nip netns list").split("\n")[2:]) >= {"a", "b", "host"}
    assert lab["b"].run("true").ok


def test_a_server_in_the_background_outlives_the_cell_but_not_the_lab(cell, lab):
    cell("a", "sleep 600 &\necho started")
    from k8snet.lab import _processes_in

    assert len(_processes_in({lab["a"].inode})) == 1
    lab.remove("a")


def test_a_command_that_does_not_end_is_ended(cell):
    begun = time.monotonic()
    with pytest.raises(Timeout, match="--timeout SECONDS"):
        cell("--timeout 0.3 a", "sleep 60")
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("line", "text", "error", "message"),
    [
        ("", "ip a", InvalidInput, "Write: %%netns"),
        ("a b", "ip a", InvalidInput, "unrecognized arguments: b"),
        ("nobody", "ip a", NotFound, "no netns 'nobody'"),
        ("--lab nothing a", "ip a", NotFound, "no lab in that variable"),
        ("a", "for x in 1; do", InvalidInput, "bash cannot read this"),
        ("a", "echo 'x", InvalidInput, "bash cannot read this"),
    ],
)
def test_a_cell_that_cannot_run_says_why(cell, line, text, error, message):
    with pytest.raises(error, match=message):
        cell(line, text)


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        ("a\n\n# c\nb", ["a", "b"]),
        ("for x in 1 2\ndo\n  a\ndone\nb", ["for x in 1 2\ndo\n  a\ndone", "b"]),
        ("cat <<E\nx\nE\nb", ["cat <<E\nx\nE", "b"]),
        ("a \\\n  b\nc", ["a \\\n  b", "c"]),
        ("f() {\n  a\n}\nf", ["f() {\n  a\n}", "f"]),
    ],
)
def test_complete_commands_stay_together(text, commands):
    assert commands_of(text) == commands


def test_bytes_that_are_no_text_do_not_break_a_cell(cell):
    assert cell("a", r"printf '\xff\xc3\xa9\n'").endswith("\ufffdé\n")


@pytest.mark.parametrize(
    ("command", "looks"),
    [
        ("ip -n client link show lo", True),
        ("ip -br link", True),
        ("ip -d -n a link show dev e", True),
        ("ip address", True),
        ("ip neighbour show dev e", True),
        ("bridge -s fdb show br docker0", True),
        ("iptables -t nat -nvL POSTROUTING", True),
        ("timeout 5 ping 10.0.0.1", True),
        ("nsenter --net=/run/x lsns -t net", True),
        ("ip netns exec a ip route", True),
        ("ip link show; ip route", True),
        ("ip route | grep default", True),
        ("ip netns", True),
        ("ip link set e up", False),
        ("ip -n a link add name br0 type bridge", False),
        ("ip link show; ip link delete dev e", False),
        ("timeout 5 ip link delete dev e", False),
        ("ip netns exec a ip route add default via 10.0.0.1", False),
        ("ip neigh flush dev e", False),
        ("iptables -A INPUT -j DROP", False),
        ("for x in 1; do ip link; done", False),
        ("conntrack -D", False),
        ("sysctl -qw net.ipv4.ip_forward=1", False),
        ("bridge fdb add 02:00:00:00:00:01 dev e", False),
    ],
)
def test_what_only_looks_is_told_by_its_words(command, looks):
    from k8snet.jupyter.magics import looks_only

    assert looks_only(command) is looks


def test_a_netns_deleted_by_hand_ends_although_the_lab_has_looked_at_it(cell, lab):
    cell("host", "ip netns add b\nip link add name far netns b type veth peer name near netns a")
    assert lab.snapshot()["a"].interface("near") is not None
    cell("host", "ip netns delete b\nwhile ip -n a link show dev near; do sleep 0.1; done")
    assert lab.snapshot()["a"].interface("near") is None
