"""Ranges of user and group numbers for jobs: 65536 each, no two jobs of this host at once.

    DIRECTORY/lock      held (flock(2)) while a range is taken or given back
    DIRECTORY/next      where to look for the next one
    DIRECTORY/FIRST     a range in use, by its first number: who has it

One directory for all instances of the host.  A range is taken in the same time whatever their
number: `next` goes round, so that a range is not used again soon after it was given back.

Which numbers: those that /etc/subuid and /etc/subgid both give to the name `supervise`, else from
524288 on, where nobody has any: no entry of these files, no user, no group.

May import: `errors`, `linux`, attrs.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

from supervisor.errors import KernelError, SpawnError
from supervisor.linux import proc

SIZE = 65536
FIRST = 524288
"""As systemd's container ranges do: above users, directory services and their subordinate ids."""
END = 2**31
"""Numbers from here on look negative to programs that keep them in an int."""

OWNER = "supervise"
DIRECTORY = Path("/run/supervise/.ids")
"""No instance's name begins with a dot."""

FULL = (
    "give supervise more numbers: a line supervise:FIRST:COUNT in /etc/subuid and in /etc/subgid, "
    "or run fewer jobs at once (capacity.jobs)"
)


@frozen
class Pool:
    """`first` to `end` (exclusive) in steps of SIZE, without what overlaps `taken`."""

    first: int
    end: int
    taken: tuple[tuple[int, int], ...] = ()
    """(first, end) each."""

    @property
    def slots(self) -> int:
        return max(0, self.end - self.first) // SIZE

    def at(self, slot: int) -> int | None:
        """The first number of a slot; None where somebody else has a number of it."""
        low = self.first + slot * SIZE
        free = all(end <= low or low + SIZE <= first for first, end in self.taken)
        return low if free else None


def pool(etc: Path = Path("/etc")) -> Pool:
    """What this host leaves for jobs.  Raises KernelError where its files cannot be read."""
    users, groups = list(_entries(etc / "subuid")), list(_entries(etc / "subgid"))
    ours = [(first, end) for owner, first, end in users if owner == OWNER]
    both = [one for one in ours if (OWNER, *one) in groups]
    if both:
        return Pool(*max(both, key=lambda one: one[1] - one[0]))
    taken = {(first, end) for _owner, first, end in (*users, *groups)}
    for name in ("passwd", "group"):
        taken |= {(number, number + 1) for number in _numbers(etc / name) if number >= FIRST}
    return Pool(FIRST, END, tuple(sorted(taken)))


def _lines(path: Path) -> Iterator[list[str]]:
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise KernelError("read", str(path), error.errno or 0) from error
    yield from (line.split(":") for line in text.splitlines())


def _entries(path: Path) -> Iterator[tuple[str, int, int]]:
    """(owner, first, end) of each line of subuid(5) or subgid(5)."""
    for fields in _lines(path):
        if len(fields) == 3 and fields[1].isdecimal() and fields[2].isdecimal():
            yield fields[0], int(fields[1]), int(fields[1]) + int(fields[2])


def _numbers(path: Path) -> Iterator[int]:
    """The third column of passwd(5) and group(5)."""
    for fields in _lines(path):
        if len(fields) > 2 and fields[2].isdecimal():
            yield int(fields[2])


class IdRanges:
    """The ranges of this host, as one instance takes them."""

    def __init__(
        self, instance: str, directory: Path = DIRECTORY, numbers: Pool | None = None
    ) -> None:
        self.instance = instance
        self.directory = directory
        self._numbers = numbers

    @property
    def pool(self) -> Pool:
        """Read from /etc when the first range is asked for."""
        if self._numbers is None:
            self._numbers = pool()
        return self._numbers

    def take(self, run: str) -> int:
        """The first number of a range that nobody has, until `give_back`.

        Raises SpawnError when there is none, KernelError where the directory cannot be used.
        """
        slots = self.pool.slots
        with self._locked():
            start = self._next()
            for turn in range(slots):
                slot = (start + turn) % slots
                first = self.pool.at(slot)
                if first is not None and self._claim(first, run):
                    self._write(self.directory / "next", str(slot + 1))
                    return first
        text = f"no range of {SIZE} user numbers is free: all {slots} are taken"
        raise SpawnError("user_namespace", 0, "", text, hint=FULL)

    def give_back(self, first: int) -> None:
        """Raises KernelError."""
        with self._locked():
            self._unlink(self.directory / str(first))

    def forget(self) -> None:
        """Drop what an earlier supervisor of this instance's name had: its jobs are no more.

        Raises KernelError.
        """
        if os.geteuid() != 0 or not self.directory.exists():
            return  # who is not root never had a range
        with self._locked():
            for path in self.directory.iterdir():
                ours = path.name.isdecimal() and _noted(path).get("instance") == self.instance
                if ours and not _in_use(path):
                    self._unlink(path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
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

    def _next(self) -> int:
        try:
            text = (self.directory / "next").read_text()
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise KernelError("read", f"{self.directory}/next", error.errno or 0) from error
        return int(text) if text.isdecimal() else 0

    def _claim(self, first: int, run: str) -> bool:
        """Note that the range is ours; False while somebody else's job may live in it."""
        path = self.directory / str(first)
        if path.exists() and _in_use(path):
            return False
        me = proc.stat(os.getpid())
        told = {"pid": me.pid, "start": me.start_ticks, "instance": self.instance, "run": run}
        self._write(path, json.dumps(told))
        return True

    def _write(self, path: Path, text: str) -> None:
        try:
            path.write_text(text)
        except OSError as error:
            raise KernelError("write", str(path), error.errno or 0) from error

    def _unlink(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise KernelError("unlink", str(path), error.errno or 0) from error


def _in_use(path: Path) -> bool:
    first = int(path.name)
    return _holds(path) or _alive(range(first, first + SIZE))


def _holds(path: Path) -> bool:
    """Whether the supervisor that noted itself there still runs: its pid and its start time."""
    told = _noted(path)
    try:
        return bool(proc.stat(int(told["pid"])).start_ticks == told["start"])
    except (LookupError, TypeError, ValueError):
        return False  # cut short by a crash
    except KernelError:
        return False  # no such process


def _noted(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text())
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _alive(ids: range) -> bool:
    """Whether a process has a user number of `ids`: the job of a supervisor that is no more.

    One that is dead and waits to be reaped can do nothing any more.
    """
    living = (entry.pid for entry in proc.processes() if entry.state not in "ZX")
    return any(number in ids for pid in living for number in _users(pid))


def _users(pid: int) -> list[int]:
    """Real, effective, saved and file system's, of a process; none of one that has ended."""
    try:
        status = proc.read_file(f"/proc/{pid}/status")
    except KernelError:
        return []
    line = next((one for one in status.split("\n") if one.startswith("Uid:")), "")
    return [int(number) for number in line.split()[1:]]
