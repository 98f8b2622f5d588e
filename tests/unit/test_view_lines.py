"""Plain lines, the values in them, and the printer that never holds anybody up."""

from __future__ import annotations

import io
import json
import os
import re
import time

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from supervisor.front import lines
from supervisor.front.printer import Printer
from supervisor.model import Reason, RunRecord
from supervisor.model.action import KillJob, Notify, RaiseLimit, Retry, SignalJob
from supervisor.model.record import MemoryUse
from supervisor.record.entries import KINDS, decision_entry, ended_entry

M = 1 << 20


def entry(event: str, **fields):
    return {"seq": 1, "time": "2026-11-25T12:03:01.500Z", "event": event, **fields}


@pytest.fixture(autouse=True)
def utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.0K"),
        (M - 1, "1.0M"),
        (64 * M, "64.0M"),
        (1.5 * 1024 * M, "1.5G"),
        (2.0**63, "8388608.0T"),
    ],
)
def test_sizes(value, text):
    assert lines.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (-1, "0.00s"),
        (0.25, "0.25s"),
        (0.999, "1.0s"),
        (3.21, "3.2s"),
        (9.96, "10s"),
        (59.6, "1m00s"),
        (187, "3m07s"),
        (3599.9, "1h00m"),
        (86400 * 3 + 3600 * 4, "3d04h"),
    ],
)
def test_durations(value, text):
    assert lines.duration(value) == text


OOM = RunRecord(
    "compress.level=9", "r", 1, Reason.OOM, ("xz",), signal=9, wall_seconds=3.21,
    memory=MemoryUse(64 * M, 64 * M, 1),
)  # fmt: skip


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (entry("job_started", job="a", run="r", pid=42), "12:03:01 a started (pid 42)"),
        (
            entry("memory_limit", job="a", usage=M, limit=M, hits=1, held=True),
            "12:03:01 a reached its memory limit of 1.0M, held",
        ),
        (
            entry("job_ended", **ended_entry(OOM)),
            "12:03:01 compress.level=9 ended: oom after 3.2s, peak 64.0M of 64.0M",
        ),
        (
            entry("limit_changed", job="a", limit="memory", to=2.0 * M, by="p"),
            "12:03:01 a has a memory limit of 2.0M now, by p",
        ),
        (
            entry("limit_changed", job="a", limit="pids", to=16.0, by="p"),
            "12:03:01 a has a pids limit of 16 now, by p",
        ),
        (
            entry("job_stopping", job="a", reason="stopped", by="operator", why=""),
            "12:03:01 a is being ended: stopped, by operator",
        ),
        (
            entry("job_stopping", job="a", reason="policy", by="p", why="a bomb"),
            "12:03:01 a is being ended: policy, by p: a bomb",
        ),
        (entry("signal_sent", job="a", signal="TERM"), "12:03:01 a was sent SIGTERM"),
        (
            entry("steered", job="a", verb="stop", by="root (uid 0)", uid=0, pid=7, why="late"),
            "12:03:01 a steered by root (uid 0): stop (late)",
        ),
        (
            entry("steered", verb="stop", by="uid 7", uid=7, pid=7),
            "12:03:01 steered by uid 7: stop",
        ),
        (entry("warning", text="w"), "12:03:01 warning: w"),
        (entry("job_waiting", job="a", waiting_for="b"), None),
        (entry("supervisor_started"), None),
        (entry("an_event_of_a_later_version"), None),
    ],
)
def test_one_line_for_what_matters(told, line):
    assert lines.line_of(told) == line


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (RaiseLimit("memory", 1024 * M), "raise memory to 1.0G"),
        (RaiseLimit("pids", 64.0), "raise pids to 64"),
        (Retry({"memory": 128.0 * M, "pids": 9}, after=2), "retry with memory 128.0M with pids 9"),
        (SignalJob("HUP"), "signal HUP"),
        (KillJob("a fork bomb"), "kill a fork bomb"),
        (Notify("hello"), "notify hello"),
    ],
)
def test_decisions_are_told_with_their_arguments(action, text):
    told = lines.line_of(entry("decision", job="a", **decision_entry("on_x", "p", action)))
    assert f"a p decided at on_x: {text}" in told


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"reason": Reason.FAILED, "exit_code": 137}, "failed with exit code 137"),
        ({"reason": Reason.SIGNAL, "signal": 11}, "signal 11"),
        ({"reason": Reason.START_FAILED, "detail": "exec: /x"}, "start_failed: exec: /x"),
    ],
)
def test_how_a_run_ended(changes, text):
    record = RunRecord("a", "r", 1, command=(), **changes)
    assert lines.ending(record.to_json()) == text


def test_each_kind_that_is_told_exists():
    assert set(lines.SAYS) <= set(KINDS)


@given(st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_nothing_reaches_a_terminal_but_printable_text(text):
    told = lines.line_of(entry("warning", text=text, job=text))
    assert told.isprintable()
    told.encode()


def test_colours_only_where_they_are_wanted():
    bad = entry("job_ended", **ended_entry(OOM))
    assert "\033[31m" in lines.line_of(bad, colour=True)
    assert re.sub(r"\033\[\d*m", "", lines.line_of(bad, colour=True)) == lines.line_of(bad)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("choice", "stream", "environ", "colour"),
    [
        ("auto", Terminal(), {"TERM": "xterm"}, True),
        ("auto", Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        ("auto", Terminal(), {"TERM": "xterm", "NO_COLOR": ""}, True),
        ("auto", Terminal(), {"TERM": "dumb"}, False),
        ("auto", Terminal(), {}, False),
        ("auto", io.StringIO(), {"TERM": "xterm"}, False),
        ("always", io.StringIO(), {"NO_COLOR": "1"}, True),
        ("never", Terminal(), {"TERM": "xterm"}, False),
    ],
)
def test_when_to_colour(choice, stream, environ, colour):
    assert lines.use_colour(choice, stream, environ) is colour


def test_records_are_one_line_of_json():
    text = lines.record_line(entry("job_ended", **ended_entry(OOM)))
    assert "\n" not in text and json.loads(text)["reason"] == "oom"
    assert lines.record_line(entry("job_started", pid=1)) is None


async def test_the_printer_writes_what_is_left_when_it_is_cancelled():
    stream = io.StringIO()
    printer = Printer(stream, lines.line_of)
    printer(entry("warning", text="before"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(printer.run)
        await trio.testing.wait_all_tasks_blocked()
        printer(entry("warning", text="after"))
        printer(entry("supervisor_started"))
        nursery.cancel_scope.cancel()
    assert stream.getvalue() == "12:03:01 warning: before\n12:03:01 warning: after\n"


async def test_a_reader_that_does_not_read_holds_up_nobody():
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as out, os.fdopen(writer, "w") as stream:
        printer = Printer(stream, lines.line_of)
        for _ in range(3):
            for _ in range(Printer.ROOM):
                printer.say("x" * 100)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(printer.run)
                # The pipe is full of the first lines; the loop goes on all the same.
                while len(printer._waiting):
                    await trio.sleep(0)
                printer.say("never seen")
                nursery.cancel_scope.cancel()
        await trio.to_thread.run_sync(drain, out, (Printer.ROOM * 101))
        stream.flush()


def drain(out, most):
    """Let the thread that was left behind come to its end."""
    seen = b""
    while b"lines are not shown" not in seen[-200:]:
        seen += os.read(out.fileno(), 1 << 20)
    assert len(seen) < most + 1000


async def test_a_reader_that_has_gone_ends_the_printing_only():
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    printer = Printer(stream, lines.line_of)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(printer.run)
        printer.say("x")
        while not printer.closed:
            await trio.sleep(0)
        printer.say("y")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with pytest.raises(BrokenPipeError):
        stream.close()


async def test_text_that_the_stream_cannot_encode_is_escaped():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    printer = Printer(stream, lines.line_of)
    printer.say("größer")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(printer.run)
        nursery.cancel_scope.cancel()
    assert raw.getvalue() == rb"gr\xf6\xdfer" + b"\n"
