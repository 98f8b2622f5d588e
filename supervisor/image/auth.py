"""How a registry is told who asks: challenges read, tokens fetched, kept and fetched again.

May import: `image.credentials`, `image.hosts`, `image.trouble`, `image.transport`, trio.

The first request of all goes without a word about us.  A challenge is answered with credentials if
there are any for that registry, else with what anybody may have.  Nothing is said where others
could read it, nor to a host that a redirect has led to.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import trio
from attrs import frozen

from supervisor.image.credentials import Credentials
from supervisor.image.hosts import RegistrySettings, is_private, refusal
from supervisor.image.trouble import Trouble, printable

if TYPE_CHECKING:
    from supervisor.image.transport import Transport

LARGEST_TOKEN = 64 * 1024
LARGEST_ANSWER = 256 * 1024
LARGEST_HEADER = 8 * 1024
SHORTEST_LIFE, LONGEST_LIFE = 60, 3600
"""Seconds.  Without `expires_in` a token lasts 60 (the specification of Docker's tokens)."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/:|-]+=*", re.ASCII)
_SCHEME = re.compile(r"[\s,]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:[\s,]+|$)", re.ASCII)
_PARAMETER = re.compile(
    r"[\s,]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*=\s*"
    r'(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*(?=,|$)',
    re.ASCII,
)


@frozen
class Challenge:
    """One way to prove who asks: `scheme` in lower case, and its parameters."""

    scheme: str
    parameters: dict[str, str]


def challenges(header: str) -> tuple[Challenge, ...]:
    """The challenges of a WWW-Authenticate header (RFC 9110, 11.6.1), up to what is none."""
    found: list[Challenge] = []
    header = header[:LARGEST_HEADER]
    at = 0
    while at < len(header):
        if found and (match := _PARAMETER.match(header, at)):
            quoted, bare = match[2], match[3]
            value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else bare
            found[-1].parameters.setdefault(match[1].lower(), value)
        elif match := _SCHEME.match(header, at):
            found.append(Challenge(match[1].lower(), {}))
        else:
            break
        at = match.end()
    return tuple(found)


@frozen
class _Token:
    header: str
    until: float


class Authorizer:
    """Who we are to one registry.  `look_up` finds our credentials there, asked once."""

    def __init__(
        self,
        base: str,
        look_up: Callable[[], Awaitable[Credentials | None]],
        transport: Transport,
        settings: RegistrySettings,
    ) -> None:
        self._base = base
        self._look_up = look_up
        self._transport = transport
        self._settings = settings
        self._kept: dict[str, _Token] = {}
        self._lock = trio.Lock()  # of several that are refused at once, one asks for a token
        self._known: Credentials | None = None
        self._looked = False

    def header(self, scope: str) -> str | None:
        """What to send with a request for this scope, as far as it is known."""
        token = self._kept.get(scope)
        return token.header if token and trio.current_time() < token.until else None

    async def answer(self, headers: list[str], scope: str, sent: str | None) -> str:
        """What to send instead of `sent`, which was refused with these WWW-Authenticate headers.

        Raises Trouble where there is nothing better to send.
        """
        async with self._lock:
            now = self.header(scope)
            if now is not None and now != sent:
                return now
            self._kept.pop(scope, None)
            offered = [one for header in headers for one in challenges(header)]
            token = await self._meet(offered, scope, sent)
            self._kept[scope] = token
            return token.header

    async def _meet(self, offered: list[Challenge], scope: str, sent: str | None) -> _Token:
        for challenge in offered:
            if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
                return await self._bearer(challenge, scope)
        if any(challenge.scheme == "basic" for challenge in offered):
            return self._basic(await self._credentials(), sent)
        schemes = printable(", ".join(one.scheme for one in offered)) or "nothing we can read"
        raise Trouble(f"it wants to know who asks, by {schemes}; we can do Basic and Bearer")

    def _basic(self, known: Credentials | None, sent: str | None) -> _Token:
        if known is None or known.is_token:
            raise Trouble("it wants a user's name and password" + self._none(), hint=self._login())
        header = basic(known)
        if header == sent:
            raise self._wrong(known)
        return _Token(header, float("inf"))

    async def _bearer(self, challenge: Challenge, scope: str) -> _Token:
        realm = challenge.parameters["realm"]
        if why := refusal(realm, self._base, self._settings):
            raise Trouble(f"it sends us for a token to {printable(realm)}, which {why}")
        known = await self._credentials()
        if known is not None and not is_private(realm):
            known = None
        query = {"scope": _modest(challenge.parameters.get("scope"), scope)}
        if service := challenge.parameters.get("service"):
            query["service"] = service
        if known is not None and known.is_token:
            return await self._redeem(realm, query, known)
        if known is not None:
            query["account"] = known.user
        mark = "&" if "?" in realm else "?"
        address = f"{realm}{mark}{urlencode(query)}"
        return await self._fetch("GET", address, known, basic(known) if known else None, None)

    async def _redeem(self, realm: str, query: dict[str, str], known: Credentials) -> _Token:
        """An identity token is turned into one for this scope (OAuth 2, a refresh token)."""
        form = {
            **query,
            "grant_type": "refresh_token",
            "client_id": "supervise",
            "refresh_token": known.secret,
        }
        return await self._fetch("POST", realm, known, None, form)

    async def _fetch(
        self,
        method: str,
        address: str,
        known: Credentials | None,
        authorization: str | None,
        form: dict[str, str] | None,
    ) -> _Token:
        headers = {"Accept": "application/json"}
        async with self._transport.request(
            method, address, headers, authorization=authorization, form=form
        ) as answer:
            # 400 is how OAuth refuses a refresh token (RFC 6749, 5.2)
            if known is not None and answer.status in ((400, 401) if known.is_token else (401,)):
                raise self._wrong(known)
            if answer.status != 200:
                raise await answer.refusal("its token server")
            return _token(await answer.body(LARGEST_ANSWER))

    async def _credentials(self) -> Credentials | None:
        """Ours, unless others could read them on the way."""
        if not is_private(self._base):
            return None
        if not self._looked:
            self._known = await self._look_up()
            self._looked = True
        return self._known

    def _none(self) -> str:
        if not is_private(self._base):
            return ", which are not sent over plain HTTP"
        return ", and there are none for it"

    def _login(self) -> str:
        return "docker login or skopeo login" if is_private(self._base) else "use TLS"

    def _wrong(self, known: Credentials) -> Trouble:
        user = f" of {printable(known.user)}" if not known.is_token else ""
        return Trouble(
            f"the credentials{user} from {known.source} are not accepted",
            hint="log in again: docker login or skopeo login",
        )


def basic(known: Credentials) -> str:
    """The header of RFC 7617, in UTF-8."""
    return "Basic " + b64encode(f"{known.user}:{known.secret}".encode()).decode("ascii")


def _modest(asked: str | None, own: str) -> str:
    """The scope a server asks for, unless it is for more than to pull: then what we need."""
    for part in (asked or "").split():
        actions = part.rpartition(":")[2].split(",") if part.count(":") > 1 else []
        if not set(actions) <= {"pull"}:
            return own
    return asked if asked and asked.isprintable() and len(asked) < 4096 else own


def _token(body: bytes) -> _Token:
    """The token in a server's answer; it must be one that fits into a header."""
    try:
        answer: Any = json.loads(body)
    except (ValueError, RecursionError):
        raise Trouble("its token server's answer is no JSON") from None
    text = (answer.get("token") or answer.get("access_token")) if isinstance(answer, dict) else None
    if not isinstance(text, str) or not _TOKEN.fullmatch(text) or len(text) > LARGEST_TOKEN:
        raise Trouble("its token server's answer holds no token")
    life = answer.get("expires_in")
    if isinstance(life, bool) or not isinstance(life, int | float) or not life > 0:
        life = SHORTEST_LIFE
    # used for nine tenths of its life: clocks differ, and a request takes its time
    return _Token(f"Bearer {text}", trio.current_time() + 0.9 * min(life, LONGEST_LIFE))
