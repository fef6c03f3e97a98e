"""Runtime: calls CNI plugins as a container runtime does (CNI spec, sections 2 to 4)."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from k8snet.cni.cache import Cache, CachedAttachment
from k8snet.cni.config import NAME, VERSIONS, NetworkConfig, NetworkList, at_least, load
from k8snet.cni.recorder import INTERNAL, Call, Recorder, invoke, shim_folder
from k8snet.cni.result import Result, parse
from k8snet.errors import (
    InvalidConfig,
    InvalidInput,
    K8snetError,
    NameTaken,
    NotFound,
    PluginFailed,
    ProgramMissing,
)
from k8snet.linux import nsfs
from k8snet.linux import run as _run
from k8snet.linux.address import check_interface_name
from k8snet.linux.netns import Netns

__all__ = ["DEBIAN", "OWN_PLUGINS", "CachedAttachment", "Runtime"]

DEBIAN = ("/usr/lib/cni", "/opt/cni/bin")  # of the package containernetworking-plugins, and upstream's
OWN_PLUGINS = Path(__file__).parent / "plugins"  # k8snet-bridge: to be read
SO_NETNS_COOKIE = 71  # a number that no other netns has had since boot

Source = NetworkList | str | Path | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Target:
    """What is attached, and the variables that say so (CNI spec, section 2, "Parameters")."""

    network: NetworkList
    container_id: str
    interface: str
    netns: str
    capabilities: Mapping[str, Any]
    args: Mapping[str, str]

    @property
    def key(self) -> tuple[str, str, str]:
        return self.network.name, self.container_id, self.interface

    def variables(self) -> dict[str, str]:
        arguments = ";".join(f"{key}={value}" for key, value in self.args.items())
        found = {"CNI_CONTAINERID": self.container_id, "CNI_NETNS": self.netns, "CNI_IFNAME": self.interface}
        return {key: value for key, value in {**found, "CNI_ARGS": arguments}.items() if value}


class Runtime:
    """The container runtime's side of CNI, for one node.

    Several threads may use it at once, for different containers.
    """

    def __init__(
        self, node: Netns, *, path: Sequence[Path | str] | None = None, cache: Path | None = None,
        timeout_s: float = 30.0, record: bool = True,
    ) -> None:  # fmt: skip
        """Prepare to call plugins in *node*.

        Args:
            path: folders of plugins; the default is $CNI_PATH, or else where Debian and upstream install them.
            cache: folder for what ADD answered; the default is in the sandbox's own /run, one a node.
            timeout_s: how long one call of a plugin may take.
            record: keep the calls that change something for the lab's transcript.
        """
        default = [part for part in os.environ.get("CNI_PATH", "").split(":") if part] or DEBIAN
        self.node, self.timeout_s = node, timeout_s
        folders = default if path is None else path
        self.path = tuple(map(Path, folders.split(":") if isinstance(folders, str) else folders))
        if cache is None:
            cookie = int.from_bytes(node.inside(_cookie), "little")
            cache = _run.scratch() / "cni" / f"{node.name}-{cookie}" / "results"
        self._cache, self._record = Cache(Path(cache)), record
        self._recorders: list[Recorder] = []
        self._shims: list[Path] = []

    def __repr__(self) -> str:
        """Return its node and where it looks for plugins."""
        return f"<CNI runtime of {self.node.name}, plugins from {':'.join(map(str, self.path))}>"

    @property
    def cache(self) -> Path:
        """The folder with a file an attachment."""
        return self._cache.folder

    # -- attachments -------------------------------------------------------------------

    def add(
        self, network: Source, *, container_id: str, netns: Netns | str | Path, interface: str = "eth0",
        capabilities: Mapping[str, Any] = {}, args: Mapping[str, str] = {},
    ) -> Result:  # fmt: skip
        """Attach a container to a network: ADD for each plugin, with what the one before it answered.

        Like: CNI_COMMAND=ADD CNI_CONTAINERID=ID CNI_NETNS=PATH CNI_IFNAME=eth0 CNI_PATH=... PLUGIN < CONFIG

        Args:
            netns: the container's; as a path if it is not of the lab.
            capabilities: for the plugins that ask for them, such as {"portMappings": [...]}.
            args: for CNI_ARGS.

        Raises:
            InvalidConfig, InvalidInput: the network, id or name cannot be used; no plugin was called.
            NotFound, NameTaken: its netns is not there; it is attached already.
            ProgramMissing: a plugin is not installed; none was called.
            PluginFailed: a plugin failed, was killed or took too long; DEL was called for all of them.
        """
        target = self._target(network, container_id, netns, interface, capabilities, args)
        if not target.netns or not Path(target.netns).exists():
            raise NotFound(f"ADD needs the netns of the container, and there is no {target.netns or 'such path'}")
        if self._cache.path(*target.key).exists():
            raise NameTaken(f"{container_id} {interface} is attached to {target.network.name} already; delete it first")
        for plugin in target.network.plugins:
            self.find(plugin.type)
        result: Result | None = None
        try:
            for plugin in target.network.plugins:
                result = self._add_one(target, plugin, result)
            assert result is not None  # noqa: S101  # load() refuses a network without plugins
            self._cache.write(CachedAttachment(
                network=target.network.name, container_id=container_id, interface=interface, netns=target.netns,
                args=args, capabilities=capabilities, config=target.network.raw,
                raw_result=result.to(target.network.cni_version),
            ))  # fmt: skip
        except BaseException as error:
            self._undo(target, result, error)
            raise
        return result

    def _add_one(self, target: _Target, plugin: NetworkConfig, previous: Result | None) -> Result:
        version = target.network.cni_version
        done = self._call(target, plugin, "ADD", previous)
        try:
            return parse(done.stdout, default_version=version)
        except InvalidConfig as error:
            raise PluginFailed(plugin.type, "ADD", INTERNAL, "its answer cannot be read", f"{error}") from None

    def _undo(self, target: _Target, result: Result | None, error: BaseException) -> None:
        """Call DEL for every plugin of a chain whose ADD failed; what fails again is told with the first error."""
        failures = []
        for plugin in reversed(target.network.plugins):
            try:
                self._call(target, plugin, "DEL", result)
            except K8snetError as failure:
                failures.append(str(failure))
        failures = [one for one in failures if getattr(error, "message", "") not in one]  # it knows no DEL either
        if failures and isinstance(error, PluginFailed):
            details = "; ".join([*filter(None, [error.details]), f"DEL to undo it failed, too: {', '.join(failures)}"])
            raise PluginFailed(error.plugin, error.command, error.code, error.message, details) from None

    def delete(
        self, network: Source, *, container_id: str, netns: Netns | str | Path | None = None, interface: str = "eth0",
        capabilities: Mapping[str, Any] = {}, args: Mapping[str, str] = {},
    ) -> None:  # fmt: skip
        """Detach a container: DEL for each plugin, the last one first. What is gone already is no error.

        Args:
            netns: None if it is gone; the plugins free what they hold elsewhere.
            capabilities: the default is what add() was given; *args* likewise.

        Raises:
            PluginFailed: a plugin failed; those before it in the list were not called, and a second
                delete() starts again.
        """
        asked = self._target(network, container_id, netns, interface, capabilities, args)
        try:
            cached = self._cache.read(*asked.key)
            previous = cached.result if cached and cached.raw_result else None
        except InvalidConfig:  # DEL frees what it can without (CNI spec, "DEL")
            cached = previous = None
        target = _remembered(asked, cached)
        for plugin in reversed(target.network.plugins):
            self._call(target, plugin, "DEL", previous)
        self._cache.forget(*target.key)

    def check(
        self, network: Source, *, container_id: str, netns: Netns | str | Path, interface: str = "eth0",
        capabilities: Mapping[str, Any] = {}, args: Mapping[str, str] = {},
    ) -> None:  # fmt: skip
        """Ask each plugin whether what ADD made is still as it was: CHECK, from spec version 0.4.0.

        A network with disableCheck is not asked.

        Raises:
            NotFound: the container is not attached.
            InvalidConfig: the network's version is older.
            PluginFailed: a plugin found something wrong.
        """
        asked = self._target(network, container_id, netns, interface, capabilities, args)
        _need(asked.network, "0.4.0", "CHECK")
        if asked.network.disable_check:
            return
        cached = self._cache.read(*asked.key)
        if cached is None:
            raise NotFound(f"{container_id} {interface} is not attached to {asked.network.name}; there is no result")
        target = _remembered(asked, cached)
        for plugin in target.network.plugins:
            self._call(target, plugin, "CHECK", cached.result)

    def attachments(self, network: Source | None = None) -> list[CachedAttachment]:
        """Return what is attached, by the cache: to all networks, or to one, given or by its name."""
        if network is None or (isinstance(network, str) and NAME.fullmatch(network)):
            return self._cache.all(network)
        return self._cache.all(load(network).name)

    # -- networks and plugins ----------------------------------------------------------

    def status(self, network: Source) -> None:
        """Ask each plugin whether it could serve ADD now: STATUS, from spec version 1.1.0.

        Raises:
            InvalidConfig: the network's version is older.
            PluginFailed: one could not: code 50, or 51 if existing containers suffer, too; 4 if it knows no STATUS.
        """
        found = load(network)
        _need(found, "1.1.0", "STATUS")
        for plugin in found.plugins:
            self._execute(plugin.type, "STATUS", plugin.request(found), {"CNI_PATH": self._search()})

    def gc(self, network: Source, valid: Iterable[tuple[str, str]]) -> list[CachedAttachment]:
        """Free what is left of containers that are gone, and return those: DEL for each, then GC.

        The GC command, with which plugins clean up what no cache knows of, exists from spec version
        1.1.0. A network with disableGC is left alone.

        Args:
            valid: container id and interface of every attachment that stays.

        Raises:
            PluginFailed: at least one call failed; all were made, and the details tell of each that failed.
        """
        found, keep = load(network), set(valid)
        if found.disable_gc:
            return []
        stale = [one for one in self._cache.all(found.name) if one.key not in keep]
        failures: list[PluginFailed] = []
        for one in stale:
            with _collected(failures):
                self.delete(found, container_id=one.container_id, netns=one.netns or None, interface=one.interface)
        if at_least(found.cni_version, "1.1.0"):
            attachments = [{"containerID": container, "ifname": name} for container, name in sorted(keep)]
            for plugin in found.plugins:
                request = plugin.request(found) | {"cni.dev/valid-attachments": attachments}
                with _collected(failures):
                    self._execute(plugin.type, "GC", request, {"CNI_PATH": self._search()})
        if failures:
            first, details = failures[0], "; ".join(map(str, failures[1:]))
            raise PluginFailed(first.plugin, first.command, first.code, first.message, details or first.details)
        return stale

    def version(self, plugin: str) -> dict[str, Any]:
        """Ask a plugin for the spec versions that it speaks: VERSION.

        Raises:
            ProgramMissing: it is not installed.
            PluginFailed: it failed, or its answer names no versions.
        """
        done = self._execute(plugin, "VERSION", {"cniVersion": VERSIONS[-1]}, {})
        try:
            answer = dict(json.loads(done.stdout))
            if answer["cniVersion"] == "0.2.0":  # which did not have the other field yet
                answer.setdefault("supportedVersions", ["0.1.0", "0.2.0"])
            list(map(str, answer["supportedVersions"]))
        except (ValueError, KeyError, TypeError):
            message = "its answer names no supportedVersions"
            raise PluginFailed(plugin, "VERSION", INTERNAL, message, done.stdout.strip()) from None
        return answer

    def find(self, plugin: str) -> Path:
        """Return the executable of a plugin: the first of that name on the path.

        Raises:
            ProgramMissing: no folder has it; the message names them, and the Debian package.
        """
        found = shutil.which(plugin, path=os.pathsep.join(map(str, self.path))) if "/" not in plugin else None
        there = next((folder / plugin for folder in self.path if (folder / plugin).is_file()), None)
        if found is None and there:
            raise ProgramMissing(f"{there} is there, but not executable: chmod +x {there}")
        if found is None:
            raise ProgramMissing(
                f"no CNI plugin {plugin!r} in {', '.join(map(str, self.path))}. "
                "Debian, Ubuntu: apt-get install containernetworking-plugins"
            )
        return Path(found)

    @contextmanager
    def recording(self, *, shims: bool = False) -> Iterator[Recorder]:
        """Collect each call of a plugin in this block: exactly what it got and gave.

            with runtime.recording(shims=True) as calls:
                runtime.add(network, container_id="c1", netns=pod)
            calls

        Args:
            shims: also those that a plugin calls itself, such as bridge its IPAM plugin: a folder of tiny
                recording programs stands first on CNI_PATH.
        """
        recorder = Recorder()
        with ExitStack() as stack:
            if shims:
                folder = stack.enter_context(shim_folder(self.path))
                self._shims.append(folder)
                stack.callback(self._shims.remove, folder)
            self._recorders.append(recorder)
            stack.callback(self._recorders.remove, recorder)
            yield recorder

    # -- calls -------------------------------------------------------------------------

    def _target(
        self, network: Source, container_id: str, netns: Netns | str | Path | None, interface: str,
        capabilities: Mapping[str, Any], args: Mapping[str, str],
    ) -> _Target:  # fmt: skip
        found = load(network)
        if not isinstance(container_id, str) or not NAME.fullmatch(container_id):
            raise InvalidInput(f"container id {container_id!r}: letters, digits, '_', '.', '-', the first no sign")
        check_interface_name(interface)
        if len(f"{found.name}-{container_id}-{interface}") > os.pathconf("/", "PC_NAME_MAX"):
            raise InvalidInput(f"container id {container_id[:20]!r}...: too long for a file name")
        for pair in args.items():
            if not all(isinstance(part, str) and not set(part) & set(";=\0") for part in pair):
                raise InvalidInput(f"CNI_ARGS {pair[0]!r}: keys and values are text, with no ';' and no '='")
        try:
            json.dumps(dict(capabilities))
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"capabilities: not JSON: {error}") from None
        path = nsfs.FOLDER / netns.name if isinstance(netns, Netns) else netns or ""
        return _Target(
            network=found, container_id=container_id, interface=interface, netns=str(path),
            capabilities=capabilities, args=args,
        )  # fmt: skip

    def _search(self) -> str:
        return os.pathsep.join(map(str, [*(folder / "bin" for folder in self._shims[-1:]), *self.path]))

    def _call(self, target: _Target, plugin: NetworkConfig, command: str, previous: Result | None) -> Call:
        version = target.network.cni_version
        told = previous.to(version) if previous and (command != "DEL" or at_least(version, "0.4.0")) else None
        request = plugin.request(target.network, previous=told, capabilities=target.capabilities)
        return self._execute(plugin.type, command, request, {**target.variables(), "CNI_PATH": self._search()})

    def _execute(self, plugin: str, command: str, request: Mapping[str, Any], variables: Mapping[str, str]) -> Call:
        """Run a plugin once, and return what it printed; PluginFailed if that is no success."""
        env = {"CNI_COMMAND": command, **variables}
        call = invoke(
            self.node, self.find(plugin), env=env, stdin=json.dumps(request), timeout_s=self.timeout_s,
            shims=self._shims[-1] if self._shims else None,
        )  # fmt: skip
        for recorder in list(self._recorders):
            recorder.calls.append(call)
        if failure := call.failure():
            raise failure
        if self._record and command in {"ADD", "DEL", "GC"}:
            typed = {**env, "CNI_PATH": os.pathsep.join(map(str, self.path))}
            words = [f"{key}={value}" for key, value in typed.items()]
            self.node.record("env", *words, str(self.find(plugin)), stdin=call.stdin)
        return call


def _cookie() -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)


def _remembered(asked: _Target, cached: CachedAttachment | None) -> _Target:
    """Return *asked* with what add() was given where nothing is asked."""
    if cached is None:
        return asked
    return replace(asked, args=asked.args or cached.args, capabilities=asked.capabilities or cached.capabilities)


def _need(network: NetworkList, version: str, command: str) -> None:
    if not at_least(network.cni_version, version):
        raise InvalidConfig(
            f"network {network.name} has cniVersion {network.cni_version}, and {command} exists from {version} on"
        )


@contextmanager
def _collected(failures: list[PluginFailed]) -> Iterator[None]:
    try:
        yield
    except PluginFailed as error:
        failures.append(error)
