"""One job changed while it runs: its limits, paused, resumed, run again; the configuration reread.

May import: `errors`, `model`, `supervise`, `control.{jobs,routes}`, attrs, trio.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio
from attrs import field, frozen

from supervisor.control.routes import Answer, Ask, Json, Refusal, Route
from supervisor.errors import ConfigError, StateError
from supervisor.model.limits import Limits
from supervisor.model.status import JobStatus
from supervisor.supervise import limiting, reloading, steering
from supervisor.supervise.job import Job


@frozen
class SetLimits:
    """`limits` by their names in the configuration, with values as it takes them ("2G", "max").

    `next`: for the next run alone.  `force`: also to less memory than is in use, where the kernel
    then kills for it.
    """

    limits: dict[str, Any]
    next: bool = False
    force: bool = False


@frozen
class Nothing:
    """A body without fields."""


@frozen
class Reload:
    """`dry_run`: only tell.  `restart`: also running jobs that do not always run are restarted for
    settings that cannot change otherwise (true), or none is (false)."""

    dry_run: bool = False
    restart: bool | None = None


@frozen
class Reloaded:
    """What has changed: `jobs`, `settings` of the instance, whether `policies`; `refused` are what
    takes another start of the instance.  docs/steering.md."""

    jobs: tuple[dict[str, Any], ...] = ()
    settings: tuple[dict[str, Any], ...] = ()
    policies: bool = False
    refused: tuple[dict[str, Any], ...] = field(default=())


async def _set(ask: Ask) -> Answer:
    job, body = ask.job(), ask.body
    reader = ask.instance.reader
    if reader is None:
        raise Refusal(409, "this instance has no configuration")
    changes = reader.limits(body.limits)
    if not changes:
        raise ConfigError(["limits: sets nothing"])
    with _of(job):
        limits = await steering.set_limits(
            job, changes, ask.peer.told, later=body.next, force=body.force
        )
    told = {name: limiting.told(value) for name, value in changes.items()}
    ask.steered("set", job=job.spec.name, limits=told)
    return Json(200, limits)


async def _pause(ask: Ask) -> Answer:
    job = ask.job()
    with _of(job):
        await steering.pause(job, ask.peer.told)
    ask.steered("pause", job=job.spec.name)
    return _status(job)


async def _resume(ask: Ask) -> Answer:
    job = ask.job()
    with _of(job):
        await steering.resume(job)
    ask.steered("resume", job=job.spec.name)
    return _status(job)


async def _restart(ask: Ask) -> Answer:
    job = ask.job()
    with _of(job), trio.CancelScope(shield=True):
        await ask.instance.restart(job, ask.peer.told)
    ask.steered("restart", job=job.spec.name)
    return _status(job, 202)


@contextmanager
def _of(job: Job) -> Iterator[None]:
    """What is refused is told of this job."""
    try:
        yield
    except StateError as error:
        raise Refusal(409, f"{job.spec.name}: {error.message}", hint=error.hint) from error


def _status(job: Job, status: int = 200) -> Json:
    return Json(status, job.status(time.time()))


async def _reload(ask: Ask) -> Answer:
    body = ask.body
    if not body.dry_run:
        ask.steered("reload")
    found = await reloading.reload(
        ask.instance, ask.peer.told, dry_run=body.dry_run, restart=body.restart
    )
    return Json(200, reloading.told(found))


ROUTES = (
    Route(
        "PATCH",
        "/jobs/{job}/limits",
        _set,
        "steer",
        "set limits of a job, all of them or none; the limits in force then",
        body=SetLimits,
        checks_more=True,
        answer=Limits,
    ),
    Route(
        "POST",
        "/jobs/{job}/pause",
        _pause,
        "steer",
        "freeze every process of a job; its timeout stands still",
        body=Nothing,
        answer=JobStatus,
    ),
    Route(
        "POST",
        "/jobs/{job}/resume",
        _resume,
        "steer",
        "let a paused job go on",
        body=Nothing,
        answer=JobStatus,
    ),
    Route(
        "POST",
        "/jobs/{job}/restart",
        _restart,
        "steer",
        "stop a job in order and run it again; run one again that has ended",
        body=Nothing,
        answer=JobStatus,
        status=202,
    ),
    Route(
        "POST",
        "/reload",
        _reload,
        "steer",
        "read the configuration again, and become what it says",
        body=Reload,
        answer=Reloaded,
    ),
)
