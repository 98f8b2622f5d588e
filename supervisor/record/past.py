"""Reading an instance's history, while it runs and when it does not; nothing is written.

May import: `errors`, `model`, the rest of `record`, sqlite3.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from attrs import frozen

from supervisor.errors import SupervisorError
from supervisor.record.history_schema import VERSION, version_of

COLUMNS = (
    "run", "job", "attempt", "reason", "expected", "exit_code", "signal", "started_at",
    "finished_at", "wall_seconds", "cpu_seconds", "memory_limit", "memory_peak", "oom_kills",
    "pids_peak", "pids_refused", "decided_by", "detail", "image",
)  # fmt: skip
"""What is told of a run in a list; `reason` is null for one without an end."""


@frozen
class Query:
    """Which runs: of `job` (a pattern as in glob(7)), ended for `reason`, begun in a time.

    `since` and `until` are as in records (ISO 8601, UTC); `limit` keeps the newest, None: all.
    """

    job: str | None = None
    reason: str | None = None
    since: str | None = None
    until: str | None = None
    limit: int | None = None


class Past:
    """A history opened to be read.  Every method raises SupervisorError when it is damaged."""

    def __init__(self, path: Path) -> None:
        """Raises SupervisorError: there is none, it is none, or of a later version."""
        self.path = path
        if not path.is_file():
            raise SupervisorError(f"{path}: there is no history")
        self._db = _open(path)
        with self._told():
            found = version_of(self._db)
        if found != VERSION:
            self._db.close()
            way = "use a later supervise" if found > VERSION else "its next run brings it up to it"
            raise SupervisorError(f"{path}: is of version {found}, not {VERSION}", hint=way)
        self._db.row_factory = sqlite3.Row

    def runs(self, query: Query) -> list[dict[str, Any]]:
        """The newest first; each with COLUMNS."""
        conditions = {
            "job GLOB ?": query.job,
            "reason = ?": query.reason,
            "started_at >= ?": query.since,
            "started_at < ?": query.until,
        }
        given = {text: value for text, value in conditions.items() if value is not None}
        where = f"WHERE {' AND '.join(given)}" if given else ""
        most = -1 if query.limit is None else query.limit
        sql = f"SELECT {', '.join(COLUMNS)} FROM runs {where} ORDER BY id DESC LIMIT ?"
        with self._told():
            return [_plain(row) for row in self._db.execute(sql, (*given.values(), most))]

    def record(self, run: str) -> dict[str, Any] | None:
        """The whole record of a run; without one, what is known of it; None: no such run."""
        sql = f"SELECT {', '.join(COLUMNS)}, record FROM runs WHERE run = ?"
        with self._told():
            row = self._db.execute(sql, (run,)).fetchone()
        if row is None:
            return None
        known = _plain(row)
        record = known.pop("record")
        return dict(json.loads(record)) if record is not None else known

    def last_run(self, job: str) -> str | None:
        """The newest run of a job that was started; None: it has none."""
        sql = "SELECT run FROM runs WHERE job = ? AND run IS NOT NULL ORDER BY id DESC LIMIT 1"
        with self._told():
            row = self._db.execute(sql, (job,)).fetchone()
        return None if row is None else str(row["run"])

    def events(self, run: str) -> list[dict[str, Any]]:
        """The entries of the log that name a run, but for the record of its end."""
        return self._entries("run = ?", (run,))

    def job_events(
        self, job: str, since: str | None = None, until: str | None = None
    ) -> list[dict[str, Any]]:
        """Those that name a job (a pattern as in glob(7)), from then to then."""
        times = {"time >= ?": since, "time < ?": until}
        given = {"job GLOB ?": job} | {text: at for text, at in times.items() if at is not None}
        return self._entries(" AND ".join(given), tuple(given.values()))

    def jobs(self) -> list[str]:
        """The names of all that are known."""
        with self._told():
            return [str(row[0]) for row in self._db.execute("SELECT DISTINCT job FROM runs")]

    def around(self, job: str, run: str | None = None) -> list[dict[str, Any]]:
        """The entries of a job from the end before a run (None: its last) on.

        A `job_ended` has the record, as in the event log.
        """
        with self._told():
            first = self._db.execute(_BEGIN, {"job": job, "run": run}).fetchone()[0]
            rows = self._db.execute(_AROUND, {"job": job, "first": first or 0}).fetchall()
            return [_whole(row) for row in rows]

    def limit_changes(self, run: str) -> list[dict[str, Any]]:
        """Each limit that was changed while a run lived: when, to what, and by whom."""
        sql = "SELECT time, name, value, by FROM limit_changes WHERE run = ? ORDER BY seq"
        with self._told():
            return [dict(row) for row in self._db.execute(sql, (run,))]

    def position(self) -> int:
        """Up to which number of the event log all is here."""
        with self._told():
            return int(self._db.execute("SELECT seq FROM position").fetchone()[0])

    def _entries(self, where: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
        sql = f"SELECT seq, time, event, job, run, entry FROM events WHERE {where} ORDER BY seq"
        with self._told():
            return [_entry(row) for row in self._db.execute(sql, values)]

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            hint = "a running instance begins a new one; events.ndjson has it all"
            raise SupervisorError(f"{self.path}: cannot be read: {error}", hint=hint) from error

    def close(self) -> None:
        self._db.close()


_BEGIN = """
SELECT max(seq) FROM events WHERE job = :job AND event = 'job_ended' AND seq < (
    SELECT max(id) FROM runs WHERE job = :job AND (:run IS NULL OR run = :run))
"""
_AROUND = """
SELECT seq, time, event, events.job, events.run, entry, runs.record AS record
FROM events LEFT JOIN runs ON event = 'job_ended' AND (runs.run = events.run OR runs.id = seq)
WHERE events.job = :job AND seq >= :first ORDER BY seq
"""


def _open(path: Path) -> sqlite3.Connection:
    """In a directory where nothing can be made SQLite reads a file that nobody writes."""
    name = f"file:{quote(str(path))}?mode=ro"
    db = sqlite3.connect(name, uri=True, timeout=5.0, isolation_level=None)
    try:
        db.execute("SELECT 1 FROM sqlite_schema LIMIT 1")
    except sqlite3.OperationalError as error:
        alone = not Path(f"{path}-wal").exists()
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CANTOPEN or not alone:
            db.close()
            raise SupervisorError(f"{path}: cannot be read: {error}") from error
        db.close()
        db = sqlite3.connect(f"{name}&immutable=1", uri=True, isolation_level=None)
    except sqlite3.DatabaseError as error:
        db.close()
        raise SupervisorError(f"{path}: is no history: {error}") from error
    return db


def _plain(row: sqlite3.Row) -> dict[str, Any]:
    found = dict(row)
    found["expected"] = None if found["expected"] is None else bool(found["expected"])
    return found


def _entry(row: sqlite3.Row) -> dict[str, Any]:
    found = {"seq": row["seq"], "time": row["time"], "event": row["event"]}
    named = {key: row[key] for key in ("job", "run") if row[key] is not None}
    return {**found, **named, **json.loads(row["entry"])}


def _whole(row: sqlite3.Row) -> dict[str, Any]:
    found = _entry(row)
    return found if row["record"] is None else {**found, "record": json.loads(row["record"])}


def open_past(path: Path) -> closing[Past]:
    """For a `with` statement."""
    return closing(Past(path))
