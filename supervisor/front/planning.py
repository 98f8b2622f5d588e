"""`supervise plan`: what a start would do, from the same values that do it.

The cgroup's lines are a rehearsal of the code that makes it; the container's are the very request
that the launcher would get.  Nothing is started, made or written, and it takes no privilege: what
this user or this host lacks is told first, and the rest is as it would be with it.

May import: everything.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import trio
from attrs import evolve, frozen

from supervisor.cgroup.api import CgroupManager, Notification, PressureSource, Rehearsed
from supervisor.cgroup.detect import detect
from supervisor.container import build, devices, disk, hiding, host, idmaps, mirror, network, pasta
from supervisor.container.launcher import WORK_OPTIONS, skeleton, view_of_host
from supervisor.container.layers import Layers
from supervisor.errors import ConfigError, ImageError, KernelError, LimitError, SpawnError
from supervisor.front import config as configuration
from supervisor.front import doctor_proc, imaging
from supervisor.front.lines import clean
from supervisor.front.up import settings_of
from supervisor.linux import caps
from supervisor.linux import pasta as programs
from supervisor.model.job import JobSpec, Mount
from supervisor.model.limits import Limits
from supervisor.policy import registry
from supervisor.policy.engine import Engine
from supervisor.record.runs import StateDir, safe_name
from supervisor.supervise import idranges, storage
from supervisor.supervise.actions import lifted
from supervisor.supervise.confine import refusals
from supervisor.supervise.hookcall import HookCaller
from supervisor.supervise.instance import Settings
from supervisor.supervise.volumes import Volumes


def plan(path: Path, wanted: str | None) -> Iterator[str]:
    """The lines for the jobs of the file at `path`, or for one (a group's name: its members).

    Raises ConfigError, and KernelError where /proc cannot be read.
    """
    config = configuration.load(path)
    policies = registry.load(
        config.supervisor.plugins, config.policies, config.jobs, where=config.where
    )
    jobs = [job for job in config.jobs if wanted in (None, job.name, job.group)]
    if not jobs:
        names = ", ".join(job.name for job in config.jobs)
        raise ConfigError([f'{path}: no job is called "{wanted}"; there are: {names}'])
    settings = settings_of(config)
    assert settings.state is not None
    manager = detect(settings.name, settings.cgroup_parent)
    private = (str(settings.state.root),)
    facts = host.look(str(settings.runtime / "work"), private, idmaps.IdMounts())
    given = resource.getrlimit(resource.RLIMIT_NOFILE)
    facts = evolve(facts, covered=hiding.coverable(facts), open_files=given)
    planner = _Planner(settings, settings.state, manager, facts, Engine(policies, HookCaller()))
    yield from planner.instance()
    for job in jobs:
        yield ""
        yield f"{job.name}:"
        try:
            job = imaging.resolved(config, job)
        except ImageError as error:
            yield f"# lacking: {clean(str(error))}"
            continue
        yield from (line if line.startswith("#") else f"  {line}" for line in planner.job(job))


@frozen
class _Planner:
    """What every job's plan needs."""

    settings: Settings
    state: StateDir
    manager: CgroupManager
    facts: host.Facts
    engine: Engine

    def instance(self) -> Iterator[str]:
        """What is done once, before the first job."""
        yield from (f"# {line}" for line in self.manager.describe())
        yield ""
        yield f"{self.settings.name} (the instance):"
        yield f"  mkdir -p {self.state.root} {self.state.runs} {self.state.logs}"
        yield f"  open {self.state.events} to append"
        yield f"  mkdir -p -m 0711 {self.settings.runtime}"
        yield f"  lock {self.settings.runtime}/lock"
        bare = self.manager.rehearse("RUN", Limits(), kill_whole_on_oom=False)
        yield from (f"  {line}" for line in bare.lines[: _until_run(bare, "RUN")])
        yield f"  mkdir -m 0711 {self.facts.work}"
        yield from (f"  launcher: {line}" for line in self._launcher())

    def _launcher(self) -> Iterator[str]:
        if os.geteuid() != 0:
            return
        work = self.facts.work
        yield "setsid"
        yield "unshare CLONE_NEWNS, mount --make-rslave /"
        yield f"mount -t tmpfs -o nosuid,{WORK_OPTIONS} supervise {work}"
        yield from (operation.describe() for operation in skeleton(work))
        yield f"mknod {work}/white{{{','.join(hiding.whiteouts())}}} c 0 0"
        for source, target in view_of_host(work, list(self.facts.covered)):
            yield f"mount --bind {source} {target}"
        yield f"drop {len(caps.all_but(caps.JOB_DEFAULT))} capabilities (bounding set)"
        yield "clear ambient capabilities, clear inheritable capabilities"

    def job(self, spec: JobSpec) -> Iterator[str]:
        """One start: what is lacking, the run's directories, its cgroup, then its container."""
        run = f"RUN-{safe_name(spec.name)}"
        prepared = trio.run(self.engine.prepare, spec)
        for answer in prepared.answers:
            told = answer.error or answer.verdict
            if told:
                yield f"# policy {answer.policy} at prepare: {told}"
        missing = self.manager.missing(prepared.spec.limits)
        yield from (f"# lacking: {line}" for line in refusals(missing))
        limits = prepared.spec.limits
        for one in missing:
            limits = lifted(limits, one.limit)
        spec = self._mapped(evolve(prepared.spec, limits=limits))
        spec, volumes = self._with_volumes(spec)
        wants = self.engine.wants("on_memory_limit", spec)
        hold = limits.memory is not None and wants
        pressure = spec.pressure.wanted() if self.engine.wants("on_pressure", spec) else {}
        untold = self.manager.missing_pressure(pressure)
        yield from (f"# lacking: {line}" for line in refusals(untold))
        for one in untold:
            pressure = {key: share for key, share in pressure.items() if not one.of(key)}
        unguarded = self.manager.missing_devices()
        if unguarded and devices.rests_on_cgroup(spec):
            yield from (f"# lacking: {line}" for line in refusals([unguarded]))
        try:
            rehearsed = self.manager.rehearse(
                run,
                limits,
                kill_whole_on_oom=spec.oom == "kill",
                hold=hold,
                pressure=pressure,
                devices=None if unguarded else devices.rules(spec),
            )
        except (LimitError, KernelError, SpawnError) as error:
            yield f"# lacking: {error}"
            return
        yield from self._container_lacks(spec, run, rehearsed)
        yield from volumes
        yield from self._directories(spec, run)
        yield from self._bounded(spec, run)
        yield from rehearsed.lines[_until_run(rehearsed, run) :]
        yield from map(_watch, rehearsed.notifications)
        yield from map(_await, rehearsed.sources)
        if spec.network == "bridge":
            yield from self._network(spec, run)
        yield from self._mirrored(spec, run)
        yield from self._container(spec, run, rehearsed)

    def _network(self, spec: JobSpec, run: str) -> Iterator[str]:
        if self.facts.privileged:
            yield from network.describe(spec, str(self.settings.runtime), run)
            return
        lacking = programs.lacking()
        if lacking is not None:
            yield f'# lacking: network = "bridge": {lacking[0]} (fix: {lacking[1]})'
        yield from pasta.describe(spec, str(self.settings.runtime), run)

    def _mapped(self, spec: JobSpec) -> JobSpec:
        """With ids as a run might get them: which range is next is seen when it is taken."""
        space = spec.user_namespace
        if space.kind != "auto":
            return spec
        if not self.facts.privileged:
            own = self.facts.subordinate
            return evolve(spec, user_namespace=idmaps.without_root(space, own))
        first = idranges.pool().first
        resolved = evolve(space, kind="map", host_id=first, size=idranges.SIZE)
        return evolve(spec, user_namespace=resolved)

    def _with_volumes(self, spec: JobSpec) -> tuple[JobSpec, list[str]]:
        """With those that are there as mounts, and what is done for those that are not."""
        volumes = Volumes(self.state.root.parent)
        mounts, lines = list(spec.mounts), []
        for one in spec.volumes:
            source = volumes.data(one.name)
            if source.is_dir():
                mounts.append(Mount(str(source), one.target, one.read_only))
            else:
                lines.append(f"# volume {one.name} is new: mkdir {source}, mounted at {one.target}")
        return evolve(spec, mounts=tuple(mounts)), lines

    def _directories(self, spec: JobSpec, run: str) -> Iterator[str]:
        directory = self.state.runs / run
        yield f"mkdir {directory}"
        yield f"write the job > {self.state.spec(run)}"
        for stream in ("out", "err"):
            yield f"open {self.state.log(spec.name, run, stream)} to append"
        yield f"fallocate {storage.RECORD_SIZE} bytes of {self.state.exit(run)}"
        base = storage.layer_base(spec, directory)
        if base is not None:
            yield f"mkdir {base}/upper {base}/work"
            if spec.user_namespace.kind == "map":
                owner = spec.user_namespace.host_id
                yield f"chown {owner}:{owner} {base} {base}/upper {base}/work"

    def _disk(self, spec: JobSpec, run: str) -> tuple[disk.Way | None, list[str]]:
        """How its layer is held to its size, and why not otherwise."""
        if spec.limits.disk is None:
            return None, []
        place = storage.place_of(spec, self.state.runs / run)
        return disk.choose(spec, place, privileged=self.facts.privileged)

    def _layers(self, spec: JobSpec, run: str) -> Layers:
        way, _lines = self._disk(spec, run)
        if way in ("loop", "tmpfs") and self.facts.privileged:
            return Layers(None, mounted=True)
        base = storage.layer_base(spec, self.state.runs / run)
        return Layers(str(base) if base else None)

    def _mirror(self, run: str) -> str:
        return f"{self.settings.runtime}/proc/{run}"

    def _mirrored(self, spec: JobSpec, run: str) -> Iterator[str]:
        """What shows it its share of the machine; written when its cgroup is there."""
        if spec.proc == "host":
            return
        yield from (f"# {line}" for line in doctor_proc.told([spec]))
        yield f"mkdir -p -m 0700 {self._mirror(run)}"
        files = f"{self._mirror(run)}/{{{','.join(mirror.TARGETS)}}}"
        yield f"write its share > {files}"
        if self.facts.privileged:
            yield f"fanotify FAN_ACCESS_PERM {files}"

    def _bounded(self, spec: JobSpec, run: str) -> Iterator[str]:
        way, lines = self._disk(spec, run)
        yield from (f"# not by {line}" for line in lines)
        if way is not None:
            wanted = self.engine.wants("on_disk_limit", spec)
            base = str(self.state.runs / run)
            yield from disk.describe(spec, base, way, wanted=wanted)

    def _request(self, spec: JobSpec, run: str, told: Rehearsed, facts: host.Facts) -> list[str]:
        layers = self._layers(spec, run)
        if spec.proc == "limits":
            layers.mirror = self._mirror(run)
        return list(build.describe(build.request(spec, run, told.entry, facts, layers)))

    def _container_lacks(self, spec: JobSpec, run: str, told: Rehearsed) -> Iterator[str]:
        try:
            self._request(spec, run, told, self.facts)
        except SpawnError as error:
            yield f"# lacking: {error}"

    def _container(self, spec: JobSpec, run: str, told: Rehearsed) -> Iterator[str]:
        """As it is, or as it would be with the privilege that is lacking; else nothing."""
        for facts in (self.facts, evolve(self.facts, privileged=True)):
            try:
                yield from self._request(spec, run, told, facts)
            except SpawnError:  # `_container_lacks` has told of it
                continue
            return


def _until_run(told: Rehearsed, run: str) -> int:
    """How many of the lines are the instance's own: those before the run's first directory."""
    mine = (n for n, line in enumerate(told.lines) if line.endswith(f"/{run}"))
    return next(mine, len(told.lines))


def _watch(note: Notification) -> str:
    match note.kind:
        case "inotify":
            return f"inotify IN_MODIFY {note.path}"
        case "eventfd":
            return f"write EVENTFD FD > {note.control}, FD open on {note.path}"
        case "kmsg":
            return f"watch /dev/kmsg for {note.path}"


def _await(source: PressureSource) -> str:
    if source.kind == "psi":
        return f"write {source.text} > {source.path}, and wait for EPOLLPRI there"
    return f"write EVENTFD FD {source.text} > {source.control}, FD open on {source.path}"
