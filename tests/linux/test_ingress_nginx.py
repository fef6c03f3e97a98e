"""Rendered configurations in a real nginx: it takes every one, and routes as the two APIs say."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from k8snet.controllers.ingress.edge import build
from k8snet.controllers.ingress.nginx import render
from k8snet.errors import InvalidManifest
from k8snet.linux.run import wait_until
from tests.unit import test_ingress_render as unit
from tests.unit.test_ingress_render import NGINX, gateway, header, ingress, match, objects, route, rule, service

BACKEND = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr; events {{ }}
http {{
    access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e; default_type text/plain;
    {servers}
}}
"""
SERVER = """
    server {{
        listen 127.0.0.1:{port}; add_header X-Old gone; add_header X-Keep here;
        location / {{ return 200 '{name}|{seen}'; }}
    }}
"""
SEEN = {
    "uri": "$request_uri", "host": "$http_host", "forwarded_for": "$http_x_forwarded_for", "real_ip": "$http_x_real_ip",
    "set": "$http_x_set", "add": "$http_x_add", "gone": "$http_x_gone", "proto": "$http_x_forwarded_proto",
    "claimed": "$http_x_original_forwarded_for",
}  # fmt: skip


class Nginx:
    """An nginx with a rendered configuration, and one that plays the Services web, api and old."""

    def __init__(self, netns, folder):
        self.netns, self.folder, self.process = netns, folder, None
        self.ports = {"web": 9001, "api": 9002, "old": 9003}
        seen = "|".join(SEEN.values())
        servers = "".join(SERVER.format(name=name, port=port, seen=seen) for name, port in self.ports.items())
        self._run("backend", BACKEND.format(folder=folder / "backend", servers=servers))

    def _run(self, name, text):
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "nginx.pid").unlink(missing_ok=True)
        (folder / "nginx.conf").write_text(text)
        words = ("nginx", "-e", "stderr", "-p", str(folder), "-c", f"{folder}/nginx.conf")
        process = self.netns.popen(*words, keep_output=True)
        ready = folder / "nginx.pid"
        wait_until(lambda: ready.exists() or not process.running, what="nginx", timeout_s=20)
        assert process.running, process.output()
        return process

    def serve(self, *documents, **options):
        """Serve objects, instead of those before."""
        if self.process:
            self.process.stop()
        slices = [
            {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
             "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
             "ports": [{"name": "p80", "port": port}], "endpoints": [{"addresses": ["127.0.0.1"]}]}
            for name, port in self.ports.items()
        ]  # fmt: skip
        self.edge = build(objects(*documents, *map(service, self.ports), *slices), **options)
        self.process = self._run("edge", render(self.edge))

    def ask(self, path, *more, host="a.example", port=80):
        """Return the status of an answer, and what the backend said as a mapping; of a redirect where to."""
        form = "\n%{http_code}\n%{redirect_url}"
        words = ("curl", "-s", "--path-as-is", "-w", form, "-H", f"Host: {host}", *more, f"http://127.0.0.1:{port}{path}")
        body, status, location = self.netns.run(*words).stdout.rsplit("\n", 2)
        if status != "200":
            return int(status), location
        return 200, dict(zip(("name", *SEEN), body.split("|"), strict=True))

    def name(self, path, *more, **options):
        """Return who answered, or the status."""
        status, said = self.ask(path, *more, **options)
        return said["name"] if status == 200 else status


@pytest.fixture
def nginx(lab, tmp_path):
    return Nginx(lab.netns("edge"), tmp_path)


def test_paths_are_found_as_the_table_of_the_documentation_says(nginx):
    """One host for each row; the request is nginx's to judge."""
    rows = [
        ingress([(path, kind, "web") for path in paths], host=f"h{number}.example", name=f"i{number}")
        for number, (kind, paths, _, _) in enumerate(unit.EXAMPLES)
    ]  # fmt: skip
    nginx.serve(*rows)
    for number, (kind, paths, asked, found) in enumerate(unit.EXAMPLES):
        got = nginx.name(asked, host=f"h{number}.example")
        assert got == ("web" if found else 404), (kind, paths, asked)


def test_the_longest_path_answers_and_exact_before_prefix(nginx):
    nginx.serve(ingress([
        ("/", "Prefix", "web"), ("/foo", "Prefix", "api"), ("/foo", "Exact", "old"), ("/foo/bar/", "Exact", "old"),
        ("/Foo", "Exact", "old"), ("/a%20b", "Exact", "old"), ("/%22%24host%7B", "Prefix", "old"),
    ]))  # fmt: skip
    asked = {
        "/": "web", "/foo": "old", "/foo/": "api", "/foo/x": "api", "/foox": "web", "/foo/bar": "api",
        "/foo/bar/": "old", "/Foo": "old", "/FOO": "web", "/a%20b": "old", "/a%20c": "web", "/x/../foo": "old",
        "/%66oo": "old", '/%22$host{/x': "old", "/%22a.example{": "web",
    }  # fmt: skip
    assert {path: nginx.name(path, "-g") for path in asked} == asked


def judge(paths, asked):
    """Return the path that answers by the words of the API: element by element, the longest, exact before prefix."""
    parts = [one for one in asked.split("/") if one]
    found = [
        (len(path.rstrip("/")), kind == "Exact", path, kind) for path, kind in paths
        if (asked == path if kind == "Exact" else parts[: path.count("/")] == path.split("/")[1:] or path == "/")
    ]  # fmt: skip
    return max(found)[2:] if found else ()


def test_nginx_agrees_with_the_words_of_the_api_for_any_paths(nginx):
    """Twenty hosts with paths drawn at random, each asked for every path that any of them has, and more."""
    chance = random.Random(7)
    every = ["/", *(f"/{a}{b}{c}" for a in ("a", "b", "ab") for b in ("", "/a", "/b") for c in ("", "/", "/a", "/ab"))]
    prefixes = [one for one in every if one == "/" or not one.endswith("/")]
    hosts = {
        f"h{number}.example": sorted(
            [(path, "Exact") for path in chance.sample(every, 6)]
            + [(path, "Prefix") for path in chance.sample(prefixes, 5)]
        )
        for number in range(20)
    }  # fmt: skip

    def telling(path, kind):
        value = [{"name": "X-Found", "value": f"{path} {kind}"}]
        found = {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": value}}
        return rule(match(path, "PathPrefix" if kind == "Prefix" else kind), filters=[found])

    nginx.serve(gateway(), *(
        route(*(telling(*one) for one in paths), hosts=[host], name=host) for host, paths in hosts.items()
    ))  # fmt: skip
    answered = Counter()
    for host, paths in hosts.items():
        for asked in every:
            got = nginx.netns.fetch(f"http://127.0.0.1{asked}", headers={"Host": host}).headers.get("x-found", "")
            assert tuple(got.split()) == judge(paths, asked), (asked, paths)
            answered[got.partition(" ")[2]] += 1
    assert min(answered[one] for one in ("Exact", "Prefix", "")) > 20


def test_hosts_are_found_the_most_exact_first(nginx):
    nginx.serve(
        ingress([("/", "Prefix", "web")], host="*.a.example", name="wild"),
        ingress([("/", "Prefix", "api")], host="x.a.example", name="exact"),
        ingress([("/", "Prefix", "old")], host=None, name="any"),
    )
    asked = {
        "x.a.example": "api", "X.A.EXAMPLE": "api", "x.a.example:8080": "api", "x.a.example.": "api",
        "y.a.example": "web", "z.y.a.example": "old", "a.example": "old", "b.example": "old", "y.axexample": "old",
    }  # fmt: skip
    assert {host: nginx.name("/", host=host) for host in asked} == asked


def test_a_default_backend_gets_the_rest(nginx):
    nginx.serve(ingress([("/x", "Prefix", "web")], defaultBackend=unit.backend("api")))
    asked = [("a.example", "/x"), ("a.example", "/y"), ("b.example", "/x")]
    assert [nginx.name(path, host=host) for host, path in asked] == ["web", "api", "api"]


def test_the_backend_is_told_of_the_client_and_not_what_the_client_claims(nginx):
    nginx.serve(ingress([("/", "Prefix", "web")]))
    _, said = nginx.ask("/a%2Fb?c=%20d", "-H", "X-Forwarded-For: 6.6.6.6", "-H", "X-Real-IP: 6.6.6.6")
    assert said == {
        "name": "web", "uri": "/a%2Fb?c=%20d", "host": "a.example", "forwarded_for": "127.0.0.1", "set": "", "add": "",
        "real_ip": "127.0.0.1", "gone": "", "proto": "http", "claimed": "6.6.6.6",
    }  # fmt: skip


def test_a_rewrite_target_takes_the_place_of_the_path(nginx):
    nginx.serve(ingress([("/app", "Prefix", "web")], annotations={f"{NGINX}rewrite-target": "/in%20side"}))
    assert nginx.ask("/app/x?y=1")[1]["uri"] == "/in%20side?y=1"


def test_conditions_of_routes_are_tried_in_their_order(nginx):
    query = {"queryParams": [{"name": "q", "value": "a b&c"}]}
    nginx.serve(gateway(), route(
        rule(match("/v", **header("2")), to="api"), rule(match("/v", method="POST"), to="old"),
        rule(match("/v", **query), to="api"), rule(match("/v/deep", **header("3")), to="old"), rule(match("/v")),
    ))  # fmt: skip
    two, three = ("-H", "X-V: 2"), ("-H", "x-v: 3")
    assert nginx.name("/v") == "web"
    assert nginx.name("/v", *two) == "api"
    assert nginx.name("/v/x", *two, "-XPOST") == "old"  # a method counts more than a header
    assert nginx.name("/v", "-H", "X-V: 22") == nginx.name("/v", "-H", "X-V: 2 2") == "web"
    asked = ("q=a%20b%26c", "x=1&q=a+b%26c", "q=a%20b", "q=a&q=a%20b%26c", "Q=a%20b%26c")
    assert [nginx.name(f"/v?{one}") for one in asked] == ["api", "api", "web", "web", "web"]
    assert nginx.name("/v/deep", *three) == "old"
    assert nginx.name("/v/deep", *two) == "api"  # falls to the shorter path, and its conditions
    assert nginx.name("/v/deep") == "web"
    assert nginx.name("/vv") == nginx.name("/v", host="b.example") == 404
    nginx.serve(gateway(), route(rule(match("/v", **header("Yes")))))
    assert [nginx.name("/v", "-H", f"X-V: {one}") for one in ("Yes", "yes", "")] == ["web", 404, 404]


def test_weights_and_canaries_share_requests(nginx):
    """Of 400 requests 25 % are 100; outside 60 to 145 one run in a million would be."""
    refs = [{"name": "web", "port": 80, "weight": 3}, {"name": "api", "port": 80, "weight": 1},
            {"name": "old", "port": 80, "weight": 0}]  # fmt: skip
    canary = {f"{NGINX}canary": "true", f"{NGINX}canary-weight": "25", f"{NGINX}canary-by-header": "X-Canary"}
    nginx.serve(
        gateway(), route({"backendRefs": refs}, hosts=["gw.example"]), ingress([("/", "Prefix", "web")]),
        ingress([("/", "Prefix", "api")], name="canary", annotations=canary),
        route({"backendRefs": [refs[1], {"name": "nope", "port": 80, "weight": 3}]}, hosts=["half.example"], name="h"),
    )  # fmt: skip

    def counts(host, *more):
        urls = "http://127.0.0.1/?[1-400]"
        words = ("curl", "-s", "-w", "\n%{http_code}\n", "-H", f"Host: {host}", *more, urls)
        return Counter(line.split("|")[0] for line in nginx.netns.run(*words).stdout.splitlines() if "|" in line)

    for host in ("gw.example", "a.example", "half.example"):
        found = counts(host)
        assert 60 <= found["api"] <= 145
        assert found["web"] == (0 if host == "half.example" else 400 - found["api"])
    assert counts("a.example", "-H", "X-Canary: always") == {"api": 400}
    assert counts("a.example", "-H", "X-Canary: never") == {"web": 400}


def test_filters_change_headers_paths_and_hosts(nginx):
    change = {"set": [{"name": "X-Set", "value": 'a "$host" \\ {;}'}], "add": [{"name": "X-Add", "value": "two"}],
              "remove": ["X-Gone"]}  # fmt: skip

    def rewrite(kind, **fields):
        return {"type": "URLRewrite", "urlRewrite": {"path": {"type": kind, **fields}}}

    answer = {"set": [{"name": "X-New", "value": "$host;"}], "remove": ["X-Old"]}
    nginx.serve(gateway(), route(
        rule(match("/h"), filters=[
            {"type": "RequestHeaderModifier", "requestHeaderModifier": change},
            {"type": "ResponseHeaderModifier", "responseHeaderModifier": answer},
            {"type": "URLRewrite", "urlRewrite": {"hostname": "in.example"}},
        ]),
        rule(match("/p"), filters=[rewrite("ReplacePrefixMatch", replacePrefixMatch="/new$1/")]),
        rule(match("/q"), filters=[rewrite("ReplacePrefixMatch", replacePrefixMatch="/")]),
        rule(match("/f"), filters=[rewrite("ReplaceFullPath", replaceFullPath="/full")]),
    ))  # fmt: skip
    _, said = nginx.ask("/h", "-H", "X-Set: b", "-H", "X-Add: one", "-H", "X-Gone: c", "-H", "X-Forwarded-For: 6.6.6.6")
    assert (said["set"], said["add"], said["gone"], said["host"]) == ('a "$host" \\ {;}', "one, two", "", "in.example")
    assert (said["forwarded_for"], said["claimed"]) == ("127.0.0.1", "6.6.6.6")
    assert nginx.ask("/h")[1]["add"] == "two"
    head = nginx.netns.run("curl", "-si", "-H", "Host: a.example", "http://127.0.0.1/h").stdout
    assert "X-New: $host;" in head
    assert "X-Old" not in head
    assert "X-Keep: here" in head
    asked = ("/p", "/p/", "/p/x%20y%0D%0Az?a=b", "/q", "/q/", "/q/x", "/f/x?a=b")
    assert [nginx.ask(one)[1]["uri"] for one in asked] == [
        "/new$1", "/new$1/", "/new$1/x%20y%0D%0Az?a=b", "/", "/", "/x", "/full?a=b",
    ]  # fmt: skip


def test_redirects_lead_where_the_specification_says_and_inject_no_header(nginx):
    def redirect(below, **fields):
        return {"matches": [match(below)], "filters": [{"type": "RequestRedirect", "requestRedirect": fields}]}

    prefix = {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/b"}
    nginx.serve(gateway({"name": "http", "port": 8080, "protocol": "HTTP"}), route(
        redirect("/s", scheme="https"), redirect("/h", hostname="b.example", statusCode=301),
        redirect("/p", path=prefix),
        redirect("/f", path={"type": "ReplaceFullPath", "replaceFullPath": "/x%20y"}, port=81),
    ))  # fmt: skip
    assert nginx.ask("/s/x?a=%20b", port=8080) == (302, "https://a.example/s/x?a=%20b")
    assert nginx.ask("/h/x", port=8080) == (301, "http://b.example:8080/h/x")
    assert nginx.ask("/f/z?a=b", port=8080) == (302, "http://a.example:81/x%20y?a=b")
    assert nginx.ask("/p/x%0d%0aX-Evil:%201?a=b", port=8080) == (302, "http://a.example:8080/b/x%0D%0AX-Evil:%201?a=b")


def test_a_route_is_served_by_its_listener_only(nginx):
    """Listeners of one port are apart from each other: a host of one is never another's."""
    nginx.serve(
        gateway(*unit.LISTENERS, {"name": "alt", "port": 81, "protocol": "HTTP"}),
        route(rule(), hosts=[], parents=[{"name": "edge", "sectionName": "all"}]),
        route(rule(to="api"), hosts=[], name="alt", parents=[{"name": "edge", "port": 81}]),
    )
    assert [nginx.name("/", host=one) for one in ("b.example", "x.a.example", "y.a.example")] == ["web", 404, 404]
    assert nginx.name("/", port=81) == "api"


def test_what_the_loader_takes_nginx_takes(lab, tmp_path):
    """Whatever hosts, paths, headers and annotations are in the manifests: nginx -t, in each place."""
    netns, file = lab.netns("edge"), tmp_path / "nginx.conf"
    taken = 0

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=unit.st.data())
    def try_one(data):
        nonlocal taken
        place = data.draw(unit.st.sampled_from(list(unit.PLACES)))
        try:
            edge = unit.edge_with(place, data.draw(unit.words_that_matter(place)))
        except InvalidManifest:
            return
        file.write_text(render(edge))
        done = netns.run("nginx", "-t", "-q", "-e", "stderr", "-p", str(tmp_path), "-c", str(file), check=False)
        assert done.ok, done.stderr
        taken += 1

    try_one()
    for place in unit.PLACES:
        file.write_text(render(unit.edge_with(place, unit.GOOD.get(place, "/x"))))
        assert netns.run("nginx", "-t", "-q", "-e", "stderr", "-p", str(tmp_path), "-c", str(file)).ok
    assert taken


@pytest.mark.parametrize("sign", ["a", "-", "$", "%22", "%5C", "%C3%A9", "&"])
def test_the_longest_words_that_are_taken_are_not_too_long_for_nginx(lab, tmp_path, sign):
    """It reads no word of more than 4096 bytes, and would refuse the configuration of everybody."""
    netns, file = lab.netns("edge"), tmp_path / "nginx.conf"
    plain = sign if len(sign) == 1 else {"%22": '"', "%5C": "\\", "%C3%A9": " "}[sign]
    for place in unit.PLACES:
        path = "path" in place or place in {"rewrite", "annotation rewrite-target"}
        for count in (1100, 1023, 511, 255, 120, 60):
            word = "/" + sign * count if path else plain * count
            try:
                edge = unit.edge_with(place, word)
            except InvalidManifest:
                continue
            file.write_text(render(edge))
            netns.run("nginx", "-t", "-q", "-e", "stderr", "-p", str(tmp_path), "-c", str(file))
            break


def test_nginx_takes_what_the_renderer_writes_of_words_that_no_loader_saw(lab, tmp_path):
    netns, file = lab.netns("edge"), tmp_path / "nginx.conf"
    for word in ('"; } server { listen 81; } #', "$host", "\\", "${x}", "a'b", "{}", "~^x", "include", "é", "a b"):
        file.write_text(render(unit.full_edge(f"p{word.replace('/', '')}", host="h.example")))
        assert netns.run("nginx", "-t", "-q", "-e", "stderr", "-p", str(tmp_path), "-c", str(file)).ok


def test_the_commands_folder_passes_the_test_of_nginx(lab, tmp_path):
    from typer.testing import CliRunner

    from k8snet import cli
    from k8snet.controllers.ingress.tls import self_signed

    one = self_signed(tmp_path, lambda *words: lab.netns("maker").run("openssl", *words), "x")
    secret = {
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tls"}, "type": "kubernetes.io/tls",
        "stringData": {"tls.crt": one.chain, "tls.key": one.key},
    }  # fmt: skip
    tls = [{"hosts": ["a.example"], "secretName": "tls"}]
    file, out = tmp_path / "m.json", tmp_path / "out"
    items = [secret, service("web"), ingress([("/", "Prefix", "web")], tls=tls)]
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    done = CliRunner().invoke(cli.app, ["ingress", "render", "-f", str(file), "--output", str(out)])
    assert done.exit_code == 0, done.output
    netns = lab.netns("edge")
    netns.run("nginx", "-t", "-e", "stderr", "-p", str(out), "-c", str(out / "nginx.conf"))
    assert Path(out, "tls", "default.tls.key").stat().st_mode & 0o077 == 0
    assert one.key.splitlines()[1] not in Path(out, "nginx.conf").read_text()
