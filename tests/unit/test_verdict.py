"""The one word for why a run ended, from every combination of facts that matters."""

from __future__ import annotations

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from supervisor.model.record import Reason
from supervisor.model.verdict import Cause, Facts, verdict

CAUSES = [Cause(reason, "who") for reason in
          (Reason.TIMEOUT, Reason.CPU_TIMEOUT, Reason.STOPPED, Reason.POLICY)]  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (Facts(code=0), "succeeded"),
        (Facts(code=1), "failed"),
        (Facts(code=137), "failed"),
        (Facts(code=127), "failed"),
        (Facts(signal=9), "signal"),
        (Facts(signal=11), "signal"),
        (Facts(), "lost"),
        (Facts(start_failed=True), "start_failed"),
        (Facts(signal=9, oom_own=1), "oom"),
        (Facts(code=0, oom_own=1), "oom"),
        (Facts(code=3, oom_own=1), "oom"),
        (Facts(oom_own=1), "oom"),
        (Facts(signal=9, oom_foreign=1), "oom_host"),
        (Facts(code=0, oom_foreign=2), "oom_host"),
        (Facts(code=0, oom_own=1, oom="continue"), "succeeded"),
        (Facts(code=3, oom_own=1, oom="continue"), "failed"),
        (Facts(signal=9, oom_own=1, oom="continue"), "oom"),
        (Facts(signal=9, oom_foreign=1, oom="continue"), "oom_host"),
        (Facts(signal=15, oom_own=1, oom="continue"), "signal"),
        (Facts(signal=9, oom_own=1, oom="continue", oom_command=True), "oom"),
        (Facts(signal=9, oom_own=1, oom="continue", oom_command=False), "signal"),
        (Facts(signal=9, oom_own=1, oom_command=False), "oom"),
        (Facts(code=0, refused=5), "succeeded"),
        (Facts(code=2, refused=5), "pids"),
        (Facts(signal=6, refused=1), "pids"),
        (Facts(refused=5), "lost"),
        (Facts(signal=9, oom_own=1, refused=5), "oom"),
    ],
)
def test_facts_become_a_reason(facts: Facts, reason: str) -> None:
    assert verdict(facts) == reason


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.reason)
def test_an_ending_of_ours_stands_however_the_command_takes_it(cause: Cause) -> None:
    for facts in (
        Facts(cause=cause, code=0),
        Facts(cause=cause, code=9, refused=3),
        Facts(cause=cause, signal=9),
        Facts(cause=cause, signal=9, oom_own=1),  # killed while it was being stopped
        Facts(cause=cause),
    ):
        assert verdict(facts) is cause.reason


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.reason)
def test_what_the_kernel_did_first_comes_first(cause: Cause) -> None:
    """A timeout that strikes while the killed job is being cleared away is not the reason."""
    assert verdict(Facts(cause=cause, signal=9, oom_own=1, oom_first=True)) is Reason.OOM
    assert verdict(Facts(cause=cause, signal=9, oom_foreign=1, oom_first=True)) is Reason.OOM_HOST


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: cause.reason)
def test_survivors_of_an_oom_kill_that_are_stopped_later_are_stopped(cause: Cause) -> None:
    """Also by our SIGKILL; `oom` only where the command is known to have been the victim."""
    for signal, victim in ((15, None), (9, None), (9, False)):
        facts = Facts(cause=cause, signal=signal, oom_own=1, oom_first=True, oom="continue",
                      oom_command=victim)  # fmt: skip
        assert verdict(facts) is cause.reason
    assert verdict(evolve(facts, oom_command=True)) is Reason.OOM


@given(
    st.builds(
        Facts,
        code=st.none() | st.integers(0, 255),
        start_failed=st.booleans(),
        cause=st.none() | st.sampled_from(CAUSES),
        oom_own=st.integers(0, 3),
        oom_foreign=st.integers(0, 3),
        oom_first=st.booleans(),
        oom_command=st.none() | st.booleans(),
        refused=st.integers(0, 3),
        oom=st.sampled_from(["kill", "continue"]),
    )
)
def test_nothing_is_claimed_without_its_proof(facts: Facts) -> None:
    reason = verdict(facts)
    if reason is Reason.OOM:
        assert facts.oom_own
        assert facts.oom == "kill" or facts.oom_command is not False
    if reason is Reason.OOM_HOST:
        assert facts.oom_foreign and not facts.oom_own
    if reason is Reason.PIDS:
        assert facts.refused and facts.code != 0
    if reason is Reason.SUCCEEDED:
        assert facts.code == 0 and facts.cause is None
        assert facts.oom == "continue" or not (facts.oom_own or facts.oom_foreign)
    if reason in {cause.reason for cause in CAUSES}:
        assert facts.cause is not None and facts.cause.reason is reason
