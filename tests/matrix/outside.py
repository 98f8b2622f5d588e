"""The jobs whose end is brought about from outside: by a kill, a stop, a limit above their own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.matrix.cases import CONTINUE, FORKS, HOG, LATE, MEMORY, PIDS, Case, fills, perl, sh

PATIENCE = 60.0
"""Seconds to wait for a job to be where it is to be killed."""

Deed = Callable[[int], None]
"""What is done to a job, given the pid of its command."""

READY = "echo x > /tmp/ready"
"""Said by a job that may be stopped: see `batch.fifo`."""
PERL_READY = "open my $f, '>', '/tmp/ready'; print $f qq(x\\n); close $f; "
"""The same without a fork."""
SLEEPS = "while :; do sleep 1; done"


def parent(pid: int) -> int:
    """The command's parent is the job's init."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def asleep(pid: int, *, child: bool) -> int:
    """Wait until the command, or a child of it, has become `sleep`; its pid.

    Nobody tells of an exec, so this looks again and again.
    """
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for one in children(pid) if child else [pid]:
            if Path(f"/proc/{one}/comm").read_text() == "sleep\n":
                return one
        time.sleep(0.01)
    raise AssertionError(f"process {pid} does not come to sleep within {PATIENCE:g} s")


def kill_command(pid: int) -> None:
    os.kill(asleep(pid, child=False), signal.SIGKILL)


def terminate_command(pid: int) -> None:
    os.kill(asleep(pid, child=False), signal.SIGTERM)


def kill_child(pid: int) -> None:
    os.kill(asleep(pid, child=True), signal.SIGKILL)


def kill_init(pid: int) -> None:
    os.kill(parent(pid), signal.SIGKILL)


def stop_init(pid: int) -> None:
    os.kill(parent(pid), signal.SIGSTOP)


KILLED: dict[str, tuple[Case, Deed]] = {
    "killed": (Case(("sleep", "1000"), "signal", 137, MEMORY, signal=9), kill_command),
    "terminated": (Case(("sleep", "1000"), "signal", 143, {}, signal=15), terminate_command),
    "child-killed": (sh("sleep 1000; exit $?", "failed", exit_code=137), kill_child),
    "child-killed-ignored": (sh("sleep 1000; exit 0", "succeeded", exit_code=0), kill_child),
    "init-killed": (
        Case(("sleep", "1000"), "signal", 137, {}, signal=9,
             detail="init was killed by signal 9"), kill_init),
    "init-stopped-times-out": (
        Case(("sleep", "1000"), "timeout", 124, {"timeout": LATE}, signal=15), stop_init),
    "init-stopped-stubborn": (
        sh(f"trap '' TERM; {SLEEPS}", "timeout", signal=9,
           settings={"timeout": LATE, "stop.grace": "200ms"}), stop_init),
    "at-limit-killed": (
        fills("os.execvp('sleep', ['sleep', '1000'])", "signal", signal=9), kill_command),
    "pids-killed": (
        perl(FORKS + "exec 'sleep', '1000'", "pids", settings=PIDS, signal=9, refused=True),
        kill_command),
    "oom-continue-killed": (
        sh(f"{HOG}; exec sleep 1000", "signal", settings=CONTINUE, signal=9, oom_kills=1),
        kill_command),
}  # fmt: skip

STOPPED = {
    "stopped": sh(f"{READY}; exec sleep 1000", "stopped", signal=15),
    "stopped-well": sh(f"trap 'exit 0' TERM; {READY}; {SLEEPS}", "stopped", exit_code=0),
    "stopped-exits-137": sh(f"trap 'exit 137' TERM; {READY}; {SLEEPS}", "stopped", exit_code=137),
    "stopped-stubborn": sh(f"trap '' TERM; {READY}; {SLEEPS}", "stopped", signal=9,
                           settings={"stop.grace": "200ms"}),
    "stopped-into-oom": sh(f"trap 'exec {HOG}' TERM; {READY}; {SLEEPS}", "stopped", signal=9,
                           settings=MEMORY, oom_kills=1),
    "stopped-into-child-oom": sh(f"trap '{HOG}; exit 0' TERM; {READY}; {SLEEPS}", "stopped",
                                 settings=MEMORY, oom_kills=1),
    "stopped-after-refusal": perl(FORKS + PERL_READY + "exec 'sleep', '1000'", "stopped",
                                  settings=PIDS, signal=15, refused=True),
    "stopped-at-limit": fills(
        "open('/tmp/ready', 'w').write('x\\n')\nwhile True: fill()", "stopped", signal=15),
    "stopped-after-oom": sh(f"trap '' TERM; {HOG}; {READY}; {SLEEPS}", "stopped", signal=9,
                            settings={**CONTINUE, "stop.grace": "200ms"}, oom_kills=1),
    "stopped-before-start": Case(("true",), "skipped", 1, {"after": ["stopped"]}),
}  # fmt: skip
"""All of them run when their supervisor is told to stop, and have said so; but for the last."""

LARGE = {"limits.memory": "1G"}
ABOVE = {
    "above": sh(f"{HOG}; exit 0", "oom_host", settings=LARGE, oom_kills=1),
    "above-main": Case(("tail", "/dev/zero"), "oom_host", 137, LARGE, signal=9, oom_kills=1),
    "above-no-limit": Case(("tail", "/dev/zero"), "oom_host", 137, {}, oom_kills=1),
    "above-continues": sh(f"{HOG} || :; exit 0", "succeeded", settings={"oom": "continue"},
                          exit_code=0, oom_kills=1),
    "above-but-own": Case(("tail", "/dev/zero"), "oom", 137, {"limits.memory": "16M"},
                          oom_kills=1),
    "above-but-kills-itself": sh("kill -9 $$", "signal", settings=LARGE, signal=9),
    "above-but-exits-137": sh("exit 137", "failed", settings=LARGE, exit_code=137),
}  # fmt: skip
"""Their supervisor lives in a cgroup that allows 48 MiB for all; one runs at a time."""
