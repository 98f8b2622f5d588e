"""What a step of putting a root together is, what the steps share, and how paths are opened.

Used by `mounts` and `overlays`, which have the steps; loaded by the launcher.

A root may be somebody's who means harm, and may be changed while it is set up.  So whatever is made
or mounted is opened first, without the magic links of /proc, which lead to this process's own
descriptors, the old root among them (openat2(2), RESOLVE_NO_MAGICLINKS); and what lies below the
job's /proc, /sys and /dev is found from the mounts themselves, whatever their names lead to.
"""

from __future__ import annotations

import os

from supervisor.linux import constants as c
from supervisor.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_ENOTDIR = 20
_ELOOP = 40

HELD = {"/proc": c.PROC_SUPER_MAGIC, "/sys": c.SYSFS_MAGIC, "/dev": c.TMPFS_MAGIC}
"""The mounts in which more is mounted or hidden, and how to know them."""


class Context:
    """What operations hand to one another: detached mounts by number, the old root.

    `tops` are the roots of the mounts at HELD, once they are there.
    """

    __slots__ = ("old_root", "tops", "trees")

    def __init__(self) -> None:
        self.trees: dict[int, int] = {}
        self.tops: dict[str, int] = {}
        self.old_root = -1

    def open(self, path: str) -> int:
        """A descriptor (O_PATH) of what is at `path`, as the module's docstring says."""
        for top, fd in self.tops.items():
            if path.startswith(top + "/"):
                resolve = c.RESOLVE_NO_MAGICLINKS | c.RESOLVE_BENEATH
                return syscalls.openat2(fd, path[len(top) + 1 :], os.O_PATH, resolve=resolve)
        return open_path(c.AT_FDCWD, path)

    def hold(self, path: str) -> None:
        """Remember the mount that was just made at `path`; ELOOP where somebody moved it away."""
        fd = open_path(c.AT_FDCWD, path)
        if syscalls.fs_magic(fd) != HELD[path]:
            os.close(fd)
            raise OSError(_ELOOP, os.strerror(_ELOOP), path)
        self.tops[path] = fd

    def close(self) -> None:
        """What is still held; the payload must find none of it."""
        for fd in self.tops.values():
            os.close(fd)
        self.tops.clear()


def open_path(at: int, path: str, flags: int = os.O_PATH, mode: int = 0) -> int:
    """A descriptor of what is at `path`, past no magic link."""
    return syscalls.openat2(at, path, flags, mode=mode, resolve=c.RESOLVE_NO_MAGICLINKS)


class Operation:
    """One step: `describe()` as a shell-like line, `execute()` for real (KernelError)."""

    __slots__: tuple[str, ...] = ()

    def __init__(self, **values: Any) -> None:
        for name in self.__slots__:
            setattr(self, name, values.pop(name))
        if values:
            raise TypeError(f"unknown fields: {', '.join(values)}")

    def pack(self) -> tuple[Any, ...]:
        return (type(self).__name__, *(getattr(self, name) for name in self.__slots__))

    def describe(self) -> str:
        return type(self).__name__

    def execute(self, context: Context) -> None:
        raise TypeError(f"{type(self).__name__} does nothing")


def make_dirs(path: str, mode: int) -> None:
    """mkdir -p without `os.makedirs`' umask; what exists is left as it is."""
    os.close(_directory(path.rstrip("/"), mode))


def _directory(path: str, mode: int) -> int:
    """A descriptor of the directory, made if it is not there.

    What is there after all is no failure: another job may have made it since we looked.
    User-Mode Linux 6.1 also denied, in 2 of 590 starts, a directory on which other jobs, in their
    own namespaces, were mounting and unmounting just then (the launcher's `layers`).
    """
    flags = os.O_PATH | os.O_DIRECTORY
    try:
        return open_path(c.AT_FDCWD, path or "/", flags)
    except OSError as error:
        if error.errno in (_ENOTDIR, _ELOOP):
            raise OSError(error.errno, error.strerror, path) from None
    parent, _, name = path.rpartition("/")
    at = _directory(parent, mode)
    try:
        os.mkdir(name, mode, dir_fd=at)
    except FileExistsError:
        pass
    except OSError:
        os.close(at)
        raise
    try:
        return open_path(at, name, flags)
    finally:
        os.close(at)
