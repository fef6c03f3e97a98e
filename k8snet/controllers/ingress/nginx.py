"""Edge -> nginx configuration: pure, and the same text for the same Edge.

    upstream shop.web.80 { server 10.244.1.2:80; }        the pods behind a port of a Service
    server {                                              a virtual host
        location = /cart { ... }                          a prefix is two locations: its own path, and all below
        location /cart/ { ... }
        location /beta/ { try_files /dev/null/none @$to_1; }     conditions: $to_1 is the name of one of these:
        location @rule_2 { ... }
    }

Conditions: each is a map to 0 or 1; `map "$is_1$is_2" $to_1` finds the first rule whose conditions are all 1.
Weights: split_clients. What comes from a manifest is a value and nothing else: words are quoted, `$` is `${dollar}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from urllib.parse import quote

from k8snet.controllers.ingress.model import (
    Action,
    Condition,
    Edge,
    HeaderChange,
    Hostname,
    Location,
    Match,
    PathChange,
    Redirect,
    Target,
    VirtualHost,
    locations,
)
from k8snet.errors import InvalidInput

__all__ = ["Directive", "render", "tree"]

FORWARDED = {  # what ingress-nginx tells a backend of the client
    "Host": "$http_host",
    "X-Request-ID": "$request_id",
    "X-Real-IP": "$remote_addr",
    "X-Forwarded-For": "$remote_addr",
    "X-Forwarded-Host": "$http_host",
    "X-Forwarded-Port": "$server_port",
    "X-Forwarded-Proto": "$scheme",
    "X-Original-Forwarded-For": "$http_x_forwarded_for",
    "Upgrade": "$http_upgrade",
    "Connection": "$connection_upgrade",
    "Proxy": "",
}
LOG = {
    "client": "$remote_addr", "host": "$host", "request": "$request_method $request_uri", "status": "$status",
    "upstream": "$upstream_addr", "service": "$proxy_host", "scheme": "$scheme",
}  # fmt: skip
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+=,()$*~^\[\]-]+")


@dataclass(frozen=True)
class Directive:
    """A directive of nginx: its words, and what is inside its braces; without words a comment."""

    words: tuple[str, ...]
    block: tuple[Directive, ...] | None = None
    comment: str = ""

    def lines(self, indent: str = "") -> Iterator[str]:
        """Yield its text, line by line."""
        if self.comment:
            yield f"{indent}# {_checked(self.comment)}"
        text = " ".join(map(_quoted, self.words))
        if self.block is None:
            yield f"{indent}{text};"
            return
        yield f"{indent}{text} {{"
        for one in self.block:
            yield from one.lines(f"{indent}    ")
        yield f"{indent}}}"


def render(edge: Edge, *, ipv6: bool = False, live: bool = True) -> str:
    """Return the text of nginx.conf; see tree()."""
    return "".join(f"{line}\n" for one in tree(edge, ipv6=ipv6, live=live) for line in one.lines())


def tree(edge: Edge, *, ipv6: bool = False, live: bool = True) -> list[Directive]:
    """Return the directives of an nginx that serves *edge*; files are named relative to its prefix (nginx -p).

    Args:
        ipv6: listen on IPv6, too.
        live: stay in the foreground, and write logs that the controller reads.

    Raises:
        InvalidInput: something in it is no part of a line of text; the loader of manifests lets no such thing pass.
    """
    return _Writer(edge, ipv6=ipv6).main(live=live)


def _d(*words: str, block: Iterable[Directive] | None = None, comment: str = "") -> Directive:
    return Directive(words, None if block is None else tuple(block), comment)


def _checked(word: str) -> str:
    if any(ord(sign) < 32 or ord(sign) == 127 for sign in word):
        raise InvalidInput(f"{word!r} has a control character, and cannot be part of nginx's configuration")
    return word


def _quoted(word: str) -> str:
    """Return a word so that nginx reads it as one, whatever is in it."""
    if _PLAIN.fullmatch(word):
        return word
    return '"' + _checked(word).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _literal(text: str) -> str:
    """Return a text for a place where nginx looks for variables: there is no other way to write a `$`."""
    return text.replace("$", "${dollar}")


@dataclass
class _Writer:
    edge: Edge
    ipv6: bool
    rules: dict[Action, str] = field(default_factory=dict)  # -> its named location, in the server that is being written
    atoms: dict[Condition, str] = field(default_factory=dict)  # -> its variable
    choices: dict[tuple[Match, ...], str] = field(default_factory=dict)
    splits: dict[tuple[Target, ...], str] = field(default_factory=dict)
    added: dict[HeaderChange, str] = field(default_factory=dict)

    def main(self, *, live: bool) -> list[Directive]:
        servers = list(self._servers())  # first: they tell which maps are needed
        http = [*self._settings(), *self._maps(), *self._upstreams(), *servers]
        return [
            *([_d("daemon", "off")] if live else []),
            _d("worker_processes", "1"),
            _d("worker_shutdown_timeout", "60s", comment="after a reload an old worker ends its connections first"),
            _d("pid", "nginx.pid"),
            _d("error_log", "error.log", "notice"),
            _d("events", block=[_d("worker_connections", "1024")]),
            _d("http", block=http),
        ]

    def _settings(self) -> Iterator[Directive]:
        fields = ",".join(f'"{key}":"{value}"' for key, value in LOG.items())
        yield _d("log_format", "k8snet", "escape=json", f"{{{fields}}}")
        yield _d("access_log", "access.log", "k8snet")
        for one in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
            yield _d(f"{one}_temp_path", one)
        for name, value in (
            ("server_tokens", "off"), ("ssl_protocols", "TLSv1.2 TLSv1.3"),
            ("server_names_hash_bucket_size", "512"), ("server_names_hash_max_size", "16384"),
            ("variables_hash_max_size", "4096"), ("proxy_headers_hash_bucket_size", "512"),
            ("proxy_headers_hash_max_size", "4096"), ("proxy_http_version", "1.1"), ("proxy_connect_timeout", "5s"),
        ):  # fmt: skip
            yield _d(name, *value.split())
        yield from self._forwarded({})
        yield _d("geo", "$dollar", block=[_d("default", "$")])
        yield _d("map", "$http_upgrade", "$connection_upgrade", block=[_d("default", "upgrade"), _d("", "close")])

    def _forwarded(self, changes: dict[str, tuple[str, str]]) -> Iterator[Directive]:
        """Yield the headers of a proxied request; those of an outer block count only where an inner one has none."""
        found = {name.lower(): (name, value) for name, value in FORWARDED.items()} | changes
        for name, value in found.values():
            yield _d("proxy_set_header", name, value)

    def _maps(self) -> Iterator[Directive]:
        for condition, variable in self.atoms.items():
            source, pattern = _test(condition)
            yield _d("map", source, variable, block=[_d("default", "0"), _d(f"~{pattern}", "1")])
        for matches, variable in self.choices.items():
            yield self._choice(matches, variable)
        for targets, variable in self.splits.items():
            yield _d("split_clients", "$request_id", variable, block=_shares(targets))
        for change, variable in self.added.items():
            old = _variable(change.name)
            lines = [_d("default", f"{old}, {_literal(change.value)}"), _d("", _literal(change.value))]
            yield _d("map", old, variable, block=lines)

    def _choice(self, matches: Sequence[Match], variable: str) -> Directive:
        atoms = list(dict.fromkeys(each for one in matches for each in one.conditions))
        lines = [_d("default", self._rule_name(matches[-1]) if not matches[-1].conditions else "none")]
        for one in matches:
            if one.conditions:
                pattern = "".join("1" if each in one.conditions else "." for each in atoms)
                lines.append(_d(f"~^{pattern}", self._rule_name(one)))
        return _d("map", "".join(self.atoms[one] for one in atoms), variable, block=lines)

    def _rule_name(self, match: Match) -> str:
        return self.rules.setdefault(match.action, f"rule_{len(self.rules) + 1}")

    def _upstreams(self) -> Iterator[Directive]:
        for one in self.edge.upstreams:
            servers = [_d("server", each, "max_fails=0") for each in one.servers]  # readiness is Kubernetes' matter
            yield _d("upstream", one.name, block=servers)

    # -- virtual hosts -----------------------------------------------------------------------

    def _servers(self) -> Iterator[Directive]:
        """Yield a server for each host, and one that answers 404 on every port without one for all others."""
        everywhere = {one.port for one in self.edge.hosts if not one.host.name}
        rest = [VirtualHost(port=port, host=Hostname()) for port in self.edge.ports if port not in everywhere]
        hosts = sorted([*self.edge.hosts, *rest], key=lambda one: (one.host.order, one.port))
        for _, same in groupby(hosts, key=lambda one: one.host):
            groups: dict[tuple[object, ...], list[VirtualHost]] = {}
            for one in same:
                groups.setdefault(one.matches, []).append(one)
            for group in groups.values():
                yield self._server(group)

    def _server(self, hosts: Sequence[VirtualHost]) -> Directive:
        """Return the server of virtual hosts that differ in their port only."""
        host, lines, secure = hosts[0].host, [], [one for one in hosts if self.edge.ports[one.port]]
        for one in hosts:
            words = [*(["ssl"] if one in secure else []), *([] if host.name else ["default_server"])]
            lines += [_d("listen", address, *words) for address in self._addresses(one.port)]
        lines.append(_d("server_name", _server_name(host)))
        certificate = next((one.certificate for one in secure if one.certificate), self.edge.default_certificate)
        if secure and certificate:
            lines.append(_d("ssl_certificate", f"tls/{certificate}.crt"))
            lines.append(_d("ssl_certificate_key", f"tls/{certificate}.key"))
        elif secure:
            lines.append(_d("ssl_reject_handshake", "on"))
        used: dict[Action | None, str] = {}
        for location in locations(hosts[0].matches):
            lines.append(self._location(location, used))
        lines += [
            _d("location", f"@{name}", block=self._body(action), comment=action.origin if action else "")
            for action, name in used.items()
        ]
        return _d("server", block=lines)

    def _addresses(self, port: int) -> list[str]:
        return [str(port), *([f"[::]:{port}"] if self.ipv6 else [])]

    def _location(self, one: Location, used: dict[Action | None, str]) -> Directive:
        words = ("location", *(["="] if one.exact else []), one.path)
        if not one.matches or not one.matches[0].conditions:
            action = one.matches[0].action if one.matches else None
            return _d(*words, block=self._body(action), comment=action.origin if action else "")
        for match in one.matches:
            for each in match.conditions:
                self.atoms.setdefault(each, f"$is_{len(self.atoms) + 1}")
            used[match.action] = self._rule_name(match)
        if one.matches[-1].conditions:
            used[None] = "none"
        variable = self.choices.setdefault(one.matches, f"$to_{len(self.choices) + 1}")
        return _d(*words, block=[_d("try_files", "/dev/null/none", f"@{variable}")])

    # -- what is done with a request -----------------------------------------------------------

    def _body(self, action: Action | None) -> list[Directive]:
        if action is None:
            return [_d("return", "404")]
        answers = [
            one for change in action.headers if change.response for one in _answer_header(change)
        ]  # fmt: skip
        if action.redirect:
            return [*answers, _redirect(action.redirect)]
        live = tuple(one for one in action.targets if one.weight)
        if len(live) <= 1 and not (live and live[0].upstream):
            return [*answers, _d("return", str(live[0].status if live else 500))]
        lines, to = answers, live[0].upstream
        if len(live) > 1:
            to = self.splits.setdefault(live, f"$share_{len(self.splits) + 1}")
            for status in sorted({one.status for one in live if one.status}):
                lines.append(_d("if", f"({to}", "=", f"{status})", block=[_d("return", str(status))]))
        if action.path:
            pattern, value = _rewrite(action.path)
            lines.append(_d("rewrite", pattern, value, "break"))
        changes = self._changes(action)
        return [*lines, *(self._forwarded(changes) if changes else ()), _d("proxy_pass", f"http://{to}")]

    def _changes(self, action: Action) -> dict[str, tuple[str, str]]:
        """Return the headers of the request that differ from FORWARDED: by name in small letters, name and value."""
        found = {"host": ("Host", _literal(action.host))} if action.host else {}
        for one in action.headers:
            if not one.response:
                value = _literal(one.value)
                if one.what == "add":
                    value = self.added.setdefault(one, f"$added_{len(self.added) + 1}")
                found[one.name.lower()] = (one.name, value)  # of one to remove the value is empty
        return found


def _variable(header: str) -> str:
    return f"$http_{header.lower().replace('-', '_')}"


def _server_name(host: Hostname) -> str:
    if not host.name.startswith("*."):
        return host.name or "_"
    return f"~^{'.+' if host.deep else '[^.]+'}{re.escape(host.name[1:])}\\z"


def _test(one: Condition) -> tuple[str, str]:
    """Return the variable that a condition is about, and the regular expression for what it may be."""
    if one.what == "query":
        name = "".join(map(_encoded, one.name))
        return "$args", f"^(?:(?!{name}=)[^&]*&)*{name}={''.join(map(_encoded, one.value))}(?:&|\\z)"
    source = "$request_method" if one.what == "method" else _variable(one.name)
    return source, f"^{re.escape(one.value)}\\z"


def _encoded(sign: str) -> str:
    """Return a regular expression for a character of a query, as it is or percent-encoded."""
    if re.fullmatch(r"[A-Za-z0-9._~-]", sign):
        return re.escape(sign)
    ways = [re.escape(sign), f"(?i:%{ord(sign):02x})", *(["\\+"] if sign == " " else [])]
    return f"(?:{'|'.join(ways)})"


def _shares(targets: Sequence[Target]) -> Iterator[Directive]:
    """Yield what part of the requests each target gets: nginx counts in hundredths of a percent."""
    total = sum(one.weight for one in targets)
    rising = sorted(targets, key=lambda one: one.weight)
    for one in rising[:-1]:
        share = max(round(10_000 * one.weight / total), 1)
        yield _d(f"{share / 100:g}%", one.upstream or str(one.status))
    yield _d("*", rising[-1].upstream or str(rising[-1].status))


def _rewrite(change: PathChange) -> tuple[str, str]:
    """Return pattern and replacement for nginx's rewrite: (?s), as a path may have %0A in it."""
    if change.prefix is None:
        return "^", _literal(change.value)
    prefix = re.escape(change.prefix.rstrip("/"))
    if change.value == "/":
        return f"(?s)^{prefix}/*(.*)\\z", "/$1"
    return f"(?s)^{prefix}(/.*)?\\z", f"{_literal(change.value)}$1"


def _redirect(one: Redirect) -> Directive:
    host = _literal(one.host) if one.host else "$host"
    where = f"{one.scheme or '$scheme'}://{host}{f':{one.port}' if one.port else ''}"
    if one.path is None:
        return _d("return", str(one.status), f"{where}$request_uri")
    if one.path.prefix is None:
        return _d("return", str(one.status), f"{where}{_escaped(one.path.value)}$is_args$args")
    pattern, value = _rewrite(one.path)
    return _d("rewrite", pattern, f"{where}{value}", "permanent" if one.status == 301 else "redirect")


def _escaped(path: str) -> str:
    """Return a path for the header Location."""
    return _literal(quote(path, safe="/-._~!$&'()*+,;=:@"))


def _answer_header(change: HeaderChange) -> Iterator[Directive]:
    if change.what != "add":
        yield _d("proxy_hide_header", change.name)
    if change.what != "remove":
        yield _d("add_header", change.name, _literal(change.value), "always")
