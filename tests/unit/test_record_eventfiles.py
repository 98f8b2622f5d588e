"""Events over several files: no number is given twice, readers miss and repeat nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supervisor.record.eventfiles import Tail, entries, files, last_of_all, parse
from supervisor.record.eventlog import EventLog


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.ndjson"


def log_at(path: Path, size: int = 400, most: int = 4, after: int = 0) -> EventLog:
    return EventLog(path, lambda: 1.0, size=size, most=most, after=after)


def emit(log: EventLog, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        log.emit("warning", text=f"number {number}")


def names(path: Path) -> list[str]:
    return [one.name for one in files(path)]


def seqs(path: Path, after: int = 0) -> list[int]:
    return [line.seq for line in entries(path, after)]


def test_a_log_that_has_grown_becomes_older_files_and_goes_on(path: Path) -> None:
    log = log_at(path)
    emit(log, 15)
    log.close()
    assert names(path) == [
        "events.ndjson.3", "events.ndjson.2", "events.ndjson.1", "events.ndjson",
    ]  # fmt: skip
    assert all(0 < one.stat().st_size <= 400 for one in files(path))
    assert all(one.stat().st_mode & 0o777 == 0o600 for one in files(path))
    found = seqs(path)
    assert found == list(range(found[0], 16))


def test_the_oldest_goes_and_so_do_those_beyond_a_smaller_number(path: Path) -> None:
    log = log_at(path)
    emit(log, 40)
    log.close()
    assert len(files(path)) == 4 and seqs(path)[0] > 20
    log = log_at(path, most=2)
    emit(log, 10)
    log.close()
    assert names(path) == ["events.ndjson.1", "events.ndjson"]
    assert seqs(path)[-1] == 50


def test_numbers_run_on_after_a_rotation_that_left_nothing_behind_it(path: Path) -> None:
    log = log_at(path)
    emit(log, 6)
    log.close()
    path.rename(path.with_name("events.ndjson.1"))  # as if it had died right after it
    log = log_at(path)
    emit(log, 1)
    log.close()
    assert last_of_all(path) == 7
    assert seqs(path)[-2:] == [6, 7]


def test_numbers_begin_where_somebody_who_remembers_says(path: Path) -> None:
    log = log_at(path, after=500)
    emit(log, 1)
    log.close()
    assert seqs(path) == [501]


def test_a_log_that_goes_elsewhere_is_not_renamed(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    log = log_at(path)
    emit(log, 20)
    log.close()
    assert names(path) == ["events.ndjson"] and path.is_symlink()
    assert len(seqs(path)) == 20


def test_where_it_cannot_be_renamed_the_same_file_goes_on(path: Path) -> None:
    (path.with_name("events.ndjson.1") / "in the way").mkdir(parents=True)
    log = log_at(path, most=2)
    emit(log, 20)
    log.close()
    assert [one["text"] for one in map(_entry, path.read_bytes().splitlines())] == [
        f"number {number}" for number in range(20)
    ]


def _entry(text: bytes) -> dict[str, object]:
    line = parse(text)
    assert line is not None
    return line.entry


@pytest.mark.parametrize("size", [300, 400, 1000])
def test_a_reader_follows_through_rotations(path: Path, size: int) -> None:
    log = log_at(path, size=size)
    tail = Tail(path)
    found: list[int] = []
    for step in range(30):
        emit(log, step % 4, first=step)
        while some := tail.read():
            found += [line.seq for line in some]
    log.close()
    assert found == list(range(1, found[-1] + 1)) and found[-1] == sum(n % 4 for n in range(30))
    assert tail.torn == 0
    assert tail.read() == []
    tail.close()


def test_a_reader_that_was_away_for_several_rotations_takes_them_in_order(path: Path) -> None:
    log = log_at(path)
    tail = Tail(path)
    emit(log, 2)
    assert [line.seq for line in tail.read()] == [1, 2]
    emit(log, 9)
    seen = []
    while some := tail.read():
        seen += [line.seq for line in some]
    log.close()
    assert seen == list(range(3, 12))
    tail.close()


def test_a_reader_goes_on_after_a_number(path: Path) -> None:
    log = log_at(path)
    emit(log, 10)
    log.close()
    assert seqs(path, after=7) == [8, 9, 10]
    assert seqs(path, after=10) == []


def test_no_log_has_no_entries(path: Path) -> None:
    assert seqs(path) == []
    assert seqs(path.parent / "nowhere" / "events.ndjson") == []


def test_a_reader_that_is_there_first_sees_the_log_come(path: Path) -> None:
    tail = Tail(path)
    assert tail.read() == []
    log = log_at(path)
    emit(log, 1)
    assert [line.seq for line in tail.read()] == [1]
    log.close()
    tail.close()


def test_a_line_that_comes_in_pieces_is_one(path: Path) -> None:
    whole = b'{"seq": 1, "time": "t", "event": "warning", "text": "x"}\n'
    tail = Tail(path)
    path.write_bytes(whole[:20])
    assert tail.read() == []
    with path.open("ab") as file:
        file.write(whole[20:])
    assert [line.seq for line in tail.read()] == [1]
    tail.close()


def test_what_is_longer_than_a_batch_is_read_whole(path: Path) -> None:
    log = EventLog(path, lambda: 1.0)
    log.emit("warning", text="x" * 5000)
    log.close()
    tail = Tail(path)
    (line,) = tail.read(most=100)
    assert len(line.entry["text"]) == 5000
    tail.close()


def test_torn_lines_are_counted_and_passed_over_in_every_file(path: Path) -> None:
    path.with_name("events.ndjson.1").write_bytes(
        b'{"seq": 1, "time": "t", "event": "a"}\n{"seq": 2, "ti'
    )
    path.write_bytes(b'{"seq": 3, "time": "t", "event": "b"}\nrubbish\n{"seq": 4, "time"')
    tail = Tail(path)
    found = []
    while some := tail.read():
        found += [line.seq for line in some]
    tail.close()
    assert found == [1, 3]
    assert tail.torn == 3


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{}", b"[]", b"7", b"\0\0\0", b"\xff\xfe", b"[" * 100_000, b'{"seq": "1"}',
        b'{"seq": true, "time": "t", "event": "x"}', b'{"seq": 1, "time": 2, "event": "x"}',
        b'{"seq": 1, "time": "t", "event": "x", "job": ["a"]}',
        b'{"seq": 1, "time": "t", "event": "x", "run": null}',
    ],
)  # fmt: skip
def test_what_is_no_entry_is_none(text: bytes) -> None:
    assert parse(text) is None


def test_nothing_stays_open(path: Path) -> None:
    log = log_at(path)
    emit(log, 10)
    log.close()
    before = os.listdir("/proc/self/fd")
    seqs(path)
    next(entries(path)).seq  # noqa: B018 - given up half way
    assert os.listdir("/proc/self/fd") == before
