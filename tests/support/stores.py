"""Stores with images in them that nothing had to be unpacked for."""

from __future__ import annotations

import json
from pathlib import Path

from supervisor.image.layers import Facts, boot_id, write_facts
from supervisor.image.store import Record, Store
from supervisor.image.workspace import Workspace
from supervisor.model import Image
from tests.support.images import Built, sha256


def put(store: Store, built: Built, name: str | None = None) -> Record:
    """The image's record; each of its layers has one file that names it."""
    with store.workspace() as workspace:
        record = Record(
            built.digest, sha256(built.raw_config), tuple(built.diff_ids), "linux/amd64", "test"
        )
        workspace.claim([record.digest, record.config, *record.layers])
        store.blobs.put(built.raw_manifest)
        store.blobs.put(built.raw_config)
        for diff_id in set(built.diff_ids):
            put_layer(store, workspace, diff_id)
        store.add(record)
        if name is not None:
            store.name(name, record.digest)
    return record


def put_layer(store: Store, workspace: Workspace, diff_id: str, boot: str | None = None) -> Path:
    """A layer, as if unpacked under the boot with this id (None: this one)."""
    if not store.layers.ready(diff_id):
        made = workspace.directory()
        (made / "tree").mkdir()
        (made / "tree" / "of").write_text(diff_id)
        store.layers.publish(
            made, Facts(diff_id, 100, 1, sha256(b"blob"), boot if boot else boot_id())
        )
    return store.layers.directory(diff_id)


def age(store: Store, diff_id: str) -> None:
    """As if the host had crashed since the layer was unpacked."""
    facts = store.layers.facts(diff_id)
    assert facts is not None
    write_facts(
        store.layers.directory(diff_id),
        Facts(diff_id, facts.size, facts.entries, facts.blob, "an earlier boot"),
    )


def found(store: Store, name: str) -> Image:
    image = store.find(name)
    assert image is not None, name
    return image


def claims_of(store: Store) -> list[list[str]]:
    """What each workspace has claimed."""
    return [json.loads(path.read_text()) for path in store.tmp.glob("*/claims.json")]
