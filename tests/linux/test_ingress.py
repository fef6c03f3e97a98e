"""The edge of a live cluster: nginx in a pod, asked from the internet."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter

import pytest

from k8snet.controllers.ingress import controller as module
from k8snet.errors import CommandFailed, InvalidInput, NotFound
from k8snet.linux.run import wait_until
from tests.replay import replay

SHOP = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: nginx, ports: [{name: http, containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {app: cart}}
spec: {containers: [{name: cart, image: agnhost, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{port: 8000, targetPort: 8080}]}
"""
INGRESS = """
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: shop, namespace: shop}
spec:
  rules:
  - host: shop.example
    http:
      paths:
      - {path: /, pathType: Prefix, backend: {service: {name: web, port: {name: http}}}}
      - {path: /cart, pathType: Prefix, backend: {service: {name: cart, port: {number: 8000}}}}
"""
TLS = INGRESS + "  tls: [{hosts: [shop.example], secretName: shop-tls}]\n"
GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: infra}
spec:
  gatewayClassName: k8snet
  listeners:
  - {name: http, port: 8080, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}
  - name: https
    port: 8443
    protocol: HTTPS
    hostname: "*.shop.example"
    tls: {certificateRefs: [{name: wild}]}
    allowedRoutes: {namespaces: {from: All}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop, namespace: shop}
spec:
  parentRefs: [{name: edge, namespace: infra}]
  hostnames: [www.shop.example]
  rules:
  - matches: [{headers: [{name: X-Beta, value: "yes"}]}]
    backendRefs: [{name: cart, port: 8000}]
  - backendRefs: [{name: web, port: 80}]
"""


@pytest.fixture
def shop(cluster_of):
    """A cluster with a shop and a load balancer."""
    cluster = cluster_of(2)
    cluster.apply(SHOP)
    cluster.start_proxy()
    cluster.start_load_balancer()
    return cluster


def ask(cluster, url, *, host="shop.example", headers=None):
    return cluster.internet.fetch(url, headers={"Host": host, **(headers or {})})


def servers(cluster, url, count=12, **options):
    return Counter(ask(cluster, url, **options).body.split()[0] for _ in range(count))


def curl(cluster, edge, url, *more, host="shop.example", port=443):
    """Ask by TLS, with the certificate of the lab CA to trust only."""
    words = ("curl", "-sS", "--cacert", str(edge.ca), "--resolve", f"{host}:{port}:{edge.address}", *more, url)
    return cluster.internet.run(*words, check=False)


def test_the_internet_reaches_pods_by_host_and_path(shop):
    edge = shop.start_ingress()
    shop.apply(INGRESS)
    assert servers(shop, f"{edge.url}/x") == {"web-1": 6, "web-2": 6}  # nginx takes turns
    answer = ask(shop, f"{edge.url}/cart/1")
    assert json.loads(answer.body)["name"] == "cart"
    assert answer.server_sees[0].startswith(edge.pod.address)  # the pod's peer is nginx
    assert ask(shop, edge.url, host="other.example").status == 404
    assert [row[3:6] for row in edge.log.rows[-2:]] == [
        ("GET /cart/1", "200", "shop.cart.8000"), ("GET /", "404", ""),
    ]  # fmt: skip
    edge.clear()
    assert len(edge.log) == 0
    assert "location /cart/ {" in edge.config()
    assert shop.pod("shop/web-1").fetch(f"http://{shop.objects['Service', 'ingress', 'k8snet'].spec.clusterIP}",
                                        headers={"Host": "shop.example"}).ok  # fmt: skip


def test_tls_is_verified_by_the_lab_ca_and_other_hosts_have_a_certificate_that_nobody_trusts(shop):
    edge = shop.start_ingress()
    shop.apply(TLS)
    assert "default certificate" in edge.notes[0]
    assert "self-signed certificate" in curl(shop, edge, "https://shop.example/").stderr
    file = edge.issue("shop.example", secret="shop/shop-tls")
    assert edge.notes == ()
    assert "says hello" in curl(shop, edge, "https://shop.example/").stdout
    assert "self-signed" in curl(shop, edge, "https://other.example/", host="other.example").stderr
    moved = ask(shop, f"{edge.url}/x?y")
    assert (moved.status, moved.headers["location"]) == (308, "https://shop.example/x?y")
    first = file.read_text()
    edge.issue("shop.example", "www.shop.example", secret="shop/shop-tls")
    assert file.read_text() != first
    serial = "{ssl_verify_result}"
    assert curl(shop, edge, "https://shop.example/", "-o", "/dev/null", "-w", f"%{serial}").stdout == "0"
    shop.delete("secret", "shop-tls", namespace="shop")
    assert not [one for one in (edge.folder / "tls").iterdir() if "shop-tls" in one.name]
    assert "self-signed certificate" in curl(shop, edge, "https://shop.example/").stderr
    for bad in ("a b", "-x", "a.example/CN=x", "x,IP:1.2.3.4"):
        with pytest.raises(InvalidInput, match="is not the name of a host"):
            edge.issue(bad, secret="shop/x")
    with pytest.raises(InvalidInput):
        edge.issue("a.example", secret="shop/a/../b")


def test_a_renewed_certificate_is_served_after_one_reload(shop):
    edge = shop.start_ingress()
    shop.apply(TLS)
    edge.issue("shop.example", secret="shop/shop-tls")

    def serial():
        words = ("openssl", "s_client", "-connect", f"{edge.address}:443", "-servername", "shop.example")
        text = shop.internet.sh(f"echo | {' '.join(words)} 2>/dev/null | openssl x509 -noout -serial").stdout
        return text.strip()

    before, reloads = serial(), edge.reloads
    edge.issue("shop.example", secret="shop/shop-tls")
    assert serial() != before
    assert edge.reloads == reloads + 1


def test_a_reload_happens_only_where_the_configuration_is_another_one(shop):
    edge = shop.start_ingress()
    assert edge.reloads == 0
    shop.apply(INGRESS)
    shop.sync()
    shop.apply(INGRESS)
    shop.run_pod("unrelated", image="pause")
    assert edge.reloads == 1


def test_endpoints_come_and_go(shop):
    edge = shop.start_ingress()
    shop.apply(INGRESS)
    shop.apply(SHOP.replace("replicas: 2", "replicas: 3"))
    assert servers(shop, edge.url) == {"web-1": 4, "web-2": 4, "web-3": 4}
    shop.apply(SHOP.replace("replicas: 2", "replicas: 0"))
    assert ask(shop, edge.url).status == 503
    assert ask(shop, f"{edge.url}/cart").status == 200
    shop.apply(SHOP.replace("replicas: 2", "replicas: 1"))
    assert servers(shop, edge.url) == {"web-1": 12}
    shop.delete("service", "web", namespace="shop")
    assert ask(shop, edge.url).status == 503


def test_with_upstreams_service_kube_proxy_chooses_and_nginx_is_left_alone(shop):
    edge = shop.start_ingress(upstreams="service")
    shop.apply(INGRESS)
    reloads = edge.reloads
    shop.apply(SHOP.replace("replicas: 2", "replicas: 3"))
    assert set(servers(shop, edge.url, 60)) == {"web-1", "web-2", "web-3"}
    assert edge.reloads == reloads
    assert f"server {shop.objects['Service', 'shop', 'web'].spec.clusterIP}:80 " in edge.config()


@pytest.mark.parametrize("keep_alive", [True, False])
def test_a_reload_during_a_thousand_requests_loses_none(shop, keep_alive):
    """New connections go to new workers. One that is idle when its worker ends is closed: curl sends again."""
    edge = shop.start_ingress()
    shop.apply(INGRESS)
    words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code} %{num_connects}\\n", "-H", "Host: shop.example"]
    close = () if keep_alive else ("-H", "Connection: close")
    process = shop.internet.popen(*words, *close, f"{edge.url}/?[1-1000]", keep_output=True)
    first, number = edge.reloads, 0
    while process.running:
        number += 1
        shop.apply(INGRESS.replace("path: /cart", f"path: /cart{number % 7}"))
    codes, connects = zip(*(line.split() for line in process.output().splitlines()), strict=True)
    assert Counter(codes) == {"200": 1000}
    assert edge.reloads - first >= 2
    assert (sum(map(int, connects)) < 500) is keep_alive


def test_requests_go_on_while_pods_come_and_go(shop):
    """A pod gets nothing new before it ends, and one that has begun is called when it serves."""
    edge = shop.start_ingress()
    shop.apply(INGRESS)
    words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}\\n", "-H", "Host: shop.example"]
    process = shop.internet.popen(*words, "-H", "Connection: close", f"{edge.url}/?[1-1000]", keep_output=True)
    for replicas in (3, 1, 2):
        shop.apply(SHOP.replace("replicas: 2", f"replicas: {replicas}"))
    wait_until(lambda: not process.running, what="a thousand requests", timeout_s=60)
    assert Counter(process.output().split()) == {"200": 1000}


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_the_clients_address_is_kept_with_policy_local_only(shop, policy):
    """With Cluster the node masquerades, and nginx can tell nobody what it does not know."""
    edge = shop.start_ingress(external_traffic_policy=policy, node="node2")
    shop.apply(INGRESS)
    told = {}
    capture = shop.pod("shop/cart").netns.popen(
        "tcpdump", "-i", "eth0", "-A", "-l", "-U", "tcp dst port 8080", keep_output=True
    )
    wait_until(lambda: "listening on" in capture.output(), what="tcpdump", timeout_s=20)
    assert ask(shop, f"{edge.url}/cart", headers={"X-Forwarded-For": "6.6.6.6"}).ok
    wait_until(lambda: "X-Original-Forwarded-For" in capture.output(), what="the request in the capture", timeout_s=20)
    for line in capture.output().splitlines():
        name, colon, value = line.partition(": ")
        if colon and name.startswith("X-"):
            told[name] = value.strip()
    assert (told["X-Forwarded-For"] == "203.0.113.10") is (policy == "Local")
    assert told["X-Real-IP"] == told["X-Forwarded-For"] == edge.log.column("CLIENT")[-1]
    assert told["X-Original-Forwarded-For"] == "6.6.6.6"


def test_by_node_port_every_node_leads_to_it(shop):
    edge = shop.start_ingress(service_type="NodePort", node="node2")
    shop.apply(TLS)
    edge.issue("shop.example", secret="shop/shop-tls")
    assert edge.address == shop.node("node2").address
    port = edge.url.rpartition(":")[2]
    for node in shop.nodes.values():
        assert ask(shop, f"http://{node.address}:{port}").status == 308
    port = int(edge.tls_url.rpartition(":")[2])
    assert "says hello" in curl(shop, edge, f"https://shop.example:{port}/", port=port).stdout


def test_gateways_and_routes_are_served_on_the_ports_of_their_listeners(shop):
    edge = shop.start_ingress()
    shop.apply(GATEWAY)
    assert "listener https: there is no Secret infra/wild" in edge.notes[0]
    edge.issue("*.shop.example", secret="infra/wild")
    ports = [one.port for one in shop.objects["Service", "ingress", "k8snet"].spec.ports]
    assert ports == [80, 443, 8080, 8443]
    host, url = "www.shop.example", f"{edge.url}:8080"
    assert set(servers(shop, url, host=host)) == {"web-1", "web-2"}
    assert json.loads(ask(shop, url, host=host, headers={"X-Beta": "yes"}).body)["name"] == "cart"
    answer = curl(shop, edge, f"https://{host}:8443/", host=host, port=8443)
    assert "says hello" in answer.stdout, answer
    assert str(shop.get("gateways")).splitlines()[1].split() == ["infra", "edge", "k8snet", edge.address, "True"]
    assert str(shop.get("httproutes")).splitlines()[1].split() == ["shop", "shop", '["www.shop.example"]']
    status = shop.objects["HTTPRoute", "shop", "shop"].status["parents"][0]
    assert {one["type"]: one["status"] for one in status["conditions"]} == {"Accepted": "True", "ResolvedRefs": "True"}
    listeners = shop.objects["Gateway", "infra", "edge"].status["listeners"]
    assert [one["attachedRoutes"] for one in listeners] == [1, 1]
    shop.delete("gateway", "edge", namespace="infra")
    assert [one.port for one in shop.objects["Service", "ingress", "k8snet"].spec.ports] == [80, 443]
    assert not shop.internet.connect(edge.address, 8080, timeout_s=0.5).ok


def test_what_is_served_says_where(shop):
    edge = shop.start_ingress()
    shop.apply(INGRESS)
    other = INGRESS.replace("name: shop, namespace", "name: other, namespace")
    shop.apply(other.replace("spec:\n  rules:", "spec:\n  ingressClassName: nginx\n  rules:"))
    rows = shop.get("ingresses").rows
    assert rows == (
        ("shop", "other", "nginx", "shop.example", "", "80"),
        ("shop", "shop", "<none>", "shop.example", edge.address, "80"),
    )
    assert shop.get("ingressclasses").rows == (("k8snet", "k8snet.example/k8snet"),)
    assert shop.get("gatewayclasses").rows == (("k8snet", "k8snet.example/k8snet"),)


def test_two_controllers_share_a_cluster_by_their_classes(shop):
    first, second = shop.start_ingress(), shop.start_ingress(name="inner", service_type="NodePort")
    shop.apply(INGRESS.replace("spec:\n  rules:", "spec:\n  ingressClassName: inner\n  rules:"))
    assert (ask(shop, first.url).status, ask(shop, second.url).status) == (404, 200)
    with pytest.raises(InvalidInput, match="'inner' runs in this cluster already"):
        shop.start_ingress(name="inner")
    second.stop()
    assert ask(shop, first.url).status == 404
    assert ("IngressClass", "", "inner") not in shop.objects


def test_a_configuration_that_nginx_refuses_changes_nothing_and_is_said_once(shop, monkeypatch):
    edge = shop.start_ingress()
    shop.apply(INGRESS)
    before, real = edge.config(), module.render
    monkeypatch.setattr(module, "render", lambda *a, **o: real(*a, **o).replace("server_tokens off", "server_token of"))
    with pytest.raises(CommandFailed, match="unknown directive"):
        shop.apply(INGRESS.replace("/cart", "/basket"))
    assert 'unknown directive "server_token"' in edge.refused
    assert shop.sync() == []
    assert edge.config() == before
    assert ask(shop, f"{edge.url}/cart").ok
    monkeypatch.undo()
    shop.sync()
    assert edge.refused == ""
    assert json.loads(ask(shop, f"{edge.url}/basket").body)["name"] == "cart"


def test_a_killed_nginx_is_started_again_with_the_present_configuration(shop):
    edge = shop.start_ingress()
    shop.apply(INGRESS)
    for pid in edge.pod.containers[0].pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not edge.pod.containers[0].alive, what="nginx has ended")
    assert shop.sync() == ["container nginx of pod ingress/k8snet"]
    assert ask(shop, edge.url).ok
    shop.apply(INGRESS.replace("/cart", "/basket"))
    assert ask(shop, f"{edge.url}/basket").ok


def test_stopped_it_leaves_the_cluster_as_it_was(shop):
    shop.apply(INGRESS)
    shop.sync()
    before, objects = shop.snapshot(), set(shop.objects)
    edge = shop.start_ingress()
    assert shop.get("ingresses").column("ADDRESS") == [edge.address]
    edge.stop()
    assert shop.snapshot() == before
    assert shop.get("ingresses").column("ADDRESS") == [""]
    assert {key for key in set(shop.objects) - objects if key[0] != "Namespace"} == set()
    again = shop.start_ingress()
    assert ask(shop, again.url).ok


def test_its_transcript_builds_the_same_network(cluster_of, tmp_path):
    """The certificates are made by commands, too; what nginx is told is no state of the kernel."""
    cluster = cluster_of(1)
    cluster.start_proxy("nftables")
    edge = cluster.start_ingress(service_type="NodePort")
    edge.issue("shop.example", secret="shop/tls")
    script = cluster.transcript.script()
    assert "openssl x509 -req" in script
    assert replay(script, tmp_path) == json.loads(cluster.snapshot().to_json())


def test_both_families_are_served(cluster_of):
    cluster = cluster_of(1, ip_families=("v4", "v6"))
    cluster.apply(SHOP)
    cluster.start_proxy()
    cluster.start_load_balancer()
    cluster.start_ingress()
    cluster.apply(INGRESS)
    four, six = (one.ip for one in cluster.objects["Service", "ingress", "k8snet"].status.loadBalancer.ingress)
    assert ask(cluster, f"http://{four}").ok
    assert ask(cluster, f"http://[{six}]").ok


def test_it_needs_kube_proxy_and_arguments_that_can_be(cluster_of):
    cluster = cluster_of(1)
    with pytest.raises(InvalidInput, match="start_proxy"):
        cluster.start_ingress()
    cluster.start_proxy()
    for options in (
        {"service_type": "ClusterIP"}, {"upstreams": "pods"}, {"name": "A b"}, {"external_traffic_policy": "x"},
    ):  # fmt: skip
        with pytest.raises(InvalidInput):
            cluster.start_ingress(**options)
    edge = cluster.start_ingress()
    with pytest.raises(NotFound, match="start_load_balancer"):
        edge.url  # noqa: B018  # asking is what fails
    cluster.start_load_balancer()
    assert edge.url == "http://172.18.255.1"


def test_hostile_manifests_change_nothing(shop):
    """Refused before anything is touched: the other Ingresses go on."""
    edge = shop.start_ingress()
    shop.apply(INGRESS)
    before, reloads = edge.config(), edge.reloads
    for bad in ('"/x; } server { listen 81; } #"', '"/x\\n}"', '"/x{y}"', "'/\"'"):
        with pytest.raises(InvalidInput, match=r"path: .* is not a path"):
            shop.apply(INGRESS.replace("path: /cart", f"path: {bad}"))
    for bad in ("shop.example;", "'shop.example {'", '"$host"', "'*'"):
        with pytest.raises(InvalidInput, match="is not a host"):
            shop.apply(INGRESS.replace("host: shop.example", f"host: {bad}"))
    assert (edge.config(), edge.reloads) == (before, reloads)
    assert ask(shop, f"{edge.url}/cart").ok
