"""The recorder and the cache as values: what they show, and what they keep."""

from __future__ import annotations

import base64
import json

import pytest

from k8snet.cni import Call, Recorder
from k8snet.cni.cache import Cache, CachedAttachment
from k8snet.errors import InvalidConfig


def call(**fields):
    given = {"plugin": "bridge", "command": "ADD", "env": {"CNI_COMMAND": "ADD"}, "stdin": '{"name": "<b>"}',
             "stdout": "", "stderr": "", "code": 0, "seconds": 0.012}  # fmt: skip
    return Call(**{**given, **fields})


def test_a_call_shows_what_the_plugin_got_and_gave():
    calls = Recorder([call(stdout='{"ips": []}', stderr="careful", delegated=(call(plugin="host-local"),))])
    text = str(calls)
    assert "1. bridge ADD: ok, 12 ms" in text
    for word in ("CNI_COMMAND=ADD", '{"name": "<b>"}', '{"ips": []}', "careful", "it called host-local ADD"):
        assert word in text
    page = calls._repr_html_()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert page.count("<details") == 2
    assert str(Recorder()) == "no plugin was called"


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"code": 1, "stdout": '{"code": 7, "msg": "no"}'}, 7, "no"),
        ({"code": -9}, 999, "killed by SIGKILL"),
        ({"code": 3, "stdout": "panic"}, 999, "ended with 3, and what it printed is no CNI error"),
        ({"code": 1, "stdout": "[]"}, 999, "ended with 1, and what it printed is no CNI error"),
    ],
)
def test_how_a_plugin_failed_is_one_kind_of_error(fields, code, message):
    failure = call(**fields).failure()
    assert (failure.code, failure.message) == (code, message)
    assert call().failure() is None


def test_what_a_plugin_says_on_stderr_is_part_of_its_error():
    assert call(code=1, stdout='{"code": 7, "msg": "no", "details": "x"}', stderr="why\n").failure().details == "x; why"
    assert call(code=2, stderr="why").failure().details == "why"


def test_the_cache_is_libcnis(tmp_path):
    one = CachedAttachment(
        network="dbnet", container_id="c1", interface="eth0", netns="/run/netns/a", args={"K": "V"},
        capabilities={"mac": "x"}, config={"name": "dbnet"}, raw_result={"cniVersion": "1.0.0"},
    )  # fmt: skip
    cache = Cache(tmp_path / "results")
    assert cache.all() == []
    cache.write(one)
    (file,) = (tmp_path / "results").iterdir()
    assert file.name == "dbnet-c1-eth0"
    assert json.loads(file.read_text()) == {
        "kind": "cniCacheV1", "containerId": "c1", "config": base64.b64encode(b'{"name": "dbnet"}').decode(),
        "ifName": "eth0", "networkName": "dbnet", "netns": "/run/netns/a", "cniArgs": [["K", "V"]],
        "capabilityArgs": {"mac": "x"}, "result": {"cniVersion": "1.0.0"},
    }  # fmt: skip
    assert cache.read("dbnet", "c1", "eth0") == one
    assert (cache.all(), cache.all("other")) == ([one], [])
    cache.forget("dbnet", "c1", "eth0")
    cache.forget("dbnet", "c1", "eth0")
    assert cache.read("dbnet", "c1", "eth0") is None


@pytest.mark.parametrize("text", ["{}", "{half", "[]", '{"kind": "cniCacheV1", "cniArgs": [1]}'])
def test_what_is_not_of_the_cache_is_named_and_hides_no_attachment(tmp_path, text):
    """As in libcni: one file that cannot be read must not keep GC from all the others."""
    cache = Cache(tmp_path)
    good = CachedAttachment(network="n", container_id="c", interface="e", config={"name": "n"})
    cache.write(good)
    (tmp_path / "a-b-c").write_text(text)
    with pytest.raises(InvalidConfig, match="a-b-c: not a cached attachment"):
        cache.read("a", "b", "c")
    assert cache.all() == [good]


def test_a_cache_file_that_cannot_be_written_leaves_nothing(tmp_path):
    bad = CachedAttachment(network="n", container_id="c", interface="e", config={}, raw_result={"x": object()})
    with pytest.raises(TypeError):
        Cache(tmp_path).write(bad)
    assert list(tmp_path.iterdir()) == []
