"""Reading an event log that is being written: from a sequence number on, a part at a time.

The file may be large; torn lines (`record.eventlog`) are passed over.

May import: `errors`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from io import FileIO
from pathlib import Path
from typing import Any

from supervisor.errors import KernelError

PART = 256 * 1024
"""Bytes read at a time: parsed within a few milliseconds."""

_HEAD = re.compile(rb'\n\{"seq": (\d+),')


def parts(path: Path, since: int, last: int) -> Generator[list[dict[str, Any]], None, None]:
    """The entries after `since`, up to `last`; it blocks: in a thread.  Raises KernelError."""
    try:
        with FileIO(path, "r") as file:
            file.seek(_start(file, since))
            yield from _parts(file, since, last)
    except OSError as error:
        raise KernelError("read", str(path), error.errno or 0) from error


def _parts(file: FileIO, since: int, last: int) -> Generator[list[dict[str, Any]], None, None]:
    rest = b""
    while since < last and (data := file.read(PART)):
        *lines, rest = (rest + data).split(b"\n")
        entries = [entry for entry in map(_entry, lines) if entry is not None]
        yield [entry for entry in entries if since < entry["seq"] <= last]
        if entries and entries[-1]["seq"] >= last:
            return


def _start(file: FileIO, since: int) -> int:
    """Where to begin: no more than a part or two before the first entry after `since`."""
    low, high = 0, file.seek(0, 2)
    while high - low > PART:
        middle = (low + high) // 2
        file.seek(middle)
        head = _HEAD.search(file.read(PART))
        if head is not None and int(head[1]) <= since:
            low = middle + head.start() + 1
        else:
            high = middle
    return low


def _entry(line: bytes) -> dict[str, Any] | None:
    """None for what is no whole entry."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(value, dict) and type(value.get("seq")) is int
    return value if whole else None
