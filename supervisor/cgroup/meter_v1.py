"""The v1 files behind a run's numbers.  For this package only; twin of `meter_v2`."""

from __future__ import annotations

from supervisor.cgroup.kept import File
from supervisor.cgroup.meter import Open, Table
from supervisor.cgroup.sample import IoCount, Slow


class Memory:
    """memory.*; `total_*` counts cgroups that the job has made below its own, too."""

    def __init__(self, directory: str, often: Open, _has: frozenset[str]) -> None:
        self.usage = often(f"{directory}/memory.usage_in_bytes")
        keys = (b"total_rss", b"total_cache", b"total_shmem", b"total_swap")
        self._stat = Table(often(f"{directory}/memory.stat"), *keys)
        self._control = Table(often(f"{directory}/memory.oom_control"), b"oom_kill")

    def add(self, slow: Slow) -> None:
        slow.anon, cache, slow.shmem, slow.swap = self._stat.read()
        slow.file = None if cache is None else cache - (slow.shmem or 0)

    def kills(self) -> int | None:
        return self._control.read()[0]


class Cpu:
    """cpu.stat: how often the quota was used up."""

    def __init__(self, directory: str, often: Open) -> None:
        keys = (b"nr_periods", b"nr_throttled", b"throttled_time")
        self._table = Table(often(f"{directory}/cpu.stat"), *keys)

    def add(self, slow: Slow) -> None:
        slow.periods, slow.throttled_periods, nanoseconds = self._table.read()
        slow.throttled = None if nanoseconds is None else nanoseconds // 1000


class Account:
    """cpuacct.usage and its halves, in nanoseconds; the halves since kernel 4.7."""

    def __init__(self, directory: str, often: Open, has: frozenset[str]) -> None:
        self._all = often(f"{directory}/cpuacct.usage")
        halves = ("cpuacct.usage_user", "cpuacct.usage_sys")
        self._halves = [often(f"{directory}/{name}") for name in halves if name in has]

    def read(self) -> tuple[int | None, int | None, int | None]:
        user, system = [int(file.read()) // 1000 for file in self._halves] or (None, None)
        return int(self._all.read()) // 1000, user, system


SERVICED = ("blkio.throttle.io_service_bytes", "blkio.throttle.io_serviced")


def io_names(has: frozenset[str]) -> tuple[str, ...]:
    """The files that count bytes and operations; with all cgroups below, where there are such."""
    return tuple(f"{name}_recursive" if f"{name}_recursive" in has else name for name in SERVICED)


class Io:
    """blkio.throttle.io_*: "8:0 Read 4096" for each disk and kind, "Total 4096" at the end."""

    def __init__(self, directory: str, rarely: Open, has: frozenset[str]) -> None:
        size, count = io_names(has)
        self._size = rarely(f"{directory}/{size}")
        self._count = rarely(f"{directory}/{count}")

    def read(self) -> IoCount:
        return IoCount(*_both(self._size), *_both(self._count))


def _both(file: File) -> tuple[int, int]:
    """Of reads and writes."""
    read = written = 0
    words = file.read().split()
    for place in range(1, len(words) - 1):
        if words[place] == b"Read":
            read += int(words[place + 1])
        elif words[place] == b"Write":
            written += int(words[place + 1])
    return read, written
