"""When a job runs again, how long after, and with what."""

from __future__ import annotations

import pytest
from attrs import evolve

from supervisor.model import JobSpec, Limits, Restart, Retry, RunRecord
from supervisor.model.record import Reason
from supervisor.supervise.restart import changed, next_run

LIMITS = Limits(memory=100, pids=10, cpus=0.5)


def record(reason: Reason, *, expected: bool = False) -> RunRecord:
    return RunRecord("j", "r", 1, reason, ("true",), expected=expected)


def again(rule: Restart, ended: RunRecord, restarts: int = 0, retry=None):
    return next_run(JobSpec("j", ("true",), restart=rule), LIMITS, ended, restarts, retry)


@pytest.mark.parametrize(
    ("when", "reasons"),
    [
        ("never", set()),
        ("on-failure", set(Reason) - {Reason.SUCCEEDED, Reason.STOPPED, Reason.SKIPPED}),
        ("on-oom", {Reason.OOM}),
        ("always", set(Reason) - {Reason.STOPPED, Reason.SKIPPED}),
    ],
)
def test_after_which_ends(when, reasons) -> None:
    found = {r for r in Reason if again(Restart(when), record(r, expected=r == "succeeded"))}
    assert found == reasons


def test_an_expected_end_is_no_failure() -> None:
    assert again(Restart("on-failure"), record(Reason.TIMEOUT, expected=True)) is None


def test_the_wait_doubles_up_to_its_bound() -> None:
    rule = Restart("always", attempts=None, backoff=1.0, max_backoff=5.0)
    failed = record(Reason.FAILED)
    assert [again(rule, failed, n).after for n in (0, 1, 2, 3, 100, 10**6)] == [1, 2, 4, 5, 5, 5]


def test_the_attempts_are_the_further_ones() -> None:
    rule = Restart("on-failure", attempts=2)
    failed = record(Reason.FAILED)
    assert again(rule, failed, 1) and again(rule, failed, 2) is None


def test_a_policy_comes_first_and_changes_the_limits() -> None:
    found = again(Restart("always"), record(Reason.OOM), 99, (Retry({"memory": 200.0}, 7), "me"))
    assert found is not None
    assert (found.after, found.by, found.limits) == (7, "me", evolve(LIMITS, memory=200))


@pytest.mark.parametrize("reason", [Reason.STOPPED, Reason.SKIPPED])
def test_what_was_stopped_stays_stopped(reason) -> None:
    assert again(Restart("always"), record(reason), 0, (Retry(), "me")) is None


def test_numbers_for_the_kernel_are_whole() -> None:
    new = changed(LIMITS, {"memory": 150.7, "cpus": 1.25})
    assert (new.memory, new.cpus, new.pids) == (150, 1.25, 10)
    assert isinstance(new.memory, int)
