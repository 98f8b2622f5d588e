"""An event log without a file: for a one-shot `run`, which leaves nothing behind.

May import: `model`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from supervisor.model.event import Event
from supervisor.model.record import iso
from supervisor.record.entries import entry_of


class QuietLog:
    """Numbers and dates entries as `EventLog` does, for its subscriber alone."""

    def __init__(self, subscriber: Callable[[dict[str, Any]], None]) -> None:
        self._subscriber = subscriber
        self._seq = 0

    def emit(self, event: str, **fields: Any) -> None:
        self._seq += 1
        self._subscriber({"seq": self._seq, "time": iso(time.time()), "event": event, **fields})

    def observe(self, job: str, run: str, event: Event) -> None:
        entry = entry_of(event)
        if entry is not None:
            self.emit(entry[0], job=job, run=run, **entry[1])
