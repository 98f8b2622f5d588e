"""Control groups that are only imagined: for tests of everything that uses `cgroup.api`.

For tests.  It keeps the contract (`tests/unit/test_cgroup_contract.py` runs over it too) and lets
a test play the kernel: `enter`, `leave`, `charge`, `fork`, `vanish`.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import define, evolve, field

from supervisor.cgroup.api import (
    Changeable,
    Counters,
    DeviceRule,
    Entry,
    Missing,
    Notification,
    PressureSource,
    Reading,
    Rehearsed,
    Share,
    Usage,
    Version,
)
from supervisor.cgroup.sample import Sample, Slow
from supervisor.errors import KernelError, LimitError
from supervisor.model.job import Resource
from supervisor.model.limits import IoLimit, Limits

_ROOT = "/fake"
_APPLIED = ("memory", "memory_high", "memory_low", "swap", "swappiness", "pids", "cpus",
            "cpu_weight", "cpu_idle", "cpuset")  # fmt: skip


def _is_set(value: object) -> bool:
    return value is not None and value is not False and value != ()


@define(eq=False)
class FakeJob:
    """A run's cgroup; the processes are just numbers, and `init` is one that `kill` spares."""

    manager: FakeManager
    name: str
    kill_whole_on_oom: bool = True
    limits: Limits = Limits()
    devices: tuple[DeviceRule, ...] | None = None
    members: set[int] = field(factory=set)
    init: int | None = None
    counted: Counters = field(factory=Counters)
    used: Usage = field(factory=lambda: Usage(cpu=0.0, memory=0, memory_peak=0, pids_peak=0))
    foreign: int = 0
    holds: bool = False
    frozen: bool = False
    gone: bool = False

    @property
    def path(self) -> str:
        return f"{_ROOT}/{self.name}/payload"

    @property
    def entry(self) -> Entry:
        return Entry(init_dir=f"{_ROOT}/{self.name}/init", payload_dir=self.path)

    @property
    def notifications(self) -> tuple[Notification, ...]:
        return ()

    def apply(self, limits: Limits) -> tuple[Reading, ...]:
        self._alive()
        missing = self.manager.missing(limits)
        if missing:
            raise LimitError([f"{one.limit}: {one.why} ({one.fix})" for one in missing])
        self.limits = limits
        values = ((name, getattr(limits, name)) for name in _APPLIED)
        return tuple(Reading(f"{self.path}/{k}", str(v)) for k, v in values if _is_set(v))

    def confine(self, devices: Iterable[DeviceRule]) -> None:
        self._alive()
        if self.manager.missing_devices():
            raise KernelError("limit devices", self.path, errno.ENOSYS)
        self.devices = tuple(devices)

    def change(self, limit: Changeable, to: float | None, *, force: bool = False) -> float | None:
        self._alive()
        value: Any = to if limit == "cpus" or to is None else int(to)
        if limit == "memory" and value is not None and value < (self.used.memory or 0):
            if not force:
                raise KernelError("lower", self.path, errno.EBUSY)
            self._kill_for_memory(None)
        self.limits = evolve(self.limits, **{limit: value})
        if limit == "memory":
            self._let_go()
        return to

    def change_io(self, limits: Iterable[IoLimit]) -> tuple[Reading, ...]:
        self._alive()
        self.limits = evolve(self.limits, io=tuple(limits))
        return tuple(Reading(f"{self.path}/io", str(limit)) for limit in self.limits.io)

    def hold_at_limit(self, hold: bool) -> None:
        self._alive()
        self.holds = hold
        if not hold and self.counted.under_oom:
            self._let_go()
            self._kill_for_memory(None)

    def _let_go(self) -> None:
        self.counted = evolve(self.counted, under_oom=False)

    def try_hold(self) -> bool:
        self._alive()
        return self.counted.under_oom

    def hold_others(self) -> None:
        self._alive()

    def counters(self) -> Counters:
        self._alive()
        return self.counted

    def usage(self) -> Usage:
        self._alive()
        return evolve(self.used, pids=len(self.members))

    def share(self) -> Share:
        self._alive()
        return Share(
            memory_limit=self.limits.memory,
            swap_limit=self.limits.swap,
            memory=self.used.memory,
            cpus=self.limits.cpus,
            cpu_user=self.used.cpu or 0.0,
            tasks=len(self.members),
        )

    def meter(self) -> FakeMeter:
        return FakeMeter(self)

    def pressure(self, resource: Resource, share: float) -> PressureSource:
        return PressureSource(resource, "psi", f"{self.path}/{resource}.pressure", f"{share:g}")

    def stalled(self, resource: Resource) -> tuple[float | None, float | None]:
        self._alive()
        return 0.0, 0.0

    def evidence(self) -> tuple[Reading, ...]:
        self._alive()
        text = f"oom_kill {self.counted.oom_kills}"
        return (Reading(f"{self.path}/memory", text), Reading(f"{self.path}/pids", self._refused()))

    def _refused(self) -> str:
        return f"max {self.counted.refused}"

    def foreign_oom(self) -> bool | None:
        self._alive()
        if not self.foreign:
            return False
        return True if self.foreign == self.counted.oom_kills else None

    def pids(self) -> tuple[int, ...]:
        self._alive()
        return tuple(sorted(self.members))

    def populated(self) -> bool:
        self._alive()
        return bool(self.members) or self.init is not None

    def kill(self) -> None:
        self._alive()
        self.members.clear()

    def freeze(self) -> None:
        self._alive()
        self.frozen = True

    def thaw(self) -> None:
        self._alive()
        self.frozen = False

    def try_remove(self) -> bool:
        if self.members or self.init is not None:
            return False
        self.vanish()
        return True

    def remove(self) -> None:
        self.members.clear()
        self.init = None
        self.vanish()

    def _alive(self) -> None:
        if self.gone:
            raise KernelError("read", self.path, errno.ENOENT)

    # What a test does in the kernel's place.

    def enter(self, pid: int) -> None:
        """A process joins the payload."""
        self.members.add(pid)
        most = max(self.used.pids_peak or 0, len(self.members))
        self.used = evolve(self.used, pids_peak=most)

    def leave(self, pid: int) -> None:
        self.members.discard(pid)

    def fork(self, pid: int) -> bool:
        """The payload forks `pid`; refused at the limit."""
        if self.limits.pids is not None and len(self.members) >= self.limits.pids:
            self.counted = evolve(self.counted, refused=self.counted.refused + 1)
            return False
        self.enter(pid)
        return True

    def charge(self, memory: int, pid: int) -> None:
        """`pid` makes the payload use `memory` bytes in all: it may be held or killed for it."""
        limit = self.limits.memory
        if limit is None or memory <= limit:
            peak = max(self.used.memory_peak or 0, memory)
            self.used = evolve(self.used, memory=memory, memory_peak=peak)
            return
        self.used = evolve(self.used, memory=limit, memory_peak=limit)
        self.counted = evolve(self.counted, limit_hits=self.counted.limit_hits + 1)
        if self.holds:
            self.counted = evolve(self.counted, under_oom=True)
        else:
            self._kill_for_memory(pid)

    def kill_by_host(self, pid: int) -> None:
        """An OOM killer other than the job's own limit takes `pid`."""
        self.foreign += 1
        self._kill_for_memory(pid)

    def _kill_for_memory(self, pid: int | None) -> None:
        whole = self.kill_whole_on_oom or pid is None
        taken = set(self.members) if whole else {pid} & self.members
        self.members -= taken
        self.counted = evolve(self.counted, oom_kills=self.counted.oom_kills + 1)

    def vanish(self) -> None:
        """Somebody removes the cgroup."""
        self.gone = True
        self.manager.jobs.pop(self.name, None)


@define(eq=False)
class FakeMeter:
    """Tells what a test has put into the job."""

    job: FakeJob
    closed: bool = False

    def read(self) -> Sample:
        counted, used = self.job.counters(), self.job.usage()
        slow = Slow(oom_kills=counted.oom_kills, refused=counted.refused, anon=used.memory)
        cpu = None if used.cpu is None else int(used.cpu * 1e6)
        return Sample(time.monotonic(), cpu, None, None, used.memory, used.pids, slow, None, {})

    def close(self) -> None:
        self.closed = True


@define(eq=False)
class FakeManager:
    """`lacks`: the limits (configuration keys) that this imagined host cannot enforce."""

    version: Version = "v2"
    lacks: frozenset[str] = frozenset()
    jobs: dict[str, FakeJob] = field(factory=dict)
    left: list[str] = field(factory=list)
    prepared: int = 0
    closed: bool = False

    @property
    def controllers(self) -> frozenset[str]:
        return frozenset({"memory", "pids", "cpu", "cpuset", "io", "freezer"})

    def describe(self) -> Sequence[str]:
        return (f"an imagined {self.version}",)

    def missing(self, limits: Limits) -> tuple[Missing, ...]:
        asked: Iterable[str] = sorted(self.lacks)
        return tuple(
            Missing(name, "imagined to be missing", "imagine it")
            for name in asked
            if "." not in name and _is_set(getattr(limits, name, None))
        )

    def missing_pressure(self, resources: Iterable[Resource]) -> tuple[Missing, ...]:
        asked = [f"pressure.{resource}" for resource in resources]
        return tuple(
            Missing(name, "imagined to be missing", "imagine it")
            for name in asked
            if name in self.lacks
        )

    def missing_devices(self) -> Missing | None:
        if "devices" not in self.lacks:
            return None
        return Missing("devices", "imagined to be missing", "imagine it")

    def prepare(self, count: int) -> None:
        self.prepared = count

    def create(self, run: str, *, kill_whole_on_oom: bool = True) -> FakeJob:
        if run in self.jobs or run in self.left:
            raise KernelError("mkdir", f"{_ROOT}/{run}", errno.EEXIST)
        self.jobs[run] = FakeJob(self, run, kill_whole_on_oom)
        return self.jobs[run]

    def rehearse(
        self,
        run: str,
        limits: Limits,
        *,
        kill_whole_on_oom: bool = True,
        hold: bool = False,
        pressure: Mapping[Resource, float] | None = None,
        devices: Iterable[DeviceRule] | None = None,
    ) -> Rehearsed:
        job = FakeJob(self, run, kill_whole_on_oom)
        lines = [f"mkdir {_ROOT}/{run}", f"mkdir {job.entry.init_dir}", f"mkdir {job.path}"]
        lines += [f"write {one.text} > {one.path}" for one in job.apply(limits)]
        if devices is not None:
            job.confine(devices)
            lines += [f"write {rule.text} > {job.path}/devices" for rule in job.devices or ()]
        if hold:
            lines.append(f"write 1 > {job.path}/hold")
        sources = tuple(job.pressure(*one) for one in (pressure or {}).items())
        return Rehearsed(job.entry, tuple(lines), job.notifications, sources)

    def leftovers(self) -> tuple[str, ...]:
        return tuple(self.left)

    def remove_leftovers(self) -> tuple[str, ...]:
        names, self.left = tuple(self.left), []
        return names

    def close(self) -> None:
        if self.jobs:
            raise KernelError("rmdir", _ROOT, errno.EBUSY)
        self.closed = True
