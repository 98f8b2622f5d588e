"""Which mounts the supervisor must see to copy a job's `copy_out`.  Pure.

May import: `model`, `container.host`.
"""

from __future__ import annotations

from supervisor.container.host import inside
from supervisor.model.job import JobSpec

OWN_MOUNTS = ("/", "/tmp", "/run", "/dev/shm")
"""Where a job can have written, beside its own mounts."""


def shown(spec: JobSpec) -> tuple[str, ...]:
    """The mounts in which the job's `copy_out` lie."""
    return tuple(sorted({mount_of(path, spec) for path in spec.copy_out}))


def mount_of(path: str, spec: JobSpec) -> str:
    """The mount point of the job's, as configured, that `path` lies in."""
    own = (*OWN_MOUNTS, *(tmpfs.target for tmpfs in spec.tmpfs))
    mounts = (*own, *(mount.target for mount in spec.mounts))
    return max((mount for mount in mounts if inside(path, (mount,))), key=len)
