"""Speaking to the server of a socket without an instance behind it, byte by byte."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import h11
import trio

from supervisor.control.http import Connection
from supervisor.control.peers import Peer
from supervisor.control.routes import About, Ask, Route
from supervisor.control.wire import Wire

ROOT = Peer(pid=1, uid=0, gid=0, groups=frozenset())
ABOUT = About("it", "1", 1, 0, "2026-01-01T00:00:00.000Z", "/state", "/run/socket")


class Told:
    """An event log that keeps what it is told."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def emit(self, event: str, **fields: Any) -> None:
        self.entries.append({"event": event, **fields})


class Talk:
    """A client's end; `ask` sends a request and reads its whole answer, by h11."""

    def __init__(self, stream: trio.SocketStream, log: Told) -> None:
        self.stream = stream
        self.log = log

    async def ask(
        self, method: str, target: str, body: bytes = b"", headers: Sequence[tuple[str, str]] = ()
    ) -> tuple[int, bytes]:
        """Status and body."""
        http = h11.Connection(h11.CLIENT)
        length = ("Content-Length", str(len(body)))
        request = h11.Request(
            method=method, target=target, headers=[("Host", "x"), length, *headers]
        )
        for event in (request, h11.Data(data=body), h11.EndOfMessage()):
            await self.stream.send_all(http.send(event) or b"")
        return await self.answer(http)

    async def answer(self, http: h11.Connection) -> tuple[int, bytes]:
        """What comes for a request that has been sent."""
        status, body = 0, b""
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await self.stream.receive_some())
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return status, body

    async def raw(self, data: bytes) -> bytes:
        """Send just this, and read until the server hangs up."""
        await self.stream.send_all(data)
        return b"".join([part async for part in self.stream])


@asynccontextmanager
async def talk(
    routes: Sequence[Route], peer: Peer = ROOT, group: int | None = None
) -> AsyncIterator[Talk]:
    """A client of a server that has these routes."""
    ours, theirs = socket.socketpair()
    log = Told()
    async with trio.open_nursery() as nursery:
        wire = Wire(trio.socket.from_stdlib_socket(theirs))
        ask = Ask(None, log, ABOUT, peer)  # type: ignore[arg-type]
        connection = Connection(wire, ask, routes, group)

        async def serve() -> None:
            try:
                await connection.serve()
            finally:
                wire.close()

        nursery.start_soon(serve)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        async with stream:
            yield Talk(stream, log)
        nursery.cancel_scope.cancel()
