"""The cgroup of one run.  For this package only; `api.JobCgroup` says what each method does."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from supervisor.cgroup import psi, v1, v2
from supervisor.cgroup import share as shares
from supervisor.cgroup.api import (
    Changeable,
    Counters,
    DeviceRule,
    Entry,
    Notification,
    PressureSource,
    Reading,
    Share,
    Usage,
)
from supervisor.cgroup.meter import RunMeter
from supervisor.cgroup.parts import (
    AccountPart,
    CpuPart,
    CpusetPart,
    IoPart,
    MemoryCounts,
    MemoryPart,
    Pids,
)
from supervisor.errors import KernelError, LimitError
from supervisor.model.job import Resource
from supervisor.model.limits import IoLimit, Limits

if TYPE_CHECKING:
    from supervisor.cgroup.manager import Layer, Manager

_NO_COUNTS = MemoryCounts(limit_hits=0, oom=None, oom_kills=0, high=0, under_oom=False)


class Job:
    """The parts of one run, each over its directory."""

    def __init__(self, manager: Manager, name: str) -> None:
        self._manager = manager
        self._name = name
        self._tree = manager.tree(name, in_use=True)
        self._memory = self._memory_part()
        self._pids = self._pids_part()
        self._cpu = self._cpu_part()
        self._io = self._io_part()
        self._account: AccountPart | None = manager.account(name)
        self._lists: tuple[str, ...] = ()
        self._stopped = False
        self._at_wire = False
        self._deciding = threading.Lock()  # `try_hold` runs in a thread of its own

    def _payload(self, layer: Layer) -> str:
        return f"{layer.directory}/{self._name}/payload"

    def _kernel_path(self, layer: Layer) -> str:
        return f"{layer.path}/{self._name}/payload"

    def _memory_part(self) -> MemoryPart | None:
        layer = self._manager.layer("memory")
        if layer is None:
            return None
        kind = v2.Memory if layer.unified else v1.Memory
        path = self._kernel_path(layer)
        return kind(self._payload(layer), path, layer.offers, layer.above)

    def _pids_part(self) -> Pids | None:
        layer = self._manager.layer("pids")
        return Pids(self._payload(layer), layer.offers) if layer else None

    def _cpu_part(self) -> CpuPart | None:
        layer = self._manager.layer("cpu")
        if layer is None:
            return None
        return (v2.Cpu if layer.unified else v1.Cpu)(self._payload(layer))

    def _io_part(self) -> IoPart | None:
        layer = self._manager.layer("io")
        if layer is None:
            return None
        if layer.unified:
            return v2.Io(self._payload(layer))
        return v1.Io(self._payload(layer), layer.offers)

    def kill_whole_on_oom(self) -> None:
        if isinstance(self._memory, v2.Memory):
            self._memory.kill_whole()

    @property
    def name(self) -> str:
        return self._name

    @property
    def path(self) -> str:
        layer = self._manager.layer("memory") or next(iter(self._manager.layers), None)
        return self._payload(layer) if layer else ""

    @property
    def entry(self) -> Entry:
        unified = self._tree.unified
        old = [run for run in self._tree.runs if run != unified]
        nested = self._manager.unified is not None and self._manager.unified.nested
        return Entry(
            init_files=tuple(f"{run}/tasks" for run in old),
            payload_files=(*(f"{run}/payload/tasks" for run in old), *self._lists),
            init_dir=(f"{unified}/init" if nested else unified),
            payload_dir=f"{unified}/payload" if unified else None,
        )

    @property
    def notifications(self) -> tuple[Notification, ...]:
        found = self._memory.notifications() if self._memory else []
        pids = self._manager.layer("pids")
        if self._pids and pids:
            if pids.unified:
                found.append(Notification("inotify", self._pids.events))
            else:
                found.append(Notification("kmsg", self._kernel_path(pids)))
        if self._tree.unified:
            found.append(Notification("inotify", f"{self._tree.unified}/cgroup.events"))
        return tuple(dict.fromkeys(found))

    def apply(self, limits: Limits) -> tuple[Reading, ...]:
        missing = self._manager.missing(limits)
        if missing:
            raise LimitError([f"{one.limit}: {one.why} ({one.fix})" for one in missing])
        readings: list[Reading] = []
        if self._memory:
            readings += self._memory.set(limits.memory, limits.swap, limits.swappiness)
            readings += self._memory.set_soft(limits.memory_high, limits.memory_low)
        if self._pids and limits.pids is not None:
            readings.append(self._pids.set(limits.pids))
        if self._cpu:
            readings += self._cpu.set(limits.cpus, limits.cpu_weight)
            if limits.cpu_idle:
                readings.append(self._cpu.set_idle())
        if limits.cpuset is not None:
            readings += self._cpuset_part().set(limits.cpuset)
        if self._io:
            readings += self._io.set(limits.io)
        return tuple(readings)

    def confine(self, devices: Iterable[DeviceRule]) -> None:
        payload = f"{self._tree.unified}/payload" if self._tree.unified else None
        self._lists = self._manager.devices.confine(payload, tuple(devices))

    def _cpuset_part(self) -> CpusetPart:
        """Its directories are made only now: few jobs ask for CPUs by number."""
        layer = self._manager.cpuset
        assert layer is not None, "missing() has told of it"
        run = self._manager.need_cpuset(self._name)
        if run and run not in self._tree.runs:
            self._tree.runs.append(run)
        return (v2.Cpuset if layer.unified else v1.Cpuset)(self._payload(layer))

    def change(self, limit: Changeable, to: float | None, *, force: bool = False) -> float | None:
        whole = None if to is None else int(to)
        if limit == "pids" and self._pids:
            return self._pids.change(whole)
        if limit == "cpus" and self._cpu:
            return self._cpu.change_cpus(to)
        if limit == "cpu_weight" and self._cpu:
            return self._cpu.change_weight(whole)
        if limit in ("memory", "memory_high", "memory_low", "swap") and self._memory:
            return self._change_memory(self._memory, limit, whole, force=force)
        raise LimitError([f"{limit}: this host has no controller for it"])

    def _change_memory(
        self, memory: MemoryPart, limit: Changeable, to: int | None, *, force: bool
    ) -> int | None:
        if limit == "memory_high":
            return memory.change_high(to)
        if limit == "memory_low":
            return memory.change_low(to)
        with self._deciding:
            swap = limit == "swap"
            now = memory.change_swap(to) if swap else memory.change_memory(to, force=force)
            self._let_go()
        return now

    def change_io(self, limits: Iterable[IoLimit]) -> tuple[Reading, ...]:
        if self._io is None:
            raise LimitError(["io: this host has no controller for it"])
        return tuple(self._io.set(limits))

    def hold_at_limit(self, hold: bool) -> None:
        if self._memory is None:
            raise KernelError("hold at the memory limit", None, errno.EOPNOTSUPP)
        with self._deciding:
            self._memory.hold(hold)
            if not hold:
                self._let_go()

    def _let_go(self) -> None:
        """v1 wakes who sleeps by itself; what was frozen, there or at v2's trip wire, is thawed."""
        if self._memory and self._memory.release() and not self._stopped:
            self._tree.thaw()

    def try_hold(self) -> bool:
        memory = self._memory
        if not isinstance(memory, v2.Memory):
            return False
        if not self._at_wire and not self._short_of_memory(memory):
            return False
        self._at_wire = True  # after a failure on the way the next call goes on from here
        self._tree.freeze()
        memory.reclaim()
        with self._deciding:
            held = memory.hold_now()
            if not held and not self._stopped:
                self._tree.thaw()
        self._at_wire = False
        return held

    def hold_others(self) -> None:
        with self._deciding:
            memory = self._memory
            if isinstance(memory, v1.Memory) and memory.asleep():
                memory.others_frozen = self._tree.begin_to_freeze()

    @staticmethod
    def _short_of_memory(memory: v2.Memory) -> bool:
        """As far as can be told while it runs; a job that reads files is not, and not stopped."""
        if not memory.beyond_wire():
            return False
        memory.reclaim()
        return memory.beyond_wire()

    def counters(self) -> Counters:
        memory = self._memory.counts() if self._memory else _NO_COUNTS
        return Counters(
            limit_hits=memory.limit_hits,
            oom=memory.oom,
            oom_kills=memory.oom_kills,
            high=memory.high,
            refused=self._pids.refused() if self._pids else 0,
            under_oom=memory.under_oom,
        )

    def usage(self) -> Usage:
        cpu, user, system = self._account.usage() if self._account else (None, None, None)
        memory, peak = self._memory.usage() if self._memory else (None, None)
        pids, most = self._pids.usage() if self._pids else (None, None)
        read, written = self._io.usage() if self._io else (None, None)
        throttled = self._cpu.throttled() if self._cpu else None
        return Usage(cpu, user, system, throttled, memory, peak, pids, most, read, written)

    def share(self) -> Share:
        memory, cpu, io = (self._place(name) for name in ("memory", "cpu", "io"))
        has = shares.memory(memory) if memory else shares.Memory()
        used, user, system = self._account.usage() if self._account else (0.0, None, None)
        if user is None or system is None:
            user, system = used, 0.0
        return Share(
            memory_limit=has.limit,
            swap_limit=has.swap_limit,
            memory=has.used,
            swap=has.swap,
            pages=has.pages,
            cpus=shares.cpus(cpu) if cpu and self._manager.has_quota else None,
            cpu_user=user,
            cpu_system=system,
            throttled=(self._cpu.throttled() if self._cpu else None) or 0.0,
            tasks=self._pids.usage()[0] if self._pids else None,
            traffic=shares.traffic(io) if io else {},
        )

    def _place(self, controller: str) -> shares.Place | None:
        layer = self._manager.layer(controller)
        if layer is None:
            return None
        return shares.place(self._payload(layer), layer.hierarchy.mount, unified=layer.unified)

    def meter(self) -> RunMeter:
        return self._manager.meter(self._name)

    def pressure(self, resource: Resource, share: float) -> PressureSource:
        if self._manager.psi.lacks(resource):
            return psi.level(share, self.path)
        return psi.trigger(resource, share, f"{self._tree.unified}/payload")

    def stalled(self, resource: Resource) -> tuple[float | None, float | None]:
        if self._manager.psi.lacks(resource):
            self.usage()  # which fails where the cgroup is gone: v1's alarms go off for that too
            return None, None
        return psi.stalled(f"{self._tree.unified}/payload/{resource}.pressure")

    def evidence(self) -> tuple[Reading, ...]:
        memory = self._memory.evidence() if self._memory else []
        return (*memory, *(self._pids.evidence() if self._pids else ()))

    def foreign_oom(self) -> bool | None:
        return self._memory.foreign_oom() if self._memory else None

    def pids(self) -> tuple[int, ...]:
        return self._tree.pids()

    def populated(self) -> bool:
        return self._tree.populated()

    def kill(self) -> None:
        self._tree.kill()

    def freeze(self) -> None:
        with self._deciding:
            self._stopped = True
            self._tree.freeze()

    def thaw(self) -> None:
        with self._deciding:
            self._stopped = False
            if self._memory and self._memory.holds():
                return
            if self._memory:
                self._memory.release()
            self._tree.thaw()

    def try_remove(self) -> bool:
        gone = self._tree.try_remove()
        if gone:
            self._gone()
        return gone

    def remove(self) -> None:
        self._tree.remove()
        self._gone()

    def _gone(self) -> None:
        self._manager.forget(self._name)
        if isinstance(self._memory, v2.Memory):
            self._memory.give_back()
