"""GET /v1/jobs/{job}/logs: the lines of a job's last run, and those to come.

Read from the files, as fast as the client reads: nothing is queued for him.  What rotation has
removed before he came to it is told of by a gap.

May import: `errors`, `record`, `supervise` (for its types only), `control.routes`, attrs, trio.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, aclosing
from typing import Any, Literal

import trio
from attrs import field, frozen
from attrs.validators import ge, matches_re, optional

from supervisor.control.routes import Answer, Ask, Lines, Refusal, Route
from supervisor.errors import KernelError
from supervisor.model.state import State
from supervisor.record.loglines import STREAMS, Line, Logged, run_of, runs_of
from supervisor.record.logsource import Source, Wanted, entry

BLIND = 2.0
"""Seconds between two looks where inotify(7) is not to be had."""


TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,6})?)?Z?)?$"
"""As much of a line's own time as one likes: they are compared as text."""


@frozen
class LogsQuery:
    """`follow`: until the job has ended, over all its further runs.  `tail`: only the last lines of
    each stream.  `since`: a UTC time, where lines have times.  `run`: this, and not the last one.
    """

    follow: bool = False
    tail: int | None = field(
        default=None, validator=optional(ge(0)), metadata={"schema": {"minimum": 0}}
    )
    since: str | None = field(
        default=None, validator=optional(matches_re(TIME)), metadata={"schema": {"pattern": TIME}}
    )
    stream: Literal["out", "err"] | None = None
    run: str | None = None


@frozen
class LogLine:
    """A line; `text`, or `base64` where it is no UTF-8; `time` where `log.timestamps` is set.

    `begin`, `end` false: the line has no beginning, or no end, in this piece.  Or a gap: so many
    bytes of `stream` were removed by rotation before they could be read.
    """

    job: str | None = None
    run: str | None = None
    stream: str | None = None
    time: str | None = None
    text: str | None = None
    base64: str | None = None
    begin: bool = True
    end: bool = True
    gap: int | None = None


async def _logs(ask: Ask) -> Answer:
    query: LogsQuery = ask.query
    job, state = ask.job(), ask.instance.shared.state
    if state is None:
        raise Refusal(409, "this instance keeps no logs")
    if query.run is None:
        runs = (await trio.to_thread.run_sync(runs_of, state, job.spec.name))[-1:]
    else:
        one = await trio.to_thread.run_sync(run_of, state, query.run)
        if one is None or one.job != job.spec.name:
            raise Refusal(404, f"{job.spec.name} has no run {query.run}")
        runs = [one]
    wanted = Wanted(
        (query.stream,) if query.stream else STREAMS, query.tail, (query.since or "").rstrip("Z")
    )
    return Lines(_Reading(ask, job.spec.name, wanted, query).lines(runs))


class _Reading:
    """One client's view of one job."""

    def __init__(self, ask: Ask, job: str, wanted: Wanted, query: LogsQuery) -> None:
        self._ask = ask
        self._job = job
        self._wanted = wanted
        self._follows = query.follow
        self._one = query.run
        self._bell = trio.Event()
        self._begun: list[str] = []
        self._ended: set[str] = set()
        self._sources: list[Source] = []
        self._seen: set[str] = set()

    async def lines(self, runs: list[Logged]) -> AsyncGenerator[Mapping[str, Any], None]:
        """What there is, then what comes."""
        self._ask.log.subscribe(self._hear)
        try:
            with self._ask.closing.calls(self._ring):
                for one in runs:
                    await self._open(one, self._wanted)
                while True:
                    self._bell = trio.Event()
                    over = self._is_over()
                    await self._open_begun()
                    with ExitStack() as stack:
                        alarms = self._armed(stack)
                        async with aclosing(self._all(over=over)) as found:
                            async for told in found:
                                yield told
                        if over:
                            return
                        await self._wait(alarms)
        finally:
            self._ask.log.unsubscribe(self._hear)
            for source in self._sources:
                source.lines.reader.close()

    def _hear(self, entry: Mapping[str, Any]) -> None:
        """The event log tells of this job; its files are there once it has started."""
        if entry.get("job") != self._job:
            return
        if entry["event"] in ("job_started", "job_ended") and entry["run"]:
            self._begun.append(entry["run"])
        if entry["event"] == "job_ended":
            self._ended.add(entry["run"])
        if entry["event"] in ("job_started", "job_ended", "job_finished"):
            self._ring()

    def _ring(self) -> None:
        self._bell.set()

    def _is_over(self) -> bool:
        """Whether what is there is all there will be."""
        if not self._follows or self._ask.closing.is_set():
            return True
        if self._one is not None and self._one in self._ended:
            return True
        job = self._ask.instance.jobs.get(self._job)
        return job is None or job.state is State.ENDED

    async def _open_begun(self) -> None:
        begun, self._begun = self._begun, []
        for run in dict.fromkeys(begun):
            if run in self._seen or self._one not in (None, run):
                continue
            state = self._ask.instance.shared.state
            assert state is not None
            one = await trio.to_thread.run_sync(run_of, state, run)
            if one is not None:
                await self._open(one, Wanted(self._wanted.streams, None, self._wanted.since))

    async def _open(self, one: Logged, wanted: Wanted) -> None:
        self._seen.add(one.run)
        self._sources += await trio.to_thread.run_sync(wanted.sources, one)

    def _armed(self, stack: ExitStack) -> list[trio.Event] | None:
        """Alarms for what is to be read next; None where there are none to be had."""
        if not self._follows:
            return []
        growth = self._ask.instance.shared.growth
        try:
            return [
                stack.enter_context(growth.armed(str(source.run.path(source.stream))))
                for source in self._sources
            ]
        except KernelError:
            return None

    async def _all(self, *, over: bool) -> AsyncGenerator[Mapping[str, Any], None]:
        """All there is of every stream; and its end, where it has one."""
        ended = self._ended.copy()
        for source in tuple(self._sources):
            while found := await trio.to_thread.run_sync(source.take):
                for told in self._told_of(source, found):
                    yield told
            if over or source.run.run in ended:
                for told in self._told_of(source, source.rest(last=True)):
                    yield told
                self._sources.remove(source)
                source.lines.reader.close()

    @staticmethod
    def _told_of(source: Source, found: list[Line]) -> list[Mapping[str, Any]]:
        missing, source.lines.gone = source.lines.gone, 0
        gap = {"gap": missing, "run": source.run.run, "stream": source.stream}
        return [*([gap] if missing else []), *(entry(source, line) for line in found)]

    async def _wait(self, alarms: list[trio.Event] | None) -> None:
        """Until something has happened."""
        if alarms is None:
            with trio.move_on_after(BLIND):
                await self._bell.wait()
            return
        async with trio.open_nursery() as nursery:

            async def wait(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            for event in (self._bell, *alarms):
                nursery.start_soon(wait, event)


ROUTES = (
    Route(
        "GET",
        "/jobs/{job}/logs",
        _logs,
        "read",
        "what a job has printed, or goes on printing",
        query=LogsQuery,
        answer=LogLine,
        streams=True,
    ),
)
