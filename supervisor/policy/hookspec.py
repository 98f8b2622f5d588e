"""The hooks a policy may implement, and what it needs to write them: the plugin author's page.

May import: `model`, `policy.arguments`, pluggy.  A plugin imports `supervisor.model` and this
module, nothing else of ours.

Every hook but `prepare` gets an immutable view of the job and the event, takes as many of the two
as it names, and returns None (abstain) or one `Action`.  `def` and `async def` (trio) both do.
"""

from __future__ import annotations

from pluggy import HookimplMarker, HookspecMarker

from supervisor.model import (
    Action,
    DiskLimit,
    Exited,
    JobSpec,
    JobView,
    MemoryLimit,
    OomKill,
    PidsLimit,
    Pressure,
    Started,
    Tick,
    Timeout,
)
from supervisor.policy.arguments import Duration, Size

__all__ = ["Duration", "PROJECT", "Size", "hookimpl"]

PROJECT = "supervise"
hookimpl = HookimplMarker(PROJECT)
"""Marks a function or method as the implementation of the hook it is named after."""
_hookspec = HookspecMarker(PROJECT)


@_hookspec
def prepare(spec: JobSpec) -> JobSpec | None:
    """Before a job is queued: a changed copy of `spec` (`attrs.evolve`), or None to leave it.

    Pure; its name, group and `after` must stay.  Unlike the verdicts, the changes of several
    policies add up: each sees what those before it made.
    """


@_hookspec
def on_start(job: JobView, event: Started) -> Action | None:
    """The payload runs: exec has succeeded."""


@_hookspec
def on_memory_limit(job: JobView, event: MemoryLimit) -> Action | None:
    """The job's own memory limit was reached; where `event.held`, the job sleeps until decided."""


@_hookspec
def on_oom_kill(job: JobView, event: OomKill) -> Action | None:
    """The kernel killed processes of the job for want of memory."""


@_hookspec
def on_pids_limit(job: JobView, event: PidsLimit) -> Action | None:
    """fork was refused at the job's limit of processes."""


@_hookspec
def on_disk_limit(job: JobView, event: DiskLimit) -> Action | None:
    """The job's writable layer is nearly full; then again when it is, `event.full`."""


@_hookspec
def on_pressure(job: JobView, event: Pressure) -> Action | None:
    """Processes of the job stand still for want of something; told every two seconds at most."""


@_hookspec
def on_timeout(job: JobView, event: Timeout) -> Action | None:
    """The job's `timeout` or `cpu_time` is over."""


@_hookspec
def on_exit(job: JobView, event: Exited) -> Action | None:
    """The run has ended, for `job.reason`; too late for anything but the next one."""


@_hookspec
def on_tick(job: JobView, event: Tick) -> Action | None:
    """Time passed.  The supervisor keeps a timer only while some policy has this hook."""
