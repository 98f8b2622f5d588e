"""One run of one job: cgroup, container, events, verdict.

May import: everything above `front`.  `execute` reads as the way of a run; what a verdict rests
on is gathered in `ending`, what a decision does in `actions`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any

import trio
from attrs import evolve

from supervisor.cgroup.api import JobCgroup
from supervisor.container import build, idmaps
from supervisor.container.spawn import Container
from supervisor.errors import KernelError, SupervisorError
from supervisor.model.action import Retry
from supervisor.model.event import (
    Event,
    Exited,
    MemoryLimit,
    OomKill,
    Started,
)
from supervisor.model.image import Image
from supervisor.model.job import JobSpec, UserNamespace
from supervisor.model.limits import Limits
from supervisor.model.record import LimitChange, LimitSet, Reason, RunRecord
from supervisor.model.state import State
from supervisor.model.verdict import Cause
from supervisor.model.view import JobView
from supervisor.record.entries import ended_entry
from supervisor.supervise import actions, collect, disk, ending, idranges, stopping, timers
from supervisor.supervise.confine import confined
from supervisor.supervise.flow import Flow, flowing
from supervisor.supervise.mirror import Mirror
from supervisor.supervise.pausing import Freezing
from supervisor.supervise.reaper import ExitStatus, Lost
from supervisor.supervise.sessions import Sessions
from supervisor.supervise.shared import Connection, Shared
from supervisor.supervise.storage import Storage
from supervisor.supervise.volumes import Taken
from supervisor.watch.pressure import Gauge
from supervisor.watch.subscription import Subscription


class Run:
    """One attempt at a job, from its start to its record.

    `state` is the job's, told to `on_state`; `limits` are those in force; `retry` what a policy
    wants done after the end; `cause` the first ending that the supervisor began; `image` the one
    that `spec` has the layers of.  `settled`: it has come to run, or has failed to; `changed`: see
    `pulse`; `submitted_by` names who handed the job in, "" if it is from the file.
    """

    def __init__(
        self,
        shared: Shared,
        spec: JobSpec,
        limits: Limits,
        attempt: int,
        on_state: Callable[[State], None],
        image: Image | None = None,
    ) -> None:
        self.shared = shared
        self.image = image
        self.spec = evolve(spec, limits=limits)
        self.limits = limits
        self.attempt = attempt
        self.id = shared.run_ids.new(spec.name)
        self.started_at = time.time()
        self.finished_at = 0.0
        self.payload = 0
        self.held = False
        self.raised: dict[str, int] = {}
        self.retry: tuple[Retry, str] | None = None
        self.cause: Cause | None = None
        self.oom_first = False
        self.log_mark = shared.kernel_log.mark()
        self.calls_mark = shared.kernel_log.calls
        self.limit_history: list[LimitChange] = []
        self.limits_set: list[LimitSet] = []
        self._on_state = on_state
        self._state = State.STARTING
        self._hurry = trio.Event()
        self._leaving = False
        self._impatient = False
        self._failed = False
        self.freezing = Freezing(self)
        self.limiting = trio.Lock()
        self.changed = trio.Event()
        self.settled = trio.Event()
        self.submitted_by = ""
        self._seen_all = trio.Event()
        self._timers: trio.Nursery | None = None
        self.gauges: list[Gauge] = []
        self.taken: list[Taken] = []
        self.flow: Flow | None = None
        self.sessions = Sessions(self)
        self.storage: Storage | None = None
        self.record: RunRecord | None = None
        self.recorded = trio.Event()
        self.disk: disk.Disk | None = None
        self.mirror: Mirror | None = None
        self.cgroup: JobCgroup
        self.container: Container
        self.subscription: Subscription

    async def execute(self) -> RunRecord:
        """Run it.  Raises nothing but cancellation; however it ends, nothing is left behind."""
        try:
            async with (
                self._ids(),
                self._volumes(),
                self._storage() as storage,
                self._bounded(storage),
                confined(self),
                self._followed(),
                self._connection() as connection,
                self._mirrored(storage),
                self._container(storage, connection),
            ):
                async with self._flowing(storage) as flow:
                    status = await self._live()
                    await flow.end()
                    flow.tell()
                    use = flow.use()
                await self._copy_out(storage)
                record = ending.conclude(self, storage, status, use)
                self._failed = not record.expected
        except SupervisorError as error:
            record = ending.start_failed(self, error)
        return await self._concluded(record)

    async def refuse(self, error: SupervisorError) -> RunRecord:
        """The record of a run that cannot even begin."""
        return await self._concluded(ending.start_failed(self, error))

    async def _concluded(self, record: RunRecord) -> RunRecord:
        self.settled.set()
        self._write_down(record)
        self.record = record
        self.recorded.set()
        await self._ask_about_exit(record)
        return record

    @asynccontextmanager
    async def _ids(self) -> AsyncIterator[None]:
        """User numbers of the run's own, where it is to have some: nobody else's until its end."""
        space = self.spec.user_namespace
        facts = self.shared.host.facts()
        if space.kind != "auto":
            yield
        elif not facts.privileged:
            self._map(idmaps.without_root(space, facts.subordinate))
            yield
        else:
            first = self.shared.id_ranges.take(self.id)
            try:
                self._map(evolve(space, kind="map", host_id=first, size=idranges.SIZE))
                self.emit("user_ids", host_id=first, size=idranges.SIZE)
                yield
            finally:
                await self.tidy(self._give_back(first))

    def _map(self, space: UserNamespace) -> None:
        self.spec = evolve(self.spec, user_namespace=space)

    async def _give_back(self, first: int) -> None:
        self.shared.id_ranges.give_back(first)

    @asynccontextmanager
    async def _volumes(self) -> AsyncIterator[None]:
        """The run's named volumes, which nobody removes meanwhile, as mounts."""
        volumes = self.shared.volumes
        with ExitStack() as stack:
            for volume in self.spec.volumes:
                assert volumes is not None
                taken = await trio.to_thread.run_sync(volumes.take, volume)
                stack.callback(taken.close)
                self.taken.append(taken)
            mounts = (*self.spec.mounts, *(taken.mount for taken in self.taken))
            self.spec = evolve(self.spec, mounts=mounts)
            yield

    @asynccontextmanager
    async def _storage(self) -> AsyncIterator[Storage]:
        shared = self.shared
        storage = Storage(self.spec, self.id, shared.state, shared.scratch, shared.kept, self.image)
        self.storage = storage
        try:
            yield storage
        finally:
            self.storage = None
            storage.close()
            with trio.CancelScope(shield=True):
                await self.tidy(self._clean(storage))

    async def _clean(self, storage: Storage) -> None:
        upper = await storage.clean(keep=self.keeps_layer)
        if upper is not None:
            self.emit("kept", path=str(upper))

    @property
    def keeps_layer(self) -> bool:
        """Whether its writable layer stays, as far as is known now."""
        keep = self.spec.keep
        return keep == "always" or (keep == "on-failure" and self._failed)

    @asynccontextmanager
    async def _bounded(self, storage: Storage) -> AsyncIterator[None]:
        """Its writable layer, with a size of its own if it has a disk limit."""
        async with disk.bounded(self, storage) as self.disk:
            yield

    async def tidy(self, work: object) -> None:
        """Await what cleans up; a failure is told, and stops nobody."""
        try:
            await work  # type: ignore[misc]
        except OSError as error:
            self.emit("cleanup_failed", text=str(error))

    @asynccontextmanager
    async def _followed(self) -> AsyncIterator[None]:
        """Events are followed from before the clone: a limit can be reached before exec."""
        failed = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow)
            try:
                yield
            except SupervisorError as error:
                failed = error  # not in a group, which is what a nursery would make of it
            finally:
                self.subscription.close()
        if failed is not None:
            raise failed

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection | None]:
        """The job's place on the bridge, or its pasta, if it has one; gone at its end."""
        if self.spec.network != "bridge":
            yield None
            return
        async with self.shared.network.seat(self.spec, self.id) as connection:
            yield connection

    @asynccontextmanager
    async def _mirrored(self, storage: Storage) -> AsyncIterator[None]:
        """With files that show it its share of the machine, if it is to see that."""
        if self.spec.proc == "host":
            yield
            return
        spaces = self.shared.host.facts().time_namespaces
        with self.shared.mirrors.opened(self, time_namespaces=spaces) as self.mirror:
            storage.layers.mirror = str(self.mirror.directory)
            yield

    def limits_changed(self) -> None:
        """Tell those who go by `limits`, which are those in force now."""
        self.subscription.update(self.limits, held=self.held)
        if self.mirror is not None:
            self.mirror.renew()
        self.pulse()

    @asynccontextmanager
    async def _container(
        self, storage: Storage, connection: Connection | None
    ) -> AsyncIterator[None]:
        """The container, its command exec'ed; every process of it is gone at the end."""
        shared = self.shared
        spec = self.spec if connection is None else connection.spec
        facts = shared.host.facts()
        request = build.request(spec, self.id, self.cgroup.entry, facts, storage.layers)
        for taken in self.taken:
            taken.give(spec, facts, request.uid, request.gid)
        kept = [taken.lock for taken in self.taken]
        if self.image is not None:
            kept.append(shared.images.lease(spec.root))
        self.container = await shared.launcher.start(request, storage.streams, kept)
        storage.started()
        try:
            if connection is not None:
                await connection.connect(self.container)
            self.payload = await self.container.started()
            if self.disk is not None:
                # without root only the payload can be looked at: the init is not dumpable
                privileged = shared.host.facts().privileged
                self.disk.enter(self.container.pid if privileged else self.payload)
            yield
        except BaseException:
            with trio.CancelScope(shield=True):
                self.container.send_signal(signal.SIGKILL)
                await shared.reaper.wait_init(self.container.pidfd)
            raise
        finally:
            self.container.close()

    @asynccontextmanager
    async def _flowing(self, storage: Storage) -> AsyncIterator[Flow]:
        """While the job runs, what it writes is passed on, or its files are kept to a size."""
        async with flowing(self, storage) as self.flow:
            if self._leaving:
                self.flow.hurry()
            yield self.flow

    async def _live(self) -> ExitStatus | Lost:
        """From exec to the end of the last process, with everybody who watches and decides."""
        async with trio.open_nursery() as nursery:
            if self._state is State.STARTING:
                self.set_state(State.RUNNING)
            nursery.start_soon(self.handle, Started(time.time(), self.payload))
            async with trio.open_nursery() as self._timers:
                self.freezing.begin()
                timers.start(self, self._timers)
                self.settled.set()
                self.sessions.begin(self._timers)
                if self.cause is not None:  # told to end while it was being started
                    self._timers.start_soon(stopping.end, self, self._hurry)
                status = await self.shared.reaper.wait_init(self.container.pidfd)
                self.finished_at = time.time()
                self.sessions.end()
                self._timers.cancel_scope.cancel()
            self._timers = None
            self.subscription.recheck()  # the last process is gone: these are the final counters
            self.subscription.close()  # ends `_follow` once it has seen them
            await self._seen_all.wait()
        return status

    async def _copy_out(self, storage: Storage) -> None:
        """What the job is to leave: its processes are gone, its mounts still held."""
        roots = self.container.shown
        if not roots:
            return
        into, flat = storage.results()
        copy = partial(collect.collect, self.spec, roots, into, flat=flat)
        for one in await trio.to_thread.run_sync(lambda: [*copy(given_up=lambda: self._impatient)]):
            if one.arrived:
                self.emit(
                    "copied_out", path=one.path, to=one.target, files=one.files, bytes=one.size
                )
            for problem in one.problems:
                self.warn(f"not copied out: {problem}")

    async def _follow(self) -> None:
        async for event in self.subscription.events:
            await self.handle(event)
        self._seen_all.set()

    async def handle(self, event: Event) -> None:
        """Write an event down, let the policies decide, and do what they say."""
        self.shared.log.observe(self.spec.name, self.id, event)
        if isinstance(event, OomKill) and self.spec.oom == "kill":
            stopping.kill(self)
        if isinstance(event, MemoryLimit) and event.held and not self.frozen:
            self.set_state(State.HELD)
        decision = await self.shared.engine.decide(event, self.view())
        actions.perform(self, event, decision)

    def view(self, reason: str | None = None) -> JobView:
        """What policies see of this run now."""
        return JobView(
            spec=self.spec,
            run=self.id,
            attempt=self.attempt,
            state=self._state,
            limits=self.limits,
            started_at=self.started_at,
            raised=dict(self.raised),
            paused=bool(self.freezing.paused),
            reason=reason,
        )

    def set_state(self, state: State) -> None:
        if state is not self._state and self._state is not State.STOPPING:
            self._state = state
            self._on_state(state)

    @property
    def state(self) -> State:
        return self._state

    @property
    def live(self) -> bool:
        """Whether its command has been executed, and its last process is still there."""
        return self._timers is not None

    @property
    def frozen(self) -> bool:
        return self.freezing.frozen

    @property
    def alive(self) -> bool:
        """Whether its command runs, and nobody has begun to end it."""
        return self.live and self._state is not State.STOPPING

    def is_held(self) -> bool:
        """Whether its processes sleep at the memory limit."""
        return stopping.is_held(self)

    def pulse(self) -> None:
        """What the clocks of the run rest on has changed: they look again."""
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    def send_signal(self, name: str) -> None:
        """To every process of the job, by its init."""
        self.container.send_signal(stopping.signal_number(name))
        self.emit("signal_sent", signal=name)

    def stop(self, reason: Reason, by: str, why: str = "", *, now: bool = False) -> None:
        """End the job: its stop signal to the whole tree, SIGKILL after the grace, or `now`.

        The first cause stands.  A job that is being started is ended as soon as it runs.
        """
        if now:
            self._hurry.set()
        if reason is Reason.STOPPED:
            self._leave()
        if self.cause is not None or self.finished_at:
            self._impatient = self._impatient or now
            return
        self.cause = Cause(reason, by, why)
        self.oom_first = self._killed_already()
        self.emit("job_stopping", reason=str(reason), by=by, why=why)
        self.set_state(State.STOPPING)
        if self._timers is not None:
            self._timers.start_soon(stopping.end, self, self._hurry)
        elif stopping.is_held(self):
            stopping.kill(self)  # it would never come to run

    def _leave(self) -> None:
        """The supervisor is to stop: it waits for nobody who does not read the job's output."""
        self._leaving = True
        if self.flow is not None:
            self.flow.hurry()

    def _killed_already(self) -> bool:
        try:
            return self._timers is not None and self.cgroup.counters().oom_kills > 0
        except KernelError:
            return False  # without a cgroup nothing was counted; that it is gone is told elsewhere

    def emit(self, event: str, **fields: Any) -> None:
        """An entry of the event log that names this run."""
        self.shared.log.emit(event, job=self.spec.name, run=self.id, **fields)

    def warn(self, text: str) -> None:
        self.emit("warning", text=text)

    @staticmethod
    def now() -> float:
        return time.time()

    def _write_down(self, record: RunRecord) -> None:
        self.shared.log.emit("job_ended", **ended_entry(record))

    async def _ask_about_exit(self, record: RunRecord) -> None:
        """on_exit: the run is over; only what comes after it can be decided."""
        event = Exited(time.time(), record.exit_code, record.signal)
        decision = await self.shared.engine.decide(event, self.view(str(record.reason)))
        actions.perform(self, event, decision)
