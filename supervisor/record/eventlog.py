"""The event log: STATE/NAME/events.ndjson, one JSON object a line, numbered without reuse.

When the file has grown large it becomes events.ndjson.1, and a new one is begun; the numbers run
on (`record.eventfiles` reads them all).  An entry goes through a chain of plain callables, dict
in, dict out, the renderer last.  The entries and their fields are listed in docs/verdicts.md.

A log that cannot be written (disk full, quota, I/O error) stops nobody: the entries are counted,
subscribers hear of it at once, and the first write that succeeds is preceded by `log_lost`.

May import: `errors`, `model`, structlog (inside functions: its import takes tens of ms).
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, MutableMapping
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any

from supervisor.errors import KernelError
from supervisor.model.event import Event
from supervisor.model.record import iso
from supervisor.record.entries import entry_of
from supervisor.record.eventfiles import aged, files, last_of_all

Entry = MutableMapping[str, Any]
"""One entry: `seq`, `time`, `event`, and the fields of that event."""

Subscriber = Callable[[Entry], None]

SIZE = 64 << 20
"""Bytes from which on a new file is begun."""
FILES = 4
"""How many files there are at most, the one that is written included."""


class LogFile:
    """A file that lines are appended to, each by one write(2).  `why`: the last thing it said.

    Where a line would make it longer than `size` bytes it is renamed, and a new one begun.
    """

    def __init__(self, path: Path, size: int | None = None, most: int = FILES) -> None:
        self.path = path
        self._size = size
        self._most = most
        self._length = 0
        self.why = ""
        self._fd = -1
        self._torn = False
        try:
            self._open()
        except OSError as error:
            # A disk without room for a new file is as good as one without room for a line.
            if error.errno not in (ENOSPC, EDQUOT):
                raise KernelError("open", str(path), error.errno or 0) from error
            self.why = str(error.strerror)

    def _open(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        self._fd = os.open(self.path, flags, 0o600)
        info = os.fstat(self._fd)
        self._length = info.st_size
        if not stat.S_ISREG(info.st_mode) or self.path.is_symlink():
            self._size = None  # somebody has the log go elsewhere
        if stat.S_ISREG(info.st_mode):
            self._torn = info.st_size > 0 and os.pread(self._fd, 1, info.st_size - 1) != b"\n"

    def append(self, line: str) -> bool:
        """Whether the whole of `line` was written; whatever the disk says, nothing is raised."""
        try:
            if self._fd < 0:
                self._open()
            text = line.encode() + b"\n"
            if self._size is not None and 0 < self._length > self._size - len(text):
                self._rotate(self._size)
            data = (b"\n" if self._torn else b"") + text
            written = os.write(self._fd, data)
        except OSError as error:
            self.why = str(error.strerror)
            return False
        self._length += written
        # The disk may fill up half way: the torn line is closed by the next write.
        self._torn = data[written - 1 : written] != b"\n"
        if written < len(data):
            self.why = os.strerror(ENOSPC)
        return written == len(data)

    def _rotate(self, size: int) -> None:
        """events.ndjson becomes events.ndjson.1, and so on; the oldest goes.

        Where that fails (EROFS, ENOSPC) the same file goes on, for another `size` bytes.
        """
        try:
            for one in files(self.path):
                number = 0 if one == self.path else int(one.suffix[1:])
                if number + 1 < self._most:
                    one.rename(aged(self.path, number + 1))
                else:
                    one.unlink()
        except OSError as error:
            self.why = str(error.strerror)
            self._size = self._length + size
            return
        self.close()
        self._open()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class EventLog:
    """The open event log of one instance; used from the event loop's thread only.

    `began` is the number of the last entry that was there before.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float],
        *,
        size: int | None = SIZE,
        most: int = FILES,
        after: int = 0,
    ) -> None:
        """Open `path` (made, with its directory, when missing); `clock` gives Unix time.

        From `size` bytes on a new file is begun, `most` stay.  `after`: a number that was given,
        whatever the files say.  Raises KernelError when it cannot be opened for any reason but a
        full disk.
        """
        structlog = import_structlog()
        self.path = path
        self._clock = clock
        self._seq = self.began = max(after, last_of_all(path))
        self._file = LogFile(path, size, most)
        self._subscribers: list[Subscriber] = []
        self._failed: list[str] = []
        self._lost = 0
        self._dumps = structlog.processors.JSONRenderer(allow_nan=False)
        self._log = structlog.wrap_logger(
            self._file, [self._stamp, self._publish, self._render], structlog.BoundLogger
        ).bind()
        self._unheard = structlog.wrap_logger(
            self._file, [self._stamp, self._render], structlog.BoundLogger
        ).bind()

    def subscribe(self, subscriber: Subscriber) -> None:
        """Give every later entry to `subscriber`, which must neither change it nor block.

        One that raises is taken off, and a `warning` says so.
        """
        self._subscribers.append(subscriber)

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Give it no more entries; nothing where it has been taken off already."""
        if subscriber in self._subscribers:
            self._subscribers.remove(subscriber)

    @property
    def seq(self) -> int:
        """The number of the last entry."""
        return self._seq

    def emit(self, event: str, **fields: Any) -> None:
        """Write one entry.  `fields` are JSON's types; `seq`, `time` and `event` are taken."""
        if self._lost:
            self._confess()
        if not self._log.append(event, **fields):
            self._lost += 1
            if self._lost == 1:
                self._tell(f"cannot write {self._file.path}: {self._file.why}, going on without")
        while self._failed:
            self.emit("warning", text=self._failed.pop())

    def observe(self, job: str, run: str, event: Event) -> None:
        """Write what the kernel told about a job, where it is worth an entry of its own."""
        entry = entry_of(event)
        if entry is not None:
            self.emit(entry[0], job=job, run=run, **entry[1])

    def close(self) -> None:
        """Close the file, after a last try to say what was lost."""
        if self._lost:
            self._confess()
        self._file.close()

    def _confess(self) -> None:
        """Say how many entries are missing, as soon as the file takes it."""
        fields = {"count": self._lost, "why": self._file.why}
        if self._unheard.append("log_lost", **fields):
            self._lost = 0
            self._tell(f"{self._file.path} is written again, {fields['count']} entries are lost")

    def _tell(self, text: str) -> None:
        """A warning about the log itself, which goes to its readers only."""
        self._publish(None, "", self._stamp(None, "", {"event": "warning", "text": text}))

    def _stamp(self, _logger: Any, _method: str, entry: Entry) -> Entry:
        """Number and date the entry; `seq` comes first, which `last_seq` relies on."""
        self._seq += 1
        event = entry.pop("event")
        return {"seq": self._seq, "time": iso(self._clock()), "event": event, **entry}

    def _publish(self, _logger: Any, _method: str, entry: Entry) -> Entry:
        for subscriber in tuple(self._subscribers):
            try:
                subscriber(entry)
            except Exception as error:
                self._subscribers.remove(subscriber)
                name = getattr(subscriber, "__qualname__", type(subscriber).__name__)
                self._failed.append(f"a reader of the event log failed: {name}: {error!r}")
        return entry

    def _render(self, logger: Any, method: str, entry: Entry) -> str:
        """JSON; where a value has none (a policy's, say) it is written as its repr."""
        try:
            return str(self._dumps(logger, method, entry))
        except (TypeError, ValueError, RecursionError):
            plain = {key: value if key in FIXED else repr(value) for key, value in entry.items()}
            return str(self._dumps(logger, method, plain))


FIXED = ("seq", "time", "event", "job", "run")


def import_structlog() -> Any:
    """structlog without rich, which its console renderer (unused here) imports when installed.

    None in `sys.modules` makes `import rich` an ImportError, which structlog expects.
    """
    if "structlog" in sys.modules or "rich" in sys.modules:
        import structlog

        return structlog
    sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog
    finally:
        del sys.modules["rich"]
    return structlog
