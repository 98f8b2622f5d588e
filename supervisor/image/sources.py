"""Where an image comes from, as one interface; and the sources that are files of this host.

May import: `errors`, the other modules of `image`, trio.  What blocks does so in a thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import trio
from attrs import frozen

from supervisor.errors import ImageError
from supervisor.image import oci, threads, trees
from supervisor.image.blobs import Partial, copy, digest_of, digest_of_stream
from supervisor.image.decompress import recognize
from supervisor.image.documents import Document
from supervisor.image.oci import Descriptor
from supervisor.image.progress import Step
from supervisor.image.reference import DockerArchive, OciArchive, OciLayout, remote
from supervisor.image.trees import Tree

Moved = Callable[[int], None]
"""Told the bytes of a blob that are there so far; what it raises ends the copying."""


@frozen
class Fetched:
    """A manifest or an index as it came."""

    data: bytes
    media_type: str
    digest: str


class Source(Protocol):
    """An image to be got."""

    where: str
    """For complaints."""
    step: Step
    """What getting a blob is called."""

    async def top(self) -> Fetched:
        """The manifest or index that the reference names."""

    async def document(self, descriptor: Descriptor) -> bytes:
        """A small blob that `top` leads to, at most of its size; the caller verifies it."""

    async def blob(self, descriptor: Descriptor, into: Partial, moved: Moved) -> None:
        """A layer's blob, from `into.offset` on; `into` is finished at the end."""


class InRegistry(Source, Protocol):
    """One that can tell whether it has changed."""

    digest: str
    """What `top` had; "" before."""

    async def current(self) -> str | None:
        """The digest that `top` would have, without getting it; None where that is not told."""


class Layout:
    """An OCI image layout (image-spec/image-layout.md) in a directory or a tar file."""

    step: Step = "copying"

    def __init__(self, tree: Tree, tag: str | None) -> None:
        self.where = tree.where
        self._tree = tree
        self._tag = tag

    async def top(self) -> Fetched:
        return await trio.to_thread.run_sync(self._top)

    def _top(self) -> Fetched:
        where = f"{self.where}: index.json"
        raw = trees.read(self._tree, "index.json", oci.LARGEST_MANIFEST)
        index = oci.read_manifest(raw, oci.OCI_INDEX, where)
        assert isinstance(index, oci.Index)  # the media type says so
        found = _tagged(index, self._tag, self.where)
        if len(found) > 1:  # the images of one tag, for several platforms
            return Fetched(raw_index(found), oci.OCI_INDEX, "")
        data = self._document(found[0])
        return Fetched(data, found[0].media_type, digest_of(data))

    async def document(self, descriptor: Descriptor) -> bytes:
        return await trio.to_thread.run_sync(self._document, descriptor)

    def _document(self, descriptor: Descriptor) -> bytes:
        data = trees.read(self._tree, _blob(descriptor.digest), oci.LARGEST_CONFIG)
        return verified(data, descriptor, self.where)

    async def blob(self, descriptor: Descriptor, into: Partial, moved: Moved) -> None:
        name = _blob(descriptor.digest)
        await threads.stoppable(lambda check: _copy_file(self._tree, name, into, moved, check))

    def close(self) -> None:
        self._tree.close()


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def verified(data: bytes, descriptor: Descriptor, where: str) -> bytes:
    """The data, if it is what its descriptor says."""
    if len(data) != descriptor.size:
        raise ImageError(
            f"its {descriptor.digest} has {len(data)} bytes, not {descriptor.size}", where
        )
    if digest_of(data) != descriptor.digest:
        raise ImageError(f"its {descriptor.digest} is not what it should be", where,
                         hint=f"its digest is {digest_of(data)}")  # fmt: skip
    return data


def _tagged(index: oci.Index, tag: str | None, where: str) -> list[Descriptor]:
    """The images of a tag; without one, what can be meant by "the image in it"."""
    images = [one for one in index.manifests if one.media_type in oci.MANIFESTS | oci.INDEXES]
    tags = sorted({name for one in images for name in one.names})
    there = f"has the tags {', '.join(tags[:20])}" if tags else "its images have no tags"
    if tag is not None:
        found = [one for one in images if tag in one.names]
        if not found:
            raise ImageError(f'has no image with the tag "{tag}"', where, hint=there)
        return found
    if not images:
        raise ImageError("has no image in it", where)
    if len(images) > 1 and len({one.names for one in images}) > 1:
        raise ImageError("has several images", where, hint=f"name one as :TAG; it {there}")
    return images


def raw_index(found: list[Descriptor]) -> bytes:
    """An index of these."""
    manifests = [
        {
            "mediaType": one.media_type, "digest": one.digest, "size": one.size,
            **({} if one.platform is None else {"platform": {
                "os": one.platform.os, "architecture": one.platform.architecture,
                "variant": one.platform.variant,
            }}),
        }
        for one in found
    ]  # fmt: skip
    return json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()


class DockerSaved:
    """What `docker save` wrote: manifest.json names the parts, without digests of the layers."""

    step: Step = "copying"

    def __init__(self, tree: Tree, tag: str | None) -> None:
        self.where = tree.where
        self._tree = tree
        self._tag = tag
        self._config = b""
        self._names: dict[str, str] = {}

    async def top(self) -> Fetched:
        return await trio.to_thread.run_sync(self._top)

    def _top(self) -> Fetched:
        """The manifest that it would have had."""
        name, layers = self._chosen()
        self._config = trees.read(self._tree, name, oci.LARGEST_CONFIG)
        diff_ids = oci.read_config(self._config, f"{self.where}: {name}").diff_ids
        if len(layers) != len(diff_ids):
            raise ImageError(
                f"has {len(layers)} layers, but its configuration tells of {len(diff_ids)}",
                self.where,
            )
        found = tuple(self._layer(*pair) for pair in zip(layers, diff_ids, strict=True))
        self._names = dict(zip((one.digest for one in found), layers, strict=True))
        config = Descriptor(oci.DOCKER_CONFIG, digest_of(self._config), len(self._config))
        data = json.dumps(oci.manifest_of(config, found), sort_keys=True).encode()
        return Fetched(data, oci.OCI_MANIFEST, digest_of(data))

    def _chosen(self) -> tuple[str, tuple[str, ...]]:
        """The names of the configuration and of the layers, the lowest first."""
        where = f"{self.where}: manifest.json"
        raw = trees.read(self._tree, "manifest.json", oci.LARGEST_MANIFEST)
        images = Document.array(raw, where, limit=oci.LARGEST_MANIFEST, most=oci.MOST_MANIFESTS)
        tags = {
            _short(tag): one for one in images for tag in one.strings("RepoTags", optional=True)
        }
        there = f"it has {', '.join(sorted(tags)[:20]) or 'no names'}"
        if self._tag is not None:
            chosen = tags.get(_short(self._tag))
            if chosen is None:
                raise ImageError(f'has no image named "{self._tag}"', self.where, hint=there)
        elif len(images) == 1:
            chosen = images[0]
        else:
            raise ImageError(f"has {len(images)} images", self.where,
                             hint=f"name one as :NAME:TAG; {there}")  # fmt: skip
        layers = chosen.strings("Layers")
        if len(layers) > oci.MOST_LAYERS:
            raise chosen.wrong(f"has more than {oci.MOST_LAYERS} layers")
        return chosen.text("Config"), layers

    def _layer(self, name: str, diff_id: str) -> Descriptor:
        """A layer that is not compressed has its diff id for a digest."""
        with self._tree.open(name) as file:
            compression = recognize(file.read(8))
            if compression == "none":
                return Descriptor(oci.OCI_LAYER, diff_id, self._tree.size(name))
        if compression == "xz":
            raise ImageError("is compressed by xz, which no image may be", f"{self.where}: {name}")
        with self._tree.open(name) as file:
            digest, size = digest_of_stream(file)
        return Descriptor(f"{oci.OCI_LAYER}+{compression}", digest, size)

    async def document(self, descriptor: Descriptor) -> bytes:
        return verified(self._config, descriptor, self.where)

    async def blob(self, descriptor: Descriptor, into: Partial, moved: Moved) -> None:
        name = self._names[descriptor.digest]
        await threads.stoppable(lambda check: _copy_file(self._tree, name, into, moved, check))

    def close(self) -> None:
        self._tree.close()


def _short(name: str) -> str:
    """A name in the one way that the store writes it: skopeo writes it out, docker does not."""
    try:
        return remote(name).name
    except ValueError:
        return name


def _copy_file(
    tree: Tree, name: str, into: Partial, moved: Moved, check: Callable[[], None]
) -> None:
    """From the beginning: a copy within this host is not worth continuing."""
    into.reset()
    with tree.open(name) as file:
        for done in copy(file, into):
            check()
            moved(done)
    into.finish()


def opened(
    reference: OciLayout | OciArchive | DockerArchive, plain: Path | None = None
) -> Layout | DockerSaved:
    """The source for a reference; `plain` is a copy of its archive that is not compressed.

    The caller closes it.
    """
    where = str(reference.path)
    if isinstance(reference, OciLayout):
        return Layout(trees.Directory(reference.path), reference.tag)
    archive = trees.Archive(plain or reference.path, where)
    if isinstance(reference, OciArchive):
        return Layout(archive, reference.tag)
    return DockerSaved(archive, reference.tag)
