"""Entries for the systemd journal: their fields, the form they are sent in, and what if not."""

from __future__ import annotations

import array
import fcntl
import io
import json
import os
import socket
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from supervisor.front import journal
from supervisor.front.lines import SAYS
from supervisor.model import Reason, RunRecord
from supervisor.record.entries import ended_entry

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def entry(event: str, **fields):
    return {"seq": 7, "time": "2026-11-25T12:03:01.500Z", "event": event, **fields}


def ended(reason: Reason, **more):
    record = RunRecord(job="a", run="a1", attempt=1, reason=reason, command=("true",), **more)
    return entry("job_ended", **ended_entry(record))


def decoded(datagram: bytes) -> dict[str, str]:
    """What journald makes of it, written from the protocol's description alone."""
    found = {}
    while datagram:
        head, _, datagram = datagram.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", datagram[:8])
            value, datagram = datagram[8 : 8 + length], datagram[8 + length :]
            assert datagram[:1] == b"\n"
            datagram = datagram[1:]
        found[name.decode()] = value.decode()
    return found


class Journald:
    """The other end: takes datagrams, and files as journald does, if they are sealed."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.settimeout(30)

    def receive(self) -> dict[str, str]:
        size = array.array("i").itemsize
        data, passed, _, _ = self.socket.recvmsg(1 << 20, socket.CMSG_SPACE(size))
        if not passed:
            return decoded(data)
        ((_, _, raw),) = passed
        (file,) = array.array("i", raw)
        assert data == b""
        assert fcntl.fcntl(file, fcntl.F_GET_SEALS) & SEALS == SEALS
        with os.fdopen(file, "rb") as reader:
            reader.seek(0)
            return decoded(reader.read())


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="sv-") as directory:
        yield f"{directory}/socket"


@pytest.fixture
def journald(path: str) -> Iterator[Journald]:
    other = Journald(path)
    yield other
    other.socket.close()


async def send(outlet: journal.Journal, *entries) -> None:
    for one in entries:
        outlet(one)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outlet.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


def test_stderr_is_the_journal_s_if_device_and_inode_say_so(tmp_path: Path):
    with (tmp_path / "f").open("w") as file:
        info = os.fstat(file.fileno())
        named = {"JOURNAL_STREAM": f"{info.st_dev}:{info.st_ino}"}
        assert journal.connected(file.fileno(), named)
        assert not journal.connected(file.fileno(), {})
        assert not journal.connected(file.fileno(), {"JOURNAL_STREAM": f"{info.st_dev}:1"})
        descriptor = file.fileno()
    assert not journal.connected(descriptor, named)


async def test_an_entry_has_the_fields_to_search_by(journald: Journald, path: str):
    await send(journal.Journal("nightly", io.StringIO(), path), ended(Reason.OOM))
    got = journald.receive()
    assert json.loads(got.pop("SUPERVISE_RECORD"))["reason"] == "oom"
    assert got == {
        "SYSLOG_IDENTIFIER": "supervise",
        "MESSAGE": "a ended: oom",
        "PRIORITY": "3",
        "SUPERVISE_EVENT": "job_ended",
        "SUPERVISE_SEQ": "7",
        "SUPERVISE_INSTANCE": "nightly",
        "SUPERVISE_JOB": "a",
        "SUPERVISE_RUN": "a1",
        "SUPERVISE_REASON": "oom",
    }


async def test_what_is_no_line_for_people_is_not_sent(journald: Journald, path: str):
    said = entry("warning", text="careful")
    await send(journal.Journal("n", io.StringIO(), path), entry("supervisor_started"), said)
    got = journald.receive()
    assert (got["MESSAGE"], got["PRIORITY"]) == ("warning: careful", "4")
    assert not {"SUPERVISE_JOB", "SUPERVISE_RUN", "SUPERVISE_REASON"} & set(got)


async def test_newlines_and_bytes_that_are_no_text_arrive(journald: Journald, path: str):
    nasty = "one\ntwo\nPRIORITY=0\n\udcff ünï"
    told = entry("notify", job="j", run="j1", by="p", message=nasty)
    await send(journal.Journal("n", io.StringIO(), path), told)
    got = journald.receive()
    assert got["MESSAGE"] == "j p says: one\ntwo\nPRIORITY=0\n\\udcff ünï"
    assert got["PRIORITY"] == "5"


async def test_an_entry_longer_than_a_datagram_goes_as_a_sealed_file(journald: Journald, path: str):
    text = "x" * 3_000_000
    await send(journal.Journal("n", io.StringIO(), path), entry("warning", text=text))
    assert journald.receive()["MESSAGE"] == f"warning: {text}"


async def test_without_a_journal_the_lines_go_to_stderr(path: str):
    stream = io.StringIO()
    told = entry("notify", job="j", run="j1", by="p", message="a\nb")
    await send(journal.Journal("n", stream, path), entry("warning", text="one"), told)
    assert stream.getvalue() == "warning: one\nj p says: a b\n"


async def test_what_came_too_fast_is_counted(journald: Journald, path: str, monkeypatch):
    monkeypatch.setattr(journal.Journal, "ROOM", 2)
    outlet = journal.Journal("n", io.StringIO(), path)
    await send(outlet, *(entry("warning", text=str(n)) for n in range(5)))
    heard = [journald.receive()["MESSAGE"] for _ in range(3)]
    assert heard[:2] == ["warning: 0", "warning: 1"]
    assert heard[2].startswith("(3 lines are not shown")


async def test_a_journal_that_reads_nothing_holds_up_nobody(journald: Journald, path: str):
    outlet = journal.Journal("n", io.StringIO(), path)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outlet.run)
            for n in range(3000):
                outlet(entry("warning", text=str(n)))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    for n in range(3000):  # so that the thread left behind comes to its end
        assert journald.receive()["MESSAGE"] == f"warning: {n}"


def test_every_priority_is_of_a_line_that_is_told():
    assert set(journal.PRIORITIES) <= set(SAYS)


def test_only_a_bad_end_is_an_error():
    assert journal.fields(ended(Reason.SUCCEEDED, expected=True))["PRIORITY"] == "6"
    assert journal.fields(ended(Reason.TIMEOUT))["PRIORITY"] == "3"
