"""GET /v1/: which instance this is, and how it is doing.  POST /v1/stop ends it.

May import: `model`, `control.routes`, attrs.
"""

from __future__ import annotations

from attrs import asdict, frozen

from supervisor.control.routes import About, Answer, Ask, Json, Route
from supervisor.model.state import State
from supervisor.model.status import Capacity


@frozen(kw_only=True)
class InstanceAnswer(About):
    """An instance: `jobs` counts them by their state, `capacity` is what they take.

    `interrupted` says who stopped the instance, if somebody has; `seq` is the number of the last
    entry of its event log.
    """

    jobs: dict[str, int]
    capacity: Capacity
    interrupted: str = ""
    seq: int


@frozen
class StopInstance:
    """`now`: kill what is left at once.  `why` is written down."""

    now: bool = False
    why: str = ""


def _state(ask: Ask) -> InstanceAnswer:
    states = [job.state for job in ask.instance.jobs.values()]
    return InstanceAnswer(
        **asdict(ask.about),
        jobs={str(state): states.count(state) for state in State if state in states},
        capacity=ask.instance.shared.admission.use(),
        interrupted=ask.instance.interrupted,
        seq=ask.log.seq,
    )


async def _instance(ask: Ask) -> Answer:
    return Json(200, _state(ask))


async def _stop(ask: Ask) -> Answer:
    body: StopInstance = ask.body
    ask.steered("stop", now=body.now, why=body.why)
    ask.instance.stop(ask.peer.told, now=body.now)
    return Json(202, _state(ask))


ROUTES = (
    Route(
        "GET",
        "/",
        _instance,
        "read",
        "which instance this is, and how it is doing",
        answer=InstanceAnswer,
    ),
    Route(
        "POST",
        "/stop",
        _stop,
        "steer",
        "stop every job, and with them the instance",
        body=StopInstance,
        answer=InstanceAnswer,
        status=202,
    ),
)
