"""Giving back the beginning of a file that others append to: fallocate(2).

May import: `errors`.  A write with O_APPEND and either of these wait for each other in the kernel
(the inode's lock): no byte is written to where it would be taken away.
"""

from __future__ import annotations

import ctypes
import os

from supervisor.errors import KernelError

# linux/falloc.h
FALLOC_FL_KEEP_SIZE = 0x1
FALLOC_FL_PUNCH_HOLE = 0x2
FALLOC_FL_COLLAPSE_RANGE = 0x8

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate64 if hasattr(_libc, "fallocate64") else _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def collapse(fd: int, size: int) -> None:
    """Take the first `size` bytes, a multiple of the file system's block, out of the file.

    What follows moves to its beginning.  Raises KernelError: EOPNOTSUPP where the file system
    cannot, EINVAL where `size` is none of its multiples or reaches the end.
    """
    _call(fd, FALLOC_FL_COLLAPSE_RANGE, 0, size)


def punch(fd: int, offset: int, size: int) -> None:
    """Give back what holds these bytes; they read as zeros, and the file stays as long.

    Raises KernelError, EOPNOTSUPP where the file system cannot.
    """
    _call(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, size)


def _call(fd: int, mode: int, offset: int, size: int) -> None:
    if _fallocate(fd, mode, offset, size) < 0:
        raise KernelError("fallocate", os.readlink(f"/proc/self/fd/{fd}"), ctypes.get_errno())
