"""Named files to read an image from: a directory, or the members of one tar file.

May import: `errors`, `image.files`, `image.tar`.  All of it blocks.  What is read is hostile:
a name that is a pipe or a device is refused, and an archive is walked by its headers alone.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import BinaryIO, Protocol

from supervisor.errors import ImageError
from supervisor.image import files, tar
from supervisor.image.fields import TarError

MOST_MEMBERS = 100_000
_MOST_LINKS = 8


class Tree(Protocol):
    """Files by their names, as "blobs/sha256/HEX"."""

    where: str
    """For complaints: the path it is read from."""

    def open(self, name: str) -> BinaryIO:
        """Raises ImageError for what is not there or no file."""

    def size(self, name: str) -> int:
        """Bytes of a file.  Raises ImageError."""

    def close(self) -> None: ...


def read(tree: Tree, name: str, limit: int) -> bytes:
    """A small file; raises ImageError for one of more than `limit` bytes."""
    with tree.open(name) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ImageError(f"is larger than {limit} bytes", f"{tree.where}: {name}")
    return data


class Directory:
    """A directory of files."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = path
        if not path.is_dir():
            raise ImageError("there is no such directory", str(path))

    def open(self, name: str) -> BinaryIO:
        return open_regular(self._path / name)

    def size(self, name: str) -> int:
        with self.open(name) as file:
            return os.fstat(file.fileno()).st_size

    def close(self) -> None:
        pass


def open_regular(path: Path) -> BinaryIO:
    """A file for reading; what would wait for somebody (a pipe, a terminal) is refused."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ImageError("there is no such file", str(path)) from None
    except OSError as err:
        raise files.refusal(err, path, "cannot read") from err
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ImageError("is no regular file", str(path))
    return os.fdopen(fd, "rb")


class Archive:
    """The members of a tar file that is not compressed; the last of a name is the one."""

    def __init__(self, path: Path, where: str = "") -> None:
        """`where` names it in complaints, if it is a copy."""
        self.where = where or str(path)
        self._file = open_regular(path)
        try:
            self._members, self._links = self._walk()
        except BaseException:
            self._file.close()
            raise

    def _walk(self) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
        headers = _Headers(self._file.fileno())
        archive = tar.Archive(headers)
        members: dict[str, tuple[int, int]] = {}
        links: dict[str, str] = {}
        try:
            while (entry := archive.next()) is not None:
                name = _normal(os.fsdecode(entry.name))
                if entry.kind == tar.FILE and entry.pieces is None:
                    members[name] = (headers.at, entry.size)
                elif entry.kind == tar.SYMLINK:
                    links[name] = _normal(f"{os.path.dirname(name)}/{os.fsdecode(entry.link)}")
                elif entry.kind == tar.LINK:
                    links[name] = _normal(os.fsdecode(entry.link))
                if len(members) + len(links) > MOST_MEMBERS:
                    raise ImageError(f"has more than {MOST_MEMBERS} members", self.where)
        except TarError as err:
            raise ImageError(f"cannot be read as a tar archive: {err}", self.where) from err
        return members, links

    def _find(self, name: str) -> tuple[int, int]:
        at = _normal(name)
        for _ in range(_MOST_LINKS):
            if at in self._members:
                return self._members[at]
            if at not in self._links:
                break
            at = self._links[at]
        raise ImageError(f"there is no {name} in it", self.where)

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return _normal(name) in self._members or _normal(name) in self._links

    def open(self, name: str) -> BinaryIO:
        offset, size = self._find(name)
        return io.BufferedReader(_Part(self._file.fileno(), offset, size), 1024**2)

    def size(self, name: str) -> int:
        return self._find(name)[1]

    def close(self) -> None:
        self._file.close()


def _normal(name: str) -> str:
    """Without "./" and the like; what leads out of the archive names nothing in it."""
    return os.path.normpath(name.lstrip("/"))


class _Part(io.RawIOBase):
    """A part of an open file, read by offset: several may be read at once."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        super().__init__()
        self._fd, self._at, self._end = fd, offset, offset + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = os.preadv(self._fd, [buffer[: self._end - self._at]], self._at)
        self._at += count
        return count


class _Headers(tar.Source):
    """A tar file of which only the headers are read; `at` is where the reader stands."""

    __slots__ = ("_blank", "_size", "at")

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.at = 0
        self._size = os.fstat(fd).st_size
        self._blank = memoryview(bytes(1024**2))

    def take(self, count: int) -> bytes:
        data = os.pread(self._fd, count, self.at)
        self.at += len(data)
        return data

    def some(self, most: int) -> memoryview:
        """As many bytes as are there, without their content: it is only skipped."""
        count = max(0, min(most, len(self._blank), self._size - self.at))
        self.at += count
        return self._blank[:count]

    def drain(self) -> None:
        self.at = self._size
