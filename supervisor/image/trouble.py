"""What goes wrong with a server, whether another try may help, and how long to wait before it.

May import: `model.units`, trio (its clock).  Texts that came from a server are made printable here,
before anybody shows them.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import trio
from attrs import frozen

from supervisor.model.units import duration_text

LONGEST_TEXT = 300
_MANY = 429
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""Answers that another try may change (RFC 9110, 6585)."""


class Trouble(Exception):
    """One request that failed: what a person is told, and whether another may do better.

    wait     seconds after which the server wants to be asked again, None where it did not say
    restart  what has come of a blob so far is no good either
    """

    def __init__(
        self,
        text: str,
        *,
        again: bool = False,
        wait: float | None = None,
        hint: str = "",
        restart: bool = False,
    ) -> None:
        super().__init__(text)
        self.text = text
        self.again = again
        self.wait = wait
        self.hint = hint
        self.restart = restart


class NoTls(Trouble):
    """A host that speaks no TLS: plain HTTP may be tried where that is allowed."""


@frozen
class Patience:
    """How long what may take.  All in seconds but `tries`, `slowest` and `step`.

    connect, read     for a connection; for each read of an answer
    answer            for the head of an answer, redirects included
    window, slowest   an answer's body must bring `slowest` bytes a second within each window
    whole             for the whole of a short answer
    tries             in a row that bring nothing, before it is given up
    step              bytes that count as a success between two failures
    first, longest    the waits between tries: doubled from the first to the longest
    bound             the longest wait that a server may ask for
    helper            for a credential helper
    """

    connect: float = 15
    read: float = 30
    answer: float = 60
    window: float = 60
    slowest: float = 512
    whole: float = 60
    tries: int = 5
    step: int = 64 * 1024
    first: float = 0.5
    longest: float = 20
    bound: float = 120
    helper: float = 60


def pause(trouble: Trouble, failures: int, patience: Patience) -> float:
    """Seconds to wait after so many failures in a row.

    Half of it is left to chance, so that many who failed at once do not come back at once.
    Raises the trouble itself where the server wants to be left alone for longer than we wait.
    """
    if trouble.wait is not None and trouble.wait > patience.bound:
        raise trouble
    backoff: float = min(patience.first * 2 ** (failures - 1), patience.longest)
    return (trouble.wait or 0.0) + backoff * random.uniform(0.5, 1.0)


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """The seconds in a Retry-After header, a number or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max((when - (now or datetime.now(UTC))).total_seconds(), 0.0)


def refused(status: int, headers: Mapping[str, str], body: bytes, who: str) -> Trouble:
    """What an answer says that is not the one that was asked for."""
    said = message(body)
    if status == _MANY:
        return _too_many(headers, said, who)
    if status in (401, 403):
        return Trouble(
            f"{who} does not let us read it (HTTP {status}{said})",
            hint="the name may be wrong, or it takes a login: docker login or skopeo login",
        )
    if status == 404:
        return Trouble(f"{who} has no such thing (HTTP 404{said})")
    wait = retry_after(headers.get("retry-after")) if status in _PASSING else None
    text = f"{who} answered HTTP {status}{said}" + _asked(wait)
    return Trouble(text, again=status in _PASSING, wait=wait)


def _too_many(headers: Mapping[str, str], said: str, who: str) -> Trouble:
    """Docker Hub tells in headers how much is allowed, to whom; others only say when to come."""
    wait = retry_after(headers.get("retry-after"))
    limit, window = _quota(headers.get("ratelimit-limit"))
    left, _ = _quota(headers.get("ratelimit-remaining"))
    if limit is None:
        return Trouble(
            f"{who} has had too many requests (HTTP 429{said})" + _asked(wait),
            again=True,
            wait=wait,
        )
    source = printable(headers.get("docker-ratelimit-source", ""))
    whom = f" for {source}" if source else ""
    within = f" in {duration_text(window)}" if window else ""
    return Trouble(
        f"{who} allows {limit} pulls{within}{whom}, and none is left" + _asked(wait),
        again=bool(left) or wait is not None,  # without a time, asking again only counts again
        wait=wait,
        hint="log in (docker login), or name a mirror in [images]",
    )


def _asked(wait: float | None) -> str:
    return "" if wait is None else f", to be asked again in {duration_text(math.ceil(wait))}"


def _quota(value: str | None) -> tuple[int | None, int]:
    """ "100;w=21600": how many, in how many seconds (0: it does not say)."""
    count, _, rest = (value or "").partition(";")
    window = rest.strip().removeprefix("w=")
    if not _is_number(count.strip()):
        return None, 0
    return int(count), int(window) if _is_number(window) else 0


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def message(body: bytes) -> str:
    """ ": what the server says", from the errors of the distribution specification; or ""."""
    try:
        errors = json.loads(body)["errors"]
        texts = [error.get("message") or error.get("code") for error in errors[:3]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    said = "; ".join(printable(text) for text in texts if isinstance(text, str) and text)
    return f": {said}" if said else ""


def printable(text: str) -> str:
    """What a stranger wrote, fit for a terminal: no control characters, and not too long."""
    plain = "".join(char if char.isprintable() else "?" for char in text[: LONGEST_TEXT + 1])
    return plain if len(plain) <= LONGEST_TEXT else plain[:LONGEST_TEXT] + "..."


class Pace:
    """Notices a body that comes so slowly that it would hold us for ever."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._since = trio.current_time()
        self._count = 0

    def came(self, count: int) -> None:
        """Raises Trouble at the end of a window in which too little has come."""
        self._count += count
        elapsed = trio.current_time() - self._since
        if elapsed < self._patience.window:
            return
        if self._count < self._patience.slowest * elapsed:
            raise Trouble(f"only {self._count} bytes came in {elapsed:.0f} s", again=True)
        self._since = trio.current_time()
        self._count = 0
