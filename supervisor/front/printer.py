"""Entries of the event log as lines on a stream, without ever holding up the event loop.

May import: `front.{lines,outlet}`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TextIO

from supervisor.front.lines import GONE, Entry, lost
from supervisor.front.outlet import Outlet


class Printer(Outlet[str]):
    """Writes entries to a stream, line by line, from a worker thread.

    A subscriber of the event log that never blocks: a terminal stopped by Ctrl-S, or a pipe
    nobody reads, holds up the lines but no job.
    """

    def __init__(self, stream: TextIO, render: Callable[[Entry], str | None]) -> None:
        super().__init__()
        self._stream = stream
        self._render = render

    def __call__(self, entry: Entry) -> None:
        line = self._render(entry)
        if line is not None:
            self.say(line)

    def take(self) -> str:
        """All that waits, as text ready to be written; empty when nothing does."""
        return _text(*self.drain())

    def write(self, items: Sequence[str], dropped: int) -> None:
        encoding = self._stream.encoding or "utf-8"
        text = _text(items, dropped)
        try:
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        except OSError as error:
            # A full disk may have room again (the stream keeps its buffer); the log has it all.
            self.closed = error.errno in GONE


def _text(lines: Sequence[str], dropped: int) -> str:
    return "".join(line + "\n" for line in (*lines, *([lost(dropped)] if dropped else ())))
