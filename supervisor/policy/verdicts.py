"""Which answers of a policy can be performed: the checks between a plugin's word and the kernel.

Pure.  May import: `model`, `policy.shape`.
"""

from __future__ import annotations

import mmap
import signal
from typing import Any, get_args

from attrs import evolve

from supervisor.model import (
    Action,
    Freeze,
    Ignore,
    JobSpec,
    JobView,
    Notify,
    RaiseLimit,
    Retry,
    SignalJob,
    State,
    StopAll,
    Thaw,
)
from supervisor.model.units import LARGEST_SIZE, LEAST_DISK, LONGEST
from supervisor.policy.shape import misfit

RANGES: dict[str, tuple[float, float]] = {
    "memory": (mmap.PAGESIZE, LARGEST_SIZE),
    "memory_high": (mmap.PAGESIZE, LARGEST_SIZE),
    "swap": (0, LARGEST_SIZE),
    "pids": (1, 4194304),  # PID_MAX_LIMIT of include/linux/threads.h
    "cpus": (0.01, 8192),  # no quota below 1 ms (kernel/sched/core.c), the period being 100 ms
    "cpu_weight": (1, 10000),
    "disk": (LEAST_DISK, LARGEST_SIZE),
}
"""What each limit of `model.action.LimitName` may be set to."""

LATE = (Retry, Notify, StopAll, Ignore)
"""What can still be done when the run has ended."""

_ACTIONS: tuple[type, ...] = get_args(Action)


class Nonsense(Exception):
    """An answer that is no action at all: a fault of the policy."""


class Refused(Exception):
    """An action that makes no sense for this event or this job as it is now."""


def checked(verdict: object, hook: str, job: JobView) -> Action | None:
    """`verdict` as it will be performed: whole numbers where the kernel wants them, dicts copied.

    Raises Nonsense or Refused, with the reason as its text.
    """
    if verdict is None:
        return None
    kind = type(verdict)
    if kind not in _ACTIONS:
        raise Nonsense(f"returned {kind.__name__}, which is no action")
    if (wrong := misfit(verdict, kind)) is not None:
        raise Nonsense(f"returned a {kind.__name__} whose {wrong}")
    if hook == "on_exit" and kind not in LATE:
        raise Refused(f"{kind.__name__} comes too late at on_exit")
    action: Action = _CHECKS.get(kind, _as_is)(verdict, job)
    return action


def checked_spec(changed: object, spec: JobSpec) -> JobSpec | None:
    """What `prepare` returned, if it is a job of the same name; raises Nonsense."""
    if changed is None:
        return None
    if not isinstance(changed, JobSpec):
        raise Nonsense(f"returned {type(changed).__name__}, which is no JobSpec")
    if (wrong := misfit(changed, JobSpec)) is not None:
        raise Nonsense(f"returned a JobSpec whose {wrong}")
    if (changed.name, changed.group) != (spec.name, spec.group):
        raise Nonsense("returned a JobSpec of another name or group")
    if changed.after != spec.after:
        raise Nonsense("returned a JobSpec with another after")  # its cycles were checked before
    if not changed.command:
        raise Nonsense("returned a JobSpec without a command")
    for limit in RANGES:
        if (value := getattr(changed.limits, limit)) is not None:
            try:
                _in_range(limit, value)
            except Refused as err:
                raise Nonsense(f"returned a JobSpec whose limits.{err}") from err
    return changed


def _as_is(verdict: Any, _job: JobView) -> Any:
    return verdict


def _in_range(limit: str, value: float) -> float:
    low, high = RANGES[limit]
    if not low <= value <= high:
        raise Refused(f"{limit} would be {value:.15g}, outside {low:.15g} to {high:.15g}")
    return value if limit == "cpus" else int(value)


def _raise_limit(verdict: RaiseLimit, job: JobView) -> RaiseLimit:
    now: float | None = getattr(job.limits, verdict.limit)
    to = _in_range(verdict.limit, verdict.to)
    if now is None:
        raise Refused(f"{verdict.limit} cannot be raised: the job has no such limit")
    # The kernel counts memory in pages: less than one more is no raise, and a held job would
    # come back to its limit for ever.
    step = mmap.PAGESIZE if verdict.limit in ("memory", "memory_high", "swap") else 1
    if to <= now or (step > 1 and to // step <= now // step):
        raise Refused(f"{verdict.limit} would go from {now:.15g} to {to:.15g}, which is no raise")
    return evolve(verdict, to=to)


def _retry(verdict: Retry, _job: JobView) -> Retry:
    for limit in verdict.limits:
        if limit not in RANGES:
            raise Refused(f'"{limit}" is no limit that can change; allowed: {", ".join(RANGES)}')
    if not 0 <= verdict.after <= LONGEST:
        raise Refused(f"after would be {verdict.after:.15g} seconds")
    limits = {limit: _in_range(limit, value) for limit, value in verdict.limits.items()}
    return evolve(verdict, limits=limits)


def _signal(verdict: SignalJob, _job: JobView) -> SignalJob:
    if f"SIG{verdict.signal}" not in signal.Signals.__members__:
        raise Refused(f'"{verdict.signal}" is no signal; write it as kill -l does, like "HUP"')
    return verdict


def _notify(verdict: Notify, _job: JobView) -> Notify:
    if not verdict.message.strip():
        raise Refused("the message is empty")
    return verdict


def _thaw(verdict: Thaw, job: JobView) -> Thaw:
    # A job held at its limit may be frozen by us (v2); thawing it would let it past the limit.
    if job.state is not State.FROZEN:
        raise Refused(f"the job is {job.state}, not frozen")
    return verdict


def _freeze(verdict: Freeze, job: JobView) -> Freeze:
    if job.state is State.FROZEN and not job.paused:
        raise Refused("the job is frozen already")
    return verdict


_CHECKS: dict[type, Any] = {
    RaiseLimit: _raise_limit,
    Retry: _retry,
    SignalJob: _signal,
    Notify: _notify,
    Thaw: _thaw,
    Freeze: _freeze,
}
