"""Leases: addresses of a subnet, handed out on disk as the plugin host-local does it."""

from __future__ import annotations

import fcntl
import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from k8snet.errors import InvalidAddress, InvalidInput, NameTaken
from k8snet.linux.address import host_address
from k8snet.linux.address import network as check_network

__all__ = ["Lease", "Leases"]


@dataclass(frozen=True, kw_only=True)
class Lease:
    """An address that a container has."""

    address: str  # without prefix length
    container_id: str
    interface: str


class Leases:
    """The leases of one subnet: a file an address, and the plugin host-local may share the folder."""

    def __init__(self, folder: Path, subnet: str, *, gateway: str | None = None, range_number: int = 0) -> None:
        """Use *folder*: host-local's dataDir, and in it the name of the network.

        Args:
            gateway: an address that is never handed out; the default is the subnet's first.
            range_number: the place of the subnet in host-local's `ranges`; a folder may hold several.

        Raises:
            InvalidAddress: *subnet* or *gateway* is none, or the subnet is too small.
        """
        found = check_network(subnet)
        end = -2 if found.version == 4 else -1  # IPv6 has no broadcast address
        if found.num_addresses < 4:
            raise InvalidAddress(f"{subnet} is too small to hand out addresses of: it has {found.num_addresses}")
        self.folder, self.subnet, self.gateway = Path(folder), subnet, gateway or str(found[1])
        self._network, self._first, self._last = found, int(found[1]), int(found[end])
        self._never = int(host_address(self.gateway))
        self._mark = self.folder / f"last_reserved_ip.{range_number}"

    def reserve(self, container_id: str, interface: str, wanted: str | None = None) -> str:
        """Hand out an address, with prefix length: *wanted*, or the next after the last one.

        Raises:
            NameTaken: the container has one already, or another has *wanted*.
            InvalidAddress: *wanted* is not in the subnet, or is its gateway.
            InvalidInput: all are taken; the message says how to free some.
        """
        with self._locked():
            return self._reserve([(container_id, interface)], wanted)[0]

    def reserve_many(self, containers: Iterable[tuple[str, str]]) -> Sequence[str]:
        """Hand out an address to each (container id, interface), or to none. See reserve()."""
        with self._locked():
            return self._reserve(tuple(containers), None)

    def release(self, container_id: str, interface: str) -> None:
        """Take back the address of a container; one that has none is no error."""
        with self._locked():
            for lease in self.list():
                if (lease.container_id, lease.interface) == (container_id, interface):
                    (self.folder / lease.address).unlink()

    def list(self) -> tuple[Lease, ...]:
        """Return every lease, by address."""
        found = []
        for file in self.folder.iterdir() if self.folder.is_dir() else ():
            try:
                address = ipaddress.ip_address(file.name)
            except ValueError:
                continue  # the lock, or last_reserved_ip.0
            container, _, interface = file.read_text().strip().partition("\n")
            if address in self._network:
                found.append((address, Lease(address=str(address), container_id=container, interface=interface)))
        return tuple(lease for _, lease in sorted(found, key=lambda pair: int(pair[0])))

    # -- inside the lock ----------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:  # closing it unlocks
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _reserve(self, containers: Sequence[tuple[str, str]], wanted: str | None) -> Sequence[str]:
        leases = self.list()
        held = {(lease.container_id, lease.interface): lease.address for lease in leases}
        for number, one in enumerate(containers):
            if one in held or one in containers[:number]:
                raise NameTaken(f"{' '.join(one)} has {held.get(one, 'an address')} already; release it first")
        taken = {int(ipaddress.ip_address(lease.address)) for lease in leases} | {self._never}
        free = iter([self._wanted(wanted, leases)]) if wanted else self._free(taken)
        chosen = [self._network[value - int(self._network[0])] for _, value in zip(containers, free, strict=False)]
        if len(chosen) < len(containers):
            raise InvalidInput(
                f"no address is free in {self.subnet}: {len(leases)} leases in {self.folder}. Free those of containers "
                "that are gone: delete() or gc() of the runtime, leases.release(ID, INTERFACE), or remove their files"
            )
        for (container, interface), address in zip(containers, chosen, strict=True):
            (self.folder / str(address)).write_text(f"{container}\r\n{interface}", newline="")
            self._mark.write_text(str(address))
        return [f"{address}/{self._network.prefixlen}" for address in chosen]

    def _free(self, taken: set[int]) -> Iterator[int]:
        """Return the free addresses: those after the last one handed out, then those before it."""
        try:
            last = int(ipaddress.ip_address(self._mark.read_text().strip()))
        except (OSError, ValueError):
            last = self._last
        start = last + 1 if self._first <= last < self._last else self._first
        for value in chain(range(start, self._last + 1), range(self._first, start)):
            if value not in taken:
                yield value

    def _wanted(self, wanted: str, leases: Iterable[Lease]) -> int:
        address = host_address(wanted.partition("/")[0])
        if address not in self._network or not self._first <= int(address) <= self._last or int(address) == self._never:
            raise InvalidAddress(f"{wanted} cannot be handed out: not a host of {self.subnet}, or its gateway")
        for lease in leases:
            if lease.address == str(address):
                raise NameTaken(f"{wanted} is taken by {lease.container_id} {lease.interface}")
        return int(address)
