"""`supervise history`: which runs it finds, how it shows them, what it says of a wrong question."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from supervisor.front import cli
from supervisor.front.history import event_line, table
from supervisor.model.record import Reason, iso
from supervisor.record.eventfiles import entries
from supervisor.record.history import History
from supervisor.record.runs import StateDir
from tests.support.histories import Writer


@pytest.fixture
def states(tmp_path: Path) -> Path:
    """A state directory with two instances: `night` has four runs, `day` one."""
    _fill(tmp_path / "night", time.time() - 10 * 86400, ["aaaaaaaa-old"])
    _fill(
        tmp_path / "night", time.time() - 3600, ["bbbbbbba-a", "bbbbbbbb-b\x1b[31m", "bbbbbbbc-a"]
    )
    _fill(tmp_path / "day", time.time() - 60, ["cccccccc-a"])
    (tmp_path / "stranger").mkdir()
    return tmp_path


def _fill(root: Path, now: float, runs: list[str]) -> None:
    root.mkdir(exist_ok=True)
    writer = Writer(StateDir(root))
    writer.now = now
    for run in runs:
        bad = run.startswith("bbbbbbbb")
        writer.run(run, Reason.OOM if bad else Reason.SUCCEEDED, detail="two\nlines" if bad else "")
    writer.log.close()
    history = History(StateDir(root).history)
    history.add(entries(StateDir(root).events, history.position))
    history.close()


@pytest.fixture
def history(states: Path, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str) -> tuple[int, list[str], str]:
        status = cli.command(["history", "--state-dir", str(states), *arguments])
        out, err = capsys.readouterr()
        return status, out.splitlines(), err

    return call


def runs(lines: list[str]) -> list[str]:
    return [json.loads(line)["run"] for line in lines]


def test_the_runs_of_all_instances_are_there_newest_first(history) -> None:
    status, lines, err = history("--json")
    assert (status, err) == (0, "")
    assert [json.loads(line)["instance"] for line in lines] == ["day"] + ["night"] * 4
    assert runs(lines)[0] == "cccccccc-a" and runs(lines)[-1] == "aaaaaaaa-old"
    status, lines, _ = history()
    assert lines[0].split() == ["RUN", "JOB", "REASON", "STARTED", "TIME", "CPU", "PEAK", "NOTE"]
    assert lines[1].startswith("day/cccccccc-a ")


def test_one_instance_is_shown_without_its_name(history) -> None:
    _, lines, _ = history("-n", "day")
    assert lines[1].startswith("cccccccc-a ") and len(lines) == 2


def test_what_jobs_are_called_does_nothing_to_a_terminal(history) -> None:
    _, lines, _ = history("-n", "night", "--reason", "oom")
    assert len(lines) == 2 and "\x1b" not in lines[1] and "two\\nlines" in lines[1]


def test_filters_go_together(history) -> None:
    assert runs(history("--json", "--job", "a")[1]) == ["cccccccc-a", "bbbbbbbc-a", "bbbbbbba-a"]
    assert runs(history("--json", "--job", "a", "--until", "10m")[1]) == [
        "bbbbbbbc-a",
        "bbbbbbba-a",
    ]
    assert runs(history("--json", "--since", "2d", "-n", "night", "--limit", "1")[1]) == [
        "bbbbbbbc-a"
    ]
    assert runs(history("--json", "--until", "2d")[1]) == ["aaaaaaaa-old"]
    assert (
        runs(history("--json", "--since", "2000-01-01", "--limit", "max")[1])[-1] == "aaaaaaaa-old"
    )


def test_what_is_left_out_is_said(history) -> None:
    status, lines, err = history("--limit", "2")
    assert (status, len(lines)) == (0, 3) and "the newest 2 are shown" in err
    assert history("--limit", "5")[2] == ""


def test_nothing_found_is_no_failure(history) -> None:
    assert history("--job", "nobody") == (0, [], "supervise: no such run is known\n")
    assert history("--job", "nobody", "--json")[:2] == (0, [])


def test_a_run_is_shown_whole_with_what_happened(history) -> None:
    status, lines, _ = history("--run", "bbbbbbba-a", "--json")
    assert status == 0 and json.loads(lines[0])["memory"]["limit"] == 64 << 20
    status, lines, _ = history("--run", "night/bbbbbbba-a", "--events")
    assert lines[0] == "{" and lines[-1].endswith("a job_ended reason=succeeded expected=True")
    status, lines, _ = history("--run", "bbbbbbba-a", "--events", "--json")
    assert [json.loads(line)["event"] for line in lines] == [
        "job_starting",
        "job_started",
        "job_ended",
    ]
    assert history("--run", "day/bbbbbbba-a")[0] == 2
    status, lines, err = history("--run", "nope")
    assert (status, lines) == (2, []) and "nope: no such run in day, night" in err


def test_the_events_of_a_job_are_told_in_order(history) -> None:
    _, lines, _ = history("--events", "--job", "a", "-n", "night", "--json")
    seqs = [json.loads(line)["seq"] for line in lines]
    assert seqs == sorted(seqs) and len(seqs) == 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--events"], "of which run or job?"),
        (["-n", "nobody"], "no instance nobody has a history here"),
        (["-n", "../etc"], "not a name"),
        (["--reason", "boom"], "invalid choice: 'boom'"),
        (["--since", "yesterday"], "neither a duration"),
        (["--since", "99999999-01-01"], "neither a duration"),
        (["--limit", "0"], "a number from 1 on"),
        (["--limit", "-1"], ""),
        (["--limit", "9" * 30], "a number from 1 on"),
    ],
)
def test_a_wrong_question_is_answered_by_what_is_wrong(history, capsys, arguments, said) -> None:
    try:
        status, _, err = history(*arguments)
    except SystemExit as left:
        status, err = left.code, capsys.readouterr().err
    assert status == 2 and said in err


def test_no_history_at_all_says_where_it_looked(tmp_path: Path, capsys) -> None:
    assert cli.command(["history", "--state-dir", str(tmp_path / "none")]) == 2
    assert f"{tmp_path}/none: no instance has a history" in capsys.readouterr().err


def test_a_damaged_one_fails_with_its_path(tmp_path: Path, capsys) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/history.sqlite3").write_bytes(b"rubbish" * 999)
    assert cli.command(["history", "--state-dir", str(tmp_path)]) == 125
    assert "x/history.sqlite3: is no history" in capsys.readouterr().err


def test_the_table_fits_a_terminal() -> None:
    run = {
        "instance": "x", "run": "aaaaaaaa-x", "job": "x" * 40, "reason": None, "attempt": 2,
        "started_at": iso(0.0), "wall_seconds": None, "cpu_seconds": None, "memory_peak": None,
        "oom_kills": 1, "expected": None, "pids_refused": 3, "decided_by": "grow",
        "detail": "d" * 200,
    }  # fmt: skip
    for width in (90, 100, 200):
        assert all(len(line) <= width for line in table([run], width).splitlines())
    (_, whole) = table([run], None).splitlines()
    notes = "no end was recorded; attempt 2; 1 killed by OOM; 3 forks refused; by grow; "
    assert whole.endswith(notes + "d" * 200)
    assert "\x1b[31m" in table([run | {"expected": False}], None, colour=True)
    assert "\x1b[31m" not in table([run | {"expected": None}], None, colour=True)


def test_every_kind_of_entry_has_a_line() -> None:
    entry = {"seq": 1, "time": "rubbish", "event": "job_waiting", "job": "x", "waiting_for": "y\n"}
    assert event_line(entry) == "rubbish x job_waiting waiting_for=y\\n"
