"""What a target makes of a stream: times, files of a size, the journal; and what is lost."""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.record import logs
from supervisor.record.logs import Reader
from supervisor.supervise.target import LONGEST_LINE, File, Journal, Target, stamp

AT = 1796000000.25
TIME = stamp(AT)


def pour(target: Target, *data: bytes) -> None:
    """As `output` does it: shaped, written piece by piece, settled."""
    for one in data:
        shaped, done, why = target.shape(one), 0, ""
        try:
            while done < len(shaped):
                done += target.write(shaped[done : done + target.piece])
        except OSError as error:
            why = str(error.strerror)
        target.settle(one, done, why)


def whole(path: Path) -> bytes:
    reader = Reader(path)
    data = b""
    while (found := reader.read(len(data)))[1]:
        assert found[0] == len(data)
        data += found[1]
    reader.close()
    return data


def test_a_time_can_be_read() -> None:
    assert TIME == b"2026-11-30T00:53:20.250000Z "


def test_each_line_has_one_time_however_it_comes(tmp_path: Path) -> None:
    target = File(tmp_path / "f", stamps=True, clock=lambda: AT)
    pour(target, b"on", b"e\ntwo\n", b"\n", b"three", b"\n", b"last")
    assert (tmp_path / "f").read_bytes() == b"".join(
        TIME + line for line in (b"one\n", b"two\n", b"\n", b"three\n", b"last")
    )
    assert (target.arrived, target.lost) == (19, 0)
    target.close()


def test_a_line_without_an_end_costs_no_memory(tmp_path: Path) -> None:
    target = File(tmp_path / "f", stamps=True, clock=lambda: AT)
    for _ in range(100):
        pour(target, b"x" * 65536)
    assert (tmp_path / "f").stat().st_size == len(TIME) + 100 * 65536
    target.close()


class Small(File):
    """On a disk that takes so many bytes more."""

    room = 0

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = data[: self.room]
        self.room -= len(taken)
        return super().write(taken)


@given(
    texts=st.lists(st.binary(min_size=1, max_size=30).map(lambda b: b.replace(b"z", b"\n"))),
    rooms=st.lists(st.integers(0, 90)),
    stamps=st.booleans(),
)
def test_every_byte_arrives_or_is_counted(
    tmp_path_factory: pytest.TempPathFactory, texts: list[bytes], rooms: list[int], stamps: bool
) -> None:
    """Whatever the disk takes: no half of a time stands there, and the sum is what was written."""
    path = tmp_path_factory.mktemp("target") / "f"
    target = Small(path, stamps=stamps, clock=lambda: AT)
    for number, text in enumerate(texts):
        target.room = rooms[number] if number < len(rooms) else 1000
        pour(target, text)
    data = path.read_bytes()
    target.close()
    sent = sum(map(len, texts))
    assert target.arrived + target.lost == sent
    if stamps:
        for line in data.splitlines(keepends=True) if b"\r" not in data else []:
            assert line.startswith(TIME) or not set(line) <= set(TIME)
    added = len(data) - target.arrived
    if not stamps:
        assert 0 <= added <= sum(room < 1000 for room in rooms)  # the ends of torn lines
    if not target.lost and not stamps:
        assert data == b"".join(texts)


def test_after_a_gap_a_new_line_begins(tmp_path: Path) -> None:
    target = Small(tmp_path / "f", stamps=True, clock=lambda: AT)
    target.room = len(TIME) + 4 + 5
    pour(target, b"one\ntwo\n")
    target.room = 1000
    pour(target, b"three\n")
    assert (tmp_path / "f").read_bytes() == TIME + b"one\n" + TIME + b"three\n"
    assert (target.arrived, target.lost, target.why) == (10, 4, "No space left on device")
    target.close()


def test_files_are_renamed_between_lines_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "f"
    target = File(path, max_size=65536, keep=100)
    text = b"".join(b"%d\n" % number for number in range(100_000))
    for at in range(0, len(text), 9_999):
        pour(target, text[at : at + 9_999])
    found = logs.files(path)
    assert len(found) > 8 and all(one.stat().st_size <= 65536 for one in found)
    assert all(one.read_bytes().endswith(b"\n") for one in found if one.suffix[1:].isdigit())
    assert whole(path) == text
    target.close()


def test_a_line_longer_than_a_file_is_cut(tmp_path: Path) -> None:
    target = File(tmp_path / "f", max_size=65536, keep=100)
    pour(target, b"x" * 200_000, b"\nend\n")
    assert whole(tmp_path / "f") == b"x" * 200_000 + b"\nend\n"
    assert all(one.stat().st_size <= 65536 for one in logs.files(tmp_path / "f"))
    target.close()


def test_of_the_old_ones_some_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "f"
    target = File(path, max_size=65536, keep=2)
    for _ in range(20):
        pour(target, b"x" * 50_000 + b"\n")
    assert len([one for one in logs.files(path) if one.suffix[1:].isdigit()]) == 2
    reader = Reader(path)
    first, end = reader.bounds()
    assert end == 20 * 50_001 and end - first <= 3 * 65536
    assert reader.read(0)[0] == first
    reader.close()
    target.close()


def test_none_of_them_too(tmp_path: Path) -> None:
    target = File(tmp_path / "f", max_size=65536, keep=0)
    for _ in range(20):
        pour(target, b"x" * 50_000 + b"\n")
    assert {one.name for one in logs.files(tmp_path / "f")} == {"f", "f.index"}
    assert target.lost == 0
    target.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(path)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        yield one, path


def entry(data: bytes) -> dict[str, bytes]:
    """A message of the journal's protocol, read as journald does."""
    found = {}
    while data:
        name, sign, rest = re.split(rb"([=\n])", data, maxsplit=1)
        if sign == b"=":
            found[name.decode()], _, data = rest.partition(b"\n")
        else:
            (size,) = struct.unpack_from("<Q", rest)
            found[name.decode()] = rest[8 : 8 + size]
            assert rest[8 + size : 9 + size] == b"\n"
            data = rest[9 + size :]
    return found


def received(one: socket.socket) -> dict[str, bytes]:
    one.settimeout(10)
    data, passed, _, _ = socket.recv_fds(one, 1 << 20, 1)
    if passed:
        with os.fdopen(passed[0], "rb") as file:
            file.seek(0)
            data = file.read()
    return entry(data)


def test_a_line_is_an_entry_of_the_journal(journal: tuple[socket.socket, str]) -> None:
    one, path = journal
    target = Journal({"SUPERVISE_JOB": "a", "PRIORITY": "6"}, path)
    pour(target, b"first\nsec", b"ond \xff\x00\x1b[31m\n\nlast")
    assert received(one) == {"SUPERVISE_JOB": b"a", "PRIORITY": b"6", "MESSAGE": b"first"}
    assert received(one)["MESSAGE"] == b"second \xff\x00\x1b[31m"
    assert received(one)["MESSAGE"] == b""
    target.finish()
    assert received(one)["MESSAGE"] == b"last"
    assert (target.arrived, target.lost) == (9 + 17, 0)
    target.close()


def test_a_long_line_becomes_several(journal: tuple[socket.socket, str]) -> None:
    one, path = journal
    target = Journal({}, path)
    pour(target, b"x" * (2 * LONGEST_LINE + 5), b"y\n")
    found = [received(one)["MESSAGE"] for _ in range(3)]
    assert b"".join(found) == b"x" * (2 * LONGEST_LINE + 5) + b"y"
    assert max(map(len, found)) == LONGEST_LINE
    target.close()


def test_without_a_journal_lines_are_counted(tmp_path: Path) -> None:
    target = Journal({}, str(tmp_path / "none"))
    pour(target, b"one\ntwo\nthree")
    target.finish()
    assert (target.arrived, target.lost) == (0, 13)
    assert target.why == f"{tmp_path}/none: No such file or directory"
    target.close()


def test_a_journal_that_takes_nothing_is_waited_for_once(
    journal: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.supervise.target.JOURNAL_WAIT", 1)
    one, path = journal
    target = Journal({}, path)
    text = b"x" * 1000 + b"\n"
    while not target.lost:
        pour(target, text)
    for _ in range(1000):  # with a second for each this would not end
        pour(target, text)
    assert target.lost == 1001 * len(text)
    one.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            one.recv(1 << 20)
    pour(target, b"again\n")
    assert received(one)["MESSAGE"] == b"again"
    assert target.lost == 1001 * len(text)
    target.close()
