"""`copy_out`: results of a job, copied for whoever comes after it, before its layer goes.

    init, before the payload     opens the mounts in which the paths lie (`protocol.Request.shown`)
    supervisor, after the end    copies what is there then from these, and lets them go

A mount lives as long as somebody holds it, so all that the job has written can be read when none of
its processes is left to change it, however it ended.  All of it is hostile: nothing but regular
files and directories is copied, no link is followed out of its mount, a file with many names is
copied once, a hole stays one.  What is made belongs to who runs `supervise`, without set-user-ID.

May import: `errors`, `model`, `linux`, `container`.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from attrs import define, field, frozen

from supervisor.container.results import mount_of, shown
from supervisor.linux import constants as c
from supervisor.linux import syscalls
from supervisor.model.job import JobSpec

CHUNK = 8 << 20
DEEPEST = 128
"""Directories in one another: each holds two descriptors open while it is copied."""
MOST_TOLD = 10
"""Lines on what was not copied, of one path."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})
"""What will not be otherwise for the next file."""


@frozen
class Copied:
    """One of `copy_out`: what arrived at `target`, and what did not, a line each."""

    path: str
    target: str
    arrived: bool
    files: int
    size: int
    problems: tuple[str, ...]


def collect(
    spec: JobSpec, roots: Sequence[int], into: Path, *, flat: bool, given_up: Callable[[], bool]
) -> Iterator[Copied]:
    """Copy each path below `into`, or with `flat` under its last name alone; blocks.

    `roots` are the descriptors for `shown`.  When `given_up` says so it ends, with nothing half.
    """
    by_mount = dict(zip(shown(spec), roots, strict=True))
    copier = _Copier(given_up)
    for path in spec.copy_out:
        if given_up():
            return
        mount = mount_of(path, spec)
        target = into / (os.path.basename(path) if flat else path.lstrip("/"))
        yield copier.take(path, by_mount[mount], os.path.relpath(path, mount), target)


class _GivenUp(Exception):
    """Nobody waits for the rest."""


@define
class _Copier:
    """`seen`: the copy of each file that has several names."""

    given_up: Callable[[], bool]
    seen: dict[tuple[int, int], Path] = field(factory=dict)
    files: int = 0
    size: int = 0
    problems: list[str] = field(factory=list)
    untold: int = 0

    def take(self, path: str, root: int, below: str, target: Path) -> Copied:
        """Complete under another name first, then in its place."""
        self.files, self.size, self.problems, self.untold = 0, 0, [], 0
        arrived = False
        new = target.with_name(f".{target.name}.{os.getpid()}.new")
        try:
            source = _open_below(root, below)
            try:
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._any(source, new, path, 0)
            finally:
                os.close(source)
            if self.files or new.is_dir():
                new.rename(target)
                arrived = True
                self.seen = {key: _moved(at, new, target) for key, at in self.seen.items()}
        except OSError as error:
            self._tell(path, _why(error))
        except _GivenUp:
            self._tell(path, "given up, as the stop could not wait for it")
        finally:
            _remove(new)
            self.seen = {key: at for key, at in self.seen.items() if not at.is_relative_to(new)}
        if self.untold:
            self.problems.append(f"{path}: {self.untold} more")
        return Copied(path, str(target), arrived, self.files, self.size, tuple(self.problems))

    def _any(self, source: int, target: Path, path: str, depth: int) -> None:
        status = os.fstat(source)
        if stat.S_ISREG(status.st_mode):
            self._file(source, status, target)
        elif not stat.S_ISDIR(status.st_mode):
            self._tell(path, "is neither a file nor a directory")
        elif depth == DEEPEST:
            self._tell(path, f"lies more than {DEEPEST} directories deep")
        else:
            target.mkdir(mode=0o700)
            self._entries(source, target, path, depth + 1)
            _take_over(target, status)

    def _entries(self, source: int, target: Path, path: str, depth: int) -> None:
        with os.scandir(source) as entries:
            for entry in entries:
                below = f"{path}/{entry.name}"
                try:
                    self._entry(source, entry.name, target, below, depth)
                except OSError as error:
                    if error.errno in FULL:
                        raise
                    self._tell(below, _why(error))

    def _entry(self, source: int, name: str, target: Path, path: str, depth: int) -> None:
        fd = _open_below(source, name)
        try:
            self._any(fd, target / name, path, depth)
        finally:
            os.close(fd)

    def _file(self, source: int, status: os.stat_result, target: Path) -> None:
        key = (status.st_dev, status.st_ino)
        if key in self.seen:
            os.link(self.seen[key], target)
        else:
            fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                self.size += self._data(source, fd, status.st_size)
            finally:
                os.close(fd)
            _take_over(target, status)
        if status.st_nlink > 1:
            self.seen[key] = target
        self.files += 1

    def _data(self, source: int, target: int, size: int) -> int:
        """The bytes that are there; holes are left out (lseek(2), SEEK_DATA)."""
        done = at = 0
        while (at := _next_data(source, at, size)) < size:
            end = os.lseek(source, at, os.SEEK_HOLE)
            os.lseek(target, at, os.SEEK_SET)
            while at < end:
                if self.given_up():
                    raise _GivenUp
                count = os.sendfile(target, source, at, min(end - at, CHUNK))
                if not count:
                    break
                at, done = at + count, done + count
        os.ftruncate(target, size)
        return done

    def _tell(self, path: str, why: str) -> None:
        if len(self.problems) < MOST_TOLD:
            self.problems.append(f"{path}: {why}")
        else:
            self.untold += 1


def _open_below(at: int, name: str) -> int:
    """For reading, without waiting for a FIFO; only the way to it may lead over links."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW
    return syscalls.openat2(at, name, flags, resolve=c.RESOLVE_IN_ROOT | c.RESOLVE_NO_MAGICLINKS)


def _next_data(source: int, at: int, size: int) -> int:
    try:
        return os.lseek(source, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size  # a hole to the end


def _take_over(target: Path, status: os.stat_result) -> None:
    """Permissions without set-user-ID and the like, and the time; we can read it in any case."""
    directory = stat.S_ISDIR(status.st_mode)
    os.chmod(target, status.st_mode & 0o777 | (0o700 if directory else 0o600))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _moved(path: Path, old: Path, new: Path) -> Path:
    return new / path.relative_to(old) if path.is_relative_to(old) else path


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _why(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "is a symbolic link, which is not followed"
    return error.strerror or str(error)
