"""Read a node's rules back from its kernel, as values: iptables' from iptables-save, nft's own from nft -j.

Sets that iptables' rules name come from ipset, and the virtual servers of IPVS are rules here, too.

What a rule asks and does is taken from what these programs print, whoever has written it: kube-proxy, flannel, or
somebody by hand. A match that is not understood here is kept as such, and whoever shows the rule says so.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from k8snet.linux import ipvs, sysctl
from k8snet.observe.rules_ipvs import from_ipvs
from k8snet.observe.ruleset import AddressSet, Chain, Condition, Rule, Ruleset, Verdict

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = ["from_nft", "from_save", "read", "sets_from_save"]

HOOKS = {one.upper(): one for one in ("prerouting", "input", "forward", "output", "postrouting")}
PRIORITY = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}  # of iptables' tables; nat has two
COMMENT = re.compile(r'-m comment --comment (?:"((?:[^"\\]|\\.)*)"|(\S+)) ?')
ENDING = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "reject", "RETURN": "return", "MASQUERADE": "masquerade"}
HANDLE = re.compile(r"^\t\t(.*) # handle (\d+)$", re.MULTILINE)
EVERYWHERE = 0xFFFFFFFF
TRACKED = "net.ipv4.vs.conntrack"  # for IPv6, too


def read(netns: Netns, *, family: str = "v4", legacy: bool = False) -> Ruleset:
    """Return the rules that packets of a family meet in a netns, and the virtual servers of IPVS.

    iptables' rules are kept by one of two programs, and a node may have used both.

    Args:
        legacy: look for rules of iptables-legacy, too, whose tables are made where one asks for them.
    """
    version = 6 if family == "v6" else 4
    saved = netns.iptables_save(backend="nft", family=version)
    old = netns.iptables_save(backend="legacy", family=version) if legacy else ""
    sets = sets_from_save(netns.run("ipset", "save").stdout) if "--match-set" in saved + old else {}
    chains = {**from_save(old, mark=" (legacy)", sets=sets), **from_save(saved, sets=sets)}
    own = "ip6" if family == "v6" else "ip"
    theirs = {(own, table) for table in re.findall(r"^\*(\w+)", saved, re.MULTILINE)}
    objects = [
        {kind: body} for one in netns.nft_list() for kind, body in one.items()
        if body.get("family") in {own, "inet"} and (body["family"], body.get("table", body.get("name"))) not in theirs
    ]  # fmt: skip
    tables = [f"{one['table']['family']} {one['table']['name']}" for one in objects if "table" in one]
    texts = {table: netns.run("nft", "-a", "list", "table", *table.split(" ", 1)).stdout for table in tables}
    servers = [one for one in ipvs.virtual_servers(netns) if (":" in one.address) == (family == "v6")]
    tracked = sysctl.exists(netns, TRACKED) and netns.sysctl(TRACKED) == "1"
    return Ruleset({**chains, **from_nft(objects, texts), **from_ipvs(servers)}, tracked=tracked)


# -- iptables --------------------------------------------------------------------------


def sets_from_save(text: str) -> dict[str, AddressSet]:
    """Return the sets that `ipset save` tells of, by name; none of a kind that is not understood here."""
    kinds: dict[str, str] = {}
    members: dict[str, set[str]] = {}
    for line in text.splitlines():
        verb, name, what, *more = line.split()
        if verb == "create":
            kinds[name] = what
        elif "nomatch" in more:
            kinds[name] = ""
        else:
            members.setdefault(name, set()).add(what)
    found = [AddressSet(name, kind, frozenset(members.get(name, ()))) for name, kind in kinds.items()]
    return {one.name: one for one in found if set(one.parts) <= {"ip", "net", "port"}}


def from_save(
    text: str, *, mark: str = "", sets: Mapping[str, AddressSet] | None = None
) -> dict[tuple[str, str], Chain]:
    """Return the chains that iptables-save tells of.

    Args:
        mark: what to add to the names of tables, that tells those of one program from another's.
        sets: that rules may name.
    """
    chains: dict[tuple[str, str], Chain] = {}
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            name, policy = line[1:].split()[:2]
            chains[table + mark, name] = _iptables_chain(table, name, policy, mark, sets or {})
        elif line.startswith("-A "):
            chains[table + mark, line.split(" ", 2)[1]].lines.append(line)
    return chains


def _iptables_chain(table: str, name: str, policy: str, mark: str, sets: Mapping[str, AddressSet]) -> Chain:
    hook = HOOKS.get(name, "") if policy != "-" else ""
    source = hook in {"postrouting", "input"}
    return Chain(
        table=table + mark, name=name, parse=lambda line: [_iptables_rule(line, sets)], hook=hook,
        kind="nat" if table == "nat" else "filter", policy=policy if hook else "",
        priority=PRIORITY.get(table, 100 if source else -100),
    )  # fmt: skip


def _iptables_rule(line: str, sets: Mapping[str, AddressSet]) -> Rule:
    comment = COMMENT.search(line)
    words = COMMENT.sub("", line, count=1).split()[2:]
    conditions, lot, remember = [], 1.0, False
    virtual: dict[str, str] = {}
    while words and words[0] not in {"-j", "-g"}:
        negated = words[0] == "!"
        option, *words = words[negated:]
        taken = 1 if words and not words[0].startswith("-") and words[0] != "!" else 0
        value, words = "".join(words[:taken]), words[taken:]
        if option == "--probability":
            lot = float(value)
        elif option == "--every":  # in turn; to who knows nothing of the past it is a lot
            lot = 1 / int(value)
        elif option == "--set":
            remember = True
        elif option in VIRTUAL and not negated:
            virtual[option] = value
        elif option == "--match-set" and value in sets:
            conditions.append(Condition("set", (sets[value], tuple(words.pop(0).split(","))), negated, value))
        elif option not in SILENT and not (option == "-m" and value not in OPAQUE):
            extra, words = _extra(option, words)
            conditions.append(_iptables_condition(option, value, negated, extra))
    if virtual:
        conditions.append(Condition("virtual", tuple(VIRTUAL[one](value) for one, value in virtual.items())))
    actions = (*([Verdict("remember")] if remember else []), *_iptables_target(words))
    told = comment[1] or comment[2] if comment else ""
    return Rule(text=line, conditions=tuple(conditions), lot=lot, actions=actions, comment=told or "")


PROTOCOLS = {"6": "tcp", "17": "udp", "132": "sctp"}
VIRTUAL: dict[str, Callable[[str], tuple[str, Any]]] = {  # options of -m ipvs
    "--vproto": lambda value: ("protocol", (PROTOCOLS.get(value, value),)),
    "--vaddr": lambda value: ("address", ipaddress.ip_network(value)),
    "--vport": lambda value: ("port", _ports(value)),
}
SILENT = {"--mode", "--packet", "--seconds", "--reap", "--name", "--mask", "--rsource", "--random"}
OPAQUE = {"limit", "hashlimit", "connlimit", "u32", "bpf", "time", "quota"}  # their options all say one thing


def _extra(option: str, words: list[str]) -> tuple[str, list[str]]:
    """Return the second value of the few options that have two."""
    if option in {"--tcp-flags", "--match-set"} and words:
        return words[0], words[1:]
    return "", words


def _iptables_condition(option: str, value: str, negated: bool, extra: str) -> Condition:
    if option in {"-s", "-d"}:
        kind = "source" if option == "-s" else "destination"
        return Condition(kind, (ipaddress.ip_network(value, strict=False),), negated)
    if option in {"--dport", "--dports"}:
        return Condition("port", tuple(map(_ports, value.split(","))), negated)
    if option in {"--src-type", "--dst-type"}:
        return Condition(f"{'source' if option == '--src-type' else 'destination'} type", (value,), negated)
    if option == "--mark":
        number, _, mask = value.partition("/")
        return Condition("mark", (int(number, 0), int(mask, 0) if mask else EVERYWHERE), negated)
    if option in {"--ctstate", "--state"}:
        return Condition("state", tuple(value.split(",")), negated)
    if option in {"-i", "-o"}:
        return Condition("in" if option == "-i" else "out", (re.sub(r"\+$", "*", value),), negated)
    if option == "-p":
        return Condition("protocol", (value,), negated)
    if option in {"--rcheck", "--update"}:
        return Condition("remembered", (), negated)
    if option == "--physdev-is-in":
        return Condition("bridged", (), negated)
    return Condition("other", (), negated, " ".join(filter(None, [option, value, extra])))


def _ports(text: str) -> range:
    first, _, last = text.replace("-", ":").partition(":")
    return range(int(first), int(last or first) + 1)


def _iptables_target(words: list[str]) -> tuple[Verdict, ...]:
    if not words:
        return ()
    how, target, *rest = words
    options = dict(zip(rest[::2], rest[1::2], strict=False))
    if target in ENDING:
        return (Verdict(ENDING[target]),)
    if target == "DNAT":
        return (Verdict("dnat", options["--to-destination"]),)
    if target == "MARK" and "--set-xmark" in options:
        value, _, mask = options["--set-xmark"].partition("/")
        return (Verdict("mark", mark=(int(value, 0), int(mask, 0) if mask else EVERYWHERE)),)
    if target == "SNAT":
        return (Verdict("masquerade", options.get("--to-source", "")),)
    if target.isupper() and not target.startswith("KUBE-") and rest:
        return (Verdict("other", " ".join([target, *rest])),)
    return (Verdict("goto" if how == "-g" else "jump", target),)


# -- nft -------------------------------------------------------------------------------


def from_nft(objects: Iterable[dict[str, Any]], texts: dict[str, str]) -> dict[tuple[str, str], Chain]:
    """Return the chains that nft's JSON tells of.

    Args:
        texts: of each table, by "FAMILY NAME", what `nft -a list table` prints: rules as people write them.
    """
    told = {table: {int(handle): line for line, handle in HANDLE.findall(text)} for table, text in texts.items()}
    chains: dict[tuple[str, str], Chain] = {}
    sets: dict[tuple[str, str], Any] = {}
    for one in objects:
        ((kind, body),) = one.items()
        table = f"{body['family']} {body.get('table', body.get('name'))}"
        if kind in {"set", "map"}:
            sets[table, body["name"]] = body
        elif kind == "chain":
            reader = _NftRules(table, sets, told.get(table, {}))
            chains[table, body["name"]] = Chain(
                table=table, name=body["name"], parse=reader.rules, hook=body.get("hook", ""),
                kind=body.get("type", "filter"), priority=body.get("prio", 0), policy=body.get("policy", "").upper(),
            )  # fmt: skip
        elif kind == "rule":
            chains[table, body["chain"]].lines.append(body)
    return chains


class _NftRules:
    """Rules of one table, out of nft's JSON (libnftables-json(5))."""

    def __init__(self, table: str, sets: dict[tuple[str, str], Any], texts: dict[int, str]) -> None:
        self.table, self.sets, self.texts = table, sets, texts

    def rules(self, body: dict[str, Any]) -> list[Rule]:
        """Return what a rule says; one that draws lots is a rule for each outcome."""
        conditions: list[Condition] = []
        actions: list[Verdict] = []
        text = self.texts.get(body.get("handle", 0), "") or json.dumps(body["expr"])
        comment = str(body.get("comment", ""))
        for statement in body["expr"]:
            kind, value = _statement(statement)
            if kind == "match":
                conditions += self._match(value)
            elif kind == "vmap":
                return self._lookup(value, Rule(
                    text=text, conditions=tuple(conditions), actions=tuple(actions), comment=comment,
                ))  # fmt: skip
            elif kind == "limit":
                conditions.append(Condition("other", note="limit"))
            elif kind not in {"counter", "log", "comment"}:
                actions.append(_nft_verdict(kind, value))
        return [Rule(text=text, conditions=tuple(conditions), actions=tuple(actions), comment=comment)]

    def _match(self, match: dict[str, Any]) -> Iterator[Condition]:
        left, right, negated = match["left"], match["right"], match["op"] == "!="
        kind = _field(left)
        if isinstance(left, dict) and "payload" in left and left["payload"]["protocol"] in {"tcp", "udp", "sctp"}:
            yield Condition("protocol", (left["payload"]["protocol"],))
        if kind == "mark":
            yield Condition("mark", (_number(right), left["&"][1] if "&" in left else EVERYWHERE), negated)
        elif isinstance(right, str) and right.startswith("@"):
            known = self.sets.get((self.table, right[1:]), {})
            if "timeout" in known or "dynamic" in known.get("flags", ()):
                yield Condition("remembered", (), negated, right[1:])
            else:
                yield Condition(kind, tuple(_value(kind, _plain(one)) for one in known.get("elem", ())), negated, right)
        elif kind == "other" or match["op"] not in {"==", "!=", "in"}:
            yield Condition("other", (), negated, json.dumps(match))
        else:
            values = right["set"] if isinstance(right, dict) and "set" in right else right
            listed = values if isinstance(values, list) else [values]
            yield Condition(kind, tuple(_value(kind, _plain(one)) for one in listed), negated)

    def _lookup(self, vmap: dict[str, Any], rule: Rule) -> list[Rule]:
        key, data = vmap["key"], vmap["data"]
        elements = data["set"] if isinstance(data, dict) else self.sets.get((self.table, data[1:]), {}).get("elem", ())
        if isinstance(key, dict) and "numgen" in key:
            return list(_lots(rule, key["numgen"]["mod"], elements))
        keys = tuple(map(_field, key["concat"] if isinstance(key, dict) and "concat" in key else [key]))
        if not set(keys) <= {"source", "destination", "protocol", "port"}:
            unknown = Condition("other", note=json.dumps(key))
            return [replace(rule, conditions=(*rule.conditions, unknown))]
        found = {_key(_plain(one)): _element(verdict) for one, verdict in elements}
        return [replace(rule, keys=keys, map=found, map_name=data if isinstance(data, str) else "")]


def _statement(statement: Any) -> tuple[str, Any]:
    """Return the name of a statement, and what it says."""
    return next(iter(statement.items())) if isinstance(statement, dict) else (str(statement), None)


def _lots(rule: Rule, count: int, elements: Iterable[Any]) -> Iterator[Rule]:
    """Yield a rule for each outcome of a throw of dice, the share being that of what the others have left."""
    head = rule.text.partition("vmap {")[0]
    left = count
    for number, (value, verdict) in enumerate(elements):
        made = _element(verdict)
        before, after = "… , " if number else "", " , …" if left > 1 else ""
        shown = f"{head}vmap {{ {before}{value} : {made.kind} {made.target}{after} }}"
        yield replace(rule, text=shown, lot=1 / left, of=count, actions=(*rule.actions, made))
        left -= 1


def _element(verdict: dict[str, Any]) -> Verdict:
    return _nft_verdict(*_statement(verdict))


def _nft_verdict(kind: str, value: Any) -> Verdict:
    if kind in {"jump", "goto"}:
        return Verdict(kind, value["target"])
    if kind in {"accept", "drop", "reject", "return"}:
        return Verdict(kind)
    if kind in {"masquerade", "snat"}:
        return Verdict("masquerade", str(value.get("addr", "")) if isinstance(value, dict) else "")
    if kind == "dnat":
        address, port = str(value["addr"]), value.get("port")
        return Verdict(kind, address if port is None else f"{f'[{address}]' if ':' in address else address}:{port}")
    if kind == "mangle" and _field(value["key"]) == "mark":
        return Verdict("mark", mark=_mark(value["value"]))
    if kind == "set":
        return Verdict("remember", str(value["set"]).removeprefix("@"))
    return Verdict("other", f"{kind} {json.dumps(value)}" if value else kind)


def _mark(value: Any) -> tuple[int, int]:
    """Return value and mask, as in --set-xmark: mark | 4 is 4/4, mark ^ 4 is 4/0, mark & 4 is 0/~4."""
    if isinstance(value, int):
        return value, EVERYWHERE
    ((how, (_, number)),) = value.items()
    return {"|": (number, number), "^": (number, 0), "&": (0, EVERYWHERE & ~number)}[how]


FIELDS = {
    ("payload", "saddr"): "source", ("payload", "daddr"): "destination", ("payload", "dport"): "port",
    ("meta", "l4proto"): "protocol", ("payload", "protocol"): "protocol", ("payload", "nexthdr"): "protocol",
    ("meta", "mark"): "mark", ("meta", "iifname"): "in", ("meta", "oifname"): "out", ("ct", "state"): "state",
}  # fmt: skip


def _field(left: Any) -> str:
    """Return the kind of condition that compares this part of a packet."""
    if not isinstance(left, dict):
        return "other"
    ((kind, value),) = left.items()
    if kind == "&":
        return "mark" if _field(value[0]) == "mark" else "other"
    if kind == "fib" and value.get("result") == "type":
        return "source type" if "saddr" in value["flags"] else "destination type"
    name = str(value.get("field") or value.get("key")) if isinstance(value, dict) else ""
    return FIELDS.get((kind, name), "other")


def _plain(element: Any) -> Any:
    """Return an element without its comment, timeout and counter."""
    return element["elem"]["val"] if isinstance(element, dict) and "elem" in element else element


def _key(element: Any) -> tuple[str, ...]:
    parts = element["concat"] if isinstance(element, dict) and "concat" in element else [element]
    return tuple(map(str, parts))


def _value(kind: str, value: Any) -> Any:
    if kind in {"source", "destination"}:
        text = f"{value['prefix']['addr']}/{value['prefix']['len']}" if isinstance(value, dict) else str(value)
        return ipaddress.ip_network(text, strict=False)
    if kind == "port":
        first, last = value["range"] if isinstance(value, dict) else (value, value)
        return range(int(first), int(last) + 1)
    return str(value).upper() if kind in {"state", "source type", "destination type"} else str(value)


def _number(value: Any) -> int:
    return int(str(value), 0)
