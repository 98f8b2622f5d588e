"""An instance: its directories, its lock, its tools, and a task for each job.

May import: everything above `front`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import trio
from attrs import frozen

from supervisor.cgroup.api import CgroupManager
from supervisor.cgroup.detect import detect
from supervisor.container import hiding
from supervisor.container.host import Host
from supervisor.container.spawn import Launcher, open_launcher
from supervisor.errors import KernelError, StateError
from supervisor.linux import syscalls
from supervisor.model.job import JobSpec
from supervisor.model.record import Reason, RunRecord
from supervisor.model.status import InstanceStatus
from supervisor.policy.engine import Engine
from supervisor.policy.registry import Policy
from supervisor.record.runs import StateDir
from supervisor.supervise import preflight, steering
from supervisor.supervise.admission import Admission, Room
from supervisor.supervise.growth import Growth
from supervisor.supervise.hookcall import HookCaller
from supervisor.supervise.idranges import IdRanges
from supervisor.supervise.images import Images, Source
from supervisor.supervise.job import Job
from supervisor.supervise.mirror import Mirrors
from supervisor.supervise.network import Bridge, Place
from supervisor.supervise.pasta import Pasta
from supervisor.supervise.projects import Projects
from supervisor.supervise.reading import Reader
from supervisor.supervise.reaper import ExitStatus, Reaper
from supervisor.supervise.shared import Log, Network, Shared
from supervisor.supervise.surroundings import (
    raise_open_files,
    runtime_dir,
    start_launcher,
    unwrapped,
)
from supervisor.supervise.volumes import Volumes
from supervisor.watch.cgroup import open_watcher
from supervisor.watch.kernel_log import KernelLog

if TYPE_CHECKING:
    from supervisor.supervise.stats import Sampler

MOST_LEFT = 1000
"""Jobs that are gone of which the last records are kept."""

POOL = 4
"""Run directories made ahead of need."""


@frozen
class Settings:
    """What an instance is told.  `state` None: a one-shot run; `scratch` for its writable layer,
    `kept` for one that stays.  `state_dir` has what instances share: named volumes.

    `pool`: the bridge's addresses, None for a network that is free.  `images`: where those of the
    jobs come from.  `stays`: it goes on when all of its jobs have ended.
    """

    name: str
    runtime: Path
    state: StateDir | None
    room: Room = Room()  # noqa: RUF009 - frozen
    on_missing: Literal["refuse", "warn"] = "refuse"
    cgroup_parent: str | None = None
    scratch: Path | None = None
    kept: StateDir | None = None
    state_dir: Path | None = None
    pool: str | None = None
    images: Source | None = None
    stays: bool = False


class Instance:
    """The jobs of one configuration, while they are supervised."""

    def __init__(
        self, shared: Shared, specs: Iterable[JobSpec], reader: Reader | None = None
    ) -> None:
        """`reader`: the parsers of the configuration; None: no job can be added, and no reload."""
        self.shared = shared
        self.reader = reader
        self.jobs = {spec.name: Job(shared, spec, n) for n, spec in enumerate(specs)}
        self.interrupted = ""
        self.stays = False
        self.read = reader.first if reader is not None else None
        """The configuration that holds."""
        self.changing = trio.Lock()
        """Held by whoever adds and removes jobs."""
        self._left: list[Job] = []
        self._nursery: trio.Nursery | None = None
        self._news = trio.Event()

    @cached_property
    def sampler(self) -> Sampler:
        """What `top` and `stats` ask, one for all; nobody else pays for its import."""
        from supervisor.supervise.stats import Sampler

        return Sampler(self.jobs)

    async def run(self) -> None:
        """Until every job has ended; with `stays`, until it is stopped as well."""
        async with trio.open_nursery() as nursery:
            for job in self.jobs.values():
                nursery.start_soon(job.prepare)
        async with trio.open_nursery() as self._nursery:
            for job in self.jobs.values():
                self._nursery.start_soon(job.run, self.jobs)
            await self._until_done()
            self._nursery = None

    async def _until_done(self) -> None:
        """Jobs may come and run again meanwhile; afterwards none can."""
        while True:
            busy = next((job for job in self.jobs.values() if not job.ended.is_set()), None)
            if busy is not None:
                await busy.ended.wait()
            elif self.stays and not self.interrupted:
                self._news = trio.Event()
                await self._news.wait()
            else:
                return

    @property
    def open(self) -> bool:
        """Whether another job can be started."""
        return self._nursery is not None and not self.interrupted

    def look_again(self) -> None:
        """There are new jobs, or it may be time to end."""
        self._news.set()

    def start(self, job: Job, after: Job | None = None) -> None:
        """Have a job run, be it a new one or one that ran before.  Raises StateError.

        `after`: one of the same name, which is to be gone first.
        """
        if not self.open or self._nursery is None:
            raise StateError("the instance is about to end: it takes no more jobs")
        self.jobs[job.spec.name] = job
        self._nursery.start_soon(self._run, job, after)
        self.look_again()

    async def _run(self, job: Job, after: Job | None) -> None:
        if after is not None:
            await after.ended.wait()
        await job.run(self.jobs)

    async def restart(self, job: Job, by: str) -> None:
        """Stop a job in order and run it again; run it again, if it has ended.

        Raises StateError where its state does not allow that.
        """
        if not self.open:
            raise StateError("the instance is about to end: no job is started any more")
        if not await steering.restart(job, by):
            self.start(job)

    def leave(self, job: Job, why: str, by: str) -> None:
        """Stop a job, and forget it when it has ended."""
        job.leaving = True
        self._left.append(job)
        del self._left[:-MOST_LEFT]
        job.stop(Reason.STOPPED, by, why)
        if self._nursery is not None:
            self._nursery.start_soon(self._forget, job)

    async def _forget(self, job: Job) -> None:
        await job.ended.wait()
        if self.jobs.get(job.spec.name) is job:
            del self.jobs[job.spec.name]
        self.shared.network.know(each.spec for each in self.jobs.values())

    def stop(self, why: str, *, now: bool = False) -> None:
        """Stop every job in order; with `now`, kill at once what is left."""
        self.interrupted = self.interrupted or why
        for job in (*self.jobs.values(), *self._left):
            job.stop(Reason.STOPPED, why, now=now)
        self.look_again()

    def status(self) -> InstanceStatus:
        """For the views; reads the cgroups of the running jobs."""
        now = time.time()
        jobs = tuple(job.status(now) for job in self.jobs.values())
        return InstanceStatus(jobs, self.shared.admission.use())

    @property
    def running(self) -> list[str]:
        """The ids of the runs that go on, or whose end is still being dealt with."""
        return [job.run_id for job in self.jobs.values() if job.run_id]

    @property
    def records(self) -> list[RunRecord]:
        """Every run, job by job; of a job that has run very often the last ones."""
        jobs = dict.fromkeys((*self._left, *self.jobs.values()))
        return [record for job in jobs for record in job.records]

    @property
    def succeeded(self) -> bool:
        """Whether all have ended as expected."""
        return all(job.expected for job in self.jobs.values())


def examine(settings: Settings, specs: Sequence[JobSpec]) -> CgroupManager:
    """The cgroups of an instance to be; SupervisorError when its jobs cannot be run here.

    It looks, and makes nothing.
    """
    manager = detect(settings.name, settings.cgroup_parent)
    preflight.check(manager, specs, settings.on_missing)
    stays = settings.state or settings.kept
    runs = stays.runs if stays else settings.scratch
    preflight.check_disks(specs, runs)
    return manager


@asynccontextmanager
async def open_instance(
    settings: Settings,
    specs: Sequence[JobSpec],
    policies: Iterable[Policy],
    log: Log,
    manager: CgroupManager | None = None,
    reader: Reader | None = None,
) -> AsyncIterator[Instance]:
    """An instance ready to run; everything it made is removed at the end.

    Raises SupervisorError: the name is taken, a limit cannot be enforced, privilege is lacking.
    Then nothing has been started, and nothing is left.
    """
    manager = manager or examine(settings, specs)
    async with AsyncExitStack() as stack:
        stack.enter_context(unwrapped())
        stack.enter_context(runtime_dir(settings.runtime, settings.name))
        ids = IdRanges(settings.name)
        projects = Projects(settings.name)
        stack.enter_context(_closing(manager, log, ids, projects))
        reaper = Reaper(partial(_tell_of_orphan, log))
        nursery = await stack.enter_async_context(trio.open_nursery())
        stack.callback(nursery.cancel_scope.cancel)
        syscalls.set_child_subreaper()
        await nursery.start(reaper.run)
        kernel_log = KernelLog.open()
        stack.callback(kernel_log.close)
        host, launcher = await stack.enter_async_context(_containers(settings, reaper))
        watcher = await stack.enter_async_context(open_watcher(nursery, kernel_log))
        network = _network(settings, specs, nursery, reaper, log, on_bridge=host.facts().privileged)
        await network.sweep()
        stack.push_async_callback(network.close)
        images = Images(settings.images, nursery, log.emit)
        stack.callback(images.close)
        mirrors = Mirrors(settings.runtime / "proc", nursery, partial(_warn, log))
        mirrors.clear()
        stack.callback(_clear, mirrors, log)
        stops: list[Callable[[str], None]] = []
        shared = Shared(
            manager=manager,
            launcher=launcher,
            host=host,
            reaper=reaper,
            watcher=watcher,
            kernel_log=kernel_log,
            engine=Engine(policies, HookCaller()),
            log=log,
            admission=Admission(settings.room),
            network=network,
            on_missing=settings.on_missing,
            stop_all=lambda why: stops[0](why),
            state=settings.state,
            scratch=settings.scratch,
            kept=settings.kept,
            volumes=Volumes(settings.state_dir) if settings.state_dir else None,
            id_ranges=ids,
            projects=projects,
            images=images,
            growth=Growth(nursery),
            mirrors=mirrors,
        )
        instance = Instance(shared, specs, reader)
        instance.stays = settings.stays
        stops.append(instance.stop)
        if settings.state is not None:
            shared.run_ids.resume(settings.state.runs)
            for text in watcher.blind:
                log.emit("warning", text=f"cannot see {text}")
        yield instance


def _clear(mirrors: Mirrors, log: Log) -> None:
    try:
        mirrors.clear()
    except KernelError as error:
        log.emit("cleanup_failed", text=str(error))


def _warn(log: Log, text: str) -> None:
    log.emit("warning", text=text)


def _tell_of_orphan(log: Log, pid: int, status: ExitStatus) -> None:
    log.emit("orphan_reaped", pid=pid, exit_code=status.code, signal=status.signal)


@asynccontextmanager
async def _containers(settings: Settings, reaper: Reaper) -> AsyncIterator[tuple[Host, Launcher]]:
    """What is known of the host, and the launcher, with a view of it to give to jobs."""
    work = settings.runtime / "work"
    private = (str(settings.state.root),) if settings.state else ()
    with closing(Host(str(work), private, open_files=raise_open_files())) as host:
        hidden = hiding.coverable(host.facts())
        starter = partial(start_launcher, reaper)
        async with open_launcher(starter, work, hidden=hidden) as launcher:
            host.cover(hidden)
            yield host, launcher


def _network(
    settings: Settings,
    specs: Sequence[JobSpec],
    nursery: trio.Nursery,
    reaper: Reaper,
    log: Log,
    *,
    on_bridge: bool,
) -> Network:
    """What connects jobs: a bridge for all, or (without root) pasta(1) for each."""
    leases = settings.state.root / "network.json" if settings.state else None
    place = Place(settings.runtime, leases, settings.pool)
    if on_bridge:
        return Bridge(place, specs, nursery, log.emit)
    return Pasta(place, nursery, reaper.spawn, log.emit)


@contextmanager
def _closing(manager: CgroupManager, log: Log, ids: IdRanges, projects: Projects) -> Iterator[None]:
    """Clear away what a supervisor that died left; at the end, the instance's own cgroup."""
    for run in manager.remove_leftovers():
        log.emit("warning", text=f"ended what an earlier supervisor left behind: {run}")
    projects.forget()
    try:
        manager.prepare(POOL)
        yield
    finally:
        try:
            ids.forget()  # not at the beginning: those that were ended may still be about to go
            manager.close()
        except KernelError as error:
            log.emit("cleanup_failed", text=str(error))
