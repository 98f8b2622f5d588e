"""Control group files: read, write, list, make and remove; each failure names the file.

For this package only.  Nothing here knows what a file means.  Plain descriptors, no pathlib: the
readers stand on the path of every start and of every event.  While a rehearsal is on (`rehearsal`)
nothing is changed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from supervisor.cgroup.api import Reading
from supervisor.cgroup.rehearsal import acting
from supervisor.errors import KernelError

UNLIMITED = 1 << 62
"""A v1 counter at or above this is "no limit" (PAGE_COUNTER_MAX, whatever the page size)."""

_BUFFER = 16384


def read(path: str) -> str:
    """The file's text without the last newline.  Raises KernelError (ENOENT, ENODEV: gone)."""
    rehearsal = acting()
    return rehearsal.read(path, _read) if rehearsal else _read(path)


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(fd, _BUFFER)
            if len(data) >= 4096:  # a seq_file fills about a page for each read
                while more := os.read(fd, _BUFFER):
                    data += more
        finally:
            os.close(fd)
    except OSError as error:
        raise KernelError("read", path, error.errno or 0) from error
    return data.decode("ascii", "surrogateescape").rstrip("\n")


def write(path: str, text: str, *, hint: str = "") -> None:
    """One write(2), as cgroup files want it.  Raises KernelError with `hint` as the way out."""
    rehearsal = acting()
    if rehearsal:
        rehearsal.write(path, text, _read)
    else:
        _write(path, text, hint)


def _write(path: str, text: str, hint: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise KernelError(f"write {text!r} to", path, error.errno or 0, hint=hint) from error


def write_back(path: str, text: str, *, hint: str = "") -> Reading:
    """Write, and read back what the kernel made of it."""
    write(path, text, hint=hint)
    return Reading(path, read(path))


def number(path: str) -> int:
    """The one number in a file; "max" is UNLIMITED.  Raises KernelError."""
    text = read(path)
    return UNLIMITED if text == "max" else int(text)


def table(path: str) -> dict[str, int]:
    """A file of "key value" lines.  Raises KernelError."""
    return parse_table(read(path))


def parse_table(text: str) -> dict[str, int]:
    """ "key value" lines as a dict; a value that is no number is left out ("max")."""
    found = {}
    for line in text.split("\n"):
        key, _, value = line.partition(" ")
        if value.isdigit():
            found[key] = int(value)
    return found


def number_set(text: str) -> frozenset[int]:
    """The kernel's list format ("0-2,4") as numbers.  Raises ValueError."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, dash, last = part.partition("-")
        found.update(range(int(first), int(last if dash else first) + 1))
    return frozenset(found)


def processes(directory: str) -> tuple[int, ...]:
    """The processes in one cgroup.  Raises KernelError.

    Those outside of our pid namespace read as 0 and are left out: kill(0) would be ourselves.
    """
    found = (int(pid) for pid in read(f"{directory}/cgroup.procs").split())
    return tuple(pid for pid in found if pid)


def exists(path: str) -> bool:
    """Whether there is such a file or cgroup."""
    rehearsal = acting()
    return rehearsal.exists(path) if rehearsal else os.path.exists(path)


def offered(directory: str) -> frozenset[str]:
    """The files that a cgroup has; none while its making is only rehearsed.  Raises KernelError."""
    if acting():
        return frozenset()
    try:
        return frozenset(os.listdir(directory))
    except OSError as error:
        raise KernelError("list", directory, error.errno or 0) from error


def names(directory: str) -> tuple[str, ...]:
    """The cgroups directly below `directory`.  Raises KernelError."""
    try:
        with os.scandir(directory) as entries:
            return tuple(sorted(e.name for e in entries if e.is_dir(follow_symlinks=False)))
    except OSError as error:
        raise KernelError("list", directory, error.errno or 0) from error


def tree(directory: str) -> list[str]:
    """`directory` and every cgroup below it, the deepest first.  Raises KernelError."""
    found = []
    for name in names(directory):
        found += tree(f"{directory}/{name}")
    return [*found, directory]


def make(directory: str, *, hint: str = "") -> None:
    """mkdir(2).  Raises KernelError."""
    rehearsal = acting()
    if rehearsal:
        rehearsal.make(directory)
    else:
        _make(directory, hint)


def _make(directory: str, hint: str) -> None:
    try:
        os.mkdir(directory)
    except OSError as error:
        raise KernelError("mkdir", directory, error.errno or 0, hint=hint) from error


def remove(directory: str) -> bool:
    """rmdir(2); False where it was gone already.  Raises KernelError (EBUSY: somebody is in it)."""
    rehearsal = acting()
    return rehearsal.remove(directory) if rehearsal else _remove(directory)


def _remove(directory: str) -> bool:
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise KernelError("rmdir", directory, error.errno or 0) from error
    return True


def until(done: Callable[[], bool], seconds: float) -> bool:
    """Ask `done` again and again, at once at first and then ever more rarely; its last answer.

    For the few things the kernel finishes shortly after the call that began them and for which
    it has no blocking call: a v1 freeze, and the last steps of an exit.
    """
    pause, deadline = 0.00005, time.monotonic() + seconds
    while not done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
    return True
