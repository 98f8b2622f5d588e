"""What the doctor tries of `limits.disk`: each way to hold a layer to its size, and hearing of it.

Each is filled for real, with 2 MiB.  Files have no name and mounts no path, so that all goes with
the trial's process; a project's limit is lifted whatever happens.

May import: `errors`, `linux`, `container`, `supervise.projects`.
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

from supervisor.container import disk, disk_loop, disk_tmpfs
from supervisor.errors import KernelError, SupervisorError
from supervisor.front import doctor_kernel
from supervisor.front.doctor_trial import ENDING, Check, attempt, enter_namespaces, way_out
from supervisor.front.kinds import Context
from supervisor.front.settings import default_state
from supervisor.linux import caps, fanotify, newmount, proc, quota, syscalls
from supervisor.linux import constants as c
from supervisor.supervise import projects

SIZE = 2 << 20
SCRATCH = "/var/tmp"
"""Where layers of `supervise run` lie."""
NAMES = {way: f"disk limit by {way}" for way in disk.WAYS}
TOLD = "disk events"
AS_ROOT = "run as root; without, a layer is a tmpfs"


def checks() -> list[Callable[[], Check]]:
    """All of them, each to be called by itself."""
    return [state_directory, upper, by_quota, by_loop, by_tmpfs, events]


def state_directory() -> Check:
    """Where logs and layers lie: a file is written there, and what room there is."""
    name, place = "state directory", disk.there(state_dir())
    outcome = attempt(lambda: _written(place))
    fix = 'state_dir = "/a/place/that/can/be/written" in [supervisor]'
    if outcome.failure:
        return Check(name, "unavailable", outcome.failure, fix, True)
    room = os.statvfs(place)
    free, inodes = room.f_bavail * room.f_frsize, room.f_favail
    told = f"{place}, {disk_type(place)}: {free >> 30} GiB free"
    if free < SCARCE or (room.f_files and inodes < SCARCE_INODES):
        fix = f"make room below {place} (supervise image prune), or state_dir elsewhere"
        return Check(name, "accounted only", f"{told}, {inodes} inodes", fix, True)
    return Check(name, "enforced", told, "", True)


SCARCE, SCARCE_INODES = 1 << 30, 10000


def state_dir() -> str:
    """Where it is unless a configuration says otherwise."""
    return str(default_state(Context(Path.cwd())))


def _written(place: str) -> int:
    file = disk_loop.unnamed(place, 0)
    os.write(file, bytes(disk.BLOCK))
    os.fsync(file)
    return os.fstat(file).st_blocks


def disk_type(place: str) -> str:
    """The type of the file system that has it, by /proc/self/mountinfo."""
    number = os.stat(place).st_dev
    where = os.major(number), os.minor(number)
    found = [mount.fstype for mount in proc.mountinfo() if (mount.major, mount.minor) == where]
    return found[-1] if found else "an unknown file system"


def upper() -> Check:
    """Whether layers (`write = "overlay"`) can lie in the state directory, marks and all."""
    name, place = "layers there", disk.there(state_dir())
    fix = 'state_dir on ext4, XFS, btrfs or tmpfs; or limits.disk with disk_by = "tmpfs"'
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        top = tempfile.mkdtemp(prefix=".supervise-doctor-", dir=place)
        try:
            outcome = attempt(lambda: _upper(Path(top)))
        finally:
            _remove(top)
    except OSError as error:
        return Check(name, "unavailable", f"{place}: {error.strerror}", fix)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if outcome.failure:
        return Check(name, "unavailable", outcome.failure, fix)
    return Check(name, "enforced", f"{disk_type(place)} took a layer and its marks (xattrs)")


def _upper(top: Path) -> None:
    privileged = os.geteuid() == 0 and doctor_kernel.initial_user_namespace()
    doctor_kernel.own_mounts()
    doctor_kernel.overlaid(top)
    mark = "trusted" if privileged else "user"
    os.setxattr(top / "upper", f"{mark}.overlay.doctor", b"y")


def _remove(top: str) -> None:
    """overlayfs leaves work/work, which nobody may look into."""
    inner = Path(top, "work/work")
    if inner.exists():
        inner.chmod(0o700)
    shutil.rmtree(top)


def by_quota() -> Check:
    """On the file system of the default state directory."""
    name, place = NAMES["quota"], disk.there(state_dir())
    if os.geteuid() != 0:
        return Check(name, "unavailable", "it needs root", AS_ROOT)
    try:
        if not disk.holds_quota(place):
            why = f"the file system of {place} has no project quota"
            return Check(name, "unavailable", why, f"not needed beside loop; {disk.QUOTA_FIX}")
    except KernelError as error:
        return Check(name, "unavailable", str(error), way_out(str(error), disk.QUOTA_FIX))
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
        enter_namespaces()
    options = disk_tmpfs.options(SIZE, disk.FEWEST_INODES)
    return newmount.mount("tmpfs", {**options}, c.MOUNT_ATTR_NODEV)


def events() -> Check:
    """Whether a write wakes who waits for one: else a full layer is seen when the job has ended."""
    outcome = attempt(_woken)
    if outcome.failure or not outcome.value:
        why = outcome.failure or "a write wakes nobody"
        fix = "run as root, on a kernel with CONFIG_FANOTIFY"
        fix = fix if os.geteuid() != 0 else way_out(why, fix)
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
        return Check(
            name, "unavailable", outcome.failure, way_out(outcome.failure, FIXES.get(name, ""))
        )
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
