"""Manifests: what Kubernetes takes is loaded, and what it would refuse gets one clear line."""

from __future__ import annotations

import gc
import io
import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lightkube.models.meta_v1 import LabelSelector, LabelSelectorRequirement
from lightkube.resources.core_v1 import Namespace, Pod, Service

from k8snet.cluster import objects as o
from k8snet.cluster.manifests import load, parse
from k8snet.errors import InvalidManifest

EXAMPLES = sorted((Path(__file__).parents[2] / "notebooks" / "manifests").iterdir())


def pod(name="web", *, meta="", spec="", container="", status=""):
    """Return the text of a pod; the options are flow mappings without their braces."""
    container = container or "name: a, image: nginx"
    spec = spec or f"containers: [{{{container}}}]"
    tail = f"\nstatus: {{{status}}}" if status else ""
    return f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}{meta}}}\nspec: {{{spec}}}{tail}\n"


def port(fields):
    """Return the text of a pod whose one port has *fields*."""
    return pod(container=f"name: a, ports: [{{{fields}}}]")


def deployment(
    *, kind="Deployment", version="apps/v1", spec="", labels="{app: web}", selector="{matchLabels: {app: web}}", pod=""
):
    template = f"template: {{metadata: {{labels: {labels}}}, spec: {{containers: [{{name: a}}]{pod}}}}}"
    return (
        f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: web}}\n"
        f"spec: {{selector: {selector}, {template}{spec}}}\n"
    )


def node(name, cidr="", address=""):
    spec = f"\nspec: {{{cidr if ':' in cidr and '[' in cidr else f'podCIDR: {cidr}'}}}" if cidr else ""
    status = f"\nstatus: {{addresses: [{{type: InternalIP, address: '{address}'}}]}}" if address else ""
    return f"apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}{spec}{status}\n"


def of(version, kind):
    return f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\n"


def several(*documents):
    return "---\n".join(documents)


ONE, TWO = node("n1", "10.244.1.0/24", "172.18.0.1"), node("n2", "10.244.2.0/24", "172.18.0.2")
ON_N1 = "nodeName: n1, containers: [{name: a}]"
POD = "document 1, Pod default/web: "
SERVICE = "document 1, Service default/x: "
POLICY = "document 1, NetworkPolicy default/x: "
NO_CONTAINER = "is missing; a pod has at least one container"
WEB = "document 1, Deployment default/web: "

BAD = {
    # name: (the manifest, what the message says after "bad: ")
    # -- the text
    "nothing": ("", "no Kubernetes object in it; is it the right file?"),
    "only comments": ("# later\n---\n", "no Kubernetes object in it; is it the right file?"),
    "a tab for indentation": (
        "kind: Pod\n\tmetadata: {}",
        "line 2, column 1: found a tab character that violates indentation"),
    "a bracket that is not closed": (
        "kind: [Pod", "line 2, column 1: did not find expected ',' or ']'"),
    "a field twice": (
        "kind: Pod\nmetadata:\n  name: a\n  name: b\n",
        "line 4, column 3: the field 'name' is written twice in one mapping"),
    "an object tag of Python": (
        "!!python/object/apply:os.system [id]",
        ("line 1, column 1: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object/apply:os.system'")),
    "nested too deeply": ("[" * 100_000, "nested too deeply"),
    "a control character": ("kind: \x00", "not text: control characters are not allowed at character 6"),
    # -- the document
    "a list of words": (
        "- a\n- b\n", "document 1: a list is not a Kubernetes object; those have apiVersion and kind"),
    "a word": ("hello", "document 1: 'hello' is not a Kubernetes object; those have apiVersion and kind"),
    "no apiVersion": ("kind: Pod", "document 1: apiVersion: is missing; write it as in 'apiVersion: v1'"),
    "no kind": ("apiVersion: v1", "document 1: kind: is missing; write it as in 'kind: Pod'"),
    "an apiVersion that is a number": (
        "apiVersion: 1\nkind: Pod", "document 1: apiVersion: 1 is not text; write it as in 'apiVersion: v1'"),
    "a kind that is a list": (
        "apiVersion: v1\nkind: []", "document 1: kind: a list is not text; write it as in 'kind: Pod'"),
    "a List whose items are none": (
        "apiVersion: v1\nkind: List\nitems: {a: 1}", "document 1, List: items: a mapping is not a list"),
    "an item of a List that is no object": (
        "apiVersion: v1\nkind: PodList\nitems: [{metadata: {name: a}, spec: {containers: [{name: a}]}}, 7]",
        "document 1, item 2: 7 is not a Kubernetes object; those have apiVersion and kind"),
    # -- the kind
    "an apiVersion of the past": (
        of("extensions/v1beta1", "Ingress"),
        "document 1: Ingress has no apiVersion 'extensions/v1beta1'; use networking.k8s.io/v1"),
    "a group that does not exist": (
        of("app/v1", "Deployment"), "document 1: Deployment has no apiVersion 'app/v1'; use apps/v1"),
    "a group left out": (of("v1", "DaemonSet"), "document 1: DaemonSet has no apiVersion 'v1'; use apps/v1"),
    "a kind misspelt": (
        of("apps/v1", "Deploymnet"),
        "document 1: there is no kind 'Deploymnet' in 'apps/v1'; did you mean 'Deployment'?"),
    "a kind that does not exist": (
        of("networking.k8s.io/v1", "Xyz"), "document 1: there is no kind 'Xyz' in 'networking.k8s.io/v1'"),
    "a policy of Calico": (
        of("projectcalico.org/v3", "GlobalNetworkPolicy"),
        ("document 1: kind 'GlobalNetworkPolicy' of 'projectcalico.org/v3' is not supported; "
        "use a NetworkPolicy (networking.k8s.io/v1), or take it out")),
    "a policy of Cilium": (
        of("cilium.io/v2", "CiliumNetworkPolicy"),
        ("document 1: kind 'CiliumNetworkPolicy' of 'cilium.io/v2' is not supported; "
        "use a NetworkPolicy (networking.k8s.io/v1), or take it out")),
    "a policy of administrators": (
        of("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"),
        ("document 1: kind 'AdminNetworkPolicy' of 'policy.networking.k8s.io/v1alpha1' is not supported; "
        "use a NetworkPolicy (networking.k8s.io/v1), or take it out")),
    "a second network for pods": (
        of("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition"),
        ("document 1: kind 'NetworkAttachmentDefinition' of 'k8s.cni.cncf.io/v1' is not supported; "
        "use a CNI configuration list; every pod has one network here, or take it out")),
    "a route for TCP": (
        of("gateway.networking.k8s.io/v1alpha2", "TCPRoute"),
        ("document 1: kind 'TCPRoute' of 'gateway.networking.k8s.io/v1alpha2' is not supported; "
        "use a Service of type LoadBalancer, or take it out")),
    "a route of Istio": (
        of("networking.istio.io/v1", "VirtualService"),
        ("document 1: kind 'VirtualService' of 'networking.istio.io/v1' is not supported; use an HTTPRoute "
        "(gateway.networking.k8s.io/v1) or an Ingress (networking.k8s.io/v1), or take it out")),
    "a Service of another cluster": (
        of("multicluster.x-k8s.io/v1alpha1", "ServiceImport"),
        ("document 1: kind 'ServiceImport' of 'multicluster.x-k8s.io/v1alpha1' is not supported; "
        "use a Service with an EndpointSlice of its own, or take it out")),
    "a ReplicationController": (
        of("v1", "ReplicationController"),
        ("document 1: kind 'ReplicationController' of 'v1' is not supported; "
        "use a Deployment (apps/v1), or take it out")),
    # -- fields and types
    "an unknown field": (
        port("containerPort: 80, hostport: 80"),
        POD + "spec.containers[0].ports[0].hostport: unknown field of ContainerPort; did you mean 'hostPort'?"),
    "an unknown field like no other": (pod(meta=", zzz: 1"), POD + "metadata.zzz: unknown field of ObjectMeta"),
    "an unknown field of a Service": (
        of("v1", "Service") + "spec: {ports: [{port: 80, target: 80}]}",
        SERVICE + "spec.ports[0].target: unknown field of ServicePort; did you mean 'targetPort'?"),
    "an unknown field of a NetworkPolicy": (
        of("networking.k8s.io/v1", "NetworkPolicy") + "spec: {podSelector: {}, ingres: []}",
        POLICY + "spec.ingres: unknown field of NetworkPolicySpec; did you mean 'ingress'?"),
    "an unknown field of a Gateway": (
        of("gateway.networking.k8s.io/v1", "Gateway")
        + "spec: {gatewayClassName: a, listeners: [{name: a, port: 80, protocol: HTTP, host: a}]}",
        "document 1, Gateway default/x: spec.listeners[0].host: unknown field of Listener; did you mean 'hostname'?"),
    "a port that is a word": (
        port("containerPort: eighty"),
        POD + "spec.containers[0].ports[0].containerPort: 'eighty' is not a whole number; write it as in 80"),
    "a port in quotes": (
        port("containerPort: '80'"),
        POD + "spec.containers[0].ports[0].containerPort: '80' is not a whole number; write it as in 80"),
    "a port that is no whole number": (
        port("containerPort: 80.5"),
        POD + "spec.containers[0].ports[0].containerPort: 80.5 is not a whole number; write it as in 80"),
    "a port that is a truth": (
        port("containerPort: yes"),
        POD + "spec.containers[0].ports[0].containerPort: true is not a whole number; write it as in 80"),
    "a number beyond 64 bits": (
        port("containerPort: 99999999999999999999"),
        POD + "spec.containers[0].ports[0].containerPort: 99999999999999999999 is not a port; ports are 1 to 65535"),
    "a label that is a number": (
        pod(meta=", labels: {version: 1}"), POD + "metadata.labels.version: 1 is not text; put it in quotes"),
    "a label of nothing": (
        pod(meta=", labels: {version: }"), POD + "metadata.labels.version: null is not text; put it in quotes"),
    "a key that is a number": (
        pod(meta=", labels: {1: a}"), POD + "metadata.labels: the key 1 is not text; put it in quotes"),
    "a truth in quotes": (
        pod(spec="hostNetwork: 'true', containers: [{name: a}]"),
        POD + "spec.hostNetwork: 'true' is not true or false; write one of these words, without quotes"),
    "a mapping where a list is due": (
        pod(spec="containers: {name: a}"),
        POD + "spec.containers: a mapping is not a list; start each element with '- '"),
    "a list where a mapping is due": (
        pod(spec="containers: [[name]]"),
        POD + "spec.containers[0]: a list is not a mapping; write it as in 'name: value'"),
    "a target port that is a list": (
        of("v1", "Service") + "spec: {ports: [{port: 80, targetPort: [80]}]}",
        SERVICE + "spec.ports[0].targetPort: a list is not a whole number or text; "
        "write it as in 80 or http"),
    "a quantity that is none": (
        pod(container="name: a, resources: {limits: {cpu: lots}}"),
        POD + "spec.containers[0].resources.limits.cpu: 'lots' is not a quantity; write it as in 500m or 64Mi"),
    "a time that is none": (
        pod(meta=", creationTimestamp: yesterday"),
        POD + "metadata.creationTimestamp: 'yesterday' is not a time; write it as in '2026-01-31T12:00:00Z'"),
    "a very long value": (
        port(f"containerPort: {'x' * 99}"),
        POD + f"spec.containers[0].ports[0].containerPort: '{'x' * 56}...' is not a whole number; write it as in 80"),
    "an unknown field of two lines": (
        pod(meta=', "a\\nb": 1'), POD + "metadata.a?b: unknown field of ObjectMeta"),
    # -- names
    "no metadata": ("apiVersion: v1\nkind: Pod\n", "document 1, Pod: metadata.name: is missing"),
    "a name for the server to make": (
        "apiVersion: batch/v1\nkind: Job\nmetadata: {generateName: a-}",
        "document 1, Job: metadata.name: is missing; generateName is the API server's, write a name"),
    "a name in capitals": (
        pod("Web"),
        ("document 1, Pod default/Web: metadata.name: 'Web' is not a name: 1 to 253 lower-case letters, digits, "
        "'-' and '.', with a letter or digit at both ends")),
    "a name that leads upwards": (
        pod("../../etc"),
        ("document 1, Pod default/../../etc: metadata.name: '../../etc' is not a name: 1 to 253 lower-case letters, "
        "digits, '-' and '.', with a letter or digit at both ends")),
    "a name of two lines": (
        pod('"a\\nb"'),
        ("document 1, Pod: metadata.name: 'a\\nb' is not a name: 1 to 253 lower-case letters, digits, '-' and '.', "
        "with a letter or digit at both ends")),
    "a namespace with a dot": (
        pod(meta=", namespace: a.b"),
        ("document 1, Pod a.b/web: metadata.namespace: 'a.b' is not a name: 1 to 63 lower-case letters, digits and "
        "'-', "
        "with a letter or digit at both ends")),
    "a container's name with an underscore": (
        pod(container="name: a_b"),
        POD + "spec.containers[0].name: 'a_b' is not a name: 1 to 63 lower-case letters, digits and '-', "
        "with a letter or digit at both ends"),
    "one name twice": (
        several(pod(), pod()),
        "document 2, Pod default/web: metadata.name: 'web' is in this manifest already, in bad: document 1"),
    # -- the pod
    "no spec": ("apiVersion: v1\nkind: Pod\nmetadata: {name: web}", POD + "spec: " + NO_CONTAINER),
    "no containers": (pod(spec="hostNetwork: true"), POD + "spec.containers: " + NO_CONTAINER),
    "a container without a name": (pod(container="image: nginx"), POD + "spec.containers[0].name: is missing"),
    "two containers of one name": (
        pod(spec="containers: [{name: a}], initContainers: [{name: a}]"),
        POD + "spec.initContainers[0].name: 'a' is the name of another container of this pod"),
    "no containerPort": (
        port("name: http"), POD + "spec.containers[0].ports[0].containerPort: is missing; write it as in 80"),
    "port 0": (
        port("containerPort: 0"),
        POD + "spec.containers[0].ports[0].containerPort: 0 is not a port; ports are 1 to 65535"),
    "port 65536": (
        port("containerPort: 1, hostPort: 65536"),
        POD + "spec.containers[0].ports[0].hostPort: 65536 is not a port; ports are 1 to 65535"),
    "a protocol in small letters": (
        port("containerPort: 80, protocol: tcp"),
        POD + "spec.containers[0].ports[0].protocol: 'tcp' is not one of: TCP, UDP, SCTP"),
    "a long name of a port": (
        port("containerPort: 80, name: a-name-of-sixteen"),
        POD + "spec.containers[0].ports[0].name: 'a-name-of-sixteen' is not the name of a port: "
        "1 to 15 lower-case letters, at least one, digits and single '-' between them"),
    "two ports of one name": (
        pod(container="name: a, ports: [{name: x, containerPort: 1}, {name: x, containerPort: 2}]"),
        POD + "spec.containers[0].ports[1].name: 'x' is the name of another port of this container"),
    "a hostIP that is none": (
        port("containerPort: 80, hostIP: everywhere"),
        POD + "spec.containers[0].ports[0].hostIP: 'everywhere' is not an IPv4 or IPv6 address"),
    "a hostPort beside hostNetwork": (
        pod(spec="hostNetwork: true, containers: [{name: a, ports: [{containerPort: 80, hostPort: 8080}]}]"),
        POD + "spec.containers[0].ports[0].hostPort: 8080: with hostNetwork it is the containerPort or left out"),
    "a hostPort twice in a pod": (
        pod(container="name: a, ports: [{containerPort: 1, hostPort: 80}, {containerPort: 2, hostPort: 80}]"),
        POD + "spec.containers: port TCP 80 of the node is taken twice in one pod"),
    "a port twice in the network of the node": (
        pod(spec="hostNetwork: true, containers: [{name: a, ports: [{containerPort: 80}]}, "
            "{name: b, ports: [{containerPort: 80}]}]"),
        POD + "spec.containers: port TCP 80 of the node is taken twice in one pod"),
    "a restartPolicy of another word": (
        pod(spec="restartPolicy: Sometimes, containers: [{name: a}]"),
        POD + "spec.restartPolicy: 'Sometimes' is not one of: Always, OnFailure, Never"),
    "a dnsPolicy of another word": (
        pod(spec="dnsPolicy: Cluster, containers: [{name: a}]"),
        POD + "spec.dnsPolicy: 'Cluster' is not one of: ClusterFirst, ClusterFirstWithHostNet, Default, None"),
    "an operator of a node affinity": (
        pod(spec="containers: [{name: a}], affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: "
            "{nodeSelectorTerms: [{matchExpressions: [{key: disk, operator: Is, values: [ssd]}]}]}}}"),
        POD + "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]"
        ".matchExpressions[0].operator: 'Is' is not one of: In, NotIn, Exists, DoesNotExist, Gt, Lt"),
    # -- workloads
    "less than no replicas": (
        deployment(spec=", replicas: -1"), WEB + "spec.replicas: -1 is not a number of pods from 0 to 10000"),
    "more replicas than anyone has": (
        deployment(spec=", replicas: 1000000000"),
        WEB + "spec.replicas: 1000000000 is not a number of pods from 0 to 10000"),
    "a template that never restarts": (
        deployment(pod=", restartPolicy: Never"),
        WEB + "spec.template.spec.restartPolicy: 'Never' is not one of: Always"),
    "a Job that does not say when to stop": (
        of("batch/v1", "Job") + "spec: {template: {spec: {containers: [{name: a}]}}}",
        ("document 1, Job default/x: spec.template.spec.restartPolicy: is missing; "
        "the pods of a Job have OnFailure or Never")),
    "a Job without a spec": (of("batch/v1", "Job"), "document 1, Job default/x: spec: is missing"),
    "a Deployment without a selector": (
        of("apps/v1", "Deployment") + "spec: {template: {spec: {containers: [{name: a}]}}}",
        "document 1, Deployment default/x: spec.selector: is missing"),
    "a selector for other pods": (
        deployment(labels="{app: shop}"),
        WEB + "spec.selector: does not select the template's own pods; their labels: app=shop"),
    "a selector, and no labels": (
        deployment(labels="{}"), WEB + "spec.selector: does not select the template's own pods; their labels: none"),
    "a selector for everything": (
        deployment(selector="{}"),
        WEB + "spec.selector: is empty; give it matchLabels that the template's labels have"),
    "an operator without values": (
        deployment(selector="{matchExpressions: [{key: app, operator: In}]}"),
        WEB + "spec.selector.matchExpressions[0].values: In takes at least one value"),
    "an operator with values": (
        deployment(selector="{matchExpressions: [{key: app, operator: Exists, values: [a]}]}"),
        WEB + "spec.selector.matchExpressions[0].values: Exists takes no values"),
    # -- nodes
    "a pod CIDR that is none": (
        node("n1", "10.244.0.0/33"),
        ("document 1, Node n1: spec.podCIDR: '10.244.0.0/33' is not a network: "
        "'10.244.0.0/33' does not appear to be an IPv4 or IPv6 network")),
    "a pod CIDR with host bits": (
        node("n1", "10.244.1.7/24"),
        "document 1, Node n1: spec.podCIDR: '10.244.1.7/24' has host bits set; did you mean 10.244.1.0/24?"),
    "a pod CIDR without a length": (
        node("n1", "10.244.1.0"),
        "document 1, Node n1: spec.podCIDR: '10.244.1.0' has no prefix length; write it as in 10.244.1.0/24"),
    "two pod CIDRs of one family": (
        node("n1", "podCIDRs: [10.244.1.0/24, 10.244.2.0/24]"),
        "document 1, Node n1: spec.podCIDRs: two of IPv4; a node has at most one of each family"),
    "a pod CIDR inside another": (
        several(node("n1", "10.244.7.0/24"), node("n2", "10.0.0.0/24"), node("n3", "10.244.0.0/16")),
        "document 1, Node n1: spec.podCIDR: 10.244.7.0/24 overlaps 10.244.0.0/16, the pod CIDR of Node n3"),
    "one pod CIDR for two": (
        several(ONE, node("n2", "10.244.1.0/24")),
        "document 2, Node n2: spec.podCIDR: 10.244.1.0/24 overlaps 10.244.1.0/24, the pod CIDR of Node n1"),
    "an address of a node that is none": (
        node("n1", address="172.18.0"),
        "document 1, Node n1: status.addresses: '172.18.0' is not an IPv4 or IPv6 address"),
    "one address for two nodes": (
        several(ONE, node("n2", address="172.18.0.1")),
        "document 2, Node n2: status.addresses: 172.18.0.1 is the InternalIP of Node n1 already"),
    "one IPv6 address for two nodes, written in two ways": (
        several(node("n1", address="fd00::1"), node("n2", address="FD00:0::1")),
        "document 2, Node n2: status.addresses: FD00:0::1 is the InternalIP of Node n1 already"),
    # -- pods on nodes
    "a node that is not there": (
        several(ONE, TWO, pod(spec="nodeName: n3, containers: [{name: a}]")),
        "document 3, Pod default/web: spec.nodeName: 'n3' is no Node of this manifest; there are: n1, n2"),
    "a template's node that is not there": (
        several(ONE, deployment(pod=", nodeName: n9")),
        WEB.replace("1", "2") + "spec.template.spec.nodeName: 'n9' is no Node of this manifest; there are: n1"),
    "a hostPort twice on a node": (
        several(*(pod(name, spec="nodeName: n1, containers: [{name: a, ports: [{containerPort: 80, hostPort: 80}]}]")
                  for name in ("a", "b"))),
        "document 2, Pod default/b: spec.containers: port TCP 80 of node n1 is taken by Pod default/a already"),
    "two servers in the network of a node": (
        several(*(pod(name, spec="nodeName: n1, hostNetwork: true, containers: [{name: a, ports: [{containerPort: 53, "
                                 "protocol: UDP}]}]") for name in ("a", "b"))),
        "document 2, Pod default/b: spec.containers: port UDP 53 of node n1 is taken by Pod default/a already"),
    "a pod CIDR without room": (
        node("n1", "10.1.0.0/31", "172.18.0.1"),
        "document 1, Node n1: spec.podCIDR: 10.1.0.0/31 is too small: it has no room for a gateway and a pod"),
    "a pod CIDR of multicast addresses": (
        node("n1", "224.1.0.0/24", "172.18.0.1"),
        ("document 1, Node n1: spec.podCIDR: 224.1.0.0/24 is not for pods: "
        "its addresses are loopback, link-local or multicast ones")),
    "a pod CIDR of the internet": (
        node("n1", "203.0.113.0/24", "172.18.0.1"),
        ("document 1, Node n1: spec.podCIDR: 203.0.113.0/24 overlaps "
        "203.0.113.0/24, which is the internet of this lab")),
    "two pod CIDRs that do not agree": (
        "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDR: 10.1.0.0/24, podCIDRs: [10.2.0.0/24]}",
        "document 1, Node n1: spec.podCIDRs: the first one is not 10.1.0.0/24, the podCIDR"),
    "the key of a label with two slashes": (
        pod(meta=", labels: {a/b/c: d}"),
        POD + "metadata.labels: 'a/b/c' is not the key of a label; write it as in app or example.com/app"),
    "the value of a label with a space": (
        deployment(labels="{app: web, tier: a b}"),
        WEB + "spec.template.metadata.labels.tier: 'a b' is not the value of a label: "
        "up to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends"),
    "an address that is none": (
        pod(status="podIP: 10.244.1"), POD + "status.podIP: '10.244.1' is not an IPv4 or IPv6 address"),
    "an address outside the pod CIDR": (
        several(ONE, pod(spec=ON_N1, status="podIP: 10.244.2.5")),
        "document 2, Pod default/web: status.podIP: 10.244.2.5 is outside its node's pod CIDR, 10.244.1.0/24"),
    "an address of two pods": (
        several(pod("a", status="podIP: 10.244.1.5"), pod("b", status="podIPs: [{ip: 10.244.1.5}]")),
        "document 2, Pod default/b: status.podIP: 10.244.1.5 is the address of Pod default/a already"),
    "an address of a pod that has its node's": (
        several(ONE, pod(spec=f"hostNetwork: true, {ON_N1}", status="podIP: 10.244.1.5")),
        ("document 2, Pod default/web: status.podIP: 10.244.1.5 is not 172.18.0.1, its node's, "
        "which a hostNetwork pod has")),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_manifest_gets_one_line_that_says_where_and_what(text, message):
    with pytest.raises(InvalidManifest) as caught:
        parse(text, "bad")
    assert str(caught.value) == f"bad: {message}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in BAD if "unknown field" in name])
def test_a_lenient_loader_makes_a_warning_of_an_unknown_field(name):
    text, message = BAD[name]
    assert parse(text, "bad", lenient=True).warnings == (f"bad: {message}; ignored",)


def test_a_lenient_loader_still_refuses_a_wrong_type():
    with pytest.raises(InvalidManifest, match="'x' is not a whole number"):
        parse(port("containerPort: x, other: 1"), lenient=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "no.yaml", "no.yaml: cannot be read: No such file or directory"),
        (lambda folder: folder, ": no *.yaml, *.yml or *.json in this folder"),
        (lambda folder: write(folder / "latin.yaml", b"kind: \xe9"), "latin.yaml: not text in UTF-8: "),
        (lambda folder: write(folder / "a.json", b'{"kind":\n}'), "a.json: line 2, column 1: "),
        (lambda folder: write(folder / "a.json", b'{"a": 1,\n"a": 2}'), "a.json: line 2, column 1: the field 'a' is"),
        (lambda folder: write(folder / "a.json", b""), "a.json: no Kubernetes object in it; is it the right file?"),
        (lambda folder: write(folder / "a.json", b'{"items": ' + b"[" * 100_000), "a.json: nested too deeply"),
    ],
)
def test_a_source_that_cannot_be_read_is_named(tmp_path, make, message):
    with pytest.raises(InvalidManifest, match=re.escape(message)):
        load(make(tmp_path))


def write(path, data):
    path.write_bytes(data)
    return path


def test_no_source_at_all_is_an_error():
    with pytest.raises(InvalidManifest, match="name a file, a folder, or - for standard input"):
        load()


# -- what is taken ---------------------------------------------------------------------------


def names(manifest):
    return [" ".join(filter(None, o.key_of(one))) for one in manifest.objects]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_manifest_of_the_book_loads_without_a_warning(path):
    manifest = load(path)
    assert manifest.objects
    assert (manifest.warnings, manifest.not_used_line) == ((), "")


def test_sources_are_files_folders_and_standard_input_in_their_order(tmp_path):
    for name in ("b.yml", "a.yaml", "c.json"):
        text = pod(name[0])
        write(tmp_path / name, (json.dumps(yaml.safe_load(text)) if name == "c.json" else text).encode())
    write(tmp_path / "README.md", b"not a manifest")
    manifest = load("-", tmp_path, stdin=io.StringIO(pod("z")))
    assert names(manifest) == [f"Pod default {name}" for name in "zabc"] + ["Namespace default"]


def test_standard_input_that_is_no_text_is_refused_and_its_byte_order_mark_skipped(monkeypatch):
    """Python reads standard input in the locale's encoding, and lets through what is none."""
    cases = {b"\x7fELF\xff\xfe": "standard input: not text in UTF-8", b"\xef\xbb\xbf# x": "no Kubernetes object"}
    for data, said in cases.items():
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), errors="surrogateescape"))
        with pytest.raises(InvalidManifest, match=said):
            load("-")


def test_a_source_without_a_name_is_not_the_current_folder():
    with pytest.raises(InvalidManifest, match="without a name"):
        load("")


def test_a_name_that_two_files_share_is_said_with_both(tmp_path):
    first, second = write(tmp_path / "a.yaml", pod().encode()), write(tmp_path / "b.yaml", pod().encode())
    with pytest.raises(InvalidManifest, match=re.escape(f"'web' is in this manifest already, in {first}: document 1")):
        load(first, second)


def test_json_objects_one_after_the_other_are_as_many_documents():
    text = "\n".join(json.dumps(yaml.safe_load(pod(name))) for name in "ab")
    assert names(parse(text)) == ["Pod default a", "Pod default b", "Namespace default"]


def test_yaml_in_the_flow_style_is_not_taken_for_broken_json():
    assert names(parse("{apiVersion: v1, kind: Namespace, metadata: {name: a}}")) == ["Namespace a"]


def test_an_empty_list_of_a_live_cluster_is_no_error():
    assert parse('{"apiVersion": "v1", "kind": "List", "items": []}').objects == ()


def test_kinds_without_a_network_effect_are_counted_and_named_in_one_line():
    text = several(
        of("v1", "ConfigMap"), of("v1", "ConfigMap"), of("autoscaling/v2", "HorizontalPodAutoscaler"),
        of("rbac.authorization.k8s.io/v1", "ClusterRole"), of("example.com/v1", "Database"),
        of("serving.knative.dev/v1", "Service"), of("policy/v1beta1", "PodDisruptionBudget"), ONE,
    )  # fmt: skip
    manifest = parse(text)
    assert manifest.not_used_line == (
        "not used: 1 ClusterRole, 2 ConfigMap, 1 Database, 1 HorizontalPodAutoscaler, 1 PodDisruptionBudget, 1 Service"
    )
    assert names(manifest) == ["Node n1"]


def test_endpoints_are_named_as_deprecated_once():
    manifest = parse(several(of("v1", "Endpoints"), of("v1", "Endpoints")), "f")
    assert manifest.warnings == ("f: document 1: Endpoints are deprecated and not used; only EndpointSlices count",)


def test_a_namespace_that_is_used_but_not_declared_is_made_with_the_label_that_names_it():
    """The API server sets that label; namespaceSelectors of policies stand on it."""
    manifest = parse(several(of("v1", "Namespace"), pod(meta=", namespace: y"), pod(meta=", namespace: x")))
    assert names(manifest)[-1:] == ["Namespace y"]
    spaces = [one for one in manifest.objects if isinstance(one, Namespace)]
    assert [o.labels_of(one) for one in spaces] == [{"kubernetes.io/metadata.name": name} for name in ("x", "y")]


def test_yaml_is_read_as_kubernetes_reads_it():
    """PyYAML would make a date of the time, and 1342 of 22:22 (base 60)."""
    text = pod(meta=", creationTimestamp: 2024-05-06T07:08:09Z, annotations: {ports: 22:22}")
    found = parse(text).objects[0].metadata
    assert (found.creationTimestamp.year, found.annotations) == (2024, {"ports": "22:22"})


def test_anchors_and_merges_are_followed():
    text = several("apiVersion: v1\nkind: List\nitems:\n- &one\n  apiVersion: v1\n  kind: Node\n  metadata: {name: a}\n"
                   "- <<: *one\n  metadata: {name: b}\n")  # fmt: skip
    assert names(parse(text)) == ["Node a", "Node b"]


def test_quantities_may_be_numbers_and_ports_of_services_names_or_numbers():
    text = several(
        pod(container="name: a, resources: {limits: {cpu: 1, memory: 0.5}, requests: {cpu: 500m, memory: 64Mi}}"),
        of("v1", "Service") +
        "spec: {ports: [{name: a, port: 80, targetPort: http}, {name: b, port: 81, targetPort: 8081}]}",
    )
    web, service, *_ = parse(text).objects
    assert web.spec.containers[0].resources.limits == {"cpu": "1", "memory": "0.5"}
    assert [one.targetPort for one in service.spec.ports] == ["http", 8081]


def test_an_endpoint_slice_of_a_live_cluster_may_have_null_for_its_endpoints():
    """`kubectl get endpointslices -o yaml` prints it so for a Service without pods."""
    text = of("discovery.k8s.io/v1", "EndpointSlice") + "addressType: IPv4\nendpoints: null\nports: null\n"
    assert parse(text).objects[0].endpoints is None


def test_a_pod_that_is_but_an_address_needs_no_spec():
    """DNS fixtures have pods of that kind."""
    text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: {podIP: 10.240.0.1}\n"
    assert o.addresses_of(parse(text).objects[0]) == ("10.240.0.1",)


def test_pods_that_have_ended_share_addresses_and_ports_with_those_that_live():
    spec = "nodeName: n1, containers: [{name: a, ports: [{containerPort: 80, hostPort: 80}]}]"
    old = pod("old", spec=spec, status="podIP: 10.244.1.5, phase: Succeeded")
    assert len(parse(several(ONE, old, pod("new", spec=spec, status="podIP: 10.244.1.5"))).objects) == 4


def test_ports_of_different_addresses_of_a_node_do_not_clash():
    ports = [f"{{containerPort: 1, hostPort: 80, hostIP: 172.18.0.{number}}}" for number in (1, 2)]
    assert parse(pod(container=f"name: a, ports: [{', '.join(ports)}]")).objects


@pytest.mark.parametrize(
    ("wanted", "taken", "clashes"),
    [("", "", True), ("", "172.18.0.1", True), ("172.18.0.1", "", True), ("172.18.0.1", "172.18.0.1", True),
     ("172.18.0.2", "172.18.0.1", False)],
)  # fmt: skip
def test_a_port_of_all_addresses_of_a_node_clashes_with_that_of_any(wanted, taken, clashes):
    mine = o.HostPort("TCP", 80, wanted)
    assert o.clash([mine], [o.HostPort("TCP", 80, taken)]) == (mine if clashes else None)
    assert o.clash([mine], [o.HostPort("UDP", 80, taken), o.HostPort("TCP", 81, taken)]) is None


def test_a_byte_order_mark_at_the_start_of_a_file_is_no_text(tmp_path):
    """Editors on Windows write it; JSON does not know it."""
    text = json.dumps(yaml.safe_load(ONE)).encode()
    assert load(write(tmp_path / "a.json", b"\xef\xbb\xbf" + text)).objects


def test_a_route_is_kept_with_its_spec():
    text = of("gateway.networking.k8s.io/v1", "HTTPRoute") + "spec: {hostnames: [a.example], rules: []}"
    route = parse(text).objects[0]
    assert o.key_of(route) == ("HTTPRoute", "default", "x")
    assert route.spec.to_dict() == {"hostnames": ["a.example"], "rules": []}


LIVE = {
    "apiVersion": "v1", "kind": "Pod",
    "metadata": {
        "name": "web-5d4f8c-abcde", "generateName": "web-5d4f8c-", "namespace": "shop", "uid": "0b1c", "generation": 1,
        "resourceVersion": "411", "creationTimestamp": "2026-01-31T12:00:00Z",
        "labels": {"app": "web", "pod-template-hash": "5d4f8c"},
        "managedFields": [{"manager": "kubelet", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
                           "fieldsV1": {"f:status": {}}, "time": "2026-01-31T12:00:01Z", "subresource": "status"}],
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f8c", "uid": "0b1b",
                             "controller": True, "blockOwnerDeletion": True}],
    },
    "spec": {
        "containers": [{"name": "nginx", "image": "nginx", "imagePullPolicy": "Always", "resources": {},
                        "ports": [{"containerPort": 80, "protocol": "TCP"}], "terminationMessagePath": "/dev/null",
                        "livenessProbe": {"httpGet": {"path": "/", "port": "http", "scheme": "HTTP"}}}],
        "nodeName": "n1", "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "securityContext": {},
        "tolerations": [{"effect": "NoExecute", "key": "node.kubernetes.io/not-ready", "operator": "Exists",
                         "tolerationSeconds": 300}],
        "volumes": [{"name": "token", "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}]}}],
    },
    "status": {
        "phase": "Running", "hostIP": "172.18.0.1", "podIP": "10.244.1.5", "podIPs": [{"ip": "10.244.1.5"}],
        "qosClass": "BestEffort", "startTime": "2026-01-31T12:00:00Z",
        "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": None,
                        "lastTransitionTime": "2026-01-31T12:00:01Z"}],
        "containerStatuses": [{"name": "nginx", "ready": True, "restartCount": 0, "image": "nginx", "imageID": "sha",
                               "started": True, "lastState": {}, "state": {"running": {
                                   "startedAt": "2026-01-31T12:00:01Z"}}}],
    },
}  # fmt: skip


@pytest.mark.parametrize("write_as", [json.dumps, yaml.safe_dump], ids=["json", "yaml"])
def test_a_dump_of_a_live_cluster_loads_and_says_the_same_again(write_as):
    head = {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}}
    manifest = parse(write_as({**head, "items": [LIVE, yaml.safe_load(ONE)]}))
    again = parse(json.dumps({**head, "items": [one.to_dict() for one in manifest.objects]}))
    assert manifest.warnings == ()
    assert again.objects == manifest.objects
    web = manifest.objects[0]
    assert isinstance(web, Pod)
    assert (web.status.podIP, web.spec.containers[0].livenessProbe.httpGet.port) == ("10.244.1.5", "http")
    assert web.to_dict()["metadata"].items() >= {"uid": "0b1c", "generation": 1, "resourceVersion": "411"}.items()


def test_lists_in_lists_are_opened_too():
    """As `jq -s '{kind: "List", items: .}'` makes them of several dumps."""
    pods = {"apiVersion": "v1", "kind": "PodList", "items": [{"metadata": {"name": "a"}, "spec": {
        "containers": [{"name": "a"}]}}]}  # fmt: skip
    empty = {"apiVersion": "v1", "kind": "List"}
    found = parse(json.dumps({**empty, "items": [pods, empty]}))
    assert [one.metadata.name for one in found.objects if o.kind_of(one) == "Pod"] == ["a"]
    assert found.undeclared == {"default"}


def test_items_of_the_apis_own_lists_have_the_kind_of_the_list():
    """`kubectl get --raw /api/v1/services` leaves it out."""
    text = json.dumps({"apiVersion": "v1", "kind": "ServiceList", "items": [{"metadata": {"name": "a"}}]})
    assert isinstance(parse(text).objects[0], Service)


def test_loading_leaves_the_garbage_collector_as_it_was():
    for _ in range(2):
        was = gc.isenabled()
        with pytest.raises(InvalidManifest):
            parse("[")
        assert gc.isenabled() is was
        gc.disable() if was else gc.enable()


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(
        st.sampled_from(["metadata", "name", "spec", "containers", "ports", "containerPort", "labels", "status",
                         "podIP", "replicas", "selector", "template", "items"]), below, max_size=4)),
    st.sampled_from([*o.KINDS, ("v1", "List")]))  # fmt: skip
def test_whatever_a_document_holds_it_is_taken_or_refused_in_one_line(value, kind):
    document = {**value, "apiVersion": kind[0], "kind": kind[1]} if isinstance(value, dict) else value
    refused = ""
    try:
        parse(json.dumps(document))
    except InvalidManifest as error:
        refused = str(error)
    assert "\n" not in refused


# -- selectors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "selects"),
    [
        (None, False),
        (LabelSelector(), True),
        (LabelSelector(matchLabels={"app": "web"}), True),
        (LabelSelector(matchLabels={"app": "web", "tier": "x"}), False),
        (LabelSelector(matchExpressions=[LabelSelectorRequirement("app", "In", ["web", "api"])]), True),
        (LabelSelector(matchExpressions=[LabelSelectorRequirement("app", "NotIn", ["web"])]), False),
        (LabelSelector(matchExpressions=[LabelSelectorRequirement("tier", "NotIn", ["x"])]), True),
        (LabelSelector(matchExpressions=[LabelSelectorRequirement("tier", "In", ["x"])]), False),
        (LabelSelector(matchExpressions=[LabelSelectorRequirement("app", "Exists")]), True),
        (LabelSelector(matchExpressions=[LabelSelectorRequirement("app", "DoesNotExist")]), False),
        (LabelSelector([LabelSelectorRequirement("tier", "Exists")], {"app": "web"}), False),
        (LabelSelector([LabelSelectorRequirement("app", "Exists")], {"app": "web"}), True),
    ],
)
def test_a_selector_selects_as_kubernetes_has_it(selector, selects):
    """A label that is missing is not in any list; nothing selects nothing, the empty selector everything."""
    assert o.matches(selector, {"app": "web"}) is selects
