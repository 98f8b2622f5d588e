"""I/O limits on the real kernel: each rate, and what becomes of writes through the cache."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.cgroup.api import JobCgroup
from supervisor.cgroup.manager import Manager
from supervisor.model.limits import IoLimit, Limits
from tests.support import cgroups, host
from tests.support.cgroups import end, line, python

pytestmark = pytest.mark.kernel

MIB = 1 << 20
DISK = Path("/dev/vda")
"""The guest's spare one (tests.vm --disk)."""

DIRECT = """
import mmap, os, time
way, path = {way!r}, {path!r}
fd = os.open(path, os.O_DIRECT | (os.O_RDONLY if way == "read" else os.O_WRONLY))
buffer = mmap.mmap(-1, 65536)
began = time.monotonic()
for _ in range({count}):
    assert (os.readv if way == "read" else os.writev)(fd, [buffer]) == 65536
print(time.monotonic() - began, flush=True)
"""

CACHED = """
import os, time
fd = os.open({path!r}, os.O_WRONLY)
began = time.monotonic()
for _ in range({count}):
    os.write(fd, bytes(65536))
print(time.monotonic() - began, flush=True)
"""
SYNC = """
os.fsync(fd)
print(time.monotonic() - began, flush=True)
"""


@pytest.fixture
def manager(parent: str) -> Iterator[Manager]:
    with cgroups.managed("disk", parent) as one:
        yield one


@pytest.fixture
def target(manager: Manager, tmp_path: Path) -> Iterator[str]:
    """A block device, or a file on one, of 8 MiB at least."""
    if host.in_guest() and DISK.exists():
        yield usable(manager, str(DISK))
        return
    with tempfile.NamedTemporaryFile(dir=host.disk_directory(tmp_path)) as file:
        file.write(os.urandom(8 * MIB))
        file.flush()
        os.fsync(file.fileno())
        yield usable(manager, file.name)


def usable(manager: Manager, path: str) -> str:
    if missing := manager.missing(Limits(io=(IoLimit(path, read_bps=MIB),))):
        pytest.skip(missing[0].why)
    return path


@pytest.fixture
def fresh(target: str, tmp_path: Path) -> Iterator[str]:
    """A file nobody has written to: an inode stays with the cgroup that was first to dirty it."""
    if target != str(DISK):
        yield target
        return
    place = tmp_path / "mounted"
    place.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", target], check=True)
    subprocess.run(["mount", target, str(place)], check=True)
    try:
        (place / "file").touch()
        yield str(place / "file")
    finally:
        subprocess.run(["umount", str(place)], check=True)


RATES = (("read_bps", MIB), ("read_iops", 16), ("write_bps", MIB), ("write_iops", 16))


def test_each_rate_is_kept(manager: Manager, target: str) -> None:
    """48 times 64 KiB past the cache: three seconds' worth, less what is let through at once."""
    running = {}
    for rate, value in RATES:
        job = manager.create(rate)
        job.apply(Limits(io=(IoLimit(target, **{rate: value}),)))
        code = DIRECT.format(way=rate.partition("_")[0], path=target, count=48)
        running[rate] = python(job, code)
    seconds = {rate: float(line(process)) for rate, process in running.items()}
    assert [end(process) for process in running.values()] == [0] * 4
    assert all(found > 1.5 for found in seconds.values()), seconds


def cached(manager: Manager, target: str, code: str) -> tuple[JobCgroup, list[float]]:
    """What a job tells that writes 4 MiB into the page cache, at a limit of 1 MiB a second."""
    job = manager.create("cached")
    job.apply(Limits(memory=256 * MIB, io=(IoLimit(target, write_bps=MIB),)))
    process = python(job, code.format(path=target, count=64))
    told = [float(line(process)) for _ in range(code.count("print("))]
    assert end(process) == 0
    return job, told


def test_a_job_that_waits_for_its_cached_writes_is_throttled(manager: Manager, target: str) -> None:
    """On v1 too: fsync(2) sends them out in the name of its caller."""
    job, (written, synced) = cached(manager, target, CACHED + SYNC)
    assert written < 2 < synced
    assert (job.usage().write_bytes or 0) >= 4 * MIB


def test_cached_writes_sent_out_by_somebody_else(manager: Manager, fresh: str) -> None:
    """As by the kernel's flusher threads: on v2 they stay the job's, on v1 they are nobody's.

    v2 takes memory and io on the unified hierarchy (inode_cgwb_enabled in backing-dev.h).
    """
    fd = os.open(fresh, os.O_WRONLY)
    job, _ = cached(manager, fresh, CACHED)
    began = time.monotonic()
    os.fsync(fd)
    os.close(fd)
    seconds = time.monotonic() - began
    layers = [manager.layer("memory"), manager.layer("io")]
    if all(layer and layer.unified for layer in layers):
        assert seconds > 2
        assert (job.usage().write_bytes or 0) >= 4 * MIB
    else:
        assert job.usage().write_bytes == 0
