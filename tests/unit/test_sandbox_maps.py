"""The id maps of a sandbox that root starts: the kernel refuses a wrong one whole."""
from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from k8snet import sandbox

WHOLE = "         0          0 4294967295\n"
ROOTLESS = "         0       1000          1\n         1     100000      65536\n"  # a container of podman's
ONE = "         0          0          1\n"
FEW = "         0     100000       2000\n"


def extents(id_map: str) -> list[tuple[int, int, int]]:
    return [tuple(map(int, line.split())) for line in id_map.splitlines()]  # type: ignore[misc]


@pytest.mark.parametrize("parent", [WHOLE, ROOTLESS, ONE, FEW])
def test_every_id_of_the_parent_is_mapped_once_and_no_line_spans_two_of_the_parents(parent: str) -> None:
    """Files keep their owners, and the kernel accepts the map."""
    lines, theirs = extents(sandbox.shifted(parent)), extents(parent)
    assert sum(count for _, _, count in lines) == sum(count for _, _, count in theirs)
    for _, outer, count in lines:
        assert any(first <= outer and outer + count <= first + size for first, _, size in theirs)
    for side in (0, 1):
        taken = sorted((line[side], line[side] + line[2]) for line in lines)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(taken))


@pytest.mark.parametrize(("parent", "outer"), [(WHOLE, 65533), (ROOTLESS, 65533), (FEW, 1999), (ONE, 0)])
def test_the_id_inside_is_an_unused_one_outside_where_there_is_one(parent: str, outer: int) -> None:
    """The highest id of a container with few is the least likely to be somebody."""
    assert (1000, outer, 1) in extents(sandbox.shifted(parent))


def test_a_system_folder_is_never_writable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not even when a command is started in it, or in one that holds it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("K8SNET_WRITABLE", raising=False)
    always = [tmp_path / "k8snet", Path("/tmp")]
    assert sandbox.writable_folders(tmp_path) == [tmp_path, *always]
    for folder in ("/", "/etc", "/usr/local", "/proc/self"):
        assert sandbox.writable_folders(Path(folder)) == always
