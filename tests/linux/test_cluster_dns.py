"""DNS of a cluster: names asked for by real programs in pods, of a server that is a pod itself."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from k8snet.errors import InvalidInput
from k8snet.linux.nsfs import RESOLVER
from k8snet.linux.run import wait_until
from k8snet.teach.grade import Prober
from tests.replay import replay

SHOP = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: sql, port: 5432}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: nginx}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: shop}
spec:
  replicas: 2
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: db, image: agnhost, ports: [{name: sql, containerPort: 5432}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: late}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
"""


@pytest.fixture
def shop(cluster_of):
    """A cluster with two Services, DNS, and a pod to ask from."""
    cluster = cluster_of(2)
    cluster.apply(SHOP)
    cluster.start_proxy()
    cluster.start_dns()
    cluster.run_pod("client", image="pause", node="node2")
    return cluster


def dns_of(cluster):
    return next(one for one in cluster.controllers if type(one).__name__ == "ClusterDns")


def dig(pod, *words):
    return pod.run("dig", "+short", "+time=5", "+tries=2", *words).stdout.split()


def getent(pod, name):
    """Address, canonical name and aliases of a name, as programs see them."""
    return pod.run("getent", "hosts", name, check=False).stdout.split()


def asked(dns):
    return [(one.name, one.kind, one.rcode) for one in dns.queries]


def test_dig_and_getent_in_pods_find_services_by_all_their_names(shop):
    web, client = shop.objects["Service", "default", "web"].spec.clusterIP, shop.pod("client")
    for name in ("web", "web.default", "web.default.svc", "web.default.svc.cluster.local"):
        assert getent(client, name) == [web, "web.default.svc.cluster.local"]
        assert dig(client, "+search", name) == [web]
    for how in ("+tcp", "+notcp"):
        assert dig(client, how, "-x", web) == ["web.default.svc.cluster.local."]
        assert dig(client, how, "_http._tcp.web.default.svc.cluster.local", "SRV")[2:] == [
            "80", "web.default.svc.cluster.local.",
        ]  # fmt: skip
    assert getent(shop.pod("shop/db-0"), "web") == []  # of another namespace
    assert getent(shop.pod("shop/db-0"), "web.default")[0] == web
    assert client.sh("curl -s http://web").stdout == "web-1 says hello\n"


def test_a_headless_service_leads_to_its_pods_and_each_has_a_name(shop):
    client, pods = shop.pod("client"), [shop.pod(f"shop/db-{n}") for n in (0, 1)]
    assert sorted(dig(client, "+search", "db.shop")) == sorted(pod.address for pod in pods)
    for pod in pods:
        assert getent(client, f"{pod.name}.db.shop")[0] == pod.address
        assert dig(client, "-x", pod.address) == [f"{pod.name}.db.shop.svc.cluster.local."]
    targets = dig(client, "_sql._tcp.db.shop.svc.cluster.local", "SRV")
    assert [one for one in targets if one.endswith(".")] == [f"db-{n}.db.shop.svc.cluster.local." for n in (0, 1)]


def test_another_service_of_the_same_pods_does_not_take_their_names(shop):
    """A hostname is the pod's below its subdomain's Service only."""
    shop.apply("""
apiVersion: v1
kind: Service
metadata: {name: other, namespace: shop}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 1}]}
""")
    client, address = shop.pod("client"), shop.pod("shop/db-0").address
    assert getent(client, "db-0.other.shop") == []
    assert getent(client, f"{address.replace('.', '-')}.other.shop")[0] == address


def test_names_follow_the_cluster(shop):
    client = shop.pod("client")
    gone = shop.pod("shop/db-1").address
    shop.apply(SHOP.replace("replicas: 2", "replicas: 1"))
    assert gone not in dig(client, "+search", "db.shop")
    assert getent(client, "db-1.db.shop") == []
    shop.delete("service", "web")
    assert getent(client, "web") == []
    shop.apply(SHOP)
    assert getent(client, "web")
    assert getent(client, "db-1.db.shop")[0] == shop.pod("shop/db-1").address
    shop.apply("""
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: ExternalName, externalName: www.example.com}
""")
    assert dig(client, "+search", "outside") == ["www.example.com.", "example.com.", "203.0.113.80"]
    assert client.sh("curl -s http://outside").stdout.startswith('{"name": "internet"')


def test_the_search_list_is_seen_at_work(shop):
    """With ndots:5 a name of two dots is tried below three domains first, for each address family."""
    dns, client = dns_of(shop), shop.pod("client")
    dns.clear()
    assert getent(client, "www.example.com")[0] == "203.0.113.80"
    domains = ("default.svc.cluster.local.", "svc.cluster.local.", "cluster.local.")
    tried = [(f"www.example.com.{one}", "NXDOMAIN") for one in domains] + [("www.example.com.", "NOERROR")]
    assert [(name, rcode) for name, kind, rcode in asked(dns) if kind == "A"] == tried
    assert len(asked(dns)) == 8
    dns.clear()
    assert getent(client, "www.example.com.")[0] == "203.0.113.80"  # the final dot: no search
    assert {name for name, _, _ in asked(dns)} == {"www.example.com."}
    assert len(dns.log) == len(asked(dns)) == 2
    assert dns.log.column("CLIENT") == ["default/client"] * 2
    assert set(dns.log.column("VIA")) == {"upstream"}


def test_each_dns_policy_has_its_resolv_conf(shop):
    def conf(name, more):
        spec = {"containers": [{"name": "c", "image": "pause"}], **more}
        shop.apply(json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}) + "\n")
        return shop.pod(name).run("cat", "/etc/resolv.conf").stdout

    first = "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
    node = "nameserver 203.0.113.53\n"
    assert conf("a", {}) == first
    assert conf("b", {"dnsPolicy": "Default"}) == node
    assert conf("c", {"hostNetwork": True}) == node
    assert conf("d", {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}) == first
    config = {"nameservers": ["203.0.113.53"], "options": [{"name": "ndots", "value": "1"}]}
    assert conf("e", {"dnsPolicy": "None", "dnsConfig": config}) == node + "options ndots:1\n"
    assert conf("f", {"dnsConfig": {"options": config["options"]}}) == first.replace("ndots:5", "ndots:1")
    assert shop.node("node1").netns.run("cat", "/etc/resolv.conf").stdout == node
    assert getent(shop.pod("d"), "web")  # a pod in its node's netns reaches the Service, too
    assert getent(shop.pod("c"), "web") == []
    assert getent(shop.pod("e"), "www.example.com")[0] == "203.0.113.80"


def test_nothing_but_the_pods_programs_sees_another_resolv_conf(shop):
    before = RESOLVER.read_bytes()
    shop.pod("client").sh("cat /etc/resolv.conf; getent hosts web")
    assert RESOLVER.read_bytes() == before
    assert str(RESOLVER) not in [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()[-3:]]
    process = shop.pod("client").netns.popen("sleep", "60")  # what runs on sees it, too
    assert b"10.96.0.10" in Path(f"/proc/{process.pid}/root{RESOLVER}").read_bytes()


def test_killed_servers_are_started_again_at_the_next_look(shop):
    pod, client = shop.pod("kube-system/kube-dns"), shop.pod("client")
    outside = dns_of(shop)._outside
    for pid in (*pod.containers[0].pids, outside.pid):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not pod.containers[0].alive and not outside.running, what="both have ended")
    assert pod.run("true").ok
    assert set(shop.sync()) == {"container dns of pod kube-system/kube-dns", "DNS server in netns internet"}
    assert pod.containers[0].restarts == 1
    assert getent(client, "web")
    assert getent(client, "www.example.com")[0] == "203.0.113.80"
    assert "kube-dns" in str(shop.get("pods"))


def test_it_is_a_service_like_any_other(shop):
    """10.96.0.10 is nobody's address: kube-proxy leads to the pod, and without it nobody answers."""
    client, pod = shop.pod("client"), shop.pod("kube-system/kube-dns")
    assert dig(client, f"@{pod.address}", "kube-dns.kube-system.svc.cluster.local") == ["10.96.0.10"]
    shop.node("node2").netns.iptables("-t", "raw", "-I", "PREROUTING", "-d", "10.96.0.10", "-j", "DROP")
    assert not client.run("dig", "+time=1", "+tries=1", "web.default.svc.cluster.local", check=False).ok
    assert dig(client, f"@{pod.address}", "kube-dns.kube-system.svc.cluster.local") == ["10.96.0.10"]


def test_pods_are_told_of_services_that_were_there_before_them(shop):
    def told(pod):
        lines = shop.pod(pod).sh("env").stdout.splitlines()
        return {line for line in lines if "_SERVICE_HOST=" in line}

    web, late = (shop.objects["Service", "default", name].spec.clusterIP for name in ("web", "late"))
    assert told("web-1") == {f"WEB_SERVICE_HOST={web}"}
    assert told("client") == {f"WEB_SERVICE_HOST={web}", f"LATE_SERVICE_HOST={late}"}
    assert told("shop/db-0") == set()
    scaled = "  replicas: 2\n  selector: {matchLabels: {app: web}}"
    shop.apply(SHOP.replace("  selector: {matchLabels: {app: web}}", scaled))
    assert told("web-2") == told("client")  # made later
    assert told("web-1") == {f"WEB_SERVICE_HOST={web}"}
    assert shop.pod("client").run("printenv", "WEB_PORT").stdout == f"tcp://{web}:80\n"
    assert shop.pod("client").run("printenv", "WEB_PORT", env={}, check=False).stdout == ""
    script = shop.lab.transcript.script()
    assert "WEB_SERVICE_HOST" not in script


def test_both_families_are_answered_and_asked(cluster_of):
    cluster = cluster_of(2, ip_families=("v4", "v6"))
    dual = "{ipFamilyPolicy: PreferDualStack, "
    spread = SHOP.replace("{selector: {app: web}", dual + "selector: {app: web}", 1)
    cluster.apply(spread.replace("{clusterIP", dual + "clusterIP"))
    cluster.start_proxy()
    cluster.start_dns(outside={"six.example": "2001:db8:113::80"})
    client = cluster.run_pod("client", image="pause")
    four, six = cluster.objects["Service", "default", "web"].spec.clusterIPs
    assert dig(client, "+search", "web", "AAAA") == [six]
    assert dig(client, "@fd00:10:96::a", "web.default.svc.cluster.local") == [four]
    assert set(dns_of(cluster).log.column("CLIENT")) == {"default/client"}
    assert getent(client, "six.example")[0] == "2001:db8:113::80"
    pod = cluster.pod("shop/db-0")
    assert dig(client, "+search", "db-0.db.shop", "AAAA") == [pod.addresses[1]]
    assert dig(client, "-x", pod.addresses[1]) == ["db-0.db.shop.svc.cluster.local."]


def test_pods_that_cni_plugins_attach_are_made_and_removed_beside_dns(cluster_of):
    """The plugins run in the nodes' netns, whose programs have a resolv.conf of their own by then."""
    cluster = cluster_of(1, wiring="cni")
    cluster.start_proxy()
    dns = cluster.start_dns(zone="lab.example", pods="verified")
    client = cluster.run_pod("client", image="pause")
    name = f"{client.address.replace('.', '-')}.default.pod.lab.example"
    assert dig(client, name) == [client.address]
    os.kill(cluster.pod("kube-system/kube-dns").containers[0].pids[0], signal.SIGKILL)
    wait_until(lambda: not cluster.pod("kube-system/kube-dns").containers[0].alive, what="it has ended")
    assert cluster.sync() == ["container dns of pod kube-system/kube-dns"]
    cluster.delete("pod", "client")
    again = cluster.run_pod("again", image="pause")
    assert dig(again, f"{again.address.replace('.', '-')}.default.pod.lab.example") == [again.address]
    dns.stop()
    cluster.delete("pod", "again")


def test_stopped_it_leaves_the_cluster_as_it_was(cluster_of):
    cluster = cluster_of(2)
    cluster.apply(SHOP)
    cluster.start_proxy()
    cluster.sync()
    before = cluster.snapshot()
    dns = cluster.start_dns()
    assert "kube-dns" in str(cluster.get("services"))
    with pytest.raises(InvalidInput, match="runs in this cluster already"):
        cluster.start_dns()
    dns.stop()
    assert cluster.snapshot() == before
    assert cluster.pod("web-1").run("cat", "/etc/resolv.conf").stdout.encode() == RESOLVER.read_bytes()
    assert "kube-dns" not in str(cluster.get("services"))
    assert cluster.start_dns() is not dns


def test_dns_needs_kube_proxy_and_a_zone_that_can_be(cluster_of):
    cluster = cluster_of(1)
    with pytest.raises(InvalidInput, match="start_proxy"):
        cluster.start_dns()
    cluster.start_proxy()
    for options in ({"zone": "a b"}, {"pods": "some"}, {"outside": {"a": "b c"}}):
        with pytest.raises(InvalidInput):
            cluster.start_dns(**options)
    assert cluster.start_dns(zone="Cluster.Local.").zone == "cluster.local"


def test_its_transcript_builds_the_same_network(cluster_of, tmp_path):
    """What programs see of DNS and of Services is no state of the kernel, and so no command."""
    cluster = cluster_of(1)
    cluster.start_proxy("nftables")
    cluster.start_dns()
    cluster.run_pod("client", image="pause").run("cat", "/etc/resolv.conf")
    script = cluster.transcript.script()
    assert "203.0.113.53/24" in script
    assert "resolv" not in script
    assert replay(script, tmp_path) == json.loads(cluster.snapshot().to_json())


def test_reach_and_the_network_model_see_the_server_by_udp_and_tcp(shop):
    """A probe is no question, and yet its answer tells that the way is open; policies are tried by such."""
    matrix = shop.reach(ports=["udp/53", "tcp/53"])
    client, server = shop.pod("client"), shop.pod("kube-system/kube-dns")
    for protocol in ("udp", "tcp"):
        assert client.connect(server, 53, protocol=protocol).ok
    titles = [line for line in str(matrix).splitlines() if "/53:" in line]
    assert titles == ["UDP/53: 5 ok, 20 refused", "TCP/53: 5 ok, 20 refused"]
    assert shop.check_model().ok


def test_a_check_looks_up_names_as_programs_in_a_netns_do(shop):
    """By the pod's own resolv.conf, for both address families; it tells what that took, and when it gave up."""
    probe, web = Prober(shop.lab), shop.objects["Service", "default", "web"].spec.clusterIP
    found = probe.look_up("client", "web")
    assert (found.addresses, found.asked) == ((web,), ("web.default.svc.cluster.local.",) * 2)
    assert len(probe.look_up("client", "www.example.com").asked) == 8
    assert not probe.look_up("shop.db-0", "web").ok
    shop.node("node2").netns.iptables("-t", "raw", "-I", "PREROUTING", "-d", "10.96.0.10", "-j", "DROP")
    lost = probe.look_up("client", "web", timeout_s=0.5)
    assert (lost.addresses, lost.seconds) == ((), 0.5)
    assert lost.asked
