"""Commands put into the jobs of a real instance: the verb `exec`, and jobs for it.

May import: `tests.support`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import procs
from tests.support.batch import PATIENCE, Batch, Record, Running
from tests.support.command import ROOT, Done, Supervise
from tests.support.containers import own_state, toml, with_python


class Instance:
    """A batch that runs, into whose jobs commands are put."""

    def __init__(self, batch: Batch, running: Running) -> None:
        self.batch = batch
        self.running = running
        self.socket = str(batch.where.runtime / batch.name / "socket")

    @property
    def environment(self) -> dict[str, str]:
        return {"SUPERVISE_SOCKET": self.socket}

    def ask(self, *words: str, **options: Any) -> Done:
        """Any verb that speaks to the instance."""
        return self.batch.supervise(*words, environment=self.environment, **options)

    def exec(self, *words: str, **options: Any) -> Done:
        return self.ask("exec", *words, **options)

    def popen(self, *words: str, verb: str = "exec", **options: Any) -> subprocess.Popen[bytes]:
        """The verb with streams of the caller's choice."""
        where = self.batch.where.environment | self.environment | {"PYTHONPATH": str(ROOT)}
        argv = [sys.executable, "-m", "supervisor", verb, *words]
        return subprocess.Popen(argv, env={**os.environ, **where}, **options)

    def sessions(self) -> list[Record]:
        """The ends of sessions that have been told so far."""
        return self.batch.entries("session_ended")

    def next_end(self, before: list[Record]) -> Record:
        """That of the first session that ended after `before` was asked for, once it has."""
        deadline = time.monotonic() + PATIENCE
        while len(told := self.sessions()) == len(before):
            assert time.monotonic() < deadline, "no session ends"
            time.sleep(0.02)
        return told[len(before)]


@contextmanager
def instance(base: Path, text: str, *names: str) -> Iterator[Instance]:
    """One for many tests, with the jobs of `text`; `names` of them run when the block begins."""
    with own_state(base) as where:
        where.runtime.chmod(0o711)  # the root of a job's user namespace walks through it
        batch = Batch(Supervise(where), base)
        with batch.start(text) as running:
            running.wait_started(*names)
            yield Instance(batch, running)


def until(condition: Callable[[], object]) -> None:
    """Wait for what nobody tells of."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def until_runs(command: str) -> int:
    """Wait for a process with exactly these arguments, which nobody tells of; its pid."""
    deadline = time.monotonic() + PATIENCE
    while True:
        for pid in procs.table():
            if procs.command_line(pid) == command:
                return pid
        assert time.monotonic() < deadline, f"{command} does not come to run"
        time.sleep(0.02)


def jobs(**jobs: dict[str, Any]) -> str:
    """The TOML of jobs that sleep, unless they say otherwise."""
    lines = []
    for name, settings in jobs.items():
        lines.append(f"[jobs.{name}]")
        filled = with_python({"command": ["sleep", "1000"], **settings})
        lines += [f"{key} = {toml(value)}" for key, value in filled.items()]
    return "\n".join(lines)
