"""The steps that lay one directory over another, and what their layers are made of.

Loaded by the launcher, carried out by a job's init before the pivot.
"""

from __future__ import annotations

import os

from supervisor.container.steps import Context, Operation, make_dirs, open_path
from supervisor.linux import constants as c
from supervisor.linux import syscalls

_EINVAL = 22
_PAGE = 4096
"""What mount(2) copies of its data, at least (fs/namespace.c, copy_mount_options)."""


class Whiteout(Operation):
    """In a layer, what says that a name of the layers below is not there (overlayfs.rst)."""

    __slots__ = ("path",)
    path: str

    def describe(self) -> str:
        return f"mknod {self.path} c 0 0"

    def execute(self, context: Context) -> None:
        make_dirs(os.path.dirname(self.path), 0o755)
        os.mknod(self.path, 0o20000, 0)


class Own(Operation):
    """Give a directory its mode, whatever the umask, and its owner; -1 leaves that."""

    __slots__ = ("gid", "mode", "path", "uid")
    path: str
    mode: int
    uid: int
    gid: int

    def describe(self) -> str:
        owner = f" && chown {self.uid}:{self.gid} {self.path}" if self.uid >= 0 else ""
        return f"chmod {self.mode:04o} {self.path}{owner}"

    def execute(self, context: Context) -> None:
        os.chown(self.path, self.uid, self.gid)  # it clears set-user-ID, so the mode comes after
        os.chmod(self.path, self.mode)


class Overlay(Operation):
    """Directories united (overlayfs.rst): `lower`, the top one first, and below `upper` if any.

    mount(2) takes options of one page, in which "," ":" and "\\" mean something.  What does not
    fit, or has these in it, is opened and named by its descriptor, with /proc/self/fd as the
    working directory: "7:8:9".
    """

    __slots__ = ("flags", "lower", "options", "target", "upper", "work")
    target: str
    lower: tuple[str, ...]
    upper: str
    work: str
    flags: int
    options: str

    def describe(self) -> str:
        data = self._data(self.lower, self.upper, self.work)
        names = [name for bit, name in c.MS_NAMES.items() if self.flags & bit]
        return f"mount -t overlay -o {','.join([*names, data])} none {self.target}"

    def _data(self, lower: tuple[str, ...], upper: str, work: str) -> str:
        written = f",upperdir={upper},workdir={work}" if upper else ""
        return f"lowerdir={':'.join(lower)}{written}" + (self.options and "," + self.options)

    def _fits(self) -> bool:
        names = "".join((*self.lower, self.upper, self.work))
        data = self._data(self.lower, self.upper, self.work)
        return len(os.fsencode(data)) < _PAGE and not any(mark in names for mark in ",:\\")

    def execute(self, context: Context) -> None:
        try:
            if self._fits():
                data = self._data(self.lower, self.upper, self.work)
                syscalls.mount("overlay", self.target, "overlay", self.flags, data)
            else:
                self._by_descriptors(context)
        except OSError as error:
            self._tell_of_stack(error)
            raise OSError(error.errno, error.strerror, self.target) from None

    def _by_descriptors(self, context: Context) -> None:
        fds: list[int] = []
        try:
            for path in (
                self.target,
                *self.lower,
                *((self.upper, self.work) if self.upper else ()),
            ):
                fds.append(context.open(path))
            names = tuple(str(fd) for fd in fds)
            end = 1 + len(self.lower)
            upper, work = names[end:] if self.upper else ("", "")
            os.chdir("/proc/self/fd")
            data = self._data(names[1:end], upper, work)
            syscalls.mount("overlay", names[0], "overlay", self.flags, data)
        finally:
            os.chdir("/")
            for fd in fds:
                os.close(fd)

    def _tell_of_stack(self, error: OSError) -> None:
        """EINVAL says little: an overlay may lie on an overlay, but not on one that does so."""
        for path in self.lower if error.errno == _EINVAL else ():
            fd = open_path(c.AT_FDCWD, path)
            try:
                if syscalls.fs_magic(fd) == c.OVERLAYFS_SUPER_MAGIC:
                    raise Refused(_EINVAL, path, STACKED)
            finally:
                os.close(fd)


STACKED = "lies on an overlay, and the kernel stacks no more than two: keep it on a disk"


class Refused(OSError):
    """A refusal whose reason is known: `text` for people."""

    def __init__(self, errno: int, path: str, text: str) -> None:
        super().__init__(errno, os.strerror(errno), path)
        self.text = text
