"""Clients of a real socket that mean no good, are broken, or have no business there."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from supervisor.control.server import MOST_CLIENTS
from supervisor.front.verbs import place
from supervisor.front.verbs.client import Client, Refused, Reply
from supervisor.front.verbs.place import NoInstance
from tests.support import host
from tests.support.batch import PATIENCE, Batch, Running

pytestmark = pytest.mark.kernel

DEAF = """
[jobs.deaf]
command = ["sh", "-c", "trap '' USR1; exec sleep 1000"]
"""
GET = b"GET /v1/ HTTP/1.1\r\nHost: x\r\n\r\n"
USR1 = (
    b'POST /v1/jobs/deaf/kill HTTP/1.1\r\nHost: x\r\nContent-Length: 18\r\n\r\n{"signal": "USR1"}'
)
LONG = b" " * (2 << 20)
OTHER = 65534
"""A user that owns nothing here, and a group of the same number."""


def path_of(batch: Batch) -> Path:
    return batch.where.runtime / batch.name / "socket"


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.01)


def sockets(running: Running) -> int:
    """That the instance holds; all else it may open whenever it likes."""
    links = Path(f"/proc/{running.process.pid}/fd").iterdir()
    return sum(link.is_socket() for link in links)


@contextmanager
def undisturbed(batch: Batch, top: str = "") -> Iterator[Running]:
    """An instance that answers before and after, and holds no socket then that it did not."""
    with batch.start(DEAF, top=top) as running:
        running.wait_started("deaf")
        before = sockets(running)
        yield running
        until(lambda: sockets(running) <= before)
        assert Client(path_of(batch)).get("jobs", "deaf")["status"]["state"] == "running"
    assert not [one for one in batch.entries("warning") if "bug" in one["text"]]


def as_other(do: Callable[[], Any], gid: int = OTHER) -> Any:
    """What it returns (JSON) in a child that is somebody else."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(OTHER, OTHER, OTHER)
            os.write(writer, json.dumps(do()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as pipe:  # noqa: PTH123
        said = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return json.loads(said)


def test_one_who_does_not_read_is_told_of_the_gap(batch: Batch) -> None:
    path = path_of(batch)
    with undisturbed(batch), place.connect(path) as slow, place.connect(path) as busy:
        wanted = b"event=steered&event=signal_sent"
        slow.sendall(b"GET /v1/events?follow=true&%s HTTP/1.1\r\nHost: x\r\n\r\n" % wanted)
        events = Reply(slow)
        count = 900  # two entries each: more than the queue and the socket take
        feeder = threading.Thread(target=lambda: busy.sendall(USR1 * count))
        feeder.start()
        drain(busy, b'"deaf"', count)
        feeder.join()
        got = 0
        gaps = []
        for line in events.lines():
            entry = json.loads(line)
            if "gap" in entry:
                gaps.append(entry)
            got += entry.get("gap", 1)
            if got == 2 * count:
                break
    assert gaps
    assert all(gap["from"] < gap["to"] for gap in gaps)


def drain(stream: socket.socket, mark: bytes, count: int) -> None:
    """Read until `mark` has come so often."""
    found, rest = 0, b""
    while found < count:
        data = rest + stream.recv(1 << 20)
        assert len(data) > len(rest), "it hung up"
        found += data.count(mark)
        rest = data[-len(mark) + 1 :] if not data.endswith(mark) else b""


def test_half_requests_and_those_who_leave_hold_up_nobody(batch: Batch) -> None:
    path = path_of(batch)
    follow = b"GET /v1/events?follow=true HTTP/1.1\r\nHost: x\r\n\r\n"
    parts = (b"", b"G", GET[:-2], USR1[:-5], follow)
    with undisturbed(batch), ExitStack() as stack:
        for _ in range(10):
            for part in parts:
                stack.enter_context(place.connect(path)).sendall(part)
        assert Client(path).get("")["jobs"] == {"running": 1}
    assert batch.entries("steered") == []


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (os.urandom(4096) + b"\r\n\r\n", b"400"),
        (GET + b"\0" * 1000, b"200"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 10_000, b"431"),
        (
            b"POST /v1/stop HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n"
            + b" " * (2 << 20),
            b"413",
        ),
        (b"\r\n" * 100_000, None),
    ],
    ids=["random", "garbage behind", "head", "body", "nothing"],
)
def test_nonsense_is_refused(batch: Batch, data: bytes, status: bytes | None) -> None:
    with undisturbed(batch), place.connect(path_of(batch)) as stream:
        sender = threading.Thread(target=send, args=(stream, data))
        sender.start()
        answer = b"".join(iter(lambda: received(stream), b""))
        sender.join()
        assert status is None or answer.startswith(b"HTTP/1.1 " + status)


def send(stream: socket.socket, data: bytes) -> None:
    try:
        stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it has heard enough


def received(stream: socket.socket) -> bytes:
    try:
        return stream.recv(65536)
    except ConnectionResetError:
        return b""


def test_two_hundred_at_once_are_served_and_far_more_are_told(batch: Batch) -> None:
    path = path_of(batch)
    with undisturbed(batch), ExitStack() as stack:
        clients = [stack.enter_context(place.connect(path)) for _ in range(200)]
        for client in clients:
            client.sendall(GET)
        assert {Reply(client).status for client in clients} == {200}
        more = [stack.enter_context(place.connect(path)) for _ in range(MOST_CLIENTS - 199)]
        for client in more:
            client.sendall(GET)
        statuses = sorted(Reply(client).status for client in more)
        assert statuses == [200] * (MOST_CLIENTS - 200) + [503]


def test_others_may_not(batch: Batch) -> None:
    path = path_of(batch)

    def ask() -> Any:
        try:
            return [200, Client(path).get("jobs")]
        except Refused as error:
            return [error.status, str(error)]
        except NoInstance as error:
            return [0, str(error)]

    with undisturbed(batch):
        status, text = as_other(ask)
        assert status == 0
        assert f"{path}: you may not connect" in text
        path.chmod(0o666)  # were the mode ever wrong, the kernel still says who it is
        status, text = as_other(ask)
        assert status == 403
        assert f"uid {OTHER} may not" in text


def test_the_group_may_look_and_not_touch(batch: Batch) -> None:
    path = path_of(batch)

    def look() -> Any:
        client = Client(path)
        job = client.get("jobs", "deaf")
        events = next(client.lines("events"))["event"]
        try:
            client.post("jobs", "deaf", "stop")
        except Refused as error:
            return [job["spec"]["environment"], events, error.status, str(error)]

    with undisturbed(batch, top=f"socket_group = {OTHER}"):
        status = path.stat()
        assert (status.st_mode & 0o777, status.st_gid, status.st_uid) == (0o660, OTHER, 0)
        environment, event, refused, text = as_other(look)
    assert environment == {"SUPERVISE_BATCH": ""}  # its values may be secrets
    assert event == "supervisor_started"
    assert refused == 403
    assert "may look, and change nothing" in text


def test_an_unknown_group_is_told_with_its_line(batch: Batch) -> None:
    path = batch.write(DEAF, top='socket_group = "no-such-group"')
    done = batch.supervise(path)
    assert done.status == 2
    assert ":5: supervisor.socket_group: no group of this host is named no-such" in done.stderr


def test_a_job_that_sees_the_socket_is_refused(batch: Batch) -> None:
    if shutil.which("curl") is None:
        host.miss("tools", "needs curl: apt-get install curl")
    curl = f"curl -s --unix-socket /tmp/run/{batch.name}/socket http://x/v1"
    jobs = f"""
        [jobs.curious]
        command = ["sh", "-c", "{curl}/jobs; setsid {curl}/; ({curl}/stop -X POST & wait)"]
        mounts = [{{ source = "{batch.where.runtime}", target = "/tmp/run", read_only = false }}]
    """
    result = batch.run(jobs)
    said = batch.output(result["curious"])
    assert said.count("a job may not speak to its own supervisor") == 3
    assert result["curious"]["reason"] == "succeeded"
    assert batch.entries("steered") == []


def test_a_path_too_long_for_the_kernel_is_no_hindrance(batch: Batch) -> None:
    deep = batch.where.runtime / ("d" * 100)
    deep.mkdir(mode=0o711)
    path = deep / batch.name / "socket"
    assert len(str(path)) > place.LONGEST
    text = batch.write(DEAF).read_text()
    batch.path.write_text(text.replace(f'"{batch.where.runtime}"', f'"{deep}"'))
    running = Running(batch.supervise.start(batch.path, "--json"), batch)
    running.wait_started("deaf")
    assert batch.supervise("ps", "-q", "--socket", path).stdout == "deaf\n"
    assert batch.supervise("stop", "--wait", "--socket", path).status == 0
    running.finish()
    assert not path.exists()
