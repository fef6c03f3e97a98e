"""The lab: what it owns, what it records, and what it leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from k8snet import Attachment, End, Lab
from k8snet.errors import LabClosed, NameTaken, NotFound, SandboxFailed
from k8snet.linux import nsfs


def test_closing_a_lab_leaves_no_netns_and_no_process():
    """The promise of the book: no traces, by-hand servers included."""
    with Lab("short") as lab:
        netns = lab.netns("a")
        sleeper = netns.popen("sleep", "600")
        by_hand = int(netns.sh("sleep 600 >/dev/null 2>&1 & echo $!").stdout)
        assert Path(f"/proc/{by_hand}").exists()
        assert netns.inode == nsfs.inode(f"/proc/{sleeper.pid}/ns/net")
    assert nsfs.names() == []
    assert not sleeper.running
    assert not Path(f"/proc/{by_hand}/ns/net").exists()


def test_a_second_lab_of_the_same_name_replaces_the_first():
    """Running a cell with `lab = Lab()` again must just work."""
    first = Lab("again")
    first.netns("a")
    second = Lab("again")
    second.netns("a")
    assert not first.open
    with pytest.raises(LabClosed, match="make a new one"):
        first.netns("b")
    second.close()
    assert nsfs.names() == []


def test_a_netns_made_by_hand_becomes_part_of_the_lab(lab):
    nsfs.make("mine")
    assert lab["mine"].name == "mine"
    assert "mine" in lab
    assert lab.snapshot().names == ("mine",)


def test_a_netns_of_another_lab_is_not_taken(lab):
    with Lab("other") as other:
        other.netns("theirs")
        with pytest.raises(NotFound, match="part of the lab 'other'"):
            lab["theirs"]
        assert lab.snapshot().names == ()


def test_the_settings_that_machines_differ_in_are_explicit(lab):
    """rp_filter, forwarding and bridge-nf differ between distributions; a lab must not."""
    node = lab.netns("node", forward=True)
    assert node.sysctl("net.ipv4.ip_forward") == "1"
    assert node.sysctl("net.ipv4.conf.all.rp_filter") == "0"
    assert node.sysctl("net.ipv6.conf.all.disable_ipv6") == "1"
    assert node.sysctl("net.bridge.bridge-nf-call-iptables") == "1"
    assert lab.netns("pod").sysctl("net.bridge.bridge-nf-call-iptables") == "0"


def test_ipv6_works_in_a_lab_that_asks_for_it():
    with Lab("six", ipv6=True) as lab:
        a, b = lab.netns("a"), lab.netns("b")
        lab.veth(End(netns=a, name="e", address="fd00::1/64"), End(netns=b, name="e", address="fd00::2/64"))
        assert a.ping("fd00::2").ok
        with b.listen(80, address="::"):
            assert a.fetch("http://[fd00::2]/").server_sees[1] == "[fd00::2]:80"


def test_attach_all_makes_what_single_calls_make(lab):
    """The hot batch is hand-encoded; nothing else may tell it from the plain calls."""
    host = lab.host
    host.add_bridge("br0", address="10.1.0.1/24")
    lab.attach_all(host, "br0", [Attachment(netns="pod", port="p0", address="10.1.0.2/24", gateway="10.1.0.1")])
    batch = lab.snapshot()
    with Lab("test") as single:
        single.host.add_bridge("br0", address="10.1.0.1/24")
        pod = single.netns("pod")
        single.veth(End(netns=single.host, name="p0", master="br0"), End(netns=pod, name="eth0", address="10.1.0.2/24"))
        pod.add_route("default", via="10.1.0.1")
        assert single.snapshot() == batch, batch.diff(single.snapshot())


def test_removing_a_netns_ends_what_runs_in_it(lab):
    netns = lab.netns("a")
    process = netns.popen("sleep", "600")
    lab.remove("a")
    assert not process.running
    assert nsfs.names() == []


def test_a_lab_outside_a_sandbox_is_refused(monkeypatch):
    monkeypatch.delenv("K8SNET_SANDBOX")
    with pytest.raises(SandboxFailed, match="kernelspec `k8snet`"):
        Lab()


def test_no_file_stays_open_after_many_labs():
    """A class that re-runs its cells for hours must not run out of file descriptors."""

    def round_trip() -> None:
        with Lab("many") as lab:
            lab.netns("a").add_bridge("d")
            lab.snapshot()

    round_trip()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        round_trip()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_two_names_cannot_be_the_same(lab):
    lab.netns("a")
    with pytest.raises(NameTaken, match=r"lab\['a'\]"):
        lab.netns("a")


def test_a_removed_netns_takes_the_other_ends_of_its_cables_at_once(pair, lab):
    """The kernel ends a netns in the background; what a reader sees next must not depend on luck."""
    lab.remove("client")
    assert lab.snapshot()["server"].interface("veth-server") is None
