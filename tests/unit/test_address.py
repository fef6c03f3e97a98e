"""Names and addresses are checked by rules that can be stated."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k8snet.errors import InvalidAddress, InvalidName
from k8snet.linux import address


@given(st.ip_addresses(v=4), st.integers(1, 30))
def test_a_host_of_a_network_is_taken_and_its_ends_are_not(ip, prefix):
    network = ipaddress.ip_network(f"{ip}/{prefix}", strict=False)
    text = f"{ip}/{prefix}"
    usable = not ip.is_multicast and not ip.is_unspecified
    if usable and ip not in {network.network_address, network.broadcast_address}:
        assert str(address.interface_address(text)) == text
    else:
        with pytest.raises(InvalidAddress):
            address.interface_address(text)


@pytest.mark.parametrize("text", ["10.0.0.0/31", "10.0.0.1/31", "10.0.0.1/32", "fd00::/64", "fd00::1/128"])
def test_point_to_point_and_ipv6_have_no_address_to_spare(text):
    """RFC 3021 for /31; IPv6 has no broadcast."""
    assert address.interface_address(text)


@given(st.text(max_size=20))
def test_an_interface_name_is_what_linux_takes(name):
    """dev_valid_name() in net/core/dev.c; '%' and a leading '-' mislead programs."""
    fits = 0 < len(name.encode(errors="surrogatepass")) < 16 and name not in {".", ".."}
    clean = not any(char in "/:%" or char.isspace() for char in name) and not name.startswith("-")
    try:
        assert address.check_interface_name(name) == name
    except (InvalidName, UnicodeEncodeError):
        assert not (fits and clean) or any(0xD800 <= ord(char) <= 0xDFFF for char in name)
    else:
        assert fits
        assert clean


@given(st.text(max_size=20), st.text(max_size=15))
def test_a_mac_is_local_unicast_and_follows_from_the_names(netns, interface):
    try:
        mac = address.mac_for(netns, interface)
    except UnicodeEncodeError:
        return
    first = int(mac[:2], 16)
    assert first & 3 == 2  # locally administered, one receiver
    assert address.check_mac(mac) == mac == address.mac_for(netns, interface)


def test_two_interfaces_do_not_share_a_mac():
    macs = {address.mac_for(f"pod{number}", name) for number in range(1000) for name in ("eth0", "eth1")}
    assert len(macs) == 2000


@pytest.mark.parametrize(
    ("text", "message"),
    [("10.0.0.1/24", "did you mean 10.0.0.0/24"), ("x", "not a network"), ("10.0.0.0/40", "not a network")],
)
def test_a_network_with_host_bits_is_mended_in_the_message(text, message):
    with pytest.raises(InvalidAddress, match=message):
        address.network(text)
