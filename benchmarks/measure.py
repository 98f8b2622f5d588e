"""Many jobs, one after the other or several at a time, and what they cost.

A block of jobs is measured in a process of its own; `spawn` interleaves the blocks.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmarks.accounting import Account

WARM_UP = 3
"""Jobs before those that are measured."""

NOTHING = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


@dataclass(frozen=True)
class Block:
    """`jobs` jobs in `wall` seconds; `latency` (median, start to exit) and `cpu` are per job."""

    jobs: int
    wall: float
    latency: float
    cpu: float

    @property
    def rate(self) -> float:
        """Jobs a second."""
        return self.jobs / self.wall

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def block(latencies: list[float], wall: float, cpu: float) -> Block:
    """Sum up; `cpu` in seconds over all jobs."""
    return Block(len(latencies), wall, median(latencies), cpu / len(latencies))


def own_cpu() -> float:
    """CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def commands(
    argv: Callable[[int, int], list[str]], jobs: int, at_a_time: int, account: Account
) -> Block:
    """Run `argv(job, slot)` for each job; two that run at once have different slots.

    This process's own CPU time is not the tool's.  Raises RuntimeError when a job does not succeed.
    """
    before, start = account.seconds() - own_cpu(), time.perf_counter()
    free = list(range(at_a_time))
    started: dict[int, tuple[int, float]] = {}
    latencies: list[float] = []
    for job in range(jobs):
        if not free:
            latencies.append(_wait(started, free))
        slot, now = free.pop(), time.perf_counter()
        started[_spawn(argv(job, slot))] = slot, now
    while started:
        latencies.append(_wait(started, free))
    wall = time.perf_counter() - start
    return block(latencies, wall, account.seconds() - own_cpu() - before)


def _spawn(argv: list[str]) -> int:
    """posix_spawn: the harness's own cost is that of a small C program, not of a Python fork."""
    quiet = [(os.POSIX_SPAWN_DUP2, NOTHING, 0), (os.POSIX_SPAWN_DUP2, NOTHING, 1)]
    return os.posix_spawnp(argv[0], argv, os.environ, file_actions=quiet)


def _wait(started: dict[int, tuple[int, float]], free: list[int]) -> float:
    """The next command to end: its time from start to exit; its slot is free again."""
    pid, status = os.wait()
    slot, start = started.pop(pid)
    elapsed = time.perf_counter() - start
    free.append(slot)
    if status:
        raise RuntimeError(f"a job ended with wait status {status}")
    return elapsed
