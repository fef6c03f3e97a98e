"""kube-proxy in IPVS mode: the kernel's load balancer for each Service, and a few rules for what that does not do.

A connection to 10.96.0.20:80, the cluster IP of a Service, or to port 30080 of a node with address 172.18.0.2:

    kube-ipvs0     10.96.0.20/32               a dummy, down: the address is the node's own, and packets go to INPUT
    IPVS           TCP 10.96.0.20:80 rr        in INPUT and OUTPUT: to one of the real servers, in turn
                     -> 10.244.1.7:8080        weight 1; 0 for one that is gone while connections to it are left
                   TCP 172.18.0.2:30080 rr     one more virtual server for each address of the node
    ipset          KUBE-CLUSTER-IP             10.96.0.20,tcp:80: a set is one rule, however many Services there are
    nat PREROUTING, OUTPUT
      KUBE-SERVICES      KUBE-LOAD-BALANCER    -j KUBE-LOAD-BALANCER: marks, unless KUBE-LOAD-BALANCER-LOCAL
                         KUBE-CLUSTER-IP       -j KUBE-MARK-MASQ for who is not a pod here
                         KUBE-EXTERNAL-IP      -j KUBE-MARK-MASQ
                         --dst-type LOCAL      -j KUBE-NODE-PORT: marks KUBE-NODE-PORT-*, unless KUBE-NODE-PORT-LOCAL-*
    nat POSTROUTING
      KUBE-POSTROUTING   KUBE-LOOP-BACK        -j MASQUERADE: hairpin, a pod that calls itself
                         who has the mark      -j MASQUERADE
    filter INPUT, FORWARD
      KUBE-PROXY-FIREWALL  KUBE-LOAD-BALANCER-FW -j KUBE-SOURCE-RANGES-FIREWALL: drops who is in no source range
    filter INPUT
      KUBE-NODE-PORT     KUBE-HEALTH-CHECK-NODE-PORT -j ACCEPT
      KUBE-IPVS-FILTER   KUBE-IPVS-IPS         -j REJECT: other ports of these addresses, and pings
    filter OUTPUT
      KUBE-IPVS-OUT-FILTER                     -j DROP: this node, where no source range has it

Without an endpoint for policy Local on this node all endpoints serve, as upstream has it: the answer reaches those
that call from this node. A virtual server without any real server refuses.

Kubernetes 1.17 had the source ranges in nat (KUBE-LOAD-BALANCER to KUBE-FIREWALL), all endpoints in KUBE-LOOP-BACK,
no KUBE-IPVS-FILTER (1.27: until then a ping was answered) and KUBE-EXTERNAL-IP-LOCAL, both families in one, and it set
route_localnet and conn_reuse_mode; that is 0 before Linux 5.9 still, and after that left alone.

Source: kubernetes pkg/proxy/ipvs, proxier.go, ipset.go and graceful_termination.go (1.33).
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from k8snet.controllers.kube_proxy import conntrack
from k8snet.controllers.kube_proxy.ipvs_rules import CHAINS, JUMPS, SETS, create, name_of_set, rules
from k8snet.controllers.kube_proxy.service_ports import Endpoint, ProxyConfig, ServicePort, categorize
from k8snet.errors import InvalidInput
from k8snet.linux import address as naming
from k8snet.linux import ipvs, sysctl
from k8snet.linux.ipvs import RealServer, VirtualServer
from k8snet.linux.run import wait_until
from k8snet.linux.uncollected import uncollected

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = ["DUMMY", "SCHEDULERS", "Program", "Proxier", "render"]

DUMMY = "kube-ipvs0"
SCHEDULERS = ("rr", "wrr", "lc", "sh")
SYSCTLS = {
    "net.ipv4.vs.conntrack": 1,  # what IPVS translates is known to conntrack, so that MASQUERADE can follow
    "net.ipv4.vs.expire_nodest_conn": 1,
    "net.ipv4.vs.expire_quiescent_template": 1,  # a real server of weight 0 loses its clients of session affinity, too
    "net.ipv4.ip_forward": 1,
}
DESTROYED_S = 5.0  # seconds that a set may count as used after the last rule that named it


@dataclass(frozen=True, kw_only=True)
class Program:
    """All that a node needs, of one family."""

    family: str  # "v4" or "v6"
    addresses: tuple[str, ...]  # of kube-ipvs0
    virtual_servers: tuple[VirtualServer, ...]
    sets: Mapping[str, tuple[str, ...]]  # name, as Linux has it -> members
    tables: Mapping[str, tuple[str, ...]]  # "nat", "filter" -> rules, as in "-A CHAIN ..."
    jumps: tuple[tuple[str, str], ...] = ()  # (table, rule): from the kernel's chains to ours

    @property
    def rules(self) -> str:
        """The text for iptables-restore --noflush."""
        lines: list[str] = []
        for table, chains in CHAINS.items():
            jumps = (rule for where, rule in self.jumps if where == table)
            lines += [f"*{table}", *(f":{one} - [0:0]" for one in chains), *self.tables[table], *jumps, "COMMIT"]
        return "\n".join([*lines, ""])

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it: family, dummyInterface, addresses, virtualServers, ipsets, iptables, sysctls."""
        kinds = {name_of_set(name, self.family): about for name, about in SETS.items()}
        return {
            "family": self.family, "dummyInterface": DUMMY, "addresses": list(self.addresses),
            "virtualServers": [_as_dict(one) for one in self.virtual_servers],
            "ipsets": {
                name: {"type": kinds[name][0], "comment": kinds[name][1], "members": list(members)}
                for name, members in self.sets.items()
            },
            "iptables": self.rules, "sysctls": SYSCTLS,
        }  # fmt: skip


def _as_dict(one: VirtualServer) -> dict[str, Any]:
    sticky = {} if one.persistence_s is None else {"persistence_s": one.persistence_s}
    reals = [{"address": real.address, "port": real.port, "weight": real.weight} for real in one.real_servers]
    return {"address": one.address, "port": one.port, "protocol": one.protocol, "scheduler": one.scheduler, **sticky,
            "realServers": reals}  # fmt: skip


@uncollected()
def render(ports: Sequence[ServicePort], config: ProxyConfig, *, external_chains_only: bool = False) -> Program:
    """Return what *ports* need.

    Args:
        external_chains_only: leave out the jumps from INPUT, PREROUTING and the kernel's other chains.

    Raises:
        InvalidInput: no such scheduler.
    """
    if config.ipvs_scheduler not in SCHEDULERS:
        raise InvalidInput(f"IPVS scheduler {config.ipvs_scheduler!r}: one of {', '.join(SCHEDULERS)}")
    made = _Builder(config)
    for port in ports:
        made.add(port)
    made.members["KUBE-IPVS-IPS"].update(made.addresses)
    return Program(
        family=config.family, addresses=tuple(made.addresses), virtual_servers=tuple(made.servers.values()),
        sets={name_of_set(name, config.family): tuple(sorted(made.members[name])) for name in SETS},
        tables=rules(made.members, made.barred, config), jumps=() if external_chains_only else JUMPS,
    )  # fmt: skip


class _Builder:
    """What has been found to be needed."""

    def __init__(self, config: ProxyConfig) -> None:
        self.config = config
        six = config.family == "v6"
        self.own = [one for one in config.node_ips if (":" in one) == six and not ipaddress.ip_address(one).is_loopback]
        networks = [ipaddress.ip_network(one, strict=False) for one in config.nodeport_addresses if (":" in one) == six]
        some = bool(networks) and all(one.prefixlen for one in networks)
        self.takers = [one for one in self.own if not some or any(ipaddress.ip_address(one) in net for net in networks)]
        self.addresses: dict[str, None] = {}
        self.servers: dict[tuple[str, str, int], VirtualServer] = {}
        self.members: defaultdict[str, set[str]] = defaultdict(set)
        self.barred: list[str] = []  # rules: this node may not use a load balancer's address

    def add(self, port: ServicePort) -> None:
        protocol, found = port.protocol.lower(), categorize(port)
        here = found.local or found.cluster
        outside = _reals(here if port.external_local else found.cluster)
        for one in port.endpoints:
            if one.local:
                self.members["KUBE-LOOP-BACK"].add(f"{one.address},{protocol}:{one.port},{one.address}")
        self.members["KUBE-CLUSTER-IP"].add(f"{port.cluster_ip},{protocol}:{port.port}")
        self._serve(port, port.cluster_ip, _reals(here if port.internal_local else found.cluster))
        for address in port.external_ips:
            kind = "KUBE-EXTERNAL-IP-LOCAL" if port.external_local else "KUBE-EXTERNAL-IP"
            self.members[kind].add(f"{address},{protocol}:{port.port}")
            self._serve(port, address, outside)
        for address in port.load_balancer_ips:
            self._load_balanced(port, address, f"{address},{protocol}:{port.port}")
            self._serve(port, address, outside)
        if port.node_port:
            self._node_port(port, protocol)
            for address in self.takers:
                self._serve(port, address, outside, port.node_port)
        if port.health_check_node_port:
            self.members["KUBE-HEALTH-CHECK-NODE-PORT"].add(str(port.health_check_node_port))

    def _serve(self, port: ServicePort, address: str, reals: tuple[RealServer, ...], number: int = 0) -> None:
        """Add a virtual server; of two Services that claim one, the first by name has it."""
        one = VirtualServer(
            address=address, port=number or port.port, protocol=port.protocol, scheduler=self.config.ipvs_scheduler,
            persistence_s=port.affinity_s, real_servers=reals,
        )  # fmt: skip
        self.servers.setdefault(one.key, one)
        if address not in self.own:  # what another interface has is the node's already
            self.addresses[address] = None

    def _load_balanced(self, port: ServicePort, address: str, entry: str) -> None:
        self.members["KUBE-LOAD-BALANCER"].add(entry)
        if port.external_local:
            self.members["KUBE-LOAD-BALANCER-LOCAL"].add(entry)
        if not port.source_ranges:
            return
        self.members["KUBE-LOAD-BALANCER-FW"].add(entry)
        networks = [ipaddress.ip_network(one, strict=False) for one in port.source_ranges]
        for network in networks:  # a set cannot hold a network of everything, but its halves; upstream lets nobody in
            parts = network.subnets() if network.prefixlen == 0 else [network]
            self.members["KUBE-LOAD-BALANCER-SOURCE-CIDR"].update(f"{entry},{one}" for one in parts)
        if any(ipaddress.ip_address(one) in network for one in self.own[:1] for network in networks):
            # where the node has the balancer's address as its own, it calls it from that address
            self.members["KUBE-LOAD-BALANCER-SOURCE-IP"].add(f"{entry},{address}")
        else:
            virtual = f"-m ipvs --vaddr {address} --vproto {port.protocol.lower()} --vport {port.port}"
            self.barred.append(f"-A KUBE-IPVS-OUT-FILTER -s {address} {virtual} -j DROP")

    def _node_port(self, port: ServicePort, protocol: str) -> None:
        sctp = protocol == "sctp"  # a bitmap would hold its ports, but the kernel looks for TCP and UDP in one only
        entries = [f"{one},sctp:{port.node_port}" for one in self.takers] if sctp else [str(port.node_port)]
        for local in ("", "-LOCAL") if port.external_local else ("",):
            name = f"KUBE-NODE-PORT{local}-{port.protocol}{'-HASH' if sctp else ''}"
            self.members[name].update(entries if self.takers else ())


def _reals(endpoints: Iterable[Endpoint]) -> tuple[RealServer, ...]:
    return tuple(RealServer(address=one.address, port=one.port) for one in endpoints)


# -- one node ------------------------------------------------------------------------------


@dataclass
class _State:
    """What is in the kernel."""

    servers: list[VirtualServer]
    sets: dict[str, set[str]]
    addresses: set[str]
    dummy: bool  # whether kube-ipvs0 is there
    rules: str = ""  # "": not known

    @property
    def draining(self) -> bool:
        """Whether a real server is there for its last connections only."""
        return any(real.weight == 0 for one in self.servers for real in one.real_servers)


class Proxier:
    """kube-proxy in IPVS mode, on one node and for one address family."""

    def __init__(self, config: ProxyConfig) -> None:
        """Take note of the node; nothing is programmed yet."""
        self._config = config
        self._state: _State | None = None  # None: to be looked at
        self._ports: list[ServicePort] = []
        self._settings: dict[str, str] = {}  # as they were

    def apply(self, netns: Netns, ports: Sequence[ServicePort]) -> int:
        """Bring a node in step with *ports*, and return how many things have changed; what is right is not touched.

        A real server that is gone gets no new connections, and goes when the last one of TCP or SCTP has; the next
        apply() looks. Connections to UDP endpoints that are gone are forgotten.

        Like: ipvsadm --restore; ipset restore; iptables-restore --noflush; ip -batch -

        Raises:
            CapabilityMissing: this kernel has no IPVS; nothing has changed.
            KernelRefused, CommandFailed: of one part; the next call looks at what there is.
        """
        if self._state and list(ports) == self._ports and not self._state.draining:
            return 0
        wanted = render(ports, self._config)
        fresh = self._state is None
        if fresh:
            ipvs.require(netns)
        state, self._state = self._state or self._found(netns), None
        sets = {name: set(_as_listed(members)) for name, members in wanted.sets.items()}
        servers = _with_draining(netns, state.servers, wanted.virtual_servers)
        steps = list(ipvs.changes(state.servers, servers))
        count = self._set_sysctls(netns) if fresh else 0
        ipvs.apply(netns, [one for one in steps if one.command != "-D"])
        count += self._load_sets(netns, state.sets, sets)
        count += self._load_rules(netns, state.rules, wanted, fresh=fresh)
        count += self._bind(netns, state.addresses, wanted.addresses, dummy=state.dummy)
        ipvs.apply(netns, [one for one in steps if one.command == "-D"])
        conntrack.forget(netns, self._ports, ports, family=self._config.family)
        self._ports = list(ports)
        self._state = _State(servers, sets, set(wanted.addresses), dummy=True, rules=wanted.rules)
        return count + len(steps)

    def remove(self, netns: Netns) -> None:
        """Take everything of this family away, and kube-ipvs0 with the last address."""
        ipvs.apply(netns, list(ipvs.changes(self._servers(netns), ())))
        found = self._addresses(netns)
        mine = [one for one in found or () if self._mine(one)]
        if found is not None and len(mine) == len(found):
            netns.delete_link(DUMMY)
        elif mine:
            self._bind(netns, mine, (), dummy=True)
        self._strip(netns)
        wait_until(
            lambda: self._destroyed(netns), what="sets that no rule names any more", timeout_s=DESTROYED_S, every_s=0.05
        )
        if self._settings:
            netns.set_sysctls(self._settings)
        self._state, self._ports, self._settings = None, [], {}

    def _destroyed(self, netns: Netns) -> bool:
        names = [one for one in netns.run("ipset", "list", "-name").stdout.split() if one in self._names]
        script = "".join(f"destroy {name}\n" for name in names)
        return not names or netns.run("ipset", "restore", stdin=script, check=False, record=True).ok

    @property
    def _version(self) -> int:
        return 6 if self._config.family == "v6" else 4

    @property
    def _bits(self) -> int:
        return 128 if self._version == 6 else 32

    def _mine(self, address: str) -> bool:
        return (":" in address) == (self._version == 6)

    @property
    def _names(self) -> set[str]:
        return {name_of_set(name, self._config.family) for name in SETS}

    def _found(self, netns: Netns) -> _State:
        sets: dict[str, set[str]] = {}
        for line in netns.run("ipset", "save").stdout.splitlines():
            verb, name, *rest = line.split()
            if name in self._names:
                sets.setdefault(name, set()).update(rest[:1] if verb == "add" else ())
        addresses = self._addresses(netns)
        mine = set(filter(self._mine, addresses or ()))
        return _State(self._servers(netns), sets, mine, dummy=addresses is not None)

    def _servers(self, netns: Netns) -> list[VirtualServer]:
        return [one for one in ipvs.virtual_servers(netns) if self._mine(one.address)]

    def _addresses(self, netns: Netns) -> list[str] | None:
        """Return the addresses of kube-ipvs0, of both families; None where it is not there."""

        def ask(ipr: Any) -> list[str] | None:
            index = next(iter(ipr.link_lookup(ifname=DUMMY)), None)
            found = ipr.get_addr(index=index) if index else ()
            return [one.get_attr("IFA_LOCAL") or one.get_attr("IFA_ADDRESS") for one in found] if index else None

        return netns.netlink(f"read {DUMMY}", ask)

    def _set_sysctls(self, netns: Netns) -> int:
        """Set what this kernel has and what is not right yet; in a user namespace older ones have fewer."""
        now = {key: netns.sysctl(key) for key in SYSCTLS if sysctl.exists(netns, key)}
        wrong = {key: value for key, value in now.items() if value != str(SYSCTLS[key])}
        if wrong:
            netns.record("ipvsadm", "--list", "--numeric")  # as require() did, it loads IPVS, and with it its sysctls
            netns.set_sysctls({key: SYSCTLS[key] for key in wrong})
        self._settings = {**wrong, **self._settings}
        return len(wrong)

    def _load_sets(self, netns: Netns, before: Mapping[str, set[str]], after: Mapping[str, set[str]]) -> int:
        """Change members; an address is rejected (KUBE-IPVS-IPS) only while its ports are known."""
        family = self._config.family
        lines = [create(name, family) for name in SETS if name_of_set(name, family) not in before]
        last: list[str] = []
        rejected = name_of_set("KUBE-IPVS-IPS", family)
        for name, new in after.items():
            old = before.get(name, set())
            come = [f"add {name} {one}" for one in sorted(new - old)]
            gone = [f"del {name} {one}" for one in sorted(old - new)]
            lines, last = ([*gone, *lines], come) if name == rejected else ([*lines, *come, *gone], last)
        if lines or last:
            script = "".join(f"{line}\n" for line in [*lines, *last])
            netns.run("ipset", "restore", "-exist", stdin=script, record=True)
        return len(lines) + len(last)

    def _load_rules(self, netns: Netns, before: str, wanted: Program, *, fresh: bool) -> int:
        if before == wanted.rules:
            return 0
        lines = set(netns.iptables_save(backend="nft", family=self._version).splitlines()) if fresh else set()
        jumps = [(table, rule) for table, rule in JUMPS if fresh and rule.replace("-I", "-A", 1) not in lines]
        text = replace(wanted, jumps=tuple(jumps)).rules
        netns.iptables_restore(text, backend="nft", family=self._version)
        return 1

    def _bind(self, netns: Netns, before: Collection[str], after: Collection[str], *, dummy: bool) -> int:
        """Give kube-ipvs0 the addresses, and take those that nobody needs; make it where it is not there."""
        tail, nodad = f"/{self._bits} dev {DUMMY}", " nodad" if self._version == 6 else ""
        mac = naming.mac_for(netns.name, DUMMY)
        lines = [] if dummy else [f"link add name {DUMMY} address {mac} type dummy"]
        lines += [f"address add {one}{tail}{nodad}" for one in after if one not in before]
        lines += [f"address delete {one}{tail}" for one in sorted(set(before).difference(after))]
        if lines:
            netns.run("ip", "-batch", "-", stdin="".join(f"{line}\n" for line in lines), record=True)
        return len(lines)

    def _strip(self, netns: Netns) -> None:
        """Take away our chains, and the jumps to them."""
        lines = netns.iptables_save(backend="nft", family=self._version).splitlines()
        text, table = [], ""
        there = set[tuple[str, str]]()
        for line in lines:
            table = line[1:] if line.startswith("*") else table
            there.add((table, line.split()[0].lstrip(":")))
        for table, ours in CHAINS.items():
            chains = [one for one in ours if (table, one) in there]
            jumps = [rule for where, rule in JUMPS if where == table and rule.replace("-I", "-A", 1) in lines]
            if chains:
                text += [f"*{table}", *(f":{one} - [0:0]" for one in chains)]
                text += [*(rule.replace("-I", "-D", 1) for rule in jumps), *(f"-X {one}" for one in chains), "COMMIT"]
        if text:
            netns.iptables_restore("\n".join([*text, ""]), backend="nft", family=self._version)


def _as_listed(members: Iterable[str]) -> Iterable[str]:
    """Return members as ipset prints them: a network of one address as that address."""
    return (one.removesuffix("/128" if one.count(":") > 2 else "/32") for one in members)


def _with_draining(
    netns: Netns, before: Iterable[VirtualServer], after: Iterable[VirtualServer]
) -> list[VirtualServer]:
    """Return *after* with the real servers of *before* that have connections left, at weight 0."""
    old = {one.key: one for one in before}
    busy: dict[tuple[str, str, int], set[str]] | None = None
    found = []
    for one in after:
        kept = set(map(str, one.real_servers))
        gone = [real for real in (old[one.key].real_servers if one.key in old else ()) if str(real) not in kept]
        if gone and one.protocol != "UDP":
            if busy is None:
                known = ipvs.virtual_servers(netns)
                busy = {it.key: {str(real) for real in it.real_servers if real.connections} for it in known}
            left = [replace(real, weight=0) for real in gone if str(real) in busy.get(one.key, ())]
            found.append(replace(one, real_servers=(*one.real_servers, *left)))
        else:
            found.append(one)
    return found
