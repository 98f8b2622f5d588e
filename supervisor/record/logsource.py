"""What is shown of a run's output: which streams, from where on, which lines; and lines as JSON.

May import: `errors`, `model`, `record.{logs,loglines}`.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from attrs import define, frozen

from supervisor.errors import KernelError
from supervisor.record.loglines import Line, Lines, Logged, tail
from supervisor.record.logs import Reader


@define(eq=False)
class Source:
    """One stream of one run, as it is shown."""

    run: Logged
    stream: str
    lines: Lines
    since: str = ""
    _shown: bool = True

    @classmethod
    def open(cls, run: Logged, stream: str, wanted: Wanted) -> Source | None:
        """None where it has no file, or nothing of the time asked for."""
        path = run.path(stream)
        try:
            if not run.stamped and wanted.since and _written(path) < wanted.since:
                return None
            reader = Reader(path)
            at = reader.bounds()[0] if wanted.tail is None else tail(reader, wanted.tail)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KernelError("read", str(path), error.errno or 0) from error
        return cls(run, stream, Lines(reader, run.stamped, at), wanted.since)

    def take(self) -> list[Line]:
        """What has come since, of lines that are wanted.  Raises KernelError."""
        try:
            while found := self.lines.take():
                if kept := [line for line in found if self._wanted(line)]:
                    return kept
        except OSError as error:
            path = str(self.run.path(self.stream))
            raise KernelError("read", path, error.errno or 0) from error
        return []

    def rest(self, *, last: bool) -> list[Line]:
        """What has come of a line without an end; `last`: it has none."""
        line = self.lines.rest(last=last)
        return [line] if line is not None and self._wanted(line) else []

    def _wanted(self, line: Line) -> bool:
        """A line that does not begin goes where its beginning went."""
        if line.begins:
            self._shown = not line.time or line.time >= self.since
        return self._shown

    def all(self) -> Iterator[Line]:
        """To the end there is now."""
        while found := self.take():
            yield from found


def _written(path: Path) -> str:
    at = datetime.fromtimestamp(os.stat(path).st_mtime, UTC)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


@frozen
class Wanted:
    """What of a run is to be shown."""

    streams: tuple[str, ...]
    tail: int | None
    since: str

    def sources(self, run: Logged) -> list[Source]:
        found = (Source.open(run, stream, self) for stream in self.streams)
        return [source for source in found if source is not None]


def entry(source: Source, line: Line) -> dict[str, object]:
    """A line as JSON: `text`, or `base64` where it is no UTF-8; `end` false: no newline follows."""
    found: dict[str, object] = {
        "job": source.run.job,
        "run": source.run.run,
        "stream": source.stream,
    }
    if line.time:
        found["time"] = line.time
    try:
        found["text"] = line.data.decode()
    except UnicodeDecodeError:
        found["base64"] = base64.b64encode(line.data).decode()
    if not line.begins:
        found["begin"] = False
    if not line.ends:
        found["end"] = False
    return found
