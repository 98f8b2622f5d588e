"""kill-fork-bomb: end a job whose forks are refused, before it has tried a million times."""

from __future__ import annotations

from collections import deque

import attrs

from supervisor.model import JobView, KillJob, PidsLimit
from supervisor.policy.hookspec import Duration, hookimpl

_RUNS = 1000
"""Runs to remember.  Forgetting at on_exit would not do: a policy before this one may decide it."""


@attrs.frozen
class Arguments:
    """Kill at `refusals` refused forks: in the whole run, or `within` that time."""

    refusals: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    within: Duration | None = None


class Policy:
    """Counts the refused forks of each run as the kernel reports them."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._seen: dict[str, deque[tuple[float, int]]] = {}

    @hookimpl
    def on_pids_limit(self, job: JobView, event: PidsLimit) -> KillJob | None:
        refused = self._lately(job.run, event)
        if refused < self._arguments.refusals:
            return None
        return KillJob(f"{refused} forks were refused at {event.limit} processes", now=True)

    def _lately(self, run: str, event: PidsLimit) -> int:
        """The refusals that count: all of the run, or those since `within` before this event."""
        if self._arguments.within is None:
            return event.refused
        seen = self._seen.setdefault(run, deque([(event.at, 0)]))
        while len(seen) > 1 and seen[1][0] <= event.at - self._arguments.within:
            seen.popleft()
        seen.append((event.at, event.refused))
        if len(self._seen) > _RUNS:
            self._seen.pop(next(iter(self._seen)), None)
        return event.refused - seen[0][1]
