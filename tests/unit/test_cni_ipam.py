"""Leases: addresses on disk, in host-local's format."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from k8snet.cni.ipam import Lease, Leases
from k8snet.errors import InvalidAddress, InvalidInput, NameTaken


def test_addresses_come_one_after_the_other_and_never_the_gateways(tmp_path):
    leases = Leases(tmp_path, "10.1.0.0/29")
    found = [leases.reserve(f"c{number}", "eth0") for number in range(3)]
    assert found == ["10.1.0.2/29", "10.1.0.3/29", "10.1.0.4/29"]
    assert Leases(tmp_path / "b", "10.1.0.0/29", gateway="10.1.0.2").reserve("c", "eth0") == "10.1.0.1/29"
    assert Leases(tmp_path / "c", "fd00::/64").reserve("c", "eth0") == "fd00::2/64"


def test_a_lease_is_a_file_with_container_and_interface(tmp_path):
    Leases(tmp_path, "10.1.0.0/29").reserve("c1", "eth0")
    assert (tmp_path / "10.1.0.2").read_bytes() == b"c1\r\neth0"
    assert (tmp_path / "last_reserved_ip.0").read_text() == "10.1.0.2"
    assert Leases(tmp_path, "10.1.0.0/29").list() == (Lease(address="10.1.0.2", container_id="c1", interface="eth0"),)


def test_a_freed_address_is_not_handed_out_again_at_once(tmp_path):
    """A peer's ARP entry for its last owner may live on for a while."""
    leases = Leases(tmp_path, "10.1.0.0/29")
    leases.reserve("c1", "eth0")
    leases.release("c1", "eth0")
    assert leases.reserve("c2", "eth0") == "10.1.0.3/29"
    for number in range(3, 6):
        leases.reserve(f"c{number}", "eth0")
    assert leases.reserve("c6", "eth0") == "10.1.0.2/29"


def test_exhaustion_says_how_many_there_are_and_how_to_free_some(tmp_path):
    leases = Leases(tmp_path, "10.1.0.0/29")
    leases.reserve_many([(f"c{number}", "eth0") for number in range(5)])
    with pytest.raises(InvalidInput, match=r"no address is free in 10.1.0.0/29: 5 leases.*release\(ID"):
        leases.reserve("c9", "eth0")
    leases.release("c3", "eth0")
    assert leases.reserve("c9", "eth0") == "10.1.0.5/29"


def test_many_are_handed_out_all_or_none(tmp_path):
    leases = Leases(tmp_path, "10.1.0.0/29")
    with pytest.raises(InvalidInput, match="no address"):
        leases.reserve_many([(f"c{number}", "eth0") for number in range(6)])
    assert leases.list() == ()
    assert leases.reserve_many([]) == []


def test_a_container_has_one_address_an_interface(tmp_path):
    leases = Leases(tmp_path, "10.1.0.0/29")
    leases.reserve("c1", "eth0")
    leases.reserve("c1", "eth1")
    with pytest.raises(NameTaken, match=r"c1 eth0 has 10.1.0.2 already"):
        leases.reserve("c1", "eth0")
    with pytest.raises(NameTaken):
        leases.reserve_many([("c2", "eth0"), ("c2", "eth0")])
    leases.release("c1", "eth0")
    leases.release("c1", "eth0")
    assert [one.interface for one in leases.list()] == ["eth1"]


def test_an_address_can_be_asked_for(tmp_path):
    leases = Leases(tmp_path, "10.1.0.0/29")
    assert leases.reserve("c1", "eth0", wanted="10.1.0.5") == "10.1.0.5/29"
    with pytest.raises(NameTaken, match=r"10.1.0.5 is taken by c1 eth0"):
        leases.reserve("c2", "eth0", wanted="10.1.0.5")
    for bad in ("10.1.0.1", "10.1.0.0", "10.1.0.7", "10.2.0.1", "fd00::2", "x"):
        with pytest.raises(InvalidAddress):
            leases.reserve("c2", "eth0", wanted=bad)
    assert leases.reserve("c3", "eth0") == "10.1.0.6/29"  # what was asked for moves the round robin, as in host-local


def test_two_families_share_a_folder(tmp_path):
    v4, v6 = Leases(tmp_path, "10.1.0.0/29"), Leases(tmp_path, "fd00::/64", range_number=1)
    assert [one.reserve("c1", "eth0") for one in (v4, v6)] == ["10.1.0.2/29", "fd00::2/64"]
    v4.release("c1", "eth0")
    assert [one.address for one in v6.list()] == ["fd00::2"]


@pytest.mark.parametrize("subnet", ["10.1.0.0/31", "10.1.0.1/24", "x", "fd00::/127"])
def test_what_is_no_subnet_for_containers_is_refused(tmp_path, subnet):
    with pytest.raises(InvalidAddress):
        Leases(tmp_path, subnet)


def test_threads_never_get_the_same_address(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: Leases(tmp_path, "10.1.0.0/24").reserve(f"c{n}", "eth0"), range(60)))
    assert len(set(found)) == 60
