"""Ingresses and routes as a model, and the model as nginx's configuration: no nginx runs here."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from k8snet import cli
from k8snet.cluster.edge_checks import ANNOTATIONS
from k8snet.cluster.manifests import parse as load
from k8snet.controllers.ingress import model as m
from k8snet.controllers.ingress.edge import build
from k8snet.controllers.ingress.nginx import FORWARDED, render, tree
from k8snet.errors import InvalidInput, InvalidManifest
from tests.nginx_conf import parse, skeleton

HOSTILE = [
    'a"; } server { listen 81; } #', "a; return 200 x", "/x{y}", "/$host", "/${dollar}", "/a\\", "/a\\\"b", "/a'b", "#",
    "", "/x\n}\nserver {", "/x\r", "/a\tb", "/a b", "/%22;%7D", "/%0a", "/%24host", "/%5C%22", "/..;/", "~^/x",
    "@rule_1", "default", "include", "hostnames", "volatile", "~*.", "/é", "\x00", "/%3f", "/%ff", "/" + "a" * 5000,
    "a.example", "*.a.example", "a.example;", "*", "*.*.a", "A.example", "1.2.3.4", "a..b", "/a/b", "$1", "/$1", "http://x/",
    "true", "50",
]  # fmt: skip


def service(name, *ports, namespace="default", ip="10.96.0.30", **more):
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": ip, "ports": [{"name": f"p{one}", "port": one} for one in ports or (80,)], **more},
    }  # fmt: skip


def backend(name="web", port=80):
    return {"service": {"name": name, "port": {"name": port} if isinstance(port, str) else {"number": port}}}


def ingress(paths=(), *, name="web", host="a.example", annotations=None, namespace="default", **spec):
    """Return an Ingress; a path is (path, type, Service)."""
    found = [{"path": path, "pathType": kind, "backend": backend(to)} for path, kind, to in paths]
    rules = {"rules": [{**({"host": host} if host else {}), "http": {"paths": found}}]} if found else {}
    return {
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "spec": {**rules, **spec},
        "metadata": {"name": name, "namespace": namespace, "annotations": annotations or {}},
    }  # fmt: skip


def gateway(*listeners, namespace="default", name="edge"):
    listeners = listeners or ({"name": "http", "port": 80, "protocol": "HTTP"},)
    return {
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"gatewayClassName": "k8snet", "listeners": list(listeners)},
    }  # fmt: skip


def route(*rules, name="web", hosts=("a.example",), namespace="default", parents=({"name": "edge"},)):
    return {
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"parentRefs": list(parents), "hostnames": list(hosts), "rules": list(rules)},
    }  # fmt: skip


def objects(*documents):
    return load(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(documents)})).objects


def edge_of(*documents, **options):
    return build(objects(*documents, *[service(name) for name in ("web", "api")]), **{"guess": True, **options})


def host_of(edge, name, port=80):
    return next(one for one in edge.hosts if (one.host.name, one.port) == (name, port))


def goes(edge, host, path, port=80):
    """Return where the location that nginx would choose sends a request first: longest prefix, unless one is exact."""
    found = m.locations(host_of(edge, host, port).matches)
    exact = [one for one in found if one.exact and one.path == path]
    below = [one for one in found if not one.exact and path.startswith(one.path)]
    chosen = (exact or sorted(below, key=lambda one: len(one.path)))[-1]
    return chosen.matches[0].action.targets[0].upstream.split(".")[1] if chosen.matches else None


# -- paths of an Ingress ---------------------------------------------------------------------

# https://kubernetes.io/docs/concepts/services-networking/ingress/ , "Examples": type, paths, request, does it match
EXAMPLES = [
    ("Prefix", ["/"], "/any/path", "/"),
    ("Exact", ["/foo"], "/foo", "/foo"),
    ("Exact", ["/foo"], "/bar", None),
    ("Exact", ["/foo"], "/foo/", None),
    ("Exact", ["/foo/"], "/foo", None),
    ("Prefix", ["/foo"], "/foo", "/foo"),
    ("Prefix", ["/foo"], "/foo/", "/foo"),
    ("Prefix", ["/foo/"], "/foo", "/foo/"),
    ("Prefix", ["/foo/"], "/foo/", "/foo/"),
    ("Prefix", ["/aaa/bb"], "/aaa/bbb", None),
    ("Prefix", ["/aaa/bbb"], "/aaa/bbb", "/aaa/bbb"),
    ("Prefix", ["/aaa/bbb/"], "/aaa/bbb", "/aaa/bbb/"),
    ("Prefix", ["/aaa/bbb"], "/aaa/bbb/", "/aaa/bbb"),
    ("Prefix", ["/aaa/bbb"], "/aaa/bbb/ccc", "/aaa/bbb"),
    ("Prefix", ["/aaa/bbb"], "/aaa/bbbxyz", None),
    ("Prefix", ["/", "/aaa"], "/aaa/ccc", "/aaa"),
    ("Prefix", ["/", "/aaa", "/aaa/bbb"], "/aaa/bbb", "/aaa/bbb"),
    ("Prefix", ["/", "/aaa", "/aaa/bbb"], "/ccc", "/"),
    ("Prefix", ["/aaa"], "/ccc", None),
]


@pytest.mark.parametrize(("kind", "paths", "asked", "found"), EXAMPLES)
def test_paths_match_as_the_table_of_the_documentation_says(kind, paths, asked, found):
    names = {path: f"s{number}" for number, path in enumerate(paths)}
    edge = build(objects(
        ingress([(path, kind, name) for path, name in names.items()]), *[service(name) for name in names.values()]
    ), guess=True)  # fmt: skip
    assert goes(edge, "a.example", asked) == (names[found] if found else None)


def test_an_exact_path_goes_before_a_prefix_of_its_length_and_a_longer_prefix_before_both():
    edge = edge_of(ingress([("/foo", "Prefix", "web"), ("/foo", "Exact", "api"), ("/foo/bar", "Prefix", "api")]))
    asked = ("/foo", "/foo/", "/foo/bar", "/foo/barx")
    assert [goes(edge, "a.example", one) for one in asked] == ["api", "web", "api", "web"]


def test_of_two_ingresses_with_one_path_the_older_has_it():
    young = ingress([("/", "Prefix", "web")], name="a")
    young["metadata"]["creationTimestamp"] = "2026-02-02T00:00:00Z"
    old = ingress([("/", "Prefix", "api")], name="b")
    old["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    assert goes(edge_of(young, old), "a.example", "/") == goes(edge_of(old, young), "a.example", "/") == "api"
    old["metadata"].pop("creationTimestamp")
    young["metadata"].pop("creationTimestamp")
    assert goes(edge_of(old, young), "a.example", "/") == "web"  # of equal age by name


def test_a_path_of_the_controllers_own_kind_is_a_prefix_and_may_be_left_out():
    edge = edge_of(ingress([("/x", "ImplementationSpecific", "web")]))
    assert (goes(edge, "a.example", "/x/y"), goes(edge, "a.example", "/xy")) == ("web", None)
    bare = ingress([("/", "ImplementationSpecific", "api")])
    del bare["spec"]["rules"][0]["http"]["paths"][0]["path"]
    assert goes(edge_of(bare), "a.example", "/x") == "api"


def test_percent_encoded_paths_are_compared_decoded():
    """As nginx does with the path of a request."""
    edge = edge_of(ingress([("/a%20b/%C3%A9", "Exact", "web"), ("/%24x", "Prefix", "api")]))
    assert (goes(edge, "a.example", "/a b/é"), goes(edge, "a.example", "/$x")) == ("web", "api")


# -- hosts -------------------------------------------------------------------------------------


def names_of(text):
    http = next(block for words, block in parse(text) if words == ("http",))
    servers = [block for words, block in http if words == ("server",)]
    return [next(words[1] for words, _ in block if words[0] == "server_name") for block in servers]


def test_a_wildcard_of_an_ingress_is_one_label_and_one_of_a_route_any_number():
    rule = {"backendRefs": [{"name": "web", "port": 80}]}
    edge = edge_of(
        ingress([("/", "Prefix", "web")], host="*.a.example"), gateway(),
        route(rule, hosts=["*.a.example", "*.b.a.example", "x.a.example"]),
    )  # fmt: skip
    assert names_of(render(edge)) == [
        "x.a.example", r"~^.+\.b\.a\.example\z", r"~^[^.]+\.a\.example\z", r"~^.+\.a\.example\z", "_",
    ]  # fmt: skip


@pytest.mark.parametrize(("wide", "narrow", "holds"), [
    (("*.a.example", False), ("x.a.example", False), True), (("*.a.example", False), ("y.x.a.example", False), False),
    (("*.a.example", True), ("y.x.a.example", True), True), (("*.a.example", True), ("a.example", True), False),
    (("", True), ("*.a.example", True), True), (("*.a.example", True), ("", True), False),
    (("*.a.example", True), ("*.x.a.example", True), True), (("*.x.a.example", True), ("*.a.example", True), False),
    (("a.example", True), ("a.example", True), True), (("*.a.example", False), ("*.a.example", True), False),
])  # fmt: skip
def test_a_hostname_holds_those_that_say_more(wide, narrow, holds):
    assert m.Hostname(name=wide[0], deep=wide[1]).holds(m.Hostname(name=narrow[0], deep=narrow[1])) is holds


def test_a_default_backend_is_for_paths_and_hosts_without_a_rule():
    edge = edge_of(ingress([("/x", "Prefix", "web")], defaultBackend=backend("api")))
    assert [goes(edge, host, path) for host, path in (("a.example", "/x"), ("a.example", "/y"), ("", "/x"))] == [
        "web", "api", "api",
    ]  # fmt: skip
    bare = ingress(rules=[{"host": "c.example"}], defaultBackend=backend("api"))  # a rule without paths
    assert goes(edge_of(bare), "c.example", "/x") == "api"
    other = ingress([("/x", "Prefix", "web")], host="b.example", name="b", namespace="default")
    assert goes(edge_of(ingress(defaultBackend=backend("api"), name="all"), other), "b.example", "/y") is None


# -- classes -----------------------------------------------------------------------------------


def ingress_class(name, *, controller="k8snet.example/k8snet", default=False):
    annotations = {"ingressclass.kubernetes.io/is-default-class": "true"} if default else {}
    return {
        "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "spec": {"controller": controller},
        "metadata": {"name": name, "annotations": annotations},
    }  # fmt: skip


@pytest.mark.parametrize(("spec", "annotation", "classes", "ours"), [
    ("k8snet", None, [], True), ("nginx", None, [], False), (None, None, [], False), (None, "k8snet", [], True),
    (None, "nginx", [], False), (None, None, [ingress_class("k8snet", default=True)], True),
    (None, None, [ingress_class("k8snet")], False), ("mine", None, [ingress_class("mine")], True),
    ("mine", None, [ingress_class("mine", controller="k8s.io/ingress-nginx")], False),
    (None, None, [ingress_class("k8snet"), ingress_class("x", controller="x.example/y", default=True)], False),
    ("nginx", None, [ingress_class("k8snet", default=True)], False), ("nginx", "k8snet", [], True),
])  # fmt: skip
def test_an_ingress_is_served_if_its_class_is_ours(spec, annotation, classes, ours):
    one = ingress(
        [("/", "Prefix", "web")], annotations={"kubernetes.io/ingress.class": annotation} if annotation else {},
        **({"ingressClassName": spec} if spec else {}),
    )  # fmt: skip
    assert bool(edge_of(one, *classes, name="k8snet").hosts) is ours
    assert edge_of(one, *classes, name=None).hosts


# -- backends ----------------------------------------------------------------------------------


def endpoints(name, *, namespace="default", addresses=("10.244.1.2",), kind="IPv4", ready=True):
    return {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
        "metadata": {"name": f"{name}-{kind.lower()}", "namespace": namespace,
                     "labels": {"kubernetes.io/service-name": name}},
        "ports": [{"name": "p80", "port": 8080}],
        "endpoints": [{"addresses": [one], "conditions": {"ready": ready}} for one in addresses],
    }  # fmt: skip


def test_upstreams_are_the_ready_endpoints_of_the_port_or_the_cluster_ip():
    slices = [
        endpoints("web", addresses=["10.244.2.3", "10.244.1.2"]), endpoints("web", kind="IPv6", addresses=["fd00::2"])
    ]
    rule = ingress([("/", "Prefix", "web")])
    assert edge_of(rule, *slices).upstreams[0].servers == ("10.244.1.2:8080", "10.244.2.3:8080")
    assert edge_of(rule, *slices, upstreams="service").upstreams[0].servers == ("10.96.0.30:80",)
    assert edge_of(rule, slices[1]).upstreams[0].servers == ("[fd00::2]:8080",)
    assert edge_of(rule).upstreams[0].servers == ("10.96.0.30:80",)  # nothing is known of its pods
    assert edge_of(rule, guess=False).upstreams == ()


def answer(edge, host="a.example", port=80):
    return host_of(edge, host, port).matches[0].action.targets


def test_backends_that_are_not_there_are_answered_as_each_api_says():
    """Ingress: 503, as ingress-nginx does. Gateway API: 500 for what is missing, 503 for what has no endpoints."""
    idle = endpoints("web", ready=False)
    for one in (ingress([("/", "Prefix", "nope")]), ingress([("/", "Prefix", "web")])):
        assert [each.status for each in answer(edge_of(one, idle))] == [503]
    ref = {"name": "web", "port": 80}
    for refs, statuses in (
        ([ref], [503]), ([{"name": "nope", "port": 80}], [500]), ([{"name": "web", "port": 81}], [500]), ([], [500]),
        ([{**ref, "kind": "ConfigMap"}], [500]), ([{**ref, "namespace": "x"}], [500]),
    ):  # fmt: skip
        found = edge_of(gateway(), route({"backendRefs": refs}), idle)
        assert [each.status for each in answer(found)] == statuses
        assert bool(found.notes) is (statuses == [500] and bool(refs))


def test_a_port_is_found_by_name_or_number_and_an_external_name_is_no_backend():
    one = ingress([("/", "Prefix", "web")])
    one["spec"]["rules"][0]["http"]["paths"][0]["backend"] = backend("two", "p8080")
    assert edge_of(one, service("two", 80, 8080)).upstreams[0].name == "default.two.8080"
    alias = service("web2", type="ExternalName", externalName="evil.example")
    found = edge_of(ingress([("/", "Prefix", "web2")]), alias)
    assert answer(found)[0].status == 503
    assert "could lead anywhere" in found.notes[0]


# -- annotations -------------------------------------------------------------------------------

NGINX = "nginx.ingress.kubernetes.io/"


def test_what_is_not_understood_of_annotations_is_said_and_snippets_never_arrive():
    edge = edge_of(ingress([("/", "Prefix", "web")], annotations={
        f"{NGINX}server-snippet": "return 200 pwned;", f"{NGINX}proxy-body-size": "8m", "example.com/x": "}",
    }))  # fmt: skip
    assert edge.notes == (
        f"Ingress default/web: annotation {NGINX}server-snippet is ignored",
        f"Ingress default/web: annotation {NGINX}proxy-body-size is ignored",
    )
    assert "pwned" not in render(edge)


def test_a_canary_takes_its_share_of_the_path_of_another_ingress():
    canary = {f"{NGINX}canary": "true", f"{NGINX}canary-weight": "20"}
    main = ingress([("/", "Prefix", "web")])
    edge = edge_of(main, ingress([("/", "Prefix", "api")], name="canary", annotations=canary))
    assert [(one.upstream, one.weight) for one in answer(edge)] == [("default.web.80", 80), ("default.api.80", 20)]
    text = render(edge)
    assert "split_clients $request_id $share_1 {\n        20% default.api.80;\n        * default.web.80;" in text
    lonely = edge_of(ingress([("/y", "Prefix", "api")], name="canary", annotations=canary), main)
    assert "canary of nothing" in lonely.notes[0]
    by_header = edge_of(main, ingress([("/", "Prefix", "api")], name="canary", annotations={
        **canary, f"{NGINX}canary-by-header": "X-Canary", f"{NGINX}canary-weight-total": "200",
    }))  # fmt: skip
    found = host_of(by_header, "a.example").matches
    assert [([each.value for each in one.conditions], len(one.action.targets)) for one in found] == [
        (["always"], 1), (["never"], 1), ([], 2),
    ]  # fmt: skip
    assert found[2].action.targets[0].weight == 180


def test_shares_are_hundredths_of_a_percent_and_the_largest_has_the_rest():
    refs = [{"name": "web", "port": 80, "weight": weight} for weight in (1_000_000, 1, 0, 333_333)]
    text = render(edge_of(gateway(), route({"backendRefs": refs})))
    shares = [line.split()[0] for line in text[text.index("split_clients") :].splitlines()[1:4]]
    assert shares == ["0.01%", "25%", "*"]
    assert answer(edge_of(gateway(), route({"backendRefs": [{**refs[0], "weight": 0}]})))[0].weight == 0
    assert "return 500" in render(edge_of(gateway(), route({"backendRefs": [{**refs[0], "weight": 0}]})))


def test_hosts_with_tls_are_redirected_to_it_unless_they_shall_not_be():
    """Without a certificate for it a host has the default one; where there is none it takes no handshake."""
    tls = [{"hosts": ["a.example"], "secretName": "nope"}]
    for options, redirected in (({}, True), ({f"{NGINX}ssl-redirect": "false"}, False)):
        edge = edge_of(ingress([("/", "Prefix", "web")], tls=tls, annotations=options))
        assert bool(host_of(edge, "a.example").matches[0].action.redirect) is redirected
        assert host_of(edge, "a.example", 443).matches[0].action.targets[0].upstream == "default.web.80"
        assert "ssl_reject_handshake on;" in render(edge)
        assert "there is no Secret default/nope" in edge.notes[0]
    forced = edge_of(ingress([("/", "Prefix", "web")], annotations={f"{NGINX}force-ssl-redirect": "true"}))
    assert "return 308 https://$host$request_uri;" in render(forced)
    assert edge_of(ingress([("/", "Prefix", "web")])).ports == {80: False}


def test_a_secret_that_is_no_certificate_is_not_shown_to_nginx():
    """It would refuse the configuration of everybody else, too."""
    secret = {
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "type": "kubernetes.io/tls",
        "stringData": {"tls.crt": "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----", "tls.key": "y"},
    }  # fmt: skip
    edge = edge_of(secret, ingress([("/", "Prefix", "web")], tls=[{"hosts": ["a.example"], "secretName": "s"}]))
    assert edge.certificates == ()
    assert "no certificate and key in PEM" in edge.notes[0]


# -- routes ------------------------------------------------------------------------------------


def match(path=None, kind="PathPrefix", **more):
    return {**({"path": {"type": kind, "value": path}} if path else {}), **more}


def header(value, name="X-V"):
    return {"headers": [{"name": name, "value": value}]}


def rule(*matches, to="web", **more):
    return {"matches": list(matches), "backendRefs": [{"name": to, "port": 80}], **more}


def test_rules_of_routes_are_in_the_order_of_the_specification():
    """Exact, longest prefix, method, most headers, most parameters; then the oldest route, its name, its first rule."""
    query = {"queryParams": [{"name": "q", "value": "1"}]}
    matches = [
        match("/a"), match("/a", **query), match("/a", **header("1")), match("/a", method="GET"), match("/a/b"),
        match("/a", "Exact"), match("/a", headers=[*header("1")["headers"], *header("2", "X-W")["headers"]]),
    ]  # fmt: skip
    found = host_of(edge_of(gateway(), route(rule(*matches))), "a.example").matches
    assert [one.rank[-1] for one in found] == [4, 5, 3, 6, 2, 1, 0]
    first, second = rule(match("/a"), to="web"), rule(match("/a"), to="api")
    assert goes(edge_of(gateway(), route(first, second)), "a.example", "/a") == "web"
    older = route(second, name="z")
    older["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    young = route(first, name="a")
    young["metadata"]["creationTimestamp"] = "2026-01-02T00:00:00Z"
    assert goes(edge_of(gateway(), young, older), "a.example", "/a") == "api"
    assert goes(edge_of(gateway(), route(second, name="b"), route(first, name="a")), "a.example", "/a") == "web"


def test_a_request_that_fulfils_no_condition_falls_to_the_next_shorter_path():
    edge = edge_of(gateway(), route(rule(match("/a/b", **header("1"))), rule(match("/a"), to="api")))
    found = host_of(edge, "a.example")
    below = next(one for one in m.locations(found.matches) if one.path == "/a/b/")
    assert [one.action.targets[0].upstream for one in below.matches] == ["default.web.80", "default.api.80"]


LISTENERS = [
    {"name": "all", "port": 80, "protocol": "HTTP"},
    {"name": "wild", "port": 80, "protocol": "HTTP", "hostname": "*.a.example"},
    {"name": "one", "port": 80, "protocol": "HTTP", "hostname": "x.a.example"},
]


def test_a_host_belongs_to_the_listener_that_says_most_of_it():
    to_all = route(rule(), hosts=[], parents=[{"name": "edge", "sectionName": "all"}])
    edge = edge_of(gateway(*LISTENERS), to_all)
    assert {one.host.name: len(one.matches) for one in edge.hosts} == {"": 1, "*.a.example": 0, "x.a.example": 0}
    named = route(rule(), hosts=["y.a.example", "b.example"], parents=[{"name": "edge", "sectionName": "all"}])
    edge = edge_of(gateway(*LISTENERS), named)
    assert {one.host.name: len(one.matches) for one in edge.hosts if one.matches} == {"b.example": 1}
    everywhere = edge_of(gateway(*LISTENERS), route(rule(), hosts=["*.a.example"]))
    assert [one.host.name for one in everywhere.hosts if one.matches] == ["x.a.example", "*.a.example"]


def status_of(edge, name="web", namespace="default"):
    return edge.statuses["HTTPRoute", namespace, name]["parents"][0]["conditions"]


def test_a_gateway_takes_routes_from_the_namespaces_that_it_allows():
    def taken(allowed, namespace="shop", **more):
        listener = {**LISTENERS[0], **({"allowedRoutes": {"namespaces": allowed}} if allowed else {}), **more}
        parent = {"name": "edge", "namespace": "default"}
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "a"}}}
        edge = edge_of(gateway(listener), route(rule(), namespace=namespace, parents=[parent]), space)
        return status_of(edge, namespace=namespace)[0]["reason"]

    assert taken(None) == taken({"from": "Same"}) == taken({"from": "None"}) == "NotAllowedByListeners"
    assert taken(None, "default") == taken({"from": "All"}) == "Accepted"
    assert taken({"from": "Selector", "selector": {"matchLabels": {"team": "a"}}}) == "Accepted"
    assert taken({"from": "Selector", "selector": {"matchLabels": {"team": "b"}}}) == "NotAllowedByListeners"
    assert taken(None, "default", hostname="b.example") == "NoMatchingListenerHostname"
    assert taken(None, "default", allowedRoutes={"kinds": [{"kind": "GRPCRoute"}]}) == "NotAllowedByListeners"


def grant(kind="HTTPRoute", to="Service", name=None, source="default", namespace="shop"):
    return {
        "apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "ReferenceGrant",
        "metadata": {"name": "g", "namespace": namespace},
        "spec": {"from": [{"group": "gateway.networking.k8s.io", "kind": kind, "namespace": source}],
                 "to": [{"group": "", "kind": to, **({"name": name} if name else {})}]},
    }  # fmt: skip


@pytest.mark.parametrize(("found", "allowed"), [
    ([], False), ([grant()], True), ([grant(name="web")], True), ([grant(name="other")], False),
    ([grant(source="other")], False), ([grant(to="Secret")], False), ([grant(kind="GRPCRoute")], False),
    ([grant(namespace="default")], False),
])  # fmt: skip
def test_another_namespaces_service_is_used_only_where_a_grant_says_so(found, allowed):
    refs = {"backendRefs": [{"name": "web", "namespace": "shop", "port": 80}]}
    edge = edge_of(gateway(), route(refs), service("web", namespace="shop"), *found)
    assert (answer(edge)[0].upstream == "shop.web.80") is allowed
    assert status_of(edge)[1]["reason"] == ("ResolvedRefs" if allowed else "RefNotPermitted")


def test_listeners_that_cannot_work_say_why_and_leave_the_others_alone():
    tls = {"name": "tls", "port": 443, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "nope"}]}}
    edge = edge_of(
        gateway(LISTENERS[0], tls, {"name": "tcp", "port": 9, "protocol": "TCP"}, {**tls, "name": "c", "port": 80}),
        route(rule(), hosts=[]),
    )  # fmt: skip
    states = edge.statuses["Gateway", "default", "edge"]["listeners"]
    assert [(one["conditions"][0]["reason"], one["attachedRoutes"]) for one in states] == [
        ("Programmed", 1), ("InvalidCertificateRef", 0), ("UnsupportedProtocol", 0), ("ProtocolConflict", 0),
    ]  # fmt: skip
    assert edge.ports == {80: False}
    assert len(edge.notes) == 3


@pytest.mark.parametrize(("filters", "line"), [
    ({"scheme": "https"}, "return 302 https://$host$request_uri;"),
    ({"port": 8443, "scheme": "https", "statusCode": 301}, "return 301 https://$host:8443$request_uri;"),
    ({"hostname": "b.example"}, "return 302 http://b.example:8080$request_uri;"),
    ({"path": {"type": "ReplaceFullPath", "replaceFullPath": "/x%20$y"}},
     'return 302 "http://$host:8080/x%20${dollar}y$is_args$args";'),
    ({"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new/"}},
     'rewrite "(?s)^/old(/.*)?\\\\z" http://$host:8080/new$1 redirect;'),
    ({"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}, "statusCode": 301},
     'rewrite "(?s)^/old/*(.*)\\\\z" http://$host:8080/$1 permanent;'),
    ({"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}, "statusCode": 307}, "return 500;"),
])  # fmt: skip
def test_redirects_name_scheme_host_port_and_path_as_the_specification_says(filters, line):
    listener = {"name": "http", "port": 8080, "protocol": "HTTP"}
    one = {"matches": [match("/old")], "filters": [{"type": "RequestRedirect", "requestRedirect": filters}]}
    assert f" {line}\n" in render(edge_of(gateway(listener), route(one)))


def test_a_route_to_a_gateway_that_is_not_there_says_so():
    edge = edge_of(route(rule()))
    assert (edge.hosts, edge.notes) == ((), ("HTTPRoute default/web: there is no Gateway default/edge",))


def test_what_a_filter_cannot_do_here_is_answered_with_500_and_never_left_out():
    mirror = {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "api", "port": 80}}}
    edge = edge_of(gateway(), route(rule(filters=[mirror])))
    assert answer(edge)[0].status == 500
    assert "filter RequestMirror is not supported" in edge.notes[0]


def test_header_filters_keep_what_a_backend_is_told_of_the_client():
    added = [{"name": "X-A", "value": "b$c"}]
    change = {"set": [{"name": "x-real-ip", "value": "mine"}], "add": added, "remove": ["X-Z"]}
    filters = [
        {"type": "RequestHeaderModifier", "requestHeaderModifier": change},
        {"type": "ResponseHeaderModifier", "responseHeaderModifier": change},
        {"type": "URLRewrite", "urlRewrite": {"hostname": "inner.example"}},
    ]
    text = render(edge_of(gateway(), route(rule(filters=filters))))
    body = text[text.index("# HTTPRoute") :]
    for line in (
        "proxy_set_header x-real-ip mine;", "proxy_set_header Host inner.example;", "proxy_set_header X-A $added_1;",
        'proxy_set_header X-Z "";', "proxy_set_header X-Forwarded-For $remote_addr;", "proxy_hide_header X-Z;",
        'add_header X-A "b${dollar}c" always;',
    ):  # fmt: skip
        assert body.count(f" {line}\n") == 1
    assert "X-Real-IP" not in body


# -- nothing gets out of its word --------------------------------------------------------------


def plain(directives):
    return [(one.words, None if one.block is None else plain(one.block)) for one in directives]


def test_the_text_says_what_the_tree_says():
    text = render(full_edge("/x"))
    assert parse(text) == plain(tree(full_edge("/x")))
    assert text == render(full_edge("/x"))


def full_edge(word, *, value=None, host="h.example", origin="a"):
    """Return an Edge with a word in every place that something of a manifest can get to, past all checks."""
    value = word if value is None else value
    conditions = tuple(m.Condition(what=what, name=name, value=value) for what, name in (
        ("method", ""), ("header", "x-a"), ("query", value),
    ))  # fmt: skip
    headers = tuple(
        m.HeaderChange(what=what, name=value, value=value, response=response)
        for what in ("set", "remove") for response in (False, True)
    )  # fmt: skip
    targets = (m.Target(upstream="u", weight=3), m.Target(status=503, weight=1))
    change, full = m.PathChange(prefix=f"/{word}", value=f"/{value}"), m.PathChange(prefix=None, value=f"/{value}")
    actions = [
        m.Action(origin="a", targets=targets, path=change, headers=headers, host=value),
        m.Action(origin=origin, targets=targets[:1], path=full),
        m.Action(origin="c", redirect=m.Redirect(path=change, host=value)),
        m.Action(origin="d", redirect=m.Redirect(path=full, host=value)),
    ]
    matches = [m.Match(path=f"/{word}/{n}", action=one, exact=bool(n % 2)) for n, one in enumerate(actions)]
    matches.append(m.Match(path=f"/{word}", action=actions[0], conditions=conditions))
    hosts = tuple(
        m.VirtualHost(port=80, host=m.Hostname(name=one, deep=True), matches=m.ordered(matches))
        for one in dict.fromkeys([host, f"*.{host}"])
    )
    return m.Edge(ports={80: False}, hosts=hosts, upstreams=(m.Upstream(name="u", servers=("10.0.0.1:80",)),))


@settings(max_examples=300, deadline=None)
@given(word=st.text(max_size=40).map(lambda text: text.replace("/", "")))
@example('"; } server { listen 81; } #')
@example("${dollar}\\")
@example("\\")
@example("a\\\"b'c{d}e;f#g")
@example("\n}\n")
def test_the_renderer_alone_lets_nothing_out_of_its_word(word):
    """The loader has refused most of these before; this is the second door."""
    try:
        text = render(full_edge(f"p{word}", host=f"h{word}"))
    except InvalidInput:
        assert any(ord(sign) < 32 or ord(sign) == 127 for sign in word)
        return
    assert skeleton(parse(text)) == skeleton(parse(render(full_edge("plain", host="hplain"))))
    assert parse(text) == plain(tree(full_edge(f"p{word}", host=f"h{word}")))


@pytest.mark.parametrize("sign", ["\n", "\r", "\t", "\0", "\x1b", "\x7f"])
def test_a_control_character_is_never_written(sign):
    """In a comment a line break would end it; elsewhere terminals and nginx would see something else than we do."""
    for edge in (full_edge(f"p{sign}", host="h.example"), full_edge("p", host="h.example", origin=f"a{sign}b")):
        with pytest.raises(InvalidInput, match="has a control character"):
            render(edge)


@pytest.mark.parametrize("word", ["$host", "${host}", "$http_cookie", "$$x", "a$1", "$document_root"])
def test_a_dollar_of_a_manifest_is_a_dollar_and_no_variable(word):
    words = [
        one for directive in flat(tree(full_edge("p", value=word, host="h.example"))) for one in directive[2:]
        if directive[0] in {"proxy_set_header", "add_header", "rewrite", "return"}
    ]  # fmt: skip
    values = [one for one in words if "$" in one]
    assert sum("${dollar}" in one for one in values) >= 4
    own = {*FORWARDED.values(), "$dollar", "$1", "$is_args", "$args", "$scheme"}
    assert {f"${a or b}" for one in values for a, b in re.findall(r"\$(?:\{(\w+)\}|(\w+))", one)} <= own


def flat(directives):
    for one in directives:
        yield one.words
        yield from flat(one.block or ())


PLACES = {
    "host": lambda word: ingress([("/", "Prefix", "web")], host=word),
    "tls host": lambda word: ingress([("/", "Prefix", "web")], tls=[{"hosts": [word]}]),
    "path": lambda word: ingress([(word, "Prefix", "web")]),
    "exact path": lambda word: ingress([(word, "Exact", "web")]),
    "service": lambda word: ingress([("/", "Prefix", word)]),
    "port": lambda word: ingress(defaultBackend=backend("web", str(word))),
    "class": lambda word: ingress([("/", "Prefix", "web")], ingressClassName=word),
    "secret": lambda word: ingress([("/", "Prefix", "web")], tls=[{"secretName": word}]),
    "name": lambda word: ingress([("/", "Prefix", "web")], name=word),
    **{
        f"annotation {key}": lambda word, key=key: ingress(
            [("/", "Prefix", "web")], annotations={f"{NGINX}{key}": word, f"{NGINX}canary-weight": "5"}
        )
        for key in (*ANNOTATIONS, "server-snippet", "x")
    },
    "listener": lambda word: gateway({"name": "http", "port": 80, "protocol": "HTTP", "hostname": word}),
    "hostname": lambda word: route(rule(), hosts=[word]),
    "route path": lambda word: route(rule(match(word))),
    "header name": lambda word: route(rule(match(**header("1", word)))),
    "header value": lambda word: route(rule(match(**header(word)))),
    "query name": lambda word: route(rule(match(queryParams=[{"name": word, "value": "1"}]))),
    "query value": lambda word: route(rule(match(queryParams=[{"name": "q", "value": word}]))),
    "method": lambda word: route(rule(match(method=word))),
    "set header": lambda word: route(rule(filters=[
        {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "X-A", "value": word}]}}])),
    "header's name": lambda word: route(rule(filters=[
        {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"add": [{"name": word, "value": "1"}]}}])),
    "redirect host": lambda word: route(rule(filters=[
        {"type": "RequestRedirect", "requestRedirect": {"hostname": word}}])),
    "redirect path": lambda word: route(rule(filters=[{"type": "RequestRedirect", "requestRedirect": {
        "path": {"type": "ReplaceFullPath", "replaceFullPath": word}}}])),
    "rewrite": lambda word: route(rule(match("/x"), filters=[{"type": "URLRewrite", "urlRewrite": {
        "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": word}}}])),
    "rewrite host": lambda word: route(rule(filters=[{"type": "URLRewrite", "urlRewrite": {"hostname": word}}])),
}  # fmt: skip
GOOD = {  # a word that each place takes
    "host": "b.example", "tls host": "a.example", "listener": "*.example", "hostname": "a.example", "method": "GET",
    "redirect host": "b.example", "rewrite host": "b.example", "header name": "X-B", "header's name": "X-B",
    "annotation ssl-redirect": "true", "annotation canary": "false", "annotation canary-weight": "5",
    "annotation canary-by-header": "X-B", "annotation canary-weight-total": "50",
    "annotation force-ssl-redirect": "true", "service": "web", "name": "web", "query name": "q$",
}  # fmt: skip


def edge_with(place, word):
    documents = [PLACES[place](word), *([] if place == "listener" else [gateway()])]
    return edge_of(*documents, *([route(rule(), hosts=[])] if place == "listener" else []))


@pytest.mark.parametrize("place", PLACES)
def test_a_good_word_is_taken_in_each_place(place):
    assert parse(render(edge_with(place, GOOD.get(place, "/x"))))


def words_that_matter(place):
    signs = st.text(alphabet="ab/.*-\"'\\{}$;#~^@%0247dD\n\r\t \x00é:?&=", max_size=12)
    return st.one_of(st.sampled_from(HOSTILE), signs, st.text(max_size=12), signs.map("/".__add__))


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_hostile_word_of_a_manifest_is_refused_or_stays_a_word(place, data):
    """What comes through the loader has the directives that a harmless word has, and each is what the tree says."""
    word = data.draw(words_that_matter(place))
    try:
        edge = edge_with(place, word)
    except InvalidManifest:
        return
    text = render(edge)
    assert parse(text) == plain(tree(edge))
    allowed = {"daemon", "worker_processes", "worker_shutdown_timeout", "pid", "error_log", "events", "http"}
    assert {words[0] for words, _ in parse(text)} == allowed
    inside = {words[0] for words, block in parse(text) if words == ("http",) for words in flat_names(block)}
    assert inside <= DIRECTIVES
    assert "pwned" not in text


def flat_names(block):
    for words, inner in block:
        if words[0] in {"map", "split_clients", "geo"}:  # what is in these are values
            yield words[:1]
        else:
            yield words[:1]
            yield from flat_names(inner or [])


DIRECTIVES = {
    "access_log", "add_header", "client_body_temp_path", "fastcgi_temp_path", "geo", "if", "listen", "location",
    "log_format", "map", "proxy_connect_timeout", "proxy_headers_hash_bucket_size", "proxy_headers_hash_max_size",
    "proxy_hide_header", "proxy_http_version", "proxy_pass", "proxy_set_header", "proxy_temp_path", "return", "rewrite",
    "scgi_temp_path", "server", "server_name", "server_names_hash_bucket_size", "server_names_hash_max_size",
    "server_tokens", "split_clients", "ssl_certificate", "ssl_certificate_key", "ssl_protocols", "ssl_reject_handshake",
    "try_files", "upstream", "uwsgi_temp_path", "variables_hash_max_size",
}  # fmt: skip


# -- what the loader says ----------------------------------------------------------------------


@pytest.mark.parametrize(("document", "message"), [
    (ingress([("/", "Prefix", "web")], host="a b"),
     "Ingress default/web: spec.rules[0].host: 'a b' is not a host: lower-case letters, digits, '-' and '.', no addr"),
    (ingress([("x", "Prefix", "web")]), "spec.rules[0].http.paths[0].path: 'x' is not a path: it begins with /"),
    (ingress([("/a b", "Exact", "web")]), "spec.rules[0].http.paths[0].path: '/a b' is not a path"),
    (ingress([("/a//b", "Exact", "web")]), "'/a//b' is no path to compare with"),
    (ingress([("/a/..", "Prefix", "web")]), "'/a/..' is no path to compare with"),
    (ingress([("/a%0ab", "Prefix", "web")]), "what %XX stands for is not text, or it is a control character"),
    (ingress([("/a%FF", "Prefix", "web")]), "what %XX stands for is not text"),
    (ingress([("/", "Regex", "web")]), "pathType: 'Regex' is not one of: Exact, Prefix, ImplementationSpecific"),
    (ingress([("", "Prefix", "web")]), "path: is missing; a path of type Prefix begins with /"),
    (ingress(), "Ingress default/web: spec: has neither rules nor a defaultBackend"),
    (ingress(defaultBackend={}), "spec.defaultBackend: has a service or a resource, one of them"),
    (ingress(defaultBackend=backend("web", 0)), "service.port: has a name or a number, one of them"),
    (ingress([("/", "Prefix", "web")], annotations={f"{NGINX}rewrite-target": "/$1"}),
     f"metadata.annotations.{NGINX}rewrite-target: '/$1' is not a path, without $1 and its like"),
    (ingress([("/", "Prefix", "web")], annotations={f"{NGINX}canary-weight": "10;"}), "'10;' is not a whole number"),
    (gateway({"name": "a", "port": 0, "protocol": "HTTP"}), "spec.listeners[0].port: 0 is not a port"),
    (gateway({"name": "a", "port": 443, "protocol": "HTTPS"}), "spec.listeners[0].tls.certificateRefs: is missing"),
    (gateway(LISTENERS[0], LISTENERS[0]), "spec.listeners[1]: is spec.listeners[0] again"),
    (gateway({**LISTENERS[0], "hostname": "x;"}), "spec.listeners[0].hostname: 'x;' is not a host"),
    (route(rule(match("/x.*", "RegularExpression"))),
     "spec.rules[0].matches[0].path.type: RegularExpression is not supported; use Exact or PathPrefix"),
    (route(rule(match(headers=[{"name": "a", "value": "b", "type": "RegularExpression"}]))),
     "matches[0].headers[0].type: RegularExpression is not supported; use Exact"),
    (route(rule(match(queryParams=[{"name": "q", "value": "&" * 200}]))), "queryParams[0]: is too long"),
    (route(rule(match("/" + "$" * 200))), "is not a path: it begins with /, has no more than 1024 characters"),
    (route(rule(match(method="get"))), "matches[0].method: 'get' is not one of: GET"),
    (route({"backendRefs": [{"name": "web"}]}), "spec.rules[0].backendRefs[0].port: is missing"),
    (route({"backendRefs": [{"name": "web", "port": 80, "weight": -1}]}), "weight: -1 is not a weight"),
    (route({"backendRef": []}), "spec.rules[0].backendRef: unknown field of RouteRule; did you mean 'backendRefs'?"),
    (route(rule(filters=[{"type": "RequestRedirect"}])), "filters[0].requestRedirect: is missing"),
    (route(rule(filters=[{"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["Content-Length"]}}])),
     "'Content-Length' belongs to one connection; a route cannot change it"),
    (route(rule(filters=[{"type": "RequestHeaderModifier", "requestHeaderModifier": {
        "set": [{"name": "X", "value": "a\r\nY: b"}]}}])), "set[0].value: 'a\\r\\nY: b' is not 1 to 1024 printable"),
    ({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "type": "kubernetes.io/tls",
      "data": {"tls.crt": "eA=="}}, "data.tls.key: is missing; a Secret of type kubernetes.io/tls has it"),
])  # fmt: skip
def test_what_cannot_be_is_refused_with_file_object_and_field(document, message):
    with pytest.raises(InvalidManifest) as caught:
        load(json.dumps(document), name="edge.yaml")
    assert str(caught.value).startswith("edge.yaml: document 1, ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_secrets_of_other_types_are_not_used():
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "type": "Opaque", "data": {"a": "eA=="}}
    assert load(json.dumps(secret)).not_used == {"Secret": 1}


# -- the command -------------------------------------------------------------------------------


def run(tmp_path, *words, documents):
    file = tmp_path / "m.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}))
    return CliRunner().invoke(cli.app, ["ingress", "render", "-f", str(file), *words])


def test_the_command_prints_the_configuration_and_says_what_it_ignores(tmp_path):
    one = ingress([("/", "Prefix", "web")], annotations={f"{NGINX}x": "y"}, ingressClassName="a")
    documents = [service("web", ip=None), one]
    done = run(tmp_path, documents=documents)
    assert done.exit_code == 0
    assert "server 10.96.0.20:80 max_fails=0;" in done.stdout
    assert done.stderr == f"note: Ingress default/web: annotation {NGINX}x is ignored\n"
    assert parse(done.stdout)
    assert "a.example" in run(tmp_path, "--class", "a", documents=documents).stdout
    assert "a.example" not in run(tmp_path, "--class", "b", documents=documents).stdout
    assert run(tmp_path, documents=documents).stdout == done.stdout


def test_the_command_writes_a_folder_for_nginx(tmp_path):
    documents = [service("web"), ingress([("/", "Prefix", "web")])]
    done = run(tmp_path, "--output", str(tmp_path / "out"), documents=documents)
    assert (done.exit_code, done.stdout) == (0, "")
    assert "listen 80;" in (tmp_path / "out" / "nginx.conf").read_text()
    assert run(tmp_path, "--upstreams", "pods", documents=documents).exit_code == 1
