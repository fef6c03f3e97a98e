"""Environment variables: which Services a pod is told of, in which order, and what is said."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from k8snet.cluster.manifests import parse
from k8snet.cluster.objects import key_of
from k8snet.cluster.workloads import NodeSpec, plan
from k8snet.controllers.service_env import environment, from_services, older, visible
from k8snet.discovery_cli import app
from k8snet.errors import NotFound


def service(name, ip="10.96.0.20", namespace="default", more=""):
    return f"""
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {namespace}{more}}}
spec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}
---
"""


def pod(name="web", namespace="default", more="", spec=""):
    return f"""
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}{more}}}
spec: {{containers: [{{name: web, image: nginx}}]{spec}}}
---
"""


def plans_of(objects):
    return {one.key: one for one in plan(objects, nodes=[NodeSpec(name="node1")])}


def told(text, key=("default", "web"), settled=()):
    """The names of the Services that a pod of a manifest is told of."""
    objects = parse(text).objects
    one = plans_of(objects)[key]
    found = environment(older({key_of(each): each for each in objects}, one, settled=settled), one.pod)
    return [name.removesuffix("_SERVICE_HOST") for name in found if name.endswith("_SERVICE_HOST")]


def test_a_pod_is_told_of_the_services_that_come_before_it_and_not_of_those_after():
    """The order trap: who is applied first does not learn of what comes later."""
    assert told(service("old") + pod() + service("young")) == ["OLD"]


def test_pods_of_a_workload_are_as_old_as_it_is():
    deployment = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: web, image: nginx}]}}
---
"""
    text = service("old") + deployment + service("young")
    assert told(text, ("default", "web-1")) == ["OLD"]
    settled = [key_of(one) for one in parse(text).objects]
    assert told(text, ("default", "web-1"), settled) == ["OLD", "YOUNG"]  # a pod that is made later sees all


def test_the_time_of_creation_counts_more_than_the_order():
    early, late = (f", creationTimestamp: '2026-01-01T00:0{n}:00Z'" for n in (1, 2))
    assert told(pod(more=late) + service("old", more=early)) == ["OLD"]
    assert told(service("young", more=late) + pod(more=early)) == []


def test_only_the_pods_own_namespace_and_kubernetes_of_default_are_told():
    text = service("kubernetes", "10.96.0.1") + service("other") + service("own", namespace="shop")
    assert told(text + pod(namespace="shop"), ("shop", "web")) == ["KUBERNETES", "OWN"]
    off = pod(namespace="shop", spec=", enableServiceLinks: false")
    assert told(text + off, ("shop", "web")) == ["KUBERNETES"]


def test_kubernetes_is_older_than_any_pod():
    assert told(pod() + service("kubernetes", "10.96.0.1") + service("young")) == ["KUBERNETES"]


def test_a_service_kubernetes_of_the_pods_namespace_hides_that_of_default():
    text = service("kubernetes", "10.96.0.1") + service("kubernetes", "10.96.0.9", namespace="shop")
    (only,) = visible(parse(text).objects, namespace="shop")
    assert only.spec.clusterIP == "10.96.0.9"


def test_services_without_a_cluster_ip_are_not_told():
    text = service("headless", "None") + """
apiVersion: v1
kind: Service
metadata: {name: alias}
spec: {type: ExternalName, externalName: example.com}
---
""" + pod()  # fmt: skip
    assert told(text) == []


def test_an_ipv6_address_is_in_brackets_in_urls_only():
    variables = dict(from_services(parse(service("six", "'fd00:10:96::20'")).objects))
    assert variables["SIX_PORT"] == "tcp://[fd00:10:96::20]:80"
    assert variables["SIX_PORT_80_TCP_ADDR"] == variables["SIX_SERVICE_HOST"] == "fd00:10:96::20"


def test_the_command_prints_the_variables_in_order_and_gives_services_addresses(tmp_path):
    file = tmp_path / "shop.yaml"
    file.write_text(service("b", "") + service("a", "") + pod())
    done = CliRunner().invoke(app, ["env", "-f", str(file), "web"])
    assert done.exit_code == 0
    hosts = [line for line in done.stdout.splitlines() if "_HOST=" in line]
    assert hosts == ["B_SERVICE_HOST=10.96.0.20", "A_SERVICE_HOST=10.96.0.21"]
    assert done.stdout == CliRunner().invoke(app, ["env", "-f", str(file), "default/web"]).stdout


def test_the_command_names_the_pods_there_are(tmp_path):
    file = tmp_path / "shop.yaml"
    file.write_text(pod())
    done = CliRunner().invoke(app, ["env", "-f", str(file), "shop/web"])
    assert isinstance(done.exception, NotFound)
    with pytest.raises(NotFound, match="these do: default/web"):
        raise done.exception
