"""What several contenders need: to write a setting in a netns, in the cheapest way there is.

None of them has a way of its own to switch IPv6 off but one more process for each pod;
none is charged for that.
"""
from __future__ import annotations

from pathlib import Path

from k8snet.linux import nsfs

__all__ = ["ipv6_off"]

SETTING = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")


def ipv6_off(netns: str) -> None:
    """Switch IPv6 off in a netns."""
    with (nsfs.FOLDER / netns).open() as opened:
        nsfs.inside(opened.fileno(), SETTING.write_text, "1")
