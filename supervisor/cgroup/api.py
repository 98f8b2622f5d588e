"""The interface of a control group, whatever the hierarchy: v1, v2, hybrid, or the fake.

The layout, the same in every hierarchy in use:

    OWN/supervise.INSTANCE/            OWN: the cgroup we were started in, or a delegated one
        RUN/                           one directory per run: whole-tree kill and `populated`
            init                       the job's init: no limits (v1: it sits in RUN itself)
            payload                    the job's command and its descendants: the limits stand here

The weights and cpu.idle stand on RUN: the kernel divides among siblings, and those of a run are
the other runs.

Paths in `KernelError`s and in evidence are those of the files read or written.  v1 is one set of
directories per controller; where the unified hierarchy exists without controllers (hybrid) it has
the same directories too, for cgroup.kill and `populated`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from attrs import field, frozen

from supervisor.model.action import LimitName
from supervisor.model.job import Resource
from supervisor.model.limits import IoLimit, Limits

if TYPE_CHECKING:
    from supervisor.cgroup.sample import Meter

Version = Literal["v1", "hybrid", "v2", "none"]

Changeable = LimitName | Literal["memory_low"]
"""What `JobCgroup.change` takes."""


@frozen
class DeviceRule:
    """What a payload may do with a device: read it (r), write it (w), make a node of it (m).

    `kind` is "c" or "b", for character and block devices; `minor` None: every one of that `major`.
    """

    kind: Literal["c", "b"]
    major: int
    minor: int | None
    access: str

    @property
    def text(self) -> str:
        """As v1's devices.allow takes it: "c 136:* rw"."""
        minor = "*" if self.minor is None else self.minor
        return f"{self.kind} {self.major}:{minor} {self.access}"


@frozen
class Entry:
    """How a freshly cloned child gets into its cgroup: all that the launcher needs to know.

    `*_files` each take a "0" from the single-threaded child itself (v1 `tasks`: no global lock).
    `*_dir` is the unified directory: CLONE_INTO_CGROUP where the kernel can (5.7), else "0" into
    its cgroup.procs.  Either may be empty.
    """

    init_files: tuple[str, ...] = ()
    payload_files: tuple[str, ...] = ()
    init_dir: str | None = None
    payload_dir: str | None = None


@frozen
class Counters:
    """Event counters of the payload's cgroup since its creation.

    limit_hits   how often the memory limit was reached   memory.failcnt | memory.events.local max
    oom          how often reclaim failed at the own limit  (v1: None)   | memory.events.local oom
    oom_kills    processes killed by any OOM killer       memory.oom_control oom_kill
                                                                         | memory.events oom_kill
    high         crossings of memory.high                 (v1: 0)        | memory.events.local high
    refused      forks refused                            pids.events max
    under_oom    tasks are asleep at the limit            memory.oom_control under_oom | frozen
    """

    limit_hits: int = 0
    oom: int | None = None
    oom_kills: int = 0
    high: int = 0
    refused: int = 0
    under_oom: bool = False


@frozen
class Usage:
    """What the payload's cgroup uses or has used; None where this host cannot tell.

    CPU in seconds, memory and I/O in bytes.
    """

    cpu: float | None = None
    cpu_user: float | None = None
    cpu_system: float | None = None
    throttled: float | None = None
    memory: int | None = None
    memory_peak: int | None = None
    pids: int | None = None
    pids_peak: int | None = None
    read_bytes: int | None = None
    write_bytes: int | None = None


@frozen
class Traffic:
    """What went through a block device, in operations and bytes."""

    reads: int = 0
    read_bytes: int = 0
    writes: int = 0
    write_bytes: int = 0


@frozen
class Share:
    """What the payload may have of the machine, the cgroups above it counted in, and what it has.

    memory_limit, swap_limit   bytes; None: there is none
    memory, swap               bytes in use; `memory` None where no controller tells
    pages                      memory.stat by v2's names: bytes, and counts of faults
    cpus                       CPUs' worth of time; None: no quota
    cpu_user, cpu_system       seconds used; `throttled` those for which its quota held it back
    tasks                      threads included; None where no controller tells
    traffic                    "MAJOR:MINOR" → what went through that device
    """

    memory_limit: int | None = None
    swap_limit: int | None = None
    memory: int | None = None
    swap: int = 0
    pages: Mapping[str, int] = field(factory=dict)
    cpus: float | None = None
    cpu_user: float = 0.0
    cpu_system: float = 0.0
    throttled: float = 0.0
    tasks: int | None = None
    traffic: Mapping[str, Traffic] = field(factory=dict)


@frozen
class Missing:
    """A limit this host cannot enforce: which (its configuration key), why, and the way out."""

    limit: str
    why: str
    fix: str

    @property
    def key(self) -> str:
        """Its whole path in a job's configuration: "limits.memory", "pressure.io"."""
        whole = "." in self.limit or self.limit == "devices"
        return self.limit if whole else f"limits.{self.limit}"

    def of(self, resource: Resource) -> bool:
        """Whether it is the pressure of `resource` that lacks."""
        return self.limit == f"pressure.{resource}"


@frozen
class Notification:
    """Where the kernel tells of a change; a hint to read `counters()` and `populated()` again.

    inotify   IN_MODIFY on `path`                          (v2, and cgroup.events of the hybrid)
    eventfd   an eventfd registered by "EVENTFD TARGETFD" in `control`, for `path`   (v1 memory)
    kmsg      kernel log lines that name the cgroup `path` as the kernel sees it (v1 pids; OOM)
    """

    kind: Literal["inotify", "eventfd", "kmsg"]
    path: str
    control: str = ""


WINDOW = 2.0
"""Seconds over which pressure is judged: without CAP_SYS_RESOURCE a multiple of two (psi.rst)."""


@frozen
class PressureSource:
    """How the kernel is asked to tell of pressure; `watch.pressure` does it.

    psi     write `text` to `path`; the descriptor then says EPOLLPRI            (unified hierarchy)
    level   an eventfd, by "EVENTFD TARGETFD `text`" in `control`, for `path`    (v1 memory)
    """

    resource: Resource
    kind: Literal["psi", "level"]
    path: str
    text: str
    control: str = ""


@frozen
class Reading:
    """One file that was read for evidence."""

    path: str
    text: str


@frozen
class Rehearsed:
    """What a run's start would do: each mkdir and write as a line, then what would be watched."""

    entry: Entry
    lines: tuple[str, ...]
    notifications: tuple[Notification, ...]
    sources: tuple[PressureSource, ...] = ()


class JobCgroup(Protocol):
    """The cgroup of one run.  Every method may raise KernelError (ENOENT/ENODEV: it is gone)."""

    @property
    def name(self) -> str:
        """The run's directory name; a directory made ahead of need keeps its own."""

    @property
    def path(self) -> str:
        """The payload's directory in the hierarchy that holds memory (evidence, `plan`)."""

    @property
    def entry(self) -> Entry:
        """To be read after `apply` and `confine`, which may add a cpuset and a list of devices."""

    @property
    def notifications(self) -> tuple[Notification, ...]: ...

    def apply(self, limits: Limits) -> tuple[Reading, ...]:
        """Write every limit and read it back; what the kernel rounded is accepted, nothing else.

        Raises LimitError for a limit the host cannot enforce, KernelError for a failed write.
        """

    def confine(self, devices: Iterable[DeviceRule]) -> None:
        """Let the payload use these devices and no others; before it is there.  See `entry`.

        v1: devices.allow.  v2: a BPF program.  Where `missing_devices` says so: KernelError.
        """

    def change(self, limit: Changeable, to: float | None, *, force: bool = False) -> float | None:
        """Change one limit of the living job; the value read back.  `to` None: no limit any more.

        A limit on memory below what is in use, where the kernel cannot reclaim enough: KernelError
        (EBUSY), and the limit is as it was; it may take as long as swap and disk do.  With `force`
        v2's OOM killer makes the room (v1 has no such way).  To raise one never waits.
        """

    def change_io(self, limits: Iterable[IoLimit]) -> tuple[Reading, ...]:
        """Throttle these devices, and no others any more."""

    def hold_at_limit(self, hold: bool) -> None:
        """Tasks at the memory limit sleep (True) or meet the OOM killer (False).

        v1: memory.oom_control.  v2: memory.high below memory.max as a trip wire; whoever watches
        calls `try_hold` at the event.  Setting False lets a held job go on into the OOM killer, a
        raise of the limit lets it go on: on v2 either thaws what was frozen at the wire.
        """

    def try_hold(self) -> bool:
        """v2, past the trip wire: freeze the payload; whether it stays so, held at its limit.

        It goes on where the kernel can reclaim enough, from page cache or into free swap: v1's
        kernel holds nobody then either.  Takes as long as that does, so it is for a thread; what
        changes the limit, freezes or thaws meanwhile may be called in another.  v1: False.
        """

    def hold_others(self) -> None:
        """v1, while tasks sleep at the limit: begin to freeze the rest of the payload.

        The kernel lets only those sleep that touch memory; a system call that needs some fails
        with ENOMEM meanwhile.  Waits for nothing; what lets a held job go on thaws it.  Nothing
        happens where nobody sleeps or there is no freezer.  v2: all of it is frozen already.
        """

    def counters(self) -> Counters: ...

    def usage(self) -> Usage: ...

    def share(self) -> Share: ...

    def meter(self) -> Meter:
        """Who looks at its numbers again and again, at little cost.  Touches nothing."""

    def pressure(self, resource: Resource, share: float) -> PressureSource:
        """Where pressure of more than `share` (0 to 1) of WINDOW is told; see `missing_pressure`.

        Touches nothing.
        """

    def stalled(self, resource: Resource) -> tuple[float | None, float | None]:
        """Share of the last ten seconds, and seconds in all, that some task stood still.

        None where only v1's levels tell.
        """

    def evidence(self) -> tuple[Reading, ...]:
        """The counter files a verdict rests on, as text, for the record."""

    def foreign_oom(self) -> bool | None:
        """Whether the OOM kills counted so far came from a limit other than the job's own.

        None: the counters alone cannot tell (the kernel log may).
        """

    def pids(self) -> tuple[int, ...]:
        """Every process of the job, init excluded."""

    def populated(self) -> bool:
        """Whether any process is left, init included."""

    def kill(self) -> None:
        """SIGKILL to the payload and all its descendants, so that none escapes; init lives on.

        cgroup.kill where there is one, and then they may still be on their way out: `populated`
        tells.  Else freeze, kill and thaw until none is left, for a second at most (EBUSY).
        """

    def freeze(self) -> None:
        """Stop the payload; returns when it has, or after 50 ms with the kernel still at it."""

    def thaw(self) -> None:
        """The opposite of `freeze`; who is held at the memory limit stays so."""

    def try_remove(self) -> bool:
        """Remove the directories that are empty, without waiting or killing; whether all are."""

    def remove(self) -> None:
        """Kill what is left and remove every directory of the run.  Idempotent.

        rmdir may say EBUSY while the last tasks exit: it is retried, bounded, then raised.
        """


class CgroupManager(Protocol):
    """The instance's own cgroup, in which the runs' are made."""

    @property
    def version(self) -> Version: ...

    @property
    def controllers(self) -> frozenset[str]:
        """The controllers at hand, by their v2 names: memory pids cpu cpuset io; freezer."""

    def describe(self) -> Sequence[str]:
        """Lines for `doctor` and `plan`: which hierarchy is where, and who mounted it."""

    def missing(self, limits: Limits) -> tuple[Missing, ...]:
        """The limits of `limits` that cannot be enforced here."""

    def missing_pressure(self, resources: Iterable[Resource]) -> tuple[Missing, ...]:
        """Those of `resources` whose pressure nothing tells of here."""

    def missing_devices(self) -> Missing | None:
        """Why no rule about devices can be enforced here, if so."""

    def prepare(self, count: int) -> None:
        """Make `count` run directories ahead of need."""

    def create(self, run: str, *, kill_whole_on_oom: bool = True) -> JobCgroup:
        """The cgroup of a run; `run` is unique in the instance and names the directories.

        Where directories were prepared, one of those is taken and keeps its name.
        `kill_whole_on_oom`: the kernel ends the whole payload at an OOM kill, where it can (v2).
        """

    def rehearse(
        self,
        run: str,
        limits: Limits,
        *,
        kill_whole_on_oom: bool = True,
        hold: bool = False,
        pressure: Mapping[Resource, float] | None = None,
        devices: Iterable[DeviceRule] | None = None,
    ) -> Rehearsed:
        """What `create`, `apply` and, with `hold`, `hold_at_limit` would do; touches nothing.

        The lines are "mkdir PATH" and "write TEXT > PATH", in order.  With `devices`, `confine`
        too.  Raises LimitError and KernelError as these do.
        """

    def leftovers(self) -> tuple[str, ...]:
        """Runs an earlier supervisor of this name left behind, killed or not."""

    def remove_leftovers(self) -> tuple[str, ...]:
        """Kill and remove them; their names."""

    def close(self) -> None:
        """Remove the instance's directories, and what was enabled for them."""
