"""The client against Debian's docker-registry, and against it with faults in between."""

from __future__ import annotations

import base64
import json
import os
import tarfile
from io import BytesIO

import pytest

from supervisor.errors import ImageError
from supervisor.image.hosts import RegistrySettings
from supervisor.image.progress import Progress
from supervisor.image.registry import open_registry
from supervisor.image.trouble import Patience
from tests.support import certificates
from tests.support.docker_registry import (
    PASSWORD,
    USER,
    TokenServer,
    docker_registry,
    htpasswd,
    layout,
    need_tools,
    push,
    relay,
)
from tests.support.registry import Fault, Kept, always, at, faulty, once
from tests.support.web import Asked, Reply, serve

QUICK = Patience(tries=3, first=0.01, longest=0.02, bound=1)
LAYERS, SIZE = 4, 300_000
NAME = "test/image"


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """An image of incompressible layers, as skopeo names it."""
    need_tools()
    place = tmp_path_factory.mktemp("image")
    layers = []
    for number in range(LAYERS):
        layers.append(place / f"{number}.tar")
        with tarfile.open(layers[-1], "w") as archive:
            member = tarfile.TarInfo(f"file{number}")
            member.size = SIZE
            archive.addfile(member, BytesIO(os.urandom(SIZE)))
    return f"oci:{layout(place, layers, ['--config.cmd', 'sh'])}:made"


@pytest.fixture(scope="module")
def plain(image, tmp_path_factory):
    """A registry for everybody, with the image in it."""
    with docker_registry(tmp_path_factory.mktemp("plain")) as where:
        push(image, where, f"{NAME}:1")
        yield where


@pytest.fixture(autouse=True)
def docker_config(tmp_path, monkeypatch):
    for name in ("HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    return tmp_path / "config.json"


def log_in(config, where, password=PASSWORD):
    auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
    config.write_text(json.dumps({"auths": {where: {"auth": auth}}}))


async def pull(where, told=None, **settings):
    """All of the image, each blob verified by its sink here too; its layers."""
    told = [] if told is None else told
    async with open_registry(RegistrySettings(**settings), QUICK) as client:
        reference = at(where, name=NAME)
        found = await client.manifest(reference, listener=told.append)
        manifest = json.loads(found.data)
        assert await client.head(reference) == found.digest
        again = await client.manifest(at(where, None, found.digest, NAME))
        assert again == found
        sinks = []
        for blob in (manifest["config"], *manifest["layers"]):
            sink = Kept()
            await client.blob(reference, blob["digest"], blob["size"], sink, told.append)
            assert sink.finished and sink.found == blob["digest"]
            sinks.append(sink)
    assert json.loads(sinks[0].data)["config"]["Cmd"] == ["sh"]
    return sinks[1:]


async def test_an_image_comes_whole(plain):
    layers = await pull(plain)
    assert len(layers) == LAYERS and all(layer.offset > SIZE for layer in layers)


async def test_the_registry_continues_a_blob(plain):
    (first, *_rest) = await pull(plain)
    sink = Kept(first.data[:1000])
    async with open_registry(RegistrySettings(), QUICK) as client:
        await client.blob(at(plain, name=NAME), first.found, first.offset, sink)
    assert sink.data == first.data and sink.resets == 0


async def test_what_is_not_there_is_told(plain):
    async with open_registry(RegistrySettings(), QUICK) as client:
        with pytest.raises(ImageError, match=r"no such thing \(HTTP 404: manifest unknown"):
            await client.manifest(at(plain, "none", name=NAME))
        assert await client.head(at(plain, "none", name=NAME)) is None


async def test_a_password_is_asked_for(image, tmp_path, docker_config):
    with docker_registry(tmp_path, auth=htpasswd(tmp_path)) as where:
        push(image, where, f"{NAME}:1", login=True)
        with pytest.raises(ImageError, match="there are none for it"):
            await pull(where)
        log_in(docker_config, where, "wrong")
        with pytest.raises(ImageError, match="does not let us read it"):
            await pull(where)
        log_in(docker_config, where)
        await pull(where)


@pytest.mark.parametrize("anybody", [True, False])
async def test_tokens_are_fetched(image, tmp_path, docker_config, anybody):
    tokens = TokenServer(certificates.make(tmp_path, "tokens"), anybody=True)
    with serve(tokens) as server:
        realm = f"http://{server.host}/token"
        with docker_registry(tmp_path, auth=tokens.auth(realm)) as where:
            push(image, where, f"{NAME}:1")
            tokens.anybody = anybody
            server.seen.clear()
            if not anybody:
                with pytest.raises(ImageError, match="token server does not let us read it"):
                    await pull(where)
                log_in(docker_config, where, "wrong")
                with pytest.raises(ImageError, match=f"credentials of {USER} from"):
                    await pull(where)
                log_in(docker_config, where)
                server.seen.clear()
            await pull(where)
            assert len(server.seen) == 1


async def test_tls(image, tmp_path):
    certificate = certificates.make(tmp_path)
    with docker_registry(tmp_path, tls=certificate) as where:
        push(image, where, f"{NAME}:1")
        with pytest.raises(ImageError, match=f"certificate of {where} is not trusted"):
            await pull(where)
        await pull(where, ca=certificate.certificate)


# --- Faults in between ---------------------------------------------------------------------------


@pytest.fixture
def between(plain):
    """A list of faults, and where the registry is with them."""
    faults: list[Fault] = []
    with serve(faulty(faults, relay(plain))) as web:
        yield faults, web


def spoil(plain, change, times=1):
    """The first blobs that are large, changed."""
    answer = relay(plain)
    left = [times]

    def fault(asked: Asked) -> Reply | None:
        reply = answer(asked)
        if "/blobs/" not in asked.path or len(reply.body) < SIZE or not left[0]:
            return None
        left[0] -= 1
        return change(reply)

    return fault


async def test_a_truncated_blob_is_continued(plain, between):
    faults, web = between
    faults.append(spoil(plain, lambda r: Reply(r.status, r.headers, r.body, cut=150_000)))
    told: list[Progress] = []
    await pull(web.host, told)
    assert [one.headers.get("range") for one in web.seen if "range" in one.headers] == [
        "bytes=150000-"
    ]
    assert len([one for one in told if one.step == "retrying"]) == 1


async def test_a_corrupted_blob_is_refused_and_the_next_asked(plain, between):
    faults, web = between
    faults.append(spoil(plain, lambda r: Reply(r.status, r.headers, b"!" + r.body[1:]), times=-1))
    with pytest.raises(ImageError, match="something with the digest"):
        await pull(web.host)
    told: list[Progress] = []
    await pull(plain, told, mirrors={plain: (web.host,)})
    assert [one.step for one in told].count("retrying") == LAYERS


async def test_a_503_in_the_middle_passes(plain, between):
    faults, web = between
    faults.append(once(Reply(503, {"Retry-After": "0"}), "blobs", times=2))
    faults.append(once(Reply(503), "manifests"))
    await pull(web.host)


async def test_a_429_passes(plain, between):
    faults, web = between
    faults.append(once(Reply(429, {"Retry-After": "1"}), "blobs"))
    told: list[Progress] = []
    await pull(web.host, told)
    (note,) = [one.note for one in told if one.step == "retrying"]
    assert "too many requests" in note


async def test_a_registry_that_stays_away_is_given_up(plain, between):
    faults, web = between
    faults.append(always(Reply(503), "blobs"))
    with pytest.raises(ImageError, match="answered HTTP 503"):
        await pull(web.host)
