"""One job's cgroup as it is watched: what is known of it, and what has been told.

May import: `errors`, `model`, `cgroup.api`, trio.  It never waits for the kernel itself: `cgroup`
says when to look; only after trouble has been announced does it look again by the clock.
"""

from __future__ import annotations

import errno
import mmap
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio
from attrs import evolve

from supervisor.cgroup.api import JobCgroup
from supervisor.errors import KernelError
from supervisor.model.event import CgroupGone, Event, MemoryLimit
from supervisor.model.limits import Limits
from supervisor.watch.changes import (
    Known,
    Reading,
    further_events,
    limit_reached,
    merge,
    wire_crossed,
)

QUEUE = 16
"""Events a subscriber may lag behind before those of one kind are merged into one."""

OOM_DELAYS = tuple(0.001 * 2**n for n in range(10))
"""Seconds, about one in all: v1's alarm comes before the kill, and the kill before its count."""

PIDS_DELAYS = tuple(min(0.05 * 2**n, 5.0) for n in range(8))
"""Seconds; the last one is repeated while the job lives: v1 tells of the first refusal only."""

RETRY = 0.5
"""Seconds until a hold that failed, for want of descriptors say, is tried again."""

NEAR = 8
"""A job uses this fraction less than its limit, or more, when it sleeps there."""

_GONE = (errno.ENOENT, errno.ENODEV)


class Host(Protocol):
    """What a subscription asks of the watcher that made it."""

    def forget(self, subscription: Subscription) -> None:
        """Unregister all that was registered for it.  Idempotent."""

    def take_alarms(self, subscription: Subscription) -> bool:
        """Whether an alarm of this one went off that nobody has seen yet."""

    def start(
        self, task: Callable[[trio.CancelScope], Awaitable[None]], scope: trio.CancelScope
    ) -> None:
        """Run a task, which ends when `scope` is cancelled."""

    def trouble(self, text: str) -> None:
        """A counter could not be read although its cgroup is there."""


class Subscription:
    """Made by `Watcher.subscribe`.

    `events` ends after `close`.  A slow reader loses nothing: what waits is merged, kind by kind.
    """

    def __init__(self, watcher: Host, cgroup: JobCgroup, limits: Limits, *, held: bool) -> None:
        self._watcher = watcher
        self._cgroup = cgroup
        self._limits = limits
        self._held = held
        self._known = Known()
        self._gone = False
        self._alarmed = False
        self._announced = False
        self._send, self.events = trio.open_memory_channel[Event](QUEUE)
        self._pending: dict[type, Event] = {}
        self._sending: trio.CancelScope | None = None
        self._oom_watch: trio.CancelScope | None = None
        self._pids_watch: trio.CancelScope | None = None
        self._at_wire = False
        self._crossed = False
        self.notifications = cgroup.notifications
        self.watches: list[int] = []
        self.alarms: list[int] = []
        tells = {n.path.rpartition("/")[2] for n in self.notifications if n.kind == "inotify"}
        self._tells_populated = "cgroup.events" in tells
        self._tells_refusals = "pids.events" in tells

    @property
    def in_oom(self) -> bool:
        """Whether the kernel announced an OOM whose outcome is not known yet."""
        return self._oom_watch is not None

    @property
    def announced(self) -> bool | None:
        """Whether v1 ever told of an OOM at the job's limit or at one above; None: not watched.

        mm/memcontrol-v1.c, mem_cgroup_oom_notify: everybody below the limit is told before the
        kill.  Of the host's own want of memory the controller tells nobody.
        """
        watched = any(note.kind == "eventfd" for note in self.notifications)
        return self._announced if watched else None

    def update(self, limits: Limits, *, held: bool) -> None:
        """The limits have changed, or whether tasks are held at the one of memory.

        What was told of the old memory limit says nothing of a new one: it can be reached at once,
        before anybody has looked, or be slept at although there is room (`_rouse`).  Likewise of
        the one of swap, since v1 limits both together.
        """
        old = self._limits
        raised = held and (limits.memory, limits.swap) != (old.memory, old.swap)
        self._limits = limits
        self._held = held
        if raised and not self._gone:
            self._known = self._known.rearmed()
            self._watch_oom()

    def alarm(self) -> None:
        """v1's memory alarm went off."""
        self._alarmed = True
        self.recheck()

    def recheck(self) -> None:
        """Read the counters and send what has changed.  Never blocks, never raises."""
        if not self._gone:
            self._try(self._check)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except KernelError as error:
            self._failed(error)

    def close(self) -> None:
        """Unregister everything and end `events`.  Idempotent; before the cgroup is removed."""
        self._gone = True
        self._watcher.forget(self)
        self._stop_watching()
        if self._sending:
            self._sending.cancel()
        self._send.close()

    def _check(self) -> None:
        now = self._read()
        if self._asleep_below(now):
            now = evolve(now, counters=evolve(now.counters, under_oom=False))
        crossed = wire_crossed(self._known, now, held=self._held)
        reached = limit_reached(self._known, now, held=self._held)
        if reached and self._held and now.counters.under_oom:
            self._cgroup.hold_others()
        at = time.time()
        events = further_events(self._known, now, self._limits, at)
        if reached and self._limits.memory is not None:
            events.insert(0, self._memory_limit(now, at, self._limits.memory))
        self._known = self._known.after(now, told=reached, held=self._held)
        for event in events:
            self._emit(event)
        if crossed:
            self._stop_at_wire()
        if now.alarmed:
            self._watch_oom()
        if now.counters.refused and not self._tells_refusals and self._pids_watch is None:
            self._watch_refusals()

    def _asleep_below(self, now: Reading) -> bool:
        """Whether tasks of v1 are said to sleep at a limit that has been raised above them.

        They are about to wake; one that went to sleep in the middle of the raise is not, see
        `_rouse`.
        """
        limit = self._limits.memory
        if not self._held or limit is None or not now.counters.under_oom:
            return False
        usage = self._cgroup.usage().memory
        return now.counters.oom is None and usage is not None and usage < limit - limit // NEAR

    def _rouse(self) -> None:
        """Wake who sleeps below the limit: the kernel does it for whoever raises it, by a page.

        A task that failed to be charged just before a raise and sleeps just after it would never
        hear of it (mem_cgroup_oom_synchronize, mm/memcontrol-v1.c).
        """
        limit = self._limits.memory
        if limit is not None and self._asleep_below(self._read()):
            self._cgroup.change("memory", limit + mmap.PAGESIZE)
            self._cgroup.change("memory", limit)

    def _read(self) -> Reading:
        """The kernel sets off the alarm before it kills.

        So whoever finds a kill counted finds the alarm as well, whatever woke him, and tells of
        the limit first; and the hits are those read after the alarm.
        """
        populated = self._cgroup.populated() if self._tells_populated else None
        counters = self._cgroup.counters()
        if self._watcher.take_alarms(self) or self._alarmed:
            counters = self._cgroup.counters()
            self._alarmed = False
            self._announced = True
            return Reading(counters, populated, alarmed=True)
        return Reading(counters, populated)

    def _stop_at_wire(self) -> None:
        self._crossed = True
        if not self._at_wire:
            self._at_wire = True
            self._watcher.start(self._while_beyond_wire, trio.CancelScope())

    async def _while_beyond_wire(self, scope: trio.CancelScope) -> None:
        """Hold the job at v2's trip wire if it has to be; again if it was crossed meanwhile.

        In a thread, because the kernel may have to write to swap or disk before it can tell.
        """
        with scope:
            while self._crossed and not self._gone:
                self._crossed = False
                try:
                    await trio.to_thread.run_sync(self._cgroup.try_hold)
                except KernelError as error:
                    if not self._gone:
                        self._failed(error)
                        await trio.sleep(RETRY)
                    self._crossed = True
                self.recheck()
        self._at_wire = False

    def _memory_limit(self, now: Reading, at: float, limit: int) -> MemoryLimit:
        usage = self._cgroup.usage().memory
        counters = now.counters
        hits = counters.limit_hits
        return MemoryLimit(at, limit if usage is None else usage, limit, hits, counters.under_oom)

    def _failed(self, error: KernelError) -> None:
        if error.errno in _GONE:
            self._gone = True
            self._watcher.forget(self)
            self._stop_watching()
            self._emit(CgroupGone(time.time(), self._cgroup.path))
            return
        # too many open files, say: told once, and tried again for a while
        self._watcher.trouble(str(error))
        if self._oom_watch is None:
            self._watch_oom()

    def _emit(self, event: Event) -> None:
        kind = type(event)
        merged = merge(self._pending.pop(kind, None), event)
        self._pending[kind] = merged
        if self._sending is None:
            self._offer()

    def _offer(self) -> None:
        """Hand over what waits; what does not fit is left to a task that waits for room."""
        try:
            while self._pending:
                kind = next(iter(self._pending))
                self._send.send_nowait(self._pending[kind])
                del self._pending[kind]
        except trio.WouldBlock:
            self._sending = trio.CancelScope()
            self._watcher.start(self._hand_over, self._sending)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._pending.clear()  # nobody listens any more

    async def _hand_over(self, scope: trio.CancelScope) -> None:
        with scope:
            try:
                while self._pending:
                    # what comes meanwhile may not be merged into an event that is being taken
                    await self._send.send(self._pending.pop(next(iter(self._pending))))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._pending.clear()
        self._sending = None

    def _watch_oom(self) -> None:
        if self._oom_watch:
            self._oom_watch.cancel()
        self._oom_watch = trio.CancelScope()
        self._watcher.start(self._until_settled, self._oom_watch)

    async def _until_settled(self, scope: trio.CancelScope) -> None:
        """Until the kill is counted or the job sleeps at its limit; for a second at most."""
        kills = self._known.counters.oom_kills
        with scope:
            for delay in OOM_DELAYS:
                await trio.sleep(delay)
                self.recheck()
                now = self._known.counters
                if self._gone or now.oom_kills > kills or (self._held and now.under_oom):
                    break
            else:
                self._try(self._rouse)
        if self._oom_watch is scope:
            self._oom_watch = None

    def _watch_refusals(self) -> None:
        self._pids_watch = trio.CancelScope()
        self._watcher.start(self._while_refused, self._pids_watch)

    async def _while_refused(self, scope: trio.CancelScope) -> None:
        with scope:
            for delay in PIDS_DELAYS:
                await trio.sleep(delay)
                self.recheck()
            while not self._gone:
                await trio.sleep(PIDS_DELAYS[-1])
                self.recheck()

    def _stop_watching(self) -> None:
        for scope in (self._oom_watch, self._pids_watch):
            if scope:
                scope.cancel()
