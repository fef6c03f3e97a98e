"""Each test process has a /run/netns of its own, so that two at a time do not meet."""

from __future__ import annotations

import ctypes

import pytest

from k8snet.lab import Lab
from k8snet.linux import nsfs

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 16384, 1 << 18


@pytest.fixture(scope="session", autouse=True)
def _own_names():
    libc = ctypes.CDLL(None, use_errno=True)
    steps = [
        libc.unshare(CLONE_NEWNS),
        libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None),
        libc.mount(b"tmpfs", str(nsfs.FOLDER).encode(), b"tmpfs", ctypes.c_ulong(0), b"mode=755"),
    ]
    assert not any(steps), "the tests of tests/linux run in a sandbox: ./run test"


@pytest.fixture
def lab():
    with Lab("test") as opened:
        yield opened
    assert nsfs.names() == []


@pytest.fixture
def pair(lab):
    """Two netns and a cable: client 10.0.0.11/24, server 10.0.0.12/24."""
    from k8snet import End

    client, server = lab.netns("client"), lab.netns("server")
    lab.veth(
        End(netns=client, name="veth-client", address="10.0.0.11/24"),
        End(netns=server, name="veth-server", address="10.0.0.12/24"),
    )
    return client, server
