"""The watcher over an imagined cgroup: which wakes, which events, and none while all is quiet."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, evolve, field
from trio.testing import wait_all_tasks_blocked

from supervisor.cgroup.api import Counters, Notification
from supervisor.cgroup.fake import FakeJob, FakeManager
from supervisor.errors import KernelError
from supervisor.model.event import (
    CgroupGone,
    Event,
    MemoryLimit,
    OomKill,
    PidsLimit,
    Populated,
)
from supervisor.model.limits import Limits
from supervisor.watch.cgroup import Watcher, open_watcher
from supervisor.watch.kernel_log import KernelLog
from supervisor.watch.subscription import QUEUE, Subscription
from tests.unit.test_watch_log import Kernel

LIMITS = Limits(memory=1 << 20, pids=8)


@define(eq=False)
class Told(FakeJob):
    """A fake that notifies: its event files are real ones, so that inotify tells of them."""

    notes: tuple[Notification, ...] = ()
    failure: int = 0
    tried: int = 0
    others: int = 0
    while_trying: list[Callable[[], None]] = field(factory=list)

    @property
    def notifications(self) -> tuple[Notification, ...]:
        return self.notes

    def counters(self) -> Counters:
        if self.failure:
            raise KernelError("read", self.path, self.failure)
        return super().counters()

    def count(self, **changes: Any) -> None:
        self.counted = evolve(self.counted, **changes)

    def try_hold(self) -> bool:
        self.tried += 1
        if self.while_trying:
            self.while_trying.pop()()
        self.count(under_oom=self.holds)
        return self.holds

    def hold_others(self) -> None:
        self.others += 1

    def touch(self, name: str = "memory.events") -> None:
        """The kernel has changed a file."""
        path = next(n.path for n in self.notes if n.path.endswith(f"/{name}"))
        Path(path).write_text("changed")


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    one = Kernel()
    yield one
    one.close()


@pytest.fixture
async def watcher(kernel: Kernel) -> AsyncIterator[Watcher]:
    async with trio.open_nursery() as nursery, open_watcher(nursery, kernel.log) as one:
        yield one


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Told]:
    manager = FakeManager()

    def make(name: str = "run-1", files: tuple[str, ...] = ("memory.events",)) -> Told:
        (tmp_path / name).mkdir()
        notes = []
        for file in files:
            (tmp_path / name / file).touch()
            notes.append(Notification("inotify", str(tmp_path / name / file)))
        notes.append(Notification("kmsg", f"/k/{name}"))
        return Told(manager, name, limits=LIMITS, notes=tuple(notes))

    return make


async def next_event(subscription: Subscription) -> Event:
    with trio.fail_after(10):
        return await subscription.events.receive()


def nothing(subscription: Subscription) -> None:
    with pytest.raises(trio.WouldBlock):
        subscription.events.receive_nowait()


async def test_a_change_of_the_file_becomes_an_event(
    watcher: Watcher, job: Callable[..., Told]
) -> None:
    one, other = job(), job("run-2")
    mine = watcher.subscribe(one, LIMITS, held=False)
    theirs = watcher.subscribe(other, LIMITS, held=False)
    nothing(mine)
    one.count(oom=1, oom_kills=2, limit_hits=3)
    one.touch()
    first, second = await next_event(mine), await next_event(mine)
    assert isinstance(first, MemoryLimit)
    assert (first.limit, first.hits, first.held) == (1 << 20, 3, False)
    assert isinstance(second, OomKill)
    assert (second.new, second.total) == (2, 2)
    nothing(theirs)


async def test_what_happened_before_the_subscription_is_told(
    watcher: Watcher, job: Callable[..., Told]
) -> None:
    one = job()
    one.count(oom_kills=1)
    subscription = watcher.subscribe(one, LIMITS, held=False)
    assert isinstance(await next_event(subscription), OomKill)
    nothing(subscription)


async def test_page_cache_at_the_limit_is_no_event(
    watcher: Watcher, job: Callable[..., Told]
) -> None:
    one = job()
    subscription = watcher.subscribe(one, LIMITS, held=False)
    one.count(oom=0, limit_hits=15000)
    one.touch()
    await wait_all_tasks_blocked()
    nothing(subscription)


async def test_populated_and_refused(watcher: Watcher, job: Callable[..., Told]) -> None:
    one = job(files=("pids.events", "cgroup.events"))
    subscription = watcher.subscribe(one, LIMITS, held=False)
    assert (await next_event(subscription)).__class__ is Populated
    one.enter(1)
    one.touch("cgroup.events")
    event = await next_event(subscription)
    assert isinstance(event, Populated)
    assert event.populated
    one.count(refused=5)
    one.touch("pids.events")
    event = await next_event(subscription)
    assert isinstance(event, PidsLimit)
    assert (event.refused, event.limit) == (5, 8)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV])
async def test_a_cgroup_that_went_away_is_told_once(
    watcher: Watcher, job: Callable[..., Told], number: int
) -> None:
    one = job()
    subscription = watcher.subscribe(one, LIMITS, held=False)
    one.failure = number
    one.touch()
    event = await next_event(subscription)
    assert isinstance(event, CgroupGone)
    assert event.path == one.path
    subscription.recheck()
    one.touch()
    await wait_all_tasks_blocked()
    nothing(subscription)
    assert watcher.blind == ()


async def test_a_counter_that_cannot_be_read_is_admitted_and_tried_again(
    watcher: Watcher, job: Callable[..., Told]
) -> None:
    one = job()
    subscription = watcher.subscribe(one, LIMITS, held=False)
    one.count(oom_kills=1)
    one.failure = errno.EMFILE
    subscription.recheck()
    subscription.recheck()
    assert len(watcher.blind) == 1
    assert "Too many open files" in watcher.blind[0]
    one.failure = 0
    assert isinstance(await next_event(subscription), OomKill)


async def test_an_overflow_makes_everybody_look(
    watcher: Watcher, job: Callable[..., Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [job(f"run-{n}") for n in range(3)]
    subscriptions = [watcher.subscribe(one, LIMITS, held=False) for one in jobs]
    real = watcher._inotify.read
    monkeypatch.setattr(watcher._inotify, "read", lambda: (real() and set(), True))
    for one in jobs:
        one.count(oom_kills=1)
    jobs[0].touch()
    for subscription in subscriptions:
        assert isinstance(await next_event(subscription), OomKill)


async def test_a_slow_reader_loses_no_count(watcher: Watcher, job: Callable[..., Told]) -> None:
    one = job(files=("memory.events", "pids.events"))
    subscription = watcher.subscribe(one, LIMITS, held=False)
    rounds = QUEUE * 4
    for n in range(1, rounds + 1):
        one.count(oom_kills=n, refused=n)
        subscription.recheck()
        await wait_all_tasks_blocked()
    one.failure = errno.ENOENT
    subscription.recheck()
    events: list[Event] = []
    while not events or not isinstance(events[-1], CgroupGone):
        events.append(await next_event(subscription))
    assert len(events) < QUEUE + 8
    kills = [event for event in events if isinstance(event, OomKill)]
    assert sum(kill.new for kill in kills) == rounds == kills[-1].total
    refusals = [event.refused for event in events if isinstance(event, PidsLimit)]
    assert refusals[-1] == rounds
    assert refusals == sorted(refusals)


async def test_closing_ends_the_events_and_is_idempotent(
    watcher: Watcher, job: Callable[..., Told]
) -> None:
    one = job()
    before = len(os.listdir("/proc/self/fd"))
    subscription = watcher.subscribe(one, LIMITS, held=False)
    for n in range(QUEUE + 3):
        one.count(oom_kills=n + 1)
        subscription.recheck()
    subscription.close()
    subscription.close()
    one.touch()
    subscription.recheck()
    await wait_all_tasks_blocked()
    assert len([event async for event in subscription.events]) == QUEUE
    assert len(os.listdir("/proc/self/fd")) == before
    assert (watcher._by_watch, watcher._by_alarm, watcher._by_path) == ({}, {}, {})


async def test_nobody_listening_harms_nobody(watcher: Watcher, job: Callable[..., Told]) -> None:
    deaf, other = job(), job("run-2")
    unheard = watcher.subscribe(deaf, LIMITS, held=False)
    heard = watcher.subscribe(other, LIMITS, held=False)
    unheard.events.close()
    for one in (deaf, other):
        one.count(oom_kills=1)
        one.touch()
    assert isinstance(await next_event(heard), OomKill)


async def test_a_subscription_that_fails_leaves_nothing_registered(
    watcher: Watcher, job: Callable[..., Told], tmp_path: Path
) -> None:
    one = job()
    one.notes = (*one.notes, Notification("inotify", str(tmp_path / "missing")))
    with pytest.raises(KernelError, match="missing"):
        watcher.subscribe(one, LIMITS, held=False)
    one.notes = (*one.notes[:2], Notification("eventfd", "/missing/oom", "/missing/control"))
    with pytest.raises(KernelError, match="/missing/oom"):
        watcher.subscribe(one, LIMITS, held=False)
    assert (watcher._by_watch, watcher._by_path, watcher._all) == ({}, {}, {})


async def test_the_first_refused_fork_comes_by_the_log_and_then_the_count_is_read(
    watcher: Watcher, kernel: Kernel, job: Callable[..., Told], autojump_clock: trio.abc.Clock
) -> None:
    one = job(files=())
    subscription = watcher.subscribe(one, LIMITS, held=False)
    one.count(refused=1)
    await wait_all_tasks_blocked()
    nothing(subscription)
    kernel.say("cgroup: fork rejected by pids controller in /k/run-1")
    assert isinstance(await next_event(subscription), PidsLimit)
    for refused in (7, 8, 2000):  # the kernel says no more
        one.count(refused=refused)
        event = await next_event(subscription)
        assert isinstance(event, PidsLimit)
        assert event.refused == refused
    await trio.sleep(3600)
    nothing(subscription)
    one.count(refused=2001)
    assert isinstance(await next_event(subscription), PidsLimit)


async def test_a_refusal_whose_cgroup_was_torn_off_makes_everybody_look(
    watcher: Watcher, kernel: Kernel, job: Callable[..., Told]
) -> None:
    one = job(files=())
    subscription = watcher.subscribe(one, LIMITS, held=False)
    one.count(refused=1)
    kernel.say("cgroup: fork rejected by pids controller in ")
    assert isinstance(await next_event(subscription), PidsLimit)


@pytest.mark.parametrize("memcg", ["/k/run-1", "/k/run-1/inner"])
async def test_a_victim_in_the_log_makes_its_job_look(
    watcher: Watcher, kernel: Kernel, job: Callable[..., Told], memcg: str
) -> None:
    one = job(files=())
    subscription = watcher.subscribe(one, LIMITS, held=False)
    one.count(oom_kills=1)
    kernel.chose(7, memcg, None)
    assert isinstance(await next_event(subscription), OomKill)


async def test_a_kill_on_the_host_makes_everybody_look(
    watcher: Watcher, kernel: Kernel, job: Callable[..., Told]
) -> None:
    one = job(files=())
    subscription = watcher.subscribe(one, LIMITS, held=False)
    one.count(oom_kills=1)
    kernel.killed(7)  # in some memory cgroup: nobody here waits for an outcome
    await wait_all_tasks_blocked()
    nothing(subscription)
    kernel.say(
        "Out of memory: Killed process 7 (x) total-vm:1kB, anon-rss:1kB, file-rss:1kB, "
        "shmem-rss:1kB, UID:0 pgtables:1kB oom_score_adj:0"
    )
    assert isinstance(await next_event(subscription), OomKill)


async def test_a_job_is_frozen_at_the_trip_wire(watcher: Watcher, job: Callable[..., Told]) -> None:
    one = job()
    one.holds = True
    subscription = watcher.subscribe(one, LIMITS, held=True)
    one.count(oom=0, high=1)
    one.touch()
    event = await next_event(subscription)
    assert isinstance(event, MemoryLimit)
    assert event.held
    assert one.tried == 1
    one.count(high=2)  # another task on its way to the freezer
    subscription.recheck()
    await wait_all_tasks_blocked()
    nothing(subscription)
    one.count(under_oom=False)
    subscription.update(Limits(memory=2 << 20), held=True)
    one.count(high=3)
    subscription.recheck()
    event = await next_event(subscription)
    assert isinstance(event, MemoryLimit)
    assert (event.limit, one.tried) == (2 << 20, 2)


async def test_when_somebody_sleeps_at_v1s_limit_the_others_are_held_before_it_is_told(
    watcher: Watcher, job: Callable[..., Told]
) -> None:
    one = job()
    one.used = evolve(one.used, memory=LIMITS.memory)
    subscription = watcher.subscribe(one, LIMITS, held=True)
    one.count(limit_hits=1, under_oom=True)
    subscription.alarm()
    assert isinstance(await next_event(subscription), MemoryLimit)
    assert one.others == 1
    one.count(limit_hits=2)
    subscription.recheck()
    assert one.others == 1
    unheld = job("run-2")
    subscription = watcher.subscribe(unheld, LIMITS, held=False)
    unheld.count(limit_hits=1, under_oom=True)  # as it is for the moment of an OOM kill
    subscription.alarm()
    assert isinstance(await next_event(subscription), MemoryLimit)
    assert unheld.others == 0


async def until_tried(one: Told, times: int) -> None:
    with trio.fail_after(30):
        while one.tried < times:
            await trio.sleep(0.001)


async def test_a_job_that_the_kernel_finds_room_for_is_told_of_to_nobody(
    watcher: Watcher, job: Callable[..., Told]
) -> None:
    one = job()
    subscription = watcher.subscribe(one, LIMITS, held=True)
    for high in (1, 2):
        one.count(oom=0, high=high)
        subscription.recheck()
        await until_tried(one, high)
    nothing(subscription)


async def test_a_wire_crossed_while_a_hold_is_tried_is_tried_again(
    watcher: Watcher, job: Callable[..., Told]
) -> None:
    one = job()
    subscription = watcher.subscribe(one, LIMITS, held=True)

    def meanwhile() -> None:
        one.count(high=2)
        one.holds = True
        trio.from_thread.run_sync(subscription.recheck)

    one.while_trying.append(meanwhile)
    one.count(oom=0, high=1)
    subscription.recheck()
    assert isinstance(await next_event(subscription), MemoryLimit)


async def test_a_hold_that_fails_is_told_and_tried_again(
    watcher: Watcher, job: Callable[..., Told]
) -> None:
    one = job()
    one.holds = True
    subscription = watcher.subscribe(one, LIMITS, held=True)

    def fail() -> None:
        raise KernelError("write", one.path, errno.EMFILE)

    one.while_trying.append(fail)
    one.count(oom=0, high=1)
    subscription.recheck()
    assert isinstance(await next_event(subscription), MemoryLimit)
    assert one.tried == 2
    assert any(os.strerror(errno.EMFILE) in text for text in watcher.blind)


async def test_the_end_of_a_job_while_a_hold_is_tried_is_quiet(
    watcher: Watcher, job: Callable[..., Told]
) -> None:
    one = job()
    subscription = watcher.subscribe(one, LIMITS, held=True)

    def end() -> None:
        trio.from_thread.run_sync(subscription.close)
        raise KernelError("write", one.path, errno.ENOENT)

    one.while_trying.append(end)
    one.count(oom=0, high=1)
    subscription.recheck()
    assert [event async for event in subscription.events] == []
    assert one.tried == 1


class Wakes(trio.abc.Instrument):
    """Counts the steps that any task takes."""

    def __init__(self) -> None:
        self.steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1


async def test_a_thousand_idle_jobs_cost_no_wake_up(
    watcher: Watcher, job: Callable[..., Told], autojump_clock: trio.abc.Clock
) -> None:
    for n in range(1000):
        watcher.subscribe(job(f"run-{n}"), LIMITS, held=False)
    await wait_all_tasks_blocked()
    wakes = Wakes()
    trio.lowlevel.add_instrument(wakes)
    await trio.sleep(24 * 3600)
    trio.lowlevel.remove_instrument(wakes)
    assert wakes.steps <= 2  # this task's own, and the clock's that jumps


async def test_what_cannot_be_seen_is_said(tmp_path: Path) -> None:
    log = KernelLog.open(str(tmp_path / "kmsg"))
    async with trio.open_nursery() as nursery, open_watcher(nursery, log) as watcher:
        assert len(watcher.blind) == 1
        assert "refused forks" in watcher.blind[0]
        assert "No such file" in watcher.blind[0]


async def test_an_error_in_the_block_comes_out_bare() -> None:
    async def use(nursery: trio.Nursery) -> None:
        async with open_watcher(nursery, KernelLog(None, "none")) as watcher:
            watcher.subscribe(FakeJob(FakeManager(), "run-1"), LIMITS, held=False)
            raise LookupError("mine")

    async with trio.open_nursery() as nursery:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(LookupError, match="mine"):
            await use(nursery)
        assert len(os.listdir("/proc/self/fd")) == before


async def test_whether_a_limit_announced_an_oom_is_remembered(
    watcher: Watcher, tmp_path: Path
) -> None:
    """The end asks, long after the alarm was taken; where none is watched there is no answer."""
    for name in ("memory.oom_control", "cgroup.event_control"):
        (tmp_path / name).write_text("")
    control = str(tmp_path / "cgroup.event_control")
    note = Notification("eventfd", str(tmp_path / "memory.oom_control"), control)
    one = watcher.subscribe(Told(FakeManager(), "run-1", notes=(note,)), LIMITS, held=False)
    assert one.announced is False
    os.eventfd_write(one.alarms[0], 1)
    await wait_all_tasks_blocked()
    one.close()
    assert one.announced is True
    two = watcher.subscribe(Told(FakeManager(), "run-2"), LIMITS, held=False)
    assert two.announced is None
