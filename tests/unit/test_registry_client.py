"""The client of a registry against one that breaks in every way it can."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest
import trio
import trio.testing

from supervisor.errors import ImageError
from supervisor.image.hosts import RegistrySettings
from supervisor.image.progress import Progress
from supervisor.image.registry import AT_ONCE, Fetched, Registry, open_registry
from supervisor.image.trouble import Patience
from tests.support.registry import OCI, Kept, Memory, always, at, once, sha256
from tests.support.web import Asked, Reply, Web, serve

QUICK = Patience(
    connect=5, read=5, answer=10, window=0.3, slowest=1000, whole=10, tries=3, first=0.01,
    longest=0.02, bound=1,
)  # fmt: skip
BIG = bytes(range(256)) * 1200  # 300 KiB
DIGEST = sha256(BIG)


@pytest.fixture
def memory():
    found = Memory()
    found.add(BIG)
    found.tag("1", {"schemaVersion": 2, "mediaType": OCI})
    return found


@pytest.fixture
def web(memory):
    with serve(memory) as running:
        yield running


async def blob(
    web: Web, sink: Kept, *, patience: Patience = QUICK, size: int = len(BIG), **settings: object
) -> list[Progress]:
    told: list[Progress] = []
    async with open_registry(RegistrySettings(**settings), patience) as client:
        await client.blob(at(web.host), DIGEST, size, sink, told.append)
    return told


async def manifest(web: Web, patience: Patience = QUICK, **reference: str) -> Fetched:
    async with open_registry(RegistrySettings(), patience) as client:
        return await client.manifest(at(web.host, **reference))


def ranges(web: Web) -> list[str | None]:
    """Of each GET of a blob, the part it asked for."""
    return [one.headers.get("range") for one in web.seen if "/blobs/" in one.path]


# --- Manifests -----------------------------------------------------------------------------------


async def test_a_manifest_comes_with_its_type_and_digest(memory, web):
    found = await manifest(web)
    assert found == Fetched(memory.manifests["1"], OCI, sha256(memory.manifests["1"]))
    assert (
        "application/vnd.docker.distribution.manifest.list.v2+json"
        in (web.seen[0].headers["accept"])
    )
    assert await manifest(web, digest=found.digest) == found
    assert web.seen[-1].path.endswith(f"/manifests/{found.digest}")


async def test_the_digest_of_a_tag_is_had_without_its_manifest(memory, web):
    async with open_registry(RegistrySettings(), QUICK) as client:
        assert await client.head(at(web.host)) == sha256(memory.manifests["1"])
        assert await client.head(at(web.host, "none")) is None
    assert web.paths("GET") == []


async def test_a_manifest_with_another_digest_is_refused(memory, web):
    wrong = json.dumps({"schemaVersion": 2, "mediaType": OCI, "x": 1}).encode()
    memory.faults = [always(Reply(200, {"Content-Type": OCI}, wrong), "manifests")]
    with pytest.raises(ImageError, match=sha256(wrong)):
        await manifest(web, digest=sha256(memory.manifests["1"]))
    told = {"Content-Type": OCI, "Docker-Content-Digest": sha256(b"another")}
    memory.faults = [always(Reply(200, told, wrong), "manifests")]
    with pytest.raises(ImageError, match=f"it says {sha256(b'another')}"):
        await manifest(web)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, {"Content-Type": OCI}, b"{" + b" " * (4 * 1024**2)),
        Reply(200, {"Content-Type": OCI}, b" " * 65536, endless=True),
        Reply(200, {"Content-Type": OCI, "Content-Length": "9" * 18}, b""),
    ],
    ids=["too long", "endless", "claims to be"],
)
async def test_a_manifest_is_bounded(memory, web, reply):
    memory.faults = [always(reply, "manifests")]
    with pytest.raises(ImageError, match="larger than 4194304 bytes"):
        await manifest(web)


@pytest.mark.parametrize(
    ("header", "body", "why"),
    [
        (OCI, b"<html>", "no JSON"),
        (OCI, b"[" * 100_000, "no JSON"),
        (OCI, b'{"mediaType": "application/vnd.oci.image.index.v1+json"}', "of itself"),
        (OCI, b'{"mediaType": 7}', "of itself"),
        ("application/vnd.docker.distribution.manifest.v1+prettyjws", b"{}", "schema 1"),
        ("application/json", b'{"schemaVersion": 1, "fsLayers": []}', "schema 1"),
    ],
)
async def test_a_manifest_that_is_not_what_it_seems_is_refused(memory, web, header, body, why):
    memory.faults = [always(Reply(200, {"Content-Type": header}, body), "manifests")]
    with pytest.raises(ImageError, match=why):
        await manifest(web)


async def test_what_is_not_there_is_told_in_the_servers_words_made_printable(memory, web):
    with pytest.raises(ImageError, match=r"no such thing .*/v2/a/b/manifests/2 unknown"):
        await manifest(web, tag="2")
    body = json.dumps({"errors": [{"message": "\x1b[2J\n" + "x" * 5000}]}).encode()
    memory.faults = [always(Reply(404, {}, body))]
    with pytest.raises(ImageError) as caught:
        await manifest(web)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


async def test_an_encoding_that_nobody_asked_for_is_refused(memory, web):
    memory.faults = [always(Reply(200, {"Content-Encoding": "gzip"}, b"\x1f\x8b"))]
    with pytest.raises(ImageError, match="encoded as gzip"):
        await manifest(web)
    assert web.seen[0].headers["accept-encoding"] == "identity"


# --- Blobs ---------------------------------------------------------------------------------------


async def test_a_blob_comes_whole_and_is_told_of(web):
    sink = Kept()
    told = await blob(web, sink)
    assert (sink.data, sink.finished) == (BIG, True)
    assert told[-1] == Progress(DIGEST, "done", len(BIG), len(BIG))
    done = [one.done for one in told]
    assert done == sorted(done) and {one.step for one in told} == {"downloading", "done"}


async def test_a_truncated_blob_is_continued_where_it_broke_off(memory, web):
    length = {"Content-Length": str(len(BIG))}
    memory.faults = [once(Reply(200, length, BIG, cut=100_000), "blobs")]
    sink = Kept()
    told = await blob(web, sink)
    assert (sink.data, sink.resets, sink.finished) == (BIG, 0, True)
    assert ranges(web) == [None, "bytes=100000-"]
    (note,) = [one.note for one in told if one.step == "retrying"]
    assert "broke off" in note


async def test_one_that_ends_early_without_a_length_is_continued_too(memory, web):
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (100_000, BIG[:100_000])
    memory.faults = [once(Reply(200, {"Transfer-Encoding": "chunked"}, chunk), "blobs")]
    sink = Kept()
    told = await blob(web, sink)
    assert sink.data == BIG and ranges(web) == [None, "bytes=100000-"]
    assert any(f"ended after 100000 of {len(BIG)} bytes" in one.note for one in told)


async def test_one_that_a_registry_has_only_half_of_is_refused(memory, web):
    memory.faults = [always(Reply(200, {}, BIG[:100_000]), "blobs")]
    with pytest.raises(ImageError, match=f"has 100000 bytes where the manifest says {len(BIG)}"):
        await blob(web, Kept())


async def test_what_an_earlier_process_has_left_is_continued(web):
    sink = Kept(bytearray(BIG[:77]))
    await blob(web, sink)
    assert sink.data == BIG and ranges(web) == ["bytes=77-"]


async def test_one_that_is_whole_already_is_not_asked_for(web):
    sink = Kept(bytearray(BIG))
    await blob(web, sink)
    assert sink.finished and ranges(web) == []


async def test_what_was_left_of_something_else_is_thrown_away_once(web):
    sink = Kept(bytearray(b"?" * 50_000))
    await blob(web, sink)
    assert (sink.data, sink.resets) == (BIG, 1)
    assert ranges(web) == ["bytes=50000-", None]


async def test_one_that_is_longer_than_it_may_be_begins_again(web):
    sink = Kept(bytearray(b"?" * (len(BIG) + 1)))
    await blob(web, sink)
    assert sink.data == BIG and ranges(web) == [None]


async def test_a_server_that_knows_no_ranges_sends_it_from_the_beginning(memory, web):
    memory.ranges = False
    sink = Kept(bytearray(BIG[:77]))
    await blob(web, sink)
    assert (sink.data, sink.resets) == (BIG, 1)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(416, {"Content-Range": "bytes */10"}),
        Reply(206, {"Content-Range": f"bytes 0-{len(BIG) - 1}/{len(BIG)}"}, BIG),
        Reply(206, {"Content-Range": "bytes 77-80/81"}, BIG[77:81]),
        Reply(206, {}, BIG[77:]),
    ],
    ids=["416", "another part", "of another blob", "no range"],
)
async def test_a_part_that_is_not_the_one_asked_for_is_not_taken(memory, web, reply):
    memory.faults = [once(reply, "blobs")]
    sink = Kept(bytearray(BIG[:77]))
    await blob(web, sink)
    assert (sink.data, sink.resets) == (BIG, 1)
    assert ranges(web) == ["bytes=77-", None]


async def test_a_corrupted_blob_is_never_kept(memory, web):
    memory.faults = [always(Reply(200, {}, BIG[:-1] + b"!"), "blobs")]
    sink = Kept()
    with pytest.raises(ImageError, match=r"something with the digest sha256:"):
        await blob(web, sink)
    assert not sink.finished and sink.data == b""
    assert len(ranges(web)) == 1  # the same lie again would help nobody


async def test_a_blob_of_another_length_is_refused_before_it_comes(memory, web):
    memory.faults = [always(Reply(200, {}, BIG + b"!"), "blobs")]
    with pytest.raises(ImageError, match=f"{len(BIG) + 1} bytes where the manifest says"):
        await blob(web, Kept())


async def test_a_body_without_end_is_cut_at_the_announced_size(memory, web):
    memory.faults = [always(Reply(200, {}, BIG, endless=True), "blobs")]
    sink = Kept()
    with pytest.raises(ImageError, match="more than the"):
        await blob(web, sink)
    assert not sink.finished and sink.data == b""


async def test_a_body_that_creeps_is_given_up(memory, web):
    memory.faults = [always(Reply(200, {}, BIG, drip=0.05), "blobs")]
    sink = Kept()
    with pytest.raises(ImageError, match=r"only \d+ bytes came"):
        await blob(web, sink)
    assert len(ranges(web)) == QUICK.tries
    assert sink.data == BIG[: len(sink.data)] != b""  # which the next attempt continues


async def test_a_server_that_says_nothing_is_given_up(memory, web):
    memory.faults = [always(Reply(silent=True))]
    patience = Patience(read=0.1, tries=2, first=0.01)
    with pytest.raises(ImageError, match=r"sent nothing for 0\.1 s"):
        await blob(web, Kept(), patience=patience)


async def test_what_came_before_the_end_of_a_program_is_kept(memory, web):
    """Ctrl-C cancels: the partial holds what has come, and the connection is closed."""
    memory.faults = [always(Reply(200, {}, BIG, drip=0.001), "blobs")]
    sink = Kept()
    with trio.CancelScope() as scope:
        async with open_registry(RegistrySettings(), Patience()) as client:

            def stop(progress: Progress) -> None:
                if progress.done > 10:
                    scope.cancel()

            await client.blob(at(web.host), DIGEST, len(BIG), sink, stop)
    assert scope.cancelled_caught
    assert sink.data == BIG[: len(sink.data)] and len(sink.data) > 10 and not sink.finished
    memory.faults = []
    left = len(sink.data)
    await blob(web, sink)
    assert sink.data == BIG and ranges(web)[-1] == f"bytes={left}-"


async def test_an_error_of_the_sink_is_nobody_elses(web):
    class Full(Kept):
        def write(self, data: bytes) -> None:
            raise ImageError("no space left on device", "/store")

    with pytest.raises(ImageError, match="/store: no space left"):
        await blob(web, Full())
    assert len(ranges(web)) == 1


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0" * 1000,
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 999999 OK\r\n\r\n",
        OK,
        OK + b"no colon\r\n\r\n",
        OK + b"a: " + b"x" * 300_000,
        OK + b"a: b\r\n" * 30_000,
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffffffff\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        OK + b"Transfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: \xff\xfe\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 401 No\r\nWWW-Authenticate: \xff\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 429 No\r\nRetry-After: \xb2\r\nratelimit-limit: \xb2;w=x\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ],
    ids=repr,
)
async def test_what_is_hardly_http_is_an_error_in_words(memory, web, raw):
    memory.faults = [always(Reply(raw=raw))]
    for attempt in (manifest(web), blob(web, Kept())):
        with pytest.raises(ImageError) as caught:
            await attempt
        assert str(caught.value).isprintable() and len(str(caught.value)) < 700


async def test_heads_without_end_are_given_up(memory, web):
    """Each read brings something, so that only a limit of the whole helps."""
    memory.faults = [always(Reply(raw=b"HTTP/1.1 100 Continue\r\n\r\n", endless=True))]
    with pytest.raises(ImageError, match=r"did not answer within 0\.3 s"):
        await manifest(web, Patience(answer=0.3, tries=1))


async def test_some_blobs_come_at_once_but_not_all(memory, web):
    """As many as AT_ONCE are asked for before the first is answered, and no more."""
    there = threading.Semaphore(0)
    gate = threading.Event()
    asked: list[int] = []

    def wait(_asked: Asked) -> None:
        asked.append(1)
        there.release()
        gate.wait(30)

    memory.faults = [wait]
    sinks = [Kept() for _ in range(AT_ONCE + 3)]
    async with (
        open_registry(RegistrySettings(), Patience()) as client,
        trio.open_nursery() as nursery,
    ):
        for sink in sinks:
            nursery.start_soon(client.blob, at(web.host), DIGEST, len(BIG), sink)
        for _ in range(AT_ONCE):
            assert await trio.to_thread.run_sync(there.acquire, True, 30)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(asked) == AT_ONCE
        gate.set()
    assert all(sink.data == BIG for sink in sinks)


# --- Tries ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 408])
async def test_what_passes_is_tried_again(memory, web, status):
    memory.faults = [once(Reply(status), "blobs", times=2)]
    sink = Kept()
    told = await blob(web, sink)
    assert sink.data == BIG and len(ranges(web)) == 3
    assert [str(status) in one.note for one in told if one.step == "retrying"] == [True, True]


@pytest.mark.parametrize("status", [400, 403, 404, 410, 451, 501])
async def test_what_does_not_pass_is_not_tried_again(memory, web, status):
    memory.faults = [always(Reply(status), "blobs")]
    with pytest.raises(ImageError, match=str(status)):
        await blob(web, Kept())
    assert len(ranges(web)) == 1


async def test_a_blob_that_goes_on_may_break_off_more_often_than_one_that_does_not(memory, web):
    step = 60_000
    patience = Patience(tries=2, first=0.001, longest=0.001, step=step)

    def cut(asked: Asked) -> Reply | None:
        reply = memory.plain(asked)
        return Reply(
            reply.status, {**reply.headers, "Content-Length": str(len(reply.body))}, reply.body,
            cut=step,
        )  # fmt: skip

    memory.faults = [cut]
    sink = Kept()
    await blob(web, sink, patience=patience)
    assert sink.data == BIG and len(ranges(web)) == len(BIG) // step + 1

    memory.faults = [
        lambda asked: Reply(
            200, {"Content-Length": str(len(BIG))}, BIG, cut=0 if "blobs" in asked.path else None
        )
    ]
    web.seen.clear()
    with pytest.raises(ImageError, match="broke off"):
        await blob(web, Kept(), patience=patience)
    assert len(ranges(web)) == 2


async def test_retry_after_is_waited_for(memory, web):
    memory.faults = [once(Reply(429, {"Retry-After": "1"}), "blobs")]
    start = time.monotonic()
    told = await blob(web, Kept())
    assert time.monotonic() - start > 1
    assert any("to be asked again in 1s" in one.note for one in told)


async def test_but_not_for_an_hour(memory, web):
    memory.faults = [always(Reply(503, {"Retry-After": "3600"}), "blobs")]
    with pytest.raises(ImageError, match="to be asked again in 1h"):
        await blob(web, Kept())
    assert len(ranges(web)) == 1


async def test_docker_hubs_limit_is_told_in_words(memory, web):
    headers = {
        "ratelimit-limit": "100;w=21600",
        "ratelimit-remaining": "0;w=21600",
        "docker-ratelimit-source": "192.0.2.7",
    }
    memory.faults = [always(Reply(429, headers), "manifests")]
    with pytest.raises(ImageError, match=r"100 pulls in 6h for 192\.0\.2\.7, and none is left"):
        await manifest(web)
    assert len(web.seen) == 1  # asking again would only count again


async def test_a_connection_refused_is_tried_again_and_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        told: list[Progress] = []
        async with open_registry(RegistrySettings(), QUICK) as client:
            with pytest.raises(ImageError, match="connection refused"):
                await client.manifest(at(host), listener=told.append)
    assert len(told) == QUICK.tries - 1


async def test_a_name_that_nobody_has_is_told_at_once():
    async with open_registry(RegistrySettings(), QUICK) as client:
        with pytest.raises(ImageError, match="cannot be reached"):
            await client.manifest(at("registry.invalid"))


# --- Mirrors -------------------------------------------------------------------------------------


def mirrored(*mirrors: str, of: str) -> RegistrySettings:
    return RegistrySettings(mirrors={of: mirrors})


async def pull(client: Registry, host: str) -> Kept:
    sink = Kept()
    await client.manifest(at(host))
    await client.blob(at(host), DIGEST, len(BIG), sink)
    return sink


async def test_a_mirror_is_asked_and_nobody_else(memory, web):
    with serve(lambda _: Reply(500)) as origin:
        async with open_registry(mirrored(f"http://{web.host}", of=origin.host), QUICK) as client:
            assert (await pull(client, origin.host)).finished
        assert origin.seen == [] and len(web.seen) == 2


async def test_a_mirror_with_a_path_has_its_images_below_it(memory, web):
    inner = Memory(memory.blobs, memory.manifests, name="cache/hub/a/b")
    with serve(inner) as mirror:
        settings = mirrored(f"http://{mirror.host}/cache/hub/", of=web.host)
        async with open_registry(settings, QUICK) as client:
            assert (await pull(client, web.host)).finished
    assert web.seen == []


async def test_without_the_mirror_the_next_is_asked_and_what_came_is_continued(memory, web):
    broken = Memory(memory.blobs, memory.manifests)
    length = {"Content-Length": str(len(BIG))}
    broken.faults = [
        once(Reply(200, length, BIG, cut=100_000), "blobs"),
        always(Reply(503), "blobs"),
    ]
    with serve(broken) as mirror, serve(lambda _: Reply(404)) as empty:
        settings = mirrored(f"http://{empty.host}", f"http://{mirror.host}", of=web.host)
        async with open_registry(settings, QUICK) as client:
            assert (await pull(client, web.host)).finished
        assert len(empty.seen) == 2
    assert ranges(web) == ["bytes=100000-"]


async def test_a_mirror_that_is_gone_is_not_asked_for_every_blob(memory, web):
    with serve(lambda _: Reply(503)) as mirror:
        settings = mirrored(f"http://{mirror.host}", of=web.host)
        async with open_registry(settings, QUICK) as client:
            for _ in range(3):
                assert (await pull(client, web.host)).finished
        assert len(mirror.seen) == QUICK.tries


async def test_a_mirror_that_lies_is_passed_over(memory, web):
    lying = Memory({DIGEST: BIG[::-1]}, memory.manifests)
    with serve(lying) as mirror:
        async with open_registry(mirrored(f"http://{mirror.host}", of=web.host), QUICK) as client:
            sink = await pull(client, web.host)
    assert sink.data == BIG and sink.resets == 1


async def test_what_each_of_them_said_is_told(memory, web):
    with serve(lambda _: Reply(404)) as mirror:
        async with open_registry(mirrored(mirror.host, of=web.host), QUICK) as client:
            with pytest.raises(ImageError) as caught:
                await client.manifest(at(web.host, "none"))
    assert f"{mirror.host}: " in str(caught.value) and "manifests/none unknown" in str(caught.value)


async def test_without_httpx_the_way_out_is_told(monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "supervisor.image.transport", raising=False)
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ImageError, match=r"needs httpx \(pip install 'supervise-batch\[images\]'"):
        async with open_registry(RegistrySettings()):
            pass
