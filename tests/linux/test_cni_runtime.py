"""The CNI runtime with real plugins and with broken ones: what is made, what is left, what is told."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from k8snet import End
from k8snet.cni import DEBIAN, OWN_PLUGINS, Runtime
from k8snet.cni.ipam import Leases
from k8snet.errors import InvalidConfig, InvalidInput, InvalidName, NameTaken, NotFound, PluginFailed, ProgramMissing
from k8snet.linux import nsfs
from k8snet.linux.run import scratch, wait_until

BRIDGES = ("bridge", "k8snet-bridge")


@pytest.fixture
def node(lab):
    return lab.netns("node", forward=True)


@pytest.fixture
def data():
    """A folder for leases in the sandbox's own /run: the rest is read-only there."""
    with tempfile.TemporaryDirectory(prefix="leases-", dir=scratch()) as folder:
        yield Path(folder)


@pytest.fixture
def runtime(node):
    return Runtime(node, path=[OWN_PLUGINS, *DEBIAN])


def network(data: Path, kind: str = "bridge", *more: dict[str, object], subnet="10.1.0.0/24", **fields):
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}]], "dataDir": str(data)}
    first = {"type": kind, "bridge": "cni0", "isDefaultGateway": True, "hairpinMode": True, "ipam": ipam}
    return {"cniVersion": "1.0.0", "name": "dbnet", "plugins": [first, *more], **fields}


def left(node, data: Path) -> tuple[list[str], list[str]]:
    """Return what an attachment leaves on a node when it is gone: interfaces but the bridge, leases."""
    links = [one["ifname"] for one in json.loads(node.run("ip", "-j", "link", "show").stdout)]
    leases = [one.name for one in data.glob("*/*") if one.name[0].isdigit()]
    return [name for name in links if name not in {"lo", "cni0"}], leases


def script(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}")
    (folder / name).chmod(0o755)


# -- attach, check, detach ------------------------------------------------------------------


@pytest.mark.parametrize("kind", BRIDGES)
def test_two_containers_reach_each_other_until_they_are_detached(lab, node, data, runtime, kind):
    net, pods = network(data, kind), [lab.netns("a"), lab.netns("b")]
    results = [runtime.add(net, container_id=pod.name, netns=pod) for pod in pods]
    assert [one.ips[0].address for one in results] == ["10.1.0.2/24", "10.1.0.3/24"]
    assert results[0].interfaces[2].sandbox == "/run/netns/a"
    assert pods[0].ping("10.1.0.3").ok
    assert pods[0].ping("10.1.0.1").ok
    assert [one.key for one in runtime.attachments("dbnet")] == [("a", "eth0"), ("b", "eth0")]
    for pod in pods:
        runtime.check(net, container_id=pod.name, netns=pod)
        runtime.delete(net, container_id=pod.name, netns=pod)
    assert left(node, data) == ([], [])
    assert runtime.attachments() == []
    assert not pods[0].ping("10.1.0.3", timeout_s=0.3).ok


@pytest.mark.parametrize("kind", BRIDGES)
def test_detaching_is_idempotent_and_needs_no_netns(lab, node, data, runtime, kind):
    net = network(data, kind)
    runtime.add(net, container_id="c1", netns=lab.netns("a"))
    gone = lab["a"]
    lab.remove("a")
    runtime.delete(net, container_id="c1", netns=gone)
    runtime.delete(net, container_id="c1")
    assert left(node, data) == ([], [])


@pytest.mark.parametrize("kind", BRIDGES)
def test_check_notices_a_missing_address_and_a_missing_interface(lab, data, runtime, kind):
    net, pod = network(data, kind), lab.netns("a")
    runtime.add(net, container_id="c1", netns=pod)
    pod.delete_address("eth0", "10.1.0.2/24")
    with pytest.raises(PluginFailed):
        runtime.check(net, container_id="c1", netns=pod)
    pod.delete_link("eth0")
    with pytest.raises(PluginFailed):
        runtime.check(net, container_id="c1", netns=pod)
    runtime.check({**net, "disableCheck": True}, container_id="c1", netns=pod)


def test_check_of_what_is_not_attached_is_refused(lab, data, runtime):
    pod = lab.netns("a")
    with pytest.raises(NotFound, match="c1 eth0 is not attached to dbnet"):
        runtime.check(network(data), container_id="c1", netns=pod)
    with pytest.raises(InvalidConfig, match=r"CHECK exists from 0.4.0"):
        runtime.check(network(data, cniVersion="0.3.1"), container_id="c1", netns=pod)


def test_attaching_twice_is_refused_before_a_plugin_is_called(lab, data, runtime):
    """A plugin would refuse it, too, and the DEL that follows a failed ADD would take the first one down."""
    net, pod = network(data), lab.netns("a")
    runtime.add(net, container_id="c1", netns=pod)
    with runtime.recording() as calls, pytest.raises(NameTaken, match="delete it first"):
        runtime.add(net, container_id="c1", netns=pod)
    assert len(calls) == 0
    assert pod.ping("10.1.0.1").ok
    assert runtime.add(net, container_id="c1", netns=pod, interface="eth1").ips[0].address == "10.1.0.3/24"


@pytest.mark.parametrize(
    ("fields", "error", "named"),
    [
        ({"container_id": ""}, InvalidInput, "container id ''"),
        ({"container_id": "a/b"}, InvalidInput, "container id 'a/b'"),
        ({"container_id": "-a"}, InvalidInput, "container id '-a'"),
        ({"container_id": "x" * 250}, InvalidInput, "too long"),
        ({"interface": "x" * 16}, InvalidName, "at most 15"),
        ({"interface": "a/b"}, InvalidName, "a/b"),
        ({"interface": ""}, InvalidName, "needs a name"),
        ({"args": {"a": "b;c"}}, InvalidInput, "CNI_ARGS 'a'"),
        ({"args": {"a": 1}}, InvalidInput, "CNI_ARGS 'a'"),
        ({"capabilities": {"ips": {1}}}, InvalidInput, "capabilities: not JSON"),
        ({"netns": ""}, NotFound, "needs the netns"),
        ({"netns": "/run/netns/gone"}, NotFound, "there is no /run/netns/gone"),
    ],
)
def test_what_a_plugin_would_choke_on_is_refused_before(lab, data, runtime, fields, error, named):
    given = {"container_id": "c1", "netns": lab.netns("a"), **fields}
    with runtime.recording() as calls, pytest.raises(error, match=named):
        runtime.add(network(data), **given)
    assert len(calls) == 0


def test_a_missing_plugin_is_named_with_the_folders_and_the_package_and_none_is_called(lab, node, data, runtime):
    net = network(data, "bridge", {"type": "nosuch"})
    with runtime.recording() as calls, pytest.raises(ProgramMissing, match=r"'nosuch' in .*/usr/lib/cni.*apt-get"):
        runtime.add(net, container_id="c1", netns=lab.netns("a"))
    assert len(calls) == 0
    with pytest.raises(ProgramMissing):
        runtime.find("../bridge")


def test_a_plugin_that_is_not_executable_is_told_so(lab, node, tmp_path):
    """Who writes a plugin forgets it; "not installed" would send them the wrong way."""
    (tmp_path / "mine").write_text("#!/bin/sh\n")
    with pytest.raises(ProgramMissing, match=r"mine is there, but not executable: chmod \+x"):
        Runtime(node, path=[tmp_path]).find("mine")


def test_the_folders_may_be_written_as_in_cni_path(node):
    assert Runtime(node, path="/a:/b").path == (Path("/a"), Path("/b"))


def test_the_folders_come_from_cni_path_where_it_is_set(node, tmp_path, monkeypatch):
    script(tmp_path, "mine", "exit 0")
    monkeypatch.setenv("CNI_PATH", f"/nowhere:{tmp_path}")
    assert Runtime(node).find("mine") == tmp_path / "mine"
    monkeypatch.delenv("CNI_PATH")
    assert Runtime(node).path == tuple(map(Path, DEBIAN))


def test_two_nodes_do_not_share_their_cache(lab, node, runtime):
    """GC of one would detach the containers of the other."""
    assert Runtime(node).cache == runtime.cache
    assert Runtime(lab.netns("node2")).cache != runtime.cache


def test_an_older_version_is_asked_for_and_answered(lab, data, runtime):
    result = runtime.add(network(data, cniVersion="0.2.0"), container_id="c1", netns=lab.netns("a"))
    assert result.cni_version == "0.2.0"
    assert result.to("0.2.0")["ip4"]["ip"] == "10.1.0.2/24"


# -- many at once -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BRIDGES)
def test_containers_of_a_node_are_attached_in_parallel(lab, node, data, runtime, kind):
    net, pods = network(data, kind), [lab.netns(f"p{number}") for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda pod: runtime.add(net, container_id=pod.name, netns=pod), pods))
        assert len({one.ips[0].address for one in results}) == len(pods)
        assert all(pod.ping("10.1.0.1").ok for pod in pods)
        list(pool.map(lambda pod: runtime.delete(net, container_id=pod.name, netns=pod), pods))
    assert left(node, data) == ([], [])
    assert runtime.attachments() == []


# -- what goes wrong in the middle ------------------------------------------------------------


MAKES_A_VETH = """\
cat >/dev/null
case $CNI_COMMAND in
ADD) ip link add name half type veth peer name other; kill -9 $$ ;;
DEL) ip link delete dev half 2>/dev/null; exit 0 ;;
esac
"""


def test_a_plugin_killed_in_the_middle_of_add_leaves_nothing(lab, node, runtime, tmp_path):
    script(tmp_path, "killed", MAKES_A_VETH)
    mine = Runtime(node, path=[tmp_path], cache=tmp_path / "cache")
    with pytest.raises(PluginFailed, match="killed by SIGKILL") as caught:
        mine.add({"name": "n", "type": "killed"}, container_id="c1", netns=lab.netns("a"))
    assert (caught.value.plugin, caught.value.command, caught.value.code) == ("killed", "ADD", 999)
    assert left(node, tmp_path) == ([], [])
    assert mine.attachments() == []


@pytest.mark.parametrize("kind", BRIDGES)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kill -9 $$", "killed by SIGKILL"),
        ("cat >/dev/null; echo not json", "its answer cannot be read"),
        ("cat >/dev/null", "its answer cannot be read"),
        ("""cat >/dev/null; echo '{"cniVersion": "1.0.0", "ips": [{"address": 5}]}'""", "cannot be read"),
        ("""cat >/dev/null; echo '{"code": 11, "msg": "later"}'; exit 1""", "code 11: later"),
        ("cat >/dev/null; echo panic: no >&2; exit 2", "panic: no"),
    ],
    ids=["killed", "not JSON", "silent", "no result", "error", "panic"],
)
def test_a_chain_that_breaks_in_the_middle_leaves_nothing(lab, node, data, runtime, tmp_path, kind, text, message):
    script(tmp_path, "second", f'[ "$CNI_COMMAND" = ADD ] || exit 0\n{text}')
    mine = Runtime(node, path=[OWN_PLUGINS, *DEBIAN, tmp_path])
    net, pod = network(data, kind, {"type": "second"}), lab.netns("a")
    with mine.recording() as calls, pytest.raises(PluginFailed, match=message):
        mine.add(net, container_id="c1", netns=pod)
    made = [(call.plugin, call.command) for call in calls]
    assert made == [(kind, "ADD"), ("second", "ADD"), ("second", "DEL"), (kind, "DEL")]
    assert left(node, data) == ([], [])
    assert mine.attachments() == []
    mine.add(network(data, kind), container_id="c1", netns=pod)  # and the next call finds a clean table
    assert pod.ping("10.1.0.1").ok


@pytest.mark.parametrize("text", ["#!/no/such/program\n", "neither a script nor a program\n"])
def test_a_file_that_is_no_program_is_told_as_a_failed_plugin(lab, node, tmp_path, text):
    script(tmp_path, "mine", "")
    (tmp_path / "mine").write_text(text)
    with pytest.raises(PluginFailed, match="mine ADD: code 999: ended with 126"):
        Runtime(node, path=[tmp_path]).add({"name": "n", "type": "mine"}, container_id="c1", netns=lab.netns("a"))


def test_what_fails_in_undoing_is_told_with_the_first_error(lab, node, data, tmp_path):
    script(tmp_path, "second", """cat >/dev/null; echo "{\\"code\\": 7, \\"msg\\": \\"$CNI_COMMAND no\\"}"; exit 1""")
    mine = Runtime(node, path=[*DEBIAN, tmp_path])
    with pytest.raises(PluginFailed, match=r"second ADD: code 7: ADD no.*failed, too: second DEL: code 7: DEL no"):
        mine.add(network(data, "bridge", {"type": "second"}), container_id="c1", netns=lab.netns("a"))
    assert left(node, data) == ([], [])


def test_a_plugin_that_takes_too_long_is_killed_with_all_that_it_started(lab, node, tmp_path):
    pids = tmp_path / "pid"
    script(tmp_path, "slow", f'[ "$CNI_COMMAND" = ADD ] || exit 0\nsleep 600 & echo $! >{pids}; wait')
    mine = Runtime(node, path=[tmp_path], cache=tmp_path / "cache", timeout_s=0.5)
    with pytest.raises(PluginFailed, match=r"killed by SIGKILL.*after 0.5 s"):
        mine.add({"name": "n", "type": "slow"}, container_id="c1", netns=lab.netns("a"))
    wait_until(lambda: not Path(f"/proc/{pids.read_text().strip()}/ns/net").exists(), what="the end of sleep")


def test_a_failed_delete_can_be_repeated(lab, node, data, runtime, tmp_path):
    script(tmp_path, "second", """\
cat >/dev/null
[ "$CNI_COMMAND" = ADD ] && { echo '{"cniVersion": "1.0.0", "ips": []}'; exit 0; }
[ -e %s ] || { echo '{"code": 11, "msg": "later"}'; exit 1; }
""" % (tmp_path / "ready"))  # fmt: skip
    mine = Runtime(node, path=[*DEBIAN, tmp_path])
    net, pod = network(data, "bridge", {"type": "second"}), lab.netns("a")
    mine.add(net, container_id="c1", netns=pod)
    with pytest.raises(PluginFailed, match="later"):
        mine.delete(net, container_id="c1", netns=pod)
    assert len(mine.attachments()) == 1
    (tmp_path / "ready").touch()
    mine.delete(net, container_id="c1", netns=pod)
    assert (left(node, data), mine.attachments()) == (([], []), [])


def test_a_read_only_data_dir_says_what_to_do(lab, runtime):
    ipam = {"type": "host-local", "subnet": "10.0.0.0/24"}
    net = {"name": "n", "type": "bridge", "cniVersion": "1.0.0", "ipam": ipam}
    with pytest.raises(PluginFailed, match='"dataDir" below /run'):
        runtime.add(net, container_id="c1", netns=lab.netns("a"))


# -- GC and STATUS ----------------------------------------------------------------------------


def test_gc_detaches_what_is_not_valid_any_more_and_nothing_else(lab, node, data, runtime):
    net = network(data)
    for name in ("a", "b", "c"):
        runtime.add(net, container_id=name, netns=lab.netns(name))
    with runtime.recording() as calls:
        freed = runtime.gc(net, [("b", "eth0")])
    assert [one.container_id for one in freed] == ["a", "c"]
    assert [call.command for call in calls] == ["DEL", "DEL"]  # GC itself exists from 1.1.0 only
    assert [one.container_id for one in runtime.attachments(net)] == ["b"]
    assert lab["b"].ping("10.1.0.1").ok
    assert left(node, data)[1] == ["10.1.0.3"]
    assert runtime.gc({**net, "disableGC": True}, []) == []
    assert len(runtime.attachments()) == 1


def test_gc_of_a_plugin_frees_what_no_cache_knows_of(lab, node, data, runtime):
    """A runtime that lost its cache: only the plugin can find the cable and the lease."""
    net = network(data, "k8snet-bridge", cniVersion="1.1.0")
    for name in ("a", "b"):
        runtime.add(net, container_id=name, netns=lab.netns(name))
    next(runtime.cache.glob("*-a-*")).unlink()
    with runtime.recording() as calls:
        assert runtime.gc(net, [("b", "eth0")]) == []
    assert [(call.command, call.env.keys()) for call in calls] == [("GC", {"CNI_COMMAND", "CNI_PATH"})]
    assert lab["b"].ping("10.1.0.1").ok
    assert left(node, data)[1] == ["10.1.0.3"]
    assert lab.snapshot()["a"].interface("eth0") is None


def test_every_failure_of_gc_is_told_and_all_else_is_done(lab, node, data, tmp_path):
    script(tmp_path, "second", """cat >/dev/null
        [ "$CNI_COMMAND" = ADD ] && { echo '{"cniVersion": "1.0.0", "ips": []}'; exit 0; }
        echo "{\\"code\\": 9, \\"msg\\": \\"no $CNI_CONTAINERID\\"}"; exit 1""")
    mine = Runtime(node, path=[*DEBIAN, tmp_path])
    for name in ("a", "b"):
        mine.add({"name": "n", "type": "second"}, container_id=name, netns=lab.netns(name))
    with pytest.raises(PluginFailed, match=r"no a; second DEL: code 9: no b"):
        mine.gc({"name": "n", "type": "second"}, [])


def test_status_asks_each_plugin_and_debians_do_not_know_it(data, runtime, node):
    runtime.status(network(data, "k8snet-bridge", cniVersion="1.1.0"))
    with pytest.raises(PluginFailed, match="bridge STATUS: code"):
        runtime.status(network(data, "bridge", cniVersion="1.1.0"))
    with pytest.raises(InvalidConfig, match=r"STATUS exists from 1.1.0"):
        runtime.status(network(data, "k8snet-bridge"))
    with pytest.raises(PluginFailed, match="code 50"):
        Runtime(node, path=[OWN_PLUGINS]).status(network(data, "k8snet-bridge", cniVersion="1.1.0"))


def test_a_plugin_that_does_not_say_its_versions_is_told_of(node, tmp_path):
    script(tmp_path, "mute", "exit 0")
    script(tmp_path, "old", """echo '{"cniVersion": "0.2.0"}'""")
    mine = Runtime(node, path=[tmp_path, *DEBIAN])
    with pytest.raises(PluginFailed, match=r"mute VERSION.*supportedVersions"):
        mine.version("mute")
    assert mine.version("old")["supportedVersions"] == ["0.1.0", "0.2.0"]
    assert "1.0.0" in mine.version("bridge")["supportedVersions"]


# -- what is recorded ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BRIDGES)
def test_the_recorder_sees_delegated_calls_through_shims(lab, data, runtime, kind):
    net, pod = network(data, kind, {"type": "tuning"}), lab.netns("a")
    with runtime.recording(shims=True) as calls:
        runtime.add(net, container_id="c1", netns=pod)
        runtime.delete(net, container_id="c1", netns=pod)
    made = [(call.plugin, call.command, [(inner.plugin, inner.command) for inner in call.delegated]) for call in calls]
    assert made == [
        (kind, "ADD", [("host-local", "ADD")]), ("tuning", "ADD", []),
        ("tuning", "DEL", []), (kind, "DEL", [("host-local", "DEL")]),
    ]  # fmt: skip
    inner = calls[0].delegated[0]
    assert inner.env["CNI_CONTAINERID"] == "c1"
    assert json.loads(inner.stdin)["ipam"]["type"] == "host-local"
    assert json.loads(inner.stdout)["ips"][0]["address"] == "10.1.0.2/24"
    assert not Path(inner.env["CNI_PATH"].split(":")[0]).exists()
    runtime.add(net, container_id="c1", netns=pod)
    assert len(calls) == 4  # the block has ended


def test_a_delegated_plugins_failure_passes_through_its_shim(lab, data, runtime):
    net = network(data, subnet="10.1.0.0/30")
    runtime.add(net, container_id="c1", netns=lab.netns("a"))
    with runtime.recording(shims=True) as calls, pytest.raises(PluginFailed, match="no IP addresses available"):
        runtime.add(net, container_id="c2", netns=lab.netns("b"))
    assert calls[0].delegated[0].code == 1


@pytest.mark.parametrize("kind", BRIDGES)
def test_the_transcript_builds_an_equal_network_in_a_fresh_sandbox(lab, node, data, runtime, tmp_path, kind):
    net = network(data, kind, {"type": "portmap", "capabilities": {"portMappings": True}}, {"type": "firewall"})
    mapping = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
    args = {"IgnoreUnknown": "1", "K": "two words"}
    for name in ("a", "b", "c"):
        offered = mapping if name == "c" else {}
        runtime.add(net, container_id=name, netns=lab.netns(name), capabilities=offered, args=args)
    runtime.delete(net, container_id="b", netns=lab["b"])
    script(tmp_path, "second", '[ "$CNI_COMMAND" = DEL ]')
    mine = Runtime(node, path=[*runtime.path, tmp_path])
    with mine.recording(shims=True), pytest.raises(PluginFailed):  # shims must not get into the transcript
        mine.add(network(data, kind, {"type": "second"}), container_id="d", netns=lab["b"])
    file = tmp_path / "script.sh"
    file.write_text(lab.transcript.script())
    mounts = " && ".join(f"mount -t tmpfs tmpfs {folder}" for folder in (nsfs.FOLDER, scratch()))
    command = f"{mounts} && bash {file} >/dev/null && {sys.executable} -m k8snet.observe.snapshot"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == lab.snapshot().config()


def test_a_runtime_can_leave_the_transcript_alone(lab, node, data):
    before = len(lab.transcript)
    quiet = Runtime(node, record=False)
    quiet.add(network(data), container_id="c1", netns=nsfs_made(lab))
    assert len(lab.transcript) == before


def nsfs_made(lab):
    nsfs.make("by-hand")
    return lab["by-hand"]


# -- leases ---------------------------------------------------------------------------------------


def test_our_leases_and_host_locals_are_the_same_ones(lab, data, runtime):
    """Reserve by one, free by the other, both ways; and neither hands out what the other did."""
    net, leases = network(data), Leases(data / "dbnet", "10.1.0.0/24")
    assert leases.reserve("ours", "eth0") == "10.1.0.2/24"
    theirs = runtime.add(net, container_id="theirs", netns=lab.netns("a"))
    assert theirs.ips[0].address == "10.1.0.3/24"
    assert leases.reserve("ours2", "eth0") == "10.1.0.4/24"
    assert [one.container_id for one in leases.list()] == ["ours", "theirs", "ours2"]
    leases.release("theirs", "eth0")
    with pytest.raises(PluginFailed, match="host-local"):
        runtime.check(net, container_id="theirs", netns=lab["a"])
    runtime.delete(net, container_id="ours", netns=lab["a"])  # DEL of what bridge never added frees the lease
    assert [one.container_id for one in leases.list()] == ["ours2"]


def test_leaked_leases_exhaust_a_subnet_and_gc_frees_them(lab, node, data, runtime):
    net = network(data, subnet="10.1.0.0/29")
    for number in range(5):
        runtime.add(net, container_id=f"c{number}", netns=lab.netns(f"p{number}"))
        lab.remove(f"p{number}")  # the container is gone, and nobody called DEL
    with pytest.raises(PluginFailed, match="no IP addresses available in range set"):
        runtime.add(net, container_id="c9", netns=lab.netns("p9"))
    assert len(runtime.gc(net, [])) == 5
    runtime.add(net, container_id="c9", netns=lab["p9"])
    assert lab["p9"].ping("10.1.0.1").ok


def test_a_service_of_a_container_is_reached_through_its_host_port(lab, node, data, runtime):
    """Portmap gets the port as a capability, and the kernel then translates."""
    client = lab.netns("client")
    ends = [End(netns=one, name="eth0", address=f"172.18.0.{number}/24") for number, one in ((1, node), (2, client))]
    lab.veth(*ends)
    net = network(data, "bridge", {"type": "portmap", "capabilities": {"portMappings": True}})
    pod = lab.netns("a")
    mapping = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
    runtime.add(net, container_id="c1", netns=pod, capabilities=mapping)
    with pod.listen(80):
        assert client.fetch("http://172.18.0.1:8080/").ok
        runtime.delete(net, container_id="c1", netns=pod)  # with the capabilities that add() was given
    assert "8080" not in node.run("iptables-save").stdout
