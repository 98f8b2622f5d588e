"""How far a job gets past v2's trip wire, and who stops it: `python -m benchmarks.hold`.

Each run is a process in a cgroup of its own that takes memory in one of several ways; it is held at
its limit, raised when that is told, and should then finish.  Told are, for each way and limit, how
often it was held, how often memory.max was in the end what stopped it (an OOM kill), how far past
memory.high it got and how long that took, and how many finished.  Needs root, and a host (or a
guest, see CONTRIBUTING.md) with memory on v2.
"""

from __future__ import annotations

import argparse
import os
import platform
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import trio

from supervisor.cgroup import files
from supervisor.cgroup.api import CgroupManager, JobCgroup
from supervisor.cgroup.detect import detect
from supervisor.model.event import MemoryLimit
from supervisor.model.limits import Limits
from supervisor.model.units import size as parse_size
from supervisor.watch.cgroup import Watcher, open_watcher
from supervisor.watch.kernel_log import KernelLog
from supervisor.watch.subscription import Subscription

MIB = 1 << 20
CHUNK = 1 << 16
"""Bytes after which an allocator notes the time."""
MOST_CHUNKS = 1 << 16

# In the child, which is no part of the project while it runs: only the standard library.
ALLOCATOR = r"""
import mmap, os, struct, sys, time
kind, size, chunk, notes, target, *cgroups = sys.argv[1:]
size, chunk = int(size), int(chunk)
descriptor = os.open(notes, os.O_RDWR)
clock = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
for step in range(0, len(clock), 4096):
    clock[step]  # mapped before the limits count
def note(done):
    struct.pack_into("d", clock, 8 * (done // chunk), time.monotonic())
def steps(size=size):
    m, zeros = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), bytes(chunk)
    for at in range(0, size, chunk):
        note(at)
        m[at:at + chunk] = zeros
    return m
def pages():
    m = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, size, chunk):
        note(at)
        for page in range(at, at + chunk, 4096):
            m[page] = 1
def slow():
    m, zeros = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), bytes(chunk)
    for at in range(0, size, chunk):
        note(at)
        m[at:at + chunk] = zeros
        time.sleep(0.001)
def many():
    note(0)
    children = []
    for _ in range(32):
        child = os.fork()
        if not child:
            m = mmap.mmap(-1, size // 32, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            for at in range(0, size // 32, chunk):
                m[at:at + chunk] = bytes(min(chunk, size // 32 - at))
            time.sleep(0.2)  # all of it at once
            os._exit(0)
        children.append(child)
    for child in children:
        if os.waitpid(child, 0)[1]:
            sys.exit(1)
def populate():
    note(0)
    mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x8000)
def tmpfs():
    note(0)
    f, zeros = os.memfd_create("f"), bytes(chunk)
    for at in range(0, size, chunk * 1024):
        os.writev(f, [zeros] * min(1024, (size - at) // chunk))
def pipes():
    note(0)
    import fcntl
    ends, zeros = [], bytes(1 << 20)
    for at in range(0, size, 1 << 20):
        ends.append(os.pipe())
        fcntl.fcntl(ends[-1][1], 1031, 1 << 20)
        os.write(ends[-1][1], zeros)
def read():
    note(0)
    buffer, f = bytearray(1 << 20), os.open(target, os.O_RDONLY)
    while os.readv(f, [buffer]):
        pass
def write():
    note(0)
    zeros, f, left = bytes(1 << 20), os.open(target, os.O_WRONLY), os.stat(target).st_size
    left = left or os.lseek(f, 0, os.SEEK_END)
    os.lseek(f, 0, os.SEEK_SET)
    while left > 0:
        left -= os.write(f, zeros[:left])
work = globals()[kind]
for cgroup in cgroups:
    with open(cgroup, "w") as f:
        f.write("0")
work()
os._exit(0)
"""

TAKES = ("steps", "pages", "slow", "many", "populate", "tmpfs", "pipes")
"""Ways to take memory that nothing but a raise can give room to."""
CACHES = ("read", "write")
"""Ways through the page cache, which reclaim frees: to hold such a job is a mistake."""


@dataclass
class Outcome:
    """One run.  `past` is bytes beyond the wire when the job stood still, `took` seconds."""

    held: int = 0
    killed: int = 0
    finished: bool = False
    past: list[int] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    wall: float = 0.0
    highs: int = 0


class Bench:
    """The parts a run needs, made once."""

    def __init__(
        self, manager: CgroupManager, watcher: Watcher, options: argparse.Namespace
    ) -> None:
        self.manager = manager
        self.watcher = watcher
        self.options = options
        self._number = 0
        self._notes = Path(options.scratch) / f"hold.{os.getpid()}"

    async def run(self, kind: str, limit: int, swap: int) -> Outcome:
        """One process of a kind under a limit; it asks for twice the limit."""
        self._number += 1
        self._notes.write_bytes(bytes(8 * MOST_CHUNKS))
        cgroup = self.manager.create(f"hold-{self._number}")
        try:
            limits = Limits(memory=limit, swap=swap)
            cgroup.apply(limits)
            cgroup.hold_at_limit(True)
            return await self._watched(cgroup, kind, limits)
        finally:
            cgroup.remove()
            self._notes.unlink()

    async def _watched(self, cgroup: JobCgroup, kind: str, limits: Limits) -> Outcome:
        outcome = Outcome()
        subscription = self.watcher.subscribe(cgroup, limits, held=True)
        began = time.monotonic()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._answer, subscription, cgroup, limits, outcome)
            try:
                with trio.move_on_after(120):
                    done = await trio.run_process(self._argv(cgroup, kind, limits), check=False)
                    outcome.finished = done.returncode == 0
            finally:
                subscription.close()
        outcome.wall = time.monotonic() - began
        counters = cgroup.counters()
        outcome.killed, outcome.highs = counters.oom_kills, counters.high
        return outcome

    def _argv(self, cgroup: JobCgroup, kind: str, limits: Limits) -> list[str]:
        entry = cgroup.entry
        where = [f"{entry.payload_dir}/cgroup.procs"] if entry.payload_dir else []
        size = 2 * (limits.memory or 0) + (limits.swap or 0)
        return [sys.executable, "-I", "-S", "-c", ALLOCATOR, kind, str(size), str(CHUNK),
                str(self._notes), self.options.file, *where, *entry.payload_files]  # fmt: skip

    async def _answer(
        self, subscription: Subscription, cgroup: JobCgroup, limits: Limits, outcome: Outcome
    ) -> None:
        async for event in subscription.events:
            if not isinstance(event, MemoryLimit) or not event.held:
                continue
            now = time.monotonic()
            outcome.held += 1
            await trio.sleep(self.options.answer)
            self._measure(cgroup, now, outcome)
            limits = Limits(memory=4 * (limits.memory or 0), swap=limits.swap)
            cgroup.change("memory", float(limits.memory or 0))
            subscription.update(limits, held=True)

    def _measure(self, cgroup: JobCgroup, now: float, outcome: Outcome) -> None:
        if outcome.held > 1:
            return
        wire, used = files.number(f"{cgroup.path}/memory.high"), cgroup.usage().memory or 0
        outcome.past.append(used - wire)
        notes = struct.unpack(f"{MOST_CHUNKS}d", self._notes.read_bytes())
        last = max((n for n, at in enumerate(notes) if at), default=0)
        crossed = notes[min(last, max(0, last - (used - wire) // CHUNK))]
        if last > 1:
            outcome.took.append(now - crossed)


def line(name: str, outcomes: Sequence[Outcome]) -> str:
    """A row of the table."""
    past = [p / MIB for o in outcomes for p in o.past]
    took = [t * 1e3 for o in outcomes for t in o.took]
    return (
        f"{name:24}{len(outcomes):6}{sum(o.held > 0 for o in outcomes):6}"
        f"{sum(o.held for o in outcomes):7}"
        f"{sum(o.killed > 0 for o in outcomes):7}{sum(o.finished for o in outcomes):9}"
        f"{_spread(past):>22}{_spread(took):>22}{median(o.wall for o in outcomes):8.2f}"
        f"{max(o.wall for o in outcomes):8.2f}{median(o.highs for o in outcomes):8.0f}"
    )


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):8.2f} {max(values):8.2f}" if values else "-"


HEAD = (
    f"{'':24}{'runs':>6}{'held':>6}{'raises':>7}{'killed':>7}{'finished':>9}"
    f"{'past wire MiB, max':>22}{'ms to hold, max':>22}{'wall s':>8}{'max':>8}{'highs':>8}"
)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hold", description=__doc__)
    add = parser.add_argument
    add("--runs", type=int, default=100)
    add("--kinds", nargs="+", default=[*TAKES, *CACHES], choices=[*TAKES, *CACHES])
    add("--limits", nargs="+", type=parse_size, default=[16 * MIB, 64 * MIB, 512 * MIB])
    add("--swap", nargs="+", type=parse_size, default=[0])
    add("--answer", type=float, default=0.0, help="seconds that the policy takes")
    add("--file", default="/dev/vda", help="what is read and written through the page cache")
    add("--scratch", default=os.environ.get("TMPDIR", "/tmp"))
    return parser.parse_args(argv)


async def measure(options: argparse.Namespace) -> None:
    manager = detect(f"bench{os.getpid()}")
    try:
        log = KernelLog.open()
        async with trio.open_nursery() as nursery, open_watcher(nursery, log) as watcher:
            bench = Bench(manager, watcher, options)
            for swap in options.swap:
                for limit in options.limits:
                    for kind in options.kinds:
                        outcomes = [await bench.run(kind, limit, swap) for _ in range(options.runs)]
                        name = f"{kind} {limit // MIB}M" + (f"+{swap // MIB}M" if swap else "")
                        print(line(name, outcomes), flush=True)
    finally:
        manager.close()


def main() -> None:
    options = parse()
    print(f"Linux {platform.release()}, {os.cpu_count()} CPUs\n{HEAD}", flush=True)
    trio.run(measure, options)


if __name__ == "__main__":
    main()
