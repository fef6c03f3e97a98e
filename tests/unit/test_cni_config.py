"""Network configurations: what is taken, what is refused, and what the error names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from k8snet.cni import VERSIONS, NetworkList, load
from k8snet.cni.config import at_least
from k8snet.errors import InvalidConfig

LIST = {
    "cniVersion": "1.0.0",
    "name": "dbnet",
    "plugins": [{"type": "bridge", "bridge": "cni0"}, {"type": "portmap", "capabilities": {"portMappings": True}}],
}


def changed(**fields):
    return {key: value for key, value in {**LIST, **fields}.items() if value is not None}


def test_a_list_is_read_the_same_from_a_dict_from_text_and_from_a_file(tmp_path: Path):
    file = tmp_path / "10-dbnet.conflist"
    file.write_text(json.dumps(LIST))
    found = [load(LIST), load(json.dumps(LIST)), load(file), load(str(file))]
    assert all(one == found[0] for one in found)
    assert isinstance(found[0], NetworkList)
    assert [one.type for one in found[0].plugins] == ["bridge", "portmap"]
    assert load(found[0]) is found[0]


def test_a_single_plugin_is_a_list_of_one(tmp_path: Path):
    file = tmp_path / "10-dbnet.conf"
    file.write_text('{"cniVersion": "0.2.0", "name": "dbnet", "type": "bridge", "mtu": 1400}')
    (plugin,) = load(file).plugins
    assert plugin.request(load(file)) == {"cniVersion": "0.2.0", "name": "dbnet", "type": "bridge", "mtu": 1400}


def test_a_request_has_the_networks_name_and_version_and_what_the_plugin_can_use():
    """CNI spec, section 3: the list's name and version win, capabilities become runtimeConfig."""
    network = load(changed(plugins=[{"type": "x", "name": "own", "cniVersion": "0.1.0", "capabilities": {
        "mac": True, "ips": False, "bandwidth": True}}]))  # fmt: skip
    offered = {"mac": "02:00:00:00:00:01", "ips": ["10.0.0.2/24"], "portMappings": []}
    request = network.plugins[0].request(network, previous={"ips": []}, capabilities=offered)
    assert request == {
        "cniVersion": "1.0.0", "name": "dbnet", "type": "x",
        "runtimeConfig": {"mac": "02:00:00:00:00:01"}, "prevResult": {"ips": []},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "spoken"),
    [
        ({"cniVersion": "0.4.0"}, "0.4.0"),
        ({"cniVersion": None}, "0.1.0"),
        ({"cniVersion": None, "cniVersions": ["0.3.1", "1.1.0", "1.0.0"]}, "1.1.0"),
        ({"cniVersion": "1.0.0", "cniVersions": ["0.1.0", "0.4.0"]}, "1.0.0"),
        ({"cniVersion": "0.4.0", "cniVersions": ["1.0.0", "9.9.9"]}, "1.0.0"),
        ({"cniVersion": None, "cniVersions": []}, "0.1.0"),
    ],
)
def test_the_highest_version_that_both_know_is_spoken(fields, spoken):
    assert load(changed(**fields)).cni_version == spoken


def test_versions_are_in_the_order_of_the_spec():
    assert [at_least(one, "0.4.0") for one in VERSIONS] == [False] * 4 + [True] * 3


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": None}, "'name' is missing"),
        ({"name": ""}, "name: must not be empty"),
        ({"name": 5}, "name: must be a string, not 5"),
        ({"name": "bad name!"}, "name: 'bad name!'"),
        ({"name": "-x"}, "name: '-x'"),
        ({"cniVersion": "5.0.0"}, "cniVersion: '5.0.0'"),
        ({"cniVersion": "one"}, "cniVersion: 'one'"),
        ({"cniVersion": 1}, "cniVersion: must be a string"),
        ({"cniVersions": "1.0.0"}, "cniVersions: must be a list"),
        ({"cniVersions": ["1.0.0", 2]}, r"cniVersions\[1\]: 2 is not a version"),
        ({"cniVersion": None, "cniVersions": ["7.0.0"]}, r"cniVersions: \['7.0.0'\]"),
        ({"plugins": None}, "'plugins' is missing"),
        ({"plugins": []}, "plugins: must not be empty"),
        ({"plugins": {}}, "plugins: must be a list"),
        ({"plugins": ["bridge"]}, r"plugins\[0\]: must be an object"),
        ({"plugins": [{"type": "a"}, {"bridge": "b"}]}, r"plugins\[1\]: 'type' is missing"),
        ({"plugins": [{"type": "a"}, {"type": 7}]}, r"plugins\[1\].type: must be a string, not 7"),
        ({"plugins": [{"type": "../a"}]}, r"plugins\[0\].type: '../a' is the file name"),
        ({"plugins": [{"type": "a", "ipam": "host-local"}]}, r"plugins\[0\].ipam: must be an object"),
        ({"plugins": [{"type": "a", "ipam": {"type": 3}}]}, r"plugins\[0\].ipam.type: must be a string"),
        ({"plugins": [{"type": "a", "capabilities": ["mac"]}]}, r"plugins\[0\].capabilities: must be an object"),
        ({"plugins": [{"type": "a", "capabilities": {"mac": 1}}]}, r"capabilities.mac: must be true or false"),
        ({"disableCheck": "perhaps"}, "disableCheck: must be true or false"),
        ({"loadOnlyInlinedPlugins": 1}, "loadOnlyInlinedPlugins: must be true or false"),
    ],
)
def test_what_cannot_be_used_is_named_by_its_field(fields, named):
    with pytest.raises(InvalidConfig, match=named):
        load(changed(**fields))


@pytest.mark.parametrize(("word", "value"), [("true", True), ("False", False), (True, True)])
def test_a_switch_may_be_a_string_as_old_configurations_have_it(word, value):
    assert load(changed(disableCheck=word)).disable_check is value


def test_an_error_names_file_line_column_and_field(tmp_path: Path):
    file = tmp_path / "broken.conflist"
    file.write_text('{\n  "name": "dbnet",\n  "plugins": [\n    {"type": "a"},\n    {"mtu": 1, "type": 7}\n  ]\n}')
    with pytest.raises(InvalidConfig, match=r"broken.conflist, line 5, column 24: plugins\[1\].type: must be a string"):
        load(file)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (
            '{\n  "name": "x",\n  "plugins": [\n    {"type": "a"},\n  ]\n}',
            "line (5, column 3|4, column 18), field 'type'.*comma",  # Python 3.13 points at the comma
        ),
        ('{"name": }', "line 1, column 10, field 'name'"),
        ("{", "line 1, column 2: not JSON"),
        ("", "configuration, line 1, column 1"),
        ("[1, 2]", "line 1, column 1: a configuration is an object"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_what_is_not_json_is_named_by_its_place(text, named):
    with pytest.raises(InvalidConfig, match=named):
        load(text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(InvalidConfig, match=r"nowhere.conf: No such file"):
        load(tmp_path / "nowhere.conf")
    (tmp_path / "latin.conf").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidConfig, match=r"latin.conf: 'utf-8'"):
        load(tmp_path / "latin.conf")


def test_what_is_not_json_able_is_refused():
    with pytest.raises(InvalidConfig, match="configuration: not JSON"):
        load({"name": object()})


def test_plugins_in_the_folder_of_the_networks_name_come_after_those_of_the_list(tmp_path: Path):
    """Since libcni 1.3: NAME/*.conf beside the file, unless loadOnlyInlinedPlugins."""
    (tmp_path / "dbnet").mkdir()
    (tmp_path / "dbnet" / "20-more.conf").write_text('{"type": "tuning"}')
    file = tmp_path / "10-dbnet.conflist"
    file.write_text(json.dumps(LIST))
    assert [one.type for one in load(file).plugins] == ["bridge", "portmap", "tuning"]
    file.write_text(json.dumps(changed(loadOnlyInlinedPlugins=True)))
    assert [one.type for one in load(file).plugins] == ["bridge", "portmap"]
    file.write_text(json.dumps(changed(plugins=None)))
    assert [one.type for one in load(file).plugins] == ["tuning"]
    file.write_text(json.dumps(changed(plugins=None, loadOnlyInlinedPlugins=True)))
    with pytest.raises(InvalidConfig, match="'plugins' is missing"):
        load(file)
