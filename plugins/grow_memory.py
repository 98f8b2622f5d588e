"""grow-memory: more memory for a job that needs it, live where it still lives, else by a retry."""

from __future__ import annotations

import attrs

from supervisor.model import Exited, JobView, MemoryLimit, RaiseLimit, Retry
from supervisor.policy.hookspec import Size, hookimpl


@attrs.frozen
class Arguments:
    """`max` bounds every raise and retry; each multiplies the limit in force by `factor`."""

    max: Size = attrs.field(default=Size("8G"))
    factor: float = attrs.field(default=2.0, validator=attrs.validators.gt(1))
    live: bool = True


class Policy:
    """Raises at the limit while there is room below `max`; retries only a proven `oom`."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments

    @hookimpl
    def on_memory_limit(self, job: JobView, event: MemoryLimit) -> RaiseLimit | None:
        more = self._more(job.limits.memory)
        return RaiseLimit("memory", more) if more and self._arguments.live else None

    @hookimpl
    def on_exit(self, job: JobView, event: Exited) -> Retry | None:
        more = self._more(job.limits.memory) if job.reason == "oom" else None
        return Retry({"memory": more}) if more else None

    def _more(self, limit: int | None) -> int | None:
        """The next limit, or None where there is none or no room for more."""
        if limit is None or limit >= self._arguments.max:
            return None
        return min(int(limit * self._arguments.factor), int(self._arguments.max))
