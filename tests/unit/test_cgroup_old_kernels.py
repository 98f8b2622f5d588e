"""v2 on kernels of the last five years: files they lack, and what stands in for each.

The floor is 5.12 (mount_setattr); what is older than that is tried where it costs nothing.  On
the right the version that brought the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.cgroup.detect import detect
from supervisor.cgroup.job import Job
from supervisor.cgroup.manager import Manager
from supervisor.front import doctor_group, doctor_limits
from supervisor.model.limits import Limits
from supervisor.model.record import Reason
from supervisor.model.verdict import Facts, verdict
from tests.support import cgroup_tree
from tests.support.cgroup_tree import Hierarchies

MIB = 1 << 20
PID = 4_200_001
LATER = {
    "memory.peak": "5.19",
    "memory.events.local": "5.2",
    "pids.peak": "6.1",
    "cpu.idle": "5.15",
    "cgroup.kill": "5.14",
}

Old = Callable[..., tuple[Hierarchies, Manager]]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Old:
    """A host whose kernel lacks the files named."""

    def make(*lacking: str) -> tuple[Hierarchies, Manager]:
        for contents in (*cgroup_tree.V2_FILES.values(), cgroup_tree.CORE):
            for name in lacking:
                if name in contents:
                    monkeypatch.delitem(contents, name)  # type: ignore[arg-type]
        tree = Hierarchies(tmp_path, v1=(), v2="cpu cpuset io memory pids")
        tree.install(monkeypatch)
        found = detect("test", root=tree.root, proc=tree.proc)
        assert isinstance(found, Manager)
        return tree, found

    return make


def events(tree: Hierarchies, job: Job) -> list[str]:
    """The files that count an event of the job: its own, and the same above it."""
    local = f"{job.path}/memory.events.local"
    if os.path.exists(local):
        return [local]
    found, directory = [], job.path
    while directory != tree.v2:
        found.append(f"{directory}/memory.events")
        directory = os.path.dirname(directory)
    return found


def limited(manager: Manager) -> Job:
    job = manager.create("run")
    job.apply(Limits(memory=8 * MIB, swap=0, pids=8, cpus=1))
    return job


def reason(job: Job) -> Reason:
    """The verdict on a run of which a process was killed."""
    kills, foreign = job.counters().oom_kills, job.foreign_oom()
    return verdict(
        Facts(
            code=None, signal=9, cause=None, oom_own=0 if foreign else kills,
            oom_foreign=kills if foreign else 0, oom_first=False, refused=0, oom="kill",
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    "lacking",
    [(), *((name,) for name in LATER), tuple(LATER)],
    ids=["none", *LATER, "all of them"],
)
def test_the_verdict_oom_holds(old: Old, lacking: tuple[str, ...]) -> None:
    tree, manager = old(*lacking)
    job = limited(manager)
    for path in events(tree, job):
        tree.count(path, "oom")
    tree.count(f"{job.path}/memory.events", "oom_kill")
    assert job.foreign_oom() is False
    assert reason(job) is Reason.OOM
    assert any("oom_kill 1" in reading.text for reading in job.evidence())


@pytest.mark.parametrize("lacking", [(), ("memory.peak", "memory.events.local")], ids=str)
def test_an_oom_of_a_limit_above_is_not_the_jobs_own(old: Old, lacking: tuple[str, ...]) -> None:
    tree, manager = old(*lacking)
    job = limited(manager)
    instance = os.path.dirname(os.path.dirname(job.path))
    local = "memory.events" if lacking else "memory.events.local"
    tree.count(f"{instance}/{local}", "oom")
    tree.count(f"{job.path}/memory.events", "oom_kill")
    assert job.foreign_oom() is True
    assert reason(job) is Reason.OOM_HOST


def test_where_both_limits_struck_it_is_left_to_the_kernel_log(old: Old) -> None:
    tree, manager = old("memory.events.local")
    job = limited(manager)
    for path in events(tree, job):
        tree.count(path, "oom")
    instance = os.path.dirname(os.path.dirname(job.path))
    tree.count(f"{instance}/memory.events", "oom")
    tree.count(f"{job.path}/memory.events", "oom_kill")
    assert job.foreign_oom() is None


def test_a_peak_that_the_kernel_does_not_keep_is_null_and_not_a_guess(old: Old) -> None:
    tree, manager = old("memory.peak", "pids.peak")
    job = limited(manager)
    tree.put(f"{job.path}/memory.current", str(4 * MIB))
    usage = job.usage()
    assert (usage.memory, usage.memory_peak, usage.pids_peak) == (4 * MIB, None, None)
    told, text = doctor_limits._peaks(job)
    assert told == "unavailable" and "memory.peak (Linux 5.19)" in text and "null" in text


def test_one_peak_is_better_than_none(old: Old) -> None:
    job = limited(old("pids.peak")[1])
    told, text = doctor_limits._peaks(job)
    assert told == "accounted only" and "pids.peak" in text and "memory.peak" not in text
    assert job.usage().memory_peak == 0


def test_without_cgroup_kill_the_tree_is_killed_by_hand(old: Old) -> None:
    tree, manager = old("cgroup.kill")
    job = limited(manager)
    for pid in (PID, PID + 1):
        tree.enter(job.path, pid)
    job.freeze()
    job.kill()
    assert job.pids() == ()
    assert doctor_group._kill_means(job).startswith("freezing")
    job.remove()
    assert not os.path.exists(job.path)


def test_what_was_watched_is_there(old: Old) -> None:
    job = limited(old(*LATER)[1])
    paths = [note.path for note in job.notifications if note.kind == "inotify"]
    assert paths and all(os.path.exists(path) for path in paths)
