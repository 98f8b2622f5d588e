"""GET /v1/wait: until jobs have ended, or run.

May import: `errors`, `model`, `supervise`, `control.routes`, attrs, trio.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Literal

import trio
from attrs import frozen

from supervisor.control.routes import Answer, Ask, Json, Route
from supervisor.model.record import Reason
from supervisor.model.state import State
from supervisor.model.status import JobStatus
from supervisor.policy.arguments import Duration
from supervisor.supervise.job import Job

Until = Literal["ended", "running"]

RUNS = (State.RUNNING, State.HELD, State.FROZEN, State.STOPPING)


@frozen
class WaitFor:
    """`until`: the job has ended for good, or its command has been executed.

    `timeout`, in seconds or as "10s": answer then in any case.
    """

    until: Until = "ended"
    timeout: Duration | None = None


@frozen
class WaitQuery(WaitFor):
    """`job`: as many as one likes, none for all.  `any`: one of them is enough."""

    job: tuple[str, ...] = ()
    any: bool = False


@frozen
class WaitAnswer:
    """`met`: whether what was waited for has come; each job as it is now."""

    met: bool
    jobs: tuple[JobStatus, ...]


async def _wait_for_one(ask: Ask) -> Answer:
    return await _wait(ask.query, [ask.job()], once=True)


async def _wait_for_many(ask: Ask) -> Answer:
    query: WaitQuery = ask.query
    names = query.job or ask.instance.jobs
    return await _wait(query, [ask.find(name) for name in dict.fromkeys(names)], once=query.any)


async def _wait(query: WaitFor, jobs: list[Job], *, once: bool) -> Answer:
    patience = math.inf if query.timeout is None else query.timeout
    with trio.move_on_after(patience):
        async with trio.open_nursery() as nursery:
            for job in jobs:
                nursery.start_soon(_reach, job, query.until, nursery.cancel_scope, once)
    return Json(200, WaitAnswer(_met(query.until, jobs, once=once), _now(jobs)))


async def _reach(job: Job, until: Until, scope: trio.CancelScope, once: bool) -> None:
    """Return when there is nothing to wait for any more; with `once`, for none of the jobs."""
    while not (reached(job, until) or job.state is State.ENDED):
        await job.moved()
    if once and reached(job, until):
        scope.cancel()


def reached(job: Job, until: Until) -> bool:
    """Whether the job has come so far."""
    if until == "ended" or job.state is State.ENDED:
        return job.state is State.ENDED and (until == "ended" or _has_run(job))
    return job.state in RUNS


def _has_run(job: Job) -> bool:
    """Whether any command of it was ever executed."""
    never = (Reason.SKIPPED, Reason.START_FAILED)
    return any(record.reason not in never for record in job.records)


def _met(until: Until, jobs: Iterable[Job], *, once: bool) -> bool:
    found = [reached(job, until) for job in jobs]
    return any(found) if once else all(found)


def _now(jobs: Iterable[Job]) -> tuple[JobStatus, ...]:
    now = time.time()
    return tuple(job.status(now) for job in jobs)


ROUTES = (
    Route(
        "GET",
        "/jobs/{job}/wait",
        _wait_for_one,
        "read",
        "until a job has ended, or runs",
        query=WaitFor,
        answer=WaitAnswer,
    ),
    Route(
        "GET",
        "/wait",
        _wait_for_many,
        "read",
        "until several jobs have ended, or run",
        query=WaitQuery,
        answer=WaitAnswer,
    ),
)
