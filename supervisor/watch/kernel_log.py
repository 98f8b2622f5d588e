"""What the kernel's log said lately of killed processes and refused forks.

May import: `errors`, `model`, `linux`.  The kernel prints before the victim dies, so that after
an exit everything about it can be read at once, without waiting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

from attrs import frozen

from supervisor.errors import KernelError
from supervisor.linux import proc
from supervisor.linux.kmsg import (
    PATH,
    CallFiltered,
    ForkRejected,
    Kmsg,
    OomKilled,
    OomVictim,
    Record,
    open_kmsg,
    parse,
)
from supervisor.model.record import Evidence

REMEMBERED = 1024
"""Kills, and refused forks, that are kept; the oldest are forgotten."""


@frozen
class Kill:
    """One kill as far as it was told: the choice may be held back, the end still to come."""

    victim: OomVictim | None
    killed: OomKilled | None

    def describe(self) -> str:
        """The process, what it held, and whose limit it died for, in words."""
        parts = [self._process()]
        if self.killed:
            held = self.killed
            parts.append(
                f"anon-rss {held.anon_rss} kB, file-rss {held.file_rss} kB, "
                f"shmem-rss {held.shmem_rss} kB"
            )
        if self.victim:
            limiting = self.victim.limiting
            parts.append(f"for the limit of {limiting}" if limiting else "for the whole host")
        return ", ".join(parts)

    def _process(self) -> str:
        # repr: the job chose the name, and may have put control characters into it
        if self.killed:
            return f"killed process {self.killed.pid} ({self.killed.name!r})"
        assert self.victim is not None
        return f"chose process {self.victim.pid} ({self.victim.task!r})"


@frozen
class Mark:
    """A place in the log: how many kills, and how many gaps, were before it."""

    kills: int
    gaps: int


class KernelLog:
    """Reads `kmsg` and remembers.  `why`: why it cannot be read, or no longer; empty if it can.

    `listener` is called with each record that is about limits, whoever made it be read.
    """

    def __init__(self, kmsg: Kmsg | None, why: str = "") -> None:
        self._kmsg = kmsg
        self.why = why
        self.listener: Callable[[Record], None] | None = None
        self._kills: deque[Kill] = deque(maxlen=REMEMBERED)
        self._forks: deque[str] = deque(maxlen=REMEMBERED)
        self._pids: deque[int] = deque(maxlen=REMEMBERED)
        self._calls: deque[tuple[CallFiltered, tuple[str, ...]]] = deque(maxlen=REMEMBERED)
        self._killed = 0
        self.calls = 0
        """How many filtered calls have been read."""

    @classmethod
    def open(cls, path: str = PATH) -> KernelLog:
        """From now on.  Never raises: without the log everything else goes on."""
        try:
            return cls(open_kmsg(path))
        except KernelError as error:
            return cls(None, str(error))

    def fileno(self) -> int:
        """The descriptor to wait on; -1 where there is none."""
        return self._kmsg.fileno() if self._kmsg and not self.why else -1

    def drain(self) -> None:
        """Read what is there, and tell the listener."""
        if self._kmsg is None or self.why:
            return
        try:
            for raw in self._kmsg.read():
                if record := parse(raw):
                    self._remember(record)
                    if self.listener:
                        self.listener(record)
        except KernelError as error:
            # left open: a task may be waiting for the descriptor
            self.why = str(error)

    def _remember(self, record: Record) -> None:
        if isinstance(record, ForkRejected):
            self._forks.append(record.cgroup)
        elif isinstance(record, OomVictim):
            self._kills.append(Kill(record, None))
        elif isinstance(record, CallFiltered):
            self.calls += 1
            self._calls.append((record, _cgroups_of(record.pid)))
        else:
            self._pids.append(record.pid)
            self._killed += 1
            self._remember_kill(record)

    def _remember_kill(self, killed: OomKilled) -> None:
        """Under the kernel's oom_lock the choice is the line before the kill it explains.

        With memory.oom.group the chosen one is killed, and told of, once more among the group.
        """
        last = self._kills[-1] if self._kills else None
        if last and last.killed is None and last.victim and last.victim.pid == killed.pid:
            self._kills[-1] = Kill(last.victim, killed)
        elif not self._told_already(killed.pid):
            self._kills.append(Kill(None, killed))

    def _told_already(self, pid: int) -> bool:
        """Whether this is said twice of one process, since the last choice was made."""
        for kill in reversed(self._kills):
            if kill.killed and kill.killed.pid == pid:
                return True
            if kill.victim:
                return False
        return False

    def evidence_for(self, *paths: str, pids: Collection[int] = ()) -> tuple[Evidence, ...]:
        """What the log says of the cgroups `paths` (as the kernel names them) and those below.

        `pids` finds kills whose cgroup the kernel did not name, being rate-limited.
        """
        self.drain()
        found = [kill.describe() for kill in self._kills if self._about(kill, paths, pids)]
        found += [f"refused a fork in {cgroup}" for cgroup in self._forks if _in(cgroup, paths)]
        if found and self._kmsg and self._kmsg.overwritten:
            found.append("some records were overwritten before they were read")
        return tuple(Evidence(PATH, what) for what in found)

    def filtered(self, *paths: str, pid: int, since: int) -> tuple[tuple[CallFiltered, bool], ...]:
        """The calls that a filter logged of processes in `paths`, or of process `pid`.

        The kernel names no cgroup here.  A process that had ended before the line was read may
        have been anybody's: False beside its call.  `since` is what `calls` was at the start.
        """
        self.drain()
        new = [*self._calls][max(0, len(self._calls) - (self.calls - since)) :]
        return tuple(
            (call, bool(cgroups) or call.pid == pid)
            for call, cgroups in new
            if not cgroups or call.pid == pid or any(_in(cgroup, paths) for cgroup in cgroups)
        )

    @staticmethod
    def _about(kill: Kill, paths: Collection[str], pids: Collection[int]) -> bool:
        if kill.victim:
            return _in(kill.victim.memcg, paths)
        return kill.killed is not None and kill.killed.pid in pids

    def limiting(self, path: str) -> str | None:
        """The cgroup whose limit made the last kill in `path` or below; "/": the host's memory.

        None: the log doesn't tell.
        """
        self.drain()
        for kill in reversed(self._kills):
            if kill.victim and _in(kill.victim.memcg, (path,)):
                return kill.victim.limiting or "/"
        return None

    def mark(self) -> Mark:
        """Where the log stands now, for `killed`."""
        self.drain()
        return Mark(self._killed, self._kmsg.overwritten if self._kmsg else 0)

    def killed(self, pid: int, since: Mark) -> bool | None:
        """Whether process `pid` was killed for want of memory after `since`.

        The kernel tells of each kill, unlike of the limit behind it.  None: the log cannot be
        read, has gaps or too much in it, or counts processes otherwise than we do.
        """
        self.drain()
        if not proc.pids_are_the_kernels():
            return None
        new = self._killed - since.kills
        if pid in [*self._pids][max(0, len(self._pids) - new) :]:
            return True
        if self._kmsg is None or self.why or self._kmsg.overwritten != since.gaps:
            return None
        return None if new > REMEMBERED else False

    def close(self) -> None:
        """Idempotent; what was read is still known."""
        if self._kmsg:
            self._kmsg.close()


def _cgroups_of(pid: int) -> tuple[str, ...]:
    try:
        return tuple(one.path for one in proc.memberships(f"/proc/{pid}/cgroup"))
    except KernelError:
        return ()  # it has ended


def _in(cgroup: str | None, paths: Collection[str]) -> bool:
    """Whether `cgroup` is one of `paths` or below one."""
    return cgroup is not None and any(
        cgroup == path or cgroup.startswith(f"{path.rstrip('/')}/") for path in paths
    )
