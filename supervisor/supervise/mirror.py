"""The files that show the jobs of an instance their share, and who writes them when.

May import: everything above `supervise`, trio.

    RUNTIME/NAME/proc/RUN/FILE   laid over the kernel's by the job's init, read-only

They are written at the start, when a limit changes, and, where the kernel asks before somebody
reads (`linux.readgate`, for root), before he does.  Nothing wakes while nobody reads.  Once he has
been answered nobody is asked about that file for a while: readers get what is there, so that a job
that reads in a loop costs the supervisor a small share of a CPU and no more.  When the supervisor
is gone the kernel asks nobody, and what was written last stays.

The supervisor itself opens none of these files while they are guarded: it would wait for itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Protocol

import trio

from supervisor.cgroup.api import JobCgroup
from supervisor.container import mirror, mirror_text
from supervisor.errors import KernelError
from supervisor.linux import proc, readgate
from supervisor.model.job import JobSpec
from supervisor.model.limits import Limits

SHORTEST, LONGEST = 0.05, 1.0
"""Seconds for which readers get what is there, once one of them has been answered."""
SPARED = 20
"""How many times as long as the answers took they do so."""
Inode = tuple[int, int]
"""A file's device, and its number there."""

SNAPSHOT = 'proc = "limits": files there change only with a limit, not while the job runs'


class Shown(Protocol):
    """Of a run, what its files show, and who is told of trouble: `supervise.run.Run`."""

    id: str
    spec: JobSpec
    limits: Limits
    cgroup: JobCgroup

    def warn(self, text: str) -> None: ...


class Mirrors:
    """Those of one instance, in `directory`; `warn` tells once of what cannot be done here."""

    def __init__(self, directory: Path, nursery: trio.Nursery, warn: Callable[[str], None]) -> None:
        self._directory = directory
        self._nursery = nursery
        self._warn: Callable[[str], None] | None = warn
        self._group = -1
        self._tried = False
        self._guarded: dict[Inode, tuple[Mirror, int]] = {}
        self._cpuinfo: tuple[str, dict[int, str]] | None = None

    def clear(self) -> None:
        """Remove the directory, with what a supervisor that was killed has left in it.

        Raises KernelError.
        """
        try:
            if self._directory.exists():
                rmtree(self._directory)
        except OSError as error:
            raise KernelError("remove", str(self._directory), error.errno or 0) from error

    @contextmanager
    def opened(self, run: Shown, *, time_namespaces: bool) -> Iterator[Mirror]:
        """The files of a run that starts now.  Raises KernelError."""
        booted = mirror.booted(run.spec, time_namespaces=time_namespaces)
        one = Mirror(run, self._directory / run.id, self.machine, booted)
        try:
            one.write()
            self._guard(one)
            yield one
        finally:
            for inode in one.inodes:
                self._guarded.pop(inode, None)
            one.close()

    def machine(self) -> mirror_text.Machine:
        """What of the host is shown too.  Its CPUs are looked at once: that takes long."""
        if self._cpuinfo is None:
            text = proc.read_file("/proc/cpuinfo")
            self._cpuinfo = text, mirror_text.blocks(text)
        return mirror_text.Machine(
            meminfo=proc.read_file("/proc/meminfo"),
            swaps=_if_there("/proc/swaps"),
            cpuinfo=self._cpuinfo[0],
            blocks=self._cpuinfo[1],
            devices=mirror_text.devices(_if_there("/proc/diskstats")),
        )

    def _guard(self, one: Mirror) -> None:
        """Be asked about its files from now on, where that can be."""
        try:
            if not self._tried:
                self._tried = True
                self._group = readgate.open_group()
                self._nursery.start_soon(self._serve, self._group)
            for inode, file in one.inodes.items() if self._group >= 0 else ():
                readgate.guard(self._group, file)
                self._guarded[inode] = one, file
        except KernelError as error:
            self._confess(error)

    def _confess(self, error: KernelError) -> None:
        """Once for all jobs."""
        if self._warn is not None:
            self._warn(f"{SNAPSHOT}: {error}")
            self._warn = None

    async def _serve(self, group: int) -> None:
        """Answer whoever waits, until cancelled.  However it ends, all are let go."""
        try:
            while True:
                await trio.lowlevel.wait_readable(group)
                self._answer(group)
        except KernelError as error:
            self._confess(error)
        finally:
            self._group = -1
            os.close(group)

    def _answer(self, group: int) -> None:
        """Raises KernelError."""
        began = time.monotonic()
        read: dict[Mirror, dict[int, None]] = {}
        for fd in readgate.waiting(group):
            try:
                status = os.fstat(fd)
                found = self._guarded.get((status.st_dev, status.st_ino))
                if found is not None:
                    one, file = found
                    read.setdefault(one, {})[file] = None
                    one.refresh(began)
            finally:
                readgate.allow(group, fd)
        spent = time.monotonic() - began
        for one, files in read.items():
            one.fresh_until = max(one.fresh_until, began + min(SPARED * spent, LONGEST))
            self._leave_alone(one, files)

    def _leave_alone(self, one: Mirror, files: Iterable[int]) -> None:
        """Be asked about none of `files` while they are fresh; some who wait may still come."""
        ignored = [file for file in files if file not in one.ignored]
        for file in ignored:
            readgate.ignore(self._group, file)
        if ignored and not one.ignored:
            self._nursery.start_soon(self._heed_again, one)
        one.ignored.update(ignored)

    async def _heed_again(self, one: Mirror) -> None:
        await trio.sleep_until(trio.current_time() + max(0.0, one.fresh_until - time.monotonic()))
        if self._group < 0 or one.closed:
            return
        try:
            for file in one.ignored:
                readgate.heed(self._group, file)
        except KernelError as error:
            self._confess(error)
        one.ignored.clear()


class Mirror:
    """Those of one run; `machine` tells of the host, `booted` is the time of its boot."""

    def __init__(
        self,
        run: Shown,
        directory: Path,
        machine: Callable[[], mirror_text.Machine],
        booted: int,
    ) -> None:
        self.directory = directory
        self.fresh_until = 0.0
        """Until when, by the monotonic clock, nobody needs to write anew for a reader."""
        self.ignored: set[int] = set()
        """Those of its files that nobody is asked about until then."""
        self.closed = False
        self._run = run
        self._machine = machine
        self._book = mirror_text.Book(time.monotonic())
        self._booted = booted
        self._written: dict[str, bytes] = {}
        self._files: dict[str, int] = {}
        self.inodes: dict[Inode, int] = {}
        """Its files as the kernel names them, and the descriptors they are written by."""
        self._told = False
        try:
            self._make()
        except OSError as error:
            self.close()
            raise KernelError("make", str(directory), error.errno or 0) from error

    def _make(self) -> None:
        """Held open for writing: nobody can take a lease (fcntl(2)) that a writer waits for."""
        self.directory.mkdir(mode=0o700, parents=True)
        create = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        for name in mirror.TARGETS:
            fd = self._files[name] = os.open(self.directory / name, create, 0o444)
            os.fchmod(fd, 0o444)
            status = os.fstat(fd)
            self.inodes[status.st_dev, status.st_ino] = fd

    def refresh(self, now: float) -> None:
        """For a reader: what is there will do for a while."""
        if now >= self.fresh_until:
            self.renew()
            self.fresh_until = now + SHORTEST

    def write(self) -> None:
        """What holds now.  Raises KernelError."""
        share = self._run.cgroup.share()
        cpus = mirror.cpus(share.cpus, self._run.limits.cpuset)
        self._book.update(time.monotonic(), share, cpus)
        texts = mirror_text.texts(share, self._book, self._machine(), cpus, self._booted)
        try:
            for name, text in texts.items():
                self._put(name, os.fsencode(text))
        except OSError as error:
            raise KernelError("write", str(self.directory), error.errno or 0) from error

    def _put(self, name: str, data: bytes) -> None:
        """In place, for the job has this very file; first what is new, then what is too much."""
        before = self._written.get(name, b"")
        if data == before:
            return
        os.pwrite(self._files[name], data, 0)
        if len(data) < len(before):
            os.ftruncate(self._files[name], len(data))
        self._written[name] = data

    def renew(self) -> None:
        """The same; what is there stays where it cannot be done, which is told once."""
        try:
            self.write()
        except KernelError as error:
            if not self._told:
                self._told = True
                self._run.warn(f'proc = "limits": {error}')

    def close(self) -> None:
        """Remove them; whoever still reads one has what was written last."""
        self.closed = True
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()
        try:
            rmtree(self.directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._run.warn(f"cannot remove {self.directory}: {error}")


def _if_there(path: str) -> str:
    """The text of a file that only some kernels have."""
    return proc.read_file(path) if os.path.exists(path) else ""
