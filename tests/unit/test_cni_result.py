"""Results: every format since 0.1.0, and what becomes of one in another."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8snet.cni import VERSIONS, Result, parse, side_by_side
from k8snet.cni.result import DNS, IP, Interface, Route
from k8snet.errors import InvalidConfig

FULL = Result(
    cni_version="1.1.0",
    interfaces=(
        Interface(name="cni0", mac="00:11:22:33:44:55"),
        Interface(name="eth0", mac="00:11:22:33:44:66", sandbox="/n/a", mtu=1400, socket_path="/s", pci_id="1:2"),
    ),
    ips=(IP(address="10.1.0.5/16", gateway="10.1.0.1", interface=1), IP(address="fd00::5/64", interface=1)),
    routes=(
        Route(dst="0.0.0.0/0", mtu=1400, advmss=1340, priority=100, table=50, scope=253),
        Route(dst="::/0", gw="fd00::1"),
    ),
    dns=DNS(nameservers=("10.1.0.1",), domain="local", search=("a.local",), options=("ndots:5",)),
)


@pytest.mark.parametrize("version", VERSIONS[2:])
def test_a_result_goes_to_a_newer_format_and_back(version):
    written = FULL.to(version)
    assert parse(written).to(version) == written
    assert parse(parse(written).to("1.1.0")).to(version) == written


def test_the_newest_format_holds_all():
    assert parse(FULL.to("1.1.0")) == FULL


def test_the_oldest_formats_have_one_address_a_family_and_its_routes():
    assert FULL.to("0.2.0") == {
        "cniVersion": "0.2.0",
        "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
        "ip6": {"ip": "fd00::5/64", "routes": [{"dst": "::/0", "gw": "fd00::1"}]},
        "dns": {"nameservers": ["10.1.0.1"], "domain": "local", "search": ["a.local"], "options": ["ndots:5"]},
    }
    assert parse(FULL.to("0.1.0")).ips == tuple(IP(address=one.address, gateway=one.gateway) for one in FULL.ips)


def test_each_format_has_the_fields_of_its_time():
    assert [one["version"] for one in FULL.to("0.4.0")["ips"]] == ["4", "6"]
    assert "version" not in FULL.to("1.0.0")["ips"][0]
    assert FULL.to("1.0.0")["interfaces"][1].keys() == {"name", "mac", "sandbox"}
    assert FULL.to("1.0.0")["routes"][0] == {"dst": "0.0.0.0/0"}
    newest = FULL.to("1.1.0")
    assert [newest["interfaces"][1][key] for key in ("mtu", "socketPath", "pciID")] == [1400, "/s", "1:2"]
    assert newest["routes"][0].keys() == {"dst", "mtu", "advmss", "priority", "table", "scope"}


def test_an_interface_with_index_0_is_not_one_without():
    first, none = IP(address="10.1.2.3/24", interface=0), IP(address="10.1.2.3/24")
    written = Result(cni_version="1.0.0", ips=(first, none)).to("1.0.0")
    assert written["ips"] == [{"interface": 0, "address": "10.1.2.3/24"}, {"address": "10.1.2.3/24"}]
    assert parse(written).ips == (first, none)


def test_what_we_do_not_know_is_kept_in_the_same_format_only():
    raw = {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/8", "x": 1}], "vendor": {"y": [2]}, "dns": {}}
    assert parse(raw).to("1.0.0") == raw
    assert parse(raw).to("1.1.0") == {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.1/8"}]}
    raw["vendor"]["y"].append(3)
    assert parse(raw).to("1.0.0")["vendor"] == {"y": [2, 3]}


def test_a_result_that_does_not_say_its_version_has_that_of_its_configuration():
    assert parse({"ips": []}, default_version="0.4.0").cni_version == "0.4.0"
    assert parse({"cniVersion": "", "ips": []}).cni_version == "0.1.0"


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ("nothing", "not JSON"),
        ("[]", "must be an object"),
        ({"cniVersion": "0.4567.0"}, "cniVersion: '0.4567.0'"),
        ({"cniVersion": "1.0.0", "ips": 5}, "ips: must be a list"),
        ({"cniVersion": "1.0.0", "ips": [{"address": 5}]}, r"ips\[0\].address: must be str, not 5"),
        ({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1"}]}, r"ips\[0\].address: .*prefix length"),
        ({"cniVersion": "1.0.0", "ips": [{"gateway": "10.0.0.1"}]}, r"ips\[0\]: 'address' is missing"),
        ({"cniVersion": "1.0.0", "ips": ["10.0.0.1/8"]}, r"ips\[0\]: must be an object"),
        ({"cniVersion": "1.0.0", "routes": [{"dst": "1.2.3.0/24", "gw": "1.2.3.x"}]}, r"routes\[0\].gw: '1.2.3.x'"),
        ({"cniVersion": "1.0.0", "interfaces": [{"mac": "x"}]}, r"interfaces\[0\]: 'name' is missing"),
        ({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/8", "interface": True}]}, "interface: must be int"),
        ({"cniVersion": "0.2.0", "ip4": "10.0.0.1/8"}, "ip4: must be an object"),
        ({"cniVersion": "0.2.0", "ip4": {"gateway": "10.0.0.1"}}, "'address' is missing"),
    ],
)
def test_what_is_no_result_is_named_by_its_field(raw, named):
    with pytest.raises(InvalidConfig, match=named):
        parse(raw)


def test_a_format_that_does_not_exist_is_refused():
    with pytest.raises(InvalidConfig, match=r"9.9.9"):
        FULL.to("9.9.9")


def test_formats_stand_side_by_side():
    shown = side_by_side(FULL)
    assert str(shown).splitlines()[0].split() == ["0.2.0", "1.0.0"]
    assert "ip4" in str(shown)
    assert "&quot;ip4&quot;" in shown._repr_html_()
    assert "<b>" in side_by_side(FULL, versions=("1.0.0", "1.1.0"))._repr_html_()


addresses = st.one_of(
    st.ip_addresses(v=4).map(lambda one: f"{one}/24"), st.ip_addresses(v=6).map(lambda one: f"{one}/64")
)


@given(st.lists(addresses, max_size=4), st.sampled_from(VERSIONS[2:]), st.sampled_from(VERSIONS[2:]))
def test_no_address_is_lost_between_formats_that_hold_many(found, one, other):
    result = Result(cni_version=one, ips=tuple(IP(address=address) for address in found))
    there = parse(json.dumps(parse(result.to(one)).to(other)))
    assert [ip.address for ip in there.ips] == found
