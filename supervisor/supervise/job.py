"""One job's task: wait for others, wait for room, run, and run again while there is a reason to.

May import: everything above `front`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio
from attrs import asdict, evolve

from supervisor.errors import KernelError, StateError, SupervisorError
from supervisor.model.image import Image
from supervisor.model.job import JobSpec
from supervisor.model.limits import Limits
from supervisor.model.record import LimitChange, MemoryUse, PidsUse, Reason, RunRecord, iso
from supervisor.model.state import State, check
from supervisor.model.status import JobStatus
from supervisor.record.entries import answers_entry, ended_entry
from supervisor.supervise.admission import Demand
from supervisor.supervise.ending import image_use
from supervisor.supervise.images import applied
from supervisor.supervise.restart import Again, next_run
from supervisor.supervise.run import Run
from supervisor.supervise.shared import Shared

MOST_RECORDS = 1000
"""Of one job, kept in memory: a service may be started again for years.  The log has them all."""
NEVER_STARTED = "stopped before it started"


class Job:
    """One job of an instance.  `number` is its place in the configuration.

    `ended` is set when it has (an operator may have it run once more: then it is another event);
    `records` then has a record for each run, the last deciding.  `configured` is the job as it was
    written, `spec` what policies and its image have made of it; `owner` names who submitted it,
    "" for the file; `leaving`: the configuration has it no more.  `steering` and `reloading` change
    all of this.
    """

    def __init__(self, shared: Shared, spec: JobSpec, number: int) -> None:
        self.shared = shared
        self.spec = spec
        self.configured = spec
        self.owner = ""
        self.leaving = False
        self.number = number
        self.state = State.WAITING
        self.records: list[RunRecord] = []
        self.ended = trio.Event()
        self._moved = trio.Event()
        self._limits = spec.limits
        self._run: Run | None = None
        self.again_by = ""
        self._later: dict[str, Any] = {}
        self._renewed = False
        self._stop: tuple[Reason, str, str] | None = None
        self._waiting: trio.CancelScope | None = None
        self._waits_for = ""
        self.again_at = 0.0
        """In `backoff`: when it is run again, Unix time."""
        self._cpu_before: tuple[float, float] | None = None
        self.image: Image | None = None

    @property
    def expected(self) -> bool:
        """Whether the job has ended, and as it was meant to."""
        return self.ended.is_set() and self.records[-1].expected

    @property
    def run_id(self) -> str:
        """Of the run that goes on; "" while there is none."""
        return self._run.id if self._run is not None and not self.ended.is_set() else ""

    async def prepare(self) -> None:
        """Before any job is queued: what the policies make of this one."""
        self.spec = await self.prepared(self.spec)
        self._limits = self.spec.limits

    async def prepared(self, spec: JobSpec) -> JobSpec:
        """`spec` as the policies want it; as it is where that could never run."""
        prepared = await self.shared.engine.prepare(spec)
        for answer in prepared.answers:
            if answer.error:
                self._warn(f"policy {answer.policy} at prepare: {answer.error}")
        if any(answer.verdict or answer.error for answer in prepared.answers):
            said = answers_entry(prepared.answers)
            self.shared.log.emit("prepared", job=self.spec.name, answers=said)
        lack = self.shared.admission.refusal(Demand.of(prepared.spec.limits))
        if lack:
            self._warn(f"as its policies prepare it, capacity never has {lack}: left unprepared")
            return spec
        return prepared.spec

    def _warn(self, text: str) -> None:
        self.shared.log.emit("warning", job=self.spec.name, text=text)

    async def run(self, others: Mapping[str, Job]) -> None:
        """All of the job's life.  Raises nothing but cancellation."""
        while True:
            refusal = await self._turn(others)
            if refusal:
                self._skip(refusal)
                break
            if await self._attempts():
                break
        self._enter(State.ENDED)
        runs = len([record for record in self.records if record.run])
        self.shared.log.emit(
            "job_finished", job=self.spec.name, runs=runs, expected=self.records[-1].expected
        )
        self.ended.set()

    async def _turn(self, others: Mapping[str, Job]) -> str:
        """Wait for the jobs named in `after`; why this one is not to run at all, or ""."""
        self._renewed = False
        while (other := self._obstacle(others)) is not None:
            if other.ended.is_set():
                return f"{other.spec.name} ended as {other.records[-1].reason}"
            self._waits_for = other.spec.name
            self.shared.log.emit("job_waiting", job=self.spec.name, waiting_for=other.spec.name)
            await self._wait(other.ended.wait)
            self._renewed = False
            if self._stop:
                return NEVER_STARTED
        self._waits_for = ""
        return ""

    def _obstacle(self, others: Mapping[str, Job]) -> Job | None:
        """The first of those it waits for that has not ended, or not as it should."""
        return next((job for job in self._predecessors(others) if not job.expected), None)

    async def _wait(self, what: Callable[[], Awaitable[object]]) -> bool:
        """Wait for something; False when somebody wants the job to look again, or to stop."""
        if self._stop or self._renewed:
            return False
        with trio.CancelScope() as self._waiting:
            await what()
        over = self._waiting.cancelled_caught
        self._waiting = None
        return not over and not self._stop

    def wake(self) -> None:
        """Whatever the job waits for: it is to look again."""
        if self._waiting is not None:
            self._waiting.cancel()

    def renewed(self) -> None:
        """`spec` or `limits` are new: a job that waits begins to wait anew."""
        if self.state in (State.WAITING, State.BACKOFF):
            self._renewed = True
            self.wake()

    def _predecessors(self, others: Mapping[str, Job]) -> list[Job]:
        wanted = self.spec.after
        return [
            job for job in others.values() if job.spec.name in wanted or job.spec.group in wanted
        ]

    async def _attempts(self) -> bool:
        """Run it as often as there is reason to; False: it has changed, and waits anew."""
        restarts, attempt, ran = 0, 1, False
        while not self._stop:
            record = await self._attempt(attempt)
            if record is None and not self._stop:
                self._renewed = False
                if not ran and not self.again_by:
                    return False
            elif record is not None:
                ran = True
                again = self._again(record, restarts)
                self._run = None
                if again is not None and not self.again_by:
                    restarts += again.by.startswith("restart")
                    attempt += 1
                    await self._back_off(again, attempt)
                elif not self.again_by:
                    break
            if self.again_by:
                restarts, attempt = 0, 1
                self._begin_again()
        if not ran:
            self._skip(NEVER_STARTED)
        return True

    def _begin_again(self) -> None:
        """Somebody wants another run: it is the first one once more."""
        if self._stop:
            return
        self._enter(State.BACKOFF)
        by, self.again_by = self.again_by, ""
        self.shared.log.emit("restart", job=self.spec.name, attempt=1, after=0.0, by=by, limits={})

    async def _attempt(self, attempt: int) -> RunRecord | None:
        """One run, once there is room for it; None when its waiting was over before."""
        refusal = await self._have_image()
        if self._stop or self._renewed:
            return None
        record = await (self._refused(attempt, refusal) if refusal else self._run_once(attempt))
        if record is not None and self._run is not None:
            self._limits = evolve(self._run.limits, **self._later)
            self._later = {}
            self.records.append(record)
            del self.records[:-MOST_RECORDS]
        return record

    async def _have_image(self) -> SupervisorError | None:
        """Acquire its image, the first time, and become what that says; why it cannot be had."""
        spec = self.spec
        if not spec.in_image or self.image is not None:
            return None
        self._waits_for = f"image {spec.root}"
        try:
            await self._wait(self._get_image)
        except SupervisorError as error:
            return error
        finally:
            self._waiting = None
            self._waits_for = ""
        return None

    async def _get_image(self) -> None:
        image = await self.shared.images.get(self.spec.root, self.spec.name)
        self.spec, self.image = applied(self.spec, image), image

    async def _refused(self, attempt: int, error: SupervisorError) -> RunRecord:
        self._enter(State.STARTING)
        self._run = Run(self.shared, self.spec, self._limits, attempt, self._enter)
        self._run.submitted_by = self.owner
        self._emit_starting(attempt)
        return await self._run.refuse(error)

    async def _run_once(self, attempt: int) -> RunRecord | None:
        spec, admission = self.spec, self.shared.admission
        demand = Demand.of(self._limits)
        admitted = await self._wait(
            lambda: admission.acquire(spec.name, spec.priority, self.number, demand)
        )
        if not admitted or self._renewed:
            admission.release(spec.name)
            return None
        try:
            self._enter(State.STARTING)
            self._run = Run(self.shared, spec, self._limits, attempt, self._enter, self.image)
            self._run.submitted_by = self.owner
            self._emit_starting(attempt)
            return await self._run.execute()
        finally:
            admission.release(spec.name)

    def _emit_starting(self, attempt: int) -> None:
        assert self._run is not None
        image = image_use(self.image)
        said = asdict(image) if image is not None else None
        self._run.emit("job_starting", attempt=attempt, image=said)

    def _again(self, record: RunRecord, restarts: int) -> Again | None:
        assert self._run is not None
        if self._stop:
            return None
        again = next_run(self.spec, self._limits, record, restarts, self._run.retry)
        if again is None:
            return None
        refusal = self.shared.admission.refusal(Demand.of(again.limits))
        if refusal:
            self._warn(f"{again.by} wants another run, but capacity never has {refusal}")
            return None
        return again

    async def _back_off(self, again: Again, attempt: int) -> None:
        """Wait until it is time for the next run, or the job is stopped, or to run at once."""
        self._enter(State.BACKOFF)
        by_policy = not again.by.startswith("restart")
        self.shared.log.emit(
            "retry" if by_policy else "restart",
            job=self.spec.name,
            attempt=attempt,
            after=again.after,
            by=again.by,
            limits=_differences(self._limits, again.limits),
        )
        self._limits = again.limits
        self._waits_for = f"{again.after:g} s"
        self.again_at = time.time() + again.after
        until = trio.current_time() + again.after
        while not await self._wait(lambda: trio.sleep_until(until)):
            self._renewed = False
            if self._stop or self.again_by:
                break
        self._waits_for, self.again_at = "", 0.0

    def stop(self, reason: Reason, by: str, why: str = "", *, now: bool = False) -> None:
        """End the job, whatever it is doing; idempotent, `now` may follow."""
        self._stop = self._stop or (reason, by, why)
        self.wake()
        if self._run is not None:
            self._run.stop(reason, by, why, now=now)

    @property
    def stopping(self) -> bool:
        """Whether it was told to end, and is not to run again."""
        return self._stop is not None

    def revive(self) -> None:
        """It has ended, and is to `run` once more.  Raises StateError."""
        if not self.ended.is_set():
            raise StateError(f"the job is {self.state}")
        self._stop = None
        self.again_by = ""
        self._enter(State.WAITING)
        self.ended = trio.Event()

    def signal(self, name: str) -> None:
        """Send a signal, as "HUP", to every process of the job.

        Raises SupervisorError when it has none now.
        """
        if self._run is None or not self._run.live:
            raise SupervisorError(f"{self.spec.name} is {self.state}: no process of it is there")
        self._run.send_signal(name)

    @property
    def limits(self) -> Limits:
        """Those in force: of the present run, or of the next."""
        return self._run.limits if self._run is not None else self._limits

    @property
    def run_now(self) -> Run | None:
        """The present run; from its start to its record."""
        return self._run

    def plan(self, **limits: Any) -> None:
        """Limits of the next run, whatever the present one has."""
        if self._run is None:
            self._limits = evolve(self._limits, **limits)
            self.renewed()
        else:
            self._later |= limits

    @property
    def planned(self) -> Limits:
        """Those of the next run, as far as is known."""
        return evolve(self.limits, **self._later)

    def _skip(self, why: str) -> None:
        """The record of a job that never ran."""
        at = iso(time.time())
        limits = self.spec.limits
        record = RunRecord(
            job=self.spec.name,
            run="",
            attempt=0,
            reason=Reason.SKIPPED,
            command=self.spec.command,
            finished_at=at,
            memory=MemoryUse(
                limits.memory, limit_history=(LimitChange(at, limits.memory, "configuration"),)
            ),
            pids=PidsUse(limits.pids),
            expected=self.spec.expect == Reason.SKIPPED,
            detail=why,
            submitted_by=self.owner,
        )
        self.records.append(record)
        self.shared.log.emit("job_ended", **ended_entry(record))

    def _enter(self, state: State) -> None:
        if state is not self.state:
            self.state = check(self.state, state)
            self._moved.set()
            self._moved = trio.Event()

    async def moved(self) -> None:
        """Until the job's state is another."""
        await self._moved.wait()

    @property
    def running(self) -> Run | None:
        """The present run, if it has a cgroup; that may be about to go."""
        run = self.run_now
        return run if run is not None and hasattr(run, "cgroup") else None

    def status(self, now: float) -> JobStatus:
        """What the job is doing, for the views; reads the cgroup of a running one."""
        run, last = self.running, self.records[-1] if self.records else None
        if run is None or self.state is State.ENDED:
            return self._idle_status(last)
        try:
            usage = run.cgroup.usage()
        except KernelError:
            return self._idle_status(last)  # it ended between two looks
        return JobStatus(
            name=self.spec.name,
            state=self.state,
            attempt=run.attempt,
            run=run.id,
            since=run.started_at,
            cpu_seconds=usage.cpu,
            cpu_percent=self._percent(usage.cpu, now),
            memory=usage.memory,
            memory_limit=run.limits.memory,
            pids=usage.pids,
            pids_limit=run.limits.pids,
            cpus_limit=run.limits.cpus,
            paused_by=run.freezing.paused,
        )

    def _percent(self, used: float | None, now: float) -> float | None:
        before, self._cpu_before = self._cpu_before, None if used is None else (now, used)
        if used is None or before is None or now <= before[0] or used < before[1]:
            return None
        return 100 * (used - before[1]) / (now - before[0])

    def _idle_status(self, last: RunRecord | None) -> JobStatus:
        waits = self.shared.admission.waits_for(self.spec.name) or self._waits_for
        if waits.startswith("image "):
            waits += self.shared.images.progress(self.spec.root)
        ended = self.state in (State.ENDED, State.BACKOFF) and last is not None
        return JobStatus(
            name=self.spec.name,
            state=self.state,
            attempt=len(self.records),
            since=_unix(last.started_at) if last else None,
            ended=_unix(last.finished_at) if last else None,
            cpu_seconds=_cpu_of(last),
            memory_limit=self._limits.memory,
            pids_limit=self._limits.pids,
            cpus_limit=self._limits.cpus,
            reason=str(last.reason) if ended and last else None,
            expected=last.expected if ended and last else None,
            waiting_for=waits if self.state in (State.WAITING, State.BACKOFF) else "",
        )


def _cpu_of(record: RunRecord | None) -> float | None:
    if record is None or record.cpu.user_seconds is None:
        return None
    return record.cpu.user_seconds + (record.cpu.system_seconds or 0.0)


def _unix(text: str | None) -> float | None:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp() if text else None


def _differences(old: Limits, new: Limits) -> dict[str, float | str | None]:
    names = ("memory", "memory_high", "swap", "pids", "cpus", "cpu_weight", "disk")
    return {n: getattr(new, n) for n in names if getattr(new, n) != getattr(old, n)}
