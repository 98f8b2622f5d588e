"""The root to be, as a table of paths: what is made there, and from which file of the host.

Every key is a path without links in it, as the root will have them: the links on the way to it
are entries of their own, the directories too.  So whoever writes the table writes nowhere else.

May import: `errors`, `rootfs.elf`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Literal

from attrs import frozen

from supervisor.errors import RootError

MOST = 1_000_000
"""Entries of one root."""
MOST_LINKS = 40
"""As the kernel follows for one path (path_resolution(7))."""
OWN = ("/dev", "/proc", "/run", "/sys", "/tmp")
"""Where a job has file systems of its own: what the root has there, it does not see."""
KERNELS = ("/proc", "/sys", "/dev", "/run")
"""What is the kernel's, or of this boot: a job has its own."""
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""What is a link into /usr where the distribution has merged them (hier(7))."""


@frozen
class Directory:
    """With mode, owner and times of `source`; None: of root's, open to all."""

    source: str | None = None
    mode: int = 0o755


@frozen
class File:
    """A copy of a regular file; `source` has no links in it."""

    source: str


@frozen
class Link:
    """A symbolic link, `to` as the host has it."""

    to: str


@frozen
class Text:
    """A file of our own."""

    text: str
    mode: int = 0o644


@frozen
class Present:
    """What packages have put there already; it stays as it is.  `to`: where a link leads."""

    kind: Literal["file", "directory", "link"]
    to: str = ""


Entry = Directory | File | Link | Text | Present
Kind = Literal["file", "directory", "other"]


class Tree:
    """The table while it grows.  Paths are absolute, as seen from inside the root."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def __contains__(self, path: str) -> bool:
        return path in self.entries

    def add(self, path: str) -> str:
        """A file or directory of the host at its own path, with the links that lead to it.

        Returns the path without links.  A directory is made, and not filled.
        Raises RootError: it is not there, a loop of links, a device, the kernel's.
        """
        real = self._walk(path, from_host=True)
        self._put(real, _entry(real_path(real), path))
        return real

    def add_at(self, source: str, target: str) -> str:
        """The same at another path: parents that the root lacks are plain directories."""
        real = real_path(source)
        place = self._walk(target, from_host=False)
        self._put(place, _entry(real, source))
        return place

    def write(self, path: str, text: str) -> None:
        """A file of our own, unless something is there."""
        place = self._walk(path, from_host=False)
        if place not in self.entries:
            self._put(place, Text(text))

    def make(self, path: str, mode: int = 0o755) -> None:
        """A directory, unless something is there."""
        place = self._walk(path, from_host=False)
        if place not in self.entries:
            self._put(place, Directory(mode=mode))

    def put_link(self, path: str, to: str) -> None:
        """A link in a directory that is there already."""
        self._put(path, Link(to))

    def put_below(self, path: str, source: str) -> None:
        """A file or directory in a directory that is there already; `source` is no link."""
        self._put(path, _entry(source, source))

    def take(self, root: str) -> None:
        """What is in the directory `root` already, which is to become the root."""
        for directory, directories, names in os.walk(root):
            for name in (*directories, *names):
                full = os.path.join(directory, name)
                path = full.removeprefix(root)
                if os.path.islink(full):
                    self.entries[path] = Present("link", os.readlink(full))
                else:
                    kind: Literal["file", "directory"] = "file"
                    self.entries[path] = Present("directory" if name in directories else kind)

    def lies_at(self, path: str) -> str | None:
        """Where a path leads in the root; None: to nothing."""
        found = self._follow(path)
        return found if found in self.entries else None

    def _put(self, path: str, entry: Entry) -> None:
        old = self.entries.get(path)
        if isinstance(old, Present) and old.kind == _kind(entry):
            return
        if old == entry or (isinstance(old, Directory) and isinstance(entry, Directory)):
            if isinstance(entry, Directory) and entry.source:
                self.entries[path] = entry
            return
        if old is not None:
            raise RootError([f"{path}: is to be {_told(old)} and {_told(entry)} in the root"])
        if len(self.entries) >= MOST:
            raise RootError([f"{path}: more than {MOST} files, this is no minimal root"])
        self.entries[path] = entry

    def _walk(self, path: str, *, from_host: bool) -> str:
        """Where `path` lies without links; makes entries of the links and directories before it."""
        parts, at, links = list(reversed(path.split("/"))), "", 0
        while parts:
            part = parts.pop()
            if part in ("", "."):
                continue
            if part == "..":
                at = os.path.dirname(at).rstrip("/")
                continue
            here = f"{at}/{part}"
            to = self._link_at(here, from_host or (not at and part in MERGED))
            if to is not None:
                links += 1
                if links > MOST_LINKS:
                    raise RootError([f"{path}: a loop of symbolic links"])
                self._put(here, Link(to))
                parts += reversed(to.split("/"))
                at = "" if to.startswith("/") else at
                continue
            if any(piece not in ("", ".") for piece in parts):
                self._directory(here, path, from_host)
            at = here
        return at or "/"

    def _link_at(self, path: str, on_host: bool) -> str | None:
        known = self.entries.get(path)
        if isinstance(known, (Link, Present)) and known.to:
            return known.to
        if known is not None or not on_host:
            return None
        try:
            return os.readlink(path)
        except OSError:
            return None

    def _directory(self, here: str, whole: str, from_host: bool) -> None:
        known = self.entries.get(here)
        if known is not None and _kind(known) == "file":
            raise RootError([f"{whole}: {here} is a file in the root"])
        if known is not None:
            return
        is_there = stat_of(here) if from_host else None
        if from_host and not (is_there and stat.S_ISDIR(is_there.st_mode)):
            raise RootError([f"{whole}: {_absent(here)}"])
        self._put(here, Directory(here if from_host else None))

    def _follow(self, path: str) -> str:
        parts, at, links = list(reversed(path.split("/"))), "", 0
        while parts:
            part = parts.pop()
            if part in ("", ".", ".."):
                at = os.path.dirname(at).rstrip("/") if part == ".." else at
                continue
            entry = self.entries.get(f"{at}/{part}")
            if isinstance(entry, (Link, Present)) and entry.to and links < MOST_LINKS:
                links += 1
                parts += reversed(entry.to.split("/"))
                at = "" if entry.to.startswith("/") else at
                continue
            at = f"{at}/{part}"
        return at or "/"


def real_path(path: str) -> str:
    """Without links.  Raises RootError when it is not there, or a loop."""
    try:
        return os.path.realpath(path, strict=True)
    except OSError as error:
        why = "a loop of symbolic links" if error.errno == 40 else error.strerror
        raise RootError([f"{path}: {why}"]) from error


def kind_of(path: str) -> Kind:
    """What a path leads to.  Raises RootError when it leads nowhere."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        why = "a loop of symbolic links" if error.errno == 40 else error.strerror
        raise RootError([f"{path}: {why}"]) from error
    if stat.S_ISDIR(mode):
        return "directory"
    return "file" if stat.S_ISREG(mode) else "other"


def stat_of(path: str) -> os.stat_result | None:
    """lstat(2), or None."""
    try:
        return os.lstat(path)
    except OSError:
        return None


def is_kernels(path: str) -> bool:
    """Whether it is no file of a disk's."""
    return any(path == top or path.startswith(f"{top}/") for top in KERNELS)


def covered(path: str) -> str | None:
    """The directory of a job's own that covers a path of the root, if one does."""
    return next((top for top in OWN if path.startswith(f"{top}/")), None)


def _entry(source: str, told: str) -> Entry:
    if is_kernels(source):
        raise RootError([f"{told}: {source} is not a file of the disk's: a job gets its own"])
    kind = kind_of(source)
    if kind == "other":
        raise RootError([f"{told}: a device, socket or pipe; a job is given devices by `devices`"])
    return Directory(source) if kind == "directory" else File(source)


def _absent(path: str) -> str:
    return f"{path} is not a directory" if stat_of(path) else "no such file or directory"


def _told(entry: Entry) -> str:
    match entry:
        case Directory():
            return "a directory"
        case File(source=source):
            return source
        case Link(to=to):
            return f"a link to {to}"
        case Present():
            return "a file of the packages"
    return "a file of supervise's"


def _kind(entry: Entry) -> str:
    match entry:
        case Present(kind=kind):
            return kind
        case Directory():
            return "directory"
        case Link():
            return "link"
    return "file"


def relative(path: str, to: str) -> str:
    """The text of the link `path` so that it leads to the same place, and never out of the root."""
    base = os.path.dirname(path)
    if to.startswith("/"):
        return os.path.relpath(_clamped(to), base)
    depth = base.count("/") if base != "/" else 0
    ups = 0
    parts = to.split("/")
    while ups < len(parts) and parts[ups] in ("..", ".", ""):
        ups += 1
    if parts[:ups].count("..") <= depth:
        return to
    return os.path.relpath("/" + "/".join(parts[ups:]), base)


def _clamped(path: str) -> str:
    """An absolute path without the dots at its beginning that would lead above the root."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    while parts[:1] == [".."]:
        parts.pop(0)
    return "/" + "/".join(parts)


def astray(entries: dict[str, Entry]) -> Iterator[str]:
    """What is no directory, and has entries below it: none, if the table can be written."""
    for path in entries:
        parent = os.path.dirname(path)
        if parent != "/" and (parent not in entries or _kind(entries[parent]) != "directory"):
            yield parent
