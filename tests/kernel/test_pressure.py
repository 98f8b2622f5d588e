"""on_pressure for real: PSI triggers, and v1's memory.pressure_level where there is no PSI.

The pressure is a job's own: it reads a file again and again that is larger than its limit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from attrs import evolve

from supervisor.cgroup import detect, files
from supervisor.cgroup.api import JobCgroup
from supervisor.cgroup.manager import Manager
from supervisor.errors import KernelError
from supervisor.model.limits import Limits
from supervisor.watch.pressure import Gauge, is_gone
from tests.support import cgroups, host
from tests.support.batch import Batch
from tests.support.cgroups import end, python

pytestmark = pytest.mark.kernel

MIB = 1 << 20
THRASH = """
import os
fd = os.open({path!r}, os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # what others have cached is charged to them
while True:
    os.lseek(fd, 0, os.SEEK_SET)
    while os.read(fd, 1 << 20):
        pass
"""
BIG = 64 * MIB
PATIENCE = 60


@pytest.fixture(scope="module")
def big() -> Iterator[str]:
    """A file on a disk; in the guest one of the host's: what is written there stays in memory."""
    if host.in_guest():
        yield host_file()
        return
    path = Path("/var/tmp", f"supervise-pressure.{os.getpid()}")
    with path.open("wb") as file:
        file.write(b"x" * BIG)
        os.fsync(file.fileno())
    yield str(path)
    path.unlink()


def host_file() -> str:
    """The program that runs this test, or the library it is in."""
    maps = Path("/proc/self/maps").read_text().split()
    return max((one for one in set(maps) if os.path.isfile(one)), key=os.path.getsize)


def lacks_psi(managers: Manager) -> bool:
    return bool(managers.psi.lacks("memory"))


@pytest.fixture(params=["found", "v1 alone"])
def manager(request: pytest.FixtureRequest) -> Iterator[Manager]:
    with cgroups.session_parent() as parent:
        found = detect.find(parent)
        if request.param == "v1 alone":
            kept = tuple(h for h in found.hierarchies if not h.unified)
            if not kept:
                pytest.skip("no v1 here")
            found = evolve(found, hierarchies=kept)
        one = Manager("pressure", found)
        yield one
        one.remove_leftovers()
        for name in list(one._mine):
            one.tree(name).remove()
        one.close()


def tells(manager: Manager) -> bool:
    """Skips a kernel on which nothing tells, after a look at what it is told to be."""
    missing = manager.missing_pressure(["memory"])
    if missing:
        assert "pressure" in missing[0].why and "psi=1" in missing[0].fix
        pytest.skip("this kernel has neither PSI nor v1's levels")
    return True


@pytest.mark.qemu
async def test_a_job_that_thrashes_is_told_of_and_not_more_than_once_a_window(
    manager: Manager, big: str
) -> None:
    assert tells(manager)
    job = manager.create("thrash")
    job.apply(Limits(memory=min(16 * MIB, os.path.getsize(big) // 2)))
    gauge = Gauge(job.pressure("memory", 0.01))
    process = python(job, THRASH.format(path=big))
    try:
        with trio.fail_after(PATIENCE):
            await gauge.wait()
            first = trio.current_time()
            await gauge.wait()
        assert trio.current_time() - first > 1
        share, stalled = job.stalled("memory")
        if lacks_psi(manager):
            assert share is stalled is None
        else:
            assert stalled is not None and stalled > 0.01
    finally:
        gauge.close()
        job.kill()
        end(process)


async def test_a_quiet_job_wakes_nobody(manager: Manager) -> None:
    assert tells(manager)
    job = manager.create("quiet")
    gauge = Gauge(job.pressure("memory", 0.01))
    process = python(job, "import time; time.sleep(600)")
    with trio.move_on_after(3) as scope:
        await gauge.wait()
    assert scope.cancelled_caught
    gauge.close()
    job.kill()
    end(process)


async def test_a_vanished_cgroup_ends_the_wait_and_is_told_as_that(manager: Manager) -> None:
    assert tells(manager)
    job = manager.create("gone")
    gauge = Gauge(job.pressure("memory", 0.5))
    manager.tree("gone").remove()
    with trio.fail_after(PATIENCE):
        await gauge.wait()
    with pytest.raises(KernelError) as caught:
        job.stalled("memory")
    assert is_gone(caught.value)
    gauge.close()


def test_what_no_kernel_takes_is_an_error_with_the_path(manager: Manager) -> None:
    assert tells(manager)
    job: JobCgroup = manager.create("wrong")
    before = os.listdir("/proc/self/fd")
    source = evolve(job.pressure("memory", 0.5), text="any")
    with pytest.raises(KernelError) as caught:
        Gauge(source)
    assert caught.value.path in (source.path, source.control)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_v1_alone_tells_of_memory_only(manager: Manager) -> None:
    if manager.unified is not None:
        pytest.skip("there is a unified hierarchy")
    found = manager.missing_pressure(["memory", "cpu", "io"])
    assert [one.key for one in found] == ["pressure.cpu", "pressure.io"]
    assert "v1 tells of memory alone" in found[0].why


def thrasher(big: str, settings: str) -> str:
    command = json.dumps(["python3", "-I", "-S", "-c", THRASH.format(path=big)])
    limit = min(16 * MIB, os.path.getsize(big) // 2)
    return f"[jobs.thrash]\ncommand = {command}\ntimeout = '90s'\n{settings}\n" + (
        f"limits.memory = {limit}\npressure.memory = '1%'\nhide = 'nothing'\n"
    )


def host_tells() -> bool:
    return os.path.exists("/proc/pressure/memory")


@pytest.mark.qemu
def test_a_job_under_pressure_is_ended_by_its_own_hook(batch: Batch, big: str) -> None:
    if not host_tells() and host.memory_version() == "v2":
        pytest.skip("needs PSI: see test_a_host_that_tells_nothing_refuses_only_jobs_that_ask")
    done = batch.run(
        thrasher(big, "on_pressure = { action = 'kill', why = 'it thrashes', now = true }"),
    )
    (record,) = done.runs
    assert (record["reason"], record["detail"]) == ("policy", "it thrashes"), done.done.stderr
    assert record["decided_by"] == "on_pressure"


@pytest.mark.qemu
def test_shed_by_pressure_freezes_and_thaws(batch: Batch, big: str) -> None:
    if not host_tells():
        pytest.skip("needs PSI")
    top = 'plugins = ["shed-by-pressure"]\n'
    table = "[policies.shed-by-pressure]\navailable = 100\npause = '1s'\n"
    done = batch.run(table + thrasher(big, "expect = 'timeout'").replace("'90s'", "'30s'"), top=top)
    (record,) = done.runs
    decided = [
        (one["hook"], one["action"])
        for one in batch.entries("decision")
        if one["by"] == "shed-by-pressure"
    ]
    assert decided[:2] == [("on_pressure", "freeze"), ("on_tick", "thaw")], done.done.stderr
    assert record["reason"] == "timeout"


def test_a_host_that_tells_nothing_refuses_only_jobs_that_ask(batch: Batch) -> None:
    if host_tells():
        pytest.skip("this host tells")
    asks = "on_pressure = { action = 'ignore' }\n"
    jobs = '[jobs.plain]\ncommand = "true"\n[jobs.asks]\ncommand = "true"\n' + asks
    refused = batch.run(jobs)
    assert refused.status == 125 and "pressure.memory of asks:" in refused.done.stderr
    assert "plain" not in refused.done.stderr
    warned = batch.run(jobs, top='on_missing = "warn"')
    assert warned.status == 0 and "pressure.memory is not watched" in warned.done.stderr


def test_files_hold_no_trigger_that_was_closed(manager: Manager) -> None:
    """A trigger lives as long as its descriptor: the cgroup can be removed after `close`."""
    assert tells(manager)
    job = manager.create("closed")
    Gauge(job.pressure("memory", 0.5)).close()
    assert job.try_remove()
    assert not files.exists(job.path)
