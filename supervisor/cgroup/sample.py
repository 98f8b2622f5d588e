"""What one look at a run's cgroup finds, and the interface of who looks.

Counters are the kernel's own and only grow: times in microseconds, sizes in bytes; None where this
host cannot tell.  The classes are not frozen for the sake of speed (a frozen one takes six times as
long to make); nobody changes them.

May import: `model`, attrs.
"""

from __future__ import annotations

from typing import Protocol

from attrs import define

from supervisor.model.job import Resource


@define
class Slow:
    """What is read only when something has happened; see `meter`.

    periods            of the CPU quota in which the payload was active   cpu.stat nr_periods
    throttled_periods  those in which it used the quota up                cpu.stat nr_throttled
    throttled          for how long its tasks were stopped then           cpu.stat throttled_*
    anon, shmem        memory of processes, and of tmpfs and shared memory     memory.stat
    file               page cache with a file behind it: what can be reclaimed    memory.stat
    kernel             the kernel's own for the job            (v1: None) | memory.stat
    swap               bytes swapped out                    memory.stat | memory.swap.current
    oom_kills, refused processes killed, forks refused      as in `api.Counters`
    """

    periods: int | None = None
    throttled_periods: int | None = None
    throttled: int | None = None
    anon: int | None = None
    file: int | None = None
    shmem: int | None = None
    kernel: int | None = None
    swap: int | None = None
    oom_kills: int | None = None
    refused: int | None = None


@define
class IoCount:
    """Bytes and operations of block devices, all together   blkio.throttle.io_* | io.stat"""

    read_bytes: int
    write_bytes: int
    reads: int
    writes: int


@define
class Stall:
    """One file of pressure (PSI): the share of ten seconds in percent, and the time in all, that
    some tasks, or all of them, stood still.

    `full` is None where the kernel has no such line (cpu before 5.13).
    """

    some_avg10: float
    some_total: int
    full_avg10: float | None
    full_total: int | None


@define
class Sample:
    """One look.  `at` is of the monotonic clock, in seconds, when the CPU time was read."""

    at: float
    cpu: int | None
    cpu_user: int | None
    cpu_system: int | None
    memory: int | None
    pids: int | None
    slow: Slow
    io: IoCount | None
    pressure: dict[Resource, Stall]


class Meter(Protocol):
    """Looks at one run, again and again; may keep descriptors open between two looks."""

    def read(self) -> Sample:
        """Raises KernelError (ENOENT, ENODEV: the cgroup is gone)."""

    def close(self) -> None:
        """Let go of the descriptors; a later `read` opens them again."""
