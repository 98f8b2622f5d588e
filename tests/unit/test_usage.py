"""What two looks come to, and who looks."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
import trio
from attrs import define, evolve, field

from supervisor.cgroup.fake import FakeJob, FakeManager, FakeMeter
from supervisor.cgroup.sample import IoCount, Sample, Slow, Stall
from supervisor.errors import KernelError
from supervisor.linux import proc
from supervisor.model.job import JobSpec
from supervisor.model.limits import Limits
from supervisor.model.state import State
from supervisor.supervise import stats
from supervisor.supervise.stats import NOTHING, Look, RunLook, Sampler, processes_of, report
from supervisor.supervise.usage import (
    Cpus,
    JobUsage,
    ProcessLook,
    allowance,
    cpu_usage,
    io_usage,
    memory_usage,
    process_usage,
)

CPUS = Cpus(host=4, own=4)
MIB = 1 << 20


def sample(at: float, cpu: int = 0, **values: Any) -> Sample:
    given = {"memory": 0, "pids": 1, "slow": Slow(), "io": None, "pressure": {}, **values}
    return Sample(at=at, cpu=cpu, cpu_user=cpu, cpu_system=0, **given)


def test_half_a_cpu_is_all_of_a_quota_of_a_half() -> None:
    before = sample(10.0, 1_000_000, slow=Slow(periods=100, throttled_periods=50))
    now = sample(12.0, 2_000_000, slow=Slow(periods=120, throttled_periods=65, throttled=5_000))
    cpu = cpu_usage(before, now, Limits(cpus=0.5), CPUS)
    assert (cpu.percent, cpu.share, cpu.share_of) == (50.0, 100.0, "quota")
    assert (cpu.host_percent, cpu.may_use) == (12.5, 0.5)
    assert (cpu.throttled_percent, cpu.throttled_seconds) == (75.0, 0.005)


@pytest.mark.parametrize(
    ("limits", "cpus", "expected"),
    [
        (Limits(), CPUS, (4.0, "host")),
        (Limits(), Cpus(host=4, own=2), (2.0, "cpuset")),
        (Limits(cpuset="0-1,3"), CPUS, (3.0, "cpuset")),
        (Limits(cpuset="0-1", cpus=1.5), CPUS, (1.5, "quota")),
    ],
)
def test_without_a_quota_the_share_is_of_the_cpus_it_may_use(
    limits: Limits, cpus: Cpus, expected: tuple[float, str]
) -> None:
    assert allowance(limits, cpus) == expected
    cpu = cpu_usage(sample(0.0), sample(1.0, 1_000_000), limits, cpus)
    assert cpu.share == round(100 / expected[0], 2)
    if limits.cpus is None:
        assert cpu.throttled_percent is None


def test_one_look_has_counters_and_no_rates() -> None:
    now = sample(5.0, 7_000_000, io=IoCount(1, 2, 3, 4))
    cpu = cpu_usage(None, now, Limits(cpus=1), CPUS)
    assert cpu.seconds == 7.0
    assert cpu.percent is cpu.share is cpu.throttled_percent is None
    io = io_usage(None, now)
    assert (io.read_bytes, io.writes, io.read_bps) == (1, 4, None)


def test_a_counter_that_went_back_gives_no_rate() -> None:
    cpu = cpu_usage(sample(1.0, 500), sample(2.0, 400), Limits(), CPUS)
    assert cpu.percent is None


def test_a_quota_of_which_no_period_has_passed_was_not_used_up() -> None:
    slow = Slow(periods=3, throttled_periods=1)
    cpu = cpu_usage(sample(1.0, slow=slow), sample(2.0, slow=slow), Limits(cpus=1), CPUS)
    assert cpu.throttled_percent == 0.0


def test_io_is_told_by_the_second() -> None:
    before = sample(1.0, io=IoCount(100, 0, 1, 0))
    io = io_usage(before, sample(3.0, io=IoCount(1100, 50, 11, 5)))
    assert (io.read_bps, io.write_bps, io.read_iops, io.write_iops) == (500, 25, 5, 2.5)


def test_page_cache_is_told_apart() -> None:
    now = sample(1.0, memory=50 * MIB, slow=Slow(anon=10 * MIB, file=30 * MIB, shmem=4 * MIB))
    memory = memory_usage(now, Limits(memory=100 * MIB))
    assert (memory.percent, memory.working, memory.kernel) == (50.0, 20 * MIB, 6 * MIB)
    assert memory_usage(sample(1.0, memory=5), Limits()).percent is None
    told = memory_usage(sample(1.0, memory=5, slow=Slow(anon=1, kernel=2)), Limits())
    assert told.kernel == 2


def look(at: float, ticks: int, name: str = "x") -> ProcessLook:
    return ProcessLook(at, 1, name, "R", 1, ticks, 10)


def test_a_process_is_told_by_its_ticks() -> None:
    before = {(7, 100): look(1.0, 50), (8, 100): look(1.0, 10)}
    now = {(7, 100): look(3.0, 150), (8, 100): look(3.0, 110 + proc.CLOCK_TICK)}
    busy, less = process_usage(before, now)
    assert (busy.pid, less.pid) == (8, 7)
    assert less.cpu_percent == round(100 * 100 / proc.CLOCK_TICK / 2, 2)
    assert less.cpu_seconds == 150 / proc.CLOCK_TICK


def test_a_number_that_another_process_has_got_is_another_process() -> None:
    (one,) = process_usage({(7, 100): look(1.0, 5000)}, {(7, 200): look(2.0, 5001)})
    assert one.cpu_percent is None


def test_processes_that_go_meanwhile_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone_or_not(pid: int) -> proc.Stat:
        if pid % 2:
            raise KernelError("read", f"/proc/{pid}/stat", errno.ESRCH)
        return proc.Stat(f"{pid} (a (b) \n\x1b[2J\udcff) R 1 " + " ".join("7" for _ in range(48)))

    monkeypatch.setattr(proc, "stat", gone_or_not)
    found, left = processes_of(range(2, 10))
    assert {pid for pid, _ in found} == {2, 4, 6, 8} and left == 0
    assert found[2, 7].name == "a (b) \n\x1b[2J\N{REPLACEMENT CHARACTER}"
    found, left = processes_of(range(2, 10), most=3)
    assert len(found) == 2 and left == 5


def test_another_failure_to_read_a_process_is_none_of_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(pid: int) -> proc.Stat:
        raise KernelError("read", f"/proc/{pid}/stat", errno.EACCES)

    monkeypatch.setattr(proc, "stat", refused)
    with pytest.raises(KernelError):
        processes_of([1])


@define(eq=False)
class FakeRun:
    id: str
    cgroup: FakeJob
    limits: Limits = Limits(memory=10 * MIB, pids=10)
    disk: None = None
    attempt: int = 1
    started_at: float = 0.0


@define(eq=False)
class FakeOne:
    spec: JobSpec
    running: FakeRun | None
    state: State = State.RUNNING


@define(eq=False)
class Host:
    """Jobs that are only imagined, and the meters that were made of them."""

    manager: FakeManager = field(factory=FakeManager)
    jobs: dict[str, Any] = field(factory=dict)
    meters: list[FakeMeter] = field(factory=list)
    reads: int = 0

    def add(self, name: str, run: str = "1") -> FakeRun:
        job = self.manager.create(f"{run}-{name}")
        made = FakeRun(f"{run}-{name}", job)
        self.jobs[name] = FakeOne(JobSpec(name=name, command=("true",)), made)
        return made


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    one = Host()

    def meter(job: FakeJob) -> FakeMeter:
        one.meters.append(FakeMeter(job))
        return one.meters[-1]

    whole = FakeMeter.read

    def counted(self: FakeMeter) -> Sample:
        one.reads += 1
        return whole(self)

    monkeypatch.setattr(FakeJob, "meter", meter)
    monkeypatch.setattr(FakeMeter, "read", counted)
    return one


def looked(work: Callable[[], Any]) -> Any:
    return trio.run(work)


def test_many_clients_share_a_look(host: Host) -> None:
    host.add("a"), host.add("b")
    sampler = Sampler(host.jobs)

    async def clients() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(sampler.look)

    trio.run(clients)
    assert host.reads == 2


def test_a_look_that_is_old_is_not_shared(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.add("a")
    sampler = Sampler(host.jobs)
    monkeypatch.setattr(stats, "FRESH", 0.0)
    trio.run(sampler.look)
    trio.run(sampler.look)
    assert host.reads == 2


def test_meters_are_closed_with_the_last_watcher(host: Host) -> None:
    host.add("a")
    sampler = Sampler(host.jobs)
    with sampler.watching():
        with sampler.watching():
            trio.run(sampler.look)
        assert not host.meters[0].closed
    assert host.meters[0].closed


def test_a_run_that_ends_is_let_go_of(host: Host) -> None:
    run = host.add("a")
    host.add("b")
    sampler = Sampler(host.jobs)
    with sampler.watching():
        trio.run(sampler.look)
        run.cgroup.vanish()
        sampler._watched["a"].look = None  # what was seen of it is old
        seen = trio.run(sampler.look)
        assert set(seen.runs) == {"b"} and not seen.problems
        assert host.meters[0].closed and not host.meters[1].closed
        host.jobs["b"].running = None
        assert not trio.run(sampler.look).runs
        assert host.meters[1].closed


def test_a_further_run_of_a_job_is_another(host: Host) -> None:
    host.add("a")
    sampler = Sampler(host.jobs)
    with sampler.watching():
        before = trio.run(sampler.look)
        second = host.add("a", run="2")
        second.cgroup.used = evolve(second.cgroup.used, cpu=5.0)
        now = trio.run(sampler.look)
    assert host.meters[0].closed
    told = report(host.jobs["a"], before, now, CPUS)
    assert (told.run, told.seconds, told.cpu.percent, told.cpu.seconds) == ("2-a", None, None, 5.0)


def test_what_cannot_be_read_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.add("a")

    def broken(_self: FakeMeter) -> Sample:
        raise KernelError("read", "/x/memory.stat", errno.EIO)

    monkeypatch.setattr(FakeMeter, "read", broken)
    seen = trio.run(Sampler(host.jobs).look)
    assert not seen.runs
    assert seen.problems[0].startswith("a: ") and "/x/memory.stat" in seen.problems[0]


def test_only_those_that_are_named_are_looked_at(host: Host) -> None:
    host.add("a"), host.add("b")
    sampler = Sampler(host.jobs)
    seen = trio.run(lambda: sampler.look(["b", "nobody"]))
    assert set(seen.runs) == {"b"} and host.reads == 1


def test_a_job_that_does_not_run_has_its_state_only(host: Host) -> None:
    host.add("a")
    host.jobs["a"].running = None
    host.jobs["a"].state = State.WAITING
    told = report(host.jobs["a"], NOTHING, trio.run(Sampler(host.jobs).look), CPUS)
    assert told == JobUsage("a", "waiting")


def test_everything_is_told_of_a_job_that_runs(host: Host) -> None:
    host.add("a")
    pressure = {"memory": Stall(1.0, 2_000_000, 0.5, 1_000_000)}
    slow = Slow(refused=3, oom_kills=1)

    def at(time: float, ticks: int) -> Look:
        seen = sample(time, int(time * 5e5), memory=MIB, pids=5, slow=slow, pressure=pressure)
        processes = {(7, 1): look(time, ticks)}
        run = RunLook("1-a", Limits(pids=10), seen, processes=processes, left_out=2)
        return Look(time, {"a": run})

    told = report(host.jobs["a"], at(1.0, 0), at(3.0, proc.CLOCK_TICK), CPUS)
    assert (told.seconds, told.cpu.percent, told.attempt) == (2.0, 50.0, 1)
    assert (told.pids.tasks, told.pids.percent, told.pids.refused) == (5, 50.0, 3)
    assert told.pressure["memory"].some_seconds == 2.0
    assert told.processes is not None and told.processes[0].cpu_percent == 50.0
    assert told.processes_left_out == 2 and told.memory.oom_kills == 1
