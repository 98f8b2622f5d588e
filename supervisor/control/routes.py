"""What a route is, what its handler is given, and what it may answer.

May import: `errors`, `model`, `record`, `supervise`, attrs, trio (for its types only).

A handler runs in the event loop, as everything does that changes a job: it must not block.  It
is cancelled when its client goes away, so what must happen once begun is done before the first
`await`, or shielded.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal

from attrs import field, frozen

from supervisor.control.feed import Closing

if TYPE_CHECKING:
    from supervisor.control.peers import Peer
    from supervisor.control.wire import Wire
    from supervisor.record.eventlog import EventLog
    from supervisor.supervise.instance import Instance
    from supervisor.supervise.job import Job

PREFIX = "/v1"
"""Before the path of every route."""

Access = Literal["read", "steer"]
"""Who may: also the read-only group, or only root and the instance's owner."""


@frozen
class About:
    """The instance as `GET /v1/` tells of it.  `started_at` is ISO 8601 in UTC."""

    name: str
    version: str
    pid: int
    owner: int
    started_at: str
    state_dir: str
    socket: str
    config: str | None = None
    cgroup: str = ""


@frozen
class Ask:
    """One request, checked: `path` has the values of `{...}`, `query` and `body` are instances of
    the route's classes (None where it has none), `wire` is the client's connection.
    """

    instance: Instance
    log: EventLog
    about: About
    peer: Peer
    path: Mapping[str, str] = field(factory=dict)
    query: Any = None
    body: Any = None
    closing: Closing = field(factory=Closing)
    """Set when the instance is about to end: whoever waits answers then."""

    def job(self) -> Job:
        """The job that the path names.  Raises Refusal (404), with the nearest name."""
        return self.find(self.path["job"])

    def find(self, name: str) -> Job:
        """A job by its name.  Raises Refusal (404)."""
        job = self.instance.jobs.get(name)
        if job is None:
            raise Refusal(404, f"no job is named {name}", hint=_nearest(name, self.instance.jobs))
        return job

    def steered(self, verb: str, **fields: Any) -> None:
        """Write down that the client has done something: the event `steered`."""
        peer = self.peer
        self.log.emit("steered", verb=verb, by=peer.told, uid=peer.uid, pid=peer.pid, **fields)


def _nearest(name: str, names: Mapping[str, Any]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, names, 1)
    return f"did you mean {near[0]}?" if near else "supervise ps lists them"


@frozen
class Json:
    """A whole answer; `value` is of JSON's types, or an attrs object (or several)."""

    status: int
    value: Any


@frozen
class Lines:
    """A stream of JSON objects, one a line (application/x-ndjson), as long as `entries` gives any.

    A client that does not read holds up `entries` and nothing else: whoever feeds it from what
    does not wait puts a bounded queue between (`control.feed`).
    """

    entries: AsyncGenerator[Mapping[str, Any], None]


@frozen
class Takeover:
    """The connection itself, for `run`, after "101 Switching Protocols" to `protocol`.

    `run` is given the wire, and the descriptors that came with the request, which it owns.
    """

    protocol: str
    run: Callable[[Wire, tuple[int, ...]], Awaitable[None]]


Answer = Json | Lines | Takeover
Handler = Callable[[Ask], Awaitable[Answer]]


@frozen
class Route:
    """One thing that can be asked.

    `path` is without the prefix, as "/jobs/{job}/stop".  `body` and `query` are attrs classes:
    what is sent is checked against them (`control.fields`).  `answer` is the class of what is
    answered, or of one line of it; OpenAPI tells of all three (`control.openapi`).
    """

    method: str
    path: str
    handler: Handler
    access: Access
    summary: str
    body: type[Any] | None = None
    query: type[Any] | None = None
    answer: Any = None
    status: int = 200
    """Of an answer that is no error."""
    streams: bool = False
    """Whether it answers with Lines of `answer`."""
    checks_more: bool = False
    """Whether a body may be refused (400) that its class allows: no schema describes all that a
    setting (docs/config.md) or a command must be."""
    upgrade: str = ""
    """The protocol of a Takeover, in lower case."""


class Refusal(Exception):
    """An answer that is an error: `{"error": ..., "hint": ..., ...}` with this status."""

    def __init__(
        self,
        status: int,
        error: str,
        *,
        hint: str = "",
        headers: Sequence[tuple[str, str]] = (),
        **more: Any,
    ) -> None:
        super().__init__(error)
        self.headers = headers
        self.status = HTTPStatus(status)
        self.error = error
        self.hint = hint
        self.more = more

    def answer(self) -> Json:
        hint = {"hint": self.hint} if self.hint else {}
        return Json(self.status, {"error": self.error, **hint, **self.more})
