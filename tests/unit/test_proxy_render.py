"""`k8snet proxy render`: the ruleset on standard output and nothing else there, and a clear line for what cannot be."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from k8snet import cli

CLI = (sys.executable, "-m", "k8snet.cli", "proxy", "render")


def service(name="web", *, port="", head="", **spec):
    """Return a Service; *port* are more fields of its one port, *head* more of its top level, both as flow YAML."""
    fields = {"clusterIP": "10.96.0.20", **spec}
    ports = fields.pop("ports", None) or [{"name": "http", "port": 80, **yaml.safe_load(f"{{{port}}}")}]
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {**fields, "ports": ports}, **yaml.safe_load(f"{{{head}}}"),
    }  # fmt: skip


def endpoint_slice(name="web-1", *, service="web", kind="IPv4", addresses=("10.244.1.2", "10.244.2.2"), **fields):
    labels = {"kubernetes.io/service-name": service} if service else {}
    return {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "shop", "labels": labels}, "addressType": kind,
        "endpoints": [{"addresses": [one]} for one in addresses],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], **fields,
    }  # fmt: skip


SHOP = (service(), endpoint_slice())


def run(*arguments, objects=SHOP, stdin=True):
    """Run the command in a process of its own, with *objects* on its standard input."""
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
    words = [*CLI, *(["-f", "-"] if stdin else []), "--node-name", "node1", *arguments]
    return subprocess.run(words, input=text, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """Run the command in this process, and return its exit code, standard output and standard error."""

    def ask(*arguments, objects=SHOP):
        file = tmp_path / "shop.json"
        file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))
        words = ["k8snet", "proxy", "render", "-f", str(file), "--node-name", "node1", *arguments]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    yield ask
    gc.enable()


# -- what is printed -------------------------------------------------------------------


def test_standard_output_has_the_rules_and_nothing_else():
    done = run("--mode", "iptables", "--cluster-cidr", "10.244.0.0/16")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("*filter", "COMMIT")
    assert {line[:3] for line in lines} == {"*fi", "*na", ":KU", "-A ", "-I ", "COM"}
    assert sum("--to-destination 10.244." in line for line in lines) == 2


def test_two_runs_print_the_same_in_whatever_order_the_objects_come():
    objects = [service(f"web-{n}", clusterIP=f"10.96.0.{n}") for n in range(1, 9)]
    objects += [endpoint_slice(f"s-{n}", service=f"web-{n}", addresses=["10.244.1.9", "10.244.1.10"]) for n in range(9)]
    environments = [{**os.environ, "PYTHONHASHSEED": seed} for seed in ("1", "2")]
    texts = set()
    for environment, several in zip(environments, (objects, objects[::-1]), strict=True):
        done = subprocess.run(
            [*CLI, "-f", "-", "--node-name", "node1"], env=environment, capture_output=True, text=True, check=True,
            input="\n---\n".join(map(json.dumps, several)), timeout=60,
        )  # fmt: skip
        texts.add(done.stdout)
    assert len(texts) == 1


def test_without_privilege_kernel_or_programs_it_prints_the_same():
    done = subprocess.run(
        [*CLI, "-f", "-", "--node-name", "node1"], env={"PATH": "/nonexistent"}, capture_output=True, text=True,
        check=True, input="\n---\n".join(map(json.dumps, SHOP)), timeout=60,
    )  # fmt: skip
    assert done.stdout == run().stdout


def test_warnings_go_to_standard_error(told):
    objects = [
        service(head="novelty: 1"), service("later", clusterIP=""), endpoint_slice(),
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "a"}]}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}},
    ]  # fmt: skip
    code, out, err = told(objects=objects)
    assert code == 0
    assert "novelty" not in out
    assert "Service shop/web: novelty: unknown field of Service" in err
    assert "Service shop/later has no clusterIP yet" in err
    assert out == told()[1]


def test_external_chains_only_leaves_the_jumps_out(told):
    whole, chains = told()[1], told("--external-chains-only")[1]
    assert "-I PREROUTING" in whole
    assert "-I " not in chains
    assert set(chains.splitlines()) < set(whole.splitlines())


@pytest.mark.parametrize(
    ("arguments", "wanted", "unwanted"),
    [
        (["--cluster-cidr", "10.244.0.0/16"], "! -s 10.244.0.0/16 -j KUBE-MARK-MASQ", ""),
        (["--cluster-cidr", "fd00::/48,10.244.0.0/16"], "! -s 10.244.0.0/16 -j KUBE-MARK-MASQ", "fd00"),
        (["--cluster-cidr", "10.244.0.0/16", "--local-detector", "none"], "KUBE-SVC", "10.244.0.0/16"),
        (["--masquerade-all"], "-d 10.96.0.20 --dport 80 -j KUBE-MARK-MASQ", ""),
        (["--masquerade-bit", "3"], "--or-mark 0x8", "0x4000"),
        (["--no-localhost-nodeports"], "--dst-type LOCAL ! -d 127.0.0.0/8 -j KUBE-NODEPORTS", "-A KUBE-FIREWALL"),
        (["--node-ip", "172.18.0.1", "--node-ip", "10.0.0.1", "--nodeport-addresses", "172.18.0.0/16"],
         "-d 172.18.0.1 -j KUBE-NODEPORTS", "-d 10.0.0.1"),
        (["--nodeport-addresses", "fd00::/48"], "--dst-type LOCAL -j KUBE-NODEPORTS", "fd00"),
        (["--random-fully"], "-j MASQUERADE --random-fully", ""),
        (["--conntrack-tcp-be-liberal"], "-A KUBE-FORWARD", "INVALID"),
        (["--nfacct"], "-m nfacct --nfacct-name ct_state_invalid_dropped_pkts", ""),
        (["--ip-family", "v6"], "--dst-type LOCAL ! -d ::1/128 -j KUBE-NODEPORTS", "10.96.0.20"),
        (["--mode", "nftables"], "10.96.0.20 . tcp . 80", "COMMIT"),
        (["--mode", "ipvs"], '"10.96.0.20,tcp:80"', "persistence_s"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)  # fmt: skip
def test_an_option_does_what_it_says(told, arguments, wanted, unwanted):
    code, out, err = told(*arguments)
    assert (code, err) == (0, "")
    assert wanted in out
    assert not unwanted or unwanted not in out


def test_both_families_of_a_dual_stack_service_have_rules_of_their_own(told):
    objects = [
        service(clusterIPs=["10.96.0.20", "fd00:10:96::20"], ipFamilies=["IPv4", "IPv6"]), endpoint_slice(),
        endpoint_slice("web-6", kind="IPv6", addresses=["fd00:10:244:1::2", "FD00:10:244:1::0:3"]),
    ]  # fmt: skip
    four, six = told(objects=objects)[1], told("--ip-family", "v6", objects=objects)[1]
    assert "fd00" not in four
    assert "-d fd00:10:96::20 --dport 80" in six
    assert "--to-destination [fd00:10:244:1::3]:8080" in six


# -- what no kube-proxy programs -------------------------------------------------------


@pytest.mark.parametrize(
    "objects",
    [
        [service(clusterIP="None"), endpoint_slice()],
        [service(type="ExternalName", externalName="example.com", clusterIP=""), endpoint_slice()],
        [{**service(), "metadata": {"name": "web", "labels": {"service.kubernetes.io/service-proxy-name": "x"}}}],
        [{**service(), "metadata": {"name": "web", "labels": {"service.kubernetes.io/headless": ""}}}],
        [endpoint_slice()],
        [],
    ],
    ids=["headless", "external name", "another proxy's", "labelled headless", "slice alone", "nothing"],
)  # fmt: skip
def test_there_are_no_rules_for(told, objects):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "a"}]}}
    out = told(objects=[pod, *objects])[1]
    assert "KUBE-SVC" not in out
    assert "10.96.0.20" not in out


# -- what is refused -------------------------------------------------------------------

TWO = [{"name": "a", "port": 80}, {"name": "b", "port": 81}]
BAD = [
    ([service(port="port: 0")], "Service shop/web: spec.ports[0].port: 0 is not a port; ports are 1 to 65535"),
    ([service(port="port: 65536")], "spec.ports[0].port: 65536 is not a port"),
    ([service(port="port: http")], "spec.ports[0].port: 'http' is not a whole number"),
    ([service(port="nodePort: 70000", type="NodePort")], "spec.ports[0].nodePort: 70000 is not a port"),
    ([service(port="nodePort: -1", type="NodePort")], "spec.ports[0].nodePort: -1 is not a port"),
    ([service(port="nodePort: 30080", type="ClusterIP")], "nodePort: 30080: a Service of type ClusterIP has none"),
    ([service(port="targetPort: 99999")], "spec.ports[0].targetPort: 99999 is not a port"),
    ([service(port="targetPort: 'a_b'")], "spec.ports[0].targetPort: 'a_b' is neither a port nor the name of one"),
    ([service(port="protocol: HTTP")], "spec.ports[0].protocol: 'HTTP' is not one of: TCP, UDP, SCTP"),
    ([service(port="protocol: tcp")], "spec.ports[0].protocol: 'tcp' is not one of"),
    ([service(port="name: 'Web Port'")], "spec.ports[0].name: 'Web Port' is not the name of a port"),
    ([service(ports=[TWO[0], {"name": "a", "port": 81}])], "spec.ports[1].name: 'a' is the name of another port"),
    ([service(ports=[TWO[0], {"port": 81}])], "spec.ports[1].name: is missing; where there are several ports"),
    ([service(ports=[TWO[0], {"name": "b", "port": 80}])], "spec.ports[1].port: TCP 80 is a port of this Service"),
    ([service(type="NodePort", ports=[{**one, "nodePort": 30080} for one in TWO])],
     "spec.ports[1].nodePort: TCP 30080 is a port of this Service already"),
    ([service(clusterIP="10.96.0.300")], "spec.clusterIP: '10.96.0.300' is not an IPv4 or IPv6 address"),
    ([service(clusterIP="10.96.0.020")], "spec.clusterIP: '10.96.0.020' is not an IPv4 or IPv6 address"),
    ([service(clusterIP="fd00::20", ipFamilies=["IPv4"])], "spec.clusterIP: fd00::20 is not an IPv4 address"),
    ([service(clusterIPs=["10.96.0.20", "10.96.0.21"], ipFamilies=["IPv4", "IPv6"])],
     "spec.clusterIPs[1]: 10.96.0.21 is not an IPv6 address"),
    ([service(clusterIPs=["10.96.0.21"])], "spec.clusterIPs: the first one is not 10.96.0.20, the clusterIP"),
    ([service(ipFamilies=["IPv5"])], "spec.ipFamilies[0]: 'IPv5' is not one of: IPv4, IPv6"),
    ([service(type="Nodeport")], "spec.type: 'Nodeport' is not one of: ClusterIP, NodePort, LoadBalancer, External"),
    ([service(sessionAffinity="Client")], "spec.sessionAffinity: 'Client' is not one of: None, ClientIP"),
    ([service(sessionAffinityConfig={"clientIP": {"timeoutSeconds": 0}})], "0 is not 1 to 86400 seconds"),
    ([service(internalTrafficPolicy="local")], "spec.internalTrafficPolicy: 'local' is not one of: Cluster, Local"),
    ([service(externalTrafficPolicy="Node")], "spec.externalTrafficPolicy: 'Node' is not one of: Cluster, Local"),
    ([service(externalIPs=["example.com"])], "spec.externalIPs[0]: 'example.com' is not an IPv4 or IPv6 address"),
    ([service(loadBalancerSourceRanges=["10.0.0.0/33"])], "spec.loadBalancerSourceRanges[0]: '10.0.0.0/33' is not a"),
    ([service(loadBalancerSourceRanges=["10.0.0.1"])], "spec.loadBalancerSourceRanges[0]: '10.0.0.1' is not a network"),
    ([service(healthCheckNodePort=70000)], "spec.healthCheckNodePort: 70000 is not a port"),
    ([service(head="status: {loadBalancer: {ingress: [{ip: 1.2.3}]}}")], "status.loadBalancer.ingress[0].ip: '1.2.3'"),
    ([service(head="status: {loadBalancer: {ingress: [{ip: 1.2.3.4, ipMode: vip}]}}")], "ingress[0].ipMode: 'vip'"),
    ([endpoint_slice(service="")], "EndpointSlice shop/web-1: metadata.labels: there is no kubernetes.io/service-name"),
    ([endpoint_slice(kind="IPv7")], "addressType: 'IPv7' is not one of: IPv4, IPv6, FQDN"),
    ([endpoint_slice(addresses=["fd00::2"])], "endpoints[0].addresses[0]: fd00::2 is not an IPv4 address"),
    ([endpoint_slice(addresses=["web"])], "endpoints[0].addresses[0]: 'web' is not an IPv4 or IPv6 address"),
    ([endpoint_slice(endpoints=[{"addresses": []}])], "endpoints[0].addresses: is empty"),
    ([endpoint_slice(ports=[{"port": 65536}])], "ports[0].port: 65536 is not a port"),
    ([endpoint_slice(ports=[{"port": 80, "protocol": "QUIC"}])], "ports[0].protocol: 'QUIC' is not one of"),
    ([endpoint_slice(ports=[{"port": 80}] * 2 + [{"name": "A", "port": 80}])], "ports[2].name: 'A' is not the name"),
    ([service(), service("api")], "Service shop/api: spec.clusterIP: 10.96.0.20 is the cluster IP of Service shop/web"),
    ([service(clusterIP="fd00::20"), service("api", clusterIP="FD00:0::20")], "is the cluster IP of Service shop/web"),
    ([service(type="NodePort", port="nodePort: 30080"),
      service("api", clusterIP="10.96.0.21", type="NodePort", port="nodePort: 30080")],
     "Service shop/api: spec.ports[0].nodePort: TCP 30080 is a node port of Service shop/web already"),
    ([service(), service(clusterIP="10.96.0.21")], "metadata.name: 'web' is in this manifest already"),
]  # fmt: skip


@pytest.mark.parametrize(("objects", "said"), BAD, ids=[said[:70] for _, said in BAD])
def test_a_bad_object_is_refused_with_its_field_and_the_reason(told, objects, said):
    code, out, err = told(objects=objects)
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("k8snet: ")
    assert err.count("\n") == 1


def test_one_node_port_of_two_protocols_is_no_conflict(told):
    ports = [{"name": "a", "port": 53, "nodePort": 30053}, {"name": "b", "port": 53, "nodePort": 30053}]
    ports[1]["protocol"] = "UDP"
    code, _, err = told(objects=[service(type="NodePort", ports=ports)])
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mode", "userspace"], "--mode 'userspace': one of iptables, nftables, ipvs"),
        (["--mode", "ipvs", "--ipvs-scheduler", "random"], "IPVS scheduler 'random': one of rr, wrr, lc, sh"),
        (["--node-ip", "node1"], "'node1' is not an IPv4 or IPv6 address"),
        (["--cluster-cidr", "10.244.0.0/44"], "--cluster-cidr '10.244.0.0/44': "),
        (["--local-detector", "cluster-cidr"], "--local-detector cluster-cidr needs --cluster-cidr"),
        (["--local-detector", "bridge"], "--local-detector 'bridge': one of cluster-cidr, none"),
        (["--nodeport-addresses", "primary"], "--nodeport-addresses 'primary': "),
        (["--ip-family", "v5"], "--ip-family 'v5': one of v4, v6"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_option_is_refused(told, arguments, said):
    code, out, err = told(*arguments)
    assert (code, out) == (1, "")
    assert said in err


def test_a_manifest_that_is_not_there_is_one_line(tmp_path):
    done = run("-f", str(Path(tmp_path) / "none.yaml"), stdin=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "none.yaml: cannot be read: No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr
