"""What is under way: a directory for what is not whole yet, and a claim on what it will need.

    tmp/RANDOM/claims.json    digests that must not be collected meanwhile
    tmp/RANDOM/...            layers being unpacked

Whoever works holds a lock on the directory itself; so when that process is gone, however it ended,
the next `sweep` sees that nobody does, and takes the directory away.

May import: `errors`, `image.files`, `image.removal`.  All of it blocks.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from supervisor.errors import ImageError
from supervisor.image import files
from supervisor.image.removal import remove_tree

_CLAIMS = "claims.json"


class Workspace:
    """A directory of this process's own below tmp/, until `close`."""

    def __init__(self, path: Path, gate: Path) -> None:
        """`gate` is the store's lock, which a collector holds while it looks around."""
        self.path = path
        self._gate = gate
        self._claims: set[str] = set()
        with files.told(path, "cannot write"), files.locked(gate, shared=True):
            path.mkdir(mode=0o700)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._fd, fcntl.LOCK_EX)

    def claim(self, digests: Iterable[str]) -> None:
        """Blobs, layers and images by digest: from now on none of them is collected.

        What had been before is gone for good: look whether it is there after this, not before.
        """
        self._claims |= set(digests)
        path = self.path / _CLAIMS
        with files.told(path, "cannot write"), files.locked(self._gate, shared=True):
            files.write_atomically(path, json.dumps(sorted(self._claims)).encode(), durable=False)

    def directory(self) -> Path:
        """A new, empty directory in it."""
        path = self.path / os.urandom(8).hex()
        with files.told(path, "cannot write"):
            path.mkdir(mode=0o700)
        return path

    def discard(self, path: Path) -> None:
        """Move a directory of the same file system in here, to go with it."""
        with files.told(path, "cannot move"):
            path.rename(self.path / os.urandom(8).hex())

    def close(self) -> None:
        """Remove it and all in it."""
        if self._fd >= 0:
            try:
                with files.told(self.path, "cannot remove"):
                    remove_tree(str(self.path))
            finally:
                os.close(self._fd)
                self._fd = -1

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def abandoned(tmp: Path) -> Iterator[tuple[Path, int]]:
    """Workspaces that nobody holds any more, with a lock on each; the caller closes it.

    Only while the store's lock is held, or one that is being made would look abandoned.
    """
    for path in sorted(tmp.iterdir()):
        try:
            fd = files.try_lock(path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if fd is not None:
            yield path, fd


def claimed(tmp: Path, gone: Collection[Path]) -> set[str]:
    """What those at work have claimed, without the abandoned ones, which are `gone`.

    Called while the store's lock is held.
    """
    found: set[str] = set()
    for path in tmp.glob(f"*/{_CLAIMS}"):
        if path.parent in gone:
            continue
        try:
            found |= set(json.loads(path.read_bytes()))
        except FileNotFoundError:
            continue  # it has just ended
        except ValueError as err:
            raise ImageError(f"cannot be read: {err}", str(path)) from err
    return found
