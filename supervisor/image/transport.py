"""Requests over HTTP: whose certificates, where a redirect may lead, how long it may take.

May import: `image.hosts`, `image.trouble`, trio; httpx, here alone.  Whoever imports this module
pays for httpx (some 70 ms): `acquire` does when something is pulled.

Nothing is decoded on the way: what arrives is what is hashed.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import httpx
import trio

from supervisor.errors import ImageError
from supervisor.image.hosts import RegistrySettings, is_loopback, is_private, origin, refusal
from supervisor.image.trouble import NoTls, Pace, Patience, Trouble, printable, refused

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MOST_REDIRECTS = 5
LARGEST_REFUSAL = 16 * 1024
"""Of an answer that is not what was asked for, so much is read for what it says."""


class Answer:
    """An answer whose head has come.  `address` is where it came from in the end."""

    def __init__(self, response: httpx.Response, address: str, patience: Patience) -> None:
        self._response = response
        self._raw = response.aiter_raw()
        self._patience = patience
        self._pace = Pace(patience)
        self._host = _host(address)
        self.address = address
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers

    @property
    def challenges(self) -> list[str]:
        """Every WWW-Authenticate header."""
        return self._response.headers.get_list("www-authenticate")

    @property
    def length(self) -> int | None:
        """What Content-Length says; None without one that is a number."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None

    async def read(self) -> bytes:
        """The next bytes of the body, undecoded; b"" at its end.

        Raises Trouble when it breaks off or creeps.
        """
        coding = self.headers.get("content-encoding", "identity").lower()
        if coding != "identity":
            raise Trouble(f"it came encoded as {printable(coding)}, which nobody asked for")
        chunk = b""
        with told(self._host, self._patience):
            chunk = await anext(self._raw, b"")
        self._pace.came(len(chunk))
        return chunk

    async def body(self, limit: int) -> bytes:
        """All of a short body.  Raises Trouble where it is larger than `limit` bytes."""
        if (self.length or 0) > limit:
            raise Trouble(f"the answer is larger than {limit} bytes")
        data = bytearray()
        try:
            with trio.fail_after(self._patience.whole):
                while chunk := await self.read():
                    data += chunk
                    if len(data) > limit:
                        raise Trouble(f"the answer is larger than {limit} bytes")
        except trio.TooSlowError:
            text = f"the answer did not come to its end within {self._patience.whole:g} s"
            raise Trouble(text, again=True) from None
        return bytes(data)

    async def close(self) -> None:
        """Let go of the connection; one whose answer was not read to its end is closed."""
        with trio.CancelScope(shield=True):
            await self._response.aclose()
            # httpx reads by generators in generators, which nobody but itself can close: they
            # come to their end on the closed connection, not in the garbage collector
            with suppress(httpx.HTTPError, httpx.StreamError):
                while await anext(self._raw, None) is not None:
                    pass

    async def refusal(self, who: str) -> Trouble:
        """What an answer says that is not the one that was asked for."""
        return refused(self.status, self.headers, await self._beginning(), who)

    async def _beginning(self) -> bytes:
        """Of a body that explains a refusal; empty where even that does not come."""
        data = bytearray()
        try:
            with trio.move_on_after(self._patience.read):
                while len(data) < LARGEST_REFUSAL and (chunk := await self.read()):
                    data += chunk
        except Trouble:
            return b""  # the status says enough
        return bytes(data[:LARGEST_REFUSAL])


class Transport:
    """One pool of connections that knows no proxy, for this host, and one that may use one."""

    def __init__(self, settings: RegistrySettings, patience: Patience) -> None:
        self._settings = settings
        self.patience = patience
        self._clients: dict[bool, httpx.AsyncClient] = {}
        self._trust: ssl.SSLContext | None = None

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.aclose()

    @asynccontextmanager
    async def request(
        self,
        method: str,
        address: str,
        headers: Mapping[str, str],
        *,
        authorization: str | None = None,
        form: Mapping[str, str] | None = None,
    ) -> AsyncIterator[Answer]:
        """The answer to a request, redirects followed (but not those of a form).

        `authorization` goes to the origin of `address` only, and only where nobody else reads it.
        Raises Trouble where there is no answer.
        """
        response, last = await self._send(method, address, headers, authorization, form)
        answer = Answer(response, last, self.patience)
        try:
            yield answer
        finally:
            await answer.close()

    async def _send(
        self,
        method: str,
        address: str,
        headers: Mapping[str, str],
        authorization: str | None,
        form: Mapping[str, str] | None,
    ) -> tuple[httpx.Response, str]:
        target = address
        try:
            with trio.fail_after(self.patience.answer):
                for _ in range(MOST_REDIRECTS + 1):
                    sent = dict(headers)
                    if authorization and origin(target) == origin(address) and is_private(target):
                        sent["Authorization"] = authorization
                    response = await self._once(method, target, sent, form)
                    if response.status_code not in REDIRECTS or form is not None:
                        return response, target
                    with trio.CancelScope(shield=True):
                        await response.aclose()
                    target = self._next(response, target)
        except trio.TooSlowError:
            text = f"{_host(target)} did not answer within {self.patience.answer:g} s"
            raise Trouble(text, again=True) from None
        raise Trouble(f"{_host(address)} led us through more than {MOST_REDIRECTS} redirects")

    async def _once(
        self, method: str, address: str, headers: Mapping[str, str], form: Mapping[str, str] | None
    ) -> httpx.Response:
        client = self._client(address)
        with told(_host(address), self.patience):
            request = client.build_request(method, address, headers=headers, data=form)
            return await client.send(request, stream=True)

    def _next(self, response: httpx.Response, address: str) -> str:
        """Where a redirect leads, if it may."""
        location = response.headers.get("location", "")
        try:
            target = str(httpx.URL(address).join(location))
        except (httpx.InvalidURL, ValueError):
            target = location
        why = refusal(target, address, self._settings) if location else "names no address"
        if why:
            where = f" to {printable(target)}" if location else ""
            raise Trouble(f"{_host(address)} redirects us{where}, which {why}")
        return target

    def _client(self, address: str) -> httpx.AsyncClient:
        near = is_loopback(httpx.URL(address).host)
        if near not in self._clients:
            self._clients[near] = self._open(proxies=not near)
        return self._clients[near]

    def _open(self, *, proxies: bool) -> httpx.AsyncClient:
        if self._trust is None:
            self._trust = trust(self._settings.ca)
        seconds = self.patience
        try:
            return httpx.AsyncClient(
                verify=self._trust,
                trust_env=proxies,
                timeout=httpx.Timeout(seconds.read, connect=seconds.connect, pool=None),
                headers={"User-Agent": "supervise", "Accept-Encoding": "identity"},
            )
        except (ImportError, ValueError) as error:
            hint = "look at HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY; SOCKS needs socksio"
            raise ImageError(f"the proxy cannot be used: {error}", hint=hint) from error


def trust(ca: Path | None) -> ssl.SSLContext:
    """Whose certificates are trusted: those of SSL_CERT_FILE and SSL_CERT_DIR, or the system's.

    `ca` comes on top.  certifi's stand in where the system has none.  Raises ImageError.
    """
    for variable in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        if (path := os.environ.get(variable)) and not Path(path).exists():
            raise ImageError(f"{variable} names it, and it is not there", path)
    context = ssl.create_default_context()
    try:
        if not _has_certificates():
            import certifi

            context.load_verify_locations(certifi.where())
        if ca is not None:
            context.load_verify_locations(ca)
    except OSError as error:  # ssl.SSLError is one
        what = "cannot be read as certificates" if isinstance(error, ssl.SSLError) else _why(error)
        raise ImageError(what, str(ca), hint="it must hold certificates in PEM") from error
    return context


def _has_certificates() -> bool:
    paths = ssl.get_default_verify_paths()  # each None where it is not there
    return bool(paths.cafile) or (bool(paths.capath) and any(Path(paths.capath).iterdir()))


@contextmanager
def told(host: str, patience: Patience) -> Iterator[None]:
    """Turns what httpx raises into Trouble that says what happened, in words."""
    try:
        yield
    except httpx.ConnectTimeout as error:
        text = f"{host} cannot be reached within {patience.connect:g} s"
        raise Trouble(text, again=True) from error
    except httpx.TimeoutException as error:
        raise Trouble(f"{host} sent nothing for {patience.read:g} s", again=True) from error
    except httpx.ConnectError as error:
        raise _no_connection(host, error) from error
    except httpx.ProxyError as error:
        raise Trouble(f"the proxy refuses: {printable(str(error))}", again=True) from error
    except httpx.RemoteProtocolError as error:
        text = f"{host} broke off: {printable(str(error))}"
        raise Trouble(text, again=True) from error
    except httpx.TransportError as error:
        text = f"{host} broke off: {printable(_why(error))}"
        raise Trouble(text, again=True) from error
    except (httpx.InvalidURL, httpx.RequestError, UnicodeError) as error:
        raise Trouble(f"{host} cannot be asked: {printable(str(error))}") from error


def _no_connection(host: str, error: BaseException) -> Trouble:
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Trouble(
                f"the certificate of {host} is not trusted: {cause.verify_message}",
                hint="name its issuer's certificate: ca in [images], or SSL_CERT_FILE",
            )
    if any(isinstance(cause, ssl.SSLError | trio.BrokenResourceError) for cause in causes):
        no_tls = NoTls(f"{host} speaks no TLS", hint="insecure in [images] allows plain HTTP")
        # one that hangs up in the middle of the handshake may not do so the next time
        no_tls.again = not any(isinstance(cause, ssl.SSLError) for cause in causes)
        return no_tls
    # a name that does not resolve may do so a moment later, where the resolver says so
    again = not any(
        isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME for cause in causes
    )
    return Trouble(f"{host} cannot be reached: {_why(error)}", again=again)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception with all that it was raised from, members of groups included."""
    seen: set[int] = set()
    left = [error]
    while left:
        one = left.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        left += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions


def _why(error: BaseException) -> str:
    """The system's own words for what is at the bottom of it."""
    for cause in _causes(error):
        if isinstance(cause, socket.gaierror):
            return str(cause.strerror).lower()
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno).lower()
    return str(error) or type(error).__name__


def _host(address: str) -> str:
    return printable(httpx.URL(address).netloc.decode("ascii", "replace"))
