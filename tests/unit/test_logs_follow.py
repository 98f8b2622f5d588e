"""Which process `logs -f` takes for the supervisor that it follows, and how that ends."""

from __future__ import annotations

import os
import select
import subprocess
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from supervisor.front.verbs import follow
from supervisor.front.verbs.follow import Follower, supervisor_of
from supervisor.front.verbs.logs import Printer
from supervisor.linux import proc
from supervisor.record.logsource import Wanted
from supervisor.record.runs import StateDir
from tests.support.histories import Writer


def test_a_supervisor_is_known_by_its_start_whatever_the_clock_says() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        start, boot = proc.stat(process.pid).start_ticks, proc.boot_id()
        pidfd = supervisor_of(process.pid, boot, start)
        try:
            assert not select.select([pidfd], [], [], 0)[0]
            for other in ((boot, start + 1), (boot, start - 1), ("another", start)):
                assert supervisor_of(process.pid, *other) == -1
            process.communicate()
            assert select.select([pidfd], [], [], 60)[0]
        finally:
            os.close(pidfd)
    assert supervisor_of(process.pid, boot, start) == -1


def test_a_number_that_is_no_process_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_pid: int) -> int:
        raise ProcessLookupError

    monkeypatch.setattr(os, "pidfd_open", gone)
    assert supervisor_of(1, proc.boot_id(), proc.stat(1).start_ticks) == -1


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

    monkeypatch.setattr(follow, "supervisor_of", ends)
    assert follower.begin([], Wanted(("out",), None, "")) == status
    writer.log.close()
