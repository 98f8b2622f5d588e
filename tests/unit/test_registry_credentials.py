"""Where our credentials are found, and helpers that do not keep to their protocol."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from supervisor.errors import ImageError
from supervisor.image.credentials import Credentials, Place, find


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An environment with a directory of programs of its own."""
    (tmp_path / "bin").mkdir()
    return tmp_path


@pytest.fixture
def place(home):
    environment = {"HOME": str(home), "PATH": f"{home}/bin:/usr/bin:/bin"}
    environment["XDG_RUNTIME_DIR"] = str(home / "run")
    return Place(environment, 1000)


def write(path: Path, document: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def helper(home: Path, name: str, script: str) -> str:
    path = write(home / f"bin/docker-credential-{name}", f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path.name


async def looked_up(place, registry="r.example", repository="a/b", patience=20.0):
    return await find(registry, repository, place, patience)


async def test_nobody_is_known_without_a_file(place):
    assert await looked_up(place) is None


@pytest.mark.parametrize(
    "key",
    ["r.example", "https://r.example", "https://r.example/v1/", "https://r.example/v2/",
     "R.example/", "r.example/a", "r.example/a/b"],
)  # fmt: skip
async def test_docker_writes_hosts_in_many_ways(home, place, key):
    path = write(home / ".docker/config.json", {"auths": {key: {"auth": encoded("ada:x:y\0\0")}}})
    assert await looked_up(place) == Credentials("ada", "x:y", str(path))
    assert await looked_up(place, "s.example") is None


async def test_docker_hub_is_known_by_its_old_address(home, place):
    key = "https://index.docker.io/v1/"
    write(home / ".docker/config.json", {"auths": {key: {"auth": encoded("ada:x")}}})
    found = await looked_up(place, "docker.io", "library/debian")
    assert found is not None and found.user == "ada"


async def test_the_longest_part_of_a_name_decides(home, place):
    write(home / "run/containers/auth.json", {"auths": {
        "r.example": {"auth": encoded("host:x")},
        "r.example/a": {"auth": encoded("space:x")},
        "r.example/a/bc": {"auth": encoded("other:x")},
    }})  # fmt: skip
    assert (await looked_up(place)).user == "space"
    assert (await looked_up(place, repository="d")).user == "host"


async def test_files_are_asked_in_their_order(home, place):
    def auths(user):
        return {"auths": {"r.example": {"auth": encoded(f"{user}:x")}}}

    write(home / ".docker/config.json", auths("docker"))
    assert (await looked_up(place)).user == "docker"
    write(home / ".config/containers/auth.json", auths("config"))
    assert (await looked_up(place)).user == "config"
    write(home / "run/containers/auth.json", auths("runtime"))
    assert (await looked_up(place)).user == "runtime"
    alone = {**place.environment, "REGISTRY_AUTH_FILE": str(write(home / "x", auths("alone")))}
    assert (await looked_up(Place(alone, 1000))).user == "alone"
    alone["REGISTRY_AUTH_FILE"] = str(home / "none")
    assert await looked_up(Place(alone, 1000)) is None
    write(home / "dc/config.json", auths("variable"))
    other = {"DOCKER_CONFIG": str(home / "dc"), "HOME": str(home), "XDG_CONFIG_HOME": "/none"}
    other["XDG_RUNTIME_DIR"] = "/none"
    assert (await looked_up(Place(other, 1000))).user == "variable"


def test_a_variable_that_is_no_path_is_ignored():
    files = list(Place({"HOME": "relative", "DOCKER_CONFIG": "./x"}, 7).files)
    assert files == [Path("/run/containers/7/auth.json")]


async def test_other_forms_of_an_entry(home, place):
    path = home / ".docker/config.json"
    write(path, {"auths": {"r.example": {"identitytoken": "t", "auth": encoded("<token>:")}}})
    assert await looked_up(place) == Credentials("<token>", "t", str(path), is_token=True)
    write(path, {"auths": {"r.example": {"username": "ada", "password": "x"}}})
    assert await looked_up(place) == Credentials("ada", "x", str(path))
    write(path, {"auths": {"r.example": {}}})  # it stands for what the credsStore has
    assert await looked_up(place) is None


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "is no JSON object"),
        (" " * (1024 * 1024 + 1), "is larger than"),
        ({"auths": []}, None),
        ({"auths": [1]}, "auths is no object"),
        ({"auths": {"r.example": "x"}}, "is no object"),
        ({"auths": {"r.example": {"auth": "*"}}}, "not in base64"),
        ({"auths": {"r.example": {"auth": 7}}}, "no text"),
        ({"auths": {"r.example": {"auth": encoded("nobody")}}}, 'no "user:password"'),
        ({"auths": {"r.example": {"auth": encoded(":x")}}}, 'no "user:password"'),
        ({"credHelpers": ["x"]}, "credHelpers is no object"),
        ({"credsStore": "../../bin/sh"}, "is no name of a credential helper"),
        ({"credsStore": ["x"]}, "is no name of a credential helper"),
    ],
)
async def test_a_file_that_is_not_in_order_is_told(home, place, document, why):
    path = write(home / ".docker/config.json", document)
    if why is None:
        assert await looked_up(place) is None
        return
    with pytest.raises(ImageError, match=why) as caught:
        await looked_up(place)
    assert str(path) in str(caught.value)


async def test_a_file_that_cannot_be_read_is_told(home, place):
    (home / ".docker/config.json").mkdir(parents=True)
    with pytest.raises(ImageError, match="cannot be read: is a directory"):
        await looked_up(place)


def test_a_secret_is_not_shown():
    assert "x-y-z" not in repr(Credentials("ada", "x-y-z", "here"))


# --- Helpers -------------------------------------------------------------------------------------


ANSWER = 'echo \'{"ServerURL": "x", "Username": "ada", "Secret": "s"}\''


@pytest.mark.parametrize("key", ["credHelpers", "credsStore"])
async def test_a_helper_is_asked_in_dockers_way(home, place, key):
    name = helper(home, "mine", f'[ "$1" = get ] && cat > "$HOME/asked" && {ANSWER}')
    value = {"r.example": "mine"} if key == "credHelpers" else "mine"
    write(home / ".docker/config.json", {key: value, "auths": {"r.example": {}}})
    assert await looked_up(place) == Credentials("ada", "s", name)
    assert (home / "asked").read_text() == "r.example"


async def test_of_docker_hub_it_hears_the_old_address(home, place):
    helper(home, "mine", f'cat > "$HOME/asked"; {ANSWER}')
    write(home / ".docker/config.json", {"credsStore": "mine"})
    await looked_up(place, "docker.io", "library/debian")
    assert (home / "asked").read_text() == "https://index.docker.io/v1/"


async def test_the_registrys_own_helper_goes_before_the_store(home, place):
    helper(home, "own", ANSWER.replace("ada", "own"))
    helper(home, "all", ANSWER.replace("ada", "all"))
    write(home / ".docker/config.json",
          {"credHelpers": {"https://r.example": "own"}, "credsStore": "all"})  # fmt: skip
    assert (await looked_up(place)).user == "own"
    assert (await looked_up(place, "s.example")).user == "all"


async def test_an_identity_token_of_a_helper(home, place):
    helper(home, "mine", ANSWER.replace("ada", "<token>"))
    write(home / ".docker/config.json", {"credsStore": "mine"})
    found = await looked_up(place)
    assert found is not None and found.is_token


async def test_a_helper_that_knows_nothing_leaves_it_to_the_file(home, place):
    helper(home, "mine", "cat >&2; echo 'credentials not found in native keychain'; exit 1")
    document = {"credsStore": "mine", "auths": {"r.example": {"auth": encoded("file:x")}}}
    write(home / ".docker/config.json", document)
    assert (await looked_up(place)).user == "file"
    assert await looked_up(place, "s.example") is None


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo 'the keychain is \033[1mlocked'; exit 1", r"failed with status 1: the keychain"),
        ("exit 3", "failed with status 3$"),
        ("kill -9 $$", "failed with status -9"),
        ("echo nothing", "no JSON with Username and Secret"),
        ('echo \'{"Username": 1, "Secret": "hush"}\'', "no JSON with Username and Secret"),
        ("exec yes", "its answer is larger than"),
        ("exec sleep 1000", r"did not answer within 0\.5 s"),
    ],
)
async def test_a_helper_that_fails_is_told(home, place, script, why):
    name = helper(home, "mine", script)
    write(home / ".docker/config.json", {"credsStore": "mine"})
    with pytest.raises(ImageError, match=why) as caught:
        await looked_up(place, patience=0.5 if "sleep" in script else 20)
    text = str(caught.value)
    assert text.startswith(name) and text.isprintable() and "hush" not in text


async def test_a_helper_that_is_not_installed_is_told(home, place):
    write(home / ".docker/config.json", {"credsStore": "absent"})
    with pytest.raises(ImageError, match="docker-credential-absent: cannot be run: no such file"):
        await looked_up(place)


async def test_a_helper_is_found_in_the_path_only(home, place, monkeypatch):
    """Not in the directory where we happen to be."""
    helper(home, "mine", ANSWER)
    monkeypatch.chdir(home / "bin")
    write(home / ".docker/config.json", {"credsStore": "mine"})
    with pytest.raises(ImageError, match="cannot be run"):
        await looked_up(Place({**place.environment, "PATH": "/usr/bin:/bin"}, 1000))
