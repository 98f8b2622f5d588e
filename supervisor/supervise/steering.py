"""What somebody may do to one job while the instance runs: set, pause, resume, restart.

May import: `errors`, `model`, `supervise.{job,limiting,run}`, trio.  Whoever asks is named by `by`.
Every function raises StateError where the state of the job does not allow it, and then has changed
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio

from supervisor.errors import StateError
from supervisor.model.limits import Limits
from supervisor.model.record import Reason
from supervisor.model.state import State
from supervisor.supervise import limiting
from supervisor.supervise.job import Job
from supervisor.supervise.run import Run

PATIENCE = 10.0
"""Seconds to wait for a job that is being started."""


async def set_limits(
    job: Job, changes: Mapping[str, Any], by: str, *, later: bool = False, force: bool = False
) -> Limits:
    """Change limits of the present run and those after it; `later`: of those after it alone.

    What they are then; of a job that does not run, those of its next run.  Raises LimitError for
    what this host cannot enforce.
    """
    run = await _present(job)
    if run is None or later:
        return _for_next(job, changes, by)
    await limiting.set_limits(run, changes, by, force=force)
    return run.limits


def _for_next(job: Job, changes: Mapping[str, Any], by: str) -> Limits:
    wanted = limiting.planned(job.planned, changes)
    limiting.enforceable(job.shared.manager, wanted, changes)
    limiting.affordable(job.shared.admission, wanted)
    job.plan(**changes)
    for name, value in changes.items():
        job.shared.log.emit(
            "limit_changed",
            job=job.spec.name,
            limit=name,
            to=limiting.told(value),
            by=by,
            next=True,
        )
    return wanted


async def pause(job: Job, by: str) -> None:
    """Freeze every process of the job, until `resume`; its timeout stands still meanwhile."""
    (await _running(job)).freezing.pause(by)


async def resume(job: Job) -> None:
    """The opposite; what a policy has frozen stays so."""
    (await _running(job)).freezing.resume()


async def restart(job: Job, by: str) -> bool:
    """Stop the present run in order and begin a new one, or begin one now.

    False where the job has ended: then whoever asks has it `run` once more.
    """
    if job.stopping and job.state is not State.ENDED:
        raise StateError("the job is being stopped, and is not to run again")
    if job.state is State.WAITING:
        raise StateError("the job has not been started yet: it waits")
    if job.ended.is_set():
        job.revive()
        return False
    job.again_by = by
    if job.run_now is not None:
        job.run_now.stop(Reason.STOPPED, by, "to be started again")
    job.wake()
    return True


async def _present(job: Job) -> Run | None:
    """The run that is there now, once it has come so far that it can be steered."""
    run = job.run_now
    if run is None or job.state is State.BACKOFF:
        return None
    with trio.move_on_after(PATIENCE):
        await run.settled.wait()
    if not run.settled.is_set():
        raise StateError("the job is still being started")
    if job.run_now is run and run.state is State.STOPPING:
        raise StateError("the job is being stopped")
    return run if job.run_now is run and run.alive else None


async def _running(job: Job) -> Run:
    run = await _present(job)
    if run is None:
        raise StateError(f"the job is {job.state}: it does not run")
    return run
