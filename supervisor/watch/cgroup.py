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

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Protocol

import trio

from supervisor.cgroup.api import JobCgroup, Notification
from supervisor.linux.inotify import Inotify
from supervisor.linux.kmsg import CallFiltered, ForkRejected, OomVictim, Record
from supervisor.model.limits import Limits
from supervisor.watch.alarms import Alarms
from supervisor.watch.kernel_log import KernelLog
from supervisor.watch.subscription import Subscription


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

    def take_alarms(self, subscription: Subscription) -> bool:
        """Whether an alarm of this one went off that nobody has seen yet."""
        return any(self._alarms.take(alarm) for alarm in subscription.alarms)

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
                subscription.alarm()

    def _on_record(self, record: Record) -> None:
        """Any OOM may settle those that are being waited for; one on the host may be anybody's."""
        if isinstance(record, CallFiltered):
            return  # it moves no counter
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
