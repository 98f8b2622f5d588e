"""The table becomes files: in a directory of ours that nobody else can enter yet.

May import: `errors`, `linux`, `rootfs.tree`.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from attrs import define, field

from supervisor.errors import KernelError, RootError
from supervisor.linux import constants as c
from supervisor.linux import syscalls
from supervisor.rootfs.tree import Directory, Entry, File, Link, Text, astray, relative

PRIVILEGE = "security.capability"
KEPT = ("user.", "system.posix_acl_", PRIVILEGE)
"""Attributes (xattr(7)) that say something about the file, not about where it lies."""
BLOCK = 1 << 24


@define
class Writer:
    """Writes one table below `top`.  `privileged`: set-user-ID bits and the like are kept."""

    top: Path
    privileged: bool = False
    stripped: list[str] = field(factory=list)
    _hard_links: dict[tuple[int, int], str] = field(factory=dict)

    def write(self, entries: dict[str, Entry]) -> None:
        """Raises KernelError where the disk refuses, RootError where a source has changed."""
        for path in astray(entries):
            raise RootError([f"{path}: is to be a directory and something else in the root"])
        order = sorted(entries)
        for path in order:
            try:
                self._make(path, entries[path])
            except OSError as error:
                if isinstance(error, KernelError):
                    raise
                raise KernelError("write", path, error.errno or 0) from error
        for path in reversed(order):  # what is made in a directory changes its times
            entry = entries[path]
            if isinstance(entry, Directory):
                self._finish_directory(path, entry)

    def _at(self, path: str) -> str:
        return f"{self.top}{path}" if path != "/" else str(self.top)

    def _make(self, path: str, entry: Entry) -> None:
        target = self._at(path)
        match entry:
            case Directory():
                if path != "/":
                    os.mkdir(target, 0o700)
            case File(source=source):
                self._copy(source, target, path)
            case Link(to=to):
                os.symlink(relative(path, to), target)
            case Text(text=text, mode=mode):
                Path(target).write_text(text)
                os.chmod(target, mode)

    def _copy(self, source: str, target: str, path: str) -> None:
        fd = _open(source, os.O_RDONLY | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise RootError([f"{source}: was a regular file when it was looked at"])
            key = (status.st_dev, status.st_ino)
            if status.st_nlink > 1 and key in self._hard_links:
                os.link(self._hard_links[key], target)
                return
            self._copy_open(fd, status, source, target, path)
            self._hard_links[key] = target
        finally:
            os.close(fd)

    def _copy_open(
        self, fd: int, status: os.stat_result, source: str, target: str, path: str
    ) -> None:
        out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _copy_data(fd, out, status.st_size)
            _own(out, status)
            names = os.listxattr(fd)
            mode = stat.S_IMODE(status.st_mode)
            if not self.privileged and (mode & 0o6000 or PRIVILEGE in names):
                mode &= 0o1777
                names = [name for name in names if name != PRIVILEGE]
                self.stripped.append(path)
            _attributes(fd, out, names, source)
            os.fchmod(out, mode)  # after the owner, whose change drops bits of it
            os.utime(out, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(out)

    def _finish_directory(self, path: str, entry: Directory) -> None:
        target = self._at(path)
        if entry.source is None:
            os.chmod(target, entry.mode)
            return
        fd = _open(entry.source, os.O_RDONLY | os.O_DIRECTORY)
        out = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            _own(out, status)
            _attributes(fd, out, os.listxattr(fd), entry.source)
            os.fchmod(out, stat.S_IMODE(status.st_mode))
            os.utime(out, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(fd)
            os.close(out)


def _open(source: str, flags: int) -> int:
    """Through no link: who owns a directory on the way could else put one there, to another's file.

    The path had none when it was looked at.
    """
    try:
        return syscalls.openat2(c.AT_FDCWD, source, flags, resolve=c.RESOLVE_NO_SYMLINKS)
    except KernelError as error:
        why = "has become a link" if error.errno == errno.ELOOP else os.strerror(error.errno or 0)
        raise RootError([f"{source}: {why}"]) from error


def _own(out: int, status: os.stat_result) -> None:
    """As on the host; without root all is whose who builds it."""
    if os.geteuid() == 0:
        os.fchown(out, status.st_uid, status.st_gid)


def _attributes(fd: int, out: int, names: list[str], told: str) -> None:
    for name in names:
        if not name.startswith(KEPT):
            continue
        try:
            os.setxattr(out, name, os.getxattr(fd, name))
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM) or name == PRIVILEGE:
                raise KernelError(f"set {name} of", told, error.errno or 0) from error


def _copy_data(fd: int, out: int, size: int) -> None:
    """The bytes, holes left out; by the kernel, which shares blocks where it can."""
    at = 0
    os.ftruncate(out, size)
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # a hole up to the end
            raise
        end = min(os.lseek(fd, at, os.SEEK_HOLE), size)
        while at < end:
            done = _copy_piece(fd, out, at, min(BLOCK, end - at))
            if done == 0:
                return  # it has become shorter
            at += done


def _copy_piece(fd: int, out: int, at: int, count: int) -> int:
    try:
        return os.copy_file_range(fd, out, count, at, at)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return os.pwrite(out, os.pread(fd, count, at), at)
