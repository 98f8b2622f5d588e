"""What the jobs use: one look, or look after look as a stream.

May import: `errors`, `model`, `supervise`, `control.routes`, attrs, trio.

Nothing is read unless somebody asks, and clients that ask at the same time share what is read.
Streams of one interval look at the same moments, so that they do.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from typing import Any

import trio
from attrs import define, field, frozen
from attrs.validators import ge, le

from supervisor.control.routes import Answer, Ask, Json, Lines, Route
from supervisor.model.record import iso
from supervisor.supervise.stats import NOTHING, Look, Sampler, report
from supervisor.supervise.usage import JobUsage

LEAST_INTERVAL = 0.25
"""Seconds; what is read at an instant, and is 10 ms off, is not off by more than 4 % then."""
LONGEST_INTERVAL = 3600.0
LONGEST_WINDOW = 60.0

ENCODED = 64
"""Jobs between which the event loop gets its turn, while an answer is made of a look."""


MOST_LOOKS = 1 << 31


def _within(default: float, least: float, most: float) -> Any:
    """A field whose bounds the OpenAPI document tells, too."""
    schema = {"minimum": least, "maximum": most}
    return field(default=default, validator=[ge(least), le(most)], metadata={"schema": schema})


@frozen
class StatsQuery:
    """`job`: only these (several times).  `processes`: each process of theirs, too.

    `over`: look twice, so many seconds apart, so that there are rates; 0: counters alone.
    """

    job: tuple[str, ...] = ()
    processes: bool = False
    over: float = _within(0.0, 0.0, LONGEST_WINDOW)


@frozen
class FollowQuery:
    """As in StatsQuery; `interval`: seconds between two looks.  `count`: how many, 0: no end."""

    job: tuple[str, ...] = ()
    processes: bool = False
    interval: float = _within(2.0, LEAST_INTERVAL, LONGEST_INTERVAL)
    count: int = _within(0, 0, MOST_LOOKS)


@define
class StatsAnswer:
    """One look: `at` is ISO 8601 in UTC; `cpus` are the host's, `own_cpus` the instance may use.

    Without names there are the jobs that run now.  `problems`: what could not be read.
    """

    at: str
    cpus: int
    own_cpus: int
    jobs: list[JobUsage] = field(factory=list)
    problems: list[str] = field(factory=list)


@define
class FollowLine:
    """One line of a stream: one job's, or with `job` null the line that ends each look.

    `look` counts the looks; the first one has no rates.  Of the line at the end, `jobs` is how
    many lines there were, and `problems` are what could not be read.
    """

    look: int
    at: str
    job: JobUsage | None
    jobs: int
    cpus: int
    own_cpus: int
    problems: list[str]


async def _stats(ask: Ask) -> Answer:
    query: StatsQuery = ask.query
    _known(ask, query.job)
    sampler: Sampler = ask.instance.sampler
    before = NOTHING
    with sampler.watching():
        if query.over:
            before = await sampler.look(query.job, processes=query.processes)
            with trio.move_on_after(query.over):
                await ask.closing.wait()
        now = await sampler.look(query.job, processes=query.processes)
    jobs = []
    for one in _reports(ask, before, now, query.job):
        jobs.append(one)
        if len(jobs) % ENCODED == 0:
            await trio.lowlevel.checkpoint()
    cpus = sampler.cpus
    answer = {"at": iso(now.at), "cpus": cpus.host, "own_cpus": cpus.own}
    return Json(200, {**answer, "jobs": jobs, "problems": now.problems})


async def _follow(ask: Ask) -> Answer:
    query: FollowQuery = ask.query
    _known(ask, query.job)
    return Lines(_looks(ask, query))


async def _looks(ask: Ask, query: FollowQuery) -> AsyncGenerator[Mapping[str, Any], None]:
    """A client that does not read is not looked for: the next look is when it has taken this."""
    sampler: Sampler = ask.instance.sampler
    before, number = NOTHING, 0
    with sampler.watching():
        while not ask.closing.is_set():
            now = await sampler.look(query.job, processes=query.processes)
            number += 1
            line = {"look": number, "at": iso(now.at), "job": None, "jobs": 0,
                    "cpus": sampler.cpus.host, "own_cpus": sampler.cpus.own,
                    "problems": []}  # fmt: skip
            count = 0
            for job in _reports(ask, before, now, query.job):
                count += 1
                yield {**line, "job": job}
            yield {**line, "jobs": count, "problems": now.problems}
            if number == query.count:
                return
            before = now
            with trio.move_on_after(until_next(query.interval, time.monotonic())):
                await ask.closing.wait()


def _reports(ask: Ask, before: Look, now: Look, names: tuple[str, ...]) -> Iterator[JobUsage]:
    """Of the jobs that were named, else of those that ran, in the order of the configuration."""
    for name in dict.fromkeys(names) or tuple(now.runs):
        job = ask.instance.jobs.get(name)
        if job is not None:
            yield report(job, before, now, ask.instance.sampler.cpus)


def until_next(interval: float, now: float) -> float:
    """Seconds to the next whole multiple of `interval`: so all who have it wake together.

    At least half an interval: who is late skips one.
    """
    wait = (math.floor(now / interval) + 1) * interval - now
    return wait if wait >= interval / 2 else wait + interval


def _known(ask: Ask, names: tuple[str, ...]) -> None:
    """Raises Refusal (404) for a name that no job has."""
    for name in names:
        ask.find(name)


ROUTES = (
    Route(
        "GET",
        "/stats",
        _stats,
        "read",
        "what the jobs use now",
        query=StatsQuery,
        answer=StatsAnswer,
    ),
    Route(
        "GET",
        "/stats/follow",
        _follow,
        "read",
        "what the jobs use, again and again",
        query=FollowQuery,
        answer=FollowLine,
        streams=True,
    ),
)
