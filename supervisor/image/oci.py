"""The documents of an image, read as what a stranger wrote: manifest, index, configuration.

OCI image-spec 1.1 and Docker's schema 2.  Pure; may import: `errors`, `model`, `image.documents`,
`image.platforms`.  Whatever is not as the specifications have it raises ImageError with the place.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

from attrs import frozen

from supervisor.errors import ImageError
from supervisor.image.documents import Document
from supervisor.image.platforms import Platform
from supervisor.image.reference import DIGEST
from supervisor.model.image import ImageConfig

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEXES = frozenset({OCI_INDEX, DOCKER_INDEX})
CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})
LAYERS = {
    OCI_LAYER: "none",
    f"{OCI_LAYER}+gzip": "gzip",
    f"{OCI_LAYER}+zstd": "zstd",
    DOCKER_LAYER: "none",
    f"{DOCKER_LAYER}.gzip": "gzip",
    f"{DOCKER_LAYER}.zstd": "zstd",
}
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+"
_REF_NAME = "org.opencontainers.image.ref.name"
_CONTAINERD_NAME = "io.containerd.image.name"

LARGEST_MANIFEST = 4 * 1024**2
"""Bytes; what registries take (distribution-spec, "Pushing Manifests")."""
LARGEST_CONFIG = 8 * 1024**2
LARGEST_BLOB = 2**40
MOST_LAYERS = 500
"""Overlayfs takes no more (fs/overlayfs/params.h, OVL_MAX_STACK)."""
MOST_MANIFESTS = 1000
DEEPEST_INDEX = 3
"""An index may name an index; none that is made by a tool in use goes deeper than two."""

_PORT = re.compile(r"\d{1,5}(-\d{1,5})?(/(tcp|udp|sctp))?", re.ASCII)
_SIGNAL = re.compile(r"(SIG)?[A-Z][A-Z0-9+-]{0,11}|\d{1,2}", re.ASCII)


@frozen
class Descriptor:
    """What points to a blob: its kind, its digest, its size in bytes.

    `platform` and `names` (tags, as the layout's index writes them) only where it says so.
    """

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    names: tuple[str, ...] = ()


@frozen
class Manifest:
    """One image: its configuration, and its layers, the lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@frozen
class Index:
    """Several images to choose from, or indexes of such."""

    manifests: tuple[Descriptor, ...]


@frozen
class Configuration:
    """What the configuration says: for which platform, the layers' diff ids, how to run it."""

    platform: Platform
    diff_ids: tuple[str, ...]
    config: ImageConfig


def read_manifest(raw: bytes, media_type: str, where: str) -> Manifest | Index:
    """A manifest or an index; `media_type` is what its descriptor or the registry calls it.

    The document's own word must agree: one that can be read as either is read as neither
    (CVE-2021-41190).
    """
    document = Document.parse(raw, where, limit=LARGEST_MANIFEST)
    kind = _kind(document, media_type)
    if kind in INDEXES:
        _without(document, "layers", "config", "fsLayers")
        found = document.items("manifests", most=MOST_MANIFESTS)
        return Index(tuple(read_descriptor(one) for one in found))
    _without(document, "manifests", "fsLayers")
    return _manifest(document)


def _kind(document: Document, media_type: str) -> str:
    own = document.text("mediaType", "")
    schema = document.number("schemaVersion", 0, 99, default=0)
    if schema == 1 or media_type.startswith(_SCHEMA_1):
        raise document.wrong("is of Docker's schema 1, which no client should trust any more",
                             hint="push the image again with a current tool")  # fmt: skip
    if schema != 2:
        raise document.wrong("has no schemaVersion 2")
    kind = media_type.partition(";")[0].strip() or own
    if own and own != kind:
        raise document.wrong(f'calls itself "{own}", but is announced as "{kind}"')
    if not kind:  # the field is optional in OCI documents
        kind = OCI_INDEX if "manifests" in document.value else OCI_MANIFEST
    if kind not in MANIFESTS | INDEXES:
        raise document.wrong(f'is no manifest of an image, but "{kind}"')
    return kind


def _without(document: Document, *keys: str) -> None:
    for key in keys:
        if key in document.value:
            raise document.wrong(f'has "{key}", which such a document must not have')


def _manifest(document: Document) -> Manifest:
    config = read_descriptor(document.child("config"))
    if config.media_type not in CONFIGS:
        kind = document.text("artifactType", "") or config.media_type
        raise document.wrong(f'is no image, but an artifact of type "{kind}"')
    if config.size > LARGEST_CONFIG:
        raise document.wrong(f"its configuration is larger than {LARGEST_CONFIG} bytes")
    layers = tuple(read_descriptor(one) for one in document.items("layers", most=MOST_LAYERS))
    for layer in layers:
        if layer.media_type not in LAYERS:
            raise document.wrong(f"its layer {layer.digest} is {_unusable(layer.media_type)}")
    return Manifest(config, layers)


def _unusable(media_type: str) -> str:
    if "nondistributable" in media_type or "foreign" in media_type:
        return "not to be distributed: it is had from its vendor alone"
    return f'of the unknown type "{media_type}"'


def read_descriptor(document: Document) -> Descriptor:
    """One descriptor (image-spec/descriptor.md)."""
    digest = document.text("digest")
    if not DIGEST.fullmatch(digest):
        raise document.wrong(f'"{digest[:80]}" is no sha256 digest')
    annotations = document.texts("annotations")
    names = (annotations.get(_REF_NAME, ""), annotations.get(_CONTAINERD_NAME, ""))
    platform = document.value.get("platform")
    return Descriptor(
        document.text("mediaType", ""),
        digest,
        document.number("size", 0, LARGEST_BLOB),
        None if platform is None else _platform(document.child("platform")),
        tuple(dict.fromkeys(name for name in names if name)),
    )


def _platform(document: Document) -> Platform:
    return Platform(
        document.text("os", ""), document.text("architecture", ""), document.text("variant", "")
    )


def read_config(raw: bytes, where: str) -> Configuration:
    """An image's configuration (image-spec/config.md)."""
    document = Document.parse(raw, where, limit=LARGEST_CONFIG)
    rootfs = document.child("rootfs")
    if rootfs.text("type") != "layers":
        raise rootfs.wrong('its type is not "layers"')
    diff_ids = rootfs.strings("diff_ids")
    for diff_id in diff_ids:
        if not DIGEST.fullmatch(diff_id):
            raise rootfs.wrong(f'"{diff_id[:80]}" is no sha256 digest')
    platform = _platform(document)
    if not platform.os or not platform.architecture:
        raise document.wrong("does not say for which os and architecture it is")
    has_config = document.value.get("config") is not None
    config = _how_to_run(document.child("config")) if has_config else ImageConfig()
    return Configuration(platform, diff_ids, config)


def _how_to_run(document: Document) -> ImageConfig:
    return ImageConfig(
        environment=_environment(document),
        entrypoint=document.words("Entrypoint"),
        command=document.words("Cmd"),
        working_dir=_working_dir(document.text("WorkingDir", "")),
        user=document.text("User", ""),
        stop_signal=_matching(document, "StopSignal", _SIGNAL),
        volumes=tuple(_inside(document, path) for path in document.keys("Volumes")),
        exposed_ports=_ports(document),
        labels=tuple(sorted(document.texts("Labels").items())),
    )


def _environment(document: Document) -> tuple[tuple[str, str], ...]:
    """The last of a name holds; what has no "=" sets nothing, as with docker(1)."""
    pairs: dict[str, str] = {}
    for entry in document.strings("Env", optional=True):
        name, equals, value = entry.partition("=")
        if equals and not name:
            raise document.wrong(f'its Env has "{entry[:80]}", which has no name')
        if equals:
            pairs[name] = value
    return tuple(pairs.items())


def _working_dir(text: str) -> str:
    """Absolute, without "..": it is a directory inside the image."""
    return "/" + posixpath.normpath(f"/{text}").lstrip("/") if text else ""


def _inside(document: Document, path: str) -> str:
    if not path.startswith("/") or ".." in path.split("/"):
        raise document.wrong(f'its Volumes have "{path[:80]}", which is no absolute path')
    return _working_dir(path)


def _matching(document: Document, key: str, pattern: re.Pattern[str]) -> str:
    text = document.text(key, "")
    if text and not pattern.fullmatch(text):
        raise document.wrong(f'its {key} is "{text[:80]}"')
    return text


def _ports(document: Document) -> tuple[str, ...]:
    ports = document.keys("ExposedPorts")
    for port in ports:
        if not _PORT.fullmatch(port):
            raise document.wrong(f'its ExposedPorts have "{port[:80]}"')
    return ports


def check_together(manifest: Manifest, config: Configuration, where: str) -> None:
    """A manifest and its configuration must be of the same layers."""
    layers, diff_ids = len(manifest.layers), len(config.diff_ids)
    if layers != diff_ids:
        raise ImageError(f"has {layers} layers, but its configuration tells of {diff_ids}", where)
    if not layers:
        raise ImageError("has no layer: there is nothing to run in", where)


def manifest_of(config: Descriptor, layers: tuple[Descriptor, ...]) -> dict[str, Any]:
    """The manifest of an image that came without one, or is made here."""
    return {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _plain(config),
        "layers": [_plain(layer) for layer in layers],
    }


def _plain(descriptor: Descriptor) -> dict[str, Any]:
    return {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
