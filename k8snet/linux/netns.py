"""Netns: one network stack, and everything that is done in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from k8snet.linux import link, neighbour, netfilter, nsfs, probe, route, sockets, sysctl, web
from k8snet.linux import run as _run
from k8snet.linux.netlink import Worker

__all__ = ["Netns", "Owner"]

T = TypeVar("T")


class Owner(Protocol):
    """What a netns needs of the lab that it is part of."""

    @property
    def worker(self) -> Worker:
        """The thread that speaks netlink; raises LabClosed once the lab is closed."""

    def record(self, netns: str, words: tuple[str, ...], stdin: str = "") -> None:
        """Keep a command for the transcript."""

    def keep(self, thing: _run.Process | probe.Listener) -> None:
        """Stop *thing* when the lab closes."""


class Netns:
    """A network namespace: interfaces, routes, rules and sockets of its own.

    Made by Lab.netns(). What changes it is recorded in the lab's transcript.
    """

    def __init__(self, owner: Owner, name: str) -> None:
        """Take the netns that has *name* already."""
        self.name = name
        self.resolv: Path | None = None  # what programs here see as /etc/resolv.conf; None: the machine's
        self._owner = owner
        self._fd: int | None = None

    def __repr__(self) -> str:
        """Return its name."""
        return f"<netns {self.name}>"

    @property
    def fd(self) -> int:
        """The netns as an open file, closed with the lab."""
        self._owner.worker  # noqa: B018  # raises LabClosed
        if self._fd is None:
            self._fd = os.open(nsfs.path_of(self.name), os.O_RDONLY | os.O_CLOEXEC)
        return self._fd

    @property
    def exists(self) -> bool:
        """Whether its name is still there; `ip netns delete` takes it away."""
        return (nsfs.FOLDER / self.name).exists()

    @property
    def inode(self) -> int:
        """The number by which Linux knows it, as in `net:[4026532281]`."""
        return os.fstat(self.fd).st_ino

    def release(self) -> None:
        """Let go of the open file, and of the netlink socket kept for it."""
        if self._fd is not None:
            self._owner.worker.forget(self._fd)
            os.close(self._fd)
            self._fd = None

    # -- the doors ---------------------------------------------------------------------

    def netlink(self, what: str, function: Callable[[Any], T]) -> T:
        """Call *function* with a pyroute2.IPRoute of this netns, on the lab's worker thread.

        Raises:
            KernelRefused: the kernel answered with an error; *what* was asked.
            LabClosed: the lab is closed.
        """
        return self._owner.worker.call(self.fd, what, function)

    def inside(self, function: Callable[..., T], *arguments: object) -> T:
        """Call *function* on a thread inside this netns; sockets it makes stay here."""
        return nsfs.inside(self.fd, function, *arguments)

    def record(self, *words: str, stdin: str = "") -> None:
        """Keep a command for the transcript, as a person in this netns would type it."""
        self._owner.record(self.name, words, stdin)

    # -- programs ----------------------------------------------------------------------

    def run(
        self, *argv: str, stdin: str = "", timeout_s: float = 30.0, check: bool = True,
        env: Mapping[str, str] | None = None, record: bool = False, resolv: Path | None = None,
    ) -> _run.Completed:  # fmt: skip
        """Run a program here to its end, and return what it printed. Like: ip netns exec NAME ARGV.

        Args:
            check: raise if it ends with anything but 0.
            record: it changes the netns, so keep it for the transcript.
            resolv: what it sees as /etc/resolv.conf; None is what all programs here see.

        Raises:
            ProgramMissing, CommandFailed, Timeout: see k8snet.linux.run.run().
        """
        done = _run.run(
            argv, fd=self.fd, netns=self.name, stdin=stdin, timeout_s=timeout_s, check=check, env=env,
            resolv=resolv or self.resolv,
        )  # fmt: skip
        if record and done.ok:
            self.record(*argv, stdin=stdin)
        return done

    def sh(self, script: str, *, timeout_s: float = 30.0, check: bool = True, record: bool = False) -> _run.Completed:
        """Run a bash script here; it stops at the first command that fails.

        Args:
            record: it changes the netns, so keep it for the transcript.

        Raises:
            CommandFailed, Timeout: see k8snet.linux.run.run().
        """
        return self.run("bash", "-euo", "pipefail", "-c", script, timeout_s=timeout_s, check=check, record=record)

    def popen(self, *argv: str, keep_output: bool = False, env: Mapping[str, str] | None = None) -> _run.Process:
        """Start a program here that runs on until stopped, or until the lab closes.

        Args:
            keep_output: collect what it prints, for Process.output().

        Raises:
            ProgramMissing: it is not installed.
        """
        process = _run.start(argv, fd=self.fd, netns=self.name, keep_output=keep_output, env=env, resolv=self.resolv)
        self._owner.keep(process)
        return process

    def listen(
        self, port: int, *, protocol: str = "tcp", address: str = "0.0.0.0", name: str | None = None,  # noqa: S104
    ) -> probe.Listener:  # fmt: skip
        """Serve a port of this netns: answer who was asked, and by whom, in text or HTTP.

        Args:
            protocol: "tcp" or "udp".
            address: the local address; the default takes what is for any of them.
            name: how the server calls itself; None is the netns' name.

        Raises:
            PortTaken: a socket listens there already.
            InvalidInput, InvalidAddress: no such port, protocol or address.
        """
        listener = probe.listen(self, port, protocol=protocol, address=address, name=name or self.name)
        self._owner.keep(listener)
        return listener

    def nginx(self, *, port: int = 80, body: str | None = None) -> _run.Process:
        """Start a real nginx here, and wait until it answers. See k8snet.linux.web.nginx()."""
        process = web.nginx(self, port=port, body=body)
        self._owner.keep(process)
        return process

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Keep what happens in this block out of the transcript."""
        owner = self._owner
        self._owner = _Silent(owner)
        try:
            yield
        finally:
            self._owner = owner

    def start_nginx(self, *, port: int, body: str | None = None, ipv6: bool = False) -> _run.Process:
        """Start a real nginx of one process here, and do not wait. See k8snet.linux.web.start_nginx()."""
        process = web.start_nginx(self, port=port, body=body, ipv6=ipv6, alone=True)
        self._owner.keep(process)
        return process

    def set_sysctl(self, key: str, value: int | str) -> None:
        """Change one setting. Like: sysctl -w KEY=VALUE. See k8snet.linux.sysctl.set_all()."""
        sysctl.set_all(self, {key: value})

    def set_up(self, interface: str) -> None:
        """Take an interface up. Like: ip link set dev INTERFACE up."""
        link.set_state(self, interface, up=True)

    def set_down(self, interface: str) -> None:
        """Take an interface down. Like: ip link set dev INTERFACE down."""
        link.set_state(self, interface, up=False)

    # -- what the other files of this folder do, as methods ----------------------------

    add_bridge = link.add_bridge
    add_dummy = link.add_dummy
    add_macvlan = link.add_macvlan
    add_vxlan = link.add_vxlan
    delete_link = link.delete
    enslave = link.enslave
    move = link.move
    rename = link.rename
    set_hairpin = link.set_hairpin
    set_mac = link.set_mac
    set_mtu = link.set_mtu

    add_address = route.add_address
    add_route = route.add_route
    delete_address = route.delete_address
    delete_route = route.delete_route
    route_to = route.route_to

    add_fdb = neighbour.add_fdb
    add_neighbour = neighbour.add_neighbour
    delete_fdb = neighbour.delete_fdb
    delete_neighbour = neighbour.delete_neighbour
    fdb = neighbour.fdb
    neighbours = neighbour.neighbours

    conntrack = netfilter.conntrack
    delete_conntrack = netfilter.delete_conntrack
    ipset = netfilter.ipset
    iptables = netfilter.iptables
    iptables_restore = netfilter.iptables_restore
    iptables_save = netfilter.iptables_save
    nft = netfilter.nft
    nft_list = netfilter.nft_list

    set_sysctls = sysctl.set_all
    sysctl = sysctl.get

    sockets = sockets.sockets

    connect = probe.connect
    fetch = probe.fetch
    ping = probe.ping


class _Silent:
    """An owner that records nothing."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    @property
    def worker(self) -> Worker:
        return self._owner.worker

    def record(self, netns: str, words: tuple[str, ...], stdin: str = "") -> None:
        """Drop the command: this is the point of it."""

    def keep(self, thing: _run.Process | probe.Listener) -> None:
        self._owner.keep(thing)
