"""From what was seen of a run to the one word for why it ended.  Pure: facts in, reason out."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from supervisor.model.record import Reason


@frozen
class Cause:
    """An ending that the supervisor itself began: the first one stands.

    `reason` is timeout, cpu_timeout, stopped or policy; `by` names who: a policy, a job's own hook,
    "configuration" (its timeout), or the signal that stops the instance ("SIGINT").
    """

    reason: Reason
    by: str
    why: str = ""


@frozen
class Facts:
    """All that a verdict follows from; counters are deltas, read after the last exit.

    oom_own       processes killed because the job's own memory limit was reached
    oom_foreign   processes the kernel killed although it was not (an ancestor's limit, the host)
    refused       forks refused at the job's pids.max
    disk_full     the job's writable layer was seen without room
    oom_first     an OOM kill was counted before the supervisor began `cause`
    oom_command   whether the command itself was one of those killed; None: it is not known
    """

    code: int | None = None
    signal: int | None = None
    start_failed: bool = False
    cause: Cause | None = None
    oom_own: int = 0
    oom_foreign: int = 0
    oom_first: bool = False
    oom_command: bool | None = None
    refused: int = 0
    disk_full: bool = False
    oom: Literal["kill", "continue"] = "kill"


def verdict(facts: Facts) -> Reason:
    """The reason, by the order that docs/verdicts.md gives.

    An OOM kill decides before anything that came after it; with `oom = "continue"` only if it
    was the command's.
    """
    if facts.start_failed:
        return Reason.START_FAILED
    if facts.cause is not None and not facts.oom_first:
        return facts.cause.reason
    if (facts.oom_own or facts.oom_foreign) and (facts.oom == "kill" or _command_killed(facts)):
        return Reason.OOM if facts.oom_own else Reason.OOM_HOST
    if facts.cause is not None:
        return facts.cause.reason
    return _by_exit(facts)


def _command_killed(facts: Facts) -> bool:
    """Where the victim is not known: a SIGKILL that was not ours is taken for the kernel's."""
    if facts.signal != 9:
        return False
    return facts.cause is None if facts.oom_command is None else facts.oom_command


def _by_exit(facts: Facts) -> Reason:
    if facts.code is None and facts.signal is None:
        return Reason.LOST
    if facts.code == 0:
        return Reason.SUCCEEDED
    if facts.refused:
        return Reason.PIDS
    if facts.disk_full:
        return Reason.DISK
    return Reason.SIGNAL if facts.signal is not None else Reason.FAILED
