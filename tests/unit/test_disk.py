"""How large a layer is made, when it counts as full, which way is chosen; projects' numbers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from supervisor.container import disk, disk_loop
from supervisor.container.disk import BLOCK, Size, Usage
from supervisor.linux import quota
from supervisor.model.job import InlineAction, JobSpec, UserNamespace
from supervisor.model.limits import Limits
from supervisor.supervise.disk import LONGEST, SHORTEST, pause, told
from supervisor.supervise.projects import COUNT, FIRST, Projects, known_projects
from tests.support import host

MIB, GIB = 1 << 20, 1 << 30


def spec(limit: int = 64 * MIB, **values: Any) -> JobSpec:
    values = {"write": "overlay", "limits": Limits(disk=limit)} | values
    return JobSpec("one", ("true",), **values)


@pytest.mark.parametrize(
    ("used", "inodes", "near", "full", "scarce"),
    [
        (0, 0, False, False, "bytes"),
        (48 * MIB, 0, False, False, "bytes"),
        (48 * MIB + 1, 0, True, False, "bytes"),
        (62 * MIB, 0, True, False, "bytes"),
        (62 * MIB + 1, 0, True, True, "bytes"),
        (99 * MIB, 0, True, True, "bytes"),
        (0, 750, False, False, "inodes"),
        (0, 751, True, False, "inodes"),
        (0, 999, True, False, "inodes"),
        (0, 1000, True, True, "inodes"),
    ],
)
def test_a_layer_is_full_when_a_write_may_have_failed(
    used: int, inodes: int, near: bool, full: bool, scarce: str
) -> None:
    now = Usage(used, 64 * MIB, inodes, 1000)
    assert (now.near, now.full, now.scarce) == (near, full, scarce)
    assert told(now, 1.0).full is full


def test_of_a_small_layer_an_eighth_counts() -> None:
    assert Usage(7 * MIB, 8 * MIB, 0, 9).full is False
    assert Usage(7 * MIB + 1, 8 * MIB, 0, 9).full is True


def test_it_is_looked_at_again_when_the_fastest_writer_could_be_there() -> None:
    assert pause(Usage(0, 100 * GIB, 0, 1 << 30)) == LONGEST
    half = pause(Usage(0, GIB + 256 * MIB, 0, 1 << 30))
    assert half == pytest.approx(0.5)
    assert pause(Usage(63 * MIB, 64 * MIB, 0, 9999)) > SHORTEST  # full: nothing comes after it
    assert pause(Usage(60 * MIB, 64 * MIB, 0, 9999)) == SHORTEST


def test_a_layer_that_may_be_raised_has_room_for_it() -> None:
    raised = {"on_disk_limit": InlineAction("raise", {"limit": "disk", "to": GIB})}
    other = {"on_disk_limit": InlineAction("kill", {})}
    assert disk.size_of(spec(), wanted=False).most == 64 * MIB
    assert disk.size_of(spec(hooks=raised), wanted=True).most == GIB
    assert disk.size_of(spec(hooks=other), wanted=True).most == disk.HEADROOM * 64 * MIB
    assert disk.size_of(spec(), wanted=False).inodes == 8192
    assert disk.size_of(spec(MIB), wanted=False).inodes == disk.FEWEST_INODES
    few = spec(limits=Limits(disk=MIB, disk_inodes=17))
    assert disk.size_of(few, wanted=False).inodes == 17


@pytest.mark.parametrize(
    "size",
    [
        Size(MIB, 16, MIB),
        Size(MIB, 1024, MIB),
        Size(MIB, 500_000, 8 * MIB),
        Size(63 * MIB, 8000, 63 * MIB),
        Size(128 * MIB, 16, 128 * MIB),
        Size(GIB, 131072, GIB),
        Size(GIB, 131072, 64 * GIB),
        Size(200 * GIB, 26214400, 200 * GIB),
    ],
    ids=str,
)
def test_an_image_has_room_for_all_that_it_promises(tmp_path: Path, size: Size) -> None:
    """ext4 takes inode tables, bitmaps and descriptors for itself, and keeps blocks back."""
    if shutil.which(disk.MKFS, path=disk.mkfs_path()) is None:
        host.miss("tools", "needs mkfs.ext4: apt-get install e2fsprogs")
    blocks = disk_loop.blocks(size)
    image = disk_loop.unnamed(str(tmp_path), blocks * BLOCK)
    try:
        disk_loop.format_image(image, size)
        written = os.fstat(image).st_blocks * 512
        shown = subprocess.run(
            ["dumpe2fs", "-h", f"/proc/self/fd/{image}"], pass_fds=(image,), check=True,
            capture_output=True, text=True, env={"PATH": disk.mkfs_path()},
        ).stdout  # fmt: skip
    finally:
        os.close(image)
    found = {key: int(value) for key, value in re.findall(r"^([\w ]+):\s+(\d+)$", shown, re.M)}
    kept_back = min(found["Block count"] // 50, 4096)  # ext4_calculate_resv, fs/ext4/super.c
    assert found["Free blocks"] - kept_back >= -(-size.most // BLOCK)
    assert found["Free inodes"] >= size.inodes
    assert "has_journal" not in shown and found["Reserved block count"] == 0
    assert written < max(size.most // 100, 2 * MIB), "the image is not sparse"
    assert list(tmp_path.iterdir()) == []


def test_a_second_layer_is_laid_out_as_the_first_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which(disk.MKFS, path=disk.mkfs_path()) is None:
        host.miss("tools", "needs mkfs.ext4: apt-get install e2fsprogs")
    monkeypatch.setattr(disk_loop, "_templates", {})
    size = Size(8 * MIB, 1024, 8 * MIB)
    images = [disk_loop.unnamed(str(tmp_path), disk_loop.blocks(size) * BLOCK) for _ in range(2)]
    disk_loop.lay_out(images[0], size)
    monkeypatch.setattr(disk_loop, "format_image", lambda *_: pytest.fail("made twice"))
    disk_loop.lay_out(images[1], size)
    first, second = (os.pread(image, 16 * MIB, 0) for image in images)
    assert first == second and any(first)
    assert os.fstat(images[1]).st_blocks * 512 <= os.fstat(images[0]).st_blocks * 512 + MIB
    check = ["e2fsck", "-fn", f"/proc/self/fd/{images[1]}"]
    subprocess.run(
        check, pass_fds=(images[1],), check=True, env={"PATH": disk.mkfs_path()},
        capture_output=True,
    )  # fmt: skip
    for image in images:
        os.close(image)


def test_of_many_kinds_the_last_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    monkeypatch.setattr(disk_loop, "_templates", {})
    monkeypatch.setattr(disk_loop, "format_image", lambda _image, size: made.append(size.inodes))
    image = disk_loop.unnamed(str(tmp_path), 1 << 20)
    for inodes in (*range(20, 40), 39, 20):
        disk_loop.lay_out(image, Size(MIB, inodes, MIB))
    os.close(image)
    assert made == [*range(20, 40), 20]
    assert len(disk_loop._templates) == disk_loop.MOST_TEMPLATES


def test_the_ways_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "holds_quota", lambda path: True)
    monkeypatch.setattr(disk, "_no_loop", lambda: None)
    mapped = UserNamespace("map", 100000, 65536)
    base = disk.Place(str(tmp_path), layers=True)
    none = disk.Place(None, layers=False)

    def chosen(job: JobSpec, where: disk.Place = base, privileged: bool = True) -> object:
        return disk.choose(job, where, privileged=privileged)[0]

    assert chosen(spec(user_namespace=mapped)) == "quota"
    assert chosen(spec()) == "loop"  # the host's numbers: not a project that it could leave
    assert chosen(spec(disk_by="quota")) is None
    assert chosen(spec(), none) == "tmpfs"
    assert chosen(spec(keep="always"), none) is None
    memory = disk.Place(str(tmp_path), layers=False)  # overlayfs, or without xattr(7)'s user.*
    assert chosen(spec(user_namespace=mapped), memory) == "loop"
    assert chosen(spec(user_namespace=mapped), privileged=False) == "tmpfs"
    assert chosen(spec(disk_by="loop"), privileged=False) is None
    monkeypatch.setattr(disk, "_no_loop", lambda: disk.Lack("none here", "get one"))
    way, lines = disk.choose(spec(), base, privileged=True)
    assert way == "tmpfs" and lines[1] == "loop: none here (fix: get one)"
    assert 'user_namespace = "auto"' in lines[0]


def test_what_people_have_written_down_is_theirs(tmp_path: Path) -> None:
    (tmp_path / "projects").write_text(f"# mine\n{FIRST}:/srv/one\nrubbish\n")
    (tmp_path / "projid").write_text(f"web:{FIRST + 1}\nodd:x\n")
    assert known_projects(tmp_path) == {FIRST, FIRST + 1}
    assert known_projects(tmp_path / "none") == frozenset()


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[int, quota.Project]:
    """A file system's quota as a dict."""
    found: dict[int, quota.Project] = {}

    def limit(_fd: int, number: int, size: int, inodes: int) -> None:
        found[number] = quota.Project(0, size, 0, inodes)

    monkeypatch.setattr(quota, "get", lambda fd, n: found.get(n, quota.Project(0, 0, 0, 0)))
    monkeypatch.setattr(quota, "limit", limit)
    return found


def test_no_two_runs_have_one_project(tmp_path: Path, table: dict[int, quota.Project]) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "projid").write_text(f"web:{FIRST}\n")
    table[FIRST + 1] = quota.Project(4096, 0, 1, 0)  # somebody's files, unlimited
    table[FIRST + 2] = quota.Project(0, 0, 0, 7)  # somebody's limit, unused
    one, two = (Projects(name, tmp_path / "reg", etc) for name in ("one", "two"))
    taken = [each.take(str(tmp_path), "run") for each in (one, two, one)]
    assert taken == [FIRST + 3, FIRST + 4, FIRST + 5]
    one.give_back(str(tmp_path), taken[0])
    assert two.take(str(tmp_path), "run") == FIRST + 6, "used again at once"
    (tmp_path / "reg" / "next").write_text(str(COUNT))
    assert two.take(str(tmp_path), "run") == FIRST + 3


def test_what_a_killed_supervisor_had_is_given_back_by_its_own(
    tmp_path: Path, table: dict[int, quota.Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    mine, other = (Projects(name, tmp_path / "reg", tmp_path) for name in ("one", "two"))
    numbers = [each.take(str(tmp_path), "run") for each in (mine, mine, other)]
    for number in numbers:
        table[number] = quota.Project(0, MIB, 0, 9)
    paths = [next((tmp_path / "reg").glob(f"*.{number}")) for number in numbers]
    for path in (paths[0], paths[2]):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"start": 1}))
    assert mine.forget() == [str(tmp_path)]
    assert [path.exists() for path in paths] == [False, True, True]
    assert [table[number].limit for number in numbers] == [0, MIB, MIB]
