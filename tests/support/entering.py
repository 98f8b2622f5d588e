"""Commands put into the jobs of a real instance: the verb `exec`, and jobs for it.

May import: `tests.support`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from tests.support.batch import Batch
from tests.support.command import ROOT, Done
from tests.support.containers import toml, with_python


class Instance:
    """A batch whose jobs commands are put into."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.socket = str(batch.where.runtime / batch.name / "socket")

    @property
    def environment(self) -> dict[str, str]:
        return {"SUPERVISE_SOCKET": self.socket}

    def exec(self, *words: str, **options: Any) -> Done:
        return self.batch.supervise("exec", *words, environment=self.environment, **options)

    def popen(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        """The verb with streams of the caller's choice."""
        where = self.batch.where.environment | self.environment | {"PYTHONPATH": str(ROOT)}
        argv = [sys.executable, "-m", "supervisor", "exec", *words]
        return subprocess.Popen(argv, env={**os.environ, **where}, **options)


def jobs(**jobs: dict[str, Any]) -> str:
    """The TOML of jobs that sleep, unless they say otherwise."""
    lines = []
    for name, settings in jobs.items():
        lines.append(f"[jobs.{name}]")
        filled = with_python({"command": ["sleep", "1000"], **settings})
        lines += [f"{key} = {toml(value)}" for key, value in filled.items()]
    return "\n".join(lines)
