"""`POST /jobs/{job}/exec`: a command in a running job, on a connection of its own.

May import: `errors`, `container.build`, `supervise`, `control.routes`, attrs, trio.

Without `terminal`, the client sends stdin, stdout and stderr with its request (SCM_RIGHTS), each
one end of a pipe(2): whatever else they were, the job could do more with it than read or write
(reopen a file for writing, change a terminal's mode, walk off from a directory).  After the 101
both sides speak in JSON, an object a line:

    ← {"started": {"session": "1", "pid": 4711}}     with the terminal's master, if it has one
    ← {"failed": {"error", "hint", "stage", "errno"}} it was not executed; the end
    ← {"ended": {"code": 0, "signal": null, "over": false}}   the end; `over`: that of the job too
    → {"ready": true}                    first: descriptors may come now
    → {"signal": "INT"}                  to its process group
    → {"detach": true}                   I am about to go; it is to stay
    → end of file                        I have gone: SIGHUP, then SIGKILL
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import trio
from attrs import frozen

from supervisor.container.build import Command
from supervisor.control.routes import Answer, Ask, Json, Refusal, Route, Takeover
from supervisor.control.wire import Wire
from supervisor.errors import SpawnError, SupervisorError
from supervisor.linux import constants, syscalls
from supervisor.supervise.reaper import ExitStatus
from supervisor.supervise.run import Run
from supervisor.supervise.sessions import NotNow, Session, Streams, check_running
from supervisor.supervise.stopping import signal_number

PROTOCOL = "supervise-exec"
READY_TIME = 20.0
"""Seconds for a client to say that it is ready."""
AFTERWARDS = 1.0
"""Seconds for a job to end after what was in it."""
MOST_EARLY = 16
"""Signals that wait for a command to run."""
LONGEST_LINE = 4096
"""Bytes that a client may say at once."""
MOST = 65535
"""Rows or columns (struct winsize, ioctl_tty(2))."""


@frozen
class ExecJob:
    """A command: `environment` as "NAME=VALUE", beside the job's own; `user` as in a job, null for
    the job's own; `working_dir` "" for the job's own; `terminal` of so many `rows` and `columns`.
    """

    command: tuple[str, ...]
    environment: tuple[str, ...] = ()
    user: str | None = None
    working_dir: str = ""
    terminal: bool = False
    rows: int = 24
    columns: int = 80


@frozen
class ExecDetached:
    """The same without streams or a client: it goes on by itself, until the job ends."""

    command: tuple[str, ...]
    environment: tuple[str, ...] = ()
    user: str | None = None
    working_dir: str = ""


@frozen
class Detached:
    """The command that runs now: `session` is its number in `run`, `pid` the host's."""

    session: str
    run: str
    pid: int


def _command(body: ExecJob | ExecDetached) -> Command:
    problems = [text for text in _problems(body) if text]
    if problems:
        raise Refusal(400, "; ".join(problems))
    pairs = (variable.partition("=") for variable in body.environment)
    terminal = None
    if isinstance(body, ExecJob) and body.terminal:
        terminal = (body.rows, body.columns)
    return Command(
        argv=body.command,
        environment={name: value for name, _, value in pairs},
        user=body.user or None,
        working_dir=body.working_dir,
        terminal=terminal,
        stays=isinstance(body, ExecDetached),
    )


def _problems(body: ExecJob | ExecDetached) -> list[str]:
    """What no type says."""
    told = []
    if not body.command or not body.command[0]:
        told.append("command: is empty")
    for variable in body.environment:
        name, equals, _ = variable.partition("=")
        if not name or not equals:
            told.append(f'environment: "{variable}" is no NAME=VALUE')
    if body.working_dir and not body.working_dir.startswith("/"):
        told.append(f'working_dir: "{body.working_dir}" is no absolute path')
    words = (*body.command, *body.environment, body.working_dir, body.user or "")
    if any("\0" in word for word in words):
        told.append("a zero byte ends a word for the kernel, and is in one here")
    if isinstance(body, ExecJob) and not (0 < body.rows <= MOST and 0 < body.columns <= MOST):
        told.append(f"rows and columns: are from 1 to {MOST}")
    return told


def running(ask: Ask) -> Run:
    """The present run of the job that the path names.  Raises Refusal (409) unless it runs."""
    job = ask.job()
    try:
        check_running(job.spec.name, job.state)
    except NotNow as error:
        raise Refusal(409, error.message, hint=error.hint, state=str(error.state)) from error
    assert job.run_now is not None
    return job.run_now


async def _exec(ask: Ask) -> Answer:
    return Takeover(PROTOCOL, partial(_serve, ask, running(ask), _command(ask.body)))


async def _exec_detached(ask: Ask) -> Answer:
    run, command = running(ask), _command(ask.body)
    try:
        session = await _open(ask, run, command, None)
    except SupervisorError as error:
        raise Refusal(409, error.message, hint=error.hint) from error
    return Json(201, Detached(session.id, run.id, session.pid))


async def _open(ask: Ask, run: Run, command: Command, streams: Streams | None) -> Session:
    """Start it, and write down who did, and whether it worked."""
    told: dict[str, Any] = {"job": run.spec.name, "run": run.id, "command": list(command.argv)}
    if command.user is not None:
        told["user"] = command.user
    try:
        session = await run.sessions.open(command, streams)
    except SupervisorError as error:
        ask.steered("exec", **told, session=None, failed=error.message)
        raise
    ask.steered("exec", **told, session=session.id, failed=None)
    return session


async def _serve(ask: Ask, run: Run, command: Command, wire: Wire, fds: tuple[int, ...]) -> None:
    """The whole conversation; `fds` are ours to close."""
    talk = Talk(wire)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk.listen, nursery.cancel_scope)
            await _converse(ask, run, command, talk, fds)
            nursery.cancel_scope.cancel()
    finally:
        for fd in fds:
            os.close(fd)
        talk.leave()


async def _converse(ask: Ask, run: Run, command: Command, talk: Talk, fds: tuple[int, ...]) -> None:
    """Start it, and tell the client what becomes of it; cancelled when he goes."""
    try:
        await talk.ready()
        session = await _open(ask, run, command, _streams(command, fds))
        talk.begin(session)
    except SupervisorError as error:
        await talk.say({"failed": _failure(error)})
        return
    started = {"session": session.id, "run": run.id, "pid": session.pid}
    await talk.say({"started": started}, session.terminal)
    await session.over.wait()
    await talk.say({"ended": await _ending(run, session)})


def _failure(error: SupervisorError) -> dict[str, Any]:
    told: dict[str, Any] = {"error": error.message, "hint": error.hint}
    if isinstance(error, SpawnError):
        told |= {"stage": error.stage, "errno": error.errno}
    return told


async def _ending(run: Run, session: Session) -> dict[str, Any]:
    """How it ended; `over`: the job has ended, and taken it along."""
    status = session.status
    code, number = None, None
    if isinstance(status, ExitStatus):
        code, number = status.code, status.signal
    if number == signal.SIGKILL:
        with trio.move_on_after(AFTERWARDS):  # whoever is in the job ends before its init does
            await run.sessions.over.wait()
    return {"code": code, "signal": number, "over": run.sessions.over.is_set()}


def _streams(command: Command, fds: tuple[int, ...]) -> Streams | None:
    """Those of the client, if they are what they must be.  Raises SupervisorError."""
    if command.terminal is not None:
        if fds:
            raise SupervisorError("a command with a terminal takes no descriptors")
        return None
    if len(fds) != 3 or not all(_is_pipe(fd) for fd in fds):
        hint = "send stdin, stdout and stderr with the request, each one end of a pipe(2)"
        raise SupervisorError("it takes three pipes, or a terminal of its own", hint=hint)
    return (fds[0], fds[1], fds[2])


def _is_pipe(fd: int) -> bool:
    """A pipe that has no name anywhere."""
    return stat.S_ISFIFO(os.fstat(fd).st_mode) and syscalls.fs_magic(fd) == constants.PIPEFS_MAGIC


_SIGNALS = frozenset(one.name.removeprefix("SIG") for one in signal.Signals)


class Talk:
    """Objects, a line each, with a client who may go at any time."""

    def __init__(self, wire: Wire, eof: Callable[[], None] | None = None) -> None:
        """`eof` is called when the client says so."""
        self._wire = wire
        self._eof = eof
        self._ready = trio.Event()
        self._detached = False
        self._session: Session | None = None
        self._early: list[int] = []

    async def ready(self) -> None:
        """Until the client reads what comes.  Raises SupervisorError for one who does not."""
        with trio.move_on_after(READY_TIME):
            await self._ready.wait()
            return
        raise SupervisorError(f"the client was not ready within {READY_TIME:g} s")

    def begin(self, session: Session) -> None:
        """The command runs.  It may have spoken to the client before we knew, and been answered."""
        self._session = session
        for number in self._early:
            session.send_signal(number)

    async def listen(self, conversation: trio.CancelScope) -> None:
        """Do what he says, until he goes; then there is nobody to speak to."""
        async for line in _lines(self._wire):
            try:
                self._heed(json.loads(line))
            except (ValueError, TypeError, RecursionError):
                break  # he speaks nonsense: as good as gone
        conversation.cancel()

    def _heed(self, said: Any) -> None:
        """Raises ValueError for what means nothing."""
        match said:
            case {"ready": True}:
                self._ready.set()
            case {"eof": True} if self._eof is not None:
                self._eof()
            case {"detach": True}:
                self._detached = True
            case {"signal": str(name)} if name.removeprefix("SIG") in _SIGNALS:
                number = signal_number(name)
                if self._session is None:
                    self._early = [*self._early[:MOST_EARLY], number]
                else:
                    self._session.send_signal(number)
            case _:
                raise ValueError("it means nothing")

    async def say(self, told: dict[str, Any], descriptor: int = -1) -> None:
        """To a client who has gone it is said in vain."""
        data = json.dumps(told).encode() + b"\n"
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
        try:
            sent = await self._wire.socket.sendmsg([data], [rights] if descriptor >= 0 else [])
            await self._wire.send(data[sent:])
        except (OSError, trio.BrokenResourceError):
            return

    def leave(self) -> None:
        """The conversation is over: a command that goes on has been left, or goes with it."""
        if self._session is not None:
            self._session.leave() if self._detached else self._session.hang_up()


async def _lines(wire: Wire) -> AsyncIterator[bytes]:
    """What the client says, until it hangs up or a line has no end."""
    held = b""
    try:
        while len(held) <= LONGEST_LINE and (data := await wire.receive(LONGEST_LINE)):
            *whole, held = (held + data).split(b"\n")
            for line in whole:
                yield line
    except trio.BrokenResourceError:
        return


ROUTES = (
    Route(
        "POST",
        "/jobs/{job}/exec",
        _exec,
        "steer",
        "run a command in a job; takes the connection over (docs/exec.md)",
        body=ExecJob,
        upgrade=PROTOCOL,
    ),
    Route(
        "POST",
        "/jobs/{job}/exec/detached",
        _exec_detached,
        "steer",
        "start a command in a job, and leave it to itself",
        body=ExecDetached,
        checks_more=True,
        answer=Detached,
        status=201,
    ),
)
