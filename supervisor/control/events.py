"""GET /v1/events: the event log, from the file and then as it happens.

May import: `errors`, `record`, `control.{feed,routes}`, attrs, trio.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import closing
from difflib import get_close_matches
from typing import Any

import trio
from attrs import field, frozen
from attrs.validators import ge, optional

from supervisor.control.feed import Feed
from supervisor.control.routes import Answer, Ask, Lines, Refusal, Route
from supervisor.record.entries import KINDS
from supervisor.record.eventfiles import Tail

PART = 256 * 1024
"""Bytes of the log that are read at a time: parsed within a few milliseconds."""


@frozen
class EventsQuery:
    """`since`: only entries with a higher number; those of before this instance begin at 0.

    Without it, those that this instance has written.  `follow`: and those to come.  `job` and
    `event` choose, as many as one likes of either.
    """

    since: int | None = field(
        default=None, validator=optional(ge(0)), metadata={"schema": {"minimum": 0}}
    )
    follow: bool = False
    job: tuple[str, ...] = ()
    event: tuple[str, ...] = field(
        default=(), metadata={"schema": {"items": {"type": "string", "enum": list(KINDS)}}}
    )

    def wants(self, entry: Mapping[str, Any]) -> bool:
        """Whether it is among those that were asked for; a gap always is."""
        if "gap" in entry:
            return True
        return (not self.job or entry.get("job") in self.job) and (
            not self.event or entry["event"] in self.event
        )


@frozen
class EventLine:
    """An entry of the event log (docs/verdicts.md), which has further fields.

    Or a gap: so many entries, from one number to another, came faster than they were read.
    """

    seq: int | None = None
    time: str | None = None
    event: str | None = None
    job: str | None = None
    gap: int | None = None


async def _events(ask: Ask) -> Answer:
    query: EventsQuery = ask.query
    for event in query.event:
        if event not in KINDS:
            near = get_close_matches(event, KINDS, 1)
            hint = f"did you mean {near[0]}?" if near else "docs/verdicts.md lists them"
            raise Refusal(400, f"no entry is called {event}", hint=hint)
    since = ask.log.began if query.since is None else query.since
    return Lines(_lines(ask, query, since))


async def _lines(
    ask: Ask, query: EventsQuery, since: int
) -> AsyncGenerator[Mapping[str, Any], None]:
    """What was written before this moment is in the file, what comes later in the feed."""
    feed, last = Feed(), ask.log.seq

    def heard(entry: Mapping[str, Any]) -> None:
        if query.wants(entry):
            feed.put(entry)

    if query.follow:
        ask.log.subscribe(heard)
    try:
        with closing(Tail(ask.log.path, since)) as tail:
            while tail.seq < last and (part := await trio.to_thread.run_sync(tail.read, PART)):
                for old in part:
                    if old.seq <= last and query.wants(old.entry):
                        yield old.entry
        if query.follow:
            with ask.closing.calls(feed.end):
                while (new := await feed.take()) is not None:
                    if "gap" in new or new["seq"] > since:
                        yield new
    finally:
        ask.log.unsubscribe(heard)


ROUTES = (
    Route(
        "GET",
        "/events",
        _events,
        "read",
        "the event log, so far or as it goes on",
        query=EventsQuery,
        answer=EventLine,
        streams=True,
    ),
)
