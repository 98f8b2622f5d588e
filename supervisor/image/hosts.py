"""Where images come from: registries, their mirrors, and what may be asked of which host.

Pure; may import attrs and `image.reference`.  What decides here: plain HTTP goes to loopback hosts,
and to those the user has named `insecure`; who we are is told over TLS or to loopback hosts only.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from attrs import field, frozen

from supervisor.image.reference import DOCKER_HUB, Remote

SCHEMES = ("https", "http")
_HOST = re.compile(r"[A-Za-z0-9_.-]+|[0-9A-Fa-f:.]+", re.ASCII)
_PORTS = {"https": 443, "http": 80}


@frozen
class RegistrySettings:
    """What the configuration says of registries.

    mirrors    of each registry, asked in this order before the registry itself
    insecure   hosts ("HOST" or "HOST:PORT") that may be spoken to in plain HTTP
    ca         a file of certificates (PEM) that are trusted beside the system's
    """

    mirrors: Mapping[str, tuple[str, ...]] = field(factory=dict)
    insecure: tuple[str, ...] = ()
    ca: Path | None = None


@frozen
class Endpoint:
    """One place to ask: a registry, or a mirror of it.

    schemes   in the order of trying; the second only where the host speaks no TLS at all
    prefix    of a mirror's repositories, "" or ending in "/"
    account   what the host is called in files of credentials
    """

    host: str
    schemes: tuple[str, ...]
    account: str
    prefix: str = ""

    def __str__(self) -> str:
        return self.host + (f"/{self.prefix.rstrip('/')}" if self.prefix else "")


def endpoints(remote: Remote, settings: RegistrySettings) -> tuple[Endpoint, ...]:
    """Where to ask for an image, in this order.  Raises ValueError for a mirror that is none."""
    mirrors = settings.mirrors.get(remote.registry, ())
    own = Endpoint(remote.host, _schemes(remote.host, settings), remote.registry)
    return (*(mirror(text, settings) for text in mirrors), own)


def mirror(text: str, settings: RegistrySettings) -> Endpoint:
    """[http[s]://]HOST[:PORT][/PREFIX].  Raises ValueError, also for plain HTTP unless allowed."""
    url = split(text if "://" in text else f"//{text}")
    host = url.netloc.lower()
    if url.scheme not in ("", *SCHEMES) or url.query or url.fragment:
        raise ValueError("is no address of a mirror: https://HOST[:PORT][/PREFIX]")
    allowed = _schemes(host, settings)
    if url.scheme == "http" and "http" not in allowed:
        raise ValueError(f'is plain HTTP: put "{host}" into `insecure` to allow it, or use https')
    schemes = (url.scheme,) if url.scheme else allowed
    path = url.path.strip("/")
    account = DOCKER_HUB if host == "registry-1.docker.io" else host
    return Endpoint(host, schemes, account, f"{path}/" if path else "")


def split(text: str) -> SplitResult:
    """The parts of an address.  Raises ValueError where it has no host, or a user in it."""
    if any(ord(char) <= 32 or ord(char) > 126 for char in text):
        raise ValueError("has spaces or characters in it that no address has")
    url = urlsplit(text)
    if not _HOST.fullmatch(url.hostname or "") or url.port == 0:  # asking for the port checks it
        raise ValueError("is no address of a host")
    if url.username is not None or url.password is not None:
        raise ValueError("has a user's name in it")
    return url


def _schemes(host: str, settings: RegistrySettings) -> tuple[str, ...]:
    plain = is_loopback(split(f"//{host}").hostname or "") or host in settings.insecure
    return SCHEMES if plain else SCHEMES[:1]


def origin(address: str) -> tuple[str, str, int]:
    """Scheme, host and port: what may see the credentials that were meant for it."""
    url = split(address)
    return url.scheme, (url.hostname or "").lower(), url.port or _PORTS.get(url.scheme, 0)


def is_private(address: str) -> bool:
    """Whether nobody else on the network reads what is sent there."""
    url = split(address)
    return url.scheme == "https" or is_loopback(url.hostname or "")


def is_loopback(host: str) -> bool:
    """Whether a host is this one, by its literal address or the name localhost."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def refusal(target: str, source: str, settings: RegistrySettings) -> str:
    """Why a server at `source` may not send us to `target`; "" where it may.

    A server elsewhere must not have us speak to services of this host or of its link (where
    clouds keep their secrets).  Only literal addresses can be judged before a name is resolved.
    """
    try:
        url = split(target)
        host = url.hostname or ""
    except ValueError as error:
        return str(error)
    if url.scheme not in SCHEMES:
        return "is neither http nor https"
    if url.scheme == "http" and "http" not in _schemes(url.netloc.lower(), settings):
        return "is plain HTTP"
    if _is_near(host) and not _is_near(split(source).hostname or ""):
        return "leads back to this host"
    return ""


def _is_near(host: str) -> bool:
    """Loopback, link-local or unspecified, also in the odd spellings inet_aton(3) takes."""
    if is_loopback(host) or host.lower().rstrip(".").rpartition(".")[2] == "localhost":
        return True
    address = _literal(host)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address is not None and (
        address.is_loopback or address.is_link_local or address.is_unspecified
    )


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host.rstrip(".")))
    except (OSError, UnicodeError):
        return None
