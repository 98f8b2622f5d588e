"""Where a stream that the supervisor copies goes: to a caller's stream, a log file, the journal.

May import: `errors`, `record`.  What is written blocks, and is called in threads (`output`).  A
target shapes what it is given (a time before each line), takes it piece by piece, and then says
how much of it has arrived: what has not is counted, and never waited for.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from attrs import evolve

from supervisor.record import journald, logs
from supervisor.record.logs import Busy, Index, Part

PIECE = 4096
"""Bytes for one write(2): somebody who reads slowly is seen to take them (PIPE_BUF, pipe(7))."""
CHUNK = 64 * 1024

LONGEST_LINE = 48 * 1024
"""Bytes of one entry in the journal, as systemd's own LineMax= (journald.conf(5))."""
JOURNAL_WAIT = 5
"""Seconds that a journal which takes nothing holds up a job: once, until it takes something."""


def stamp(at: float) -> bytes:
    """What stands before a line that came at this Unix time."""
    moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")
    return moment.replace("+00:00", "Z ").encode()


class Target:
    """One place for one stream.

    `lost` bytes of it have not arrived, for the reason in `why`; `arrived` have.
    """

    piece = PIECE
    passing = False
    """Whether a write that has failed may succeed the next time."""

    def __init__(self, *, stamps: bool = False, clock: Callable[[], float] = time.time) -> None:
        self.arrived = 0
        self.lost = 0
        self.why = ""
        self._clock = clock if stamps else None
        self._at_start = True
        self._torn = False
        self._lead = self._stamp = b""

    def write(self, data: bytes) -> int:
        """Some of the bytes: how many.  Raises OSError."""
        raise NotImplementedError

    def finish(self) -> None:
        """Nothing more comes.  Raises OSError."""

    def close(self) -> None:
        """What it holds open is closed."""

    def shape(self, data: bytes) -> bytes:
        """As it is to be written: with the time before each line, if that is wanted."""
        self._stamp = stamp(self._clock()) if self._clock else b""
        broken = b"\n" if self._torn and not self._at_start else b""
        self._lead = broken + (self._stamp if self._at_start or broken else b"")
        if not self._stamp:
            return broken + data
        body = data.replace(b"\n", b"\n" + self._stamp)
        return self._lead + (body[: -len(self._stamp)] if data.endswith(b"\n") else body)

    def settle(self, data: bytes, done: int, why: str) -> None:
        """Of the shape of `data`, `done` bytes have been written; `why` not more."""
        whole = self._length(data, len(data)) <= done
        count = len(data) if whole else self._count(data, done)
        self._take_back(done - self._length(data, count))
        self._torn = (self._torn and not count) or count < len(data)
        if count:
            self._at_start = data[count - 1 : count] == b"\n"
        self.arrived += count
        if count < len(data):
            self.lost += len(data) - count
            self.why = why

    def drop(self, data: bytes) -> None:
        """Bytes that are not even tried."""
        self.lost += len(data)
        self._torn = True

    def _length(self, data: bytes, count: int) -> int:
        """Of the shape of the first `count` bytes."""
        if not count:
            return 0
        return len(self._lead) + count + len(self._stamp) * data.count(b"\n", 0, count - 1)

    def _count(self, data: bytes, done: int) -> int:
        """How many bytes of `data` are whole in the first `done` of its shape."""
        return bisect_right(range(1, len(data) + 1), done, key=lambda n: self._length(data, n))

    def _take_back(self, size: int) -> None:
        """A time without its line, at the end of what was written."""


class Stream(Target):
    """The caller's own stream, which may be of any kind, and is set as he has set it."""

    def __init__(self, fd: int, *, stamps: bool = False) -> None:
        super().__init__(stamps=stamps)
        self._fd = fd

    def write(self, data: bytes) -> int:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            room = select.poll()
            room.register(self._fd, select.POLLOUT)
            room.poll()
            return 0


class File(Target):
    """A log file that nobody else writes: rotated by renaming, between two lines where it can be.

    A disk without room is tried again with the next bytes.
    """

    piece = CHUNK
    passing = True

    def __init__(
        self,
        path: Path,
        *,
        stamps: bool = False,
        max_size: int | None = None,
        keep: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises OSError."""
        super().__init__(stamps=stamps, clock=clock)
        self.path = path
        self._max_size = max_size
        self._keep = keep
        self._writer: logs.Writer | None = None
        self._fd = self._open()
        self._size = os.fstat(self._fd).st_size
        if max_size is not None:
            self._writer = logs.Writer(path)
            with suppress(OSError):  # told when there is something to rotate
                self._writer.prepare(keep)

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> int:
        if self._max_size is not None and self._size + len(data) > self._max_size:
            fits = max(self._max_size - self._size, 0)
            ends = data.rfind(b"\n", 0, fits) + 1
            if ends or (not self._size and fits):
                data = data[: ends or fits]
            elif self._size:
                self._rotate()
                data = data[: max(self._max_size - self._size, PIECE)]
        written = os.write(self._fd, data)
        self._size += written
        return written

    def _take_back(self, size: int) -> None:
        if size > 0:
            self._size = max(self._size - size, 0)
            with suppress(OSError):  # then a time stands there without its line
                os.ftruncate(self._fd, self._size)

    def _rotate(self) -> None:
        """Where a reader looks just now, or there is no room for another file, the next time."""
        assert self._writer is not None
        with self._writer.changing() as mine:
            if mine:
                with suppress(OSError):
                    self._renamed(self._writer)

    def _renamed(self, writer: logs.Writer) -> None:
        index = writer.index
        part = Part(writer.next_number(), index.start, self._size)
        parts = (*index.parts, part)[-self._keep :] if self._keep else ()
        after = Index(part.end, part.end, parts)
        busy = Busy("rename", self._size, part.number, (index.base, index.start))
        new = logs.part_path(self.path, part.number)
        writer.write(evolve(after, parts=(*index.parts, part), busy=busy))
        try:
            self.path.rename(new)
            fd = self._open()
        except OSError:
            if new.exists():
                new.rename(self.path)
            writer.write(index)
            raise
        os.close(self._fd)
        self._fd, self._size = fd, 0
        writer.write(after)
        for old in (*index.parts, part):
            if old not in parts:
                logs.part_path(self.path, old.number).unlink(missing_ok=True)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._writer is not None:
            self._writer.close()


class Journal(Target):
    """systemd's journal: an entry for each line.

    A line longer than LONGEST_LINE becomes several.  A journal that takes nothing holds the job up
    for JOURNAL_WAIT seconds; from then on what it does not take at once is lost, until it takes
    something again.
    """

    piece = CHUNK
    passing = True

    def __init__(self, fields: Mapping[str, str], path: str = "") -> None:
        super().__init__()
        self._fields = journald.encode({name: text.encode() for name, text in fields.items()})
        self._path = path or os.environ.get("SUPERVISE_JOURNAL_SOCKET", journald.SOCKET)
        self._socket: socket.socket | None = None
        self._line = b""
        self._stuck = False

    def write(self, data: bytes) -> int:
        """What was taken over may yet be lost: lines are sent when they are whole."""
        taken = len(data)
        *whole, self._line = (self._line + data).split(b"\n")
        for line in whole:
            self._send(line, b"\n")
        while len(self._line) > LONGEST_LINE:
            head, self._line = self._line[:LONGEST_LINE], self._line[LONGEST_LINE:]
            self._send(head)
        return taken

    def finish(self) -> None:
        if self._line:
            line, self._line = self._line, b""
            self._send(line)

    def _send(self, line: bytes, end: bytes = b"") -> None:
        """Of a long line a part after the other."""
        for at in range(0, max(len(line), 1), LONGEST_LINE):
            piece = line[at : at + LONGEST_LINE]
            try:
                self._send_one(piece)
            except OSError as error:
                self._stuck = self._stuck or error.errno == errno.EAGAIN
                self._forget()
                count = len(piece) + (len(end) if at + LONGEST_LINE >= len(line) else 0)
                self.lost += count
                self.arrived -= count
                self.why = f"{self._path}: {error.strerror}"

    def _send_one(self, line: bytes) -> None:
        if self._socket is None:
            self._socket = self._connected()
        journald.send(self._socket, self._fields + journald.encode({"MESSAGE": line}))
        if self._stuck:
            self._stuck = False
            self._forget()  # the next one is waited for again

    def _connected(self) -> socket.socket:
        one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            one.setblocking(not self._stuck)
            if not self._stuck:
                wait = struct.pack("@ll", JOURNAL_WAIT, 0)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
            one.connect(self._path)
        except OSError:
            one.close()
            raise
        return one

    def _forget(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        self._forget()
