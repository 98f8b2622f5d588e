"""The jobs of an instance: listed, looked at, stopped, killed.

May import: `errors`, `model`, `supervise`, `control.routes`, attrs, trio.
"""

from __future__ import annotations

import signal
import time

import trio
from attrs import evolve, field, frozen

from supervisor.control.routes import Answer, Ask, Json, Refusal, Route
from supervisor.model.job import JobSpec
from supervisor.model.limits import Limits
from supervisor.model.record import Reason, RunRecord
from supervisor.model.state import State
from supervisor.model.status import InstanceStatus, JobStatus
from supervisor.supervise.job import Job

SIGNALS = [one.name.removeprefix("SIG") for one in signal.Signals]

AT_ONCE = 32
"""Jobs that are looked at before the event loop gets its turn."""

LATEST = 10
"""Runs that a job's answer has; the event log has them all."""


@frozen
class JobAnswer:
    """One job in full: what it is doing, what it was told, and how its latest runs ended.

    `limits` are those in force; `spec` is the job as configured (docs/config.md), `runs` are
    records (docs/verdicts.md), the latest last, of `attempts` in all.  Who may only read sees
    the names in its environment, and no values.
    """

    status: JobStatus
    limits: Limits
    spec: JobSpec
    runs: tuple[RunRecord, ...] = ()
    attempts: int = 0


@frozen
class StopJob:
    """`why` is written down."""

    why: str = ""


@frozen
class KillJob:
    """`signal` by its name, as "HUP"; KILL ends the job for good, as nothing is run again."""

    signal: str = field(default="KILL", metadata={"schema": {"enum": SIGNALS}})
    why: str = ""


async def _jobs(ask: Ask) -> Answer:
    """Each look reads a cgroup: among a thousand, others get their turn."""
    found, now = [], time.time()
    for number, job in enumerate(tuple(ask.instance.jobs.values())):
        if number % AT_ONCE == AT_ONCE - 1:
            await trio.lowlevel.checkpoint()
        found.append(job.status(now))
    return Json(200, InstanceStatus(tuple(found), ask.instance.shared.admission.use()))


def describe(job: Job, *, full: bool) -> JobAnswer:
    """`full`: with the values of its environment, which may be secrets."""
    hidden = dict.fromkeys(job.spec.environment, "")
    return JobAnswer(
        status=job.status(time.time()),
        limits=job.limits,
        spec=job.spec if full else evolve(job.spec, environment=hidden),
        runs=tuple(job.records[-LATEST:]),
        attempts=len(job.records),
    )


async def _job(ask: Ask) -> Answer:
    return Json(200, describe(ask.job(), full=ask.peer.uid in (0, ask.about.owner)))


def not_ended(ask: Ask) -> Job:
    """The job that the path names.  Raises Refusal (409) when it has ended for good."""
    job = ask.job()
    if job.state is State.ENDED:
        raise Refusal(409, f"{job.spec.name} has ended already: {job.records[-1].reason}")
    return job


async def _stop(ask: Ask) -> Answer:
    job, body = not_ended(ask), ask.body
    ask.steered("stop", job=job.spec.name, why=body.why)
    job.stop(Reason.STOPPED, ask.peer.told, body.why)
    return Json(202, job.status(time.time()))


async def _kill(ask: Ask) -> Answer:
    job, body = not_ended(ask), ask.body
    name = signal_name(body.signal)
    if name == "KILL":
        ask.steered("kill", job=job.spec.name, signal=name, why=body.why)
        job.stop(Reason.STOPPED, ask.peer.told, body.why, now=True)
    else:
        job.signal(name)
        ask.steered("kill", job=job.spec.name, signal=name, why=body.why)
    return Json(202, job.status(time.time()))


def signal_name(text: str) -> str:
    """ "HUP" of "HUP", "SIGHUP", "hup" or "1".  Raises Refusal (400)."""
    word = text.upper().removeprefix("SIG")
    names = {one.name.removeprefix("SIG"): int(one) for one in signal.Signals}
    for name, number in names.items():
        if word in (name, str(number)):
            return name
    raise Refusal(400, f'"{text}" is no signal', hint='names are as "TERM", "HUP", "USR1"')


ROUTES = (
    Route(
        "GET",
        "/jobs",
        _jobs,
        "read",
        "every job, and what it is doing",
        answer=InstanceStatus,
    ),
    Route(
        "GET",
        "/jobs/{job}",
        _job,
        "read",
        "one job in full",
        answer=JobAnswer,
    ),
    Route(
        "POST",
        "/jobs/{job}/stop",
        _stop,
        "steer",
        "end a job: its stop signal, then SIGKILL after its grace",
        body=StopJob,
        answer=JobStatus,
        status=202,
    ),
    Route(
        "POST",
        "/jobs/{job}/kill",
        _kill,
        "steer",
        "kill a job at once, or send its processes another signal",
        body=KillJob,
        answer=JobStatus,
        status=202,
    ),
)
