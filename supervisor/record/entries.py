"""Model values as entries of the event log: which name, which fields.  Pure.

Every name used here is described in docs/verdicts.md.  May import: `model`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import asdict

from supervisor.model.action import (
    Action,
    Freeze,
    Ignore,
    KillJob,
    Notify,
    RaiseLimit,
    Retry,
    SignalJob,
    StopAll,
    Thaw,
)
from supervisor.model.event import (
    CgroupGone,
    DiskLimit,
    Event,
    MemoryLimit,
    OomKill,
    PidsLimit,
    Pressure,
    Started,
    Timeout,
)
from supervisor.model.record import RunRecord

KINDS = (
    "supervisor_started",
    "prepared",
    "job_waiting",
    "image_wanted",
    "image_ready",
    "job_starting",
    "user_ids",
    "job_started",
    "memory_limit",
    "oom_kill",
    "pids_limit",
    "disk_limit",
    "pressure",
    "timeout",
    "decision",
    "undecided",
    "limit_changed",
    "job_stopping",
    "signal_sent",
    "steered",
    "output_lost",
    "session_ended",
    "copied_out",
    "kept",
    "job_ended",
    "job_finished",
    "submitted",
    "reloading",
    "reloaded",
    "reload_failed",
    "retry",
    "restart",
    "notify",
    "orphan_reaped",
    "cleanup_failed",
    "warning",
    "log_lost",
    "supervisor_stopped",
)
"""Every kind of entry there is."""

ENTRY_OF: dict[type, str] = {
    Started: "job_started",
    MemoryLimit: "memory_limit",
    OomKill: "oom_kill",
    PidsLimit: "pids_limit",
    DiskLimit: "disk_limit",
    Pressure: "pressure",
    Timeout: "timeout",
}

ACTION_NAMES: dict[type, str] = {
    RaiseLimit: "raise",
    KillJob: "kill",
    SignalJob: "signal",
    Freeze: "freeze",
    Thaw: "thaw",
    Retry: "retry",
    StopAll: "stop-all",
    Notify: "notify",
    Ignore: "ignore",
}
"""Actions by the names the configuration has for them."""


def entry_of(event: Event) -> tuple[str, dict[str, Any]] | None:
    """The entry's name and fields (those of the event but `at`); None: not worth an entry.

    `Exited` and `Populated` are told by `job_ended`, which follows.
    """
    if isinstance(event, CgroupGone):
        return "warning", {"text": f"somebody removed the job's cgroup {event.path}"}
    name = ENTRY_OF.get(type(event))
    if name is None:
        return None
    fields = asdict(event)
    del fields["at"]
    return name, fields


def decision_entry(
    hook: str, by: str, action: Action, answers: Iterable[Any] = ()
) -> dict[str, Any]:
    """The fields of a `decision`: at which hook, which policy, and what it answered.

    `answers` are those of all who were asked, as `policy.engine.Answer` has them.
    """
    arguments = asdict(action)
    name = ACTION_NAMES[type(action)]
    said = answers_entry(answers)
    return {"hook": hook, "by": by, "action": name, "arguments": arguments, "answers": said}


def answers_entry(answers: Iterable[Any]) -> list[dict[str, Any]]:
    """Who was asked, in this order; `verdict` and `error` are both "" where one abstained."""
    return [{**asdict(one), "seconds": round(one.seconds, 6)} for one in answers]


def ended_entry(record: RunRecord) -> dict[str, Any]:
    """The fields of `job_ended`: the record whole, and on top what one searches for."""
    return {
        "job": record.job,
        "run": record.run,
        "reason": str(record.reason),
        "expected": record.expected,
        "record": record.to_json(),
    }
