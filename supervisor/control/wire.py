"""One client's connection: bytes, and the descriptors that come with them (unix(7), SCM_RIGHTS).

May import: `errors`, trio.
"""

from __future__ import annotations

import array
import os
import select
import socket
from contextlib import suppress

import trio

CHUNK = 65536
MOST_DESCRIPTORS = 16
"""That one request may bring; the kernel closes what is beyond."""

_SPACE = socket.CMSG_SPACE(4 * MOST_DESCRIPTORS)


class Wire:
    """A connected socket.  Every method raises trio.BrokenResourceError when the client is gone."""

    def __init__(self, connection: trio.socket.SocketType, early: bytes = b"") -> None:
        self.socket = connection
        self._early = early
        self._descriptors: list[int] = []
        self._sending = trio.Lock()

    async def receive(self, most: int = CHUNK) -> bytes:
        """What has come, at least one byte; b"" at the end.  Descriptors are put aside."""
        if self._early:
            data, self._early = self._early[:most], self._early[most:]
            return data
        try:
            data, ancillary, _flags, _ = await self.socket.recvmsg(
                most, _SPACE, socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise trio.BrokenResourceError from error
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                self._descriptors += array.array("i", raw[: len(raw) - len(raw) % 4])
        self._drop(MOST_DESCRIPTORS)
        return data

    async def send(self, data: bytes) -> None:
        """All of `data`; waits as long as the client does not read."""
        async with self._sending:
            left = memoryview(data)
            while left:
                try:
                    left = left[await self.socket.send(left) :]
                except OSError as error:
                    raise trio.BrokenResourceError from error

    def give_back(self, data: bytes) -> None:
        """What was read and belongs to whoever reads next."""
        self._early = data + self._early

    def descriptors(self) -> tuple[int, ...]:
        """Those that have come since the last time; they are the caller's to close."""
        found, self._descriptors = tuple(self._descriptors), []
        return found

    def drop_descriptors(self) -> None:
        """Close those that nobody asked for."""
        self._drop(0)

    def _drop(self, but: int) -> None:
        for fd in self._descriptors[but:]:
            os.close(fd)
        del self._descriptors[but:]

    def hung_up(self) -> bool:
        """Whether the client has closed both directions, not only the one it sends in."""
        poll = select.poll()
        poll.register(self.socket.fileno(), 0)  # POLLHUP and POLLERR come unasked
        return bool(poll.poll(0))

    def finish(self) -> None:
        """Send no more."""
        with suppress(OSError):  # it has hung up
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.drop_descriptors()
        self.socket.close()
