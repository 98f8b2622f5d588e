"""Waking when a file changes: inotify(7), bound directly.

May import: `errors`.  For watches on few files with any mask, also in a client that has to start
fast; cgroups are watched by `linux.inotify`.  An event is a hint: look at the file.
"""

from __future__ import annotations

import ctypes
import os
import struct

from supervisor.errors import KernelError

# sys/inotify.h
IN_MODIFY = 0x2
IN_CLOSE_WRITE = 0x8
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_IGNORED = 0x8000
IN_ONESHOT = 0x80000000

_EVENT = struct.Struct("=iIII")
_ROOM = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc.inotify_init1.argtypes = (ctypes.c_int,)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_libc.inotify_rm_watch.argtypes = (ctypes.c_int, ctypes.c_int)

HINT = "raise fs.inotify.max_user_instances and max_user_watches, or the limit of open files"


class FileWatch:
    """One inotify instance, non-blocking and closed on exec."""

    def __init__(self) -> None:
        """Raises KernelError, EMFILE when the user has too many instances."""
        self._fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise KernelError("inotify_init", None, ctypes.get_errno(), hint=HINT)

    def fileno(self) -> int:
        return self._fd

    def add(self, path: str, mask: int) -> int:
        """Watch `path`; the watch's number, the same for the same file.  Raises KernelError."""
        number: int = _libc.inotify_add_watch(self._fd, os.fsencode(path), mask)
        if number < 0:
            raise KernelError("inotify_add_watch", path, ctypes.get_errno(), hint=HINT)
        return number

    def remove(self, number: int) -> None:
        """End a watch; one that has ended already (EINVAL) is as good."""
        _libc.inotify_rm_watch(self._fd, number)

    def read(self) -> set[int]:
        """The watches that something happened to; -1 among them: events are lost, look at all.

        Never blocks.
        """
        found: set[int] = set()
        while True:
            try:
                data = os.read(self._fd, _ROOM)
            except BlockingIOError:
                return found
            at = 0
            while at < len(data):
                number, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size + length
                if not mask & IN_IGNORED:
                    found.add(number)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
