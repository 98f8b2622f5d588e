"""Published TCP ports for who is on the host itself: a listener that passes connections on.

The rules of `container.firewall` translate what comes from other machines.  For what the host sends
to itself, over loopback above all, they would need `route_localnet`, which lets packets with
loopback addresses out of and into the host; a listener needs nothing, and says at once when the
port is taken.

May import: `errors`, `model`, trio.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

import trio

from supervisor.errors import SpawnError
from supervisor.model.job import Port

if TYPE_CHECKING:
    from trio import SocketStream

BACKLOG = 128
MOST = 512
"""Connections at once of one job; further ones wait in the backlog."""
CHUNK = 1 << 16
_CALM = 0.1
"""Seconds to wait when the process has no descriptor left for a connection."""


class Forwarder:
    """The listeners of one job's ports, each for one address of the host."""

    def __init__(self, ports: Iterable[Port], job: str) -> None:
        """`job` is its address.  SpawnError (stage `network`) names a port that is taken."""
        self._job = job
        self._places = trio.Semaphore(MOST)
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._listeners: list[tuple[socket.socket, int]] = []
        try:
            for port in ports:
                if port.protocol == "tcp":
                    self._listeners.append((_listen(port), port.inside))
        except BaseException:
            self.close()
            raise

    def __bool__(self) -> bool:
        return bool(self._listeners)

    async def run(self) -> None:
        """Until `stop`; raises nothing: what goes wrong ends one connection."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for listener, inside in self._listeners:
                        nursery.start_soon(self._serve, nursery, listener, inside)
        finally:
            self.close()
            self._ended.set()

    async def stop(self) -> None:
        """End it, if it runs, with all its connections."""
        self._scope.cancel()
        await self._ended.wait()

    def close(self) -> None:
        for listener, _inside in self._listeners:
            listener.close()

    async def _serve(self, nursery: trio.Nursery, listener: socket.socket, inside: int) -> None:
        ours = trio.socket.from_stdlib_socket(listener)
        while True:
            await self._places.acquire()
            try:
                peer, _address = await ours.accept()
            except OSError as error:
                self._places.release()
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    await trio.sleep(_CALM)
                continue  # ECONNABORTED: who called has gone
            nursery.start_soon(self._pass_on, trio.SocketStream(peer), inside)

    async def _pass_on(self, caller: SocketStream, inside: int) -> None:
        try:
            async with caller:
                try:
                    job = await trio.open_tcp_stream(self._job, inside)
                except OSError:
                    return  # nobody listens there (yet): the caller sees an end of file
                async with job, trio.open_nursery() as nursery:
                    nursery.start_soon(_copy, caller, job, nursery)
                    nursery.start_soon(_copy, job, caller, nursery)
        finally:
            self._places.release()


async def _copy(source: SocketStream, target: SocketStream, both: trio.Nursery) -> None:
    """Until the end of file, which is passed on; a broken connection ends both directions."""
    try:
        while data := await source.receive_some(CHUNK):
            await target.send_all(data)
        await target.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        both.cancel_scope.cancel()


def check_free(ports: Iterable[Port]) -> None:
    """SpawnError (stage `network`) names a port that is taken, or not for us to take."""
    for port in ports:
        if port.protocol == "tcp":
            _listen(port).close()
        else:
            _bind(port).close()


def _bind(port: Port) -> socket.socket:
    """A UDP port, IPv4 as all that are published."""
    found = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        found.bind((port.address or "0.0.0.0", port.outside))
    except OSError as error:
        found.close()
        raise _taken(port, error) from error
    return found


def _taken(port: Port, error: OSError) -> SpawnError:
    hint = _HINTS.get(error.errno or 0, "")
    return SpawnError("network", error.errno or 0, f"{port.address or '*'}:{port.outside}", "",
                      hint=hint)  # fmt: skip


_HINTS = {
    errno.EADDRINUSE: "another job or service has the port",
    errno.EACCES: "ports below net.ipv4.ip_unprivileged_port_start take root",
}


def _listen(port: Port) -> socket.socket:
    """On one address; without one on all, of both families where the host has IPv6."""
    address = port.address or ("::" if socket.has_dualstack_ipv6() else "0.0.0.0")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server(
            (address, port.outside),
            family=family,
            backlog=BACKLOG,
            dualstack_ipv6=family == socket.AF_INET6 and port.address is None,
        )
    except OSError as error:
        raise _taken(port, error) from error
