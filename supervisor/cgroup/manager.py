"""The instance's cgroup and its runs', put together from whatever hierarchies `detect` found.

For this package only.  One class for v1, hybrid, v2 and none: what differs stands in the parts.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from supervisor.cgroup import delegate, devices, files, psi, rehearsal, v1, v2
from supervisor.cgroup.api import DeviceRule, Missing, Rehearsed, Version
from supervisor.cgroup.detect import CONTROLLERS, Found, Hierarchy
from supervisor.cgroup.job import Job
from supervisor.cgroup.meter import RunMeter
from supervisor.cgroup.metering import Metering
from supervisor.cgroup.parts import LEAST_CPUS, block_device, rates
from supervisor.cgroup.tree import Tree
from supervisor.errors import KernelError, LimitError
from supervisor.model.job import Resource
from supervisor.model.limits import Limits

_SPARE = "run."
_NEEDS = {"memory": "memory", "memory_high": "memory", "memory_low": "memory",
          "swap": "memory", "swappiness": "memory", "pids": "pids", "cpus": "cpu",
          "cpu_weight": "cpu", "cpu_idle": "cpu", "cpuset": "cpuset", "io": "io"}  # fmt: skip


BOOT_V2 = "boot with systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all"


class Layer:
    """One hierarchy in use, and the instance's directory in it."""

    def __init__(self, hierarchy: Hierarchy, instance: str) -> None:
        self.hierarchy = hierarchy
        self.controllers = hierarchy.controllers
        self.unified = hierarchy.unified
        self.nested = bool(self.unified and self.controllers)
        """v2 proper: controllers stand on leaves only, and init needs one of its own."""
        self.directory = f"{hierarchy.base}/supervise.{instance}"
        self.path = f"{hierarchy.path}/supervise.{instance}"
        self.offers: frozenset[str] = frozenset()
        """The files of a payload's directory; known once the first has been made."""
        self.enabled: frozenset[str] = frozenset()
        self.above: list[str] = []

    def _find_above(self) -> list[str]:
        """The instance's directory and all above it, up to the mount, that have limits."""
        directory, found = self.directory, [self.directory]
        while directory != self.hierarchy.mount:
            directory = os.path.dirname(directory)
            found.append(directory)
        probe = "memory.events" if self.unified else "memory.failcnt"
        return [above for above in found if files.exists(f"{above}/{probe}")]

    def make(self, directory: str) -> None:
        files.make(directory, hint="an earlier supervisor of this name may have left it")
        if "cpuset" in self.controllers and not self.unified:
            v1.Cpuset.inherit(directory)

    def open(self) -> None:
        """Make the instance's directory; it may be there from an earlier supervisor."""
        if not files.exists(self.directory):
            self.make(self.directory)
        if self.nested:
            delegate.enable(self.directory, self.enabled)
        if "memory" in self.controllers:
            self.above = self._find_above()

    def make_run(self, name: str) -> None:
        run = f"{self.directory}/{name}"
        self.make(run)
        if self.nested:
            delegate.enable(run, self.enabled)
            files.make(f"{run}/init")
        self.make(f"{run}/payload")
        if not self.offers:
            self.offers = files.offered(f"{run}/payload")


class Manager:
    """See `api.CgroupManager`."""

    def __init__(self, instance: str, found: Found) -> None:
        self._found = found
        self._instance = instance
        layers = [Layer(hierarchy, instance) for hierarchy in found.hierarchies]
        self.unified = next((layer for layer in layers if layer.unified), None)
        self.layers = [layer for layer in layers if self._always(layer)]
        self.layers.sort(key=lambda layer: "memory" not in layer.controllers)
        self._cpuset = next((layer for layer in layers if "cpuset" in layer.controllers), None)
        self.devices = self._devices_of(layers)
        self._step: delegate.Step | None = None
        self.psi = psi.Psi(self.unified.hierarchy.base if self.unified else None, found.proc)
        self.proc = found.proc
        self._metering: Metering | None = None
        self._open = False
        self._spares: list[str] = []
        self._made = 0
        self._mine: set[str] = set()

    def _devices_of(self, layers: list[Layer]) -> devices.Devices:
        """A devices controller where it has a hierarchy to itself, else a program, else nothing.

        One that shares its hierarchy would tear the runs' limits apart: a task is in one cgroup
        of a hierarchy.
        """
        for layer in layers:
            if layer.controllers == {"devices"}:
                return devices.Lists(layer.directory)
        return devices.Programs() if self.unified else devices.Absent()

    def _always(self, layer: Layer) -> bool:
        """Whether every run has a directory there."""
        wanted = {"memory", "pids", "cpu", "io"}
        if self.unified is None:
            wanted |= {"cpuacct", "freezer"}
        elif not self._freezes():
            wanted |= {"freezer"}
        return layer.unified or bool(layer.controllers & wanted)

    def _freezes(self) -> bool:
        """cgroup.freeze is there since kernel 5.2; the hierarchy's root has no such file."""
        place = self.unified.hierarchy.place if self.unified else None
        if place and not place.root:
            return os.path.exists(f"{place.directory}/cgroup.freeze")
        return tuple(int(part) for part in os.uname().release.split(".")[:2]) >= (5, 2)

    @property
    def version(self) -> Version:
        if not self._found.hierarchies:
            return "none"
        if not any(not layer.unified for layer in self.layers):
            return "v2"
        return "hybrid" if self.unified else "v1"

    @property
    def controllers(self) -> frozenset[str]:
        found = frozenset().union(*(h.controllers for h in self._found.hierarchies))
        limiting = found & frozenset(CONTROLLERS)
        return limiting | {"freezer"} if self.unified or "freezer" in found else limiting

    def describe(self) -> Sequence[str]:
        lines = []
        for layer in self._all_layers():
            place = layer.hierarchy.place
            kind = "cgroup2" if layer.unified else "cgroup v1"
            names = " ".join(sorted(layer.controllers)) or "no controllers, for kill and freeze"
            lines.append(
                f"{kind} on {layer.hierarchy.mount}: {names}; runs go to {layer.directory}"
            )
            if place and place.moves and layer.nested:
                who = "we, and those who wait for us," if place.parents else "our own processes"
                lines.append(f"{who} will step down to {place.directory}/{self._leaf}")
        for name, obstacle in self._found.obstacles.items():
            lines.append(f"no {name}: {obstacle.why} ({obstacle.fix})")
        return lines

    @property
    def _leaf(self) -> str:
        return f"supervise.{self._instance}.self"

    def layer(self, controller: str) -> Layer | None:
        """The hierarchy in use that has a controller."""
        return next((one for one in self.layers if controller in one.controllers), None)

    def missing(self, limits: Limits) -> tuple[Missing, ...]:
        found = []
        for limit, controller in _NEEDS.items():
            value = getattr(limits, limit)
            if value is None or value is False or value == ():
                continue
            obstacle = self._found.obstacles.get(controller)
            if obstacle:
                found.append(Missing(limit, obstacle.why, obstacle.fix))
            else:
                found += self._lacking(limit, limits)
        return tuple(found)

    def _lacking(self, limit: str, limits: Limits) -> list[Missing]:
        """What lacks although the controller is there."""
        if limit in ("swap", "swappiness"):
            return self._lacking_swap(limit, limits)
        if limit in ("memory_high", "memory_low"):
            return self._lacking_soft(limit, limits)
        if limit == "cpu_idle" and not self._has("cpu", "cpu.idle", "cpu.idle"):
            return [Missing(limit, "the kernel has no cpu.idle", "Linux 5.15, or cpu_weight = 1")]
        if limit == "cpus" and limits.cpus is not None and limits.cpus < LEAST_CPUS:
            return [Missing(limit, f"the kernel grants no less than {LEAST_CPUS} CPUs", "ask more")]
        if limit == "cpus" and not self.has_quota:
            why = "the kernel was built without CONFIG_CFS_BANDWIDTH"
            return [Missing(limit, why, "use cpu_weight")]
        if limit == "io":
            return self._lacking_io(limits)
        return []

    def _lacking_soft(self, limit: str, limits: Limits) -> list[Missing]:
        layer = self.layer("memory")
        if layer is None or not layer.unified:
            return [Missing(limit, f"v1 has no {limit.replace('_', '.')}", BOOT_V2)]
        if limit == "memory_low" and limits.memory_low is not None:
            return v2.unprotected(layer.hierarchy.base, layer.hierarchy.mount, limits.memory_low)
        return []

    def _lacking_swap(self, limit: str, limits: Limits) -> list[Missing]:
        layer = self.layer("memory")
        if limit == "swappiness":
            if layer and layer.unified:
                return [Missing(limit, "v2 has no memory.swappiness", "limit swap instead")]
            return []
        if not self._has("memory", "memory.memsw.limit_in_bytes", "memory.swap.max"):
            return [Missing(limit, "the kernel does not account swap", "boot with swapaccount=1")]
        if layer and not layer.unified and limits.memory is None:
            return [Missing(limit, "v1 limits swap only together with memory", "set memory too")]
        return []

    def _lacking_io(self, limits: Limits) -> list[Missing]:
        if not self._has("io", "blkio.throttle.read_bps_device", "io.max"):
            fix = "a kernel with CONFIG_BLK_DEV_THROTTLING"
            return [Missing("io", "the kernel was built without I/O throttling", fix)]
        found = []
        for limit in limits.io:
            try:
                block_device(limit.path)
            except LimitError as error:
                found.append(Missing("io", error.missing[0].removeprefix("io: "), error.hint))
            except KernelError as error:
                found.append(Missing("io", error.message, "name an existing path"))
            found += [
                Missing("io", f"{name} of {value} is no rate", "at least 1")
                for name, value in rates(limit)
                if value < 1
            ]
        return found

    @property
    def has_quota(self) -> bool:
        """Whether the kernel can bound CPU time (CONFIG_CFS_BANDWIDTH)."""
        return self._has("cpu", "cpu.cfs_quota_us", "cpu.max")

    def _has(self, controller: str, v1_file: str, v2_file: str) -> bool:
        """Whether a payload's cgroup has that file; v2's root has not what its children have."""
        layer = self.layer(controller)
        if layer is None:
            return False
        name = v2_file if layer.unified else v1_file
        if layer.offers:
            return name in layer.offers
        place = layer.hierarchy.place
        if place and (place.root or not os.path.exists(f"{place.directory}/cgroup.type")):
            return True
        return os.path.exists(f"{layer.hierarchy.base}/{name}")

    def missing_pressure(self, resources: Iterable[Resource]) -> tuple[Missing, ...]:
        memory = self.layer("memory")
        v1 = memory is not None and not memory.unified
        v1_tells = v1 and self._has("memory", "memory.pressure_level", "")
        lacking = [self.psi.missing(resource) for resource in resources]
        return tuple(
            one for one in lacking if one and not (one.limit == "pressure.memory" and v1_tells)
        )

    def missing_devices(self) -> Missing | None:
        return self.devices.missing()

    def prepare(self, count: int) -> None:
        self._ensure_open()
        while len(self._spares) < count:
            name = self._spare_name()
            self._make(name)
            self._spares.append(name)

    def _spare_name(self) -> str:
        """One that no earlier supervisor of our pid has left."""
        while True:
            self._made += 1
            name = f"{_SPARE}{os.getpid()}.{self._made}"
            if not any(os.path.isdir(f"{layer.directory}/{name}") for layer in self.layers):
                return name

    def create(self, run: str, *, kill_whole_on_oom: bool = True) -> Job:
        self._ensure_open()
        if self._spares:
            name = self._spares.pop()
        else:
            name = run
            self._make(name)
        self._mine.add(name)
        job = Job(self, name)
        if kill_whole_on_oom:
            job.kill_whole_on_oom()
        return job

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
        with rehearsal.rehearse() as noted:
            # another manager: this one has its directories open, and must not believe in more
            job = Manager(self._instance, self._found).create(
                run, kill_whole_on_oom=kill_whole_on_oom
            )
            job.apply(limits)
            if devices is not None:
                job.confine(devices)
            if hold:
                job.hold_at_limit(True)
            sources = tuple(job.pressure(*one) for one in (pressure or {}).items())
            return Rehearsed(job.entry, tuple(noted.lines), job.notifications, sources)

    def _make(self, name: str) -> None:
        """The directories of a run in every hierarchy, or in none."""
        made: list[str] = []
        try:
            for layer in self.layers:
                # what is there already is not ours to undo
                layer.make_run(name)
                made.append(f"{layer.directory}/{name}")
        except KernelError as error:
            if error.errno != errno.EEXIST and len(made) < len(self.layers):
                made.append(f"{self.layers[len(made)].directory}/{name}")
            Tree(made, None, None).try_remove()
            raise

    def _ensure_open(self) -> None:
        if self._open:
            return
        with self._locked():
            for layer in self.layers:
                self._enable(layer, layer.controllers - {"cpuset"})
                layer.open()
        self._open = True

    def _locked(self) -> AbstractContextManager[None]:
        """The place to ourselves, where controllers are enabled."""
        nested = self.unified if self.unified and self.unified.nested else None
        place = nested.hierarchy.place if nested else None
        return delegate.locked(place) if place else nullcontext()

    def _enable(self, layer: Layer, wanted: frozenset[str]) -> None:
        """On v2, make controllers available below the place; no more than are needed."""
        place = layer.hierarchy.place
        if not layer.nested or place is None:
            return
        if self._step is None:
            self._step = delegate.Step(place, self._leaf, self._found.proc)
        self._step.enable(wanted)
        layer.enabled |= wanted

    def need_cpuset(self, name: str) -> str | None:
        """Give a run a cpuset; its RUN directory, where the hierarchy is not in use otherwise."""
        layer = self._cpuset
        if layer is None:
            return None
        if layer.nested:
            with self._locked():
                self._enable(layer, frozenset({"cpuset"}))
                layer.open()
            delegate.enable(f"{layer.directory}/{name}", layer.enabled)
        if layer in self.layers:
            return None
        layer.open()
        layer.make_run(name)
        return f"{layer.directory}/{name}"

    @property
    def cpuset(self) -> Layer | None:
        return self._cpuset

    def account(self, name: str) -> v1.Account | v2.Account | None:
        """Who tells of CPU time: the unified cpu.stat counts even where the controller is v1's."""
        if self.unified:
            return v2.Account(f"{self.unified.directory}/{name}/payload")
        layer = self.layer("cpuacct")
        return v1.Account(f"{layer.directory}/{name}/payload", layer.offers) if layer else None

    def meter(self, name: str) -> RunMeter:
        """Not made before it is asked for: our limit of descriptors is raised after we are made."""
        self._metering = self._metering or Metering(self)
        return self._metering.meter(name)

    def tree(self, name: str, *, in_use: bool = False) -> Tree:
        """The directories of a run; a leftover's (not `in_use`) may have a cpuset's too."""
        layers = self.layers if in_use else self._all_layers()
        freezer = self.layer("freezer")
        return Tree(
            [f"{layer.directory}/{name}" for layer in layers],
            f"{self.unified.directory}/{name}" if self.unified else None,
            f"{freezer.directory}/{name}" if freezer else None,
        )

    def _all_layers(self) -> list[Layer]:
        lone = self._cpuset if self._cpuset not in self.layers else None
        return [*self.layers, lone] if lone else self.layers

    def forget(self, name: str) -> None:
        """A run's directories are gone."""
        self._mine.discard(name)

    def _names(self) -> list[str]:
        """Directories in the instance's, in any hierarchy, that this manager has not made."""
        found: set[str] = set()
        for layer in self._all_layers():
            if os.path.isdir(layer.directory):
                found.update(files.names(layer.directory))
        return sorted(found - self._mine - set(self._spares))

    def leftovers(self) -> tuple[str, ...]:
        return tuple(
            name
            for name in self._names()
            if not name.startswith(_SPARE) or self.tree(name).populated()
        )

    def remove_leftovers(self) -> tuple[str, ...]:
        left = self.leftovers()
        for name in self._names():
            self.tree(name).remove()
        return left

    def close(self) -> None:
        for name in self._spares:
            self.tree(name).remove()
        self._spares.clear()
        with self._locked():
            for layer in self._all_layers():
                files.remove(layer.directory)
            self.devices.close()
            if self._step:
                self._step.undo()
                self._step = None
        self._open = False
