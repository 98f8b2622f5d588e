"""What is in the files of `mirror`: the kernel's formats (proc(5)), with the share of one job.

Pure.  `Book` keeps what must never go down, and what is an average: it is told of a reading now and
then, however far apart.  What a control group does not count is not made up: such lines are left
out, or 0 where a format has a place for them.

May import: `errors`, `model`, `cgroup.api`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

from attrs import frozen

from supervisor.cgroup.api import Share

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
SECTOR = 512
MINUTES = (1, 5, 15)
"""Over which the three averages of loadavg go."""

SHORTEST = 0.001
"""Seconds that an average needs."""

_MEMINFO = (
    ("Active", ("active_anon", "active_file")),
    ("Inactive", ("inactive_anon", "inactive_file")),
    ("Active(anon)", ("active_anon",)),
    ("Inactive(anon)", ("inactive_anon",)),
    ("Active(file)", ("active_file",)),
    ("Inactive(file)", ("inactive_file",)),
    ("Unevictable", ("unevictable",)),
    ("SwapTotal", ()),
    ("SwapFree", ()),
    ("Dirty", ("file_dirty",)),
    ("Writeback", ("file_writeback",)),
    ("AnonPages", ("anon",)),
    ("Mapped", ("file_mapped",)),
    ("Shmem", ("shmem",)),
    ("KReclaimable", ("slab_reclaimable",)),
    ("Slab", ("slab",)),
    ("SReclaimable", ("slab_reclaimable",)),
    ("SUnreclaim", ("slab_unreclaimable",)),
    ("KernelStack", ("kernel_stack",)),
    ("PageTables", ("pagetables",)),
)
"""Lines of /proc/meminfo after the first five, and what of memory.stat makes each."""

_VMSTAT = (
    ("nr_inactive_anon", "inactive_anon"),
    ("nr_active_anon", "active_anon"),
    ("nr_inactive_file", "inactive_file"),
    ("nr_active_file", "active_file"),
    ("nr_unevictable", "unevictable"),
    ("nr_anon_pages", "anon"),
    ("nr_mapped", "file_mapped"),
    ("nr_file_pages", "file"),
    ("nr_dirty", "file_dirty"),
    ("nr_writeback", "file_writeback"),
    ("nr_shmem", "shmem"),
)


@frozen
class Machine:
    """What is the host's: files as text, and what of them is needed here.

    cpuinfo   all of it; `blocks`: CPU's number → its part, where it has parts
    devices   "MAJOR:MINOR" → the device's name
    """

    meminfo: str
    swaps: str
    cpuinfo: str
    blocks: Mapping[int, str]
    devices: Mapping[str, str]

    def bytes_of(self, line: str) -> int:
        """A line of its /proc/meminfo, 0 where there is none."""
        found = (one.split() for one in self.meminfo.splitlines() if one.startswith(f"{line}:"))
        return next((int(words[1]) * 1024 for words in found), 0)


@frozen
class Memory:
    """Bytes that a job has and may have."""

    total: int
    used: int
    swap_total: int
    swap_used: int

    @classmethod
    def of(cls, share: Share, machine: Machine) -> Memory:
        total, swap = machine.bytes_of("MemTotal"), machine.bytes_of("SwapTotal")
        if share.memory_limit is not None:
            total = min(total, share.memory_limit)
        if share.swap_limit is not None:
            swap = min(swap, share.swap_limit)
        return cls(total, min(share.memory or 0, total), swap, min(share.swap, swap))


class Book:
    """CPU time of one job by the CPUs it is shown, and its load, from its start at `now` on."""

    def __init__(self, now: float) -> None:
        self._at = self._averaged = now
        self._granted = 0.0
        self._busy = 0.0
        self.total = [0.0, 0.0, 0.0]
        """Seconds: user, system, idle."""
        self.each: dict[int, list[float]] = {}
        """The same by CPU."""
        self.load = [0.0, 0.0, 0.0]

    def update(self, now: float, share: Share, cpus: Sequence[int]) -> None:
        """Enter a reading.  Idle is what is left of its quota, not of so many whole CPUs."""
        passed = max(0.0, now - self._at)
        self._at = now
        worth = min(len(cpus), share.cpus if share.cpus is not None else len(cpus))
        self._granted += worth * passed
        used = share.cpu_user + share.cpu_system
        idle = max(self.total[2], self._granted - used)
        new = (share.cpu_user, share.cpu_system, idle)
        self._divide([max(0.0, one - old) for one, old in zip(new, self.total, strict=True)], cpus)
        self._average(now, used + share.throttled, share.tasks)

    def _divide(self, more: list[float], cpus: Sequence[int]) -> None:
        """Nobody knows on which CPU it was: each gets its part."""
        for kind, seconds in enumerate(more):
            self.total[kind] += seconds
            for cpu in cpus:
                self.each.setdefault(cpu, [0.0, 0.0, 0.0])[kind] += seconds / len(cpus)

    def _average(self, now: float, busy: float, tasks: int | None) -> None:
        """Decayed as the kernel does it (kernel/sched/loadavg.c), over readings far apart."""
        passed = now - self._averaged
        if passed < SHORTEST:
            return
        running = max(0.0, busy - self._busy) / passed
        self._averaged, self._busy = now, busy
        if tasks is not None:
            running = min(running, tasks)
        for number, minutes in enumerate(MINUTES):
            kept = math.exp(-passed / (60 * minutes))
            self.load[number] = self.load[number] * kept + running * (1 - kept)


def texts(
    share: Share, book: Book, machine: Machine, cpus: Sequence[int], booted: int
) -> dict[str, str]:
    """Each of the files, by its name in `mirror.TARGETS`; `booted` in seconds since the epoch."""
    memory = Memory.of(share, machine)
    limit = share.memory_limit
    bounded = limit is not None and limit < machine.bytes_of("MemTotal")
    return {
        "meminfo": meminfo(share, memory) if bounded else machine.meminfo,
        "swaps": swaps(memory) if bounded else machine.swaps,
        "vmstat": vmstat(share),
        "stat": stat(book, cpus, booted),
        "loadavg": loadavg(book, share),
        "diskstats": diskstats(share, machine),
        "cpuinfo": "".join(machine.blocks.get(cpu, "") for cpu in cpus) or machine.cpuinfo,
        "online": ranges(cpus) + "\n",
    }


def meminfo(share: Share, memory: Memory) -> str:
    """What the kernel can take back at once counts as available: page cache and unused slabs."""
    pages = share.pages
    free = memory.total - memory.used
    spare = sum(pages.get(n, 0) for n in ("active_file", "inactive_file", "slab_reclaimable"))
    found = {
        "MemTotal": memory.total,
        "MemFree": free,
        "MemAvailable": min(memory.total, free + spare),
        "Buffers": 0,
        "Cached": min(pages.get("file", 0), memory.used),
        "SwapCached": 0,
    }
    swap = {"SwapTotal": memory.swap_total, "SwapFree": memory.swap_total - memory.swap_used}
    for line, names in _MEMINFO:
        if line in swap:
            found[line] = swap[line]
        elif all(name in pages for name in names):
            found[line] = sum(pages[name] for name in names)
    return "".join(f"{line + ':':<15} {value // 1024:8} kB\n" for line, value in found.items())


def swaps(memory: Memory) -> str:
    """One area as large as it may use, if it may."""
    head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    if not memory.swap_total:
        return head
    size, used = (f"{value // 1024:<8}" for value in (memory.swap_total, memory.swap_used))
    return f"{head}{'none':<40}{'virtual':<16}{size}\t{used}\t0\n"


def vmstat(share: Share) -> str:
    pages = share.pages
    found = {line: pages[name] // PAGE for line, name in _VMSTAT if name in pages}
    found["pgpgin"] = sum(one.read_bytes for one in share.traffic.values()) // 1024
    found["pgpgout"] = sum(one.write_bytes for one in share.traffic.values()) // 1024
    for name in ("pswpin", "pswpout", "pgfault", "pgmajfault"):
        if name in pages:
            found[name] = pages[name]
    return "".join(f"{line} {value}\n" for line, value in found.items())


def stat(book: Book, cpus: Sequence[int], booted: int) -> str:
    lines = [f"cpu  {_times(book.total)}"]
    lines += [f"cpu{cpu} {_times(book.each.get(cpu, (0.0, 0.0, 0.0)))}" for cpu in cpus]
    lines += ["intr 0", "ctxt 0", f"btime {booted}", "processes 0"]
    lines += ["procs_running 1", "procs_blocked 0", "softirq 0 0 0 0 0 0 0 0 0 0 0"]
    return "\n".join(lines) + "\n"


def _times(seconds: Sequence[float]) -> str:
    """user nice system idle iowait irq softirq steal guest guest_nice."""
    user, system, idle = (int(one * TICKS) for one in seconds)
    return f"{user} 0 {system} {idle} 0 0 0 0 0 0"


def loadavg(book: Book, share: Share) -> str:
    averages = " ".join(f"{one:.2f}" for one in book.load)
    return f"{averages} 1/{max(share.tasks or 1, 1)} 0\n"


def diskstats(share: Share, machine: Machine) -> str:
    """The devices that it has used; times, merges and what is under way are not counted for it."""
    lines = []
    for device, one in share.traffic.items():
        name = machine.devices.get(device)
        if name is not None:
            major, _, minor = device.partition(":")
            read, written = one.read_bytes // SECTOR, one.write_bytes // SECTOR
            done = f"{one.reads} 0 {read} 0 {one.writes} 0 {written} 0 0 0 0"
            lines.append(f"{major:>4} {minor:>7} {name} {done}\n")
    return "".join(lines)


def ranges(numbers: Sequence[int]) -> str:
    """In the kernel's list format; `numbers` in their order."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def blocks(cpuinfo: str) -> dict[int, str]:
    """The blocks of the host's /proc/cpuinfo by the number of their CPU."""
    found = {}
    for block in cpuinfo.split("\n\n"):
        first = next(iter(block.strip().splitlines()), "")
        name, _, value = first.partition(":")
        if name.strip() == "processor" and value.strip().isdigit():
            found[int(value)] = block.strip("\n") + "\n\n"
    return found


def devices(diskstats: str) -> dict[str, str]:
    """ "MAJOR:MINOR" → name, from the host's /proc/diskstats."""
    words = (line.split(maxsplit=3) for line in diskstats.splitlines())
    return {f"{one[0]}:{one[1]}": one[2] for one in words if len(one) > 2}
