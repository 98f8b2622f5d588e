"""Looks at the jobs for whoever watches: one look for all clients, none when nobody asks.

A client keeps the `Look` before, and compares (`report`); so each sees the time between its own
two looks, however often others ask.  Nothing here runs by itself.

May import: `errors`, `model`, `cgroup`, `linux.proc`, `supervise.{job,run,usage}`, trio.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio
from attrs import define, field

from supervisor.cgroup.sample import Meter, Sample
from supervisor.errors import KernelError
from supervisor.linux import proc
from supervisor.model.limits import Limits
from supervisor.model.record import iso
from supervisor.supervise.usage import (
    Cpus,
    DiskUsage,
    JobUsage,
    Processes,
    ProcessLook,
    TasksUsage,
    cpu_usage,
    io_usage,
    memory_usage,
    percent,
    pressure_usage,
    process_usage,
)

if TYPE_CHECKING:
    from supervisor.supervise.job import Job
    from supervisor.supervise.run import Run

FRESH = 0.1
"""Seconds for which a look is shared."""
BATCH = 32
"""Runs looked at before the event loop gets its turn: two milliseconds or so."""
MOST_PROCESSES = 1000
"""Of one job, looked at: the cost of a look is bounded, be it of a fork bomb."""

_GONE = (errno.ENOENT, errno.ENODEV, errno.ESRCH)


@define
class RunLook:
    """One run, seen once."""

    run: str
    limits: Limits
    sample: Sample
    processes: Processes | None = None
    left_out: int = 0
    disk: DiskUsage | None = None


@define
class Look:
    """All that were asked for: `at` in Unix time; `problems` are what could not be read."""

    at: float
    runs: dict[str, RunLook] = field(factory=dict)
    problems: list[str] = field(factory=list)


NOTHING = Look(0.0)


@define(eq=False)
class _Watched:
    run: Run
    meter: Meter
    look: RunLook | None = None


class Sampler:
    """Looks at the runs of `jobs`, an instance's."""

    def __init__(self, jobs: Mapping[str, Job]) -> None:
        self._jobs = jobs
        self._watched: dict[str, _Watched] = {}
        self._watchers = 0
        self.cpus = Cpus(os.cpu_count() or 1, len(os.sched_getaffinity(0)))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Descriptors are kept while anybody does, and let go of with the last one."""
        self._watchers += 1
        try:
            yield
        finally:
            self._watchers -= 1
            if not self._watchers:
                self._let_go()

    def _let_go(self) -> None:
        for one in self._watched.values():
            one.meter.close()
        self._watched.clear()

    async def look(self, names: Collection[str] = (), *, processes: bool = False) -> Look:
        """At the runs of these jobs (none named: of all) that have a cgroup now."""
        look = Look(time.time())
        for count, name in enumerate(names or tuple(self._jobs)):
            if count % BATCH == BATCH - 1:
                await trio.lowlevel.checkpoint()
            job = self._jobs.get(name)
            run = job.running if job else None
            if run is None:
                self._forget(name)
                continue
            try:
                look.runs[name] = self._look_at(name, run, processes)
            except KernelError as error:
                self._forget(name)
                if error.errno not in _GONE:
                    look.problems.append(f"{name}: {error}")
        return look

    def _forget(self, name: str) -> None:
        watched = self._watched.pop(name, None)
        if watched is not None:
            watched.meter.close()

    def _look_at(self, name: str, run: Run, processes: bool) -> RunLook:
        watched = self._watched.get(name)
        if watched is None or watched.run is not run:
            self._forget(name)
            watched = self._watched[name] = _Watched(run, run.cgroup.meter())
        now, look = time.monotonic(), watched.look
        if look is None or now - look.sample.at >= FRESH:
            look = RunLook(run.id, run.limits, watched.meter.read())
            look.disk = _disk(run)
            watched.look = look
        if processes and look.processes is None:
            look.processes, look.left_out = processes_of(run.cgroup.pids())
        return look


def _disk(run: Run) -> DiskUsage | None:
    if run.disk is None:
        return None
    usage = run.disk.space.usage()
    return DiskUsage(usage.used, usage.limit, usage.inodes, usage.inode_limit)


def processes_of(pids: Collection[int], most: int = MOST_PROCESSES) -> tuple[Processes, int]:
    """Each as it is now, and how many were left out; who has ended since is nobody."""
    found = {}
    for pid in tuple(pids)[:most]:
        try:
            stat = proc.stat(pid)
        except KernelError as error:
            if error.errno not in _GONE:
                raise
            continue
        found[pid, stat.start_ticks] = ProcessLook(
            at=time.monotonic(),
            parent=stat.parent,
            name=_text(stat.comm),
            state=stat.state,
            threads=stat.threads,
            ticks=stat.ticks,
            pages=stat.pages,
        )
    return found, max(len(pids) - most, 0)


def _text(name: str) -> str:
    """A process may call itself by bytes that are no UTF-8."""
    return os.fsencode(name).decode(errors="replace")


def report(job: Job, before: Look, now: Look, cpus: Cpus) -> JobUsage:
    """One job: what it uses, and since `before`.  One that does not run has its state only."""
    usage = JobUsage(job.spec.name, str(job.state))
    look, last = now.runs.get(job.spec.name), before.runs.get(job.spec.name)
    if look is None:
        return usage
    if last is not None and (last.run != look.run or last.sample.at >= look.sample.at):
        last = None
    first = last.sample if last else None
    sample, limits = look.sample, look.limits
    usage.run = look.run
    usage.seconds = round(sample.at - first.at, 6) if first else None
    usage.cpu = cpu_usage(first, sample, limits, cpus)
    usage.memory = memory_usage(sample, limits)
    tasks = sample.pids
    share = percent(tasks, limits.pids)
    usage.pids = TasksUsage(tasks, limits.pids, share, sample.slow.refused)
    usage.io = io_usage(first, sample)
    usage.pressure = {str(key): pressure_usage(one) for key, one in sample.pressure.items()}
    usage.disk = look.disk
    if look.processes is not None:
        old = last.processes if last and last.processes is not None else {}
        usage.processes = process_usage(old, look.processes)
        usage.processes_left_out = look.left_out
    run = job.running
    if run is not None and run.id == look.run:
        usage.attempt, usage.started_at = run.attempt, iso(run.started_at)
    return usage
