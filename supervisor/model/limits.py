"""What a job may use.  `None` means no limit of its own; sizes are bytes."""

from __future__ import annotations

from attrs import frozen


@frozen
class IoLimit:
    """A throttle on the block device that holds `path` (bytes and operations a second)."""

    path: str
    read_bps: int | None = None
    write_bps: int | None = None
    read_iops: int | None = None
    write_iops: int | None = None


@frozen
class Limits:
    """The limits of one job, in the units of the configuration.

    memory      bytes of RAM              memory.limit_in_bytes | memory.max
    memory_high bytes; slowed down above  v2 only: memory.high
    memory_low  bytes; left alone below   v2 only: memory.low
    swap        bytes of swap beside it   memory.memsw.limit_in_bytes - memory | memory.swap.max
    swappiness  0 to 100, v1 only         memory.swappiness
    pids        tasks, threads included   pids.max
    cpus        CPUs' worth of time       cpu.cfs_quota_us / cpu.cfs_period_us | cpu.max
    cpu_weight  1 to 10000, 100 is even   cpu.shares | cpu.weight
    cpu_idle    only what is left over    cpu.idle
    cpuset      a list as "0-2,4"         cpuset.cpus
    io          per device                blkio.throttle.* | io.max
    open_files  per process               RLIMIT_NOFILE (no cgroup)
    output      bytes, stdout and stderr  counted by the supervisor (no cgroup)
    disk        bytes, the writable layer its file system's own size (no cgroup)
    disk_inodes files, directories, links the same
    """

    memory: int | None = None
    swap: int | None = None
    swappiness: int | None = None
    pids: int | None = None
    cpus: float | None = None
    cpu_weight: int | None = None
    cpuset: str | None = None
    io: tuple[IoLimit, ...] = ()
    open_files: int | None = None
    memory_high: int | None = None
    memory_low: int | None = None
    cpu_idle: bool = False
    output: int | None = None
    disk: int | None = None
    disk_inodes: int | None = None


def conflicts(limits: Limits) -> tuple[tuple[str, str], ...]:
    """What cannot stand together: the limit that is to blame, and why."""
    memory, high, low = limits.memory, limits.memory_high, limits.memory_low
    found = []
    if limits.swap is not None and memory is None:
        found.append(("swap", "a swap limit needs limits.memory beside it"))
    if memory is not None and (high or 0) >= memory:
        found.append(("memory_high", "is not below limits.memory: it would never be reached"))
    for name, upper in (("memory", memory), ("memory_high", high)):
        if upper is not None and (low or 0) > upper:
            found.append(("memory_low", f"is above limits.{name}: the job never has as much"))
    if limits.cpu_idle and limits.cpu_weight is not None:
        found.append(("cpu_idle", "a job that has only the idle CPU time has no limits.cpu_weight"))
    if limits.disk_inodes is not None and limits.disk is None:
        found.append(("disk_inodes", "needs limits.disk beside it"))
    return tuple(found)
