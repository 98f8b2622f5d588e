"""A bound on what a job writes to its stdout and stderr, both together: `limits.output`.

May import: `errors`, trio.  Only a job with such a limit has pipes for its streams, and a task that
copies them to where they would have gone: what is written is exactly the limit, and no byte more.
Others write to their files themselves, and need nobody.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

import trio

CHUNK = 64 * 1024


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
        self._scope = trio.CancelScope()
        self._taken = 0
        self.written = 0
        """Bytes that have arrived at their targets."""

    async def run(self) -> None:
        """Until every writer has closed its end, or `finish`."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                for reader, target in self._pairs:
                    os.set_blocking(reader, False)
                    nursery.start_soon(self._copy, reader, target)

    async def _copy(self, reader: int, target: int) -> None:
        while True:
            await trio.lowlevel.wait_readable(reader)
            data = os.read(reader, CHUNK)
            if not data:
                return
            # Not to be torn apart: a chunk that has been read is written, whoever cancels.
            with trio.CancelScope(shield=True):
                await self._write(reader, target, data)
            if target in self._broken:
                _break(reader)
                return

    async def finish(self) -> None:
        """The job is over: take what is left in the pipes, and stop.

        Its processes are all gone, so nothing is added; somebody else who was handed such a pipe
        is not waited for.
        """
        self._scope.cancel()
        for reader, target in self._pairs:
            while data := _read_now(reader):
                await self._write(reader, target, data)

    async def _write(self, reader: int, target: int, data: bytes) -> None:
        kept = data[: self._limit - self._taken]
        self._taken += len(kept)
        if kept and target not in self._failed:
            # whoever reads a caller's pipe may take his time: it is not ours to wait for
            done, error = await trio.to_thread.run_sync(_write_all, target, kept)
            self.written += done
            if error is not None:
                self._give_up(target, error)
        if len(kept) < len(data) and not self._told:
            self._told = True
            self._full()

    def _give_up(self, target: int, error: OSError) -> None:
        self._failed.add(target)
        if error.errno == errno.EPIPE:
            self._broken.add(target)
        else:
            self._trouble(f"cannot write the job's output: {error.strerror}")


def _break(reader: int) -> None:
    """To the job, its reader has gone: it gets SIGPIPE, as if it had written there itself."""
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, reader, inheritable=False)
    os.close(null)


def _read_now(reader: int) -> bytes:
    try:
        return os.read(reader, CHUNK)
    except BlockingIOError:
        return b""


def _write_all(target: int, data: bytes) -> tuple[int, OSError | None]:
    """How many bytes have been written, and why no more."""
    done = 0
    try:
        while done < len(data):
            done += os.write(target, data[done:])
    except OSError as error:
        return done, error
    return done, None
