"""The v2 files behind a run's numbers.  For this package only; twin of `meter_v1`."""

from __future__ import annotations

from collections.abc import Sequence

from supervisor.cgroup.meter import Open, Table
from supervisor.cgroup.sample import IoCount, Slow

_PARTS = (b"kernel_stack", b"pagetables", b"percpu", b"slab")
"""What memory.stat's `kernel` is made of, for kernels before 5.18 that have no such line."""


class Memory:
    """memory.*; `file` of memory.stat has tmpfs and shared memory in it, as v1's `cache`."""

    def __init__(self, directory: str, often: Open, has: frozenset[str]) -> None:
        self.usage = often(f"{directory}/memory.current")
        keys = (b"anon", b"file", b"shmem", b"kernel", *_PARTS)
        self._stat = Table(often(f"{directory}/memory.stat"), *keys)
        self._events = Table(often(f"{directory}/memory.events"), b"oom_kill", b"oom_group_kill")
        swap = "memory.swap.current"
        self._swap = often(f"{directory}/{swap}") if swap in has else None

    def add(self, slow: Slow) -> None:
        slow.anon, file, slow.shmem, kernel, *parts = self._stat.read()
        slow.file = None if file is None else file - (slow.shmem or 0)
        slow.kernel = sum(part or 0 for part in parts) if kernel is None else kernel
        slow.swap = int(self._swap.read()) if self._swap else None

    def kills(self) -> int | None:
        kills, groups = (value or 0 for value in self._events.read())
        # as in `v2.Memory`: a group kill counts its first victim once more
        return max(kills - groups, min(kills, 1))


class Account:
    """cpu.stat: a core file; of the quota it tells where the controller is v2's (`quota`)."""

    def __init__(self, directory: str, often: Open, *, quota: bool) -> None:
        keys = (b"usage_usec", b"user_usec", b"system_usec")
        periods = (b"nr_periods", b"nr_throttled", b"throttled_usec")
        self._table = Table(often(f"{directory}/cpu.stat"), *keys, *(periods if quota else ()))
        self._periods: Sequence[int | None] = ()

    def read(self) -> tuple[int | None, int | None, int | None]:
        used, user, system, *periods = self._table.read()
        self._periods = periods
        return used, user, system

    def add(self, slow: Slow) -> None:
        """What the last `read` has found."""
        if self._periods:
            slow.periods, slow.throttled_periods, slow.throttled = self._periods


class Io:
    """io.stat: "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6" for each disk."""

    def __init__(self, directory: str, rarely: Open) -> None:
        self._stat = rarely(f"{directory}/io.stat")

    def read(self) -> IoCount:
        found = {b"rbytes": 0, b"wbytes": 0, b"rios": 0, b"wios": 0}
        for word in self._stat.read().split():
            key, _, value = word.partition(b"=")
            if key in found:
                found[key] += int(value)
        return IoCount(found[b"rbytes"], found[b"wbytes"], found[b"rios"], found[b"wios"])
