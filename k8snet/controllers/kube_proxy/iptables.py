"""kube-proxy in iptables mode: the text that iptables-restore --noflush takes, chain by chain as upstream writes it.

A connection to 10.96.0.20:80, the cluster IP of Service shop/web, to port 30080 of this node, or to 1.2.3.4:80, the
address of its load balancer; HASH is of "shop/web:http" and "tcp", and SEP hashes the endpoint's address and port, too:

    nat PREROUTING, OUTPUT                     every packet that opens a connection
      KUBE-SERVICES  -d 10.96.0.20 --dport 80    -j KUBE-SVC-HASH
                     -d 1.2.3.4 --dport 80       -j KUBE-EXT-HASH, or with loadBalancerSourceRanges KUBE-FW-HASH
                     --dst-type LOCAL            -j KUBE-NODEPORTS, last of all
      KUBE-NODEPORTS --dport 30080               -j KUBE-EXT-HASH
      KUBE-FW-HASH   -s 203.0.113.0/25           -j KUBE-EXT-HASH; who is in no range falls through, untranslated
      KUBE-EXT-HASH  policy Cluster: -j KUBE-MARK-MASQ, then -j KUBE-SVC-HASH, an endpoint of any node
                     policy Local: pods and this node -j KUBE-SVC-HASH, all others -j KUBE-SVL-HASH, this node's own
      KUBE-SVC-HASH  -d 10.96.0.20 ! -s 10.244.0.0/16 -j KUBE-MARK-MASQ       who is not a pod here
                     -m recent --rcheck          -j KUBE-SEP-HASH1            session affinity: again the same
                     -m statistic 0.5            -j KUBE-SEP-HASH1            by lot: one of n, of n - 1, ...
                                                 -j KUBE-SEP-HASH2            ... and what is left
      KUBE-SEP-HASH1 -s 10.244.1.7               -j KUBE-MARK-MASQ            hairpin: a pod that calls itself
                                                 -j DNAT --to-destination 10.244.1.7:8080
    nat POSTROUTING
      KUBE-POSTROUTING  who has the mark         -j MASQUERADE
    filter INPUT, FORWARD, OUTPUT              what nothing has translated
      KUBE-PROXY-FIREWALL     -d 1.2.3.4         -j DROP                      who is in no source range
      KUBE-SERVICES           -d 10.96.0.20      -j REJECT, or DROP           no endpoints, or none on this node
      KUBE-EXTERNAL-SERVICES  -d 1.2.3.4         -j REJECT, or DROP
      KUBE-NODEPORTS  --dport 32000              -j ACCEPT                    health checks of a load balancer
      KUBE-FORWARD    --ctstate INVALID          -j DROP; what has the mark, or belongs to a connection: -j ACCEPT
      KUBE-FIREWALL   -d 127.0.0.0/8             -j DROP                      to localhost, and not from there

Source: kubernetes pkg/proxy/iptables, proxier.go (1.33).
"""

from __future__ import annotations

import dataclasses
import ipaddress
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from k8snet.controllers.kube_proxy import conntrack
from k8snet.controllers.kube_proxy.iptables_rules import Built, build
from k8snet.controllers.kube_proxy.service_ports import ProxyConfig, ServicePort
from k8snet.errors import CommandFailed
from k8snet.linux.netfilter import begin_iptables_save
from k8snet.linux.uncollected import uncollected

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = ["JUMPS", "Applied", "Proxier", "Rules", "render"]

ONE_TRANSACTION = 250  # rules of one table; with the usual send buffer iptables-nft refuses some 290 with comments
ROUTE_LOCALNET = "net.ipv4.conf.all.route_localnet"
LARGE = 1000  # endpoints; with more, the rules of endpoints go without comments
OWN = ("KUBE-SVC-", "KUBE-SVL-", "KUBE-FW-", "KUBE-EXT-", "KUBE-SEP-")  # the chains of one Service
FILTER = ("KUBE-NODEPORTS", "KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-FORWARD", "KUBE-PROXY-FIREWALL")
NAT = ("KUBE-NODEPORTS", "KUBE-SERVICES", "KUBE-MARK-MASQ", "KUBE-POSTROUTING")
NEW = "-m conntrack --ctstate NEW"
_PORTALS = f'{NEW} -m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
_EXTERNAL = f'{NEW} -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES'
_FIREWALL = f'{NEW} -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL'
_NAT_PORTALS = '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
JUMPS = (  # (table, rule): each is put at the head of its chain, so that the last one is tried first
    ("filter", f"-I INPUT {_EXTERNAL}"),
    ("filter", f"-I FORWARD {_EXTERNAL}"),
    ("filter", '-I INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS'),
    ("filter", f"-I FORWARD {_PORTALS}"),
    ("filter", f"-I OUTPUT {_PORTALS}"),
    ("filter", '-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD'),
    ("filter", f"-I INPUT {_FIREWALL}"),
    ("filter", f"-I OUTPUT {_FIREWALL}"),
    ("filter", f"-I FORWARD {_FIREWALL}"),
    ("nat", f"-I OUTPUT {_NAT_PORTALS}"),
    ("nat", f"-I PREROUTING {_NAT_PORTALS}"),
    ("nat", '-I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING'),
    ("filter", "-I INPUT -j KUBE-FIREWALL"),
    ("filter", "-I OUTPUT -j KUBE-FIREWALL"),
)
LAST = "kubernetes service nodeports; NOTE: this must be the last rule in this chain"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What to load: chains, each emptied and filled again, and chains that are to go."""

    filter: Mapping[str, str]  # chain -> its rules, a line each, as in "-A CHAIN ..."
    nat: Mapping[str, str]
    jumps: Sequence[tuple[str, str]] = ()  # (table, rule): from the chains of the kernel to ours
    stale: Sequence[str] = ()  # chains of nat
    active: frozenset[str]  # the chains of all Services, of those that have not changed, too

    def __str__(self) -> str:
        """Return the text for iptables-restore --noflush."""
        return "\n".join([*self._table("filter", self.filter, ()), *self._table("nat", self.nat, self.stale), ""])

    @property
    def size(self) -> int:
        """How many rules the larger table has."""
        return max(sum(text.count("\n") + bool(text) for text in one.values()) for one in (self.filter, self.nat))

    def _table(self, name: str, chains: Mapping[str, str], stale: Sequence[str]) -> list[str]:
        """Return the lines of a table, chains by name: what iptables-legacy has to look for it finds sooner so."""
        every = {**dict.fromkeys(stale, ""), **chains} if stale else chains
        order = [*FILTER[:2], *sorted([one for one in every if one not in FILTER[:2]])]
        lines = [f"*{name}", *[f":{chain} - [0:0]" for chain in order]]
        lines += filter(None, map(every.get, order))
        lines += [rule for table, rule in self.jumps if table == name]
        return [*lines, *[f"-X {chain}" for chain in sorted(stale)], "COMMIT"]


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What one sync did to a node."""

    backend: str  # of iptables: "nft", or "legacy" where the rules do not fit into one nft transaction
    full: bool  # whether everything was written, or only what had changed
    text: str  # what iptables-restore took; "" if there was nothing to do
    forgotten: int  # conntrack entries of UDP endpoints that are gone


@uncollected()
def render(ports: Sequence[ServicePort], config: ProxyConfig, *, external_chains_only: bool = False) -> Rules:
    """Return the complete rules of *ports*.

    Args:
        external_chains_only: leave out the jumps from INPUT, PREROUTING and the kernel's other chains.
    """
    comments = not _is_large(ports)
    built = [(port, build(port, config, comments=comments)) for port in ports]
    return _assemble(built, config, jumps=() if external_chains_only else JUMPS)


def _is_large(ports: Iterable[ServicePort]) -> bool:
    return sum(len(port.endpoints) for port in ports) > LARGE


def _assemble(
    built: Iterable[tuple[ServicePort, Built]], config: ProxyConfig, *, jumps: Sequence[tuple[str, str]] = (),
    changed: Container[tuple[str, str]] | None = None, existing: Iterable[str] = (),
) -> Rules:  # fmt: skip
    """Return the rules of one sync.

    Args:
        changed: Services, as (namespace, name), whose own chains are to be written; None writes all.
        existing: chains of Services that are there already; those that no Service needs any more are to go.
    """
    tables: dict[str, dict[str, list[str]]] = {"filter": {one: [] for one in FILTER}, "nat": {one: [] for one in NAT}}
    if jumps:
        tables["filter"]["KUBE-FIREWALL"] = []
    active: list[str] = []
    written: dict[str, str] = {}
    for port, (shared, own) in built:
        for table, chain, rule in shared:
            tables[table][chain].append(rule)
        active += own
        if changed is None or (port.namespace, port.name) in changed:
            written.update(own)
    _common(tables["filter"], tables["nat"], config)
    kept = frozenset(active)
    stale = sorted(set(existing) - kept)
    common = {table: {chain: "\n".join(rules) for chain, rules in tables[table].items()} for table in tables}
    nat = {**common["nat"], **written}
    return Rules(filter=common["filter"], nat=nat, jumps=jumps, stale=stale, active=kept)


# -- what is there without any Service -----------------------------------------------------


def _common(filters: dict[str, list[str]], nat: dict[str, list[str]], config: ProxyConfig) -> None:
    mark = f"{config.masquerade_mark}/{config.masquerade_mark}"
    nat["KUBE-SERVICES"] += _to_nodeports(config)
    nat["KUBE-MARK-MASQ"] += [f"-A KUBE-MARK-MASQ -j MARK --or-mark {config.masquerade_mark}"]
    nat["KUBE-POSTROUTING"] += [
        f"-A KUBE-POSTROUTING -m mark ! --mark {mark} -j RETURN",
        f"-A KUBE-POSTROUTING -j MARK --xor-mark {config.masquerade_mark}",
        '-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE'
        + (" --random-fully" if config.random_fully else ""),
    ]
    if config.family == "v4" and config.localhost_nodeports:
        who = '-m comment --comment "block incoming localnet connections" -d 127.0.0.0/8 ! -s 127.0.0.0/8'
        rule = f"-A KUBE-FIREWALL {who} -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
        filters["KUBE-FIREWALL"] = [rule]
    count = " -m nfacct --nfacct-name ct_state_invalid_dropped_pkts" if config.nfacct else ""
    known = '-m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED'
    filters["KUBE-FORWARD"] += [
        *([] if config.tcp_liberal else [f"-A KUBE-FORWARD -m conntrack --ctstate INVALID{count} -j DROP"]),
        f'-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark {mark} -j ACCEPT',
        f"-A KUBE-FORWARD {known} -j ACCEPT",
    ]


def _to_nodeports(config: ProxyConfig) -> Iterator[str]:
    """Yield the rules that send what is for this node, or for some of its addresses, to KUBE-NODEPORTS."""
    loopback = "::1/128" if config.family == "v6" else "127.0.0.0/8"
    barred = config.family == "v6" or not config.localhost_nodeports  # IPv6 has no route_localnet
    head = f'-A KUBE-SERVICES -m comment --comment "{LAST}"'
    networks = [ipaddress.ip_network(one, strict=False) for one in config.nodeport_addresses]
    networks = [one for one in networks if (one.version == 6) == (config.family == "v6")]
    if not networks or any(one.prefixlen == 0 for one in networks):
        yield f"{head} -m addrtype --dst-type LOCAL{f' ! -d {loopback}' if barred else ''} -j KUBE-NODEPORTS"
        return
    mine = dict.fromkeys([loopback.partition("/")[0].replace("127.0.0.0", "127.0.0.1"), *config.node_ips])
    for network in networks:
        for address in [one for one in map(ipaddress.ip_address, mine) if one in network]:
            if not (address.is_loopback and barred):
                yield f"{head} -d {address} -j KUBE-NODEPORTS"


# -- one node ------------------------------------------------------------------------------


class Proxier:
    """kube-proxy on one node, for one address family: what it wrote last, and what to write next."""

    def __init__(
        self, config: ProxyConfig, *, sync_period_s: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start with nothing written.

        Args:
            sync_period_s: seconds between two clean-ups of stale chains where there are over 1,000 endpoints.
            clock: what tells the seconds.
        """
        self.config, self.sync_period_s, self.clock = config, sync_period_s, clock
        self.backend: str | None = None  # "nft" or "legacy"; None before the first apply()
        self.full = True  # whether the next sync writes everything
        self._built: dict[str, tuple[ServicePort, bool, Built]] = {}  # by key and protocol
        self._chains: frozenset[str] = frozenset()  # of Services, in the kernel
        self._before = self._built, self._chains  # the same, before the last sync
        self._cleaned: float | None = None  # when stale chains were last looked for
        self._route_localnet: str | None = None  # the setting as it was

    @uncollected()
    def sync(self, ports: Sequence[ServicePort]) -> Rules:
        """Return what iptables-restore --noflush is to take next, and count it as loaded.

        At first that is everything; then the chains of Services that have changed, and those that all share.
        Call failed() if it was not taken.
        """
        comments = not _is_large(ports)
        built, changed = self._compare(ports, comments=comments)
        now = self.clock()
        clean = comments or self._cleaned is None or now - self._cleaned > self.sync_period_s
        rules = _assemble(
            ((port, one) for port, _, one in built.values()), self.config,
            changed=None if self.full else changed, existing=self._chains if clean else (),
        )  # fmt: skip
        self._before = self._built, self._chains
        self._built, self._chains, self.full = built, rules.active | self._chains.difference(rules.stale), False
        self._cleaned = now if clean else self._cleaned
        return rules

    def failed(self) -> None:
        """Take back that the last sync was loaded; the next one writes everything."""
        self._built, before = self._before
        self._chains, self.full = self._chains | before, True

    def apply(self, netns: Netns, ports: Sequence[ServicePort]) -> Applied:
        """Bring the rules of a node in step with *ports*, and forget connections to UDP endpoints that are gone.

        Like: iptables-restore --noflush

        Raises:
            CommandFailed: iptables-restore did not take the whole ruleset; it names the line.
        """
        full, old = self.full, [port for port, _, _ in self._built.values()]
        if not full and list(ports) == old:
            return Applied(backend=str(self.backend), full=False, text="", forgotten=0)
        # each port has a rule in one of two tables, so that many do not fit; nft's are looked at without a trace
        guess = self.backend or ("legacy" if len(ports) > 2 * ONE_TRANSACTION else "nft")
        look = begin_iptables_save(netns, backend=guess, family=self._version) if full else None
        rules = self.sync(ports)
        saved = look() if look else ""
        fits = rules.size <= ONE_TRANSACTION
        if self.backend == "nft" and not fits:
            return self._with_legacy(netns, ports)
        self.backend = self.backend or ("nft" if fits else "legacy")
        if full and self.backend != guess:
            saved = netns.iptables_save(backend=self.backend, family=self._version)
        text = str(self._beside(netns, rules, saved) if full else rules)
        try:
            netns.iptables_restore(text, backend=self.backend, family=self._version)
        except CommandFailed as error:
            self.failed()
            if self.backend == "nft" and "too long" in error.stderr:
                return self._with_legacy(netns, ports)
            if full:
                raise
            return self.apply(netns, ports)  # something else has changed our chains
        forgotten = conntrack.forget(netns, old, ports, family=self.config.family)
        return Applied(backend=self.backend, full=full, text=text, forgotten=forgotten)

    def remove(self, netns: Netns) -> None:
        """Take away all chains of kube-proxy, and the jumps to them."""
        self._strip(netns, self.backend or "nft")
        if self._route_localnet is not None:
            netns.set_sysctls({ROUTE_LOCALNET: self._route_localnet})
        self._built, self._chains, self.backend, self.full, self._route_localnet = {}, frozenset(), None, True, None

    @property
    def _version(self) -> int:
        return 6 if self.config.family == "v6" else 4

    def _compare(
        self, ports: Iterable[ServicePort], *, comments: bool
    ) -> tuple[dict[str, tuple[ServicePort, bool, Built]], set[tuple[str, str]]]:
        """Return the rules of *ports*, and the Services that have changed since the last sync."""
        left, built, changed = dict(self._built), {}, set()
        for port in ports:
            key = f"{port.key}/{port.protocol}"
            known = left.pop(key, None)
            if known is None or known[0] != port:
                changed.add((port.namespace, port.name))
                known = None
            if known is None or known[1] != comments:
                known = port, comments, build(port, self.config, comments=comments)
            built[key] = known
        return built, changed | {(port.namespace, port.name) for port, _, _ in left.values()}

    def _with_legacy(self, netns: Netns, ports: Sequence[ServicePort]) -> Applied:
        """Move to iptables-legacy: its rules are there before those of iptables-nft go."""
        self.failed()
        self._chains, self.backend = frozenset(), "legacy"
        done = self.apply(netns, ports)
        self._strip(netns, "nft")
        return done

    def _beside(self, netns: Netns, rules: Rules, saved: str) -> Rules:
        """Return *rules* with the jumps that are not there yet, and without what an earlier kube-proxy has left.

        Args:
            saved: what iptables-save told of the node.
        """
        lines = set(saved.splitlines())
        jumps = [(table, rule) for table, rule in JUMPS if rule.replace("-I", "-A", 1) not in lines]
        left = {one for _, one in _chains_of(saved) if one.startswith(OWN)}
        if self.config.family == "v4" and self.config.localhost_nodeports and self._route_localnet is None:
            self._route_localnet = netns.sysctl(ROUTE_LOCALNET)
            netns.set_sysctls({ROUTE_LOCALNET: 1})
        stale = sorted({*rules.stale, *left} - rules.active)
        return dataclasses.replace(rules, filter={"KUBE-FIREWALL": "", **rules.filter}, jumps=jumps, stale=stale)

    def _strip(self, netns: Netns, backend: str) -> None:
        saved = netns.iptables_save(backend=backend, family=self._version)
        lines, text = set(saved.splitlines()), []
        for table, common in (("filter", (*FILTER, "KUBE-FIREWALL")), ("nat", NAT)):
            chains = [one for at, one in _chains_of(saved) if at == table and (one in common or one.startswith(OWN))]
            jumps = [rule for at, rule in JUMPS if at == table and rule.replace("-I", "-A", 1) in lines]
            if chains:
                text += [f"*{table}", *(f":{one} - [0:0]" for one in chains)]
                text += [*(rule.replace("-I", "-D", 1) for rule in jumps), *(f"-X {one}" for one in chains), "COMMIT"]
        if text:
            netns.iptables_restore("\n".join([*text, ""]), backend=backend, family=self._version)


def _chains_of(saved: str) -> Iterator[tuple[str, str]]:
    """Yield table and name of each chain that iptables-save tells of."""
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            yield table, line[1:].split()[0]
