"""The history: what it takes from the event log, its migrations, and what it does when damaged."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from supervisor.errors import KernelError, SupervisorError
from supervisor.model.record import ImageUse, Reason, iso
from supervisor.record import history_schema
from supervisor.record.eventfiles import Line, entries, parse
from supervisor.record.history import STEP, History, is_damage, open_or_replace, set_aside
from supervisor.record.history_schema import MIGRATIONS, VERSION, NewerVersion
from supervisor.record.past import Past, Query, open_past
from supervisor.record.runs import Bounds, StateDir
from tests.support.histories import BEGAN, Writer, batches, rows

DAY = 86400.0


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


@pytest.fixture
def writer(state: StateDir) -> Iterator[Writer]:
    writer = Writer(state)
    yield writer
    writer.log.close()


def caught_up(state: StateDir, *, by: int = 1000) -> History:
    """A history that has all of the log, in batches of so many."""
    history = History(state.history)
    for some in batches(list(entries(state.events, history.position)), by):
        history.add(some)
    return history


def found(state: StateDir, **query: Any) -> list[str]:
    with open_past(state.history) as past:
        return [run["run"] for run in past.runs(Query(**query))]


# what is in it


@pytest.mark.parametrize("by", [1, 2, 1000])
def test_each_run_has_a_row_and_its_record_whole(state: StateDir, writer: Writer, by: int) -> None:
    image = ImageUse("debian:12", "sha256:0")
    one = writer.run("aaaaaaaa-x", Reason.OOM, image=image, detail="killed \udcff", attempt=2)
    writer.start("aaaaaaab-y")
    caught_up(state, by=by).close()
    with open_past(state.history) as past:
        assert past.record("aaaaaaaa-x") == json.loads(json.dumps(one.to_json()))
        running, ended = past.runs(Query())
        assert past.record("nobody") is None
    assert (running["run"], running["reason"], running["finished_at"]) == ("aaaaaaab-y", None, None)
    assert running["expected"] is None and running["attempt"] == 1
    assert ended | {} == {
        "run": "aaaaaaaa-x", "job": "x", "attempt": 2, "reason": "oom", "expected": False,
        "exit_code": None, "signal": None, "started_at": one.started_at,
        "finished_at": one.finished_at, "wall_seconds": 1.0, "cpu_seconds": 0.75,
        "memory_limit": 64 << 20, "memory_peak": 32 << 20, "oom_kills": 0, "pids_peak": None,
        "pids_refused": 0, "decided_by": "", "detail": "killed \\udcff", "image": "debian:12",
    }  # fmt: skip


def test_a_job_that_was_skipped_has_a_row_without_a_run(state: StateDir, writer: Writer) -> None:
    skipped = writer.run("aaaaaaaa-x", Reason.SKIPPED)
    record = evolve(skipped, run="", attempt=0, started_at=None, detail="y ended as failed")
    for _ in range(2):
        writer.log.emit("job_ended", job="x", run="", reason="skipped", record=record.to_json())
    caught_up(state).close()
    with open_past(state.history) as past:
        *skips, _run = past.runs(Query(reason="skipped"))
    assert [one["run"] for one in skips] == [None, None]
    assert all(one["started_at"] and one["finished_at"] for one in skips)


def test_events_are_those_of_the_log_without_the_record(state: StateDir, writer: Writer) -> None:
    writer.log.emit("supervisor_started", pid=1)
    writer.run("aaaaaaaa-x")
    writer.log.emit("restart", job="x", attempt=2, after=1.0)
    caught_up(state).close()
    logged = [line.entry for line in entries(state.events)]
    for entry in logged:
        entry.pop("record", None)
    with open_past(state.history) as past:
        assert past.events("aaaaaaaa-x") == logged[1:4]
        assert past.job_events("x") == logged[1:]
        assert past.job_events("?", since=logged[2]["time"], until=logged[4]["time"]) == logged[2:4]
        assert past.position() == 5


def test_limit_changes_are_by_name_and_value(state: StateDir, writer: Writer) -> None:
    writer.start("aaaaaaaa-x")
    changed = {"limit": "memory", "to": 1 << 30, "by": "grow-memory"}
    writer.log.emit("limit_changed", job="x", run="aaaaaaaa-x", **changed)
    at = iso(writer.now)
    writer.log.emit("limit_changed", job="x", run="aaaaaaaa-x", **changed, next=True)
    caught_up(state).close()
    with open_past(state.history) as past:
        assert past.limit_changes("aaaaaaaa-x") == [
            {"time": at, "name": "memory", "value": float(1 << 30), "by": "grow-memory"}
        ]


def test_runs_are_found_by_job_reason_and_time(state: StateDir, writer: Writer) -> None:
    writer.run("aaaaaaaa-a.n=1")
    writer.run("aaaaaaab-a.n=2", Reason.OOM)
    middle = iso(writer.now)
    writer.run("aaaaaaac-b", Reason.OOM)
    caught_up(state).close()
    assert found(state) == ["aaaaaaac-b", "aaaaaaab-a.n=2", "aaaaaaaa-a.n=1"]
    assert found(state, limit=1) == ["aaaaaaac-b"]
    assert found(state, job="a.*") == ["aaaaaaab-a.n=2", "aaaaaaaa-a.n=1"]
    assert found(state, job="a.n=1") == ["aaaaaaaa-a.n=1"]
    assert found(state, job="a") == []
    assert found(state, reason="oom", job="b") == ["aaaaaaac-b"]
    assert found(state, since=middle) == ["aaaaaaac-b"]
    assert found(state, until=middle) == ["aaaaaaab-a.n=2", "aaaaaaaa-a.n=1"]
    assert found(state, job="' OR 1 = 1 --") == []


def test_what_was_taken_in_is_not_taken_twice(state: StateDir, writer: Writer) -> None:
    writer.run("aaaaaaaa-x")
    lines = list(entries(state.events))
    with closing(History(state.history)) as history:
        history.add(lines)
        history.add(lines)
    with closing(History(state.history)) as history:
        assert history.position == 3
        history.add(lines)
    assert rows(state.history, "SELECT count(*) FROM events") == [(3,)]


def test_a_batch_is_taken_in_whole_or_not_at_all(state: StateDir, writer: Writer) -> None:
    writer.run("aaaaaaaa-x")

    def breaks() -> Iterator[Line]:
        yield from entries(state.events)
        raise RuntimeError

    with closing(History(state.history)) as history:
        with pytest.raises(RuntimeError):
            history.add(breaks())
        assert history.position == 0
        history.add(entries(state.events))
        assert history.position == 3
    assert rows(state.history, "SELECT run FROM runs") == [("aaaaaaaa-x",)]


@pytest.mark.parametrize(
    "odd",
    [
        {"event": "job_ended", "job": "x", "run": "r-x", "record": 7},
        {"event": "job_ended", "job": "x", "run": "r-x", "record": {}},
        {"event": "job_ended", "job": "x", "run": "r-x", "record": {
            "reason": 3, "memory": [], "cpu": {"user_seconds": "1"}, "exit_code": 10**30,
            "wall_seconds": 1e999, "detail": {"a": 1}, "finished_at": 7, "image": "x"}},
        {"event": "limit_changed", "job": "x", "run": "r-x", "limit": None, "to": [], "by": 3},
        {"event": "limit_changed", "run": "r-x", "limit": "memory", "to": 1, "by": "y"},
        {"event": "job_ended", "run": "", "record": {}},
        {"event": "warning", "text": "\udcff\x00", "job": "\udcff"},
        {"event": "\x00", "job": "x", "run": "r-x"},
    ],
)  # fmt: skip
def test_an_odd_entry_hinders_none_after_it(state: StateDir, odd: dict[str, Any]) -> None:
    """Only root can have put it there, but a history that stands still is of no use to him."""
    text = json.dumps({"seq": 1, "time": "t", **odd}).encode()
    line = parse(text)
    assert line is not None
    fine = parse(b'{"seq": 2, "time": "t", "event": "warning", "text": "x"}')
    assert fine is not None
    with closing(History(state.history)) as history:
        history.add([line, fine])
        assert history.position == 2 and history.odd in (0, 1)
    assert rows(state.history, "SELECT count(*) FROM events WHERE seq = 2") == [(1,)]


def test_only_the_owner_may_read_it(state: StateDir) -> None:
    before = os.umask(0)
    try:
        with closing(History(state.history)) as history:
            history.add([])
            files = sorted(state.root.iterdir())
            assert len(files) == 3
            assert [one.stat().st_mode & 0o777 for one in files] == [0o600] * 3
    finally:
        os.umask(before)


# versions


def version_file(path: Path, version: int) -> None:
    """A file as a supervise of that version left it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        for statements in MIGRATIONS[:version]:
            for statement in statements:
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {version}")


def test_published_versions_have_not_changed() -> None:
    """The text of a migration that somebody has run is history itself: add another one."""
    import hashlib

    told = [hashlib.sha256("\0".join(m).encode()).hexdigest()[:16] for m in MIGRATIONS]
    assert told == PUBLISHED


PUBLISHED = ["a8264960966cc6a6", "16dcced7d2e1fb3d"]


def test_a_file_of_version_1_gets_its_limit_changes(state: StateDir, writer: Writer) -> None:
    version_file(state.history, 1)
    with closing(sqlite3.connect(state.history, isolation_level=None)) as db:
        db.execute(
            "INSERT INTO runs (id, run, job, attempt, started_at) VALUES (1, 'r', 'x', 1, 't')"
        )
        for seq, entry in enumerate([
            {"limit": "memory", "to": 2.0**30, "by": "grow-memory"},
            {"limit": "pids", "to": 64, "by": "on_pids_limit"},
            {"limit": "pids", "to": None, "by": "root"},
        ], start=2):  # fmt: skip
            values = (seq, "t", "limit_changed", "x", "r", json.dumps(entry))
            db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", values)
        db.execute("INSERT INTO events VALUES (7, 't', 'limit_changed', 'x', 'r', '{}')")
        db.execute("UPDATE position SET seq = 7")
    with closing(History(state.history)) as history:
        assert (history.was, history.position) == (1, 7)
    assert rows(state.history, "SELECT seq, run, name, value, by FROM limit_changes") == [
        (2, "r", "memory", 2.0**30, "grow-memory"), (3, "r", "pids", 64.0, "on_pids_limit"),
        (4, "r", "pids", None, "root"),
    ]  # fmt: skip
    assert rows(state.history, "PRAGMA user_version") == [(VERSION,)]


@pytest.mark.parametrize("version", range(VERSION + 1))
def test_every_earlier_version_becomes_the_same_as_a_new_one(tmp_path: Path, version: int) -> None:
    old, new = StateDir(tmp_path / "old"), StateDir(tmp_path / "new")
    for one in (old, new):
        one.make()
    version_file(old.history, version)
    tables = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name"
    for one in (old, new):
        History(one.history).close()
    assert rows(old.history, tables) == rows(new.history, tables)


def test_a_migration_that_fails_leaves_the_file_as_it_was(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    version_file(state.history, 1)
    broken = (MIGRATIONS[0], (*MIGRATIONS[1], "INSERT INTO nowhere VALUES (1)"))
    monkeypatch.setattr(history_schema, "MIGRATIONS", broken)
    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        History(state.history)
    assert rows(state.history, "PRAGMA user_version") == [(1,)]
    assert rows(state.history, "SELECT 1 FROM sqlite_schema WHERE name = 'limit_changes'") == []


def test_a_later_version_is_left_alone_and_not_misread(state: StateDir) -> None:
    History(state.history).close()
    with closing(sqlite3.connect(state.history)) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = state.history.read_bytes()
    with pytest.raises(NewerVersion, match=rf"version {VERSION + 1}.*knows up to {VERSION}"):
        open_or_replace(state.history, BEGAN)
    assert state.history.read_bytes() == before
    assert [one.name for one in state.root.iterdir()] == ["history.sqlite3"]
    with pytest.raises(SupervisorError, match="use a later supervise"):
        Past(state.history)


def test_an_earlier_version_is_not_read_until_it_is_brought_up(state: StateDir) -> None:
    version_file(state.history, 1)
    with pytest.raises(SupervisorError, match=r"of version 1, not 2.*next run"):
        Past(state.history)


# damage


@pytest.mark.parametrize(
    "content", [b"no database" * 200, b"SQLite format 3\0" + b"\xff" * 5000, b"\0" * 8192]
)
def test_a_damaged_file_is_set_aside_and_another_begun(
    state: StateDir, writer: Writer, content: bytes
) -> None:
    writer.run("aaaaaaaa-x")
    state.history.write_bytes(content)
    history, text = open_or_replace(state.history, BEGAN)
    assert "damaged" in text and str(state.history) in text
    history.add(entries(state.events))
    history.close()
    assert found(state) == ["aaaaaaaa-x"]
    (aside,) = state.root.glob("history.sqlite3.damaged-*")
    assert aside.read_bytes() == content


def test_a_file_without_its_tables_is_damaged_too(state: StateDir) -> None:
    with closing(sqlite3.connect(state.history)) as db:
        db.execute(f"PRAGMA user_version = {VERSION}")
    history, text = open_or_replace(state.history, BEGAN)
    history.close()
    assert "no such table" in text
    assert len(list(state.root.glob("*damaged*"))) >= 1


def test_a_file_cut_short_is_damaged(state: StateDir, writer: Writer) -> None:
    for number in range(50):
        writer.run(f"aaaaa{number:03}-x")
    caught_up(state).close()
    with state.history.open("r+b") as file:
        file.truncate(20000)
    writer.run("bbbbbbbb-x")
    with pytest.raises(sqlite3.DatabaseError) as raised, closing(History(state.history)) as history:
        history.add(entries(state.events))
        history.prune(Bounds(runs=1), BEGAN)
    assert is_damage(raised.value)
    set_aside(state.history, BEGAN)
    caught_up(state).close()
    assert len(found(state)) == 51


def test_what_cannot_be_opened_is_told_with_its_path(state: StateDir) -> None:
    state.history.mkdir()
    with pytest.raises(KernelError, match=str(state.history)):
        open_or_replace(state.history, BEGAN)
    with pytest.raises(SupervisorError, match="there is no history"):
        Past(state.history)


def test_a_reader_says_what_is_no_history(state: StateDir) -> None:
    state.history.write_bytes(b"rubbish" * 1000)
    with pytest.raises(SupervisorError, match="is no history"):
        Past(state.history)


def test_a_reader_writes_nothing_and_waits_for_nobody(state: StateDir, writer: Writer) -> None:
    writer.run("aaaaaaaa-x")
    with closing(caught_up(state)) as history:
        history._db.execute("BEGIN IMMEDIATE")  # somebody is in the middle of writing
        assert found(state) == ["aaaaaaaa-x"]
        with open_past(state.history) as past, pytest.raises(SupervisorError, match="cannot be"):
            past._db.row_factory = None
            with past._told():
                past._db.execute("DELETE FROM runs")
        history._db.execute("ROLLBACK")


# what is forgotten


def test_runs_that_ended_long_ago_are_forgotten_with_their_events(
    state: StateDir, writer: Writer
) -> None:
    writer.log.emit("supervisor_started", pid=1)
    writer.run("aaaaaaaa-old")
    writer.now += 100 * DAY
    writer.log.emit("supervisor_started", pid=1)
    writer.run("bbbbbbbb-new")
    writer.start("cccccccc-runs")
    with closing(caught_up(state)) as history:
        assert history.prune(Bounds(keep=90 * DAY), writer.now) > 0
        assert history.prune(Bounds(keep=90 * DAY), writer.now) == 0
    assert found(state) == ["cccccccc-runs", "bbbbbbbb-new"]
    assert rows(state.history, "SELECT min(seq) FROM events") == [(5,)]


def test_only_the_last_runs_are_kept_when_a_number_is_given(
    state: StateDir, writer: Writer
) -> None:
    writer.start("aaaaaaaa-long")
    for number in range(STEP + 20):
        writer.run(f"b{number:07}-x")
    steps = []
    with closing(caught_up(state)) as history:
        while gone := history.prune(Bounds(runs=3), writer.now):
            steps.append(gone)
    assert len(steps) >= 2 and steps[0] == STEP
    assert found(state) == [f"b{number:07}-x" for number in (219, 218, 217)] + ["aaaaaaaa-long"]


def test_a_run_without_an_end_goes_once_another_supervisor_has_begun(
    state: StateDir, writer: Writer
) -> None:
    writer.log.emit("supervisor_started", pid=1)
    writer.start("aaaaaaaa-killed")
    writer.log.emit("supervisor_started", pid=2)
    writer.run("bbbbbbbb-x")
    writer.run("bbbbbbbc-x")
    with closing(caught_up(state)) as history:
        history.prune(Bounds(runs=1), writer.now)
    assert found(state) == ["bbbbbbbc-x"]


def test_without_bounds_nothing_is_forgotten(state: StateDir, writer: Writer) -> None:
    writer.run("aaaaaaaa-x")
    with closing(caught_up(state)) as history:
        assert history.prune(Bounds(), writer.now + 10**9) == 0
    assert found(state) == ["aaaaaaaa-x"]


def test_an_event_of_a_run_that_was_forgotten_is_no_trouble(
    state: StateDir, writer: Writer
) -> None:
    writer.run("aaaaaaaa-x")
    with closing(caught_up(state)) as history:
        history.prune(Bounds(keep=1.0), writer.now + DAY)
        writer.log.emit("kept", job="x", run="aaaaaaaa-x", path="/x")
        history.add(entries(state.events, history.position))
        assert history.odd == 0
