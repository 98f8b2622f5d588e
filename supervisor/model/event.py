"""What the kernel and the clock tell about a running job: one closed union.

Each event was re-read from the kernel, never inferred from a wake-up; `at` is Unix time in
seconds.  `HOOK_OF` says which policy hook hears of which event.
"""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from supervisor.model.job import Resource


@frozen
class Started:
    """The payload runs: exec has succeeded.  `pid` is the payload's, in the host's numbers."""

    at: float
    pid: int


@frozen
class MemoryLimit:
    """The job's own memory limit was reached.

    `held`: its tasks sleep until the limit is raised or they are killed.  `usage` and `limit` in
    bytes, `hits` as the kernel counts them (memory.failcnt | the `max` of memory.events).
    """

    at: float
    usage: int
    limit: int
    hits: int
    held: bool


@frozen
class OomKill:
    """The kernel killed `new` processes of the job since the last event, `total` in this run."""

    at: float
    new: int
    total: int


@frozen
class PidsLimit:
    """fork was refused at pids.max `limit`; `refused` times in this run."""

    at: float
    refused: int
    limit: int


@frozen
class DiskLimit:
    """The job's writable layer is nearly full or, with `full`, has no room left.

    `used` and `limit` in bytes; `inodes` are files, directories and links, `inode_limit` None
    where their number has no bound.  `scarce`: which of the two it is about.
    """

    at: float
    full: bool
    scarce: Literal["bytes", "inodes"]
    used: int
    limit: int
    inodes: int
    inode_limit: int | None


@frozen
class Pressure:
    """For want of `resource` some process of the job stands still, more than the job allows.

    `share`: of the last ten seconds, 0 to 1 (`some avg10`); `stalled`: seconds in this run
    (`some total`).  Both None where only v1's memory.pressure_level tells.
    """

    at: float
    resource: Resource
    share: float | None
    stalled: float | None


@frozen
class Timeout:
    """`wall`: the time since start; `cpu`: the CPU time of the whole tree.  `limit` in seconds."""

    at: float
    kind: Literal["wall", "cpu"]
    limit: float


@frozen
class Populated:
    """The job's cgroup got its first process (`True`) or lost its last (`False`)."""

    at: float
    populated: bool


@frozen
class CgroupGone:
    """Somebody removed the job's cgroup.  Never an OOM."""

    at: float
    path: str


@frozen
class Exited:
    """The job's init has ended and with it, by the kernel's promise, every process of the job.

    `code` or `signal` are the payload's; both None when no exit record could be read.
    """

    at: float
    code: int | None
    signal: int | None


@frozen
class Tick:
    """Time passed; only for policies that ask for it (`on_tick`)."""

    at: float


Event = (
    Started
    | MemoryLimit
    | OomKill
    | PidsLimit
    | DiskLimit
    | Pressure
    | Timeout
    | Populated
    | CgroupGone
    | Exited
    | Tick
)

HOOK_OF: dict[type, str] = {
    Started: "on_start",
    MemoryLimit: "on_memory_limit",
    OomKill: "on_oom_kill",
    PidsLimit: "on_pids_limit",
    DiskLimit: "on_disk_limit",
    Pressure: "on_pressure",
    Timeout: "on_timeout",
    Exited: "on_exit",
    Tick: "on_tick",
}
