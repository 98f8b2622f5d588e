"""Removing a tree that may be as deep as somebody malicious wanted, and locked up by its modes.

Imports nothing of ours: the extraction's interpreter loads it too.  `shutil.rmtree` ends with a
RecursionError below a thousand directories, holds a descriptor for each, and fails for an ordinary
user in a directory without the write permission.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    StrOrBytes = str | bytes

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(path: StrOrBytes) -> None:
    """Remove what is at `path`, a link itself and not what it names.  Raises OSError.

    Nobody else may change it meanwhile.  Depth costs nothing: a directory in a directory is moved
    up to the first one's level, and its turn comes.
    """
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
        return
    top = _open(os.fsencode(path), None)
    try:
        waiting = _empty(top, _Names(top, ()))
        names = _Names(top, waiting)
        while waiting:
            name = waiting.pop()
            fd = _open(name, top)
            try:
                waiting += _empty(fd, names)
            finally:
                os.close(fd)
            os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(path)


class _Names:
    """Names in the directory `top` that nothing there has."""

    def __init__(self, top: int, taken: Iterable[bytes]) -> None:
        self.top = top
        self._taken = frozenset(taken)
        self._last = 0

    def new(self) -> bytes:
        while True:
            self._last += 1
            name = b"removed-%d" % self._last
            if name not in self._taken:
                return name


def _empty(fd: int, names: _Names) -> list[bytes]:
    """Remove a directory's files, move its directories to the top; their names there."""
    moved = []
    for name in map(os.fsencode, os.listdir(fd)):
        if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=fd)
        elif fd == names.top:
            moved.append(name)
        else:
            new = names.new()
            os.chmod(name, 0o700, dir_fd=fd)  # its ".." will change: it must be writable
            os.rename(name, new, src_dir_fd=fd, dst_dir_fd=names.top)
            moved.append(new)
    return moved


def _open(name: bytes, at: int | None) -> int:
    """To be listed and emptied, whatever its mode was."""
    try:
        fd = os.open(name, _OPEN, dir_fd=at)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=at)
        fd = os.open(name, _OPEN, dir_fd=at)
    try:
        if os.fstat(fd).st_mode & 0o700 != 0o700:
            os.fchmod(fd, 0o700)
    except OSError:
        os.close(fd)
        raise
    return fd
