"""These tests run in a guest, all in one boot: it has what this machine's Linux may lack (IPVS, WireGuard, netem)."""
from __future__ import annotations

import os

import pytest

from k8snet import sandbox
from tests.linux.conftest import _own_names, cluster_of, lab, pair

__all__ = ["_in_guest", "_own_names", "cluster_of", "lab", "pair"]


@pytest.fixture(scope="session", autouse=True)
def _in_guest() -> None:
    assert sandbox.GUEST in os.environ, "the tests of tests/vm run in the virtual machine: ./run test tests/vm"
