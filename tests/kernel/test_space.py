"""What a job keeps in memory: /tmp, /run, /dev/shm are sized, counted as its own, and freed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.cgroup import files
from tests.support.command import State
from tests.support.containers import Ended, python, run_jobs

pytestmark = pytest.mark.kernel

MIB = 1 << 20
PLACES = ("/tmp", "/run", "/dev/shm")
Run = Callable[..., Ended]


@pytest.fixture
def look(tmp_state: State) -> Run:
    """Run a function inside one job and say how it ended."""

    def run(function: Callable[..., object], *arguments: Any, **settings: Any) -> Ended:
        job = {"command": python(function, *arguments), "timeout": "60s", **settings}
        return run_jobs(tmp_state, {"one": job})["one"]

    return run


def measure(places: list[str]) -> dict[str, list[int]]:
    """Bytes and inodes of each."""
    import os

    found = {}
    for place in places:
        status = os.statvfs(place)
        found[place] = [status.f_blocks * status.f_frsize, status.f_files]
    return found


def test_each_is_as_large_as_the_memory_limit(look: Run) -> None:
    told = look(measure, PLACES, limits={"memory": "64M"}).told
    assert told == {place: [64 * MIB, 64 * MIB // 4096] for place in PLACES}


def test_without_a_limit_all_of_them_do_not_fill_the_host(look: Run) -> None:
    told = look(measure, PLACES).told
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert sum(size for size, _ in told.values()) < memory


def test_each_can_be_sized(look: Run) -> None:
    asked = ["/tmp:size=4M", "/run:size=1M,inodes=50", "/dev/shm:inodes=60"]
    told = look(measure, PLACES, limits={"memory": "64M"}, tmpfs=asked).told
    assert told == {"/tmp": [4 * MIB, 1024], "/run": [MIB, 50], "/dev/shm": [64 * MIB, 60]}


def fill(path: str, size: int) -> int:
    """Write `size` bytes; the errno that ended it, 0 for none."""
    try:
        with open(path, "wb") as file:  # noqa: PTH123
            for _ in range(size >> 20):
                file.write(bytes(1 << 20))
                file.flush()
    except OSError as error:
        return error.errno or 0
    return 0


@pytest.mark.parametrize("place", PLACES)
def test_who_fills_it_beyond_the_limit_is_out_of_memory(look: Run, place: str) -> None:
    ended = look(fill, f"{place}/x", 64 * MIB, limits={"memory": "32M", "swap": 0})
    assert ended.reason == "oom"
    assert 24 * MIB < ended.record["memory"]["peak"] <= 32 * MIB


@pytest.mark.parametrize("place", PLACES)
def test_who_fills_it_beyond_its_size_is_told(look: Run, place: str) -> None:
    asked = {"limits": {"memory": "64M"}, "tmpfs": [f"{place}:size=4M"]}
    assert look(fill, f"{place}/x", 16 * MIB, **asked).told == 28  # ENOSPC


def crowd(place: str, most: int) -> list[int]:
    """Make empty files until it is refused: how many, and the errno."""
    for number in range(most):
        try:
            open(f"{place}/{number}", "x").close()  # noqa: PTH123
        except OSError as error:
            return [number, error.errno or 0]
    return [most, 0]


@pytest.mark.parametrize("place", PLACES)
def test_inodes_are_counted_out(look: Run, place: str) -> None:
    asked = [f"{place}:size=4M,inodes=100"]
    made, failed = look(crowd, place, 1000, tmpfs=asked).told
    assert failed == 28 and 90 < made < 100


def shared() -> int:
    """Bytes of all that is in tmpfs on this host."""
    text = Path("/proc/meminfo").read_text().split("Shmem:")[1]
    return int(text.split()[0]) * 1024


def test_what_is_left_is_freed_at_the_end(look: Run) -> None:
    before = shared()
    ended = look(fill, "/dev/shm/left", 192 * MIB, limits={"memory": "256M", "swap": 0})
    assert ended.told == 0
    assert ended.record["memory"]["peak"] > 192 * MIB
    assert files.until(lambda: shared() < before + 96 * MIB, 20), (before, shared())
