"""The live table: what every job is doing now, redrawn in place on a terminal.

`table` is pure (status in, rich table out); `Live` draws it four times a second while it is
shown, from a worker thread, so that a terminal stopped by Ctrl-S holds up no job.  Lines worth
keeping (ends, decisions, warnings) scroll by above it.

rich is the extra `cli`: `available` says whether this view can be had; `front.lines` is the
other one.  May import: `errors`, `model`, trio, rich (inside functions).
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any, TextIO

import trio
from attrs import frozen

from supervisor.front import lines
from supervisor.front.printer import Printer
from supervisor.model.record import Reason
from supervisor.model.state import State
from supervisor.model.status import Capacity, InstanceStatus, JobStatus

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live as RichLive
    from rich.table import Table
    from rich.text import Text

PERIOD = 0.25
"""Seconds between two drawings."""

STATE_COLOURS = {
    State.WAITING: "dim",
    State.STARTING: "cyan",
    State.RUNNING: "green",
    State.HELD: "bold red",
    State.FROZEN: "blue",
    State.STOPPING: "yellow",
    State.BACKOFF: "yellow",
}

ABOVE = frozenset(
    {"oom_kill", "decision", "limit_changed", "job_ended", "retry", "notify", "warning"}
    | {"cleanup_failed", "restart", "copied_out", "kept", "output_lost"}
)
"""The entries whose line is kept above the table; the table itself shows the others."""


def available(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether `stream` is a terminal that can be drawn on, and rich is installed."""
    return lines.is_terminal(stream, environ) and importlib.util.find_spec("rich") is not None


@frozen
class Column:
    """One column: its heading, the least width of terminal it is shown at, and its cell."""

    heading: str
    at: int
    right: bool
    cell: Callable[[JobStatus, float, int], Text | str]


def table(status: InstanceStatus, now: float, width: int, height: int) -> Group:
    """The jobs that fit `height` lines (the living first), the rest counted, and the totals."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    # The heading, the two lines below, and the line the cursor stands in.
    shown, hidden = choose(status.jobs, max(height - 4, 1))
    columns = [column for column in COLUMNS if width >= column.at]
    grid = Table(box=None, padding=(0, 2, 0, 0), width=width, show_edge=False, pad_edge=False)
    for column in columns:
        _add_column(grid, column)
    for job in shown:
        grid.add_row(*(column.cell(job, now, width) for column in columns))
    below = [line for line in (_hidden(hidden), totals(status)) if line]
    feet = [Text(line, "dim", no_wrap=True, overflow="ellipsis") for line in below]
    return Group(grid, *feet)


def _add_column(grid: Table, column: Column) -> None:
    last = column.heading == "note"
    grid.add_column(
        column.heading,
        justify="right" if column.right else "left",
        no_wrap=True,
        overflow="ellipsis",
        ratio=1 if last else None,
        header_style="bold",
    )


def rank(job: JobStatus) -> int:
    """What asks for attention first: held, living, badly ended, waiting, done."""
    if job.state is State.ENDED:
        return 4 if job.expected else 2
    return {State.HELD: 0, State.WAITING: 3}.get(job.state, 1)


def choose(jobs: tuple[JobStatus, ...], room: int) -> tuple[list[JobStatus], list[JobStatus]]:
    """Which jobs are shown in `room` lines, which are not; in their order when all fit."""
    if len(jobs) <= room:
        return list(jobs), []
    ordered = sorted(jobs, key=rank)
    return ordered[:room], ordered[room:]


def _hidden(jobs: list[JobStatus]) -> str:
    """`… 12 more waiting, 3 ended`."""
    counts = Counter(job.state for job in jobs)
    return (
        "… "
        + ", ".join(
            f"{count}{' more' * (not place)} {state}"
            for place, (state, count) in enumerate(counts.items())
        )
        if jobs
        else ""
    )


def totals(status: InstanceStatus) -> str:
    """`3 running, 12 waiting, 5 ended (1 not as expected)  memory 512.0M/2.0G  cpus 3/4`."""
    counts = Counter(job.state for job in status.jobs)
    words = [f"{counts[state]} {state}" for state in State if counts[state]]
    bad = sum(job.state is State.ENDED and not job.expected for job in status.jobs)
    return ", ".join(words) + (f" ({bad} not as expected)" if bad else "") + _use(status.capacity)


def _use(capacity: Capacity) -> str:
    parts = []
    if capacity.jobs_limit is not None:
        parts.append(f"jobs {capacity.jobs}/{capacity.jobs_limit}")
    if capacity.memory_limit is not None:
        parts.append(f"memory {lines.size(capacity.memory)}/{lines.size(capacity.memory_limit)}")
    if capacity.cpus_limit is not None:
        parts.append(f"cpus {lines.number(capacity.cpus)}/{lines.number(capacity.cpus_limit)}")
    return "".join("  " + part for part in parts)


def bar(used: float | None, limit: float | None, length: int = 8) -> Text:
    """How much of `limit` is used: yellow from 70 %, red from 90 %."""
    from rich.text import Text

    if used is None or not limit:
        return Text("")
    share = min(max(used / limit, 0.0), 1.0)
    full = round(share * length)
    style = "red" if share >= 0.9 else "yellow" if share >= 0.7 else "green"
    return Text.assemble(("━" * full, style), ("─" * (length - full), "dim"))


def _name(job: JobStatus, _now: float, width: int) -> Text | str:
    """The name, cut in its middle: members of a matrix differ at the end."""
    from rich.text import Text

    name, most = lines.clean(job.name), width // 4
    if len(name) > most:
        name = name[: most // 2] + "…" + name[most // 2 + 1 - most :]
    return Text(name)


def _state(job: JobStatus, _now: float, _width: int) -> Text | str:
    from rich.text import Text

    if job.state is not State.ENDED:
        return Text(job.state, style=STATE_COLOURS[job.state])
    good = "green" if job.reason == Reason.SUCCEEDED else "yellow"
    return Text(job.reason or job.state, style=good if job.expected else "bold red")


def _time(job: JobStatus, now: float, _width: int) -> Text | str:
    if job.since is None:
        return ""
    return lines.duration((now if job.ended is None else job.ended) - job.since)


def _cpu(job: JobStatus, _now: float, _width: int) -> Text | str:
    return "" if job.cpu_percent is None else f"{job.cpu_percent:.0f}%"


def _memory(job: JobStatus, _now: float, width: int) -> Text | str:
    from rich.text import Text

    if job.memory is None:
        return ""
    text = lines.size(job.memory)
    if job.memory_limit is not None:
        text += "/" + lines.size(job.memory_limit)
    small = bar(job.memory, job.memory_limit)
    return Text.assemble(small, " " * bool(small), text) if width >= 110 else Text(text)


def _pids(job: JobStatus, _now: float, _width: int) -> Text | str:
    if job.pids is None:
        return ""
    return f"{job.pids}" if job.pids_limit is None else f"{job.pids}/{job.pids_limit}"


def _note(job: JobStatus, _now: float, _width: int) -> Text | str:
    from rich.text import Text

    parts = []
    if job.waiting_for:
        parts.append(f"waits for {job.waiting_for}")
    if job.state is State.BACKOFF and job.reason:
        parts.append(f"after {job.reason}")
    if job.state is State.HELD:
        parts.append("at its memory limit")
    if job.attempt > 1:
        parts.append(f"attempt {job.attempt}")
    return Text(lines.clean(", ".join(parts)))


COLUMNS = (
    Column("job", 0, False, _name),
    Column("state", 0, False, _state),
    Column("time", 0, True, _time),
    Column("CPU", 76, True, _cpu),
    Column("memory", 0, True, _memory),
    Column("pids", 96, True, _pids),
    Column("note", 60, False, _note),
)


class Live:
    """The table on a terminal, with the lines above it; a subscriber of the event log too."""

    def __init__(self, stream: TextIO, colour: bool, clock: Callable[[], float]) -> None:
        """Draw on `stream`; `clock` gives Unix time.  rich must be there (`available`)."""
        self._stream = stream
        self._colour = colour
        self._clock = clock
        self._notes = Printer(stream, self._note_line)
        self._console = make_console(stream, colour)
        self._gone = False
        self._ended = False
        self._drawing = Lock()

    def __call__(self, entry: lines.Entry) -> None:
        self._notes(entry)

    def _note_line(self, entry: lines.Entry) -> str | None:
        return lines.line_of(entry, self._colour) if entry["event"] in ABOVE else None

    async def run(self, status: Callable[[], InstanceStatus]) -> None:
        """Show `status()` until cancelled; then the table goes and the lines stay.

        `status` is called in the event loop, and only while the table is shown.
        """
        live = rich_live(self._console)
        try:
            while not self._gone:
                await self._draw(live, status())
                await trio.sleep(PERIOD)
            await trio.sleep_forever()
        finally:
            # A terminal that takes nothing for a second is left as it is.
            with trio.move_on_after(1, shield=True):
                await trio.to_thread.run_sync(self._end, live, abandon_on_cancel=True)

    async def _draw(self, live: RichLive, status: InstanceStatus) -> None:
        await trio.to_thread.run_sync(self._refresh, live, status, abandon_on_cancel=True)

    def _refresh(self, live: RichLive, status: InstanceStatus) -> None:
        """In a worker thread, which may come to it only when the end has been drawn already."""
        with self._drawing:
            if not self._ended:
                self._show(live, status)

    def _show(self, live: RichLive, status: InstanceStatus) -> None:
        try:
            # Of this stream: rich asks standard input first.  0 is what a serial line says.
            width, height = os.get_terminal_size(self._stream.fileno())
            self._console.size = (width or 80, height or 24)
            self._above()
            live.update(table(status, self._clock(), *self._console.size))
            if not live.is_started:
                live.start()
            live.refresh()
        except OSError as error:
            self._gone = error.errno in lines.GONE

    def _above(self) -> None:
        text = self._notes.take()
        if text:
            self._console.print(_ansi(text), end="", soft_wrap=True)

    def _end(self, live: RichLive) -> None:
        with self._drawing:
            self._ended = True
            try:
                live.stop()
                self._above()
            except OSError as error:
                self._gone = error.errno in lines.GONE


def make_console(stream: TextIO, colour: bool, **settings: Any) -> Console:
    """A rich console that decides nothing by itself: colours are the caller's choice."""
    from rich.console import Console

    return Console(
        file=stream,
        force_terminal=True,
        no_color=not colour,
        color_system="standard" if colour else None,
        highlight=False,
        markup=False,
        emoji=False,
        **settings,
    )


def rich_live(console: Console) -> RichLive:
    from rich.live import Live as RichLive

    return RichLive(
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        vertical_overflow="crop",
    )


def _ansi(text: str) -> Text:
    from rich.text import Text

    return Text.from_ansi(text.removesuffix("\n") + "\n")
