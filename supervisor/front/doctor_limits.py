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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EAGAIN, EPERM
from pathlib import Path
from typing import Any, BinaryIO

from supervisor.cgroup.api import CgroupManager, DeviceRule, JobCgroup, Notification
from supervisor.errors import LimitError, SupervisorError
from supervisor.front.doctor_trial import ENDING, Check, Outcome, Verdict, attempt
from supervisor.linux import syscalls
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
        return lambda: _check(manager, name, limits, trial, needed)

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
        of("pressure events", Limits(), lambda group: _pressure(manager, group)),
        of("swap limit", Limits(memory=MEMORY, swap=0), _swap),
        of("pids limit", Limits(pids=PIDS), _pids, True),
        of("cpus limit", Limits(cpus=CPUS), _cpus, True),
        of("cpu_weight", Limits(cpu_weight=50), _read_back),
        of("cpu_idle", Limits(cpu_idle=True), _read_back),
        of("cpuset", Limits(cpuset=cpu), _cpuset),
        of("io limit", Limits(io=(IoLimit(IO_PATH, write_bps=IO_RATE),)), _io),
        lambda: _devices(manager),
        of("peaks in the record", Limits(), _peaks),
        of("whole-tree kill", Limits(), _kill, True),
        of("freeze and thaw", Limits(), _freeze),
        of("clone into the cgroup", Limits(), _clone_into),
    ]


def _check(manager: CgroupManager, name: str, limits: Limits, trial: Trial, needed: bool) -> Check:
    missing = manager.missing(limits)
    if missing:
        why = "; ".join(dict.fromkeys(item.why for item in missing))
        fix = "; ".join(dict.fromkeys(item.fix for item in missing))
        return Check(name, "unavailable", why, fix, needed)
    try:
        if manager.version == "none":
            return Check(name, "unavailable", "cgroups cannot be made here", "", needed)
        with _cgroup(manager, name.replace(" ", "-")) as group:
            group.apply(limits)
            verdict, detail = trial(group)
    except (SupervisorError, OSError) as error:
        hint = error.hint if isinstance(error, LimitError) else ""
        return Check(name, "unavailable", str(error), hint, needed)
    return Check(
        name, verdict, detail, FIXES.get(name, "") if verdict != "enforced" else "", needed
    )


FIXES = {
    "io limit": "keep the job's data on a block device with an I/O controller of its own queue",
    "devices": "not needed while no job has `devices`, CAP_MKNOD or CAP_SYS_ADMIN",
    "clone into the cgroup": "not needed: a job joins its cgroup before its command is executed",
    "peaks in the record": "not needed: no verdict rests on them; else a newer kernel",
    "pressure events": "boot with psi=1, a kernel with CONFIG_PSI; before 6.5 CAP_SYS_RESOURCE",
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


def _inside(group: JobCgroup, work: Callable[[], Any], seconds: float = 2.0) -> Outcome:
    """Run `work` in a process of the cgroup."""

    def joined() -> Any:
        files = [*group.entry.payload_files]
        if group.entry.payload_dir is not None:
            files.append(f"{group.entry.payload_dir}/cgroup.procs")
        for path in files:
            Path(path).write_text("0")
        return work()

    return attempt(joined, seconds)


def _failed(outcome: Outcome) -> tuple[Verdict, str]:
    return "unavailable", f"the trial did not get through: {outcome.failure}"


def _memory(group: JobCgroup) -> tuple[Verdict, str]:
    outcome = _inside(group, lambda: _touch(LOAD))
    counted, peak = group.counters(), group.usage().memory_peak
    if outcome.signal == signal.SIGKILL and counted.oom_kills:
        return "enforced", f"{LOAD // MIB} MiB under {MEMORY // MIB} MiB: killed, and counted"
    if outcome.failure:
        return _failed(outcome)
    if counted.limit_hits and peak is not None and peak <= MEMORY:
        return "enforced", f"{LOAD // MIB} MiB under {MEMORY // MIB} MiB: the rest was swapped out"
    return "accounted only", f"{LOAD // MIB} MiB fitted into {MEMORY // MIB} MiB"


def _high(group: JobCgroup) -> tuple[Verdict, str]:
    """One step above it is enough; the further ones are what the kernel makes slow."""
    outcome = _inside(group, lambda: _touch(HIGH + MIB // 2), 1.5)
    if group.counters().high:
        return "enforced", f"{HIGH // MIB} MiB passed: slowed down, and counted"
    if outcome.failure:
        return _failed(outcome)
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


def _pressure(manager: CgroupManager, group: JobCgroup) -> tuple[Verdict, str]:
    """The kernel takes the trigger; that it goes off takes seconds, and is not waited for."""
    missing = manager.missing_pressure(PRESSURE)
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
        outcome = _inside(group, lambda: _touch(LOAD))
        # v2's files tell from a work queue of the kernel's (fs/kernfs/file.c, kernfs_notify), which
        # on a busy host comes to its turn after the trial has ended.
        if select.select([source.fileno()], [], [], QUEUED)[0]:
            return "enforced", f"told by {how}"
    finally:
        source.close()
    if outcome.signal is None:
        return _failed(outcome)
    return "unavailable", f"not told by {how}"


def _touch(size: int) -> None:
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
    outcome = _inside(group, _fork_on)
    refused = group.counters().refused
    if outcome.value is not None and refused:
        return "enforced", f"fork {outcome.value} was refused under {PIDS} tasks, and counted"
    if outcome.failure:
        return _failed(outcome)
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
    outcome = _inside(group, _burn)
    if outcome.failure:
        return _failed(outcome)
    share = outcome.value
    throttled = group.usage().throttled
    told = f"a busy loop got {share:.2f} CPUs under {CPUS}"
    if throttled:
        return "enforced", f"{told}, throttled for {throttled:.2f}s"
    # A loop that others kept from running proves nothing either way.
    return ("accounted only", told) if share > 2 * CPUS else _failed(Outcome(failure=told))


def _burn() -> float:
    """Run for BURN seconds; the share of one CPU that was had."""
    start, cpu = time.monotonic(), time.process_time()
    while time.monotonic() - start < BURN:
        pass
    return (time.process_time() - cpu) / (time.monotonic() - start)


def _read_back(_group: JobCgroup) -> tuple[Verdict, str]:
    """`apply` has read it back: it raises for a value that the kernel did not take."""
    return "enforced", "written and read back"


def _cpuset(group: JobCgroup) -> tuple[Verdict, str]:
    outcome = _inside(group, lambda: sorted(os.sched_getaffinity(0)))
    if outcome.failure:
        return _failed(outcome)
    if outcome.value == [min(os.sched_getaffinity(0))]:
        return "enforced", f"a process saw CPU {outcome.value[0]} only"
    return "accounted only", f"a process saw the CPUs {outcome.value}"


def _io(group: JobCgroup) -> tuple[Verdict, str]:
    free = attempt(_write)
    slow = _inside(group, _write)
    if free.failure or slow.failure:
        return _failed(free if free.failure else slow)
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
    if missing:
        told = f"{missing.why}; a job opens what is in its own /dev, and no other node"
        return Check("devices", "unavailable", told, missing.fix)

    def trial(group: JobCgroup) -> tuple[Verdict, str]:
        group.confine((NULL,))
        outcome = _inside(group, _opened)
        if outcome.failure:
            return _failed(outcome)
        found: Verdict = "enforced" if outcome.value == EPERM else "accounted only"
        return found, f"{ZERO} was {'refused' if outcome.value == EPERM else 'opened'}"

    return _check(manager, "devices", Limits(), trial, needed=False)


def _opened() -> int:
    """The errno of opening what is forbidden, 0 if it went; what is allowed is opened before."""
    os.close(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
    try:
        os.close(os.open(ZERO, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or 0
    return 0


def _kill(group: JobCgroup) -> tuple[Verdict, str]:
    """A process that has left its session and ignores what can be ignored dies all the same."""
    reader, writer = os.pipe2(os.O_CLOEXEC)

    def ask() -> None:
        """From a process outside: kill, as soon as the one inside is ready (or is gone)."""
        os.close(writer)
        os.read(reader, 1)
        group.kill()

    pid = os.fork()
    if pid == 0:
        try:
            ask()
        finally:
            os._exit(0)
    try:
        outcome = _inside(group, lambda: _stubborn(writer))
    finally:
        os.close(reader)
        os.close(writer)
        os.waitpid(pid, 0)
    if outcome.signal == signal.SIGKILL and not outcome.timed_out and not group.populated():
        return "enforced", f"by {_kill_means(group)}"
    return _failed(outcome)


def _kill_means(group: JobCgroup) -> str:
    directory = group.entry.payload_dir
    if directory is not None and Path(directory, "cgroup.kill").exists():
        return "cgroup.kill"
    return "freezing, killing and thawing all of its processes"


def _stubborn(writer: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.write(writer, b".")
    while True:
        signal.pause()


def _freeze(group: JobCgroup) -> tuple[Verdict, str]:
    """A process that writes without end falls silent, and goes on."""
    outcome = attempt(lambda: _frozen(group))
    if outcome.failure:
        return _failed(outcome)
    return "enforced", "a busy process stood still, and went on"


def _frozen(group: JobCgroup) -> None:
    """Runs outside of the cgroup, with the busy process in it as a child of this trial's."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    if os.fork() == 0:
        os.close(reader)
        _inside(group, lambda: _chatter(writer))
        os._exit(0)
    os.close(writer)
    silence = _silence(reader)
    group.freeze()
    while select.select([reader], [], [], silence)[0]:
        os.read(reader, 65536)
    group.thaw()
    if not select.select([reader], [], [], 1.0)[0]:
        raise SupervisorError("it did not go on after the thaw")


def _silence(reader: int) -> float:
    """Seconds without a word that are no accident: on a busy host some of them are long."""
    gaps = []
    os.read(reader, 1)
    for _ in range(10):
        before = time.monotonic()
        os.read(reader, 1)
        gaps.append(time.monotonic() - before)
    return min(max(0.1, 8 * max(gaps)), 1.5)


def _chatter(writer: int) -> None:
    while True:
        os.write(writer, b".")
        select.select([], [], [], 0.01)


def _clone_into(group: JobCgroup) -> tuple[Verdict, str]:
    """clone3(2) with CLONE_INTO_CGROUP: no instruction of the child runs outside."""
    directory = group.entry.payload_dir
    if directory is None:
        return "unavailable", "there is no unified hierarchy"
    outcome = attempt(lambda: _cloned_into(directory))
    if outcome.failure:
        return "unavailable", outcome.failure
    return "enforced", f"a child began its life in {directory}"


def _cloned_into(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    pid, _ = syscalls.clone(0, exit_signal=signal.SIGCHLD, cgroup_fd=fd)
    if pid == 0:
        os._exit(0 if _in_cgroup(directory) else 1)
    if os.waitpid(pid, 0)[1] != 0:
        raise SupervisorError(f"the child was not in {directory}")


def _in_cgroup(directory: str) -> bool:
    return str(os.getpid()) in Path(directory, "cgroup.procs").read_text().split()
