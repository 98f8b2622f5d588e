"""The exit status that stands for how a run ended: the command's own, or why it has none.

May import: `model`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from supervisor.model.record import Reason, RunRecord, StartError

TIMED_OUT, FAILED, NOT_EXECUTABLE, NOT_FOUND, BY_SIGNAL = 124, 125, 126, 127, 128
INTERRUPTED = 130


def exit_status(record: RunRecord) -> int:
    """The command's own, or what stands for why it has none of its own."""
    if record.reason in _FIXED:
        return _FIXED[record.reason](record)
    if record.signal is not None:
        return BY_SIGNAL + record.signal
    if record.exit_code is None:
        return FAILED
    # OOM-killed in part: the main process may have exited 0, but the job did not end well
    bad = record.reason is not Reason.SUCCEEDED and record.exit_code == 0
    return BY_SIGNAL + 9 if bad else record.exit_code


def status_of(record: Mapping[str, Any]) -> int:
    """The same of a record as JSON has it (docs/verdicts.md)."""
    failed = record["start_error"]
    return exit_status(
        RunRecord(
            job=record["job"],
            run=record["run"],
            attempt=record["attempt"],
            reason=Reason(record["reason"]),
            command=tuple(record["command"]),
            exit_code=record["exit_code"],
            signal=record["signal"],
            start_error=None if failed is None else StartError(**failed),
        )
    )


def _start_status(record: RunRecord) -> int:
    error = record.start_error
    if error is None or error.stage != "exec":
        return FAILED
    return NOT_FOUND if error.errno in (2, 20) else NOT_EXECUTABLE


_FIXED: dict[Reason, Callable[[RunRecord], int]] = {
    Reason.TIMEOUT: lambda _: TIMED_OUT,
    Reason.CPU_TIMEOUT: lambda _: TIMED_OUT,
    Reason.START_FAILED: _start_status,
    Reason.SKIPPED: lambda _: FAILED,
    Reason.STOPPED: lambda _: INTERRUPTED,
}
