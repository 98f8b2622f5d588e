"""Files that are there whole or not at all, and locks that the kernel gives back at any death.

May import: `errors`, `linux.durable`.  All of it blocks, none of it for long.

A lock is flock(2), so it belongs to an open file description: a process that inherits or is sent
the descriptor holds it too, and it is gone when the last of them is, however that ended.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from supervisor.errors import ImageError
from supervisor.linux.durable import fsync_directory


@contextmanager
def told(where: Path | str, doing: str) -> Iterator[None]:
    """Turns what the file system refuses into an ImageError that says what to do about it."""
    try:
        yield
    except OSError as err:
        raise refusal(err, where, doing) from err


def refusal(err: OSError, where: Path | str, doing: str) -> ImageError:
    """The ImageError for what the file system refused."""
    hints = {
        errno.ENOSPC: "make room there, for instance by: supervise image prune",
        errno.EDQUOT: "make room there, for instance by: supervise image prune",
        errno.EACCES: "as the user whose store it is, or with [images] store elsewhere",
        errno.EROFS: "say by [images] store where there may be written",
    }
    why = os.strerror(err.errno).lower() if err.errno else str(err)
    return ImageError(f"{doing}: {why}", str(where), hint=hints.get(err.errno or 0, ""))


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace a file; after a crash it has the old content or the new one.

    Without `durable` that holds for a crash of this process, not for one of the host.
    """
    beside, fd = _beside(path)
    try:
        _fill(fd, data, durable)
        beside.rename(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    if durable:
        fsync_directory(path.parent)


def write_once(path: Path, data: bytes) -> None:
    """Write a file unless there is one of this name: that one stays, with the locks on it."""
    beside, fd = _beside(path)
    try:
        _fill(fd, data, durable=True)
        os.link(beside, path)
    except FileExistsError:
        return
    finally:
        beside.unlink(missing_ok=True)
        os.close(fd)
    fsync_directory(path.parent)


def _beside(path: Path) -> tuple[Path, int]:
    """A new file in the same directory, locked: so that `sweep` knows whether it is abandoned."""
    while True:
        beside = path.with_name(f".{os.urandom(8).hex()}")
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(fd, beside):
                return beside, fd
        except BlockingIOError:
            pass  # a sweep came between, and takes it for an abandoned one
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _fill(fd: int, data: bytes, durable: bool) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
    if durable:
        os.fsync(fd)


def sweep(directory: Path) -> None:
    """Remove the temporary files in a directory that nobody writes any more."""
    for path in directory.glob(".*"):
        try:
            fd = try_lock(path, os.O_RDWR)
        except FileNotFoundError:
            continue  # it has just been renamed
        if fd is not None:
            path.unlink(missing_ok=True)
            os.close(fd)


def lock(path: Path, *, shared: bool = False) -> int:
    """Wait for a lock on a file, made if need be; the descriptor that holds it."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            if is_at(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # whoever had it has removed the file


def try_lock(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int | None:
    """The same, but None where another holds it; with other flags, FileNotFoundError."""
    while True:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        if is_at(fd, path):
            return fd
        os.close(fd)


def is_at(fd: int, path: Path) -> bool:
    """Whether the open file is the one that has this name now."""
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), named)


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock in a block."""
    fd = lock(path, shared=shared)
    try:
        yield
    finally:
        os.close(fd)


def close(fd: int) -> None:
    """Close a descriptor, and with the last one of its description the lock it holds."""
    os.close(fd)
