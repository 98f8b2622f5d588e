"""Capabilities: their numbers (linux/capability.h), and the set a job may have at most."""

from __future__ import annotations

from supervisor.errors import KernelError
from supervisor.linux import constants as c
from supervisor.linux import syscalls

CAP_CHOWN = 0
CAP_DAC_OVERRIDE = 1
CAP_FOWNER = 3
CAP_FSETID = 4
CAP_KILL = 5
CAP_SETGID = 6
CAP_SETUID = 7
CAP_SETPCAP = 8
CAP_NET_BIND_SERVICE = 10
CAP_NET_RAW = 13
CAP_SYS_CHROOT = 18
CAP_SYS_ADMIN = 21
CAP_MKNOD = 27
CAP_AUDIT_WRITE = 29
CAP_SETFCAP = 31

DOCKER_DEFAULT = frozenset(
    {
        CAP_CHOWN,
        CAP_DAC_OVERRIDE,
        CAP_FOWNER,
        CAP_FSETID,
        CAP_KILL,
        CAP_SETGID,
        CAP_SETUID,
        CAP_SETPCAP,
        CAP_NET_BIND_SERVICE,
        CAP_NET_RAW,
        CAP_SYS_CHROOT,
        CAP_MKNOD,
        CAP_AUDIT_WRITE,
        CAP_SETFCAP,
    }
)

# Docker's, less what a job has no use for: device nodes, raw sockets, file capabilities.
JOB_DEFAULT = DOCKER_DEFAULT - {CAP_MKNOD, CAP_NET_RAW, CAP_SETFCAP, CAP_AUDIT_WRITE, CAP_SETPCAP}


def mask(capabilities: frozenset[int]) -> int:
    """A set of numbers as the kernel's bit mask."""
    return sum(1 << number for number in capabilities)


def last_capability() -> int:
    """The highest number this kernel knows (/proc/sys/kernel/cap_last_cap)."""
    with open("/proc/sys/kernel/cap_last_cap") as file:  # noqa: PTH123
        return int(file.read())


def effective(status: str = "/proc/self/status") -> int:
    """The effective set of a process (CapEff in proc_pid_status(5))."""
    with open(status) as file:  # noqa: PTH123
        for line in file:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    raise KernelError("read CapEff", status, 0)


def beyond_default() -> tuple[int, ...]:
    """Every capability of this kernel that no job has."""
    return tuple(n for n in range(last_capability() + 1) if n not in JOB_DEFAULT)


def drop_bounding(dropped: tuple[int, ...]) -> None:
    """PR_CAPBSET_DROP each number: exec can never give it back, whatever the file says."""
    for number in dropped:
        syscalls.prctl(c.PR_CAPBSET_DROP, number)
