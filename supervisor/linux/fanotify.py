"""Being woken by a write to a file system: a mark of fanotify(7) on the whole of it.

May import: `errors`, `linux`.  What was written, and to which file, is never read: events of a
group carry open descriptors, and to open a file of a job's is to do as it says.  Somebody has
written, that is all; closing the group throws its events away.
"""

from __future__ import annotations

import ctypes
import os

from supervisor.errors import KernelError

SYS_FANOTIFY_INIT = 300 if os.uname().machine == "x86_64" else 262
SYS_FANOTIFY_MARK = 301 if os.uname().machine == "x86_64" else 263

# linux/fanotify.h
FAN_CLOEXEC = 0x1
FAN_NONBLOCK = 0x2
FAN_REPORT_FID = 0x200
FAN_MARK_ADD = 0x1
FAN_MARK_FILESYSTEM = 0x100
FAN_MODIFY = 0x2
FAN_CLOSE_WRITE = 0x8
FAN_CREATE = 0x100
FAN_ONDIR = 0x40000000

_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def writes(directory: int) -> int:
    """A descriptor that is readable once a file was written to on the directory's file system.

    Written to, truncated, or closed after it had been open for writing; by a mapping only then.
    Raises KernelError: EPERM without CAP_SYS_ADMIN, EMFILE for too many
    (/proc/sys/fs/fanotify/max_user_groups).
    """
    return _group(0, FAN_MODIFY | FAN_CLOSE_WRITE, directory)


def creations(directory: int) -> int:
    """The same for everything that is made on it: files, directories, links (Linux 5.1).

    Raises KernelError, EOPNOTSUPP or ENODEV where the file system has no handles: overlayfs.
    """
    return _group(FAN_REPORT_FID, FAN_CREATE | FAN_ONDIR, directory)


def _group(flags: int, mask: int, directory: int) -> int:
    group = _syscall(SYS_FANOTIFY_INIT, ctypes.c_uint(FAN_CLOEXEC | FAN_NONBLOCK | flags), 0)
    if group < 0:
        raise KernelError("fanotify_init", None, ctypes.get_errno())
    how = FAN_MARK_ADD | FAN_MARK_FILESYSTEM
    done = _syscall(
        SYS_FANOTIFY_MARK, group, ctypes.c_uint(how), ctypes.c_uint64(mask), directory, b"."
    )
    if done < 0:
        error = KernelError("fanotify_mark", None, ctypes.get_errno())
        os.close(group)
        raise error
    return int(group)
