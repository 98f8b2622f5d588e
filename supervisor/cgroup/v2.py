"""The v2 controllers and the core files: Documentation/admin-guide/cgroup-v2.rst of the kernel.

For this package only.  Twin of `v1`: the same parts, other files.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterable

from supervisor.cgroup import files
from supervisor.cgroup.api import Missing, Notification, Reading
from supervisor.cgroup.parts import (
    EVEN_WEIGHT,
    PAGE,
    RATES,
    MemoryCounts,
    by_device,
    expect,
    make_idle,
    quota_and_period,
    rates,
)
from supervisor.cgroup.v1 import FREEZE_PATIENCE
from supervisor.errors import KernelError, LimitError
from supervisor.model.limits import IoLimit

_IO_KEYS = {"read_bps": "rbps", "write_bps": "wbps", "read_iops": "riops", "write_iops": "wiops"}


HEADROOM = 4.0
"""Seconds; see `trip_wire`."""


def trip_wire(limit: int) -> int:
    """Where memory.high stands below a memory.max of `limit` bytes, so that a job can be held.

    A task that has taken 64 pages while it is above by r of memory.high sleeps for 64 r^2 seconds
    (mm/memcontrol.c, calculate_high_delay), since kernel 5.18 inside of a system call too.  So n
    such steps take a time that grows with n^3: the headroom is what one task needs HEADROOM
    seconds for, which is how long whoever watches may take to hold it and to decide.
    """
    step = 64 * PAGE
    headroom = round(math.cbrt(HEADROOM * 3 / 64 * step * limit * limit))
    return (limit - min(headroom, limit // 2)) // PAGE * PAGE


def unprotected(base: str, mount: str, low: int) -> list[Missing]:
    """What keeps `low` bytes below the cgroup `base` from being protected, up to the mount.

    The kernel's root has no memory.low, and grants all ("effective low boundary" in
    cgroup-v2.rst).
    """
    below = base.removeprefix(mount)
    above = [mount + below[:end] for end, char in enumerate(below + "/") if char == "/"]
    return [
        Missing("memory_low", f"{path} is less, and bounds what is below", "raise it: MemoryLow=")
        for path in (f"{directory}/memory.low" for directory in dict.fromkeys(above))
        if files.exists(path) and files.number(path) < low
    ]


def _grant(run: str, low: int) -> None:
    """Protect the instance's cgroup as far as its runs ask for, this one asking for `low` bytes.

    No further: on a mount with memory_recursiveprot what nobody claims is shared by all.
    """
    instance, name = os.path.split(run)
    total = low
    for other in files.names(instance) if os.path.isdir(instance) else ():
        path = f"{instance}/{other}/memory.low"
        if other != name and files.exists(path):
            total += files.number(path)
    files.write(f"{instance}/memory.low", str(total) if total < files.UNLIMITED else "max")


class Memory:
    """memory.*; `group`: at an OOM kill the kernel takes the whole payload (memory.oom.group).

    `ancestors` are the directories above the run's, whose limits may strike it too.
    """

    def __init__(
        self, directory: str, path: str, has: frozenset[str], ancestors: Iterable[str]
    ) -> None:
        self._path = path
        self._limit = f"{directory}/memory.max"
        self._swap = f"{directory}/memory.swap.max"
        self._high = f"{directory}/memory.high"
        self._directory = directory
        self._group = f"{directory}/memory.oom.group"
        self._usage = f"{directory}/memory.current"
        self._peak = f"{directory}/memory.peak" if "memory.peak" in has else None
        self._all = f"{directory}/memory.events"
        # since kernel 5.2; what a cgroup has that is not made yet (a rehearsal) is not known
        local = "memory.events.local"
        local = local if local in has or not has else "memory.events"
        self._own = f"{directory}/{local}"
        self._above = [f"{above}/{local}" for above in ancestors]
        self._above_before = self._above_ooms()
        self._protected = False
        self._wanted_high: int | None = None
        self._wire: int | None = None
        self._held = False

    def kill_whole(self) -> None:
        files.write(self._group, "1")

    def set(self, memory: int | None, swap: int | None, swappiness: int | None) -> list[Reading]:
        if swappiness is not None:
            raise LimitError(["swappiness: v2 has no such limit"])
        readings = []
        if memory is not None:
            readings.append(self._write("memory", self._limit, memory))
        if swap is not None:
            readings.append(self._write("swap", self._swap, swap))
        return readings

    def set_soft(self, high: int | None, low: int | None) -> list[Reading]:
        readings = [self._protect(low)] if low is not None else []
        if high is not None:
            self._wanted_high = high
            readings.append(self._write("memory_high", self._high, high))
        return readings

    def _protect(self, low: int) -> Reading:
        """A cgroup is protected only as far as each one above it is: two of those are ours."""
        run = os.path.dirname(self._directory)
        _grant(run, low)
        files.write(f"{run}/memory.low", str(low))
        self._protected = True
        return self._write("memory_low", f"{self._directory}/memory.low", low)

    def give_back(self) -> None:
        """The run's directories are gone: what protected it is not to protect others."""
        if self._protected:
            self._protected = False
            _grant(os.path.dirname(self._directory), 0)

    def change_high(self, to: int | None) -> int | None:
        """The new one; it takes effect below the wire of `hold`, which stays."""
        before, self._wanted_high = self._wanted_high, to
        try:
            self._place_high()
        except KernelError:
            self._wanted_high = before
            raise
        return None if to is None else to // PAGE * PAGE

    def change_low(self, to: int | None) -> int | None:
        reading = self._protect(to or 0)
        return None if to is None else int(reading.text)

    def _place_high(self) -> None:
        """The lower one of what is wanted and the wire; with neither, none."""
        present = [value for value in (self._wanted_high, self._wire) if value is not None]
        files.write(self._high, str(min(present)) if present else "max")

    def _write(self, limit: str, path: str, value: int) -> Reading:
        reading = files.write_back(path, str(value))
        expect(limit, reading, value, files.number(path), PAGE)
        return reading

    def change_memory(self, to: int | None, *, force: bool = False) -> int | None:
        """The new limit; the wire of `hold` moves with it."""
        if to is None:
            files.write(self._limit, "max")
        elif force or to >= files.number(self._usage):
            self._write("memory", self._limit, to)
        else:
            self._lower(to)
        if self._wire is not None:
            self.hold(True)
        return None if to is None else files.number(self._limit)

    def _lower(self, to: int) -> None:
        """Below what is in use the kernel's answer to a write of memory.max is the OOM killer.

        So memory.high goes there first, which reclaims and slows the job down, and never kills.
        """
        try:
            files.write(self._high, str(to))
            used = files.number(self._usage)
            if used > to:
                hint = f"{used} bytes are in use and could not be reclaimed"
                raise KernelError(f"write '{to}' to", self._limit, errno.EBUSY, hint=hint)
            self._write("memory", self._limit, to)
        finally:
            self._place_high()

    def change_swap(self, to: int | None) -> int | None:
        if to is None:
            files.write(self._swap, "max")
            return None
        self._write("swap", self._swap, to)
        return files.number(self._swap)

    def hold(self, hold: bool) -> None:
        limit = files.number(self._limit)
        self._wire = trip_wire(limit) if hold and limit < files.UNLIMITED else None
        self._place_high()

    def beyond_wire(self) -> bool:
        """Whether more is in use than the wire allows, and nobody is held for it yet."""
        return self._wire is not None and not self._held and files.number(self._usage) > self._wire

    def reclaim(self) -> None:
        """Make room below the wire where that can be done; may take as long as swap or disk do.

        Whoever writes memory.high has the kernel reclaim down to it, the CPUs' stocks included,
        and give up where 16 turns in a row find nothing (mm/memcontrol.c, memory_high_write): as
        often as it tries before it calls the OOM killer.
        """
        self._place_high()

    def hold_now(self) -> bool:
        """After `reclaim`, of a frozen payload: held if it still uses more than the wire allows."""
        self._place_high()  # a change of the limit may have come in between
        self._held = self.beyond_wire() or self._held
        return self._held

    def holds(self) -> bool:
        return self._held

    def release(self) -> bool:
        held, self._held = self._held, False
        return held

    def counts(self) -> MemoryCounts:
        own = files.table(self._own)
        return MemoryCounts(
            limit_hits=own.get("max", 0),
            oom=own.get("oom", 0),
            oom_kills=self._kills(),
            high=own.get("high", 0),
            under_oom=self._held,
        )

    def _kills(self) -> int:
        """Processes killed: a group kill counts its first victim once more (mm/oom_kill.c)."""
        events = files.table(self._all)
        kills = events.get("oom_kill", 0)
        return max(kills - events.get("oom_group_kill", 0), min(kills, 1))

    def usage(self) -> tuple[int, int | None]:
        """memory.peak is there since kernel 5.19."""
        return files.number(self._usage), files.number(self._peak) if self._peak else None

    def evidence(self) -> list[Reading]:
        paths = [self._limit, self._all, self._own]
        if self._peak:
            paths.append(self._peak)
        return [Reading(path, files.read(path)) for path in dict.fromkeys(paths)]

    def foreign_oom(self) -> bool | None:
        """`oom` is counted where the limit stands, `oom_kill` where the victim was."""
        if not self._kills():
            return False
        own = files.table(self._own).get("oom", 0)
        if not own:
            return True
        # before 5.2 what happens here is counted above as well
        passed_on = own if self._own == self._all else 0
        before = [count + passed_on for count in self._above_before]
        return False if self._above_ooms() == before else None

    def _above_ooms(self) -> list[int]:
        return [files.table(path).get("oom", 0) for path in self._above]

    def notifications(self) -> list[Notification]:
        return [Notification("inotify", self._own), Notification("kmsg", self._path)]


class Cpu:
    """cpu.max, and cpu.weight, which counts among siblings: RUN's, not the payload's below it."""

    def __init__(self, directory: str) -> None:
        self._run = os.path.dirname(directory)
        self._max = f"{directory}/cpu.max"
        self._weight = f"{self._run}/cpu.weight"
        self._stat = f"{directory}/cpu.stat"

    def set(self, cpus: float | None, weight: int | None) -> list[Reading]:
        readings = []
        if cpus is not None:
            wanted = "{} {}".format(*quota_and_period(cpus))
            readings.append(files.write_back(self._max, wanted))
            if readings[-1].text != wanted:
                raise LimitError([f"cpus: {self._max} holds {readings[-1].text!r}, not {wanted!r}"])
        if weight is not None:
            readings.append(files.write_back(self._weight, str(weight)))
            expect("cpu_weight", readings[-1], weight, int(readings[-1].text))
        return readings

    def set_idle(self) -> Reading:
        return make_idle(self._run)

    def change_cpus(self, to: float | None) -> float | None:
        if to is None:
            files.write(self._max, "max")
            return None
        quota, _, period = self.set(to, None)[0].text.partition(" ")
        return int(quota) / int(period)

    def change_weight(self, to: int | None) -> int | None:
        now = int(self.set(None, to or EVEN_WEIGHT)[0].text)
        return now if to else None

    def throttled(self) -> float | None:
        return files.table(self._stat).get("throttled_usec", 0) / 1e6


class Account:
    """cpu.stat: a core file, there in every unified hierarchy, with or without the controller."""

    def __init__(self, directory: str) -> None:
        self._stat = f"{directory}/cpu.stat"

    def usage(self) -> tuple[float, float | None, float | None]:
        found = files.table(self._stat)
        return found["usage_usec"] / 1e6, found["user_usec"] / 1e6, found["system_usec"] / 1e6


class Cpuset:
    """cpuset.cpus; v2 takes any list, and says in cpuset.cpus.effective what came of it."""

    def __init__(self, directory: str) -> None:
        self._cpus = f"{directory}/cpuset.cpus"
        self._effective = f"{directory}/cpuset.cpus.effective"

    def set(self, cpus: str) -> list[Reading]:
        files.write(self._cpus, cpus, hint="these CPUs are not all at hand here")
        reading = Reading(self._effective, files.read(self._effective))
        if files.number_set(reading.text) != files.number_set(cpus):
            raise LimitError([f"cpuset: {reading.path} says {reading.text!r}, not {cpus!r}"])
        return [reading]


class Io:
    """io.max and io.stat."""

    def __init__(self, directory: str) -> None:
        self._max = f"{directory}/io.max"
        self._stat = f"{directory}/io.stat"
        self._throttled: set[str] = set()

    def set(self, limits: Iterable[IoLimit]) -> list[Reading]:
        readings = []
        found = by_device(limits)
        for device, limit in found.items():
            wanted = {_IO_KEYS[name]: value for name, value in rates(limit)}
            all_of_them = {_IO_KEYS[name]: "max" for name in RATES} | wanted
            pairs = wanted if device not in self._throttled else all_of_them
            self._throttled.add(device)
            text = " ".join(f"{key}={value}" for key, value in pairs.items())
            readings.append(files.write_back(self._max, f"{device} {text}"))
            got = _devices(readings[-1].text).get(device, {})
            for key, value in wanted.items():
                expect("io", readings[-1], value, got.get(key, 0))
        for device in sorted(self._throttled - set(found)):
            text = " ".join(f"{_IO_KEYS[name]}=max" for name in RATES)
            files.write(self._max, f"{device} {text}")
            self._throttled.discard(device)
        return readings

    def usage(self) -> tuple[int, int]:
        devices = _devices(files.read(self._stat)).values()
        return sum(d.get("rbytes", 0) for d in devices), sum(d.get("wbytes", 0) for d in devices)


class Freezer:
    """cgroup.freeze; unlike v1's, a frozen task still dies of SIGKILL."""

    def __init__(self, directory: str) -> None:
        self._freeze = f"{directory}/cgroup.freeze"
        self._events = f"{directory}/cgroup.events"

    def begin(self) -> None:
        files.write(self._freeze, "1")

    def freeze(self) -> None:
        self.begin()
        files.until(lambda: files.table(self._events).get("frozen") == 1, FREEZE_PATIENCE)

    def thaw(self) -> None:
        files.write(self._freeze, "0")


def _devices(text: str) -> dict[str, dict[str, int]]:
    """The "MAJOR:MINOR key=value ..." lines of the io controller."""
    found = {}
    for line in filter(None, text.split("\n")):
        device, *pairs = line.split(" ")
        values = (pair.partition("=") for pair in pairs)
        found[device] = {key: int(value) for key, _, value in values if value.isdigit()}
    return found
