"""From a tree of files, or what a job wrote over one, to a layer: an OCI tar, the same each time.

Entries are sorted, ids are numbers, access and change times are left out: the same tree gives the
same digest.  Whiteouts and opaque directories become `.wh.NAME` and `.wh..wh..opq` (image-spec,
layer.md).  May import: `errors`, `image.overlay`.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from pathlib import Path
from typing import IO, Any

from attrs import define, field, frozen

from supervisor.errors import ImageError
from supervisor.image import overlay

WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
NOT_OURS = ("trusted.overlay.", "user.overlay.", "security.selinux", "system.nfs4_acl")
"""Attributes that say something about where the file lies, not about the file."""


@frozen
class Packed:
    """`diff_id` names the uncompressed layer; `left_out`: paths of sockets, which no tar holds."""

    diff_id: str
    entries: int
    left_out: tuple[str, ...]


def pack(
    tree: Path, out: IO[bytes], *, upper: bool = False, shift: int = 0, newest: int | None = None
) -> Packed:
    """Write the tree to `out`, uncompressed.

    `upper`: it is overlayfs's, with marks; else a whiteout in it is an error.  `shift` is taken off
    user and group numbers (of a job with its own), times after `newest` (Unix seconds,
    SOURCE_DATE_EPOCH) become that.  Raises ImageError for what cannot be in a layer, OSError.
    """
    hashed: Any = _Hashed(out)  # tarfile's protocol wants more than it uses
    with tarfile.open(fileobj=hashed, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        packer = _Packer(tar, upper=upper, shift=shift, newest=newest)
        root = overlay.open_directory(str(tree))
        try:
            packer.directory(root, "", 0)
        finally:
            os.close(root)
    digest = f"sha256:{hashed.hash.hexdigest()}"
    return Packed(digest, packer.entries, tuple(packer.left_out))


@define
class _Hashed:
    """What tarfile writes to: the digest is taken on the way."""

    out: IO[bytes]
    hash: hashlib._Hash = field(factory=hashlib.sha256)

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return self.out.write(data)


@define(kw_only=True)
class _Packer:
    """`names`: the first name of each file that has several."""

    tar: tarfile.TarFile = field(kw_only=False)
    upper: bool
    shift: int
    newest: int | None
    names: dict[tuple[int, int], str] = field(factory=dict)
    left_out: list[str] = field(factory=list)
    entries: int = 0

    def directory(self, fd: int, path: str, depth: int) -> None:
        if depth > overlay.DEEPEST:
            raise ImageError(f"lies more than {overlay.DEEPEST} directories deep", path)
        if self.upper and overlay.is_opaque(fd):
            self._empty(f"{path}{OPAQUE}")
        for name in sorted(os.listdir(fd)):
            self._entry(fd, name, f"{path}{name}", depth)

    def _entry(self, at: int, name: str, path: str, depth: int) -> None:
        if name.startswith(WHITEOUT):
            raise ImageError(
                f"a name that begins with {WHITEOUT} means a deletion in a layer", path
            )
        status = os.stat(name, dir_fd=at, follow_symlinks=False)
        if self.upper:
            overlay.check_whole(at, name, path)
        if overlay.is_whiteout(status):
            if not self.upper:
                raise ImageError("is a device 0:0, which is overlayfs's mark of a deletion", path)
            self._empty(f"{os.path.dirname(path)}/{WHITEOUT}{name}".lstrip("/"))
        elif stat.S_ISDIR(status.st_mode):
            fd = overlay.open_directory(name, at)
            try:
                self._add(self._info(at, name, path + "/", status))
                self.directory(fd, path + "/", depth + 1)
            finally:
                os.close(fd)
        elif stat.S_ISREG(status.st_mode):
            self._file(at, name, path, status)
        elif stat.S_ISSOCK(status.st_mode):
            self.left_out.append(path)
        else:
            self._add(self._info(at, name, path, status))

    def _file(self, at: int, name: str, path: str, status: os.stat_result) -> None:
        first = path
        if status.st_nlink > 1:
            first = self.names.setdefault((status.st_dev, status.st_ino), path)
        info = self._info(at, name, path, status)
        if first != path:
            info.type, info.linkname, info.size = tarfile.LNKTYPE, first, 0
            self._add(info)
            return
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
        with os.fdopen(fd, "rb") as file:
            self._add(info, file)

    def _info(self, at: int, name: str, path: str, status: os.stat_result) -> tarfile.TarInfo:
        info = tarfile.TarInfo(path)
        info.mode = stat.S_IMODE(status.st_mode)
        info.uid, info.gid = self._shifted(status.st_uid, path), self._shifted(status.st_gid, path)
        info.mtime = int(
            status.st_mtime if self.newest is None else min(status.st_mtime, self.newest)
        )
        info.type = _TYPES[stat.S_IFMT(status.st_mode)]
        if info.type == tarfile.REGTYPE:
            info.size = status.st_size
        elif info.type == tarfile.SYMTYPE:
            info.linkname = os.readlink(name, dir_fd=at)
        elif info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
            info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
        info.pax_headers = _attributes(f"/proc/self/fd/{at}/{name}")
        return info

    def _shifted(self, number: int, path: str) -> int:
        if number < self.shift:
            raise ImageError(f"belongs to {number}, which is none of the job's own numbers", path)
        return number - self.shift

    def _empty(self, path: str) -> None:
        info = tarfile.TarInfo(path)
        info.mtime = self.newest or 0
        self._add(info)

    def _add(self, info: tarfile.TarInfo, file: IO[bytes] | None = None) -> None:
        self.tar.addfile(info, file)
        self.entries += 1


_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


def _attributes(path: str) -> dict[str, str]:
    """As SCHILY.xattr records; bytes that are no text travel as surrogates (tarfile undoes it)."""
    found = {}
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        value = overlay.attribute(path, name)
        if value is not None and not name.startswith(NOT_OURS):
            found[f"SCHILY.xattr.{name}"] = value.decode("utf-8", "surrogateescape")
    return found
