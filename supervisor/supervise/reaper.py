"""Everything that waits for a process: the one place from which a child's status is taken.

May import: `errors`, `model`, `linux`, trio.  Three kinds of children, told apart so that none's
status is taken by somebody else:

    inits      cloned by the launcher with CLONE_PARENT.  The exit signal it asks for is not what
               they have: the kernel gives them the launcher's own, SIGCHLD (kernel/fork.c,
               copy_process), so that any wait could take them.  Known here while `wait_init` runs
    helpers    started here by `Reaper.spawn`, and known from then on
    orphans    what a daemon or a dead launcher left to us, PID 1 or a child subreaper

An orphan looks just like a child that somebody else in this process started and waits for (a
plugin's subprocess.run, trio.run_process).  Such a waiter takes the status at once; who still is
a zombie after GRACE has nobody, and is reaped.  Inits and helpers are awaited by pidfd.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence

import trio
from attrs import frozen

from supervisor.errors import KernelError
from supervisor.linux import proc

WALL = 0x40000000
"""__WALL of <linux/wait.h>: children whatever their exit signal."""

GRACE = 5.0
"""Seconds that a zombie unknown to us is left to whoever may be waiting for it: on a busy host a
thread may come late to its child, and who comes too late takes a failure for a success."""

CALM = 0.05
"""Seconds between SIGCHLD and the look: by then who waits has taken what it waited for, and of a
thousand jobs that end together one look is made."""

_RETRIES = tuple(min(0.001 * 2**n, 1.0) for n in range(11))


@frozen
class ExitStatus:
    """How a process ended: exactly one of the two is set."""

    code: int | None = None
    signal: int | None = None


@frozen
class Lost:
    """The status cannot be had any more, and why."""

    why: str


class Child:
    """A helper process of ours.  It stays a zombie until `wait` has returned."""

    def __init__(self, pid: int, pidfd: int, forget: Callable[[int], None]) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._forget = forget
        self._status: ExitStatus | Lost | None = None
        self._lock = trio.Lock()

    async def wait(self) -> ExitStatus | Lost:
        """How it ended; may be called again, cancelled, and by several tasks."""
        async with self._lock:
            if self._status is None:
                self._status = await _exit_of(self._pidfd)
                self._forget(self.pid)
                os.close(self._pidfd)
        return self._status

    def send_signal(self, number: int) -> None:
        """Never reaches another process that got the number.  Raises KernelError."""
        if self._status is not None:
            return
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except OSError as error:
            raise KernelError("pidfd_send_signal", str(self.pid), error.errno or 0) from error


class Reaper:
    """One per process; `orphans` counts those that were reaped for want of anybody else.

    `on_orphan` is told each one's pid and status.
    """

    def __init__(self, on_orphan: Callable[[int, ExitStatus], None] | None = None) -> None:
        self.orphans = 0
        self._on_orphan = on_orphan
        self._known: set[int] = set()
        self._unknown: dict[int, _Zombie] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reap orphans until cancelled.  Sleeps while there is none; in the main thread only."""
        with trio.open_signal_receiver(signal.SIGCHLD) as signals:
            task_status.started()
            while True:
                self._look()
                first = min((one.since for one in self._unknown.values()), default=None)
                with trio.move_on_at(float("inf") if first is None else first + GRACE):
                    await anext(signals)
                    await trio.sleep(CALM)

    async def wait_init(self, pidfd: int) -> ExitStatus | Lost:
        """How a job's init ended.  The descriptor stays the caller's.

        To be called before the init has been a zombie for GRACE.  Lost: it was no child of ours,
        or has been waited for already (ECHILD).
        """
        pid = pid_of(pidfd)
        self._known.add(pid)
        try:
            return await _exit_of(pidfd)
        finally:
            self._known.discard(pid)

    def spawn(
        self,
        argv: Sequence[str],
        *,
        program: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        pass_fds: Iterable[int] = (),
    ) -> Child:
        """Start a helper: `program` or `argv[0]`, sought in PATH; streams not given are inherited.

        Only the three streams and `pass_fds` (under their own numbers) stay open in it; signals
        are as a fresh program expects them.  It is known here before anything can look for
        orphans.  Raises KernelError, ENOENT when there is no such program.
        """
        # a dup2 on itself is how posix_spawn(3) keeps a descriptor over the exec
        pairs = [(fd, number) for number, fd in enumerate((stdin, stdout, stderr))]
        pairs += [(fd, fd) for fd in pass_fds]
        actions = [(os.POSIX_SPAWN_DUP2, fd, to) for fd, to in pairs if fd is not None]
        try:
            pid = os.posix_spawnp(
                program or argv[0],
                list(argv),
                dict(os.environ) if env is None else dict(env),
                file_actions=actions,
                setsigmask=(),
                # Python ignores these two, and an exec keeps that
                setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
            )
        except OSError as error:
            raise KernelError("posix_spawn", argv[0], error.errno or 0) from error
        self._known.add(pid)
        return Child(pid, self._pidfd(pid), self._known.discard)

    def _pidfd(self, pid: int) -> int:
        """A helper that cannot be waited for is not left running."""
        try:
            return os.pidfd_open(pid)
        except OSError as error:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self._known.discard(pid)
            raise KernelError("pidfd_open", str(pid), error.errno or 0) from error

    def _look(self) -> None:
        """Note the zombies nobody here knows, and reap those that were left for GRACE."""
        now = trio.current_time()
        if not _any_zombie():
            self._unknown.clear()
            return
        found: dict[int, _Zombie] = {}
        for pid in proc.children(os.getpid()):
            if pid not in self._known and _is_zombie(pid):
                zombie = self._unknown.get(pid) or _Zombie(now, _start(pid))
                if now - zombie.since < GRACE:
                    found[pid] = zombie
                elif _start(pid) == zombie.start_ticks:
                    self._bury(pid)
                else:
                    # the number has passed to another child meanwhile
                    found[pid] = _Zombie(now, _start(pid))
        self._unknown = found

    def _bury(self, pid: int) -> None:
        status = _reap(pid)
        if status is None:
            return
        self.orphans += 1
        if self._on_orphan is not None:
            self._on_orphan(pid, status)


@frozen
class _Zombie:
    """`since`: when it was first seen, by trio's clock."""

    since: float
    start_ticks: int | None


def pid_of(pidfd: int) -> int:
    """From /proc/self/fdinfo, "Pid:"; -1 for one that has been reaped."""
    path = f"/proc/self/fdinfo/{pidfd}"
    for line in proc.read_file(path).split("\n"):
        if line.startswith("Pid:"):
            return int(line[4:])
    raise KernelError("read", path, errno.EINVAL, hint="it is no pidfd")


def _start(pid: int) -> int | None:
    """None for one that has been reaped meanwhile."""
    try:
        return proc.stat(pid).start_ticks
    except KernelError:
        return None


def _any_zombie() -> bool:
    """Whether any child waits to be reaped, known or not: one system call instead of a look."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _is_zombie(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _reap(pid: int) -> ExitStatus | None:
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    return None if found is None else _status(found)


def _status(found: os.waitid_result) -> ExitStatus:
    if found.si_code == os.CLD_EXITED:
        return ExitStatus(code=found.si_status)
    return ExitStatus(signal=found.si_status)


async def _exit_of(pidfd: int) -> ExitStatus | Lost:
    await trio.lowlevel.wait_readable(pidfd)
    for delay in (*_RETRIES, None):
        try:
            found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | WALL)
        except ChildProcessError:
            return Lost("somebody else has waited for it, or it was no child of ours")
        if found is not None:
            break
        if delay is None:
            return Lost("it has ended, but is held by whoever traces it")
        # a debugger is told first
        await trio.sleep(delay)
    assert found is not None
    return _status(found)
