"""Watches on kernel files by inotify(7): the only user of pyinotify.

Not for the launcher.  May import: `errors`, pyinotify, the standard library.  A wake-up carries
no news but the watch descriptor: whoever watches reads the file again.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import warnings
from typing import Any

from supervisor.errors import KernelError

with warnings.catch_warnings():
    # pyinotify has one notifier built on asyncore, which is not used here
    warnings.filterwarnings("ignore", "The asyncore module", DeprecationWarning)
    import pyinotify

_log = logging.getLogger("pyinotify")
# at import it installs a handler of its own that writes to stderr
_log.handlers = [logging.NullHandler()]
_log.propagate = False

_libc = ctypes.CDLL(None, use_errno=True)
_libc.inotify_init1.argtypes = (ctypes.c_int,)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_libc.inotify_rm_watch.argtypes = (ctypes.c_int, ctypes.c_int)

_HINTS = {
    errno.EMFILE: "raise fs.inotify.max_user_instances or the limit of open files",
    errno.ENOSPC: "raise fs.inotify.max_user_watches",
}


class _Calls(pyinotify.INotifyWrapper):  # type: ignore[misc]  # pyinotify has no types
    """The system calls for pyinotify.

    Its own binding runs ldconfig to find the C library, and makes a descriptor that blocks and
    is inherited.  `errno` is that of the last failure.
    """

    def __init__(self) -> None:
        self.errno = 0

    def _checked(self, result: int) -> int:
        if result < 0:
            self.errno = ctypes.get_errno()
        return result

    def _get_errno(self) -> int:
        return self.errno

    def _inotify_init(self) -> int:
        return self._checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def _inotify_add_watch(self, fd: int, pathname: str, mask: int) -> int:
        return self._checked(_libc.inotify_add_watch(fd, os.fsencode(pathname), mask))

    def _inotify_rm_watch(self, fd: int, wd: int) -> int:
        return self._checked(_libc.inotify_rm_watch(fd, wd))


class _Manager(pyinotify.WatchManager):  # type: ignore[misc]
    """A WatchManager over `_Calls`; the constructor it replaces knows only pyinotify's binding."""

    def __init__(self, calls: _Calls, fd: int) -> None:
        self._ignore_events = False
        self._exclude_filter = lambda path: False
        self._wmd: dict[int, Any] = {}
        self._inotify_wrapper = calls
        self._fd = fd


class Inotify:
    """One inotify instance, non-blocking and closed on exec; one per process is enough."""

    def __init__(self) -> None:
        """Raises KernelError, EMFILE when the user has too many instances."""
        self._calls = _Calls()
        fd: int = self._calls.inotify_init()
        if fd < 0:
            raise self._error("inotify_init", None)
        self._manager = _Manager(self._calls, fd)
        self._events: list[Any] = []
        # only appends: an exception in a handler would leave pyinotify's queue half read
        self._notifier = pyinotify.Notifier(self._manager, self._events.append)
        self._fd = fd

    def fileno(self) -> int:
        """The descriptor to wait on; -1 once closed."""
        return self._fd

    def add(self, path: str) -> int:
        """Watch `path` for IN_MODIFY; the watch descriptor, the same for the same file.

        Raises KernelError: ENOENT, or ENOSPC when the user has too many watches.
        """
        try:
            found = self._manager.add_watch(path, pyinotify.IN_MODIFY, quiet=False)
        except pyinotify.WatchManagerError as error:
            raise self._error("inotify_add_watch", path) from error
        return int(found[path])

    def remove(self, wd: int) -> None:
        """End a watch; one that the kernel has ended already is as good.  Raises KernelError.

        Removing a cgroup sends no event, so that pyinotify would keep the watch for ever.
        """
        if self._manager.get_watch(wd) is None:
            return
        try:
            self._manager.rm_watch(wd, quiet=False)
        except pyinotify.WatchManagerError as error:
            self._manager.del_watch(wd)
            if self._calls.errno != errno.EINVAL:
                raise self._error("inotify_rm_watch", str(wd)) from error

    def read(self) -> tuple[set[int], bool]:
        """The watches that something happened to since the last read, and whether some are missing.

        True stands for IN_Q_OVERFLOW: look at everything.  Never blocks.
        """
        if self._notifier.check_events(timeout=0):
            self._notifier.read_events()
            self._notifier.process_events()
        overflow = any(event.mask & pyinotify.IN_Q_OVERFLOW for event in self._events)
        found = {event.wd for event in self._events if not event.mask & pyinotify.IN_Q_OVERFLOW}
        self._events.clear()
        return found, overflow

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            self._notifier.stop()
            self._fd = -1

    def _error(self, operation: str, path: str | None) -> KernelError:
        number = self._calls.errno
        return KernelError(operation, path, number, hint=_HINTS.get(number, ""))
