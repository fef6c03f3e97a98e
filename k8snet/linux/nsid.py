"""Which netns an interface's other end is in: the kernel's ids of netns, as each sees the others."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = ["ids_of"]

RTM_GETNSID, NLM_F_REQUEST, NLMSG_ERROR = 90, 1, 2
NETNSA_NSID, NETNSA_FD = 1, 3


def ids_of(viewer: Netns, others: list[Netns]) -> dict[int, str]:
    """Return the names of *others* by the ids that *viewer* has for them (IFLA_LINK_NETNSID).

    pyroute2 has no call for it; the request is one attribute long.
    """
    files = [(other.name, other.fd) for other in others]

    def body() -> dict[int, str]:
        found = {}
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
            for name, fd in files:
                number = _ask(netlink, fd)
                if number >= 0:  # -1: the viewer has no id for it, so no interface leads there
                    found[number] = name
        return found

    return viewer.inside(body)


def _ask(netlink: socket.socket, fd: int) -> int:
    # nlmsghdr: length, type, flags, sequence, pid; rtgenmsg: family, padding; one attribute
    netlink.send(struct.pack("=IHHIIB3xHHI", 28, RTM_GETNSID, NLM_F_REQUEST, 1, 0, 0, 8, NETNSA_FD, fd))
    answer = netlink.recv(4096)
    kind = struct.unpack_from("=H", answer, 4)[0]
    if kind == NLMSG_ERROR:
        number = -struct.unpack_from("=i", answer, 16)[0]
        raise OSError(number, os.strerror(number))
    at = 20
    while at + 4 <= len(answer):
        length, attribute = struct.unpack_from("=HH", answer, at)
        if attribute == NETNSA_NSID:
            return int(struct.unpack_from("=i", answer, at + 4)[0])
        at += max(4, (length + 3) & ~3)
    return -1
