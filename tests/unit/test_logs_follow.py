"""What `logs -f` takes from an event log: the supervisor, which runs have ended, and the end."""

from __future__ import annotations

import os
import select
import subprocess
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from supervisor.front import identity
from supervisor.front.verbs.follow import Events, Follower
from supervisor.front.verbs.logs import Printer
from supervisor.linux import proc
from supervisor.record.logsource import Wanted
from supervisor.record.runs import StateDir
from tests.support.histories import Writer


def test_a_supervisor_is_known_by_its_start_whatever_the_clock_says() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        start, boot = proc.stat(process.pid).start_ticks, proc.boot_id()
        pidfd = identity.find(process.pid, start, boot)
        try:
            assert not select.select([pidfd], [], [], 0)[0]
            for other in ((start + 1, boot), (start - 1, boot), (start, "another")):
                assert identity.find(process.pid, *other) == -1
            process.communicate()
            assert select.select([pidfd], [], [], 60)[0]
        finally:
            os.close(pidfd)
    assert identity.find(process.pid, start, boot) == -1


def test_a_number_that_is_no_process_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_pid: int) -> int:
        raise ProcessLookupError

    monkeypatch.setattr(os, "pidfd_open", gone)
    assert identity.find(*identity.own().values()) == -1


@pytest.fixture
def follower(tmp_path: Path) -> Iterator[Follower]:
    state = StateDir(tmp_path)
    state.make()
    options = Namespace(json=False, timestamps=False, color="never")
    follower = Follower(["a"], frozenset("a"), state, Printer(options, named=""))
    yield follower
    follower.close()


def test_a_file_that_is_just_being_renamed_is_looked_for_later(
    follower: Follower, tmp_path: Path
) -> None:
    path = tmp_path / "logs" / "a.out"
    source = cast(Any, Namespace(run=Namespace(path=lambda _stream: path), stream="out"))
    follower._heed_stream(source)
    path.touch()
    follower._heed_stream(source)
    assert not select.select([follower._watch], [], [], 0)[0]
    path.write_text("x")
    assert select.select([follower._watch], [], [], 60)[0]


@pytest.mark.parametrize(("says", "status"), [(True, 0), (False, 125)])
def test_what_a_supervisor_says_last_is_heard(
    follower: Follower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: bool, status: int
) -> None:
    """It ends after its log was read and before it is looked at."""
    writer = Writer(StateDir(tmp_path))
    writer.log.emit("supervisor_started", pid=1, start=1, boot="another")

    def ends(*_of: object) -> int:
        if says:
            writer.log.emit("supervisor_stopped", interrupted="", exit_status=0)
        return -1

    monkeypatch.setattr(identity, "find", ends)
    assert follower.begin([], Wanted(("out",), None, "")) == status
    writer.log.close()


def events_of(state: StateDir) -> Events:
    events = Events(state)
    try:
        events.read()
    finally:
        events.close()
    return events


def test_whose_run_it_is_does_not_depend_on_the_clock(tmp_path: Path) -> None:
    """It is set back an hour after the supervisor began: its runs have lower numbers then."""
    writer = Writer(StateDir(tmp_path))
    for run in ("m2-of-before", "m3-a"):
        writer.log.emit("supervisor_started", **identity.own())
        writer.start(run)
        writer.now -= 3600
    writer.start("m1-a")
    writer.run("m0-a")
    writer.log.close()
    events = events_of(StateDir(tmp_path))
    ended = {run: events.has_ended(run) for _, run in events.begun}
    assert ended == {"m2-of-before": True, "m3-a": False, "m1-a": False, "m0-a": True}
    assert events.has_ended("m9-unknown") and not events.over


def test_a_start_that_was_rotated_away_is_no_end(tmp_path: Path) -> None:
    writer = Writer(StateDir(tmp_path))
    assert events_of(StateDir(tmp_path)).over
    writer.run("m1-a")
    writer.start("m2-a")
    events = events_of(StateDir(tmp_path))
    assert events.supervisor is None and not events.over
    assert events.has_ended("m1-a") and not events.has_ended("m2-a")
    assert not events.has_ended("m0-rotated-away-too")
    writer.log.emit("supervisor_stopped", interrupted="", exit_status=0)
    writer.log.close()
    assert events_of(StateDir(tmp_path)).over
