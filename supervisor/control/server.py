"""The socket of an instance: opened before its jobs start, gone when it has ended.

RUNTIME/NAME/socket, mode 0600; 0660 and the group's where `socket_group` is set.  A client costs
a task; whatever it does, no job waits for it.

May import: `errors`, `model`, `record`, `supervise`, `control.{routes,peers,wire}`, trio; the
others of `control` when the first client comes.
"""

from __future__ import annotations

import errno
import os
import socket
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from supervisor.control.feed import Closing
from supervisor.control.peers import Peer, peer_of
from supervisor.control.routes import About, Ask
from supervisor.control.wire import Wire
from supervisor.errors import KernelError
from supervisor.record.eventlog import EventLog
from supervisor.supervise.instance import Instance

if TYPE_CHECKING:
    from supervisor.control.http import Connection

NAME = "socket"
BACKLOG = 512
MOST_CLIENTS = 256
"""At once, of one user; who is beyond is told so."""

LAST_WORD = 1.0
"""Seconds for the answers that are owed when the instance ends."""

CALM = 0.1
"""Seconds to wait when there is no descriptor left for one more client."""

_LONGEST = 107
"""Bytes of a path in sockaddr_un (unix(7)), without the zero at its end."""


@asynccontextmanager
async def served(
    instance: Instance, log: EventLog, about: About, group: int | None = None
) -> AsyncIterator[None]:
    """While it lasts, clients are served, at `about.socket`; members of `group` may read.

    Raises KernelError where there can be no socket.
    """
    with _listening(Path(about.socket), group) as listener:
        async with trio.open_nursery() as nursery:
            server = Server(instance, log, about, group)
            nursery.start_soon(server.run, listener)
            yield
            with trio.move_on_after(LAST_WORD):
                await server.finish()
            nursery.cancel_scope.cancel()


class Server:
    """Takes clients."""

    def __init__(self, instance: Instance, log: EventLog, about: About, group: int | None) -> None:
        self._instance = instance
        self._log = log
        self._about = about
        self._group = group
        self._closing = Closing()
        self._left = trio.Event()
        self._clients: dict[Connection, int] = {}
        self._count: Counter[int] = Counter()
        self._modules: tuple[Any, Any] | None = None

    async def run(self, listener: trio.socket.SocketType) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    connection, _ = await listener.accept()
                except OSError as error:
                    if error.errno not in _TRANSIENT:
                        raise
                    await trio.sleep(CALM)
                    continue
                nursery.start_soon(self._serve, connection)

    async def finish(self) -> None:
        """No further requests; returns when every answer that is owed has been given."""
        self._closing.set()
        while any(client.busy for client in self._clients):
            self._left = trio.Event()
            await self._left.wait()

    async def _serve(self, connection: trio.socket.SocketType) -> None:
        wire = Wire(connection)
        try:
            peer = _peer(connection)
            if peer is not None:
                await self._talk(wire, peer)
        except Exception as error:
            # A bug of ours, or of a module that cannot be imported: no job is to suffer from it.
            self._log.emit("warning", text=f"a bug: a client was dropped: {_described(error)}")
        finally:
            wire.close()

    async def _talk(self, wire: Wire, peer: Peer) -> None:
        if self._modules is None:
            # imported for the first client, in a thread, as it takes tens of milliseconds
            self._modules = await trio.to_thread.run_sync(_import)
        http, table = self._modules
        ask = Ask(self._instance, self._log, self._about, peer, closing=self._closing)
        client = http.Connection(wire, ask, table.ROUTES, self._group)
        self._count[peer.uid] += 1
        self._clients[client] = peer.uid
        try:
            if self._count[peer.uid] > MOST_CLIENTS:
                await client.turn_away(f"uid {peer.uid} has {MOST_CLIENTS} connections already")
            else:
                await client.serve()
        finally:
            del self._clients[client]
            self._count[peer.uid] -= 1
            self._left.set()


def _described(error: Exception) -> str:
    *_, frame = traceback.extract_tb(error.__traceback__)
    return f"{error!r} at {Path(frame.filename).name}:{frame.lineno}"


_TRANSIENT = (errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def _peer(connection: trio.socket.SocketType) -> Peer | None:
    """None for one who is gone already."""
    try:
        with socket.socket(fileno=os.dup(connection.fileno())) as same:
            return peer_of(same)
    except OSError:
        return None


def _import() -> tuple[Any, Any]:
    """What only clients need."""
    from supervisor.control import http, table

    return http, table


@contextmanager
def _listening(path: Path, group: int | None) -> Iterator[trio.socket.SocketType]:
    """The socket, in the place of a stale one: whoever calls this holds the instance's lock."""
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            path.unlink(missing_ok=True)
            _bind(raw, path, group)
        except OSError as error:
            raise KernelError("open the socket", str(path), error.errno or 0) from error
        yield trio.socket.from_stdlib_socket(raw)
    finally:
        raw.close()
        path.unlink(missing_ok=True)


def _bind(raw: socket.socket, path: Path, group: int | None) -> None:
    """Nobody can connect before it listens; until then it gets its owner and mode."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        long = len(os.fsencode(path)) > _LONGEST
        raw.bind(f"/proc/self/fd/{directory}/{path.name}" if long else str(path))
        if group is None:
            os.chmod(path.name, 0o600, dir_fd=directory)
        else:
            os.chown(path.name, -1, group, dir_fd=directory, follow_symlinks=False)
            os.chmod(path.name, 0o660, dir_fd=directory)
    finally:
        os.close(directory)
    raw.listen(BACKLOG)
