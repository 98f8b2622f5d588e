"""Capabilities: their numbers (linux/capability.h), and the set a job may have at most."""

from __future__ import annotations

from supervisor.errors import KernelError
from supervisor.linux import constants as c
from supervisor.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

NAMES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
    "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip
"""By their numbers."""

CAP_SYS_ADMIN = NAMES.index("SYS_ADMIN")
CAP_SYS_PTRACE = NAMES.index("SYS_PTRACE")


def number(name: str) -> int:
    """ "CAP_CHOWN" or "chown" → 0.  Raises ValueError for a name that there is not."""
    short = name.upper().removeprefix("CAP_")
    if short not in NAMES:
        raise ValueError(f"no capability {name}")
    return NAMES.index(short)


DOCKER_DEFAULT = frozenset(
    number(name)
    for name in (
        "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
        "NET_BIND_SERVICE", "NET_RAW", "SYS_CHROOT", "MKNOD", "AUDIT_WRITE", "SETFCAP",
    )
)  # fmt: skip

JOB_DEFAULT = DOCKER_DEFAULT - {
    number(name) for name in ("MKNOD", "NET_RAW", "SETFCAP", "AUDIT_WRITE", "SETPCAP")
}
"""Docker's, less what a job has no use for: device nodes, raw sockets, file capabilities."""


def of_job(add: Iterable[str], drop: Iterable[str]) -> frozenset[int]:
    """What a job may have: the default, more and less; "ALL" stands for all, named ones override.

    Raises ValueError for an unknown name.
    """
    everything = frozenset(range(last_capability() + 1))
    added = {number(name) for name in add if name != "ALL"}
    dropped = {number(name) for name in drop if name != "ALL"}
    base = JOB_DEFAULT
    if "ALL" in add:
        base = everything
    elif "ALL" in drop:
        base = frozenset()
    return ((base - dropped) | added) & everything


def mask(capabilities: frozenset[int]) -> int:
    """A set of numbers as the kernel's bit mask."""
    return sum(1 << number for number in capabilities)


def last_capability() -> int:
    """The highest number this kernel knows (/proc/sys/kernel/cap_last_cap)."""
    with open("/proc/sys/kernel/cap_last_cap") as file:  # noqa: PTH123
        return int(file.read())


def effective(status: str = "/proc/self/status") -> int:
    """The effective set of a process (CapEff in proc_pid_status(5))."""
    return _field("CapEff", status)


def bounding(status: str = "/proc/self/status") -> frozenset[int]:
    """The bounding set of a process: what it and its children can have at most (CapBnd)."""
    bits = _field("CapBnd", status)
    return frozenset(n for n in range(bits.bit_length()) if bits >> n & 1)


def _field(name: str, status: str) -> int:
    with open(status) as file:  # noqa: PTH123
        for line in file:
            if line.startswith(f"{name}:"):
                return int(line.split()[1], 16)
    raise KernelError(f"read {name}", status, 0)


def all_but(kept: frozenset[int]) -> tuple[int, ...]:
    """Every capability of this kernel that is not in `kept`."""
    return tuple(n for n in range(last_capability() + 1) if n not in kept)


def drop_bounding(dropped: Iterable[int]) -> None:
    """PR_CAPBSET_DROP each number: exec can never give it back, whatever the file says."""
    for number in dropped:
        syscalls.prctl(c.PR_CAPBSET_DROP, number)


def keep_through_setuid() -> None:
    """PR_SET_KEEPCAPS: what the next setresuid(2) would take away stays permitted."""
    syscalls.prctl(c.PR_SET_KEEPCAPS, 1)


def make_ambient(kept: frozenset[int]) -> None:
    """Have `kept` and nothing else, and keep it through exec as a user who is not root.

    Permitted, effective, inheritable and ambient sets (capabilities(7)).  EPERM: not permitted.
    """
    bits = mask(kept)
    syscalls.set_capabilities(bits, bits)
    for number in kept:
        syscalls.prctl(c.PR_CAP_AMBIENT, c.PR_CAP_AMBIENT_RAISE, number)
