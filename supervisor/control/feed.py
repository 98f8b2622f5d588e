"""A bounded queue for one client: what happens is put in without waiting, and taken as he reads.

Where it was full, a `Gap` stands in the place of what is missing.

May import: `errors`, attrs, trio.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import trio

ROOM = 1000
"""Entries that wait for a client at most; one takes a few kilobytes."""

Entry = Mapping[str, Any]


class Closing:
    """Set once, when the instance is about to end; whoever has asked is called then."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self._calls: dict[Callable[[], None], None] = {}

    def is_set(self) -> bool:
        return self._event.is_set()

    async def wait(self) -> None:
        await self._event.wait()

    def set(self) -> None:
        self._event.set()
        for call in tuple(self._calls):
            call()

    @contextmanager
    def calls(self, call: Callable[[], None]) -> Iterator[None]:
        """While it lasts, `call` is called when it is time; at once when it was already."""
        self._calls[call] = None
        try:
            if self.is_set():
                call()
            yield
        finally:
            self._calls.pop(call, None)


class Feed:
    """Takes entries at any time; gives them, in order, to the one who takes them."""

    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._waiting: deque[Entry] = deque()
        self._gap: dict[str, Any] | None = None
        self._wake = trio.Event()
        self._ended = False

    def put(self, entry: Entry) -> None:
        """Queue one, or count it in the gap where there is no room.

        A gap tells of the first and the last that is missing, if they are numbered; it ends when
        half of the queue is free again, so that there are few of them.
        """
        if self._ended:
            return
        if self._gap is not None and len(self._waiting) > self._room // 2:
            self._widen(self._gap, entry)
        elif self._gap is None and len(self._waiting) >= self._room:
            self._gap = {"gap": 0}
            self._waiting.append(self._gap)
            self._widen(self._gap, entry)
        else:
            self._gap = None
            self._waiting.append(entry)
        self._wake.set()

    @staticmethod
    def _widen(gap: dict[str, Any], entry: Entry) -> None:
        gap["gap"] += 1
        if "seq" in entry:
            gap.setdefault("from", entry["seq"])
            gap["to"] = entry["seq"]

    def end(self) -> None:
        """No more is put in; who takes gets what waits, and then the end."""
        self._ended = True
        self._wake.set()

    @property
    def waiting(self) -> int:
        """How many wait, a gap being one."""
        return len(self._waiting)

    async def take(self) -> Entry | None:
        """The next one, as soon as there is one; None after the last."""
        while not self._waiting:
            if self._ended:
                return None
            self._wake = trio.Event()
            await self._wake.wait()
        entry = self._waiting.popleft()
        if entry is self._gap:
            self._gap = None
        return entry
