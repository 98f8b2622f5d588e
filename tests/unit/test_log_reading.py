"""Streams read by position and cut into lines; what a rotation that was cut short leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from supervisor.record import logs
from supervisor.record.loglines import LONGEST, STAMP_LENGTH, Line, Lines, tail
from supervisor.record.logs import Busy, Index, Part, Reader, Writer
from supervisor.supervise.target import stamp


def stream(path: Path, *parts: bytes, busy: Busy | None = None) -> list[Part]:
    """As a rotation leaves it: each of `parts` but the last in a file of its own."""
    start, found = 0, []
    for number, data in enumerate(parts[:-1], 1):
        logs.part_path(path, number).write_bytes(data)
        found.append(Part(number, start, len(data)))
        start += len(data)
    path.write_bytes(parts[-1])
    writer = Writer(path)
    with writer.changing():
        writer.write(Index(start, start, tuple(found), busy=busy))
    writer.close()
    return found


def whole(path: Path, size: int = 7) -> bytes:
    reader, data = Reader(path), b""
    while (found := reader.read(len(data), size))[1]:
        assert found[0] == len(data)
        data += found[1]
    reader.close()
    return data


def test_a_stream_is_the_sum_of_its_files(tmp_path: Path) -> None:
    path = tmp_path / "f"
    stream(path, b"one\ntwo", b"\nthree\n", b"four")
    assert whole(path) == b"one\ntwo\nthree\nfour"
    reader = Reader(path)
    assert reader.bounds() == (0, 18)
    assert reader.read(5) == (5, b"wo")
    assert reader.read(18) == (18, b"")
    reader.close()
    assert {one.name for one in logs.files(path)} == {"f", "f.1", "f.2", "f.index"}


def test_what_is_gone_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "f"
    found = stream(path, b"one\n", b"two\n", b"three\n")
    writer = Writer(path)
    with writer.changing():
        writer.write(Index(8, 8, tuple(found[1:])))
    writer.close()
    reader = Reader(path)
    assert reader.bounds() == (4, 14) and reader.read(1) == (4, b"two\n")
    reader.close()


def test_files_of_others_are_none_of_a_stream(tmp_path: Path) -> None:
    for name in ("f", "f.1", "f.1x", "f.index", "f.index.new", "f.out", "ff", "f."):
        (tmp_path / name).write_text("")
    assert [one.name for one in logs.files(tmp_path / "f")] == ["f", "f.1", "f.index"]
    assert logs.files(tmp_path / "none" / "f") == []


@pytest.mark.parametrize("collapsed", [True, False])
@pytest.mark.parametrize("more", [b"", b"x" * 100])
def test_a_collapse_whose_supervisor_died(tmp_path: Path, collapsed: bool, more: bytes) -> None:
    """The copy is there; the head may be still, and the job may have gone on writing."""
    path = tmp_path / "f"
    text = b"".join(b"%d\n" % number for number in range(1000))
    head, rest = text[:2000], text[2000:]
    busy = Busy("collapse", len(text), 1, (0, 0))
    stream(path, head, (rest if collapsed else text) + more, busy=busy)
    assert whole(path) == text + more


@pytest.mark.parametrize("renamed", [True, False])
def test_a_renaming_whose_supervisor_died(tmp_path: Path, renamed: bool) -> None:
    path = tmp_path / "f"
    stream(path, b"old\n", b"new\n" if renamed else b"old\n", busy=Busy("rename", 4, 1, (0, 0)))
    if not renamed:
        logs.part_path(path, 1).unlink()
    assert whole(path) == (b"old\nnew\n" if renamed else b"old\n")


def test_a_torn_index_is_noticed(tmp_path: Path) -> None:
    line = Index(5, 5, (Part(1, 0, 5),), 3, Busy("rename", 1, 1, (0, 0))).pack()
    assert logs.parse(line) == Index(5, 5, (Part(1, 0, 5),), 3, Busy("rename", 1, 1, (0, 0)))
    for at in range(len(line) - 1):
        assert logs.parse(line[:at]) is None
        assert logs.parse(line[:at] + b"9" + line[at + 1 :]) in (None, logs.parse(line))
    (tmp_path / "f").write_bytes(b"text\n")
    (tmp_path / "f.index").write_bytes(line[:-9])
    with pytest.raises(OSError, match="damaged"):
        Reader(tmp_path / "f").read(0)


def test_a_job_that_cuts_its_file_is_read_from_there(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"before\n")
    reader = Reader(path)
    assert reader.read(0) == (0, b"before\n")
    os.truncate(path, 0)
    path.write_bytes(b"new\n")
    assert reader.read(7) == (0, b"new\n")
    reader.close()


def raw(lines: list[Line]) -> bytes:
    return b"".join(line.data + b"\n" * line.ends for line in lines)


@given(data=st.lists(st.binary(max_size=50).map(lambda b: b.replace(b"a", b"\n"))))
def test_lines_are_the_stream(tmp_path_factory: pytest.TempPathFactory, data: list[bytes]) -> None:
    """However it comes, and whether open lines are looked at or not."""
    path = tmp_path_factory.mktemp("lines") / "f"
    path.write_bytes(b"")
    lines, eager = Lines(Reader(path), stamped=False), Lines(Reader(path), stamped=False)
    found, early = [], []
    for piece in data:
        with path.open("ab") as file:
            file.write(piece)
        found += lines.take()
        early += eager.take()
        early += filter(None, [eager.rest(last=False)])
    found += filter(None, [lines.rest(last=True)])
    assert raw(found) == raw(early) == b"".join(data)
    assert all(line.begins and b"\n" not in line.data for line in found)
    lines.reader.close()
    eager.reader.close()


def test_times_are_told_apart_from_lines(tmp_path: Path) -> None:
    path = tmp_path / "f"
    time = stamp(1796000000.5)
    assert len(time) == STAMP_LENGTH
    path.write_bytes(time + b"one\n" + time + b"\n" + b"no time\n" + time[:10])
    lines = Lines(Reader(path), stamped=True)
    assert [(line.time, line.data) for line in lines.take()] == [
        (time[:-1].decode(), b"one"), (time[:-1].decode(), b""), ("", b"no time"),
    ]  # fmt: skip
    assert lines.rest(last=False) is None
    with path.open("ab") as file:
        file.write(time[10:] + b"la")
    assert lines.take() == []
    assert lines.rest(last=False) == Line(b"la", time[:-1].decode(), ends=False)
    with path.open("ab") as file:
        file.write(b"st\n")
    assert lines.take() == [Line(b"st", time[:-1].decode(), begins=False)]
    lines.reader.close()


def test_a_line_ends_where_rotation_took_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "f"
    stream(path, b"one\ntw")
    lines = Lines(Reader(path), stamped=False)
    assert lines.take() == [Line(b"one")]
    stream(path, b"", b"ree\nfour\n")
    writer = Writer(path)
    with writer.changing():
        writer.write(Index(10, 10, ()))
    writer.close()
    assert lines.take() == [Line(b"tw", ends=False)]
    assert (lines.take(), lines.gone) == ([Line(b"ree"), Line(b"four")], 4)
    lines.reader.close()


def test_a_long_line_comes_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * (3 * LONGEST + 1) + b"\nend\n")
    lines, found = Lines(Reader(path), stamped=False), []
    while more := lines.take():
        found += more
    assert raw(found) == path.read_bytes()
    assert max(len(line.data) for line in found) == LONGEST
    assert [(line.begins, line.ends) for line in found[-3:]] == [
        (False, False), (False, True), (True, True),
    ]  # fmt: skip
    lines.reader.close()


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("count", [0, 1, 2, 500, 99_999, 100_000, 200_000])
def test_the_last_lines_are_found(tmp_path: Path, count: int, end: bytes) -> None:
    path = tmp_path / "f"
    text = b"\n".join(b"%d" % number for number in range(100_000)) + end
    stream(path, text[:300_000], text[300_000:])
    reader = Reader(path)
    at = tail(reader, count)
    expected = [b"%d" % number for number in range(100_000)][-count:] if count else []
    assert text[at:].split() == expected
    assert at == 0 or not count or text[at - 1 : at] == b"\n"
    reader.close()


def test_an_index_forgets_what_was_not_done() -> None:
    done = Index(9, 9, (Part(1, 0, 4), Part(2, 4, 5)), 1, Busy("collapse", 20, 2, (4, 4)))
    assert done.undone() == Index(4, 4, (Part(1, 0, 4),), 1)
    assert evolve(done, busy=None).first == 0
