"""Reading the event log: what is in events.ndjson and in the older files beside it, in order.

    events.ndjson       the one that is written now
    events.ndjson.1     the one before it, .2 before that; the oldest goes when a new one comes

Sequence numbers run on from file to file, and are how a reader knows where it was.  A line that
does not parse (the disk was full, the machine went down) is counted and passed over.

May import: `errors`, `model`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import frozen

from supervisor.errors import KernelError

HEAD = re.compile(rb'^\{"seq": (\d+),', re.MULTILINE)
NEXT = re.compile(rb'\n\{"seq": (\d+),')
CHUNK = 65536
BATCH = 1 << 20
"""Bytes that a reader takes at once."""


@frozen
class Line:
    """One entry, and the line it stands in."""

    entry: dict[str, Any]
    text: str

    @property
    def seq(self) -> int:
        return int(self.entry["seq"])


def files(path: Path) -> list[Path]:
    """The files of the log `path` that are there, the oldest first.  Raises KernelError."""
    try:
        with os.scandir(path.parent) as found_there:
            names = [one.name for one in found_there if one.name == path.name or one.is_file()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise KernelError("read", str(path.parent), error.errno or 0) from error
    numbers = [name.removeprefix(path.name + ".") for name in names if name != path.name]
    old = sorted((int(n) for n in numbers if n.isascii() and n.isdigit()), reverse=True)
    found = [aged(path, number) for number in old]
    return [*found, path] if path.name in names else found


def aged(path: Path, number: int) -> Path:
    """The file that `path` has become after so many rotations."""
    return path.with_name(f"{path.name}.{number}")


def last_seq(path: Path) -> int:
    """The highest sequence number that the file `path` may hold; 0 for a missing or an empty one.

    Read from the end, as the file may be large.  `seq` is the first key of a line, so a torn
    line still tells it; lines too short even for that count as one number each.  Raises
    KernelError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise KernelError("open", str(path), error.errno or 0) from error
    try:
        return _last_in(fd)
    except OSError as error:
        raise KernelError("read", str(path), error.errno or 0) from error
    finally:
        os.close(fd)


def _last_in(fd: int) -> int:
    size = os.fstat(fd).st_size
    want = min(CHUNK, size)
    while True:
        tail = os.pread(fd, want, size - want)
        found = list(HEAD.finditer(tail))
        if found or want == size:
            break
        want = min(2 * want, size)
    last, end = (int(found[-1][1]), found[-1].end()) if found else (0, 0)
    return last + len([line for line in tail[end:].split(b"\n")[bool(found) :] if line])


def _start(fd: int, seq: int) -> int:
    """Where the first entry after `seq` is looked for: not more than a few parts before it."""
    low, high = 0, os.fstat(fd).st_size
    while high - low > CHUNK:
        middle = (low + high) // 2
        head = NEXT.search(os.pread(fd, CHUNK, middle))
        if head is not None and int(head[1]) <= seq:
            low = middle + head.start() + 1
        else:
            high = middle
    return low


def last_of_all(path: Path) -> int:
    """The same for the whole log: the newest file that has any number knows the highest."""
    return next((seq for one in reversed(files(path)) if (seq := last_seq(one))), 0)


def parse(text: bytes) -> Line | None:
    """The entry in one line; None where there is none, or not the whole of it."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or type(entry.get("seq")) is not int:
        return None
    known = all(isinstance(entry.get(key), str) for key in ("time", "event"))
    named = all(isinstance(entry.get(key, ""), str) for key in ("job", "run"))
    return Line(entry, text.decode("utf-8", "replace")) if known and named else None


class Tail:
    """The entries after a number, from file to file; asked again it goes on where it stopped.

    `torn` counts the lines that were no entries.  Safe beside whoever writes and rotates.
    """

    def __init__(self, path: Path, after: int = 0) -> None:
        self.path = path
        self.seq = after
        self.torn = 0
        self._fd = -1
        self._rest = b""

    def read(self, most: int = BATCH) -> list[Line]:
        """The next entries, of some `most` bytes; none when all that is there was read.

        Raises KernelError.
        """
        try:
            while True:
                data = self._more(most)
                if data is None:
                    return []
                if found := self._lines(data):
                    return found
        except OSError as error:
            raise KernelError("read", str(self.path), error.errno or 0) from error

    def _more(self, most: int) -> bytes | None:
        """What comes next, from the next file if need be; None: nothing for now."""
        while self._fd >= 0 or self._open_next():
            data = os.read(self._fd, most)
            if data:
                return data
            if self._is_current():
                return None
            if data := os.read(self._fd, most):  # came between our look and the rotation
                return data
            # What is torn at its end has a number, too, which last_seq() tells.
            self.seq = max(self.seq, _last_in(self._fd))
            self.close()
        return None

    def _lines(self, data: bytes) -> list[Line]:
        *whole, self._rest = (self._rest + data).split(b"\n")
        found = []
        for text in filter(None, whole):
            line = parse(text)
            if line is None:
                self.torn += 1
            elif line.seq > self.seq:
                self.seq = line.seq
                found.append(line)
        return found

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self.path))
        except FileNotFoundError:
            return True

    def _open_next(self) -> bool:
        while True:
            one = next((one for one in files(self.path) if last_seq(one) > self.seq), self.path)
            try:
                self._fd = os.open(one, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                if one == self.path:
                    return False
                continue
            # It may have been rotated meanwhile: then what we hold is not the next one.
            if one != self.path or not self._older_ones():
                os.lseek(self._fd, _start(self._fd, self.seq), os.SEEK_SET)
                return True
            self.close()

    def _older_ones(self) -> bool:
        return any(last_seq(one) > self.seq for one in files(self.path) if one != self.path)

    def close(self) -> None:
        """An unfinished line is given up: nobody ends it any more."""
        if self._rest:
            self.torn += 1
            self._rest = b""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def entries(path: Path, after: int = 0) -> Iterator[Line]:
    """All entries there are now whose number is above `after`.  Raises KernelError."""
    tail = Tail(path, after)
    try:
        while found := tail.read():
            yield from found
    finally:
        tail.close()
