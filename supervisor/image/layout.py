"""Writing an OCI image layout (image-spec, image-layout.md): blobs, a manifest, the index.

What is written is whole or not there: blobs under a temporary name first, the index replaced as a
whole, under a lock.  An old image of the same tag is no longer named; its blobs stay, as with
other tools, until somebody collects them.

May import: `errors`, `image`.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, cast

from attrs import define, field, frozen

from supervisor.errors import ImageError

MARK = "oci-layout"
VERSION = {"imageLayoutVersion": "1.0.0"}
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
NAME = "org.opencontainers.image.ref.name"
LEVEL = 6
LARGEST_INDEX = 4 << 20


@frozen
class Descriptor:
    """What names a blob (descriptor.md)."""

    media_type: str
    digest: str
    size: int

    def to_json(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@frozen
class Layer:
    """A layer that is in the layout; `diff_id` names what it is uncompressed."""

    blob: Descriptor
    diff_id: str


class Layout:
    """One layout, made where there is none.

    Raises ImageError for a directory that is something else, and where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._blobs = path / "blobs/sha256"
        with self._told():
            path.mkdir(exist_ok=True)
            self._prepare()

    def add_layer(self, write: Callable[[IO[bytes]], str]) -> Layer:
        """What `write` puts into the stream, an uncompressed tar, as a gzip blob.

        `write` returns the diff_id: "sha256:" and the hash of all that it wrote.
        """
        with self._told(), self._new_blob() as blob:
            # No name and no time in the header: the same layer has the same digest.
            with gzip.GzipFile("", "wb", LEVEL, cast(IO[bytes], blob), mtime=0) as packed:
                diff_id = write(cast(IO[bytes], packed))
            return Layer(blob.keep(LAYER), diff_id)

    def add_image(self, tag: str | None, config: dict[str, Any], layers: Sequence[Layer]) -> str:
        """Name an image of these layers, lowest first; its digest.

        `config` is the image's (config.md); its `rootfs` is filled in here.
        """
        diff_ids = [layer.diff_id for layer in layers]
        whole = {**config, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        with self._told():
            manifest = {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": self._add(CONFIG, whole).to_json(),
                "layers": [layer.blob.to_json() for layer in layers],
            }
            blob = self._add(MANIFEST, manifest)
            keys: tuple[str, ...] = ("architecture", "os", "variant")
            platform = {key: config[key] for key in keys if key in config}
            self._name(blob, tag, platform)
        return blob.digest

    def _prepare(self) -> None:
        there = set(os.listdir(self.path))
        if there and MARK not in there:
            hint = "name a new directory, or one that has an OCI layout"
            raise ImageError("is not empty, and no OCI layout", str(self.path), hint=hint)
        self._blobs.mkdir(parents=True, exist_ok=True)
        if MARK not in there:
            self._replace(MARK, VERSION)

    def _add(self, media_type: str, document: dict[str, Any]) -> Descriptor:
        with self._new_blob() as blob:
            blob.write(_text(document))
            return blob.keep(media_type)

    @contextmanager
    def _new_blob(self) -> Iterator[_Blob]:
        fd, name = tempfile.mkstemp(prefix=".new-", dir=self._blobs)
        try:
            with os.fdopen(fd, "wb") as file:
                yield _Blob(file, Path(name))
        finally:
            Path(name).unlink(missing_ok=True)

    def _name(self, blob: Descriptor, tag: str | None, platform: dict[str, str]) -> None:
        """Put the manifest into the index, in the place of what had the name."""
        entry = {**blob.to_json(), "platform": platform}
        if tag is not None:
            entry["annotations"] = {NAME: tag}
        with (self.path / MARK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            index = self._index()
            others = [one for one in index["manifests"] if _name_of(one) != tag]
            self._replace("index.json", {**index, "manifests": [*others, entry]})

    def _index(self) -> dict[str, Any]:
        path = self.path / "index.json"
        if not path.exists():
            return {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
        with path.open("rb") as file:
            text = file.read(LARGEST_INDEX + 1)
        try:
            index = json.loads(text)
        except (ValueError, RecursionError):
            index = None
        manifests = index.get("manifests") if isinstance(index, dict) else None
        whole = isinstance(manifests, list) and all(isinstance(one, dict) for one in manifests)
        if not whole or len(text) > LARGEST_INDEX:
            raise ImageError("is no index of an OCI layout", str(path))
        return cast(dict[str, Any], index)

    def _replace(self, name: str, document: dict[str, Any]) -> None:
        fd, temporary = tempfile.mkstemp(prefix=f".{name}-", dir=self.path)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(_text(document))
                _settle(file)
            os.rename(temporary, self.path / name)
        finally:
            Path(temporary).unlink(missing_ok=True)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = f"cannot be written: {error.strerror or error}"
            raise ImageError(why, str(error.filename or self.path)) from error


@define
class _Blob:
    """A blob while it is written."""

    file: IO[bytes]
    path: Path
    hash: hashlib._Hash = field(factory=hashlib.sha256)
    size: int = 0

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()

    def keep(self, media_type: str) -> Descriptor:
        """It is whole: give it its name."""
        _settle(self.file)
        digest = self.hash.hexdigest()
        os.rename(self.path, self.path.parent / digest)
        return Descriptor(media_type, f"sha256:{digest}", self.size)


def _settle(file: IO[bytes]) -> None:
    """On the disk, and readable by others, as everything in a layout is."""
    os.fchmod(file.fileno(), 0o644)
    file.flush()
    os.fsync(file.fileno())


def _text(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def _name_of(entry: dict[str, Any]) -> str | None:
    annotations = entry.get("annotations")
    name = annotations.get(NAME) if isinstance(annotations, dict) else None
    return name if isinstance(name, str) else None


def source_date_epoch(environment: dict[str, str] | os._Environ[str]) -> int | None:
    """The variable of that name (reproducible-builds.org): Unix seconds; None: not set.

    Raises ImageError for what is no such number.
    """
    text = environment.get("SOURCE_DATE_EPOCH")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 11):
        raise ImageError(f"is {text!r}, not a number of seconds since 1970", "SOURCE_DATE_EPOCH")
    return int(text)


def created(seconds: float) -> str:
    """A time as image documents have it."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
