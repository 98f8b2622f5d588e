"""One contract, every implementation: v1, hybrid, mixed and v2 on imagined kernels, and the fake.

`tests/kernel/test_cgroup_kernel.py` holds the real kernel to the same.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from supervisor.cgroup.api import CgroupManager, JobCgroup, Traffic
from supervisor.cgroup.detect import detect
from supervisor.cgroup.fake import FakeJob, FakeManager
from supervisor.errors import KernelError, LimitError
from supervisor.model.limits import Limits
from tests.support.cgroup_tree import Hierarchies

MIB = 1 << 20
PID, INIT = 4_100_001, 4_100_002


class World(Protocol):
    """A kernel to play with."""

    manager: CgroupManager

    def successor(self) -> CgroupManager: ...
    def enter(self, job: JobCgroup, pid: int) -> None: ...
    def enter_init(self, job: JobCgroup, pid: int) -> None: ...
    def oom(self, job: JobCgroup, *, own: bool) -> None: ...
    def refuse(self, job: JobCgroup) -> None: ...
    def vanish(self, job: JobCgroup) -> None: ...


class Imagined:
    """A fixture tree."""

    def __init__(self, tree: Hierarchies) -> None:
        self.tree = tree
        self.manager = self.successor()

    def successor(self) -> CgroupManager:
        return detect("test", root=self.tree.root, proc=self.tree.proc)

    def _enter(self, places: tuple[str, ...], unified: str | None, pid: int) -> None:
        for file in places:
            self.tree.enter(os.path.dirname(file), pid)
        if unified:
            self.tree.enter(unified, pid)

    def enter(self, job: JobCgroup, pid: int) -> None:
        self._enter(job.entry.payload_files, job.entry.payload_dir, pid)

    def enter_init(self, job: JobCgroup, pid: int) -> None:
        self._enter(job.entry.init_files, job.entry.init_dir, pid)

    def oom(self, job: JobCgroup, *, own: bool) -> None:
        if os.path.exists(f"{job.path}/memory.oom_control"):
            if own:
                self.tree.put(f"{job.path}/memory.failcnt", "3")
            self.tree.count(f"{job.path}/memory.oom_control", "oom_kill")
            return
        if own:
            self.tree.count(f"{job.path}/memory.events.local", "oom")
            self.tree.count(f"{job.path}/memory.events.local", "max")
        self.tree.count(f"{job.path}/memory.events", "oom_kill")

    def refuse(self, job: JobCgroup) -> None:
        pids = next(r.path for r in job.evidence() if r.path.endswith("pids.events"))
        self.tree.count(pids, "max")

    def vanish(self, job: JobCgroup) -> None:
        self.manager.tree(job.name).remove()  # type: ignore[attr-defined]


class Faked:
    """The fake, played by its own methods."""

    def __init__(self) -> None:
        self.manager = FakeManager()

    def successor(self) -> CgroupManager:
        return FakeManager(left=list(self.manager.jobs))

    def enter(self, job: JobCgroup, pid: int) -> None:
        assert isinstance(job, FakeJob)
        job.enter(pid)

    def enter_init(self, job: JobCgroup, pid: int) -> None:
        assert isinstance(job, FakeJob)
        job.init = pid

    def oom(self, job: JobCgroup, *, own: bool) -> None:
        assert isinstance(job, FakeJob)
        job.charge(1 << 40, PID) if own else job.kill_by_host(PID)

    def refuse(self, job: JobCgroup) -> None:
        assert isinstance(job, FakeJob)
        while job.fork(PID + len(job.members)):
            pass

    def vanish(self, job: JobCgroup) -> None:
        assert isinstance(job, FakeJob)
        job.vanish()


ALL = "cpu cpuset io memory pids"
V1 = ("memory", "pids", "cpu,cpuacct", "blkio", "cpuset", "freezer")
KINDS = {
    "v1": (V1, None),
    "v1 each alone": (("cpuset", "cpu", "cpuacct", "freezer", "blkio", "pids", "memory"), None),
    "v1 all in one": (("memory,pids,cpu,cpuacct,blkio,cpuset,freezer",), None),
    "hybrid": (V1, ""),
    "mixed": (("cpu,cpuacct", "blkio", "cpuset", "freezer"), "memory pids"),
    "v2": ((), ALL),
}


@pytest.fixture(params=[*KINDS, "fake"])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    if request.param == "fake":
        return Faked()
    v1, v2 = KINDS[request.param]
    tree = Hierarchies(tmp_path, v1=v1, v2=v2)
    tree.install(monkeypatch)
    return Imagined(tree)


LIMITS = Limits(
    memory=64 * MIB, swap=0, pids=8, cpus=0.5, cpu_weight=200, cpuset="0-1", open_files=9
)


def test_limits_hold_and_are_told(world: World) -> None:
    assert world.manager.missing(LIMITS) == ()
    job = world.manager.create("run")
    texts = [reading.text for reading in job.apply(LIMITS)]
    assert str(64 * MIB) in texts
    assert "8" in texts
    assert "0-1" in texts
    assert "run" in job.path and job.name == "run"


CHANGES = (("memory", 256 * MIB), ("memory", 8 * MIB), ("swap", MIB), ("swap", 0), ("pids", 100),
           ("cpus", 0.002), ("cpus", 3.5), ("cpu_weight", 1))  # fmt: skip


def test_limits_change_both_ways(world: World) -> None:
    job = world.manager.create("run")
    job.apply(LIMITS)
    for limit, to in CHANGES:
        assert job.change(limit, to) == to, limit  # type: ignore[arg-type]


LIFTED = ("pids", "cpus", "cpu_weight", "swap", "memory")


def test_limits_are_taken_away_and_come_back(world: World) -> None:
    job = world.manager.create("run")
    job.apply(LIMITS)
    for limit in LIFTED:
        assert job.change(limit, None) is None, limit  # type: ignore[arg-type]
    for limit, to in (("memory", 16 * MIB), ("swap", MIB), ("pids", 5), ("cpus", 0.25)):
        assert job.change(limit, to) == to, limit  # type: ignore[arg-type]


def test_counters_start_at_nothing(world: World) -> None:
    counters = world.manager.create("run").counters()
    assert not (counters.limit_hits or counters.oom_kills or counters.refused or counters.high)
    assert not counters.under_oom


def test_an_own_oom_is_not_foreign(world: World) -> None:
    job = world.manager.create("run")
    job.apply(LIMITS)
    world.enter(job, PID)
    assert job.foreign_oom() is False
    world.oom(job, own=True)
    assert job.counters().oom_kills == 1
    assert job.counters().limit_hits >= 1
    assert job.foreign_oom() is False


def test_an_oom_without_a_hit_is_foreign(world: World) -> None:
    job = world.manager.create("run")
    job.apply(LIMITS)
    world.enter(job, PID)
    world.oom(job, own=False)
    assert job.counters().oom_kills == 1
    assert job.foreign_oom() is True


def test_evidence_has_the_counters(world: World) -> None:
    job = world.manager.create("run")
    job.apply(LIMITS)
    world.enter(job, PID)
    world.oom(job, own=True)
    world.refuse(job)
    texts = "\n".join(reading.text for reading in job.evidence())
    assert "oom_kill 1" in texts
    assert "max 1" in texts
    assert all(job.name in reading.path for reading in job.evidence())
    assert job.counters().refused == 1


def test_kill_spares_init(world: World) -> None:
    job = world.manager.create("run")
    world.enter_init(job, INIT)
    world.enter(job, PID)
    world.enter(job, PID + 10)
    assert set(job.pids()) == {PID, PID + 10}
    job.kill()
    assert job.pids() == ()
    assert job.populated()


def test_a_frozen_job_dies_too(world: World) -> None:
    job = world.manager.create("run")
    world.enter(job, PID)
    job.freeze()
    job.kill()
    assert job.pids() == ()
    assert not job.populated()
    job.thaw()


def test_removal_waits_for_nobody_who_lives(world: World) -> None:
    job = world.manager.create("run")
    world.enter_init(job, INIT)
    world.enter(job, PID)
    assert not job.try_remove()
    assert job.pids() == (PID,)
    job.remove()
    job.remove()
    assert job.try_remove()
    world.manager.create("run").remove()


def test_a_vanished_cgroup_is_told(world: World) -> None:
    job = world.manager.create("run")
    job.apply(LIMITS)
    world.vanish(job)
    calls: list[Callable[[], object]] = [
        job.counters, job.usage, job.evidence, job.foreign_oom, job.pids, job.populated, job.kill,
        job.freeze, job.thaw, job.meter().read,
        lambda: job.change("pids", 9), lambda: job.hold_at_limit(True),
        lambda: job.apply(Limits(memory=MIB)),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(KernelError) as caught:
            call()
        assert caught.value.errno == errno.ENOENT
        assert caught.value.path
    job.remove()


def test_holding_is_armed_and_let_go(world: World) -> None:
    job = world.manager.create("run")
    job.apply(LIMITS)
    job.hold_at_limit(True)
    job.freeze()
    assert not job.counters().under_oom  # frozen, yet not at the limit
    job.thaw()
    job.hold_at_limit(False)
    assert job.counters().oom_kills == 0


def test_names_are_unique(world: World) -> None:
    world.manager.create("run")
    with pytest.raises(KernelError) as caught:
        world.manager.create("run")
    assert caught.value.errno == errno.EEXIST


def test_leftovers_are_found_and_removed(world: World) -> None:
    job = world.manager.create("run")
    job.apply(LIMITS)
    world.enter(job, PID)
    heir = world.successor()
    assert heir.leftovers() == ("run",)
    with pytest.raises(KernelError):
        heir.create("run")
    assert heir.remove_leftovers() == ("run",)
    assert heir.leftovers() == ()
    heir.create("run").remove()
    heir.close()


def test_close_refuses_while_runs_live(world: World) -> None:
    job = world.manager.create("run")
    world.enter(job, PID)
    with pytest.raises(KernelError):
        world.manager.close()
    assert job.pids() == (PID,)
    job.remove()
    world.manager.close()


def test_usage_is_numbers(world: World) -> None:
    job = world.manager.create("run")
    usage = job.usage()
    assert usage.cpu is not None and usage.memory == 0 and usage.pids == 0


def test_a_share_has_the_limits_in_force_and_what_is_used_of_them(world: World) -> None:
    job = world.manager.create("run")
    free = job.share()
    assert (free.memory_limit, free.swap_limit, free.cpus) == (None, None, None)
    job.apply(LIMITS)
    world.enter(job, PID)
    share = job.share()
    assert (share.memory_limit, share.swap_limit, share.cpus) == (64 * MIB, 0, 0.5)
    assert job.change("memory", 96 * MIB) == 96 * MIB and job.change("cpus", 1.25) == 1.25
    share = job.share()
    assert (share.memory_limit, share.cpus, share.memory) == (96 * MIB, 1.25, 0)
    if not isinstance(world, Faked):
        assert (share.pages["anon"], share.pages["file"]) == (4096, 8192)
        assert (share.cpu_user, share.cpu_system, share.throttled) == (2.0, 1.0, 2.5)
        assert share.traffic == {"8:0": Traffic(1, 4096, 2, 512)}


def test_a_limit_further_up_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """v1's kernel says so itself; see `tests/kernel/test_proc_limits.py`."""
    tree = Hierarchies(tmp_path, v1=(), v2=ALL)
    tree.install(monkeypatch)
    world = Imagined(tree)
    job = world.manager.create("run")
    job.apply(LIMITS)
    instance = os.path.dirname(os.path.dirname(job.path))
    tree.write(f"{instance}/memory.max", str(32 * MIB))
    tree.write(f"{instance}/cpu.max", "25000 100000")
    share = job.share()
    assert (share.memory_limit, share.cpus) == (32 * MIB, 0.25)


def test_a_meter_sees_what_happens(world: World) -> None:
    job = world.manager.create("run")
    job.apply(LIMITS)
    meter = job.meter()
    before = meter.read()
    world.enter(job, PID)
    world.oom(job, own=False)
    world.refuse(job)
    now = meter.read()
    assert now.at > before.at and now.cpu is not None and now.memory is not None
    assert (before.slow.oom_kills, now.slow.oom_kills) == (0, 1)
    assert (before.slow.refused, now.slow.refused) == (0, 1)
    meter.close()
    assert meter.read().slow.refused == 1
    meter.close()


def test_what_is_missing_is_refused(world: World) -> None:
    if isinstance(world, Faked):
        world.manager.lacks = frozenset({"swappiness"})
    job = world.manager.create("run")
    limits = Limits(swappiness=10)
    missing = world.manager.missing(limits)
    if missing:
        assert missing[0].limit == "swappiness" and missing[0].why and missing[0].fix
        with pytest.raises(LimitError, match="swappiness"):
            job.apply(limits)
    else:
        assert job.apply(limits)[0].text == "10"


SOFT = Limits(memory=64 * MIB, memory_high=32 * MIB)


def test_soft_limits_hold_where_the_kernel_has_them(world: World) -> None:
    job = world.manager.create("run")
    missing = world.manager.missing(SOFT)
    if missing:
        assert [one.limit for one in missing] == ["memory_high"] and "v1" in missing[0].why
        with pytest.raises(LimitError, match="memory_high"):
            job.apply(SOFT)
        return
    assert str(32 * MIB) in [reading.text for reading in job.apply(SOFT)]
    assert job.change("memory_high", 48 * MIB) == 48 * MIB


def test_idle_cpu_time_is_asked_for(world: World) -> None:
    assert world.manager.missing(Limits(cpu_idle=True)) == ()
    (reading,) = world.manager.create("run").apply(Limits(cpu_idle=True))
    assert reading.text in ("1", "True")
    assert world.manager.create("other").apply(Limits(cpu_idle=False)) == ()
