"""The states of a job and the one table of its transitions.

waiting ──► starting ──► running ◄──► held ◄─► frozen ◄─► running
   │            │           │           │
   │            ▼           ▼           ▼
   │         ended ◄──── stopping ◄─────┘
   │           │
   └─► ended   └─► backoff ──► starting      (a further attempt)
          └─► waiting                       (an operator has it run once more)
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """What a job is doing now."""

    WAITING = "waiting"
    """for a job named in `after`, or for room under `capacity`"""
    STARTING = "starting"
    """its container is being made"""
    RUNNING = "running"
    HELD = "held"
    """at its memory limit, asleep, until a policy decides"""
    FROZEN = "frozen"
    """frozen by a policy or an operator"""
    STOPPING = "stopping"
    """asked to end; killed when the grace is over"""
    BACKOFF = "backoff"
    """ended, to be started again"""
    ENDED = "ended"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.STARTING, State.ENDED}),
    State.STARTING: frozenset(
        {State.RUNNING, State.HELD, State.FROZEN, State.STOPPING, State.ENDED, State.BACKOFF}
    ),
    State.RUNNING: frozenset(
        {State.HELD, State.FROZEN, State.STOPPING, State.ENDED, State.BACKOFF}
    ),
    State.HELD: frozenset(
        {State.RUNNING, State.FROZEN, State.STOPPING, State.ENDED, State.BACKOFF}
    ),
    State.FROZEN: frozenset(
        {State.RUNNING, State.HELD, State.STOPPING, State.ENDED, State.BACKOFF}
    ),
    State.STOPPING: frozenset({State.ENDED, State.BACKOFF}),
    State.BACKOFF: frozenset({State.STARTING, State.ENDED}),
    State.ENDED: frozenset({State.WAITING}),
}


def check(old: State, new: State) -> State:
    """`new`, if it may follow `old`; else ValueError."""
    if new not in TRANSITIONS[old]:
        raise ValueError(f"a job cannot go from {old} to {new}")
    return new
