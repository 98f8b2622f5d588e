"""What a policy sees of a job: a copy, which nothing it does can change."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from supervisor.model.job import JobSpec
from supervisor.model.limits import Limits
from supervisor.model.state import State


@frozen
class JobView:
    """One job at the moment of an event.

    `limits` are those in force now (`spec.limits` the configured ones); `attempt` counts from 1;
    `raised` says how many times each limit was raised in this run; `reason` is known at `on_exit`;
    `paused`: a person has it frozen (what a policy has frozen may be so at the same time).
    """

    spec: JobSpec
    run: str
    attempt: int
    state: State
    limits: Limits
    started_at: float
    raised: Mapping[str, int]
    reason: str | None = None
    paused: bool = False

    @property
    def name(self) -> str:
        return self.spec.name
