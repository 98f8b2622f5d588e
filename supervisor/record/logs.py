"""The files of a run's streams: which there are, and reading them while they are rotated.

    NAME          what was written last; NAME is JOB.STAMP.out or JOB.STAMP.err
    NAME.1, .2    what was written before it, moved out by rotation: .1 first, then .2
    NAME.index    which of them begins where; there once something was moved out

A *position* is the number of bytes in front of it, from the stream's beginning on: no rotation
changes it.  Whoever rotates says in the index what he does before he does it, under a lock
(flock(2)) of that file.  Whoever reads looks at the index before and after, and reads again if it
has changed; he takes the lock only where a rotation is under way, so that no reader, however slow,
holds one up.

May import: `errors`, `model`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from supervisor.errors import KernelError

CHUNK = 256 * 1024
"""Bytes that are read at once."""
COMPARED = 64 * 1024
MOST_INDEX = 1 << 20


@frozen
class Part:
    """NAME.`number`: `size` bytes from position `start` on."""

    number: int
    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


@frozen
class Busy:
    """A rotation under way.  `how`: `collapse` (the file had `size` bytes before) or `rename`.

    `part` is what it makes; `before` the index if it never comes to its end.
    """

    how: str
    size: int
    part: int
    before: tuple[int, int]


@frozen
class Index:
    """`base`: the position of NAME's first byte; `start`: of the first in NAME that is still there.

    `lost` bytes, of those moved out, went nowhere for want of room.
    """

    base: int = 0
    start: int = 0
    parts: tuple[Part, ...] = ()
    lost: int = 0
    busy: Busy | None = field(default=None)

    @property
    def first(self) -> int:
        """The position of the first byte that is still anywhere."""
        return self.parts[0].start if self.parts else self.start

    def undone(self) -> Index:
        """As it was before the rotation that is under way."""
        assert self.busy is not None
        base, start = self.busy.before
        parts = tuple(part for part in self.parts if part.number != self.busy.part)
        return Index(base, start, parts, self.lost)

    def pack(self) -> bytes:
        """One line that tells when it was torn."""
        busy = self.busy and [self.busy.how, self.busy.size, self.busy.part, *self.busy.before]
        parts = [[part.number, part.start, part.size] for part in self.parts]
        found = {"v": 1, "base": self.base, "start": self.start, "lost": self.lost}
        text = json.dumps({**found, "busy": busy, "parts": parts}).encode()
        return b"%08x %s\n" % (zlib.crc32(text), text)


def parse(line: bytes) -> Index | None:
    """None: torn, or no index."""
    check, _, text = line.partition(b"\n")[0].partition(b" ")
    try:
        if int(check, 16) != zlib.crc32(text):
            return None
        return _index(json.loads(text))
    except (ValueError, KeyError, TypeError):
        return None


def _index(found: dict[str, Any]) -> Index:
    busy = found["busy"]
    return Index(
        base=int(found["base"]),
        start=int(found["start"]),
        parts=tuple(Part(*map(int, part)) for part in found["parts"]),
        lost=int(found["lost"]),
        busy=busy and Busy(str(busy[0]), int(busy[1]), int(busy[2]), (int(busy[3]), int(busy[4]))),
    )


def index_path(path: Path) -> Path:
    return path.with_name(path.name + ".index")


def part_path(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def files(path: Path) -> list[Path]:
    """Every file of the stream at `path` that is there: what goes when its run is forgotten."""
    try:
        names = os.listdir(path.parent)
    except FileNotFoundError:
        return []
    heads = (path.name + ".",)
    return [
        path.with_name(name)
        for name in sorted(names)
        if name == path.name or (name.startswith(heads) and _is_ending(name[len(path.name) + 1 :]))
    ]


def _is_ending(text: str) -> bool:
    return text == "index" or (text.isascii() and text.isdigit())


class Writer:
    """The index, for the one who rotates."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self.path = path
        self.index = Index()
        self._last = 0
        self._fd = os.open(index_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def prepare(self, most: int) -> None:
        """Have room for an index of `most` parts, before the disk may be full.  Raises OSError."""
        os.posix_fallocate(self._fd, 0, 512 + 64 * most)
        self._put(self.index.pack())

    @contextmanager
    def changing(self) -> Iterator[bool]:
        """Hold the lock; False where a reader has it just now."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def write(self, index: Index) -> None:
        """Raises OSError: then the index is as it was (a torn one would be noticed)."""
        data = index.pack()
        before = self.index
        try:
            self._put(data)
        except OSError:
            with suppress(OSError):
                self._put(before.pack())  # in blocks that are there already
            raise
        self.index = index

    def _put(self, data: bytes) -> None:
        written = os.pwrite(self._fd, data, 0)
        if written < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def next_number(self) -> int:
        """Of a part that never was."""
        self._last += 1
        return self._last

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Reader:
    """Reads one stream by positions, while it is written and rotated."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._raw: bytes | None = None
        self._index = Index()
        self._fd = -1
        self._part: tuple[int, int] = (0, -1)

    def read(self, at: int, size: int = CHUNK) -> tuple[int, bytes]:
        """What stands at position `at`: its position, which is later where that is gone, and bytes.

        No bytes: there are no more now.  Where the job has cut its own file, what it has written
        since.  Raises OSError.
        """
        while True:
            index = self._look()
            try:
                found = self._read(index, at, size)
            except FileNotFoundError:
                if self._unchanged():
                    raise
                continue
            if self._unchanged():
                return found

    def bounds(self) -> tuple[int, int]:
        """The positions of the first byte that is there and of the end.  Raises OSError."""
        while True:
            index = self._look()
            try:
                end = index.base + os.fstat(self._file()).st_size
            except FileNotFoundError:
                if self._unchanged():
                    raise
                continue
            if self._unchanged():
                return min(index.first, end), end

    def close(self) -> None:
        self._forget()

    def _read(self, index: Index, at: int, size: int) -> tuple[int, bytes]:
        at = max(at, index.first)
        for part in index.parts:
            if at < part.end:
                fd = self._open_part(part.number)
                return at, os.pread(fd, min(size, part.end - at), at - part.start)
        at = max(at, index.start)
        fd = self._file()
        if at > index.base + os.fstat(fd).st_size:
            at = index.start
        return at, os.pread(fd, size, at - index.base)

    def _file(self) -> int:
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._fd

    def _open_part(self, number: int) -> int:
        if self._part[0] != number:
            self._close_part()
            fd = os.open(part_path(self.path, number), os.O_RDONLY | os.O_CLOEXEC)
            self._part = (number, fd)
        return self._part[1]

    def _look(self) -> Index:
        """The index, when no rotation is under way."""
        raw = self._read_index()
        if raw != self._raw:
            self._forget()
            self._raw, self._index = self._settled(raw)
        return self._index

    def _unchanged(self) -> bool:
        return self._read_index() == self._raw

    def _read_index(self) -> bytes:
        try:
            fd = os.open(index_path(self.path), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return b""
        try:
            return os.read(fd, MOST_INDEX).partition(b"\n")[0]
        finally:
            os.close(fd)

    def _settled(self, raw: bytes) -> tuple[bytes, Index]:
        """Wait for the end of a rotation; if whoever was at it is gone, find out how far he got."""
        index = Index() if not raw else parse(raw)
        if index is not None and index.busy is None:
            return raw, index
        with index_path(self.path).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            raw = file.read(MOST_INDEX).partition(b"\n")[0]
        index = Index() if not raw else parse(raw)
        if index is None:
            raise KernelError(
                "read", str(index_path(self.path)), errno.EBADMSG, hint="it is damaged"
            )
        if index.busy is None:
            return raw, index
        return raw, evolve(index, busy=None) if self._was_done(index) else index.undone()

    def _was_done(self, index: Index) -> bool:
        """Whether a rotation came to its end before the one who did it came to his.

        A collapsed file is shorter than it was, or does not begin any more with what was moved out.
        """
        assert index.busy is not None
        part = part_path(self.path, index.busy.part)
        if index.busy.how == "rename":
            return part.exists()
        with self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < index.busy.size:
                return True
            if not part.exists():
                return False
            with part.open("rb") as moved:
                return (
                    moved.read(COMPARED) != file.read(COMPARED)[: os.fstat(moved.fileno()).st_size]
                )

    def _forget(self) -> None:
        """The files may be others now."""
        self._close_part()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _close_part(self) -> None:
        if self._part[1] >= 0:
            os.close(self._part[1])
        self._part = (0, -1)
