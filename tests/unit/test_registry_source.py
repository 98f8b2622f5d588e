"""A registry as a source of images, into the store's own blobs."""

from __future__ import annotations

import json
import os

import pytest

from supervisor.errors import ImageError
from supervisor.image import oci
from supervisor.image.acquire import acquire
from supervisor.image.blobs import Blobs
from supervisor.image.hosts import RegistrySettings
from supervisor.image.install import Choice, Installation
from supervisor.image.oci import Descriptor
from supervisor.image.platforms import Platform
from supervisor.image.remote import opener
from supervisor.image.store import Store
from supervisor.image.trouble import Patience
from tests.support.images import Built, file, layer
from tests.support.registry import Memory, always, at, once
from tests.support.stores import put_layer
from tests.support.web import Reply, serve

QUICK = Patience(tries=3, first=0.01, longest=0.02, bound=1)
LAYERS = [layer(file("a", os.urandom(200_000))), layer(file("b", b"b"))]
IMAGE = Built(LAYERS, {"Cmd": ["sh"]})
OTHER = Built(LAYERS, {"Cmd": ["sh"]}, architecture="arm64")


@pytest.fixture
def memory():
    found = Memory()
    found.push("1", IMAGE)
    found.push("many", IMAGE, OTHER)
    return found


@pytest.fixture
def web(memory):
    with serve(memory) as running:
        yield running


@pytest.fixture
def blobs(tmp_path):
    store = Store(tmp_path / "store")
    store.prepare()
    return store.blobs


def opened(web, tag="1", told=None):
    notes = [] if told is None else told
    return opener(RegistrySettings(), notes.append, QUICK)(at(web.host, tag))


def described(value) -> Descriptor:
    return Descriptor(value["mediaType"], value["digest"], value["size"])


async def test_an_image_is_read_from_its_index_down(web):
    async with opened(web, "many") as source:
        top = await source.top()
        assert top.media_type == oci.OCI_INDEX and await source.current() == top.digest
        index = oci.read_manifest(top.data, top.media_type, "x")
        (mine,) = [one for one in index.manifests if one.digest == OTHER.digest]
        manifest = json.loads(await source.document(mine))
        assert manifest == OTHER.manifest
        assert await source.document(described(manifest["config"])) == OTHER.raw_config
    assert [path.rpartition("/")[2] for path in web.paths()] == [
        "many", OTHER.digest, manifest["config"]["digest"],
    ]  # fmt: skip


async def test_a_layer_is_a_blob_of_the_store_then(web, blobs: Blobs):
    async with opened(web) as source:
        moved: list[int] = []
        descriptor = described(IMAGE.manifest["layers"][0])
        partial = blobs.begin(descriptor.digest, descriptor.size)
        await source.blob(descriptor, partial, moved.append)
    assert blobs.path(descriptor.digest).read_bytes() == IMAGE.packed[0]
    assert moved[-1] == descriptor.size


async def test_what_broke_off_is_continued_by_the_next_process(memory, web, blobs):
    told: list[object] = []
    descriptor = described(IMAGE.manifest["layers"][0])
    length = {"Content-Length": str(descriptor.size)}
    memory.faults = [
        once(Reply(200, length, IMAGE.packed[0], cut=123_456), "blobs"),
        always(Reply(503), "blobs"),
    ]
    partial = blobs.begin(descriptor.digest, descriptor.size)
    async with opened(web, told=told) as source:
        with pytest.raises(ImageError, match="HTTP 503"):
            await source.blob(descriptor, partial, lambda _: None)
    partial.close()
    assert not blobs.has(descriptor.digest) and told

    memory.faults = []
    web.seen.clear()
    partial = blobs.begin(descriptor.digest, descriptor.size)
    assert partial.offset == 123_456
    async with opened(web) as source:
        await source.blob(descriptor, partial, lambda _: None)
    assert blobs.has(descriptor.digest)
    assert [one.headers["range"] for one in web.seen] == ["bytes=123456-"]


async def test_a_corrupted_layer_is_no_blob(memory, web, blobs):
    descriptor = described(IMAGE.manifest["layers"][0])
    memory.faults = [always(Reply(200, {}, IMAGE.packed[0][:-1] + b"!"), "blobs")]
    partial = blobs.begin(descriptor.digest, descriptor.size)
    async with opened(web) as source:
        with pytest.raises(ImageError, match="something with the digest"):
            await source.blob(descriptor, partial, lambda _: None)
    partial.close()
    assert not blobs.has(descriptor.digest)
    assert list(blobs.partial.iterdir()) == []


async def test_what_the_listener_raises_ends_it_and_what_came_stays(web, blobs):
    class Enough(Exception):
        pass

    def stop(done: int) -> None:
        raise Enough

    descriptor = described(IMAGE.manifest["layers"][0])
    partial = blobs.begin(descriptor.digest, descriptor.size)
    async with opened(web) as source:
        with pytest.raises(Enough):
            await source.blob(descriptor, partial, stop)
    assert 0 < partial.offset < descriptor.size
    partial.close()


@pytest.mark.parametrize("size", [1, 10**9])
async def test_a_document_of_another_size_is_refused(memory, web, size):
    config = described(IMAGE.manifest["config"])
    async with opened(web) as source:
        with pytest.raises(ImageError):
            await source.document(Descriptor(config.media_type, config.digest, size))
        with pytest.raises(ImageError):
            await source.document(Descriptor(oci.OCI_MANIFEST, IMAGE.digest, min(size, 5)))


# --- What has not changed ------------------------------------------------------------------------


@pytest.fixture
def unpacked(tmp_path, monkeypatch):
    """A store whose layers are directories with a note in them: unpacking is tested elsewhere."""

    def noted(self, layer, diff_id):
        async def note() -> None:
            put_layer(self._store, self._workspace, diff_id)

        return note()

    monkeypatch.setattr(Installation, "_unpack", noted)
    return Store(tmp_path / "store")


async def always_pull(web, store, tag="1", platform=None):
    web.seen.clear()
    choice = Choice(platform or Platform("linux", "amd64"))
    opens = opener(RegistrySettings(), patience=QUICK)
    reference = at(web.host, tag)
    found = await acquire(store, reference, choice=choice, pull="always", remote=opens)
    return found.digest, [(one.method, one.path.rpartition("/")[2]) for one in web.seen]


async def test_what_has_not_changed_is_not_pulled_again(memory, web, unpacked):
    digest, asked = await always_pull(web, unpacked)
    assert digest == IMAGE.digest and len(asked) == 4
    assert await always_pull(web, unpacked) == (digest, [("HEAD", "1")])
    changed = Built(LAYERS, {"Cmd": ["other"]})
    memory.push("1", changed)
    digest, asked = await always_pull(web, unpacked)
    assert digest == changed.digest
    assert asked == [("HEAD", "1"), ("GET", "1"), ("GET", changed.manifest["config"]["digest"])]


async def test_another_platform_of_the_same_index_is_pulled(web, unpacked):
    mine, _asked = await always_pull(web, unpacked, "many")
    assert await always_pull(web, unpacked, "many") == (mine, [("HEAD", "many")])
    other, _asked = await always_pull(web, unpacked, "many", Platform("linux", "arm64"))
    assert (mine, other) == (IMAGE.digest, OTHER.digest)
    again, _asked = await always_pull(web, unpacked, "many")
    assert again == mine


async def test_what_is_damaged_is_pulled_though_it_has_not_changed(web, unpacked):
    await always_pull(web, unpacked)
    unpacked.blobs.path(IMAGE.manifest["config"]["digest"]).unlink()
    digest, asked = await always_pull(web, unpacked)
    assert digest == IMAGE.digest and ("GET", "1") in asked
    assert unpacked.find(at(web.host).name) is not None


async def test_a_registry_that_tells_no_digest_is_asked_for_it_all(memory, web, unpacked):
    await always_pull(web, unpacked)
    memory.faults = [lambda asked: Reply(405) if asked.method == "HEAD" else None]
    digest, asked = await always_pull(web, unpacked)
    assert digest == IMAGE.digest and ("GET", "1") in asked


async def test_a_digest_need_not_be_asked_for(web, unpacked):
    opens = opener(RegistrySettings(), patience=QUICK)
    reference = at(web.host, None, IMAGE.digest)
    choice = Choice(Platform("linux", "amd64"))
    for _ in range(2):
        await acquire(unpacked, reference, choice=choice, pull="always", remote=opens)
    assert len(web.seen) == 4
