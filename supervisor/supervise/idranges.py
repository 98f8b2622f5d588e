"""Ranges of user and group numbers for jobs: 65536 each, no two jobs of this host at once.

A note (`supervise.claims`) is called by the first number of a range.

One directory for all instances of the host.  A range is taken in the same time whatever their
number: `next` goes round, so that a range is not used again soon after it was given back.

Which numbers: those that /etc/subuid and /etc/subgid both give to the name `supervise`, else from
524288 on, where nobody has any: no entry of these files, no user, no group.

May import: `errors`, `linux`, `supervise.claims`, attrs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from supervisor.errors import KernelError, SpawnError
from supervisor.linux import proc
from supervisor.supervise import claims
from supervisor.supervise.claims import Claims

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
        self._claims = Claims(directory)
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
        with self._claims.locked():
            start = self._claims.next()
            for turn in range(slots):
                slot = (start + turn) % slots
                first = self.pool.at(slot)
                if first is not None and self._claim(first, run):
                    self._claims.go_on(slot + 1)
                    return first
        text = f"no range of {SIZE} user numbers is free: all {slots} are taken"
        raise SpawnError("user_namespace", 0, "", text, hint=FULL)

    def give_back(self, first: int) -> None:
        """Raises KernelError."""
        with self._claims.locked():
            self._claims.drop(str(first))

    def forget(self) -> None:
        """Drop what an earlier supervisor of this instance's name had: its jobs are no more.

        Raises KernelError.
        """
        if os.geteuid() != 0 or not self.directory.exists():
            return  # who is not root never had a range
        with self._claims.locked():
            for name, _told in list(self._claims.notes(self.instance)):
                if not self._in_use(name):
                    self._claims.drop(name)

    def _claim(self, first: int, run: str) -> bool:
        """Note that the range is ours; False while somebody else's job may live in it."""
        name = str(first)
        if self._claims.is_noted(name) and self._in_use(name):
            return False
        self._claims.note(name, instance=self.instance, run=run)
        return True

    def _in_use(self, name: str) -> bool:
        first = int(name)
        return claims.lives(self._claims.told(name)) or _alive(range(first, first + SIZE))


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
