"""How a layer that fills up is told of: with a layer and a run that are values."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
import trio.testing

from supervisor.container.disk import Space, Usage, Way
from supervisor.container.layers import Layers
from supervisor.errors import KernelError
from supervisor.linux import fanotify
from supervisor.model import DiskLimit
from supervisor.supervise import disk
from supervisor.supervise.disk import Disk

MIB = 1 << 20


class FakeSpace:
    """A layer of 64 MiB and 1000 inodes in which there is what `used` and `inodes` say."""

    way: Way = "loop"
    layers = Layers(None)
    mounted: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.limit = 64 * MIB
        self.used = self.inodes = 0
        self.why = ""
        self.closed = False

    def enter(self, root: int) -> None:
        return

    def usage(self) -> Usage:
        return Usage(self.used, self.limit, self.inodes, 1000)

    def grow(self, to: int) -> None:
        if to > 256 * MIB:
            raise KernelError("grow", "/dev/loop7", errno.ENOSPC)
        self.limit = to

    def trouble(self) -> str:
        return self.why

    def close(self) -> None:
        self.closed = True


class FakeRun:
    """What a layer asks of its run."""

    def __init__(self) -> None:
        self.told: list[tuple[bool, str]] = []
        self.warnings: list[str] = []
        self.heard = trio.Event()

    async def handle(self, event: DiskLimit) -> None:
        self.told.append((event.full, event.scarce))
        self.heard.set()

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def made(*, wanted: bool = True) -> tuple[Disk, FakeSpace, FakeRun]:
    space: Any = FakeSpace()
    run: Any = FakeRun()
    assert_space(space)
    return Disk(run, space, wanted=wanted), space, run


def assert_space(space: Space) -> None:
    """mypy's: the fake has all that a layer has."""


async def test_it_is_told_when_nearly_full_and_when_full_once_each() -> None:
    found, space, run = made()
    for used in (0, 40, 49, 50, 63, 63, 64):
        space.used = used * MIB
        await found.look()
    assert run.told == [(False, "bytes"), (True, "bytes")]
    assert found.full and found.peak == 64 * MIB


async def test_where_nobody_can_raise_it_only_the_full_one_is_told() -> None:
    found, space, run = made(wanted=False)
    for used in (49, 60, 64):
        space.used = used * MIB
        await found.look()
    assert run.told == [(True, "bytes")]


async def test_from_empty_to_full_in_one_step_is_one_event() -> None:
    found, space, run = made()
    space.inodes = 1000
    await found.look()
    assert run.told == [(True, "inodes")]


async def test_it_is_told_again_when_it_has_been_emptied_or_raised() -> None:
    found, space, run = made()
    for used in (63, 0, 63, 60, 63):
        space.used = used * MIB
        await found.look()
    assert run.told == [(True, "bytes")] * 2, "60 MiB are still near: the third is not news"
    assert found.grow(128.0 * MIB) == space.limit == 128 * MIB
    space.used = 127 * MIB
    await found.look()
    assert run.told == [(True, "bytes")] * 3
    with pytest.raises(KernelError):
        found.grow(512 * MIB)
    assert found.use().limit == 128 * MIB


async def test_the_record_has_the_last_reading_the_peak_and_what_was_wrong() -> None:
    found, space, _run = made()
    assert found.evidence() == ()
    space.used, space.inodes = 63 * MIB, 7
    await found.look()
    space.used = MIB
    use = found.use()
    assert (use.used, use.peak, use.inodes, use.full, use.by) == (MIB, 63 * MIB, 7, True, "loop")
    space.why = "the disk below it is full"
    told = [one.what for one in found.evidence()]
    assert told[0].startswith(f"{MIB} of {64 * MIB} bytes, 7 of 1000 inodes at the end")
    assert told[1] == "the disk below it is full"
    found.close()
    assert space.closed


async def test_a_write_wakes_and_then_nothing_does_until_the_pause_is_over(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    found, space, run = made()
    found._root = os.open("/", os.O_RDONLY)
    alarms: list[float] = []
    wakes = [trio.Event() for _ in range(3)]

    @contextmanager
    def armed() -> Iterator[int]:
        alarms.append(trio.current_time())
        yield len(alarms) - 1

    async def written(number: int) -> None:
        await wakes[number].wait()

    monkeypatch.setattr(found, "_armed", armed)
    monkeypatch.setattr(trio.lowlevel, "wait_readable", written)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(found.follow)
        await trio.testing.wait_all_tasks_blocked()
        assert alarms == [0.0]
        await trio.sleep(1000)
        assert alarms == [0.0], "nothing was written, and somebody looked"
        space.used = 63 * MIB
        wakes[0].set()
        await run.heard.wait()
        assert run.told == [(True, "bytes")]
        assert alarms[1] - 1000 == pytest.approx(disk.pause(Usage(0, 64 * MIB, 0, 1000)))
        nursery.cancel_scope.cancel()
    found.close()


@pytest.mark.parametrize("wanted", [True, False])
async def test_where_nothing_tells_it_is_said_to_who_wants_to_hear(
    monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    def refuses(_directory: int) -> int:
        raise KernelError("fanotify_init", None, errno.EPERM)

    monkeypatch.setattr(fanotify, "writes", refuses)
    found, space, run = made(wanted=wanted)
    found._root = os.open("/", os.O_RDONLY)
    space.used = 64 * MIB
    await found.follow()
    found.close()
    assert run.told == [(True, "bytes")]
    assert len(run.warnings) == wanted
    assert not wanted or "before its end: fanotify_init" in run.warnings[0]


async def test_too_many_groups_are_no_reason_to_give_up(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    def refuses(_directory: int) -> int:
        raise KernelError("fanotify_init", None, errno.EMFILE)

    monkeypatch.setattr(fanotify, "writes", refuses)
    found, space, run = made()
    found._root = os.open("/", os.O_RDONLY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(found.follow)
        await trio.sleep(0.5)
        space.used = 63 * MIB
        await run.heard.wait()
        assert trio.current_time() < 2 * disk.BLIND
        nursery.cancel_scope.cancel()
    found.close()
    assert run.warnings == []
