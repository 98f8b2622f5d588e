"""Rotation of a log file that the job itself writes, by size, so that no byte is lost.

The job has the file open for appending, and goes on while this happens: the head is copied to a
file beside it, then collapsed away (ext4, xfs) or punched out (tmpfs, btrfs, where the file stays
long, with a hole in front).  Both are atomic against appending writes (`linux.files`).  Where the
file system can do neither, `way` says so, and the job gets a pipe (`supervise.target`).

May import: `errors`, `linux`, `record`.  Everything here blocks: it is called in threads.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Literal

from attrs import evolve

from supervisor.errors import KernelError
from supervisor.linux import files
from supervisor.record import logs
from supervisor.record.logs import Busy, Index, Part

Way = Literal["collapse", "punch", ""]

CHUNK = 1 << 20
UNABLE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY)
FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_COPY = (*UNABLE, errno.EXDEV, errno.EPERM, errno.EBADF)

_ways: dict[tuple[str, int, int], Way] = {}


def way(directory: Path) -> Way:
    """How the head of a file in `directory` can be given back; "": not at all.  Raises OSError.

    It is tried, once, on a file without a name.
    """
    found = os.stat(directory)
    key = (str(directory), found.st_dev, found.st_ino)
    if key not in _ways:
        _ways[key] = _tried(directory)
    return _ways[key]


def _tried(directory: Path) -> Way:
    name = directory / f".rotation-{os.getpid()}"
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.unlink(name)
        size = block(fd)
        os.write(fd, b"x" * (size + 1))
        for one, attempt in (("collapse", _collapse), ("punch", _punch)):
            try:
                attempt(fd, size)
            except KernelError as error:
                if error.errno not in UNABLE:
                    raise
            else:
                return one  # type: ignore[return-value]
    finally:
        os.close(fd)
    return ""


def _collapse(fd: int, size: int) -> None:
    files.collapse(fd, size)


def _punch(fd: int, size: int) -> None:
    files.punch(fd, 0, size)


def block(fd: int) -> int:
    """What the length of a head is a multiple of."""
    return max(os.fstatvfs(fd).f_bsize, 4096)


class Rotation:
    """The rotation of one stream's file.

    `lost`: bytes that were given back without having been copied, for want of room, to keep the
    file at its size.  `trouble` is called with a text, once for each kind of failure.
    """

    def __init__(
        self, path: Path, max_size: int, keep: int, how: Way, trouble: Callable[[str], None]
    ) -> None:
        """Raises OSError."""
        self.path = path
        self.max_size = max_size
        self._keep = keep
        self._how = how
        self._trouble = trouble
        self._told: set[str] = set()
        self._turn = Lock()
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._block = block(self._fd)
            self._writer = logs.Writer(path)
        except OSError:
            os.close(self._fd)
            raise
        with suppress(OSError):  # it is told when there is something to rotate
            self._writer.prepare(keep)

    @property
    def lost(self) -> int:
        return self._writer.index.lost

    @property
    def end(self) -> int:
        """The bytes that the job has written so far."""
        return self._writer.index.base + os.fstat(self._fd).st_size

    def size(self) -> int:
        """The bytes in the file itself; the hole in front of them is none."""
        return self.end - self._writer.index.start

    def rotate(self) -> int:
        """Move out what is too much.  The bytes that are left in the file; trouble is told."""
        try:
            with self._turn, self._writer.changing() as mine:
                if mine:  # else a reader looks at the index just now: next time
                    self._rotate()
        except OSError as error:
            self._tell(f"cannot rotate {self.path}: {error.strerror}")
        return self.size()

    def _rotate(self) -> None:
        self._mind_a_cut()
        while self._how and (size := self.size()) > max(self.max_size, self._block):
            surplus = size - (self._keep + 1) * self.max_size
            head = self._whole(surplus if surplus > self.max_size else self.max_size)
            self._cut(head, copied=self._keep > 0 and head <= self.max_size)

    def _whole(self, size: int) -> int:
        return max(size // self._block, 1) * self._block

    def _mind_a_cut(self) -> None:
        """A job may truncate its own log: what it writes then has a position of its own."""
        index = self._writer.index
        size = os.fstat(self._fd).st_size
        if index.base + size < index.start:
            self._write(Index(index.start, index.start, index.parts, index.lost))

    def _cut(self, head: int, *, copied: bool) -> None:
        """Take `head` bytes from the front, into a part if `copied`.  Raises OSError."""
        part = self._copy(head) if copied else None
        index = self._writer.index  # which has changed where parts had to go
        kept = self._kept(index.parts, part)
        lost = index.lost + (head if copied and part is None else 0)
        after = Index(index.base, index.start + head, kept, lost)
        try:
            if self._how == "collapse":
                self._collapse(index, after, head, part)
            else:
                self._punch(index, after)
        except OSError:
            self._forget(part)
            raise
        for old in index.parts:
            if old not in kept:
                self._forget(old)

    def _kept(self, parts: tuple[Part, ...], new: Part | None) -> tuple[Part, ...]:
        """Those that stay; where the head went nowhere nothing before it is of use."""
        if new is None:
            return ()
        there = tuple(part for part in parts if logs.part_path(self.path, part.number).exists())
        return (*there, new)[-self._keep :]

    def _punch(self, index: Index, after: Index) -> None:
        self._write(after)
        try:
            files.punch(self._fd, 0, after.start - after.base)
        except KernelError:
            self._how = ""
            self._write(index)
            raise

    def _collapse(self, index: Index, after: Index, head: int, part: Part | None) -> None:
        """The position of the file's first byte changes: readers wait for that."""
        size = os.fstat(self._fd).st_size
        number = part.number if part else 0
        done = evolve(after, base=index.base + head)
        self._write(evolve(done, busy=Busy("collapse", size, number, (index.base, index.start))))
        try:
            files.collapse(self._fd, head)
        except KernelError as error:
            self._write(index)
            if error.errno not in UNABLE:
                raise
            self._how = "punch"
            self._punch(index, after)
        else:
            self._write(done)

    def _write(self, index: Index) -> None:
        self._writer.write(index)

    def _copy(self, head: int) -> Part | None:
        """The head in a file of its own; None where not even the oldest part makes room for it."""
        while True:
            part = Part(self._writer.next_number(), self._writer.index.start, head)
            try:
                self._copy_to(part)
                return part
            except OSError as error:
                self._forget(part)
                if error.errno not in FULL:
                    raise
                self._tell(f"no room to rotate {self.path}: {error.strerror}; dropping the oldest")
            if not self._drop_oldest():
                return None

    def _drop_oldest(self) -> bool:
        index = self._writer.index
        if not index.parts:
            return False
        self._write(evolve(index, parts=index.parts[1:], lost=index.lost + index.parts[0].size))
        self._forget(index.parts[0])
        return True

    def _copy_to(self, part: Part) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        target = os.open(logs.part_path(self.path, part.number), flags, 0o600)
        try:
            copy(self._fd, target, part.start - self._writer.index.base, part.size)
        finally:
            os.close(target)

    def _forget(self, part: Part | None) -> None:
        if part is not None:
            logs.part_path(self.path, part.number).unlink(missing_ok=True)

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._trouble(text)

    def close(self) -> None:
        self._writer.close()
        os.close(self._fd)


def copy(source: int, target: int, offset: int, size: int) -> None:
    """Copy within the kernel where it can.  Raises OSError, ENOSPC among them."""
    done = 0
    within = True
    while done < size:
        length = min(CHUNK, size - done)
        if within:
            try:
                count = os.copy_file_range(source, target, length, offset + done, done)
            except OSError as error:
                if error.errno not in _NO_COPY:
                    raise
                count = 0
            within = count > 0  # some file systems say 0 where they mean that they cannot
            done += count
            continue
        data = os.pread(source, length, offset + done)
        if not data:
            raise OSError(errno.EIO, "the file has become shorter")
        done += os.pwrite(target, data, done)
