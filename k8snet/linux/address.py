"""Names and addresses: checked here, before anything reaches the kernel."""

from __future__ import annotations

import hashlib
import ipaddress
import re

from k8snet.errors import InvalidAddress, InvalidInput, InvalidName

__all__ = [
    "check_interface_name",
    "check_mac",
    "check_netns_name",
    "check_port",
    "check_range",
    "host_address",
    "interface_address",
    "mac_for",
    "network",
]

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

IFNAMSIZ = 16  # bytes, the closing zero included
_NETNS_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


def check_interface_name(name: str) -> str:
    """Return *name* if Linux takes it as the name of an interface.

    Raises:
        InvalidName: empty, over 15 bytes, `.` or `..`, or with `/`, `:` or white space in it.
    """
    if not isinstance(name, str) or not name:
        raise InvalidName("an interface needs a name of 1 to 15 bytes")
    size = len(name.encode())
    if size >= IFNAMSIZ:
        raise InvalidName(f"interface name {name!r} has {size} bytes; Linux takes at most 15")
    if name in {".", ".."} or name.startswith("-") or any(c in "/:%" or c.isspace() for c in name):
        raise InvalidName(f"interface name {name!r}: no '/', ':', '%' or white space, and no '-' at the start")
    return name


def check_netns_name(name: str) -> str:
    """Return *name* if it can be the name of a netns.

    Raises:
        InvalidName: not 1 to 63 letters, digits, `_`, `.` and `-`, the first one a letter, digit or `_`.
    """
    if not isinstance(name, str) or not _NETNS_NAME.fullmatch(name):
        raise InvalidName(
            f"netns name {name!r}: 1 to 63 letters, digits, '_', '.' or '-', and not '.' or '-' at the start"
        )
    return name


def interface_address(text: str) -> IPInterface:
    """Return *text*, such as "10.0.0.11/24", as an address that an interface can have.

    Raises:
        InvalidAddress: no prefix length, not an address, or the network's own or broadcast address.
    """
    if not isinstance(text, str) or "/" not in text:
        raise InvalidAddress(f"{text!r} has no prefix length; write it as in '10.0.0.11/24'")
    try:
        found = ipaddress.ip_interface(text)
    except ValueError as error:
        raise InvalidAddress(str(error)) from None
    if found.ip.is_multicast or found.ip.is_unspecified:
        raise InvalidAddress(
            f"{text!r} is a {'multicast' if found.ip.is_multicast else 'wildcard'} address; no interface can have it"
        )
    if found.version == 4 and found.network.prefixlen < 31:
        if found.ip == found.network.network_address:
            raise InvalidAddress(f"{text!r} is the network's own address; the first usable one is {found.network[1]}")
        if found.ip == found.network.broadcast_address:
            raise InvalidAddress(
                f"{text!r} is the network's broadcast address; the last usable one is {found.network[-2]}"
            )
    return found


def host_address(text: str) -> IPAddress:
    """Return *text* as the address of one host.

    Raises:
        InvalidAddress: not an IPv4 or IPv6 address.
    """
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        hint = "; leave the prefix length out" if "/" in str(text) else ""
        raise InvalidAddress(f"{text!r} is not an IPv4 or IPv6 address{hint}") from None


def network(text: str) -> IPNetwork:
    """Return *text*, a prefix such as "10.244.1.0/24" or "default", as a network.

    "default" is 0.0.0.0/0.

    Raises:
        InvalidAddress: not a prefix, or one with host bits set.
    """
    if text == "default":
        return ipaddress.ip_network("0.0.0.0/0")
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        try:
            mended = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise InvalidAddress(f"{text!r} is not a network: {error}") from None
        raise InvalidAddress(f"{text!r} has host bits set; did you mean {mended}?") from None


def check_mac(text: str) -> str:
    """Return *text* in lower case if it is the MAC of one interface.

    Raises:
        InvalidAddress: not six octets in hex, or a multicast address.
    """
    lowered = text.lower() if isinstance(text, str) else ""
    if not _MAC.fullmatch(lowered):
        raise InvalidAddress(f"{text!r} is not a MAC; write it as in '02:00:00:00:00:01'")
    if int(lowered[:2], 16) & 1:
        raise InvalidAddress(f"{text!r} is a multicast MAC; the first octet of an interface's is even")
    return lowered


def check_port(port: int) -> int:
    """Return *port* if it is a TCP or UDP port number.

    Raises:
        InvalidInput: not a whole number from 1 to 65535.
    """
    return check_range("port", port, 1, 65535)


def check_range(what: str, value: int, low: int, high: int) -> int:
    """Return *value* if it is a whole number from *low* to *high*.

    Raises:
        InvalidInput: it is not; the message names *what*.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidInput(f"{what} {value!r} is not a whole number from {low} to {high}")
    return value


def mac_for(netns: str, interface: str) -> str:
    """Return the MAC of *interface* in *netns*: the same in every run, locally administered."""
    digest = hashlib.sha256(f"{netns}/{interface}".encode()).digest()
    return ":".join(f"{octet:02x}" for octet in (0x02, *digest[:5]))
