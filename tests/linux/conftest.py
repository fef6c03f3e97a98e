"""Each test process has a /run/netns and a /run/k8snet of its own, so that two at a time do not meet."""

from __future__ import annotations

import ctypes

import pytest

from k8snet.lab import Lab
from k8snet.linux import nsfs
from k8snet.linux.run import scratch

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 16384, 1 << 18


@pytest.fixture(scope="session", autouse=True)
def _own_names():
    libc = ctypes.CDLL(None, use_errno=True)
    steps = [
        libc.unshare(CLONE_NEWNS),
        libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None),
        *(libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", ctypes.c_ulong(0), b"mode=755")
          for folder in (nsfs.FOLDER, scratch())),
    ]  # fmt: skip
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


@pytest.fixture
def cluster_of():
    """Build clusters that are gone after the test, and leave nothing."""
    from k8snet import Cluster

    made = []

    def build(nodes=2, **options):
        made.append(Cluster(nodes, **{"name": "test", "wiring": "direct", **options}))
        return made[-1]

    yield build
    for one in made:
        one.close()
    assert nsfs.names() == []
    assert list(scratch().glob("cluster-*")) == []
