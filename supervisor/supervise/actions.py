"""What is done about an event: what the policies decided, else the default.

May import: `errors`, `model`, `policy.engine`, `record`, `supervise`.

    event         nobody decides                     an action that says nothing of it
    MemoryLimit   a held job is let go: OOM kill     the same, after the action
    OomKill       oom = "kill": the whole job goes   -
    Timeout       the job is stopped                 Ignore and SignalJob let it go on
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from attrs import evolve

from supervisor.errors import KernelError
from supervisor.model.action import (
    Action,
    Freeze,
    Ignore,
    KillJob,
    Notify,
    RaiseLimit,
    Retry,
    SignalJob,
    StopAll,
    Thaw,
)
from supervisor.model.event import HOOK_OF, Event, MemoryLimit, Tick, Timeout
from supervisor.model.limits import Limits
from supervisor.model.record import LimitChange, LimitSet, Reason, iso
from supervisor.model.state import State
from supervisor.policy.engine import Decision
from supervisor.record.entries import answers_entry, decision_entry
from supervisor.supervise.admission import Demand
from supervisor.supervise.restart import changed

if TYPE_CHECKING:
    from supervisor.supervise.run import Run


def perform(run: Run, event: Event, decision: Decision) -> None:
    """Do what was decided about `event`, and then what is due anyway."""
    _tell(run, event, decision)
    settled = False
    if decision.action is not None:
        settled = _act(run, event, decision.action, decision.by)
    if settled:
        return
    if isinstance(event, Timeout):
        reason = Reason.TIMEOUT if event.kind == "wall" else Reason.CPU_TIMEOUT
        run.stop(reason, decision.by or "configuration")
    elif isinstance(event, MemoryLimit) and event.held and not _has_more(run, event):
        _let_go(run)


def _has_more(run: Run, event: MemoryLimit) -> bool:
    """Whether somebody has set a higher limit by hand while the policies were asked."""
    return run.limits.memory is None or run.limits.memory > event.limit


def _tell(run: Run, event: Event, decision: Decision) -> None:
    """Into the event log: the decision, and each policy that failed to answer."""
    hook = HOOK_OF.get(type(event), "")
    for answer in decision.answers:
        if answer.error:
            run.warn(f"policy {answer.policy} at {hook}: {answer.error}")
    if decision.action is not None:
        entry = decision_entry(hook, decision.by, decision.action, decision.answers)
        run.emit("decision", **entry)
    elif decision.answers and not isinstance(event, Tick):
        # Ticks come for ever, and nearly always nothing is to be done.
        run.emit("undecided", hook=hook, answers=answers_entry(decision.answers))


def _act(run: Run, event: Event, action: Action, by: str) -> bool:
    """Perform one action; True when it settles the event, so that no default follows."""
    match action:
        case RaiseLimit():
            done = _raise(run, action, by)
            # a held job goes on by more memory or more swap; what else is raised leaves it there
            helps = action.limit in ("memory", "swap") or not isinstance(event, MemoryLimit)
            return done and helps
        case KillJob():
            run.stop(Reason.POLICY, by, action.why, now=action.now)
            return True
        case SignalJob():
            run.send_signal(action.signal)
            return not isinstance(event, MemoryLimit)
        case Freeze():
            run.freezing.freeze()
            return True
        case Thaw():
            run.freezing.thaw()
            return True
        case Retry():
            run.retry = (action, by)
        case StopAll():
            run.shared.stop_all(f"{by}: {action.why}" if action.why else by)
            return True
        case Notify():
            run.emit("notify", by=by, message=action.message)
        case Ignore():
            return not isinstance(event, MemoryLimit)
    return False


def _raise(run: Run, action: RaiseLimit, by: str) -> bool:
    """Set a limit of the living job, if the instance has room for it; whether it was done."""
    now: float | None = getattr(run.limits, action.limit)
    if now is None or now >= action.to:
        run.warn(f"{by} wants {action.limit} = {action.to:g}, and meanwhile it has as much")
        return True
    wanted = changed(run.limits, {action.limit: action.to})
    lack = run.shared.admission.resize(run.spec.name, Demand.of(wanted))
    if lack:
        run.warn(f"{by} wants {action.limit} = {action.to:g}, but capacity lacks {lack}")
        return False
    try:
        value = _change(run, action)
    except KernelError as error:
        run.warn(f"cannot raise {action.limit}: {error}")
        run.shared.admission.resize(run.spec.name, Demand.of(run.limits))
        return False
    run.limits = changed(run.limits, {action.limit: value})
    run.raised[action.limit] = run.raised.get(action.limit, 0) + 1
    if action.limit == "memory":
        run.limit_history.append(LimitChange(iso(run.now()), value, by))
    run.limits_set.append(LimitSet(iso(run.now()), action.limit, value, by))
    run.limits_changed()
    run.emit("limit_changed", limit=action.limit, to=value, by=by, next=False)
    if run.state is State.HELD:
        run.set_state(State.RUNNING)
    return True


def _change(run: Run, action: RaiseLimit) -> float:
    """What the limit is now.  Raises KernelError."""
    if action.limit == "disk" and run.disk is not None:
        return run.disk.grow(action.to)
    return cast(float, run.cgroup.change(action.limit, action.to))


def _let_go(run: Run) -> None:
    """No policy raised the limit: the OOM killer decides, and from now on at once."""
    run.held = False
    run.subscription.update(run.limits, held=False)
    try:
        run.cgroup.hold_at_limit(False)
    except KernelError as error:
        run.warn(f"cannot let the held job go on, killing it: {error}")
        run.stop(Reason.OOM, "supervise", "held at its limit", now=True)
        return
    if run.state is State.HELD:
        run.set_state(State.RUNNING)


def without(run: Run, limit: str) -> None:
    """Take a limit that cannot be enforced out of those in force."""
    run.limits = lifted(run.limits, limit)


def lifted(limits: Limits, limit: str) -> Limits:
    """`limits` without one of them, given by its configuration key."""
    nothing: Any = {"io": (), "cpu_idle": False}.get(limit)
    return evolve(limits, **{limit: nothing})
