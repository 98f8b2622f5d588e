"""From the end of a run to its record: the facts, the verdict, the evidence.

Called when the last process is gone and the cgroup is still there.  May import: everything above
`front`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from supervisor.cgroup.api import Counters, Usage
from supervisor.container import seccomp
from supervisor.errors import ImageError, KernelError, SpawnError, SupervisorError
from supervisor.linux import kmsg
from supervisor.model.image import Image
from supervisor.model.record import (
    CpuUse,
    DiskUse,
    Evidence,
    ImageUse,
    IoUse,
    MemoryUse,
    OutputUse,
    PidsUse,
    Reason,
    RunRecord,
    StartError,
    UserIds,
    iso,
)
from supervisor.model.verdict import Facts, verdict
from supervisor.record.exit_record import ExitRecord
from supervisor.supervise.reaper import ExitStatus, Lost
from supervisor.supervise.storage import Storage

if TYPE_CHECKING:
    from supervisor.supervise.run import Run


SIGSYS = 31
"""How a filter ends a process."""


@frozen
class _Read:
    """What the cgroup said at the end, or nothing when it could not be read any more."""

    counters: Counters
    usage: Usage
    evidence: tuple[Evidence, ...]
    foreign: bool = False


def conclude(run: Run, storage: Storage, status: ExitStatus | Lost, output: OutputUse) -> RunRecord:
    """The record of a run whose processes are all gone."""
    found = storage.exit_record()
    read = _read_cgroup(run)
    code, number, told = _exit(found, status)
    kills = read.counters.oom_kills
    use = DiskUse() if run.disk is None else run.disk.use()
    reason = verdict(
        Facts(
            code=code,
            signal=number,
            cause=run.cause,
            oom_own=0 if read.foreign else kills,
            oom_foreign=kills if read.foreign else 0,
            oom_first=run.oom_first,
            oom_command=run.shared.kernel_log.killed(run.payload, run.log_mark) if kills else None,
            refused=read.counters.refused,
            disk_full=use.full,
            oom=run.spec.oom,
        )
    )
    record = _record(run, reason, code, number, read, found, told)
    return evolve(
        record,
        output=output,
        disk=use,
        evidence=record.evidence
        + (() if run.disk is None else run.disk.evidence())
        + _filtered_calls(run, number),
    )


def start_failed(run: Run, error: SupervisorError) -> RunRecord:
    """The record of a run whose command never ran an instruction; `stopped` if that was asked."""
    stopped = run.cause is not None
    told = None
    if isinstance(error, SpawnError):
        told = StartError(error.stage, error.errno, error.path)
    elif isinstance(error, ImageError):
        told = StartError("image", 0, error.where)
    reason = run.cause.reason if run.cause else Reason.START_FAILED
    return RunRecord(
        job=run.spec.name,
        run=run.id,
        attempt=run.attempt,
        reason=reason,
        command=run.spec.command,
        started_at=iso(run.started_at),
        finished_at=iso(time.time()),
        memory=MemoryUse(limit=run.limits.memory),
        pids=PidsUse(limit=run.limits.pids),
        output=OutputUse(limit=run.limits.output),
        disk=DiskUse(limit=run.limits.disk, inode_limit=run.limits.disk_inodes),
        user_namespace=_user_ids(run),
        image=image_use(run.image),
        limit_history=tuple(run.limits_set),
        expected=reason == run.spec.expect,
        detail="stopped while it was started" if stopped else str(error),
        submitted_by=run.submitted_by,
        start_error=None if stopped else told,
    )


def image_use(image: Image | None) -> ImageUse | None:
    return None if image is None else ImageUse(image.name, image.digest)


def _user_ids(run: Run) -> UserIds | None:
    """None where there was none, or none was given yet."""
    space = run.spec.user_namespace
    return UserIds(space.host_id, space.size) if space.kind == "map" else None


def _read_cgroup(run: Run) -> _Read:
    try:
        counters = run.cgroup.counters()
        foreign = counters.oom_kills > 0 and _foreign(run)
        readings = run.cgroup.evidence()
        evidence = tuple(Evidence(r.path, " ".join(r.text.split())) for r in readings)
        return _Read(counters, run.cgroup.usage(), evidence + _from_log(run, counters), foreign)
    except KernelError as error:
        told = Evidence(run.cgroup.path, f"cannot be read: {error}")
        return _Read(Counters(), Usage(), (told,))


def _foreign(run: Run) -> bool:
    """Whether a limit other than the job's own killed, or the host's want of memory.

    By the counters; by v1's alarm, for the traces of an own limit may be those of a reclaim that
    succeeded; else by the kernel log.
    """
    told = run.cgroup.foreign_oom()
    if run.subscription.announced is False:
        return True
    if told is not None:
        return told
    own = _kernel_paths(run)
    limiting = [run.shared.kernel_log.limiting(path) for path in own]
    return any(path is not None and path not in own for path in limiting)


def _kernel_paths(run: Run) -> tuple[str, ...]:
    return tuple(n.path for n in run.cgroup.notifications if n.kind == "kmsg")


def _filtered_calls(run: Run, signal: int | None) -> tuple[Evidence, ...]:
    """What the kernel log has of system calls that the filter logged, or ended the job for."""
    if run.spec.seccomp in ("default", "unconfined") and signal != SIGSYS:
        return ()
    found: dict[str, int] = {}
    log, paths = run.shared.kernel_log, _kernel_paths(run)
    for call, certain in log.filtered(*paths, pid=run.payload, since=run.calls_mark):
        name = seccomp.call_name(call.architecture, call.call)
        what = "let through, though refused by default" if call.let_through else "not allowed"
        text = f"system call {name} of process {call.pid} ({call.comm!r}): {what}"
        text += "" if certain else " (it had ended, and may have been another job's)"
        found[text] = found.get(text, 0) + 1
    return tuple(
        Evidence(kmsg.PATH, text + (f", {count} times" if count > 1 else ""))
        for text, count in found.items()
    )


def _from_log(run: Run, counters: Counters) -> tuple[Evidence, ...]:
    if not counters.oom_kills and not counters.refused:
        return ()
    pids = (run.payload,) if counters.oom_kills else ()
    return run.shared.kernel_log.evidence_for(*_kernel_paths(run), pids=pids)


def _exit(
    found: ExitRecord | None, status: ExitStatus | Lost
) -> tuple[int | None, int | None, str]:
    """The payload's code and signal; in words, when they are not from its own parent."""
    if found is not None:
        return found.code, found.signal, ""
    if isinstance(status, Lost):
        return None, None, f"no exit record, and the init's status is lost: {status.why}"
    if status.signal is not None:
        # with PID 1 the kernel kills everyone: the payload died of SIGKILL
        return None, 9, f"the job's init was killed by signal {status.signal}"
    return None, None, f"no exit record, although the init exited with {status.code}"


def _record(
    run: Run,
    reason: Reason,
    code: int | None,
    number: int | None,
    read: _Read,
    found: ExitRecord | None,
    told: str,
) -> RunRecord:
    cause = run.cause if run.cause is not None and run.cause.reason is reason else None
    # both from the init's clock: our own tell when we heard of it
    started = found.started if found is not None else run.started_at
    finished = found.ended if found is not None else run.finished_at
    counters, usage = read.counters, read.usage
    return RunRecord(
        job=run.spec.name,
        run=run.id,
        attempt=run.attempt,
        reason=reason,
        command=run.spec.command,
        exit_code=code,
        signal=number,
        started_at=iso(started),
        finished_at=iso(finished),
        wall_seconds=round(max(finished - started, 0.0), 6),
        cpu=CpuUse(
            user_seconds=found.utime if usage.cpu_user is None and found else usage.cpu_user,
            system_seconds=found.stime if usage.cpu_system is None and found else usage.cpu_system,
            throttled_seconds=usage.throttled,
            quota_cpus=run.limits.cpus,
        ),
        memory=MemoryUse(
            run.limits.memory, usage.memory_peak, counters.oom_kills, tuple(run.limit_history)
        ),
        pids=PidsUse(run.limits.pids, usage.pids_peak, counters.refused),
        io=IoUse(usage.read_bytes, usage.write_bytes),
        user_namespace=_user_ids(run),
        image=image_use(run.image),
        limit_history=tuple(run.limits_set),
        expected=reason == run.spec.expect,
        detail=told or (cause.why if cause else ""),
        decided_by=cause.by if cause else "",
        submitted_by=run.submitted_by,
        evidence=read.evidence,
    )
