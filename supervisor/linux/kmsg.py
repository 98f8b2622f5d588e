r"""The kernel's log, /dev/kmsg: a reader of records, and a parser for those about limits.

Not for the launcher.  May import: `errors` and the standard library.  Formats:
Documentation/ABI/testing/dev-kmsg, mm/oom_kill.c (dump_oom_victim, __oom_kill_process),
mm/memcontrol.c (mem_cgroup_print_oom_context), kernel/cgroup/pids.c, kernel/auditsc.c
(audit_seccomp).

A job chooses the names of its tasks, and in a delegated cgroup those of directories too; the
kernel prints both unquoted.  What holds is the order of the fields, digits at known ends, that a
task's name has at most 15 bytes, and that each marker occurs once outside of those 15.  A line
for which that is not so is no evidence, and is not parsed.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from supervisor.errors import KernelError

PATH = "/dev/kmsg"
COMM_MAX = 15
"""Bytes of a task's name: TASK_COMM_LEN less the terminating zero."""

_RECORD_MAX = 16384
"""More than the kernel makes of one record (PRINTK_MESSAGE_MAX, 2048): less were EINVAL."""
_KMSG_DEVICE = os.makedev(1, 11)

_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")
_FORK = re.compile(rb"cgroup: fork rejected by pids controller in (.*)", re.DOTALL)
_VICTIM = re.compile(
    rb"oom-kill:constraint=([A-Z_]+),nodemask=(?:\(null\)|[\d,-]*)"
    rb"(?:,cpuset=.*?,mems_allowed=[\d,-]*)?"  # not in a kernel without cpusets
    rb"(?:,oom_memcg=(?P<limiting>/.*?)|,global_oom)?"
    rb"(?:,task_memcg=(?P<memcg>/.*?))?"
    rb",task=(?P<task>.*),pid=(?P<pid>\d+),uid=(?P<uid>\d+)",
    re.DOTALL,
)
_TAIL = re.compile(rb",pid=\d+,uid=\d+\Z")
_MARKERS = (b",mems_allowed=", b",oom_memcg=", b",global_oom", b",task_memcg=", b",task=")
_KILLED = re.compile(
    rb"(?:(?P<message>Memory cgroup out of memory|Out of memory)(?: \([a-z_]+\))?: )?"
    rb"Killed process (?P<pid>\d+) \((?P<name>.*)\) total-vm:(?P<vm>\d+)kB, "
    rb"anon-rss:(?P<anon>\d+)kB, file-rss:(?P<file>\d+)kB(?:, shmem-rss:(?P<shmem>\d+)kB)?"
    rb"(?:, UID:\d+ pgtables:\d+kB oom_score_adj:-?\d+)?",
    re.DOTALL,
)


# A name with a blank or a quote in it is printed in hexadecimal digits (audit_log_untrustedstring).
_FILTERED = re.compile(
    rb"audit: type=1326 audit\([\d.:]+\): (?:(?!pid=|comm=)[a-z]+=\S+ )*pid=(?P<pid>\d+) "
    rb'comm=(?:"(?P<comm>[^"]*)"|(?P<hex>(?:[0-9A-F]{2})+)) exe=(?:"[^"]*"|\S+) sig=\d+ '
    rb"arch=(?P<arch>[0-9a-f]+) syscall=(?P<call>\d+) compat=\d ip=0x[0-9a-f]+ "
    rb"code=0x(?P<code>[0-9a-f]+)"
)


@dataclass(frozen=True, slots=True)
class ForkRejected:
    """The first fork that pids.max of `cgroup` refused; "" where the path was torn off.

    The kernel tells of it once in the life of a cgroup.
    """

    cgroup: str


@dataclass(frozen=True, slots=True)
class OomVictim:
    """Whom an OOM killer chose, and whose limit made it: `limiting` is None for the whole host.

    `memcg` is the victim's own cgroup, None where the kernel has none.  Paths start at the root
    of the hierarchy.  The kernel prints ten such lines in five seconds at most.
    """

    constraint: str
    limiting: str | None
    memcg: str | None
    task: str
    pid: int
    uid: int


@dataclass(frozen=True, slots=True)
class OomKilled:
    """A process killed for want of memory, in a cgroup (`in_memcg`) or on the host; kB."""

    pid: int
    name: str
    total_vm: int
    anon_rss: int
    file_rss: int
    shmem_rss: int
    in_memcg: bool


@dataclass(frozen=True, slots=True)
class CallFiltered:
    """A system call of process `pid` that a seccomp filter logged, or ended it for.

    `architecture` is an AUDIT_ARCH_ number; `let_through`: it was only logged.  Where auditd(8)
    runs, the kernel tells it instead; and some lines may be left out, ten in five seconds.
    """

    pid: int
    comm: str
    architecture: int
    call: int
    let_through: bool


Record = ForkRejected | OomVictim | OomKilled | CallFiltered


def parse(record: bytes) -> Record | None:
    """One record as read from /dev/kmsg; None for what is not about limits, or not the kernel's.

    Whoever writes to /dev/kmsg gets a facility other than 0, whatever he asks for.
    """
    prefix, found, rest = record.partition(b";")
    priority = prefix.partition(b",")[0]
    if not found or not priority.isdigit() or int(priority) >> 3:
        return None
    text = _unescape(rest.partition(b"\n")[0])
    if text.startswith(b"oom-kill:"):
        return _victim(text)
    return _killed(text) or _fork_rejected(text) or _filtered(text)


def _unescape(text: bytes) -> bytes:
    r"""Everything that is not printable ASCII, and the backslash, comes as \xNN."""
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), text)


def _name(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _filtered(text: bytes) -> CallFiltered | None:
    match = _FILTERED.fullmatch(text)
    if match is None:
        return None
    comm = match["comm"] if match["hex"] is None else bytes.fromhex(match["hex"].decode())
    action = int(match["code"], 16) & 0xFFFF0000
    return CallFiltered(
        pid=int(match["pid"]),
        comm=_name(comm),
        architecture=int(match["arch"], 16),
        call=int(match["call"]),
        let_through=action == 0x7FFC0000,  # SECCOMP_RET_LOG
    )


def _fork_rejected(text: bytes) -> ForkRejected | None:
    match = _FORK.fullmatch(text)
    return ForkRejected(os.fsdecode(match[1])) if match else None


def _victim(text: bytes) -> OomVictim | None:
    tail = _TAIL.search(text)
    match = _VICTIM.fullmatch(text)
    if tail is None or match is None or len(match["task"]) > COMM_MAX:
        return None
    trusted = text[: max(0, tail.start() - COMM_MAX)]
    if any(trusted.count(marker) > 1 for marker in _MARKERS):
        return None
    limiting, memcg = match["limiting"], match["memcg"]
    return OomVictim(
        constraint=match[1].decode(),
        limiting=None if limiting is None else os.fsdecode(limiting),
        memcg=None if memcg is None else os.fsdecode(memcg),
        task=_name(match["task"]),
        pid=int(match["pid"]),
        uid=int(match["uid"]),
    )


def _killed(text: bytes) -> OomKilled | None:
    match = _KILLED.fullmatch(text)
    if match is None or len(match["name"]) > COMM_MAX:
        return None
    return OomKilled(
        pid=int(match["pid"]),
        name=_name(match["name"]),
        total_vm=int(match["vm"]),
        anon_rss=int(match["anon"]),
        file_rss=int(match["file"]),
        shmem_rss=int(match["shmem"] or 0),
        in_memcg=match["message"] == b"Memory cgroup out of memory",
    )


class Kmsg:
    """A descriptor that gives one record a read; owns it.  `overwritten` counts the gaps."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.overwritten = 0

    def fileno(self) -> int:
        """The descriptor to wait on; -1 once closed."""
        return self._fd

    def read(self) -> Iterator[bytes]:
        """The records there are, until none is left.  Never blocks.

        EPIPE: records were overwritten before they were read; the next read goes on behind them.
        Raises KernelError.
        """
        while self._fd >= 0:
            try:
                record = os.read(self._fd, _RECORD_MAX)
            except BlockingIOError:
                return
            except BrokenPipeError:
                self.overwritten += 1
                continue
            except OSError as error:
                raise KernelError("read", PATH, error.errno or 0) from error
            if not record:
                return
            yield record

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def open_kmsg(path: str = PATH) -> Kmsg:
    """The kernel's log from now on.

    Raises KernelError: ENOENT or EPERM, as in most containers, or ENODEV where `path` is
    something else (some containers put a console or /dev/null there).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise KernelError("open", path, error.errno or 0, hint="needs CAP_SYSLOG") from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISCHR(found.st_mode) or found.st_rdev != _KMSG_DEVICE:
            raise KernelError("open", path, errno.ENODEV, hint="it is not the kernel's log")
        os.lseek(fd, 0, os.SEEK_END)
    except OSError as error:
        os.close(fd)
        if isinstance(error, KernelError):
            raise
        raise KernelError("lseek", path, error.errno or 0) from error
    return Kmsg(fd)
