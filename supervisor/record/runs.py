"""Where an instance keeps what it writes down, and the names of runs.

    STATE/NAME/
        events.ndjson           the event log (`record.eventlog`)
        history.sqlite3         the same to be searched, and longer (`record.history`)
        logs/JOB.STAMP.out      what the payload wrote, and .err
        runs/RUN/spec.json      what was started: written before the container is made
        runs/RUN/exit           how it ended: written by the job's init (`record.exit_record`)

        runs/RUN/upper/         what it wrote to its overlay, if that is kept
        runs/RUN/out/           what `copy_out` names

RUN is STAMP-JOB, e.g. `mj3k2x9q-compress`: it names the cgroup directories too.

May import: `errors`, `model`, attrs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from supervisor.errors import KernelError
from supervisor.model.job import JobSpec

ONE_SHOTS = ".run"
"""The NAME of what `supervise run` keeps: no instance can have it."""
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
STAMP_LENGTH = 8
UNSAFE = re.compile(r"[^A-Za-z0-9._=,+@-]")
NAME_LENGTH = 100
"""NAME_MAX is 255 bytes, for a stamp, a name and an ending."""


@frozen
class Bounds:
    """What is kept of runs that have ended: those of the last `keep` seconds, `runs` at most.

    None: no bound.
    """

    keep: float | None = None
    runs: int | None = None


def safe_name(job: str) -> str:
    """`job` as a part of a file's or a cgroup's name: no `/`, no control characters, bounded."""
    return UNSAFE.sub("_", job)[:NAME_LENGTH]


def stamp(milliseconds: int) -> str:
    """Unix time in base 36: short, and sorted as text in the order of time until the year 2059."""
    digits = ""
    while milliseconds:
        milliseconds, digit = divmod(milliseconds, 36)
        digits = DIGITS[digit] + digits
    return digits.rjust(STAMP_LENGTH, "0")


class RunIds:
    """Gives each run its id: unique in the instance, in the order of their beginning.

    Two runs in one millisecond, or a clock set back, get the next free number.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives Unix time in seconds."""
        self._clock = clock
        self._last = 0

    def new(self, job: str) -> str:
        self._last = max(self._last + 1, int(self._clock() * 1000))
        return f"{stamp(self._last)}-{safe_name(job)}"

    def resume(self, runs: Path) -> None:
        """Never give an id at or before those an earlier supervisor left in the directory `runs`.

        Matters when the clock was set back in between.
        """
        for name in os.listdir(runs) if runs.is_dir() else ():
            head, dash, _job = name.partition("-")
            if dash and len(head) == STAMP_LENGTH and set(head) <= set(DIGITS):
                self._last = max(self._last, int(head, 36))


@frozen
class StateDir:
    """The paths below STATE/NAME; making one is the only thing that touches the disk."""

    root: Path

    @property
    def events(self) -> Path:
        return self.root / "events.ndjson"

    @property
    def history(self) -> Path:
        return self.root / "history.sqlite3"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def spec(self, run: str) -> Path:
        return self.runs / run / "spec.json"

    def exit(self, run: str) -> Path:
        return self.runs / run / "exit"

    def log(self, job: str, run: str, stream: str) -> Path:
        """The file for `stream`, `out` or `err`."""
        return self.logs / f"{safe_name(job)}.{run.partition('-')[0]}.{stream}"

    def make(self) -> None:
        """Make what is missing, for the owner's eyes only.  Raises KernelError."""
        for path in (self.root, self.runs, self.logs):
            _mkdir(path)

    def make_run(self, run: str, spec: JobSpec, facts: Mapping[str, Any]) -> None:
        """Make the run's directory and its spec.json: `spec` and what else `facts` tell of it.

        Raises KernelError (ENOSPC, EDQUOT among them: whether to go on without is the caller's
        to say).
        """
        _mkdir(self.runs / run)
        _write(self.spec(run), {"v": 1, "run": run, **facts, "spec": asdict(spec)})


def _mkdir(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise KernelError("mkdir", str(path), error.errno or 0) from error


def _write(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON so that a reader finds the whole of it or nothing.

    No fsync: it outlives this process without, and after a crash of the machine there is no job
    left that it could describe.
    """
    new = path.with_name(path.name + ".new")
    try:
        new.write_text(json.dumps(value) + "\n")
        new.rename(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise KernelError("write", str(path), error.errno or 0) from error
