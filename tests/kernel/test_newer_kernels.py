"""Files of cgroup v2 that are newer than 6.1, several CPUs, and what they change for a job.

All of it needs the complete kernel of the guest (`qemu`); how older ones count is asserted beside.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.cgroup import detect, files
from supervisor.cgroup.manager import Manager
from supervisor.errors import LimitError
from supervisor.model.limits import Limits
from tests.support import cgroups, host
from tests.support.cgroups import end, line, python
from tests.support.command import Supervise

pytestmark = [pytest.mark.kernel, pytest.mark.v2]

MIB = 1 << 20
FORK = """
import os, time
children, refused = [], 0
for _ in range({number}):
    try:
        children.append(os.fork())
    except OSError:
        refused += 1
        continue
    if not children[-1]:
        time.sleep(1000)
print(refused, flush=True)
for child in children:
    os.kill(child, 9)
    os.waitpid(child, 0)
"""


@pytest.fixture
def manager() -> Iterator[Manager]:
    with cgroups.session_parent() as parent:
        one = Manager("newer", detect.find(parent))
        yield one
        for name in list(one._mine):
            one.tree(name).remove()
        one.close()


def test_a_fork_refused_by_the_own_limit_is_counted_and_the_peak_kept(manager: Manager) -> None:
    job = manager.create("own")
    job.apply(Limits(pids=5))
    process = python(job, FORK.format(number=7))
    assert line(process) == "3"
    assert job.counters().refused == 3
    assert end(process) == 0
    peak = job.usage().pids_peak
    assert peak == (5 if files.exists(f"{job.path}/pids.peak") else None)
    local = f"{job.path}/pids.events.local"
    assert not files.exists(local) or files.table(local)["max"] == 3


def refused_above(manager: Manager) -> tuple[int, dict[str, int]]:
    """How often a job of no limit tells of a fork refused by one above; that one's own count."""
    job = manager.create("above")
    job.apply(Limits(memory=64 * MIB))
    instance = manager.layers[0].directory
    files.write(f"{instance}/pids.max", "4")
    process = python(job, FORK.format(number=5))
    assert int(line(process)) == 2
    end(process)
    return job.counters().refused, files.table(f"{instance}/pids.events")


def test_until_6_10_a_fork_refused_by_a_limit_above_was_counted_where_it_was_refused(
    manager: Manager,
) -> None:
    if files.exists(f"{manager.create('probe').path}/pids.events.local"):
        pytest.skip("a newer kernel: see the next")
    assert refused_above(manager) == (2, {"max": 0})


@pytest.mark.qemu
def test_since_6_11_it_is_counted_where_the_limit_stands(manager: Manager) -> None:
    """So a job without a limit of its own tells of none; pids.events.local is there with that."""
    if not files.exists(f"{manager.create('probe').path}/pids.events.local"):
        pytest.skip("an older kernel: see the one before")
    refused, above = refused_above(manager)
    assert (refused, above["max"]) == (0, 2)
    assert files.table(f"{manager.layers[0].directory}/pids.events.local")["max"] == 2


@pytest.mark.qemu
def test_a_peak_that_others_reset_is_still_the_records(manager: Manager) -> None:
    """Since 6.12 a write to memory.peak starts anew for who wrote, and for nobody else."""
    job = manager.create("peak")
    job.apply(Limits(memory=256 * MIB, swap=0))
    assert end(python(job, "b = bytes([1]) * (40 << 20)")) == 0
    before = job.usage().memory_peak
    assert before is not None and before > 40 * MIB
    with Path(f"{job.path}/memory.peak").open("r+b", buffering=0) as file:
        file.write(b"reset\n")
        assert int(os.pread(file.fileno(), 64, 0)) < 40 * MIB
        assert job.usage().memory_peak == before


@pytest.mark.qemu
def test_a_cpu_that_others_have_for_themselves_is_refused_by_name(manager: Manager) -> None:
    """cpuset.cpus.exclusive (6.7): v2 takes any list, and says afterwards what came of it."""
    if not host.in_guest():
        pytest.skip("takes a CPU away from everybody: needs a guest")
    top = next(one.mount for one in manager._found.hierarchies if one.unified)
    files.write(f"{top}/cgroup.subtree_control", "+cpuset")
    files.make(f"{top}/alone")
    try:
        files.write(f"{top}/alone/cpuset.cpus.exclusive", "1")
        files.write(f"{top}/alone/cpuset.cpus.partition", "root")
        assert files.read(f"{top}/alone/cpuset.cpus.exclusive.effective") == "1"
        with pytest.raises(LimitError, match=r"cpuset: \S+/cpuset.cpus.effective says '0'"):
            manager.create("cpu").apply(Limits(cpuset="1"))
    finally:
        files.remove(f"{top}/alone")


BURN = """
import os, time
child = os.fork()
deadline = time.monotonic() + {seconds}
while time.monotonic() < deadline:
    pass
if child:
    os.waitpid(child, 0)
"""


@pytest.mark.qemu
def test_more_than_one_cpu_and_less_than_two(manager: Manager) -> None:
    """Two that burn under 1.5 CPUs get more than one CPU's time, and are throttled."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("needs two CPUs")
    seconds = 4
    job = manager.create("cpus")
    job.apply(Limits(cpus=1.5))
    assert end(python(job, BURN.format(seconds=seconds))) == 0
    used = job.usage()
    assert used.cpu is not None and used.throttled is not None
    assert seconds * 1.05 < used.cpu < seconds * 1.8, used
    assert used.throttled > 0


@pytest.mark.qemu
def test_a_job_by_the_command_has_the_cpu_it_names(supervise: Supervise) -> None:
    """Of several: with one there would be nothing to choose."""
    look = "import os; print(sorted(os.sched_getaffinity(0)), os.cpu_count())"
    done = supervise("run", "--cpuset", "1", "--pids", "16", "--record", "/dev/stderr", "--",
                     "/usr/bin/python3", "-I", "-S", "-c", look)  # fmt: skip
    assert done.status == 0, done.stderr
    assert done.stdout.startswith("[1] ")
    record = json.loads(done.stderr.splitlines()[-1])
    assert record["pids"]["peak"] == 1
