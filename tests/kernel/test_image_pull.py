"""Images pulled by the command: from docker-registry, a whole Debian, and what goes wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from tests.support import debian, host
from tests.support.batch import Batch
from tests.support.command import Supervise
from tests.support.docker_registry import (
    PASSWORD,
    USER,
    docker_registry,
    htpasswd,
    layout,
    need_tools,
    push,
    relay,
)
from tests.support.registry import Fault, faulty
from tests.support.web import Asked, Reply, serve

pytestmark = [pytest.mark.kernel, host.outside("pulling")]

SIZE = 3_000_000


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, BytesIO(data))
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An image of two layers, the lower of which is large enough to break off."""
    need_tools()
    place = tmp_path_factory.mktemp("small")
    layers = [
        tar(place / "0.tar", {"large": os.urandom(SIZE)}),
        tar(place / "1.tar", {"little": b"1"}),
    ]
    return f"oci:{layout(place, layers)}:made"


@pytest.fixture(scope="module")
def registry(small, tmp_path_factory):
    with docker_registry(tmp_path_factory.mktemp("registry")) as where:
        push(small, where, "test/small:1")
        yield where


@pytest.fixture(autouse=True)
def nobody_known(tmp_path, monkeypatch):
    """No credentials but a test's own."""
    for name in ("HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "DOCKER_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)


@pytest.fixture
def pull(supervise: Supervise):
    """`image pull` into a store of the test's own."""

    def run(where, *flags, **more):
        state = ("--state-dir", supervise.where.state)
        return supervise("image", "pull", f"docker://{where}/test/small:1", *state, *flags, **more)

    return run


def blobs_of(web, *, method="GET"):
    return [one for one in web.seen if "/blobs/" in one.path and one.method == method]


def large(plain: str, change) -> Fault:
    """The blob of the large layer, changed."""
    answer = relay(plain)

    def fault(asked: Asked) -> Reply | None:
        if "/blobs/" not in asked.path:
            return None
        reply = answer(asked)
        return change(reply) if len(reply.body) >= SIZE else None

    return fault


@pytest.mark.timeout(900)
def test_a_debian_is_pulled_and_jobs_run_in_it(registry, batch: Batch, tmp_path):
    """With a layer on top that adds a file and takes one away; one pull for both jobs."""
    top = tar(tmp_path / "top.tar", {"top": b"of it", "etc/.wh.motd": b""})
    config = ["--config.env", "FROM=the image", "--config.workingdir", "/usr"]
    push(f"oci:{layout(tmp_path, [debian.archive(), top], config)}:made", registry, "debian:12")
    with serve(relay(registry)) as web:
        root = f'root = "docker://{web.host}/debian:12"'
        result = batch.run(
            f"""
            [jobs.verify]
            {root}
            command = ["dpkg", "--verify"]
            [jobs.look]
            {root}
            script = "pwd; echo $FROM; cat /top; echo; test ! -e /etc/motd; su -s /bin/id nobody"
            """
        )
        assert result.reasons == {"verify": "succeeded", "look": "succeeded"}, result.done.stderr
        assert len(blobs_of(web)) == 3  # the configuration and two layers, once
    unread = re.compile(r"missing +/usr/share/(doc|man|locale)(/|$)")  # left out by `debian`
    wrong = batch.output(result["verify"]).splitlines()
    assert [line for line in wrong if not unread.match(line)] == []
    place, source, text, identity = batch.output(result["look"]).splitlines()
    assert (place, source, text) == ("/usr", "the image", "of it")
    assert identity.startswith("uid=65534(nobody)")


def test_the_same_image_is_not_pulled_twice(registry, pull):
    with serve(relay(registry)) as web:
        assert pull(web.host).status == 0
        web.seen.clear()
        done = pull(web.host)
        assert done.status == 0
        assert [one.method for one in web.seen] == ["HEAD"]  # which counts as no pull
        web.seen.clear()
        assert pull(web.host, "--missing").status == 0 and web.seen == []


def test_ctrl_c_leaves_what_can_be_continued(registry, supervise: Supervise):
    faults = [
        large(registry, lambda r: Reply(r.status, r.headers, r.body, cut=1_000_000, hold=True))
    ]
    with serve(faulty(faults, relay(registry))) as web:
        arguments = ("image", "pull", f"docker://{web.host}/test/small:1", "--plain",
                     "--state-dir", supervise.where.state)  # fmt: skip
        process = supervise.start(*arguments)
        assert process.stderr is not None
        lines = iter(process.stderr)
        coming = ["downloading 2.9M", "done"]  # the other layer, in either order
        while coming:
            line = next(lines)
            coming = [words for words in coming if words not in line]
        process.send_signal(signal.SIGINT)
        _out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert "Traceback" not in err
        (partial,) = Path(supervise.where.state, ".images/partial").iterdir()
        kept = partial.stat().st_size
        assert 0 < kept <= 1_000_000
        faults.clear()
        web.seen.clear()
        assert supervise(*arguments, timeout=120).status == 0
        parts = [one.headers.get("range") for one in blobs_of(web)]
        assert f"bytes={kept}-" in parts


def test_a_corrupted_layer_is_told_and_nothing_is_kept_of_it(registry, pull, supervise):
    faults = [large(registry, lambda r: Reply(r.status, r.headers, b"!" + r.body[1:]))]
    with serve(faulty(faults, relay(registry))) as web:
        done = pull(web.host)
        assert done.status == 125 and "something with the digest sha256:" in done.stderr
        assert list(Path(supervise.where.state, ".images/partial").iterdir()) == []
        listed = supervise("image", "list", "--state-dir", supervise.where.state)
        assert listed.stdout == ""
        faults.clear()
        assert pull(web.host).status == 0


def test_what_passes_is_told_and_tried_again(registry, pull):
    cut = [1]

    def once(reply: Reply) -> Reply:
        if cut:
            cut.pop()
            return Reply(reply.status, reply.headers, reply.body, cut=1_000_000)
        return reply

    with serve(faulty([large(registry, once)], relay(registry))) as web:
        done = pull(web.host)
        assert done.status == 0
        assert "broke off" in done.stderr and "again in 0." in done.stderr


def test_credentials_are_taken_from_where_docker_keeps_them(
    small, tmp_path, pull, supervise: Supervise
):
    with docker_registry(tmp_path, auth=htpasswd(tmp_path)) as where:
        push(small, where, "test/small:1", login=True)
        done = pull(where)
        assert done.status == 125 and "docker login or skopeo login" in done.stderr
        helper = tmp_path / "docker-credential-test"
        answer = json.dumps({"Username": USER, "Secret": PASSWORD})
        helper.write_text(f"#!/bin/sh\ngrep -q '{where}' && echo '{answer}'\n")
        helper.chmod(0o755)
        (tmp_path / "config.json").write_text(json.dumps({"credHelpers": {where: "test"}}))
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        assert pull(where, environment=path).status == 0


def test_mirrors_of_a_configuration_are_asked_first(registry, pull, tmp_path, supervise):
    with serve(lambda _: Reply(503, {"Retry-After": "9999"})) as away:
        config = tmp_path / "x.toml"
        mirrors = f'"hub.invalid" = ["{away.host}", "{registry}"]'
        jobs = '[jobs.x]\ncommand = "true"'
        config.write_text(f"{supervise.where.table}[images.mirrors]\n{mirrors}\n{jobs}\n")
        done = supervise("image", "pull", "docker://hub.invalid/test/small:1", "--config", config)
        assert done.status == 0, done.stderr
        assert f"{away.host}: " in done.stderr and "asking the next" in done.stderr
        listed = supervise("image", "list", "--config", config)
        assert "hub.invalid/test/small:1" in listed.stdout
