"""Run directories and log files of runs that ended long ago, removed where that is asked for.

When the instance begins and when runs have ended, some at a time, in a worker thread.  A run that
goes on is never touched, nor, unless they are asked for, are runs that hold what somebody kept: a
layer (`keep`) or results (`copy_out`).

May import: `errors`, `model`, `record`, `supervise`, trio.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import trio
from attrs import frozen

from supervisor.record.runs import Bounds, StateDir, safe_name
from supervisor.supervise.shared import Log
from supervisor.supervise.storage import remove_tree

STEP = 50
"""Runs that are removed before it is seen whether the instance is about to end."""
PAUSE = 10.0
"""Seconds from one look to the next, at least."""
KEPT = ("upper", "out")


@frozen
class Left:
    """A run's directory: when it was last written to (Unix time), and whether it has what was kept.

    The exit record is written last: its time is that of the end.
    """

    run: str
    ended: float
    kept: bool


@frozen
class Rule:
    """What is to stay; `layers`: whether the bounds are also for what was kept."""

    bounds: Bounds
    layers: bool = False

    @property
    def asks(self) -> bool:
        """Whether anything is ever to be removed."""
        return self.bounds != Bounds()

    def surplus(self, found: Iterable[Left], now: float) -> list[str]:
        """The runs to remove, the oldest first.  Those that are kept anyway count for nothing."""
        mine = [one for one in found if self.layers or not one.kept]
        mine.sort(key=lambda one: (one.ended, one.run), reverse=True)
        keep, most = self.bounds.keep, self.bounds.runs
        return [
            one.run
            for number, one in reversed(list(enumerate(mine)))
            if (most is not None and number >= most)
            or (keep is not None and one.ended < now - keep)
        ]


def listed(state: StateDir) -> list[Left]:
    """The runs whose directories are there.  Raises OSError."""
    found = []
    with os.scandir(state.runs) as there:
        for one in there:
            try:
                if not one.is_dir(follow_symlinks=False):
                    continue
                ended = max(
                    one.stat(follow_symlinks=False).st_mtime, _time_of(state.exit(one.name))
                )
            except FileNotFoundError:
                continue
            kept = any((Path(one.path) / name).is_dir() for name in KEPT)
            found.append(Left(one.name, ended, kept))
    return found


def _time_of(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


def remove(state: StateDir, runs: Sequence[str]) -> list[str]:
    """Remove directories and logs; what could not be, in words.

    The logs go first: while the directory is there the run is found again.
    """
    problems = []
    logs = os.listdir(state.logs)
    for run in runs:
        stamp, _, job = run.partition("-")
        stem = f"{safe_name(job)}.{stamp}."
        try:
            for name in logs:
                if name.startswith(stem):
                    (state.logs / name).unlink(missing_ok=True)
            remove_tree(state.runs / run)
        except OSError as error:
            where = error.filename if error.filename is not None else state.runs / run
            problems.append(f"cannot remove what is left of run {run}: {where}: {error.strerror}")
    return problems


class Sweeper:
    """Removes what an instance is not to keep.  `running`: the ids of its runs that go on."""

    def __init__(
        self, state: StateDir, rule: Rule, running: Callable[[], Iterable[str]], log: Log
    ) -> None:
        self._state = state
        self._rule = rule
        self._running = running
        self._log = log
        self._due = trio.Event()
        self._due.set()
        self._told: set[str] = set()

    def __call__(self, entry: Mapping[str, Any]) -> None:
        """The event log's subscriber."""
        if entry["event"] == "job_ended":
            self._due.set()

    async def run(self) -> None:
        """Until cancelled."""
        while self._rule.asks:
            await self._due.wait()
            self._due = trio.Event()
            await self.sweep()
            await trio.sleep(PAUSE)

    async def sweep(self) -> None:
        """Remove all that is due now."""
        try:
            found = await trio.to_thread.run_sync(listed, self._state)
        except OSError as error:
            self._tell([f"cannot look at {self._state.runs}: {error.strerror}"])
            return
        # Asked after the look: a run that was seen is one of these, or has ended.
        running = set(self._running())
        surplus = self._rule.surplus([one for one in found if one.run not in running], time.time())
        for at in range(0, len(surplus), STEP):
            some = surplus[at : at + STEP]
            self._tell(await trio.to_thread.run_sync(remove, self._state, some))

    def _tell(self, problems: Iterable[str]) -> None:
        """Each once: what cannot be removed now cannot be after the next run either."""
        for text in problems:
            if text not in self._told:
                self._told.add(text)
                self._log.emit("cleanup_failed", text=text)
