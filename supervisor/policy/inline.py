"""Hooks that a job sets for itself: `on_memory_limit = { action = "raise", to = "1G" }`.

Pure.  May import: `errors`, `model`.  The configuration has parsed the arguments already, into
the names of the fields of `model.action`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from supervisor.model import (
    Action,
    Freeze,
    Ignore,
    InlineAction,
    JobView,
    KillJob,
    Notify,
    RaiseLimit,
    Retry,
    SignalJob,
    StopAll,
)

_ACTIONS: dict[str, Callable[..., Action]] = {
    "retry": Retry,
    "kill": KillJob,
    "signal": SignalJob,
    "freeze": Freeze,
    "notify": Notify,
    "stop-all": StopAll,
    "ignore": Ignore,
}


def action_of(inline: InlineAction, job: JobView) -> Action | None:
    """The action that `inline` means for `job` now; None where a raise has been made already.

    Raises KeyError or TypeError for an action or argument that no configuration lets through.
    """
    if inline.action == "raise":
        return _raise(inline.arguments, job)
    return _ACTIONS[inline.action](**inline.arguments)


def _raise(arguments: Mapping[str, Any], job: JobView) -> RaiseLimit | None:
    """Once to `to`: at or above it, and without any limit, there is nothing to raise."""
    limit, to = arguments["limit"], arguments["to"]
    now = getattr(job.limits, limit)
    return RaiseLimit(limit, to) if now is not None and now < to else None
