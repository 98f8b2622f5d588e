"""A bad end in a few lines: what it was, on what evidence, what to do about it.  Pure.

For `supervise run`, whose only other output is the command's own, and for `supervise explain`.
May import: `errors`, `model`, `front.lines`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Protocol

from supervisor.front import lines
from supervisor.model import units
from supervisor.model.record import Evidence, Reason, RunRecord

MOST_EVIDENCE = 4
MIB = 1 << 20
BY_COUNTER = frozenset({Reason.OOM, Reason.OOM_HOST, Reason.PIDS, Reason.DISK, Reason.LOST})
"""The reasons that rest on what was read from the kernel; of the others it tells nothing."""


class Way(Protocol):
    """How what is proposed is written: as flags of `run`, or as settings of a file."""

    def name(self, setting: str) -> str: ...

    def put(self, setting: str, value: str | int) -> str: ...

    def raising(self, to: str) -> str: ...

    def whole(self, record: RunRecord) -> str:
        """Where the record is in full."""


class Flags:
    """For `supervise run`."""

    def name(self, setting: str) -> str:
        return f"--{setting}"

    def put(self, setting: str, value: str | int) -> str:
        return f"--{setting} {value}"

    def raising(self, to: str) -> str:
        return f"--on-memory-limit raise:{to}"

    def whole(self, _record: RunRecord) -> str:
        return "--record -"


class Settings:
    """For a job of a configuration."""

    def name(self, setting: str) -> str:
        key = setting.replace("-", "_")
        return key if key in ("timeout", "cpu_time") else f"limits.{key}"

    def put(self, setting: str, value: str | int) -> str:
        return f"{self.name(setting)} = " + (f'"{value}"' if isinstance(value, str) else str(value))

    def raising(self, to: str) -> str:
        return f'on_memory_limit = {{ action = "raise", to = "{to}" }}'

    def whole(self, record: RunRecord) -> str:
        return f"supervise history --run {record.run}"


def explain(record: RunRecord, way: Way = Flags()) -> list[str]:  # noqa: B008 - has no state
    """The lines for a run that did not succeed; none for one that did.

    The first names the reason, then comes the evidence (`  read FILE: WHAT`), the last says
    what can be done (`  try ...`), written in one `way` or the other.
    """
    if record.reason is Reason.SUCCEEDED:
        return []
    what, remedy = EXPLAIN[record.reason](record, way)
    told = [f"{record.reason}: {what}"]
    if record.detail and record.detail not in what:
        told.append(f"  {record.detail}")
    if record.decided_by not in ("", "configuration"):
        told.append(f"  decided by {record.decided_by}")
    evidence = sorted(record.evidence, key=_telling) if record.reason in BY_COUNTER else []
    told += [f"  read {item.source}: {item.what}" for item in evidence[:MOST_EVIDENCE]]
    if len(evidence) > MOST_EVIDENCE:
        told.append(f"  ({len(evidence) - MOST_EVIDENCE} more in the record: {way.whole(record)})")
    if remedy:
        told.append(f"  try {remedy}")
    return [lines.clean(line) for line in told]


def _telling(item: Evidence) -> int:
    """What says most comes first: who was killed, then that somebody was, then the limits."""
    if item.source == "/dev/kmsg" or item.source.startswith("writable layer"):
        return 0
    counts = ("memory.oom_control", "memory.events", "pids.events")
    return 1 if item.source.endswith(counts) else 2


def _after(record: RunRecord) -> str:
    return f" after {lines.duration(record.wall_seconds)}" if record.wall_seconds else ""


def _signal_name(number: int | None) -> str:
    try:
        return signal.Signals(number or 0).name
    except ValueError:
        return f"signal {number}"


def _failed(record: RunRecord, _way: Way) -> tuple[str, str]:
    code = record.exit_code or 0
    text = f"the command ended by itself with exit code {record.exit_code}{_after(record)}"
    if code in (126, 127):
        return f"{text} (a shell's way to say it could not run a program)", ""
    if 128 < code <= 128 + signal.SIGRTMAX:
        child = f"a shell says so when {_signal_name(code - 128)} ended its child"
        return f"{text} ({child}; no limit was involved)", ""
    return text, ""


def _signal(record: RunRecord, _way: Way) -> tuple[str, str]:
    text = f"{_signal_name(record.signal)} ended the command{_after(record)}"
    if record.signal in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        return f"{text}; supervise did not send it and no limit was involved", ""
    return text, ""


def _oom(record: RunRecord, way: Way) -> tuple[str, str]:
    memory = record.memory
    text = (
        f"the kernel killed it at its memory limit of {lines.size(memory.limit)} "
        f"(peak {lines.size(memory.peak)}, {_times(memory.oom_kills, 'kill')}){_after(record)}"
    )
    if memory.limit is None:
        return text, ""
    more = units.size_text(_rounded(2 * memory.limit))
    most = units.size_text(_rounded(8 * memory.limit))
    return text, f"{way.put('memory', more)}, or {way.raising(most)} to raise it while it runs"


def _rounded(size: int) -> int:
    """Whole MiB, so that what is proposed is short to type."""
    return -(-size // MIB) * MIB if size > MIB else size


def _oom_host(record: RunRecord, way: Way) -> tuple[str, str]:
    text = (
        "the kernel killed a process of it for want of memory outside: a cgroup above it, or the "
        f"whole host, was full (peak {lines.size(record.memory.peak)}, its own limit "
        f"{lines.limit_value('memory', record.memory.limit)} was not reached){_after(record)}"
    )
    name = way.name("memory")
    return text, f"again when less runs beside it, or a {name} that this host really has"


def _pids(record: RunRecord, way: Way) -> tuple[str, str]:
    how = (
        _signal_name(record.signal)
        if record.signal is not None
        else f"exit code {record.exit_code}"
    )
    pids = record.pids
    text = (
        f"it ended with {how} after the kernel had refused it {_times(pids.refused, 'fork')} at "
        f"its limit of {lines.number(pids.limit)} tasks (threads count){_after(record)}"
    )
    if pids.limit is None:
        return text, ""
    return text, f"{way.put('pids', 2 * pids.limit)}, if it is meant to have so many"


def _times(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _timeout(record: RunRecord, way: Way) -> tuple[str, str]:
    spent = lines.duration(record.wall_seconds)
    return (
        f"it was stopped{_after(record)}, when its time was over",
        f"a longer {way.name('timeout')} than {spent}",
    )


def _cpu_timeout(record: RunRecord, way: Way) -> tuple[str, str]:
    used = (record.cpu.user_seconds or 0.0) + (record.cpu.system_seconds or 0.0)
    return (
        f"it was stopped when it had used up its CPU time ({lines.duration(used)} of it"
        f"{_after(record)})",
        f"a longer {way.name('cpu-time')}",
    )


def _output(_record: RunRecord, way: Way) -> tuple[str, str]:
    return "it was stopped: it wrote more output than its limit", f"a larger {way.name('output')}"


def _disk(record: RunRecord, way: Way) -> tuple[str, str]:
    disk = record.disk
    if disk.limit is None or disk.inodes is None:
        return "it failed with its disk limit used up", f"a larger {way.name('disk')}"
    if disk.inodes == disk.inode_limit:
        text = f"it failed with all {disk.inode_limit} inodes of its disk used up{_after(record)}"
        return text, way.put("disk-inodes", 2 * disk.inode_limit)
    text = f"it failed with its disk limit of {lines.size(disk.limit)} used up{_after(record)}"
    return text, way.put("disk", units.size_text(2 * disk.limit))


def _stopped(record: RunRecord, _way: Way) -> tuple[str, str]:
    return f"it was stopped on request{_after(record)}", ""


def _policy(record: RunRecord, _way: Way) -> tuple[str, str]:
    return f"a policy stopped it{_after(record)}", ""


def _start_failed(_record: RunRecord, _way: Way) -> tuple[str, str]:
    return "the command was never started", ""


def _lost(_record: RunRecord, _way: Way) -> tuple[str, str]:
    return "how it ended cannot be told; no exit record could be read", ""


def _skipped(_record: RunRecord, _way: Way) -> tuple[str, str]:
    return "it was not run", ""


EXPLAIN: dict[Reason, Callable[[RunRecord, Way], tuple[str, str]]] = {
    Reason.FAILED: _failed,
    Reason.SIGNAL: _signal,
    Reason.OOM: _oom,
    Reason.OOM_HOST: _oom_host,
    Reason.PIDS: _pids,
    Reason.TIMEOUT: _timeout,
    Reason.CPU_TIMEOUT: _cpu_timeout,
    Reason.OUTPUT: _output,
    Reason.DISK: _disk,
    Reason.STOPPED: _stopped,
    Reason.POLICY: _policy,
    Reason.START_FAILED: _start_failed,
    Reason.LOST: _lost,
    Reason.SKIPPED: _skipped,
}
"""For each reason: what it was, and what can be tried."""
