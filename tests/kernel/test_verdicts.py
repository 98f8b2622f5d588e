"""Why a run ended: each word of the vocabulary, told apart from the others, time after time.

The cases are those of tests/matrix, which has their table.  Each is run a few times in one batch,
many at once, where a race would show; some once by `supervise run`, with the exit status it gives.
"""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.front.schema import JOB
from tests.matrix.cases import CASES, ENDED, ENDS, REFUSED, Case
from tests.matrix.groups import ALL, Round
from tests.matrix.judge import faults
from tests.support import host
from tests.support.batch import Batch, Result, assert_clean
from tests.support.command import Supervise

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(900)]  # one fixture runs the whole matrix

TIMES = 1 if host.in_guest() else 2
"""How often each case of the matrix is run here; `make verdicts` runs them more often."""

ONCE = [*ENDS, *REFUSED, *ENDED, "oom-main", "oom-child", "oom-in-exec", "oom-continue",
        "oom-continue-fails"]  # fmt: skip
"""The cases that are run by `supervise run` too."""


def flags(case: Case) -> Iterator[str]:
    """The case's settings as flags of `supervise run`."""
    for key, value in case.settings.items():
        setting = JOB.find(tuple(key.split(".")))
        assert setting is not None
        yield f"--{setting.flag}"
        if key == "mounts":
            yield "{source}:{target}:ro".format(**value[0])
        elif isinstance(value, dict):
            yield ":".join(filter(None, (value["action"], value.get("why"))))
        else:
            yield str(value)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Result]]:
    """Every case of the matrix: those that end alone, are stopped, have a limit above."""
    busybox = host.static_busybox() or host.miss("tools", "needs a static busybox")
    directory = tmp_path_factory.mktemp("verdicts")
    with tempfile.TemporaryDirectory(prefix="sv-") as runtime:
        one = Round(directory, Path(runtime), busybox, TIMES, at_a_time=8, number=0)
        found = {"alone": one.alone(), "stopped": one.stopped(), "above": one.above()}
        yield {name: result for name, result in found.items() if result is not None}


@pytest.mark.parametrize("name", ALL)
def test_a_reason_is_told_every_time(everything: dict[str, Result], name: str) -> None:
    records = [run for result in everything.values() for run in result.runs]
    of_this = [record for record in records if record["job"].partition("@")[0] == name]
    assert len(of_this) == TIMES
    for record in of_this:
        assert faults(ALL[name], record) == [], record


def test_batches_whose_jobs_end_as_expected_succeed(everything: dict[str, Result]) -> None:
    statuses = {name: result.status for name, result in everything.items()}
    assert statuses == {"alone": 0, "stopped": 130, "above": 0}
    assert sum(len(result.runs) for result in everything.values()) == TIMES * len(ALL)


def test_the_log_has_the_very_records_that_were_printed(everything: dict[str, Result]) -> None:
    """--json, the event log: one truth."""
    result = everything["alone"]
    ended = {entry["run"]: entry["record"] for entry in result.batch.entries("job_ended")}
    assert ended == {run["run"]: run for run in result.runs}


def test_an_oom_kill_is_in_the_log_before_the_end(everything: dict[str, Result]) -> None:
    """What the kernel counted was seen as it happened, not only at the end."""
    seen: dict[str, int] = {}
    for entry in everything["alone"].batch.entries():
        if entry["event"] == "oom_kill":
            seen[entry["run"]] = entry["total"]
        elif entry["event"] == "job_ended":
            assert entry["record"]["memory"]["oom_kills"] == seen.get(entry["run"], 0), entry


def test_a_stopped_init_is_continued_and_that_is_told(everything: dict[str, Result]) -> None:
    """A job is not the longer in ending for it, and its exit is known."""
    entries = everything["alone"].batch.entries("warning")
    told = {entry["job"] for entry in entries if "init had been stopped" in entry["text"]}
    jobs = ("init-stopped-times-out", "init-stopped-stubborn")
    assert told == {f"{job}@time={time}" for job in jobs for time in range(TIMES)}


@pytest.mark.parametrize("name", ONCE)
def test_run_tells_the_reason_and_gives_the_status(
    supervise: Supervise, tmp_path: Path, busybox: Path, name: str
) -> None:
    case = CASES[name]
    record = tmp_path / "record.json"
    words = [word.replace("BUSYBOX", str(busybox)) for word in flags(case)]
    done = supervise("run", *words, "--record", record, "--", *case.command)
    assert done.status == case.status, done
    found = json.loads(record.read_text())
    assert [fault for fault in faults(case, found) if fault != "not as expected"] == []
    if case.reason == "succeeded":
        assert "supervise:" not in done.stderr  # "Killed" is the shell's own
    else:
        assert f"supervise: {case.reason}: " in done.stderr


# What comes from outside, beyond the matrix.


def test_what_waits_for_a_job_that_failed_is_skipped(batch: Batch) -> None:
    result = batch.run("""
    [jobs.bad]
    command = "false"
    [jobs.group]
    command = "true"
    matrix = { n = [1, 2] }
    after = ["bad"]
    [jobs.last]
    command = "true"
    after = ["group"]
    [jobs.other]
    command = "true"
    """)
    assert result.status == 1
    assert result.reasons == {
        "bad": "failed", "group@n=1": "skipped", "group@n=2": "skipped", "last": "skipped",
        "other": "succeeded",
    }  # fmt: skip
    record = result["group@n=1"]
    assert record["detail"] == "bad ended as failed"
    assert record["run"] == "" and record["attempt"] == 0 and record["started_at"] is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT])
def test_an_interrupted_batch_stops_its_jobs(batch: Batch, number: int) -> None:
    ready = batch.fifo("ready")
    jobs = """
    [jobs.polite]
    script = "trap 'echo bye; exit 0' TERM; echo x > /tmp/ready; while :; do sleep 0.1; done"
    [jobs.stubborn]
    script = "trap '' TERM; echo x > /tmp/ready; while :; do sleep 1; done"
    stop = { grace = "200ms" }
    [jobs.waiting]
    command = "true"
    after = ["polite"]
    """
    with batch.start(jobs, defaults=batch.sees(ready)) as running:
        batch.told(ready, 2)
        running.signal(number)
        result = running.finish()
    assert result.status == 130
    assert result.reasons == {"polite": "stopped", "stubborn": "stopped", "waiting": "skipped"}
    assert (result["stubborn"]["signal"], result["stubborn"]["exit_code"]) == (9, None)
    assert result["polite"]["decided_by"] == signal.Signals(number).name
    assert "3 jobs in 2 runs: 0 as expected" in result.done.stderr


# Nothing left behind.


@pytest.mark.parametrize("write", ["read-only", "overlay"])
def test_a_run_leaves_nothing_behind(supervise: Supervise, tmp_path: Path, write: str) -> None:
    before = set(Path("/var/tmp").glob("supervise-*"))
    record = tmp_path / "r.json"
    process = supervise.start("run", "--write", write, "--record", record, "--",
                              "sh", "-c", "(setsid sleep 1000 &); exit 4")  # fmt: skip
    with process:
        process.communicate(timeout=60)
    assert process.returncode == 4
    assert json.loads(record.read_text())["reason"] == "failed"
    name = f"run-{process.pid}"
    assert_clean(f"supervise.{name}", f"/run/supervise/{name}")
    assert set(Path("/var/tmp").glob("supervise-*")) <= before
