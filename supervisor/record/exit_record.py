"""The exit record: the one line a job's init leaves behind, whoever is there to read it.

    {"v": 1, "status": WAIT, "utime": S, "stime": S, "maxrss": BYTES, "started": T, "ended": T}

WAIT is as of wait(2), times are in seconds, T is Unix time.  A payload that could not be started
has no record.  Whatever else is found there is none either: it is never guessed at.  The file was
made longer beforehand, so that a full disk cannot lose the line: NUL bytes follow it.

May import: `model`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from attrs import frozen

FAR = 2.0**40
"""No time in seconds is as large as this."""


@frozen
class ExitRecord:
    """How the payload ended, as its parent saw it.

    `status` as of wait(2); `utime` and `stime` in seconds, of the payload and the descendants it
    or the init waited for (getrusage(2) RUSAGE_CHILDREN); `maxrss` of the largest, in bytes.
    """

    status: int
    utime: float
    stime: float
    maxrss: int
    started: float
    ended: float

    @property
    def code(self) -> int | None:
        """The exit code; None when a signal ended it."""
        return os.WEXITSTATUS(self.status) if os.WIFEXITED(self.status) else None

    @property
    def signal(self) -> int | None:
        return os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else None


def parse(data: bytes) -> ExitRecord | None:
    """The record in `data`; None when it is empty, torn, or not one."""
    try:
        found = json.loads(data.rstrip(b"\0"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("v") != 1:
        return None
    return _ended(found)


def read(path: Path) -> ExitRecord | None:
    """The record in the file `path`; None also when there is no such file.

    Raises OSError when it is there and cannot be read: then nothing is known yet.
    """
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        return None


def _ended(found: dict[str, Any]) -> ExitRecord | None:
    status, maxrss = found.get("status"), found.get("maxrss")
    real = [_seconds(found.get(key)) for key in ("utime", "stime", "started", "ended")]
    utime, stime, started, ended = real
    if type(status) is not int or not 0 <= status <= 0xFFFF or type(maxrss) is not int:
        return None
    if utime is None or stime is None or started is None or ended is None:
        return None
    record = ExitRecord(status, utime, stime, maxrss, started, ended)
    # WIFSTOPPED and WIFCONTINUED statuses are no ends.
    return None if record.code is None and record.signal is None else record


def _seconds(value: Any) -> float | None:
    if type(value) not in (int, float) or not 0 <= value < FAR:
        return None
    return float(value)
