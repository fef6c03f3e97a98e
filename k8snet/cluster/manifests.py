"""Kubernetes manifests: YAML and JSON in, lightkube models out, or one clear error."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

import msgspec
import yaml
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Namespace, Node, Pod

from k8snet.cluster import objects as o
from k8snet.cluster.checks import problems
from k8snet.cluster.edge_checks import TLS_SECRET
from k8snet.cluster.objects import KINDS, KubeObject, Problem, show
from k8snet.errors import InvalidManifest
from k8snet.linux.address import IPNetwork, host_address, network

try:
    from yaml import CSafeLoader as SafeLoader
except ImportError:  # a PyYAML without libyaml: ten times slower, but right
    from yaml import SafeLoader  # type: ignore[assignment]

__all__ = ["Manifest", "load", "parse", "texts"]

NAMESPACE_LABEL = "kubernetes.io/metadata.name"  # the API server gives it to every Namespace


@dataclass(frozen=True)
class Manifest:
    """The objects of some manifests, in their order, and what was not taken from them."""

    objects: tuple[KubeObject, ...]
    not_used: Counter[str]  # kind -> how many: kinds that have no effect on the network
    warnings: tuple[str, ...] = ()
    undeclared: frozenset[str] = frozenset()  # namespaces that are used but not declared

    def beside(self, present: Collection[tuple[str, str, str]]) -> list[KubeObject]:
        """Return its objects, without the namespaces that it only uses where *present* has them: with their labels."""
        there = {("Namespace", "", name) for name in self.undeclared}.intersection(present)
        return [one for one in self.objects if o.key_of(one) not in there]

    @property
    def not_used_line(self) -> str:
        """Return one line as in "not used: 3 ConfigMap, 1 Secret", or "" where all was used."""
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self.not_used.items()))
        return f"not used: {counts}" if counts else ""


def load(*sources: str | Path, stdin: TextIO | None = None, lenient: bool = False) -> Manifest:
    """Read manifests: files, folders (what ends with .yaml, .yml or .json in them) and "-" for standard input.

    Like: kubectl create --dry-run=server -f SOURCE

    Args:
        stdin: what "-" is read from.
        lenient: make of an unknown field a warning; live clusters may be newer than we are.

    Raises:
        InvalidManifest: not readable, not YAML or JSON, or an object that Kubernetes or k8snet refuses;
            one line that names source, document, object, field and value.
    """
    if not sources:
        raise InvalidManifest("no manifest was named; name a file, a folder, or - for standard input")
    found = [pair for source in sources for pair in texts(source, stdin)]
    return _read(found, lenient)


def parse(text: str, name: str = "manifest", *, lenient: bool = False) -> Manifest:
    """Read the manifest *text*; errors call it *name*.

    Raises:
        InvalidManifest: as in load().
    """
    return _read([(name, text)], lenient)


# -- from sources to documents -------------------------------------------------------------

_Document = tuple[str, Any]  # where it stands, as in "shop.yaml: document 3", and what stands there


def texts(source: str | Path, stdin: TextIO | None = None) -> Iterator[tuple[str, str]]:
    """Yield name and text of a file, of each manifest in a folder, or of standard input for "-".

    Raises:
        InvalidManifest: it cannot be read, or a folder has none.
    """
    path, name = Path(source), "standard input" if str(source) == "-" else str(source)
    if not str(source):
        raise InvalidManifest("a manifest without a name; name a file, a folder, or - for standard input")
    try:
        if str(source) == "-":
            yield name, stdin.read() if stdin else sys.stdin.buffer.read().decode("utf-8-sig")
        elif path.is_dir():
            files = sorted(one for one in path.iterdir() if one.suffix in {".yaml", ".yml", ".json"} and one.is_file())
            if not files:
                raise InvalidManifest(f"{source}: no *.yaml, *.yml or *.json in this folder")
            for one in files:
                yield from texts(one, stdin)
        else:
            yield name, path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidManifest(f"{name}: not text in UTF-8: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise InvalidManifest(f"{name}: cannot be read: {error.strerror}") from None


def _documents(name: str, text: str) -> Iterator[_Document]:
    """Yield every document of *text*, and of Lists every item."""
    empty = True
    try:
        for number, document in enumerate(_values(name, text), 1):
            if document is not None:
                empty = False
                yield from _items(f"{name}: document {number}", document)
    except RecursionError:
        raise InvalidManifest(f"{name}: nested too deeply") from None
    if empty:
        raise InvalidManifest(f"{name}: no Kubernetes object in it; is it the right file?")


def _items(where: str, document: Any) -> Iterator[_Document]:
    kind = document.get("kind") if isinstance(document, dict) else None
    if not isinstance(kind, str) or not kind.endswith("List") or ("items" not in document and kind != "List"):
        yield where, document
        return
    items = document.get("items") or []
    if not isinstance(items, list):
        raise InvalidManifest(f"{where}, {kind}: items: {show(items)} is not a list")
    if kind != "List":  # the API's own lists leave out what is the same in all items
        head = {"apiVersion": document.get("apiVersion"), "kind": kind.removesuffix("List")}
        items = [{**head, **one} if isinstance(one, dict) else one for one in items]
    for number, one in enumerate(items, 1):
        yield from _items(f"{where}, item {number}", one)


def _values(name: str, text: str) -> Iterator[Any]:
    if text.lstrip()[:1] in {"{", "["} or name.endswith(".json"):
        try:
            yield from list(_json_values(text))
        except json.JSONDecodeError as error:
            if name.endswith(".json") and error.doc:
                raise InvalidManifest(f"{name}: line {error.lineno}, column {error.colno}: {error.msg}") from None
        else:
            return
    try:
        yield from yaml.load_all(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise InvalidManifest(f"{name}: {place}{error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        raise InvalidManifest(f"{name}: not text: {error.reason} at character {error.position}") from None


def _json_values(text: str) -> Iterator[Any]:
    decoder, at = json.JSONDecoder(object_pairs_hook=_once), 0
    while space := _SPACE.match(text, at):
        if space.end() == len(text):
            return
        value, at = decoder.raw_decode(text, space.end())
        yield value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise json.JSONDecodeError(f"{twice!r} is written twice", "", 0)  # the YAML loader will say where
    return found


_SPACE = re.compile(r"\s*")


class _Loader(SafeLoader):
    """YAML as Kubernetes reads it: no times and no base 60, and no field twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                text = f"the field {key.value!r} is written twice in one mapping"
                raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)


_INT = re.compile("[-+]?(0|[1-9][0-9_]*|0[0-7_]+|0b[01_]+|0x[0-9a-fA-F_]+)$")
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0].rpartition(":")[2] not in {"timestamp", "value", "int"}]
    for first, pairs in SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Read a big YAML text in a third of the time: the garbage collector finds none in it."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


# -- from documents to objects -------------------------------------------------------------


class _Item(NamedTuple):
    where: str  # as in "shop.yaml: document 3"
    title: str  # as in "Pod shop/web"
    obj: KubeObject

    def fail(self, path: str, text: str) -> NoReturn:
        raise InvalidManifest(_line(self.where, self.title, Problem(path, text)))


def _line(where: str, title: str, problem: Problem) -> str:
    text = f"{where}, {title}: {problem}"
    return text if text.isprintable() else "".join(one if one.isprintable() else "?" for one in text)


def _read(texts: Iterable[tuple[str, str]], lenient: bool) -> Manifest:
    items: list[_Item] = []
    not_used: Counter[str] = Counter()
    warnings: list[str] = []
    with _collector_paused():
        documents = [one for name, text in texts for one in _documents(name, text)]
    for where, document in documents:
        model = _model(where, document)
        if model is not None:
            items.append(_item(where, document, model, warnings if lenient else None))
        else:
            not_used[document["kind"]] += 1
            if document["kind"] == "Endpoints" and not_used["Endpoints"] == 1:
                warnings.append(f"{where}: Endpoints are deprecated and not used; only EndpointSlices count")
    _check_names(items)
    nodes = _check_nodes(items)
    _check_pods(items, nodes)
    objects, undeclared = _with_namespaces([item.obj for item in items])
    return Manifest(objects, not_used, tuple(warnings), undeclared)


def _model(where: str, document: Any) -> type[KubeObject] | None:
    """Return the model of *document*, or None if its kind has no effect on the network."""
    if not isinstance(document, dict):
        raise InvalidManifest(f"{where}: {show(document)} is not a Kubernetes object; those have apiVersion and kind")
    for key, example in (("apiVersion", "v1"), ("kind", "Pod")):
        value = document.get(key)
        if not isinstance(value, str) or not value:
            state = "is missing" if value is None or value == "" else f"{show(value)} is not text"
            raise InvalidManifest(f"{where}: {key}: {state}; write it as in '{key}: {example}'")
    refused = o.refusal(document["apiVersion"], document["kind"])
    if refused:
        raise InvalidManifest(f"{where}: {refused}")
    if document["kind"] == "Secret" and document.get("type") != TLS_SECRET:
        return None
    return KINDS.get((document["apiVersion"], document["kind"]))


def _item(where: str, document: dict[str, Any], model: type[KubeObject], warnings: list[str] | None) -> _Item:
    """Check *document* on its own; an unknown field goes to *warnings*, or without them is an error."""
    kind, metadata = document["kind"], document.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    place = "" if kind in o.CLUSTER_SCOPED else f"{metadata.get('namespace') or 'default'}/"
    title = f"{kind} {place}{metadata.get('name')}" if metadata.get("name") else kind
    title = title if title.isprintable() else kind
    for problem in o.check_fields(model, document):
        if not problem.unknown or warnings is None:
            raise InvalidManifest(_line(where, title, problem))
        warnings.append(f"{_line(where, title, problem)}; ignored")
    try:
        item = _Item(where, title, msgspec.convert(document, model))
    except msgspec.ValidationError as error:  # such as a number of more than 64 bits
        raise InvalidManifest(f"{where}, {title}: {error}") from None
    for problem in problems(item.obj):
        item.fail(problem.path, problem.text)
    return item


def _with_namespaces(objects: list[KubeObject]) -> tuple[tuple[KubeObject, ...], frozenset[str]]:
    """Return *objects* with every namespace that they use, each with the label that names it, and those added."""
    declared = {o.name_of(one) for one in objects if isinstance(one, Namespace)}
    used = dict.fromkeys(o.namespace_of(one) for one in objects if o.namespace_of(one) not in {"", *declared})
    made = [Namespace(apiVersion="v1", kind="Namespace", metadata=ObjectMeta(name=name)) for name in used]
    for one in [*objects, *made]:
        if isinstance(one, Namespace):
            o.meta(one).labels = {**o.labels_of(one), NAMESPACE_LABEL: o.name_of(one)}
    return (*objects, *made), frozenset(used)


# -- what two objects cannot have at once --------------------------------------------------


def _check_names(items: Iterable[_Item]) -> None:
    seen: dict[tuple[str, str, str], _Item] = {}
    for item in items:
        first = seen.setdefault(o.key_of(item.obj), item)
        if first is not item:
            item.fail("metadata.name", f"{show(o.name_of(item.obj))} is in this manifest already, in {first.where}")


def _check_nodes(items: Iterable[_Item]) -> dict[str, Node]:
    """Return the nodes by name; no two share an address or overlap in their pod CIDRs."""
    nodes: dict[str, Node] = {}
    addresses: dict[str, str] = {}
    cidrs: list[tuple[IPNetwork, _Item]] = []
    for item in items:
        if not isinstance(item.obj, Node):
            continue
        name = o.name_of(item.obj)
        nodes[name] = item.obj
        for address in o.node_addresses(item.obj):
            other = addresses.setdefault(str(host_address(address)), name)
            if other != name:
                item.fail("status.addresses", f"{address} is the InternalIP of Node {other} already")
        cidrs += [(network(cidr), item) for cidr in o.pod_cidrs(item.obj)]
    order = sorted(cidrs, key=lambda one: (one[0].version, int(one[0].network_address), one[0].prefixlen))
    for (wide, first), (narrow, second) in itertools.pairwise(order):  # of overlapping ones some are neighbours
        if wide.version == narrow.version and wide.overlaps(narrow):
            second.fail("spec.podCIDR", f"{narrow} overlaps {wide}, the pod CIDR of {first.title}")
    return nodes


def _check_pods(items: Iterable[_Item], nodes: Mapping[str, Node]) -> None:
    ports: dict[str, list[tuple[o.HostPort, str]]] = {}
    addresses: dict[str, str] = {}
    for item in items:
        spec = o.pod_spec(item.obj)
        path = "spec" if isinstance(item.obj, Pod) else "spec.template.spec"
        node = spec.nodeName if spec else None
        if nodes and node and node not in nodes:
            item.fail(f"{path}.nodeName", f"{show(node)} is no Node of this manifest; there are: {', '.join(nodes)}")
        if isinstance(item.obj, Pod) and o.finished(item.obj):
            continue
        for port in o.host_ports(spec) if node else ():
            taken = ports.setdefault(str(node), [])
            for other, title in taken:
                if o.clash([port], [other]) and title != item.title:
                    item.fail(f"{path}.containers", f"port {port} of node {node} is taken by {title} already")
            taken.append((port, item.title))
        if isinstance(item.obj, Pod):
            _check_addresses(item, item.obj, nodes.get(node or ""), addresses)


def _check_addresses(item: _Item, pod: Pod, node: Node | None, taken: dict[str, str]) -> None:
    host = pod.spec is not None and pod.spec.hostNetwork
    for address in o.addresses_of(pod):
        ip = host_address(address)
        if host:
            ours = o.node_addresses(node) if node else ()
            if ours and ip not in map(host_address, ours):
                item.fail("status.podIP", f"{address} is not {ours[0]}, its node's, which a hostNetwork pod has")
            continue
        cidrs = [one for one in map(network, o.pod_cidrs(node) if node else ()) if one.version == ip.version]
        if cidrs and not any(ip in one for one in cidrs):
            item.fail("status.podIP", f"{address} is outside its node's pod CIDR, {cidrs[0]}")
        other = taken.setdefault(str(ip), item.title)
        if other != item.title:
            item.fail("status.podIP", f"{address} is the address of {other} already")
