"""What the jobs of one instance share.

May import: everything above `supervise`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

from attrs import Factory, define

from supervisor.cgroup.api import CgroupManager
from supervisor.container.host import Host
from supervisor.container.spawn import Container, Launcher
from supervisor.model.event import Event
from supervisor.model.job import JobSpec
from supervisor.policy.engine import Engine
from supervisor.record.runs import RunIds, StateDir
from supervisor.supervise.admission import Admission
from supervisor.supervise.growth import Growth
from supervisor.supervise.idranges import IdRanges
from supervisor.supervise.images import Images
from supervisor.supervise.mirror import Mirrors
from supervisor.supervise.projects import Projects
from supervisor.supervise.reaper import Reaper
from supervisor.supervise.volumes import Volumes
from supervisor.watch.cgroup import Watcher
from supervisor.watch.kernel_log import KernelLog


class Log(Protocol):
    """Where entries go: `record.eventlog.EventLog`, or `record.quiet.QuietLog` of a `run`."""

    def emit(self, event: str, **fields: Any) -> None: ...

    def observe(self, job: str, run: str, event: Event) -> None: ...


class Connection(Protocol):
    """A run's network: `spec` is the job with its files in /etc, `connect` lets it start."""

    spec: JobSpec

    async def connect(self, container: Container) -> None: ...


class Network(Protocol):
    """`supervise.network` for root, a bridge; `supervise.pasta` for everybody else."""

    def seat(self, spec: JobSpec, run: str) -> AbstractAsyncContextManager[Connection]: ...

    def know(self, jobs: Iterable[JobSpec]) -> None:
        """The jobs there are now, which those that come may want to reach."""

    async def sweep(self) -> None: ...

    async def close(self) -> None: ...


@define
class Shared:
    """One instance's tools.

    `state` is None for a one-shot `run`: then `scratch` takes a writable layer, or `kept` one
    that is to stay, and the streams are the caller's own.  `stop_all` stops every job, as Ctrl-C
    does.
    """

    manager: CgroupManager
    launcher: Launcher
    host: Host
    reaper: Reaper
    watcher: Watcher
    kernel_log: KernelLog
    engine: Engine
    log: Log
    admission: Admission
    network: Network
    on_missing: Literal["refuse", "warn"]
    stop_all: Callable[[str], None]
    id_ranges: IdRanges
    projects: Projects
    images: Images
    growth: Growth
    mirrors: Mirrors
    state: StateDir | None = None
    scratch: Path | None = None
    kept: StateDir | None = None
    volumes: Volumes | None = None
    run_ids: RunIds = Factory(lambda: RunIds(time.time))
