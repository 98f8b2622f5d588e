"""Who writes the history: in batches, beside the event loop, and through every kind of trouble."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import trio

from supervisor.model.record import Reason
from supervisor.record import history as history_module
from supervisor.record.eventfiles import entries
from supervisor.record.history import STEP, History
from supervisor.record.history_schema import VERSION
from supervisor.record.past import Query, open_past
from supervisor.record.runs import Bounds, StateDir
from supervisor.supervise import historian
from supervisor.supervise.historian import Historian, number_of, recorded
from tests.support.histories import Writer, rows

PATIENCE = 60.0


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


class Told(list[str]):
    """What was told, in the thread, and a way to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.there = threading.Semaphore(0)

    def __call__(self, text: str) -> None:
        self.append(text)
        self.there.release()

    def wait(self) -> str:
        assert self.there.acquire(timeout=PATIENCE)
        return self[-1]


def follow(state: StateDir, told: Callable[[str], None], bounds: Bounds = Bounds()) -> Historian:  # noqa: B008 - frozen
    return Historian(state.history, state.events, bounds, told)


def found(state: StateDir) -> list[str]:
    with open_past(state.history) as past:
        return [run["run"] for run in past.runs(Query())]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again at once."""
    monkeypatch.setattr(historian, "RETRY", 0.01)
    monkeypatch.setattr(historian, "GATHER", 0.01)
    monkeypatch.setattr(history_module, "PATIENCE", 0.01)


async def test_what_is_logged_while_it_is_open_is_in_the_history(state: StateDir) -> None:
    writer, late = Writer(state), Told()
    with recorded(state, Bounds(), writer.log, late.append) as one:
        writer.log.subscribe(one)
        writer.run("aaaaaaaa-x", Reason.OOM)
        await trio.lowlevel.checkpoint()
        writer.run("bbbbbbbb-x")
    writer.log.close()
    assert not state.root.joinpath("history.sqlite3-wal").exists()
    assert found(state) == ["bbbbbbbb-x", "aaaaaaaa-x"]
    assert [line.entry["event"] for line in entries(state.events)].count("warning") == 0


def test_it_is_there_without_waiting_for_the_end(state: StateDir, quick: None) -> None:
    writer, told = Writer(state), Told()
    one = follow(state, told)
    writer.log.subscribe(one)
    one.start()
    writer.run("aaaaaaaa-x")
    deadline = threading.Event()
    for _ in range(int(PATIENCE / 0.01)):
        if state.history.exists() and rows_or_none(state) == [("aaaaaaaa-x",)]:
            break
        deadline.wait(0.01)
    assert rows_or_none(state) == [("aaaaaaaa-x",)]
    assert one.close() and not told
    writer.log.close()


def rows_or_none(state: StateDir) -> list[tuple[object, ...]] | None:
    try:
        return rows(state.history, "SELECT run FROM runs")
    except sqlite3.Error:
        return None


def test_what_an_earlier_supervisor_left_unwritten_is_caught_up(state: StateDir) -> None:
    writer = Writer(state, size=5000, most=100)
    for number in range(20):
        writer.run(f"aaaaaa{number:02}-x")
    writer.log.close()
    assert not state.history.exists()
    told = Told()
    one = follow(state, told)
    one.start()
    assert one.close() and not told
    assert len(found(state)) == 20
    assert rows(state.history, "SELECT seq FROM position") == [(60,)]


def test_a_locked_history_is_told_of_once_and_caught_up(state: StateDir, quick: None) -> None:
    writer, told = Writer(state), Told()
    History(state.history).close()
    with closing(sqlite3.connect(state.history, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        one = follow(state, told)
        writer.log.subscribe(one)
        one.start()
        writer.run("aaaaaaaa-x")
        assert "database is locked" in told.wait() and "caught up later" in told[-1]
        writer.run("bbbbbbbb-x")
        other.execute("ROLLBACK")
        assert "is written again" in told.wait()
    assert one.close() and len(told) == 2
    assert found(state) == ["bbbbbbbb-x", "aaaaaaaa-x"]
    writer.log.close()


def test_one_that_stays_locked_is_caught_up_by_the_next(state: StateDir, quick: None) -> None:
    writer, told = Writer(state), Told()
    History(state.history).close()
    with closing(sqlite3.connect(state.history, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writer.run("aaaaaaaa-x")
        one = follow(state, told)
        one.start()
        assert one.close()
        assert found(state) == []
        other.execute("ROLLBACK")
    one = follow(state, told)
    one.start()
    assert one.close() and found(state) == ["aaaaaaaa-x"]
    writer.log.close()


def test_a_later_version_is_told_of_and_left_alone(state: StateDir) -> None:
    History(state.history).close()
    with closing(sqlite3.connect(state.history)) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = state.history.read_bytes()
    writer, told = Writer(state), Told()
    one = follow(state, told)
    writer.log.subscribe(one)
    one.start()
    assert f"of version {VERSION + 1}" in told.wait()
    writer.run("aaaaaaaa-x")  # and nobody minds
    assert one.close() and len(told) == 1
    assert state.history.read_bytes() == before
    writer.log.close()


def test_a_damaged_one_is_set_aside_and_made_again(state: StateDir) -> None:
    state.history.write_bytes(b"rubbish" * 1000)
    writer, told = Writer(state), Told()
    writer.run("aaaaaaaa-x")
    one = follow(state, told)
    one.start()
    assert one.close() and "is damaged" in told[0]
    assert found(state) == ["aaaaaaaa-x"]
    writer.log.close()


def test_damage_that_shows_later_is_set_aside_as_well(state: StateDir, quick: None) -> None:
    writer, told = Writer(state), Told()
    one = follow(state, told)
    writer.log.subscribe(one)
    writer.run("aaaaaaaa-x")
    with closing(History(state.history)) as history:
        history._db.execute("DROP TABLE events")
    one.start()
    assert "no such table" in told.wait()
    assert "is written again" in told.wait()
    assert one.close() and found(state) == ["aaaaaaaa-x"]
    assert list(state.root.glob("*damaged*"))
    writer.log.close()


def test_what_is_too_old_is_forgotten_at_the_start(state: StateDir) -> None:
    writer, told = Writer(state), Told()
    writer.log.emit("supervisor_started", pid=1)
    for number in range(5):
        writer.run(f"aaaaaa{number:02}-x")
    one = follow(state, told, Bounds(runs=2))
    one.start()
    deadline = threading.Event()
    for _ in range(int(PATIENCE / 0.01)):
        if rows_or_none(state) == [("aaaaaa03-x",), ("aaaaaa04-x",)]:
            break
        deadline.wait(0.01)
    assert one.close()
    assert found(state) == ["aaaaaa04-x", "aaaaaa03-x"]
    writer.log.close()


def test_a_short_life_forgets_too_but_not_for_long(state: StateDir) -> None:
    writer, told = Writer(state), Told()
    for number in range(STEP + 50):
        writer.run(f"a{number:07}-x")
    for left in (50, 1):
        one = follow(state, told, Bounds(runs=1))
        one.start()
        assert one.close()
        assert len(found(state)) == left
    writer.log.close()


async def test_the_end_does_not_wait_for_ever(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(Historian, "_write", lambda *_: release.wait(PATIENCE))
    monkeypatch.setattr(historian, "LEAVE", 0.05)
    monkeypatch.setattr(Historian.close, "__defaults__", (0.05,))
    writer, late = Writer(state), Told()
    with recorded(state, Bounds(), writer.log, late.append):
        pass
    release.set()
    (entry,) = [line.entry for line in entries(state.events)]
    assert "not up to date" in entry["text"] and late == [entry["text"]]
    writer.log.close()


def test_numbers_go_on_where_only_the_history_remembers_them(state: StateDir) -> None:
    assert number_of(state) == 0
    writer, told = Writer(state), Told()
    writer.run("aaaaaaaa-x")
    writer.log.close()
    assert number_of(state) == 0
    one = follow(state, told)
    one.start()
    assert one.close()
    assert number_of(state) == 0
    state.events.unlink()
    assert number_of(state) == 3
    state.history.write_bytes(b"rubbish" * 500)
    assert number_of(state) == 0
