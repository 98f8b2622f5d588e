"""The history of an instance, STATE/NAME/history.sqlite3: what its event log tells, to be searched.

Everything here comes from the event log and can be had from it again; `position` says up to which
number.  So a history that cannot be written (disk full, locked) loses nothing: it is caught up.
One process writes, the one that holds the instance's lock; readers (`record.past`) need not wait
for it, nor it for them (WAL, https://sqlite.org/wal.html).

May import: `errors`, `model`, the rest of `record`, sqlite3.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from supervisor.errors import KernelError
from supervisor.model.record import iso
from supervisor.record.eventfiles import Line
from supervisor.record.history_schema import migrate
from supervisor.record.runs import Bounds

PATIENCE = 5.0
"""Seconds to wait for somebody else who has it locked."""
STEP = 200
"""Runs that are forgotten at once."""
COMMON = ("seq", "time", "event", "job", "run")
ODD = (sqlite3.IntegrityError, sqlite3.InterfaceError, OverflowError)
"""What an entry brings on that no column takes; only somebody else can have written it."""


class History:
    """The open file; used by one thread, the one that opened it."""

    def __init__(self, path: Path) -> None:
        """Open it, made with mode 0600 when missing, and brought to the present version.

        Raises NewerVersion, KernelError and sqlite3.Error.
        """
        self.path = path
        self.odd = 0
        """Entries that could not be taken in."""
        _make(path)
        self._db = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
        try:
            self.was = migrate(self._db, str(path))
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
                self._db.execute(f"PRAGMA {pragma}")
            row = self._db.execute("SELECT seq, session FROM position").fetchone()
            self.position, self._session = int(row[0]), int(row[1])
        except BaseException:
            self._db.close()
            raise

    def add(self, lines: Iterable[Line]) -> None:
        """Take in entries, all of them or none.  Raises sqlite3.Error."""
        position, session = self.position, self._session
        with self._transaction():
            for line in lines:
                if line.seq <= position:
                    continue
                position = line.seq
                if line.entry["event"] == "supervisor_started":
                    session = line.seq
                self._take(line.entry)
            self._db.execute("UPDATE position SET seq = ?, session = ?", (position, session))
        self.position, self._session = position, session

    @contextlib.contextmanager
    def _transaction(self) -> Any:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _take(self, entry: dict[str, Any]) -> None:
        self._db.execute("SAVEPOINT entry")
        try:
            self._insert(entry)
        except ODD:
            self._db.execute("ROLLBACK TO entry")
            self.odd += 1
        self._db.execute("RELEASE entry")

    def _insert(self, entry: dict[str, Any]) -> None:
        seq, time, event = entry["seq"], entry["time"], entry["event"]
        job, run = _text(entry.get("job")), _text(entry.get("run")) or None
        if run is not None and job is not None:
            begun = "INSERT INTO runs (id, run, job, attempt, started_at) VALUES (?, ?, ?, ?, ?)"
            attempt = _whole(entry.get("attempt")) or 0
            self._db.execute(f"{begun} ON CONFLICT DO NOTHING", (seq, run, job, attempt, time))
        if event == "job_ended" and isinstance(entry.get("record"), dict):
            self._end(seq, time, job, run, entry["record"])
        fields = {k: v for k, v in entry.items() if k not in COMMON and k != "record"}
        self._db.execute(
            "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?, ?)",
            (seq, _text(time), _text(event), job, run, json.dumps(fields)),
        )
        if event == "limit_changed" and run is not None and entry.get("next") is not True:
            change = _text(entry.get("limit")), _real(entry.get("to")), _text(entry.get("by"))
            self._db.execute(
                "INSERT OR IGNORE INTO limit_changes VALUES (?, ?, ?, ?, ?, ?)",
                (seq, run, _text(time), *change),
            )

    def _end(
        self, seq: int, time: str, job: str | None, run: str | None, record: dict[str, Any]
    ) -> None:
        """The row of a run that has ended; a job that never ran has one without a run."""
        if run is None:
            begun = "INSERT OR IGNORE INTO runs (id, job, attempt, started_at) VALUES (?, ?, 0, ?)"
            self._db.execute(begun, (seq, job, _text(time)))
        values = _columns(record) | {"finished_at": _text(record.get("finished_at")) or time}
        started = _text(record.get("started_at"))
        if started is not None:
            values["started_at"] = started
        sets = ", ".join(f"{name} = ?" for name in values)
        which, key = ("run", run) if run is not None else ("id", seq)
        self._db.execute(f"UPDATE runs SET {sets} WHERE {which} = ?", (*values.values(), key))

    def prune(self, bounds: Bounds, now: float) -> int:
        """Forget some of what is beyond `bounds`; how many rows, 0 when nothing is left to do.

        Never a run that may be going on.  Raises sqlite3.Error.
        """
        cutoff = iso(now - bounds.keep) if bounds.keep is not None else ""
        most = -1 if bounds.runs is None else bounds.runs
        over = (
            "SELECT id FROM runs WHERE (finished_at IS NOT NULL OR id < :session) AND ("
            "coalesce(finished_at, started_at) < :cutoff OR (:most >= 0 AND id <= ("
            "SELECT id FROM runs WHERE finished_at IS NOT NULL OR id < :session "
            "ORDER BY id DESC LIMIT 1 OFFSET max(:most, 0)))) ORDER BY id LIMIT :step"
        )
        told = {"session": self._session, "cutoff": cutoff, "most": most, "step": STEP}
        with self._transaction():
            gone = self._db.execute(f"DELETE FROM runs WHERE id IN ({over})", told).rowcount
            # What belongs to no run goes with the last run that was beside it.
            rest = (
                "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE run IS NULL AND "
                "seq < min(:session, (SELECT coalesce(min(id), :session) FROM runs)) "
                "ORDER BY seq LIMIT 10 * :step)"
            )
            if gone:
                gone += self._db.execute(rest, told).rowcount
        return gone

    def close(self) -> None:
        """The last to close brings what is in the -wal file into the file itself."""
        self._db.close()


def _make(path: Path) -> None:
    """SQLite gives its other files the mode of this one."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
    try:
        os.close(os.open(path, flags, 0o600))
    except OSError as error:
        raise KernelError("open", str(path), error.errno or 0) from error


def open_or_replace(path: Path, now: float) -> tuple[History, str]:
    """The history; one that is damaged is set aside, and a new one begun.

    The text says so, else it is "".  Raises as `History` does.
    """
    try:
        return History(path), ""
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        aside = set_aside(path, now)
        text = f"{path} is damaged ({error}): moved to {aside}, begun anew from the event log"
        return History(path), text


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is not, or not any more, what we wrote."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    missing = code == sqlite3.SQLITE_ERROR and "no such" in str(error)
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or missing


def set_aside(path: Path, now: float) -> Path:
    """Rename it, with the two files that SQLite has beside it.  Raises KernelError."""
    aside = path.with_name(f"{path.name}.damaged-{iso(now).replace(':', '')}")
    try:
        for ending in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{path}{ending}").rename(f"{aside}{ending}")
    except OSError as error:
        raise KernelError("rename", str(path), error.errno or 0) from error
    return aside


def _columns(record: dict[str, Any]) -> dict[str, Any]:
    """What one filters and sorts by, and the whole."""
    memory, pids = _table(record, "memory"), _table(record, "pids")
    image = _table(record, "image")
    cpu = [_real(_table(record, "cpu").get(key)) for key in ("user_seconds", "system_seconds")]
    return {
        "attempt": _whole(record.get("attempt")) or 0,
        "reason": _text(record.get("reason")) or "lost",
        "expected": int(record.get("expected") is True),
        "exit_code": _whole(record.get("exit_code")),
        "signal": _whole(record.get("signal")),
        "wall_seconds": _real(record.get("wall_seconds")),
        "cpu_seconds": None if cpu[0] is None else cpu[0] + (cpu[1] or 0.0),
        "memory_limit": _whole(memory.get("limit")),
        "memory_peak": _whole(memory.get("peak")),
        "oom_kills": _whole(memory.get("oom_kills")),
        "pids_peak": _whole(pids.get("peak")),
        "pids_refused": _whole(pids.get("refused")),
        "decided_by": _text(record.get("decided_by")),
        "detail": _text(record.get("detail")),
        "image": _text(image.get("name")),
        "record": json.dumps(record),
    }


def _table(record: dict[str, Any], key: str) -> dict[str, Any]:
    found = record.get(key)
    return found if isinstance(found, dict) else {}


def _text(value: object) -> str | None:
    """Surrogates, as in a path that is no UTF-8, are no text for SQLite."""
    if not isinstance(value, str):
        return None
    return value.encode("utf-8", "backslashreplace").decode()


def _whole(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and abs(value) < 1 << 63 else None


def _real(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < 1e300 else None
