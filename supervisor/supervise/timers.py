"""What a run waits for beside its cgroup: the clock, pressure, a full disk; one task each.

May import: `errors`, `model`, `watch.pressure`, `supervise.run` (for its type only), trio.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import trio

from supervisor.errors import KernelError
from supervisor.model.event import Pressure, Tick, Timeout
from supervisor.watch.pressure import Gauge, is_gone

if TYPE_CHECKING:
    from supervisor.supervise.run import Run

TICK = 10.0
"""Seconds between two `on_tick`, for policies that have one."""

MIN_CPU_WAIT = 0.01
"""Seconds; the last stretch before a CPU limit is not cut finer."""


def start(run: Run, nursery: trio.Nursery) -> None:
    """All that are for this run; they end with the nursery."""
    for timer in (_wall_time, _cpu_time, _ticks):
        nursery.start_soon(_guarded, run, partial(timer, run))
    if run.disk is not None:
        nursery.start_soon(_guarded, run, run.disk.follow)
    for gauge in run.gauges:
        nursery.start_soon(_guarded, run, partial(_follow_pressure, run, gauge))


async def _guarded(run: Run, timer: Callable[[], Awaitable[None]]) -> None:
    """A cgroup that vanished under a timer is told, and stops nobody."""
    try:
        await timer()
    except KernelError as error:
        run.warn(str(error))


async def _wall_time(run: Run) -> None:
    """A job that a person has paused is not the slower for it: its time stands still."""
    while True:
        limit = math.inf if run.spec.timeout is None else run.spec.timeout
        left = math.inf if run.freezing.paused else limit - run.freezing.elapsed()
        if not await _changed_within(run, max(left, 0.0)):
            await run.handle(Timeout(time.time(), "wall", limit))
            return


async def _changed_within(run: Run, seconds: float) -> bool:
    """Wait so long; True as soon as what the clocks rest on has changed."""
    with trio.move_on_after(seconds):
        await run.changed.wait()
        return True
    return False


async def _cpu_time(run: Run) -> None:
    """No polling: sleep for as long as the rest lasts at full speed, then look again."""
    while True:
        limit = run.spec.cpu_time
        rest = math.inf if limit is None else limit - (run.cgroup.usage().cpu or 0.0)
        if limit is not None and rest <= 0:
            await run.handle(Timeout(time.time(), "cpu", limit))
            return
        cpus = os.cpu_count() or 1
        fastest = min(run.limits.cpus or cpus, cpus)
        pause = math.inf if run.freezing.paused else max(rest / fastest, MIN_CPU_WAIT)
        await _changed_within(run, pause)


async def _ticks(run: Run) -> None:
    while run.shared.engine.wants("on_tick", run.spec):
        await trio.sleep(TICK)
        await run.handle(Tick(time.time()))


async def _follow_pressure(run: Run, gauge: Gauge) -> None:
    while True:
        await gauge.wait()
        try:
            share, stalled = run.cgroup.stalled(gauge.resource)
        except KernelError as error:
            if is_gone(error):
                return  # the subscription tells of it
            raise
        await run.handle(Pressure(time.time(), gauge.resource, share, stalled))
