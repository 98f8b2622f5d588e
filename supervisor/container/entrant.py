"""Who goes into a job that runs, to have a command run there behind the same walls.

Cloned by the launcher, outside of the job's pid namespace: nobody in there sees it, or can signal
or trace it.  The order is the contract: the job's cgroup first, so that nothing is done outside of
it; then the namespaces of the job's init, which nobody in the job can have changed; then the clone
of the command, with CLONE_PARENT, so that it is in the pid namespace and yet the supervisor's
child.  The command is seen in there from its first instant.  So it is not dumpable, holds no
descriptor but its streams and the status socket, and waits until the supervisor knows of it.

From there on it is what a payload is (`child.run_payload`).
"""

from __future__ import annotations

import _socket
import os

from supervisor.container import child, init, protocol, terminals
from supervisor.errors import KernelError
from supervisor.linux import constants, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from supervisor.container.protocol import Request

    Namespaces = list[tuple[int, int]]

_ESRCH = 3
_GO = b"1"


def run(
    request: Request,
    fds: init.Descriptors,
    kept: list[int],
    control: _socket.socket,
    bounding: frozenset[int],
) -> NoReturn:
    """The entrant's whole life.  `kept` are namespaces that the supervisor has brought."""
    try:
        control.close()
        child.join_cgroup(request.init_files)
        if request.oom_score_adj is not None:
            # Not later: in there it takes a process that others may look into.
            child.guard("oom_score_adj", child.write_oom_score_adj, request.oom_score_adj)
        child.guard("enter", syscalls.prctl, constants.PR_SET_DUMPABLE, 0)
        join(request, namespaces_of(request, kept, fds.record))
        clone_command(request, fds, bounding)
    except child.StageError as error:
        os.write(fds.status, init.failed(error))
    except BaseException as error:
        os.write(fds.status, protocol.pack(protocol.FAILED, "enter", 0, "", repr(error)))
    finally:
        os._exit(127)


def namespaces_of(request: Request, kept: list[int], pidfd: int) -> Namespaces:
    """(kind, descriptor) of each namespace of the job's init that is not the host's."""
    wanted = protocol.namespaces(request)
    if kept:
        return [(kind, fd) for (kind, _), fd in zip(wanted, kept, strict=True)]
    found = [(kind, open_namespace(f"/proc/{request.enters}/ns/{name}")) for kind, name in wanted]
    try:
        # Its number cannot have become another's: it is there still.
        syscalls.pidfd_send_signal(pidfd, 0)
    except KernelError as error:
        raise child.StageError("enter", error, text="the job has just ended") from None
    return found


def open_namespace(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise child.StageError(
            "enter", OSError(_ESRCH, ""), text="the job has just ended"
        ) from None
    except OSError as error:
        raise child.StageError("enter", error, path) from None


def join(request: Request, namespaces: Namespaces) -> None:
    """All of them; the user namespace comes first, and its root may join the others."""
    for kind, fd in namespaces:
        child.guard("enter", syscalls.setns, fd, kind)
        os.close(fd)
        if kind == constants.CLONE_NEWUSER:
            child.guard("enter", child.become_root)
            # again: the kernel has set it to fs.suid_dumpable with the change
            child.guard("enter", syscalls.prctl, constants.PR_SET_DUMPABLE, 0)


def clone_command(request: Request, fds: init.Descriptors, bounding: frozenset[int]) -> None:
    """Clone the command, tell of it, and let it go on."""
    streams, master = terminals.open_streams(request, fds)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    flags = constants.CLONE_PARENT | constants.CLONE_PIDFD
    keep_only({*streams, fds.status, reader, writer, master})
    try:
        pid, pidfd = syscalls.clone(flags, exit_signal=0)
    except OSError as error:
        raise child.StageError("clone", error) from None
    if pid == 0:
        be_command(request, fds.status, streams, bounding, reader)
    status = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fds.status)
    told = (pidfd, master) if master >= 0 else (pidfd,)
    rights = b"".join(fd.to_bytes(4, "little") for fd in told)
    ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)]
    status.sendmsg([protocol.pack(protocol.ENTERED)], ancillary, _socket.MSG_NOSIGNAL)
    os.write(writer, _GO)


def keep_only(kept: set[int]) -> None:
    """Close all other descriptors; 0, 1 and 2 are the launcher's, which the streams replace."""
    first = 3
    for fd in [*sorted(kept - {-1, 0, 1, 2}), 0x7FFFFFFF]:
        if first < fd:
            syscalls.close_range(first, fd - 1)
        first = fd + 1


def be_command(
    request: Request,
    status: int,
    streams: tuple[int, int, int],
    bounding: frozenset[int],
    gate: int,
) -> NoReturn:
    """The clone's whole life, up to exec."""
    try:
        syscalls.set_name("supervise:exec")
        wait_at(gate, {*streams, status})
        child.run_payload(request, child.PayloadCgroup((), None), streams, bounding, status)
    except child.StageError as error:
        os.write(status, init.failed(error))
    except BaseException as error:
        os.write(status, protocol.pack(protocol.FAILED, "enter", 0, "", repr(error)))
    finally:
        os._exit(127)


def wait_at(gate: int, kept: set[int]) -> None:
    """Until the supervisor knows of us; the end if whoever was to tell it has died."""
    keep_only({*kept, gate})
    if os.read(gate, 1) != _GO:
        os._exit(127)
