"""Masquerade with exceptions: the text of ip-masq-agent's chain, and lists that it refuses."""

from __future__ import annotations

import pytest

from k8snet.controllers.egress_masquerade import check_cidrs, render
from k8snet.errors import InvalidAddress, InvalidInput

SPARE = '-m comment --comment "ip-masq-agent: local traffic is not subject to MASQUERADE"'
REST = '-m comment --comment "ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)"'
PRIVATE = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]
BOTH = ("v4", "v6")


@pytest.mark.parametrize(
    ("cidrs", "link_local", "family", "spared"),
    [
        ([], False, "v4", ["169.254.0.0/16"]),
        (PRIVATE, False, "v4", ["169.254.0.0/16", *PRIVATE]),
        (PRIVATE, True, "v4", PRIVATE),
        ([], True, "v4", []),
        (["10.244.0.0/16", "fc00::/7"], False, "v4", ["169.254.0.0/16", "10.244.0.0/16"]),
        (["10.244.0.0/16", "fc00::/7"], False, "v6", ["fe80::/10", "fc00::/7"]),
        ([], True, "v6", []),
    ],
)
def test_the_text_is_that_of_upstream_s_tests(cidrs, link_local, family, spared):
    """As TestSyncMasqRules and TestSyncMasqRulesIPv6 of ip-masq-agent want it, in the same order."""
    lines = render(cidrs, masq_link_local=link_local, family=family).splitlines()
    assert lines == [
        "*nat", ":IP-MASQ-AGENT - [0:0]", *(f"-A IP-MASQ-AGENT {SPARE} -d {one} -j RETURN" for one in spared),
        f"-A IP-MASQ-AGENT {REST} -j MASQUERADE --random-fully", "COMMIT",
    ]  # fmt: skip


def test_the_private_networks_are_spared_unless_something_else_is_said():
    assert check_cidrs(None, ("v4",)) == tuple(PRIVATE)
    assert check_cidrs(None, BOTH) == (*PRIVATE, "fc00::/7")
    assert check_cidrs([], BOTH) == ()
    assert check_cidrs(["fd00::/8", "10.0.0.0/8"], BOTH) == ("fd00::/8", "10.0.0.0/8")


@pytest.mark.parametrize(
    ("cidrs", "error", "says"),
    [
        (["10.0.0.0/8", "abcdefg"], InvalidAddress, "'abcdefg' is not a network"),
        (["10.256.0.0/16"], InvalidAddress, "'10.256.0.0/16' is not a network"),
        (["10.0.0.1/8"], InvalidAddress, "host bits set; did you mean 10.0.0.0/8"),
        (["fc00::/7"], InvalidInput, "the cluster has no IPv6"),
        ("10.0.0.0/8", InvalidInput, r'as in \["10.0.0.0/8"\]'),
        ([f"10.{number}.0.0/16" for number in range(65)], InvalidInput, "65 networks .* up to 64"),
    ],
)
def test_what_upstream_refuses_is_refused_with_a_reason(cidrs, error, says):
    with pytest.raises(error, match=says):
        check_cidrs(cidrs, ("v4",))
