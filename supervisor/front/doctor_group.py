"""What the doctor tells of control groups as such, and tries of whole ones: kill, freeze, log.

May import: `errors`, `linux`, `cgroup`, `front.doctor_limits` for how a trial gets into a cgroup.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from errno import ENODEV, ENOENT
from pathlib import Path

from supervisor.cgroup import delegate, detect
from supervisor.cgroup.api import CgroupManager, JobCgroup
from supervisor.errors import KernelError, SupervisorError
from supervisor.front.doctor_limits import LOAD, MEMORY, QUEUED, failed, inside, limited, touch
from supervisor.front.doctor_trial import Check, Verdict, attempt
from supervisor.linux import kmsg, proc, syscalls
from supervisor.model.limits import Limits

NEEDED = ("memory", "pids", "cpu")
"""The controllers of the limits that a default job may have."""


def kinds(found: detect.Found) -> list[Check]:
    """Which generation has what, and where the runs' cgroups will be made."""
    return [generation(found), *unified(found), delegation(found)]


def generation(found: detect.Found) -> Check:
    name = "control groups"
    had = {h.unified for h in found.hierarchies}
    v1, v2 = (
        _limiting(frozenset().union(*(h.controllers for h in found.hierarchies if h.unified is of)))
        for of in (False, True)
    )
    lacking = [one for one in NEEDED if one in found.obstacles]
    told = "; ".join(
        [f"{', '.join(v1)} on v1"] * bool(v1)
        + [f"{', '.join(v2)} on v2"] * bool(v2)
        + ["v2 for kill and freeze"] * (True in had and not v2)
    )
    told = f"{kind_of(found)}: {told}" if told else "none of use"
    if not lacking:
        return Check(name, "enforced", told, "", True)
    first = found.obstacles[lacking[0]]
    why = f"{told}; no {', '.join(lacking)}: {first.why}"
    return Check(name, "accounted only" if v1 or v2 else "unavailable", why, first.fix, True)


def kind_of(found: detect.Found) -> str:
    """v1, v2, hybrid (controllers on v1, v2 without), mixed (on both) or none."""
    v1 = any(h.controllers for h in found.hierarchies if not h.unified)
    v2 = [h for h in found.hierarchies if h.unified]
    if not v1:
        return "v2" if v2 else "none"
    if not v2:
        return "v1"
    return "mixed" if v2[0].controllers else "hybrid"


def unified(found: detect.Found) -> list[Check]:
    """A row only where there is none: it has cgroup.kill, and on hybrids pressure and freezing."""
    if any(mount.fstype == "cgroup2" for mount in proc.mountinfo()):
        return []
    beside = bool(found.hierarchies)
    target = detect.UNIFIED[beside]
    fix = f"mkdir -p {target} && mount -t cgroup2 none {target}"
    told = "mounted nowhere: no cgroup.kill, no pressure of a job"
    return [Check("cgroup2", "unavailable", told, fix)]


def delegation(found: detect.Found) -> Check:
    """Where cgroups of runs are made; on v2, what is enabled there and what we may enable."""
    name = "delegation"
    if not found.hierarchies:
        fix = next((one.fix for one in found.obstacles.values()), delegate.ROOT_FIX)
        return Check(name, "unavailable", "no cgroup here is ours to make others in", fix)
    places: dict[str, list[str]] = {}
    for one in found.hierarchies:
        where = one.base.removeprefix(one.mount) or "/"
        places.setdefault(where, []).extend(["v2"] if one.unified else _limiting(one.controllers))
    told = "; ".join(f"{', '.join(sorted(names))} in {where}" for where, names in places.items())
    if not found.obstacles:
        return Check(name, "enforced", f"runs get {told}")
    fixes = "; ".join(dict.fromkeys(one.fix for one in found.obstacles.values()))
    told += f"; not at hand: {', '.join(found.obstacles)}"
    return Check(name, "accounted only", f"runs get {told}", fixes)


def _limiting(controllers: frozenset[str]) -> list[str]:
    return [one for one in detect.CONTROLLERS if one in controllers]


def checks(manager: CgroupManager) -> list[Callable[[], Check]]:
    """Control of whole trees, each to be called by itself."""
    return [
        lambda: limited(manager, "whole-tree kill", Limits(), _kill, True),
        lambda: limited(manager, "freeze and thaw", Limits(), _freeze),
        lambda: limited(manager, "clone into the cgroup", Limits(), _clone_into),
        lambda: kernel_log(manager),
    ]


def kernel_log(manager: CgroupManager) -> Check:
    """/dev/kmsg: the victim of an OOM kill, and on v1 the first refused fork, stand there."""
    name = "kernel log"
    try:
        log = kmsg.open_kmsg()
    except KernelError as error:
        return Check(name, "unavailable", str(error), _log_fix(error.errno))
    try:
        memory = Limits(memory=MEMORY, swap=0)
        if manager.missing(memory):
            told = "/dev/kmsg can be read; nothing could be killed to see that it tells"
            return Check(name, "accounted only", told, "what the row `memory limit` says")
        return limited(manager, name, memory, lambda group: _told_in(log, group))
    finally:
        log.close()


def _log_fix(number: int | None) -> str:
    if number in (ENOENT, ENODEV):
        return "mknod -m 600 /dev/kmsg c 1 11 (a container's engine: --device /dev/kmsg)"
    restricted = Path("/proc/sys/kernel/dmesg_restrict")
    if os.geteuid() != 0 and restricted.exists() and restricted.read_text().strip() != "0":
        return "run as root; or sysctl -w kernel.dmesg_restrict=0"
    return "run as root, with CAP_SYSLOG; or chmod a+r /dev/kmsg"


def _told_in(log: kmsg.Kmsg, group: JobCgroup) -> tuple[Verdict, str]:
    """A process is killed at its limit, and the line about it must come."""
    outcome = inside(group, lambda: touch(LOAD))
    if outcome.signal != signal.SIGKILL:
        return failed(outcome)
    deadline = time.monotonic() + QUEUED
    while select.select([log.fileno()], [], [], max(0, deadline - time.monotonic()))[0]:
        for record in log.read():
            if isinstance(kmsg.parse(record), kmsg.OomKilled):
                return "enforced", "/dev/kmsg told of a kill at a limit"
    return "accounted only", "/dev/kmsg can be read, but did not tell of a kill at a limit"


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
        outcome = inside(group, lambda: _stubborn(writer))
    finally:
        os.close(reader)
        os.close(writer)
        os.waitpid(pid, 0)
    if outcome.signal == signal.SIGKILL and not outcome.timed_out and not group.populated():
        return "enforced", f"by {_kill_means(group)}"
    return failed(outcome)


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
        return failed(outcome)
    return "enforced", "a busy process stood still, and went on"


def _frozen(group: JobCgroup) -> None:
    """Runs outside of the cgroup, with the busy process in it as a child of this trial's."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    if os.fork() == 0:
        os.close(reader)
        inside(group, lambda: _chatter(writer))
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
    return "enforced", "a child began its life in there"


def _cloned_into(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    pid, _ = syscalls.clone(0, exit_signal=signal.SIGCHLD, cgroup_fd=fd)
    if pid == 0:
        os._exit(0 if _in_cgroup(directory) else 1)
    if os.waitpid(pid, 0)[1] != 0:
        raise SupervisorError(f"the child was not in {directory}")


def _in_cgroup(directory: str) -> bool:
    return str(os.getpid()) in Path(directory, "cgroup.procs").read_text().split()
