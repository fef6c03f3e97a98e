"""EndpointSlices: who is behind a Service, and with what port."""

from __future__ import annotations

import pytest

from k8snet.cluster.manifests import parse
from k8snet.controllers.addresses import assign
from k8snet.controllers.endpoint_slice import Backend, render
from k8snet.errors import InvalidManifest


def service(**spec):
    import json

    document = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"}, "spec": spec}
    return parse(json.dumps(document)).objects[0]


def backend(number, **options):
    values = {
        "namespace": "shop", "name": f"web-{number}", "labels": {"app": "web", "extra": "x"}, "node": f"node{number}",
        "addresses": (f"10.244.{number}.2",), "ports": {("http", "TCP"): 8000 + number},
    }  # fmt: skip
    return Backend(**{**values, **options})


PORT = {"name": "http", "port": 80, "protocol": "TCP"}


def told(slices):
    return [
        (one.metadata.name, one.addressType, [port.port for port in one.ports], [e.addresses[0] for e in one.endpoints])
        for one in slices
    ]  # fmt: skip


def test_the_pods_that_the_selector_chooses_are_endpoints_with_their_node():
    slices = render([service(selector={"app": "web"}, ports=[PORT])], [
        backend(2), backend(1), backend(3, labels={"app": "db"}), backend(4, namespace="other"),
    ])  # fmt: skip
    assert told(slices) == [("web-ipv4-1", "IPv4", [80], ["10.244.1.2", "10.244.2.2"])]
    assert slices[0].metadata.labels["kubernetes.io/service-name"] == "web"
    assert [(one.nodeName, one.targetRef.name) for one in slices[0].endpoints] == [
        ("node1", "web-1"), ("node2", "web-2"),
    ]  # fmt: skip


def test_a_service_without_a_selector_keeps_the_slices_that_somebody_wrote():
    assert render([service(ports=[PORT])], [backend(1)]) == []


@pytest.mark.parametrize(("target", "number"), [(8080, 8080), ("8080", 8080), (None, 80)])
def test_the_target_port_is_the_endpoints_port(target, number):
    port = {**PORT, **({"targetPort": target} if target is not None else {})}
    assert told(render([service(selector={"app": "web"}, ports=[port])], [backend(1)]))[0][2] == [number]


def test_pods_whose_named_port_has_another_number_are_in_a_slice_of_their_own():
    """One slice has one number for each port."""
    spec = service(selector={"app": "web"}, ports=[{**PORT, "targetPort": "http"}])
    assert [one[2:] for one in told(render([spec], [backend(1), backend(2)]))] == [
        ([8001], ["10.244.1.2"]), ([8002], ["10.244.2.2"]),
    ]  # fmt: skip


def test_a_named_port_that_a_pod_lacks_is_left_out():
    spec = service(selector={"app": "web"}, ports=[{**PORT, "targetPort": "admin"}])
    assert told(render([spec], [backend(1)]))[0][2] == []


def test_each_family_has_slices_of_its_own():
    dual = backend(1, addresses=("10.244.1.2", "fd00:10:244:1::2"))
    slices = render([service(selector={"app": "web"}, ports=[PORT])], [dual])
    assert [one[1] for one in told(slices)] == ["IPv4", "IPv6"]


def test_more_than_a_hundred_endpoints_are_several_slices():
    many = [backend(1, name=f"web-{n:03}", addresses=(f"10.244.{n // 200}.{n % 200 + 2}",)) for n in range(250)]
    slices = render([service(selector={"app": "web"}, ports=[PORT])], many)
    assert [len(one.endpoints) for one in slices] == [100, 100, 50]
    assert len({address for one in told(slices) for address in one[3]}) == 250


@pytest.mark.parametrize(
    ("ready", "terminating", "publish", "conditions"),
    [
        (True, False, False, (True, True, False)),
        (False, False, False, (False, False, False)),
        (True, True, False, (False, True, True)),
        (False, True, False, (False, False, True)),
        (False, False, True, (True, False, False)),
    ],
)
def test_conditions_follow_readiness_and_the_end_of_a_pod(ready, terminating, publish, conditions):
    """A pod that ends, and still answers, is serving but not ready: kube-proxy uses it as a last resort."""
    spec = service(selector={"app": "web"}, ports=[PORT], publishNotReadyAddresses=publish)
    state = render([spec], [backend(1, ready=ready, terminating=terminating)])[0].endpoints[0].conditions
    assert (state.ready, state.serving, state.terminating) == conditions


def test_headless_services_have_slices_that_say_so_and_external_names_have_none():
    headless = render([service(selector={"app": "web"}, clusterIP="None", ports=[PORT])], [backend(1)])
    assert "service.kubernetes.io/headless" in headless[0].metadata.labels
    assert render([service(selector={"app": "web"}, type="ExternalName", externalName="a.b")], [backend(1)]) == []


# -- addresses -------------------------------------------------------------------------


def test_cluster_ips_and_node_ports_are_handed_out_in_order_and_those_given_are_kept():
    made = assign([
        service(ports=[PORT]), service(clusterIP="10.96.0.21", ports=[PORT]), service(type="NodePort", ports=[PORT]),
        service(type="NodePort", ports=[{**PORT, "nodePort": 30000}]), service(clusterIP="None", ports=[PORT]),
        service(type="LoadBalancer", ports=[PORT], allocateLoadBalancerNodePorts=False),
    ], ("v4",))  # fmt: skip
    assert [one.spec.clusterIP for one in made] == [
        "10.96.0.20", "10.96.0.21", "10.96.0.22", "10.96.0.23", "None", "10.96.0.24",
    ]  # fmt: skip
    assert [one.spec.ports[0].nodePort for one in made] == [None, None, 30001, 30000, None, None]


def test_a_dual_stack_service_has_an_address_of_each_family():
    made = assign([service(ports=[PORT], ipFamilyPolicy="PreferDualStack"), service(ports=[PORT]),
                   service(ports=[PORT], ipFamilies=["IPv6"])], ("v4", "v6"))  # fmt: skip
    assert [one.spec.clusterIPs for one in made] == [
        ["10.96.0.20", "fd00:10:96::14"], ["10.96.0.21"], ["fd00:10:96::15"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "families", "addresses"),
    [
        ({"clusterIP": "fd00:10:96::99"}, ["IPv6"], ["fd00:10:96::99"]),
        ({"clusterIP": "fd00:10:96::99", "ipFamilyPolicy": "PreferDualStack"}, ["IPv6", "IPv4"],
         ["fd00:10:96::99", "10.96.0.20"]),
        ({"ipFamilies": ["IPv6"], "ipFamilyPolicy": "RequireDualStack"}, ["IPv6", "IPv4"],
         ["fd00:10:96::14", "10.96.0.20"]),
        ({"clusterIPs": ["10.96.0.99", "fd00:10:96::99"]}, ["IPv4", "IPv6"], ["10.96.0.99", "fd00:10:96::99"]),
        ({"clusterIPs": ["10.96.0.99", "fd00:10:96::99"], "ipFamilyPolicy": "SingleStack"}, ["IPv4"], ["10.96.0.99"]),
    ],
)  # fmt: skip
def test_families_follow_from_what_a_service_names_and_its_addresses_are_kept(spec, families, addresses):
    """As the API server infers them; once given, they stay when the cluster looks again."""
    once = assign([service(ports=[PORT], **spec)], ("v4", "v6"))
    for made in (once, assign(once, ("v4", "v6"))):
        assert made[0].spec.ipFamilies == families
        assert made[0].spec.clusterIPs == addresses
        assert made[0].spec.clusterIP == addresses[0]


@pytest.mark.parametrize("ip", [None, "None"])
def test_a_service_has_slices_of_its_families_alone(ip):
    """A headless one, too: without a word about families its pods have no AAAA records."""
    both = backend(1, addresses=("10.244.1.2", "fd00:10:244:1::2"))
    for policy, kinds in (({}, ["IPv4"]), ({"ipFamilyPolicy": "PreferDualStack"}, ["IPv4", "IPv6"])):
        made = assign([service(selector={"app": "web"}, ports=[PORT], clusterIP=ip, **policy)], ("v4", "v6"))
        assert [one.addressType for one in render(made, [both])] == kinds


def test_the_cluster_dns_has_its_fixed_address():
    import json

    document = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system"},
                "spec": {"ports": [PORT]}}  # fmt: skip
    assert assign([parse(json.dumps(document)).objects[0]], ("v4",))[0].spec.clusterIP == "10.96.0.10"


def test_when_no_node_port_is_left_the_service_is_named():
    full = [service(type="NodePort", ports=[{**PORT, "nodePort": number}]) for number in range(30000, 32768)]
    with pytest.raises(InvalidManifest, match="Service shop/web: no node port is left"):
        assign([*full, service(type="NodePort", ports=[PORT])], ("v4",))
