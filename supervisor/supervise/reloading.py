"""Jobs that come, go and change while an instance runs: submit, reload.

May import: everything above `front`.  One at a time (`Instance.changing`).  All that can be wrong
is found before anything is changed: what the parsers say, then what `preflight` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

import trio
from attrs import evolve

from supervisor.errors import ImageError, StateError, SupervisorError
from supervisor.model.job import JobSpec
from supervisor.model.state import State
from supervisor.supervise import preflight, steering
from supervisor.supervise.difference import Change, Difference, JobChange, changes, plain
from supervisor.supervise.images import applied
from supervisor.supervise.instance import Instance
from supervisor.supervise.job import Job
from supervisor.supervise.reading import Read, Reader

MOST_SUBMITTED = 1000
"""Jobs that were submitted and have ended, kept for who asks how they ended."""


async def submit(
    instance: Instance, name: str, table: Mapping[str, Any], base: str, by: str, *, unique: bool
) -> tuple[Job, ...]:
    """Start jobs that somebody hands in; what they are called is in their `spec`.

    `unique`: under a name with a number behind it where `name` is taken.  Raises ConfigError for a
    job that is wrong, StateError for one that cannot be had now, SupervisorError for what this host
    lacks.  Then nothing has changed.
    """
    async with instance.changing:
        if unique:
            name = _free(instance, name)
        present = [job.configured for job in instance.jobs.values()]
        read = partial(_reader(instance).submitted, name, table, base, present)
        found = await trio.to_thread.run_sync(read)
        names = _names(instance)
        taken = [spec.name for spec in found.jobs if {spec.name, spec.group} & names]
        if taken:
            raise StateError(
                f"there is a job {taken[0]} already",
                hint=f"give this one another name, or supervise restart {taken[0]}",
            )
        await _examine(instance, found.jobs)
        with trio.CancelScope(shield=True):
            instance.shared.engine.add(found.policies)
            jobs = await _add(instance, found.jobs, by)
        _forget_old(instance)
        return jobs


def _reader(instance: Instance) -> Reader:
    if not instance.open:
        raise StateError("the instance is about to end: it takes no more jobs")
    if instance.reader is None:
        raise StateError("this instance has no configuration that could change")
    return instance.reader


def _free(instance: Instance, name: str) -> str:
    numbered = (f"{name}-{number}" for number in count(2))
    names = _names(instance)
    return name if name not in names else next(one for one in numbered if one not in names)


def _names(instance: Instance) -> set[str]:
    """Those of all jobs, and of the groups that matrices make."""
    return {name for job in instance.jobs.values() for name in (job.spec.name, job.spec.group)}


async def _examine(instance: Instance, specs: Sequence[JobSpec]) -> None:
    """Whether these can be run here.  Raises SupervisorError with all that is lacking."""
    shared = instance.shared
    runs = shared.state.runs if shared.state is not None else shared.scratch

    def look() -> None:
        preflight.check(shared.manager, specs, shared.on_missing)
        preflight.check_disks(specs, runs)

    await trio.to_thread.run_sync(look)


async def _add(instance: Instance, specs: Sequence[JobSpec], owner: str) -> tuple[Job, ...]:
    """Have them run; those that are here and about to leave are waited for."""
    first = 1 + max((job.number for job in instance.jobs.values()), default=-1)
    jobs = tuple(Job(instance.shared, spec, first + n) for n, spec in enumerate(specs))
    for job in jobs:
        job.owner = owner
        await job.prepare()
    _known(instance, specs)
    for job in jobs:
        instance.start(job, after=instance.jobs.get(job.spec.name))
        if owner:
            instance.shared.log.emit("submitted", job=job.spec.name, by=owner)
    return jobs


def _known(instance: Instance, more: Sequence[JobSpec] = ()) -> None:
    specs = {job.spec.name: job.spec for job in instance.jobs.values()}
    instance.shared.network.know((specs | {spec.name: spec for spec in more}).values())


def _forget_old(instance: Instance) -> None:
    """A host that is given jobs for years does not grow for ever."""
    over = [job for job in instance.jobs.values() if job.owner and job.ended.is_set()]
    for job in over[:-MOST_SUBMITTED]:
        del instance.jobs[job.spec.name]


async def reload(
    instance: Instance, by: str, *, dry_run: bool = False, restart: bool | None = None
) -> Difference:
    """Read the configuration again, and become what it says; what has changed.

    `restart`: whether running jobs are restarted for settings that cannot change otherwise; None:
    those that always run.  `dry_run`: only tell.  Raises as `submit` does, having changed nothing.
    """
    log = instance.shared.log
    async with instance.changing:
        if dry_run:
            return (await _read(instance, restart))[1]
        log.emit("reloading", by=by)
        try:
            read, found = await _read(instance, restart)
        except BaseException as error:  # also when whoever asked has gone
            log.emit("reload_failed", by=by, problems=problems_of(error))
            raise
        with trio.CancelScope(shield=True):
            done = await _carry_out(instance, read, found, by, restart)
        log.emit("reloaded", by=by, difference=told(done))
        return done


async def _read(instance: Instance, restart: bool | None) -> tuple[Read, Difference]:
    """The file, and what it would change.  A policy that hangs while it is loaded is left alone."""
    load = _reader(instance).reload
    read = await trio.to_thread.run_sync(load, abandon_on_cancel=True)
    return read, await _compared(instance, read, restart)


def problems_of(error: BaseException) -> list[str]:
    """All that is wrong, a line each."""
    return [*getattr(error, "problems", ())] or [str(error) or type(error).__name__]


def told(difference: Difference) -> dict[str, Any]:
    """As the event log and the socket have it."""
    return {
        "jobs": [plain(one) for one in difference.jobs],
        "settings": [plain(one) for one in difference.settings],
        "policies": difference.policies,
        "refused": [plain(one) for one in difference.refused],
    }


async def _compared(instance: Instance, read: Read, restart: bool | None) -> Difference:
    """What is to be done; raises SupervisorError for what cannot."""
    present = {job.spec.name: job for job in instance.jobs.values() if not job.leaving}
    wanted = {spec.name: spec for spec in read.jobs}
    busy = [n for n, job in present.items() if job.owner and n in wanted and not job.ended.is_set()]
    if busy:
        hint = "wait for it, stop it, or give the one in the file another name"
        raise StateError(f"jobs.{busy[0]}: a job of that name was submitted, and runs", hint=hint)
    mine = {name: job for name, job in present.items() if not job.owner}
    found = [JobChange(name, "removed") for name in mine if name not in wanted]
    for name, spec in wanted.items():
        if name not in mine:
            found.append(JobChange(name, "added"))
        elif differing := changes(mine[name].configured, spec, restart=restart):
            found.append(JobChange(name, "changed", differing))
    touched = [wanted[one.job] for one in found if one.what != "removed"]
    await _examine(instance, touched)
    before = instance.read
    assert before is not None, "who has a reader has read"
    return Difference(
        tuple(found),
        tuple(_settings(before, read)),
        before.policies_id != read.policies_id,
        tuple(
            Change(f"supervisor.{key}", before.fixed.get(key), read.fixed.get(key), "restart")
            for key in dict.fromkeys((*before.fixed, *read.fixed))
            if before.fixed.get(key) != read.fixed.get(key)
        ),
    )


def _settings(before: Read, now: Read) -> list[Change]:
    pairs = {
        "capacity": (plain(before.room), plain(now.room)),
        "on_missing": (before.on_missing, now.on_missing),
        "when_done": tuple("stay" if read.stays else "exit" for read in (before, now)),
    }
    return [Change(f"supervisor.{key}", *pair) for key, pair in pairs.items() if pair[0] != pair[1]]


async def _carry_out(
    instance: Instance, read: Read, found: Difference, by: str, restart: bool | None
) -> Difference:
    shared = instance.shared
    reader, before = instance.reader, instance.read
    assert reader is not None and before is not None
    reader.accept()
    if found.policies:
        shared.engine.replace(read.policies)
    shared.on_missing = read.on_missing
    shared.admission.open(read.room)
    instance.stays = read.stays
    # what cannot change stays as it is, and is told again by the next reload
    instance.read = evolve(read, fixed=before.fixed)
    wanted = {spec.name: spec for spec in read.jobs}
    done = []
    for one in found.jobs:
        if one.what == "removed":
            instance.leave(instance.jobs[one.job], f"it is no longer in {read.filename}", by)
        elif one.what == "changed":
            one = await _renew(instance, instance.jobs[one.job], wanted[one.job], one, by)
        done.append(one)
    await _add(instance, [wanted[one.job] for one in found.jobs if one.what == "added"], "")
    for number, spec in enumerate(read.jobs):
        instance.jobs[spec.name].number = number
    _known(instance)
    instance.look_again()
    return evolve(found, jobs=tuple(done))


async def _renew(
    instance: Instance, job: Job, spec: JobSpec, found: JobChange, by: str
) -> JobChange:
    """Make a job what it is to be, as far as that can be now; what came of each change."""
    prepared = await job.prepared(spec)
    job.configured = spec
    before = job.spec.root
    job.spec = prepared
    image, job.image = job.image, None
    if image is not None and prepared.root == before:
        with suppress(ImageError):  # then it is acquired once more, and told
            job.spec, job.image = applied(prepared, image), image
    limits = {
        c.key.partition(".")[2]: getattr(prepared.limits, c.key.partition(".")[2])
        for c in found.changes
        if c.key.startswith("limits.")
    }
    if job.run_now is None or job.state in (State.BACKOFF, State.ENDED):
        job.plan(**limits)
        job.renewed()
        return found
    now = limits.keys() & {c.key.partition(".")[2] for c in found.changes if c.effect == "now"}
    refused = await _set_live(job, {name: limits[name] for name in now}, by)
    job.plan(**{n: v for n, v in limits.items() if n not in now or n in refused})
    _set_spec(job)
    done = tuple(
        evolve(c, effect="next run", why=refused[name])
        if (name := c.key.partition(".")[2]) in refused and c.key.startswith("limits.")
        else c
        for c in found.changes
    )
    if any(c.effect == "restart" for c in done):
        try:
            await instance.restart(job, by)
        except StateError as error:
            job.shared.log.emit("warning", job=spec.name, text=f"not restarted: {error}")
    return evolve(found, changes=done)


async def _set_live(job: Job, limits: Mapping[str, Any], by: str) -> dict[str, str]:
    """Those that could not be set now, and why."""
    if not limits:
        return {}
    try:
        await steering.set_limits(job, limits, by)
    except SupervisorError as error:
        if len(limits) == 1:
            return dict.fromkeys(limits, str(error))
    else:
        return {}
    refused: dict[str, str] = {}
    for name, value in limits.items():  # one that is refused is not to keep the others back
        refused |= await _set_live(job, {name: value}, by)
    return refused


def _set_spec(job: Job) -> None:
    """What the supervisor alone goes by holds for the present run, too."""
    run, spec = job.run_now, job.spec
    if run is not None:
        run.spec = evolve(
            run.spec,
            stop=spec.stop,
            restart=spec.restart,
            priority=spec.priority,
            after=spec.after,
            expect=spec.expect,
            timeout=spec.timeout,
            cpu_time=spec.cpu_time,
        )
        run.pulse()
