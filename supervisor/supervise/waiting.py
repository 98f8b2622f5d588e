"""What a job waits for, with the numbers: for `explain`.

May import: `model`, `supervise`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from attrs import field, frozen

from supervisor.model.state import State
from supervisor.model.status import Capacity
from supervisor.supervise.admission import Demand
from supervisor.supervise.job import Job


@frozen
class Waits:
    """Why a job does not run now.

    after       `what` is the job that has to end first, `state` what that does
    image       `what` is the image, and how far it is
    capacity    `what` is lacking; `use` is given out, to the `holders`; `ahead` are looked at first
    backoff     until Unix time `until`, in `seconds`, before it is run again
    """

    kind: Literal["after", "image", "capacity", "backoff", "other"]
    what: str = ""
    state: str = ""
    until: float = 0.0
    seconds: float = 0.0
    use: Capacity | None = None
    holders: Mapping[str, Demand] = field(factory=dict)
    ahead: tuple[str, ...] = ()


def waits(job: Job, others: Mapping[str, Job], now: float) -> Waits | None:
    """None: it waits for nothing."""
    if job.state not in (State.WAITING, State.BACKOFF):
        return None
    admission = job.shared.admission
    lack = admission.waits_for(job.spec.name)
    if lack:
        held, ahead = admission.holders(), admission.ahead(job.spec.name)
        return Waits("capacity", lack, use=admission.use(), holders=held, ahead=ahead)
    what = job.status(now).waiting_for
    if what.startswith("image "):
        return Waits("image", what)
    if job.again_at:
        seconds = max(job.again_at - now, 0.0)
        return Waits("backoff", what, until=job.again_at, seconds=seconds)
    if what in others:
        return Waits("after", what, state=str(others[what].state))
    return Waits("other", what) if what else None
