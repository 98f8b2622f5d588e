"""Small images made by hand: layers of chosen entries, in every form a reference can name.

base = layer(folder("etc"), file("etc/motd", b"hello"), symlink("bin", "usr/bin"))
top = layer(whiteout("etc/motd"), opaque("var"))
image = Built([base, top], config={"Env": ["A=1"]}, compression="gzip")
image.layout(tmp_path / "oci", "1")       # oci:/.../oci:1
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from supervisor.image import oci

Compression = Literal["none", "gzip", "zstd"]
Entry = tuple[tarfile.TarInfo, bytes]

_SUFFIX = {"none": "", "gzip": "+gzip", "zstd": "+zstd"}
WHEN = 1_000_000_000
"""The time of every entry, unless told."""


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def entry(name: str, kind: bytes, data: bytes = b"", **fields: Any) -> Entry:
    """Any entry; `fields` are attributes of TarInfo (mode, uid, linkname, pax_headers ...)."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mtime = kind, len(data), WHEN
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def file(name: str, data: bytes = b"", mode: int = 0o644, **fields: Any) -> Entry:
    return entry(name, tarfile.REGTYPE, data, mode=mode, **fields)


def folder(name: str, mode: int = 0o755, **fields: Any) -> Entry:
    return entry(name, tarfile.DIRTYPE, mode=mode, **fields)


def symlink(name: str, target: str, **fields: Any) -> Entry:
    return entry(name, tarfile.SYMTYPE, linkname=target, mode=0o777, **fields)


def hardlink(name: str, target: str, **fields: Any) -> Entry:
    return entry(name, tarfile.LNKTYPE, linkname=target, **fields)


def device(name: str, major: int, minor: int, mode: int = 0o600, **fields: Any) -> Entry:
    """A character device."""
    return entry(name, tarfile.CHRTYPE, devmajor=major, devminor=minor, mode=mode, **fields)


def whiteout(path: str) -> Entry:
    """Hides what the layers below have at this path."""
    parent, slash, name = path.rpartition("/")
    return file(f"{parent}{slash}.wh.{name}")


def opaque(directory: str) -> Entry:
    """Hides all that the layers below have in this directory."""
    return file(f"{directory}/.wh..wh..opq")


def layer(*entries: Entry) -> bytes:
    """The tar archive of these, as they are and in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def compressed(data: bytes, how: str) -> bytes:
    """The same bytes each time."""
    if how == "gzip":
        return gzip.compress(data, 6, mtime=0)
    if how == "xz":
        return lzma.compress(data)
    if how == "zstd":
        from backports import zstd

        packed: bytes = zstd.compress(data)
        return packed
    return data


@dataclass(frozen=True)
class Built:
    """An image of these layers (tar archives, the lowest first).

    `config` is the part of the configuration that says how to run it (Env, Cmd ...).
    """

    layers: Sequence[bytes]
    config: Mapping[str, Any] = field(default_factory=dict)
    compression: Compression = "gzip"
    architecture: str = "amd64"
    variant: str = ""
    docker: bool = False
    """With Docker's media types."""

    @cached_property
    def diff_ids(self) -> list[str]:
        return [sha256(one) for one in self.layers]

    @cached_property
    def packed(self) -> list[bytes]:
        """The layers' blobs."""
        return [compressed(one, self.compression) for one in self.layers]

    @cached_property
    def raw_config(self) -> bytes:
        whole: dict[str, Any] = {
            "os": "linux", "architecture": self.architecture, "config": dict(self.config),
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
        }  # fmt: skip
        return json.dumps({**whole, **({"variant": self.variant} if self.variant else {})}).encode()

    @cached_property
    def manifest(self) -> dict[str, Any]:
        kinds = (oci.OCI_MANIFEST, oci.OCI_CONFIG, oci.OCI_LAYER + _SUFFIX[self.compression])
        if self.docker:
            suffix = _SUFFIX[self.compression].replace("+", ".")
            kinds = (oci.DOCKER_MANIFEST, oci.DOCKER_CONFIG, oci.DOCKER_LAYER + suffix)
        return {
            "schemaVersion": 2, "mediaType": kinds[0],
            "config": descriptor(kinds[1], self.raw_config),
            "layers": [descriptor(kinds[2], one) for one in self.packed],
        }  # fmt: skip

    @cached_property
    def raw_manifest(self) -> bytes:
        return json.dumps(self.manifest).encode()

    @cached_property
    def digest(self) -> str:
        return sha256(self.raw_manifest)

    @cached_property
    def blobs(self) -> dict[str, bytes]:
        """All that it is made of, by digest."""
        parts = [self.raw_manifest, self.raw_config, *self.packed]
        return {sha256(part): part for part in parts}

    def described(self, tag: str | None = None, *, platform: bool = False) -> dict[str, Any]:
        """How an index names it."""
        found = descriptor(self.manifest["mediaType"], self.raw_manifest)
        if tag is not None:
            found["annotations"] = {"org.opencontainers.image.ref.name": tag}
        if platform:
            found["platform"] = {"os": "linux", "architecture": self.architecture}
            if self.variant:
                found["platform"]["variant"] = self.variant
        return found

    def layout(self, path: Path, tag: str | None = None) -> Path:
        """An OCI layout with this image alone."""
        return write_layout(path, [self.described(tag)], self.blobs)

    def oci_archive(self, path: Path, tag: str | None = None) -> Path:
        """The same as a tar file."""
        index = layout_index([self.described(tag)])
        return archive(path, {**_layout_head(index), **_named(self.blobs)})

    def docker_archive(self, path: Path, *tags: str) -> Path:
        """What `docker save` wrote before it wrote OCI layouts; its layers are as `packed`."""
        names = [f"{digest[7:]}/layer.tar" for digest in self.diff_ids]
        config = f"{sha256(self.raw_config)[7:]}.json"
        manifest = [{"Config": config, "RepoTags": list(tags) or None, "Layers": names}]
        members = {config: self.raw_config, **dict(zip(names, self.packed, strict=True))}
        return archive(path, {**members, "manifest.json": json.dumps(manifest).encode()})


def descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data)}


def layout_index(manifests: Sequence[Mapping[str, Any]]) -> bytes:
    return json.dumps({"schemaVersion": 2, "manifests": list(manifests)}).encode()


def write_layout(
    path: Path, manifests: Sequence[Mapping[str, Any]], blobs: Mapping[str, bytes]
) -> Path:
    """An OCI layout with these entries in its index and these blobs, right or not."""
    for name, data in {**_layout_head(layout_index(manifests)), **_named(blobs)}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def _layout_head(index: bytes) -> dict[str, bytes]:
    return {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": index}


def _named(blobs: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"blobs/{digest.replace(':', '/')}": data for digest, data in blobs.items()}


def archive(path: Path, members: Mapping[str, bytes]) -> Path:
    """A tar file with these members."""
    path.write_bytes(layer(*(file(name, data) for name, data in members.items())))
    return path


def many_layers(count: int) -> list[bytes]:
    """Each adds a file and changes one that all have."""
    return [
        layer(
            folder("common"),
            file("common/last", f"layer {at}\n".encode()),
            file(f"common/{at}", f"of {at}\n".encode()),
        )
        for at in range(count)
    ]
