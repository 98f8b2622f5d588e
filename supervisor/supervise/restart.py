"""Whether a job runs again after a run has ended, when, and with which limits.  Pure.

May import: `model`.
"""

from __future__ import annotations

from attrs import evolve, frozen

from supervisor.model.action import Retry
from supervisor.model.job import JobSpec
from supervisor.model.limits import Limits
from supervisor.model.record import Reason, RunRecord

NEVER_AGAIN = frozenset({Reason.STOPPED, Reason.SKIPPED})


@frozen
class Again:
    """Run once more, `after` seconds from now, with `limits`; `by` says who wants it."""

    after: float
    limits: Limits
    by: str


def next_run(
    spec: JobSpec, limits: Limits, record: RunRecord, restarts: int, retry: tuple[Retry, str] | None
) -> Again | None:
    """None: this was the last run.

    A policy's Retry comes before the job's own `restart`, whose attempts it does not use up.
    `restarts` counts those so far.
    """
    if record.reason in NEVER_AGAIN:
        return None
    if retry is not None:
        action, by = retry
        return Again(action.after, changed(limits, dict(action.limits)), by)
    rule = spec.restart
    if not _wanted(spec, record) or (rule.attempts is not None and restarts >= rule.attempts):
        return None
    # 2 ** 64 seconds is never; a larger exponent would only overflow
    delay = min(rule.backoff * 2.0 ** min(restarts, 64), rule.max_backoff)
    return Again(delay, limits, f"restart = {rule.when}")


def _wanted(spec: JobSpec, record: RunRecord) -> bool:
    if spec.restart.when == "always":
        return True
    if spec.restart.when == "on-oom":
        return record.reason is Reason.OOM
    return spec.restart.when == "on-failure" and not record.expected


def changed(limits: Limits, changes: dict[str, float]) -> Limits:
    """`limits` with some of them set, whole numbers where the kernel takes no others."""
    values = {
        name: value if name == "cpus" else int(value)
        for name, value in changes.items()
        if value is not None
    }
    return evolve(limits, **values)  # type: ignore[arg-type]
