"""The table of a job's states, against what policies may do in any of them."""

from __future__ import annotations

import pytest

from supervisor.model.state import TRANSITIONS, State, check


def test_a_job_that_is_held_at_its_limit_can_be_frozen() -> None:
    """A policy's answer to on_memory_limit may be Freeze: it once ended the supervisor."""
    assert check(State.HELD, State.FROZEN) is State.FROZEN


@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING, State.HELD, State.FROZEN])
def test_a_live_job_can_always_be_stopped_and_ended(state: State) -> None:
    assert {State.STOPPING, State.ENDED} <= TRANSITIONS[state]


def test_nothing_follows_the_end() -> None:
    with pytest.raises(ValueError, match="from ended to running"):
        check(State.ENDED, State.RUNNING)
