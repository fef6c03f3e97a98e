"""The sandbox: what it refuses, what it lets through, and what it leaves behind."""
from __future__ import annotations

import subprocess
import sys

import pytest


def sandboxed(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "k8snet.cli", "sandbox", "--", "sh", "-c", script],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_exit_code_of_the_command_is_the_exit_code_of_the_sandbox():
    assert sandboxed("exit 7").returncode == 7


@pytest.mark.parametrize(
    "forbidden",
    [
        "touch /etc/k8snet-test",
        "echo 1 > /proc/sys/vm/drop_caches",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "ip link add name k8snet-test type bridge",
        "ip link set lo down",
        "ip route add 203.0.113.0/24 dev lo",
    ],
)
def test_the_machine_cannot_be_changed_from_inside(forbidden):
    result = sandboxed(forbidden)
    assert result.returncode != 0
    assert any(word in result.stderr for word in ("Read-only", "denied", "not permitted", "Permission"))


def test_a_netns_can_be_made_and_configured_inside():
    script = """
        ip netns add a || true; ip netns exec a ip link add name br0 type bridge
        ip netns exec a sysctl -qw net.ipv4.ip_forward=1
        ip netns exec a sysctl -n net.ipv4.ip_forward; ip -n a -br link show br0"""
    result = sandboxed(script)
    assert result.stdout.split()[:2] == ["1", "br0"], result.stderr
