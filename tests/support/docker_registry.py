"""Debian's docker-registry on loopback, with a configuration and a directory of a test's own.

Images come into it by skopeo(1) from layouts that umoci(1) makes, as a user's would.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from tests.support import host
from tests.support.certificates import Certificate
from tests.support.web import Asked, Reply

USER, PASSWORD = "ali", "open sesame"
HTPASSWD = f"{USER}:$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n"
"""The password by bcrypt, the one form that docker-registry takes."""
SERVICE, ISSUER = "the registry", "the token server"
_LISTENING = re.compile(r"listening on (127\.0\.0\.1:\d+)")


def need_tools() -> None:
    """Skip or fail where what these tests take is not installed."""
    for tool in ("docker-registry", "skopeo", "umoci"):
        if which(tool) is None:
            host.miss("tools", f"needs {tool}: apt-get install {tool}")


@contextmanager
def docker_registry(
    directory: Path, *, tls: Certificate | None = None, auth: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """The host and port of a running one; `auth` is that part of its configuration."""
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "storage")}},
        "http": {"addr": "127.0.0.1:0"},
    }
    if tls is not None:
        config["http"]["tls"] = {"certificate": str(tls.certificate), "key": str(tls.key)}
    if auth is not None:
        config["auth"] = auth
    path = directory / "registry.yml"
    path.write_text(json.dumps(config))  # JSON is YAML
    log = directory / "registry.log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            ["docker-registry", "serve", path],
            stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
            env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
        ) as process,
    ):  # fmt: skip
        try:
            yield _address(process, log)
        finally:
            process.kill()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where it listens: the kernel chose the port, and its log tells."""
    deadline = time.monotonic() + 30 * host.SLOWNESS
    while time.monotonic() < deadline:
        if match := _LISTENING.search(log.read_text()):
            return match[1]
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        break
    raise AssertionError(f"docker-registry does not listen:\n{log.read_text()}")


def layout(directory: Path, layers: Sequence[Path], config: Sequence[str] = ()) -> Path:
    """An OCI layout with one image, `made`, of these tar files."""
    path = directory / "layout"
    image = f"{path}:made"
    _run("umoci", "init", "--layout", path)
    _run("umoci", "new", "--image", image)
    for layer in layers:
        _run("umoci", "raw", "add-layer", "--image", image, layer)
    if config:
        _run("umoci", "config", "--image", image, *config)
    return path


def push(source: str, registry: str, name: str, *, login: bool = False) -> None:
    """Copy an image (as skopeo names it) into a registry."""
    credentials = ("--dest-creds", f"{USER}:{PASSWORD}") if login else ()
    _run(
        "skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", *credentials,
        source, f"docker://{registry}/{name}",
    )  # fmt: skip


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{command}: {done.stderr}"


def htpasswd(directory: Path) -> dict[str, Any]:
    """The `auth` of a registry that knows USER by PASSWORD."""
    path = directory / "htpasswd"
    path.write_text(HTPASSWD)
    return {"htpasswd": {"realm": "test", "path": str(path)}}


@dataclass
class TokenServer:
    """What signs tokens that docker-registry takes (its `auth: token`), for USER or for anybody."""

    certificate: Certificate
    anybody: bool = False
    life: int = 60

    def auth(self, realm: str) -> dict[str, Any]:
        bundle = str(self.certificate.certificate)
        return {
            "token": {
                "realm": realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": bundle,
            }
        }  # fmt: skip

    def __call__(self, asked: Asked) -> Reply:
        known = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if not self.anybody and asked.headers.get("authorization") != known:
            return Reply(401)
        query = parse_qs(urlsplit(asked.path).query)
        (scope,) = query.get("scope", [""])
        assert query["service"] == [SERVICE]
        body = {"token": self.token(scope), "expires_in": self.life}
        return Reply(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def token(self, scope: str) -> str:
        """A JSON Web Token as docker-registry reads it: ES256, the certificate in its head."""
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        now = int(time.time())
        der = base64.b64encode(self.certificate.der).decode()
        head = {"typ": "JWT", "alg": "ES256", "x5c": [der]}
        claims = {
            "iss": ISSUER, "aud": SERVICE, "sub": USER, "iat": now, "nbf": now - 60,
            "exp": now + self.life, "jti": str(now),
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }  # fmt: skip
        text = f"{_part(json.dumps(head).encode())}.{_part(json.dumps(claims).encode())}"
        signed = self.certificate.private.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
        r, s = utils.decode_dss_signature(signed)
        return f"{text}.{_part(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def relay(registry: str) -> Any:
    """Answers as the registry behind it does: what stands between, and may do it faultily."""

    def answer(asked: Asked) -> Reply:
        connection = http.client.HTTPConnection(registry, timeout=30)
        headers = {k: v for k, v in asked.headers.items() if k not in ("host", "connection")}
        try:
            connection.request(asked.method, asked.path, headers=headers)
            found = connection.getresponse()
            kept = {
                name: value
                for name, value in found.getheaders()
                if name.lower() not in ("connection", "transfer-encoding", "date")
            }
            return Reply(found.status, kept, found.read())
        finally:
            connection.close()

    return answer
