"""Copying what a job writes to its stdout and stderr.

May import: `errors`, `supervise.target`, trio.  Only a job with a limit on its output
(`limits.output`), or whose `log` asks for what it cannot do itself, has pipes for its streams, and
a task that copies them to their targets; of a limit exactly so much arrives, and no byte more.
Others write to their files themselves, and need nobody.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import termios
from collections.abc import Callable, Sequence

import trio

from supervisor.supervise.target import CHUNK, Target

IN_TERMINAL = 128 * 1024
"""Bytes that may be on their way through a terminal: its port's buffer has 64 KiB."""
STALLED = 5.0
"""Seconds, in a hurry: a target that takes nothing for so long is given up."""


class Output:
    """Copies from the reading end of each pipe to its targets until the job is over.

    `full` is called once, when the limit is passed; `trouble` with the text of a failed write, once
    for each target.  What comes after either is read, so that nobody waits, and dropped.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[int, Sequence[Target]]],
        limit: int | None,
        *,
        full: Callable[[], None],
        trouble: Callable[[str], None],
    ) -> None:
        self._pairs = pairs
        self._limit = limit
        self._full = full
        self._trouble = trouble
        self._told = False
        self._failed: set[Target] = set()
        self._broken: set[Target] = set()
        self._complained: set[Target] = set()
        self._waits: set[trio.CancelScope] = set()
        self._over = False
        self._hurry = trio.Event()
        self._copied = trio.Event()
        self._taken = 0

    @property
    def written(self) -> int:
        """Bytes that have arrived, of each stream at the first of its targets."""
        return sum(targets[0].arrived for _, targets in self._pairs)

    @property
    def lost(self) -> int:
        """Bytes that have not, though they were within the limit."""
        return sum(targets[0].lost for _, targets in self._pairs)

    async def run(self) -> None:
        """Until every writer has closed its end, or `finish`."""
        try:
            async with trio.open_nursery() as nursery:
                for reader, targets in self._pairs:
                    os.set_blocking(reader, False)
                    nursery.start_soon(self._copy, reader, targets)
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

    def allow(self, limit: int | None) -> None:
        """From now on so many bytes in all, None: any number."""
        self._limit = limit

    def hurry(self) -> None:
        """From now on nobody is waited for who reads nothing for STALLED seconds."""
        self._hurry.set()

    async def _copy(self, reader: int, targets: Sequence[Target]) -> None:
        if await self._copy_on(reader, targets):
            await self._copy_rest(reader, targets)
        for target in targets:
            if target not in self._failed:
                await self._finish(target)

    async def _copy_on(self, reader: int, targets: Sequence[Target]) -> bool:
        """While the job runs; False when nothing is left to be read."""
        while not self._over:
            await self._wait(reader)
            data = _read_now(reader, CHUNK)
            if data is None:
                continue  # it is over; or the job has read its own output
            if not data:
                return False
            await self._pass_on(targets, data)
            if self._broken.issuperset(targets):
                _break(reader)
                return False
        return True

    async def _wait(self, reader: int) -> None:
        """Until there is something to read, or the job is over."""
        with trio.CancelScope() as scope:
            self._waits.add(scope)
            try:
                await trio.lowlevel.wait_readable(reader)
            finally:
                self._waits.discard(scope)

    async def _copy_rest(self, reader: int, targets: Sequence[Target]) -> None:
        """What the pipe holds, and not what somebody outside goes on writing to it."""
        left = _held(reader)
        while left > 0 and (data := _read_now(reader, min(left, CHUNK))):
            left -= len(data)
            await self._pass_on(targets, data)

    async def _pass_on(self, targets: Sequence[Target], data: bytes) -> None:
        kept = data if self._limit is None else data[: self._limit - self._taken]
        self._taken += len(kept)
        for target in targets:
            if kept and target in self._failed:
                target.drop(kept)
            elif kept:
                await self._write(target, kept)
        if len(kept) < len(data) and not self._told:
            self._told = True
            self._full()

    async def _write(self, target: Target, data: bytes) -> None:
        chunk = _Chunk(target, target.shape(data))
        await self._in_thread(chunk.write, chunk)
        if chunk.abandoned:
            why = f"nobody has read it for {STALLED:g} s"
            self._failed.add(target)
            self._complained.add(target)
            self._trouble(f"the job's last output is lost: {why}")
        else:
            why = "" if chunk.error is None else str(chunk.error.strerror)
        target.settle(data, chunk.done, why)
        if chunk.error is not None and not chunk.abandoned:
            self._give_up(target, chunk.error)
        elif target.lost:
            self._complain(target, target.why)

    async def _finish(self, target: Target) -> None:
        chunk = _Chunk(target, b"")
        await self._in_thread(chunk.finish, chunk)
        if chunk.error is not None:
            self._complain(target, str(chunk.error.strerror))
        elif target.lost:
            self._complain(target, target.why)

    async def _in_thread(self, work: Callable[[], None], chunk: _Chunk) -> None:
        """Not to be torn apart: a chunk that has been read is written, whoever cancels."""
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.shield = True
            nursery.start_soon(self._abandon, chunk, nursery.cancel_scope)
            await trio.to_thread.run_sync(work, abandon_on_cancel=True)
            nursery.cancel_scope.cancel()

    async def _abandon(self, chunk: _Chunk, thread: trio.CancelScope) -> None:
        """In a hurry, leave the thread alone with a target that takes nothing."""
        await self._hurry.wait()
        before = -1
        while chunk.done > before:
            before = chunk.done
            await trio.sleep(STALLED)
        chunk.abandoned = True
        thread.cancel()

    def _give_up(self, target: Target, error: OSError) -> None:
        if not target.passing:
            self._failed.add(target)
        if error.errno == errno.EPIPE:
            self._broken.add(target)
        else:
            self._complain(target, str(error.strerror))

    def _complain(self, target: Target, why: str) -> None:
        if target not in self._complained:
            self._complained.add(target)
            self._trouble(f"cannot write the job's output: {why}")


class _Chunk:
    """Some bytes on their way to a target.

    `done` of them have arrived; once it is `abandoned` no more are written.
    """

    def __init__(self, target: Target, data: bytes) -> None:
        self._target = target
        self._data = data
        self.done = 0
        self.error: OSError | None = None
        self.abandoned = False

    def write(self) -> None:
        """In a thread: whoever reads a caller's pipe may take his time."""
        try:
            while self.done < len(self._data) and not self.abandoned:
                piece = self._data[self.done : self.done + self._target.piece]
                self.done += self._target.write(piece)
        except OSError as error:
            self.error = error

    def finish(self) -> None:
        """The same after the last byte."""
        try:
            self._target.finish()
        except OSError as error:
            self.error = error


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
    """How many bytes wait in a pipe (FIONREAD, pipe(7)); of a terminal, at most.

    FIONREAD knows of no more than the last of a terminal's buffers (drivers/tty/tty_buffer.c).
    """
    if os.isatty(reader):
        return IN_TERMINAL
    size = bytearray(4)
    fcntl.ioctl(reader, termios.FIONREAD, size)
    return int.from_bytes(size, sys.byteorder)
