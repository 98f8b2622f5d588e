"""memory_high, memory_low and cpu_idle on the real kernel: each does what it is for.

Twin of `tests/unit/test_cgroup_soft.py`, which has the rules; what cgroup v1 lacks is refused.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.cgroup import files
from supervisor.cgroup.api import JobCgroup
from supervisor.cgroup.detect import detect
from supervisor.cgroup.manager import Manager
from supervisor.errors import KernelError
from supervisor.model.limits import Limits
from tests.support import cgroups
from tests.support.cgroups import end, line, python

pytestmark = pytest.mark.kernel

MIB = 1 << 20
TOUCH = "b = bytearray(b'x') * ({mib} << 20)\nprint('done', flush=True)\ninput()"
READ = """
import sys
for path in sys.stdin.readline().split():
    with open(path, 'rb') as file:
        while file.read(1 << 20):
            pass
print('read', flush=True)
input()
"""
BURN = """
import os, time
os.sched_setaffinity(0, [{cpu}])
print('ready', flush=True)
input()
end = time.monotonic() + 2
while time.monotonic() < end:
    pass
print(time.process_time(), flush=True)
"""


@pytest.fixture
def manager() -> Iterator[Manager]:
    with cgroups.session_parent() as parent:
        found = detect("soft", parent)
        assert isinstance(found, Manager)
        yield found
        found.remove_leftovers()
        for name in list(found._mine):
            found.tree(name).remove()
        found.close()


@pytest.mark.v2
def test_above_memory_high_a_job_is_slowed_down_and_not_killed(manager: Manager) -> None:
    job = manager.create("high")
    job.apply(Limits(memory=64 * MIB, memory_high=24 * MIB))
    process = python(job, TOUCH.format(mib=25), stdin=-1)
    assert line(process) == "done"
    counters = job.counters()
    assert counters.high > 0
    assert counters.oom_kills == 0 and counters.limit_hits == 0
    assert job.change("memory_high", 48 * MIB) == 48 * MIB
    assert files.number(f"{job.path}/memory.high") == 48 * MIB
    job.kill()
    end(process)


@pytest.fixture
def granted(manager: Manager) -> Iterator[Manager]:
    """As a unit with MemoryLow= would have it: each cgroup above grants what is asked."""
    layer = manager.layer("memory")
    assert layer is not None
    hierarchy, before = layer.hierarchy, {}
    directory = hierarchy.base
    while directory != hierarchy.mount:
        path = f"{directory}/memory.low"
        if os.path.exists(path):
            before[path] = files.read(path)
            files.write(path, "max")
        directory = os.path.dirname(directory)
    yield manager
    for path, text in before.items():
        files.write(path, text)


def cached(job: JobCgroup) -> int:
    """Page cache of a job's files, bytes."""
    return files.table(f"{job.path}/memory.stat")["file"]


def hands_of_files(size: int) -> tuple[list[str], list[str]]:
    """Two lists of the host's own files of at least `size` bytes each, none in both.

    What a test writes itself lies in the guest's tmpfs, which without swap nothing reclaims.
    """
    hands: tuple[list[str], list[str]] = ([], [])
    sums = [0, 0]
    # one after the other, and no more than needed: virtiofsd keeps a descriptor for each
    for path in sorted(Path("/usr/lib", f"{os.uname().machine}-linux-gnu").glob("*.so.*")):
        poorer = sums.index(min(sums))
        if path.is_file() and not path.is_symlink() and " " not in str(path):
            hands[poorer].append(str(path))
            sums[poorer] += path.stat().st_size
        if min(sums) >= size:
            return hands
    pytest.skip(f"needs {2 * size} bytes of libraries below /usr/lib")


@pytest.mark.v2
def test_memory_low_keeps_a_jobs_page_cache_when_others_have_some(granted: Manager) -> None:
    assert granted.missing(Limits(memory_low=1024 * MIB)) == ()
    jobs, processes = {}, []
    given = (("kept", Limits(memory_low=1024 * MIB)), ("plain", Limits()))
    for (name, limits), paths in zip(given, hands_of_files(20 * MIB), strict=True):
        jobs[name] = granted.create(name)
        jobs[name].apply(limits)
        process = python(jobs[name], READ, stdin=-1)
        assert process.stdin is not None
        process.stdin.write(" ".join(paths) + "\n")
        process.stdin.flush()
        assert line(process) == "read"
        processes.append(process)
    before = {name: cached(job) for name, job in jobs.items()}
    try:
        files.write(f"{_instance(jobs['kept'])}/memory.reclaim", str(8 * MIB))
    except KernelError as error:
        assert error.errno == errno.EAGAIN  # it could not get all of it
    lost = {name: before[name] - cached(job) for name, job in jobs.items()}
    for job in jobs.values():
        job.kill()
    for process in processes:
        end(process)
    assert lost["plain"] > 4 * MIB, (before, lost)
    assert lost["kept"] < lost["plain"] / 4, (before, lost)


def _instance(job: JobCgroup) -> str:
    return os.path.dirname(os.path.dirname(job.path))


def test_an_idle_job_leaves_the_cpu_to_the_others(manager: Manager) -> None:
    """Both on one CPU, where they are rivals as two jobs are."""
    cpu = min(os.sched_getaffinity(0))
    used = {}
    processes = {}
    for name, limits in (("less", Limits(cpu_idle=True)), ("usual", Limits())):
        job = manager.create(name)
        assert manager.missing(limits) == ()
        job.apply(limits)
        processes[name] = python(job, BURN.format(cpu=cpu), stdin=-1)
        assert line(processes[name]) == "ready"
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for name, process in processes.items():
        used[name] = float(line(process))
        end(process)
    assert used["less"] < used["usual"] / 2, used


@pytest.mark.v1
def test_v1_refuses_what_it_has_not_and_says_why(supervise) -> None:
    for flag in ("--memory-high", "--memory-low"):
        done = supervise("run", flag, "8M", "--", "true")
        assert done.status == 125
        assert f"limits.{flag[2:].replace('-', '_')} of run" in done.stderr or "v1" in done.stderr
        warned = supervise("run", "--on-missing", "warn", flag, "8M", "--", "true")
        assert warned.status == 0 and "is not enforced" in warned.stderr


def test_the_command_takes_the_settings(supervise) -> None:
    done = supervise("run", "--cpu-idle", "--pids", "8", "--", "true")
    assert done.status == 0, done.stderr
