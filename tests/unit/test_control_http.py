"""A client's connection: what is answered, whatever is sent."""

from __future__ import annotations

import json
import os
import socket

import pytest
import trio
from attrs import frozen

from supervisor.control.peers import Peer
from supervisor.control.routes import Answer, Ask, Json, Lines, Refusal, Route, Takeover
from supervisor.errors import ConfigError, KernelError, SupervisorError
from tests.support.control import Talk, talk


@frozen
class Body:
    times: int
    word: str = "x"


@frozen
class Query:
    many: tuple[int, ...] = ()
    flag: bool = False
    limit: int | None = None


async def echo(ask: Ask) -> Answer:
    return Json(200, {"path": dict(ask.path), "query": ask.query, "body": ask.body})


async def lines(ask: Ask) -> Answer:
    async def three():
        for number in range(3):
            yield {"n": number}

    return Lines(three())


def failing(error: Exception):
    async def handler(ask: Ask) -> Answer:
        raise error

    return handler


async def take(ask: Ask) -> Answer:
    async def run(wire, descriptors):
        for fd in descriptors:
            os.write(fd, b"through")
            os.close(fd)
        await wire.send(b"got " + await wire.receive())

    return Takeover("test", run)


ROUTES = (
    Route("GET", "/echo/{name}", echo, "read", "", query=Query),
    Route("POST", "/echo/{name}", echo, "steer", "", body=Body),
    Route("GET", "/lines", lines, "read", ""),
    Route("POST", "/take", take, "steer", "", upgrade="test"),
    Route("GET", "/refusal", failing(Refusal(409, "no", hint="do", more=1)), "read", ""),
    Route("GET", "/state", failing(SupervisorError("not now", hint="later")), "read", ""),
    Route("GET", "/kernel", failing(KernelError("open", "/x", 13)), "read", ""),
    Route("GET", "/config", failing(ConfigError(["a", "b"])), "read", ""),
    Route("GET", "/bug", failing(ZeroDivisionError("secret")), "read", ""),
)


async def got(client: Talk, method: str, target: str, body: bytes = b"") -> tuple[int, dict]:
    status, raw = await client.ask(method, target, body)
    return status, json.loads(raw)


async def test_path_query_and_body_arrive_checked():
    async with talk(ROUTES) as client:
        status, answer = await got(client, "GET", "/v1/echo/a%2Fb=%C3%A9?many=1&many=2&flag=true")
        assert (status, answer["path"]) == (200, {"name": "a/b=é"})
        assert answer["query"] == {"many": [1, 2], "flag": True, "limit": None}
        status, answer = await got(client, "POST", "/v1/echo/a", b'{"times": 3}')
        assert (status, answer["body"]) == (200, {"times": 3, "word": "x"})


async def test_all_that_is_wrong_is_told_at_once():
    async with talk(ROUTES) as client:
        status, answer = await got(client, "POST", "/v1/echo/a", b'{"times": "3", "wort": 1}')
        assert status == 400
        assert answer["problems"] == [
            {"field": "times", "error": 'must be an integer, not "3"'},
            {"field": "wort", "error": 'no such argument; did you mean "word"?'},
        ]
        status, answer = await got(client, "GET", "/v1/echo/a?limit=x&flag=maybe&nothing=1")
        assert status == 400
        assert [one["field"] for one in answer["problems"]] == ["limit", "flag", "nothing"]


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"times": NaN}', b'{"times": "\\ud800"}', b"[" * 100_000, b"\xff"]
)
async def test_a_body_that_is_no_object_is_refused(body: bytes):
    async with talk(ROUTES) as client:
        status, answer = await got(client, "POST", "/v1/echo/a", body)
        assert status == 400
        assert "error" in answer
        assert (await client.ask("GET", "/v1/echo/a"))[0] == 200  # and the connection goes on


@pytest.mark.parametrize(
    ("target", "status", "answer"),
    [
        ("/v1/refusal", 409, {"error": "no", "hint": "do", "more": 1}),
        ("/v1/state", 409, {"error": "not now", "hint": "later"}),
        ("/v1/kernel", 500, {"error": "open /x: Permission denied"}),
        ("/v1/config", 400, {"error": "it is not right", "problems": ["a", "b"]}),
        ("/v1/bug", 500, {"error": "this is a bug of supervise; its event log has more"}),
        ("/v1/echo/", 404, None),
        ("/v1/echo/a/b", 404, None),
        ("/v2/lines", 404, None),
        ("/", 404, None),
        ("*", 404, None),
        ("/v1/echo/%ff", 400, None),
        ("/v1/lines?x=1", 400, None),
    ],
)
async def test_what_fails_is_told_and_no_traceback(target: str, status: int, answer: dict | None):
    async with talk(ROUTES) as client:
        found = await got(client, "GET", target)
        assert found[0] == status
        assert answer is None or found[1] == answer
        if target == "/v1/bug":
            (entry,) = client.log.entries
            assert "ZeroDivisionError" in entry["text"]


async def test_another_method_is_told_which_there_are():
    async with talk(ROUTES) as client:
        await client.stream.send_all(b"PUT /v1/echo/a HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await client.stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 405 ")
        assert b"\r\nAllow: GET, POST\r\n" in answer


async def test_lines_come_in_chunks_and_the_connection_goes_on():
    async with talk(ROUTES) as client:
        for _ in range(2):
            status, raw = await client.ask("GET", "/v1/lines")
            assert (status, raw) == (200, b'{"n": 0}\n{"n": 1}\n{"n": 2}\n')


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x00garbage\r\n\r\n", b"400"),
        (b"GET /v1/lines HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /v1/lines HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 20_000 + b"\r\n\r\n", b"431"),
        (b"POST /v1/echo/a HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n", b"413"),
        (b"GET /v1/lines HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", b"400"),
        (
            b"POST /v1/echo/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"400",
        ),
    ],
)
async def test_what_is_no_request_is_refused_and_the_connection_closed(data: bytes, status: bytes):
    if b"9999999" in data:
        data += b"x" * 1_100_000
    async with talk(ROUTES) as client:
        answer = await client.raw(data)
        assert answer.startswith(b"HTTP/1.1 " + status)


async def test_requests_sent_ahead_are_answered_in_order():
    one = b"GET /v1/echo/%d HTTP/1.1\r\nHost: x\r\n\r\n"
    async with talk(ROUTES) as client:
        last = b"GET /v1/lines HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        answer = await client.raw(b"".join(one % number for number in range(50)) + last)
        at = [answer.index(b'"name": "%d"' % number) for number in range(50)]
        assert at == sorted(at)
        assert answer.endswith(b"0\r\n\r\n")


async def test_a_client_that_goes_ends_what_it_waits_for():
    begun, ended = trio.Event(), trio.Event()

    async def wait(ask: Ask) -> Answer:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()
        raise AssertionError

    async with talk([Route("GET", "/wait", wait, "read", "")]) as client:
        await client.stream.send_all(b"GET /v1/wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await begun.wait()
        await client.stream.aclose()
        with trio.fail_after(30):
            await ended.wait()


async def test_one_that_only_sends_no_more_gets_its_answer():
    async with talk(ROUTES) as client:
        await client.stream.send_all(b"GET /v1/lines HTTP/1.1\r\nHost: x\r\n\r\n")
        await client.stream.send_eof()
        answer = b"".join([part async for part in client.stream])
        assert answer.endswith(b"0\r\n\r\n")


async def test_a_connection_is_taken_over_with_its_descriptors():
    reader, writer = os.pipe()
    head = b"POST /v1/take HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\nearly"
    async with talk(ROUTES) as client:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, writer.to_bytes(4, "little"))
        await client.stream.socket.sendmsg([head], [rights])
        os.close(writer)
        answer = b"".join([part async for part in client.stream])
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert answer.endswith(b"got early")
    with open(reader, "rb") as pipe:  # noqa: PTH123
        assert pipe.read() == b"through"  # and nobody else has it open


async def test_without_an_upgrade_nothing_is_taken_over():
    async with talk(ROUTES) as client:
        assert (await got(client, "POST", "/v1/take"))[0] == 426


async def test_descriptors_nobody_asked_for_are_closed():
    before = set(os.listdir("/proc/self/fd"))
    reader, writer = os.pipe()
    async with talk(ROUTES) as client:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, writer.to_bytes(4, "little") * 100)
        request = b"GET /v1/echo/a HTTP/1.1\r\nHost: x\r\n\r\n"
        await client.stream.socket.sendmsg([request], [rights])
        await client.stream.receive_some()
        await client.ask("GET", "/v1/echo/a")
        os.close(writer)
        with open(reader, "rb") as pipe:  # noqa: PTH123
            assert pipe.read() == b""
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize(
    ("uid", "groups", "in_job", "reads", "steers"),
    [
        (0, {0}, False, 200, 200),
        (0, {0}, True, 403, 403),
        (1000, {1000}, False, 403, 403),
        (1000, {1000, 77}, False, 200, 403),
        (1000, {77}, True, 403, 403),
    ],
)
async def test_who_may_do_what(uid: int, groups: set, in_job: bool, reads: int, steers: int):
    peer = Peer(1, uid, 1000, frozenset(groups), in_job)
    async with talk(ROUTES, peer, group=77) as client:
        assert (await client.ask("GET", "/v1/echo/a"))[0] == reads
        assert (await client.ask("POST", "/v1/echo/a", b'{"times": 1}'))[0] == steers
