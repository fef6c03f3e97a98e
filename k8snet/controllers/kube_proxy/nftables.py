"""kube-proxy in nftables mode: one look-up in a map finds the Service, however many there are.

A packet to 10.96.0.20:80 (a cluster IP), to 1.2.3.4:80 (a load balancer's), to port 30080 of the node:

    nat-prerouting, nat-output      every packet that opens a connection; by its DESTINATION
      services
        service-ips                 map: address . protocol . port  -> goto service-… or external-…
        service-nodeports           map: protocol . port            -> goto external-…
          external-HASH-shop/web/tcp/http     policy Cluster: mark for masquerade; Local: who may take the short cut
            service-HASH-shop/web/tcp/http    (policy Local: local-…) a client's last endpoint, else one by lot
              endpoint-HASH-shop/web/tcp/http__10.244.1.7/80    hairpin: mark; dnat to 10.244.1.7:80
    nat-postrouting
      masquerading                  who has the mark leaves with the node's address

    filter-prerouting-pre-dnat, filter-output-pre-dnat     by the destination before translation
      firewall-check
        firewall-ips                map -> goto firewall-…: drop who is not in loadBalancerSourceRanges
    filter-input, filter-forward, filter-output            what nothing has translated
      service-endpoints-check, nodeport-endpoints-check
        no-endpoint-services, no-endpoint-nodeports        maps -> goto reject-chain, or drop
      cluster-ips-check             other ports of a cluster IP, and pings: reject; unused cluster IPs: drop

A health-check node port has no rules here: whoever listens on it is left alone.

Source: kubernetes pkg/proxy/nftables, proxier.go (1.34).
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from k8snet.controllers.kube_proxy import conntrack
from k8snet.controllers.kube_proxy.service_ports import Categories, Endpoint, ProxyConfig, ServicePort, categorize
from k8snet.linux.nftables import apply_script
from k8snet.linux.uncollected import uncollected

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = ["TABLE", "Proxier", "name_of_chain", "render"]

TABLE = "kube-proxy"
NAME_LENGTH = 240  # what follows "service-" and its like; nft takes 256
MARK, REJECT = "mark-for-masquerade", "reject-chain"
BY_ADDRESS, BY_PORT = "ADDR . inet_proto . inet_service : verdict", "inet_proto . inet_service : verdict"
SETS = {
    "cluster-ips": ("set", "ADDR", "Active ClusterIPs"),
    "nodeport-ips": ("set", "ADDR", "IPs that accept NodePort traffic"),
    "firewall-ips": ("map", BY_ADDRESS, "destinations that are subject to LoadBalancerSourceRanges"),
    "no-endpoint-nodeports": ("map", BY_PORT, "vmap to drop or reject packets to service nodeports with no endpoints"),
    "no-endpoint-services": ("map", BY_ADDRESS, "vmap to drop or reject packets to services with no endpoints"),
    "service-ips": ("map", BY_ADDRESS, "ClusterIP, ExternalIP and LoadBalancer IP traffic"),
    "service-nodeports": ("map", BY_PORT, "NodePort traffic"),
}
CHAINS = {
    "cluster-ips-check": "",
    "filter-prerouting-pre-dnat": "type filter hook prerouting priority -110 ;",
    "filter-output-pre-dnat": "type filter hook output priority -110 ;",
    "filter-forward": "type filter hook forward priority 0 ;",
    "filter-input": "type filter hook input priority 0 ;",
    "filter-output": "type filter hook output priority 0 ;",
    "firewall-check": "",
    MARK: "",
    "masquerading": "",
    "nat-output": "type nat hook output priority -100 ;",
    "nat-postrouting": "type nat hook postrouting priority 100 ;",
    "nat-prerouting": "type nat hook prerouting priority -100 ;",
    "nodeport-endpoints-check": "",
    REJECT: 'comment "helper for @no-endpoint-services / @no-endpoint-nodeports" ;',
    "services": "",
    "service-endpoints-check": "",
}


@dataclass(frozen=True)
class Program:
    """What is to be in the table, by name: of one service port, or of all."""

    sets: dict[str, str] = field(default_factory=dict)  # -> its definition: who has been to an endpoint
    chains: dict[str, tuple[str, ...]] = field(default_factory=dict)  # -> its rules
    elements: dict[tuple[str, str], str] = field(default_factory=dict)  # (set or map, key) -> what follows the key


@uncollected()
def render(ports: Sequence[ServicePort], config: ProxyConfig) -> str:
    """Return the complete ruleset of a family as text. Like: nft -f FILE.

    Loaded over an older one it replaces what that does; chains that nothing names any more stay, empty.
    """
    return "".join(f"{line}\n" for line in _whole(_everything(map(_writer(config).program, ports)), config))


def name_of_chain(kind: str, port: ServicePort, endpoint: Endpoint | None = None) -> str:
    """Return the name of a chain or set of a service port: "service-ULMVA6XW-ns1/svc1/tcp/p80".

    Args:
        kind: "service", "local", "external" or "firewall"; with *endpoint*, "endpoint" or "affinity".
    """
    text = f"{port.namespace}/{port.name}/{port.protocol.lower()}/{port.port_name}"
    if endpoint:
        text += f"__{endpoint.address.replace(':', '.')}/{endpoint.port}"
    return f"{kind}-{_hashed(text)}"


@lru_cache(maxsize=256)  # a service port needs some of its names two or three times
def _hashed(text: str) -> str:
    name = base64.b32encode(hashlib.sha256(text.encode()).digest()[:5]).decode() + f"-{text}"  # 8 letters of 5 bits
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 3] + "..."


# -- the rules of one service port -----------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Writer:
    """Writes the rules of service ports, as one node needs them."""

    ip: str  # "ip" or "ip6"
    address_type: str
    pods: str  # the pods' network; "" without a local detector
    node_ip: str  # the primary one; "" where none is known
    masquerade_all: bool

    def program(self, port: ServicePort) -> Program:
        """Return all that *port* needs."""
        ends = categorize(port)
        sets, chains = {}, {}
        for policy, chosen in (("service", ends.cluster), ("local", ends.local)):
            if chosen:
                chains[name_of_chain(policy, port)] = tuple(self._policy(port, policy, chosen))
        if ends.any_anywhere and port.externally_accessible:
            chains[name_of_chain("external", port)] = tuple(self._external(port, ends))
        for end in ends.reachable:
            chains[name_of_chain("endpoint", port, end)] = tuple(self._endpoint(port, end))
            if port.affinity_s is not None:
                timeout = f"flags dynamic,timeout ; timeout {port.affinity_s}s ;"
                sets[name_of_chain("affinity", port, end)] = f"type {self.address_type} ; {timeout}"
        if port.load_balancer_ips and port.source_ranges:
            chains[name_of_chain("firewall", port)] = (self._firewall(port),)
        return Program(sets, chains, dict(self._elements(port, ends)))

    def _policy(self, port: ServicePort, policy: str, ends: Sequence[Endpoint]) -> Iterator[str]:
        """Yield the rules that choose one of *ends*; the cluster IP leads to one of the two policies."""
        if (policy == "local") == port.internal_local and (self.masquerade_all or self.pods):
            outside = "" if self.masquerade_all else f" {self.ip} saddr != {self.pods}"
            yield f"{self.ip} daddr {port.cluster_ip}{outside} jump {MARK}"
        chains = [name_of_chain("endpoint", port, end) for end in ends]
        if port.affinity_s is not None:
            for end, chain in zip(ends, chains, strict=True):
                yield f"{self.ip} saddr @{name_of_chain('affinity', port, end)} goto {chain}"
        lots = " , ".join(f"{number} : goto {chain}" for number, chain in enumerate(chains))
        yield f"numgen random mod {len(chains)} vmap {{ {lots} }}"

    def _external(self, port: ServicePort, ends: Categories) -> Iterator[str]:
        cluster = name_of_chain("service", port)
        if not port.external_local:  # an endpoint elsewhere has to answer by way of this node
            yield f"jump {MARK}"
            yield f"goto {cluster}"
            return
        if self.pods:
            yield f'{self.ip} saddr {self.pods} goto {cluster} comment "short-circuit pod traffic"'
        yield f'fib saddr type local jump {MARK} comment "masquerade local traffic"'
        yield f'fib saddr type local goto {cluster} comment "short-circuit local traffic"'
        if ends.local:
            yield f"goto {name_of_chain('local', port)}"

    def _endpoint(self, port: ServicePort, end: Endpoint) -> Iterator[str]:
        yield f"{self.ip} saddr {end.address} jump {MARK}"
        if port.affinity_s is not None:
            yield f"update @{name_of_chain('affinity', port, end)} {{ {self.ip} saddr }}"
        yield f"meta l4proto {port.protocol.lower()} dnat to {end}"

    def _firewall(self, port: ServicePort) -> str:
        networks = [ipaddress.ip_network(one, strict=False) for one in port.source_ranges]
        sources = [str(one) for one in networks]
        if self.node_ip and any(ipaddress.ip_address(self.node_ip) in one for one in networks):
            sources += port.load_balancer_ips  # a node that has the balancer's address calls from it
        return f"{self.ip} saddr != {{ {' , '.join(sources)} }} drop"

    def _elements(self, port: ServicePort, ends: Categories) -> Iterator[tuple[tuple[str, str], str]]:
        protocol = port.protocol.lower()
        outside = [("service-ips", "no-endpoint-services", f"{address} . {protocol} . {port.port}")
                   for address in (*port.external_ips, *port.load_balancer_ips)]  # fmt: skip
        if port.node_port:
            outside.append(("service-nodeports", "no-endpoint-nodeports", f"{protocol} . {port.node_port}"))
        refused = f' comment "{port.key}" : {"drop" if ends.any_anywhere else f"goto {REJECT}"}'
        yield ("cluster-ips", port.cluster_ip), ""
        key = f"{port.cluster_ip} . {protocol} . {port.port}"
        if ends.local if port.internal_local else ends.any_anywhere:
            chain = name_of_chain("local" if port.internal_local else "service", port)
            yield ("service-ips", key), f" : goto {chain}"
        else:
            yield ("no-endpoint-services", key), refused
        for served, unserved, key in outside:
            if ends.any_anywhere:  # also without local endpoints: the short cuts
                yield (served, key), f" : goto {name_of_chain('external', port)}"
            if not (ends.local if port.external_local else ends.any_anywhere):
                yield (unserved, key), refused
        if port.source_ranges:
            for address in port.load_balancer_ips:
                key = f"{address} . {protocol} . {port.port}"
                yield ("firewall-ips", key), f" : goto {name_of_chain('firewall', port)}"


def _writer(config: ProxyConfig) -> _Writer:
    four = config.family == "v4"
    pods = _of_family([config.cluster_cidr] if config.cluster_cidr else [], config)
    return _Writer(
        ip="ip" if four else "ip6", address_type="ipv4_addr" if four else "ipv6_addr",
        pods=next(iter(pods), ""), node_ip=next(iter(_of_family(config.node_ips, config)), ""),
        masquerade_all=config.masquerade_all,
    )  # fmt: skip


def _of_family(texts: Iterable[str], config: ProxyConfig) -> list[str]:
    return [text for text in texts if (":" in text) == (config.family == "v6")]


# -- the rules of all ------------------------------------------------------------------


def _everything(programs: Iterable[Program]) -> Program:
    whole = Program()
    for one in programs:
        whole.sets.update(one.sets)
        whole.chains.update(one.chains)
        for key, value in one.elements.items():
            whole.elements.setdefault(key, value)  # of two Services that claim an address and port: the first by name
    return whole


def _nodeport_ips(config: ProxyConfig) -> list[str] | None:
    """Return the node's addresses that take node ports: None for all, the primary one where nothing is said."""
    own = [one for one in _of_family(config.node_ips, config) if not ipaddress.ip_address(one).is_loopback]
    if not config.nodeport_addresses:
        return own[:1]
    networks = [ipaddress.ip_network(one, strict=False) for one in _of_family(config.nodeport_addresses, config)]
    if any(one.prefixlen == 0 for one in networks) or not networks:
        return None
    return [one for one in own if any(ipaddress.ip_address(one) in network for network in networks)]


def _common_rules(config: ProxyConfig) -> Iterator[tuple[str, str]]:
    """Yield chain and rule of what is there without any Service."""
    ip, mark = "ip" if config.family == "v4" else "ip6", config.masquerade_mark
    target, port = f"{ip} daddr . meta l4proto . th dport vmap", "meta l4proto . th dport vmap"
    elsewhere = f"{ip} daddr != {'127.0.0.0/8' if ip == 'ip' else '::1'}"
    everywhere = _nodeport_ips(config) is None
    yield "cluster-ips-check", f'{ip} daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"'
    cidrs = ",".join(_of_family(config.service_cidrs, config))
    if cidrs:
        yield "cluster-ips-check", f'{ip} daddr {{ {cidrs} }} drop comment "Drop traffic to unallocated ClusterIPs"'
    yield "filter-prerouting-pre-dnat", "ct state new jump firewall-check"
    yield "filter-forward", "ct state new jump service-endpoints-check"
    yield "filter-forward", "ct state new jump cluster-ips-check"
    yield "filter-input", "ct state new jump nodeport-endpoints-check"
    yield "filter-input", "ct state new jump service-endpoints-check"
    yield "filter-output", "ct state new jump service-endpoints-check"
    yield "filter-output-pre-dnat", "ct state new jump firewall-check"
    yield "filter-output", "ct state new jump cluster-ips-check"
    yield "firewall-check", f"{target} @firewall-ips"
    yield MARK, f"mark set mark or {mark}"
    yield "masquerading", f"mark and {mark} == 0 return"
    yield "masquerading", f"mark set mark xor {mark}"
    yield "masquerading", "masquerade fully-random"
    yield "nat-output", "jump services"
    yield "nat-postrouting", "jump masquerading"
    yield "nat-prerouting", "jump services"
    taken = elsewhere if everywhere else f"{ip} daddr @nodeport-ips"
    yield "nodeport-endpoints-check", f"{taken} {port} @no-endpoint-nodeports"
    yield REJECT, "reject"
    yield "services", f"{target} @service-ips"
    yield "services", f"{'fib daddr type local ' if everywhere else ''}{taken} {port} @service-nodeports"
    yield "service-endpoints-check", f"{target} @no-endpoint-services"


def _whole(program: Program, config: ProxyConfig) -> Iterator[str]:
    """Yield the statements that make the table, and empty what there is of it."""
    table, addresses = _table(config), _nodeport_ips(config)
    address_type = "ipv4_addr" if config.family == "v4" else "ipv6_addr"
    yield f'add table {table} {{ comment "rules for kube-proxy" ; }}'
    yield f"flush table {table}"
    for name, (kind, key, comment) in SETS.items():
        if name != "nodeport-ips" or addresses is not None:
            yield f'add {kind} {table} {name} {{ type {key.replace("ADDR", address_type)} ; comment "{comment}" ; }}'
            yield f"flush {kind} {table} {name}"
    for name, definition in CHAINS.items():
        yield f"add chain {table} {name}" + (f" {{ {definition} }}" if definition else "")
    yield from (f"add set {table} {name} {{ {definition} }}" for name, definition in program.sets.items())
    yield from (f"add chain {table} {name}" for name in program.chains)
    yield from (f"add rule {table} {chain} {rule}" for chain, rule in _common_rules(config))
    yield from (f"add element {table} nodeport-ips {{ {one} }}" for one in addresses or ())
    yield from (f"add rule {table} {chain} {rule}" for chain, rules in program.chains.items() for rule in rules)
    yield from (f"add element {table} {name} {{ {key}{value} }}" for (name, key), value in program.elements.items())


def _table(config: ProxyConfig) -> str:
    return f"{'ip' if config.family == 'v4' else 'ip6'} {TABLE}"


# -- what changes ----------------------------------------------------------------------


@dataclass(frozen=True)
class _State:
    """What the table holds."""

    ports: dict[tuple[str, str], tuple[ServicePort, Program]]  # (key, protocol) ->
    whole: Program

    @property
    def programs(self) -> dict[tuple[str, str], Program]:
        return {key: program for key, (_, program) in self.ports.items()}


def _changes(table: str, old: _State, new: _State) -> Iterator[str]:
    """Yield the statements that lead from *old* to *new*; all that packets see of a service port is one of them."""
    before, after = old.whole, new.whole
    yield from (f"add set {table} {name} {{ {after.sets[name]} }}" for name in after.sets if name not in before.sets)
    fresh = [name for name in after.chains if name not in before.chains]
    yield from (f"add chain {table} {name}" for name in fresh)
    yield from _rules(table, after, fresh)
    olds, news, nothing, done = old.programs, new.programs, Program(), set[tuple[str, str]]()
    for key in dict.fromkeys([*news, *olds]):
        program, last = news.get(key, nothing), olds.get(key, nothing)
        lines = [] if program is last else list(_rewritten(table, program, last))
        lines += _moved(table, [*program.elements, *last.elements], before, after, done)
        if lines:
            yield "\n".join(lines)
    stale = [name for name in before.chains if name not in after.chains]
    yield from (f"flush chain {table} {name}" for name in stale)
    yield from (f"delete set {table} {name}" for name in before.sets if name not in after.sets)
    yield from (f"delete chain {table} {name}" for name in stale)


def _rewritten(table: str, new: Program, old: Program) -> Iterator[str]:
    """Yield what changes the chains that stay; a set keeps its first timeout, so another one needs another set."""
    sets = [name for name, definition in new.sets.items() if old.sets.get(name, definition) != definition]
    users = {chain for chain, rules in old.chains.items() for one in sets if any(f"@{one}" in rule for rule in rules)}
    changed = {chain for chain, rules in old.chains.items() if new.chains.get(chain, rules) != rules}
    chains = [name for name in old.chains if name in users | changed]
    yield from (f"flush chain {table} {name}" for name in chains)
    for name in sets:
        yield f"delete set {table} {name}"
        yield f"add set {table} {name} {{ {new.sets[name]} }}"
    yield from _rules(table, new, chains)


def _moved(
    table: str, keys: Iterable[tuple[str, str]], old: Program, new: Program, done: set[tuple[str, str]]
) -> Iterator[str]:
    """Yield what changes elements; one that several service ports have comes once."""
    for element in keys:
        before, after = old.elements.get(element), new.elements.get(element)
        if before == after or element in done:
            continue
        done.add(element)
        name, key = element
        if before is not None:
            yield f"delete element {table} {name} {{ {key} }}"
        if after is not None:
            yield f"add element {table} {name} {{ {key}{after} }}"


def _rules(table: str, program: Program, chains: Iterable[str]) -> Iterator[str]:
    return (f"add rule {table} {chain} {rule}" for chain in chains for rule in program.chains.get(chain, ()))


class Proxier:
    """kube-proxy in nftables mode, on one node and for one address family."""

    def __init__(self, config: ProxyConfig) -> None:
        """Take note of the node; nothing is programmed yet."""
        self._config, self._writer = config, _writer(config)
        self._loaded: _State | None = None  # None: nothing, or, after an error, what cannot be told

    def sync(self, ports: Sequence[ServicePort]) -> list[str]:
        """Return the statements, for nftables.split(), that lead from what apply() has loaded to *ports*."""
        return self._statements(self._state(ports))

    @uncollected()
    def _state(self, ports: Sequence[ServicePort]) -> _State:
        last = self._loaded.ports if self._loaded else {}
        made: dict[tuple[str, str], tuple[ServicePort, Program]] = {}
        for port in ports:
            key = (port.key, port.protocol)
            known = last.get(key)
            made[key] = known if known and known[0] == port else (port, self._writer.program(port))
        return _State(made, _everything(program for _, program in made.values()))

    @uncollected()
    def _statements(self, wanted: _State) -> list[str]:
        table = _table(self._config)
        if self._loaded:
            return list(_changes(table, self._loaded, wanted))
        return [f"add table {table}", f"delete table {table}", *_whole(wanted.whole, self._config)]

    def apply(self, netns: Netns, ports: Sequence[ServicePort]) -> int:
        """Bring the rules of a node in step with *ports*, and return how many transactions that took.

        A packet meets the old rules of a service port or the new ones; connections to UDP endpoints that are
        gone are forgotten. The first call, and the first after an error, make the table anew: what another
        Proxier left there works no more until they are done.

        Like: nft -f -

        Raises:
            CommandFailed, CapabilityMissing: see k8snet.linux.nftables.apply_script().
        """
        wanted = self._state(ports)
        statements = self._statements(wanted)
        before = [port for port, _ in self._loaded.ports.values()] if self._loaded else []
        self._loaded = None
        count = apply_script(netns, statements)
        self._loaded = wanted
        conntrack.forget(netns, before, ports, family=self._config.family)
        return count

    def remove(self, netns: Netns) -> None:
        """Take the table away. Like: nft delete table ip kube-proxy."""
        table = _table(self._config)
        apply_script(netns, [f"add table {table}", f"delete table {table}"])
        self._loaded = None
