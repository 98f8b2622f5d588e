"""What one controller can do for one run, v1 and v2 alike: the seam between the twins.

A run is put together from parts, so a host with memory on v1 and cpu on v2 needs no code of its
own.  For this package only; `v1` and `v2` implement these, `manager` composes them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from typing import Protocol

from attrs import frozen

from supervisor.cgroup import files
from supervisor.cgroup.api import Notification, Reading
from supervisor.errors import KernelError, LimitError
from supervisor.model.limits import IoLimit

PAGE = os.sysconf("SC_PAGE_SIZE")
PERIOD = 100_000
"""cpu.cfs_period_us: the kernel's default, 100 ms."""
LONG_PERIOD = 1_000_000
"""The longest the kernel takes: for less than a hundredth of a CPU."""
LEAST_QUOTA = 1_000
"""Microseconds; the kernel refuses less (kernel/sched/core.c, min_cfs_quota_period)."""
LEAST_CPUS = LEAST_QUOTA / LONG_PERIOD


@frozen
class MemoryCounts:
    """The memory half of `api.Counters`; the fields are described there."""

    limit_hits: int
    oom: int | None
    oom_kills: int
    high: int
    under_oom: bool


class MemoryPart(Protocol):
    def set(
        self, memory: int | None, swap: int | None, swappiness: int | None
    ) -> list[Reading]: ...
    def set_soft(self, high: int | None, low: int | None) -> list[Reading]:
        """Bytes above which the payload is slowed down, and up to which it is left alone."""

    def change_memory(self, to: int | None, *, force: bool = False) -> int | None:
        """EBUSY, and nothing has changed, where more is in use; with `force` v2 kills for it."""

    def change_high(self, to: int | None) -> int | None: ...
    def change_low(self, to: int | None) -> int | None: ...
    def change_swap(self, to: int | None) -> int | None: ...
    def hold(self, hold: bool) -> None: ...
    def holds(self) -> bool:
        """Whether part of the payload is frozen because it is held at its limit."""

    def release(self) -> bool:
        """Note that the payload is to be let go; whether any of it was frozen for the hold."""

    def counts(self) -> MemoryCounts: ...
    def usage(self) -> tuple[int, int | None]:
        """Bytes now, and at most so far."""

    def evidence(self) -> list[Reading]: ...
    def foreign_oom(self) -> bool | None: ...
    def notifications(self) -> list[Notification]: ...


class CpuPart(Protocol):
    def set(self, cpus: float | None, weight: int | None) -> list[Reading]: ...
    def set_idle(self) -> Reading: ...
    def change_cpus(self, to: float | None) -> float | None: ...
    def change_weight(self, to: int | None) -> int | None: ...
    def throttled(self) -> float | None:
        """Seconds."""


class AccountPart(Protocol):
    def usage(self) -> tuple[float, float | None, float | None]:
        """Seconds of CPU: all, user, system."""


class CpusetPart(Protocol):
    def set(self, cpus: str) -> list[Reading]: ...


class IoPart(Protocol):
    def set(self, limits: Iterable[IoLimit]) -> list[Reading]:
        """Throttle these; what an earlier call throttled, and this one does not, is set free."""

    def usage(self) -> tuple[int, int]:
        """Bytes read and written."""


class Pids:
    """The pids controller; its files are the same in v1 and v2."""

    def __init__(self, directory: str, has: frozenset[str]) -> None:
        self._limit = f"{directory}/pids.max"
        self._current = f"{directory}/pids.current"
        self._peak = f"{directory}/pids.peak" if "pids.peak" in has else None
        self.events = f"{directory}/pids.events"

    def set(self, limit: int) -> Reading:
        reading = files.write_back(self._limit, str(limit))
        expect("pids", reading, limit, int(reading.text))
        return reading

    def change(self, to: int | None) -> int | None:
        if to is None:
            files.write(self._limit, "max")
            return None
        return int(self.set(to).text)

    def refused(self) -> int:
        return files.table(self.events).get("max", 0)

    def usage(self) -> tuple[int, int | None]:
        """Tasks now, and at most so far (pids.peak: since kernel 6.1)."""
        return files.number(self._current), files.number(self._peak) if self._peak else None

    def evidence(self) -> list[Reading]:
        return [Reading(path, files.read(path)) for path in (self._limit, self.events)]


def expect(limit: str, reading: Reading, wanted: int, got: int, rounding: int = 1) -> None:
    """Raise LimitError unless the kernel holds what was written, rounded down by < `rounding`."""
    if not wanted - rounding < got <= wanted:
        raise LimitError(
            [f"{limit}: {reading.path} holds {reading.text!r} after {wanted} was written"]
        )


def make_idle(directory: str) -> Reading:
    """SCHED_IDLE for the whole cgroup: cpu.idle, the same in v1 and v2, since kernel 5.15."""
    reading = files.write_back(f"{directory}/cpu.idle", "1")
    expect("cpu_idle", reading, 1, int(reading.text))
    return reading


def quota_and_period(cpus: float) -> tuple[int, int]:
    """Microseconds of CPU time, per microseconds of wall time, for so many CPUs."""
    period = PERIOD if cpus * PERIOD >= LEAST_QUOTA else LONG_PERIOD
    return max(LEAST_QUOTA, round(cpus * period)), period


EVEN_WEIGHT = 100
"""What a run has that asks for no `cpu_weight`."""

RATES = ("read_bps", "write_bps", "read_iops", "write_iops")


def rates(limit: IoLimit) -> Iterator[tuple[str, int]]:
    """The rates that are set, by name."""
    for name in RATES:
        value = getattr(limit, name)
        if value is not None:
            yield name, value


def by_device(limits: Iterable[IoLimit]) -> dict[str, IoLimit]:
    """ "MAJOR:MINOR" → its limits; of two paths on one device the lower rate holds.

    Raises KernelError or LimitError where a path has no block device.
    """
    found: dict[str, IoLimit] = {}
    for limit in limits:
        device = block_device(limit.path)
        present = found.setdefault(device, limit)
        lower = {name: min(value, getattr(present, name) or value) for name, value in rates(limit)}
        found[device] = IoLimit(limit.path, **{**dict(rates(present)), **lower})
    return found


def block_device(path: str, sys: str = "/sys") -> str:
    """ "MAJOR:MINOR" of the whole disk that holds `path`, or that `path` is.

    Throttles stand on whole disks: a partition's is its disk's (/sys/dev/block/M:N/partition).
    Raises KernelError when there is no such path, LimitError when its file system has no block
    device of its own (overlay, tmpfs, network, and btrfs, whose device numbers are anonymous).
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise KernelError("stat", path, error.errno or 0) from error
    device = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
    major, minor = os.major(device), os.minor(device)
    if major == 0:
        raise LimitError(
            [f"io: {path} is on a file system without a block device of its own"],
            hint='name the disk itself, as in path = "/dev/sda"',
        )
    link = f"{sys}/dev/block/{major}:{minor}"
    if os.path.exists(f"{link}/partition"):
        return files.read(f"{os.path.realpath(link)}/../dev")
    return f"{major}:{minor}"
