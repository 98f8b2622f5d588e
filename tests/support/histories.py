"""For tests of the history: an event log with runs in it, and what the database says of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from supervisor.model.record import CpuUse, MemoryUse, Reason, RunRecord, iso
from supervisor.record.entries import ended_entry
from supervisor.record.eventlog import EventLog
from supervisor.record.runs import StateDir

BEGAN = 1_700_000_000.0


class Writer:
    """An event log with a clock of its own: each entry is a second after the one before."""

    def __init__(self, state: StateDir, **options: Any) -> None:
        self.now = BEGAN
        self.log = EventLog(state.events, self._clock, **options)

    def _clock(self) -> float:
        self.now += 1
        return self.now

    def run(self, run: str, reason: Reason = Reason.SUCCEEDED, **changes: Any) -> RunRecord:
        """A whole run, from its start to its record; `run` is STAMP-JOB."""
        job = run.partition("-")[2]
        self.start(run)
        fields: dict[str, Any] = {
            "attempt": 1,
            "started_at": iso(self.now),
            "finished_at": iso(self.now + 1),
            "wall_seconds": 1.0,
            "cpu": CpuUse(0.5, 0.25),
            "memory": MemoryUse(64 << 20, 32 << 20),
            "expected": reason is Reason.SUCCEEDED,
            **changes,
        }
        record = RunRecord(job=job, run=run, reason=reason, command=("true",), **fields)
        self.log.emit("job_ended", **ended_entry(record))
        return record

    def start(self, run: str) -> None:
        job = run.partition("-")[2]
        self.log.emit("job_starting", job=job, run=run, attempt=1, image=None)
        self.log.emit("job_started", job=job, run=run, pid=7)


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """What a query of the database gives."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return list(db.execute(sql))


def batches(found: list[Any], size: int) -> Iterator[list[Any]]:
    for at in range(0, len(found), size):
        yield found[at : at + size]
