"""What becomes of a run's output: who copies it, who rotates its files, what of it is lost.

May import: everything above `front`.  Files that the job writes itself are looked at when they have
grown, and then again no sooner than they could have become too large; while nothing is written
nothing wakes.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from supervisor.errors import KernelError
from supervisor.linux import constants
from supervisor.model.record import OutputUse, Reason
from supervisor.model.units import size_text
from supervisor.supervise.output import Output
from supervisor.supervise.rotate import Rotation
from supervisor.supervise.storage import STREAMS, Storage

if TYPE_CHECKING:
    from supervisor.supervise.run import Run

SHORTEST, LONGEST = 0.01, 1.0
"""Seconds between two looks at a file that grows."""
HASTE = 4
"""How many times as fast as it was a file may grow, without getting larger than it should."""
LAST_LOOKS = 3
"""When the job has ended: a reader may be in the way of one."""
BLIND = 2.0
"""Seconds between two looks where inotify(7) is not to be had."""


class Flow:
    """The streams of one run."""

    def __init__(self, run: Run, storage: Storage) -> None:
        self._run = run
        self._storage = storage
        self.output: Output | None = None
        self._slave = -1
        self._rotations: dict[str, Rotation] = {}
        limit = run.spec.limits.output
        if run.container.terminal >= 0:
            self._take_terminal(run.container.terminal)
        if storage.pipes:
            self.output = Output(
                list(storage.pipes.values()), limit, full=self._full, trouble=run.warn
            )
        elif storage.rotation:
            self._open_rotations()

    def _take_terminal(self, master: int) -> None:
        """With its other side open here, too, it never looks as if nobody had it."""
        flags = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC
        self._slave = fcntl.ioctl(master, constants.TIOCGPTPEER, flags)
        self._storage.take_terminal(master)

    def _open_rotations(self) -> None:
        log, storage = self._run.spec.log, self._storage
        assert log.max_size is not None
        for stream in STREAMS:
            path = storage.log(stream)
            try:
                self._rotations[stream] = Rotation(
                    path, log.max_size, log.keep, storage.rotation, self._run.warn
                )
            except OSError as error:
                self._run.warn(f"{path} is not rotated: {error.strerror}")

    def _full(self) -> None:
        limit = self._run.limits.output
        assert limit is not None
        why = f"wrote more than {size_text(limit)} to stdout and stderr"
        self._run.stop(Reason.OUTPUT, "configuration", why, now=True)

    @property
    def idle(self) -> bool:
        """Whether it all goes past the supervisor."""
        return self.output is None and not self._rotations

    def hurry(self) -> None:
        """Nobody is waited for any more who does not read."""
        if self.output is not None:
            self.output.hurry()

    async def rotate(self) -> None:
        """Keep the files at their size, until cancelled."""
        async with trio.open_nursery() as nursery:
            for rotation in self._rotations.values():
                nursery.start_soon(self._follow, rotation)

    async def _follow(self, rotation: Rotation) -> None:
        pause, before = SHORTEST, rotation.end
        while True:
            waited = await self._grown(rotation)
            grown, before = rotation.end - before, rotation.end
            if waited > LONGEST:
                pause = SHORTEST
            room = rotation.max_size - rotation.size()
            pause = next_pause(pause, grown / max(waited + pause, SHORTEST), room)
            await trio.sleep(pause)

    async def _grown(self, rotation: Rotation) -> float:
        """Look at it, and wait until it has grown since: for how long, in seconds."""
        began = trio.current_time()
        try:
            with self._run.shared.growth.armed(str(rotation.path)) as alarm:
                await _look(rotation)  # with the alarm set: what is written from now on wakes
                await alarm.wait()
        except KernelError:
            await _look(rotation)
            await trio.sleep(BLIND)
        return trio.current_time() - began

    async def end(self) -> None:
        """The job is over: what it has written last arrives, and its files are made to fit."""
        if self.output is not None:
            await self.output.finish()
        for rotation in self._rotations.values():
            for _ in range(LAST_LOOKS):
                await _look(rotation)

    def tell(self) -> None:
        """What of the output is lost, and why."""
        for stream, (_, targets) in self._storage.pipes.items():
            for target in targets:
                if target.lost:
                    self._lost(stream, target.lost, target.why)
        for stream, rotation in self._rotations.items():
            if rotation.lost:
                self._lost(stream, rotation.lost, os.strerror(errno.ENOSPC))
        if self._storage.logged and (path := self._full_disk()):
            why = os.strerror(errno.ENOSPC)
            self._run.warn(f"{path}: {why}; what the job wrote may not all be there")

    def _lost(self, stream: str, count: int, why: str) -> None:
        self._run.emit("output_lost", stream=stream, bytes=count, why=why)

    def _full_disk(self) -> str:
        path = self._storage.log(STREAMS[0]).parent
        try:
            found = os.statvfs(path)
        except OSError:
            return ""  # somebody removed it: nothing that was written there is of use
        return str(path) if found.f_blocks and not found.f_bavail else ""

    def use(self) -> OutputUse:
        """For the record."""
        limit = self._run.limits.output
        if self.output is not None:
            return OutputUse(limit, self.output.written, self.output.lost)
        if self._rotations:
            lost = sum(rotation.lost for rotation in self._rotations.values())
            ends = sum(rotation.end for rotation in self._rotations.values())
            return OutputUse(limit, ends - lost, lost)
        written = self._storage.written()
        return OutputUse(limit, written, None if written is None else 0)

    def close(self) -> None:
        if self._slave >= 0:
            os.close(self._slave)
            self._slave = -1
        for rotation in self._rotations.values():
            rotation.close()


async def _look(rotation: Rotation) -> None:
    """Off the event loop, where there is something to do."""
    if rotation.size() > rotation.max_size:
        await trio.to_thread.run_sync(rotation.rotate)


def next_pause(last: float, rate: float, room: int) -> float:
    """Seconds for which a file that grew by `rate` bytes a second needs no look."""
    soon = max(room, 0) / (HASTE * rate) if rate > 0 else LONGEST
    return min(max(min(2 * last, soon), SHORTEST), LONGEST)


@asynccontextmanager
async def flowing(run: Run, storage: Storage) -> AsyncIterator[Flow]:
    """While the job runs its output is copied, and its log files are rotated."""
    flow = Flow(run, storage)
    try:
        if flow.idle:
            yield flow
            return
        async with trio.open_nursery() as nursery:
            if flow.output is not None:
                nursery.start_soon(flow.output.run)
            nursery.start_soon(flow.rotate)
            try:
                yield flow
            except BaseException:
                flow.hurry()
                raise
            nursery.cancel_scope.cancel()
    finally:
        flow.close()
