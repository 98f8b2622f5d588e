"""What a job does not see of the host: secrets, other users' homes, the supervisor's own.

    in `coverable`   directories of /: the launcher hides them once, in a view that jobs share
    in `whiteouts`   names in /etc: hidden by a layer that has nothing but these
    else             by a mount or a layer of the job's own (`rootfs`)

May import: `errors`, `model`, `container.{host,idmaps}`.
"""

from __future__ import annotations

import glob
import os
import stat
from functools import cache
from pathlib import Path

from supervisor.container.host import OWN, Facts, inside
from supervisor.container.idmaps import how_opened
from supervisor.errors import SpawnError
from supervisor.model.job import HIDDEN, JobSpec


def hidden(spec: JobSpec, facts: Facts) -> tuple[str, ...]:
    """What is there of the paths that the job is not to see: real ones, none below another.

    A path that is itself the target of a mount is covered by that.
    """
    if spec.root != "host":
        return ()
    found: set[str] = set()
    for pattern in (*spec.hide, *facts.private):
        for path in glob.glob(pattern) if "*" in pattern else (pattern,):
            found.update(_real(path))
    found = {path for path in found if _within_reach(path, spec, facts)}
    found -= {mount.target for mount in spec.mounts} | {tmpfs.target for tmpfs in spec.tmpfs}
    tops = [path for path in sorted(found) if not inside(path, OWN)]
    return tuple(path for path in tops if not inside(os.path.dirname(path), tuple(found)))


def _real(path: str) -> tuple[str, ...]:
    """The path without links, if there is anything there."""
    try:
        status = os.lstat(path)
    except OSError:
        return ()
    if stat.S_ISLNK(status.st_mode):
        return (os.path.realpath(path),) if os.path.exists(path) else ()
    return (_resolved(path, status.st_dev, status.st_ino),)


@cache
def _resolved(path: str, _device: int, _inode: int) -> str:
    return os.path.realpath(path)


def _within_reach(path: str, spec: JobSpec, facts: Facts) -> bool:
    """Whether somebody in the job's user namespace could get there, if it were not hidden.

    Nobody of mapped ids passes a directory that is closed to others, not even to cover it.
    """
    space = spec.user_namespace
    if space.kind != "map" or space.host_id == 0:
        return True
    for parent in map(str, Path(path).parents):
        status = os.stat(parent)
        first = 0 if how_opened(parent, spec, facts) == "mapped" else space.host_id
        ids = range(first, first + space.size)
        if not status.st_mode & stat.S_IXOTH and not (status.st_uid in ids or status.st_gid in ids):
            return False
    return True


def coverable(facts: Facts) -> tuple[str, ...]:
    """What a job with default settings does not see of the file system of / itself.

    The launcher hides it once, in a view that such jobs take as a whole.
    """
    paths = hidden(JobSpec("", ()), facts)
    directories = (path for path in paths if os.path.isdir(path) and not inside(path, ("/etc",)))
    return tuple(path for path in directories if not inside(path, facts.submounts))


@cache
def whiteouts() -> tuple[str, ...]:
    """What is hidden by name in /etc by default, whether it is there or not.

    The launcher prepares a layer of these; of the keys of sshd(8), those it makes by itself.
    """
    names = [path for path in HIDDEN if path.startswith("/etc/")]
    keys = [name for name in names if "*" in name]
    made = [key.replace("*", kind) for key in keys for kind in ("dsa", "ecdsa", "ed25519", "rsa")]
    found = [path for key in keys for path in glob.glob(key)]
    return tuple(sorted({*names, *made, *found} - {*keys}))


def check_seen(spec: JobSpec, tops: tuple[str, ...], path: str, stage: str) -> None:
    """Raises SpawnError where `path` is hidden from the job: better now than a bare ENOENT.

    `tops` is what `hidden` says of the job.
    """
    granted = tuple(mount.target for mount in spec.mounts)
    made = tuple(tmpfs.target for tmpfs in spec.tmpfs)
    real = os.path.realpath(path)
    for name in {path, real}:
        if inside(name, tops) and not inside(name, granted + made):
            top = next(top for top in tops if inside(name, (top,)))
            place = os.path.dirname(name) if stage == "exec" else name
            hint = f'add mounts = ["{place}:{place}:ro"], or set hide = "nothing"'
            raise SpawnError(stage, 0, path, f"{top} is hidden from jobs", hint=hint)
