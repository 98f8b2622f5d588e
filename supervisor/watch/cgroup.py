"""What the kernel tells of the jobs' cgroups, as one stream of events per job.

May import: `errors`, `model`, `linux`, `cgroup.api`, trio.  Who waits for what:

    inotify task    the inotify descriptor             v2's event files, cgroup.events of hybrids
    alarm task      one epoll of every eventfd         v1's memory.oom_control
    log task        /dev/kmsg                          v1's first refused fork, any OOM
    look-again      per job, bounded or growing delays, only after the kernel has told of trouble

While nothing happens the first three sleep and the fourth does not exist.  Every wake-up is a
hint: the counters are read again, and what they say against the last time is sent.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Protocol

import trio

from supervisor.cgroup.api import JobCgroup, Notification
from supervisor.errors import KernelError
from supervisor.linux.inotify import Inotify
from supervisor.linux.kmsg import ForkRejected, OomVictim, Record
from supervisor.model.event import CgroupGone, Event, MemoryLimit
from supervisor.model.limits import Limits
from supervisor.watch.alarms import Alarms
from supervisor.watch.changes import (
    Known,
    Reading,
    further_events,
    limit_reached,
    merge,
    wire_crossed,
)
from supervisor.watch.kernel_log import KernelLog

QUEUE = 16
"""Events a subscriber may lag behind before those of one kind are merged into one."""

OOM_DELAYS = tuple(0.001 * 2**n for n in range(10))
"""Seconds, about one in all: v1's alarm comes before the kill, and the kill before its count."""

PIDS_DELAYS = tuple(min(0.05 * 2**n, 5.0) for n in range(8))
"""Seconds; the last one is repeated while the job lives: v1 tells of the first refusal only."""

_GONE = (errno.ENOENT, errno.ENODEV)


class Subscription:
    """One job's cgroup as it is watched; made by `Watcher.subscribe`.

    `events` ends after `close`.  A slow reader loses nothing: what waits is merged, kind by kind.
    """

    def __init__(self, watcher: Watcher, cgroup: JobCgroup, limits: Limits, *, held: bool) -> None:
        self._watcher = watcher
        self._cgroup = cgroup
        self._limits = limits
        self._held = held
        self._known = Known()
        self._gone = False
        self._send, self.events = trio.open_memory_channel[Event](QUEUE)
        self._pending: dict[type, Event] = {}
        self._sending: trio.CancelScope | None = None
        self._oom_watch: trio.CancelScope | None = None
        self._pids_watch: trio.CancelScope | None = None
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

    def update(self, limits: Limits, *, held: bool) -> None:
        """The limits have changed, or whether tasks are held at the one of memory."""
        self._limits = limits
        self._held = held

    def recheck(self, *, alarmed: bool = False) -> None:
        """Read the counters and send what has changed.  Never blocks, never raises."""
        if self._gone:
            return
        try:
            self._check(alarmed)
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

    def _check(self, alarmed: bool) -> None:
        now = self._read(alarmed)
        frozen = False
        if wire_crossed(self._known, now, held=self._held):
            now = self._freeze(alarmed)
            frozen = now.counters.under_oom
        reached = frozen or limit_reached(self._known, now, held=self._held)
        at = time.time()
        events = further_events(self._known, now, self._limits, at)
        if reached and self._limits.memory is not None:
            events.insert(0, self._memory_limit(now, at, self._limits.memory))
        self._known = self._known.after(now)
        for event in events:
            self._emit(event)
        if alarmed:
            self._watch_oom()
        if now.counters.refused and not self._tells_refusals and self._pids_watch is None:
            self._watch_refusals()

    def _read(self, alarmed: bool) -> Reading:
        populated = self._cgroup.populated() if self._tells_populated else None
        return Reading(self._cgroup.counters(), populated, alarmed)

    def _freeze(self, alarmed: bool) -> Reading:
        """Hold the job at v2's trip wire.  Undone where the cgroup says it is not armed."""
        self._cgroup.freeze()
        now = self._read(alarmed)
        if not now.counters.under_oom:
            self._cgroup.thaw()
        return now

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


class _Source(Protocol):
    def fileno(self) -> int: ...


class Watcher:
    """Wakes the subscriptions; made by `open_watcher`.  `log` stays its owner's."""

    def __init__(self, log: KernelLog) -> None:
        """Raises KernelError where there is no inotify instance to be had."""
        self._inotify = Inotify()
        self._alarms = Alarms()
        self._log = log
        self._all: dict[Subscription, None] = {}
        self._by_watch: dict[int, set[Subscription]] = {}
        self._by_alarm: dict[int, Subscription] = {}
        self._by_path: dict[str, set[Subscription]] = {}
        self._troubles: deque[str] = deque(maxlen=16)
        self._nursery: trio.Nursery
        log.listener = self._on_record

    async def run(
        self, *, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Wait for the kernel until the scope that is handed out is cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._wait, self._inotify, self._on_inotify)
                self._nursery.start_soon(self._wait, self._alarms, self._on_alarm)
                self._nursery.start_soon(self._wait, self._log, self._log.drain)
                task_status.started(self._nursery.cancel_scope)
        finally:
            for subscription in list(self._all):
                subscription.close()
            self._log.listener = None
            self._inotify.close()
            self._alarms.close()

    async def _wait(self, source: _Source, act: Callable[[], None]) -> None:
        while source.fileno() >= 0:
            await trio.lowlevel.wait_readable(source.fileno())
            act()

    @property
    def blind(self) -> tuple[str, ...]:
        """What cannot be seen here, and why; empty where everything can."""
        lines = []
        if self._log.why:
            lines.append(
                "victims' names, and on cgroup v1 refused forks before the job ends: "
                + self._log.why
            )
        return (*lines, *self._troubles)

    def subscribe(self, cgroup: JobCgroup, limits: Limits, *, held: bool) -> Subscription:
        """Watch a cgroup, best before its first process; what has happened already is sent.

        Raises KernelError: the cgroup is gone, or the user has too many inotify watches.
        """
        subscription = Subscription(self, cgroup, limits, held=held)
        self._all[subscription] = None
        try:
            for note in subscription.notifications:
                self._register(subscription, note)
        except BaseException:
            subscription.close()
            raise
        subscription.recheck()
        return subscription

    def _register(self, subscription: Subscription, note: Notification) -> None:
        if note.kind == "inotify":
            wd = self._inotify.add(note.path)
            self._by_watch.setdefault(wd, set()).add(subscription)
            subscription.watches.append(wd)
        elif note.kind == "eventfd":
            alarm = self._alarms.add(note.path, note.control)
            self._by_alarm[alarm] = subscription
            subscription.alarms.append(alarm)
        else:
            self._by_path.setdefault(note.path, set()).add(subscription)

    def forget(self, subscription: Subscription) -> None:
        """Unregister all that `subscribe` registered.  Idempotent."""
        self._all.pop(subscription, None)
        while subscription.watches:
            wd = subscription.watches.pop()
            those = self._by_watch.get(wd, set())
            those.discard(subscription)
            if not those and self._by_watch.pop(wd, None) is not None:
                self._inotify.remove(wd)
        while subscription.alarms:
            alarm = subscription.alarms.pop()
            del self._by_alarm[alarm]
            self._alarms.remove(alarm)
        for note in subscription.notifications:
            those = self._by_path.get(note.path, set())
            those.discard(subscription)
            if not those:
                self._by_path.pop(note.path, None)

    def start(
        self, task: Callable[[trio.CancelScope], Awaitable[None]], scope: trio.CancelScope
    ) -> None:
        """Run a subscription's task, which ends when `scope` is cancelled."""
        self._nursery.start_soon(task, scope)

    def trouble(self, text: str) -> None:
        """A counter could not be read although its cgroup is there."""
        if text not in self._troubles:
            self._troubles.append(text)

    def _on_inotify(self) -> None:
        found, overflow = self._inotify.read()
        if overflow:
            _recheck(self._all)
        else:
            for wd in found:
                _recheck(self._by_watch.get(wd, ()))

    def _on_alarm(self) -> None:
        for alarm in self._alarms.read():
            if subscription := self._by_alarm.get(alarm):
                subscription.recheck(alarmed=True)

    def _on_record(self, record: Record) -> None:
        """Any OOM may settle those that are being waited for; one on the host may be anybody's."""
        if isinstance(record, ForkRejected):
            _recheck(self._named(record.cgroup) if record.cgroup else self._all)
        elif isinstance(record, OomVictim):
            _recheck(self._named(record.memcg or ""))
        elif record.in_memcg:
            _recheck([one for one in self._all if one.in_oom])
        else:
            _recheck(self._all)

    def _named(self, path: str) -> list[Subscription]:
        """Whose cgroup this is or is below."""
        found: list[Subscription] = []
        while path:
            found += self._by_path.get(path, ())
            path = path.rpartition("/")[0]
        return found


def _recheck(subscriptions: Iterable[Subscription]) -> None:
    for subscription in list(subscriptions):
        subscription.recheck()


@asynccontextmanager
async def open_watcher(nursery: trio.Nursery, log: KernelLog) -> AsyncIterator[Watcher]:
    """A watcher whose tasks run in `nursery` as long as the block does.

    Raises KernelError where there is no inotify instance to be had.
    """
    watcher = Watcher(log)
    ended = trio.Event()

    async def run(task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        try:
            await watcher.run(task_status=task_status)
        finally:
            ended.set()

    scope = await nursery.start(run)
    try:
        yield watcher
    finally:
        scope.cancel()
        with trio.CancelScope(shield=True):
            await ended.wait()
