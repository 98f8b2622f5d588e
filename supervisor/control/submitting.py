"""Jobs handed in from outside.

May import: `errors`, `model`, `supervise`, `control.routes`, attrs.
"""

from __future__ import annotations

from typing import Any

from attrs import frozen

from supervisor.control.routes import Answer, Ask, Json, Route
from supervisor.errors import ConfigError
from supervisor.supervise import reloading


@frozen
class Submit:
    """A job: its name, and its table as the configuration has it (docs/config.md).

    The file's [defaults] are under it.  Relative paths start at `base`, an absolute one.  `unique`:
    where the name is taken, another one is made of it.  `wait`: answer when it has ended.
    """

    name: str
    job: dict[str, Any]
    base: str = "/"
    unique: bool = False
    wait: bool = False


@frozen
class Submitted:
    """The names of what runs, or waits, now: several if it has a matrix.

    `records`: how each ended (docs/verdicts.md), if that was waited for.
    """

    jobs: tuple[str, ...]
    records: tuple[dict[str, Any], ...] = ()


async def _submit(ask: Ask) -> Answer:
    body = ask.body
    if not body.base.startswith("/") or "\0" in body.base:
        raise ConfigError(["base: must be an absolute path"])
    jobs = await reloading.submit(
        ask.instance, body.name, body.job, body.base, ask.peer.told, unique=body.unique
    )
    names = tuple(job.spec.name for job in jobs)
    for name in names:
        ask.steered("submit", job=name)
    if not body.wait:
        return Json(201, Submitted(names))
    for job in jobs:
        await job.ended.wait()
    return Json(201, Submitted(names, tuple(job.records[-1].to_json() for job in jobs)))


ROUTES = (
    Route(
        "POST",
        "/jobs",
        _submit,
        "steer",
        "run a job that the configuration does not have",
        body=Submit,
        checks_more=True,
        answer=Submitted,
        status=201,
    ),
)
