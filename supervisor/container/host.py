"""What a container's plan depends on of the host, looked up once and kept current.

May import: `errors`, `linux`, `container.idmaps`.
"""

from __future__ import annotations

import errno
import os
import select
from pathlib import Path

from attrs import evolve, frozen

from supervisor.container.idmaps import IdMounts, Subordinate, subordinate
from supervisor.linux import caps, constants, proc

PSEUDO = frozenset(
    [
        "autofs",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "devtmpfs",
        "efivarfs",
        "fusectl",
        "hugetlbfs",
        "mqueue",
        "nsfs",
        "proc",
        "pstore",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "sysfs",
        "tracefs",
    ]
)
"""File systems that are windows on the kernel: no part of a root."""

OWN = ("/dev", "/proc", "/run", "/sys", "/tmp")
"""What every job gets an own one of; whatever the host has mounted below stays out."""

MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
)
"""Hidden as OCI runtimes do: they tell of the host, or of its memory."""

READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""Settings of the whole machine, which the root of a job could write without a user namespace."""


@frozen
class Facts:
    """The host as a plan sees it.

    submounts   mount points of real file systems below /, outside of what a job has its own of
    pseudo      mount points of pseudo file systems at unusual places
    private     directories of the supervisor's own: no job with the host's root sees them
    covered     what the launcher has hidden in its view of the host's root
    open_files  (soft, hard) that jobs get, where the supervisor has raised its own
    bounding    the capabilities the supervisor may hand on, by number
    traces      whether it may look at processes that are not dumpable, as inits are
    masked      (path, is a directory) of MASKED that exist; `read_only`: of READ_ONLY
    id_mounts   tells which mounts can be mapped; None: none can
    subordinate what an ordinary user may map beside his own id
    time_namespaces  whether the kernel has them
    """

    work: str
    privileged: bool
    submounts: tuple[str, ...] = ()
    pseudo: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    covered: tuple[str, ...] = ()
    open_files: tuple[int, int] | None = None
    bounding: frozenset[int] = frozenset()
    traces: bool = True
    masked: tuple[tuple[str, bool], ...] = ()
    read_only: tuple[str, ...] = ()
    id_mounts: IdMounts | None = None
    subordinate: Subordinate | None = None
    time_namespaces: bool = False


class Host:
    """`facts()` is read from /proc once, and again only when the kernel says the mounts changed.

    poll(2) on mountinfo tells of a change since the last read by POLLERR (proc_pid_mounts(5)).
    """

    def __init__(
        self,
        work: str,
        private: tuple[str, ...] = (),
        open_files: tuple[int, int] | None = None,
    ) -> None:
        self._work = work
        self._private = private
        self._open_files = open_files
        self._id_mounts = IdMounts()
        self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLERR | select.POLLPRI)
        self._facts: Facts | None = None
        self._covered: tuple[str, ...] = ()

    def facts(self) -> Facts:
        if self._facts is None or self._poll.poll(0):
            seen = look(self._work, self._private, self._id_mounts)
            self._facts = evolve(seen, covered=self._covered, open_files=self._open_files)
        return self._facts

    def cover(self, paths: tuple[str, ...]) -> None:
        """The launcher has been started with these hidden in its view of the root."""
        self._covered = paths
        self._facts = None

    def close(self) -> None:
        os.close(self._fd)
        self._id_mounts.close()


def look(work: str, private: tuple[str, ...] = (), id_mounts: IdMounts | None = None) -> Facts:
    """The host now.  Raises KernelError when /proc cannot be read."""
    submounts, pseudo = split(proc.mountinfo())
    effective = caps.effective()
    privileged = os.geteuid() == 0 and bool(effective >> caps.CAP_SYS_ADMIN & 1)
    return Facts(
        work=work,
        privileged=privileged,
        submounts=submounts,
        pseudo=pseudo,
        private=private,
        bounding=caps.bounding(),
        traces=privileged and bool(effective >> caps.CAP_SYS_PTRACE & 1),
        masked=tuple((path, os.path.isdir(path)) for path in MASKED if os.path.exists(path)),
        read_only=tuple(path for path in READ_ONLY if os.path.exists(path)),
        id_mounts=id_mounts,
        subordinate=None if privileged else subordinate(),
        time_namespaces=os.path.exists("/proc/self/ns/time"),
    )


def split(mounts: list[proc.Mount]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The mount points a host root shows (shallow first), and those it must not."""
    real: set[str] = set()
    pseudo: set[str] = set()
    for mount in visible(mounts):
        if mount.mount_point != "/" and not inside(mount.mount_point, OWN):
            (pseudo if mount.fstype in PSEUDO else real).add(mount.mount_point)
    return tuple(sorted(real)), tuple(sorted(pseudo))


def visible(mounts: list[proc.Mount]) -> list[proc.Mount]:
    """Those that a path leads to: others lie below something that was mounted over them later."""
    by_id = {mount.id: mount for mount in mounts}
    on: dict[int, list[str]] = {}
    for mount in mounts:
        on.setdefault(mount.parent, []).append(mount.mount_point)

    def hidden(mount: proc.Mount) -> bool:
        if mount.mount_point in on.get(mount.id, ()):
            return True
        while (below := by_id.get(mount.parent)) is not None and below is not mount:
            point = mount.mount_point
            if any(other != point and inside(point, (other,)) for other in on[below.id]):
                return True
            mount = below
        return False

    return [mount for mount in mounts if not hidden(mount)]


def inside(path: str, tops: tuple[str, ...]) -> bool:
    """Whether `path` is one of `tops` or below one."""
    return any(path == top or path.startswith(top.rstrip("/") + "/") for top in tops)


def on_overlay(path: str) -> bool:
    """Whether `path` lies on overlayfs, which refuses to be the upper layer of another."""
    for mount in sorted(proc.mountinfo(), key=lambda m: len(m.mount_point), reverse=True):
        if inside(path, (mount.mount_point,)):
            return mount.fstype == "overlay"
    return False


def has_user_attributes(path: str) -> bool:
    """Whether the file system of `path`, or of what there is of it, has xattr(7)'s user.*."""
    there = next(one for one in (path, *map(str, Path(path).parents)) if os.path.exists(one))
    try:
        os.getxattr(there, "user.supervise")
    except OSError as error:
        return error.errno != errno.ENOTSUP  # ENODATA: it could have one
    return True


def clone_flags(*, network: bool, user: bool) -> int:
    """The namespaces of a job's init; cgroup and time are unshared later, by those they are for."""
    flags = (
        constants.CLONE_NEWPID
        | constants.CLONE_NEWNS
        | constants.CLONE_NEWUTS
        | constants.CLONE_NEWIPC
    )
    if network:
        flags |= constants.CLONE_NEWNET
    if user:
        flags |= constants.CLONE_NEWUSER
    return flags
