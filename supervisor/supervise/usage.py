"""What a job uses, from two looks at it: counters, and what they come to in the time between.

Pure.  May import: `model`, `cgroup.sample`, `linux.proc`, attrs.  Times are seconds, sizes bytes;
None stands for what this host cannot tell, or what one look alone does not say.  The classes are
what the socket answers; they are not frozen for the sake of speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from attrs import define, field

from supervisor.cgroup.sample import IoCount, Sample, Stall
from supervisor.linux.proc import CLOCK_TICK, PAGE_SIZE
from supervisor.model.limits import Limits

Of = Literal["quota", "cpuset", "host"]


@define
class CpuUsage:
    """CPU time.  `percent` is of one CPU, `share` of what the job may use.

    share              percent of `share_of`: its own quota, or else the CPUs it may use
    share_of           "quota"; without one "cpuset", or "host" when it may use all CPUs
    may_use            how many CPUs that is
    throttled_percent  of the quota's periods in which it ran: those in which it used it up
    throttled_seconds  for how long its tasks were stopped for that, all together
    """

    seconds: float | None = None
    user_seconds: float | None = None
    system_seconds: float | None = None
    percent: float | None = None
    host_percent: float | None = None
    share: float | None = None
    share_of: Of = "host"
    may_use: float = 0.0
    quota_cpus: float | None = None
    throttled_percent: float | None = None
    periods: int | None = None
    throttled_periods: int | None = None
    throttled_seconds: float | None = None


@define
class MemoryUsage:
    """Memory.  `used` is what counts against the limit; `file` of it is page cache, which the
    kernel takes back before it kills; `working` is the rest.  Each in percent of the limit, too.

    anon   of processes         shmem  tmpfs and shared memory
    kernel the kernel's own for the job; v1: what is left over, with what is charged ahead
    swap   is swapped out, beside `used`
    """

    used: int | None = None
    limit: int | None = None
    percent: float | None = None
    working: int | None = None
    working_percent: float | None = None
    anon: int | None = None
    file: int | None = None
    shmem: int | None = None
    kernel: int | None = None
    swap: int | None = None
    swap_limit: int | None = None
    oom_kills: int | None = None


@define
class TasksUsage:
    """Processes and threads; `refused`: forks that the limit did not allow."""

    tasks: int | None = None
    limit: int | None = None
    percent: float | None = None
    refused: int | None = None


@define
class IoUsage:
    """Block devices, all together; the rates are per second."""

    read_bytes: int | None = None
    write_bytes: int | None = None
    reads: int | None = None
    writes: int | None = None
    read_bps: float | None = None
    write_bps: float | None = None
    read_iops: float | None = None
    write_iops: float | None = None


@define
class PressureUsage:
    """Pressure stall information: percent of the last ten seconds in which some, or all, of the
    tasks that wanted to run stood still for want of this; and the time in all.
    """

    some_avg10: float
    some_seconds: float
    full_avg10: float | None
    full_seconds: float | None


@define
class DiskUsage:
    """The job's writable layer, where it has a size (`limits.disk`)."""

    used: int
    limit: int
    inodes: int
    inode_limit: int


@define
class ProcessUsage:
    """One process of a job.  `pid` is the host's, `name` as the process calls itself."""

    pid: int
    parent: int
    name: str
    state: str
    threads: int
    cpu_seconds: float
    cpu_percent: float | None
    memory: int


@define
class JobUsage:
    """One job.  `seconds`: the time between the two looks, None where there was but one.

    `processes` are there when they were asked for, `processes_left_out` are those beyond the most
    that are looked at.
    """

    job: str
    state: str
    run: str = ""
    attempt: int = 0
    started_at: str | None = None
    seconds: float | None = None
    cpu: CpuUsage = field(factory=CpuUsage)
    memory: MemoryUsage = field(factory=MemoryUsage)
    pids: TasksUsage = field(factory=TasksUsage)
    io: IoUsage = field(factory=IoUsage)
    pressure: dict[str, PressureUsage] = field(factory=dict)
    disk: DiskUsage | None = None
    processes: list[ProcessUsage] | None = None
    processes_left_out: int = 0


@define
class Cpus:
    """How many CPUs the host has, and how many of them the instance may use."""

    host: int
    own: int


def percent(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else round(100 * part / whole, 2)


def _delta(before: int | None, now: int | None) -> int | None:
    """A counter that went back is another's: the run is a new one."""
    return None if before is None or now is None or now < before else now - before


def _seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / 1e6


def _rate(before: int | None, now: int | None, seconds: float) -> float | None:
    delta = _delta(before, now)
    return None if delta is None else round(delta / seconds, 2)


def cpu_usage(before: Sample | None, now: Sample, limits: Limits, cpus: Cpus) -> CpuUsage:
    may, of = allowance(limits, cpus)
    slow = now.slow
    found = CpuUsage(
        seconds=_seconds(now.cpu),
        user_seconds=_seconds(now.cpu_user),
        system_seconds=_seconds(now.cpu_system),
        share_of=of,
        may_use=may,
        quota_cpus=limits.cpus,
        periods=slow.periods,
        throttled_periods=slow.throttled_periods,
        throttled_seconds=_seconds(slow.throttled),
    )
    if before is None or now.at <= before.at:
        return found
    used = _delta(before.cpu, now.cpu)
    if used is not None:
        found.percent = round(used / (now.at - before.at) / 1e4, 2)
        found.host_percent = round(found.percent / cpus.host, 2)
        found.share = round(found.percent / may, 2)
    periods = _delta(before.slow.periods, slow.periods)
    throttled = _delta(before.slow.throttled_periods, slow.throttled_periods)
    if limits.cpus is not None and throttled is not None:
        found.throttled_percent = percent(throttled, periods) or 0.0
    return found


def allowance(limits: Limits, cpus: Cpus) -> tuple[float, Of]:
    """How many CPUs a job may use, and what says so."""
    if limits.cpus is not None:
        return limits.cpus, "quota"
    if limits.cpuset is not None:
        return float(_count(limits.cpuset)), "cpuset"
    return float(cpus.own), "host" if cpus.own == cpus.host else "cpuset"


def _count(cpuset: str) -> int:
    """How many CPUs a list as "0-2,4" names."""
    found: set[int] = set()
    for part in cpuset.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return len(found)


def memory_usage(now: Sample, limits: Limits) -> MemoryUsage:
    slow, used = now.slow, now.memory
    kernel = slow.kernel
    if kernel is None and used is not None and slow.anon is not None:
        kernel = max(used - slow.anon - (slow.file or 0) - (slow.shmem or 0), 0)
    working = None if used is None else max(used - (slow.file or 0), 0)
    return MemoryUsage(
        used=used,
        limit=limits.memory,
        percent=percent(used, limits.memory),
        working=working,
        working_percent=percent(working, limits.memory),
        anon=slow.anon,
        file=slow.file,
        shmem=slow.shmem,
        kernel=kernel,
        swap=slow.swap,
        swap_limit=limits.swap,
        oom_kills=slow.oom_kills,
    )


def io_usage(before: Sample | None, now: Sample) -> IoUsage:
    io = now.io
    if io is None:
        return IoUsage()
    found = IoUsage(io.read_bytes, io.write_bytes, io.reads, io.writes)
    if before is not None and before.io is not None and now.at > before.at:
        _add_rates(found, before.io, io, now.at - before.at)
    return found


def _add_rates(found: IoUsage, before: IoCount, now: IoCount, seconds: float) -> None:
    found.read_bps = _rate(before.read_bytes, now.read_bytes, seconds)
    found.write_bps = _rate(before.write_bytes, now.write_bytes, seconds)
    found.read_iops = _rate(before.reads, now.reads, seconds)
    found.write_iops = _rate(before.writes, now.writes, seconds)


def pressure_usage(stall: Stall) -> PressureUsage:
    return PressureUsage(
        stall.some_avg10,
        stall.some_total / 1e6,
        stall.full_avg10,
        _seconds(stall.full_total),
    )


@define
class ProcessLook:
    """One process, seen once; `at` of the monotonic clock, `ticks` of CPU time (USER_HZ)."""

    at: float
    parent: int
    name: str
    state: str
    threads: int
    ticks: int
    pages: int


Processes = Mapping[tuple[int, int], ProcessLook]
"""By pid and start time: a number is given to another process as soon as its owner is gone."""


def process_usage(before: Processes, now: Processes) -> list[ProcessUsage]:
    """The busiest first; percent of one CPU, None for a process that is new."""
    found = [
        ProcessUsage(
            pid=key[0],
            parent=look.parent,
            name=look.name,
            state=look.state,
            threads=look.threads,
            cpu_seconds=look.ticks / CLOCK_TICK,
            cpu_percent=_process_percent(before.get(key), look),
            memory=look.pages * PAGE_SIZE,
        )
        for key, look in now.items()
    ]
    found.sort(key=lambda one: (-(one.cpu_percent or 0.0), -one.cpu_seconds, one.pid))
    return found


def _process_percent(before: ProcessLook | None, now: ProcessLook) -> float | None:
    """(Δutime + Δstime) / (HZ · Δt)."""
    if before is None or now.at <= before.at:
        return None
    return round(100 * max(now.ticks - before.ticks, 0) / CLOCK_TICK / (now.at - before.at), 2)
