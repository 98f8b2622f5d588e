"""An image from any source into the store: manifest, configuration, and the layers that lack.

May import: `errors`, `model`, the other modules of `image`, trio.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import trio
from attrs import field, frozen

from supervisor.errors import ImageError
from supervisor.image import oci, platforms, threads
from supervisor.image.decompress import Compression
from supervisor.image.layers import Facts, boot_id
from supervisor.image.oci import Configuration, Descriptor, Index, Manifest
from supervisor.image.platforms import Platform
from supervisor.image.progress import Listener, Progress, Step, silent
from supervisor.image.sources import Fetched, Source, verified
from supervisor.image.store import Record, Store
from supervisor.image.unpack import Bounds, Unpacked, unpack
from supervisor.image.workspace import Workspace

AT_ONCE = 3
"""Layers being got or unpacked at one time."""
LOOK_AGAIN = 0.1
"""Seconds between looks at what another process has locked: flock(2) wakes nobody."""


@frozen
class Choice:
    """What is wanted of an index.  `platform`: None for this host's; `bounds`: of each layer."""

    platform: Platform | None = None
    bounds: Bounds = field(factory=Bounds)

    @property
    def wanted(self) -> Platform:
        return self.platform or platforms.host()


class Installation:
    """One image being put into the store; what was there is not got again."""

    def __init__(
        self,
        store: Store,
        workspace: Workspace,
        source: Source,
        choice: Choice,
        progress: Listener = silent,
    ) -> None:
        self._store = store
        self._workspace = workspace
        self._source = source
        self._choice = choice
        self._progress = progress
        self._slots = trio.CapacityLimiter(AT_ONCE)

    async def run(self, name: str) -> Record:
        """The record of the image, which is in the store then.  Raises ImageError."""
        fetched = await self._choose(await self._source.top())
        where = f"{self._source.where}: {fetched.digest}"
        manifest = oci.read_manifest(fetched.data, fetched.media_type, where)
        assert isinstance(manifest, Manifest)  # _choose goes on until it is
        raw = verified(await self._source.document(manifest.config), manifest.config, where)
        config = oci.read_config(raw, f"{self._source.where}: {manifest.config.digest}")
        oci.check_together(manifest, config, where)
        self._check_platform(config)
        record = Record(
            fetched.digest, manifest.config.digest, config.diff_ids, str(config.platform), name
        )
        await trio.to_thread.run_sync(self._begin, record, manifest, fetched.data, raw)
        await self._layers(manifest.layers, config.diff_ids)
        await trio.to_thread.run_sync(self._store.add, record)
        return record

    async def _choose(self, fetched: Fetched) -> Fetched:
        """Down through the indexes to the manifest for the platform."""
        for _depth in range(oci.DEEPEST_INDEX):
            where = f"{self._source.where}: {fetched.digest or 'index'}"
            found = oci.read_manifest(fetched.data, fetched.media_type, where)
            if isinstance(found, Manifest):
                return fetched
            descriptor = self._of_platform(found)
            if descriptor.size > oci.LARGEST_MANIFEST:
                raise ImageError(f"is larger than {oci.LARGEST_MANIFEST} bytes", descriptor.digest)
            data = verified(await self._source.document(descriptor), descriptor, where)
            fetched = Fetched(data, descriptor.media_type, descriptor.digest)
        raise ImageError(f"has indexes within indexes, more than {oci.DEEPEST_INDEX - 1} deep",
                         self._source.where)  # fmt: skip

    def _of_platform(self, index: Index) -> Descriptor:
        usable = [one for one in index.manifests if one.media_type in oci.MANIFESTS | oci.INDEXES]
        offered = [one.platform for one in usable]
        at = platforms.choose(self._choice.wanted, offered)
        if at is None:
            there = sorted({str(one) for one in offered if one and one.os not in ("", "unknown")})
            raise ImageError(
                f"has no image for {self._choice.wanted}", self._source.where,
                hint=f"it has {', '.join(there[:20]) or 'none that says its platform'}",
            )  # fmt: skip
        return usable[at]

    def _check_platform(self, config: Configuration) -> None:
        """What an image says of itself holds, whatever an index said; see also binfmt_misc."""
        if not platforms.runs(self._choice.wanted, config.platform):
            raise ImageError(
                f"is for {config.platform}, not for {self._choice.wanted}", self._source.where,
                hint=f"where that can be run, say --platform {config.platform}",
            )  # fmt: skip

    def _begin(self, record: Record, manifest: Manifest, raw: bytes, config: bytes) -> None:
        """Claim all of it, see whether there is room, and write the small parts."""
        blobs = [layer.digest for layer in manifest.layers]
        self._workspace.claim([record.digest, record.config, *record.layers, *blobs])
        layers = dict(zip(record.layers, manifest.layers, strict=True))
        lacking = [
            layer for one, layer in layers.items()
            if not self._store.layers.ready(one) and not self._store.blobs.has(layer.digest)
        ]  # fmt: skip
        check_room(self._store.root, sum(one.size for one in lacking), self._source.where)
        self._store.blobs.put(raw)
        self._store.blobs.put(config)

    async def _layers(self, layers: Sequence[Descriptor], diff_ids: Sequence[str]) -> None:
        """Each layer once, however often it stands there; the first failure ends all."""
        once = dict(zip(diff_ids, layers, strict=True))
        try:
            async with trio.open_nursery() as nursery:
                for diff_id, layer in once.items():
                    nursery.start_soon(self._layer, layer, diff_id)
        except BaseExceptionGroup as group:
            raise threads.first(group) from None

    async def _layer(self, layer: Descriptor, diff_id: str) -> None:
        async with self._slots:
            lock = await self._locked(layer, diff_id)
            try:
                if await trio.to_thread.run_sync(self._store.layers.ready, diff_id):
                    self._tell(layer, "present", layer.size)
                    return
                await self._blob(layer)
                await self._unpack(layer, diff_id)
                self._tell(layer, "done", layer.size)
            finally:
                self._store.layers.unlock(diff_id, lock)

    async def _locked(self, layer: Descriptor, diff_id: str) -> int:
        """The lock of a layer; whoever else has it is unpacking it, so there is less to do then."""
        while (lock := self._store.layers.try_lock(diff_id)) is None:
            self._tell(layer, "waiting", 0, "another process is unpacking it")
            await trio.sleep(LOOK_AGAIN)
        return lock

    async def _blob(self, layer: Descriptor) -> None:
        blobs = self._store.blobs
        while not blobs.has(layer.digest):
            partial = await trio.to_thread.run_sync(blobs.begin, layer.digest, layer.size)
            if partial is None:
                self._tell(layer, "waiting", 0, "another process is getting it")
                await trio.sleep(LOOK_AGAIN)
                continue
            try:
                await self._source.blob(layer, partial, lambda done: self._got(layer, done))
            finally:
                partial.close()

    def _got(self, layer: Descriptor, done: int) -> None:
        self._tell(layer, self._source.step, done)

    async def _unpack(self, layer: Descriptor, diff_id: str) -> None:
        blob = self._store.blobs.path(layer.digest)
        compression = _COMPRESSIONS[oci.LAYERS[layer.media_type]]
        bounds = self._choice.bounds

        def work(check: Callable[[], None]) -> None:
            def told(done: int) -> None:
                check()
                self._tell(layer, "unpacking", done)

            made = unpack_blob(self._workspace, blob, compression, diff_id, bounds, told)
            publish(self._store, self._workspace, *made, layer.digest)

        await threads.stoppable(work)
        self._store.blobs.remove(layer.digest)

    def _tell(self, layer: Descriptor, step: Step, done: int, note: str = "") -> None:
        self._progress(Progress(layer.digest, step, done, layer.size, note))


def unpack_blob(
    workspace: Workspace,
    blob: Path,
    compression: Compression | None,
    diff_id: str | None,
    bounds: Bounds,
    told: Callable[[int], None],
) -> tuple[Path, Unpacked]:
    """Unpack into a new directory of the workspace; that, and what came of it."""
    made = workspace.directory()
    tree = made / "tree"
    tree.mkdir()
    tree.chmod(0o755)  # of "/", if the archive says nothing of it
    found = unpack(
        blob, tree, compression=compression, diff_id=diff_id, bounds=bounds, progress=told
    )
    return made, found


def publish(
    store: Store, workspace: Workspace, made: Path, unpacked: Unpacked, digest: str
) -> None:
    """Let an unpacked layer be one of the store's; the caller holds its lock.

    What lies in its place is of an earlier boot, and was not whole on the disk when that ended.
    """
    place = store.layers.directory(unpacked.diff_id)
    if place.exists():
        workspace.discard(place)
    left_out = unpacked.devices_left_out + unpacked.attributes_left_out
    facts = Facts(
        unpacked.diff_id, unpacked.size, unpacked.entries, digest, boot_id(), left_out=left_out
    )
    store.layers.publish(made, facts)


def check_room(path: Path, needed: int, where: str) -> None:
    """Raises ImageError if not even the compressed layers have room."""
    found = os.statvfs(path)
    free = found.f_bavail * found.f_frsize
    if needed > free:
        raise ImageError(
            f"its layers have {needed >> 20} MiB compressed, and {path} has room for "
            f"{free >> 20} MiB", where, hint="make room there: supervise image prune",
        )  # fmt: skip


_COMPRESSIONS: dict[str, Compression] = {"none": "none", "gzip": "gzip", "zstd": "zstd"}
