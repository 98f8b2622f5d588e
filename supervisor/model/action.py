"""What a policy may answer: one closed union of verdicts.  The engine performs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from attrs import field, frozen

LimitName = Literal["memory", "memory_high", "swap", "pids", "cpus", "cpu_weight", "disk"]
"""The limits that can change while a job runs."""


@frozen
class RaiseLimit:
    """Set `limit` of the running job to `to` (bytes, tasks or CPUs).  It may not get smaller."""

    limit: LimitName
    to: float


@frozen
class KillJob:
    """Stop the job (its own `stop` signal and grace), or at once with `now`; verdict `policy`."""

    why: str = ""
    now: bool = False


@frozen
class SignalJob:
    """Send a signal, named as in `kill -l` ("HUP"), to every process of the job."""

    signal: str


@frozen
class Freeze:
    """Freeze every process of the job (freezer.state | cgroup.freeze)."""


@frozen
class Thaw:
    """The opposite of `Freeze`."""


@frozen
class Retry:
    """Once the run has ended, run again with changed limits (config names), after `after` s.

    While the job still runs it is left to end by itself; at a memory limit that means the kernel
    kills it.
    """

    limits: Mapping[str, float] = field(factory=dict)
    after: float = 0.0


@frozen
class StopAll:
    """Stop every job of the instance, as Ctrl-C does."""

    why: str = ""


@frozen
class Notify:
    """Tell the operator `message`: on the terminal and in the event log."""

    message: str


@frozen
class Ignore:
    """Decide, so that nobody further down is asked, that nothing is to be done."""


Action = RaiseLimit | KillJob | SignalJob | Freeze | Thaw | Retry | StopAll | Notify | Ignore
