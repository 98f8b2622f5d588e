"""A run's cgroup: limited, confined to its devices and watched before anything is in it.

May import: `errors`, `model`, `cgroup.api`, `container.devices`, `watch`, `supervise.{actions,run}`
(of `run` its type only), trio.  What this host cannot enforce is refused here, or told of.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from typing import TYPE_CHECKING

import trio

from supervisor.cgroup.api import Missing, PressureSource
from supervisor.container import devices
from supervisor.errors import KernelError, LimitError
from supervisor.model.limits import Limits
from supervisor.model.record import LimitChange, iso
from supervisor.supervise import actions
from supervisor.watch.pressure import Gauge

if TYPE_CHECKING:
    from supervisor.supervise.run import Run


def refusals(missing: Sequence[Missing]) -> list[str]:
    """Limits this host cannot enforce, and pressure it cannot tell of, a line each."""
    return [f"{one.key}: {one.why} (fix: {one.fix})" for one in missing]


@asynccontextmanager
async def confined(run: Run) -> AsyncIterator[None]:
    """The run's cgroup, limited and watched before anything is in it; removed at the end."""
    shared = run.shared
    limits = _enforceable(run)
    run.cgroup = shared.manager.create(run.id, kill_whole_on_oom=run.spec.oom == "kill")
    try:
        run.cgroup.apply(limits)
        _confine(run)
        run.limit_history.append(LimitChange(iso(time.time()), limits.memory, "configuration"))
        wants = shared.engine.wants("on_memory_limit", run.spec)
        run.held = limits.memory is not None and wants
        if run.held:
            run.cgroup.hold_at_limit(True)
        run.subscription = shared.watcher.subscribe(run.cgroup, limits, held=run.held)
        try:
            with _pressure(run):
                yield
        finally:
            run.subscription.close()
    finally:
        with trio.CancelScope(shield=True):
            await run.tidy(_remove_cgroup(run))


def _confine(run: Run) -> None:
    """Let the job use its devices alone; without that only where its mounts keep it to them."""
    rules = devices.rules(run.spec)
    lacking = run.shared.manager.missing_devices()
    if lacking is None:
        run.cgroup.confine(rules)
    elif devices.rests_on_cgroup(run.spec):
        if run.shared.on_missing == "refuse":
            raise LimitError(refusals([lacking]), hint='or set on_missing = "warn"')
        run.warn(f"devices are not enforced: {lacking.why} (fix: {lacking.fix})")


def _enforceable(run: Run) -> Limits:
    """The limits this host can enforce; LimitError for the others, or a warning each."""
    missing = run.shared.manager.missing(run.limits)
    if missing and run.shared.on_missing == "refuse":
        raise LimitError(refusals(missing), hint='or set on_missing = "warn"')
    for one in missing:
        run.warn(f"limits.{one.limit} is not enforced: {one.why} (fix: {one.fix})")
        actions.without(run, one.limit)
    return run.limits


@contextmanager
def _pressure(run: Run) -> Iterator[None]:
    """What tells of the job's pressure, where somebody wants to hear of it."""
    with ExitStack() as stack:
        for source in _pressure_sources(run):
            try:
                run.gauges.append(stack.enter_context(closing(Gauge(source))))
            except KernelError as error:
                if run.shared.on_missing == "refuse":
                    raise
                run.warn(f"nothing tells of the job's {source.resource} pressure: {error}")
        yield


def _pressure_sources(run: Run) -> list[PressureSource]:
    """LimitError for what nothing here tells of, or a warning each."""
    shared = run.shared
    if not shared.engine.wants("on_pressure", run.spec):
        return []
    wanted = run.spec.pressure.wanted()
    missing = shared.manager.missing_pressure(wanted)
    if missing and shared.on_missing == "refuse":
        raise LimitError(refusals(missing), hint='or set on_missing = "warn"')
    for one in missing:
        run.warn(f"{one.key} is not watched: {one.why} (fix: {one.fix})")
    return [
        run.cgroup.pressure(resource, share)
        for resource, share in wanted.items()
        if not any(one.of(resource) for one in missing)
    ]


async def _remove_cgroup(run: Run) -> None:
    """rmdir says EBUSY while the last tasks exit: wait for that off the hot path, bounded."""
    delay = 0.001
    while not run.cgroup.try_remove():
        if delay > 1:
            _tell_of_strangers(run)
            await trio.to_thread.run_sync(run.cgroup.remove)
            return
        await trio.sleep(delay)
        delay *= 2


def _tell_of_strangers(run: Run) -> None:
    """Who is in the cgroup now was moved there: all that was the job's has ended with its init.

    It is killed: a cgroup that somebody is in can be neither removed nor used again.
    """
    try:
        pids = ", ".join(map(str, run.cgroup.pids()))
    except KernelError:
        return  # removed at last, by somebody else
    if pids:
        run.warn(f"killing what was moved into the job's cgroup from outside: pid {pids}")
