"""Which files show a job its own share of the machine (`proc = "limits"`), and over what they lie.

The supervisor writes them (`supervise.mirror`; what is in them: `mirror_text`), into a directory of
the run's own; the job's init lays each over the kernel's, read-only.  The time since the start is
not among them: with a time namespace the kernel itself counts from there, for /proc/uptime and for
the ages of processes alike.

May import: `errors`, `model`, `linux`.
"""

from __future__ import annotations

import math
import os
import time

from supervisor.model.job import JobSpec

TARGETS = {
    "meminfo": "/proc/meminfo",
    "swaps": "/proc/swaps",
    "vmstat": "/proc/vmstat",
    "stat": "/proc/stat",
    "loadavg": "/proc/loadavg",
    "diskstats": "/proc/diskstats",
    "cpuinfo": "/proc/cpuinfo",
    "online": "/sys/devices/system/cpu/online",
}
"""What each of the files is laid over."""

THREADS = "OMP_NUM_THREADS"
"""What nproc(1) asks before it counts the CPUs of sched_getaffinity(2); OpenMP's own."""


def laid(directory: str) -> list[tuple[str, str]]:
    """(file, target) of each that this kernel has something to lay it over."""
    return [
        (f"{directory}/{name}", target)
        for name, target in TARGETS.items()
        if os.path.exists(target)
    ]


def cpus(quota: float | None, cpuset: str | None) -> tuple[int, ...]:
    """The numbers of the CPUs that a job is shown: no more than its quota is worth, rounded up.

    The kernel runs it on any of those it may use, and nobody can say on which: it is shown the
    first ones.
    """
    allowed = sorted(os.sched_getaffinity(0) if cpuset is None else numbers(cpuset))
    many = len(allowed) if quota is None else max(1, math.ceil(quota))
    return tuple(allowed[:many])


def numbers(text: str) -> set[int]:
    """Those of the kernel's list format: "0-2,4"."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        found.update(range(int(first), int(last if dash else first) + 1))
    return found


def environment(spec: JobSpec) -> dict[str, str]:
    """For programs that ask for CPUs by affinity, which a quota does not change."""
    if spec.proc != "limits" or spec.limits.cpus is None:
        return {}
    return {THREADS: str(len(cpus(spec.limits.cpus, spec.limits.cpuset)))}


def clocks(spec: JobSpec, *, time_namespaces: bool) -> tuple[int, int] | None:
    """Nanoseconds that are added to its CLOCK_MONOTONIC and CLOCK_BOOTTIME; None: nothing is.

    With its share before it a job's time since boot begins now; `time_offset` comes first.
    """
    if spec.time_offset is not None:
        offset = round(spec.time_offset * 1e9)
        return offset, offset
    if spec.proc == "limits" and time_namespaces:
        return 0, -time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return None


def booted(spec: JobSpec, *, time_namespaces: bool) -> int:
    """When a job that starts now was booted by its own clocks, in seconds since the epoch."""
    shift = clocks(spec, time_namespaces=time_namespaces)
    up = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + (shift[1] if shift else 0)
    return (time.time_ns() - up) // 10**9
