"""Whose numbers a job's users are: the maps that are written, as root and without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supervisor.container import idmaps
from supervisor.container.idmaps import IdMounts, Subordinate
from supervisor.errors import KernelError
from supervisor.model import UserNamespace

OWN = Subordinate((100000, 65536), (200000, 70000), ("/bin/newuidmap", "/bin/newgidmap"))
ME = ((0, os.geteuid(), 1),), ((0, os.getegid(), 1),)


def test_a_range_as_root() -> None:
    one = ((0, 300000, 65536),)
    space = UserNamespace("map", 300000, 65536)
    assert idmaps.maps(space, None, privileged=True) == (one, one)


def test_only_oneself() -> None:
    assert idmaps.maps(UserNamespace("self"), OWN, privileged=True) == ME
    space = idmaps.without_root(UserNamespace("auto"), None)
    assert space == UserNamespace("self")
    assert idmaps.maps(space, None, privileged=False) == ME


def test_what_an_ordinary_user_has_been_given_comes_after_himself() -> None:
    """As many groups as users: the shorter of the two ranges counts."""
    space = idmaps.without_root(UserNamespace("auto", files="plain"), OWN)
    assert space == UserNamespace("auto", size=65537, files="plain")
    users, groups = idmaps.maps(space, OWN, privileged=False)
    assert users == ((0, os.geteuid(), 1), (1, 100000, 65536))
    assert groups == ((0, os.getegid(), 1), (1, 200000, 65536))


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """newuidmap and newgidmap are there."""
    monkeypatch.setattr(idmaps.shutil, "which", lambda name, path: f"/x/{name}")
    return tmp_path


def test_the_longest_range_of_the_caller_by_name_or_number(helpers: Path) -> None:
    (helpers / "subuid").write_text("root:1:10\n0:100:20\nann:500:9999\nroot:x:1\nroot:7\n")
    (helpers / "subgid").write_text("0:300:30\n")
    found = idmaps.subordinate(helpers, 0)
    assert found == Subordinate((100, 20), (300, 30), ("/x/newuidmap", "/x/newgidmap"))
    assert idmaps.subordinate(helpers, 4242) is None


def test_without_the_helpers_or_one_of_the_files_there_is_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("subuid", "subgid"):
        (tmp_path / name).write_text("root:1000:10\n")
    monkeypatch.setattr(idmaps.shutil, "which", lambda name, path: None)
    assert idmaps.subordinate(tmp_path, 0) is None
    monkeypatch.setattr(idmaps.shutil, "which", lambda name, path: f"/x/{name}")
    (tmp_path / "subgid").unlink()
    assert idmaps.subordinate(tmp_path, 0) is None
    (tmp_path / "subgid").mkdir()
    with pytest.raises(KernelError, match="subgid"):
        idmaps.subordinate(tmp_path, 0)


def test_a_mount_is_tried_once_for_each_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    monkeypatch.setattr(IdMounts, "_try", lambda _self, path, deep: tried.append(path) or "no")
    found = IdMounts()
    (tmp_path / "below").mkdir()
    assert {found.refusal(str(tmp_path)), found.refusal(str(tmp_path / "below"))} == {"no"}
    found.refusal(str(tmp_path), deep=True)
    assert tried == [str(tmp_path)] * 2
    found.close()


@pytest.mark.parametrize(
    ("release", "can"),
    [("6.3.0", True), ("6.18.44-fc", True), ("7.0-rc1", True), ("6.2.9", False), ("5.14.0", False)],
)
def test_whether_a_tmpfs_can_be_mapped(release: str, can: bool) -> None:
    assert idmaps.maps_tmpfs(release) is can
