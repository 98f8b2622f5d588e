"""Any reference to an image that is ready: found in the store, imported, or pulled.

May import: `errors`, `model`, the other modules of `image`, trio; the registry's client only when
a registry is asked.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Literal

import trio

from supervisor.errors import ImageError
from supervisor.image import collect, decompress, files, platforms, sources, threads, trees
from supervisor.image.install import Choice, Installation
from supervisor.image.progress import Listener, silent
from supervisor.image.reference import (
    Directory,
    DockerArchive,
    File,
    Host,
    Local,
    OciArchive,
    OciLayout,
    Reference,
    Remote,
    Tar,
)
from supervisor.image.single import import_tar
from supervisor.image.sources import InRegistry, Source
from supervisor.image.store import Record, Store
from supervisor.image.workspace import Workspace
from supervisor.model.image import Image

Pull = Literal["missing", "always", "never"]
"""When what a reference names is looked at again: if the store has nothing of that name (or the
file has changed since), each time, or not at all."""
OpenRemote = Callable[[Remote], AbstractAsyncContextManager[InRegistry]]

_FRESH = 2.0
"""Seconds: a file changed so lately may change again without its times telling."""


async def acquire(
    store: Store,
    reference: Reference,
    *,
    choice: Choice | None = None,
    pull: Pull = "missing",
    progress: Listener = silent,
    remote: OpenRemote | None = None,
) -> Image:
    """The image, unpacked.  Raises ImageError, which says what was looked for and where."""
    choice = choice or Choice()
    if isinstance(reference, Host | Directory):
        raise ImageError("is no image", str(reference))
    name = name_of(reference)
    if isinstance(reference, Local):
        return await trio.to_thread.run_sync(_local, store, name)
    if pull != "always":
        found = await trio.to_thread.run_sync(_present, store, reference, choice, pull)
        if found is not None:
            return found
    await trio.to_thread.run_sync(collect.sweep, store)
    with await trio.to_thread.run_sync(store.workspace) as workspace:
        if isinstance(reference, Remote):
            record = await _pulled(store, workspace, reference, choice, progress, remote)
        else:
            record = await _installed(store, workspace, reference, choice, progress)
    return await trio.to_thread.run_sync(store.image, record, name)


def name_of(reference: File | Remote | Local) -> str:
    """What it is called in the store."""
    return reference.name if isinstance(reference, Remote | Local) else str(reference)


def _local(store: Store, name: str) -> Image:
    found = store.find(name)
    if found is None:
        near = [one for one in store.names() if name.partition(":")[0] in one]
        hint = f"there are {', '.join(near[:5])}" if near else "supervise image list tells what is"
        if not name.startswith("sha256:"):
            hint += f"; to get it: supervise image pull docker://{name}"
        raise ImageError(f"no image of this name is in the store {store.root}", name, hint=hint)
    return found


def _present(store: Store, reference: File | Remote, choice: Choice, pull: Pull) -> Image | None:
    """The image of that name, if it need not be got."""
    name = name_of(reference)
    if pull == "never":
        return _local(store, name)
    if isinstance(reference, OciLayout):
        return None  # its index tells, and that is quick
    if not isinstance(reference, Remote) and _stamp(reference.path) != (store.stamp(name) or None):
        return None
    try:
        found = store.find(name)
    except ImageError:
        return None  # damaged: it is got again
    if found is None or choice.platform is None:
        return found
    fits = platforms.runs(choice.platform, platforms.parse(found.platform))
    return found if fits else None


def _stamp(path: Path) -> str | None:
    """What changes when the file does; None where that could not be told."""
    try:
        found = path.stat()
    except OSError:
        return None
    if time.time() - max(found.st_mtime, found.st_ctime) < _FRESH:
        return None
    fields = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return ":".join(map(str, fields))


async def _pulled(
    store: Store,
    workspace: Workspace,
    reference: Remote,
    choice: Choice,
    progress: Listener,
    remote: OpenRemote | None,
) -> Record:
    """From a registry into the store, with its name, unless it is what the store has of that name.

    The stamp of the name is the digest that the registry had for it (an index's, maybe) and the
    platform that was wanted.
    """
    if remote is None:
        raise ImageError("no registry may be asked here", str(reference))
    name = name_of(reference)
    known = await trio.to_thread.run_sync(_known, store, workspace, name)
    async with remote(reference) as source:
        current = await source.current() if known is not None else None
        stamp = f"{current} {choice.wanted}"
        if known is not None and stamp == await trio.to_thread.run_sync(store.stamp, name):
            record = known
        else:
            record = await Installation(store, workspace, source, choice, progress).run(name)
            stamp = f"{source.digest} {choice.wanted}"
    await trio.to_thread.run_sync(store.name, name, record.digest, stamp)
    return record


def _known(store: Store, workspace: Workspace, name: str) -> Record | None:
    """What the store has whole of that name, kept there by the workspace; None for nothing."""
    try:
        digest = store.resolve(name)
        record = store.record(digest) if digest is not None else None
        if record is None:
            return None
        workspace.claim([record.digest, record.config, *record.layers])
        store.image(record, name)
        return store.record(record.digest)  # it may have been removed before the claim
    except ImageError:
        return None  # damaged: it is got again


async def _installed(
    store: Store,
    workspace: Workspace,
    reference: File,
    choice: Choice,
    progress: Listener,
) -> Record:
    """Into the store, with its name; the workspace protects it until then."""
    name = name_of(reference)
    before = _stamp(reference.path)
    if isinstance(reference, Tar):
        record = await import_tar(store, workspace, reference, choice, progress)
    else:
        async with _opened(workspace, reference, choice) as source:
            record = await Installation(store, workspace, source, choice, progress).run(name)
    stamp = ""
    if not isinstance(reference, OciLayout) and before == _stamp(reference.path):
        stamp = before or ""
    await trio.to_thread.run_sync(store.name, name, record.digest, stamp)
    return record


@asynccontextmanager
async def _opened(
    workspace: Workspace,
    reference: OciLayout | OciArchive | DockerArchive,
    choice: Choice,
) -> AsyncIterator[Source]:
    plain = None
    if not isinstance(reference, OciLayout):
        plain = await threads.stoppable(
            lambda check: _decompressed(workspace, reference.path, choice.bounds.bytes, check)
        )
    opened = await trio.to_thread.run_sync(sources.opened, reference, plain)
    try:
        yield opened
    finally:
        opened.close()


def _decompressed(
    workspace: Workspace, path: Path, most: int, check: Callable[[], None]
) -> Path | None:
    """A copy of an archive that is compressed: its members are read by their place in it."""
    with trees.open_regular(path) as file:
        compression = decompress.recognize(file.peek(8)[:8])  # type: ignore[attr-defined]
        if compression == "none":
            return None
        plain = workspace.directory() / "archive.tar"

        def more() -> bytes:
            check()
            return file.read(decompress.PIECE)

        size = 0
        with files.told(plain, "cannot write"), plain.open("xb") as out:
            for piece in decompress.pieces(file, compression, more):
                size += len(piece)
                if size > most:
                    raise ImageError(f"has more than {most} bytes when decompressed", str(path))
                out.write(piece)
    return plain
