"""The store: images by name and digest, over blobs and unpacked layers that they share.

    STORE/images/HEX         the record of an image, by the digest of its manifest
    STORE/names/HEX          a name and the digest it stands for, by the digest of the name
    STORE/blobs, partial     see `image.blobs`
    STORE/layers, locks      see `image.layers`
    STORE/tmp                see `image.workspace`
    STORE/lock               the gate: shared while a claim is made, exclusive to collect

A record is written last and never changed, so what it names is there; and it is the lock of its
image: a lease is a shared flock(2) on it, which the job's init inherits.  `image.collect` removes
what no record, no claim and no lease holds.

May import: `errors`, `model`, the other modules of `image` named above.  All of it blocks.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from attrs import asdict, field, frozen

from supervisor.errors import ImageError
from supervisor.image import files, oci
from supervisor.image.blobs import Blobs, hex_of
from supervisor.image.documents import Document
from supervisor.image.layers import Layers
from supervisor.image.reference import DIGEST
from supervisor.image.workspace import Workspace
from supervisor.model.image import Image

_LARGEST_RECORD = 1024**2
_DIRECTORIES = ("images", "names", "blobs/sha256", "partial", "layers", "locks", "tmp")


@frozen
class Record:
    """An image in the store.  `layers` are diff ids, the lowest first.

    source     the reference it came by
    imported   Unix seconds
    """

    digest: str
    config: str
    layers: tuple[str, ...]
    platform: str
    source: str
    imported: float = field(factory=time.time)


@frozen
class Stored:
    """An image as `image list` shows it; times are Unix seconds, sizes bytes, unpacked.

    `shared` bytes are of layers that other images have too.
    """

    record: Record
    names: tuple[str, ...]
    used: float
    leased: bool
    size: int
    shared: int
    damage: str = ""


class Lease:
    """While it or a duplicate of its `fd` is held, nothing of the image is removed."""

    def __init__(self, fd: int, image: Image) -> None:
        self.fd = fd
        self.image = image

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class Store:
    """The images below `root`, of one user; nothing is made there until something is put in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = Blobs(root)
        self.layers = Layers(root)
        self.images_dir = root / "images"
        self.names_dir = root / "names"
        self.tmp = root / "tmp"
        self.gate = root / "lock"
        self._trusted = False

    def exists(self) -> bool:
        """Whether anything was ever put in.  Raises ImageError for one that others can change."""
        if not self._trusted:
            try:
                found = os.lstat(self.root)
            except FileNotFoundError:
                return False
            except OSError as err:
                raise files.refusal(err, self.root, "cannot look at the store") from err
            _trust(self.root, found)
            self._trusted = True
        return True

    def prepare(self) -> None:
        """Make its directories; 0700, for the setuid files of strangers lie there."""
        if self.exists() and self.tmp.is_dir():
            return
        with files.told(self.root, "cannot make the store"):
            self.root.parent.mkdir(parents=True, exist_ok=True)
            self.root.mkdir(mode=0o700, exist_ok=True)
            for name in _DIRECTORIES:
                (self.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self.exists()

    def workspace(self) -> Workspace:
        """A place for what is not whole yet; close it."""
        self.prepare()
        return Workspace(self.tmp / os.urandom(8).hex(), self.gate)

    def find(self, name: str) -> Image | None:
        """The image of a name (as `str(Local)` and other references write it), digest or its start.

        Raises ImageError where it is damaged, or the start of several.
        """
        digest = self.resolve(name)
        record = self.record(digest) if digest is not None else None
        return None if record is None else self.image(record, name)

    def resolve(self, name: str) -> str | None:
        """The digest a name stands for."""
        if not self.exists():
            return None
        if name.startswith("sha256:"):
            return self._by_digest(name)
        data = _read(self._name(name))
        return None if data is None else data.text("digest")

    def _by_digest(self, start: str) -> str | None:
        if DIGEST.fullmatch(start):
            return start
        found = sorted(path.name for path in self.images_dir.glob(f"{start[7:]}*"))
        if len(found) > 1:
            raise ImageError(
                f"is the start of {len(found)} digests", start, hint="write more of it"
            )
        return f"sha256:{found[0]}" if found else None

    def record(self, digest: str) -> Record | None:
        """What is known of an image."""
        document = _read(self.images_dir / hex_of(digest))
        if document is None:
            return None
        found = Record(
            digest=document.text("digest"), config=document.text("config"),
            layers=document.strings("layers"), platform=document.text("platform"),
            source=document.text("source"), imported=float(document.number("imported", 0, 2**40)),
        )  # fmt: skip
        if found.digest != digest:
            raise document.wrong("is of another image", hint="remove that file")
        return found

    def image(self, record: Record, name: str) -> Image:
        """What a job starts from.  Raises ImageError where something of it is missing."""
        for diff_id in record.layers:
            if not self.layers.ready(diff_id):
                raise ImageError(f"lacks its layer {diff_id}", name, hint="pull the image again")
        raw = self.blobs.read(record.config, oci.LARGEST_CONFIG)
        config = oci.read_config(raw, record.config).config
        # Overlayfs refuses a directory that stands there twice.  The upper of two equal layers
        # shows all that the lower one has.
        layers = tuple(dict.fromkeys(str(self.layers.tree(one)) for one in reversed(record.layers)))
        return Image(name, record.digest, layers, config, record.platform)

    def add(self, record: Record) -> None:
        """Let an image be there whose blobs and layers are; give it a `name` next.

        All of it must be claimed by a workspace that is still open.
        """
        self.layers.settle(list(record.layers))
        data = {**asdict(record), "imported": int(record.imported)}
        path = self.images_dir / hex_of(record.digest)
        with files.told(path, "cannot write"):
            files.write_once(path, json.dumps(data).encode())

    def name(self, name: str, digest: str, stamp: str = "") -> None:
        """From now on the name stands for this image; `stamp` tells what it came from."""
        path = self._name(name)
        with files.told(path, "cannot write"):
            data = json.dumps({"name": name, "digest": digest, "stamp": stamp}).encode()
            files.write_atomically(path, data)

    def stamp(self, name: str) -> str:
        """What the image of this name came from was like; "" if that is not known."""
        data = _read(self._name(name)) if self.exists() else None
        return "" if data is None else data.text("stamp", "")

    def _name(self, name: str) -> Path:
        return self.names_dir / hashlib.sha256(name.encode()).hexdigest()

    def names(self) -> dict[str, str]:
        """Every name, with the digest it stands for."""
        found = {}
        for path in self._files(self.names_dir):
            document = _read(path)
            if document is not None:
                found[document.text("name")] = document.text("digest")
        return dict(sorted(found.items()))

    def forget(self, name: str) -> bool:
        """Take a name away; whether there was one."""
        try:
            self._name(name).unlink()
        except FileNotFoundError:
            return False
        return True

    def records(self) -> list[Record]:
        """Every image, in the order they came.  Raises ImageError for a record nobody can read."""
        found = (self.record(f"sha256:{path.name}") for path in self._files(self.images_dir))
        return sorted((one for one in found if one is not None), key=lambda one: one.imported)

    def images(self) -> list[Stored]:
        """Every image with what there is to tell of it."""
        names: dict[str, list[str]] = {}
        for name, digest in self.names().items():
            names.setdefault(digest, []).append(name)
        records = self.records()
        times = _counts(one for record in records for one in set(record.layers))
        return [self._stored(one, tuple(names.get(one.digest, ())), times) for one in records]

    def _stored(self, record: Record, names: tuple[str, ...], times: dict[str, int]) -> Stored:
        sizes, missing = {}, ""
        for diff_id in record.layers:
            facts = self.layers.facts(diff_id)
            sizes[diff_id] = facts.size if facts is not None else 0
            missing = missing if facts is not None else f"lacks its layer {diff_id}"
        shared = sum(size for one, size in sizes.items() if times[one] > 1)
        path = self.images_dir / hex_of(record.digest)
        try:
            used, leased = path.stat().st_mtime, is_leased(path)
        except FileNotFoundError:  # removed this moment
            used, leased = record.imported, False
        return Stored(record, names, used, leased, sum(sizes.values()), shared, missing)

    def lease(self, image: Image) -> Lease:
        """Hold an image while a job uses it.  Raises ImageError if it has been removed."""
        path = self.images_dir / hex_of(image.digest)
        gone = ImageError("was removed from the store", image.name, hint="pull it again")
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise gone from None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            if not files.is_at(fd, path):
                raise gone
            with contextlib.suppress(OSError):  # a read-only file system: its use is not told then
                os.utime(fd)
        except BaseException:
            os.close(fd)
            raise
        return Lease(fd, image)

    def _files(self, directory: Path) -> Iterator[Path]:
        if self.exists() and directory.is_dir():
            yield from (path for path in sorted(directory.iterdir()) if path.name[0] != ".")


def is_leased(path: Path) -> bool:
    """Whether a job holds the image with this record.  Raises FileNotFoundError."""
    fd = files.try_lock(path, os.O_RDONLY)
    if fd is not None:
        os.close(fd)
    return fd is None


def _trust(path: Path, found: os.stat_result) -> None:
    """Nobody else may be able to change what jobs are started from."""
    if not stat.S_ISDIR(found.st_mode):
        raise ImageError("is no directory, so no store", str(path))
    if found.st_uid != os.geteuid():
        raise ImageError(
            f"the store belongs to the user with number {found.st_uid}", str(path),
            hint="use one of your own",
        )  # fmt: skip
    if found.st_mode & 0o022:
        raise ImageError("others may write to the store", str(path), hint=f"chmod 700 {path}")


def _read(path: Path) -> Document | None:
    """A file of ours; None where it is not there."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_RECORD + 1)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise files.refusal(err, path, "cannot read") from err
    return Document.parse(data, str(path), limit=_LARGEST_RECORD)


def _counts(items: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in items:
        found[item] = found.get(item, 0) + 1
    return found
