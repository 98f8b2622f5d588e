"""Setting the limits of a job by hand: all of what was asked for, or nothing.

May import: `errors`, `model`, `supervise.{admission,run}` (of `run` its type only), trio.

A policy's raise is `actions`'.  Here limits go down as well, and away; each is read back from the
kernel; and where one is refused, those before it are put back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import trio
from attrs import evolve, fields_dict

from supervisor.cgroup.api import CgroupManager, Changeable
from supervisor.errors import KernelError, LimitError, StateError, SupervisorError
from supervisor.model.limits import Limits, conflicts
from supervisor.model.record import LimitChange, LimitSet, iso
from supervisor.model.state import State
from supervisor.model.units import size_text
from supervisor.supervise.admission import Admission, Demand

if TYPE_CHECKING:
    from supervisor.supervise.output import Output
    from supervisor.supervise.run import Run

NAMES = tuple(fields_dict(Limits))
LIVE = ("memory", "swap", "memory_high", "memory_low", "pids", "cpus", "cpu_weight", "io", "disk",
        "output")  # fmt: skip
"""What can change while a job runs."""

AT_START = {
    "swappiness": "it is written before the job has any memory",
    "cpuset": "the job joins it when it is started",
    "cpu_idle": "it stands beside the weights, which other jobs are compared with",
    "open_files": "every process has inherited it from its parent",
    "disk_inodes": "the file system of the writable layer was made with it",
}
"""Why the others cannot."""

WAY_OUT = "--next sets it for the next run, and supervise restart begins one"


def planned(now: Limits, changes: Mapping[str, Any]) -> Limits:
    """`now` with `changes`.  Raises StateError for what cannot stand together, all at once."""
    wanted = evolve(now, **changes)
    found = [f"limits.{name} {text}" for name, text in conflicts(wanted)]
    if found:
        raise StateError("; ".join(found), hint="set both at once")
    return wanted


def enforceable(manager: CgroupManager, wanted: Limits, changes: Iterable[str]) -> None:
    """Raises LimitError for those of `changes` that this host cannot enforce."""
    missing = [one for one in manager.missing(wanted) if one.limit in changes]
    if missing:
        raise LimitError([f"{one.key}: {one.why} (fix: {one.fix})" for one in missing])


def affordable(admission: Admission, wanted: Limits) -> None:
    """Raises StateError where a job with these limits could never run."""
    lack = admission.refusal(Demand.of(wanted))
    if lack:
        raise StateError(f"capacity never has {lack}")


async def set_limits(run: Run, changes: Mapping[str, Any], by: str, *, force: bool) -> None:
    """Change limits of a living run.  Raises StateError or LimitError: then nothing has changed.

    `changes` are values in the units of `Limits`, by its names.  `force`: also to less memory than
    is in use, where the kernel then kills for it.
    """
    async with run.limiting:
        with trio.CancelScope(shield=True):  # whoever asked may go away in the middle
            await _set_all(run, changes, by, force=force)


async def _set_all(run: Run, changes: Mapping[str, Any], by: str, *, force: bool) -> None:
    wanted = planned(run.limits, changes)
    _check(run, changes, wanted)
    _make_room(run, wanted)
    before, done = run.limits, list[str]()
    try:
        for name in _order(changes, wanted):
            done.append(name)
            await _set(run, name, getattr(wanted, name), force=force)
    except SupervisorError as error:
        _put_back(run, before, done)
        raise _refusal(run, done[-1], getattr(wanted, done[-1]), error) from error
    _tell(run, done, by)


def _check(run: Run, changes: Mapping[str, Any], wanted: Limits) -> None:
    fixed = [name for name in changes if name in AT_START]
    if fixed:
        text = "; ".join(f"limits.{name} cannot change now: {AT_START[name]}" for name in fixed)
        raise StateError(text, hint=WAY_OUT)
    if not run.alive:
        raise StateError(f"the job is {run.state}: its limits are of no use any more")
    if "disk" in changes:
        _check_disk(run, changes["disk"])
    if "output" in changes:
        _check_output(run, changes["output"])
    enforceable(run.shared.manager, wanted, changes)


def _check_disk(run: Run, to: int | None) -> None:
    now = run.limits.disk
    if run.disk is None or now is None:
        raise StateError("limits.disk: the writable layer was made without one", hint=WAY_OUT)
    if to is None or to < now:
        text = f"limits.disk: a layer of {size_text(now)} can only be made larger"
        raise StateError(text, hint=WAY_OUT)


def _check_output(run: Run, to: int | None) -> None:
    output = _output(run)
    if output is None:
        why = "the job was started without one, and writes to its files itself"
        raise StateError(f"limits.output: {why}", hint=WAY_OUT)
    if to is not None and to < output.written:
        written = size_text(output.written)
        raise StateError(f"limits.output: {written} are written already, and it would be ended")


def _output(run: Run) -> Output | None:
    """Who copies its output, if anybody does."""
    return run.flow.output if run.flow is not None else None


def _make_room(run: Run, wanted: Limits) -> None:
    more, now = Demand.of(wanted), Demand.of(run.limits)
    # what is to be given back is given back once the kernel has taken the lower limit
    demand = Demand(max(more.memory, now.memory), max(more.cpus, now.cpus))
    lack = run.shared.admission.resize(run.spec.name, demand)
    if lack:
        raise StateError(f"capacity lacks {lack}", hint="lower the limits of another job first")


def _order(changes: Mapping[str, Any], wanted: Limits) -> list[str]:
    """Swap stands beside memory: it comes after a limit on that, and goes before it does."""
    swap_first = wanted.memory is None
    # a layer that has grown does not shrink again: nothing that can fail comes after it
    rank = {"swap": 0 if swap_first else 2, "memory": 1, "disk": 9}
    return sorted(changes, key=lambda name: rank.get(name, 3))


async def _set(run: Run, name: str, to: Any, *, force: bool) -> None:
    """One limit, and what it is then.  Raises KernelError, LimitError."""
    if name == "memory" and to is not None and to < (run.limits.memory or to + 1):
        await _lower_memory(run, to, force=force)
    elif name == "io":
        await trio.to_thread.run_sync(run.cgroup.change_io, to)
        run.limits = evolve(run.limits, io=to)
    elif name == "output":
        _allow(run, to)
        run.limits = evolve(run.limits, output=to)
    elif name == "disk":
        assert run.disk is not None
        run.limits = evolve(run.limits, disk=run.disk.grow(to))
    else:
        _change(run, name, to)


def _allow(run: Run, to: int | None) -> None:
    output = _output(run)
    if output is not None:
        output.allow(to)


async def _lower_memory(run: Run, to: int, *, force: bool) -> None:
    """In a thread: the kernel reclaims, to swap and disk too.  A policy may raise it meanwhile."""
    seen = run.limits.memory
    change = partial(run.cgroup.change, "memory", to, force=force)
    value: Any = await trio.to_thread.run_sync(change)
    if run.limits.memory != seen:
        value = change()  # the person's word stands, whoever's was written last
    run.limits = evolve(run.limits, memory=value)


def _change(run: Run, name: str, to: Any) -> None:
    value: Any = run.cgroup.change(cast(Changeable, name), to)
    run.limits = evolve(run.limits, **{name: value})


def _put_back(run: Run, before: Limits, done: list[str]) -> None:
    """Undo what was set; the last of `done` is what failed, and was left as it was."""
    for name in reversed(done[:-1]):
        value = getattr(before, name)
        try:
            if name == "io":
                run.cgroup.change_io(value)
                run.limits = evolve(run.limits, io=value)
            elif name == "output":
                _allow(run, value)
                run.limits = evolve(run.limits, output=value)
            elif name != "disk":
                _change(run, name, value)
        except SupervisorError as error:
            run.warn(f"cannot put limits.{name} back: {error}")
    run.shared.admission.resize(run.spec.name, Demand.of(run.limits))


def _refusal(run: Run, name: str, to: Any, error: SupervisorError) -> SupervisorError:
    """In words: which limit, what is in use, what can be done."""
    if not run.alive:
        return StateError("the job has ended in this moment: nothing was changed")
    used = None
    try:
        used = run.cgroup.usage().memory
    except KernelError:
        return StateError(f"limits.{name}: {error}: nothing was changed")
    busy = isinstance(error, KernelError) and error.errno == 16
    if name == "memory" and busy and used is not None:
        text = f"limits.memory: {size_text(used)} are in use, and the kernel could not reclaim "
        text += f"down to {size_text(to)}; nothing was changed"
        return StateError(text, hint="stop the job, or set no less than it needs")
    return StateError(f"limits.{name}: {error}; nothing was changed")


def _tell(run: Run, done: list[str], by: str) -> None:
    """The record, the watcher, the clock and the event log hear of what holds now."""
    if "memory" in done:
        run.limit_history.append(LimitChange(iso(run.now()), run.limits.memory, by))
        _hold(run)
    run.shared.admission.resize(run.spec.name, Demand.of(run.limits))
    run.limits_changed()
    for name in done:
        value = told(getattr(run.limits, name))
        run.limits_set.append(LimitSet(iso(run.now()), name, value, by))
        run.emit("limit_changed", limit=name, to=value, by=by, next=False)
    if run.state is State.HELD and {"memory", "swap"} & set(done):
        run.set_state(State.RUNNING)


def _hold(run: Run) -> None:
    """A job that had no limit on memory is held at its new one, if a policy is to be asked."""
    wants = run.shared.engine.wants("on_memory_limit", run.spec)
    if run.limit_history[-2].value is None and run.limits.memory is not None and wants:
        try:
            run.cgroup.hold_at_limit(True)
            run.held = True
        except KernelError as error:
            run.warn(f"no policy is asked at the memory limit: {error}")


def told(value: Any) -> Any:
    """A limit's value as the event log and the socket have it."""
    if isinstance(value, tuple):
        from attrs import asdict

        return [asdict(item) for item in value]
    return value
