"""Rotation of a file that several processes append to, on real file systems: no byte is lost."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from supervisor.record import logs
from supervisor.record.logs import Reader
from supervisor.supervise import rotate
from supervisor.supervise.rotate import Rotation
from tests.support.logged import SLOWER, append_to, assert_whole, file_system, writers

pytestmark = pytest.mark.kernel

LINES = 60_000 // SLOWER
NAMES = ("a", "b", "c")
SIZE = 256 * 1024 // SLOWER


@pytest.fixture(params=[("ext4", "collapse"), ("xfs", "collapse"), ("tmpfs", "punch")])
def place(request: pytest.FixtureRequest) -> Iterator[tuple[Path, rotate.Way]]:
    kind, expected = request.param
    with file_system(kind) as directory:
        assert rotate.way(directory) == expected
        yield directory, expected


class Follower(threading.Thread):
    """Reads a stream to its end, while it is written."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.data = b""
        self.jumped = False
        self.over = threading.Event()

    def run(self) -> None:
        reader = Reader(self.path)
        last = False
        while True:
            at, data = reader.read(len(self.data), 10_000)
            self.jumped = self.jumped or at != len(self.data)
            self.data += data
            if not data and last:
                break
            last = not data and self.over.is_set()
        reader.close()


def test_writers_at_full_speed_lose_nothing(place: tuple[Path, rotate.Way]) -> None:
    directory, how = place
    path = directory / "job.x.out"
    target = append_to(path)
    told: list[str] = []
    rotation = Rotation(path, SIZE, 1000, how, told.append)
    follower = Follower(path)
    follower.start()
    try:
        with writers(target, LINES, *NAMES) as running:
            while any(one.poll() is None for one in running):
                rotation.rotate()
        while rotation.rotate() > SIZE:  # not while a reader looks at the index
            pass
    finally:
        os.close(target)
        follower.over.set()
        follower.join()
    assert not told
    parts = sorted(int(one.suffix[1:]) for one in logs.files(path) if one.suffix[1:].isdigit())
    assert len(parts) > 3
    held = b"".join(logs.part_path(path, number).read_bytes() for number in parts)
    left = path.read_bytes()
    if how == "punch":
        left = left[len(left) - rotation.size() :]
        assert path.stat().st_blocks * 512 <= SIZE + 2 * 4096
    assert len(left) == rotation.size() <= SIZE
    assert_whole(held + left, LINES, *NAMES)
    assert rotation.end == len(held + left) and rotation.lost == 0
    assert follower.data == held + left and not follower.jumped
    rotation.close()


def test_what_is_older_than_is_kept_is_removed(place: tuple[Path, rotate.Way]) -> None:
    directory, how = place
    path = directory / "job.x.out"
    target = append_to(path)
    rotation = Rotation(path, SIZE, 2, how, pytest.fail)
    text = b"".join(b"%09d\n" % number for number in range(200_000 // SLOWER))
    for at in range(0, len(text), SIZE // 2):
        os.write(target, text[at : at + SIZE // 2])
        rotation.rotate()
    os.write(target, text)  # and much at once
    rotation.rotate()
    os.close(target)
    kept = [one for one in logs.files(path) if one.suffix[1:].isdigit()]
    assert len(kept) == 2 and sum(one.stat().st_size for one in kept) <= 2 * SIZE
    reader = Reader(path)
    first, end = reader.bounds()
    assert end == 2 * len(text) and 2 * SIZE < end - first <= 3 * SIZE
    at, data = reader.read(0, 1 << 30)
    while (more := reader.read(at + len(data)))[1]:
        data += more[1]
    assert at == first and data == (text + text)[first:]
    reader.close()
    rotation.close()


def test_a_job_that_plays_with_its_own_log_harms_nobody(place: tuple[Path, rotate.Way]) -> None:
    directory, how = place
    path = directory / "job.x.out"
    target = append_to(path)
    told: list[str] = []
    rotation = Rotation(path, SIZE, 2, how, told.append)
    os.write(target, b"x" * (3 * SIZE))
    rotation.rotate()
    os.ftruncate(target, 0)
    os.write(target, b"after\n")
    assert rotation.rotate() >= 0
    os.ftruncate(target, 1 << 40)  # copied would be a terabyte
    os.write(target, b"end\n")
    assert rotation.rotate() <= SIZE
    assert sum(one.stat().st_blocks * 512 for one in logs.files(path)) <= 4 * SIZE
    reader = Reader(path)
    _, end = reader.bounds()
    assert reader.read(end - 4) == (end - 4, b"end\n")
    reader.close()
    rotation.close()
    os.close(target)


def test_on_a_full_disk_the_oldest_goes_first_and_then_the_head() -> None:
    """Nobody but the log itself fills the disk: whoever writes it always has room."""
    with file_system("tmpfs", "size=1500k") as directory:
        path = directory / "job.x.out"
        target = append_to(path)
        told: list[str] = []
        rotation = Rotation(path, 256 * 1024, 1000, rotate.way(directory), told.append)
        for _ in range(100):
            assert os.write(target, b"x" * 60_000) == 60_000
            rotation.rotate()
        (directory / "other").write_bytes(b"x" * 60_000)
        assert 3 <= len(logs.files(path)) - 2 <= 5
        with suppress(OSError), (directory / "other").open("ab") as other:
            other.write(b"x" * (1 << 20))
        for _ in range(20):  # no room for any part
            with suppress(OSError):
                os.write(target, b"x" * 60_000)
            rotation.rotate()
        reader = Reader(path)
        first, end = reader.bounds()
        assert end == rotation.end and rotation.lost == first > 0
        reader.close()
        assert [text.partition(":")[0] for text in told] == [f"no room to rotate {path}"]
        rotation.close()
        os.close(target)


def test_where_neither_can_be_done_it_is_known() -> None:
    with file_system("ramfs") as directory:
        assert rotate.way(directory) == ""
        assert os.listdir(directory) == []
