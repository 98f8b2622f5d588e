"""Hooks that a job sets for itself: `on_memory_limit = { action = "raise", to = "1G" }`.

Pure.  May import: `errors`, `model`.  The configuration has parsed the arguments already, into
the names of the fields of `model.action`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from supervisor.model import (
    Action,
    DiskLimit,
    Event,
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


def action_of(inline: InlineAction, job: JobView, event: Event | None = None) -> Action | None:
    """The action that `inline` means for `job` now; None where it has been taken already.

    A job cannot say how often: so a raise or a retry to limits that are in force says nothing, nor
    a retry without limits after the first attempt, nor any after an end that was expected.  While
    a disk is only nearly full there is nothing to do but to raise its limit.

    Raises KeyError or TypeError for an action or argument that no configuration lets through.
    """
    early = isinstance(event, DiskLimit) and not event.full
    if early and (inline.action != "raise" or inline.arguments["limit"] != "disk"):
        return None
    if inline.action == "raise":
        return _raise(inline.arguments, job)
    if inline.action == "retry" and not _worth_a_retry(inline.arguments, job):
        return None
    return _ACTIONS[inline.action](**inline.arguments)


def _raise(arguments: Mapping[str, Any], job: JobView) -> RaiseLimit | None:
    """Once to `to`: at or above it, and without any limit, there is nothing to raise."""
    limit, to = arguments["limit"], arguments["to"]
    now = getattr(job.limits, limit)
    return RaiseLimit(limit, to) if now is not None and now < to else None


def _worth_a_retry(arguments: Mapping[str, Any], job: JobView) -> bool:
    if job.reason == job.spec.expect:
        return False
    limits: Mapping[str, float] = arguments.get("limits") or {}
    if not limits:
        return job.attempt == 1
    return any(getattr(job.limits, limit, None) != value for limit, value in limits.items())
