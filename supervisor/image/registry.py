"""The client of a registry: manifests and blobs by the OCI distribution specification (1.1).

May import: `errors`, the other modules of `image` that concern registries, trio; httpx only by
`image.transport`, and that only when a client is opened.

Mirrors are asked first, in their order, then the registry itself; each is tried again while that
may help.  What a blob has brought so far is kept through all of it, and through the end of this
process: the next try asks for the rest.  Nobody needs to be trusted for that: the digest of the
whole decides, so that no If-Range is needed either.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, TypeVar

import trio
from attrs import frozen

from supervisor.errors import ImageError
from supervisor.image import credentials
from supervisor.image.auth import Authorizer
from supervisor.image.download import Download, Notes, Sink, persist
from supervisor.image.hosts import Endpoint, RegistrySettings, endpoints, origin
from supervisor.image.progress import Listener, Progress, silent
from supervisor.image.reference import DIGEST, Remote
from supervisor.image.trouble import NoTls, Patience, Trouble, printable, refused

if TYPE_CHECKING:
    from supervisor.image.transport import Answer, Transport

LARGEST_MANIFEST = 4 * 1024 * 1024
"""Bytes; what registries take (the distribution specification asks for that much at least)."""
AT_ONCE = 3
"""Blobs that are downloaded at the same time."""
MANIFESTS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)

T = TypeVar("T")


@frozen
class Fetched:
    """A manifest or an index as it came; `media_type` is "" where nobody says it."""

    data: bytes
    media_type: str
    digest: str


class Source:
    """One place to ask, and what has been learnt of it."""

    def __init__(
        self, endpoint: Endpoint, remote: Remote, transport: Transport, settings: RegistrySettings
    ) -> None:
        self.endpoint = endpoint
        self.repository = endpoint.prefix + remote.repository
        self.down = False
        self._transport = transport
        self._settings = settings
        self._schemes = list(endpoint.schemes)
        self._answered = False
        self._who = self._authorizer()

    @property
    def name(self) -> str:
        return str(self.endpoint)

    @property
    def base(self) -> str:
        return f"{self._schemes[0]}://{self.endpoint.host}"

    def _authorizer(self) -> Authorizer:
        patience = self._transport.patience

        async def look_up() -> credentials.Credentials | None:
            account = self.endpoint.account
            place = credentials.here()
            return await credentials.find(account, self.repository, place, patience.helper)

        return Authorizer(self.base, look_up, self._transport, self._settings)

    @asynccontextmanager
    async def open(
        self, method: str, what: str, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer]:
        """The answer to a request for `what` of the repository ("manifests/latest")."""
        async with AsyncExitStack() as stack:
            asked = self.base
            try:
                answer = await stack.enter_async_context(self._authorized(method, what, headers))
            except NoTls:
                if not self._plainer(asked):
                    raise
                answer = await stack.enter_async_context(self._authorized(method, what, headers))
            self._answered = True
            yield answer

    def _plainer(self, asked: str) -> bool:
        """Go on in plain HTTP where that is allowed and the host has never spoken TLS to us."""
        if self.base == asked and len(self._schemes) > 1 and not self._answered:
            del self._schemes[0]
            self._who = self._authorizer()
        return self.base != asked

    @asynccontextmanager
    async def _authorized(
        self, method: str, what: str, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer]:
        """A challenge of the registry is answered once; a second one is a refusal."""
        address = f"{self.base}/v2/{self.repository}/{what}"
        scope = f"repository:{self.repository}:pull"
        sent = self._who.header(scope)
        async with self._transport.request(method, address, headers, authorization=sent) as answer:
            if answer.status != 401:
                yield answer
                return
            if origin(answer.address) != origin(address):
                raise Trouble("it led us to a host that wants credentials, which gets none")
            offered = answer.challenges
        new = await self._who.answer(offered, scope, sent)
        async with self._transport.request(method, address, headers, authorization=new) as answer:
            yield answer


class Registry:
    """What images are pulled by: `open_registry` makes it."""

    def __init__(self, settings: RegistrySettings, transport: Transport) -> None:
        self._settings = settings
        self._transport = transport
        self._sources: dict[tuple[str, str], tuple[Source, ...]] = {}
        self._turns = trio.CapacityLimiter(AT_ONCE)

    async def head(self, remote: Remote, listener: Listener = silent) -> str | None:
        """The digest that a tag has now; None where the registry does not tell without a GET.

        Docker Hub does not count this as a pull.  Raises ImageError.
        """

        async def attempt(source: Source) -> str | None:
            async with source.open("HEAD", _manifest(remote), _ACCEPT) as answer:
                if answer.status == 200:
                    return _digest(answer.headers)
                if answer.status in (404, 405):
                    return None  # some know no HEAD; the GET says what is wrong
                raise refused(answer.status, answer.headers, b"", source.name)

        return await self._anywhere(remote, attempt, Notes(str(remote), listener))

    async def manifest(
        self, remote: Remote, limit: int = LARGEST_MANIFEST, listener: Listener = silent
    ) -> Fetched:
        """The manifest or index of a reference, of at most `limit` bytes.  Raises ImageError.

        It has the reference's digest if there is one, and the digest and type its headers tell.
        """

        async def attempt(source: Source) -> Fetched:
            async with source.open("GET", _manifest(remote), _ACCEPT) as answer:
                if answer.status != 200:
                    raise await answer.refusal(source.name)
                data = await answer.body(limit)
                return _checked(data, answer.headers, remote)

        return await self._anywhere(remote, attempt, Notes(str(remote), listener))

    async def blob(
        self, remote: Remote, digest: str, size: int, sink: Sink, listener: Listener = silent
    ) -> None:
        """Bring a blob into its sink, whole and with its digest.

        Of many that are asked for, AT_ONCE come at the same time.  Raises ImageError, and whatever
        the sink does; what came until then stays in it.
        """
        async with self._turns:
            download = Download(digest, size, sink, listener)
            notes = Notes(digest, listener, download)
            await self._anywhere(remote, download.attempt, notes)
        listener(Progress(digest, "done", size, size))

    async def _anywhere(
        self, remote: Remote, attempt: Callable[[Source], Awaitable[T]], notes: Notes
    ) -> T:
        """The first success of any source.  Raises ImageError with what each of them said."""
        sources = self._sources_of(remote)
        troubles: list[tuple[Source, Trouble]] = []
        for source in sources:
            if source.down and source is not sources[-1]:
                continue
            try:
                return await persist(source, attempt, notes, self._transport.patience)
            except Trouble as trouble:
                source.down = trouble.again  # it stayed so through all tries
                troubles.append((source, trouble))
                if source is not sources[-1]:
                    notes.tell(f"{source.name}: {trouble.text}; asking the next")
        raise _failure(remote, troubles)

    def _sources_of(self, remote: Remote) -> tuple[Source, ...]:
        key = remote.registry, remote.repository
        if key not in self._sources:
            try:
                places = endpoints(remote, self._settings)
            except ValueError as error:
                raise ImageError(f"a mirror {error}", remote.registry, hint="[images]") from None
            self._sources[key] = tuple(
                Source(place, remote, self._transport, self._settings) for place in places
            )
        return self._sources[key]


@asynccontextmanager
async def open_registry(
    settings: RegistrySettings, patience: Patience | None = None
) -> AsyncIterator[Registry]:
    """A client; its connections are closed in the end.  Raises ImageError without httpx."""
    try:
        from supervisor.image.transport import Transport
    except ModuleNotFoundError as error:
        hint = "pip install 'supervise-batch[images]'"
        raise ImageError(f"pulling images needs {error.name}", hint=hint) from error
    transport = Transport(settings, patience or Patience())
    try:
        yield Registry(settings, transport)
    finally:
        await transport.aclose()


def _failure(remote: Remote, troubles: list[tuple[Source, Trouble]]) -> ImageError:
    last = troubles[-1][1]
    if len(troubles) == 1:
        return ImageError(last.text, str(remote), hint=last.hint)
    each = "; ".join(f"{source.name}: {trouble.text}" for source, trouble in troubles)
    return ImageError(f"nobody has it: {each}", str(remote), hint=last.hint)


_ACCEPT = {"Accept": ", ".join(MANIFESTS)}


def _manifest(remote: Remote) -> str:
    return f"manifests/{remote.digest or remote.tag}"


def _digest(headers: Mapping[str, str]) -> str | None:
    told = headers.get("docker-content-digest", "")
    return told if DIGEST.fullmatch(told) else None


def _checked(data: bytes, headers: Mapping[str, str], remote: Remote) -> Fetched:
    """The manifest, if it is the one that was asked for and that the headers tell of."""
    digest = f"sha256:{sha256(data).hexdigest()}"
    if remote.digest is not None and digest != remote.digest:
        raise Trouble(f"it sent a manifest with the digest {digest}", again=True)
    told = _digest(headers)
    if told is not None and told != digest:
        raise Trouble(f"it says {told} of a manifest with the digest {digest}", again=True)
    return Fetched(data, _media_type(data, headers), digest)


def _media_type(data: bytes, headers: Mapping[str, str]) -> str:
    """What it is.  A manifest that says something else of itself than the registry is refused.

    Else one might be read as an index here and as a manifest by who signed or scanned it.
    """
    told = headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        document = json.loads(data)
        own = document.get("mediaType") if isinstance(document, dict) else None
    except (ValueError, RecursionError):
        raise Trouble("it sent a manifest that is no JSON") from None
    if "v1+prettyjws" in told or (told not in MANIFESTS and "fsLayers" in (document or {})):
        text = "it has the image only in Docker's old form (schema 1), which nobody can verify"
        raise Trouble(text)
    if own is None or own == told:
        return told if told in MANIFESTS else ""
    if not isinstance(own, str) or told in MANIFESTS:
        raise Trouble(f"it says {printable(told)} of what says {printable(str(own))} of itself")
    return own
