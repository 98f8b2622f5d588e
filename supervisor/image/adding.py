"""An image made on this host, put into the store: its configuration, and layers old and new.

May import: `errors`, `model`, the other modules of `image`, trio.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import trio
from attrs import frozen

from supervisor.errors import ImageError
from supervisor.image import oci, platforms, sources, threads, trees
from supervisor.image.blobs import Partial, copy, digest_of, digest_of_stream
from supervisor.image.install import Choice, Installation
from supervisor.image.oci import Descriptor
from supervisor.image.progress import Step
from supervisor.image.sources import Fetched, Moved
from supervisor.image.store import Store
from supervisor.model.image import Image


@frozen
class NewLayer:
    """A layer as a file: `media_type` is one of `oci.LAYERS`, `diff_id` that of the archive."""

    blob: Path
    diff_id: str
    media_type: str = oci.OCI_LAYER


def add(
    store: Store,
    *,
    config: Mapping[str, Any],
    layers: Sequence[NewLayer | str],
    name: str | None,
    source: str = "made here",
) -> Image:
    """Put an image together, the lowest layer first; a text is the diff id of one in the store.

    `config` is the image's configuration (image-spec/config.md), whose rootfs is filled in here,
    and os and architecture where it does not say.  Raises ImageError.  Blocking, and no task of
    trio's may call it.
    """
    made = _Made(store, config, layers, source)
    record_name = name or made.digest

    async def install() -> Image:
        with await trio.to_thread.run_sync(store.workspace) as workspace:
            # Claimed before it is looked whether they are there
            workspace.claim([one for one in layers if isinstance(one, str)])
            made.check(store)
            choice = Choice(platform=made.platform)
            record = await Installation(store, workspace, made, choice).run(source)
            if name is not None:
                store.name(name, record.digest)
            return store.image(record, record_name)

    return trio.run(install)


class _Made:
    """The image as a source: documents written here, blobs that are files."""

    step: Step = "copying"

    def __init__(
        self,
        store: Store,
        config: Mapping[str, Any],
        layers: Sequence[NewLayer | str],
        source: str,
    ) -> None:
        self.where = source
        here = platforms.host()
        whole = {
            "os": here.os, "architecture": here.architecture, **config,
            "rootfs": {
                "type": "layers",
                "diff_ids": [one if isinstance(one, str) else one.diff_id for one in layers],
            },
        }  # fmt: skip
        self._layers = layers
        self._config = json.dumps(whole, sort_keys=True).encode()
        self.platform = oci.read_config(self._config, source).platform
        self._files: dict[str, Path] = {}
        described = Descriptor(oci.OCI_CONFIG, digest_of(self._config), len(self._config))
        found = tuple(self._describe(store, one) for one in layers)
        self._manifest = json.dumps(oci.manifest_of(described, found), sort_keys=True).encode()
        self.digest = digest_of(self._manifest)

    def _describe(self, store: Store, layer: NewLayer | str) -> Descriptor:
        """One of the store's is described as not compressed: its blob is not kept."""
        if isinstance(layer, str):
            facts = store.layers.facts(layer)
            if facts is None:
                raise ImageError("no such layer is in the store", layer)
            return Descriptor(oci.OCI_LAYER, layer, facts.size)
        with trees.open_regular(layer.blob) as file:
            digest, size = digest_of_stream(file)
        self._files[digest] = layer.blob
        return Descriptor(layer.media_type, digest, size)

    def check(self, store: Store) -> None:
        """Raises ImageError if a layer of the store's has gone meanwhile."""
        for one in self._layers:
            if isinstance(one, str) and not store.layers.ready(one):
                raise ImageError("no such layer is in the store", one)

    async def top(self) -> Fetched:
        return Fetched(self._manifest, oci.OCI_MANIFEST, self.digest)

    async def document(self, descriptor: Descriptor) -> bytes:
        return sources.verified(self._config, descriptor, self.where)

    async def blob(self, descriptor: Descriptor, into: Partial, moved: Moved) -> None:
        path = self._files[descriptor.digest]

        def work(check: Any) -> None:
            into.reset()
            with trees.open_regular(path) as file:
                for done in copy(file, into):
                    check()
                    moved(done)
            into.finish()

        await threads.stoppable(work)
