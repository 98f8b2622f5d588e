"""A writable layer in memory, with a size of its own: its pages are charged to who writes them.

May import: `errors`, `linux`, `container.{disk,layers}`.
"""

from __future__ import annotations

import errno
import os

from supervisor.container.disk import BLOCK, Size, Usage, Way, make_directories
from supervisor.container.layers import Layers
from supervisor.errors import KernelError
from supervisor.linux import constants as c
from supervisor.linux import newmount

OWN_INODES = 4
"""The root, upper, work, and what overlayfs makes in it."""


class TmpfsSpace:
    """Made by `open_tmpfs`."""

    way: Way = "tmpfs"

    def __init__(self, mounted: int, size: Size) -> None:
        self._mounted = mounted
        self._limit = size.limit
        self._inodes = size.inodes
        self.layers = Layers(None, mounted=True)
        self.mounted: tuple[int, ...] = (mounted,)

    def enter(self, root: int) -> None:
        return

    def usage(self) -> Usage:
        return usage(os.fstatvfs(self._mounted), self._limit, self._inodes)

    def grow(self, to: int) -> None:
        newmount.reconfigure(self._mounted, {"size": str(to)})
        self._limit = to

    def trouble(self) -> str:
        return ""

    def close(self) -> None:
        os.close(self._mounted)


class InnerSpace:
    """The same without root: the job's own init mounts it, and the supervisor sees but its size.

    It is seen through the job's root, which is an overlay and tells of its upper layer.
    """

    way: Way = "tmpfs"

    def __init__(self, size: Size) -> None:
        self._limit = size.limit
        self._inodes = size.inodes
        self._root = -1
        options_ = options(size.limit, size.inodes)
        self.layers = Layers(None, options=",".join(f"{k}={v}" for k, v in options_.items()))
        self.mounted: tuple[int, ...] = ()

    def enter(self, root: int) -> None:
        self._root = os.dup(root)

    def usage(self) -> Usage:
        if self._root < 0:
            return Usage(0, self._limit, 0, self._inodes)
        return usage(os.fstatvfs(self._root), self._limit, self._inodes)

    def grow(self, to: int) -> None:
        hint = "without root a layer keeps the size that it was made with"
        raise KernelError("remount", "tmpfs", errno.EPERM, hint=hint)

    def trouble(self) -> str:
        return ""

    def close(self) -> None:
        if self._root >= 0:
            os.close(self._root)
            self._root = -1


def usage(now: os.statvfs_result, limit: int, inodes: int) -> Usage:
    used = (now.f_blocks - now.f_bavail) * now.f_frsize
    taken = now.f_files - now.f_ffree - OWN_INODES
    return Usage(used, limit, max(taken, 0), inodes)


def options(limit: int, inodes: int) -> dict[str, str]:
    """Of tmpfs(5)."""
    whole = -(-limit // BLOCK) * BLOCK
    return {"mode": "0755", "size": str(whole), "nr_inodes": str(inodes + OWN_INODES)}


def open_tmpfs(size: Size, owner: int) -> TmpfsSpace:
    """A new layer, `owner`'s on the host.  Raises KernelError."""
    mounted = newmount.mount("tmpfs", {**options(size.limit, size.inodes)}, c.MOUNT_ATTR_NODEV)
    try:
        make_directories(mounted, owner)
    except KernelError:
        os.close(mounted)
        raise
    return TmpfsSpace(mounted, size)
