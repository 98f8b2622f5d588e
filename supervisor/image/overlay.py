"""The marks that overlayfs leaves in a writable layer (Documentation/filesystems/overlayfs.rst).

A character device 0:0 is a whiteout; a directory with the attribute `overlay.opaque` hides what is
below it.  May import: `errors`.
"""

from __future__ import annotations

import errno
import os
import stat

from supervisor.errors import ImageError

SPACES = ("trusted", "user")
"""Attributes' name spaces that the marks are kept in: the second in a user namespace."""
ELSEWHERE = ("redirect", "metacopy")
"""Marks of features that are off unless the host turns them on."""
DEEPEST = 250
"""Directories in one another; a path has at most 4096 bytes (PATH_MAX), a layer may be hostile."""


def is_whiteout(status: os.stat_result) -> bool:
    """Whether it stands for nothing, and hides what is below."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(directory: int) -> bool:
    """Whether what is below this directory (a descriptor) is hidden."""
    return any(attribute(directory, f"{space}.overlay.opaque") == b"y" for space in SPACES)


def check_whole(at: int, name: str, path: str) -> None:
    """ImageError where a mark says that the content of `name` in `at` is another file's."""
    for mark in ELSEWHERE:
        for space in SPACES:
            if attribute(f"/proc/self/fd/{at}/{name}", f"{space}.overlay.{mark}") is not None:
                hint = f"/sys/module/overlay/parameters/{mark}* is on: turn it off for new runs"
                raise ImageError(
                    f"what was written is not all here (overlay.{mark})", path, hint=hint
                )


def attribute(file: int | str, name: str) -> bytes | None:
    """One extended attribute, of a link itself; None if there is none, or none can be."""
    try:
        return os.getxattr(file, name, follow_symlinks=isinstance(file, int))
    except OSError as error:
        # EPERM: trusted.* without privilege, user.* on what is neither file nor directory
        if error.errno in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):
            return None
        raise


def open_directory(name: str, at: int | None = None) -> int:
    """A descriptor; below `at` no link is followed.  The caller closes it."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    return os.open(name, flags if at is None else flags | os.O_NOFOLLOW, dir_fd=at)
