"""The record of one run: why it ended, what it used, and the evidence.

Sizes are bytes, durations seconds, times ISO 8601 in UTC.  `docs/verdicts.md` describes each
word and each field for the people who read them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from attrs import asdict, field, frozen


class Reason(StrEnum):
    """Why a run ended: a closed vocabulary."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SIGNAL = "signal"
    OOM = "oom"
    OOM_HOST = "oom_host"
    PIDS = "pids"
    TIMEOUT = "timeout"
    CPU_TIMEOUT = "cpu_timeout"
    OUTPUT = "output"
    DISK = "disk"
    STOPPED = "stopped"
    POLICY = "policy"
    START_FAILED = "start_failed"
    LOST = "lost"
    SKIPPED = "skipped"


@frozen
class CpuUse:
    """From cpuacct.usage and cpu.stat (v1) or cpu.stat (v2); None where the kernel has no file."""

    user_seconds: float | None = None
    system_seconds: float | None = None
    throttled_seconds: float | None = None
    quota_cpus: float | None = None


@frozen
class LimitChange:
    """One value a limit had: from when, and who set it (`configuration`, or a policy's name)."""

    at: str
    value: float | None
    by: str


@frozen
class LimitSet:
    """A change of one of the limits while the job ran, in that limit's unit; null: lifted."""

    at: str
    limit: str
    value: Any
    by: str


@frozen
class MemoryUse:
    limit: int | None = None
    peak: int | None = None
    oom_kills: int = 0
    limit_history: tuple[LimitChange, ...] = ()


@frozen
class PidsUse:
    limit: int | None = None
    peak: int | None = None
    refused: int = 0


@frozen
class IoUse:
    read_bytes: int | None = None
    write_bytes: int | None = None


@frozen
class OutputUse:
    """Bytes of stdout and stderr together; None where they went past the supervisor.

    `lost` were written by the job, and there was no room for them.
    """

    limit: int | None = None
    bytes: int | None = None
    lost: int | None = None


@frozen
class DiskUse:
    """Of the writable layer: what bounds it (`by`), and what was in it when the run had ended.

    `peak` is the most that was seen, `full` whether it was ever seen without room.
    """

    limit: int | None = None
    used: int | None = None
    peak: int | None = None
    inode_limit: int | None = None
    inodes: int | None = None
    full: bool = False
    by: str = ""


@frozen
class UserIds:
    """The host's numbers of a run in a range of its own: `size` from `host_id` on."""

    host_id: int
    size: int


@frozen
class ImageUse:
    """The image whose layers were the root: by which name, and its manifest's digest."""

    name: str
    digest: str


@frozen
class Evidence:
    """One thing that was read: from `source` (a path), `what` was found there."""

    source: str
    what: str


@frozen
class StartError:
    """Why the command never ran: the stage of `container.protocol.STAGES`, or `image`; `errno` 0
    where no system call failed."""

    stage: str
    errno: int
    path: str


@frozen
class RunRecord:
    """One run of one job, from its start to its verdict."""

    job: str
    run: str
    attempt: int
    reason: Reason
    command: tuple[str, ...]
    exit_code: int | None = None
    signal: int | None = None
    started_at: str | None = None
    finished_at: str | None = None
    wall_seconds: float | None = None
    cpu: CpuUse = CpuUse()
    memory: MemoryUse = MemoryUse()
    pids: PidsUse = PidsUse()
    io: IoUse = IoUse()
    output: OutputUse = OutputUse()
    disk: DiskUse = DiskUse()
    user_namespace: UserIds | None = None
    image: ImageUse | None = None
    limit_history: tuple[LimitSet, ...] = ()
    expected: bool = False
    detail: str = ""
    decided_by: str = ""
    submitted_by: str = ""
    start_error: StartError | None = None
    evidence: tuple[Evidence, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON's types, in the order of the fields."""
        return asdict(self, value_serializer=_plain)


def _plain(_instance: object, _attribute: object, value: Any) -> Any:
    return str(value) if isinstance(value, StrEnum) else value


def iso(at: float) -> str:
    """Unix time in seconds as ISO 8601 UTC with milliseconds."""
    moment = datetime.fromtimestamp(at, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
