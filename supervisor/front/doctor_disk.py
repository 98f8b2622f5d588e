"""What the doctor tries of `limits.disk`: each way to hold a layer to its size, and hearing of it.

Each is filled for real, with 2 MiB.  Files have no name and mounts no path, so that all goes with
the trial's process; a project's limit is lifted whatever happens.

May import: `errors`, `linux`, `container`, `supervise.projects`.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable

from supervisor.container import disk, disk_loop, disk_tmpfs
from supervisor.errors import KernelError, SupervisorError
from supervisor.front.doctor_trial import Check, attempt
from supervisor.linux import caps, fanotify, newmount, quota, syscalls
from supervisor.linux import constants as c
from supervisor.supervise import projects

SIZE = 2 << 20
STATE, SCRATCH = "/var/lib/supervise", "/var/tmp"
"""Where layers lie, unless `state_dir` says otherwise, and where those of `supervise run` do."""
NAMES = {way: f"disk limit by {way}" for way in disk.WAYS}
TOLD = "disk events"
AS_ROOT = "run as root; without, a layer is a tmpfs"


def checks() -> list[Callable[[], Check]]:
    """All of them, each to be called by itself."""
    return [by_quota, by_loop, by_tmpfs, events]


def by_quota() -> Check:
    """On the file system of the default state directory."""
    name, place = NAMES["quota"], disk.there(STATE)
    if os.geteuid() != 0:
        return Check(name, "unavailable", "it needs root", AS_ROOT)
    try:
        if not disk.holds_quota(place):
            why = f"the file system of {place} has no project quota"
            return Check(name, "unavailable", why, f"not needed beside loop; {disk.QUOTA_FIX}")
    except KernelError as error:
        return Check(name, "unavailable", str(error), disk.QUOTA_FIX)
    return _told(name, lambda: _fill_project(place), f"{place}; for jobs in a user namespace")


def _fill_project(place: str) -> int:
    """A file without a name in a project of its own: how much of it could be written."""
    fd = disk.open_directory(place)
    known = projects.known_projects(projects.ETC)
    last = projects.FIRST + projects.COUNT
    number = next(n for n in range(last, last + 1000) if n not in known and projects.is_free(fd, n))
    file = disk_loop.unnamed(place, 0)
    quota.limit(fd, number, SIZE, 0)
    try:
        quota.put_into(file, number, inherit=False)
        # who has this capability is not held (fs/quota/dquot.c, ignore_hardlimit)
        without = caps.effective() & ~(1 << caps.number("SYS_RESOURCE"))
        syscalls.set_capabilities(without, 0)
        return _fill(file)
    finally:
        os.ftruncate(file, 0)
        quota.limit(fd, number, 0, 0)


def by_loop() -> Check:
    name = NAMES["loop"]
    if os.geteuid() != 0:
        return Check(name, "unavailable", "it needs root", AS_ROOT)
    return _told(name, _fill_loop, f"ext4 in a file in {SCRATCH}")


def _fill_loop() -> int:
    space = disk_loop.open_loop(SCRATCH, disk.Size(SIZE, disk.FEWEST_INODES, SIZE), 0)
    return _fill_layer(space.mounted[0])


def by_tmpfs() -> Check:
    return _told(NAMES["tmpfs"], _fill_tmpfs, "counted in the job's memory")


def _fill_tmpfs() -> int:
    return _fill_layer(_tmpfs())


def _tmpfs() -> int:
    """A mount of one with SIZE bytes, in a user namespace where that is what it takes."""
    if os.geteuid() != 0:
        syscalls.unshare(c.CLONE_NEWUSER | c.CLONE_NEWNS)
    options = disk_tmpfs.options(SIZE, disk.FEWEST_INODES)
    return newmount.mount("tmpfs", {**options}, c.MOUNT_ATTR_NODEV)


def events() -> Check:
    """Whether a write wakes who waits for one: else a full layer is seen when the job has ended."""
    outcome = attempt(_woken)
    if outcome.failure or not outcome.value:
        why = outcome.failure or "a write wakes nobody"
        fix = "run as root, on a kernel with CONFIG_FANOTIFY"
        return Check(TOLD, "unavailable", f"a full layer is seen at the end only: {why}", fix)
    return Check(TOLD, "enforced", "fanotify: a write to a layer wakes the supervisor")


def _woken() -> bool:
    mounted = _tmpfs()
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=mounted)
    group = fanotify.writes(directory)
    quiet = select.select([group], [], [], 0)[0]
    os.write(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=mounted), b"x")
    return not quiet and bool(select.select([group], [], [], 1)[0])


def _told(name: str, work: Callable[[], int], where: str) -> Check:
    outcome = attempt(work)
    if outcome.failure:
        return Check(name, "unavailable", outcome.failure, FIXES.get(name, ""))
    written = int(outcome.value)
    if written > SIZE:
        return Check(name, "unavailable", f"{written} bytes went into {SIZE}")
    return Check(name, "enforced", f"{written} of {SIZE} bytes, then no more; {where}")


FIXES = {
    NAMES["loop"]: "apt-get install e2fsprogs; modprobe loop; not needed where memory will do",
    NAMES["tmpfs"]: "Linux 5.2 or later",
}


def _fill_layer(mounted: int) -> int:
    return _fill(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=mounted))


def _fill(fd: int) -> int:
    """Write until there is no room, for twice SIZE at most; how many bytes that were."""
    done = 0
    try:
        while done <= 2 * SIZE:
            done += os.write(fd, bytes(disk.BLOCK))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise SupervisorError(f"write: {error.strerror}") from None
    return done
