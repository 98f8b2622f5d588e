"""Who writes the history: a thread that follows the event log's files, in batches.

    event loop      the log's subscriber sets a flag, and that is all a start or an event pays
    thread          wakes, waits a moment for more, reads on in events.ndjson, writes one
                    transaction; when runs have ended, forgets some of what is too old

It reads the files, not the entries in memory: so there is no queue that could grow or overflow, and
whatever could not be written (disk full, locked, a supervisor that was killed) is simply still to
be read.  A history of a later version is left alone; a damaged one is set aside and begun anew.

May import: `errors`, `model`, `record`, trio.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from supervisor.errors import KernelError, SupervisorError
from supervisor.record.eventfiles import Tail, last_of_all
from supervisor.record.runs import Bounds, StateDir
from supervisor.supervise.shared import Log

if TYPE_CHECKING:
    from supervisor.record.history import History

GATHER = 0.1
"""Seconds in which what comes is put into one transaction."""
RETRY = 5.0
"""Seconds until it is tried again where it could not be written."""
LEAVE = 10.0
"""Seconds that the end of an instance waits for the last of it."""
PRUNE = 60.0
"""Seconds between two looks at what is too old."""


class Historian:
    """Keeps the history at `path` up to date with the event log at `events`.

    `warn` is called in the thread, with what is to be told.
    """

    def __init__(
        self, path: Path, events: Path, bounds: Bounds, warn: Callable[[str], None]
    ) -> None:
        self._path = path
        self._bounds = bounds
        self._warn = warn
        self._tail = Tail(events)
        self._wake = threading.Event()
        self._leave = threading.Event()
        self._history: History | None = None
        self._told = ""
        self._odd = 0
        self._pruned = 0.0
        self._to_prune = True
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)

    def __call__(self, entry: Mapping[str, Any]) -> None:
        """The event log's subscriber."""
        if not self._wake.is_set():
            self._wake.set()

    def start(self) -> None:
        self._wake.set()
        self._thread.start()

    def close(self, patience: float = LEAVE) -> bool:
        """Write what is left, for so many seconds at most; whether that was done."""
        self._leave.set()
        self._wake.set()
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except SupervisorError as error:  # of a later version, or not to be read at all
            self._say(f"no history is written: {error}")
        finally:
            self._tail.close()
            if self._history is not None:
                self._history.close()

    def _step(self) -> bool:
        """Wait, then write what has come; False when that was the last time."""
        if not self._told:
            self._wake.wait()
        self._leave.wait(RETRY if self._told else GATHER)
        leaving = self._leave.is_set()
        self._wake.clear()
        self._write(leaving)
        return not leaving

    def _write(self, leaving: bool) -> None:
        import sqlite3  # 4 ms, which no start of a job is to wait for

        try:
            history = self._opened()
            while lines := self._tail.read():
                history.add(lines)
                self._to_prune |= any(line.entry["event"] == "job_ended" for line in lines)
            self._prune(history, leaving)
        except (sqlite3.Error, KernelError) as error:
            self._failed(error)
            return
        if self._told:
            self._told = ""
            self._say(f"{self._path} is written again, nothing of it is lost")
        if history.odd > self._odd:
            self._say(f"{self._path}: took {history.odd - self._odd} entries for none")
            self._odd = history.odd

    def _opened(self) -> History:
        if self._history is None:
            from supervisor.record.history import open_or_replace

            self._history, text = open_or_replace(self._path, time.time())
            self._tail.close()
            self._tail = Tail(self._tail.path, self._history.position)
            if text:
                self._say(text)
        return self._history

    def _failed(self, error: Exception) -> None:
        """It is opened again the next time, and read on from where its file says."""
        from sqlite3 import Error

        from supervisor.record.history import is_damage, set_aside

        if self._history is not None:
            self._history.close()
            self._history = None
        text = os.strerror(errno.ENOSPC) if _no_room(error) else str(error)
        if isinstance(error, Error) and is_damage(error):
            text += f"; moved to {set_aside(self._path, time.time())}"
        if text != self._told:
            self._told = text
            self._say(f"cannot write {self._path}: {text}, going on without; it is caught up later")

    def _prune(self, history: History, leaving: bool) -> None:
        """When runs have ended, and now and then; at the end no more than one step of it."""
        now = time.monotonic()
        if not self._to_prune or (self._pruned and now - self._pruned < PRUNE):
            return
        while history.prune(self._bounds, time.time()):
            if leaving or self._leave.is_set():
                return
        self._pruned, self._to_prune = now, False

    def _say(self, text: str) -> None:
        self._warn(text)


def _no_room(error: Exception) -> bool:
    """Whether it is SQLite's word for ENOSPC, which everybody else tells as the kernel does."""
    return getattr(error, "sqlite_errorname", "") == "SQLITE_FULL"


@contextmanager
def recorded(
    state: StateDir, bounds: Bounds, log: Log, late: Callable[[str], None]
) -> Iterator[Historian]:
    """The history of the instance whose log is `log`, while it runs; from within trio.

    `late` is told what comes when nobody listens to the log any more.

    At the end the last entries are written; where that does not succeed in time, the next
    supervisor of that name does it.
    """
    token = trio.lowlevel.current_trio_token()
    untold: deque[str] = deque()

    def tell() -> None:
        while untold:
            log.emit("warning", text=untold.popleft())

    def warn(text: str) -> None:
        untold.append(text)
        token.run_sync_soon(tell, idempotent=True)

    historian = Historian(state.history, state.events, bounds, warn)
    historian.start()
    try:
        yield historian
    finally:
        if not historian.close():
            untold.append(f"{state.history} is not up to date: the next instance catches it up")
        for text in untold:
            late(text)
        tell()


def number_of(state: StateDir) -> int:
    """The number that the event log's last entry had, where the log itself is there no more."""
    if not state.history.exists() or last_of_all(state.events):
        return 0
    from supervisor.record.past import open_past

    try:
        with open_past(state.history) as past:
            return past.position()
    except SupervisorError:
        return 0  # it is told when the history is opened to be written
