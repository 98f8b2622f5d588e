"""What a service manager is told, and that one which fails harms nobody."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from supervisor.front import notify
from supervisor.model.job import JobSpec, Stop
from supervisor.model.state import State
from supervisor.record.eventlog import EventLog
from supervisor.supervise.stopping import KILL_PATIENCE


class Instance(SimpleNamespace):
    """As much of an instance as is told of."""

    @classmethod
    def of(cls, *states: State, grace: float = 10.0) -> Instance:
        spec = JobSpec(name="j", command=("true",), stop=Stop(grace=grace))
        jobs = {str(n): SimpleNamespace(state=s, spec=spec) for n, s in enumerate(states)}
        return cls(jobs=jobs, interrupted="")


class Listener:
    """A service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1))
        self.socket.setblocking(False)

    async def hear(self) -> dict[str, str]:
        with trio.fail_after(30):
            await trio.lowlevel.wait_readable(self.socket)
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().split("\n"))

    def waiting(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return f"@supervise-test-{os.getpid()}"


@pytest.fixture
def listener(path: str) -> Iterator[Listener]:
    listening = Listener(path)
    yield listening
    listening.socket.close()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    opened = EventLog(tmp_path / "events.ndjson", lambda: 0.0)
    yield opened
    opened.close()


def test_the_variables_are_taken_out_of_the_environment():
    environ = {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    assert notify.take(environ) == notify.Address("/n", 3.0)
    assert environ == {}


@pytest.mark.parametrize(
    ("usec", "pid"), [("", ""), ("0", ""), ("soon", ""), ("-5", ""), ("3000000", "1")]
)
def test_a_watchdog_that_is_not_ours_is_not_fed(usec: str, pid: str):
    environ = {"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    assert notify.take(environ) == notify.Address("@n", None)


def test_without_a_manager_there_is_none_and_a_stray_watchdog_goes_too():
    environ = {"WATCHDOG_USEC": "1"}
    assert notify.take(environ) is None
    assert environ == {}


@pytest.mark.parametrize("name", ["abstract", "file"])
async def test_ready_then_every_change_then_stopping(
    path: str, log: EventLog, tmp_path: Path, name: str
):
    address = path if name == "abstract" else str(tmp_path / "n")
    listener = Listener(address)
    instance = Instance.of(State.RUNNING, State.WAITING, State.BACKOFF)
    async with notify.informed(notify.Address(address), instance, log):
        assert await listener.hear() == {"READY": "1", "STATUS": "1 running, 2 queued"}
        instance.jobs["0"].state = State.ENDED
        log.emit("job_ended")
        log.emit("job_waiting")
        assert await listener.hear() == {"STATUS": "0 running, 2 queued, 1 ended"}
    assert await listener.hear() == {"STOPPING": "1", "STATUS": "0 running, 2 queued, 1 ended"}
    assert listener.waiting() == []
    listener.socket.close()


async def test_an_ordered_stop_asks_for_the_time_that_the_jobs_may_take(
    listener: Listener, path: str, log: EventLog
):
    instance = Instance.of(State.STOPPING, grace=600.0)
    async with notify.informed(notify.Address(path), instance, log):
        await listener.hear()
        instance.interrupted = "SIGTERM"
        log.emit("job_stopping")
        told = await listener.hear()
        assert told["STOPPING"] == "1"
        assert int(told["EXTEND_TIMEOUT_USEC"]) > (600 + KILL_PATIENCE) * 1_000_000


async def test_the_watchdog_is_fed_twice_as_often_as_it_must_be(
    listener: Listener, path: str, log: EventLog, autojump_clock: trio.testing.MockClock
):
    async with notify.informed(notify.Address(path, 20.0), Instance.of(), log):
        await trio.sleep(35)
    fed = [text for text in listener.waiting() if text == "WATCHDOG=1"]
    assert len(fed) == 4  # at 0, 10, 20, 30 s


async def test_without_a_watchdog_nothing_is_sent_when_nothing_happens(
    listener: Listener, path: str, log: EventLog, autojump_clock: trio.testing.MockClock
):
    async with notify.informed(notify.Address(path), Instance.of(), log):
        await trio.sleep(3600)
    assert len(listener.waiting()) == 2  # READY, STOPPING


async def test_a_full_queue_holds_up_neither_the_jobs_nor_the_end(
    listener: Listener, path: str, log: EventLog, autojump_clock: trio.testing.MockClock
):
    filler = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    filler.setblocking(False)
    filler.connect(path.replace("@", "\0", 1))
    with pytest.raises(BlockingIOError):
        while True:
            filler.send(b"x")
    with trio.fail_after(5):
        async with notify.informed(notify.Address(path, 2.0), Instance.of(State.RUNNING), log):
            await trio.sleep(1)
    filler.close()


@pytest.mark.parametrize(
    "address", ["/nonexistent/socket", "relative", "vsock:2:1", "@", "/" * 200]
)
async def test_a_broken_socket_is_told_of_once_and_ignored(address: str, log: EventLog):
    told: list[str] = []
    log.subscribe(lambda entry: told.append(str(entry["text"])))
    async with notify.informed(notify.Address(address, 0.001), Instance.of(State.RUNNING), log):
        await trio.sleep(0.02)
    (warning,) = told
    assert warning.startswith(f"cannot notify the service manager at {address}: ")
    assert warning.endswith(", ignoring")


async def test_a_manager_that_goes_away_is_told_of_once(path: str, log: EventLog):
    listener = Listener(path)
    told: list[str] = []
    log.subscribe(lambda entry: told.append(str(entry["event"])))
    async with notify.informed(notify.Address(path), Instance.of(), log):
        await listener.hear()
        listener.socket.close()
        log.emit("job_ended")
        with trio.fail_after(30):
            while "warning" not in told:
                await trio.sleep(0.01)
    assert told == ["job_ended", "warning"]


async def test_a_reload_is_told_from_its_beginning_to_its_end(
    path: str, listener: Listener, log: EventLog
):
    instance = Instance.of(State.RUNNING)
    async with notify.informed(notify.Address(path), instance, log):
        assert (await listener.hear())["READY"] == "1"
        for end in ("reloaded", "reload_failed"):
            before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            log.emit("reloading", by="SIGHUP")
            log.emit(end, by="SIGHUP")
            heard = [await listener.hear(), await listener.hear()]
            told = [one for one in heard if "RELOADING" in one or "READY" in one]
            while len(told) < 2:  # a STATUS may come in between
                one = await listener.hear()
                told += [one] if "RELOADING" in one or "READY" in one else []
            assert told[0]["RELOADING"] == "1"
            assert int(told[0]["MONOTONIC_USEC"]) >= before
            assert told[1]["READY"] == "1"
