"""Waking when a file has grown: one inotify instance for all log files of an instance.

May import: `errors`, `linux`, trio.  A watch ends with the first write (IN_ONESHOT), so that a job
which writes all the time wakes nobody until somebody looks again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from supervisor.linux.filewatch import IN_MODIFY, IN_MOVE_SELF, IN_ONESHOT, FileWatch


class Growth:
    """`armed` files; nothing is opened before the first."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._watch: FileWatch | None = None
        self._armed: dict[int, set[trio.Event]] = {}

    @contextmanager
    def armed(self, path: str) -> Iterator[trio.Event]:
        """An event that is set by the first write from now on, or when the file is renamed.

        Raises KernelError.
        """
        if self._watch is None:
            self._watch = FileWatch()
            self._nursery.start_soon(self._hear, self._watch)
        number = self._watch.add(path, IN_MODIFY | IN_MOVE_SELF | IN_ONESHOT)
        event = trio.Event()
        self._armed.setdefault(number, set()).add(event)
        try:
            yield event
        finally:
            self._forget(number, event)

    def _forget(self, number: int, event: trio.Event) -> None:
        """The watch ends with the last who wants it, unless it has ended by itself."""
        waiting = self._armed.get(number, set())
        waiting.discard(event)
        if not waiting and self._armed.pop(number, None) is not None and self._watch is not None:
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
        """Lost events may have been anybody's."""
        for number in set(self._armed) if -1 in numbers else numbers & self._armed.keys():
            for event in self._armed.pop(number):
                event.set()
