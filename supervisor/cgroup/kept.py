"""Kernel files that are read again and again, and kept open as far as descriptors go.

For this package only.  A pread(2) of an open cgroup file costs a quarter of open, read and close
(`benchmarks.top` has the figures).  The open file does not keep its cgroup from being removed:
reading it says ENODEV then.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

from supervisor.errors import KernelError

_SMALL, _LARGE = 64, 8192
_PAGE = 4096

_pread = os.pread

FRESH = 0.1
"""Seconds for which a `Gate` is not read again."""


class Budget:
    """How many descriptors may be kept: half of those that we may have at all.

    The other half is for starting jobs.  Of ours all but a quarter is for files that are read
    `often`: whatever their runs do.
    """

    def __init__(self, most: int | None = None) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if most is None else 2 * most
        self.most = (1 << 20) if limit == resource.RLIM_INFINITY else limit // 2
        self.used = 0

    def take(self, *, often: bool) -> bool:
        """Whether one more may be kept."""
        if self.used >= (self.most if often else self.most // 4):
            return False
        self.used += 1
        return True

    def give_back(self) -> None:
        self.used -= 1


class File:
    """One file; `often`: it is read whenever its run has done anything."""

    __slots__ = ("_budget", "_fd", "_often", "_size", "path")

    def __init__(self, path: str, budget: Budget, *, often: bool = False) -> None:
        self.path = path
        self._budget = budget
        self._often = often
        self._fd = -1
        self._size = _SMALL  # a buffer that is much too large costs a tenth of the call

    def read(self) -> bytes:
        """All of it.  Raises KernelError (ENOENT, ENODEV: the cgroup is gone)."""
        try:
            if self._fd < 0:
                return self._open()
            data = _pread(self._fd, self._size, 0)
            return data if len(data) < self._size else self._all(self._fd)
        except OSError as error:
            raise KernelError("read", self.path, error.errno or 0) from error

    def _all(self, fd: int) -> bytes:
        """However large it is; the next time at once."""
        data = b""
        while self._size < _LARGE:
            self._size *= 4
            data = _pread(fd, self._size, 0)
            if len(data) < min(self._size, _PAGE):
                return data
        # a file of records (io.stat of many disks) gives about a page for each read
        data = data or _pread(fd, self._size, 0)
        while more := _pread(fd, self._size, len(data)):
            data += more
        return data

    def _open(self) -> bytes:
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = _pread(fd, self._size, 0)
            if len(data) >= self._size:
                data = self._all(fd)
            if self._budget.take(often=self._often):
                self._fd, fd = fd, -1
            return data
        finally:
            if fd >= 0:
                os.close(fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._budget.give_back()


class Gate:
    """A file that counts for all runs, as the instance's own cgroup's do.

    While it says the same, none of theirs has changed: a thousand files need not be read.  `part`
    picks out of its text what only changes with theirs.  A gate that cannot be read is open.
    """

    __slots__ = ("_file", "_part", "_state", "changed", "due")

    def __init__(self, file: File, part: Callable[[bytes], object]) -> None:
        self._file = file
        self._part = part
        self._state: object = object()
        self.changed = 0.0
        """When it was last seen to say something else.  What has been read since holds."""
        self.due = 0.0
        """When it is to be looked at again: see `look`."""

    def look(self, at: float) -> None:
        """To be called, from `due` on, before a run's own file is read: nothing falls between."""
        self.due = at + FRESH
        try:
            state = self._part(self._file.read())
        except (KernelError, ValueError, IndexError):
            state = object()
        if state != self._state:
            self._state = state
            self.changed = at

    def close(self) -> None:
        self._file.close()
