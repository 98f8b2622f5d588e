"""The socket itself: made before anybody may connect, idle while nobody asks, gone at the end."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from attrs import evolve

from supervisor.control import peers
from supervisor.control.server import served
from supervisor.errors import KernelError
from supervisor.front.verbs import place
from tests.support.command import State
from tests.support.control import ABOUT, Told

GET = b"GET /v1/nothing HTTP/1.1\r\nHost: x\r\n\r\n"


class Wakes(trio.abc.Instrument):
    """Counts the steps of the event loop."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps.append(task.name)


@asynccontextmanager
async def server(path: Path, log: Told | None = None):
    about = evolve(ABOUT, owner=os.geteuid(), socket=str(path))
    async with served(None, log or Told(), about):  # type: ignore[arg-type]
        yield


async def ask(path: Path) -> tuple[trio.SocketStream, bytes]:
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(place.connect(path)))
    await stream.send_all(GET)
    return stream, await stream.receive_some()


async def test_it_answers_and_is_gone_at_the_end(tmp_state: State):
    path = tmp_state.runtime / "socket"
    path.write_text("a stale one")
    async with server(path):
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        stream, answer = await ask(path)
        assert answer.startswith(b"HTTP/1.1 404 ")
        await stream.aclose()
    assert not path.exists()


async def test_idle_clients_wake_nobody(tmp_state: State):
    path = tmp_state.runtime / "socket"
    async with server(path):
        streams = [(await ask(path))[0] for _ in range(20)]
        await trio.testing.wait_all_tasks_blocked()
        wakes = Wakes()
        trio.lowlevel.add_instrument(wakes)
        # there is nothing to wait for: that nothing comes is what is proven
        await trio.sleep(1)
        trio.lowlevel.remove_instrument(wakes)
        assert len(wakes.steps) == 1  # this task's own
        for stream in streams:
            await stream.aclose()


async def test_where_there_can_be_no_socket_it_is_told(tmp_state: State):
    with pytest.raises(KernelError, match=r"open the socket .*/none/socket: No such file"):
        async with server(tmp_state.runtime / "none" / "socket"):
            raise AssertionError("it has begun")


async def test_a_bug_drops_one_client_and_is_told(
    tmp_state: State, monkeypatch: pytest.MonkeyPatch
):
    log = Told()
    path = tmp_state.runtime / "socket"
    async with server(path, log):
        await (await ask(path))[0].aclose()
        monkeypatch.setattr("supervisor.control.http.find", lambda *_: 1 // 0)
        stream, answer = await ask(path)
        assert answer == b""
        await stream.aclose()
        monkeypatch.undo()
        stream, answer = await ask(path)
        assert answer.startswith(b"HTTP/1.1 404 ")
        await stream.aclose()
    (entry,) = log.entries
    assert "a client was dropped: ZeroDivisionError" in entry["text"]


def test_one_who_has_died_since_is_nobody(tmp_state: State):
    """His number may be another's by now."""
    path = tmp_state.runtime / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        pid = os.fork()
        if pid == 0:
            place.connect(path)
            os._exit(0)
        os.waitpid(pid, 0)
        connection, _ = listener.accept()
        with connection:
            dead = peers.peer_of(connection)
        with place.connect(path), listener.accept()[0] as connection:
            alive = peers.peer_of(connection)
    assert (dead.pid, dead.in_job) == (pid, True)
    assert (alive.pid, alive.uid, alive.in_job) == (os.getpid(), os.getuid(), False)
    assert frozenset(os.getgroups()) <= alive.groups
