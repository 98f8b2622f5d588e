"""A run's numbers for whoever watches: as little read as will do, from files that are kept open.

For this package only.  Three files are read at every look: CPU time, memory in use, tasks.  What
else there is costs five times as much for a thousand runs, and is read again only where it can have
changed:

- `Slow`: while the run has used no CPU time and its memory and tasks are the same.  A limit strikes
  only who runs; what is reclaimed from outside shows in the memory in use.
- OOM kills, I/O and pressure: while what counts them for all runs together has not changed (a
  `Gate`).

The kernel writes some of this down late: memory.stat every two seconds, the averages of pressure
too.  So a file is left alone only when it was read SETTLED seconds after the last change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Protocol

from supervisor.cgroup.kept import File, Gate
from supervisor.cgroup.sample import IoCount, Sample, Slow, Stall
from supervisor.errors import KernelError
from supervisor.model.job import Resource

SETTLED = 5.0
"""Seconds: more than two periods of psi_avgs_work and of flush_memcg_stats_dwork (2 s each)."""

Open = Callable[[str], File]
"""Makes a `File` of a path."""


class Part(Protocol):
    """One controller's share of `Slow`."""

    def add(self, slow: Slow) -> None: ...


class MemoryFiles(Part, Protocol):
    @property
    def usage(self) -> File:
        """The file that holds the bytes in use."""

    def kills(self) -> int | None:
        """Processes killed by an OOM killer."""


class IoFiles(Protocol):
    def read(self) -> IoCount: ...


class Table:
    """Some values of a file of "key value" lines, whose keys stand where they stood before.

    That is so for one kernel; a file that is laid out otherwise is looked through anew.
    """

    __slots__ = ("_at", "_file", "_key", "_keys", "_most", "_pick", "_places")

    def __init__(self, file: File, *keys: bytes) -> None:
        self._file = file
        self._keys = keys
        self._at, self._key = 0, b""
        self._most = 0
        self._places: list[int | None] = []
        self._pick: Callable[[list[bytes]], Iterable[bytes]] | None = None

    def read(self) -> Sequence[int | None]:
        """The values in the order of the keys; None where there is no such key."""
        data = self._file.read()
        words = data.rsplit(None, self._most)
        if len(words) <= self._at or words[self._at] != self._key:
            words = self._learn(data)
        if self._pick is not None:
            return [int(word) for word in self._pick(words)]
        return [None if place is None else int(words[place]) for place in self._places]

    def _learn(self, data: bytes) -> list[bytes]:
        """Where the values are, counted in words from behind the first that is of use on."""
        words = data.split()
        at = {key: 2 * place + 1 for place, key in enumerate(words[::2])}
        known = [at[key] for key in self._keys if key in at]
        first = min(known, default=1) - 1
        # the words from the first key on, and all before it in one
        self._most, shift = (len(words) - first, first - 1) if first else (-1, 0)
        self._places = [at[key] - shift if key in at else None for key in self._keys]
        self._at = max(known, default=1) - shift - 1
        self._key = words[self._at + shift] if words else b""
        whole = len(known) == len(self._keys) > 1
        self._pick = itemgetter(*(place - shift for place in known)) if whole else None
        return data.rsplit(None, self._most)


class AccountFiles(Protocol):
    def read(self) -> tuple[int | None, int | None, int | None]:
        """Microseconds of CPU: all, user, system."""


class Behind:
    """When something behind a gate was read; as long as that holds it is not read again.

    `late`: how many seconds after a change the kernel may still write down more of it.
    """

    __slots__ = ("_gate", "_late", "_read")

    def __init__(self, gate: Gate | None, late: float) -> None:
        self._gate = gate
        self._late = late
        self._read = -late

    def holds(self, at: float) -> bool:
        """Whether what was read holds at `at`; if not, it is taken to be read now."""
        gate = self._gate
        if gate is not None:
            if at >= gate.due:
                gate.look(at)
            if self._read - gate.changed >= self._late:
                return True
        self._read = at
        return False

    def forget(self) -> None:
        """Have it read the next time, whatever the gate says."""
        self._read = -self._late


class Pressure:
    """The files of pressure of one run that this host has, each behind the instance's."""

    def __init__(
        self, directory: str, gates: dict[Resource, Gate], often: Open, rarely: Open
    ) -> None:
        # somebody always waits for a CPU
        self._all = [
            (resource, Behind(gate, SETTLED), (often if resource == "cpu" else rarely)(path))
            for resource, gate in gates.items()
            for path in (f"{directory}/{resource}.pressure",)
        ]

    def read(self, at: float, before: dict[Resource, Stall]) -> dict[Resource, Stall]:
        """What there is now; `before` itself where nothing has changed."""
        found = before
        for resource, behind, file in self._all:
            if behind.holds(at):
                continue
            now = stall(file.read())
            if now.some_avg10 or now.full_avg10:
                behind.forget()  # an average goes down by itself
            if found is before:
                found = before.copy()
            found[resource] = now
        return found


class Io:
    """Bytes and operations, behind the instance's."""

    def __init__(self, files: IoFiles, gate: Gate | None) -> None:
        self._files = files
        self._behind = Behind(gate, 0.0)

    def read(self, at: float, before: IoCount | None) -> IoCount:
        if self._behind.holds(at) and before is not None:
            return before
        return self._files.read()


class Kills:
    """OOM kills, behind the host's count of them."""

    LATE = 1.0
    """The host's is written before the cgroup's (mm/oom_kill.c, __oom_kill_process)."""

    def __init__(self, read: Callable[[], int | None], gate: Gate | None) -> None:
        self._read = read
        self._behind = Behind(gate, self.LATE)
        self._known: int | None = None

    def add(self, slow: Slow, at: float) -> None:
        if not self._behind.holds(at):
            self._known = self._read()
        slow.oom_kills = self._known


class Pids:
    """The pids controller's: the same in v1 and v2."""

    def __init__(self, directory: str, often: Open) -> None:
        self.usage = often(f"{directory}/pids.current")
        self._events = Table(often(f"{directory}/pids.events"), b"max")

    def add(self, slow: Slow) -> None:
        (slow.refused,) = self._events.read()


class RunMeter:
    """See `sample.Meter`.  Any of the parts may lack: then there is None for its numbers."""

    def __init__(
        self,
        account: AccountFiles | None,
        memory: MemoryFiles | None,
        pids: Pids | None,
        more: Iterable[Part],
        kills: Kills | None,
        io: Io | None,
        pressure: Pressure | None,
        files: list[File],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._account = account
        self._memory = memory
        self._pids = pids
        self._more = [part for part in (memory, pids, *more) if part is not None]
        self._kills = kills
        self._io = io
        self._pressure = pressure
        self._files = files
        self._clock = clock
        self._last: Sample | None = None
        self._changed = self._slow_at = 0.0

    def read(self) -> Sample:
        try:
            self._last = self._look(self._last)
        except KernelError:
            self.close()  # whoever removed it is not to find us in its files
            raise
        return self._last

    def _look(self, before: Sample | None) -> Sample:
        cpu, user, system = self._account.read() if self._account else (None, None, None)
        at = self._clock()
        memory = int(self._memory.usage.read()) if self._memory else None
        pids = int(self._pids.usage.read()) if self._pids else None
        if before is None:
            slow, self._changed = self._read_slow(at), at
            io = self._io.read(at, None) if self._io else None
            pressure = self._pressure.read(at, {}) if self._pressure else {}
            return Sample(at, cpu, user, system, memory, pids, slow, io, pressure)
        if cpu != before.cpu or memory != before.memory or pids != before.pids or cpu is None:
            self._changed = at
        slow, io, pressure = before.slow, before.io, before.pressure
        if self._slow_at - self._changed < SETTLED:
            slow = self._read_slow(at)
        if self._io:
            io = self._io.read(at, io)
        if self._pressure:
            pressure = self._pressure.read(at, pressure)
        return Sample(at, cpu, user, system, memory, pids, slow, io, pressure)

    def _read_slow(self, at: float) -> Slow:
        slow = Slow()
        for part in self._more:
            part.add(slow)
        if self._kills:
            self._kills.add(slow, at)
        self._slow_at = at
        return slow

    def close(self) -> None:
        for file in self._files:
            file.close()


def stall(data: bytes) -> Stall:
    """ "some avg10=0.12 avg60=... avg300=... total=MICROSECONDS", and "full ..." below it."""
    words = data.split()
    some, total = float(words[1][6:]), int(words[4][6:])
    if len(words) < 10:
        return Stall(some, total, None, None)
    return Stall(some, total, float(words[6][6:]), int(words[9][6:]))


def totals(data: bytes) -> object:
    """Of a pressure file, what only changes when somebody stands still."""
    return data.split()[4::5]
