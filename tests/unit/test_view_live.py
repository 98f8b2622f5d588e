"""The live table: what it shows at any width and height, and what it leaves on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import termios
import threading

import pytest
import trio
import trio.testing

pytest.importorskip("rich", reason="the live table needs the extra `cli`")

from supervisor.front import live
from supervisor.model import State
from supervisor.model.status import Capacity, InstanceStatus, JobStatus

M = 1 << 20
NOW = 1000.0


def job(name, state=State.RUNNING, **more):
    return JobStatus(name, state, attempt=more.pop("attempt", 1), run="r", **more)


JOBS = (
    job("fetch", State.ENDED, since=900, ended=950, reason="succeeded", expected=True),
    *(job(f"wait{n}", State.WAITING, waiting_for="fetch") for n in range(20)),
    job("broken", State.ENDED, since=900, ended=950, reason="oom", expected=False),
    job("big", since=990, memory=60 * M, memory_limit=64 * M, pids=3, pids_limit=32,
        cpu_percent=97.4),
    job("held", State.HELD, since=980, memory=64 * M, memory_limit=64 * M, attempt=2),
)  # fmt: skip
STATUS = InstanceStatus(JOBS, Capacity(2, 16, 128 * M, 2048 * M, 3, 4))


def shown(status, width=100, height=50, colour=False):
    stream = io.StringIO()
    console = live.make_console(stream, colour, width=width, height=height)
    console.print(live.table(status, NOW, width, height))
    return stream.getvalue().splitlines()


def row(lines, name):
    (found,) = [line for line in lines if line.startswith(name + " ")]
    return re.split(r"\s{2,}", found.strip())


def test_a_row_says_what_the_job_does():
    lines = shown(STATUS, 120)
    assert row(lines, "big") == ["big", "running", "10s", "97%", "━━━━━━━━ 60.0M/64.0M", "3/32"]
    assert row(lines, "held")[-1] == "at its memory limit, attempt 2"
    assert row(lines, "fetch") == ["fetch", "succeeded", "50s"]
    assert row(lines, "broken") == ["broken", "oom", "50s"]
    assert row(lines, "wait3") == ["wait3", "waiting", "waits for fetch"]
    assert lines[-1] == (
        "20 waiting, 1 running, 1 held, 2 ended (1 not as expected)"
        "  jobs 2/16  memory 128.0M/2.0G  cpus 3/4"
    )


@pytest.mark.parametrize("width", range(60, 201, 7))
def test_every_width_has_whole_rows(width):
    lines = shown(STATUS, width)
    assert max(map(len, lines)) <= width
    assert len(lines) == 1 + len(JOBS) + 1, "no row is wrapped"
    for word in ("60.0M/64.0M", "waits for fetch", "running"):
        assert any(word in line for line in lines)


@pytest.mark.parametrize("height", [1, 4, 8, 12, 20])
def test_more_jobs_than_lines_are_counted(height):
    lines = shown(STATUS, 100, height)
    assert len(lines) <= max(height - 1, 4), "the last line is the cursor's"
    told = re.search(r"… (\d+) more waiting", lines[-2]) or re.search(r"… (\d+) more", lines[-2])
    assert told
    hidden = sum(int(count) for count in re.findall(r"\d+", lines[-2]))
    assert hidden + len(lines) - 3 == len(JOBS)


def test_the_living_are_shown_first():
    names = [line.split()[0] for line in shown(STATUS, 100, 9)][1:-2]
    assert names == ["held", "big", "broken", "wait0", "wait1"]


def test_the_order_is_the_configurations_when_all_fit():
    names = [line.split()[0] for line in shown(STATUS, 100, 50)][1:-1]
    assert names == [job.name for job in JOBS]


def test_members_of_a_matrix_can_be_told_apart_on_a_narrow_screen():
    jobs = tuple(job(f"compress-the-logs.level={n}") for n in range(3))
    names = {line.split()[0] for line in shown(InstanceStatus(jobs), 60)[1:4]}
    assert len(names) == 3


def test_names_are_no_markup_and_no_control_sequences():
    jobs = (job("[bold]x[/bold]"), job("\x1b[2Jy"), job("z", State.WAITING, waiting_for="[red]"))
    text = "\n".join(shown(InstanceStatus(jobs), 200))
    assert "[bold]x[/bold]" in text and "\\x1b[2Jy" in text and "waits for [red]" in text
    assert "\x1b" not in text


def test_colours_can_be_had_and_not():
    assert "\x1b[1;31m" in "\n".join(shown(STATUS, colour=True))
    assert "\x1b" not in "\n".join(shown(STATUS, colour=False))


def test_nothing_to_show_is_no_error():
    assert shown(InstanceStatus())


class Terminal:
    """A pseudo-terminal: what is written to `stream` can be read as `seen`."""

    def __init__(self, columns=100, rows=30):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.stream = os.fdopen(slave, "w")
        self.seen = ""
        os.set_blocking(self.master, False)

    async def until(self, text):
        while text not in self.seen:
            await trio.lowlevel.wait_readable(self.master)
            self.seen += os.read(self.master, 65536).decode()

    def rest(self):
        try:
            while True:
                self.seen += os.read(self.master, 65536).decode()
        except BlockingIOError:
            return self.seen


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    yield terminal
    os.close(terminal.master)
    with contextlib.suppress(OSError):  # what was in its buffer has nowhere to go
        terminal.stream.close()


ENDED = {
    "event": "job_ended",
    "time": "2026-11-25T12:03:01.500Z",
    "job": "fetch",
    "expected": True,
    "record": {
        "reason": "succeeded",
        "wall_seconds": 3.0,
        "memory": {"peak": None, "limit": None},
        "detail": "",
    },
}


async def test_cancelling_takes_the_table_away_and_leaves_the_lines(terminal):
    view = live.Live(terminal.stream, False, lambda: NOW)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(view.run, lambda: STATUS)
        await terminal.until("cpus 3/4")
        view(ENDED)
        view({"event": "job_started", "time": "", "pid": 1})
        await terminal.until("ended: succeeded after 3.0s")
        view({**ENDED, "job": "last"})
        nursery.cancel_scope.cancel()
    seen = terminal.rest()
    assert seen.index("\x1b[?25l") < seen.rindex("\x1b[?25h"), "the cursor is back"
    after = seen[seen.rindex("\x1b[?25h") :]
    erased = seen.rindex("\x1b[2K", 0, seen.rindex("\x1b[?25h") + 400)
    assert seen.rindex("cpus 3/4") < erased, "the table is erased"
    assert "last ended: succeeded" in after, "what came last is told too"
    assert "started" not in seen


async def test_the_table_is_drawn_again_when_something_changes(terminal):
    states = iter([STATUS])
    view = live.Live(terminal.stream, True, lambda: NOW)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(view.run, lambda: next(states, InstanceStatus((job("newcomer"),))))
        await terminal.until("broken")
        await terminal.until("newcomer")
        nursery.cancel_scope.cancel()


async def test_a_terminal_that_takes_nothing_holds_up_nobody(terminal):
    """As after Ctrl-S: the loop goes on, and the end comes within its second."""
    many = InstanceStatus(tuple(job(f"job{n}" + "x" * 60) for n in range(26)))
    termios.tcflow(terminal.stream.fileno(), termios.TCOOFF)
    view = live.Live(terminal.stream, False, lambda: NOW)
    calls = 0

    def status():
        nonlocal calls
        calls += 1
        return many

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(view.run, status)
            while not calls:
                await trio.sleep(0)
            for _ in range(1000):
                await trio.sleep(0)
            nursery.cancel_scope.cancel()
    termios.tcflow(terminal.stream.fileno(), termios.TCOON)
    await terminal.until("job0")


async def test_a_drawing_that_comes_late_does_not_hide_the_cursor_again(terminal):
    """The end comes while a worker thread is about to draw the first table."""
    drawing, go_on = threading.Event(), threading.Event()

    def clock():
        drawing.set()
        go_on.wait(10)
        return NOW

    view = live.Live(terminal.stream, False, clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(view.run, lambda: STATUS)
        await trio.to_thread.run_sync(drawing.wait)
        nursery.cancel_scope.cancel()
    go_on.set()
    with trio.fail_after(10):
        await terminal.until("\x1b[?25h")
    assert "\x1b[?25l" not in terminal.seen[terminal.seen.rindex("\x1b[?25h") :]


async def test_a_terminal_that_goes_away_ends_the_drawing_only(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    view = live.Live(terminal.stream, False, lambda: NOW)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(view.run, lambda: STATUS)
        await terminal.until("cpus 3/4")
        os.close(terminal.master)
        while not view._gone:
            await trio.sleep(0)
        nursery.cancel_scope.cancel()
    with contextlib.suppress(OSError):  # where its buffer was not empty
        terminal.stream.close()


@pytest.mark.parametrize(
    ("environ", "shown"), [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({}, False)]
)
def test_when_there_is_a_live_table(terminal, environ, shown):
    assert live.available(terminal.stream, environ) is shown
    assert not live.available(io.StringIO(), environ)


def test_without_rich_there_is_none(terminal, monkeypatch):
    monkeypatch.setattr(live.importlib.util, "find_spec", lambda _name: None)
    assert not live.available(terminal.stream, {"TERM": "xterm"})
