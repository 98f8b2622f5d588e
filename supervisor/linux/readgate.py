"""Being asked before a file is read: permission events of fanotify(7).

May import: `errors`.  Whoever reads a guarded file stands still, in a sleep that a fatal signal
ends (fs/notify/fanotify/fanotify.c, fanotify_get_response), until `allow` is called.  When the last
descriptor of the group is closed, so also by a SIGKILL of who holds it, the kernel lets all go on;
and likewise when too many wait at once.

A file is guarded for as long as it is there.  Since Linux 6.17 nobody is ever asked about one that
was opened while it was not (fs/notify/fsnotify.c, fsnotify_open_perm_and_set_mode): so what is not
to be asked for a while is ignored, not taken off.

To be asked takes CAP_SYS_ADMIN in the first user namespace, and a kernel with
CONFIG_FANOTIFY_ACCESS_PERMISSIONS.
"""

from __future__ import annotations

import ctypes
import os
import struct

from supervisor.errors import KernelError
from supervisor.linux.fanotify import SYS_FANOTIFY_INIT, SYS_FANOTIFY_MARK

# linux/fanotify.h
FAN_CLOEXEC = 0x1
FAN_NONBLOCK = 0x2
FAN_CLASS_CONTENT = 0x4
FAN_MARK_ADD = 0x1
FAN_MARK_REMOVE = 0x2
FAN_MARK_IGNORED_MASK = 0x20
FAN_MARK_IGNORED_SURV_MODIFY = 0x40
FAN_ACCESS_PERM = 0x20000
FAN_ALLOW = 1

_EVENT = struct.Struct("=IBBHQii")
"""struct fanotify_event_metadata: event_len, vers, reserved, metadata_len, mask, fd, pid."""
_ANSWER = struct.Struct("=iI")
"""struct fanotify_response: fd, response."""
_BUFFER = 64 * _EVENT.size

_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def open_group() -> int:
    """A descriptor that is readable while somebody waits.  Raises KernelError.

    EPERM without the privilege; EMFILE: max_user_groups in /proc/sys/fs/fanotify.
    """
    flags = ctypes.c_uint(FAN_CLOEXEC | FAN_NONBLOCK | FAN_CLASS_CONTENT)
    group = _syscall(SYS_FANOTIFY_INIT, flags, ctypes.c_uint(os.O_RDONLY | os.O_CLOEXEC))
    if group < 0:
        raise KernelError("fanotify_init", None, ctypes.get_errno())
    return int(group)


def guard(group: int, file: int) -> None:
    """Be asked before the file is read, by whatever mount it is reached.

    Raises KernelError, EINVAL where the kernel was built without it.
    """
    _mark(group, FAN_MARK_ADD, file)


def ignore(group: int, file: int) -> None:
    """Do not be asked until `heed`; who waits already must still be answered.  KernelError."""
    _mark(group, FAN_MARK_ADD | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, file)


def heed(group: int, file: int) -> None:
    """Be asked again.  Raises KernelError."""
    _mark(group, FAN_MARK_REMOVE | FAN_MARK_IGNORED_MASK, file)


def _mark(group: int, how: int, file: int) -> None:
    mask = ctypes.c_uint64(FAN_ACCESS_PERM)
    if _syscall(SYS_FANOTIFY_MARK, group, ctypes.c_uint(how), mask, file, None) < 0:
        raise KernelError("fanotify_mark", None, ctypes.get_errno())


def waiting(group: int) -> list[int]:
    """Some of those who wait: a descriptor of the file that each would read, for `allow`.

    Raises KernelError.
    """
    try:
        data = os.read(group, _BUFFER)
    except BlockingIOError:
        return []
    except OSError as error:
        raise KernelError("read", "a group of fanotify", error.errno or 0) from error
    found, at = [], 0
    while at + _EVENT.size <= len(data):
        length, _, _, _, mask, fd, _ = _EVENT.unpack_from(data, at)
        if fd >= 0 and mask & FAN_ACCESS_PERM:
            found.append(fd)
        at += length
    return found


def allow(group: int, fd: int) -> None:
    """Let the reader go on, and close what `waiting` gave.  One killed meanwhile is no failure."""
    try:
        os.write(group, _ANSWER.pack(fd, FAN_ALLOW))
    except FileNotFoundError:
        return
    except OSError as error:
        raise KernelError("write", "a group of fanotify", error.errno or 0) from error
    finally:
        os.close(fd)
