"""One run's story out of the history and the log, whichever of them has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.model.record import Reason
from supervisor.record.eventfiles import entries
from supervisor.record.history import History
from supervisor.record.runs import StateDir
from supervisor.record.story import jobs, story
from tests.support.histories import Writer


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path)
    state.make()
    return state


@pytest.fixture
def writer(state: StateDir) -> Iterator[Writer]:
    writer = Writer(state)
    yield writer
    writer.log.close()


def three_attempts(writer: Writer) -> None:
    writer.log.emit("supervisor_started", pid=1)
    writer.log.emit("job_waiting", job="x", waiting_for="y")
    writer.run("aaaaaaaa-y")
    writer.run("bbbbbbbb-x", Reason.OOM)
    writer.log.emit("decision", job="x", run="bbbbbbbb-x", hook="on_exit")
    writer.log.emit("retry", job="x", attempt=2)
    writer.run("cccccccc-x", Reason.FAILED)
    writer.log.emit("restart", job="x", attempt=3)
    writer.start("dddddddd-x")


def remembered(state: StateDir, entries_of_it: int) -> None:
    """So many entries are in the history already, and for that matter not in the log."""
    history = History(state.history)
    history.add(list(entries(state.events))[:entries_of_it])
    history.close()


@pytest.mark.parametrize("known", [0, 3, 5, 8, 9, 10, 13, 14, 15, 16])
def test_a_run_has_its_own_entries_and_those_around_it(
    state: StateDir, writer: Writer, known: int
) -> None:
    three_attempts(writer)
    if known:
        remembered(state, known)
    told = {run: story(state, "x", run) for run in ("bbbbbbbb-x", "cccccccc-x", "dddddddd-x")}
    events = {run: [one["event"] for one in one.entries] for run, one in told.items() if one}
    starts = ["job_starting", "job_started"]
    assert events == {
        "bbbbbbbb-x": ["job_waiting", *starts, "job_ended", "decision", "retry"],
        "cccccccc-x": ["retry", *starts, "job_ended", "restart"],
        "dddddddd-x": ["restart", *starts],
    }
    last = story(state, "x")
    assert last == told["dddddddd-x"] and last is not None and last.record is None
    middle = told["cccccccc-x"]
    assert middle is not None and middle.record is not None
    assert middle.record["reason"] == "failed" and middle.record["run"] == "cccccccc-x"
    assert "record" not in middle.entries[-2]


@pytest.mark.parametrize("known", [0, 1, 2])
def test_a_job_that_was_skipped_has_a_story_too(
    state: StateDir, writer: Writer, known: int
) -> None:
    writer.log.emit("job_waiting", job="x", waiting_for="y")
    record = {"job": "x", "run": "", "reason": "skipped", "attempt": 0}
    writer.log.emit("job_ended", job="x", run="", reason="skipped", record=record)
    if known:
        remembered(state, known)
    told = story(state, "x")
    assert told is not None and (told.run, told.record) == ("", record)
    assert [one["event"] for one in told.entries] == ["job_waiting", "job_ended"]


def test_what_only_the_history_remembers_is_told(state: StateDir, writer: Writer) -> None:
    three_attempts(writer)
    remembered(state, 100)
    state.events.unlink()
    told = story(state, "x", "bbbbbbbb-x")
    assert told is not None and told.record is not None and told.record["reason"] == "oom"


def test_the_job_as_it_was_started_and_its_output_belong_to_it(
    state: StateDir, writer: Writer
) -> None:
    writer.run("aaaaaaaa-x")
    (state.runs / "aaaaaaaa-x").mkdir()
    state.spec("aaaaaaaa-x").write_text(json.dumps({"v": 1, "spec": {"limits": {"pids": 3}}}))
    state.log("x", "aaaaaaaa-x", "err").write_text("")
    told = story(state, "x")
    assert told is not None and told.spec == {"limits": {"pids": 3}}
    assert told.output == (str(state.log("x", "aaaaaaaa-x", "err")),)
    for rubbish in ("", "[]", "{", '{"spec": 7}'):
        state.spec("aaaaaaaa-x").write_text(rubbish)
        told = story(state, "x")
        assert told is not None and told.spec is None


def test_nothing_is_known_of_a_stranger(state: StateDir, writer: Writer) -> None:
    assert story(state, "x") is None
    writer.run("aaaaaaaa-x.y")
    writer.log.emit("job_waiting", job="z", waiting_for="y")
    for name in ("x", "x.?", "*", "z", "", "x.y' OR 1=1"):
        assert story(state, name) is None
    assert story(state, "x.y", "../../etc") is None
    assert jobs(state) == ["x.y", "z"]
    remembered(state, 2)
    assert jobs(state) == ["x.y", "z"]
