"""Lab: owns network namespaces and processes, keeps the transcript, closes without a trace."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from k8snet.errors import CapabilityMissing, LabClosed, NameTaken, NotFound, SandboxFailed
from k8snet.linux import link, nsfs
from k8snet.linux import sysctl as settings
from k8snet.linux.address import check_netns_name, mac_for
from k8snet.linux.batch import Attachment, attach_all, drop_all
from k8snet.linux.netlink import Worker
from k8snet.linux.netns import Netns
from k8snet.transcript import HOST, Entry, Transcript

if TYPE_CHECKING:
    from k8snet.observe.capture import capture_all
    from k8snet.observe.diagram import Diagram
    from k8snet.observe.snapshot import Snapshot
    from k8snet.observe.walk import Connection

__all__ = ["Attachment", "End", "Lab", "open_lab"]

End = link.End

_open: dict[str, Lab] = {}  # so that running a cell with `lab = Lab()` again just works


class Kept(Protocol):
    """What a lab stops when it closes: a process, a server, a cluster."""

    stopped: bool

    def stop(self) -> None:
        """End it; a second call does nothing."""


class Lab:
    """A network of netns, made in a sandbox, that is gone when it is closed.

    In a notebook `lab = Lab()` is enough; a second Lab of the same name closes the
    first one. In a program: `with Lab() as lab:`.
    """

    def __init__(self, name: str = "lab", *, ipv6: bool = False) -> None:
        """Open a lab, empty.

        Args:
            ipv6: leave IPv6 on in its netns; off is quieter, and much faster with many.

        Raises:
            SandboxFailed: this process is not in a sandbox.
            InvalidName: *name* cannot be the name of a netns either.
        """
        self.name = check_netns_name(name)
        self.ipv6 = ipv6
        self.transcript = Transcript(name)
        _require_sandbox()
        if name in _open:
            _open[name].close()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:  # a socket, a netns and a process each take file descriptors
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._netns: dict[str, Netns] = {}
        self._kept: list[Kept] = []
        self._live = 64  # of what is kept; twice as many are looked through
        self._worker: Worker | None = Worker()
        _open[name] = self

    def __repr__(self) -> str:
        """Return its name and its netns."""
        state = ", ".join(self._netns) or "empty"
        return f"<Lab {self.name}: {'closed' if self._worker is None else state}>"

    def __enter__(self) -> Lab:
        """Return itself; the end of the block closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @property
    def open(self) -> bool:
        """Whether the lab is not closed."""
        return self._worker is not None

    # -- netns -------------------------------------------------------------------------

    def netns(self, name: str, *, forward: bool = False, loopback: bool = True) -> Netns:
        """Make a netns, with every setting made explicit that machines differ in.

        Like: ip netns add NAME; ip -n NAME link set dev lo up; sysctl -w ... in it

        Args:
            forward: let it route packets of others, and let its bridges call iptables.
            loopback: take lo up.

        Raises:
            InvalidName: not 1 to 63 letters, digits, `_`, `.` and `-`.
            NameTaken: there is a netns of that name already.
            CapabilityMissing: *forward*, and bridges cannot call iptables here.
        """
        self.worker  # noqa: B018  # raises LabClosed
        check_netns_name(name)
        if name == HOST or name in nsfs.names():
            raise NameTaken(f"there is a netns {name!r} already; lab[{name!r}] is it")
        made = self._make(name)
        try:
            if loopback:
                made.set_up("lo")
            made.set_sysctls(self._settings(made, forward=forward))
        except BaseException:
            self.remove(name)
            raise
        return made

    def _make(self, name: str) -> Netns:
        nsfs.make(name)
        self._netns[name] = Netns(self, name)
        self.record(HOST, ("ip", "netns", "add", name))
        return self._netns[name]

    def _settings(self, netns: Netns, *, forward: bool) -> dict[str, int]:
        values = {"net.ipv4.ip_forward": int(forward)}
        values |= {f"net.ipv4.conf.{which}.rp_filter": 0 for which in ("all", "default")}
        if settings.exists(netns, "net.ipv6.conf.all.disable_ipv6"):
            values |= {f"net.ipv6.conf.{which}.disable_ipv6": int(not self.ipv6) for which in ("all", "default")}
            if self.ipv6:
                values["net.ipv6.conf.all.forwarding"] = int(forward)
                values |= {f"net.ipv6.conf.{which}.accept_dad": 0 for which in ("all", "default")}
        if settings.exists(netns, settings.BRIDGE_NF):
            values[settings.BRIDGE_NF] = int(forward)
        elif forward:
            raise CapabilityMissing("bridges cannot call iptables here. Load it: sudo modprobe br_netfilter")
        return values

    @property
    def host(self) -> Netns:
        """The netns that plays the machine: `ip netns add` and bridges of by-hand cells go here."""
        if HOST not in self._netns:
            if self._owner_of(HOST):
                raise NameTaken(f"the netns 'host' is part of the lab {self._owner_of(HOST)!r}; close that first")
            found = HOST in nsfs.names()
            if not found:
                nsfs.make(HOST)
            made = self._netns[HOST] = Netns(self, HOST)
            if not found:
                made.set_up("lo")
                made.set_sysctls(self._settings(made, forward=False))
        return self._netns[HOST]

    def __getitem__(self, name: str) -> Netns:
        """Return a netns by its name; one made by hand becomes part of the lab.

        Raises:
            NotFound: there is none of that name.
        """
        if name == HOST:
            return self.host
        if name in self._netns and not (nsfs.FOLDER / name).exists():  # `ip netns delete`, by hand
            self._netns.pop(name).release()
        if name not in self._netns:
            self.worker  # noqa: B018  # raises LabClosed
            nsfs.path_of(name)
            if self._owner_of(name):
                raise NotFound(f"the netns {name!r} is part of the lab {self._owner_of(name)!r}")
            self._netns[name] = Netns(self, name)
        return self._netns[name]

    def adopt(self) -> list[Netns]:
        """Make every netns that was made by hand part of the lab, and return all there are."""
        present = [name for name in nsfs.names() if not self._owner_of(name)]
        for gone in self._netns.keys() - set(present):
            self._netns.pop(gone).release()
        return [self[name] for name in present]

    def _owner_of(self, name: str) -> str | None:
        """Return the name of the other open lab that a netns is part of."""
        return next((lab.name for lab in _open.values() if lab is not self and name in lab), None)

    def __contains__(self, name: object) -> bool:
        """Return whether a netns of that name is part of the lab."""
        return name in self._netns

    def __iter__(self) -> Iterator[Netns]:
        """Return the lab's netns, in the order of their making."""
        return iter(list(self._netns.values()))

    def remove(self, name: str) -> None:
        """End a netns and every process in it. Like: ip netns delete NAME.

        Raises:
            NotFound: there is none of that name.
        """
        netns = self[name]
        self._stop_inside([netns])
        for end in link.delete_pairs(netns):  # the kernel ends a netns later, and the other ends with it
            self.record(name, ("ip", "link", "delete", "dev", end))
        netns.release()
        nsfs.delete(name)
        del self._netns[name]
        self.record(HOST, ("ip", "netns", "delete", name))

    def let_go(self) -> None:
        """Close every file that holds a netns, so that `ip netns delete` in a terminal ends it.

        Each is opened again where it is needed.
        """
        for netns in self:
            netns.release()
        self.worker.close()  # its thread is inside the netns where it worked last
        self._worker = Worker()

    # -- between netns -----------------------------------------------------------------

    def veth(self, end: End, peer: End) -> None:
        """Join two netns with a veth pair. See k8snet.linux.link.add_veth()."""
        link.add_veth(end, peer)

    def attach_all(self, node: Netns, bridge: str, attachments: Sequence[Attachment]) -> list[Netns]:
        """Make many netns at once, each joined to a bridge of *node* by a veth pair.

        The result is what netns(), veth() and add_route() would make one by one, many
        times faster.

        Raises:
            InvalidAddress, InvalidName, NameTaken: one of them cannot be; none is made then.
            NotFound: *node* has no such bridge.
        """
        index = link.check_kind(node, bridge, "bridge")
        attach_all(node.fd, node.name, index, attachments, ipv6=self.ipv6)
        values = self._settings(node, forward=False)  # asked once: which ones there are is the kernel's matter
        for one in attachments:
            self._netns[one.netns] = Netns(self, one.netns)
            self._record_attachment(node, bridge, one, values)
        return [self._netns[one.netns] for one in attachments]

    def _record_attachment(self, node: Netns, bridge: str, one: Attachment, values: dict[str, int]) -> None:
        macs = [mac_for(node.name, one.port), mac_for(one.netns, one.interface)]
        size = ("mtu", str(one.mtu)) if one.mtu else ()
        self.record(HOST, ("ip", "netns", "add", one.netns))
        self.record(one.netns, ("sysctl", "-qw", *(f"{key}={value}" for key, value in values.items())))
        self.record(node.name, (
            "ip", "link", "add", "name", one.port, *size, "address", macs[0], "type", "veth",
            "peer", "name", one.interface, *size, "address", macs[1], "netns", one.netns,
        ))  # fmt: skip
        self.record(node.name, ("ip", "link", "set", "dev", one.port, "master", bridge, "up"))
        if one.hairpin:
            self.record(node.name, ("bridge", "link", "set", "dev", one.port, "hairpin", "on"))
        self.record(one.netns, ("ip", "link", "set", "dev", "lo", "up"))
        for address, _ in one.addresses:
            words = ("nodad",) if ":" in address else ("brd", "+")
            self.record(one.netns, ("ip", "address", "add", address, *words, "dev", one.interface))
        self.record(one.netns, ("ip", "link", "set", "dev", one.interface, "up"))
        for _, gateway in one.addresses:
            if gateway:
                family = ("-6",) if ":" in gateway else ()
                self.record(one.netns, ("ip", *family, "route", "add", "default", "via", gateway))

    # -- looking -----------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return what the kernel holds for this lab, as a value. See k8snet.observe.snapshot."""
        from k8snet.observe.snapshot import take

        return take(self)

    def diagram(self, **options: object) -> Diagram:
        """Return a drawing of what the kernel holds. See k8snet.observe.diagram.draw()."""
        from k8snet.observe.diagram import draw

        return draw(self.snapshot(), **options)  # type: ignore[arg-type]  # draw() checks its options

    def capture(self, filter: str = "", *, netns: Iterable[Netns] | None = None) -> capture_all:  # noqa: A002
        """Watch every interface of the lab while a block runs. See k8snet.observe.capture.

            with lab.capture("tcp port 80") as wire:
                client.fetch("http://10.0.0.12")
            wire.save("call.pcapng")

        Args:
            filter: an expression of pcap-filter(7); empty takes all.
            netns: some of the lab's, instead of all that there are when the block begins.

        Raises:
            InvalidInput: the filter cannot be compiled, or there is no netns yet.
        """
        from k8snet.observe.capture import capture_all

        return capture_all(self if netns is None else netns, filter)

    def trace(
        self, source: Netns, destination: str, port: int, *, protocol: str = "tcp", timeout_s: float = 2.0
    ) -> Connection:
        """Open a connection, and return the way of its first packet and of the first answer. See k8snet.observe.trace.

        Args:
            source: a netns of the lab.
            protocol: "tcp" or "udp".
            timeout_s: seconds of silence after which it counts as lost.

        Raises:
            InvalidAddress, InvalidInput: an argument cannot be.
        """
        from k8snet.observe.trace import trace

        return trace(self, source, destination, port, protocol=protocol, timeout_s=timeout_s)

    # -- what a netns asks of its owner --------------------------------------------------

    @property
    def worker(self) -> Worker:
        """The thread that speaks netlink.

        Raises:
            LabClosed: the lab is closed.
        """
        if self._worker is None:
            raise LabClosed(f"the lab {self.name!r} is closed; make a new one: lab = Lab()")
        return self._worker

    def record(self, netns: str, words: tuple[str, ...], stdin: str = "") -> None:
        """Keep a command for the transcript."""
        self.transcript.entries.append(Entry(netns, tuple(map(str, words)), stdin=stdin))

    def record_script(self, netns: str, script: str) -> None:
        """Keep a command of a by-hand cell for the transcript."""
        self.transcript.entries.append(Entry(netns, script=script))

    def keep(self, thing: Kept) -> None:
        """Stop *thing* when the lab closes."""
        if len(self._kept) >= 2 * self._live:  # servers come and go in a cluster
            self._kept = [one for one in self._kept if not one.stopped]
            self._live = max(len(self._kept), 64)
        self._kept.append(thing)

    # -- the end -----------------------------------------------------------------------

    def close(self) -> None:
        """End every process and every netns of the lab; a second call does nothing."""
        if self._worker is None:
            return
        for thing in self._kept:
            thing.stop()
        self.adopt()
        self._stop_inside(list(self._netns.values()))
        for netns in self._netns.values():
            netns.release()
        drop_all([name for name in self._netns if (nsfs.FOLDER / name).exists()])
        self._worker.close()
        self._worker = None
        _open.pop(self.name, None)

    def _stop_inside(self, netns: list[Netns]) -> None:
        """End the processes that live inside *netns*, by-hand servers too, by their pids."""
        inodes = {nsfs.inode(nsfs.FOLDER / one.name) for one in netns if (nsfs.FOLDER / one.name).exists()}
        deadline = time.monotonic() + 5
        number = signal.SIGTERM
        while (pids := _processes_in(inodes)) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            patience = time.monotonic() + 1
            while any(Path(f"/proc/{pid}/ns/net").exists() for pid in pids) and time.monotonic() < patience:
                time.sleep(0.01)
            number = signal.SIGKILL


def open_lab(name: str) -> Lab | None:
    """Return the open lab of that name, if there is one."""
    return _open.get(name)


def _require_sandbox() -> None:
    if os.environ.get("K8SNET_SANDBOX") != "1":
        raise SandboxFailed(
            "a lab runs in a sandbox only. In Jupyter, choose the kernelspec `k8snet`; "
            "in a terminal: k8snet sandbox -- python FILE"
        )


def _processes_in(inodes: set[int]) -> list[int]:
    """Return the pids of the processes whose network stack is one of *inodes*; never our own."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                if nsfs.inode(folder / "ns" / "net") in inodes:
                    found.append(int(folder.name))
    return found
