"""What the doctor tries of limits: each is exceeded for real in a cgroup made for it.

The load runs in a trial's process (`doctor_trial`), which joins the cgroup first; the cgroup is
removed whatever happens.  May import: `errors`, `model`, `linux`, `cgroup`, `watch.pressure`.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from errno import EAGAIN, EPERM
from pathlib import Path
from typing import Any, BinaryIO

from attrs import evolve

from supervisor.cgroup.api import CgroupManager, DeviceRule, JobCgroup, Missing, Notification
from supervisor.errors import LimitError, SupervisorError
from supervisor.front.doctor_trial import ENDING, LONGEST, Check, Outcome, Verdict, attempt
from supervisor.linux.inotify import Inotify
from supervisor.model.job import Resource
from supervisor.model.limits import IoLimit, Limits
from supervisor.watch.pressure import Gauge

MIB = 1 << 20
MEMORY, LOAD = 16 * MIB, 32 * MIB
HIGH = 4 * MIB
PRESSURE: tuple[Resource, ...] = ("memory", "cpu", "io")
PIDS, FORKS = 4, 8
CPUS, BURN = 0.2, 0.5
IO_RATE, IO_SIZE = 4 * MIB, 2 * MIB
IO_PATH = "/var/tmp"
"""Where the file (unnamed, O_TMPFILE) is written: what outlives a reboot is no tmpfs."""
QUEUED = 1.0
"""Seconds that the kernel may take to tell of what has happened."""

Trial = Callable[[JobCgroup], tuple[Verdict, str]]


def checks(manager: CgroupManager) -> list[Callable[[], Check]]:
    """One check for each kind of limit, and those of whole-tree control."""

    def of(name: str, limits: Limits, trial: Trial, needed: bool = False) -> Callable[[], Check]:
        return lambda: limited(manager, name, limits, trial, needed)

    # Where swap has no limit, what goes over the limit may go there instead of being killed.
    memory = Limits(memory=MEMORY, swap=0)
    if manager.missing(memory):
        memory = Limits(memory=MEMORY)
    cpu = str(min(os.sched_getaffinity(0)))
    return [
        of("memory limit", memory, _memory, True),
        of("memory events", memory, _events, True),
        of("memory_high", Limits(memory_high=HIGH), _high),
        of("memory_low", Limits(memory_low=MEMORY), _read_back),
        lambda: _pressure(manager),
        of("swap limit", Limits(memory=MEMORY, swap=0), _swap),
        of("pids limit", Limits(pids=PIDS), _pids, True),
        of("cpus limit", Limits(cpus=CPUS), _cpus, True),
        of("cpu_weight", Limits(cpu_weight=10), lambda group: _weighed(manager, group)),
        of("cpu_idle", Limits(cpu_idle=True), lambda group: _weighed(manager, group)),
        of("cpuset", Limits(cpuset=cpu), _cpuset),
        of("io limit", Limits(io=(IoLimit(IO_PATH, write_bps=IO_RATE),)), _io),
        lambda: _devices(manager),
        of("peaks in the record", Limits(), _peaks),
    ]


def limited(
    manager: CgroupManager, name: str, limits: Limits, trial: Trial, needed: bool = False
) -> Check:
    if manager.version == "none":
        return nowhere(manager, name, needed)
    missing = manager.missing(limits)
    if missing:
        why = "; ".join(dict.fromkeys(item.why for item in missing))
        fix = "; ".join(dict.fromkeys(item.fix for item in missing))
        return Check(name, "unavailable", why, fix, needed)
    try:
        with _cgroup(manager, name.replace(" ", "-")) as group:
            group.apply(limits)
            verdict, detail = trial(group)
    except (SupervisorError, OSError) as error:
        hint = error.hint if isinstance(error, LimitError) else ""
        return Check(name, "unavailable", str(error), hint, needed)
    return Check(
        name, verdict, detail, FIXES.get(name, "") if verdict != "enforced" else "", needed
    )


def nowhere(manager: CgroupManager, name: str, needed: bool) -> Check:
    """A row where there is no cgroup to try something in."""
    fixes = dict.fromkeys(one.fix for one in manager.missing(Limits(memory=MEMORY)))
    told = "no cgroup can be made here to try it in"
    return Check(name, "unavailable", told, "; ".join(fixes), needed)


FIXES = {
    "io limit": "keep the job's data on a block device with an I/O controller of its own queue",
    "devices": "not needed while no job has `devices`, CAP_MKNOD or CAP_SYS_ADMIN",
    "clone into the cgroup": "not needed: a job joins its cgroup before its command is executed",
    "peaks in the record": "not needed: no verdict rests on them; else a newer kernel",
    "swap limit": "not needed while the host has no swap; else boot with swapaccount=1",
}


@contextmanager
def _cgroup(manager: CgroupManager, name: str) -> Iterator[JobCgroup]:
    """A cgroup for one trial; no signal comes between its making, or its removal, and its end."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        group = manager.create(f"{name}-{os.getpid()}")
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            yield group
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
            group.remove()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def inside(group: JobCgroup, work: Callable[[], Any], seconds: float = LONGEST) -> Outcome:
    """Run `work` in a process of the cgroup."""

    def joined() -> Any:
        join(group)
        return work()

    return attempt(joined, seconds)


def join(group: JobCgroup) -> None:
    """Move this process, a trial's, into the cgroup."""
    files = [*group.entry.payload_files]
    if group.entry.payload_dir is not None:
        files.append(f"{group.entry.payload_dir}/cgroup.procs")
    for path in files:
        Path(path).write_text("0")


def failed(outcome: Outcome) -> tuple[Verdict, str]:
    return "unavailable", f"the trial did not get through: {outcome.failure}"


def _memory(group: JobCgroup) -> tuple[Verdict, str]:
    outcome = inside(group, lambda: touch(LOAD))
    counted, peak = group.counters(), group.usage().memory_peak
    if outcome.signal == signal.SIGKILL and counted.oom_kills:
        return "enforced", f"{LOAD // MIB} MiB under {MEMORY // MIB} MiB: killed, and counted"
    if outcome.failure:
        return failed(outcome)
    if counted.limit_hits and peak is not None and peak <= MEMORY:
        return "enforced", f"{LOAD // MIB} MiB under {MEMORY // MIB} MiB: the rest was swapped out"
    return "accounted only", f"{LOAD // MIB} MiB fitted into {MEMORY // MIB} MiB"


def _high(group: JobCgroup) -> tuple[Verdict, str]:
    """One step above it is enough; the further ones are what the kernel makes slow."""
    outcome = inside(group, lambda: touch(HIGH + MIB // 2), 1.5)
    if group.counters().high:
        return "enforced", f"{HIGH // MIB} MiB passed: slowed down, and counted"
    if outcome.failure:
        return failed(outcome)
    return "accounted only", f"more than {HIGH // MIB} MiB fitted in without being slowed down"


def _peaks(group: JobCgroup) -> tuple[Verdict, str]:
    """Nothing is sampled in their place: a peak between two looks would be told too small."""
    usage = group.usage()
    peaks = {"memory.peak (Linux 5.19)": usage.memory_peak, "pids.peak (6.1)": usage.pids_peak}
    lacking = [name for name, peak in peaks.items() if peak is None]
    if not lacking:
        return "enforced", "the kernel keeps the highest use of memory and processes"
    verdict: Verdict = "unavailable" if len(lacking) == len(peaks) else "accounted only"
    return verdict, f"the kernel has no {' and no '.join(lacking)}: the record says null"


def _pressure(manager: CgroupManager) -> Check:
    """The kernel takes the trigger; that it goes off takes seconds, and is not waited for."""
    missing = manager.missing_pressure(PRESSURE)
    fix = "; ".join(dict.fromkeys(one.fix for one in missing))
    name, trial = "pressure events", lambda group: _triggered(group, missing)
    found = limited(manager, name, Limits(), trial)
    return evolve(found, fix=fix) if missing and manager.version != "none" else found


def _triggered(group: JobCgroup, missing: Sequence[Missing]) -> tuple[Verdict, str]:
    told = []
    for resource in PRESSURE:
        if not any(one.of(resource) for one in missing):
            source = group.pressure(resource, 0.5)
            Gauge(source).close()
            told.append(f"{resource} by {Path(source.path).name}")
    untold = dict.fromkeys(one.why for one in missing)
    verdict: Verdict = "enforced" if not missing else "accounted only" if told else "unavailable"
    return verdict, "; ".join([", ".join(told)] * bool(told) + list(untold))


def _events(group: JobCgroup) -> tuple[Verdict, str]:
    """The kernel tells of the limit by itself: eventfd on v1, inotify on v2."""
    for told in group.notifications:
        if told.kind == "eventfd":
            return _told_by(_eventfd(told), group, f"an eventfd for {Path(told.path).name}")
        if told.kind == "inotify" and "memory" in told.path:
            watch = Inotify()
            watch.add(told.path)
            return _told_by(watch, group, f"inotify on {Path(told.path).name}")
    return "unavailable", "the kernel has no file to notify with"


def _eventfd(told: Notification) -> BinaryIO:
    """Registered by cgroup.event_control (cgroup-v1/memory.rst, "oom_control")."""
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    with Path(told.path).open("rb") as target:
        Path(told.control).write_text(f"{fd} {target.fileno()}")
    return os.fdopen(fd, "rb", buffering=0)


def _told_by(source: BinaryIO | Inotify, group: JobCgroup, how: str) -> tuple[Verdict, str]:
    try:
        outcome = inside(group, lambda: touch(LOAD))
        # v2's files tell from a work queue of the kernel's (fs/kernfs/file.c, kernfs_notify), which
        # on a busy host comes to its turn after the trial has ended.
        if select.select([source.fileno()], [], [], QUEUED)[0]:
            return "enforced", f"told by {how}"
    finally:
        source.close()
    if outcome.signal is None:
        return failed(outcome)
    return "unavailable", f"not told by {how}"


def touch(size: int) -> None:
    """Allocate: every page is written once."""
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for offset in range(0, size, mmap.PAGESIZE):
            memory[offset] = 1


def _swap(group: JobCgroup) -> tuple[Verdict, str]:
    """Without swap of its own the load has nowhere to go but over the limit."""
    if len(Path("/proc/swaps").read_text().splitlines()) < 2:
        return "accounted only", "written and read back; this host has no swap to try it with"
    return _memory(group)


def _pids(group: JobCgroup) -> tuple[Verdict, str]:
    outcome = inside(group, _fork_on)
    refused = group.counters().refused
    if outcome.value is not None and refused:
        return "enforced", f"fork {outcome.value} was refused under {PIDS} tasks, and counted"
    if outcome.failure:
        return failed(outcome)
    return "accounted only", f"{FORKS} forks fitted into {PIDS} tasks"


def _fork_on() -> int | None:
    """Fork until it is refused, at most FORKS times; which one was.  Children live until then."""
    for count in range(1, FORKS + 1):
        try:
            pid = os.fork()
        except OSError as error:
            if error.errno == EAGAIN:
                return count
            raise
        if pid == 0:
            signal.pause()
    return None


def _cpus(group: JobCgroup) -> tuple[Verdict, str]:
    outcome = inside(group, _burn)
    if outcome.failure:
        return failed(outcome)
    share = outcome.value
    throttled = group.usage().throttled
    told = f"a busy loop got {share:.2f} CPUs under {CPUS}"
    if throttled:
        return "enforced", f"{told}, throttled for {throttled:.2f}s"
    # A loop that others kept from running proves nothing either way; a quota lets no more than a
    # period's worth pass beyond its share.
    return ("accounted only", told) if share > 1.5 * CPUS else failed(Outcome(failure=told))


def _burn() -> float:
    """Run for BURN seconds; the share of one CPU that was had."""
    start, cpu = time.monotonic(), time.process_time()
    while time.monotonic() - start < BURN:
        pass
    return (time.process_time() - cpu) / (time.monotonic() - start)


def _weighed(manager: CgroupManager, group: JobCgroup) -> tuple[Verdict, str]:
    """Against a busy loop of full weight on the same CPU; whoever else is there slows both."""
    with _cgroup(manager, "weighed-against") as full:
        outcome = attempt(lambda: _compete([group, full]), 20 * BURN)
    if outcome.failure:
        return failed(outcome)
    light, heavy = outcome.value
    if heavy > 2 * light:
        return (
            "enforced",
            f"beside a job of weight 100 it got {light / (light + heavy):.0%} of a CPU",
        )
    return "accounted only", f"it got {light:.2f}s of CPU, a job of weight 100 {heavy:.2f}s"


def _compete(groups: Sequence[JobCgroup]) -> list[float]:
    """The seconds that a busy loop got in each, all of them on one CPU at a time."""
    ready, gone = os.pipe()
    go, start = os.pipe()
    told = []
    for group in groups:
        reader, writer = os.pipe()
        if os.fork() == 0:
            join(group)
            os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
            os.write(gone, b".")
            os.read(go, 1)
            os.write(writer, str(_burn() * BURN).encode())
            os._exit(0)
        os.close(writer)
        told.append(reader)
    for _ in groups:
        os.read(ready, 1)
    os.write(start, b"." * len(groups))
    return [float(os.read(reader, 100)) for reader in told]


def _read_back(_group: JobCgroup) -> tuple[Verdict, str]:
    """`apply` has read it back: it raises for a value that the kernel did not take."""
    return "enforced", "written and read back"


def _cpuset(group: JobCgroup) -> tuple[Verdict, str]:
    outcome = inside(group, lambda: sorted(os.sched_getaffinity(0)))
    if outcome.failure:
        return failed(outcome)
    if outcome.value == [min(os.sched_getaffinity(0))]:
        return "enforced", f"a process saw CPU {outcome.value[0]} only"
    return "accounted only", f"a process saw the CPUs {outcome.value}"


def _io(group: JobCgroup) -> tuple[Verdict, str]:
    free = attempt(_write)
    slow = inside(group, _write)
    if free.failure or slow.failure:
        return failed(free if free.failure else slow)
    told = (
        f"{IO_SIZE // MIB} MiB (O_DIRECT) took {slow.value:.2f}s at {IO_RATE // MIB} MiB/s, "
        f"{free.value:.2f}s without a limit"
    )
    # The kernel lets a slice's worth pass at first: half of the time is proof enough.
    if slow.value > max(0.5 * IO_SIZE / IO_RATE, 2 * free.value):
        return "enforced", told
    return "accounted only", told


def _write() -> float:
    """Write past the page cache, which v1 does not throttle; the seconds it took."""
    flags = os.O_TMPFILE | os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC
    fd = os.open(IO_PATH, flags, 0o600)
    # An anonymous mapping starts at a page, which O_DIRECT asks of a buffer (open(2)).
    with mmap.mmap(-1, IO_SIZE // 16) as buffer:
        start = time.monotonic()
        for _ in range(16):
            os.write(fd, buffer)
        return time.monotonic() - start


NULL, ZERO = DeviceRule("c", 1, 3, "rw"), "/dev/zero"


def _devices(manager: CgroupManager) -> Check:
    """A process that may use /dev/null alone does not get /dev/zero."""
    missing = manager.missing_devices()
    if missing and manager.version != "none":
        told = f"{missing.why}; a job opens what is in its own /dev, and no other node"
        return Check("devices", "unavailable", told, missing.fix)

    def trial(group: JobCgroup) -> tuple[Verdict, str]:
        group.confine((NULL,))
        outcome = inside(group, _opened)
        if outcome.failure:
            return failed(outcome)
        found: Verdict = "enforced" if outcome.value == EPERM else "accounted only"
        return found, f"{ZERO} was {'refused' if outcome.value == EPERM else 'opened'}"

    return limited(manager, "devices", Limits(), trial, needed=False)


def _opened() -> int:
    """The errno of opening what is forbidden, 0 if it went; what is allowed is opened before."""
    os.close(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
    try:
        os.close(os.open(ZERO, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or 0
    return 0
