"""A bound on what a job writes to its stdout and stderr, both together: `limits.output`.

May import: `errors`, trio.  Only a job with such a limit has pipes for its streams, and a task that
copies them to where they would have gone: what is written is exactly the limit, and no byte more.
Others write to their files themselves, and need nobody.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import sys
import termios
from collections.abc import Callable, Sequence

import trio

CHUNK = 64 * 1024
PIECE = 4096
"""Bytes for one write(2): somebody who reads slowly is seen to take them (PIPE_BUF, pipe(7))."""

STALLED = 5.0
"""Seconds, in a hurry: a target that takes nothing for so long is given up."""


class Output:
    """Copies from the reading end of each pipe to its target until the job is over.

    `full` is called once, when the limit is passed; `trouble` with the text of a failed write, once
    for each target.  What comes after either is read, so that nobody waits, and dropped.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[int, int]],
        limit: int,
        *,
        full: Callable[[], None],
        trouble: Callable[[str], None],
    ) -> None:
        self._pairs = pairs
        self._limit = limit
        self._full = full
        self._trouble = trouble
        self._told = False
        self._failed: set[int] = set()
        self._broken: set[int] = set()
        self._waits: set[trio.CancelScope] = set()
        self._over = False
        self._hurry = trio.Event()
        self._copied = trio.Event()
        self._taken = 0
        self.written = 0
        """Bytes that have arrived at their targets."""

    async def run(self) -> None:
        """Until every writer has closed its end, or `finish`."""
        try:
            async with trio.open_nursery() as nursery:
                for reader, target in self._pairs:
                    os.set_blocking(reader, False)
                    nursery.start_soon(self._copy, reader, target)
        finally:
            self._copied.set()

    async def finish(self) -> None:
        """The job is over: wait until what it has written has arrived.

        Its processes are all gone, so nothing is added; somebody else who was handed such a pipe
        is not waited for.
        """
        self._over = True
        for scope in self._waits:
            scope.cancel()
        await self._copied.wait()

    def hurry(self) -> None:
        """From now on nobody is waited for who reads nothing for STALLED seconds."""
        self._hurry.set()

    async def _copy(self, reader: int, target: int) -> None:
        while not self._over:
            await self._wait(reader)
            data = _read_now(reader, CHUNK)
            if data is None:
                continue  # it is over; or the job has read its own output
            if not data:
                return
            await self._pass_on(target, data)
            if target in self._broken:
                _break(reader)
                return
        await self._copy_rest(reader, target)

    async def _wait(self, reader: int) -> None:
        """Until there is something to read, or the job is over."""
        with trio.CancelScope() as scope:
            self._waits.add(scope)
            try:
                await trio.lowlevel.wait_readable(reader)
            finally:
                self._waits.discard(scope)

    async def _copy_rest(self, reader: int, target: int) -> None:
        """What the pipe holds, and not what somebody outside goes on writing to it."""
        left = _held(reader)
        while left > 0 and (data := _read_now(reader, min(left, CHUNK))):
            left -= len(data)
            await self._pass_on(target, data)

    async def _pass_on(self, target: int, data: bytes) -> None:
        kept = data[: self._limit - self._taken]
        self._taken += len(kept)
        if kept and target not in self._failed:
            await self._write(target, kept)
        if len(kept) < len(data) and not self._told:
            self._told = True
            self._full()

    async def _write(self, target: int, data: bytes) -> None:
        """Not to be torn apart: a chunk that has been read is written, whoever cancels."""
        chunk = _Chunk(target, data)
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.shield = True
            nursery.start_soon(self._abandon, chunk, nursery.cancel_scope)
            await trio.to_thread.run_sync(chunk.write, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()
        self.written += chunk.done
        if chunk.abandoned:
            self._failed.add(target)
            self._trouble(f"the job's last output is lost: nobody has read it for {STALLED:g} s")
        elif chunk.error is not None:
            self._give_up(target, chunk.error)

    async def _abandon(self, chunk: _Chunk, thread: trio.CancelScope) -> None:
        """In a hurry, leave the thread alone with a target that takes nothing."""
        await self._hurry.wait()
        before = -1
        while chunk.done > before:
            before = chunk.done
            await trio.sleep(STALLED)
        chunk.abandoned = True
        thread.cancel()

    def _give_up(self, target: int, error: OSError) -> None:
        self._failed.add(target)
        if error.errno == errno.EPIPE:
            self._broken.add(target)
        else:
            self._trouble(f"cannot write the job's output: {error.strerror}")


class _Chunk:
    """Some bytes on their way to a target.

    `done` of them have arrived; once it is `abandoned` no more are written.
    """

    def __init__(self, target: int, data: bytes) -> None:
        self._target = target
        self._data = data
        self.done = 0
        self.error: OSError | None = None
        self.abandoned = False

    def write(self) -> None:
        """In a thread: whoever reads a caller's pipe may take his time."""
        try:
            while self.done < len(self._data) and not self.abandoned:
                self._write_piece()
        except OSError as error:
            self.error = error

    def _write_piece(self) -> None:
        try:
            self.done += os.write(self._target, self._data[self.done : self.done + PIECE])
        except BlockingIOError:  # the caller's streams are as the caller has set them
            room = select.poll()
            room.register(self._target, select.POLLOUT)
            room.poll()


def _break(reader: int) -> None:
    """To the job, its reader has gone: it gets SIGPIPE, as if it had written there itself."""
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, reader, inheritable=False)
    os.close(null)


def _read_now(reader: int, size: int) -> bytes | None:
    """None: there is nothing; b"": nobody can write there any more."""
    try:
        return os.read(reader, size)
    except BlockingIOError:
        return None


def _held(reader: int) -> int:
    """How many bytes wait in a pipe (FIONREAD, pipe(7))."""
    size = bytearray(4)
    fcntl.ioctl(reader, termios.FIONREAD, size)
    return int.from_bytes(size, sys.byteorder)
