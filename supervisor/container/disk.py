"""Where a job's writable layer lies if it has a size of its own: `limits.disk`.

    quota   directories of the run, in a project that may have so many bytes (`disk_quota`)
    loop    an ext4 in a file without a name, which is as large as that (`disk_loop`)
    tmpfs   a file system in memory, which counts against the job's (`disk_tmpfs`)

One interface, `Space`, for all three.  The mounts of the latter two are descriptors: no path leads
to them, and the kernel takes them away when the job's mount namespace has ended and the supervisor
has closed its own; a supervisor that is killed has closed it too.

May import: `errors`, `model`, `linux`, `container.{layers,protocol}`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Literal, Protocol

from attrs import frozen

from supervisor.container import protocol
from supervisor.container.layers import Layers
from supervisor.errors import KernelError
from supervisor.linux import loop, quota
from supervisor.model.job import JobSpec

BLOCK = 4096
PER_INODE = 8192
"""Bytes of `limits.disk` for each inode, unless `limits.disk_inodes` says how many there are."""
FEWEST_INODES = 1024
NEAR = 4
"""A layer is nearly full when less than this part of it is left, but at most NEAR_BYTES."""
NEAR_BYTES = 256 << 20
FULL = 8
"""It is full when less than this part is left, but at most FULL_BYTES: page cache comes in pieces
of up to 2 MiB (large folios, ext4 since Linux 6.16), and a piece that has no room fails whole."""
FULL_BYTES = 2 << 20
HEADROOM = 8
"""So many times its size a layer may be raised to by a policy, which does not say how far ahead."""

SYSFS = "/sys/fs/ext4"
MKFS = "mkfs.ext4"

Way = Literal["quota", "loop", "tmpfs"]
WAYS: tuple[Way, ...] = ("quota", "loop", "tmpfs")
"""In the order in which `disk_by = "auto"` prefers them."""


@frozen
class Size:
    """What a layer is to hold: bytes, inodes, and how large it may be made later."""

    limit: int
    inodes: int
    most: int


@frozen
class Usage:
    """What is in a layer, in bytes and inodes, and what may be."""

    used: int
    limit: int
    inodes: int
    inode_limit: int

    @property
    def left(self) -> int:
        return max(self.limit - self.used, 0)

    @property
    def inodes_left(self) -> int:
        return max(self.inode_limit - self.inodes, 0)

    @property
    def full(self) -> bool:
        return self.left < min(self.limit // FULL, FULL_BYTES) or self.inodes_left == 0

    @property
    def near(self) -> bool:
        return self.room < 0

    @property
    def scarce(self) -> Literal["bytes", "inodes"]:
        """Which of the two there is less of, by its share."""
        return (
            "bytes" if self.left * self.inode_limit <= self.inodes_left * self.limit else "inodes"
        )

    @property
    def room(self) -> int:
        """Bytes until it is nearly full, an inode taken for the least a file can be; < 0: it is."""
        of_bytes = self.left - min(self.limit // NEAR, NEAR_BYTES)
        return min(of_bytes, (self.inodes_left - self.inode_limit // NEAR) * BLOCK)


class Space(Protocol):
    """A job's writable layer of a fixed size.  Everything raises KernelError."""

    way: Way
    layers: Layers
    mounted: tuple[int, ...]
    """The descriptor of its mount, if it is one: it goes with the request (`protocol`)."""

    def enter(self, root: int) -> None:
        """The job runs: a descriptor of its root, which stays the caller's."""

    def usage(self) -> Usage: ...

    def grow(self, to: int) -> None:
        """Make it `to` bytes, while the job writes to it."""

    def trouble(self) -> str:
        """What has gone wrong below it, as far as anybody knows; empty for nothing."""

    def close(self) -> None:
        """Let go of it; the layer is gone with the job's last mount of it."""


def size_of(spec: JobSpec, *, wanted: bool) -> Size:
    """The size of its layer; `wanted`: a policy may raise it."""
    limit = spec.limits.disk
    assert limit is not None
    inodes = spec.limits.disk_inodes or max(limit // PER_INODE, FEWEST_INODES)
    hook = spec.hooks.get("on_disk_limit")
    arguments = getattr(hook, "arguments", {})
    asked = arguments.get("to") if arguments.get("limit") == "disk" else None
    most = int(asked) if asked else limit * HEADROOM if wanted else limit
    return Size(limit, inodes, max(most, limit))


@frozen
class Lack:
    """Why one way cannot be gone here, and what would help."""

    why: str
    fix: str

    def text(self, way: Way) -> str:
        return f"{way}: {self.why}" + (f" (fix: {self.fix})" if self.fix else "")


@frozen
class Place:
    """A run's directory, if it has one; `layers`: upper and work may lie in it as they are."""

    path: str | None
    layers: bool


def refusal(way: Way, spec: JobSpec, place: Place, *, privileged: bool) -> Lack | None:
    """Why `way` is closed to this job.  Only looks; the doctor tries."""
    if way == "tmpfs":
        return _kept_in_memory(spec)
    if not privileged:
        return Lack("it needs root", 'disk_by = "tmpfs"')
    if place.path is None or (way == "quota" and not place.layers):
        return Lack("layers have no directory on a disk here", "state_dir on ext4 or xfs")
    return _no_quota(spec, place.path) if way == "quota" else _no_loop()


def _kept_in_memory(spec: JobSpec) -> Lack | None:
    if spec.keep != "never":
        return Lack("what is in memory cannot be kept", 'keep = "never"')
    return None


def _no_quota(spec: JobSpec, base: str) -> Lack | None:
    if spec.user_namespace.kind == "host":
        why = "with the host's user numbers a job may give its files to another project"
        return Lack(why, 'user_namespace = "auto"')
    try:
        if holds_quota(base):
            return None
    except KernelError as error:
        return Lack(str(error), "")
    return Lack(f"the file system of {there(base)} has no project quota", QUOTA_FIX)


QUOTA_FIX = "mount it with prjquota (ext4: after tune2fs -O project,quota), on Linux 5.14 or later"


def holds_quota(path: str) -> bool:
    """Whether project limits are enforced on the file system of `path`, or of what is there of it.

    Raises KernelError.
    """
    fd = open_directory(there(path))
    try:
        return quota.enforced(fd)
    finally:
        os.close(fd)


def there(path: str) -> str:
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _no_loop() -> Lack | None:
    if shutil.which(MKFS, path=mkfs_path()) is None:
        return Lack(f"{MKFS} is not installed", "apt-get install e2fsprogs")
    if not os.access(loop.CONTROL, os.R_OK | os.W_OK):
        return Lack(f"{loop.CONTROL} cannot be opened", loop.HINT)
    if os.path.exists(SYSFS) and not _writable(SYSFS):
        return Lack(f"{SYSFS} is mounted read-only", "mount -o remount,rw /sys")
    return None


def _writable(path: str) -> bool:
    return not os.statvfs(path).f_flag & os.ST_RDONLY


def mkfs_path() -> str:
    """A user's path need not have the directories of the system's programs."""
    return ":".join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def choose(spec: JobSpec, place: Place, *, privileged: bool) -> tuple[Way | None, list[str]]:
    """The way for this job and, for what cannot be gone, a line each; None: there is none."""
    lines: list[str] = []
    return next(ways(spec, place, lines, privileged=privileged), None), lines


def ways(spec: JobSpec, place: Place, tried: list[str], *, privileged: bool) -> Iterator[Way]:
    """Those that nothing speaks against, in order; the others go to `tried`, with why."""
    for way in WAYS if spec.disk_by == "auto" else (spec.disk_by,):
        lack = refusal(way, spec, place, privileged=privileged)
        if lack is None:
            yield way
        else:
            tried.append(lack.text(way))


def describe(spec: JobSpec, base: str, way: Way, *, wanted: bool) -> Iterator[str]:
    """What is done to hold its layer to its size, a line each."""
    size = size_of(spec, wanted=wanted)
    if way == "quota":
        yield f"quotactl Q_SETQUOTA {size.limit} bytes, {size.inodes} inodes for a project"
        yield f"FS_IOC_FSSETXATTR project, PROJINHERIT {base}/upper {base}/work"
        return
    if way == "loop":
        yield f"open {base} O_TMPFILE, of {size.most} bytes and what ext4 takes for itself"
        yield f"{MKFS} it without a journal, {size.inodes} inodes"
        yield "LOOP_CONFIGURE LO_FLAGS_AUTOCLEAR it, fsmount ext4 -o nodev"
        yield f"write all but {size.limit} bytes > {SYSFS}/LOOP/reserved_clusters"
    else:
        yield f"fsmount tmpfs -o nodev,size={size.limit},nr_inodes={size.inodes} (the job's memory)"
    yield f"mkdir upper work in it, and hand it over with the request, as #{protocol.LAYER}"


def open_directory(path: str) -> int:
    """A descriptor of it, for the calls that take no path.  Raises KernelError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError("open", path, error.errno or 0) from None


def make_directories(mounted: int, owner: int) -> None:
    """`upper` and `work` in a file system that was just made, for root of the job."""
    for name in ("upper", "work"):
        try:
            os.mkdir(name, 0o755, dir_fd=mounted)
            os.chown(name, owner, owner, dir_fd=mounted)
        except OSError as error:
            raise KernelError("mkdir", name, error.errno or 0) from None
