"""What Kubernetes refuses in one object, beyond what its types say: names, ports, networks, selectors."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from lightkube.models.batch_v1 import JobSpec
from lightkube.models.core_v1 import ContainerPort, NodeSelectorRequirement, PodSpec, ServiceSpec  # noqa: TC002  # models
from lightkube.models.meta_v1 import LabelSelector, LabelSelectorRequirement  # noqa: TC002  # as above
from lightkube.models.networking_v1 import IPBlock, NetworkPolicyPeer, NetworkPolicyPort  # noqa: TC002  # as above
from lightkube.resources.core_v1 import Node, Pod, Service
from lightkube.resources.discovery_v1 import EndpointSlice
from lightkube.resources.networking_v1 import NetworkPolicy

from k8snet.cluster import objects as o
from k8snet.cluster.edge_checks import edge_problems
from k8snet.cluster.layout import unfit
from k8snet.cluster.objects import KubeObject, Problem, show
from k8snet.errors import InvalidAddress
from k8snet.linux.address import IPAddress, IPNetwork, host_address, network

__all__ = ["problems"]

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
_RESTART = {"Pod": ("Always", "OnFailure", "Never"), "Job": ("OnFailure", "Never")}  # of others: Always
_DNS = ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")
_PROTOCOLS = ("TCP", "UDP", "SCTP")
_SERVICE_WORDS = {
    "type": ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
    "sessionAffinity": ("None", "ClientIP"),
    "internalTrafficPolicy": ("Cluster", "Local"),
    "externalTrafficPolicy": ("Cluster", "Local"),
    "ipFamilyPolicy": ("SingleStack", "PreferDualStack", "RequireDualStack"),
}
MOST_PODS = 10_000  # of one workload


def problems(obj: KubeObject) -> Iterator[Problem]:
    """Yield what is wrong with *obj*, field by field."""
    kind, metadata = o.kind_of(obj), o.meta(obj)
    if not metadata.name:
        hint = "; generateName is the API server's, write a name" if metadata.generateName else ""
        yield Problem("metadata.name", f"is missing{hint}")
    yield from _name("metadata.name", metadata.name, label=kind in {"Namespace", "Service"})
    yield from _name("metadata.namespace", metadata.namespace, label=True)
    yield from _labels("metadata.labels", metadata.labels)
    if isinstance(obj, Node):
        yield from _node(obj)
    elif isinstance(obj, Pod):
        yield from _addresses("status.podIP", o.addresses_of(obj))
        if obj.spec or not o.addresses_of(obj):  # a record of an address, for DNS, needs no spec
            yield from _pod_spec("spec", obj.spec, kind)
    elif isinstance(obj, o.Workload):
        yield from _workload(obj, kind)
    elif isinstance(obj, Service):
        yield from _service(obj)
    elif isinstance(obj, EndpointSlice):
        yield from _slice(obj)
    elif isinstance(obj, NetworkPolicy):
        yield from _policy(obj)
    else:
        yield from edge_problems(obj)


def _name(path: str, name: str | None, *, label: bool) -> Iterator[Problem]:
    if name and not (_LABEL if label else _SUBDOMAIN).fullmatch(name):
        what = "63 lower-case letters, digits and '-'" if label else "253 lower-case letters, digits, '-' and '.'"
        yield Problem(path, f"{show(name)} is not a name: 1 to {what}, with a letter or digit at both ends")


def _addresses(path: str, addresses: Iterable[str]) -> Iterator[Problem]:
    for address in addresses:
        try:
            host_address(address)
        except InvalidAddress as error:
            yield Problem(path, str(error))


def _labels(path: str, labels: Mapping[str, str] | None) -> Iterator[Problem]:
    for key, value in (labels or {}).items():
        prefix, slash, name = key.rpartition("/")
        if not _LABEL_NAME.fullmatch(name) or (slash and not _SUBDOMAIN.fullmatch(prefix)):
            yield Problem(path, f"{show(key)} is not the key of a label; write it as in app or example.com/app")
        if value and not _LABEL_NAME.fullmatch(value):
            what = "up to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends"
            yield Problem(f"{path}.{key}", f"{show(value)} is not the value of a label: {what}")


def _words(path: str, word: str | None, words: Sequence[str]) -> Iterator[Problem]:
    if word is not None and word not in words:
        yield Problem(path, f"{show(word)} is not one of: {', '.join(words)}")


def _node(node: Node) -> Iterator[Problem]:
    versions = set()
    for cidr in o.pod_cidrs(node):
        try:
            version = network(cidr).version
        except InvalidAddress as error:
            yield Problem("spec.podCIDR", str(error))
            continue
        if "/" not in cidr:
            yield Problem("spec.podCIDR", f"{show(cidr)} has no prefix length; write it as in 10.244.1.0/24")
        elif reason := unfit(network(cidr)):
            yield Problem("spec.podCIDR", f"{cidr} {reason}")
        if version in versions:
            yield Problem("spec.podCIDRs", f"two of IPv{version}; a node has at most one of each family")
        versions.add(version)
    first = node.spec and node.spec.podCIDR
    if first and first not in o.pod_cidrs(node)[:1]:
        yield Problem("spec.podCIDRs", f"the first one is not {first}, the podCIDR")
    yield from _addresses("status.addresses", o.node_addresses(node))


def _workload(obj: o.Workload, kind: str) -> Iterator[Problem]:
    spec = obj.spec
    if spec is None:
        yield Problem("spec", "is missing")
        return
    for field in ("replicas", "parallelism", "completions"):
        count = getattr(spec, field, None) or 0
        if not 0 <= count <= MOST_PODS:
            yield Problem(f"spec.{field}", f"{count} is not a number of pods from 0 to {MOST_PODS}")
    yield from _pod_spec("spec.template.spec", o.pod_spec(obj), kind)
    template = spec.template and spec.template.metadata
    yield from _labels("spec.template.metadata.labels", template.labels if template else None)
    if isinstance(spec, JobSpec):  # the API server makes a Job's selector
        return
    selector, labels = spec.selector, (template.labels if template else None) or {}
    yield from _requirements("spec.selector.matchExpressions", selector.matchExpressions or [], _OPERATORS)
    if not selector.matchLabels and not selector.matchExpressions:
        yield Problem("spec.selector", "is empty; give it matchLabels that the template's labels have")
    elif not o.matches(selector, labels):
        given = ", ".join(f"{key}={value}" for key, value in labels.items()) or "none"
        yield Problem("spec.selector", f"does not select the template's own pods; their labels: {given}")


def _requirements(
    path: str, requirements: Sequence[LabelSelectorRequirement | NodeSelectorRequirement], operators: Sequence[str]
) -> Iterator[Problem]:
    for index, one in enumerate(requirements):
        at = f"{path}[{index}]"
        yield from _words(f"{at}.operator", one.operator, operators)
        if bool(one.values) == (one.operator in {"Exists", "DoesNotExist"}):
            yield Problem(f"{at}.values", f"{one.operator} takes {'no values' if one.values else 'at least one value'}")


def _pod_spec(path: str, spec: PodSpec | None, kind: str) -> Iterator[Problem]:
    if spec is None or not spec.containers:
        yield Problem(path if spec is None else f"{path}.containers", "is missing; a pod has at least one container")
        return
    if spec.restartPolicy is None and kind == "Job":
        yield Problem(f"{path}.restartPolicy", "is missing; the pods of a Job have OnFailure or Never")
    yield from _words(f"{path}.restartPolicy", spec.restartPolicy, _RESTART.get(kind, ("Always",)))
    yield from _dns(path, spec)
    names: set[str] = set()
    for field, containers in (("containers", spec.containers), ("initContainers", spec.initContainers or [])):
        for index, container in enumerate(containers):
            at = f"{path}.{field}[{index}]"
            yield from _name(f"{at}.name", container.name, label=True)
            if container.name in names:
                yield Problem(f"{at}.name", f"{show(container.name)} is the name of another container of this pod")
            names.add(container.name)
            yield from _ports(f"{at}.ports", container.ports or [], bool(spec.hostNetwork))
    ports = o.host_ports(spec)
    for index, port in enumerate(ports):
        if o.clash([port], ports[:index]):
            yield Problem(f"{path}.containers", f"port {port} of the node is taken twice in one pod")
    affinity = spec.affinity and spec.affinity.nodeAffinity
    required = affinity and affinity.requiredDuringSchedulingIgnoredDuringExecution
    for index, term in enumerate(required.nodeSelectorTerms if required else ()):
        at = f"{path}.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[{index}]"
        yield from _requirements(f"{at}.matchExpressions", term.matchExpressions or [], (*_OPERATORS, "Gt", "Lt"))


def _dns(path: str, spec: PodSpec) -> Iterator[Problem]:
    """Check what a pod is called in DNS, and how it asks DNS."""
    yield from _words(f"{path}.dnsPolicy", spec.dnsPolicy, _DNS)
    yield from _name(f"{path}.hostname", spec.hostname, label=True)
    yield from _name(f"{path}.subdomain", spec.subdomain, label=True)
    config = spec.dnsConfig
    servers, searches = (config.nameservers or [], config.searches or []) if config else ([], [])
    if spec.dnsPolicy == "None" and not servers:
        yield Problem(f"{path}.dnsConfig.nameservers", "is missing; with dnsPolicy None there is no other")
    if len(servers) > 3:
        yield Problem(f"{path}.dnsConfig.nameservers", f"are {len(servers)}; programs ask no more than 3")
    yield from _addresses(f"{path}.dnsConfig.nameservers", servers)
    for index, domain in enumerate(searches):
        if domain != ".":
            yield from _name(f"{path}.dnsConfig.searches[{index}]", domain.rstrip(".").replace("_", "-"), label=False)
    for index, option in enumerate((config.options if config else None) or ()):
        if not option.name or re.search(r"\s", f"{option.name}{option.value or ''}"):
            yield Problem(f"{path}.dnsConfig.options[{index}]", "has no name, or a space in it; as in: name: ndots")


def _ports(path: str, ports: Sequence[ContainerPort], host_network: bool) -> Iterator[Problem]:
    names: set[str] = set()
    for index, port in enumerate(ports):
        at = f"{path}[{index}]"
        for field, number in (("containerPort", port.containerPort), ("hostPort", port.hostPort)):
            if number is not None and not 1 <= number <= 65535 and (number, field) != (0, "hostPort"):
                yield Problem(f"{at}.{field}", f"{number} is not a port; ports are 1 to 65535")
        yield from _words(f"{at}.protocol", port.protocol, _PROTOCOLS)
        yield from _addresses(f"{at}.hostIP", [port.hostIP] if port.hostIP else [])
        if host_network and port.hostPort and port.hostPort != port.containerPort:
            yield Problem(f"{at}.hostPort", f"{port.hostPort}: with hostNetwork it is the containerPort or left out")
        if port.name and not _PORT_NAME.fullmatch(port.name):
            what = "1 to 15 lower-case letters, at least one, digits and single '-' between them"
            yield Problem(f"{at}.name", f"{show(port.name)} is not the name of a port: {what}")
        if port.name in names:
            yield Problem(f"{at}.name", f"{show(port.name)} is the name of another port of this container")
        names |= {port.name} if port.name else set()


# -- Services and EndpointSlices -----------------------------------------------------------


def _number(path: str, number: int | None, *, zero: bool = False) -> Iterator[Problem]:
    if number is not None and not 1 <= number <= 65535 and not (zero and number == 0):
        yield Problem(path, f"{number} is not a port; ports are 1 to 65535")


def _of_family(path: str, text: str, family: str) -> Iterator[Problem]:
    """Refuse what is not an address, or one of another family than "IPv4" or "IPv6"; "" is any."""
    try:
        found: IPAddress = host_address(text)
    except InvalidAddress as error:
        yield Problem(path, str(error))
        return
    if family in {"IPv4", "IPv6"} and family != f"IPv{found.version}":
        yield Problem(path, f"{text} is not an {family} address")


def _service(service: Service) -> Iterator[Problem]:
    spec = service.spec
    if spec is None:
        return
    for field, words in _SERVICE_WORDS.items():
        yield from _words(f"spec.{field}", getattr(spec, field), words)
    for index, family in enumerate(spec.ipFamilies or ()):
        yield from _words(f"spec.ipFamilies[{index}]", family, ("IPv4", "IPv6"))
    yield from _cluster_ips(service)
    yield from _external_name(spec)
    yield from _service_ports(service)
    for index, address in enumerate(spec.externalIPs or ()):
        yield from _of_family(f"spec.externalIPs[{index}]", address, "")
    for index, text in enumerate(spec.loadBalancerSourceRanges or ()):
        try:
            found = "/" in text and ipaddress.ip_network(text.strip(), strict=False)
        except ValueError:
            found = False
        if not found:
            path = f"spec.loadBalancerSourceRanges[{index}]"
            yield Problem(path, f"{show(text)} is not a network; write it as in 203.0.113.0/24")
    client = spec.sessionAffinityConfig and spec.sessionAffinityConfig.clientIP
    seconds = client.timeoutSeconds if client else None
    if seconds is not None and not 1 <= seconds <= 86400:
        yield Problem("spec.sessionAffinityConfig.clientIP.timeoutSeconds", f"{seconds} is not 1 to 86400 seconds")
    yield from _number("spec.healthCheckNodePort", spec.healthCheckNodePort, zero=True)
    balancer = service.status and service.status.loadBalancer
    for index, one in enumerate((balancer.ingress if balancer else None) or ()):
        at = f"status.loadBalancer.ingress[{index}]"
        yield from _of_family(f"{at}.ip", one.ip, "") if one.ip else ()
        yield from _words(f"{at}.ipMode", one.ipMode, ("VIP", "Proxy"))


def _external_name(spec: ServiceSpec) -> Iterator[Problem]:
    if spec.type == "ExternalName":
        name = (spec.externalName or "").rstrip(".")
        yield from _name("spec.externalName", name, label=False)
        if not name:
            yield Problem("spec.externalName", "is missing; it is the name that the Service stands for")


def _cluster_ips(service: Service) -> Iterator[Problem]:
    spec = service.spec
    assert spec is not None  # noqa: S101  # one without has been dealt with
    families, several = spec.ipFamilies or [], spec.clusterIPs or []
    if spec.clusterIP and several and several[0] != spec.clusterIP:
        yield Problem("spec.clusterIPs", f"the first one is not {spec.clusterIP}, the clusterIP")
    named = [("spec.clusterIP", spec.clusterIP), *((f"spec.clusterIPs[{n}]", one) for n, one in enumerate(several))]
    for path, text in named:
        if text and text != "None":
            number = int(path[-2]) if path.endswith("]") else 0
            yield from _of_family(path, text, families[number] if number < len(families) else "")


def _service_ports(service: Service) -> Iterator[Problem]:
    spec = service.spec
    assert spec is not None  # noqa: S101  # as above
    names: set[str] = set()
    taken: set[tuple[str, int, str]] = set()
    several = len(spec.ports or ()) > 1
    for index, port in enumerate(spec.ports or ()):
        at, protocol = f"spec.ports[{index}]", port.protocol or "TCP"
        yield from _words(f"{at}.protocol", protocol, _PROTOCOLS)
        yield from _port_name(f"{at}.name", port.name, names, missing=several)
        for field, number in (("port", port.port), ("nodePort", port.nodePort)):
            yield from _number(f"{at}.{field}", number, zero=field == "nodePort")
            if number and (field, number, protocol) in taken:
                yield Problem(f"{at}.{field}", f"{protocol} {number} is a port of this Service already")
            taken.add((field, number or 0, protocol))
        if port.nodePort and spec.type == "ClusterIP":
            yield Problem(f"{at}.nodePort", f"{port.nodePort}: a Service of type ClusterIP has none; use type NodePort")
        target = str(port.targetPort or 0)
        if target.lstrip("-").isdecimal():
            yield from _number(f"{at}.targetPort", int(target), zero=True)
        elif not _PORT_NAME.fullmatch(target):
            yield Problem(f"{at}.targetPort", f"{show(target)} is neither a port nor the name of one")


def _port_name(path: str, name: str | None, names: set[str], *, missing: bool) -> Iterator[Problem]:
    if not name:
        if missing:
            yield Problem(path, "is missing; where there are several ports, each has a name")
        return
    if not _LABEL.fullmatch(name):
        what = "1 to 63 lower-case letters, digits and '-', with a letter or digit at both ends"
        yield Problem(path, f"{show(name)} is not the name of a port: {what}")
    if name in names:
        yield Problem(path, f"{show(name)} is the name of another port already")
    names.add(name)


def _slice(one: EndpointSlice) -> Iterator[Problem]:
    yield from _words("addressType", one.addressType, ("IPv4", "IPv6", "FQDN"))
    for index, endpoint in enumerate(one.endpoints or ()):
        if not endpoint.addresses:
            yield Problem(f"endpoints[{index}].addresses", "is empty; an endpoint has at least one address")
        for number, address in enumerate(endpoint.addresses if one.addressType != "FQDN" else ()):
            yield from _of_family(f"endpoints[{index}].addresses[{number}]", address, one.addressType)
    names: set[str] = set()
    for index, port in enumerate(one.ports or ()):
        yield from _words(f"ports[{index}].protocol", port.protocol, _PROTOCOLS)
        yield from _number(f"ports[{index}].port", port.port)
        yield from _port_name(f"ports[{index}].name", port.name, names, missing=False)


# -- NetworkPolicies -----------------------------------------------------------------------


def _policy(policy: NetworkPolicy) -> Iterator[Problem]:
    spec = policy.spec
    if spec is None:
        return
    yield from _selector("spec.podSelector", spec.podSelector)
    for index, word in enumerate(spec.policyTypes or ()):
        yield from _words(f"spec.policyTypes[{index}]", word, ("Ingress", "Egress"))
        if word in (spec.policyTypes or ())[:index]:
            yield Problem(f"spec.policyTypes[{index}]", f"{show(word)} is written twice")
    rules = [(f"spec.ingress[{n}]", "from", one.from_, one.ports) for n, one in enumerate(spec.ingress or ())]
    rules += [(f"spec.egress[{n}]", "to", one.to, one.ports) for n, one in enumerate(spec.egress or ())]
    for at, side, peers, ports in rules:
        for index, peer in enumerate(peers or ()):
            yield from _peer(f"{at}.{side}[{index}]", peer)
        for index, port in enumerate(ports or ()):
            yield from _policy_port(f"{at}.ports[{index}]", port)


def _selector(path: str, selector: LabelSelector | None) -> Iterator[Problem]:
    if selector is None:
        return
    yield from _labels(f"{path}.matchLabels", selector.matchLabels)
    requirements = selector.matchExpressions or []
    yield from _requirements(f"{path}.matchExpressions", requirements, _OPERATORS)
    for index, one in enumerate(requirements):
        at = f"{path}.matchExpressions[{index}]"
        yield from _labels(f"{at}.key", {one.key: ""})
        for number, value in enumerate(one.values or ()):
            yield from (Problem(f"{at}.values[{number}]", p.text) for p in _labels("", {"key": value}))


def _peer(path: str, peer: NetworkPolicyPeer) -> Iterator[Problem]:
    selectors = [one for one in (peer.podSelector, peer.namespaceSelector) if one is not None]
    if peer.ipBlock and selectors:
        yield Problem(path, "has an ipBlock and a selector; make two peers of it: either one lets in")
    elif not peer.ipBlock and not selectors:
        yield Problem(path, "is no peer; give it a podSelector, a namespaceSelector or an ipBlock")
    yield from _selector(f"{path}.podSelector", peer.podSelector)
    yield from _selector(f"{path}.namespaceSelector", peer.namespaceSelector)
    if peer.ipBlock:
        yield from _block(f"{path}.ipBlock", peer.ipBlock)


def _block(path: str, block: IPBlock) -> Iterator[Problem]:
    found: list[IPNetwork] = []
    excepts = ((f"{path}.except[{number}]", one) for number, one in enumerate(block.except_ or ()))
    texts = [(f"{path}.cidr", block.cidr), *excepts]
    for at, text in texts:
        try:
            one = ipaddress.ip_network(text if "/" in text else "", strict=False)
        except ValueError:
            yield Problem(at, f"{show(text)} is not a network; write it as in 10.0.0.0/8 or fd00::/8")
            continue
        if at.endswith("cidr"):
            found.append(one)
        elif found and not (
            one != found[0] and one.version == found[0].version and one.subnet_of(found[0])  # type: ignore[arg-type]
        ):
            yield Problem(at, f"{text} is not inside {block.cidr}, the block that it is an exception of")


def _policy_port(path: str, port: NetworkPolicyPort) -> Iterator[Problem]:
    yield from _words(f"{path}.protocol", port.protocol, _PROTOCOLS)
    number, end = port.port, port.endPort
    if isinstance(number, str):
        if not _PORT_NAME.fullmatch(number):
            yield Problem(f"{path}.port", f"{show(number)} is neither a port nor the name of one")
        if end is not None:
            yield Problem(f"{path}.endPort", f"{end}: a range begins with a number, and {show(number)} is a name")
        return
    yield from _number(f"{path}.port", number)
    yield from _number(f"{path}.endPort", end)
    if end is not None and (number is None or end < number):
        below = "there is no port that the range begins with" if number is None else f"it is below {number}, the port"
        yield Problem(f"{path}.endPort", f"{end}: {below}")
