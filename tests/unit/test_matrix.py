"""The verdict matrix notices what is off its diagonal, and says so readably."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor.model.record import Reason
from tests.matrix.__main__ import parse
from tests.matrix.cases import CASES, MEMORY, Case
from tests.matrix.groups import ALL, table
from tests.matrix.judge import faults
from tests.matrix.report import REASONS, Tally, matrix, wrong

CASE = Case(("tail", "/dev/zero"), "oom", 137, MEMORY, signal=9, oom_kills=1)


def record(**changes: Any) -> dict[str, Any]:
    """A right one, of CASE."""
    right: dict[str, Any] = {
        "job": "big@time=0", "reason": "oom", "command": ["tail", "/dev/zero"],
        "exit_code": None, "signal": 9, "expected": True, "detail": "", "decided_by": "",
        "started_at": "1", "finished_at": "2", "wall_seconds": 1.0, "start_error": None,
        "memory": {"limit": 9, "peak": 9, "oom_kills": 1, "limit_history": [{"value": 9}]},
        "pids": {"refused": 0},
        "evidence": [{"source": "/c/memory.oom_control", "what": "oom_kill 1"},
                     {"source": "/c/pids.events", "what": "max 0"}],
    }  # fmt: skip
    return right | changes


def test_a_right_record_has_no_fault() -> None:
    assert faults(CASE, record()) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"reason": "signal"}, "reason signal, not oom"),
        ({"signal": 15}, "exit code and signal (None, 15)"),
        ({"pids": {"refused": 2}}, "2 forks refused"),
        ({"decided_by": "configuration"}, "decided by 'configuration'"),
        ({"detail": "why?"}, "detail 'why?'"),
        ({"evidence": []}, "the evidence has another count of OOM kills"),
        ({"expected": False}, "not as expected"),
    ],
)
def test_a_wrong_one_is_told(changes: dict[str, Any], fault: str) -> None:
    assert faults(CASE, record(**changes))[0] == fault


def test_what_is_off_the_diagonal_is_marked_and_shown_in_full() -> None:
    tally = Tally({"big": CASE, "well": Case(("true",), "succeeded", 0, {})})
    tally.add([record(), record(reason="oom_host")])
    lines = list(matrix(tally))
    assert lines[0].split() == ["succeeded", "oom", "oom_host", "wrong"]
    assert lines[1].split() == ["big", ".", "1", "1!", "1"]
    assert lines[2].split() == ["well", "0", ".", ".", "."]
    assert next(wrong(tally)) == "big: reason oom_host, not oom"
    assert '"reason": "oom_host"' in list(wrong(tally))[1]
    assert tally.missing(2) == ["well: 0 records of 2 runs"]


def test_each_reason_that_this_version_gives_has_a_case() -> None:
    """`lost` takes a broken disk, `output` and `disk` are words for later."""
    reasons = {case.reason for case in ALL.values()}
    assert {str(reason) for reason in Reason} - reasons == {"lost", "output", "disk"}
    assert reasons < set(REASONS)


def test_a_case_is_a_table_of_a_configuration() -> None:
    text = table("times-out", CASES["times-out"], 2)
    assert '[jobs.times-out]\ncommand = ["sleep", "1000"]\nexpect = "timeout"\n' in text
    assert "matrix = { time = [0, 1] }" in text


def test_an_unknown_case_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["no-such-case"])
    assert "no case no-such-case" in capsys.readouterr().err
