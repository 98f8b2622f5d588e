"""How far images have come that are being got: a bar for each layer on a terminal, lines elsewhere.

rich is the extra `cli`; without it, or without a terminal, each step of a layer is one line.
Nothing here ever holds up who gets the image: `Pulling` only takes notes, and a worker thread
draws them.  May import: `model`, `image.progress`, `front.lines`, `front.live`, trio, rich (inside
functions).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING, TextIO

import trio

from supervisor.front import lines
from supervisor.front.live import PERIOD, make_console, rich_live
from supervisor.image.progress import Progress, Step

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live as RichLive

AT_REST: frozenset[Step] = frozenset({"done", "present"})
BAR = 30


class Pulling:
    """A `progress.Listener` that shows what it hears on a stream while `run` runs.

    live     draw bars (`front.live.available` says whether that can be)
    colour   in colours
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        live: bool,
        colour: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._live = live
        self._colour = colour
        self._clock = clock
        self._blobs: dict[str, Progress] = {}
        self._lines: list[str] = []
        self._came = 0
        self._since: float | None = None
        self._noting = Lock()
        self._writing = Lock()
        self._gone = False

    def __call__(self, progress: Progress) -> None:
        """Take note; any thread may call it."""
        with self._noting:
            before = self._blobs.get(progress.digest)
            self._count(before, progress)
            if progress.step != "retrying" or progress.total:
                self._blobs[progress.digest] = progress
            line = self._line(before, progress)
            if line:
                self._lines.append(line)

    def _count(self, before: Progress | None, now: Progress) -> None:
        """Bytes that came while we looked; what was there before a first look did not."""
        if now.step != "downloading" or before is None or before.step != "downloading":
            return
        if self._since is None:
            self._since = self._clock()
        self._came += max(now.done - before.done, 0)

    def _line(self, before: Progress | None, now: Progress) -> str:
        """What is worth a line: notes always; steps only where there are no bars."""
        same = before is not None and (before.step, before.note) == (now.step, now.note)
        if same or (self._live and not now.note):
            return ""
        return line_of(now)

    async def run(self) -> None:
        """Show it until cancelled; then the bars go and the lines stay."""
        view = rich_live(make_console(self._stream, self._colour)) if self._live else None
        try:
            while not self._gone:
                await trio.to_thread.run_sync(self._show, view, abandon_on_cancel=True)
                await trio.sleep(PERIOD)
            await trio.sleep_forever()
        finally:
            # A terminal that takes nothing for a second is left as it is.
            with trio.move_on_after(1, shield=True):
                await trio.to_thread.run_sync(self._end, view, abandon_on_cancel=True)

    def _show(self, view: RichLive | None) -> None:
        with self._writing:
            try:
                self._write_lines(view)
                blobs = self._now()
                if view is not None and blobs:
                    self._draw(view, blobs)
            except OSError as error:
                self._gone = error.errno in lines.GONE

    def _now(self) -> list[Progress]:
        with self._noting:
            return list(self._blobs.values())

    def _draw(self, view: RichLive, blobs: Sequence[Progress]) -> None:
        if self._gone:
            return  # the end has been drawn already
        width, height = os.get_terminal_size(self._stream.fileno())
        view.console.size = (width or 80, height or 24)
        elapsed = self._clock() - self._since if self._since is not None else 0.0
        rate = self._came / elapsed if elapsed > 1 else None
        view.update(table(blobs, rate, *view.console.size))
        if not view.is_started:
            view.start()
        view.refresh()

    def _write_lines(self, view: RichLive | None) -> None:
        with self._noting:
            found, self._lines = self._lines, []
        if not found:
            return
        if view is not None:
            view.console.print("\n".join(found), soft_wrap=True)
        else:
            self._stream.write("".join(f"{line}\n" for line in found))
            self._stream.flush()

    def _end(self, view: RichLive | None) -> None:
        with self._writing:
            try:
                if view is not None:
                    view.stop()
                self._write_lines(view)
            except OSError:
                pass  # whoever looked has gone; the image has been got all the same
            self._gone = True


def line_of(progress: Progress) -> str:
    """One step as a line."""
    size = f" {lines.size(progress.total)}" if progress.total else ""
    what = f"{progress.step}{size}" if progress.step != "retrying" else ""
    note = f"{', ' if what else ''}{lines.clean(progress.note)}" if progress.note else ""
    return f"supervise: {short(progress.digest)}: {what}{note}"


def short(digest: str) -> str:
    """The first digits of a digest, as tools show them; any other text as it is."""
    kind, _, digits = digest.partition(":")
    return digits[:12] if kind == "sha256" else lines.clean(digest)


def table(blobs: Sequence[Progress], rate: float | None, width: int, height: int) -> Group:
    """The blobs that fit `height` lines (those that move first), and a line of totals."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    moving = [one for one in blobs if one.step not in AT_REST]
    shown = [*moving, *(one for one in blobs if one.step in AT_REST)][: max(height - 3, 1)]
    grid = Table.grid(padding=(0, 2, 0, 0))
    for one in shown:
        cells = [Text(short(one.digest)), Text(one.step)]
        if width >= 60:
            full = one.step in AT_REST or one.step == "unpacking"
            bar = ProgressBar(total=1, completed=1 if full else _part(one), width=BAR)
            cells.append(bar)  # type: ignore[arg-type]  # a row holds anything that rich renders
        grid.add_row(*cells, Text(_sizes(one)))
    return Group(grid, Text(totals(blobs, rate), style="dim"))


def _part(one: Progress) -> float:
    return min(one.done / one.total, 1.0) if one.total else 0.0


def _sizes(one: Progress) -> str:
    if not one.total:
        return ""
    if one.step in AT_REST:
        return lines.size(one.total)
    return f"{lines.size(one.done)}/{lines.size(one.total)}"


def totals(blobs: Sequence[Progress], rate: float | None) -> str:
    """All of them in one line; `rate` is in bytes a second."""
    ready = sum(one.step in AT_REST for one in blobs)
    done = sum(one.total if one.step in AT_REST else one.done for one in blobs)
    total = sum(one.total for one in blobs)
    speed = f", {lines.size(rate)}/s" if rate is not None else ""
    return f"{ready} of {len(blobs)} layers, {lines.size(done)} of {lines.size(total)}{speed}"
