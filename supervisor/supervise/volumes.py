"""Named volumes: directories that outlive the runs that use them.

    STATE_DIR/.volumes/NAME/data     what a job sees at its target
    STATE_DIR/.volumes/NAME/lock     flock(2), shared by each run that has it mounted
    STATE_DIR/.volumes/NAME/owned    the first job has been given it

One directory for all instances of a state directory.  The lock is held by the job's init as well
(`protocol`): a volume is not removed under a job whose supervisor was killed.

May import: `errors`, `model`, `container`.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from supervisor.container.host import Facts
from supervisor.container.idmaps import how_opened
from supervisor.errors import KernelError, SupervisorError
from supervisor.model.job import JobSpec, Mount, Volume
from supervisor.supervise.storage import remove_tree

DIRECTORY = ".volumes"
"""In STATE_DIR; no instance's name begins with a dot."""


@frozen
class Taken:
    """A volume in use, from `take` to `close`: its mount, and the descriptor of the lock."""

    mount: Mount
    lock: int
    directory: Path

    def give(self, spec: JobSpec, facts: Facts, uid: int, gid: int) -> None:
        """A new volume belongs to the user of the first job that has it; raises KernelError.

        `uid` and `gid` are those in the job.  What is in it already is left as it is.
        """
        mark = self.directory / "owned"
        if mark.exists():
            return
        space = spec.user_namespace
        shifted = space.kind == "map" and how_opened(self.mount.source, spec, facts) != "mapped"
        first = space.host_id if shifted and facts.privileged else 0
        if facts.privileged:
            _do("chown", os.chown, self.mount.source, first + uid, first + gid)
        _do("make", Path.touch, mark)

    def close(self) -> None:
        os.close(self.lock)


class Volumes:
    """The volumes below one state directory."""

    def __init__(self, state_dir: Path) -> None:
        self.root = state_dir / DIRECTORY

    def data(self, name: str) -> Path:
        return self.root / name / "data"

    def take(self, volume: Volume) -> Taken:
        """Made if it is not there.  Raises KernelError."""
        directory = self.root / volume.name
        lock = None
        while lock is None:  # somebody may remove it in between
            with suppress(FileNotFoundError):
                _do("mkdir", os.makedirs, directory, 0o700, True)
                lock = _lock(directory, fcntl.LOCK_SH)
        try:
            _do("mkdir", Path.mkdir, directory / "data", 0o755, False, True)
        except KernelError:
            os.close(lock)
            raise
        source = str(directory / "data")
        return Taken(Mount(source, volume.target, volume.read_only), lock, directory)

    def names(self) -> Iterator[str]:
        """All that are there, in the order of their names."""
        if self.root.is_dir():
            yield from sorted(path.name for path in self.root.iterdir() if path.is_dir())

    def in_use(self, name: str) -> bool:
        lock = _lock(self.root / name, fcntl.LOCK_EX)
        if lock is not None:
            os.close(lock)
        return lock is None

    def remove(self, name: str) -> None:
        """Raises SupervisorError: no such volume, or a job has it."""
        directory = self.root / name
        if not directory.is_dir():
            raise SupervisorError(f"{name}: no such volume in {self.root}")
        lock = _lock(directory, fcntl.LOCK_EX)
        if lock is None:
            raise SupervisorError(f"{name}: a job that runs has this volume")
        try:
            # the lock goes last: until then nobody takes what is half removed
            for path in sorted(directory.iterdir(), key=lambda path: path.name == "lock"):
                _do("remove", remove_tree if path.is_dir() else os.unlink, path)
            _do("rmdir", os.rmdir, directory)
            _do("rmdir", os.rmdir, self.root)
        except KernelError as error:
            if error.errno != errno.ENOTEMPTY:  # others are there, or it is made anew just now
                raise
        finally:
            os.close(lock)


def _lock(directory: Path, how: int) -> int | None:
    """The lock of a volume; None where it is to be had for oneself alone and others have it.

    None, too, where the volume was removed while it was waited for.
    """
    path = directory / "lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KernelError("open", str(path), error.errno or 0) from error
    try:
        fcntl.flock(fd, how | (fcntl.LOCK_NB if how == fcntl.LOCK_EX else 0))
        if os.fstat(fd).st_nlink:
            return fd
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            os.close(fd)
            raise KernelError("flock", str(path), error.errno or 0) from error
    os.close(fd)
    return None


def _do(what: str, function: object, path: Path | str, *more: object) -> None:
    try:
        function(path, *more)  # type: ignore[operator]
    except OSError as error:
        raise KernelError(what, str(path), error.errno or 0) from error
