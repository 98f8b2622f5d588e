"""Calls that wait for a disk: they take seconds, so they let go of Python's lock meanwhile.

May import: `errors`.  (`linux.syscalls` keeps the lock, for the sake of clone.)
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from supervisor.errors import KernelError

_libc = ctypes.CDLL(None, use_errno=True)
_syncfs = _libc.syncfs
_syncfs.argtypes = (ctypes.c_int,)


def syncfs(path: Path) -> None:
    """syncfs(2): write out all of the file system that `path` is on."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _syncfs(fd) < 0:
            raise KernelError("syncfs", str(path), ctypes.get_errno())
    finally:
        os.close(fd)


def fsync_directory(path: Path) -> None:
    """fsync(2) of a directory: the names in it are on the disk afterwards."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
