"""Rules in words: what a chain is for, what a rule asks, why a packet fulfils it, and what follows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from k8snet.observe.ruleset import Chain, Condition, Packet, Place, Rule, Ruleset, Verdict

__all__ = ["Names", "door", "follows", "label", "meaning", "reason"]

NBSP = "\u00a0.\u00a0"  # between the parts of an element, which stay on one line
NUMBERS = ("", "", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True, kw_only=True)
class Names:
    """What addresses are called in a cluster."""

    addresses: Mapping[str, str] = field(default_factory=dict)  # -> "the cluster IP of shop/web"
    networks: Mapping[str, str] = field(default_factory=dict)  # -> "the pods' network"

    def told(self, text: str) -> str:
        """Return an address or network, with what it is, as "10.244.1.3 (pod web-1 on node1)"."""
        bare = text.removesuffix("/32").removesuffix("/128")
        name = self.addresses.get(bare) or self.networks.get(text)
        return f"{bare} ({name})" if name else bare

    def end(self, target: str) -> str:
        """Return an endpoint, with whose it is, as "10.244.1.3:8080, pod web-1 on node1"."""
        address = target.rpartition(":")[0].strip("[]") if target.count(":") in {1} or "]" in target else target
        name = self.addresses.get(address)
        return f"{target}, {name}" if name else target


def door(address: str, port: int, protocol: str) -> str:
    """Return where packets are sent to, as "10.96.0.20:80/tcp"; without a port for a ping."""
    if not port:
        return f"{address}/{protocol}"
    return f"{f'[{address}]' if ':' in address else address}:{port}/{protocol}"


# -- chains ----------------------------------------------------------------------------

HOOKS = {
    "prerouting": "what arrives at the node", "output": "what the node itself sends",
    "input": "what is for the node itself", "forward": "what passes through the node", "postrouting": "what leaves",
}  # fmt: skip
MEANINGS = {
    ("nat", "KUBE-SERVICES"): "a rule for each port of each Service", ("nat", "KUBE-NODEPORTS"): "the node ports",
    ("filter", "KUBE-SERVICES"): "cluster IPs that nobody stands behind",
    ("filter", "KUBE-EXTERNAL-SERVICES"): "outside addresses that nobody stands behind",
    ("filter", "KUBE-NODEPORTS"): "health checks of load balancers",
    ("filter", "KUBE-PROXY-FIREWALL"): "who is in no source range of a load balancer",
    ("filter", "KUBE-FORWARD"): "what has the mark, and known connections",
    ("filter", "KUBE-FIREWALL"): "strangers to localhost",
    ("filter", "KUBE-IPVS-OUT-FILTER"): "load balancers that the node may not use",
    ("nat", "KUBE-MARK-MASQ"): "sets the mark for masquerade",
    ("nat", "KUBE-POSTROUTING"): "masquerades what has the mark",
    ("kube-proxy", "services"): "two maps: addresses, and node ports",
    ("kube-proxy", "firewall-check"): "load balancers with source ranges",
    ("kube-proxy", "service-endpoints-check"): "addresses that nobody stands behind",
    ("kube-proxy", "nodeport-endpoints-check"): "node ports that nobody stands behind",
    ("kube-proxy", "cluster-ips-check"): "other ports of cluster IPs, and unused ones",
    ("kube-proxy", "reject-chain"): "says no", ("kube-proxy", "mark-for-masquerade"): "sets the mark for masquerade",
    ("kube-proxy", "masquerading"): "masquerades what has the mark",
}  # fmt: skip
OF_SETS = {  # the same chains where they ask sets, and others that only IPVS mode has
    ("nat", "KUBE-SERVICES"): "a rule for each set of Services",
    ("nat", "KUBE-POSTROUTING"): "masquerades what has the mark, and who calls itself",
    ("nat", "KUBE-NODE-PORT"): "the node ports", ("filter", "KUBE-NODE-PORT"): "health checks of load balancers",
    ("nat", "KUBE-LOAD-BALANCER"): "addresses of load balancers",
    ("filter", "KUBE-PROXY-FIREWALL"): "load balancers with source ranges",
    ("filter", "KUBE-SOURCE-RANGES-FIREWALL"): "who may use its load balancer",
    ("filter", "KUBE-IPVS-FILTER"): "lets in what is for a Service, and rejects the rest",
}  # fmt: skip
OWN = {
    "KUBE-SVC": "any endpoint", "service": "any endpoint", "KUBE-SVL": "endpoints on this node",
    "local": "endpoints on this node", "KUBE-EXT": "from outside the cluster",
    "external": "from outside the cluster", "KUBE-FW": "who may use its load balancer",
    "firewall": "who may use its load balancer",
}  # fmt: skip
OF_SERVICE = re.compile(r"(KUBE-(?:SVC|SVL|EXT|FW)|service|local|external|firewall)-[A-Z0-9]+")
OF_NFT = re.compile(r"[a-z]+-[A-Z0-9]+-([^/]+)/([^/]+)/[a-z]+/([^/]*)$")


def meaning(chain: Chain, names: Names, *, service: str = "") -> str:
    """Return what a chain is for; "" where that cannot be told.

    Args:
        service: whose it is, as "shop/web, port http", if it is one of a Service.
    """
    if chain.hook:
        return HOOKS[chain.hook]
    if chain.kind == "ipvs":
        whose = names.end(chain.name.partition(" ")[2]).partition(", ")[2]
        return "; ".join(filter(None, [whose, chain.about]))
    key = chain.table.split()[-1] if " (" not in chain.table else chain.table.split()[0], chain.name
    sets = key in OF_SETS and any(one.kind == "set" for rule in chain.rules for one in rule.conditions)
    if found := (OF_SETS[key] if sets else MEANINGS.get(key)):
        return found
    if match := OF_SERVICE.match(chain.name):
        return f"Service {_told_by(chain) or service}, {OWN[match[1]]}".replace("Service ,", "a Service,")
    ends = [verdict.target for rule in chain.rules for verdict in rule.actions if verdict.kind == "dnat"]
    return f"endpoint {names.end(ends[0])}" if len(ends) == 1 and chain.name.startswith(("KUBE-SEP", "endp")) else ""


def _told_by(chain: Chain) -> str:
    """Return whose a chain is, out of its name or the comments of its rules, as "shop/web, port http"."""
    if match := OF_NFT.match(chain.name):
        return f"{match[1]}/{match[2]}{f', port {match[3]}' if match[3] else ''}"
    for rule in chain.rules:
        if found := re.search(r"([\w.-]+/[\w.-]+)(?::([\w-]+))?", rule.comment):
            return f"{found[1]}{f', port {found[2]}' if found[2] else ''}"
    return ""


# -- why a rule matches ----------------------------------------------------------------


def reason(rule: Rule, packet: Packet, place: Place, names: Names) -> str:
    """Return why a rule takes a packet, or why it does not."""
    answers = [(one, one.holds(packet, place)) for one in rule.conditions]
    failed = [one for one, answer in answers if not answer]
    if failed:
        one = next((one for one, answer in answers if answer is False), failed[0])
        others = ", and the rule is for all others" if one.negated and one.kind not in {"mark", "other"} else ""
        return f"{FACTS[one.kind](one, packet, place, names)}{others}: does not match"
    if rule.map is not None and rule.key(packet) not in rule.map:
        return f"{rule.map_name} has no element {' . '.join(rule.key(packet))}: does not match"
    told = [FACTS[one.kind](one, packet, place, names) for one in _without_double(rule.conditions)]
    told += [f"{rule.map_name} has the element {' . '.join(rule.key(packet))}"] if rule.map is not None else []
    chosen = rule.choice or (_lot(rule) if rule.lot < 1 or rule.of else "")
    told += [chosen] if chosen else []
    return ", ".join(told) + ("" if chosen else ": matches") if told else "every packet: matches"


def _without_double(conditions: Iterable[Condition]) -> list[Condition]:
    """Return conditions without the protocol, where the port names it, too."""
    listed = list(conditions)
    ports = any(one.kind == "port" for one in listed)
    return [one for one in listed if not (ports and one.kind == "protocol")]


def _lot(rule: Rule) -> str:
    if rule.of:
        return f"by lot: one outcome of {_number(rule.of)}"
    count = round(1 / rule.lot)
    if abs(count * rule.lot - 1) < 1e-6:
        return f"by lot: taken once in {_number(count)}"
    return f"by lot: taken with probability {rule.lot:g}"


def _number(count: int) -> str:
    return NUMBERS[count] if 1 < count < len(NUMBERS) else str(count)


def _of_address(which: str) -> Callable[[Condition, Packet, Place, Names], str]:
    def told(one: Condition, packet: Packet, place: Place, names: Names) -> str:
        address = str(getattr(packet, which))
        inside = one.holds(packet, place) != one.negated
        if one.note.startswith("@"):
            return f"{which} {names.told(address)} is {'' if inside else 'not '}in {one.note}"
        wanted = " or ".join(names.told(str(network)) for network in one.values)
        if all(network.num_addresses == 1 for network in one.values):
            if inside:
                return f"{which} {address} is {names.addresses.get(address, 'the one that the rule names')}"
            return f"{which} {names.told(address)} is not {wanted}"
        return f"{which} {names.told(address)} is {'' if inside else 'not '}in {wanted}"

    return told


def _of_type(which: str) -> Callable[[Condition, Packet, Place, Names], str]:
    def told(_: Condition, packet: Packet, place: Place, names: Names) -> str:
        local = place.is_local(str(getattr(packet, which)))
        interface = place.interfaces.get(str(getattr(packet, which)))
        told = f"{which} {names.told(getattr(packet, which))} is {'an' if local else 'no'} address of {place.name}"
        return f"{told}, on {interface}" if interface else told

    return told


def _of_protocol(one: Condition, packet: Packet) -> str:
    told = "the rule's" if packet.protocol in one.values else f"not {' or '.join(one.values)}"
    return f"protocol {packet.protocol} is {told}"


def _of_port(one: Condition, packet: Packet, place: Place, _: Names) -> str:
    if one.holds(packet, place) != one.negated:
        return f"port {packet.port}/{packet.protocol} is the rule's"
    return f"port {packet.port} is not {_ports(one)}"


def _ports(one: Condition) -> str:
    return " or ".join(f"{ports[0]}-{ports[-1]}" if len(ports) > 1 else str(ports[0]) for ports in one.values)


def _of_state(one: Condition, packet: Packet, place: Place, _: Names) -> str:
    inside = one.holds(packet, place) != one.negated
    if inside and "NEW" not in one.values:
        return "it has been translated, as DNAT says"
    return "a first packet is NEW" if inside else f"a first packet is not {' or '.join(one.values)}"


def _of_mark(one: Condition, packet: Packet, _place: Place, _names: Names) -> str:
    return f"it {'has' if packet.mark & one.values[1] else 'does not have'} the mark {one.values[1]:#x}"


def _of_interface(one: Condition, packet: Packet, place: Place, _: Names) -> str:
    verb, name = ("came in by", packet.came) if one.kind == "in" else ("leaves by", packet.leaves)
    if one.holds(packet, place) != one.negated:
        return f"it {verb} {name}"
    return f"it {verb} {name or 'an interface that is not known'}, not {' or '.join(one.values)}"


def _of_set(one: Condition, packet: Packet, place: Place, _: Names) -> str:
    found, ways = one.values
    key = ",".join(part or "?" for part in found.key(packet, ways))
    return f"the set {found.name} {'has' if one.holds(packet, place) != one.negated else 'does not have'} {key}"


def _of_virtual(one: Condition, packet: Packet, place: Place, _: Names) -> str:
    if packet.virtual is None:
        return "IPVS has not translated it"
    protocol, address, port = packet.virtual
    which = "the rule's" if one.holds(packet, place) != one.negated else "another"
    return f"IPVS has translated it from {door(address, port, protocol)}, {which} virtual server"


def _of_bridge(_: Condition, packet: Packet, place: Place, __: Names) -> str:
    if packet.here:
        return "the node itself has sent it"
    if not packet.came:
        return "it came in by an interface that is not known"
    return f"it came in by {'a port of' if packet.came in place.bridges else ''} {packet.came}".replace("  ", " ")


FACTS: dict[str, Callable[[Condition, Packet, Place, Names], str]] = {
    "source": _of_address("source"),
    "destination": _of_address("destination"),
    "source type": _of_type("source"),
    "destination type": _of_type("destination"),
    "protocol": lambda one, packet, *_: _of_protocol(one, packet),
    "port": _of_port,
    "state": _of_state,
    "mark": _of_mark,
    "remembered": lambda *_: "nothing is remembered of a client that calls for the first time",
    "in": _of_interface,
    "out": _of_interface,
    "set": _of_set,
    "virtual": _of_virtual,
    "bridged": _of_bridge,
    "never": lambda one, *_: one.note,
    "now": lambda one, *_: one.note,
    "other": lambda one, *_: f"“{one.note}” is not understood here, and taken as not matching",
}


def _not(so: bool) -> str:
    return "" if so else "not "


# -- what follows ----------------------------------------------------------------------


def follows(verdicts: Iterable[Verdict], ruleset: Ruleset, table: str, names: Names) -> str:
    """Return what becomes of a packet that a rule has taken."""
    told = [_follows(one, ruleset, table, names) for one in verdicts]
    return ", then ".join(told) or "nothing: on to the next rule"


def _follows(verdict: Verdict, ruleset: Ruleset, table: str, names: Names) -> str:
    if verdict.kind in {"jump", "goto"}:
        chain = ruleset.chains.get((table, verdict.target))
        if chain is None:
            return f"{verdict.target}: on to the next rule"
        what = meaning(chain, names)
        return f"on to {verdict.target}{f': {what}' if what else ''}"
    if verdict.kind == "mark":
        return _mark(verdict)
    if verdict.kind == "dnat":
        return f"DNAT: its destination becomes {names.end(verdict.target)}"
    if verdict.kind == "reject" and verdict.target:
        return f"{ENDS['reject']}, {verdict.target}"
    if verdict.kind == "masquerade":
        return f"masquerade: its source becomes {verdict.target or 'the address of the interface it leaves by'}"
    return ENDS[verdict.kind] or f"{verdict.target}: not understood here, on to the next rule"


ENDS = {
    "accept": "ACCEPT: this table lets it pass", "drop": "DROP: it is gone, and nobody is told",
    "reject": "REJECT: the caller is refused at once", "return": "RETURN: back to where it came from",
    "remember": "the client is remembered", "other": "",
}  # fmt: skip


def _mark(verdict: Verdict) -> str:
    value, mask = verdict.mark
    if value and mask == value:
        return f"the mark {value:#x} is set"
    return f"the mark {value:#x} is flipped" if not mask else f"the mark becomes {value:#x}"


# -- a few words, for pictures -----------------------------------------------------------


def label(rule: Rule, packet: Packet, names: Names, *, brief: bool = False) -> str:
    """Return what a rule asks, in the few words that a line of a picture has room for.

    Args:
        brief: leave out where the packet is sent to.
    """
    if rule.map is not None:
        return f"{rule.map_name.removeprefix('@')}: {NBSP.join(rule.key(packet))}"
    where = {"destination", "port"}
    told = [] if brief else [_where(rule, packet, names)]
    told += [LABELS[one.kind](one, names) for one in rule.conditions if one.kind in LABELS and one.kind not in where]
    if rule.part:
        told.append(rule.part)
    elif rule.of:
        told.append(f"1 of {rule.of}")
    elif rule.lot < 1:
        count = round(1 / rule.lot)
        exact = f"1 of {count}: " if abs(count * rule.lot - 1) < 1e-6 else ""
        told.append(f"{exact}p {rule.lot:.3f}")
    return ", ".join(filter(None, told))


def _where(rule: Rule, packet: Packet, names: Names) -> str:
    """Return what a rule asks of address and port."""
    port = next((f"{_ports(one)}/{packet.protocol}" for one in rule.conditions if one.kind == "port"), "")
    for one in rule.conditions:
        if one.kind == "destination":
            hosts = not one.note and not one.negated and all(each.num_addresses == 1 for each in one.values)
            if port and hosts:
                return f"to {door(packet.destination, packet.port, packet.protocol)}"
            return _addresses("to")(one, names) + (f", port {port}" if port else "")
    return f"to port {port}" if port else ""


def _whose(text: str, names: Names) -> str:
    bare = text.removesuffix("/32").removesuffix("/128")
    name = names.addresses.get(bare, "").partition(" on ")[0] or names.networks.get(text)
    return name or bare


def _addresses(word: str) -> Callable[[Condition, Names], str]:
    def told(one: Condition, names: Names) -> str:
        if word == "from" and [names.networks.get(str(network)) for network in one.values] == [PODS]:
            return f"{_not(not one.negated)}from a pod"
        listed = one.note or " or ".join(_whose(str(network), names) for network in one.values)
        return f"{_not(not one.negated)}{word} {listed}"

    return told


PODS = "the pods' network"
LABELS: dict[str, Callable[[Condition, Names], str]] = {
    "source": _addresses("from"),
    "source type": lambda one, _: f"{_not(not one.negated)}from the node itself",
    "destination type": lambda one, _: f"{_not(not one.negated)}to an address of the node",
    "remembered": lambda *_: "same client again",
    "mark": lambda one, _: f"{'no ' if one.negated == bool(one.values[0]) else ''}mark",
    "in": lambda one, _: f"{_not(not one.negated)}in by {one.values[0]}",
    "out": lambda one, _: f"{_not(not one.negated)}out by {one.values[0]}",
    "set": lambda one, _: f"{_not(not one.negated)}in {one.note}",
    "virtual": lambda *_: "by this virtual server",
    "bridged": lambda one, _: f"{_not(not one.negated)}by a bridge",
    "other": lambda one, _: f"“{one.note}”",
}
