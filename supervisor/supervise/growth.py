"""Waking when a file has grown: one inotify instance for all log files of an instance.

May import: `errors`, `linux`, trio.  A watch ends with the first write (IN_ONESHOT), so that a job
which writes all the time wakes nobody until somebody looks again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from supervisor.linux.filewatch import IN_MODIFY, IN_ONESHOT, FileWatch


class Growth:
    """`armed` files; nothing is opened before the first."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._watch: FileWatch | None = None
        self._armed: dict[int, trio.Event] = {}

    @contextmanager
    def armed(self, path: str) -> Iterator[trio.Event]:
        """An event that is set by the first write from now on.  Raises KernelError.

        Nobody else may have the same file armed.
        """
        if self._watch is None:
            self._watch = FileWatch()
            self._nursery.start_soon(self._hear, self._watch)
        number = self._watch.add(path, IN_MODIFY | IN_ONESHOT)
        event = self._armed[number] = trio.Event()
        try:
            yield event
        finally:
            del self._armed[number]
            if not event.is_set():
                self._watch.remove(number)

    async def _hear(self, watch: FileWatch) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(watch)
                self._wake(watch.read())
        finally:
            watch.close()
            self._watch = None

    def _wake(self, numbers: set[int]) -> None:
        for number in self._armed if -1 in numbers else numbers & self._armed.keys():
            self._armed[number].set()
