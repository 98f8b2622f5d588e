"""What became of the runs of an instance: the history searched, one run explained.

May import: `errors`, `model`, `record`, `supervise`, `control.routes`, attrs, trio.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import trio
from attrs import field, frozen

from supervisor.control.routes import Answer, Ask, Json, Refusal, Route
from supervisor.errors import SupervisorError
from supervisor.model.record import Reason
from supervisor.model.status import JobStatus
from supervisor.record.runs import StateDir
from supervisor.record.story import Story, story
from supervisor.supervise.waiting import Waits, waits

MOST = 10000
"""Runs in one answer."""


@frozen
class Search:
    """Which runs: of `job` (a pattern as in glob(7)), ended for `reason`, begun in a time.

    Times are ISO 8601 in UTC, as in records; the newest `limit` runs.
    """

    job: str | None = None
    reason: str | None = field(default=None, metadata={"schema": {"enum": list(map(str, Reason))}})
    since: str | None = None
    until: str | None = None
    limit: int = field(default=50, metadata={"schema": {"minimum": 1, "maximum": MOST}})


@frozen
class PastRun:
    """A run as the history lists it; `reason` is null while it goes on."""

    run: str | None
    job: str
    attempt: int
    reason: str | None
    expected: bool | None
    exit_code: int | None
    signal: int | None
    started_at: str
    finished_at: str | None
    wall_seconds: float | None
    cpu_seconds: float | None
    memory_limit: int | None
    memory_peak: int | None
    oom_kills: int | None
    pids_peak: int | None
    pids_refused: int | None
    decided_by: str | None
    detail: str | None
    image: str | None


@frozen
class PastRuns:
    """The newest first."""

    runs: tuple[PastRun, ...]


@frozen
class WhichRun:
    """`run`: its id; the last one without."""

    run: str | None = None


@frozen
class Explanation:
    """What a job is doing, what it waits for, and the story of one of its runs."""

    status: JobStatus
    waits: Waits | None = None
    story: Story | None = None


async def _history(ask: Ask) -> Answer:
    query = ask.query
    if query.reason is not None and query.reason not in [str(reason) for reason in Reason]:
        raise Refusal(400, f'"{query.reason}" is no reason', hint=", ".join(Reason))
    if not 0 < query.limit <= MOST:
        raise Refusal(400, f"limit must be from 1 to {MOST}, not {query.limit}")
    runs = await _in_thread(partial(_searched, _state(ask).history, query))
    return Json(200, {"runs": runs})


def _searched(path: Path, search: Search) -> list[dict[str, Any]]:
    from supervisor.record.past import Query, open_past

    query = Query(search.job, search.reason, search.since, search.until, search.limit)
    with open_past(path) as past:
        return past.runs(query)


async def _record(ask: Ask) -> Answer:
    run = ask.path["run"]
    found = await _in_thread(partial(_one, _state(ask).history, run))
    if found is None:
        raise Refusal(404, f"no run is named {run}", hint="supervise history lists them")
    return Json(200, found)


def _one(path: Path, run: str) -> dict[str, Any] | None:
    from supervisor.record.past import open_past

    with open_past(path) as past:
        return past.record(run)


async def _explain(ask: Ask) -> Answer:
    job, run = ask.job(), ask.query.run
    now = time.time()
    status, held = job.status(now), waits(job, ask.instance.jobs, now)
    told = await _in_thread(partial(story, _state(ask), job.spec.name, run))
    if told is None and run is not None:
        raise Refusal(404, f"{job.spec.name} has no run named {run}")
    return Json(200, Explanation(status, held, told))


async def _in_thread(read: Any) -> Any:
    """Files are read beside the event loop; raises Refusal (503)."""
    try:
        return await trio.to_thread.run_sync(read, abandon_on_cancel=True)
    except SupervisorError as error:
        raise Refusal(503, error.message, hint=error.hint) from error


def _state(ask: Ask) -> StateDir:
    state = ask.instance.shared.state
    if state is None:
        raise Refusal(409, "this instance keeps nothing")
    return state


ROUTES = (
    Route(
        "GET",
        "/history",
        _history,
        "read",
        "the runs of before, the newest first",
        query=Search,
        answer=PastRuns,
    ),
    Route(
        "GET",
        "/history/{run}",
        _record,
        "read",
        "the record of one run",
        answer=dict[str, Any],
    ),
    Route(
        "GET",
        "/jobs/{job}/explain",
        _explain,
        "read",
        "what a job waits for, or what happened to its last run and why",
        query=WhichRun,
        answer=Explanation,
    ),
)
