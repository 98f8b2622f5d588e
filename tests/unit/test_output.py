"""How output is copied: in order, up to the limit, and in a hurry only to those who read."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from math import inf

import pytest
import trio
import trio.testing

from supervisor.supervise.output import CHUNK, STALLED, Output
from supervisor.supervise.target import Stream

PAGE = 4096


class Copied:
    """An `Output` of one stream, a small pipe at its end, and what it told."""

    def __init__(self, target: int, limit: int = 1 << 40) -> None:
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC)
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 1 << 20)
        os.set_blocking(self.writer, False)
        self.full = 0
        self.told: list[str] = []
        pairs = [(self.reader, [Stream(target)])]
        self.output = Output(pairs, limit, full=self._is_full, trouble=self.told.append)
        self.ended = trio.Event()
        self.finished = trio.Event()

    async def run(self) -> None:
        await self.output.run()
        self.ended.set()

    def _is_full(self) -> None:
        self.full += 1

    async def finish(self) -> None:
        await self.output.finish()
        self.finished.set()


@asynccontextmanager
async def copied(target: int, limit: int = 1 << 40) -> AsyncIterator[tuple[Copied, trio.Nursery]]:
    """It runs for the length of the block; all that waits then is ended."""
    one = Copied(target, limit)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run)
            try:
                yield one, nursery
            finally:
                one.output.hurry()
                nursery.cancel_scope.cancel()
    finally:
        os.close(one.reader)
        os.close(one.writer)


@pytest.fixture
def small() -> Iterator[tuple[int, int]]:
    """A pipe that holds a page: its reading end and its writing end."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PAGE)
    yield reader, writer
    os.close(reader)
    os.close(writer)


async def until_full(reader: int) -> None:
    """Somebody has filled the small pipe: the thread that writes has got that far."""
    with trio.fail_after(10):
        await trio.lowlevel.wait_readable(reader)


async def read(reader: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(reader)
        data += os.read(reader, size - len(data))
    return data


async def drained(reader: int) -> bytes:
    """What arrives until no thread is at work any more."""
    os.set_blocking(reader, False)
    data, busy = b"", 1
    while busy:
        busy = trio.to_thread.current_default_thread_limiter().borrowed_tokens
        try:
            data += os.read(reader, CHUNK)
        except BlockingIOError:
            await trio.testing.wait_all_tasks_blocked()
    return data


def pattern(size: int) -> bytes:
    """Bytes of which each four are different from all others."""
    return b"".join(number.to_bytes(4, "big") for number in range(size // 4))


async def test_the_last_comes_after_what_is_being_written(small: tuple[int, int]) -> None:
    reader, writer = small
    data = pattern(5 * CHUNK)
    async with copied(writer) as (one, nursery):
        os.write(one.writer, data[:CHUNK])
        await until_full(reader)  # the first chunk is under way, and waits for its reader
        os.write(one.writer, data[CHUNK:])
        nursery.start_soon(one.finish)
        await trio.testing.wait_all_tasks_blocked()
        assert not one.finished.is_set()
        assert await read(reader, len(data)) == data
        with trio.fail_after(10):
            await one.finished.wait()
    assert one.output.written == len(data)
    assert one.told == []


async def test_exactly_the_limit_arrives_and_it_is_told_once(small: tuple[int, int]) -> None:
    reader, writer = small
    async with copied(writer, limit=1000) as (one, _):
        for _ in range(3):
            os.write(one.writer, bytes(900))
        assert await read(reader, 1000) == bytes(1000)
        with trio.fail_after(10):
            await one.finish()
    assert (one.output.written, one.full) == (1000, 1)
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)


async def test_it_ends_by_itself_when_nobody_can_write_any_more(small: tuple[int, int]) -> None:
    reader, writer = small
    one = Copied(writer)
    os.write(one.writer, b"abc")
    os.close(one.writer)
    with trio.fail_after(10):
        await one.output.run()
        await one.output.finish()
    assert await read(reader, 3) == b"abc"
    os.close(one.reader)


async def test_somebody_outside_who_goes_on_writing_is_not_waited_for() -> None:
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    async with copied(null) as (one, _):
        os.set_blocking(one.writer, True)
        with subprocess.Popen(["yes"], stdout=one.writer) as flood:
            try:
                with trio.fail_after(10):
                    while one.output.written == 0:
                        await trio.testing.wait_all_tasks_blocked()
                    await one.finish()
            finally:
                flood.kill()
    os.close(null)


async def test_without_hurry_a_reader_may_take_his_time(
    small: tuple[int, int], mock_clock: trio.testing.MockClock
) -> None:
    reader, writer = small
    data = pattern(4 * PAGE)
    async with copied(writer) as (one, nursery):
        os.write(one.writer, data)
        await until_full(reader)
        nursery.start_soon(one.finish)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(86400)
        await trio.testing.wait_all_tasks_blocked()
        assert not one.finished.is_set()
        assert await read(reader, len(data)) == data
        await one.finished.wait()
    assert one.told == []


async def test_in_a_hurry_who_reads_nothing_is_given_up(
    small: tuple[int, int], mock_clock: trio.testing.MockClock
) -> None:
    reader, writer = small
    async with copied(writer) as (one, nursery):
        os.write(one.writer, pattern(3 * CHUNK))
        await until_full(reader)
        one.output.hurry()
        nursery.start_soon(one.finish)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(STALLED - 0.1)
        await trio.testing.wait_all_tasks_blocked()
        assert not one.finished.is_set()
        mock_clock.autojump_threshold = 0
        await one.finished.wait()
        mock_clock.autojump_threshold = inf
    assert one.told == ["the job's last output is lost: nobody has read it for 5 s"]
    # the thread that was left behind ends with the piece that it has begun
    assert len(await drained(reader)) in (PAGE, 2 * PAGE)


async def test_in_a_hurry_who_reads_slowly_gets_all(
    small: tuple[int, int], mock_clock: trio.testing.MockClock
) -> None:
    reader, writer = small
    data = pattern(32 * PAGE)
    async with copied(writer) as (one, nursery):
        os.write(one.writer, data)
        await until_full(reader)
        one.output.hurry()
        nursery.start_soon(one.finish)
        got = b""
        while len(got) < len(data):
            got += await read(reader, 4 * PAGE)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(0.6 * STALLED)  # at least one of the reads lies between two looks
        assert got == data
        await one.finished.wait()
    assert one.told == []


async def test_what_is_cancelled_in_a_hurry_ends(
    small: tuple[int, int], mock_clock: trio.testing.MockClock
) -> None:
    reader, writer = small
    async with copied(writer) as (one, nursery):
        os.write(one.writer, pattern(3 * CHUNK))
        await until_full(reader)
        one.output.hurry()
        nursery.cancel_scope.cancel()
        mock_clock.autojump_threshold = 0
    mock_clock.autojump_threshold = inf
    assert len(one.told) == 1
    await drained(reader)


async def test_a_failed_write_is_told_once_and_the_rest_is_dropped() -> None:
    fd = os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC)
    async with copied(fd) as (one, _):
        os.write(one.writer, pattern(3 * CHUNK))
        with trio.fail_after(10):
            await one.finish()
    os.close(fd)
    assert one.told == ["cannot write the job's output: No space left on device"]
    assert one.output.written == 0


async def test_that_its_reader_has_gone_is_told_to_the_job() -> None:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.close(reader)
    async with copied(writer) as (one, _):
        os.write(one.writer, b"x")
        with trio.fail_after(10):
            await one.ended.wait()
        with pytest.raises(BrokenPipeError):
            os.write(one.writer, b"x")
    os.close(writer)
    assert one.told == []


async def test_a_stream_that_does_not_block_loses_nothing(small: tuple[int, int]) -> None:
    reader, writer = small
    os.set_blocking(writer, False)
    data = pattern(4 * CHUNK)
    async with copied(writer) as (one, nursery):
        os.write(one.writer, data)
        await until_full(reader)
        nursery.start_soon(one.finish)
        assert await read(reader, len(data)) == data
        await one.finished.wait()
    assert one.told == []
