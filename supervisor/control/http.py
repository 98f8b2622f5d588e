"""One client's connection as HTTP/1.1 (RFC 9112), by h11: requests in, answers out.

May import: h11 (and is the only one to), trio, `errors`, `supervise`,
`control.{fields,peers,routes,wire}`.
Imported when the first client comes: nobody else pays for it.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import h11
import trio
from attrs import evolve

from supervisor.control import fields
from supervisor.control.peers import learn_name, permit
from supervisor.control.routes import (
    PREFIX,
    Answer,
    Ask,
    Json,
    Lines,
    Refusal,
    Route,
    Takeover,
)
from supervisor.control.wire import Wire
from supervisor.errors import ConfigError, KernelError, SupervisorError
from supervisor.supervise.surroundings import unwrapped

LARGEST_HEAD = 16 * 1024
LARGEST_BODY = 1024 * 1024
"""Bytes of a request."""

REQUEST_TIME = 20.0
"""Seconds for a whole request, once it is awaited."""

IDLE_TIME = 60.0
"""Seconds a client may keep a connection without asking anything."""

ANSWER_TIME = 60.0
"""Seconds for a client to take a whole answer that is no stream."""

LOOK_AGAIN = 1.0
"""Seconds; nobody tells that a client which sends no more has gone altogether."""

LINGER = 2.0
"""Seconds for a client that is refused to stop sending."""

AHEAD = 64 * 1024
"""Bytes that a client may send ahead while it is being answered."""

_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


class Connection:
    """Serves one client, one request after the other, until either has had enough."""

    def __init__(self, wire: Wire, ask: Ask, table: Sequence[Route], group: int | None) -> None:
        """`ask` is what all requests of this client have in common."""
        self._wire = wire
        self._ask = ask
        self._table = table
        self._group = group
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGEST_HEAD)
        self.busy = False
        """Whether an answer is owed."""

    async def serve(self) -> None:
        """Raises nothing but cancellation."""
        try:
            while await self._one():
                self._http.start_next_cycle()
                self._wire.drop_descriptors()
        except (*_GONE, h11.LocalProtocolError, trio.TooSlowError):
            pass  # it hung up, takes nothing, or spoke nonsense in the middle of our answer
        finally:
            self.busy = False

    async def turn_away(self, why: str) -> None:
        """Answer that there are too many clients, without having read anything."""
        try:
            await self._send(Refusal(503, why, hint="close some").answer())
            await self._linger()
        except (*_GONE, trio.TooSlowError):
            pass

    async def _one(self) -> bool:
        """Answer one request; whether there may be another."""
        try:
            request = await self._request()
            if request is None:
                return False
            self.busy = True
            await self._answered(request)
        except Refusal as refusal:
            await self._send(refusal.answer(), refusal.headers)
        except h11.RemoteProtocolError as error:
            await self._send(_bad(error))
        self.busy = False
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            return not self._ask.closing.is_set()
        await self._linger()
        return False

    async def _request(self) -> h11.Request | None:
        """The head of the next request; None when there is none in time."""
        with trio.move_on_after(IDLE_TIME):
            event = await self._event()
            return _bounded(event) if isinstance(event, h11.Request) else None
        return None

    async def _event(self) -> Any:
        """What the client says next.  Raises h11.RemoteProtocolError."""
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                await self._say(h11.InformationalResponse(status_code=100, headers=[]))
            self._http.receive_data(await self._wire.receive())
        return event

    async def _answered(self, request: h11.Request) -> None:
        """Answer it.  Raises Refusal, as long as no answer has begun."""
        raw = await self._body()
        method, path, query = _target(request)
        route, names = find(self._table, method, path)
        permit(self._ask.peer, route.access, self._ask.about.owner, self._group)
        ask = evolve(
            self._ask,
            path=names,
            query=fields.query_of(route.query, query),
            body=None if route.body is None else fields.body_of(route.body, raw),
        )
        if route.upgrade:
            await self._take_over(request, route, ask)
        else:
            await self._watched(partial(self._perform, route, ask))

    async def _body(self) -> bytes:
        body = bytearray()
        with trio.move_on_after(REQUEST_TIME):
            while isinstance(event := await self._event(), h11.Data):
                body += event.data
                if len(body) > LARGEST_BODY:
                    raise Refusal(413, f"the body has more than {LARGEST_BODY} bytes")
            return bytes(body)
        raise Refusal(408, f"the body did not arrive within {REQUEST_TIME:g} s")

    async def _watched(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do it, unless the client goes away meanwhile."""
        failed: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_gone, nursery.cancel_scope)
            try:
                await work()
            except Exception as error:
                failed = error  # not in a group, which is what a nursery would make of it
            nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed

    async def _until_gone(self, scope: trio.CancelScope) -> None:
        """Take what the client sends ahead, some of it; cancel `scope` when it has hung up."""
        ahead = 0
        try:
            while ahead < AHEAD:
                data = await self._wire.receive()
                self._http.receive_data(data)
                ahead += len(data)
                if not data:
                    break
            while not self._wire.hung_up():
                await trio.sleep(LOOK_AGAIN)
        except _GONE:
            pass
        scope.cancel()

    async def _perform(self, route: Route, ask: Ask) -> None:
        answer = await self._called(route, ask)
        if isinstance(answer, Lines):
            await self._stream(answer)
        elif isinstance(answer, Json):
            await self._send(answer)
        else:
            raise TypeError(f"{route.path} takes over without an upgrade")

    async def _called(self, route: Route, ask: Ask) -> Answer:
        """What the handler answers.  Raises Refusal, whatever it was that went wrong."""
        if ask.peer.uid and route.access != "read":
            await trio.to_thread.run_sync(learn_name, ask.peer.uid)
        try:
            with unwrapped():
                return await route.handler(ask)
        except Refusal:
            raise
        except ConfigError as error:
            problems = list(error.problems)
            raise Refusal(400, "it is not right", hint=error.hint, problems=problems) from error
        except SupervisorError as error:
            status = 500 if isinstance(error, KernelError) else 409
            raise Refusal(status, error.message, hint=error.hint) from error
        except Exception as error:
            self._tell(route, error)
            raise Refusal(500, "this is a bug of supervise; its event log has more") from error

    def _tell(self, route: Route, error: Exception) -> None:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        text = f"a bug: {route.method} {route.path}: {error!r} at {where}"
        self._ask.log.emit("warning", text=text)

    async def _take_over(self, request: h11.Request, route: Route, ask: Ask) -> None:
        if _header(request, b"upgrade").lower() != route.upgrade:
            hint = f"send Connection: upgrade and Upgrade: {route.upgrade}"
            raise Refusal(426, "this takes the connection over", hint=hint)
        answer = await self._called(route, ask)
        if not isinstance(answer, Takeover):
            raise TypeError(f"{route.path} does not take over")
        headers = [("Connection", "upgrade"), ("Upgrade", route.upgrade)]
        await self._say(h11.InformationalResponse(status_code=101, headers=headers))
        self._wire.give_back(self._http.trailing_data[0])
        await answer.run(self._wire, self._wire.descriptors())

    async def _stream(self, answer: Lines) -> None:
        """Lines as they come; one that fails midway ends without the last chunk (RFC 9112, 8)."""
        headers = [("Content-Type", "application/x-ndjson")]
        await self._say(h11.Response(status_code=200, headers=headers))
        try:
            async with aclosing(answer.entries) as entries:
                async for entry in entries:
                    await self._say(h11.Data(data=fields.encoded(entry)))
        except (Refusal, SupervisorError) as error:
            told = error.answer().value if isinstance(error, Refusal) else {"error": str(error)}
            await self._say(h11.Data(data=fields.encoded(told)))
        await self._say(h11.EndOfMessage())

    async def _send(self, answer: Json, more: Sequence[tuple[str, str]] = ()) -> None:
        """A whole answer in one piece; nothing when another has begun."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        body = fields.encoded(answer.value)
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            *more,
        ]
        reason = HTTPStatus(answer.status).phrase
        events = (
            h11.Response(status_code=answer.status, headers=headers, reason=reason.encode()),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        data = b"".join(self._http.send(event) or b"" for event in events)
        with trio.fail_after(ANSWER_TIME):
            await self._wire.send(data)

    async def _say(self, event: Any) -> None:
        await self._wire.send(self._http.send(event) or b"")

    async def _linger(self) -> None:
        """Take what is still on the way: closing before that would drop our answer (unix(7))."""
        self._wire.finish()
        left = 2 * LARGEST_BODY
        with trio.move_on_after(LINGER):
            while left > 0 and (data := await self._wire.receive()):
                left -= len(data)


def find(table: Sequence[Route], method: str, path: str) -> tuple[Route, dict[str, str]]:
    """The route of a request, and what its path names.  Raises Refusal (404, 405)."""
    wanted = fields.segments(path)
    others = []
    for route in table:
        names = _match(tuple(f"{PREFIX}{route.path}".split("/")[1:]), wanted)
        if names is not None and route.method == method:
            return route, names
        if names is not None:
            others.append(route.method)
    if others:
        allowed = ", ".join(sorted(set(others)))
        error = f"{path} takes {allowed}, not {method}"
        raise Refusal(405, error, headers=[("Allow", allowed)])
    raise Refusal(404, f"there is nothing at {path}", hint=f"see GET {PREFIX}/openapi.json")


def _match(pattern: tuple[str, ...], path: tuple[str, ...]) -> dict[str, str] | None:
    if len(pattern) != len(path):
        return None
    names = {}
    for wanted, given in zip(pattern, path, strict=True):
        if wanted.startswith("{") and given:
            names[wanted[1:-1]] = given
        elif wanted != given:
            return None
    return names


def _bounded(request: h11.Request) -> h11.Request:
    """h11 bounds what it must keep, not what came whole.  Raises Refusal (431)."""
    size = len(request.target) + sum(len(key) + len(value) for key, value in request.headers)
    if size > LARGEST_HEAD:
        raise Refusal(431, f"the request's head has more than {LARGEST_HEAD} bytes")
    return request


def _target(request: h11.Request) -> tuple[str, str, str]:
    """Method, path and query.  Raises Refusal (400)."""
    try:
        method, target = request.method.decode("ascii"), request.target.decode("ascii")
    except UnicodeDecodeError as error:
        raise Refusal(400, "the request line is not ASCII") from error
    path, _, query = target.partition("?")
    return method, path, query


def _header(request: h11.Request, name: bytes) -> str:
    found = [value for key, value in request.headers if key == name]
    return b", ".join(found).decode("latin-1")


def _bad(error: h11.RemoteProtocolError) -> Json:
    status = error.error_status_hint
    if status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
        return Refusal(status, f"the request's head has more than {LARGEST_HEAD} bytes").answer()
    return Refusal(status, f"not HTTP/1.1: {error}").answer()
