"""A writable layer in directories of the run that belong to a project with a limit.

May import: `errors`, `linux`, `container.{disk,layers}`.  What is made below them is the project's,
and cannot be moved out of it.  Root of a user namespace cannot give a file to another project
(fs/file_attr.c, fileattr_set_prepare); an owner with the host's numbers can, whatever his
capabilities, so that such a job is refused (`disk.refusal`).
"""

from __future__ import annotations

import os

from supervisor.container.disk import BLOCK, Size, Usage, Way, open_directory
from supervisor.container.layers import Layers
from supervisor.linux import quota

OWN_INODES = 4
"""upper, work, and what overlayfs makes in it; on ext4 each takes a block of the limit."""


class QuotaSpace:
    """Made by `open_quota`."""

    way: Way = "quota"

    def __init__(self, fd: int, base: str, project: int, size: Size) -> None:
        self._fd = fd
        self._limit = size.limit
        self._inodes = size.inodes
        self.project = project
        self.layers = Layers(base)
        self.mounted: tuple[int, ...] = ()

    def enter(self, root: int) -> None:
        return

    def usage(self) -> Usage:
        now = quota.get(self._fd, self.project)
        return Usage(now.used, self._limit, max(now.inodes - OWN_INODES, 0), self._inodes)

    def grow(self, to: int) -> None:
        self._set(to)
        self._limit = to

    def start(self) -> None:
        """Put the layer into its project, and limit that."""
        self._set(self._limit)
        for name in ("upper", "work"):
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
            try:
                quota.put_into(fd, self.project)
            finally:
                os.close(fd)

    def _set(self, limit: int) -> None:
        quota.limit(self._fd, self.project, limit, self._inodes + OWN_INODES)

    def trouble(self) -> str:
        below = os.fstatvfs(self._fd)
        return "" if below.f_bavail * below.f_frsize >= BLOCK else "the disk below it is full"

    def close(self) -> None:
        """The limits stay until the files are gone: `projects.Projects.give_back`."""
        os.close(self._fd)


def open_quota(base: str, size: Size, project: int) -> QuotaSpace:
    """The directories `upper` and `work` in `base`, empty yet, as a layer of that size.

    Raises KernelError.
    """
    space = QuotaSpace(open_directory(base), base, project, size)
    try:
        space.start()
    except OSError:
        space.close()
        raise
    return space
