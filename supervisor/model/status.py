"""What an instance and its jobs are doing at one moment: what the views show.

May import: `model`, attrs.  Sizes are bytes, times Unix seconds, durations seconds; None stands
for what is not limited, not known, or not yet.
"""

from __future__ import annotations

from attrs import frozen

from supervisor.model.state import State


@frozen
class JobStatus:
    """One job now.

    since         when the present run began, ended when it (the last one) did
    cpu_percent   of one CPU, over the time since the status before
    waiting_for   in `waiting` and `backoff`: what for, in words ("fetch", "1.5G of memory")
    paused_by     in `frozen`: the person who has paused it; "": a policy has frozen it
    reason        in `ended` and `backoff`: of the last run; `expected`: whether it was to be
    """

    name: str
    state: State
    attempt: int = 0
    run: str = ""
    since: float | None = None
    ended: float | None = None
    cpu_seconds: float | None = None
    cpu_percent: float | None = None
    memory: int | None = None
    memory_limit: int | None = None
    pids: int | None = None
    pids_limit: int | None = None
    cpus_limit: float | None = None
    reason: str | None = None
    expected: bool | None = None
    waiting_for: str = ""
    paused_by: str = ""


@frozen
class Capacity:
    """What the running jobs may use by their limits, of what the instance may give out."""

    jobs: int = 0
    jobs_limit: int | None = None
    memory: int = 0
    memory_limit: int | None = None
    cpus: float = 0.0
    cpus_limit: float | None = None


@frozen
class InstanceStatus:
    """One instance now; `jobs` in the order of the configuration."""

    jobs: tuple[JobStatus, ...] = ()
    capacity: Capacity = Capacity()
