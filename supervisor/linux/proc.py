"""Readers of /proc: mounts, cgroup membership, and what a process is.

The launcher may import this: nothing but `os` and `errors` is imported, and no decorator machinery
is used.  Formats: proc_pid_mountinfo(5), cgroups(7), proc_pid_stat(5).
"""

from __future__ import annotations

import os

from supervisor.errors import KernelError

_CHUNK = 65536


class Mount:
    """One line of /proc/PID/mountinfo, with the octal escapes decoded.

    `options` are the mount's own, `super_options` the file system's (the controllers of a v1
    cgroup stand there); `optional` are the propagation fields such as "shared:5".
    """

    __slots__ = (
        "fstype", "id", "major", "minor", "mount_point", "optional", "options", "parent", "root",
        "source", "super_options",
    )  # fmt: skip

    def __init__(self, line: str) -> None:
        """Raises ValueError for a line that is none of mountinfo's."""
        before, separator, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        if not separator or len(fields) < 6 or len(tail) < 3:
            raise ValueError(f"not a line of mountinfo: {line!r}")
        self.id, self.parent = int(fields[0]), int(fields[1])
        major, _, minor = fields[2].partition(":")
        self.major, self.minor = int(major), int(minor)
        self.root, self.mount_point = unescape(fields[3]), unescape(fields[4])
        self.options: tuple[str, ...] = tuple(fields[5].split(","))
        self.optional: tuple[str, ...] = tuple(fields[6:])
        self.fstype, self.source = tail[0], unescape(tail[1])
        self.super_options: tuple[str, ...] = tuple(tail[2].split(","))

    def __repr__(self) -> str:
        return f"Mount({self.id} {self.fstype} {self.source} on {self.mount_point})"


class Membership:
    """One line of /proc/PID/cgroup: the hierarchy's controllers (none: unified) and the path."""

    __slots__ = ("controllers", "hierarchy", "path")

    def __init__(self, line: str) -> None:
        number, controllers, path = line.split(":", 2)
        self.hierarchy = int(number)
        self.controllers: tuple[str, ...] = tuple(controllers.split(",")) if controllers else ()
        self.path = path

    def __repr__(self) -> str:
        return f"Membership({self.hierarchy}:{','.join(self.controllers)}:{self.path})"


CLOCK_TICK = os.sysconf("SC_CLK_TCK")
"""USER_HZ: in how many parts of a second /proc tells times."""
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


class Stat:
    """/proc/PID/stat: what names a process for good (pid and start time), and what it uses.

    The file needs no lock that the process itself could hold; /proc/PID/cmdline does, and who
    reads that may wait for the process as long as it likes.
    """

    __slots__ = ("comm", "pages", "parent", "pid", "start_ticks", "state", "threads", "ticks")

    def __init__(self, text: str) -> None:
        # comm may hold spaces and parentheses: it ends at the last one
        head, _, tail = text.rpartition(")")
        number, _, self.comm = head.partition(" (")
        fields = tail.split()
        self.pid = int(number)
        self.state = fields[0]
        self.parent = int(fields[1])
        self.ticks = int(fields[11]) + int(fields[12])
        """CPU time in ticks, user and system; of its children nothing."""
        self.threads = int(fields[17])
        self.start_ticks = int(fields[19])
        """Clock ticks after boot; with `pid` it tells a process from a later one of its number."""
        self.pages = int(fields[21])
        """In memory now (RSS)."""


def unescape(text: str) -> str:
    r"""Decode the octal escapes \040 \011 \012 \134 (and any other) of the mount tables."""
    if "\\" not in text:
        return text
    first, *rest = text.split("\\")
    decoded = [first]
    for part in rest:
        code = part[:3]
        if len(code) == 3 and all(digit in "01234567" for digit in code) and code <= "377":
            decoded.append(chr(int(code, 8)) + part[3:])
        else:
            decoded.append("\\" + part)
    return "".join(decoded)


def read_file(path: str) -> str:
    """The whole text of a kernel file; undecodable bytes of names survive (PEP 383).

    Raises KernelError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            chunks = []
            while chunk := os.read(fd, _CHUNK):
                chunks.append(chunk)
        finally:
            os.close(fd)
    except OSError as error:
        raise KernelError("read", path, error.errno or 0) from error
    return os.fsdecode(b"".join(chunks))


def mountinfo(path: str = "/proc/self/mountinfo") -> list[Mount]:
    """The mounts of a namespace in the kernel's order: a later one hides an earlier one.

    Raises KernelError.
    """
    # splitlines() would also split at bytes such as \x0c, which the kernel does not escape
    return [Mount(line) for line in read_file(path).split("\n") if line]


def memberships(path: str = "/proc/self/cgroup") -> list[Membership]:
    """The cgroups a process is in, one per hierarchy.  Raises KernelError."""
    return [Membership(line) for line in read_file(path).split("\n") if line]


def stat(pid: int, proc: str = "/proc") -> Stat:
    """Raises KernelError, ENOENT or ESRCH when there is no such process."""
    return Stat(read_file(f"{proc}/{pid}/stat"))


_FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""PROC_PID_INIT_INO of the kernel's include/linux/proc_ns.h."""


def pids_are_the_kernels(proc: str = "/proc") -> bool:
    """Whether our process numbers are those that the kernel's log uses.

    They are in the first pid namespace only.
    """
    try:
        return os.stat(f"{proc}/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE
    except OSError:
        return False  # no namespaces in this kernel, or no such file for us: do not rely on it


def children(pid: int, proc: str = "/proc") -> list[int]:
    """The direct children of every thread of `pid`, zombies included.

    From /proc/PID/task/*/children; where the kernel was built without CONFIG_PROC_CHILDREN, by a
    walk over all processes.  Raises KernelError, ENOENT when there is no such process.
    """
    tasks = f"{proc}/{pid}/task"
    try:
        threads = os.listdir(tasks)
    except OSError as error:
        raise KernelError("list", tasks, error.errno or 0) from error
    if not os.path.exists(f"{tasks}/{pid}/children"):
        return [entry.pid for entry in processes(proc) if entry.parent == pid]
    found: list[int] = []
    for thread in threads:
        try:
            found += [int(child) for child in read_file(f"{tasks}/{thread}/children").split()]
        except KernelError as error:
            _unless_gone(error)
    return found


def processes(proc: str = "/proc") -> list[Stat]:
    """Every process that this /proc shows.  Raises KernelError."""
    found = []
    for name in os.listdir(proc):
        if name.isdigit():
            try:
                found.append(stat(int(name), proc))
            except KernelError as error:
                _unless_gone(error)
    return found


def descendants(pid: int, proc: str = "/proc") -> set[int]:
    """All processes below `pid`, by parent links; who was adopted by another is not among them."""
    by_parent: dict[int, list[int]] = {}
    for entry in processes(proc):
        by_parent.setdefault(entry.parent, []).append(entry.pid)
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for child in by_parent.get(waiting.pop(), ()):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def boot_id() -> str:
    """What tells one boot from the next (/proc/sys/kernel/random/boot_id)."""
    return read_file("/proc/sys/kernel/random/boot_id").strip()


def _unless_gone(error: OSError) -> None:
    """A process that ended while it was looked at is no failure; anything else is."""
    if error.errno not in (2, 3):  # ENOENT, ESRCH
        raise error
