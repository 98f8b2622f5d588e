"""The exit status of `supervise run`."""

from __future__ import annotations

import pytest

from supervisor.front.exits import exit_status, status_of
from supervisor.model.record import Reason, RunRecord, StartError


def status(reason: Reason, **more) -> int:
    return exit_status(RunRecord("j", "r", 1, reason, ("true",), **more))


@pytest.mark.parametrize(
    ("reason", "more", "expected"),
    [
        (Reason.SUCCEEDED, {"exit_code": 0}, 0),
        (Reason.FAILED, {"exit_code": 3}, 3),
        (Reason.FAILED, {"exit_code": 255}, 255),
        (Reason.SIGNAL, {"signal": 9}, 137),
        (Reason.SIGNAL, {"signal": 11}, 139),
        (Reason.OOM, {"signal": 9}, 137),
        (Reason.OOM, {"exit_code": 0}, 137),  # its child was killed, it did not notice
        (Reason.OOM_HOST, {"exit_code": 0}, 137),
        (Reason.OOM, {"exit_code": 5}, 5),
        (Reason.PIDS, {"exit_code": 7}, 7),
        (Reason.TIMEOUT, {"exit_code": 0}, 124),
        (Reason.TIMEOUT, {"signal": 9}, 124),
        (Reason.CPU_TIMEOUT, {"signal": 15}, 124),
        (Reason.POLICY, {"signal": 15}, 143),
        (Reason.STOPPED, {"signal": 15}, 130),
        (Reason.LOST, {}, 125),
        (Reason.SKIPPED, {}, 125),
        (Reason.START_FAILED, {}, 125),
        (Reason.START_FAILED, {"start_error": StartError("mounts", 2, "/x")}, 125),
        (Reason.START_FAILED, {"start_error": StartError("exec", 2, "/x")}, 127),
        (Reason.START_FAILED, {"start_error": StartError("exec", 20, "/etc/passwd/x")}, 127),
        (Reason.START_FAILED, {"start_error": StartError("exec", 13, "/etc/passwd")}, 126),
        (Reason.START_FAILED, {"start_error": StartError("exec", 8, "/x")}, 126),
    ],
)
def test_the_status_says_what_the_shell_would(reason, more, expected) -> None:
    assert status(reason, **more) == expected


@pytest.mark.parametrize("reason", set(Reason) - {Reason.SUCCEEDED, Reason.FAILED, Reason.PIDS})
def test_no_bad_end_looks_like_success(reason) -> None:
    assert status(reason, exit_code=0) != 0


def test_a_record_as_json_says_the_same() -> None:
    failed = RunRecord(
        "j", "r", 1, Reason.START_FAILED, ("x",), start_error=StartError("exec", 2, "/x")
    )
    ended = RunRecord("j", "r", 1, Reason.FAILED, ("x",), exit_code=3)
    for one in (failed, ended):
        assert status_of(one.to_json()) == exit_status(one) != 0
