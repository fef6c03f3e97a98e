"""The sets of kube-proxy's IPVS mode, and the few iptables rules that look into them. ipvs.py draws where they stand.

Source: kubernetes pkg/proxy/ipvs, proxier.go and ipset.go (1.33).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from k8snet.controllers.kube_proxy.service_ports import ProxyConfig

__all__ = ["CHAINS", "JUMPS", "SETS", "create", "name_of_set", "rules"]

NAME_LENGTH = 31  # of a set, in Linux
IP_PORT, IP_PORT_IP, PORT = "hash:ip,port", "hash:ip,port,ip", "bitmap:port"
OF_LB = "Kubernetes service load balancer ip + port"
SETS = {  # name -> type, comment
    "KUBE-LOOP-BACK": (IP_PORT_IP, "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose"),
    "KUBE-CLUSTER-IP": (IP_PORT, "Kubernetes service cluster ip + port for masquerade purpose"),
    "KUBE-EXTERNAL-IP": (IP_PORT, "Kubernetes service external ip + port for masquerade and filter purpose"),
    "KUBE-EXTERNAL-IP-LOCAL": (IP_PORT, "Kubernetes service external ip + port with externalTrafficPolicy=local"),
    "KUBE-LOAD-BALANCER": (IP_PORT, "Kubernetes service lb portal"),
    "KUBE-LOAD-BALANCER-FW": (IP_PORT, f"{OF_LB} for load balancer with sourceRange"),
    "KUBE-LOAD-BALANCER-LOCAL": (IP_PORT, f"{OF_LB} with externalTrafficPolicy=local"),
    "KUBE-LOAD-BALANCER-SOURCE-IP": (IP_PORT_IP, f"{OF_LB} + source IP for packet filter purpose"),
    "KUBE-LOAD-BALANCER-SOURCE-CIDR": ("hash:ip,port,net", f"{OF_LB} + source cidr for packet filter purpose"),
    "KUBE-NODE-PORT-TCP": (PORT, "Kubernetes nodeport TCP port for masquerade purpose"),
    "KUBE-NODE-PORT-LOCAL-TCP": (PORT, "Kubernetes nodeport TCP port with externalTrafficPolicy=local"),
    "KUBE-NODE-PORT-UDP": (PORT, "Kubernetes nodeport UDP port for masquerade purpose"),
    "KUBE-NODE-PORT-LOCAL-UDP": (PORT, "Kubernetes nodeport UDP port with externalTrafficPolicy=local"),
    "KUBE-NODE-PORT-SCTP-HASH": (
        IP_PORT, "Kubernetes nodeport SCTP port for masquerade purpose with type 'hash ip:port'",
    ),
    "KUBE-NODE-PORT-LOCAL-SCTP-HASH": (
        IP_PORT, "Kubernetes nodeport SCTP port with externalTrafficPolicy=local with type 'hash ip:port'",
    ),
    "KUBE-HEALTH-CHECK-NODE-PORT": (PORT, "Kubernetes health check node port"),
    "KUBE-IPVS-IPS": ("hash:ip", "Addresses on the ipvs interface"),
}  # fmt: skip
CHAINS = {  # table -> ours
    "nat": ("KUBE-SERVICES", "KUBE-POSTROUTING", "KUBE-NODE-PORT", "KUBE-LOAD-BALANCER", "KUBE-MARK-MASQ"),
    "filter": ("KUBE-FORWARD", "KUBE-NODE-PORT", "KUBE-PROXY-FIREWALL", "KUBE-SOURCE-RANGES-FIREWALL",
               "KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER"),
}  # fmt: skip
_LINKS = (  # (table, chain of the kernel, ours, comment)
    ("nat", "OUTPUT", "KUBE-SERVICES", "kubernetes service portals"),
    ("nat", "PREROUTING", "KUBE-SERVICES", "kubernetes service portals"),
    ("nat", "POSTROUTING", "KUBE-POSTROUTING", "kubernetes postrouting rules"),
    ("filter", "FORWARD", "KUBE-FORWARD", "kubernetes forwarding rules"),
    ("filter", "INPUT", "KUBE-NODE-PORT", "kubernetes health check rules"),
    ("filter", "INPUT", "KUBE-PROXY-FIREWALL", "kube-proxy firewall rules"),
    ("filter", "FORWARD", "KUBE-PROXY-FIREWALL", "kube-proxy firewall rules"),
    ("filter", "INPUT", "KUBE-IPVS-FILTER", "kubernetes ipvs access filter"),
    ("filter", "OUTPUT", "KUBE-IPVS-OUT-FILTER", "kubernetes ipvs access filter"),
)
JUMPS = tuple(  # (table, rule): each is put at the head of its chain, so that the last one is tried first
    (table, f'-I {chain} -m comment --comment "{comment}" -j {ours}') for table, chain, ours, comment in _LINKS
)
MATCHED = (  # (table, chain, set, what of the packet, protocol, target), each where the set has members
    ("nat", "KUBE-POSTROUTING", "KUBE-LOOP-BACK", "dst,dst,src", "", "MASQUERADE"),
    ("nat", "KUBE-SERVICES", "KUBE-LOAD-BALANCER", "dst,dst", "", "KUBE-LOAD-BALANCER"),
    ("nat", "KUBE-LOAD-BALANCER", "KUBE-LOAD-BALANCER-LOCAL", "dst,dst", "", "RETURN"),
    ("nat", "KUBE-NODE-PORT", "KUBE-NODE-PORT-LOCAL-TCP", "dst", "tcp", "RETURN"),
    ("nat", "KUBE-NODE-PORT", "KUBE-NODE-PORT-TCP", "dst", "tcp", "KUBE-MARK-MASQ"),
    ("nat", "KUBE-NODE-PORT", "KUBE-NODE-PORT-LOCAL-UDP", "dst", "udp", "RETURN"),
    ("nat", "KUBE-NODE-PORT", "KUBE-NODE-PORT-UDP", "dst", "udp", "KUBE-MARK-MASQ"),
    ("nat", "KUBE-NODE-PORT", "KUBE-NODE-PORT-LOCAL-SCTP-HASH", "dst,dst", "sctp", "RETURN"),
    ("nat", "KUBE-NODE-PORT", "KUBE-NODE-PORT-SCTP-HASH", "dst,dst", "sctp", "KUBE-MARK-MASQ"),
    ("filter", "KUBE-PROXY-FIREWALL", "KUBE-LOAD-BALANCER-FW", "dst,dst", "", "KUBE-SOURCE-RANGES-FIREWALL"),
    ("filter", "KUBE-SOURCE-RANGES-FIREWALL", "KUBE-LOAD-BALANCER-SOURCE-CIDR", "dst,dst,src", "", "RETURN"),
    ("filter", "KUBE-SOURCE-RANGES-FIREWALL", "KUBE-LOAD-BALANCER-SOURCE-IP", "dst,dst,src", "", "RETURN"),
)
REACHED = {"KUBE-LOAD-BALANCER": "dst,dst", "KUBE-CLUSTER-IP": "dst,dst", "KUBE-EXTERNAL-IP": "dst,dst",
           "KUBE-EXTERNAL-IP-LOCAL": "dst,dst", "KUBE-HEALTH-CHECK-NODE-PORT": "dst"}  # fmt: skip


def name_of_set(name: str, family: str) -> str:
    """Return what a set is called in Linux: for IPv6 with KUBE-6- in front, cut where that is too long."""
    return name if family == "v4" else name.replace("KUBE-", "KUBE-6-", 1)[:NAME_LENGTH]


def create(name: str, family: str) -> str:
    """Return the line for ipset restore that makes a set."""
    kind, six = SETS[name][0], family == "v6"
    how = "range 0-65535" if kind == PORT else f"family {'inet6' if six else 'inet'} hashsize 1024 maxelem 65536"
    return f"create {name_of_set(name, family)} {kind} {how}"


def rules(
    members: Mapping[str, Collection[str]], barred: Iterable[str], config: ProxyConfig
) -> dict[str, tuple[str, ...]]:
    """Return the rules of both tables, as in "-A CHAIN ...".

    Args:
        members: of each set by its name in SETS; an empty one has fewer rules.
        barred: rules of KUBE-IPVS-OUT-FILTER.
    """
    found: dict[str, list[str]] = {"nat": [], "filter": []}
    loopback = "::1/128" if config.family == "v6" else "127.0.0.0/8"
    found["nat"].append(f"-A KUBE-SERVICES -s {loopback} -j RETURN")
    for table, chain, name, what, protocol, target in MATCHED:
        if members.get(name):
            head = f"-A {chain} -p {protocol}" if protocol else f"-A {chain}"
            found[table].append(f"{head} {_comment(name)} {_match(name, config, what)} -j {target}")
    found["nat"] += [*_services(members, config), *_masquerading(config)]
    found["filter"] += ["-A KUBE-SOURCE-RANGES-FIREWALL -j DROP", *barred, *_filtering(config)]
    return {table: tuple(lines) for table, lines in found.items()}


def _match(name: str, config: ProxyConfig, what: str = "dst,dst") -> str:
    return f"-m set --match-set {name_of_set(name, config.family)} {what}"


def _comment(name: str) -> str:
    return f'-m comment --comment "{SETS[name][1]}"'


def _services(members: Mapping[str, Collection[str]], config: ProxyConfig) -> Iterator[str]:
    chain = "-A KUBE-SERVICES"
    if members.get("KUBE-CLUSTER-IP"):
        who = "dst,dst"
        if not config.masquerade_all:  # without a detector: this node, that calls an own address from that address
            who = f"dst,dst ! -s {config.cluster_cidr}" if config.cluster_cidr else "src,dst"
        match = f"{_comment('KUBE-CLUSTER-IP')} {_match('KUBE-CLUSTER-IP', config, who)}"
        yield f"{chain} {match} -j KUBE-MARK-MASQ"
    for name in ("KUBE-EXTERNAL-IP", "KUBE-EXTERNAL-IP-LOCAL"):
        if members.get(name):
            head = f"{chain} {_comment(name)} {_match(name, config)}"
            if name == "KUBE-EXTERNAL-IP":
                yield f"{head} -j KUBE-MARK-MASQ"
            yield f"{head} -m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL -j ACCEPT"
            yield f"{head} -m addrtype --dst-type LOCAL -j ACCEPT"
    yield f"{chain} -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT"
    for name in ("KUBE-CLUSTER-IP", "KUBE-LOAD-BALANCER"):
        if members.get(name):
            yield f"{chain} {_match(name, config)} -j ACCEPT"


def _masquerading(config: ProxyConfig) -> Iterator[str]:
    mark = config.masquerade_mark
    yield "-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ"
    yield f"-A KUBE-POSTROUTING -m mark ! --mark {mark}/{mark} -j RETURN"
    yield f"-A KUBE-POSTROUTING -j MARK --xor-mark {mark}"
    how = " --random-fully" if config.random_fully else ""
    yield f'-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE{how}'
    yield f"-A KUBE-MARK-MASQ -j MARK --or-mark {mark}"


def _filtering(config: ProxyConfig) -> Iterator[str]:
    mark, health = config.masquerade_mark, "KUBE-HEALTH-CHECK-NODE-PORT"
    known = '-m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED'
    yield f'-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark {mark}/{mark} -j ACCEPT'
    yield f"-A KUBE-FORWARD {known} -j ACCEPT"
    yield f"-A KUBE-NODE-PORT {_comment(health)} {_match(health, config, 'dst')} -j ACCEPT"
    for name, what in REACHED.items():
        yield f"-A KUBE-IPVS-FILTER {_match(name, config, what)} -j RETURN"
    yield f"-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW {_match('KUBE-IPVS-IPS', config, 'dst')} -j REJECT"
