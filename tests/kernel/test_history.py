"""The history of real batches: what is in it, and that neither SIGKILL nor a full disk lose any."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.record.eventfiles import entries
from supervisor.record.past import Query, open_past
from supervisor.record.runs import StateDir
from tests.support.batch import Batch
from tests.support.command import State, Supervise
from tests.support.histories import rows

pytestmark = pytest.mark.kernel


def same_as_the_log(state: Path) -> int:
    """All that is in the event log is in the history; how many entries that is."""
    logged = [line.entry for line in entries(StateDir(state).events)]
    known = rows(StateDir(state).history, "SELECT seq, event FROM events ORDER BY seq")
    assert known == [(entry["seq"], entry["event"]) for entry in logged]
    records = [entry["record"] for entry in logged if entry["event"] == "job_ended"]
    kept = rows(StateDir(state).history, "SELECT record FROM runs WHERE record IS NOT NULL")
    assert sorted((json.loads(one) for (one,) in kept), key=str) == sorted(records, key=str)
    return len(logged)


def test_a_batch_is_in_its_history_when_it_has_ended(batch: Batch) -> None:
    result = batch.run(
        """
        [jobs.grows]
        command = ["perl", "-e", "$x = 'a' x (48 << 20)"]
        limits = { memory = "24M", swap = 0 }
        on_memory_limit = { action = "raise", to = "256M" }

        [jobs.fails]
        command = "false"
        restart = { when = "on-failure", attempts = 1, backoff = "1ms" }

        [jobs.never]
        command = "true"
        after = ["fails"]
        """
    )
    same_as_the_log(batch.state)
    with open_past(StateDir(batch.state).history) as past:
        found = past.runs(Query())
        (change,) = past.limit_changes(result["grows"]["run"])
        assert past.record(result["grows"]["run"]) == result["grows"]
    assert sorted((run["job"], run["attempt"], run["reason"]) for run in found) == [
        ("fails", 1, "failed"), ("fails", 2, "failed"), ("grows", 1, "succeeded"),
        ("never", 0, "skipped"),
    ]  # fmt: skip
    assert (change["name"], change["by"]) == ("memory", "on_memory_limit")
    assert (batch.state / "history.sqlite3").stat().st_mode & 0o777 == 0o600


def test_it_is_read_while_the_instance_runs(batch: Batch, supervise: Supervise) -> None:
    jobs = (
        '[jobs.first]\ncommand = "true"\n[jobs.waits]\ncommand = ["sleep", "1000"]\nafter=["first"]'
    )
    with batch.start(jobs) as running:
        running.wait_started("waits")
        asked = ("history", "--state-dir", str(batch.where.state), "--json")
        while True:  # it is a tenth of a second behind
            done = supervise(*asked)
            runs = [json.loads(line) for line in done.stdout.splitlines()]
            if len(runs) == 2:
                break
        assert [(run["job"], run["reason"]) for run in runs] == [
            ("waits", None), ("first", "succeeded"),
        ]  # fmt: skip
    same_as_the_log(batch.state)


def test_a_supervisor_that_is_killed_loses_nothing_of_it(batch: Batch) -> None:
    many = "[jobs.many]\ncommand = 'true'\nmatrix = { n = [1, 2, 3, 4, 5, 6, 7, 8] }\n"
    rest = "[jobs.stays]\ncommand = ['sleep', '1000']\nafter = ['many']\n"
    with batch.start(many + rest) as running:
        running.wait_started("stays")
        running.signal(signal.SIGKILL)  # the last of them can hardly be in the database
        running.process.wait()
        seen = len(batch.entries())
        batch.run("[jobs.next]\ncommand = 'true'\n")
        assert same_as_the_log(batch.state) > seen
        with open_past(StateDir(batch.state).history) as past:
            ends = {run["job"]: run["reason"] for run in past.runs(Query())}
        assert ends.pop("stays") is None
        assert len(ends) == 9 and set(ends.values()) == {"succeeded"}


@pytest.fixture
def small(tmp_path: Path, tmp_state: State) -> Iterator[Path]:
    """The state directory is a file system of its own, with little room."""
    size = "size=512k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", tmp_state.state], check=True)
    yield tmp_state.state
    subprocess.run(["umount", tmp_state.state], check=True)


def test_a_full_disk_costs_no_job_and_is_caught_up(small: Path, batch: Batch) -> None:
    """The log still has a page to write into when the database has none."""
    ballast = small / "ballast"
    fifo = batch.fifo("ready")
    jobs = """
        [jobs.one]
        command = ["sh", "-c", "echo >/tmp/ready; read x </tmp/go"]
        [jobs.two]
        command = "true"
        after = ["one"]
    """
    go = batch.fifo("go")
    mounts = (
        f'mounts = [{{ source = "{fifo}", target = "/tmp/ready", read_only = false }}, '
        f'{{ source = "{go}", target = "/tmp/go" }}]'
    )
    with batch.start(jobs, defaults=mounts) as running:
        running.wait_started("one")
        batch.told(fifo, 1)
        fill(ballast)
        running.signal(signal.SIGHUP)  # a reload is an entry, and takes no room of its own
        running.wait_for(r"cannot write \S+/history\.sqlite3: ")
        go.write_text("go\n")
        result = running.finish()
        assert result.reasons["one"] == "succeeded"
    ballast.unlink()
    batch.run("[jobs.next]\ncommand = 'true'\n")
    same_as_the_log(batch.state)


def test_old_runs_go_at_the_start_but_not_what_they_kept(batch: Batch) -> None:
    kept = """
        [jobs.keeps]
        script = "echo here > /var/tmp/x"
        write = "overlay"
        keep = "always"
    """
    first = batch.run('[jobs.first]\ncommand = "true"\n' + kept)
    jobs = '[jobs.second]\ncommand = ["sleep", "1000"]\n'
    with batch.start(jobs, top="runs = { count = 1, keep = '1ms' }") as running:
        running.wait_started("second")
        gone = batch.state / "runs" / first["first"]["run"]
        while gone.exists():
            time.sleep(0.01)
        running.signal(signal.SIGINT)
        last = running.finish()["second"]
    left = {one.name for one in (batch.state / "runs").iterdir()}
    assert left == {first["keeps"]["run"], last["run"]}
    logs = {one.name.partition(".")[0] for one in (batch.state / "logs").iterdir()}
    assert logs == {"keeps", "second"}


def fill(path: Path) -> None:
    """Take all the room there is."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return
