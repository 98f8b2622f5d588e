"""What a job will see of its root, looked up from outside before anything is mounted.

A root is one directory, or the layers of an image as overlayfs unites them: what lies in a layer
further up covers what lies below, directories of one name are merged, a whiteout (a character
device 0:0) takes a name away, an opaque directory all that the layers below have in it
(filesystems/overlayfs.rst).  Links are followed as if the root were /: none leads out of it.

May import: `model`, `linux`.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import lru_cache
from typing import Literal

from attrs import evolve, frozen

from supervisor.linux import constants as c
from supervisor.linux import syscalls
from supervisor.model.job import JobSpec

OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
"""Who marks a directory so: root's mounts read the one, those of a user namespace the other."""
_MOST_LINKS = 40
"""As the kernel's MAXSYMLINKS."""


@frozen
class Found:
    """What is at a path.

    path    inside the root, without links; of what is not there, as it is written
    kind    "" for nothing
    layers  host directories that have it, the one that shows first
    shut    whether a layer below all of these could not show anything here
    """

    path: str
    kind: Literal["", "directory", "link", "other"]
    layers: tuple[str, ...]
    shut: bool

    @property
    def place(self) -> str:
        """Where on the host it lies."""
        return self.layers[0] + self.path


class View:
    """One root, for as long as it stays the same; `united`: its directories are layers."""

    def __init__(self, layers: tuple[str, ...], *, united: bool) -> None:
        self.layers = layers
        self._united = united
        self._known: dict[str, Found] = {}

    def find(self, path: str) -> Found:
        """What `path` leads to; OSError (ELOOP) for a loop of links."""
        if path not in self._known:
            self._known[path] = self._walk(path)
        return self._known[path]

    def resolve(self, path: str) -> str:
        """Where `path` leads inside the root, the links followed: /usr/lib/x for /lib/x."""
        return self.find(path).path

    def exists(self, path: str) -> bool:
        return self.find(path).kind != ""

    def read(self, path: str, most: int) -> bytes | None:
        """The first `most` bytes of a file; None where there is none.  Raises OSError.

        The root may be changing: it is opened below its layer, past no link; and nothing but a
        file is opened for reading, as it may have devices and pipes in it.
        """
        found = self.find(path)
        if not found.kind:
            return None
        top = os.open(found.layers[0] or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            resolve = c.RESOLVE_BENEATH | c.RESOLVE_NO_SYMLINKS | c.RESOLVE_NO_MAGICLINKS
            fd = syscalls.openat2(top, found.path.lstrip("/"), os.O_PATH, resolve=resolve)
        finally:
            os.close(top)
        try:
            return _read(fd, found.place, most)
        finally:
            os.close(fd)

    def _walk(self, path: str) -> Found:
        parts = [part for part in reversed(path.split("/")) if part]
        way = [Found("", "directory", self.layers, shut=False)]
        links, broken = 0, False
        while parts:
            part = parts.pop()
            if part == "..":
                broken = broken or way[-1].kind != "directory"
                way = way[:-1] or way
            if part in (".", ".."):
                continue
            found = self._below(way[-1], part)
            target = _link(found) if found.kind == "link" else None
            if target is None:
                way.append(found)
                continue
            links += 1
            if links > _MOST_LINKS and broken:
                break
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), found.place)
            way = way[:1] if target.startswith("/") else way
            parts += [piece for piece in reversed(target.split("/")) if piece]
        last = way[-1]
        if broken:  # the way back out of what is not there: only the name is of use
            return Found(last.path or "/", "", (), last.shut)
        return last if last.path else evolve(last, path="/")

    def _below(self, at: Found, name: str) -> Found:
        """What overlayfs finds of a name in a directory (fs/overlayfs/namei.c, ovl_lookup)."""
        path = f"{at.path}/{name}"
        merged: list[str] = []
        for layer in at.layers if at.kind == "directory" else ():
            try:
                status = os.lstat(layer + path)
            except OSError:
                continue  # not there, or nothing that we could look at
            if self._united and is_whiteout(status):
                return _directory(path, merged, shut=True)
            if not stat.S_ISDIR(status.st_mode):
                kind: Literal["link", "other"] = "link" if stat.S_ISLNK(status.st_mode) else "other"
                return _directory(path, merged, shut=True) if merged else Found(
                    path, kind, (layer,), shut=True
                )  # fmt: skip
            merged.append(layer)
            if self._united and is_opaque(layer + path):
                return _directory(path, merged, shut=True)
        return _directory(path, merged, shut=at.shut)


def of(spec: JobSpec) -> View:
    """The root of a job that has one: an image's layers, a directory, or the host's own."""
    if spec.layers:
        return _of_image(spec.layers)
    return View(("" if spec.root == "host" else spec.root,), united=False)


@lru_cache(maxsize=256)  # an image's layers never change
def _of_image(layers: tuple[str, ...]) -> View:
    return View(layers, united=True)


def is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(directory: str) -> bool:
    return any(_attribute(directory, name) == b"y" for name in OPAQUE)


def _attribute(path: str, name: str) -> bytes:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return b""  # it has none, or the file system has none at all


def _directory(path: str, layers: list[str], *, shut: bool) -> Found:
    return Found(path, "directory" if layers else "", tuple(layers), shut)


def _link(found: Found) -> str | None:
    """Where a link leads; None where it is none any more: a directory may change."""
    try:
        return os.readlink(found.place)
    except OSError:
        return None


def _read(fd: int, path: str, most: int) -> bytes:
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, os.strerror(number), path)
    with open(f"/proc/self/fd/{fd}", "rb") as file:  # noqa: PTH123
        return file.read(most)
