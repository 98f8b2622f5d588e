"""A tar file as an image of one layer that says nothing of how to run it.

May import: `errors`, the other modules of `image`, trio.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import trio

from supervisor.image import oci, threads, trees
from supervisor.image.blobs import digest_of
from supervisor.image.install import LOOK_AGAIN, Choice, publish, unpack_blob
from supervisor.image.oci import Descriptor
from supervisor.image.platforms import Platform
from supervisor.image.progress import Listener, Progress
from supervisor.image.reference import Tar
from supervisor.image.store import Record, Store
from supervisor.image.unpack import Unpacked
from supervisor.image.workspace import Workspace


async def import_tar(
    store: Store, workspace: Workspace, reference: Tar, choice: Choice, progress: Listener
) -> Record:
    """Its record, once the layer is in the store.

    Nothing says what its digest should be, so it is unpacked from where it lies; what it is called
    by is what was unpacked.
    """
    with trees.open_regular(reference.path) as file:
        total = file.seek(0, 2)
    known = digest_of(str(reference).encode())  # its digest comes only with its last byte

    def tell(done: int) -> None:
        progress(Progress(known, "unpacking", done, total, str(reference)))

    def work(check: Callable[[], None]) -> Record:
        def told(done: int) -> None:
            check()
            tell(done)

        made, found = unpack_blob(workspace, reference.path, None, None, choice.bounds, told)
        record = _describe(store, workspace, reference, choice.wanted, found)
        lock = _wait_for(store, found.diff_id, check)
        try:
            if not store.layers.ready(found.diff_id):
                publish(store, workspace, made, found, found.diff_id)
        finally:
            store.layers.unlock(found.diff_id, lock)
        store.add(record)
        return record

    record = await threads.stoppable(work)
    progress(Progress(known, "done", total, total, str(reference)))
    return record


def _wait_for(store: Store, diff_id: str, check: Callable[[], None]) -> int:
    while (lock := store.layers.try_lock(diff_id)) is None:
        check()
        trio.from_thread.run(trio.sleep, LOOK_AGAIN)
    return lock


def _describe(
    store: Store, workspace: Workspace, reference: Tar, platform: Platform, found: Unpacked
) -> Record:
    """The two documents of an image with this layer, written; the same file has the same ones."""
    config = json.dumps(
        {
            "os": platform.os, "architecture": platform.architecture, "variant": platform.variant,
            "rootfs": {"type": "layers", "diff_ids": [found.diff_id]},
        }, sort_keys=True,
    ).encode()  # fmt: skip
    described = Descriptor(oci.OCI_CONFIG, digest_of(config), len(config))
    layer = Descriptor(oci.OCI_LAYER, found.diff_id, found.size)
    manifest = json.dumps(oci.manifest_of(described, (layer,)), sort_keys=True).encode()
    digest = digest_of(manifest)
    workspace.claim([digest, described.digest, found.diff_id])
    store.blobs.put(config)
    store.blobs.put(manifest)
    return Record(digest, described.digest, (found.diff_id,), str(platform), str(reference))
