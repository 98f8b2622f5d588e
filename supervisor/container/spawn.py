"""The supervisor's side of the launcher: start it, ask it for containers, hear how they began.

May import: `errors`, `model`, `linux`, `container`, trio.  Who waits for the launcher and for the
inits is `supervise.reaper`; it starts the launcher too (`Starter`).
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import trio

from supervisor.container import hiding, protocol
from supervisor.container.protocol import Request
from supervisor.errors import KernelError, SpawnError
from supervisor.linux import caps, syscalls
from supervisor.linux import constants as c

_PROGRAM = (
    "import sys; sys.path.insert(0, {path!r}); "
    "from supervisor.container.launcher import main; main()"
)
_UCRED = struct.Struct("=iII")
_MOST_TOLD = protocol.MOST_SHOWN + len(protocol.NAMESPACES) + 1
_ANCILLARY = socket.CMSG_SPACE(_UCRED.size) + socket.CMSG_SPACE(4 * _MOST_TOLD)


class Process(Protocol):
    """A helper process, as the reaper gives it."""

    async def wait(self) -> object: ...

    def send_signal(self, number: int) -> None: ...


Starter = Callable[[Sequence[str], int], Process]
"""Start argv with the one descriptor open in it, under its own number."""


class Streams:
    """Descriptors for the payload's 0, 1, 2 and for the exit record; they stay the caller's.

    `layer`: none, or the mount of its writable layer.
    """

    def __init__(self, stdin: int, stdout: int, stderr: int, record: int) -> None:
        self.all: tuple[int, ...] = (stdin, stdout, stderr, record)
        self.layer: tuple[int, ...] = ()


class Container:
    """A job's init: its pid and pidfd, and the news of how the payload began."""

    def __init__(self, pid: int, pidfd: int, status: socket.socket, request: Request) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.shown: tuple[int, ...] = ()
        """Descriptors of the request's `shown`, in its order, once the payload has started."""
        self.terminal = -1
        """The other side of the payload's terminal, if it has one."""
        self.namespaces: tuple[int, ...] = ()
        """Those of the init, in the order of `protocol.NAMESPACES`, if it had to hand them over."""
        self._status = status
        self._count = len(request.shown)
        self._has_terminal = request.terminal is not None

    async def started(self) -> int:
        """Wait for exec to succeed; the payload's pid in our numbers.  Raises SpawnError."""
        await trio.lowlevel.wait_readable(self._status)
        data, ancillary, _, _ = self._status.recvmsg(65536, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        self._status.close()
        self._take(_descriptors(ancillary))
        if not data:
            raise SpawnError("init", 0, "", "the job's init was killed while it set the job up")
        message = protocol.unpack(data, (protocol.STARTED, protocol.FAILED))
        if message[0] == protocol.FAILED:
            raise spawn_error(*message[1:])
        return _sender(ancillary)

    def _take(self, told: tuple[int, ...]) -> None:
        self.shown, told = told[: self._count], told[self._count :]
        if self._has_terminal and told:
            self.terminal, told = told[0], told[1:]
        self.namespaces = told

    def go(self) -> None:
        """Its network is complete: the payload may start.  An init that died says so itself."""
        try:
            self._status.send(protocol.pack(protocol.GO), socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            return

    def has_news(self) -> bool:
        """Whether `started` would answer at once: before GO, that the job has failed."""
        return bool(select.select([self._status], [], [], 0)[0])

    def send_signal(self, number: int) -> None:
        """To the init, which sends it on to every process of the job; SIGKILL ends them all.

        Nothing happens when the init has been reaped already.
        """
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return

    def hide(self) -> None:
        """Give up what `shown` holds: the mounts go with the last who holds them."""
        for fd in self.shown:
            os.close(fd)
        self.shown = ()

    def close(self) -> None:
        self._status.close()
        self.hide()
        for fd in (self.terminal, *self.namespaces, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.terminal, self.namespaces = -1, ()


class Entrant:
    """Who brings a command into a running job (`container.entrant`), and news of that command.

    `pid` and `pidfd` are the entrant's.
    """

    def __init__(self, pid: int, pidfd: int, status: socket.socket) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.command = -1
        """The command's pidfd, once it is there; stays -1 if it never was."""
        self.terminal = -1
        """The other side of its terminal, if it has one."""
        self._status = status
        self._failure: SpawnError | None = None

    async def entered(self) -> None:
        """Wait until the command is there, if it ever will be.  Raises nothing but cancellation."""
        await self._message()

    async def executed(self) -> None:
        """After `entered`, wait for exec to succeed.  Raises SpawnError."""
        if self._failure is None and self.command >= 0:
            await self._message()
        if self._failure is not None:
            raise self._failure
        if self.command < 0:
            raise SpawnError("enter", 0, "", "who was to bring the command in was killed")

    async def _message(self) -> bool:
        """Take one message; False at the end of them."""
        await trio.lowlevel.wait_readable(self._status)
        data, ancillary, _, _ = self._status.recvmsg(65536, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return False
        message = protocol.unpack(data, (protocol.ENTERED, protocol.FAILED))
        if message[0] == protocol.FAILED:
            self._failure = spawn_error(*message[1:])
        else:
            self.command, *rest = _descriptors(ancillary)
            self.terminal = rest[0] if rest else -1
        return True

    def kill(self) -> None:
        """SIGKILL to both; nothing happens to who has been reaped."""
        for pidfd in (self.pidfd, self.command):
            if pidfd >= 0:
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def close(self) -> None:
        self._status.close()
        for fd in (self.pidfd, self.command, self.terminal):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.command = self.terminal = -1


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    for level, kind, raw in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            return tuple(memoryview(raw[: len(raw) // 4 * 4]).cast("i"))
    return ()


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, raw in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            pid: int = _UCRED.unpack(raw)[0]
            return pid
    return 0


def spawn_error(stage: str, errno: int, path: str, text: str) -> SpawnError:
    """A failure that travelled, with the way out where there is a common one."""
    return SpawnError(stage, errno, path, text, hint=_HINTS.get((stage, errno), ""))


_OTHERS_CGROUP = (
    "its user must be able to write to cgroup.procs there, and to that of the cgroup above both "
    "it and the supervisor's: Delegate=yes"
)
_BUSY_CGROUP = (
    "somebody has enabled a controller for what is below it (cgroup.subtree_control), and such a "
    "cgroup takes no process: disable it there"
)
_LOST_CGROUP = "somebody has removed it while the job was started: start it again"
_THREADED_CGROUP = "somebody has made a cgroup beside it threaded (cgroup.type): remove that one"
_HINTS = {
    **{
        (stage, number): hint
        for stage in ("cgroup", "payload_cgroup")
        for number, hint in (
            (13, _OTHERS_CGROUP),
            (16, _BUSY_CGROUP),
            (2, _LOST_CGROUP),
            (19, _LOST_CGROUP),
            (95, _THREADED_CGROUP),
        )
    },
    ("exec", 2): "the command, or the interpreter it names, is not in the job's root",
    ("exec", 13): "it must be a file with the execute permission",
    ("exec", 8): "not a program: a script needs a #! line",
    ("rlimits", 1): "raising a hard limit needs CAP_SYS_RESOURCE",
    ("oom_score_adj", 13): "lowering it needs CAP_SYS_RESOURCE",
    ("capabilities", 1): "the supervisor does not have them itself",
    ("user_namespace", 1): "the ids must be the caller's own, or the caller root",
    ("clone", 1): "namespaces need CAP_SYS_ADMIN, or a user namespace",
    ("clone", 28): "too many namespaces: see /proc/sys/user/max_*_namespaces",
}


class Launcher:
    """One launcher process.  `start` may be called by many tasks; answers come in order."""

    def __init__(
        self, starter: Starter, work: str, kept: frozenset[int], hidden: tuple[str, ...]
    ) -> None:
        self._starter = starter
        self._work = work
        self._kept = kept
        self._hidden = hidden
        self._lock = trio.Lock()
        self._process: Process | None = None
        self._control: socket.socket | None = None

    async def open(self) -> None:
        """Start the process and wait until it is ready.  Raises SpawnError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        package = str(Path(__file__).parents[2])
        python = os.path.realpath(sys.executable)
        program = _PROGRAM.format(path=package)
        kept = ",".join(map(str, sorted(self._kept)))
        own = (self._work, str(theirs.fileno()), kept, *self._hidden, "--", *hiding.whiteouts())
        argv = (python, "-I", "-S", "-X", "utf8", "-c", program, *own)
        with theirs:
            self._process = self._starter(argv, theirs.fileno())
        self._control = ours
        ours.setblocking(False)
        await trio.lowlevel.wait_readable(ours)
        if not ours.recv(64):
            await self.close()
            raise SpawnError("clone", 0, self._work, "the launcher ended before it was ready")

    async def close(self) -> None:
        """The end of its control socket ends it; the jobs go on."""
        control, process = self._control, self._process
        self._control = self._process = None
        if control is not None:
            control.close()
        if process is not None:
            with trio.CancelScope(shield=True):
                await process.wait()

    async def start(
        self, request: Request, streams: Streams, kept: Sequence[int] = ()
    ) -> Container:
        """Have a container made.  Raises SpawnError: nothing was cloned.

        `kept` are descriptors that its init holds until it ends; ours stay the caller's.
        A launcher that died is started anew for the next request; this one fails.  One that has
        given up a capability that this job is to have is replaced first.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            with theirs:
                descriptors = (theirs.fileno(), *streams.all, *streams.layer, *kept)
                pid, pidfd = await self._exchange(request, descriptors)
        except BaseException:
            ours.close()
            raise
        return Container(pid, pidfd, ours, request)

    async def enter(
        self, request: Request, streams: tuple[int, int, int], init: int, kept: Sequence[int] = ()
    ) -> Entrant:
        """Have a command brought into a job.  `init` is the pidfd of the job's, `kept` what it has
        handed over of its namespaces, if it had to.  Raises SpawnError.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                descriptors = (theirs.fileno(), *streams, init, *kept)
                pid, pidfd = await self._exchange(request, descriptors)
        except BaseException:
            ours.close()
            raise
        return Entrant(pid, pidfd, ours)

    async def _exchange(self, request: Request, descriptors: tuple[int, ...]) -> tuple[int, int]:
        """One request and its answer, which a cancellation does not tear apart."""
        async with self._lock:
            with trio.CancelScope(shield=True):
                if request.user_map is None and not self._kept.issuperset(request.capabilities):
                    self._kept = self._kept.union(request.capabilities)
                    await self.close()
                if self._control is None:
                    await self.open()
                assert self._control is not None
                try:
                    send(self._control, request.pack(), descriptors)
                    await trio.lowlevel.wait_readable(self._control)
                    answer, fds, _, _ = socket.recv_fds(self._control, 65536, 1)
                except OSError as error:
                    answer, fds = b"", []
                    why = str(error.strerror)
                else:
                    why = "the launcher died"
                if not answer:
                    await self.close()
                    raise SpawnError("clone", 0, "", why)
        return _answer(protocol.unpack(answer, (protocol.CLONED, protocol.REFUSED)), fds)


def _answer(message: tuple[Any, ...], fds: list[int]) -> tuple[int, int]:
    if message[0] == protocol.REFUSED:
        raise spawn_error(*message[1:])
    os.set_inheritable(fds[0], False)
    return message[1], fds[0]


def send(control: socket.socket, data: bytes, descriptors: tuple[int, ...]) -> None:
    """One message; what does not fit into one goes as a memfd, the last of the descriptors."""
    if len(data) <= protocol.MAX_MESSAGE:
        socket.send_fds(control, [data], descriptors)
        return
    memfd = os.memfd_create("request", os.MFD_CLOEXEC)
    try:
        os.write(memfd, data)
        socket.send_fds(control, [protocol.ELSEWHERE], (*descriptors, memfd))
    finally:
        os.close(memfd)


@contextmanager
def sealed(program: str) -> Iterator[str]:
    """A name for `program` on a read-only mount of its own, to execute it by within the block.

    The first program of a job may be called /proc/self/exe, by a link or in a #! line: then it is
    this one, the host's, on the mount it was started from.  It cannot be written to while a job's
    init runs it (ETXTBSY), but root could change its mode (CVE-2019-5736 is of this kind).  Without
    privilege there is no such mount, and `program` is somebody else's.
    """
    try:
        fd = syscalls.open_tree(program, recursive=False)
    except KernelError as error:
        if error.errno != errno.EPERM:
            raise
        yield program
        return
    try:
        syscalls.mount_setattr(fd, "", c.MOUNT_ATTR_RDONLY, recursive=False)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


@asynccontextmanager
async def open_launcher(
    starter: Starter,
    work: Path,
    kept: frozenset[int] = caps.JOB_DEFAULT,
    hidden: tuple[str, ...] = (),
) -> AsyncIterator[Launcher]:
    """A launcher for the length of a block; `work` is an empty directory, made and removed here.

    `kept` are the capabilities its jobs may have without a user namespace, `hidden` what its view
    of the host's root does not show.
    """
    try:
        work.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        raise KernelError("mkdir", str(work), error.errno or 0) from error
    launcher = Launcher(starter, str(work), kept, hidden)
    try:
        await launcher.open()
        yield launcher
    finally:
        await launcher.close()
        work.rmdir()
