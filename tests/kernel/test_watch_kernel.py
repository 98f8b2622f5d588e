"""The watcher on the real kernel, with real processes; the same file for v1 and v2."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing

from supervisor.cgroup.api import JobCgroup
from supervisor.cgroup.manager import Manager
from supervisor.model.event import (
    CgroupGone,
    Event,
    MemoryLimit,
    OomKill,
    PidsLimit,
    Populated,
)
from supervisor.model.limits import Limits
from supervisor.watch.cgroup import Watcher, open_watcher
from supervisor.watch.kernel_log import KernelLog
from supervisor.watch.subscription import Subscription
from tests.support import cgroups, host
from tests.support.cgroups import end, line, python, start

pytestmark = pytest.mark.kernel

Kind = TypeVar("Kind")
MIB = 1 << 20
EAT = "b = bytearray({mib} << 20)\nprint('done', flush=True)\nimport sys; sys.stdin.readline()"
NAME = "import ctypes; ctypes.CDLL(None).prctl(15, {name!r}, 0, 0, 0)\n"
FORKS = """
import os, sys
for line in sys.stdin:
    refused = 0
    for _ in range(int(line)):
        try:
            pid = os.fork()
        except BlockingIOError:
            refused += 1
            continue
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    print(refused, flush=True)
"""


@pytest.fixture
def manager(parent: str) -> Iterator[Manager]:
    with cgroups.managed("watched", parent) as one:
        yield one


@pytest.fixture
def log() -> Iterator[KernelLog]:
    one = KernelLog.open()
    assert not one.why
    yield one
    one.close()


@pytest.fixture
async def watcher(log: KernelLog) -> AsyncIterator[Watcher]:
    async with trio.open_nursery() as nursery, open_watcher(nursery, log) as one:
        yield one


@pytest.fixture
def job(manager: Manager) -> Iterator[JobCgroup]:
    one = manager.create("run-1")
    yield one
    one.remove()


def kmsg_paths(job: JobCgroup) -> list[str]:
    return [note.path for note in job.notifications if note.kind == "kmsg"]


def assert_told(log: KernelLog, job: JobCgroup, pid: int, name: str, limiting: str) -> None:
    """The log names the victim, and the limit unless the kernel held that line back.

    It prints ten of them in five seconds, whoever's they are.
    """
    found = log.evidence_for(*kmsg_paths(job), pids=(pid,))
    (what,) = [one.what for one in found if f"killed process {pid} " in one.what]
    assert f"({name!r}), anon-rss " in what
    named = f"for the limit of {limiting}" in what
    assert named or "limit" not in what
    assert log.limiting(kmsg_paths(job)[0]) == (limiting if named else None)


async def first(subscription: Subscription, kind: type[Kind]) -> Kind:
    """The next event of a kind; others are passed over."""
    with trio.fail_after(20 * host.SLOWNESS):
        async for event in subscription.events:
            if isinstance(event, kind):
                return event
    raise AssertionError(f"the events ended before a {kind.__name__}")


def waiting(subscription: Subscription) -> list[Event]:
    found: list[Event] = []
    while True:
        try:
            found.append(subscription.events.receive_nowait())
        except trio.WouldBlock:
            return found


async def test_an_oom_is_a_memory_limit_and_then_a_kill(
    watcher: Watcher, job: JobCgroup, log: KernelLog
) -> None:
    limits = Limits(memory=16 * MIB)
    job.apply(limits)
    subscription = watcher.subscribe(job, limits, held=False)
    process = python(job, NAME.format(name=b"a,task=\n)b") + EAT.format(mib=64))
    reached = await first(subscription, MemoryLimit)
    assert (reached.limit, reached.held) == (16 * MIB, False)
    assert reached.hits > 0
    kill = await first(subscription, OomKill)
    assert (kill.new, kill.total) == (1, 1)
    assert await trio.to_thread.run_sync(end, process) == -9
    assert_told(log, job, process.pid, "a,task=\n)b", kmsg_paths(job)[0])


async def test_an_oom_before_the_subscription_is_told(watcher: Watcher, job: JobCgroup) -> None:
    job.apply(Limits(memory=2 * MIB))
    process = python(job, EAT.format(mib=64))
    assert await trio.to_thread.run_sync(end, process) == -9
    subscription = watcher.subscribe(job, Limits(memory=2 * MIB), held=False)
    assert (await first(subscription, OomKill)).total == 1


async def test_an_oom_in_the_first_moment(watcher: Watcher, job: JobCgroup) -> None:
    # the interpreter itself does not fit: killed in exec, before it runs an instruction
    job.apply(Limits(memory=MIB))
    subscription = watcher.subscribe(job, Limits(memory=MIB), held=False)
    process = python(job, EAT.format(mib=64))
    assert (await first(subscription, OomKill)).total >= 1
    assert await trio.to_thread.run_sync(end, process) != 0


async def test_reading_more_than_the_limit_is_no_memory_limit(
    watcher: Watcher, job: JobCgroup, tmp_path: Path
) -> None:
    job.apply(Limits(memory=16 * MIB))
    subscription = watcher.subscribe(job, Limits(memory=16 * MIB), held=False)
    # a tmpfs has no page cache for a hole: programs nobody has read yet do it there
    more = [path for path in glob.glob("/usr/bin/*") if os.path.getsize(path) > 4 * MIB][:12]
    with tempfile.NamedTemporaryFile(dir=host.on_disk(tmp_path)) as file:
        file.truncate(64 * MIB)
        big = file.name
        process = start(job, "/bin/sh", "-c", 'cat "$@" > /dev/null', "sh", big, big, *more)
        assert await trio.to_thread.run_sync(end, process) == 0
    assert job.counters().limit_hits > 0
    subscription.recheck()
    kinds = {type(event) for event in waiting(subscription)}
    assert not kinds & {MemoryLimit, OomKill}


@pytest.mark.v1
async def test_a_held_job_is_told_of_sleeps_and_goes_on_when_raised(
    watcher: Watcher, job: JobCgroup
) -> None:
    limits = Limits(memory=16 * MIB)
    job.apply(limits)
    job.hold_at_limit(True)
    subscription = watcher.subscribe(job, limits, held=True)
    process = python(job, EAT.format(mib=48), stdin=-1)
    for raised in (32 * MIB, 96 * MIB):
        reached = await first(subscription, MemoryLimit)
        assert reached.held
        assert job.counters().under_oom
        assert reached.usage > 15 * MIB
        subscription.update(Limits(memory=raised), held=True)
        job.change("memory", raised)
    assert await trio.to_thread.run_sync(line, process) == "done"
    assert job.counters().oom_kills == 0
    assert end(process) == 0
    assert not [one for one in waiting(subscription) if isinstance(one, OomKill | MemoryLimit)]


async def test_a_fork_refused_once_and_then_often(watcher: Watcher, job: JobCgroup) -> None:
    job.apply(Limits(pids=1))
    subscription = watcher.subscribe(job, Limits(pids=1), held=False)
    process = python(job, FORKS, stdin=-1)
    assert process.stdin is not None
    total = 0
    for refusals in (1, 3, 500):
        process.stdin.write(f"{refusals}\n")
        process.stdin.flush()
        assert await trio.to_thread.run_sync(line, process) == str(refusals)
        total += refusals
        told = 0
        while told < total:
            told = (await first(subscription, PidsLimit)).refused
        assert told == total
    assert end(process) == 0


async def test_a_removed_cgroup_is_never_an_oom(watcher: Watcher, manager: Manager) -> None:
    job = manager.create("run-3")
    job.apply(Limits(memory=16 * MIB, pids=4))
    subscription = watcher.subscribe(job, Limits(memory=16 * MIB, pids=4), held=True)
    job.remove()
    # v1's alarm goes off by itself; v2 says nothing (kernfs sends no event for a removed file)
    if not any(note.kind == "eventfd" for note in job.notifications):
        subscription.recheck()
    gone = await first(subscription, CgroupGone)
    assert gone.path == job.path
    subscription.recheck()
    assert waiting(subscription) == []
    subscription.close()


async def test_an_ancestors_oom_is_not_the_jobs_limit(
    watcher: Watcher, manager: Manager, job: JobCgroup, log: KernelLog
) -> None:
    above = os.path.dirname(os.path.dirname(job.path))
    version = "memory.max" if manager.version == "v2" else "memory.limit_in_bytes"
    job.apply(Limits(memory=256 * MIB))
    subscription = watcher.subscribe(job, Limits(memory=256 * MIB), held=False)
    with open(f"{above}/{version}", "w") as file:  # noqa: PTH123
        file.write(str(16 * MIB))
    try:
        process = python(job, NAME.format(name=b"python3") + EAT.format(mib=64))
        kill = await first(subscription, OomKill)
        assert kill.total == 1
        assert await trio.to_thread.run_sync(end, process) == -9
    finally:
        with open(f"{above}/{version}", "w") as file:  # noqa: PTH123
            file.write("max" if manager.version == "v2" else "-1")
    subscription.recheck()
    assert not [one for one in waiting(subscription) if isinstance(one, MemoryLimit)]
    above = os.path.dirname(os.path.dirname(kmsg_paths(job)[0]))
    assert_told(log, job, process.pid, "python3", above)


async def test_populated_follows_the_processes(watcher: Watcher, job: JobCgroup) -> None:
    if not any(note.path.endswith("/cgroup.events") for note in job.notifications):
        pytest.skip("no unified hierarchy")
    subscription = watcher.subscribe(job, Limits(), held=False)
    assert not (await first(subscription, Populated)).populated
    process = python(job, "import sys; sys.stdin.readline()", stdin=-1)
    assert (await first(subscription, Populated)).populated
    assert await trio.to_thread.run_sync(end, process) == 0
    assert not (await first(subscription, Populated)).populated


async def test_no_descriptor_and_no_watch_is_left(watcher: Watcher, manager: Manager) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for n in range(20):
        job = manager.create(f"many-{n}")
        try:
            subscription = watcher.subscribe(job, Limits(memory=MIB, pids=1), held=False)
            subscription.close()
        finally:
            job.remove()
    assert len(os.listdir("/proc/self/fd")) == before
    with open(f"/proc/self/fdinfo/{watcher._inotify.fileno()}") as file:  # noqa: PTH123
        assert "inotify wd" not in file.read()


class Wakes(trio.abc.Instrument):
    """Counts how often the event loop comes back from waiting with something to do."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps.append(task.name)


@pytest.fixture
async def undisturbed() -> AsyncIterator[Watcher]:
    """Without the kernel's log, into which everything on this machine speaks."""
    log = KernelLog(None, "not read")
    async with trio.open_nursery() as nursery, open_watcher(nursery, log) as one:
        yield one


async def test_idle_jobs_wake_nobody(undisturbed: Watcher, manager: Manager) -> None:
    jobs = [manager.create(f"idle-{n}") for n in range(30)]
    try:
        for job in jobs:
            job.apply(Limits(memory=64 * MIB, pids=8))
            undisturbed.subscribe(job, Limits(memory=64 * MIB, pids=8), held=True)
        await trio.testing.wait_all_tasks_blocked()
        wakes = Wakes()
        trio.lowlevel.add_instrument(wakes)
        # there is nothing to wait for: that nothing comes is what is proven
        await trio.sleep(1)
        trio.lowlevel.remove_instrument(wakes)
        assert len(wakes.steps) == 1  # this task's own
    finally:
        for job in jobs:
            job.remove()


async def test_thirty_kills_are_all_counted(watcher: Watcher, manager: Manager) -> None:
    job = manager.create("run-2", kill_whole_on_oom=False)
    try:
        job.apply(Limits(memory=16 * MIB))
        subscription = watcher.subscribe(job, Limits(memory=16 * MIB), held=False)
        code = "import os\nfor n in range({n}):\n    pid = os.fork()\n    if pid == 0:\n"
        code += "        open('/proc/self/oom_score_adj', 'w').write('1000')\n"
        code += "        b = bytearray(64 << 20)\n        os._exit(0)\n    os.waitpid(pid, 0)\n"
        count = 30
        process = python(job, code.format(n=count))
        total = 0
        while total < count:
            kill = await first(subscription, OomKill)
            total += kill.new
            assert kill.total == total
        assert await trio.to_thread.run_sync(end, process) == 0
    finally:
        job.remove()
