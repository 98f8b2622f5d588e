"""A queue between the event loop and something that may block: a stream, a socket.

What is put in is written by a worker thread, in order; the event loop never waits for it.  What
waits is bounded; how much was dropped is told.

May import: trio.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from threading import Lock
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Outlet(ABC, Generic[T]):
    """Takes items at any time; `write`s them, a batch at a time, while `run` runs."""

    ROOM = 10_000

    def __init__(self) -> None:
        self._waiting: deque[T] = deque()
        self._dropped = 0
        self._wake = trio.Event()
        self._batches: deque[tuple[list[T], int]] = deque()
        self._writing = Lock()
        self.closed = False
        """Nothing is written any more: there is nobody to read it."""

    def say(self, item: T) -> None:
        """Queue one item."""
        if len(self._waiting) < self.ROOM:
            self._waiting.append(item)
        else:
            self._dropped += 1
        self._wake.set()

    def drain(self) -> tuple[list[T], int]:
        """All that waits, and how many were dropped since the last time."""
        items, dropped = list(self._waiting), self._dropped
        self._waiting.clear()
        self._dropped = 0
        return items, dropped

    @abstractmethod
    def write(self, items: Sequence[T], dropped: int) -> None:
        """In a worker thread; may block."""

    async def run(self) -> None:
        """Write until cancelled; then write what is left, if that takes no longer than 1 s."""
        try:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                await self._flush()
        finally:
            with trio.move_on_after(1, shield=True):
                await self._flush()

    async def _flush(self) -> None:
        self._batches.append(self.drain())
        await trio.to_thread.run_sync(self._work_off, abandon_on_cancel=True)

    def _work_off(self) -> None:
        """All batches, in order, whichever thread comes first: a cancellation leaves one behind."""
        with self._writing:
            while self._batches:
                items, dropped = self._batches.popleft()
                if (items or dropped) and not self.closed:
                    self.write(items, dropped)
