"""PID 1 of a job: starts the payload, forwards signals, reaps, writes the exit record, ends.

It runs no line of anybody else's, holds no descriptor but the record's and its image's lease, sits
outside the job's limits, and is not dumpable, so that the payload can neither exhaust nor trace it.
When it ends the kernel kills what is left in its pid namespace: the job's end is the payload's end.

A signal that arrives here is sent on to every process of the namespace, whatever its session or
process group; a stopped one is continued, so that a polite request reaches it too.
"""

from __future__ import annotations

import _signal  # `signal` would import enum
import _socket
import os
import resource  # os.wait4 imports it, and in here nothing can be imported any more
import time

from supervisor.container import child, protocol, terminals
from supervisor.linux import constants, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from supervisor.container.protocol import Request

_SIGCHLD = 17
_SIGCONT = 18
_ENOSYS = 38
_WAIT_FOR = child.ALL_SIGNALS - {9, 19}
_CREDENTIALS = 12  # sizeof(struct ucred)


class Descriptors:
    """The descriptors that came with the request and have a name.

    The others that the init is to keep are open, and nobody closes them.
    """

    __slots__ = ("record", "status", "stderr", "stdin", "stdout")
    status: int
    stdin: int
    stdout: int
    stderr: int
    record: int

    def __init__(self, numbers: list[int]) -> None:
        for name, number in zip(protocol.DESCRIPTORS, numbers, strict=True):
            setattr(self, name, number)


def run(
    request: Request,
    cgroup: child.PayloadCgroup,
    fds: Descriptors,
    bounding: frozenset[int],
) -> NoReturn:
    """Start the payload, be its init, and end this process.  StageError: it never started."""
    started = time.time()
    shown = _show(request.shown)
    streams, master = terminals.open_streams(request, fds)
    told = [*shown, *([master] if master >= 0 else []), *_namespaces(request)]
    _set_apart(request)
    syscalls.prctl(constants.PR_SET_DUMPABLE, 0)
    payload = start_payload(request, cgroup, fds, streams, bounding)
    status = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fds.status)
    _tell_started(status, payload, told)
    status.close()
    cgroup.close()
    for fd in {fds.stdin, fds.stdout, fds.stderr, *streams, *told}:
        os.close(fd)
    os.dup2(0, 2)  # /dev/null: whoever reads the supervisor's stderr is not kept waiting by a job
    code, usage = _serve(payload)
    _write_record(fds.record, code, usage, started)
    os._exit(0)


def _show(paths: tuple[str, ...]) -> list[int]:
    """The directories as they are before any line of the payload has run; it inherits none."""
    found = []
    for path in paths:
        try:
            found.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
        except OSError as error:
            raise child.StageError("mounts", error, path) from None
    return found


def _namespaces(request: Request) -> list[int]:
    """Those by which the launcher gets in here, if it could not take them by itself.

    Before we are not dumpable: without root nobody outside may look at us then.
    """
    if not request.hands_over:
        return []
    names = protocol.namespaces(request)
    return [os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for _, name in names]


def _set_apart(request: Request) -> None:
    """A saved group of its own: prlimit(2) is for processes whose ids are all the same as ours.

    A payload that runs as root could else forbid its init to write the exit record (RLIMIT_FSIZE).
    A user namespace with one id has no other.
    """
    if request.has_groups:
        os.setresgid(-1, -1, 1)


def start_payload(
    request: Request,
    cgroup: child.PayloadCgroup,
    fds: Descriptors,
    streams: tuple[int, int, int],
    bounding: frozenset[int],
) -> int:
    """Clone the payload into its cgroup and wait until exec has succeeded; its pid in here."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        pid = _clone(cgroup)
    except OSError as error:
        refused = error.errno in child.CGROUP_REFUSES
        raise child.StageError("payload_cgroup", error, cgroup.path if refused else "") from None
    if pid == 0:
        _payload(request, cgroup, streams, bounding, writer)
    os.close(writer)
    failure = os.read(reader, 65536)
    os.close(reader)
    if failure:
        os.write(fds.status, failure)
        os._exit(0)
    return pid


def _clone(cgroup: child.PayloadCgroup) -> int:
    if cgroup.fallback >= 0:
        return syscalls.clone(0, exit_signal=_SIGCHLD)[0]
    try:
        return syscalls.clone(0, exit_signal=_SIGCHLD, cgroup_fd=cgroup.directory)[0]
    except OSError as error:
        if error.errno != _ENOSYS or cgroup.directory < 0:
            raise
    cgroup.open_fallback()
    return syscalls.clone(0, exit_signal=_SIGCHLD)[0]


def _payload(
    request: Request,
    cgroup: child.PayloadCgroup,
    streams: tuple[int, int, int],
    bounding: frozenset[int],
    writer: int,
) -> NoReturn:
    try:
        child.run_payload(request, cgroup, streams, bounding, writer)
    except child.StageError as error:
        os.write(writer, failed(error))
    except BaseException as error:
        os.write(writer, protocol.pack(protocol.FAILED, "init", 0, "", repr(error)))
    os._exit(127)


def failed(error: child.StageError) -> bytes:
    """The message that says so."""
    return protocol.pack(protocol.FAILED, error.stage, error.errno, error.path, error.text)


def _tell_started(status: _socket.socket, payload: int, told: list[int]) -> None:
    """STARTED, with the payload's pid as credentials: the kernel translates it for the receiver."""
    credentials = b"".join(n.to_bytes(4, "little") for n in (payload, os.getuid(), os.getgid()))
    message = protocol.pack(protocol.STARTED)
    ancillary = [(_socket.SOL_SOCKET, _socket.SCM_CREDENTIALS, credentials)]
    if told:
        rights = b"".join(fd.to_bytes(4, "little") for fd in told)
        ancillary.append((_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights))
    try:
        status.sendmsg([message], ancillary, _socket.MSG_NOSIGNAL)
    except BrokenPipeError:
        return  # the supervisor died meanwhile: the job goes on, and its record tells the rest


def _serve(payload: int) -> tuple[int, resource.struct_rusage]:
    """Forward and reap until the payload has ended: its wait status, and what it used."""
    while True:
        number = _signal.sigwaitinfo(_WAIT_FOR)[0]
        if number != _SIGCHLD:
            _forward(number)
            continue
        ended = _reap(payload)
        if ended is not None:
            return ended


def _forward(number: int) -> None:
    """kill(-1): every process of the namespace but this one; ESRCH when there is none left."""
    try:
        os.kill(-1, number)
        os.kill(-1, _SIGCONT)
    except ProcessLookupError:
        return


def _reap(payload: int) -> tuple[int, resource.struct_rusage] | None:
    """Reap all that are zombies now; the payload's ending, if it was among them."""
    ended = None
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG | constants.WALL)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        if pid == payload:
            ended = status, usage


def _write_record(fd: int, status: int, usage: resource.struct_rusage, started: float) -> None:
    """One line of JSON in one write, before the job's end is told by this process's end.

    Not followed by fsync(2), which took 3.7 ms of a 15 ms start-to-exit on ext4: the page cache
    outlives every process, and after a crash of the machine a missing record means `lost`.
    """
    line = '{"v":1,"status":%d,"utime":%.6f,"stime":%.6f,"maxrss":%d,"started":%.6f,"ended":%.6f}\n'
    used = usage.ru_utime, usage.ru_stime, usage.ru_maxrss * 1024
    os.write(fd, (line % (status, *used, started, time.time())).encode())
