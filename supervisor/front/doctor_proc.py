"""What the doctor tries of `proc = "limits"`: being asked before a file is read, and a job's time.

`told` has what `supervise check` and `plan` say of it without trying.

The files lie on a tmpfs that no path leads to, and go with the trial.

May import: `errors`, `model`, `linux`, `front.doctor_trial`.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable

from supervisor.errors import SupervisorError
from supervisor.front.doctor_trial import Check, as_root, attempt, has_admin
from supervisor.linux import newmount, proc, readgate
from supervisor.model.job import JobSpec

LIVE = "share in /proc"
TIME = "time since boot"
SNAPSHOT = 'proc = "limits" shows limits, but no use of them: '
ASKING = "to be asked before a file is read takes CAP_SYS_ADMIN"
OLD, NEW = b"before", b"after!"
PATIENCE = 1000
"""Milliseconds to wait for the reader of the trial."""


def checks() -> list[Callable[[], Check]]:
    """All of them, each to be called by itself."""
    return [live, time_of_its_own]


def told(jobs: Iterable[JobSpec]) -> list[str]:
    """A line about the jobs that will see less than they ask for."""
    names = dict.fromkeys(job.group or job.name for job in jobs if job.proc == "limits")
    if not names or has_admin():
        return []
    return [f"{', '.join(names)}: {SNAPSHOT}{ASKING}"]


def live() -> Check:
    """Whether what a job reads there can be written before it reads."""
    unused = _lxcfs()
    if not has_admin():
        fix = as_root() if os.geteuid() == 0 else "run as root; a user namespace is not enough"
        return Check(LIVE, "accounted only", SNAPSHOT + ASKING + unused, fix)
    outcome = attempt(_read_while_it_is_written)
    if outcome.failure:
        fix = "a kernel with CONFIG_FANOTIFY_ACCESS_PERMISSIONS"
        return Check(LIVE, "accounted only", SNAPSHOT + outcome.failure + unused, fix)
    return Check(LIVE, "enforced", 'what proc = "limits" shows is live' + unused)


def _read_while_it_is_written() -> str:
    """A child of the trial reads; what it gets must be what was written while it waited."""
    directory = newmount.mount("tmpfs", {"source": "supervise", "size": "64k"}, 0)
    file = os.open("file", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=directory)
    os.pwrite(file, OLD, 0)
    group = readgate.open_group()
    readgate.guard(group, file)
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, os.read(os.open("file", os.O_RDONLY, dir_fd=directory), len(NEW)))
        os._exit(0)
    waits = select.poll()
    waits.register(group, select.POLLIN)
    if not waits.poll(PATIENCE):
        raise SupervisorError("the kernel does not ask before a file is read")
    for fd in readgate.waiting(group):
        os.pwrite(file, NEW, 0)
        readgate.allow(group, fd)
    found = os.read(reader, len(NEW))
    if found != NEW:
        raise SupervisorError(f"a reader saw {found!r}, not what was written before")
    return found.decode()


def _lxcfs() -> str:
    """A line about one that runs, which somebody may expect to be used."""
    for mount in proc.mountinfo():
        if mount.fstype == "fuse.lxcfs":
            return (
                f"\n{mount.mount_point} (lxcfs) is not used: it shows the limits of PID 1, "
                "and a job's has none"
            )
    return ""


def time_of_its_own() -> Check:
    """Whether /proc/uptime can begin with a job; the namespace itself is `doctor_kernel`'s."""
    if os.path.exists("/proc/self/ns/time"):
        return Check(TIME, "enforced", 'with proc = "limits" it is the job\'s own')
    why = 'with proc = "limits" /proc/uptime is still the host\'s'
    return Check(TIME, "unavailable", why, "Linux 5.6 with CONFIG_TIME_NS")
