"""The CNI runtime and results against the spec's own examples, libcni's tests, and Debian's plugins as measured."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest

from k8snet.cni import DEBIAN, VERSIONS, Runtime, load, parse
from k8snet.cni.config import at_least
from k8snet.errors import InvalidConfig, PluginFailed
from tests.conformance.conftest import read

CHAIN = read("cni/spec_dbnet_chain.json") or {}
EXAMPLES = (read("cni/spec_examples.json") or {}).get("blocks", [])
LITERALS = (read("cni/go_test_json_literals.json") or {}).get("items", [])
OPERATIONS = read("cni/operations_and_errors.json") or {"codes": [], "operations": {}, "goNames": {}}
PROBES = (read("cni/debian_bridge_error_probes.json") or {}).get("probes", [])
RUNS = (read("cni/debian_bridge_real_results.json") or {}).get("runs", [])
SPOKEN = (read("cni/debian_plugins_version.json") or {}).get("VERSION", {})

FAKE = """\
#!/bin/sh
# Keeps what it is asked, and answers what it is told to.
cd "{folder}"
number=$(ls | grep -c '^call-')
env | grep '^CNI_' >"call-$number.env"
cat >"call-$number.stdin"
cat "{folder}/reply-$(basename "$0")-$CNI_COMMAND" 2>/dev/null || true
exit {code}
"""
pytestmark = pytest.mark.usefixtures("conformance")


def fake(folder: Path, name: str, replies: dict[str, object], *, code: int = 0) -> None:
    """Put a plugin into *folder*/bin that records its calls in *folder*."""
    (folder / "bin").mkdir(exist_ok=True)
    program = folder / "bin" / name
    program.write_text(FAKE.format(folder=folder, code=code))
    program.chmod(0o755)
    for command, reply in replies.items():
        (folder / f"reply-{name}-{command}").write_text(reply if isinstance(reply, str) else json.dumps(reply))


def calls(folder: Path) -> list[tuple[dict[str, str], dict[str, object]]]:
    """Return environment and standard input of each call of a fake plugin, in order."""
    numbers = sorted({int(one.stem.partition("-")[2]) for one in folder.glob("call-*")})
    found = []
    for number in numbers:
        lines = (folder / f"call-{number}.env").read_text().splitlines()
        stdin = (folder / f"call-{number}.stdin").read_text()
        found.append((dict(line.split("=", 1) for line in lines), json.loads(stdin)))
    return found




@pytest.fixture
def runtime(lab, tmp_path):
    """A runtime that finds the fake plugins of *tmp_path* only."""
    (tmp_path / "bin").mkdir()
    return Runtime(lab.netns("node"), path=[tmp_path / "bin"], cache=tmp_path / "cache", timeout_s=10)


# -- the chain of the spec's appendix -------------------------------------------------------


def expected(command: str) -> list[dict[str, object]]:
    """Return the requests of a command as the appendix has them.

    The appendix leaves ipam.routes of its own configuration out; a runtime must not.
    """
    plugins = {one["type"]: one for one in CHAIN["netconf"]["plugins"]}
    return [
        {**call["stdin"], **({"ipam": plugins[call["plugin"]]["ipam"]} if "ipam" in call["stdin"] else {})}
        for call in CHAIN[command]
    ]


def without_version(request: dict[str, object]) -> dict[str, object]:
    """Return a request whose prevResult does not say its version, as the appendix prints it."""
    if "prevResult" not in request:
        return request
    return {**request, "prevResult": {k: v for k, v in request["prevResult"].items() if k != "cniVersion"}}


def offered() -> dict[str, object]:
    """Return every capability that one of the chain's requests has."""
    return {k: v for call in CHAIN["ADD"] for k, v in call["stdin"].get("runtimeConfig", {}).items()}


def test_the_chain_of_the_appendix_is_called_as_the_spec_prints_it(runtime, lab, tmp_path):
    """Nine calls: ADD and CHECK in order, DEL in reverse, each with the right configuration and prevResult."""
    for call in CHAIN["ADD"]:
        fake(tmp_path, call["plugin"], {"ADD": call["reply"]})
    given = {"container_id": "c1", "netns": lab.netns("pod"), "capabilities": offered()}
    runtime.add(CHAIN["netconf"], **given)
    runtime.check(CHAIN["netconf"], **given)
    runtime.delete(CHAIN["netconf"], **given)
    made = calls(tmp_path)
    assert [env["CNI_COMMAND"] for env, _ in made] == [c for c in ("ADD", "CHECK", "DEL") for _ in CHAIN[c]]
    requests = [without_version(request) for _, request in made]
    assert requests == [one for command in ("ADD", "CHECK", "DEL") for one in expected(command)]
    assert [request["prevResult"]["cniVersion"] for _, request in made if "prevResult" in request] == ["1.1.0"] * (
        len(made) - 1
    )


def test_the_chain_without_capabilities_has_no_runtime_config(runtime, lab, tmp_path):
    for call in CHAIN["ADD"]:
        fake(tmp_path, call["plugin"], {"ADD": call["reply"]})
    runtime.add(CHAIN["netconf"], container_id="c1", netns=lab.netns("pod"))
    assert not [request for _, request in calls(tmp_path) if "runtimeConfig" in request or "capabilities" in request]


# -- operations: which variables, from which version ----------------------------------------


def operate(runtime: Runtime, command: str, network: dict[str, object], given: dict[str, object]) -> None:
    """Have the runtime send a command."""
    attached = {"container_id": "c1", "args": {"K": "V", "IgnoreUnknown": "1"}, **given}
    if command in {"CHECK", "DEL"}:
        runtime.add(network, **attached)
    match command:
        case "ADD":
            runtime.add(network, **attached)
        case "CHECK":
            runtime.check(network, **attached)
        case "DEL":
            runtime.delete(network, **attached)
        case "STATUS":
            runtime.status(network)
        case "GC":
            runtime.gc(network, [])
        case "VERSION":
            runtime.version("fake")
        case _:
            pytest.fail(f"the runtime does not know {command}")


@pytest.fixture
def faked(runtime, lab, tmp_path):
    """A runtime with one fake plugin, and the arguments of an attachment."""
    version = {"cniVersion": "1.1.0", "supportedVersions": list(VERSIONS)}
    fake(tmp_path, "fake", {"ADD": {"ips": [{"address": "10.0.0.2/24"}]}, "VERSION": version})
    return runtime, {"netns": lab.netns("pod")}


@pytest.mark.parametrize("command", OPERATIONS["operations"])
def test_each_operation_has_exactly_its_variables(faked, tmp_path, command):
    operation = OPERATIONS["operations"][command]
    runtime, given = faked
    operate(runtime, command, {"cniVersion": "1.1.0", "name": "n", "type": "fake"}, given)
    env, request = calls(tmp_path)[-1]
    assert env["CNI_COMMAND"] == command
    assert set(operation["required"]) <= env.keys() <= {*operation["required"], *operation.get("optional", [])}
    if command in {"ADD", "DEL", "CHECK"}:
        assert env["CNI_ARGS"] == "K=V;IgnoreUnknown=1"
        assert env["CNI_NETNS"] == "/run/netns/pod"
    assert env.get("CNI_PATH", str(tmp_path / "bin")) == str(tmp_path / "bin")
    assert ("prevResult" in request) == (command in {"DEL", "CHECK"})
    assert (request.get("cni.dev/valid-attachments") == []) == (command == "GC")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("command", [key for key, one in OPERATIONS["operations"].items() if one.get("minVersion")])
def test_an_operation_is_sent_from_its_version_on(faked, tmp_path, command, version):
    runtime, given = faked
    network = {"cniVersion": version, "name": "n", "type": "fake"}
    exists = at_least(version, OPERATIONS["operations"][command]["minVersion"])
    refused = pytest.raises(InvalidConfig, match=command) if not exists and command != "GC" else nullcontext()
    with refused:  # GC has a part without the command: DEL for what the cache knows
        operate(runtime, command, network, given)
    assert (command in [env["CNI_COMMAND"] for env, _ in calls(tmp_path)]) == exists


@pytest.mark.parametrize("version", VERSIONS)
def test_del_has_prev_result_from_0_4_0_on(faked, tmp_path, version):
    runtime, given = faked
    operate(runtime, "DEL", {"cniVersion": version, "name": "n", "type": "fake"}, given)
    assert ("prevResult" in calls(tmp_path)[-1][1]) == at_least(version, "0.4.0")


CODES = [one["code"] for one in OPERATIONS["codes"]] + [int(one) for one in OPERATIONS["goNames"]] + [100, 4711]


@pytest.mark.parametrize("code", sorted(set(CODES)))
def test_an_error_keeps_its_three_fields(runtime, lab, tmp_path, code):
    answer = {"cniVersion": "1.0.0", "code": code, "msg": f"message {code}", "details": "more"}
    fake(tmp_path, "fake", {"ADD": answer}, code=1)
    with pytest.raises(PluginFailed) as caught:
        runtime.add({"name": "n", "type": "fake"}, container_id="c1", netns=lab.netns("pod"))
    assert (caught.value.plugin, caught.value.command, caught.value.code) == ("fake", "ADD", code)
    assert caught.value.message == f"message {code}"
    assert caught.value.details.startswith("more")
    assert [env["CNI_COMMAND"] for env, _ in calls(tmp_path)] == ["ADD", "DEL"]


# -- every example of the spec, every literal of libcni's tests -------------------------------


def what_is_it(value: object) -> str:
    """Return which kind of CNI document a JSON value is."""
    if not isinstance(value, dict):
        return "other"
    if "supportedVersions" in value:
        return "versions"
    if "code" in value:
        return "error"
    if "plugins" in value:
        return "list"
    if "type" in value:
        return "plugin"
    if value.keys() & {"ips", "ip4", "ip6", "interfaces", "routes"} or value.keys() == {"cniVersion", "dns"}:
        return "result"
    return "other"


def labels(cases: list[dict[str, object]], key: str) -> list[str]:
    return [f"{number}-{re.sub('[^A-Za-z0-9]+', '-', str(one.get(key)))[-40:]}" for number, one in enumerate(cases)]


def filled(value: object) -> object:
    """Return a literal with what a Go test would print into it."""
    text = json.dumps(value)
    for key, word in {"cniVersion": "1.0.0", "address": "10.1.2.3/24"}.items():
        text = text.replace(f'"{key}": "%s"', f'"{key}": "{word}"')
    return json.loads(text.replace("%s", "true").replace("%%", "%"))


def reject_or_keep(value: dict[str, object]) -> None:
    """Take a configuration as libcni would: what is taken comes out as it went in, what is not names its field."""
    network = {"name": "given", **value}
    unusable = {
        "name": re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", network["name"]) is None,
        "cniVersion": network.get("cniVersion", "1.0.0") not in VERSIONS and not network.get("cniVersions"),
        "plugins": network.get("plugins") == [],
    }
    if wrong := [field for field, bad in unusable.items() if bad]:
        with pytest.raises(InvalidConfig, match=wrong[0]):
            load(network)
        return
    found = load(network)
    assert found.raw == network
    assert found.name == network["name"]
    for plugin, raw in zip(found.plugins, network.get("plugins", [network]), strict=True):
        request = plugin.request(found)
        assert request["type"] == raw["type"]
        own = {key: one for key, one in raw.items() if key not in {"capabilities", "cniVersion", "name"}}
        assert own.items() <= request.items()
        wanted = {key: f"value of {key}" for key in raw.get("capabilities", {})}
        own_given = raw.get("runtimeConfig", {})  # a request, which is what the runtime made of a configuration
        given = {**own_given, **plugin.request(found, capabilities=wanted).get("runtimeConfig", {})}
        assert given.keys() == {*own_given, *(key for key, on in raw.get("capabilities", {}).items() if on)}


def keep_result(raw: dict[str, object]) -> None:
    """Take a result: it comes out as it went in, in every format with as many addresses as that has room for."""
    result = parse(raw, default_version="1.0.0")
    assert result.to(result.cni_version) == {**raw, "cniVersion": result.cni_version}
    for version in VERSIONS:
        again = parse(result.to(version))
        assert again.cni_version == version
        families = {":" in one.address for one in result.ips}
        assert len(again.ips) == (len(result.ips) if at_least(version, "0.3.0") else len(families))
        if at_least(version, "0.3.0") and at_least(result.cni_version, "0.3.0"):
            assert [one.interface for one in again.ips] == [one.interface for one in result.ips]
        assert parse(again.to(result.cni_version)).dns == result.dns


def take(value: object) -> None:
    """Parse and re-emit whatever CNI document a value is."""
    kind = what_is_it(value)
    if kind in {"list", "plugin"}:
        reject_or_keep(value)
        if "prevResult" in value:
            keep_result(value["prevResult"])
    elif kind == "result":
        keep_result(value)


@pytest.mark.parametrize("block", EXAMPLES, ids=labels(EXAMPLES, "section"))
def test_every_example_of_the_spec_is_taken_and_given_back(block, runtime, tmp_path):
    value = block["json"]
    if value is None:
        with pytest.raises(InvalidConfig, match="line"):
            load(block["raw"])
    elif what_is_it(value) == "versions":
        fake(tmp_path, "fake", {"VERSION": value})
        assert runtime.version("fake") == value
    elif what_is_it(value) == "error":
        fake(tmp_path, "fake", {"STATUS": value}, code=1)
        with pytest.raises(PluginFailed) as caught:
            runtime.status({"cniVersion": "1.1.0", "name": "n", "type": "fake"})
        error = caught.value
        assert (error.code, error.message, error.details) == (value["code"], value["msg"], value.get("details", ""))
    else:
        assert what_is_it(value) != "other"
        take(value)


BAD_FIELDS = [one for one in LITERALS if one["json"] in ({"address": 5}, {"dst": "1.2.3.0/24", "gw": "1.2.3.x"})]
UNKNOWN = [one for one in LITERALS if one["json"] and one["json"].get("cniVersion") == "0.4567.0"]
USABLE = [one for one in LITERALS if one["json"] is not None and one not in BAD_FIELDS and one not in UNKNOWN]
BROKEN = [one for one in LITERALS if one["json"] is None]


@pytest.mark.parametrize("item", USABLE, ids=labels(USABLE, "lastTitle"))
def test_every_literal_of_libcnis_tests_is_taken_and_given_back(item):
    take(filled(item["json"]))


@pytest.mark.parametrize("item", BROKEN, ids=labels(BROKEN, "lastTitle"))
def test_every_literal_that_is_not_json_is_refused_with_its_place(item):
    with pytest.raises(InvalidConfig, match=r"line \d+, column \d+"):
        load(item["raw"])
    with pytest.raises(InvalidConfig, match="not JSON"):
        parse(item["raw"])


@pytest.mark.parametrize("item", UNKNOWN, ids=labels(UNKNOWN, "lastTitle"))
def test_a_cached_result_of_an_unknown_version_stops_check_and_not_del(faked, tmp_path, item):
    """libcni: DEL frees what it can; CHECK cannot do without the result."""
    runtime, given = faked
    network = {"cniVersion": "1.0.0", "name": "n", "type": "fake"}
    operate(runtime, "ADD", network, given)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), "result": item["json"]}))
    with pytest.raises(InvalidConfig, match=r"0.4567.0"):
        runtime.check(network, container_id="c1", **given)
    runtime.delete(network, container_id="c1", **given)
    assert "prevResult" not in calls(tmp_path)[-1][1]
    assert not file.exists()


@pytest.mark.parametrize("item", BAD_FIELDS, ids=labels(BAD_FIELDS, "lastTitle"))
def test_a_literal_with_a_wrong_field_is_refused_by_its_name(item):
    key = "ips" if "address" in item["json"] else "routes"
    with pytest.raises(InvalidConfig, match=rf"{key}\[0\]"):
        parse({"cniVersion": "1.0.0", key: [item["json"]]})


# -- Debian's plugins, as measured ------------------------------------------------------------


def run_plugin(lab, plugin: str, env: dict[str, str], stdin: object, *, node: str = "node"):
    """Run a plugin of Debian's directly, and return exit code and answer."""
    netns = lab[node] if node in lab else lab.netns(node, forward=True)
    path = next((Path(one, plugin) for one in DEBIAN if Path(one, plugin).exists()), None)
    if path is None:
        pytest.skip("containernetworking-plugins is not installed")
    text = stdin if isinstance(stdin, str) else json.dumps(stdin)
    done = netns.run(str(path), stdin=text, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **env}, check=False)
    return done.code, json.loads(done.stdout) if done.stdout.strip() else "", done.stderr


@pytest.mark.parametrize("probe", PROBES, ids=labels(PROBES, "what"))
def test_debians_bridge_answers_as_measured(lab, probe):
    code, answer, stderr = run_plugin(lab, probe["plugin"], probe["env"], probe["stdin"])
    assert (code, answer) == (probe["rc"], probe["stdout"])
    assert bool(stderr) == bool(probe["stderr"])


@pytest.mark.parametrize("plugin", SPOKEN)
def test_debians_plugins_speak_the_versions_that_were_measured(lab, plugin):
    if not any(Path(one, plugin).exists() for one in DEBIAN):
        pytest.skip(f"no {plugin} here")
    runtime = Runtime(lab.netns("node"))
    for asked, measured in SPOKEN[plugin].items():
        assert run_plugin(lab, plugin, {"CNI_COMMAND": "VERSION"}, {"cniVersion": asked})[:2] == (
            measured["rc"], measured["out"],
        )  # fmt: skip
        assert runtime.version(plugin) == measured["out"]


def structure(value: object) -> object:
    """Return a measured answer without what differs in every run: MACs and the names of veth ends."""
    text = re.sub(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", "MAC", json.dumps(value))
    return json.loads(re.sub(r"veth[0-9a-f]{8}", "VETH", text).replace("/var/run/", "/run/"))


def containers() -> list[str]:
    return sorted({run["env"]["CNI_CONTAINERID"] for run in RUNS})


@pytest.mark.parametrize("container", containers())
def test_debians_bridge_does_what_was_measured_in_every_version(lab, tmp_path, container):
    """ADD, ADD again, portmap after it, CHECK, DEL, DEL again, CHECK after it: code and structure of each answer."""
    runs = [run for run in RUNS if run["env"]["CNI_CONTAINERID"] == container]
    for name in {Path(run["env"]["CNI_NETNS"]).name for run in runs}:
        lab.netns(name)
    latest: dict[str, object] = {}
    for run in runs:
        stdin = json.loads(json.dumps(run["stdin"]).replace("/var/lib/cni/networks", str(tmp_path)))
        if "prevResult" in stdin:
            stdin["prevResult"] = latest
        env = {key: value.replace("/var/run/", "/run/") for key, value in run["env"].items()}
        code, answer, _ = run_plugin(lab, run["plugin"], env, stdin)
        assert (code, structure(answer)) == (run["rc"], structure(run["stdout"])), run.get("what", run["command"])
        if run["command"] == "ADD" and code == 0:
            keep_result(answer)
            latest = answer
