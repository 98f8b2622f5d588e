"""A registry as a source of images, for `image.acquire`.

May import: `errors`, the other modules of `image`, trio.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from hashlib import sha256
from typing import TYPE_CHECKING

from attrs import define, evolve, field

from supervisor.errors import ImageError
from supervisor.image import oci
from supervisor.image.hosts import RegistrySettings
from supervisor.image.oci import Descriptor
from supervisor.image.progress import Listener, Progress, Step, silent
from supervisor.image.reference import Remote
from supervisor.image.registry import Registry, open_registry
from supervisor.image.sources import Fetched, Moved

if TYPE_CHECKING:
    from supervisor.image.blobs import Partial
    from supervisor.image.trouble import Patience


class Pulled:
    """One image in a registry; what is tried again is told to `listener`."""

    step: Step = "downloading"

    def __init__(self, client: Registry, remote: Remote, listener: Listener) -> None:
        self.where = str(remote)
        self.digest = ""
        self._client = client
        self._remote = remote
        self._listener = listener

    async def current(self) -> str | None:
        """The digest that the reference has now, without pulling; None where that is not told."""
        return self._remote.digest or await self._client.head(self._remote, self._listener)

    async def top(self) -> Fetched:
        found = await self._client.manifest(self._remote, oci.LARGEST_MANIFEST, self._listener)
        self.digest = found.digest
        return Fetched(found.data, found.media_type, found.digest)

    async def document(self, descriptor: Descriptor) -> bytes:
        """A manifest of an index, or a configuration."""
        if descriptor.media_type in oci.MANIFESTS | oci.INDEXES:
            remote = evolve(self._remote, tag=None, digest=descriptor.digest)
            found = await self._client.manifest(remote, descriptor.size, self._listener)
            return found.data
        if descriptor.size > oci.LARGEST_CONFIG:
            raise ImageError(f"is larger than {oci.LARGEST_CONFIG} bytes", descriptor.digest)
        kept = _Kept()
        size, digest = descriptor.size, descriptor.digest
        await self._client.blob(self._remote, digest, size, kept, self._retries)
        return bytes(kept.data)

    async def blob(self, descriptor: Descriptor, into: Partial, moved: Moved) -> None:
        """A layer, from where `into` is on."""

        def told(progress: Progress) -> None:
            if progress.step == "downloading":
                moved(progress.done)
            self._retries(progress)

        await self._client.blob(self._remote, descriptor.digest, descriptor.size, into, told)

    def _retries(self, progress: Progress) -> None:
        if progress.step == "retrying":
            self._listener(progress)


@define
class _Kept:
    """A small blob in memory."""

    data: bytearray = field(factory=bytearray)

    @property
    def offset(self) -> int:
        return len(self.data)

    @property
    def found(self) -> str:
        return f"sha256:{sha256(self.data).hexdigest()}"

    def write(self, data: bytes) -> None:
        self.data += data

    def reset(self) -> None:
        self.data.clear()

    def finish(self) -> None:
        """It is only kept."""


def opener(
    settings: RegistrySettings, listener: Listener = silent, patience: Patience | None = None
) -> Callable[[Remote], AbstractAsyncContextManager[Pulled]]:
    """What opens a reference to a registry (`acquire.OpenRemote`)."""

    @asynccontextmanager
    async def opened(remote: Remote) -> AsyncIterator[Pulled]:
        async with open_registry(settings, patience) as client:
            yield Pulled(client, remote, listener)

    return opened
