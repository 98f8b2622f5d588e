"""The cgroup contract on the real kernel, with real processes; the same file for v1 and v2.

On a hybrid host everything runs twice: as found, and as if there were no unified hierarchy.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from attrs import evolve

from supervisor.cgroup import detect, files
from supervisor.cgroup.api import JobCgroup
from supervisor.cgroup.manager import Manager
from supervisor.errors import KernelError, LimitError
from supervisor.model.limits import IoLimit, Limits
from tests.support.cgroups import end, line, noted, python, start

pytestmark = pytest.mark.kernel

MIB = 1 << 20
ALLOCATE = (
    "b = []\nfor i in range({mib}):\n    b.append(bytes([1]) * 1048576)\nprint('done', flush=True)"
)
WAIT = "import signal; print('ready', flush=True); signal.pause()"


@pytest.fixture(params=["found", pytest.param("v1 alone", marks=pytest.mark.v1)])
def make(request: pytest.FixtureRequest, parent: str) -> Iterator[Callable[[str], Manager]]:
    """Makes managers; whatever they hold is removed at the end."""
    made: list[Manager] = []
    found = detect.find(parent)
    if request.param == "v1 alone":
        kept = tuple(h for h in found.hierarchies if not h.unified)
        if not kept or len(kept) == len(found.hierarchies):
            pytest.skip("the same as what is found: no hybrid host")
        found = evolve(found, hierarchies=kept)

    def manager(instance: str) -> Manager:
        made.append(Manager(instance, found))
        return made[-1]

    yield manager
    for one in reversed(made):
        one.remove_leftovers()
        for name in list(one._mine):
            one.tree(name).remove()
        one.close()


@pytest.fixture
def manager(make: Callable[[str], Manager]) -> Manager:
    return make("one")


def empty(job: JobCgroup) -> bool:
    return files.until(lambda: not job.populated(), 10)


def directories(manager: Manager, name: str) -> list[str]:
    return [d for d in manager.tree(name).runs if os.path.isdir(d)]


def test_nothing_is_made_by_looking(make: Callable[[str], Manager]) -> None:
    manager = make("looked")
    manager.describe()
    manager.missing(Limits(memory=MIB, pids=1))
    manager.leftovers()
    assert not any(os.path.exists(layer.directory) for layer in manager.layers)


@pytest.mark.parametrize("hold", [False, True])
def test_the_plan_is_what_a_start_does(make: Callable[[str], Manager], hold: bool) -> None:
    manager = make("planned")
    limits = Limits(memory=64 * MIB, swap=0, pids=20, cpus=0.005, cpu_weight=200)
    if not manager.missing(Limits(cpuset="0")):  # User-Mode Linux has no cpuset
        limits = evolve(limits, cpuset="0")
    told = manager.rehearse("run", limits, kill_whole_on_oom=hold, hold=hold)
    assert not any(os.path.exists(layer.directory) for layer in manager.layers)
    with noted() as done:
        job = manager.create("run", kill_whole_on_oom=hold)
        job.apply(limits)
        if hold:
            job.hold_at_limit(True)
    assert done == list(told.lines)
    assert (job.entry, job.notifications) == (told.entry, told.notifications)
    assert len(done) > 8


def test_limits_are_written_and_read_back(manager: Manager) -> None:
    job = manager.create("limits")
    limits = Limits(memory=64 * MIB + 5, swap=0, pids=20, cpus=0.5, cpu_weight=200)
    assert manager.missing(limits) == ()
    readings = {r.path.rpartition("/")[2]: r.text for r in job.apply(limits)}
    expected = {"memory.max": str(64 * MIB), "memory.swap.max": "0", "pids.max": "20",
                "cpu.max": "50000 100000", "cpu.weight": "200"}  # fmt: skip
    v1 = {"memory.limit_in_bytes": str(64 * MIB), "memory.memsw.limit_in_bytes": str(64 * MIB),
          "pids.max": "20", "cpu.cfs_quota_us": "50000", "cpu.shares": "2048"}  # fmt: skip
    for controller in ("memory", "pids", "cpu"):  # a host may have one here and the other there
        layer = manager.layer(controller)
        assert layer is not None
        if not layer.unified:
            expected = {k: v for k, v in expected.items() if not k.startswith(controller)}
            expected |= {k: v for k, v in v1.items() if k.startswith(controller)}
    assert readings == expected


def test_change_raises_and_lowers_in_a_legal_order(manager: Manager) -> None:
    job = manager.create("change")
    job.apply(Limits(memory=64 * MIB, swap=0, pids=20, cpus=0.5))
    assert job.change("memory", 128 * MIB) == 128 * MIB
    assert job.change("memory", 32 * MIB) == 32 * MIB
    assert job.change("swap", 8 * MIB) == 8 * MIB
    assert job.change("memory", 256 * MIB) == 256 * MIB
    assert job.change("swap", 0) == 0
    assert job.change("pids", 7) == 7
    assert job.change("cpus", 0.004) == 0.004
    assert job.change("cpus", 1.5) == 1.5
    assert job.change("cpu_weight", 50) == 50


def test_oom_is_counted_and_is_the_jobs_own(manager: Manager) -> None:
    job = manager.create("oom")
    job.apply(Limits(memory=24 * MIB, swap=0))
    process = python(job, ALLOCATE.format(mib=200))
    assert end(process) == -signal.SIGKILL
    counters = job.counters()
    assert counters.oom_kills == 1
    assert counters.limit_hits > 0
    assert job.foreign_oom() is False
    assert any(re.search(r"^oom_kill [12]$", r.text, re.M) for r in job.evidence())
    assert (job.usage().memory_peak or 0) > 20 * MIB


def test_oom_by_the_parents_limit_is_foreign(manager: Manager) -> None:
    job = manager.create("foreign")
    job.apply(Limits(memory=1 << 30))
    layer = manager.layer("memory")
    assert layer is not None
    name = "memory.max" if layer.unified else "memory.limit_in_bytes"
    files.write(f"{layer.directory}/{name}", str(24 * MIB))
    swap = f"{layer.directory}/memory.{'swap.max' if layer.unified else 'memsw.limit_in_bytes'}"
    files.write(swap, "0" if layer.unified else str(24 * MIB))
    process = python(job, ALLOCATE.format(mib=200))
    assert end(process) == -signal.SIGKILL
    assert job.counters().oom_kills == 1
    assert job.foreign_oom() is True


def test_kill_from_outside_and_137_are_no_oom(manager: Manager) -> None:
    job = manager.create("outside")
    job.apply(Limits(memory=64 * MIB))
    process = python(job, WAIT)
    assert line(process) == "ready"
    process.kill()
    assert end(process) == -signal.SIGKILL
    assert end(start(job, "/bin/sh", "-c", "exit 137")) == 137
    assert (job.counters().oom_kills, job.foreign_oom()) == (0, False)


@pytest.mark.v2
def test_the_kernel_kills_the_whole_payload(manager: Manager) -> None:
    job = manager.create("group")
    job.apply(Limits(memory=24 * MIB, swap=0))
    bystander = python(job, WAIT)
    assert line(bystander) == "ready"
    assert end(python(job, ALLOCATE.format(mib=200))) == -signal.SIGKILL
    assert end(bystander) == -signal.SIGKILL
    assert job.counters().oom_kills == 2  # the kernel itself counts the first victim twice


@pytest.mark.v1
def test_the_kernel_kills_one_and_leaves_the_others_to_us(manager: Manager) -> None:
    job = manager.create("group")
    job.apply(Limits(memory=24 * MIB, swap=0))
    bystander = python(job, WAIT)
    assert line(bystander) == "ready"
    assert end(python(job, ALLOCATE.format(mib=200))) == -signal.SIGKILL
    assert job.counters().oom_kills == 1
    assert bystander.poll() is None
    job.kill()
    assert end(bystander) == -signal.SIGKILL
    assert job.counters().oom_kills == 1


def test_with_oom_continue_a_bystander_lives_on(manager: Manager) -> None:
    job = manager.create("continue", kill_whole_on_oom=False)
    job.apply(Limits(memory=32 * MIB, swap=0))
    bystander = start(job, "/bin/sh", "-c", "echo ready; read x; exit 3", stdin=subprocess.PIPE)
    assert line(bystander) == "ready"
    assert end(python(job, ALLOCATE.format(mib=200))) == -signal.SIGKILL
    assert end(bystander) == 3 or bystander.returncode == 2  # read at the end of file


def until_held(job: JobCgroup) -> bool:
    """As a watcher does it: v1's kernel holds, v2's trip wire is told by a counter."""

    def held() -> bool:
        counters = job.counters()
        if counters.high and not counters.under_oom:
            job.try_hold()
        return job.counters().under_oom

    return files.until(held, 30)


def test_a_held_job_finishes_after_a_raise(manager: Manager) -> None:
    job = manager.create("held")
    job.apply(Limits(memory=32 * MIB, swap=0))
    job.hold_at_limit(True)
    process = python(job, ALLOCATE.format(mib=60))
    assert until_held(job)
    assert process.poll() is None
    assert job.change("memory", 256 * MIB) == 256 * MIB
    assert line(process) == "done"
    assert end(process) == 0
    assert job.counters().oom_kills == 0
    assert not job.counters().under_oom


def test_a_held_job_that_is_let_go_meets_the_killer(manager: Manager) -> None:
    job = manager.create("let-go")
    job.apply(Limits(memory=32 * MIB, swap=0))
    job.hold_at_limit(True)
    process = python(job, ALLOCATE.format(mib=200))
    assert until_held(job)
    job.hold_at_limit(False)
    assert end(process) == -signal.SIGKILL
    assert job.counters().oom_kills == 1


def test_a_held_job_can_be_killed(manager: Manager) -> None:
    job = manager.create("held-killed")
    job.apply(Limits(memory=32 * MIB, swap=0))
    job.hold_at_limit(True)
    process = python(job, ALLOCATE.format(mib=200))
    assert until_held(job)
    job.kill()
    assert end(process) == -signal.SIGKILL
    assert job.counters().oom_kills == 0


FORK = """
import os, signal
children = []
try:
    for _ in range(100):
        pid = os.fork()
        if not pid:
            signal.pause()
        children.append(pid)
except BlockingIOError:
    print("refused", len(children), flush=True)
signal.pause()
"""


def test_refused_forks_are_counted(manager: Manager) -> None:
    job = manager.create("forks")
    job.apply(Limits(pids=6))
    process = python(job, FORK)
    assert line(process) == "refused 5"
    assert job.counters().refused >= 1
    assert job.usage().pids == 6
    assert len(job.pids()) == 6
    job.kill()
    assert empty(job)
    assert end(process) == -signal.SIGKILL
    assert job.usage().pids_peak in (6, None)


HOSTILE = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
r, w = os.pipe()
def child(what):
    if os.fork():
        return
    what()
    os.write(w, b"x")
    while True:
        signal.pause()
def twice():
    if os.fork():
        os._exit(0)
    os.setsid()
def stopped():
    os.write(w, b"x")
    os.kill(os.getpid(), signal.SIGSTOP)
child(os.setsid)
child(twice)
child(stopped)
got = b""
while len(got) < 3:
    got += os.read(r, 3)
print("ready", flush=True)
signal.pause()
"""


def test_kill_reaches_everybody_but_init(manager: Manager) -> None:
    job = manager.create("hostile")
    init = start(job, "/bin/sh", "-c", "echo ready; read x; exit 7", init=True, stdin=-1)
    assert line(init) == "ready"
    process = python(job, HOSTILE)
    assert line(process) == "ready"
    assert len(job.pids()) >= 4
    assert init.pid not in job.pids()
    job.kill()
    assert end(process) == -signal.SIGKILL
    assert files.until(lambda: not job.pids(), 10)
    assert job.populated()
    assert init.poll() is None
    init.stdin.write("\n")  # type: ignore[union-attr]
    assert end(init) == 7
    assert empty(job)


BOMB = """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ready", flush=True)
while True:
    try:
        os.fork()
    except OSError:
        pass
"""


def test_kill_wins_against_a_fork_bomb(manager: Manager) -> None:
    job = manager.create("bomb")
    job.apply(Limits(pids=24, cpus=0.5))
    process = python(job, BOMB)
    assert line(process) == "ready"
    assert files.until(lambda: job.counters().refused > 0, 30)
    job.kill()
    assert empty(job)
    end(process)


def test_freeze_stops_and_thaw_goes_on(manager: Manager) -> None:
    job = manager.create("frozen")
    process = start(job, "/bin/cat", stdin=-1)
    process.stdin.write("a\n")  # type: ignore[union-attr]
    process.stdin.flush()  # type: ignore[union-attr]
    assert line(process) == "a"
    job.freeze()
    if manager.unified:
        assert files.table(f"{job.entry.payload_dir}/cgroup.events")["frozen"] == 1
    else:
        frozen = next(f for f in job.entry.payload_files if "/freezer" in f)
        assert files.read(f"{os.path.dirname(frozen)}/freezer.state") == "FROZEN"
    assert not job.counters().under_oom  # frozen, not held
    process.stdin.write("b\n")  # type: ignore[union-attr]
    process.stdin.flush()  # type: ignore[union-attr]
    job.thaw()
    assert line(process) == "b"
    assert end(process) == 0


def test_a_frozen_job_can_be_killed(manager: Manager) -> None:
    job = manager.create("frozen-killed")
    process = python(job, WAIT)
    assert line(process) == "ready"
    job.freeze()
    job.kill()
    assert end(process) == -signal.SIGKILL
    assert empty(job)


def test_remove_with_processes_and_cgroups_left(manager: Manager) -> None:
    job = manager.create("left")
    process = python(job, HOSTILE)
    init = start(job, "/bin/sh", "-c", "echo ready; read x", init=True, stdin=-1)
    assert (line(process), line(init)) == ("ready", "ready")
    for run in directories(manager, "left"):
        os.mkdir(f"{run}/payload/of-the-job")
    assert not job.try_remove()
    job.remove()
    assert directories(manager, "left") == []
    assert end(process) == -signal.SIGKILL
    assert end(init) == -signal.SIGKILL
    job.remove()
    assert job.try_remove()


def test_a_vanished_cgroup_is_told_as_such(manager: Manager) -> None:
    job = manager.create("vanished")
    job.apply(Limits(memory=64 * MIB, pids=4))
    assert manager.tree("vanished").try_remove()  # behind the job's back
    calls: list[Callable[[], object]] = [
        job.counters, job.usage, job.evidence, job.foreign_oom, job.pids, job.populated, job.kill,
        job.freeze, job.thaw, lambda: job.apply(Limits(pids=3)),
        lambda: job.change("memory", 128 * MIB), lambda: job.hold_at_limit(True),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(KernelError) as caught:
            call()
        assert caught.value.errno in (errno.ENOENT, errno.ENODEV)
        assert "vanished" in str(caught.value.path)
    job.remove()


def test_usage_tells_of_cpu_and_memory(manager: Manager) -> None:
    job = manager.create("usage")
    job.apply(Limits(cpus=0.1))  # so little that a busy host, too, gives more
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    process = python(job, burn)
    assert end(process) == 0
    usage = job.usage()
    assert usage.cpu is not None and 0.1 < usage.cpu < 5
    assert usage.cpu_user is not None and usage.cpu_system is not None
    assert abs(usage.cpu_user + usage.cpu_system - usage.cpu) < 0.3
    assert usage.throttled and usage.throttled > 0
    assert usage.memory_peak and usage.memory_peak > MIB


BURN = """
import os, time
os.sched_setaffinity(0, {0})
print("ready", flush=True)
while True:
    pass
"""


def test_jobs_share_a_cpu_by_their_weights(manager: Manager) -> None:
    """What counts is the weight among siblings: that of the run's directory, not the payload's."""
    weights = {"heavy": 400, "light": 100}
    jobs = {name: manager.create(name) for name in weights}
    for name, weight in weights.items():
        jobs[name].apply(Limits(cpu_weight=weight))
    burners = [python(job, BURN) for job in jobs.values()]
    assert [line(burner) for burner in burners] == ["ready"] * 2

    def used(name: str) -> float:
        return jobs[name].usage().cpu or 0.0

    began = {name: used(name) for name in jobs}
    assert files.until(lambda: used("heavy") - began["heavy"] > 1.5, 60)
    ratio = (used("heavy") - began["heavy"]) / (used("light") - began["light"])
    for job, burner in zip(jobs.values(), burners, strict=True):
        job.kill()
        assert end(burner) == -signal.SIGKILL
    assert 2.5 < ratio < 6


def test_runs_prepared_ahead_are_used_and_removed(manager: Manager) -> None:
    manager.prepare(2)
    before = {d for layer in manager.layers for d in files.names(layer.directory)}
    assert len(before) == 2
    job = manager.create("prepared")
    assert job.name in before
    assert f"/{job.name}/payload" in job.path
    job.apply(Limits(memory=64 * MIB))
    assert end(start(job, "/bin/true")) == 0
    job.remove()
    assert manager.leftovers() == ()
    manager.close()
    assert not any(os.path.exists(layer.directory) for layer in manager.layers)


def test_leftovers_of_a_dead_supervisor(make: Callable[[str], Manager]) -> None:
    dead = make("same")
    job = dead.create("orphan")
    process = python(job, WAIT)
    assert line(process) == "ready"
    dead.prepare(1)
    dead._mine.clear()
    dead._spares.clear()
    heir = make("same")
    assert heir.leftovers() == ("orphan",)
    with pytest.raises(KernelError) as caught:
        heir.create("orphan")
    assert caught.value.errno == errno.EEXIST
    assert process.poll() is None
    assert heir.remove_leftovers() == ("orphan",)
    assert end(process) == -signal.SIGKILL
    assert all(files.names(layer.directory) == () for layer in heir.layers)


def test_two_instances_side_by_side(make: Callable[[str], Manager]) -> None:
    left, right = make("left"), make("right")
    mine, theirs = left.create("run"), right.create("run")
    assert mine.path != theirs.path
    process = python(theirs, WAIT)
    assert line(process) == "ready"
    mine.kill()
    mine.remove()
    left.close()
    assert process.poll() is None
    assert len(theirs.pids()) == 1
    assert right.create("another").apply(Limits(memory=64 * MIB, pids=4))
    theirs.remove()
    assert end(process) == -signal.SIGKILL


def test_a_kernel_without_cpusets_refuses_one(manager: Manager) -> None:
    limits = Limits(cpuset="0")
    if not manager.missing(limits):
        pytest.skip("this kernel has them")
    with pytest.raises(LimitError):
        manager.create("cpuset").apply(limits)


@pytest.mark.qemu
def test_cpuset_binds_the_payload(manager: Manager) -> None:
    job = manager.create("cpuset")
    job.apply(Limits(cpuset="0"))
    process = python(job, "import os; print(sorted(os.sched_getaffinity(0)))")
    assert line(process) == "[0]"
    assert end(process) == 0
    with pytest.raises((KernelError, LimitError)):
        job.apply(Limits(cpuset="4000"))
    job.remove()
    assert directories(manager, "cpuset") == []


def test_io_limits_stand_on_the_disk_or_are_told_missing(manager: Manager) -> None:
    limits = Limits(io=(IoLimit("/", read_bps=50 * MIB, write_iops=500),))
    job = manager.create("io")
    missing = manager.missing(limits)
    if missing:
        assert missing[0].limit == "io" and missing[0].why and missing[0].fix
        with pytest.raises(LimitError):
            job.apply(limits)
        return
    texts = " ".join(reading.text for reading in job.apply(limits))
    assert str(50 * MIB) in texts and "500" in texts
    lower = (IoLimit("/", read_bps=MIB), IoLimit("/etc", read_bps=2 * MIB))
    texts = " ".join(reading.text for reading in job.apply(Limits(io=lower)))
    assert str(MIB) in texts and str(2 * MIB) not in texts


def test_an_impossible_limit_is_refused_by_name(manager: Manager) -> None:
    job = manager.create("impossible")
    with pytest.raises(LimitError, match="cpus"):
        job.apply(Limits(cpus=0.0001))
    with pytest.raises(LimitError, match="io"):
        job.apply(Limits(io=(IoLimit("/proc", read_bps=MIB),)))
