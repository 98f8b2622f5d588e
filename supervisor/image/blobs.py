"""Blobs by their digest: what is there has been verified; what is not whole is kept apart.

    blobs/sha256/HEX     verified, never written to again
    partial/HEX          as much as came of one; whoever writes it holds a lock on it

May import: `errors`, `image.files`, `linux.durable`.  All of it blocks.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from supervisor.errors import ImageError
from supervisor.image import files
from supervisor.image.reference import DIGEST
from supervisor.linux.durable import fsync_directory

BLOCK = 1024**2


def hex_of(digest: str) -> str:
    """The part of a digest that names files; raises ImageError for what is no sha256 digest."""
    if not DIGEST.fullmatch(digest):
        raise ImageError(f'"{digest[:80]}" is no sha256 digest')
    return digest.removeprefix("sha256:")


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_of_stream(file: BinaryIO) -> tuple[str, int]:
    """The digest of all that is left to read, and how many bytes that is."""
    found, size = hashlib.sha256(), 0
    while block := file.read(BLOCK):
        found.update(block)
        size += len(block)
    return f"sha256:{found.hexdigest()}", size


class Partial:
    """A blob on its way in; this process alone writes it, until `close` or `finish`.

    After an interruption `offset` is what came before, and the rest may follow.
    """

    def __init__(self, fd: int, path: Path, target: Path, digest: str, size: int) -> None:
        self.digest = digest
        self.size = size
        self.offset = 0
        self._fd = fd
        self._path = path
        self._target = target
        self._hash = hashlib.sha256()
        self._take_up()

    def _take_up(self) -> None:
        """Hash what is there; more than there can be is not of this blob."""
        if os.fstat(self._fd).st_size > self.size:
            os.ftruncate(self._fd, 0)
        while block := os.read(self._fd, BLOCK):
            self._hash.update(block)
            self.offset += len(block)

    def write(self, data: bytes | memoryview) -> None:
        """The next bytes.  Raises ImageError where they are more than announced, or have no room.

        A full disk takes back what this blob had of it.
        """
        if self.offset + len(data) > self.size:
            self.discard()
            raise ImageError(f"is longer than the {self.size} bytes announced", self.digest)
        left = memoryview(data)
        try:
            while left:
                written = os.write(self._fd, left)
                self._hash.update(left[:written])
                self.offset += written
                left = left[written:]
        except OSError as err:
            if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                self.discard()
            raise files.refusal(err, self._path, "cannot write") from err

    @property
    def found(self) -> str:
        """The digest of what is there so far."""
        return f"sha256:{self._hash.copy().hexdigest()}"

    def reset(self) -> None:
        """From the beginning: what came is not of this blob, or cannot be continued."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash = hashlib.sha256()
        self.offset = 0

    def finish(self) -> None:
        """Verify, and let it be a blob.  What does not match is thrown away, with an ImageError."""
        if self.offset < self.size:
            self.close()
            raise ImageError(
                f"ends after {self.offset} bytes, of {self.size} announced", self.digest,
                hint="try again: what came is kept",
            )  # fmt: skip
        if self.found != self.digest:
            self.discard()
            raise ImageError(f"is not what it should be: its digest is {self.found}", self.digest)
        with files.told(self._path, "cannot write"):
            os.fsync(self._fd)
            self._path.rename(self._target)
            fsync_directory(self._target.parent)
        self.close()

    def discard(self) -> None:
        """Leave nothing of it."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of it; what came stays for the next attempt (nothing does if nothing came)."""
        if self._fd < 0:
            return
        if self.offset == 0 and files.is_at(self._fd, self._path):
            self._path.unlink()
        os.close(self._fd)
        self._fd = -1


class Blobs:
    """The verified blobs below a directory."""

    def __init__(self, root: Path) -> None:
        self.whole = root / "blobs" / "sha256"
        self.partial = root / "partial"

    def path(self, digest: str) -> Path:
        return self.whole / hex_of(digest)

    def has(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def begin(self, digest: str, size: int) -> Partial | None:
        """To write a blob that is not there; None while another does.

        Then it may be there a moment later: ask `has` again.
        """
        path = self.partial / hex_of(digest)
        with files.told(path, "cannot write"):
            fd = files.try_lock(path)
            if fd is None:
                return None
            return Partial(fd, path, self.path(digest), digest, size)

    def read(self, digest: str, limit: int) -> bytes:
        """A small blob, verified once more: disks forget, and others may have been at it.

        Raises ImageError where it is not there or not itself (then it is removed).
        """
        path = self.path(digest)
        try:
            with path.open("rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:
            raise ImageError("is not in the store", digest, hint="pull the image again") from None
        except OSError as err:
            raise files.refusal(err, path, "cannot read") from err
        if digest_of(data) != digest:
            path.unlink(missing_ok=True)
            raise ImageError("had changed on the disk and was removed", str(path),
                             hint="pull the image again")  # fmt: skip
        return data

    def put(self, data: bytes) -> str:
        """A blob whose content is at hand; its digest."""
        digest = digest_of(data)
        path = self.path(digest)
        if not path.is_file() or path.read_bytes() != data:  # it may have rotten
            with files.told(path, "cannot write"):
                files.write_atomically(path, data)
        return digest

    def remove(self, digest: str) -> None:
        self.path(digest).unlink(missing_ok=True)


def copy(source: BinaryIO, into: Partial) -> Iterator[int]:
    """Write what a stream has into a partial that is at its beginning; tells the bytes so far."""
    while block := source.read(BLOCK):
        into.write(block)
        yield into.offset
