"""The queue between what happens and a client who may not read; the log read while it grows."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from supervisor.control.feed import Closing, Feed
from supervisor.record import eventfiles
from supervisor.record.eventfiles import parse
from supervisor.record.eventlog import EventLog


async def taken(feed: Feed) -> list:
    feed.end()
    found = []
    while (entry := await feed.take()) is not None:
        found.append(entry)
    return found


async def test_what_is_put_in_comes_out_in_order():
    feed = Feed()
    for number in range(5):
        feed.put({"seq": number})
    assert [entry["seq"] for entry in await taken(feed)] == [0, 1, 2, 3, 4]


async def test_what_has_no_room_is_a_gap_in_its_place():
    feed = Feed(room=4)
    for number in range(10):
        feed.put({"seq": number})
    for _ in range(3):
        await feed.take()
    feed.put({"seq": 10})
    *rest, last = await taken(feed)
    assert rest == [{"seq": 3}, {"gap": 6, "from": 4, "to": 9}]
    assert last == {"seq": 10}


@given(st.lists(st.booleans()))
def test_nothing_is_lost_without_being_told(moves: list[bool]):
    async def play() -> None:
        feed, put, got = Feed(room=4), 0, []
        for give in moves:
            if give:
                feed.put({"seq": put})
                put += 1
            elif feed.waiting:
                got.append(await feed.take())
            assert feed.waiting <= 5
        got += await taken(feed)
        told = []
        for entry in got:
            told += range(entry["from"], entry["to"] + 1) if "gap" in entry else [entry["seq"]]
            assert entry.get("gap", 1) > 0
        assert told == list(range(put))

    trio.run(play)


async def test_the_end_wakes_who_waits():
    feed, closing = Feed(), Closing()

    async def wait(task_status=trio.TASK_STATUS_IGNORED) -> None:
        with closing.calls(feed.end):
            task_status.started()
            assert await feed.take() is None

    async with trio.open_nursery() as nursery:
        await nursery.start(wait)
        await trio.testing.wait_all_tasks_blocked()
        closing.set()
    with closing.calls(feed.end):  # one who comes too late
        assert await feed.take() is None


@pytest.mark.parametrize("size", [None, 2000])
def test_a_log_is_read_from_any_number_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None
):
    monkeypatch.setattr(eventfiles, "CHUNK", 200)
    path = tmp_path / "events.ndjson"
    log = EventLog(path, lambda: 0.0, size=size, most=100)
    for number in range(100):
        log.emit("warning", text="x" * (number * 7 % 90))
    log.close()
    for since in (0, 1, 42, 98, 99, 100, 1000):
        found = [line.seq for line in eventfiles.entries(path, since)]
        assert found == list(range(since + 1, 101))


def test_an_entry_far_behind_is_found_without_reading_what_is_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "events.ndjson"
    log = EventLog(path, lambda: 0.0)
    for _ in range(3000):
        log.emit("warning", text="x" * 1000)
    log.close()
    parsed = []
    monkeypatch.setattr(eventfiles, "parse", lambda text: parsed.append(text) or parse(text))
    assert [line.seq for line in eventfiles.entries(path, 2990)] == list(range(2991, 3001))
    assert len(parsed) < 300
