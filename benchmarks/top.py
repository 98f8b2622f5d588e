"""What one reading of many jobs costs the supervisor: `python -m benchmarks.top`.

A cgroup for each job is made, with limits on memory, CPU and processes, and in it one process that
sleeps.  Read are all numbers that `supervise top` shows, by the code that it is done by; told is
CPU time of the reading process alone, user and system, median over the rounds:

    first   nothing is open yet, nothing is known
    idle    no job has done anything since the last reading
    active  between two readings each process was woken, took memory and gave some back
    answer  of the last reading: percentages, as JSON, for one client

Where the kernel counts CPU time in ticks (User-Mode Linux does, of 10 ms) a reading is over before
the next one; told is the time that passed then, and the output says so.

    python -m benchmarks.top --jobs 1000 --rounds 9

Needs root.  What it makes is removed again: cgroups named supervise.bench-top.PID, and processes
that are its children.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any, cast

import trio
from attrs import define

from supervisor.cgroup import meter
from supervisor.cgroup.api import CgroupManager, Entry, JobCgroup
from supervisor.cgroup.detect import detect
from supervisor.control.fields import encoded
from supervisor.model.job import JobSpec
from supervisor.model.limits import Limits
from supervisor.model.state import State
from supervisor.supervise import stats
from supervisor.supervise.stats import Sampler, report
from supervisor.supervise.surroundings import raise_open_files

LIMITS = Limits(memory=64 << 20, pids=16, cpus=0.5)
COARSE = 1e-4
"""Seconds: a clock that steps by more tells nothing of a reading of a few jobs."""
TOUCHED = 40_000
"""Bytes that a process takes each time it is woken; it keeps the last three such."""


@define(eq=False)
class BenchRun:
    """As much of `supervise.run.Run` as a look needs."""

    id: str
    cgroup: JobCgroup
    limits: Limits = LIMITS
    disk: None = None
    attempt: int = 1
    started_at: float = 0.0


@define(eq=False)
class BenchJob:
    """The same of `supervise.job.Job`."""

    spec: JobSpec
    running: BenchRun
    state: State = State.RUNNING


class Sleepers:
    """A process in each cgroup that does a little whenever it is told to."""

    def __init__(self) -> None:
        self._pids: list[int] = []
        self._told, self._tell = os.pipe2(os.O_CLOEXEC)

    def add(self, entry: Entry) -> None:
        pid = os.fork()
        if not pid:
            try:
                self._live(entry)
            finally:
                os._exit(1)
        self._pids.append(pid)

    def _live(self, entry: Entry) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        unified = (f"{entry.payload_dir}/cgroup.procs",) if entry.payload_dir else ()
        for path in (*entry.payload_files, *unified):
            with open(path, "w") as file:  # noqa: PTH123
                file.write("0")
        kept: list[bytearray] = []
        while True:
            os.write(self._tell, b".")
            signal.sigwait({signal.SIGUSR1})
            kept = [*kept[-2:], bytearray(TOUCHED)]

    def wait(self) -> None:
        """Until each has told that it sleeps again."""
        left = len(self._pids)
        while left:
            left -= len(os.read(self._told, left))

    def wake(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGUSR1)
        self.wait()

    def end(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(self._told)
        os.close(self._tell)


@contextmanager
def populated(count: int) -> Iterator[tuple[dict[str, BenchJob], Sleepers]]:
    """So many jobs, with a process each; all of it is gone at the end."""
    manager: CgroupManager = detect(f"bench-top.{os.getpid()}")
    jobs: dict[str, BenchJob] = {}
    sleepers = Sleepers()
    try:
        for number in range(count):
            name = f"job{number:05}"
            cgroup = manager.create(name)
            jobs[name] = BenchJob(JobSpec(name, ("sleep",)), BenchRun(name, cgroup))
            cgroup.apply(LIMITS)
            sleepers.add(cgroup.entry)
        sleepers.wait()
        yield jobs, sleepers
    finally:
        sleepers.end()
        for job in jobs.values():
            job.running.cgroup.remove()
        manager.close()


@define(frozen=True)
class Watch:
    """Tells how long something takes, in seconds of this process's CPU time if that can be told."""

    now: Callable[[], float]
    unit: str

    @classmethod
    def best(cls) -> Watch:
        """CPU time; the time that passes where the CPU's clock steps too widely."""
        began = time.process_time()
        while (after := time.process_time()) == began:
            pass
        if after - began > COARSE:
            return cls(time.perf_counter, f"ms that passed (CPU ticks: {1000 * (after - began):g})")
        return cls(time.process_time, "ms of CPU")


@define
class Costs:
    """Milliseconds by what `unit` says, and descriptors that were kept."""

    unit: str
    first: float
    idle: float
    active: float
    answer: float
    kept: int


async def measure(count: int, rounds: int, say: Callable[[str], None]) -> Costs:
    """All of it, `rounds` times."""
    with populated(count) as (jobs, sleepers):
        say(f"{count} cgroups with a sleeping process each")
        bench = Bench(jobs)
        before = len(os.listdir("/proc/self/fd"))
        with bench.sampler.watching():
            first = await bench.look()
            say("waiting until nothing is about to be written down late")
            await bench.look()
            await trio.sleep(meter.SETTLED + stats.FRESH)
            await bench.look()
            idle = [await bench.look() for _ in range(rounds)]
            active = [await bench.look(sleepers.wake) for _ in range(rounds)]
            kept = len(os.listdir("/proc/self/fd")) - before
        middle = median(idle), median(active)
        return Costs(bench.watch.unit, first, *middle, bench.answer(), kept)


class Bench:
    """Looks at jobs, and tells the milliseconds that took."""

    def __init__(self, jobs: Mapping[str, BenchJob]) -> None:
        self._jobs = jobs
        self.watch = Watch.best()
        self.sampler = Sampler(cast(Mapping[str, Any], jobs))
        self._before = self._now = stats.NOTHING

    async def look(self, change: Callable[[], None] = lambda: None) -> float:
        """After `change`; not the last look once more, which would be shared."""
        await trio.sleep(stats.FRESH)
        change()
        began = self.watch.now()
        self._before, self._now = self._now, await self.sampler.look()
        took = self.watch.now() - began
        assert len(self._now.runs) == len(self._jobs), self._now.problems[:3]
        return 1000 * took

    def answer(self) -> float:
        """The last two looks compared, as JSON."""
        began = self.watch.now()
        for job in self._jobs.values():
            encoded(report(cast(Any, job), self._before, self._now, self.sampler.cpus))
        return 1000 * (self.watch.now() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="the numbers alone")
    args = parser.parse_args()
    raise_open_files()
    say = (lambda _text: None) if args.json else (lambda text: print(text, file=sys.stderr))
    costs = trio.run(measure, args.jobs, args.rounds, say)
    if args.json:
        from attrs import asdict

        print(json.dumps(asdict(costs)))
        return 0
    print(f"Linux {platform.release()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    for name in ("first", "idle", "active", "answer"):
        print(f"{name:8} {getattr(costs, name):7.1f} {costs.unit}")
    print(f"{costs.kept} descriptors kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
