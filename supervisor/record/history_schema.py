"""The tables of history.sqlite3, and the way there from every earlier version of them.

A migration never changes once it was published: the next one goes on from where it led.  A file
of a later version is not touched.  May import: `errors`, sqlite3.

    runs            a row for each attempt: what one searches for, and the whole record as JSON
    events          the entries of the event log, but for the record of `job_ended`: that is above
    limit_changes   each value that a limit of a run had since its start, and who set it
    position        up to which number of the event log all is here
"""

from __future__ import annotations

import sqlite3

from supervisor.errors import SupervisorError

_FIRST = (
    """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        run TEXT UNIQUE,
        job TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        started_at TEXT NOT NULL,
        finished_at TEXT,
        reason TEXT,
        expected INTEGER,
        exit_code INTEGER,
        signal INTEGER,
        wall_seconds REAL,
        cpu_seconds REAL,
        memory_limit INTEGER,
        memory_peak INTEGER,
        oom_kills INTEGER,
        pids_peak INTEGER,
        pids_refused INTEGER,
        decided_by TEXT,
        detail TEXT,
        image TEXT,
        record TEXT
    ) STRICT
    """,
    "CREATE INDEX runs_by_job ON runs (job, id)",
    "CREATE INDEX runs_by_reason ON runs (reason, id)",
    "CREATE INDEX runs_by_start ON runs (started_at)",
    """
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY,
        time TEXT NOT NULL,
        event TEXT NOT NULL,
        job TEXT,
        run TEXT REFERENCES runs (run) ON DELETE CASCADE,
        entry TEXT NOT NULL
    ) STRICT
    """,
    "CREATE INDEX events_of_run ON events (run) WHERE run IS NOT NULL",
    "CREATE INDEX events_of_job ON events (job, seq) WHERE job IS NOT NULL",
    """
    CREATE TABLE position (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        seq INTEGER NOT NULL,
        session INTEGER NOT NULL
    ) STRICT
    """,
    "INSERT INTO position VALUES (1, 0, 0)",
)

_LIMIT_CHANGES = (
    """
    CREATE TABLE limit_changes (
        seq INTEGER PRIMARY KEY REFERENCES events (seq) ON DELETE CASCADE,
        run TEXT NOT NULL REFERENCES runs (run) ON DELETE CASCADE,
        time TEXT NOT NULL,
        name TEXT NOT NULL,
        value REAL,
        by TEXT NOT NULL
    ) STRICT
    """,
    "CREATE INDEX limit_changes_of_run ON limit_changes (run)",
    """
    INSERT INTO limit_changes
    SELECT seq, run, time, json_extract(entry, '$.limit'),
        CAST(json_extract(entry, '$.to') AS REAL), json_extract(entry, '$.by')
    FROM events WHERE event = 'limit_changed' AND run IS NOT NULL
        AND json_extract(entry, '$.limit') IS NOT NULL AND json_extract(entry, '$.by') IS NOT NULL
    """,
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST, _LIMIT_CHANGES)
"""The statements that lead from version n to n + 1, from an empty file on."""

VERSION = len(MIGRATIONS)


class NewerVersion(SupervisorError):
    """The file was written by a later supervise: it is left alone."""

    def __init__(self, path: str, found: int) -> None:
        super().__init__(
            f"{path}: is of version {found}, this supervise knows up to {VERSION}",
            hint="use the supervise that wrote it, or move the file away",
        )


def version_of(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(connection: sqlite3.Connection, path: str) -> int:
    """Bring an open file to VERSION, or leave it as it is; the version it had.

    Raises NewerVersion and sqlite3.Error.  The connection is in autocommit mode
    (`isolation_level=None`).
    """
    found = version_of(connection)
    if found > VERSION:
        raise NewerVersion(path, found)
    if found == VERSION:
        return found
    connection.execute("BEGIN IMMEDIATE")
    try:
        found = version_of(connection)  # another supervise may have been first
        for version in range(found, VERSION):
            for statement in MIGRATIONS[version]:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    return found
