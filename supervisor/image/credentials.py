"""Who we are to a registry, as docker(1), podman(1) and skopeo(1) keep it.

May import: `errors`, `image.hosts`, `image.reference`, `image.trouble`, trio.

Looked for in this order, the first that knows the registry decides:

    $REGISTRY_AUTH_FILE   alone, if it is set
    $XDG_RUNTIME_DIR/containers/auth.json   (/run/containers/UID/auth.json without that variable)
    $XDG_CONFIG_HOME/containers/auth.json   (~/.config without that variable)
    $DOCKER_CONFIG/config.json              (~/.docker without that variable)

and in a file: `credHelpers` for the registry, `credsStore`, `auths`.  A file that cannot be read
or understood is an error: being somebody else without a word would only make for riddles.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from base64 import b64decode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import trio
from attrs import field, frozen

from supervisor.errors import ImageError
from supervisor.image.reference import DOCKER_HUB
from supervisor.image.trouble import printable

LARGEST_FILE = 1024 * 1024
LARGEST_ANSWER = 256 * 1024
DOCKER_HUB_KEY = "https://index.docker.io/v1/"
TOKEN_USER = "<token>"
NOT_FOUND = "credentials not found in native keychain"
"""What every credential helper says where it knows nothing (docker-credential-helpers)."""
_HELPER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)


@frozen
class Credentials:
    """A user's name and password, or (`is_token`) an identity token.  `source`: where they are."""

    user: str
    secret: str = field(repr=False)
    source: str
    is_token: bool = False


@frozen
class Place:
    """What decides where credentials are looked for."""

    environment: Mapping[str, str]
    uid: int

    @property
    def files(self) -> Iterator[Path]:
        """In the order of asking.  A variable that is no absolute path is ignored."""
        alone = self._path("REGISTRY_AUTH_FILE")
        if alone is not None:
            yield alone
            return
        home = self._path("HOME")
        runtime = self._path("XDG_RUNTIME_DIR")
        yield (runtime / "containers" if runtime else Path(f"/run/containers/{self.uid}")) / (
            "auth.json"
        )
        config = self._path("XDG_CONFIG_HOME") or (home / ".config" if home else None)
        if config is not None:
            yield config / "containers/auth.json"
        docker = self._path("DOCKER_CONFIG") or (home / ".docker" if home else None)
        if docker is not None:
            yield docker / "config.json"

    def _path(self, variable: str) -> Path | None:
        text = self.environment.get(variable, "")
        return Path(text) if text.startswith("/") else None


def here() -> Place:
    """Of this process."""
    return Place(dict(os.environ), os.geteuid())


async def find(registry: str, repository: str, place: Place, patience: float) -> Credentials | None:
    """Ours for a repository of a registry; None where nobody knows any.

    A credential helper has `patience` seconds.  Raises ImageError for a file or a helper that is
    not in order.
    """
    for path in place.files:
        config = await trio.to_thread.run_sync(read, path)
        helper = helper_for(config, registry, path)
        if helper is not None:
            found = await ask(helper, registry, place.environment, patience)
            if found is not None:
                return found
        found = written(config, registry, repository, path)
        if found is not None:
            return found
    return None


def read(path: Path) -> dict[str, Any]:
    """A file of credentials; empty where there is none.  Raises ImageError."""
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ImageError(f"cannot be read: {_strerror(error)}", str(path)) from error
    if len(raw) > LARGEST_FILE:
        raise ImageError(f"is larger than {LARGEST_FILE} bytes", str(path))
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"is no JSON: {printable(str(error))}", str(path)) from error
    if not isinstance(config, dict):
        raise ImageError("is no JSON object", str(path))
    return config


def _strerror(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def helper_for(config: Mapping[str, Any], registry: str, path: Path) -> str | None:
    """The helper that a file names for a registry."""
    helpers = config.get("credHelpers") or {}
    if not isinstance(helpers, dict):
        raise ImageError("credHelpers is no object", str(path))
    by_host = {_host(str(key)): value for key, value in helpers.items()}
    name = by_host.get(registry) or config.get("credsStore") or None
    if name is None:
        return None
    if not isinstance(name, str) or not _HELPER.fullmatch(name):
        text = printable(str(name))
        raise ImageError(f'"{text}" is no name of a credential helper', str(path))
    return name


def written(
    config: Mapping[str, Any], registry: str, repository: str, path: Path
) -> Credentials | None:
    """What stands in a file's `auths`, for the longest part of "REGISTRY/REPOSITORY" it names."""
    auths = config.get("auths") or {}
    if not isinstance(auths, dict):
        raise ImageError("auths is no object", str(path))
    by_key = {_host(str(key)): value for key, value in auths.items()}
    key = f"{registry}/{repository}"
    while key:
        found = _entry(by_key.get(key), key, path)
        if found is not None:
            return found
        key = key.rpartition("/")[0]
    return None


def _host(key: str) -> str:
    """A key without what old versions of docker(1) put around the host's name."""
    bare = key.partition("://")[2] or key
    bare = re.sub(r"/(v[12]/?)?$", "", bare).lower()
    return DOCKER_HUB if bare in ("index.docker.io", "registry-1.docker.io") else bare


def _entry(entry: Any, key: str, path: Path) -> Credentials | None:
    """An entry's credentials; one that is empty stands for those in the `credsStore`."""
    if entry is None:
        return None
    where = f"{path}: auths of {printable(key)}"
    if not isinstance(entry, dict):
        raise ImageError("is no object", where)
    token = entry.get("identitytoken")
    if token:
        return Credentials(TOKEN_USER, _text(token, where), str(path), is_token=True)
    if not entry.get("auth"):
        user, secret = entry.get("username"), entry.get("password")
        return Credentials(_text(user, where), _text(secret, where), str(path)) if user else None
    try:
        decoded = b64decode(_text(entry["auth"], where), validate=True).decode()
    except ValueError:
        raise ImageError("auth is not in base64", where, hint="docker login") from None
    user, colon, secret = decoded.rstrip("\0").partition(":")
    if not colon or not user:
        raise ImageError('auth holds no "user:password"', where, hint="docker login")
    return Credentials(user, secret, str(path))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ImageError("holds something that is no text", where)
    return value


async def ask(
    helper: str, registry: str, environment: Mapping[str, str], patience: float
) -> Credentials | None:
    """Run `docker-credential-HELPER get`: the registry on stdin, JSON on stdout.

    It speaks to the user, if it must, on our stderr.  Raises ImageError.
    """
    program = f"docker-credential-{helper}"
    server = DOCKER_HUB_KEY if registry == DOCKER_HUB else registry
    try:
        with trio.fail_after(patience):
            status, output = await _run(program, server.encode(), environment)
    except trio.TooSlowError:
        raise ImageError(f"did not answer within {patience:g} s", program) from None
    except OSError as error:
        hint = "credHelpers or credsStore of config.json names it"
        what = f"cannot be run: {_strerror(error)}"
        raise ImageError(what, program, hint=hint) from error
    text = output.decode(errors="replace").strip()
    if status != 0:
        if text == NOT_FOUND:
            return None
        said = f": {printable(text)}" if text else ""
        raise ImageError(f"failed with status {status}{said}", program)
    return _answer(text, program)


def _answer(text: str, program: str) -> Credentials | None:
    try:
        answer = json.loads(text)
        user, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError, RecursionError):
        # its answer holds a secret, so it is not shown
        raise ImageError("its answer is no JSON with Username and Secret", program) from None
    if not isinstance(user, str) or not isinstance(secret, str):
        raise ImageError("its answer is no JSON with Username and Secret", program)
    if not secret:
        return None  # some answer so where they know nothing
    return Credentials(user, secret, program, is_token=user == TOKEN_USER)


async def _run(program: str, question: bytes, environment: Mapping[str, str]) -> tuple[int, bytes]:
    """Its status and the bounded output; whatever happens, it has ended when this returns."""
    process = await trio.lowlevel.open_process(
        [program, "get"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(environment),
        start_new_session=False,
    )
    output = bytearray()
    try:
        assert process.stdin is not None and process.stdout is not None
        try:
            await process.stdin.send_all(question)
        except trio.BrokenResourceError:
            pass  # one that reads nothing may know the answer all the same
        await process.stdin.aclose()
        async for chunk in process.stdout:
            output += chunk
            if len(output) > LARGEST_ANSWER:
                raise ImageError(f"its answer is larger than {LARGEST_ANSWER} bytes", program)
        return await process.wait(), bytes(output)
    finally:
        with trio.CancelScope(shield=True):
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    await stream.aclose()
            await process.wait()
