"""Numbers of quota projects for jobs' writable layers: one each, no two of this host at once.

    DIRECTORY/lock                  held (flock(2)) while a number is taken or given back
    DIRECTORY/next                  where to look for the next one
    DIRECTORY/MAJOR:MINOR.NUMBER    a project in use on that file system: who has it, and where

A project is taken only if nobody has anything in it: no limit, no byte, no inode on that file
system; nor may /etc/projects or /etc/projid know it.  It is given back when its layer is gone.
What a supervisor that was killed had is looked through by the next one of its instance's name.

May import: `errors`, `linux`, `supervise.idranges`.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from supervisor.errors import KernelError, SpawnError
from supervisor.linux import proc, quota

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
        self._etc = etc

    def take(self, base: str, run: str) -> int:
        """The number of a project that nobody has on the file system of `base`.

        Raises SpawnError when there is none, KernelError.
        """
        fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with self._locked():
                return self._take(fd, base, run)
        finally:
            os.close(fd)

    def _take(self, fd: int, base: str, run: str) -> int:
        known = known_projects(self._etc)
        device = quota.device_of(fd)
        start = self._next()
        for turn in range(COUNT):
            number = FIRST + (start + turn) % COUNT
            path = self.directory / f"{device}.{number}"
            if number in known or path.exists() or not is_free(fd, number):
                continue
            me = proc.stat(os.getpid())
            told = {"pid": me.pid, "start": me.start_ticks, "base": base, "run": run}
            self._write(path, json.dumps({"instance": self.instance, **told}))
            self._write(self.directory / "next", str(number - FIRST + 1))
            return number
        raise SpawnError("mounts", 0, base, f"all {COUNT} quota projects are in use")

    def give_back(self, base: str, number: int) -> None:
        """Its layer is gone: lift its limits.  Raises KernelError."""
        fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with self._locked():
                quota.limit(fd, number, 0, 0)
                path = self.directory / f"{quota.device_of(fd)}.{number}"
                path.unlink(missing_ok=True)
        finally:
            os.close(fd)

    def forget(self) -> list[str]:
        """Lift the limits of what an earlier supervisor of this name had: its jobs are no more.

        What is left of their layers stays where it is; those directories are returned.  A project
        that still has files in it is not given to anybody else.  Raises KernelError.
        """
        if os.geteuid() != 0 or not self.directory.exists():
            return []
        left: list[str] = []
        with self._locked():
            for path in self.directory.iterdir():
                told = _noted(path)
                if path.name in ("lock", "next") or told.get("instance") != self.instance:
                    continue
                if not _alive(told):
                    left += self._drop(path, str(told.get("base", "")))
        return left

    def _drop(self, path: Path, base: str) -> list[str]:
        number = path.name.rpartition(".")[2]
        there = os.path.isdir(base) and number.isdecimal()
        if there:
            fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                quota.limit(fd, int(number), 0, 0)
            finally:
                os.close(fd)
        path.unlink(missing_ok=True)
        return [base] if there else []

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
        return int(text) % COUNT if text.isdecimal() else 0

    def _write(self, path: Path, text: str) -> None:
        try:
            path.write_text(text)
        except OSError as error:
            raise KernelError("write", str(path), error.errno or 0) from error


def is_free(fd: int, number: int) -> bool:
    """Whether nobody has a limit, a byte or an inode there.  Raises KernelError."""
    found = quota.get(fd, number)
    return not (found.used or found.limit or found.inodes or found.inode_limit)


def _noted(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text())
    except ValueError:
        return {}  # cut short by a crash, or `lock`
    return told if isinstance(told, dict) else {}


def _alive(told: dict[str, Any]) -> bool:
    """Whether the supervisor that wrote it still runs: its pid and its start time."""
    try:
        return bool(proc.stat(int(told["pid"])).start_ticks == told["start"])
    except (LookupError, TypeError, ValueError, KernelError):
        return False


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
