"""shed-by-pressure: when the host runs short of memory, freeze or end the least important job."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal

import attrs

from supervisor.model import Action, Freeze, JobView, KillJob, Notify, Pressure, State, Thaw, Tick
from supervisor.policy.hookspec import Duration, hookimpl

LATELY = 10.0
"""Seconds for which a job counts as suffering after it was last told of, and in which one at most
is shed: the others are given that long to recover."""

MEMINFO = Path("/proc/meminfo")


@attrs.frozen
class Arguments:
    """Shed a job of priority `highest` or less while less than `available` percent are free.

    `pause`: how long one stays frozen, with `action` "freeze".
    """

    action: Literal["freeze", "kill", "notify"] = "freeze"
    available: float = attrs.field(
        default=10.0, validator=[attrs.validators.ge(0), attrs.validators.le(100)]
    )
    highest: int = 0
    pause: Duration = attrs.field(
        default=Duration("30s"), validator=attrs.validators.gt(Duration(0))
    )


class Policy:
    """Remembers who suffered lately, to spare all but the one of the lowest priority."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._lock = threading.Lock()
        self._suffering: dict[str, tuple[float, int]] = {}
        self._frozen: dict[str, float] = {}
        self._shed = float("-inf")

    @hookimpl
    def on_pressure(self, job: JobView, event: Pressure) -> Action | None:
        if event.resource != "memory" or job.state is not State.RUNNING:
            return None
        with self._lock:
            self._note(job, event.at)
            if not self._least(job) or event.at < self._shed + LATELY:
                return None
            free = _available()
            if free >= self._arguments.available and self._arguments.available < 100:
                return None
            self._shed = event.at
            del self._suffering[job.run]
            return self._do(job, event.at, f"{free:.0f}% of the host's memory are available")

    @hookimpl
    def on_tick(self, job: JobView, event: Tick) -> Action | None:
        with self._lock:
            since = self._frozen.get(job.run)
            if since is None or event.at < since + self._arguments.pause:
                return None
            del self._frozen[job.run]
        return Thaw() if job.state is State.FROZEN else None

    def _note(self, job: JobView, at: float) -> None:
        lately = {run: one for run, one in self._suffering.items() if one[0] > at - LATELY}
        self._suffering = {**lately, job.run: (at, job.spec.priority)}

    def _least(self, job: JobView) -> bool:
        """Whether it may be shed, and none that suffers as well matters less."""
        mine = job.spec.priority
        return mine <= self._arguments.highest and all(
            priority >= mine for _, priority in self._suffering.values()
        )

    def _do(self, job: JobView, at: float, why: str) -> Action:
        if self._arguments.action == "kill":
            return KillJob(why)
        if self._arguments.action == "notify":
            return Notify(f"{job.name} stands still for want of memory: {why}")
        self._frozen[job.run] = at
        return Freeze()


def _available() -> float:
    """Percent of the host's memory that could be had without swapping (proc_meminfo(5))."""
    lines = (line.split() for line in MEMINFO.read_text(encoding="ascii").splitlines())
    found = {words[0]: int(words[1]) for words in lines if len(words) > 1}
    return 100 * found["MemAvailable:"] / found["MemTotal:"]
