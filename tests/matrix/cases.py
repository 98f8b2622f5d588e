"""The jobs that end without anybody's help, and what is to be told of each end."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.support import host

PYTHON = os.path.realpath(sys.executable)
"""Not a link into a virtual environment; and where it lies in a home, jobs must not hide that."""
LATE = "10s" if host.in_guest() else "3s"
"""A timeout that comes when the job is where it is to be struck: the guest is slow."""
HOG = "tail /dev/zero"
"""GNU tail keeps all of a line that does not end: it grows until it is stopped."""
MEMORY = {"limits.memory": "16M", "limits.swap": 0}
CONTINUE = {**MEMORY, "oom": "continue"}
PIDS = {"limits.pids": 8}
BUSYBOX = {"mounts": [{"source": "BUSYBOX", "target": "/tmp/busybox"}]}

FORKS = "my @p; for (1..20) { my $p = fork; if (defined $p && !$p) { sleep 1000; exit } } "
FILLS = """
import mmap, os
room = mmap.mmap(-1, 24 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
def fill():
    for at in range(0, 24 << 20, 1 << 18):
        room[at : at + (1 << 18)] = b"x" * (1 << 18)
        room.madvise(mmap.MADV_FREE, at, 1 << 18)
fill()
"""
"""Python that reaches a limit of 16 MiB and is not killed: MADV_FREE lets the kernel take the pages
back when the limit is reached, and not before."""
EATS = "my @a; push @a, q(x) x 65536 while 1"


@dataclass(frozen=True)
class Case:
    """One job, and all that is to be told of its end; `status` is that of `supervise run`.

    `exit_code` and `signal` None: either there is none, or it hangs on who was faster.
    """

    command: tuple[str, ...]
    reason: str
    status: int
    settings: Mapping[str, Any]
    exit_code: int | None = None
    signal: int | None = None
    oom_kills: int = 0
    """At least; exactly, where it is 0 or the job may go on."""
    refused: bool = False
    evidence: str = ""
    """Words that one piece of the evidence must contain."""
    detail: str = ""
    """Words that the detail must contain; none, and there may be no detail, see `judge`."""
    full: bool = False
    """Its memory limit was reached, whether anybody was killed or not."""


def sh(script: str, reason: str, status: int = 1, /, **more: Any) -> Case:
    settings = more.pop("settings", {})
    return Case(("sh", "-c", script), reason, status, settings, **more)


def perl(script: str, reason: str, status: int = 1, /, **more: Any) -> Case:
    settings = more.pop("settings", {})
    return Case(("perl", "-e", script), reason, status, settings, **more)


def fills(then: str, reason: str, status: int = 1, /, **more: Any) -> Case:
    """One that reaches its limit of 16 MiB without a kill, and does something then."""
    settings = {**MEMORY, "hide": "nothing", **more.pop("settings", {})}
    command = PYTHON, "-I", "-S", "-c", FILLS + then
    return Case(command, reason, status, settings, full=True, **more)


ENDS = {
    "succeeds": sh("exit 0", "succeeded", 0, exit_code=0),
    "fails": sh("exit 3", "failed", 3, exit_code=3),
    "exits-137": sh("exit 137", "failed", 137, exit_code=137),
    "exits-124": sh("exit 124", "failed", 124, exit_code=124),
    "kills-its-child": sh("sleep 1000 & kill -9 $!; wait $!", "failed", 137, exit_code=137),
    "segfaults": sh("kill -SEGV $$", "signal", 139, signal=11),
    "segfaults-by-itself": perl("unpack('p', pack('J', 1))", "signal", 139, signal=11),
    "aborts": sh("kill -ABRT $$", "signal", 134, signal=6),
    "kills-itself": sh("kill -KILL $$", "signal", 137, signal=9),
    "terminates-itself": sh("kill -TERM $$", "signal", 143, signal=15),
    "leaves-daemons": sh("(setsid sh -c 'trap \"\" TERM HUP; sleep 1000 & sleep 1000' &); exit 0",
                         "succeeded", 0, exit_code=0),
    "not-found": Case(("/no/such/program",), "start_failed", 127, {}),
    "not-executable": Case(("/etc/passwd",), "start_failed", 126, {}),
    "no-such-directory": Case(("true",), "start_failed", 125, {"working_dir": "/no/such"}),
}  # fmt: skip

OUT_OF_MEMORY = {
    "oom-main": Case(("tail", "/dev/zero"), "oom", 137, MEMORY, signal=9, oom_kills=1,
                     evidence="killed process"),
    "oom-main-swap-unset": Case(("tail", "/dev/zero"), "oom", 137, {"limits.memory": "16M"},
                                signal=9, oom_kills=1),
    "oom-main-some-swap": Case(("tail", "/dev/zero"), "oom", 137,
                               {"limits.memory": "16M", "limits.swap": "8M"},
                               signal=9, oom_kills=1),
    "oom-child": sh(f"{HOG}; exit 0", "oom", 137, settings=MEMORY, oom_kills=1),
    "oom-child-main-waits": sh(f"{HOG} & sleep 1000", "oom", 137, settings=MEMORY, signal=9,
                               oom_kills=1),
    "oom-grandchild": sh(f"sh -c '({HOG}; :); :'; exit 0", "oom", 137, settings=MEMORY,
                         oom_kills=1),
    "oom-orphan": sh(f"(setsid {HOG} &) ; sleep 1000", "oom", 137, settings=MEMORY, signal=9,
                     oom_kills=1),
    "oom-many": sh(f"for i in 1 2 3 4 5 6 7 8; do {HOG} & done; wait; exit 0", "oom", 137,
                   settings=MEMORY, oom_kills=1),
    "oom-threads": Case(
        ("perl", "-Mthreads", "-e", f"threads->create(sub {{ {EATS} }}) for 1..8; sleep 1000"),
        "oom", 137, {"limits.memory": "32M", "limits.swap": 0}, signal=9, oom_kills=1),
    "oom-shared-memory": sh("cat /dev/zero > /tmp/file; exit 0", "oom", 137, settings=MEMORY,
                            oom_kills=1),
    "oom-after-reclaim": fills("bytearray(64 << 20)", "oom", 137, signal=9, oom_kills=1),
    "oom-after-refused-fork": perl(FORKS + EATS, "oom", 137, settings={**MEMORY, **PIDS},
                                   signal=9, oom_kills=1, refused=True),
    "oom-continue": sh(f"{HOG}; exit 0", "succeeded", 0, settings=CONTINUE,
                       exit_code=0, oom_kills=1),
    "oom-continue-fails": sh(f"{HOG}", "failed", 137, oom_kills=1, exit_code=137,
                             settings=CONTINUE),
    "oom-continue-main": Case(("tail", "/dev/zero"), "oom", 137, CONTINUE,
                              signal=9, oom_kills=1),
    "oom-continue-main-too": sh(f"{HOG}; exec {HOG}", "oom", 137, settings=CONTINUE,
                                signal=9, oom_kills=2),
    "oom-continue-kills-itself": sh(f"{HOG}; kill -KILL $$", "signal", 137, settings=CONTINUE,
                                    signal=9, oom_kills=1),
    "oom-continue-times-out": sh(
        f"trap '' TERM; {HOG}; while :; do sleep 1; done", "timeout", 124, signal=9, oom_kills=1,
        settings={**CONTINUE, "timeout": LATE, "stop.grace": "100ms"}),
    "oom-in-exec": Case(("true",), "oom", 137, {"limits.memory": "4K", "limits.swap": 0},
                        signal=9, oom_kills=1),
    "oom-at-once": Case(("/tmp/busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=64M",
                         "count=1"), "oom", 137,
                        {**BUSYBOX, "limits.memory": "2M", "limits.swap": 0},
                        signal=9, oom_kills=1, evidence="killed process"),
    "oom-not-raised": Case(("tail", "/dev/zero"), "oom", 137,
                           {**MEMORY, "on_memory_limit": {"action": "ignore"}},
                           signal=9, oom_kills=1),
    "at-limit-succeeds": fills("os._exit(0)", "succeeded", 0, exit_code=0),
    "at-limit-exits-137": fills("os._exit(137)", "failed", 137, exit_code=137),
    "at-limit-kills-itself": fills("os.kill(os.getpid(), 9)", "signal", 137, signal=9),
    "at-limit-times-out": fills("while True: fill()", "timeout", 124, signal=15,
                                settings={"timeout": LATE}),
}  # fmt: skip

REFUSED = {
    "pids-bad-end": perl(FORKS + "exit 7", "pids", 7, settings=PIDS, exit_code=7, refused=True),
    "pids-good-end": perl(FORKS + "exit 0", "succeeded", 0, settings=PIDS, exit_code=0,
                          refused=True),
    "pids-exits-137": perl(FORKS + "exit 137", "pids", 137, settings=PIDS, exit_code=137,
                           refused=True),
    "pids-signal": perl(FORKS + "kill 'ABRT', $$; sleep 1000", "pids", 134, settings=PIDS,
                        signal=6, refused=True),
    "pids-times-out": perl(FORKS + "sleep 1000", "timeout", 124, signal=15, refused=True,
                           settings={**PIDS, "timeout": LATE}),
    "pids-policy": perl(FORKS + "sleep 1000", "policy", 143, signal=15, refused=True,
                        settings={**PIDS, "on_pids_limit": {"action": "kill", "why": "enough"}}),
}  # fmt: skip

ENDED = {
    "times-out": Case(("sleep", "1000"), "timeout", 124, {"timeout": "300ms"}, signal=15),
    "times-out-well": sh("trap 'exit 0' TERM; while :; do sleep 1; done", "timeout", 124,
                         settings={"timeout": "300ms"}),
    "times-out-stubborn": sh("trap '' TERM INT HUP; while :; do sleep 1; done", "timeout", 124,
                             settings={"timeout": LATE, "stop.grace": "300ms"}, signal=9),
    "times-out-stopped": sh("kill -STOP $$", "timeout", 124, signal=15,
                            settings={"timeout": "300ms", "stop.grace": "30s"}),
    "times-out-stubborn-tree": sh(
        "setsid sh -c 'trap \"\" TERM; (trap \"\" TERM; kill -STOP $PPID; sleep 1000) & sleep 1000'"
        " & trap '' TERM; while :; do sleep 1; done", "timeout", 124, signal=9,
        settings={"timeout": LATE, "stop.grace": "200ms"}),
    "times-out-into-oom": sh(f"trap 'exec {HOG}' TERM; while :; do sleep 1; done", "timeout", 124,
                             signal=9, oom_kills=1, settings={**MEMORY, "timeout": LATE}),
    "burns-cpu": sh("while :; do :; done", "cpu_timeout", 124, settings={"cpu_time": "200ms"},
                    signal=15),
    "burns-cpu-in-child": sh("sh -c 'while :; do :; done' & wait", "cpu_timeout", 124,
                             settings={"cpu_time": "200ms"}, signal=15),
    "policy": Case(("sleep", "1000"), "policy", 143,
                   {"on_start": {"action": "kill", "why": "enough"}}, signal=15),
    "policy-by-kill": Case(("sleep", "1000"), "policy", 137,
                           {"on_start": {"action": "kill", "why": "enough"},
                            "stop.signal": "KILL"}, signal=9),
    "policy-at-limit": Case(("tail", "/dev/zero"), "policy", 137,
                            {**MEMORY, "on_memory_limit": {"action": "kill", "why": "enough"},
                             "stop.signal": "KILL"}, signal=9),
    "times-out-held": Case(("tail", "/dev/zero"), "timeout", 124,
                           {**MEMORY, "on_memory_limit": {"action": "freeze"}, "timeout": LATE,
                            "stop.grace": "200ms"}),
}  # fmt: skip

CASES: dict[str, Case] = {**ENDS, **OUT_OF_MEMORY, **REFUSED, **ENDED}
