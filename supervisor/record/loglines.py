"""The lines of a stream: cut, with the times that stand before them, from the end backwards.

A line is never waited for longer than its run: what has come of it can be had (`Lines.rest`), and
what is longer than LONGEST comes in pieces.

May import: `errors`, `model`, `record.{logs,runs}`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from supervisor.errors import KernelError
from supervisor.record.logs import CHUNK, Reader
from supervisor.record.runs import StateDir, safe_name

LONGEST = 64 * 1024
STAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z ")
STAMP_LENGTH = 28
STREAMS = ("out", "err")


@frozen
class Logged:
    """A run that may have log files, as its spec.json describes it."""

    state: StateDir
    run: str
    job: str
    group: str
    log: dict[str, Any]

    @property
    def stamped(self) -> bool:
        return bool(self.log.get("timestamps"))

    @property
    def has_files(self) -> bool:
        return "files" in self.log.get("sink", ("files",))

    def path(self, stream: str) -> Path:
        return self.state.log(self.job, self.run, stream)


def runs_of(state: StateDir, job: str) -> list[Logged]:
    """The runs of a job, the oldest first; of a matrix's own name, of all its members.

    Raises KernelError.
    """
    try:
        names = sorted(n for n in os.listdir(state.runs) if _may_be(n, safe_name(job)))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise KernelError("read", str(state.runs), error.errno or 0) from error
    there = (run_of(state, name) for name in names)
    return [one for one in there if one is not None and job in (one.job, one.group)]


def _may_be(name: str, job: str) -> bool:
    own = name.partition("-")[2]
    return own == job or own.startswith(job + "@")


def run_of(state: StateDir, run: str) -> Logged | None:
    """The run of this id; None where its description is not there, or is none."""
    if "/" in run or run.startswith("."):
        return None
    try:
        spec = json.loads(state.spec(run).read_bytes())["spec"]
        log = dict(spec.get("log") or {})
        return Logged(state, run, str(spec["name"]), str(spec.get("group", "")), log)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@frozen
class Line:
    """A line, or a piece of one: `data` has neither its time nor its end.

    `begins` and `ends`: whether the line does with this piece.  `time` as it was written, or "".
    """

    data: bytes
    time: str = ""
    begins: bool = True
    ends: bool = True


@define
class Lines:
    """The lines of one stream, from position `at` on."""

    reader: Reader
    stamped: bool
    at: int = 0
    gone: int = 0
    """Bytes that were there no more when they were to be read."""
    _held: bytes = b""
    _begins: bool = True
    _time: str = field(default="", init=False)

    def take(self) -> list[Line]:
        """The whole lines of what has come; empty when there are none now.  Raises OSError."""
        while True:
            at, data = self.reader.read(self.at)
            if not data:
                return []
            if at > self.at:
                if self._held:  # of this line no more will come
                    return [self._piece(self._taken(), ends=False)]
                self.gone += at - self.at
                self._begins = True
            self.at = at + len(data)
            if found := list(self._cut(data)):
                return found

    def rest(self, *, last: bool) -> Line | None:
        """What has come of a line that is not whole; `last`: and nothing follows.

        Else what follows belongs to it; of its time alone nothing is told yet.
        """
        early = self.stamped and self._begins and len(self._held) <= STAMP_LENGTH and not last
        if not self._held or early:
            return None
        return self._piece(self._taken(), ends=False)

    def _taken(self) -> bytes:
        data, self._held = self._held, b""
        return data

    def _cut(self, data: bytes) -> Iterator[Line]:
        *whole, rest = (self._held + data).split(b"\n")
        self._held = b""
        for line in whole:
            yield from self._pieces(line)
            yield self._piece(self._held, ends=True)
            self._held = b""
        self._held = rest
        yield from self._pieces(rest)

    def _pieces(self, data: bytes) -> Iterator[Line]:
        """All of a long line but its last piece, which is held."""
        while len(data) > LONGEST:
            yield self._piece(data[:LONGEST], ends=False)
            data = data[LONGEST:]
        self._held = data

    def _piece(self, data: bytes, *, ends: bool) -> Line:
        if self._begins:
            self._time = ""
            if self.stamped and STAMP.match(data):
                self._time = data[: STAMP_LENGTH - 1].decode()
                data = data[STAMP_LENGTH:]
        line = Line(data, self._time, self._begins, ends)
        self._begins = ends
        return line


def _between(reader: Reader, start: int, end: int) -> bytes:
    """What stands there, of several files if need be; less where that is gone."""
    data = b""
    while start + len(data) < end:
        at, more = reader.read(start + len(data), end - start - len(data))
        if not more or at != start + len(data):
            break
        data += more
    return data


def tail(reader: Reader, count: int) -> int:
    """The position at which the last `count` lines begin.  Raises OSError."""
    first, end = reader.bounds()
    if not count:
        return end
    at, left = end, count
    while at > first:
        start = max(at - CHUNK, first)
        data = _between(reader, start, at)
        if len(data) < at - start:
            return at  # what is in front of it is rotated away while it is read
        last = len(data) - (1 if at == end and data.endswith(b"\n") else 0)
        while (found := data.rfind(b"\n", 0, last)) >= 0:
            left -= 1
            if not left:
                return start + found + 1
            last = found
        at = start
    return first
