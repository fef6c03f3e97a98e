"""A conformance check: does a plugin keep to the CNI spec? For readers who write one."""

from __future__ import annotations

import html
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from k8snet.cni.config import VERSIONS, at_least, load
from k8snet.cni.recorder import INTERNAL, Call, Recorder, invoke
from k8snet.cni.result import Result, parse
from k8snet.cni.runtime import DEBIAN, OWN_PLUGINS, Runtime
from k8snet.errors import K8snetError
from k8snet.lab import Lab
from k8snet.linux import nsfs
from k8snet.linux import run as _run
from k8snet.linux.netns import Netns

__all__ = ["Report", "Row", "check_plugin"]

UNSET = "\0"  # a variable that is not there at all
NEEDED = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")
NODE, POD = "check-node", "check-pod"
VALID = "cni.dev/valid-attachments"
OK, FAILED, NOT_SUPPORTED = "ok", "failed", "not supported"
MARKS = {OK: "✓", FAILED: "✗", NOT_SUPPORTED: "–"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that the spec asks for."""

    what: str
    outcome: str  # "ok", "failed" or "not supported"
    expected: str
    got: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a plugin was asked, and what it did."""

    plugin: str
    rows: tuple[Row, ...]
    calls: Recorder = field(repr=False)  # every call, exactly

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(row.outcome != FAILED for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able values."""
        return {"plugin": self.plugin, "ok": self.ok, "rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        """Return a line for each thing, with what came where that was not expected."""
        lines = [f"{self.plugin}: {'conforms' if self.ok else 'does not conform'} to the CNI spec"]
        for row in self.rows:
            wrong = f"; expected: {row.expected}" if row.outcome == FAILED else ""
            lines.append(f"{MARKS[row.outcome]} {row.what}: {row.got}{wrong}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return it as a notebook shows it."""
        rows = [("", "what", "expected", "got")]
        rows += [(f"{MARKS[one.outcome]} {one.outcome}", one.what, one.expected, one.got) for one in self.rows]
        cells = ("".join(f"<td style='text-align:left'>{html.escape(text)}</td>" for text in row) for row in rows)
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        title = html.escape(str(self).splitlines()[0])
        table = f"<table class='k8snet-check'><caption>{title}</caption>{body}</table>"
        return f"<div style='overflow-x:auto'>{table}</div>"


def check_plugin(plugin: Path | str, lab: Lab, *, config: Mapping[str, Any] | None = None) -> Report:
    """Send a plugin every operation of the spec, in netns of its own, and report what it did.

    Args:
        plugin: its executable, or the name of one of Debian's or ours.
        config: its configuration; the default is that of a bridge that is the default gateway.

    Raises:
        ProgramMissing: there is no such executable.
        InvalidConfig: *config* cannot be used.
    """
    own = [Path(plugin).resolve().parent] if "/" in str(plugin) else []
    folder = Path(tempfile.mkdtemp(prefix="cni-check-", dir=_run.scratch()))
    mark = len(lab.transcript.entries)
    try:
        node = lab.netns(NODE, forward=True)
        path = Runtime(node, path=[*own, OWN_PLUGINS, *DEBIAN], cache=folder).find(Path(plugin).name)
        check = _Check(lab, node, path, config, folder)
        rows = [check.row(test) for name, test in vars(_Check).items() if name.startswith("ask_")]
        return Report(plugin=str(plugin), rows=tuple(rows), calls=check.calls)
    finally:
        for name in {NODE, POD} & {*nsfs.names()}:
            lab.remove(name)
        shutil.rmtree(folder)
        del lab.transcript.entries[mark:]  # it leaves nothing, so it is no part of how the lab was built


class _Wrong(Exception):
    """What came is not what was expected."""


class _Missing(Exception):
    """The plugin does not support it, or has no need to."""


class _Check:
    """A node, a container, and what the plugin said so far.

    Each method ask_... is a row: its docstring says what is asked, and what is expected.
    """

    def __init__(self, lab: Lab, node: Netns, path: Path, config: Mapping[str, Any] | None, folder: Path) -> None:
        self.lab, self.node, self.path, self.leases, self.calls = lab, node, path, folder / "leases", Recorder()
        ipam = {"type": "host-local", "ranges": [[{"subnet": "10.213.0.0/24"}]], "dataDir": str(self.leases)}
        default = {"bridge": "check0", "isDefaultGateway": True, "ipam": ipam}
        self.config = {"name": "check", "type": path.name, **(default if config is None else config)}
        self.version = load(self.config | {"cniVersion": self.config.get("cniVersion", "1.0.0")}).cni_version
        self.interface = "lo" if path.name == "loopback" else "eth0"
        self.result: Result | None = None  # of the last ADD
        self.before = self.links(node)

    def row(self, test: Callable[[_Check], str]) -> Row:
        what, _, expected = (test.__doc__ or "").rstrip(".").partition(": ")
        try:
            outcome, got = OK, test(self)
        except _Missing as missing:
            outcome, got = NOT_SUPPORTED, str(missing)
        except (_Wrong, K8snetError, ValueError, LookupError, TypeError, AttributeError) as wrong:  # it may answer all
            outcome, got = FAILED, str(wrong)
        return Row(what=what, outcome=outcome, expected=expected, got=got)

    # -- calls -------------------------------------------------------------------------

    def send(
        self, command: str, more: Mapping[str, Any] = {}, *, stdin: str | None = None, env: Mapping[str, str] = {}
    ) -> Call:
        """Call the plugin; *more* and *env* change its configuration and its variables."""
        variables = {
            "CNI_COMMAND": command, "CNI_CONTAINERID": "check", "CNI_NETNS": f"{nsfs.FOLDER}/{POD}",
            "CNI_IFNAME": self.interface, "CNI_PATH": os.pathsep.join([str(self.path.parent), *DEBIAN]), **env,
        }  # fmt: skip
        request = json.dumps({**self.config, "cniVersion": self.version, **more}) if stdin is None else stdin
        given = {key: value for key, value in variables.items() if value != UNSET}
        call = invoke(self.node, self.path, stdin=request, timeout_s=30, env=given)
        self.calls.calls.append(call)
        return call

    def must(self, command: str, more: Mapping[str, Any] = {}, *, env: Mapping[str, str] = {}) -> Call:
        """Call the plugin, which has to succeed; one that does not know a newer command does not support it."""
        call = self.send(command, more, env=env)
        failure = call.failure()
        if failure and command in {"STATUS", "GC"} and failure.code in {1, 3, 4}:
            raise _Missing(str(failure))  # 3: Debian's want a container id before they look at the command
        if failure:
            raise _Wrong(str(failure))
        return call

    def refuses(self, code: int | None, command: str, more: Mapping[str, Any] = {}, **options: Any) -> str:
        """Call the plugin, which has to answer with an error: with *code*, if that is given."""
        call = self.send(command, more, **options)
        failure = call.failure()
        if failure is None:
            raise _Wrong(f"no error: {call.stdout.strip() or call.stderr.strip() or 'nothing was printed'}")
        if (failure.code == INTERNAL and '"code"' not in call.stdout) or code not in {None, failure.code}:
            raise _Wrong(str(failure))
        return f"code {failure.code}: {failure.message}"

    def attach(self) -> Result:
        """Call ADD for a new netns."""
        if POD in nsfs.names():
            self.lab.remove(POD)
        self.lab.netns(POD)
        self.result = None
        self.result = parse(self.must("ADD").stdout, default_version=self.version)
        return self.result

    def need(self, *, interface: bool = False, since: str = "0.1.0") -> Result:
        """Return the last result; a row that needs more than there is, is not supported."""
        if self.result is None:
            raise _Missing("there is nothing to ask, since ADD failed")
        if not at_least(self.version, since):
            raise _Missing(f"it exists from {since}")
        if interface and (self.interface == "lo" or (at_least(self.version, "0.3.0") and not self.result.interfaces)):
            raise _Missing("it makes no interface")
        return self.result

    def previous(self) -> dict[str, Any]:
        """Return prevResult, where the spec version has it in CHECK and DEL."""
        return {"prevResult": self.need().to(self.version)} if at_least(self.version, "0.4.0") else {}

    # -- the state of the kernel ---------------------------------------------------------

    def links(self, netns: Netns) -> dict[str, list[str]]:
        """Return the interfaces of a netns with their addresses; bridges may stay, and do not count."""
        found = json.loads(netns.run("ip", "-j", "-d", "address", "show").stdout)
        return {
            one["ifname"]: [f"{ip['local']}/{ip['prefixlen']}" for ip in one["addr_info"]] for one in found
            if one.get("linkinfo", {}).get("info_kind") != "bridge"
        }  # fmt: skip

    def nothing_left(self) -> str:
        left = sorted(self.links(self.node).keys() - self.before.keys())
        if POD in nsfs.names():
            left += [f"{name} in the container" for name in self.links(self.lab[POD]) if name != "lo"]
        left += [f"lease {file.name}" for file in self.leases.glob("*/*[.:]*") if not file.name.startswith("last")]
        if left:
            raise _Wrong(f"left: {', '.join(left)}")
        return "nothing is left"

    # -- what the spec asks for ------------------------------------------------------------

    def ask_versions(self) -> str:
        """VERSION: supportedVersions, with one that we know."""
        answer = json.loads(self.must("VERSION").stdout)
        known = [version for version in VERSIONS if version in answer["supportedVersions"]]
        if not known or not answer.get("cniVersion"):
            raise _Wrong(json.dumps(answer))
        self.version = self.config.get("cniVersion", known[-1])
        return ", ".join(answer["supportedVersions"])

    def ask_add(self) -> str:
        """ADD: a result in the format of the configuration's cniVersion."""
        result = self.attach()
        if result.cni_version != self.version:
            raise _Wrong(f"a result of {result.cni_version} for a configuration of {self.version}")
        return ", ".join(one.address for one in result.ips) or "a result without addresses"

    def ask_interface(self) -> str:
        """The interface: in the container, with the name and the addresses that the result tells."""
        result = self.need(interface=True)
        inside = self.links(self.lab[POD])
        found, told = inside.get(self.interface), [one.name for one in result.interfaces if one.sandbox]
        if found is None or (result.interfaces and self.interface not in told):
            raise _Wrong(f"the result tells of {', '.join(told)}, and the container has {', '.join(inside)}")
        if missing := [one.address for one in result.ips if one.address not in found]:
            raise _Wrong(f"{', '.join(missing)} is not on {self.interface}, which has {', '.join(found) or 'none'}")
        return f"{self.interface} has {', '.join(found) or 'no address'}"

    def ask_gateway(self) -> str:
        """Ping to the gateway: an answer, if the node is the gateway."""
        result, there = self.need(interface=True), self.node.run("ip", "-o", "address", "show").stdout
        promised = self.config.get("isGateway") or self.config.get("isDefaultGateway")
        gateways = [one.gateway for one in result.ips if one.gateway and (promised or f" {one.gateway}/" in there)]
        if not gateways:
            raise _Missing("the node is no gateway here")
        if silent := [one for one in gateways if not self.lab[POD].ping(one).ok]:
            raise _Wrong(f"{', '.join(silent)} does not answer")
        return f"{', '.join(gateways)} answers"

    def ask_twice(self) -> str:
        """ADD a second time: an error, and the container as it was."""
        self.need(interface=True)
        before, got = self.links(self.lab[POD]), self.refuses(None, "ADD")
        if self.links(self.lab[POD]) != before:
            raise _Wrong(f"{got}; but the container has changed")
        return got

    def ask_check(self) -> str:
        """CHECK: no error."""
        self.need(since="0.4.0")
        self.must("CHECK", self.previous())
        return "no error"

    def ask_delete(self) -> str:
        """DEL: no error, and nothing left."""
        self.must("DEL", self.previous())
        return self.nothing_left()

    def ask_delete_twice(self) -> str:
        """DEL a second time: no error."""
        self.must("DEL", self.previous())
        return "no error"

    def ask_lost(self) -> str:
        """CHECK of a container that lost its interface: an error."""
        self.need(interface=True, since="0.4.0")
        self.attach()
        self.lab[POD].run("ip", "link", "delete", "dev", self.interface)
        got = self.refuses(None, "CHECK", self.previous())
        self.must("DEL", self.previous())
        return got

    def ask_gone(self) -> str:
        """DEL of a container that is gone: no error with an empty CNI_NETNS, and nothing left."""
        self.need()
        self.attach()
        self.lab.remove(POD)
        self.must("DEL", self.previous(), env={"CNI_NETNS": ""})
        return self.nothing_left()

    def ask_variables(self) -> str:
        """ADD without a variable that it needs: code 4, and the name of the variable."""
        for name in NEEDED:
            answer = self.refuses(4, "ADD", env={name: UNSET})
            if name not in answer:
                raise _Wrong(f"{name} is not named: {answer}")
        return "code 4"

    def ask_command(self) -> str:
        """A command that does not exist: code 4."""
        return self.refuses(4, "FLY")

    def ask_json(self) -> str:
        """A configuration that is not JSON: code 6."""
        return self.refuses(6, "ADD", stdin="{not json")

    def ask_name(self) -> str:
        """A configuration without a name: code 7."""
        return self.refuses(7, "ADD", {"name": ""})

    def ask_unknown(self) -> str:
        """A cniVersion that nobody knows: code 1."""
        return self.refuses(1, "ADD", {"cniVersion": "99.0.0"})

    def ask_status(self) -> str:
        """STATUS: no error, from 1.1.0."""
        self.must("STATUS", env=dict.fromkeys(NEEDED, UNSET))
        return "no error"

    def ask_gc(self) -> str:
        """GC: frees what is not valid any more, and nothing else, from 1.1.0."""
        own = dict.fromkeys(NEEDED, UNSET)
        self.must("GC", {VALID: []}, env=own)
        self.attach()
        before = self.links(self.node)
        self.must("GC", {VALID: [{"containerID": "check", "ifname": self.interface}]}, env=own)
        if self.links(self.node) != before:
            raise _Wrong("it freed an attachment that is valid")
        self.must("GC", {VALID: []}, env=own)
        return self.nothing_left()

    def ask_stdout(self) -> str:
        """Standard output: JSON or nothing, in every call."""
        for call in self.calls:
            try:
                json.loads(call.stdout.strip() or "{}")
            except ValueError:
                raise _Wrong(f"{call.command}: {call.stdout.strip()[:80]!r}") from None
        return f"so it was in {len(self.calls)} calls"
