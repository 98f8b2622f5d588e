"""Commands that an operator has put into a running job beside its own (`supervise exec`).

May import: `errors`, `model`, `container`, `supervise.{reaper,run}` (of `run` its type only), trio.

Each is a child of ours (`container.entrant` says how that comes), in the job's cgroup and
namespaces: it goes with the job, whoever ends that.  A task of the run owns it: the init's own end
waits until its last process has been reaped (kernel/pid_namespace.c, zap_pid_ns_processes), and
these are ours to reap.
"""

from __future__ import annotations

import errno
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from supervisor.container import build
from supervisor.container.build import Command
from supervisor.container.spawn import Entrant
from supervisor.errors import SpawnError, StateError
from supervisor.model.state import State
from supervisor.supervise.reaper import ExitStatus, Lost, pid_of

if TYPE_CHECKING:
    from supervisor.supervise.run import Run

CHUNK = 64 * 1024
PATIENCE = 2.0
"""Seconds between SIGHUP and SIGKILL for a command whose client has gone."""

Streams = tuple[int, int, int]


class NotNow(StateError):
    """A job's state does not allow it; `state` is that."""

    def __init__(self, state: State, why: str, *, hint: str) -> None:
        super().__init__(why, hint=hint)
        self.state = state


_WAY_OUT = {
    State.WAITING: "it has not been started yet: supervise status tells what it waits for",
    State.STARTING: "try again once it runs: supervise wait --for running",
    State.HELD: "a command would sleep there too: supervise set a higher memory limit first",
    State.FROZEN: "a command would stand still with it: supervise resume first",
    State.STOPPING: "it is about to end",
    State.BACKOFF: "it is between two runs: supervise restart starts it at once",
    State.ENDED: "it has ended: supervise restart runs it again",
}


def check_running(name: str, state: State) -> None:
    """Raises NotNow unless a command can be put into a job of that state."""
    if state is not State.RUNNING:
        raise NotNow(state, f"{name} is {state}, not running", hint=_WAY_OUT[state])


class Session:
    """One such command, from its exec to its end.

    `id` is unique in its run; `pid` its number out here; `terminal` the master of its terminal,
    or -1, open until the command has ended.
    """

    def __init__(self, number: str, pid: int, terminal: int) -> None:
        self.id = number
        self.pid = pid
        self.terminal = terminal
        self.status: ExitStatus | Lost | None = None
        """How it has ended, once it has been reaped."""
        self.over = trio.Event()
        self._left = trio.Event()
        self._hung_up = trio.Event()

    def send_signal(self, number: int) -> None:
        """To its process group, as a terminal does; nothing happens when it has ended.

        Its number is not another's meanwhile: it is we who reap it.
        """
        if self.status is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def leave(self) -> None:
        """It goes on, and nobody reads its terminal any more."""
        self._left.set()

    def hang_up(self) -> None:
        """Its client has gone: SIGHUP, patience, SIGKILL."""
        self._left.set()
        self._hung_up.set()

    async def drain(self) -> None:
        """Once nobody else reads its terminal: who writes there is not to wait for ever."""
        await self._left.wait()
        with suppress(OSError):  # EIO: nobody has the other side open any more
            while True:
                await trio.lowlevel.wait_readable(self.terminal)
                os.read(self.terminal, CHUNK)

    async def end_when_left_alone(self) -> None:
        """Once its client has hung up."""
        await self._hung_up.wait()
        self.send_signal(signal.SIGHUP)
        self.send_signal(signal.SIGCONT)
        await trio.sleep(PATIENCE)
        self.send_signal(signal.SIGKILL)


class Sessions:
    """Those of one run, while it lives."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._nursery: trio.Nursery | None = None
        self._count = 0
        self.over = trio.Event()
        """The run's last process is gone."""

    def begin(self, nursery: trio.Nursery) -> None:
        """From now on there may be some; they end when the nursery is cancelled."""
        self._nursery = nursery

    def end(self) -> None:
        """From now on there is none."""
        self._nursery = None
        self.over.set()

    async def open(self, command: Command, streams: Streams | None) -> Session:
        """Have `command` run in the job.  The streams stay the caller's; None: /dev/null.

        Raises NotNow, and SpawnError when it could not be executed.  A caller that is cancelled
        takes the command with it.
        """
        run = self._run
        self._check()
        facts = run.shared.host.facts()
        request = build.entering(
            run.spec, run.id, run.cgroup.entry, facts, run.container.pid, command
        )
        container = run.container
        with open(os.devnull, "r+b") as null:  # noqa: PTH123
            fds = streams or (null.fileno(),) * 3
            try:
                entrant = await run.shared.launcher.enter(
                    request, fds, container.pidfd, container.namespaces
                )
            except SpawnError as error:
                raise _explained(run, error) from None
        self._count += 1
        start = _Start(run, entrant, str(self._count))
        if self._nursery is None:  # the job has ended in between, and the entrant finds none
            with trio.CancelScope(shield=True):
                await start.own()
        else:
            self._nursery.start_soon(start.own)
        return await start.session()

    def _check(self) -> None:
        run = self._run
        state = run.state
        if state is State.RUNNING and self._nursery is None:
            state = State.STOPPING
        check_running(run.spec.name, state)


class _Start:
    """The way from an entrant to a session, and the task that owns both."""

    def __init__(self, run: Run, entrant: Entrant, number: str) -> None:
        self._run = run
        self._entrant = entrant
        self._number = number
        self._decided = trio.Event()
        self._session: Session | None = None
        self._failure: SpawnError | None = None
        self._scope = trio.CancelScope()
        self._given_up = False

    async def session(self) -> Session:
        """Once exec has succeeded.  Raises SpawnError; cancelled, it gives the command up."""
        try:
            await self._decided.wait()
        except trio.Cancelled:
            self._scope.cancel()
            raise
        if self._session is None:
            assert self._failure is not None
            raise self._failure
        return self._session

    async def own(self) -> None:
        """Until both have been reaped; a cancellation kills them, and waits for that as well.

        A frozen process of v1 dies only once it is thawed.
        """
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._kill_at_last)
                with trio.CancelScope(shield=True):
                    await self._live()
                nursery.cancel_scope.cancel()

    async def _kill_at_last(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self._given_up = True
            self._entrant.kill()

    async def _live(self) -> None:
        entrant, reaper = self._entrant, self._run.shared.reaper
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reaper.wait_init, entrant.pidfd)
            await entrant.entered()
            if self._given_up:
                entrant.kill()  # it has become known only now
            await self._decide()
            if entrant.command >= 0:
                await self._await_end()
        entrant.close()

    async def _decide(self) -> None:
        try:
            await self._entrant.executed()
        except SpawnError as error:
            self._failure = _explained(self._run, error)
        else:
            pid = pid_of(self._entrant.command)
            self._session = Session(self._number, pid, self._entrant.terminal)
        self._decided.set()

    async def _await_end(self) -> None:
        """The command's end, and what becomes of it when its client goes."""
        session = self._session
        async with trio.open_nursery() as nursery:
            if session is not None:
                nursery.start_soon(session.end_when_left_alone)
                if session.terminal >= 0:
                    nursery.start_soon(session.drain)
            status = await self._run.shared.reaper.wait_init(self._entrant.command)
            nursery.cancel_scope.cancel()
        if session is not None:
            session.status = status
            session.over.set()
            told = status if isinstance(status, ExitStatus) else ExitStatus()
            self._run.emit(
                "session_ended", session=session.id, exit_code=told.code, signal=told.signal
            )


def _explained(run: Run, error: SpawnError) -> SpawnError:
    """With the way out for a job that has as many processes as it may."""
    if error.errno != errno.EAGAIN or error.stage != "clone":
        return error
    hint = f"the job is at its limit of {run.limits.pids} processes: supervise set a higher one"
    return SpawnError(error.stage, error.errno, error.path, error.text, hint=hint)
