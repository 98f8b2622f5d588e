"""Trials: something tried for real in a child process that is thrown away afterwards.

    doctor ── fork ──► the child: runs one function, tells its outcome through a pipe, _exit
       ▲                  │
       └── reads until end-of-file or the deadline, then kills what is left and waits for it

The child leads a process group and dies with its parent (PR_SET_PDEATHSIG), whatever it mounts
it mounts in namespaces of its own: nothing can be left behind, also not by a kill.  Forking is
safe here: the doctor has one thread.

May import: `errors`, `linux`.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from errno import EACCES, EPERM
from pathlib import Path
from typing import Any, Literal

from attrs import frozen

from supervisor.errors import SupervisorError
from supervisor.linux import caps, syscalls
from supervisor.linux import constants as c

LONGEST = 5.0
"""Seconds that a trial may take: far more than it does, so that a busy host is no verdict."""

ENDING = (signal.SIGINT, signal.SIGTERM)
"""The signals that end the doctor early."""

Verdict = Literal["enforced", "accounted only", "unavailable"]


@frozen
class Check:
    """One line of the doctor's table.

    `needed`: a default job cannot do without it.  `group` is the heading it stands below.
    """

    name: str
    verdict: Verdict
    detail: str
    fix: str = ""
    needed: bool = False
    group: str = ""


@frozen
class Outcome:
    """What became of a trial: what its function returned, or why it did not.

    `signal` is what ended the child, None when it ended by itself.
    """

    value: Any = None
    failure: str = ""
    signal: int | None = None
    timed_out: bool = False


def as_root() -> str:
    """The way out where something takes a privilege that we do not have."""
    if os.geteuid() != 0:
        return "run as root, or allow user namespaces (the row `user namespace`)"
    return "run it on the host, or in a container with CAP_SYS_ADMIN (docker run --privileged)"


def has_admin() -> bool:
    """Whether we hold CAP_SYS_ADMIN, without which root may not mount or unshare."""
    return bool(caps.effective() >> caps.CAP_SYS_ADMIN & 1)


def way_out(failure: str, otherwise: str) -> str:
    """`otherwise`, but where it was the privilege that was missing."""
    refused = failure.endswith((os.strerror(EPERM), os.strerror(EACCES)))
    return as_root() if refused and not has_admin() else otherwise


def attempt(work: Callable[[], Any], seconds: float = LONGEST) -> Outcome:
    """Run `work` in a child of its own; what it returns must have a JSON form.

    An OSError or SupervisorError of `work` becomes `failure`.  Nothing of the child is left when
    this returns or raises.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    # From the fork on there is something to clean up: no signal between it and the `try`.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    pid = os.fork()
    if pid == 0:
        _child(work, writer, mask)
    ended = False
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(writer)
        data, ended = _read(reader, time.monotonic() + seconds)
    finally:
        os.close(reader)
        status = _reap(pid, kill=not ended)
    return _outcome(data, status, timed_out=not ended)


def enter_namespaces(flags: int = 0) -> None:
    """In a trial: a user namespace in which one is root, and mounts that nobody else sees.

    Without a mapping of one's own number no file can be made there (EOVERFLOW).
    """
    uid, gid = os.geteuid(), os.getegid()
    syscalls.unshare(c.CLONE_NEWUSER | c.CLONE_NEWNS | flags)
    # user_namespaces(7): without setgroups denied, gid_map may not be written
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"0 {uid} 1"),
        ("gid_map", f"0 {gid} 1"),
    ):
        Path(f"/proc/self/{name}").write_text(text)


def _child(work: Callable[[], Any], writer: int, mask: set[int]) -> None:
    """Never returns: the parent's clean-up handlers are none of the child's business."""
    status = 1
    try:
        os.setpgid(0, 0)
        syscalls.prctl(c.PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in ENDING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.write(writer, json.dumps(_result(work)).encode() + b"\n")
        status = 0
    finally:
        os._exit(status)


def _result(work: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": work()}
    except SupervisorError as error:
        return {"failure": str(error)}
    except OSError as error:
        return {"failure": f"{error.filename or 'trial'}: {error.strerror}"}


def _read(reader: int, deadline: float) -> tuple[bytes, bool]:
    """What the child wrote, and whether it came to an end in time.

    A line is the end too: processes it has left behind hold the pipe open.
    """
    data = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([reader], [], [], left)[0]:
            break
        piece = os.read(reader, 65536)
        if not piece:
            return data, True
        data += piece
        if data.endswith(b"\n"):
            return data, True
    return data, False


def _reap(pid: int, *, kill: bool) -> int:
    """Wait for the child, and leave none of its group; its wait status."""
    if kill:
        os.kill(pid, signal.SIGKILL)
    # The zombie keeps the group's number from being given to somebody else.
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # nobody else was in it; or it was killed before it led one
    return os.waitpid(pid, 0)[1]


def _outcome(data: bytes, status: int, *, timed_out: bool) -> Outcome:
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    if timed_out:
        return Outcome(failure="took too long and was given up", signal=killed, timed_out=True)
    if killed is not None:
        return Outcome(failure=f"ended by {signal.Signals(killed).name}", signal=killed)
    try:
        found = json.loads(data)
    except ValueError:
        return Outcome(failure=f"broke off with exit code {os.WEXITSTATUS(status)}")
    return Outcome(value=found.get("value"), failure=found.get("failure", ""))
