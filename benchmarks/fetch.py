"""A page from the server in each pod, asked for inside one netns."""
from __future__ import annotations

import http.client
import os
import time
from typing import TYPE_CHECKING

from k8snet.linux import nsfs

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["pages"]

TIMEOUT_S = 20.0
ONE_TIMEOUT_S = 2.0


def pages(vantage: str, addresses: Sequence[str], *, timeout_s: float = TIMEOUT_S) -> dict[str, str]:
    """Fetch the page of each address from the netns of the file *vantage*; the silent ones are not in the answer."""
    fd = os.open(vantage, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return nsfs.inside(fd, _all, addresses, time.monotonic() + timeout_s)
    finally:
        os.close(fd)


def _all(addresses: Sequence[str], deadline: float) -> dict[str, str]:
    found: dict[str, str] = {}
    missing = list(addresses)
    while missing:
        for address in missing:
            page = _page(address)
            if page is not None:
                found[address] = page
            if time.monotonic() > deadline:
                return found
        missing = [address for address in missing if address not in found]
    return found


def _page(address: str) -> str | None:
    """Return the page, or None where nobody answers in time, or with another status than 200."""
    connection = http.client.HTTPConnection(address, timeout=ONE_TIMEOUT_S)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        return answer.read().decode() if answer.status == http.client.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
