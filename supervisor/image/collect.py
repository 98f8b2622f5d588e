"""Removing what nothing in the store needs any more, while others use it and add to it.

What is found is moved into a workspace under the gate, which is quick, and deleted afterwards; a
process killed in between leaves an abandoned workspace, which the next collection takes.

May import: `errors`, the other modules of `image`.  All of it blocks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path

from attrs import define, field, frozen

from supervisor.errors import ImageError
from supervisor.image import files
from supervisor.image.blobs import hex_of
from supervisor.image.layers import read_facts
from supervisor.image.removal import remove_tree
from supervisor.image.store import Record, Store, is_leased
from supervisor.image.workspace import Workspace, abandoned, claimed


@frozen
class Wish:
    """Which images are to go, beside those without a name.

    only         no images but these (None: any); what no image needs goes in any case
    all          those with a name too
    unused_for   those only that no job has used for so many seconds
    partials     downloads that were interrupted, too
    """

    only: Collection[str] | None = None
    all: bool = False
    unused_for: float = 0.0
    partials: bool = True


@define
class Collected:
    """What went, or would have gone; `kept` are images that were to go but are used by a job.

    `size` in bytes, as far as it is known: what is left of interrupted work is not counted.
    """

    images: list[str] = field(factory=list)
    names: list[str] = field(factory=list)
    layers: list[str] = field(factory=list)
    blobs: list[str] = field(factory=list)
    kept: list[str] = field(factory=list)
    size: int = 0


def collect(store: Store, wish: Wish, *, dry: bool = False) -> Collected:
    """Remove what is not needed (`dry`: only tell what that would be)."""
    done = Collected()
    if not store.exists():
        return done
    with store.workspace() as trash:
        with files.told(store.gate, "cannot lock"), files.locked(store.gate):
            held = [] if dry else list(abandoned(store.tmp))
            try:
                gone = [path for path, _fd in held]
                _mark(store, wish, claimed(store.tmp, gone), trash, done, dry)
            except BaseException:
                _let_go(held)
                raise
        _clear(held)
    return done


def sweep(store: Store) -> None:
    """Remove what killed processes have left behind, and nothing else."""
    if not store.exists():
        return
    with files.told(store.gate, "cannot lock"), files.locked(store.gate):
        held = list(abandoned(store.tmp))
    _clear(held)


def _mark(
    store: Store, wish: Wish, claims: set[str], trash: Workspace, done: Collected, dry: bool
) -> None:
    records = store.records()
    kept = _drop_images(store, wish, records, claims, done, dry)
    needed = claims.union(*({one.digest, one.config, *one.layers} for one in kept))
    _drop_layers(store, {hex_of(one) for one in needed}, trash, done, dry)
    _drop_blobs(store, {hex_of(one) for one in needed}, done, dry)
    if not dry:
        _drop_rest(store, wish)


def _drop_images(
    store: Store, wish: Wish, records: list[Record], claims: set[str], done: Collected, dry: bool
) -> list[Record]:
    """The images that stay."""
    names: dict[str, list[str]] = {}
    for name, digest in store.names().items():
        names.setdefault(digest, []).append(name)
    kept = []
    for record in records:
        own = names.get(record.digest, [])
        if not _unwanted(store, wish, record, bool(own)) or record.digest in claims:
            kept.append(record)
        elif not _drop_image(store, record, dry):
            done.kept.append(record.digest)
            kept.append(record)
        else:
            done.images.append(record.digest)
            done.names += own
            for name in [] if dry else own:
                store.forget(name)
    return kept


def _unwanted(store: Store, wish: Wish, record: Record, named: bool) -> bool:
    if wish.only is not None and record.digest not in wish.only:
        return False
    if named and not wish.all:
        return False
    used = (store.images_dir / hex_of(record.digest)).stat().st_mtime
    return time.time() - used >= wish.unused_for


def _drop_image(store: Store, record: Record, dry: bool) -> bool:
    """Remove a record unless somebody has leased it; then False."""
    path = store.images_dir / hex_of(record.digest)
    if dry:
        return not is_leased(path)
    fd = files.try_lock(path, os.O_RDONLY)
    if fd is None:
        return False
    path.unlink()
    os.close(fd)
    return True


def _drop_layers(
    store: Store, needed: set[str], trash: Workspace, done: Collected, dry: bool
) -> None:
    for path in sorted(store.layers.root.iterdir()):
        if path.name in needed:
            continue
        try:
            done.size += read_facts(path / "facts.json").size
        except (OSError, ImageError):
            pass  # left torn by a crash of the host: its size is not known
        done.layers.append(f"sha256:{path.name}")
        if not dry:
            trash.discard(path)


def _drop_blobs(store: Store, needed: set[str], done: Collected, dry: bool) -> None:
    for path in sorted(store.blobs.whole.iterdir()):
        if path.name in needed or path.name[0] == ".":
            continue
        done.blobs.append(f"sha256:{path.name}")
        done.size += path.stat().st_size
        if not dry:
            path.unlink()


def _drop_rest(store: Store, wish: Wish) -> None:
    """Interrupted downloads, locks and temporary files that nobody holds."""
    doomed = [store.layers.locks]
    if wish.partials:
        doomed.append(store.blobs.partial)
    for directory in doomed:
        for path in sorted(directory.iterdir()):
            _unlink_unheld(path)
    for directory in (store.images_dir, store.names_dir, store.blobs.whole):
        files.sweep(directory)


def _unlink_unheld(path: Path) -> None:
    try:
        fd = files.try_lock(path, os.O_RDWR)
    except FileNotFoundError:
        return
    if fd is not None:
        path.unlink(missing_ok=True)
        os.close(fd)


def _clear(held: list[tuple[Path, int]]) -> None:
    try:
        for path, _fd in held:
            with files.told(path, "cannot remove"):
                remove_tree(str(path))
    finally:
        _let_go(held)


def _let_go(held: list[tuple[Path, int]]) -> None:
    for _path, fd in held:
        os.close(fd)


def remove(store: Store, names: Collection[str]) -> Collected:
    """Take these names away, and the images that have none left.

    A digest stands for all names of its image.  One that a running job uses goes at a later
    collection, and is told in `kept`.  Raises ImageError, before anything is done, for what is
    not there.
    """
    digests = {}
    for name in names:
        digest = store.resolve(name)
        if digest is None or (store.record(digest) is None and name.startswith("sha256:")):
            raise ImageError("is not in the store", name, hint="supervise image list tells what is")
        digests[name] = digest
    forgotten = [
        one for one, digest in store.names().items()
        if one in digests or digest in {digests[name] for name in names if name[:7] == "sha256:"}
    ]  # fmt: skip
    for name in forgotten:
        store.forget(name)
    done = collect(store, Wish(only=frozenset(digests.values()), partials=False))
    done.names = forgotten
    return done
