"""The v1 controllers: Documentation/admin-guide/cgroup-v1 of the kernel.

For this package only.  Twin of `v2`: the same parts, other files.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable

from supervisor.cgroup import files
from supervisor.cgroup.api import Notification, Reading
from supervisor.cgroup.parts import (
    EVEN_WEIGHT,
    PAGE,
    PERIOD,
    MemoryCounts,
    by_device,
    expect,
    make_idle,
    quota_and_period,
    rates,
)
from supervisor.errors import KernelError, LimitError, SupervisorError
from supervisor.model.limits import IoLimit

FREEZE_PATIENCE = 0.05
"""Seconds that `freeze` waits for the kernel to be done; it goes on by itself after that."""

_NEAR = 64 * PAGE
"""A peak this close to its limit has reached it: what one charge may ask (MEMCG_CHARGE_BATCH)."""


class Memory:
    """memory.*; swap is what memory.memsw allows beyond memory.

    `ancestors` are the directories above the run's, whose limits may strike it too.
    """

    def __init__(
        self, directory: str, path: str, has: frozenset[str], ancestors: Iterable[str]
    ) -> None:
        self._path = path
        self._control = f"{directory}/cgroup.event_control"
        self._limit = f"{directory}/memory.limit_in_bytes"
        self._total = f"{directory}/memory.memsw.limit_in_bytes"
        self._swappiness = f"{directory}/memory.swappiness"
        self._oom = f"{directory}/memory.oom_control"
        self._usage = f"{directory}/memory.usage_in_bytes"
        self._peak = f"{directory}/memory.max_usage_in_bytes"
        self._kinds = (
            ("memory.", "memory.memsw.") if "memory.memsw.failcnt" in has else ("memory.",)
        )
        self._own = [f"{directory}/{kind}" for kind in self._kinds]
        self._above = [f"{above}/{kind}" for above in ancestors for kind in self._kinds]
        self._above_before = [files.number(f"{one}failcnt") for one in self._above]
        self._reached_before = False
        self._swap: int | None = None
        self.others_frozen = False
        """Whether those of the payload who do not sleep at the limit were frozen meanwhile."""

    def set(self, memory: int | None, swap: int | None, swappiness: int | None) -> list[Reading]:
        readings = []
        self._swap = swap
        if memory is not None:
            readings += self._place(memory)
        if swappiness is not None:
            reading = files.write_back(self._swappiness, str(swappiness))
            expect("swappiness", reading, swappiness, int(reading.text))
            readings.append(reading)
        return readings

    def _place(self, memory: int) -> list[Reading]:
        """Write both limits in the order that keeps limit <= memsw.limit at every moment."""
        if self._swap is None:
            return [self._write("memory", self._limit, memory)]
        if memory <= files.number(self._total):
            first = self._write("memory", self._limit, memory)
            return [first, self._write("swap", self._total, memory + self._swap)]
        second = self._write("swap", self._total, memory + self._swap)
        return [self._write("memory", self._limit, memory), second]

    def _write(self, limit: str, path: str, value: int) -> Reading:
        hint = "more than that is in use and could not be reclaimed"
        reading = files.write_back(path, str(value), hint=hint)
        expect(limit, reading, value, int(reading.text), PAGE)
        return reading

    def set_soft(self, high: int | None, low: int | None) -> list[Reading]:
        """memory.soft_limit_in_bytes is no twin of either: it guides reclaim on the host alone."""
        for limit, value in (("memory_high", high), ("memory_low", low)):
            if value is not None:
                raise LimitError([f"{limit}: v1 has no such limit"])
        return []

    def change_high(self, to: int | None) -> int | None:
        raise LimitError(["memory_high: v1 has no such limit"])

    def change_low(self, to: int | None) -> int | None:
        raise LimitError(["memory_low: v1 has no such limit"])

    def change_memory(self, to: int | None, *, force: bool = False) -> int | None:
        """The kernel reclaims what it can first; nobody is killed for it, whatever `force` says."""
        self._remember()
        paths = (self._limit, self._total) if self._swap is not None else (self._limit,)
        before = [(path, files.read(path)) for path in paths]
        try:
            if to is None:
                self._lift()
                return None
            self._place(to)
        except SupervisorError:
            for path, text in before:  # one of the two may have been written
                files.write(path, text)
            raise
        return files.number(self._limit)

    def _lift(self) -> None:
        """memory.memsw first: it is never less than the other."""
        if "memory.memsw." in self._kinds:
            files.write(self._total, "-1")
        files.write(self._limit, "-1")
        self._swap = None

    def _remember(self) -> None:
        """What the peak says of a limit is lost once the limit has moved."""
        self._reached_before = self._reached_before or _reached(self._own)

    def change_swap(self, to: int | None) -> int | None:
        self._remember()
        if to is None:
            files.write(self._total, "-1")
            self._swap = None
            return None
        memory = files.number(self._limit)
        if memory >= files.UNLIMITED:
            raise LimitError(["swap: v1 limits memory and swap together, and memory has no limit"])
        self._write("swap", self._total, memory + to)
        self._swap = to
        return files.number(self._total) - memory

    def hold(self, hold: bool) -> None:
        files.write(self._oom, "1" if hold else "0")

    def asleep(self) -> bool:
        """Whether tasks sleep at the limit."""
        control = files.table(self._oom)
        return control.get("oom_kill_disable", 0) > 0 and control.get("under_oom", 0) > 0

    def holds(self) -> bool:
        return self.others_frozen and self.asleep()

    def release(self) -> bool:
        """The kernel itself wakes who sleeps at the limit; not so those that were frozen."""
        frozen, self.others_frozen = self.others_frozen, False
        return frozen

    def counts(self) -> MemoryCounts:
        control = files.table(self._oom)
        kills = control.get("oom_kill", 0)
        # who slept may have been woken, by memory that another gave back, and be frozen since
        asleep = control.get("under_oom", 0) > 0 or self.others_frozen
        hits = self._failures()
        if not hits and (kills or asleep):
            hits = int(self._struck())
        return MemoryCounts(limit_hits=hits, oom=None, oom_kills=kills, high=0, under_oom=asleep)

    def _failures(self) -> int:
        return sum(files.number(f"{one}failcnt") for one in self._own)

    def _struck(self) -> bool:
        """Whether the own limit was ever reached, where failcnt does not tell.

        Since kernels of 2025 (`track_failcnt` in mm/page_counter.c) memory.memsw.failcnt stays 0;
        with no swap allowed that is the limit which strikes, and memory.failcnt stays 0 too.
        """
        return self._reached_before or _reached(self._own)

    def usage(self) -> tuple[int, int | None]:
        return files.number(self._usage), files.number(self._peak)

    def evidence(self) -> list[Reading]:
        hits = (f"{one}failcnt" for one in self._own)
        paths = (self._limit, self._peak, *hits, self._oom)
        return [Reading(path, files.read(path)) for path in paths]

    def foreign_oom(self) -> bool | None:
        """A limit that strikes has a failed charge or a peak to show, the own or one above.

        Reclaim that succeeds leaves the same traces, so where both show them it stays open.
        """
        if not files.table(self._oom).get("oom_kill", 0):
            return False
        if not self._failures() and not self._struck():
            return True
        failures = [files.number(f"{one}failcnt") for one in self._above]
        totals = [one for one in self._above if one.endswith(".memsw.")]
        return False if failures == self._above_before and not _reached(totals) else None

    def notifications(self) -> list[Notification]:
        return [
            Notification("eventfd", self._oom, self._control),
            Notification("kmsg", self._path),
        ]


def _reached(prefixes: Iterable[str]) -> bool:
    """Whether the highest use under one of "DIRECTORY/memory." came up to its limit."""
    return any(
        files.number(f"{one}limit_in_bytes") - files.number(f"{one}max_usage_in_bytes") < _NEAR
        for one in prefixes
    )


class Cpu:
    """cpu.cfs_quota_us, cpu.cfs_period_us, cpu.shares; 1024 shares are weight 100.

    Shares count among siblings: the runs compete by those of RUN, not of the payload below it.
    """

    def __init__(self, directory: str) -> None:
        self._run = os.path.dirname(directory)
        self._quota = f"{directory}/cpu.cfs_quota_us"
        self._period = f"{directory}/cpu.cfs_period_us"
        self._shares = f"{self._run}/cpu.shares"
        self._stat = f"{directory}/cpu.stat"
        self._period_now = PERIOD

    def set(self, cpus: float | None, weight: int | None) -> list[Reading]:
        readings = []
        if cpus is not None:
            readings += self._bandwidth(cpus)
        if weight is not None:
            shares = max(2, weight * 1024 // 100)
            reading = files.write_back(self._shares, str(shares))
            expect("cpu_weight", reading, shares, int(reading.text))
            readings.append(reading)
        return readings

    def _bandwidth(self, cpus: float) -> list[Reading]:
        quota, period = quota_and_period(cpus)
        readings = []
        if period != self._period_now:
            # without a quota, no ratio between the two writes can offend the parent's
            files.write(self._quota, "-1")
            readings.append(files.write_back(self._period, str(period)))
            expect("cpus", readings[-1], period, int(readings[-1].text))
            self._period_now = period
        hint = "a quota above this one is lower"
        readings.append(files.write_back(self._quota, str(quota), hint=hint))
        expect("cpus", readings[-1], quota, int(readings[-1].text))
        return readings

    def set_idle(self) -> Reading:
        return make_idle(self._run)

    def change_cpus(self, to: float | None) -> float | None:
        if to is None:
            files.write(self._quota, "-1")
            return None
        return int(self._bandwidth(to)[-1].text) / self._period_now

    def change_weight(self, to: int | None) -> int | None:
        now = round(int(self.set(None, to or EVEN_WEIGHT)[0].text) * 100 / 1024)
        return now if to else None

    def throttled(self) -> float | None:
        return files.table(self._stat).get("throttled_time", 0) / 1e9


class Account:
    """cpuacct.usage and its halves, in nanoseconds; the halves since kernel 4.7."""

    def __init__(self, directory: str, has: frozenset[str]) -> None:
        self._all = f"{directory}/cpuacct.usage"
        self._halves = (
            [f"{directory}/cpuacct.usage_user", f"{directory}/cpuacct.usage_sys"]
            if "cpuacct.usage_user" in has
            else []
        )

    def usage(self) -> tuple[float, float | None, float | None]:
        user, system = [files.number(path) / 1e9 for path in self._halves] or (None, None)
        return files.number(self._all) / 1e9, user, system


class Cpuset:
    """cpuset.cpus; a directory is of use only once both its files are filled: see `inherit`."""

    def __init__(self, directory: str) -> None:
        self._cpus = f"{directory}/cpuset.cpus"

    @staticmethod
    def inherit(directory: str) -> None:
        """Copy cpus and mems from the parent: a new directory has none and takes no task."""
        for name in ("cpuset.cpus", "cpuset.mems"):
            files.write(f"{directory}/{name}", files.read(f"{os.path.dirname(directory)}/{name}"))

    def set(self, cpus: str) -> list[Reading]:
        reading = files.write_back(self._cpus, cpus, hint="these CPUs are not all at hand here")
        if files.number_set(reading.text) != files.number_set(cpus):
            raise LimitError([f"cpuset: {self._cpus} holds {reading.text!r}, not {cpus!r}"])
        return [reading]


class Io:
    """blkio.throttle.*: reads, direct writes, and cached writes that the job waits for (fsync).

    What the kernel writes back later by itself is charged to nobody.
    """

    def __init__(self, directory: str, has: frozenset[str]) -> None:
        self._directory = directory
        bytes_file = "blkio.throttle.io_service_bytes"
        if f"{bytes_file}_recursive" in has:
            bytes_file += "_recursive"
        self._bytes = f"{directory}/{bytes_file}"
        self._throttled: set[tuple[str, str]] = set()

    def set(self, limits: Iterable[IoLimit]) -> list[Reading]:
        wanted = {
            (device, name): value
            for device, limit in by_device(limits).items()
            for name, value in rates(limit)
        }
        readings = []
        for (device, name), value in wanted.items():
            reading = files.write_back(self._path(name), f"{device} {value}")
            self._throttled.add((device, name))
            expect("io", reading, value, files.parse_table(reading.text).get(device, 0))
            readings.append(reading)
        for device, name in sorted(self._throttled - set(wanted)):
            files.write(self._path(name), f"{device} 0")
            self._throttled.discard((device, name))
        return readings

    def _path(self, rate: str) -> str:
        return f"{self._directory}/blkio.throttle.{rate}_device"

    def usage(self) -> tuple[int, int]:
        read = written = 0
        for line in files.read(self._bytes).split("\n"):
            device, _, rest = line.partition(" ")
            kind, _, value = rest.partition(" ")
            if kind == "Read" and device != "Total":
                read += int(value)
            elif kind == "Write":
                written += int(value)
        return read, written


class Freezer:
    """freezer.state; a frozen task takes no signal, SIGKILL included, until it is thawed."""

    def __init__(self, directory: str) -> None:
        self._state = f"{directory}/freezer.state"

    def begin(self) -> None:
        files.write(self._state, "FROZEN")

    def freeze(self) -> None:
        self.begin()
        # reading is what makes the kernel look again whether all tasks have stopped
        files.until(lambda: files.read(self._state) == "FROZEN", FREEZE_PATIENCE)

    def thaw(self) -> None:
        files.write(self._state, "THAWED")


def kill_each(list_pids: Callable[[], tuple[int, ...]]) -> bool:
    """SIGKILL to every process listed, none other; whether there was any.

    Between a listing and a signal a number may pass to a stranger: each process is pinned by a
    pidfd first, and signalled only if it is listed still.
    """
    pinned: dict[int, int] = {}
    try:
        for pid in list_pids():
            try:
                pinned[pid] = os.pidfd_open(pid)
            except ProcessLookupError:
                continue  # it has ended since
            except OSError as error:
                raise KernelError("pidfd_open", str(pid), error.errno or 0) from error
        for pid in set(list_pids()) & pinned.keys() if pinned else ():
            try:
                signal.pidfd_send_signal(pinned[pid], signal.SIGKILL)
            except ProcessLookupError:
                continue
            except OSError as error:
                raise KernelError("kill", str(pid), error.errno or 0) from error
    finally:
        for fd in pinned.values():
            os.close(fd)
    return bool(pinned)
