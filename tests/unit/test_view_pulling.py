"""How the getting of an image is shown: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import termios

import pytest
import trio

pytest.importorskip("rich", reason="the bars need the extra `cli`")

from supervisor.front import live, pulling
from supervisor.front.pulling import Pulling
from supervisor.image.progress import Progress

M = 1 << 20
A, B = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"


async def heard(view, *progress):
    """All of it told while the view runs."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(view.run)
        for one in progress:
            view(one)
        nursery.cancel_scope.cancel()


async def test_elsewhere_each_step_is_a_line():
    stream = io.StringIO()
    await heard(
        Pulling(stream, live=False),
        Progress(A, "downloading", 1 * M, 4 * M),
        Progress(A, "downloading", 2 * M, 4 * M),
        Progress(A, "retrying", 2 * M, 4 * M, "it broke off; again in 0.5 s"),
        Progress(A, "downloading", 3 * M, 4 * M),
        Progress(B, "present", 7 * M, 7 * M),
        Progress(A, "unpacking", 4 * M, 4 * M),
        Progress(A, "done", 4 * M, 4 * M),
        Progress("docker://h/a\x1b[2J", "retrying", note="no\nanswer"),
    )
    assert stream.getvalue().splitlines() == [
        "supervise: aaaaaaaaaaaa: downloading 4.0M",
        "supervise: aaaaaaaaaaaa: it broke off; again in 0.5 s",
        "supervise: aaaaaaaaaaaa: downloading 4.0M",
        "supervise: bbbbbbbbbbbb: present 7.0M",
        "supervise: aaaaaaaaaaaa: unpacking 4.0M",
        "supervise: aaaaaaaaaaaa: done 4.0M",
        "supervise: docker://h/a\\x1b[2J: no\\nanswer",
    ]


def drawn(blobs, rate=None, width=100, height=24):
    stream = io.StringIO()
    console = live.make_console(stream, False, width=width, height=height)
    console.print(pulling.table(blobs, rate, width, height))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_a_bar_for_each_layer_and_a_line_of_totals():
    blobs = [Progress(A, "downloading", 1 * M, 4 * M), Progress(B, "present", 8 * M, 8 * M)]
    first, second, last = drawn(blobs, 512 * 1024)
    assert first.startswith("aaaaaaaaaaaa  downloading  ━") and first.endswith("1.0M/4.0M")
    assert second.startswith("bbbbbbbbbbbb  present") and second.endswith("━  8.0M")
    assert last == "1 of 2 layers, 9.0M of 12.0M, 512.0K/s"


def test_what_moves_is_shown_first_where_not_all_fits():
    blobs = [Progress(f"sha256:{n:064x}", "done", M, M) for n in range(50)]
    blobs.append(Progress(A, "downloading", 1, 0))
    found = drawn(blobs, height=6, width=50)
    assert len(found) == 4 and found[0].startswith("aaaaaaaaaaaa  downloading")
    assert found[-1].startswith("50 of 51 layers")


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    with open(slave, "w", encoding="utf-8") as stream:  # noqa: PTH123
        yield stream, master
        os.close(master)


async def until(master, text):
    seen = b""
    with trio.fail_after(20):
        while text.encode() not in seen:
            await trio.lowlevel.wait_readable(master)
            seen += os.read(master, 65536)
    return seen.decode()


async def test_on_a_terminal_bars_are_drawn_and_taken_away(terminal):
    stream, master = terminal
    view = Pulling(stream, live=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(view.run)
        view(Progress(A, "downloading", 1 * M, 4 * M))
        await until(master, "0 of 1 layers, 1.0M of 4.0M")
        view(Progress(A, "retrying", 2 * M, 4 * M, "it broke off"))
        await until(master, "supervise: aaaaaaaaaaaa: it broke off")
        nursery.cancel_scope.cancel()
    assert "\x1b[?25h" in await until(master, "\x1b[?25h")  # the cursor is back


async def test_a_terminal_that_goes_away_stops_nothing(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    pair, slave = pty.openpty()
    other = open(slave, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    view = Pulling(other, live=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(view.run)
        view(Progress(A, "downloading", 1 * M, 4 * M))
        await until(pair, "0 of 1 layers")
        os.close(pair)
        while not view._gone:
            await trio.sleep(0)
        view(Progress(A, "done", 4 * M, 4 * M))
        nursery.cancel_scope.cancel()
    with contextlib.suppress(OSError):  # where its buffer was not empty
        other.close()
