"""Ingress (networking.k8s.io/v1) -> virtual hosts on ports 80 and 443.

Source: https://kubernetes.io/docs/concepts/services-networking/ingress/ ; annotations as ingress-nginx has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from k8snet.cluster.edge_checks import ANNOTATIONS, NGINX, decoded
from k8snet.cluster.objects import key_of, meta, name_of, namespace_of
from k8snet.controllers.ingress.model import Action, Condition, Hostname, Match, PathChange, Redirect, Target, age

if TYPE_CHECKING:
    from k8snet.controllers.ingress.edge import Draft

__all__ = ["DEFAULT_CLASS", "HTTP", "HTTPS", "OLD_CLASS", "add", "is_default"]

HTTP, HTTPS = 80, 443
OLD_CLASS = "kubernetes.io/ingress.class"
DEFAULT_CLASS = "ingressclass.kubernetes.io/is-default-class"
LATER, LAST = "~", "~~"  # ranks behind all creation times


def add(draft: Draft) -> None:
    """Add what the Ingresses of a draft say; canaries after those that they share their paths with."""
    found = [_Ingress(draft, one) for one in draft.of_kind("Ingress") if _takes(draft, one)]
    for one in found:
        draft.statuses[key_of(one.model)] = {}
        if not one.canary:
            one.add()
    for one in found:
        if one.canary:
            one.share()


def _takes(draft: Draft, ingress: Any) -> bool:
    """Tell whether an Ingress is this controller's: by the old annotation, by its class, or by the default class."""
    old = (meta(ingress).annotations or {}).get(OLD_CLASS)
    name = old or (ingress.spec.ingressClassName if ingress.spec else None)
    if name or draft.name is None:
        return draft.is_ours("IngressClass", name or "")
    defaults = [name_of(one) for one in draft.of_kind("IngressClass") if is_default(one)]
    return any(draft.is_ours("IngressClass", one) for one in defaults)


def is_default(ingress_class: Any) -> bool:
    """Tell whether an IngressClass is for the Ingresses that name none."""
    return (meta(ingress_class).annotations or {}).get(DEFAULT_CLASS) == "true"


class _Ingress:
    def __init__(self, draft: Draft, model: Any) -> None:
        self.draft, self.model = draft, model
        self.namespace, self.title = namespace_of(model), " ".join((key_of(model)[0], "/".join(key_of(model)[1:])))
        self.rank = age(model)
        self.options: dict[str, str] = {}
        for key, value in (meta(model).annotations or {}).items():
            word = key.removeprefix(NGINX)
            if key.startswith(NGINX) and word in ANNOTATIONS:
                self.options[word] = value
            elif key.startswith(NGINX):
                draft.note(model, f"annotation {key} is ignored")
        self.canary = self.options.get("canary") == "true"

    def add(self) -> None:
        """Add its rules, and its default backend where no rule of a host is for a path."""
        spec, everywhere = self.model.spec, Hostname()
        default = spec.defaultBackend and self._target(spec.defaultBackend)
        hosts: dict[Hostname, list[Match]] = {Hostname(name=one.host or ""): [] for one in spec.rules or ()}
        for host, match in self._matches():
            hosts.setdefault(host, []).append(match)
        if default:
            secure = [Hostname(name=one) for tls in spec.tls or () for one in tls.hosts or ()]
            rank_everywhere = LAST if hosts else LATER
            for host in dict.fromkeys([*(hosts or secure), everywhere]):
                rank = rank_everywhere if host == everywhere else LATER
                last = Match(path="/", action=self._action("default backend", default), rank=(rank, *self.rank))
                hosts.setdefault(host, []).append(last)
        for host, matches in hosts.items():
            self._serve(host, matches)

    def _serve(self, host: Hostname, matches: list[Match]) -> None:
        covered, certificate = self._certificate(host)
        redirect = covered and self.options.get("ssl-redirect") != "false"
        if redirect or self.options.get("force-ssl-redirect") == "true":
            to = Redirect(status=308, scheme="https")
            plain = [replace(one, action=Action(origin=one.action.origin, redirect=to)) for one in matches]
        else:
            plain = matches
        self.draft.host(HTTP, host, tls=False).matches += plain
        if covered or self.draft.default:
            secure = self.draft.host(HTTPS, host, tls=True)
            secure.matches += matches
            secure.certificate = secure.certificate or certificate

    def _certificate(self, host: Hostname) -> tuple[bool, str | None]:
        """Return whether TLS is asked for, for a host, and its certificate; None: the default one."""
        for tls in self.model.spec.tls or ():
            names = [Hostname(name=one) for one in tls.hosts or ()]
            if not names or any(one.holds(host) for one in names):
                found = self.draft.certificate(self.namespace, tls.secretName) if tls.secretName else None
                if tls.secretName and not found:
                    reason = self.draft.why_not(self.namespace, tls.secretName)
                    instead = "have the default certificate" if self.draft.default else "take no TLS"
                    self.draft.note(self.model, f"{reason}; its hosts {instead}")
                return True, found
        return False, None

    def _matches(self) -> Iterator[tuple[Hostname, Match]]:
        for number, rule in enumerate(self.model.spec.rules or ()):
            for index, one in enumerate(rule.http.paths if rule.http else ()):
                exact, path = one.pathType == "Exact", decoded(one.path or "/")
                action = self._action(f"rules[{number}].http.paths[{index}]", self._target(one.backend))
                yield Hostname(name=rule.host or ""), Match(
                    path=path if exact else path.rstrip("/") or "/", exact=exact, action=action,
                    rank=(*self.rank, number, index),
                )  # fmt: skip

    def _action(self, where: str, target: Target) -> Action:
        rewrite = self.options.get("rewrite-target")
        change = PathChange(prefix=None, value=decoded(rewrite)) if rewrite else None
        return Action(origin=f"{self.title} {where}", targets=(target,), path=change)

    def _target(self, backend: Any) -> Target:
        if backend.service is None:
            self.draft.note(self.model, f"the backend {backend.resource.kind} is not a Service; it gets 503")
            return Target(status=503)
        name, port = backend.service.name, backend.service.port.name or backend.service.port.number
        reason = self.draft.no_backend(self.namespace, name, port)
        if reason:
            self.draft.note(self.model, f"{reason}; it is answered with 503")
        return self.draft.target(self.namespace, name, port, missing=503)

    # -- a canary --------------------------------------------------------------------------

    def share(self) -> None:
        """Take a share of the requests for the same hosts and paths of other Ingresses."""
        for host, match in self._matches():
            found = [
                (each.matches, index, one)
                for (_, name), each in self.draft.hosts.items() if name == host
                for index, one in enumerate(each.matches)
                if (one.path, one.exact, one.conditions) == (match.path, match.exact, ())
                and one.action.origin.startswith("Ingress ")
            ]  # fmt: skip
            if not found:
                self.draft.note(self.model, f"a canary of nothing: no other Ingress has {host.name} {match.path}")
            for matches, index, one in found:
                if len(one.action.targets) == 1:
                    matches[index : index + 1] = self._shared(one, match.action.targets[0])

    def _shared(self, main: Match, canary: Target) -> list[Match]:
        total = int(self.options.get("canary-weight-total", "100"))
        weight = min(int(self.options.get("canary-weight", "0")), total)
        stable = main.action.targets[0]
        both = (replace(stable, weight=total - weight), replace(canary, weight=weight))

        def to(*targets: Target, value: str = "") -> Match:
            conditions = (Condition(what="header", name=header, value=value),) if value else ()
            return replace(main, conditions=conditions, action=replace(main.action, targets=targets))

        header = self.options.get("canary-by-header", "").lower()
        by_header = [to(canary, value="always"), to(stable, value="never")] if header else []
        return [*by_header, to(*both)]
