"""What a run's payload may have and has of the machine, read for the files that show it its share.

For this package only: `job` puts a `api.Share` together from these.  Each kind of file has a reader
for v1 and one for v2, which speak v2's names.  A limit of a cgroup further up counts too, as far as
it can be seen from here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TypeVar

from attrs import field, frozen

from supervisor.cgroup import files
from supervisor.cgroup.api import Traffic

Number = TypeVar("Number", int, float)

_NAMES_OF_V1 = {
    "anon": "total_rss",
    "file": "total_cache",
    "shmem": "total_shmem",
    "file_mapped": "total_mapped_file",
    "file_dirty": "total_dirty",
    "file_writeback": "total_writeback",
    "inactive_anon": "total_inactive_anon",
    "active_anon": "total_active_anon",
    "inactive_file": "total_inactive_file",
    "active_file": "total_active_file",
    "unevictable": "total_unevictable",
    "pgfault": "total_pgfault",
    "pgmajfault": "total_pgmajfault",
}
"""v2's names in memory.stat, and what stands for them in v1's."""


@frozen
class Place:
    """A payload's directory in one hierarchy, and the cgroups above it, the nearest first."""

    directory: str
    above: tuple[str, ...]
    unified: bool


@frozen
class Memory:
    """Bytes; `limit` and `swap_limit` None: there is none.  `pages` is memory.stat."""

    limit: int | None = None
    swap_limit: int | None = None
    used: int | None = None
    swap: int = 0
    pages: Mapping[str, int] = field(factory=dict)


def place(directory: str, mount: str, *, unified: bool) -> Place:
    """With all that lies between `directory` and the mount of its hierarchy, that included."""
    above, at = [], directory
    while at != mount and len(at) > 1:
        at = os.path.dirname(at)
        above.append(at)
    return Place(directory, tuple(above), unified)


def memory(at: Place) -> Memory:
    """Raises KernelError."""
    return _memory_v2(at) if at.unified else _memory_v1(at)


def _memory_v1(at: Place) -> Memory:
    """memory.stat tells the lowest limit on the way up, and of all cgroups below, by itself."""
    stat = files.table(f"{at.directory}/memory.stat")
    limit = _bounded(stat.get("hierarchical_memory_limit"))
    both = _bounded(stat.get("hierarchical_memsw_limit"))
    return Memory(
        limit=limit,
        swap_limit=both - limit if both is not None and limit is not None else None,
        used=files.number(f"{at.directory}/memory.usage_in_bytes"),
        swap=stat.get("total_swap", 0),
        pages={name: stat[old] for name, old in _NAMES_OF_V1.items() if old in stat},
    )


def _memory_v2(at: Place) -> Memory:
    swap = f"{at.directory}/memory.swap.current"
    return Memory(
        limit=_lowest(at, "memory.max", _number),
        swap_limit=_lowest(at, "memory.swap.max", _number),
        used=files.number(f"{at.directory}/memory.current"),
        swap=files.number(swap) if files.exists(swap) else 0,
        pages=files.table(f"{at.directory}/memory.stat"),
    )


def cpus(at: Place) -> float | None:
    """CPUs' worth of time that it may have, None: no quota.  Raises KernelError."""
    if at.unified:
        return _lowest(at, "cpu.max", _quota_v2)
    return _lowest(at, "cpu.cfs_quota_us", _quota_v1)


def traffic(at: Place) -> dict[str, Traffic]:
    """ "MAJOR:MINOR" → what went through the device.  Raises KernelError."""
    return _traffic_v2(at) if at.unified else _traffic_v1(at)


def _traffic_v2(at: Place) -> dict[str, Traffic]:
    found = {}
    for line in filter(None, files.read(f"{at.directory}/io.stat").split("\n")):
        device, *pairs = line.split(" ")
        told = dict(pair.partition("=")[::2] for pair in pairs)
        values = (int(told.get(key, "0")) for key in ("rios", "rbytes", "wios", "wbytes"))
        found[device] = Traffic(*values)
    return found


def _traffic_v1(at: Place) -> dict[str, Traffic]:
    counts = _by_direction(at, "blkio.throttle.io_serviced")
    sizes = _by_direction(at, "blkio.throttle.io_service_bytes")
    found = {}
    for device in dict.fromkeys(device for device, _ in (*counts, *sizes)):
        read, write = (device, "Read"), (device, "Write")
        found[device] = Traffic(
            counts.get(read, 0), sizes.get(read, 0), counts.get(write, 0), sizes.get(write, 0)
        )
    return found


def _by_direction(at: Place, name: str) -> dict[tuple[str, str], int]:
    """The "MAJOR:MINOR Read N" lines of a file of v1's."""
    path = f"{at.directory}/{name}"
    whole = f"{path}_recursive"
    lines = files.read(whole if files.exists(whole) else path).split("\n")
    words = (line.split(" ") for line in lines)
    return {(one[0], one[1]): int(one[2]) for one in words if len(one) == 3}


def _lowest(at: Place, name: str, parse: Callable[[str], Number | None]) -> Number | None:
    """Of the files of that name from the payload's up; a topmost cgroup has none."""
    paths = [f"{at.directory}/{name}"]
    paths += [path for one in at.above if files.exists(path := f"{one}/{name}")]
    values = [parse(path) for path in paths]
    return min((value for value in values if value is not None), default=None)


def _number(path: str) -> int | None:
    return _bounded(files.number(path))


def _bounded(value: int | None) -> int | None:
    return None if value is None or value >= files.UNLIMITED else value


def _quota_v2(path: str) -> float | None:
    quota, _, period = files.read(path).partition(" ")
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(path: str) -> float | None:
    quota = int(files.read(path))
    if quota < 0:
        return None
    return quota / files.number(f"{os.path.dirname(path)}/cpu.cfs_period_us")
