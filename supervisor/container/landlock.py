"""What Landlock keeps a job from, beside its mounts and namespaces: a second wall.

With a read-only root: writing anywhere but in what it has of its own and its writable mounts.
With the host's network: the abstract sockets of others, which no network namespace hides then.
Reading is left to the mounts: a rule allows all that is below a directory, so each neighbour of
what is hidden would need one (186 on a Debian, 1.8 ms of a start against 0.1 ms), and a file that
the host replaces by a rename would be lost to the job.

May import: `errors`, `model`, `linux`, `container.host`.
"""

from __future__ import annotations

import os

from supervisor.container.host import inside
from supervisor.errors import SpawnError
from supervisor.linux import caps, landlock
from supervisor.model.job import JobSpec

Restriction = tuple[int, int, tuple[tuple[str, int], ...]]
"""Rights to files that are given up, scopes, and the paths in the job that keep some of them."""

_OWN = ("/dev", "/proc", "/run", "/tmp")


def restriction(spec: JobSpec, version: int | None = None) -> Restriction | None:
    """What the payload is to give up; None for nothing.

    `version` of the kernel's interface, or it is asked.  Raises SpawnError for what is required and
    cannot be had.
    """
    if spec.landlock == "off":
        return None
    have = landlock.version() if version is None else version
    required = spec.landlock == "require"
    files, scoped = _files(spec, required), _scoped(spec, required)
    needed = max(landlock.REFER_SINCE * bool(files), landlock.SCOPES_SINCE * bool(scoped))
    if required and have < needed:
        why = f"the kernel has version {have} of Landlock, it takes {needed}"
        raise SpawnError("landlock", 0, "", why, hint='landlock = "auto", or see supervise doctor')
    if have < landlock.REFER_SINCE:
        files = 0
    if have < landlock.TRUNCATE_SINCE:
        files &= ~landlock.TRUNCATE
    if have < landlock.SCOPES_SINCE:
        scoped = 0
    return (files, scoped, _places(spec, files) if files else ()) if files or scoped else None


def _files(spec: JobSpec, required: bool) -> int:
    """None where all may be written; or nothing be mounted, as Landlock forbids that altogether."""
    if spec.write != "read-only":
        return 0
    asked = spec.capabilities
    mounts = caps.CAP_SYS_ADMIN in caps.of_job(asked.add, asked.drop)
    mounts = mounts or spec.seccomp == "unconfined"
    return landlock.WRITE if required or not mounts else 0


def _scoped(spec: JobSpec, required: bool) -> int:
    return landlock.ABSTRACT_SOCKETS if required or spec.network == "host" else 0


def _places(spec: JobSpec, files: int) -> tuple[tuple[str, int], ...]:
    """Where the job may write, and the rights there."""
    of_files = files & landlock.OF_FILES
    found = [(tmpfs.target, files) for tmpfs in spec.tmpfs]
    for mount in spec.mounts:
        if not mount.read_only:
            found.append((mount.target, files if os.path.isdir(mount.source) else of_files))
    found += [(device.target, of_files) for device in spec.devices]
    more = (one for one in found if not inside(one[0], _OWN))
    return (*((path, files) for path in _OWN), *more)


def describe(restriction: Restriction) -> str:
    """One line for `supervise plan`."""
    files, scoped, places = restriction
    told = [f"write beneath {' '.join(path for path, _ in places)} alone"] if files else []
    told += ["reach no abstract socket of others"] if scoped else []
    return "landlock: " + "; ".join(told)
