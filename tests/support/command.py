"""Running the command `supervise` as a user does: as a process of its own, with a time limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support import host

ROOT = Path(__file__).parents[2]
"""The checkout."""


@dataclass(frozen=True)
class Done:
    """What a command left: its streams as text, and its status (negative: died by that signal)."""

    stdout: str
    stderr: str
    status: int


@dataclass(frozen=True)
class State:
    """Directories for one supervisor.  `runtime` is short: a socket's path ends at 107 bytes."""

    state: Path
    runtime: Path

    @property
    def table(self) -> str:
        """The head of a configuration's [supervisor] table that keeps to these directories."""
        return f'[supervisor]\nstate_dir = "{self.state}"\nruntime_dir = "{self.runtime}"\n'

    @property
    def environment(self) -> dict[str, str]:
        """The same for a supervisor without root and without a configuration."""
        return {"XDG_STATE_HOME": str(self.state), "XDG_RUNTIME_DIR": str(self.runtime)}


@dataclass(frozen=True)
class Supervise:
    """Calls the command; after `timeout` seconds (more in a guest) a call is stopped and fails."""

    where: State

    @property
    def prefix(self) -> tuple[str, ...]:
        """What stands before the command, as `nsenter` does."""
        return ()

    def __call__(
        self,
        *arguments: str | Path,
        stdin: str | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 60.0,
    ) -> Done:
        timeout *= host.SLOWNESS
        with self.start(*arguments, environment=environment, cwd=cwd) as process:
            try:
                out, err = process.communicate(stdin, timeout=timeout)
            except subprocess.TimeoutExpired:
                out, err = stop(process)
                raise AssertionError(
                    f"supervise {' '.join(map(str, arguments))}: not done after {timeout:g} s\n"
                    f"--- stdout\n{out}\n--- stderr\n{err}"
                ) from None
            except BaseException:
                process.kill()  # or leaving the block would wait for it, for ever if it hangs
                raise
        return Done(out, err, process.returncode)

    def start(
        self,
        *arguments: str | Path,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdout: int = subprocess.PIPE,
    ) -> subprocess.Popen[str]:
        """The command in the background; the caller waits for it (`stop` ends it)."""
        variables = {**os.environ, **self.where.environment, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [*self.prefix, sys.executable, "-m", "supervisor", *seen(arguments)],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={**variables, **(environment or {})},
        )


def seen(arguments: Sequence[str | Path]) -> list[str]:
    """A job that runs our own interpreter sees it, even if it lies in a home directory."""
    words = [str(argument) for argument in arguments]
    python = os.path.realpath(sys.executable)
    if words[:1] == ["run"] and python in words and python.startswith(("/root/", "/home/")):
        return ["run", "--mount", f"{sys.base_prefix}:{sys.base_prefix}:ro", *words[1:]]
    return words


def stop(process: subprocess.Popen[str], grace: float = 15.0) -> tuple[str, str]:
    """Ask as Ctrl-C does, so that it cleans up; kill after `grace` seconds.  The two streams."""
    process.send_signal(signal.SIGINT)
    try:
        return process.communicate(timeout=grace)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()
