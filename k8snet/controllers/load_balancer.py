"""A load balancer for Services of type LoadBalancer, as MetalLB is one: for clusters without a cloud around them.

    LoadBalancer         gives each Service an address of a pool: status.loadBalancer; kube-proxy makes rules of it
    Speakers, Sessions   let the network know where that address is, by ARP or BGP (load_balancer_arp, _bgp)

MetalLB has the same two halves: its controller, and its speakers. Source: https://metallb.io/concepts/ , and
metallb/metallb: speaker/layer2_controller.go, speaker/bgp_controller.go.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
from lightkube.models.core_v1 import LoadBalancerIngress, LoadBalancerStatus, ServiceStatus
from lightkube.resources.core_v1 import Service
from lightkube.resources.discovery_v1 import EndpointSlice

from k8snet.cluster.layout import INTERNET, family_of
from k8snet.cluster.objects import key_of, labels_of, meta, name_of, namespace_of
from k8snet.controllers.addresses import SERVICE_NETWORK, families_of
from k8snet.controllers.endpoint_slice import SLICE_OF
from k8snet.controllers.load_balancer_arp import Announcement, Speakers
from k8snet.controllers.load_balancer_bgp import Sessions
from k8snet.controllers.services import Services
from k8snet.errors import InvalidAddress, InvalidInput, InvalidManifest, NotFound
from k8snet.linux.address import IPNetwork, host_address, network

if TYPE_CHECKING:
    from k8snet.cluster.cluster import Cluster

__all__ = ["DEFAULT_POOL", "MODES", "LoadBalancer", "allocate"]

MODES = ("arp", "bgp")
DEFAULT_POOL = {"v4": "172.18.255.0/24", "v6": "fd00:172:18::255:0/112"}
WANTED = "metallb.io/loadBalancerIPs"  # annotation: the addresses that a Service shall have
Key = tuple[str, str, str]  # kind, namespace and name
WORDS = {"v4": "IPv4", "v6": "IPv6"}


class LoadBalancer:
    """What gives out addresses in a cluster; its place is ahead of kube-proxy, which makes rules of them."""

    def __init__(self, cluster: Cluster, *, mode: str = "arp", pool: str | Sequence[str] | None = None) -> None:
        """Give addresses to the cluster's Services, and announce them. See Cluster.start_load_balancer()."""
        if mode not in MODES:
            raise InvalidInput(f"load balancer mode {mode!r}: one of {', '.join(MODES)}")
        if any(isinstance(one, LoadBalancer) for one in cluster.controllers):
            raise InvalidInput("a load balancer runs in this cluster already; stop() it first")
        if not any(isinstance(one, Services) for one in cluster.controllers):
            raise InvalidInput("kube-proxy does not run in this cluster, and it makes the rules; start_proxy() first")
        self.cluster, self.mode = cluster, mode
        self.pools = _pools(cluster, mode, pool)
        self.addresses: dict[Key, tuple[str, ...]] = {}  # of each Service
        self.check(cluster.objects.values())
        self.announcer: Speakers | Sessions = Speakers(self) if mode == "arp" else Sessions(self)
        cluster.controllers.insert(0, self)
        cluster.controllers.append(self.announcer)  # behind kube-proxy, when EndpointSlices are up to date
        try:
            cluster.sync()
        except BaseException:
            self.stop()
            raise

    def check(self, wanted: Iterable[Any]) -> None:
        """Refuse Services that cannot have the address that they ask for, or any.

        Raises:
            InvalidManifest: one cannot; the message says why.
        """
        allocate(wanted, self.pools, self.cluster.ip_families, self.addresses)

    def sync(self) -> None:
        """Give each Service of type LoadBalancer its addresses; those of Services that are gone are free again."""
        objects = self.cluster.objects
        self.addresses = allocate(objects.values(), self.pools, self.cluster.ip_families, self.addresses)
        for key, addresses in self.addresses.items():
            ingress = [LoadBalancerIngress(ip=one, ipMode="VIP") for one in addresses]
            status = ServiceStatus(loadBalancer=LoadBalancerStatus(ingress=ingress))
            objects[key] = msgspec.structs.replace(objects[key], status=status)

    def announcements(self) -> list[Announcement]:
        """Return what there is to announce, and which nodes may.

        Policy Cluster: every node, if there is an endpoint at all. Local: those with an endpoint.
        """
        serving: dict[tuple[str, ...], set[str]] = {}  # by namespace and name of the Service: nodes
        for one in self.cluster.objects.values():
            if isinstance(one, EndpointSlice):
                homes = serving.setdefault((namespace_of(one), labels_of(one).get(SLICE_OF, "")), set())
                homes.update(each.nodeName or "" for each in one.endpoints or () if _serves(each.conditions))
        found = []
        for key, given in self.addresses.items():
            homes = serving.get(key[1:], set())
            local = self.cluster.objects[key].spec.externalTrafficPolicy == "Local"
            nodes = tuple(node for node in self.cluster.nodes if homes and (not local or node in homes))
            found.append(Announcement(addresses=given, nodes=nodes))
        return found

    def address(self, name: str, *, namespace: str = "default") -> str:
        """Return the first address of a Service, which is named as announcers() names it.

        Raises:
            NotFound: it has none from here.
        """
        return self._of(name, namespace)[0]

    def announcers(self, name: str, *, namespace: str = "default") -> list[str]:
        """Return the nodes that announce a Service's address now: by ARP at most one, by BGP as the router has it.

        Args:
            name: "web", or "shop/web"; then *namespace* does not count.

        Raises:
            NotFound: it has none from here.
        """
        return self.announcer.who(self._of(name, namespace)[0])

    def stop(self) -> None:
        """Take every address back, and end what announced it."""
        self.announcer.stop()
        for one in (self, self.announcer):
            if one in self.cluster.controllers:
                self.cluster.controllers.remove(one)
        objects = self.cluster.objects
        objects.update({
            key: msgspec.structs.replace(objects[key], status=None) for key in self.addresses if key in objects
        })  # fmt: skip
        self.addresses = {}
        self.cluster.sync()

    def _of(self, name: str, namespace: str) -> tuple[str, ...]:
        home, _, name = name.rpartition("/")
        namespace = home or namespace
        found = self.addresses.get(("Service", namespace, name))
        if not found:
            have = ", ".join(key[2] for key in self.addresses if key[1] == namespace) or "none"
            raise NotFound(f"no Service {name!r} in namespace {namespace!r} has an address from here; these do: {have}")
        return found


# -- which address -------------------------------------------------------------------------


def _pools(cluster: Cluster, mode: str, pool: str | Sequence[str] | None) -> dict[str, IPNetwork]:
    """Return the pool of each family.

    Raises:
        InvalidInput, InvalidAddress: one cannot be.
    """
    texts = [DEFAULT_POOL[one] for one in cluster.ip_families] if pool is None else [pool] if isinstance(pool, str) \
        else list(pool)  # fmt: skip
    found: dict[str, IPNetwork] = {}
    for text in texts:
        one, family = network(text), family_of(text)
        if family not in cluster.ip_families or family in found:
            why = "has one of that family already" if family in found else f"has no {WORDS[family]}"
            raise InvalidInput(f"pool {text}: the cluster {why}")
        if reason := _unfit(cluster, mode, one, family):
            raise InvalidInput(f"pool {text} {reason}")
        found[family] = one
    if not found:
        raise InvalidInput("the load balancer needs a pool of addresses, as in 172.18.255.0/24")
    return found


def _unfit(cluster: Cluster, mode: str, pool: IPNetwork, family: str) -> str:
    """Return why a network cannot be a pool, or ""."""
    nodes = cluster.fabric.networks[family]
    others = {
        "the pods": cluster.cluster_networks[family], "cluster IPs": network(SERVICE_NETWORK[family]),
        "the internet": ipaddress.ip_interface(INTERNET[family][0]).network,
    }  # fmt: skip
    for what, other in others.items():
        if pool.overlaps(other):
            return f"overlaps {other}, the network of {what}"
    taken = [cluster.fabric.router_addresses[family], *(node.addresses[family] for node in cluster.nodes.values())]
    if own := next((one for one in taken if host_address(one) in pool), None):
        return f"holds {own}, which a node or the router has"
    if pool.is_loopback or pool.is_multicast or pool.is_link_local:
        return "cannot be reached from outside: its addresses are loopback, link-local or multicast ones"
    if mode == "arp" and not pool.subnet_of(nodes):  # type: ignore[arg-type]  # of one family
        return f"is outside {nodes}, the nodes' network, and nobody would ask for it there by ARP; use mode bgp"
    return ""


def _usable(pool: IPNetwork) -> Iterator[str]:
    """Yield the addresses of a pool; those that look like a network's own or its broadcast address stay out of it."""
    for number in range(pool.num_addresses):
        address = pool[number]
        if number if address.version == 6 else address.packed[-1] not in {0, 255}:
            yield str(address)


def allocate(
    objects: Iterable[Any], pools: Mapping[str, IPNetwork], families: Sequence[str], known: Mapping[Key, Sequence[str]]
) -> dict[Key, tuple[str, ...]]:
    """Return the addresses of each Service of type LoadBalancer that is ours.

    Args:
        known: what they have already; they keep it.

    Raises:
        InvalidManifest: one cannot have what it asks for, or no address is left.
    """
    mine = {key_of(one): one for one in objects if _is_ours(one)}
    asked = {key: _asked(service) for key, service in mine.items()}
    kept = {key: known.get(key) or _present(service, pools) for key, service in mine.items()}
    taken: dict[str, Key] = {}
    for key in mine:  # whoever has one comes first, then who asks for one, then the others
        kept[key] = tuple(one for one in kept[key] if not asked[key] or one in asked[key])
        for address in kept[key]:
            if taken.setdefault(address, key) != key:
                kept[key] = tuple(one for one in kept[key] if one != address)
    for key, addresses in asked.items():
        for address in addresses:
            if not any(host_address(address) in pool for pool in pools.values()):
                _refuse(mine[key], f"{address} is not in the pool {', '.join(map(str, pools.values()))}")
            if taken.setdefault(address, key) != key:
                _refuse(mine[key], f"{address} is the address of Service {'/'.join(taken[address][1:])} already")
    return {
        key: tuple(_pick(service, key, [*asked[key], *kept[key]], pools, families, taken))
        for key, service in mine.items()
    }


def _pick(
    service: Service, key: Key, have: Sequence[str], pools: Mapping[str, IPNetwork], families: Sequence[str],
    taken: dict[str, Key],
) -> Iterator[str]:  # fmt: skip
    """Yield an address of each family that a Service has."""
    wanted = families_of(service, families)
    strict = len(wanted) == 1 or (service.spec and service.spec.ipFamilyPolicy == "RequireDualStack")
    for family in wanted:
        if family not in pools:
            if strict:
                _refuse(service, f"the load balancer has no pool of {WORDS[family]} addresses")
            continue
        own = next((one for one in have if family_of(one) == family), None)
        address = own or next((one for one in _usable(pools[family]) if one not in taken), None)
        if address is None:
            _refuse(service, f"no address of the pool {pools[family]} is left")
        taken[address] = key
        yield address


def _is_ours(one: Any) -> bool:
    return isinstance(one, Service) and one.spec is not None and one.spec.type == "LoadBalancer" \
        and not one.spec.loadBalancerClass  # fmt: skip


def _asked(service: Service) -> list[str]:
    """Return the addresses that a Service asks for, by annotation or, as it was done once, by its spec."""
    text = (meta(service).annotations or {}).get(WANTED) or (service.spec.loadBalancerIP if service.spec else "") or ""
    found = [one.strip() for one in text.split(",") if one.strip()]
    try:
        return [str(host_address(one)) for one in found]
    except InvalidAddress as error:
        _refuse(service, str(error))


def _present(service: Service, pools: Mapping[str, IPNetwork]) -> list[str]:
    """Return what a Service that was taken from a cluster has of our pools."""
    status = service.status.loadBalancer if service.status else None
    texts = [one.ip for one in (status.ingress if status else None) or () if one.ip]
    return [one for one in texts if any(host_address(one) in pool for pool in pools.values())]


def _refuse(service: Service, text: str) -> NoReturn:
    raise InvalidManifest(f"Service {namespace_of(service)}/{name_of(service)}: {text}")


def _serves(conditions: Any) -> bool:
    if conditions is None:
        return True
    return conditions.serving if conditions.serving is not None else conditions.ready is not False
