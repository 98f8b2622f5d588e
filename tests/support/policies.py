"""For tests of policies: plugins from source text, and jobs and events to ask them about."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from attrs import evolve

from supervisor.model import Exited, JobSpec, JobView, Limits, MemoryLimit, PidsLimit, State
from supervisor.policy.engine import Engine
from supervisor.policy.registry import load
from supervisor.supervise.hookcall import HookCaller

MIB = 1024**2
HEADER = """\
import sys, threading, time
import attrs, trio
from supervisor.model import *
from supervisor.policy.hookspec import Duration, Size, hookimpl
"""
"""What every plugin here imports; its body begins on line 5."""

SPEC = JobSpec("sort", ("sort",), "sort", limits=Limits(memory=64 * MIB, pids=32))
AT_LIMIT = MemoryLimit(at=100.0, usage=64 * MIB, limit=64 * MIB, hits=3, held=True)
REFUSED = PidsLimit(at=100.0, refused=5, limit=32)
EXITED = Exited(at=200.0, code=1, signal=None)


def view(spec: JobSpec = SPEC, **changes: Any) -> JobView:
    """A running job in its first attempt, with the limits it was configured with."""
    running = JobView(spec, "r1", 1, State.RUNNING, spec.limits, 90.0, {})
    return evolve(running, **changes)


def plugin(directory: Path, name: str, body: str, *, header: str = HEADER) -> str:
    """The path of a new plugin called `name`."""
    path = directory / f"{name}.py"
    path.write_text(header + textwrap.dedent(body))
    return str(path)


def engine(*plugins: str, deadline: float = 5.0, **tables: dict[str, Any]) -> Engine:
    """An engine as the supervisor has it; `tables` are the policies' arguments by name."""
    return Engine(load(plugins, tables), HookCaller(), deadline=deadline)
