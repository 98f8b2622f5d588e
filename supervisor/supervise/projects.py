"""Numbers of quota projects for jobs' writable layers: one each, no two of this host at once.

A note (`supervise.claims`) is called MAJOR:MINOR.NUMBER, by the file system and the project.

A project is taken only if nobody has anything in it: no limit, no byte, no inode on that file
system; nor may /etc/projects or /etc/projid know it.  It is given back when its layer is gone.
What a supervisor that was killed had is looked through by the next one of its instance's name.

May import: `errors`, `linux`, `supervise.claims`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from supervisor.errors import SpawnError
from supervisor.linux import quota
from supervisor.supervise import claims
from supervisor.supervise.claims import Claims

FIRST = 0x53000000
"""Above what people write into /etc/projects; half of the numbers are left to others."""
COUNT = 1 << 20
ETC = Path("/etc")
DIRECTORY = Path("/run/supervise/.projects")
"""No instance's name begins with a dot."""


class Projects:
    """The projects of this host, as one instance takes them."""

    def __init__(self, instance: str, directory: Path = DIRECTORY, etc: Path = ETC) -> None:
        self.instance = instance
        self.directory = directory
        self._claims = Claims(directory)
        self._etc = etc

    def take(self, base: str, run: str) -> int:
        """The number of a project that nobody has on the file system of `base`.

        Raises SpawnError when there is none, KernelError.
        """
        with _opened(base) as fd, self._claims.locked():
            return self._take(fd, base, run)

    def _take(self, fd: int, base: str, run: str) -> int:
        known = known_projects(self._etc)
        device = quota.device_of(fd)
        start = self._claims.next()
        for turn in range(COUNT):
            number = FIRST + (start + turn) % COUNT
            name = f"{device}.{number}"
            if number in known or self._claims.is_noted(name) or not is_free(fd, number):
                continue
            self._claims.note(name, instance=self.instance, base=base, run=run)
            self._claims.go_on(number - FIRST + 1)
            return number
        raise SpawnError("mounts", 0, base, f"all {COUNT} quota projects are in use")

    def give_back(self, base: str, number: int) -> None:
        """Its layer is gone: lift its limits.  Raises KernelError."""
        with _opened(base) as fd, self._claims.locked():
            quota.limit(fd, number, 0, 0)
            self._claims.drop(f"{quota.device_of(fd)}.{number}")

    def forget(self) -> list[str]:
        """Lift the limits of what an earlier supervisor of this name had: its jobs are no more.

        What is left of their layers stays where it is; those directories are returned.  A project
        that still has files in it is not given to anybody else.  Raises KernelError.
        """
        if os.geteuid() != 0 or not self.directory.exists():
            return []
        with self._claims.locked():
            gone = [one for one in self._claims.notes(self.instance) if not claims.lives(one[1])]
            return [base for name, told in gone if (base := self._drop(name, told))]

    def _drop(self, name: str, told: dict[str, Any]) -> str:
        base, number = str(told.get("base", "")), name.rpartition(".")[2]
        there = os.path.isdir(base) and number.isdecimal()
        if there:
            with _opened(base) as fd:
                quota.limit(fd, int(number), 0, 0)
        self._claims.drop(name)
        return base if there else ""


@contextmanager
def _opened(base: str) -> Iterator[int]:
    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def is_free(fd: int, number: int) -> bool:
    """Whether nobody has a limit, a byte or an inode there.  Raises KernelError."""
    found = quota.get(fd, number)
    return not (found.used or found.limit or found.inodes or found.inode_limit)


def known_projects(etc: Path) -> frozenset[int]:
    """Those that /etc/projects (NUMBER:PATH) and /etc/projid (NAME:NUMBER) name."""
    found: set[int] = set()
    for name, column in (("projects", 0), ("projid", 1)):
        try:
            text = (etc / name).read_text(errors="replace")
        except FileNotFoundError:
            continue
        for line in text.splitlines():
            fields = line.split(":")
            if len(fields) > 1 and fields[column].strip().isdecimal():
                found.add(int(fields[column]))
    return frozenset(found)
