"""The text that names a root: parsed into what it means, and written back in one way only.

Pure; may import nothing of ours.  `parse` raises ValueError with a text fit for people.

    host                            the host's own files
    /DIRECTORY                      a directory
    tar:FILE                        one layer, plain or compressed
    oci:DIRECTORY[:TAG]             an OCI layout; oci-archive:FILE[:TAG] the same as one tar file
    docker-archive:FILE[:NAME:TAG]  what `docker save` wrote
    docker://[REGISTRY/]NAME[:TAG][@DIGEST]     in a registry
    NAME[:TAG], NAME@DIGEST, sha256:HEX         in the store

In `oci:` and the archives the first colon ends the path, as it does for skopeo(1).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from attrs import frozen

DOCKER_HUB = "docker.io"
SCHEMES = ("tar", "oci", "oci-archive", "docker-archive")
FORMS = (
    '"host", a directory ("/..." or "./..."), tar:FILE, oci:DIRECTORY, oci-archive:FILE, '
    "docker-archive:FILE, docker://NAME:TAG, or the name of an image in the store"
)

# Official images that would read as something else without "library/".
_TAKEN = frozenset(f"library/{word}" for word in (*SCHEMES, "sha256"))

DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_ID = re.compile(r"sha256:[0-9a-f]{6,64}", re.ASCII)
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:]+\])(?::\d{{1,5}})?", re.ASCII)
_NAME_IN_ARCHIVE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/@+-]{0,254}", re.ASCII)


@frozen
class Host:
    """The host's own root."""

    def __str__(self) -> str:
        return "host"


@frozen
class Directory:
    """A directory that is a root already."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@frozen
class Tar:
    """A file that is one layer: a tar archive, plain or compressed."""

    path: Path

    def __str__(self) -> str:
        return f"tar:{self.path}"


@frozen
class OciLayout:
    """A directory in the OCI image layout; `tag` may be None where it holds one image."""

    path: Path
    tag: str | None = None

    def __str__(self) -> str:
        return _text("oci", self.path, self.tag)


@frozen
class OciArchive:
    """An OCI image layout in one tar file."""

    path: Path
    tag: str | None = None

    def __str__(self) -> str:
        return _text("oci-archive", self.path, self.tag)


@frozen
class DockerArchive:
    """What `docker save` writes; `tag` is one of its RepoTags, as "debian:12"."""

    path: Path
    tag: str | None = None

    def __str__(self) -> str:
        return _text("docker-archive", self.path, self.tag)


@frozen
class Remote:
    """An image in a registry.  With a digest, the tag is for people only."""

    registry: str
    repository: str
    tag: str | None
    digest: str | None = None

    @property
    def host(self) -> str:
        """Where the registry's API is: host, and port if it has one."""
        return "registry-1.docker.io" if self.registry == DOCKER_HUB else self.registry

    @property
    def name(self) -> str:
        """Its name in the store: without what is the default."""
        repository = self.repository
        if self.registry != DOCKER_HUB:
            repository = f"{self.registry}/{repository}"
        elif repository.count("/") == 1 and repository not in _TAKEN:
            repository = repository.removeprefix("library/")
        tag = f":{self.tag}" if self.tag is not None else ""
        return repository + (f"@{self.digest}" if self.digest is not None else tag)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        digest = f"@{self.digest}" if self.digest is not None else ""
        return f"docker://{self.registry}/{self.repository}{tag}{digest}"


@frozen
class Local:
    """An image in the store: a name with its tag or digest, or the start of a digest."""

    name: str

    def __str__(self) -> str:
        return self.name


_WITH_TAG: dict[str, type[OciLayout] | type[OciArchive] | type[DockerArchive]] = {
    "oci": OciLayout,
    "oci-archive": OciArchive,
    "docker-archive": DockerArchive,
}
File = Tar | OciLayout | OciArchive | DockerArchive
Reference = Host | Directory | File | Remote | Local


def parse(text: str, base: Path | None = None) -> Reference:
    """What a text names; its relative paths start at `base`, and are refused without one."""
    if not text or text != text.strip() or any(ord(char) < 32 for char in text):
        raise ValueError("is empty, or has spaces around it or control characters in it")
    if text == "host":
        return Host()
    if text.startswith(("/", "./", "../")) or text in (".", ".."):
        return Directory(_path(text, base))
    if text.startswith("docker://"):
        return remote(text.removeprefix("docker://"))
    scheme, colon, rest = text.partition(":")
    if colon and scheme in SCHEMES:
        return _file(scheme, rest, base)
    return _local(text)


def remote(text: str) -> Remote:
    """[REGISTRY/]NAME[:TAG][@DIGEST], with what docker(1) takes for granted filled in."""
    rest, at, digest = text.partition("@")
    if at and not DIGEST.fullmatch(digest):
        raise ValueError(f'"{digest}" is no digest (sha256: and 64 hexadecimal digits)')
    registry, slash, path = rest.partition("/")
    if not slash or not (set(registry) & set(".:[") or registry == "localhost"):
        registry, path = DOCKER_HUB, rest
    if not _REGISTRY.fullmatch(registry):
        raise ValueError(f'"{registry}" is no registry (HOST or HOST:PORT)')
    repository, colon, tag = path.partition(":")
    registry = DOCKER_HUB if registry.lower() == f"index.{DOCKER_HUB}" else registry.lower()
    _check_name(repository, tag if colon else None)
    if registry == DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    return Remote(
        registry, repository,
        tag if colon else None if at else "latest",
        digest if at else None,
    )  # fmt: skip


def _check_name(repository: str, tag: str | None) -> None:
    if not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
        raise ValueError(
            f'"{repository}" is no name of an image: lower case letters and digits, with ".", '
            '"_", "-" or "/" between them'
        )
    if tag is not None and not _TAG.fullmatch(tag):
        raise ValueError(
            f'"{tag}" is no tag: at most 128 letters, digits, "_", "." and "-", not beginning '
            'with "." or "-"'
        )


def _local(text: str) -> Local:
    """A name in the store; it is written as that of the registry's image would be."""
    if text.startswith("sha256:"):
        if not _ID.fullmatch(text):
            raise ValueError(f'"{text}" is no digest or start of one: sha256: and 6 to 64 digits')
        return Local(text)
    if "://" in text or ":/" in text:
        raise ValueError(f'"{text}" is of no known form; a root is {FORMS}')
    return Local(remote(text).name)


def _file(scheme: str, rest: str, base: Path | None) -> File:
    if scheme == "tar":
        return Tar(_path(rest, base))
    name, colon, tag = rest.partition(":")
    path = _path(name, base)
    if colon and not _NAME_IN_ARCHIVE.fullmatch(tag):
        raise ValueError(
            f'"{tag}" is no tag (the first colon ends the path: one with a colon needs a '
            "symbolic link without)"
        )
    return _WITH_TAG[scheme](path, tag if colon else None)


def _path(text: str, base: Path | None) -> Path:
    if not text:
        raise ValueError("names no path")
    if base is None and not text.startswith("/"):
        raise ValueError(f'the path "{text}" must be absolute')
    # normpath keeps two leading slashes, which POSIX lets mean something else
    return Path("/" + os.path.normpath((base or Path("/")) / text).lstrip("/"))


def _text(scheme: str, path: Path, tag: str | None) -> str:
    return f"{scheme}:{path}" + (f":{tag}" if tag is not None else "")
