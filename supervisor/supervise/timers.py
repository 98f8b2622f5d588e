"""What a run waits for beside its cgroup: the clock, pressure, a full disk; one task each.

May import: `errors`, `model`, `watch.pressure`, `supervise.run` (for its type only), trio.
"""

from __future__ import annotations

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
    if run.spec.timeout is not None:
        await trio.sleep(run.spec.timeout)
        await run.handle(Timeout(time.time(), "wall", run.spec.timeout))


async def _cpu_time(run: Run) -> None:
    """No polling: sleep for as long as the rest lasts at full speed, then look again."""
    limit = run.spec.cpu_time
    if limit is None:
        return
    fastest = min(run.limits.cpus or os.cpu_count() or 1, os.cpu_count() or 1)
    while (rest := limit - (run.cgroup.usage().cpu or 0.0)) > 0:
        await trio.sleep(max(rest / fastest, MIN_CPU_WAIT))
    await run.handle(Timeout(time.time(), "cpu", limit))


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
