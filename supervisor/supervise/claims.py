"""A directory in which the supervisors of a host note what they have taken of what there is once.

    DIRECTORY/lock      held (flock(2)) while something is taken or given back
    DIRECTORY/next      where to look for the next one
    DIRECTORY/NAME      something that is taken: by which supervisor, for what

May import: `errors`, `linux`.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from supervisor.errors import KernelError
from supervisor.linux import proc


class Claims:
    """All but `told` and `notes` are for who is within `locked`.  Everything raises KernelError."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone on this host, whoever has to be waited for."""
        path = self.directory / "lock"
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise KernelError("open", str(path), error.errno or 0) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def next(self) -> int:
        """What `go_on` has left; 0 at first, and where it is no number."""
        path = self.directory / "next"
        try:
            text = path.read_text()
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise KernelError("read", str(path), error.errno or 0) from error
        return int(text) if text.isdecimal() else 0

    def go_on(self, number: int) -> None:
        self._write("next", str(number))

    def note(self, name: str, **told: str) -> None:
        """It is ours now; what is `told` is there for whoever comes after us."""
        me = proc.stat(os.getpid())
        self._write(name, json.dumps({"pid": me.pid, "start": me.start_ticks, **told}))

    def is_noted(self, name: str) -> bool:
        return (self.directory / name).exists()

    def drop(self, name: str) -> None:
        path = self.directory / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise KernelError("unlink", str(path), error.errno or 0) from error

    def told(self, name: str) -> dict[str, Any]:
        """What its note says; nothing where it was cut short by a crash."""
        try:
            told = json.loads((self.directory / name).read_text())
        except ValueError:
            return {}
        return told if isinstance(told, dict) else {}

    def notes(self, instance: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The name and the content of each that says `instance`."""
        for name in sorted(os.listdir(self.directory)):
            told = self.told(name) if name not in ("lock", "next") else {}
            if told.get("instance") == instance:
                yield name, told

    def _write(self, name: str, text: str) -> None:
        path = self.directory / name
        try:
            path.write_text(text)
        except OSError as error:
            raise KernelError("write", str(path), error.errno or 0) from error


def lives(told: dict[str, Any]) -> bool:
    """Whether the supervisor that wrote a note still runs: its pid and its start time."""
    try:
        return bool(proc.stat(int(told["pid"])).start_ticks == told["start"])
    except (LookupError, TypeError, ValueError):
        return False  # cut short by a crash
    except KernelError:
        return False  # no such process
