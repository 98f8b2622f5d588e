"""Who is told what: challenges, tokens, redirects, TLS; and servers that are after our secrets."""

from __future__ import annotations

import base64
import json
import ssl
from urllib.parse import parse_qs, urlsplit

import pytest
import trio

from supervisor.errors import ImageError
from supervisor.image.auth import Challenge, challenges
from supervisor.image.hosts import RegistrySettings
from supervisor.image.registry import open_registry
from supervisor.image.trouble import Patience
from tests.support import certificates
from tests.support.registry import Kept, Memory, always, at, sha256
from tests.support.web import Asked, Reply, serve

QUICK = Patience(connect=5, read=5, answer=10, whole=10, tries=2, first=0.01, bound=1)
DATA = b"a layer" * 1000
DIGEST = sha256(DATA)
SECRET = "Grüße:secret"
BASIC = "Basic " + base64.b64encode(f"ada:{SECRET}".encode()).decode()


@pytest.fixture(autouse=True)
def docker_config(tmp_path, monkeypatch):
    """A home of the test's own, without credentials and proxies."""
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return tmp_path / "config.json"


def log_in(config, host, **entry):
    entry = entry or {"auth": BASIC.removeprefix("Basic ")}
    config.write_text(json.dumps({"auths": {host: entry}}))


@pytest.fixture
def memory():
    found = Memory()
    found.add(DATA)
    found.tag("1", {"schemaVersion": 2})
    return found


async def pull(host, blobs=1, **settings):
    sink = Kept()
    async with open_registry(RegistrySettings(**settings), QUICK) as client:
        await client.manifest(at(host))
        for _ in range(blobs):
            sink.reset()
            await client.blob(at(host), DIGEST, len(DATA), sink)
    assert sink.finished


def authorizations(web):
    return [one.headers.get("authorization") for one in web.seen]


# --- Challenges ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ('Bearer realm="https://a/t",service="s"',
         [("bearer", {"realm": "https://a/t", "service": "s"})]),
        ('bearer Realm = "x" , SCOPE=y', [("bearer", {"realm": "x", "scope": "y"})]),
        ('Basic realm="a, b=\\"c\\"", Bearer realm=x',
         [("basic", {"realm": 'a, b="c"'}), ("bearer", {"realm": "x"})]),
        ("Negotiate, Basic", [("negotiate", {}), ("basic", {})]),
        ("Negotiate abc==, Basic", [("negotiate", {"abc": "="}), ("basic", {})]),
        ('Bearer realm="x', [("bearer", {})]),
        ('Bearer realm="x",realm="y"', [("bearer", {"realm": "x"})]),
        ("", []),
        ('="', []),
        (", , ,", []),
    ],
)  # fmt: skip
def test_challenges_are_read(header, found):
    assert challenges(header) == tuple(Challenge(scheme, rest) for scheme, rest in found)


@pytest.mark.parametrize("text", [" " * 90_000, 'Bearer a="' + "\\" * 90_000, "a " * 40_000])
def test_a_huge_challenge_takes_no_time(text):
    challenges(text)  # the suite's time limit is the assertion


# --- Basic ---------------------------------------------------------------------------------------


def wants_basic(asked: Asked) -> Reply | None:
    if asked.headers.get("authorization") == BASIC:
        return None
    return Reply(401, {"WWW-Authenticate": 'Basic realm="here"'})


async def test_basic_credentials_are_sent_once_they_are_asked_for(memory, docker_config):
    memory.faults = [wants_basic]
    with serve(memory) as web:
        log_in(docker_config, web.host)
        await pull(web.host, blobs=2)
    assert authorizations(web) == [None, BASIC, BASIC, BASIC]


async def test_wrong_credentials_are_told_with_where_they_are(memory, docker_config):
    memory.faults = [always(Reply(401, {"WWW-Authenticate": "Basic"}))]
    with serve(memory) as web:
        log_in(docker_config, web.host)
        with pytest.raises(ImageError, match="HTTP 401") as caught:
            await pull(web.host)
    assert authorizations(web) == [None, BASIC]
    assert SECRET not in str(caught.value)


async def test_without_credentials_the_way_out_is_told(memory):
    memory.faults = [wants_basic]
    with serve(memory) as web, pytest.raises(ImageError, match=r"there are none.*docker login"):
        await pull(web.host)


@pytest.mark.parametrize("header", ["Negotiate", "", 'Bearer service="x"'])
async def test_a_challenge_that_cannot_be_met_is_told(memory, header):
    memory.faults = [always(Reply(401, {"WWW-Authenticate": header} if header else {}))]
    with serve(memory) as web, pytest.raises(ImageError, match="we can do Basic and Bearer"):
        await pull(web.host)


# --- Tokens --------------------------------------------------------------------------------------


class Tokens:
    """A token server and a registry that takes its tokens; `life` is what it says of each."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.given: list[str] = []
        self.good: set[str] = set()
        self.life: object = 300
        self.reply: Reply | None = None
        self.scope: str | None = None
        self.realm = ""

    def token(self, asked: Asked) -> Reply:
        if self.reply is not None:
            return self.reply
        value = f"t0ken.{len(self.given)}"
        self.given.append(value)
        self.good.add(value)
        return Reply(200, {}, json.dumps({"token": value, "expires_in": self.life}).encode())

    def registry(self, asked: Asked) -> Reply:
        header = asked.headers.get("authorization", "")
        if header.removeprefix("Bearer ") in self.good:
            return self.memory(asked)
        scope = f',scope="{self.scope}"' if self.scope else ""
        challenge = f'Bearer realm="{self.realm}",service="the registry"{scope}'
        return Reply(401, {"WWW-Authenticate": challenge})


@pytest.fixture
def tokens(memory):
    return Tokens(memory)


@pytest.fixture
def served(tokens):
    with serve(tokens.token) as server, serve(tokens.registry) as registry:
        tokens.realm = f"http://{server.host}/token?x=1"
        yield server, registry


def query(asked):
    return {key: value for key, (value,) in parse_qs(urlsplit(asked.path).query).items()}


async def test_anybodys_token_is_fetched_once_and_used_for_all(tokens, served):
    server, registry = served
    await pull(registry.host, blobs=3)
    (asked,) = server.seen
    wanted = {"x": "1", "scope": "repository:a/b:pull", "service": "the registry"}
    assert query(asked) == wanted and "authorization" not in asked.headers
    assert authorizations(registry) == [None, *["Bearer t0ken.0"] * 4]


async def test_with_credentials_the_token_is_ours(tokens, served, docker_config):
    server, registry = served
    log_in(docker_config, registry.host)
    await pull(registry.host)
    (asked,) = server.seen
    assert query(asked)["account"] == "ada" and asked.headers["authorization"] == BASIC
    assert BASIC not in authorizations(registry)  # which gets the token only


async def test_an_identity_token_is_exchanged(tokens, served, docker_config):
    server, registry = served
    log_in(docker_config, registry.host, identitytoken="re=fresh&me")
    await pull(registry.host)
    (asked,) = server.seen
    form = parse_qs(asked.body.decode())
    assert asked.method == "POST" and form["refresh_token"] == ["re=fresh&me"]
    assert form["grant_type"] == ["refresh_token"] and form["scope"] == ["repository:a/b:pull"]
    assert "fresh" not in asked.path


async def test_a_token_that_is_no_longer_taken_is_fetched_anew(tokens, served):
    server, registry = served
    async with open_registry(RegistrySettings(), QUICK) as client:
        await client.manifest(at(registry.host))
        tokens.good.clear()
        await client.blob(at(registry.host), DIGEST, len(DATA), Kept())
    assert len(server.seen) == 2


async def test_several_that_are_refused_at_once_fetch_one_token(tokens, served):
    server, registry = served
    async with (
        open_registry(RegistrySettings(), QUICK) as client,
        trio.open_nursery() as nursery,
    ):
        for _ in range(3):
            nursery.start_soon(client.blob, at(registry.host), DIGEST, len(DATA), Kept())
    assert len(server.seen) == 1


async def test_a_token_near_its_end_is_not_used(tokens, served):
    server, registry = served
    tokens.life = 1e-9
    await pull(registry.host)
    assert len(server.seen) == 2


async def test_no_more_is_asked_for_than_to_pull(tokens, served):
    server, registry = served
    tokens.scope = "repository:a/b:pull,push repository:secret/x:pull"
    await pull(registry.host)
    assert query(server.seen[0])["scope"] == "repository:a/b:pull"
    tokens.scope = "repository:project/a/b:pull"  # some call it otherwise
    await pull(registry.host)
    assert query(server.seen[1])["scope"] == tokens.scope
    tokens.scope = "aws"
    await pull(registry.host)
    assert query(server.seen[2])["scope"] == "aws"


async def test_wrong_credentials_at_the_token_server_are_told(tokens, served, docker_config):
    server, registry = served
    log_in(docker_config, registry.host)
    tokens.reply = Reply(401)
    with pytest.raises(ImageError, match=rf"credentials of ada from {docker_config} are not"):
        await pull(registry.host)
    assert len(server.seen) == 1
    log_in(docker_config, registry.host, identitytoken="old")
    tokens.reply = Reply(400, {}, b'{"error": "invalid_grant"}')
    with pytest.raises(ImageError, match=rf"credentials from {docker_config} are not"):
        await pull(registry.host)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (Reply(200, {}, b"<html>"), "no JSON"),
        (Reply(200, {}, b"[]"), "no token"),
        (Reply(200, {}, b'{"token": ""}'), "no token"),
        (Reply(200, {}, b'{"token": 7}'), "no token"),
        (Reply(200, {}, b'{"token": "a\\r\\nX-Evil: 1"}'), "no token"),
        (Reply(200, {}, json.dumps({"token": "x" * 100_000}).encode()), "no token"),
        (Reply(200, {}, b" " * 65536, endless=True), "larger than"),
        (Reply(200, {}, b'{"token": "of-nobody"}'), "does not let us read it"),
        (Reply(500), "HTTP 500"),
        (Reply(302, {"Location": "ftp://x/"}), "neither http nor https"),
        (Reply(302, {}), "names no address"),
    ],
)
async def test_a_token_server_that_lies_gets_nowhere(tokens, served, reply, why):
    _server, registry = served
    tokens.reply = reply
    with pytest.raises(ImageError, match=why):
        await pull(registry.host)
    assert len(registry.seen) <= 4  # no loop


@pytest.mark.parametrize(
    "realm",
    ["http://192.0.2.1/token", "ftp://192.0.2.1/", "//x", "https://user@192.0.2.1/", "x y"],
)
async def test_a_realm_that_others_could_read_gets_nothing(tokens, served, realm, docker_config):
    server, registry = served
    log_in(docker_config, registry.host)
    tokens.realm = realm
    with pytest.raises(ImageError, match="sends us for a token to"):
        await pull(registry.host)
    assert server.seen == []


# --- Redirects -----------------------------------------------------------------------------------


async def test_blobs_may_be_elsewhere_but_credentials_stay(memory, docker_config):
    """As registries do that keep blobs in a cloud's storage."""
    with serve(memory) as storage:

        def registry(asked: Asked) -> Reply:
            refused = wants_basic(asked)
            if refused is None and "/blobs/" in asked.path:
                return Reply(307, {"Location": f"http://{storage.host}{asked.path}"})
            return refused or memory(asked)

        with serve(registry) as web:
            log_in(docker_config, web.host)
            await pull(web.host)
    assert authorizations(storage) == [None]
    assert authorizations(web)[1:] == [BASIC, BASIC]


async def test_a_part_is_asked_for_where_a_redirect_leads(memory):
    with serve(memory) as storage:

        def elsewhere(asked: Asked) -> Reply:
            return Reply(302, {"Location": f"http://{storage.host}{asked.path}"})

        with serve(elsewhere) as web:
            sink = Kept(bytearray(DATA[:10]))
            async with open_registry(RegistrySettings(), QUICK) as client:
                await client.blob(at(web.host), DIGEST, len(DATA), sink)
    assert sink.data == DATA and storage.seen[0].headers["range"] == "bytes=10-"


async def test_on_the_same_host_a_redirect_keeps_the_credentials(memory, docker_config):
    def registry(asked: Asked) -> Reply:
        if asked.path.startswith("/moved"):
            return wants_basic(asked) or memory(
                Asked(asked.method, asked.path.removeprefix("/moved"), asked.headers)
            )
        return Reply(301, {"Location": f"/moved{asked.path}"})

    with serve(registry) as web:
        log_in(docker_config, web.host)
        await pull(web.host)


async def test_a_host_that_a_redirect_leads_to_cannot_ask_who_we_are(memory, docker_config):
    asking = Reply(401, {"WWW-Authenticate": 'Basic realm="give"'})
    with serve(lambda _: asking) as thief:
        there = Reply(302, {"Location": f"http://{thief.host}/v2/"})
        with serve(lambda _: there) as web:
            log_in(docker_config, web.host)
            with pytest.raises(ImageError, match="wants credentials, which gets none"):
                await pull(web.host)
        assert authorizations(thief) == [None]


async def test_redirects_have_an_end(memory):
    with serve(lambda asked: Reply(302, {"Location": asked.path})) as web:
        with pytest.raises(ImageError, match="more than 5 redirects"):
            await pull(web.host)
        assert len(web.seen) == 6


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("http://192.0.2.1/", "plain HTTP"),
        ("file:///etc/passwd", "no address of a host"),
        ("https://u:p@192.0.2.1/", "a user's name"),
        ("https://[", "no address of a host"),
        ("http://a b/", "no address of a host"),
    ],
)
async def test_a_redirect_to_where_nobody_should_go_is_not_followed(location, why):
    with serve(lambda _: Reply(302, {"Location": location})) as web:
        with pytest.raises(ImageError, match=why):
            await pull(web.host)
        assert len(web.seen) == 1


# --- TLS -----------------------------------------------------------------------------------------


@pytest.fixture
def tls(tmp_path):
    return certificates.make(tmp_path)


async def test_a_certificate_that_nobody_trusts_is_refused(memory, tls, docker_config):
    """Also on loopback, and nothing is tried in plain HTTP then."""
    with serve(memory, tls.server()) as web:
        log_in(docker_config, web.host)
        with pytest.raises(ImageError, match=r"is not trusted: self.signed certificate \(name its"):
            await pull(web.host, insecure=(web.host,))
        assert web.seen == []


async def test_it_is_accepted_when_it_is_named(memory, tls, monkeypatch):
    with serve(memory, tls.server()) as web:
        await pull(web.host, ca=tls.certificate)
        monkeypatch.setenv("SSL_CERT_FILE", str(tls.certificate))
        await pull(web.host)


async def test_another_certificate_does_not_help(memory, tls, tmp_path):
    other = certificates.make(tmp_path, "other")
    with serve(memory, tls.server()) as web, pytest.raises(ImageError, match="is not trusted"):
        await pull(web.host, ca=other.certificate)


async def test_files_of_certificates_that_are_none_are_told(memory, tmp_path, monkeypatch):
    (tmp_path / "empty.pem").write_text("nothing")
    for path in (tmp_path / "empty.pem", tmp_path / "none.pem"):
        with serve(memory) as web, pytest.raises(ImageError, match=f"^{path}: "):
            await pull(web.host, ca=path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with serve(memory) as web, pytest.raises(ImageError, match="SSL_CERT_FILE names it"):
        await pull(web.host)


async def test_who_has_spoken_tls_is_not_spoken_to_in_plain(memory, tls):
    """Somebody who takes over the port in between gets nothing."""
    with serve(memory, tls.server()) as web:
        async with open_registry(RegistrySettings(ca=tls.certificate), QUICK) as client:
            await client.manifest(at(web.host))
            web.tls = None
            web.hang_up()
            with pytest.raises(ImageError):
                await client.manifest(at(web.host, "2"))
    assert len(web.seen) == 1


# --- Proxies -------------------------------------------------------------------------------------


async def test_a_proxy_is_not_asked_for_hosts_of_this_machine(memory, monkeypatch, docker_config):
    with serve(lambda _: Reply(502)) as proxy, serve(memory) as web:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://{proxy.host}")
        await pull(web.host)
        assert proxy.seen == []
        with pytest.raises(ImageError, match="proxy refuses"):
            await pull("registry.invalid")
        assert {(one.method, one.path) for one in proxy.seen} == {
            ("CONNECT", "registry.invalid:443")
        }


async def test_a_proxy_that_cannot_be_is_told(monkeypatch):
    monkeypatch.setenv("https_proxy", "ftp://x")
    with pytest.raises(ImageError, match="the proxy cannot be used"):
        await pull("registry.invalid")


async def test_nothing_secret_goes_out_in_plain_http(memory, monkeypatch, docker_config):
    """A host that is not loopback, spoken to by way of a proxy that plays its part."""
    memory.faults = [wants_basic]
    with serve(lambda asked: memory(Asked(asked.method, urlsplit(asked.path).path, asked.headers))
               if asked.method != "CONNECT" else Reply(502)) as proxy:  # fmt: skip
        monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
        log_in(docker_config, "registry.test")
        mirrors = {"hub.test": ("http://registry.test",)}
        with pytest.raises(ImageError, match="not sent over plain HTTP"):
            async with open_registry(
                RegistrySettings(mirrors=mirrors, insecure=("registry.test",)), QUICK
            ) as client:
                await client.manifest(at("hub.test"))
        assert proxy.seen and set(authorizations(proxy)) == {None}


def test_our_context_checks_names_and_certificates():
    from supervisor.image.transport import trust

    context = trust(None)
    assert context.check_hostname and context.verify_mode is ssl.CERT_REQUIRED
