"""`k8snet up` and the commands in its shell, as an operator types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.executed import eventually, host_netns, marked_processes

ROOT = Path(__file__).resolve().parents[2]
SHOP = ROOT / "notebooks/manifests/shop.yaml"
K8SNET = [sys.executable, "-m", "k8snet.cli"]
ME = " ".join(K8SNET)


def k8snet(*words, text=None, env=None, timeout=120):
    return subprocess.run(
        [*K8SNET, *map(str, words)], input=text, capture_output=True, text=True, check=False, cwd=ROOT,
        timeout=timeout, env={**os.environ, **(env or {})},
    )  # fmt: skip


def in_cluster(script, *options, file=SHOP, text=None):
    """Run a shell script in a cluster of a manifest; `k` is k8snet."""
    return k8snet("up", "-f", file, *options, "--", "bash", "-c", f'k() {{ {ME} "$@"; }}\n{script}', text=text)


def test_the_exit_code_is_that_of_the_command_and_standard_output_is_its_own():
    done = in_cluster("echo only this; exit 7")
    assert (done.returncode, done.stdout) == (7, "only this\n")
    assert "web-1" in done.stderr


def test_the_command_k8snet_is_found_where_only_the_virtual_environment_has_it():
    bare = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = k8snet("up", "-f", SHOP, "--", "k8snet", "get", "nodes", "-o", "name", env=bare)
    assert (done.returncode, done.stdout.split()) == (0, ["node/node1", "node/node2"]), done.stderr


def test_the_rules_of_a_service_are_told_in_the_shell():
    service = """{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop},
        spec: {selector: {app: web}, ports: [{port: 80}]}}"""
    done = in_cluster(f"echo '{service}' | k apply -f - && k rules shop/web && k why shop/client shop/web "
                      "&& k why --icmp shop/client 10.96.0.20; k why --icmp --udp a b")
    assert "--udp and --icmp" in done.stderr
    for said in ("KUBE-SVC-", "1 of 3", "DNAT", "10.96.0.20", "icmp"):
        assert said in done.stdout, done.stdout


def test_what_passes_is_printed_or_kept_while_a_command_runs_and_its_exit_code_is_passed_on(tmp_path):
    """One ping from pod to pod, as each interface saw it; a file that tcpdump reads; and what cannot be watched."""
    file = tmp_path / "ping.pcapng"
    ping = "k exec -n shop client -- ping -c1 10.244.1.2"
    done = in_cluster(f"""
        export -f k
        k capture --filter 'icmp[icmptype] == icmp-echo' -- bash -c '{ping} > /dev/null; exit 3'
        echo "code $?"
        k capture -o {file} --netns shop.client --filter icmp -- bash -c '{ping}' > /dev/null
        k capture --netns shop.nobody
        k capture --seconds 0.1 --filter 'icmp and also'
        k capture --seconds 0.1 -o {tmp_path}/missing/file
    """)
    lines = done.stdout.splitlines()
    assert lines[-1] == "code 3", done.stderr
    assert len({line.split()[2] for line in lines[:-1]}) == len(lines) - 1 >= 4
    assert lines[0].split()[2:4] == ["shop.client/eth0", "out"]
    assert f"2 packets in {file}" in done.stderr
    read = subprocess.run(["tcpdump", "-nr", file], capture_output=True, text=True, check=True).stdout
    assert read.count("ICMP echo") == 2
    for said in ("shop.nobody", "filter 'icmp and also'", "no folder"):
        assert said in done.stderr


def test_the_way_of_a_packet_is_printed_as_text_json_and_a_page(tmp_path):
    """In the shell, and of a cluster built for it; the exit code says whether the packet arrived."""
    done = in_cluster(f"""
        k trace --from shop/client --to 10.244.1.2:80
        k trace --from shop/client --to 10.244.1.2:80 --html {tmp_path}/way.html
        k trace --from shop/client --to 10.244.9.9:80 --timeout 0.3 > {tmp_path}/lost; echo "lost $?"
        k trace --from shop/nobody --to 10.244.1.2:80
        k trace --from shop/client --to web:80 --html {tmp_path}/missing/way.html
    """)
    lines = done.stdout.splitlines()
    assert lines[0] == "tcp from shop.client to 10.244.1.2:80", done.stderr
    assert any("eth0 receives it" in line for line in lines)
    assert lines[-1] == "lost 1"
    assert "Lost " in (tmp_path / "lost").read_text()
    assert "<table" in (tmp_path / "way.html").read_text()
    for said in ("'shop/nobody' is no pod", "no folder"):
        assert said in done.stderr
    alone = k8snet("trace", "-f", SHOP, "--from", "internet", "--to", "node1:9", "--json")
    assert alone.returncode == 0, alone.stderr
    told = json.loads(alone.stdout)
    assert told["outcome"].startswith("tcp 172.18.0.1:9: refused")
    assert told["request"]["hops"][0]["netns"] == "internet"


def test_the_commands_of_the_shell_work_on_its_cluster():
    done = in_cluster("""
        k get pods -n shop | wc -l
        k get nodes -o name
        k exec shop/client -- curl -s "http://$(k get pod web-2 -o json | python3 -c \
            'import json, sys; print(json.load(sys.stdin)["status"]["podIP"])')"
        k exec node1 -- ip -br address show cni0
        k delete pod web-1 -n shop
        k get deploy web -o yaml | head -n 2
        echo '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "late"},
            "spec": {"containers": [{"name": "a", "image": "nginx"}]}}' | k apply -f -
        k exec late -- sh -c 'exit 5'; echo "exit $?"
        k check
    """)
    assert done.returncode == 0, done.stderr
    for said in (
        "8\n", "node/node1\nnode/node2", "web-2 says hello", "10.244.1.1/24", "pod/web-1 deleted", "kind: Deployment",
        "pod/late created", "exit 5", "✔ Every pod reaches every pod without NAT. (192 of 192)",
    ):  # fmt: skip
        assert said in done.stdout


def test_reach_prints_a_full_matrix_as_json_for_the_cluster_of_the_shell_and_for_a_manifest():
    """The same cluster, asked in two ways, gives the same answer."""
    inside = json.loads(k8snet("up", "-f", SHOP, "--", *K8SNET, "reach", "--json").stdout)
    outside = json.loads(k8snet("reach", "-f", SHOP, "--json").stdout)
    assert inside == outside
    assert "shop/web-1" in inside["pods"]
    ports = [(one["protocol"], one["port"]) for one in inside["probes"]]
    assert ("TCP", 80) in ports
    for one in inside["probes"]:
        assert list(one["matrix"]) == inside["pods"]
        assert all(list(row) == inside["pods"] for row in one["matrix"].values())
    web = inside["probes"][ports.index(("TCP", 80))]["matrix"]
    assert web["shop/client"]["shop/web-3"] == "ok"
    assert web["shop/client"]["shop/db-0"] == "refused"


def test_reach_takes_ports_that_nobody_declares():
    found = json.loads(k8snet("reach", "-f", SHOP, "--json", "--ports", "tcp/81,icmp", "--wiring", "direct").stdout)
    assert [(one["protocol"], one["port"]) for one in found["probes"]] == [("TCP", 81), ("ICMP", 0)]
    assert {word for row in found["probes"][1]["matrix"].values() for word in row.values()} == {"ok"}


@pytest.mark.parametrize("network", ["vxlan", "bgp"])
def test_pod_network_families_and_nodes_are_options(network):
    done = in_cluster(
        "k get nodes; k check", "--nodes", "3", "--pod-network", network, "--ip-families", "v4,v6", "--wiring", "direct"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fd00:10:244:3::/64" in done.stdout
    assert "without NAT, over IPv6." in done.stdout


def test_a_manifest_comes_by_standard_input_too():
    done = in_cluster("k get pods -o name", file="-", text=SHOP.read_text())
    assert done.returncode == 0, done.stderr
    assert "pod/web-3" in done.stdout


def test_a_diagram_is_written_as_an_svg_file_that_stands_by_itself(tmp_path):
    file = tmp_path / "cluster.svg"
    done = in_cluster(f"k diagram; k diagram -o {file}; k diagram -o {tmp_path}/cluster.png; echo exit $?")
    assert "web-1" in done.stdout
    assert "exit 2" in done.stdout
    text = file.read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "web-1" in text
    assert "prefers-color-scheme:dark" in text


WEB = """---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.80, selector: {app: web}, ports: [{port: 80}]}
"""


@pytest.mark.parametrize(("mode", "said"), [("iptables", "says hello"), ("nftables", "says hello"), ("none", "exit 7")])
def test_a_service_is_reached_in_each_mode_of_kube_proxy_and_in_none(mode, said):
    script = "k exec shop/client -- curl -s -m 1 http://10.96.0.80 || echo exit 7"
    done = in_cluster(script, "--proxy-mode", mode, file="-", text=SHOP.read_text() + WEB)
    assert said in done.stdout, done.stderr
    assert ("without effect here: 1 Service" in done.stderr) == (mode == "none")


def test_two_services_with_one_address_are_refused(tmp_path):
    (tmp_path / "two.yaml").write_text(SHOP.read_text() + WEB + WEB.replace("name: web,", "name: other,"))
    done = k8snet("up", "-f", tmp_path / "two.yaml", "--", "true")
    assert done.returncode == 2
    assert "10.96.0.80 is the cluster IP of Service shop/web already" in done.stderr


def test_policies_are_enforced_and_what_they_allow_is_compared_with_what_is_seen():
    deny = """---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
"""
    done = in_cluster(
        "k exec shop/client -- curl -s -m 1 http://10.244.1.2; echo $?; k reach --ports tcp/80 --expected; echo $?",
        file="-", text=SHOP.read_text() + deny,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("28", "0"), done.stdout


OPEN_WEB = """---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80}]}
"""
INGRESS = """---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: shop}
spec: {ingressClassName: nginx, defaultBackend: {service: {name: web, port: {number: 80}}}}
"""


def test_kinds_without_effect_are_named_in_one_line():
    extra = f"---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\n{INGRESS}"
    done = in_cluster("true", "--proxy-mode", "none", file="-", text=SHOP.read_text() + extra)
    assert done.returncode == 0
    assert "not used: 1 ConfigMap" in done.stderr
    assert "kept, but without effect here: 1 Ingress" in done.stderr


def test_an_ingress_of_a_manifest_is_served_by_nginx_whatever_its_class(tmp_path):
    """As the manifest of an operator has it; one that is applied in the shell counts, too."""
    call = 'ip netns exec internet curl -s "$(sed -n "s/^class nginx: nginx at //p" said)"'
    at_once = in_cluster("k get svc -n ingress", file="-", text=SHOP.read_text() + OPEN_WEB + INGRESS)
    assert "class nginx: nginx at http://172.18.255." in at_once.stderr
    assert "nginx" in at_once.stdout
    later = in_cluster(f"cd {tmp_path}; k apply -f - <<'END' | tee said\n{OPEN_WEB}{INGRESS}END\n{call}")
    assert "says hello" in later.stdout, later.stderr


POD = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a, image: nginx}]}\n"
NODE = "---\napiVersion: v1\nkind: Node\nmetadata: {name: %s}\nspec: {podCIDR: %s}\n"
POD_LINE = """{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
    "spec": {"containers": [{"name": "a", "image": "nginx"}]}}"""
BAD = {
    "unknown field": (POD.replace("image:", "imagge:"), "imagge"),
    "wrong type": (POD.replace("image: nginx", "image: nginx, ports: [{containerPort: eighty}]"), "eighty"),
    "missing port": (POD.replace("image: nginx", "image: nginx, ports: [{name: http}]"), "containerport"),
    "network kind": (
        POD + "---\napiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: a}\n", "calico"
    ),
    "overlap": (POD + NODE % ("x", "10.1.0.0/16") + NODE % ("y", "10.1.2.0/24"), "overlap"),
    "duplicate name": (POD + "---\n" + POD, "'a' is in this manifest already"),
    "bad YAML": ("apiVersion: v1\nkind: [Pod\n", "line"),
    "empty": ("", "no kubernetes object in it"),
    "outside": (POD.replace("spec: {", "spec: {nodeName: x, ") + "status: {podIP: 10.9.9.9}\n"
                + NODE % ("x", "10.1.0.0/24"), "10.9.9.9"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_manifest_is_one_line_and_exit_code_2_and_nothing_is_left(name):
    text, said = BAD[name]
    before, mark = host_netns(), uuid.uuid4().hex
    done = k8snet("up", "-f", "-", "--", "echo", "built", text=text, env={"K8SNET_TEST_MARK": mark})
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr.lower()
    assert len(done.stderr.strip().splitlines()) == 1
    assert (host_netns(), marked_processes(mark)) == (before, [])


def test_what_an_operator_of_kubectl_types_works_too():
    done = in_cluster("""
        k exec -it -n shop web-1 -- sh -c 'exit 3'; echo "exec $?"
        k exec web-1 -it --namespace=shop -c nginx -- echo "ran there"
        k exec deploy/web -n shop -- true && k exec pod/web-1 -n shop -- true && k exec router -- true && echo "kinds"
        k exec shop/web-1 -c none -- true; k exec shop/web-1 --bogus -- true; echo "option $?"
        k get po -A -o=name | grep -c web; k get pods,deploy web-1 shop/web-2 2>&1; k get pod/web-1 | wc -l
        k get all -o json | python3 -c 'import json, sys; print({one["kind"] for one in json.load(sys.stdin)["items"]})'
        k delete pod/web-1 -n shop; k delete pods client web-2 -n shop; k delete; echo "what $?"
    """)
    for said in ("exec 3", "ran there", "kinds", "option 2", "3\n", "2\n", "'StatefulSet'", "what 2",
                 "pod/client deleted\npod/web-2 deleted"):  # fmt: skip
        assert said in done.stdout, done.stdout + done.stderr
    assert "no Deployment 'web-1'" in done.stdout
    assert "has no container 'none'; it has: nginx" in done.stderr


def test_what_a_manifest_made_is_deleted_by_it_and_nothing_else():
    """The namespace of a manifest that does not declare it stays, with all else in it."""
    done = in_cluster(f"""
        echo '{POD_LINE}' | k apply -f - && echo '{POD_LINE.replace('"a"', '"b"')}' | k apply -f -
        echo '{POD_LINE}' | k delete -f -; echo '{POD_LINE}' | k delete -f -; echo "again $?"
        k get pods -n default -o name; k delete -f {SHOP} | wc -l; k get pods -o name
    """)
    assert done.stdout.splitlines()[-3:] == ["pod/b", "7", "pod/b"], done.stdout + done.stderr
    assert "again 1" in done.stdout
    assert "no Pod 'a' in namespace 'default'" in done.stderr


def test_pods_that_wait_are_told_with_their_reason():
    text = POD.replace("spec: {", "spec: {nodeSelector: {disk: ssd}, ")
    done = in_cluster("k get pods >/dev/null", file="-", text=text)
    assert done.stderr.count("default/a: Pending: no schedulable node fits disk=ssd") == 2
    told = k8snet("reach", "-f", "-", "--json", text=text)
    assert json.loads(told.stdout) == {"pods": [], "probes": []}
    assert "default/a: Pending" in told.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["up", "--node", "3", "--", "echo", "built"], 2, "--node"),
        (["up", "--nodes", "0", "--", "echo", "built"], 2, "--nodes"),
        (["up", "--pod-network", "ipip", "--", "echo", "built"], 1, "one of routes, vxlan, bgp"),
        (["up", "--wiring", "hand", "--", "echo", "built"], 1, "one of cni, direct"),
        (["up", "--ip-families", "v6", "--", "echo", "built"], 1, "ip_families"),
        (["reach", "--ports", "nonsense"], 1, "write it as in tcp/80"),
        (["reach", "--family", "v6"], 1, "this cluster has v4"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_option_that_cannot_be_is_refused_before_anything_is_built(words, code, said):
    done = k8snet(words[0], "-f", SHOP, *words[1:])
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "NAMESPACE" not in done.stderr


def test_in_the_shell_of_a_cluster_there_is_no_second_one():
    done = in_cluster(f"k up -f {SHOP} -- true; echo up $?; k reach -f {SHOP}; echo reach $?; k get nodes | wc -l")
    assert done.stdout.split() == ["up", "1", "reach", "1", "3"]
    assert done.stderr.count("this is the shell of a cluster already") == 2


def test_a_command_may_follow_without_dashes_and_has_its_own_options():
    done = k8snet("up", "-f", SHOP, "--wiring", "direct", "echo", "-n", "--nodes")
    assert (done.returncode, done.stdout) == (0, "--nodes")


def test_a_bad_manifest_in_the_shell_leaves_the_cluster_as_it_was(tmp_path):
    (tmp_path / "bad.yaml").write_text(BAD["wrong type"][0])
    look = "k get pods -o json | md5sum"
    done = in_cluster(f"{look}; k apply -f {tmp_path}/bad.yaml; echo exit $?; {look}")
    first, code, last = done.stdout.splitlines()
    assert code == "exit 2"
    assert "eighty" in done.stderr
    assert first == last


@pytest.mark.parametrize(
    "words", [["get", "pods"], ["exec", "a", "--", "true"], ["apply", "-f", str(SHOP)], ["delete", "pod", "a"],
              ["reach"], ["check"], ["diagram"], ["rules", "web"], ["why", "a", "web"]],
    ids=" ".join,
)  # fmt: skip
def test_outside_of_a_cluster_its_commands_say_so(words):
    done = k8snet(*words)
    assert done.returncode == 1
    assert "k8snet up -f FILE" in done.stderr


def test_a_command_that_is_not_there_is_127():
    done = k8snet("up", "-f", SHOP, "--wiring", "direct", "--", "no-such-command")
    assert done.returncode == 127
    assert "no-such-command" in done.stderr


@pytest.mark.parametrize("victim", ["supervisor", "controller"])
def test_killed_it_leaves_no_process_and_no_netns(victim):
    """The controller is the process with the cluster, inside; the supervisor is what a terminal started."""
    mark, before = uuid.uuid4().hex, host_netns()
    command = [*K8SNET, "up", "-f", str(SHOP), "--wiring", "direct", "--", "sh", "-c", "echo ready; sleep 60"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "K8SNET_TEST_MARK": mark},
    ) as child:  # fmt: skip
        assert child.stdout.readline() == "ready\n"
        pid = child.pid
        if victim == "controller":
            inside = [one for one in marked_processes(mark) if "k8snet.cli up" in one and not one.startswith(f"{pid} ")]
            pid = max(int(one.split()[0]) for one in inside if "unshare" not in one and "/bin/sh" not in one)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not marked_processes(mark), timeout_s=10)
    assert marked_processes(mark) == []
    assert host_netns() == before


def test_a_shell_on_a_terminal_has_a_prompt_and_leaves_when_told(tmp_path):
    """Typed as a person would, through a pseudo-terminal."""
    import pexpect

    child = pexpect.spawn(
        K8SNET[0], [*K8SNET[1:], "up", "-f", str(SHOP), "--wiring", "direct"], cwd=str(ROOT), timeout=60,
        encoding="utf-8", dimensions=(40, 160), env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    try:
        child.expect("nothing stays")
        child.expect(r"\[k8snet\]")
        child.sendline(f"{ME} get nodes")
        child.expect("10.244.2.0/24")
        child.sendline("sleep 30")
        time.sleep(0.3)  # the shell has to have begun it
        child.sendintr()
        child.sendline("exit 4")
        child.expect(pexpect.EOF)
    finally:
        child.close()
    assert child.exitstatus == 4


def test_cni_check_tries_a_plugin_and_says_what_failed(tmp_path):
    good = k8snet("cni", "check", "/usr/lib/cni/bridge")
    assert good.returncode == 0, good.stdout + good.stderr
    bad = tmp_path / "nothing"
    bad.write_text("#!/bin/sh\necho '{}'\n")
    bad.chmod(0o755)
    told = k8snet("cni", "check", bad, "--json")
    assert told.returncode == 1
    assert json.loads(told.stdout)["ok"] is False
    bad.chmod(0o644)
    for file, said in ((bad, "not executable: chmod +x"), (tmp_path, "is a folder"), ("./bridge", "is not there")):
        told = k8snet("cni", "check", file)
        assert (told.returncode, told.stdout) == (1, "")
        assert said in told.stderr
