"""References: what each text names, the one way it is written back, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.image import reference
from supervisor.image.reference import (
    Directory,
    DockerArchive,
    Host,
    Local,
    OciArchive,
    OciLayout,
    Remote,
    Tar,
    parse,
)

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("host", Host()),
        ("/srv/root", Directory(Path("/srv/root"))),
        ("//srv/./root/", Directory(Path("/srv/root"))),
        ("./root", Directory(Path("/base/root"))),
        ("../root:1", Directory(Path("/root:1"))),
        (".", Directory(Path("/base"))),
        ("tar:/a/b:c.tar.gz", Tar(Path("/a/b:c.tar.gz"))),
        ("tar:b.tar", Tar(Path("/base/b.tar"))),
        ("oci:/layout", OciLayout(Path("/layout"), None)),
        ("oci:/layout:12", OciLayout(Path("/layout"), "12")),
        ("oci:layout:a/b:12", OciLayout(Path("/base/layout"), "a/b:12")),
        ("oci-archive:/a.tar:12", OciArchive(Path("/a.tar"), "12")),
        ("docker-archive:/a.tar", DockerArchive(Path("/a.tar"), None)),
        ("docker-archive:/a.tar:debian:12", DockerArchive(Path("/a.tar"), "debian:12")),
        ("docker://debian", Remote("docker.io", "library/debian", "latest")),
        ("docker://index.docker.io/debian:12", Remote("docker.io", "library/debian", "12")),
        ("docker://team/tool:V1.0", Remote("docker.io", "team/tool", "V1.0")),
        ("docker://localhost/tool", Remote("localhost", "tool", "latest")),
        ("docker://LOCALHOST:5000/a/b:1", Remote("localhost:5000", "a/b", "1")),
        ("docker://[::1]:5000/a:1", Remote("[::1]:5000", "a", "1")),
        (f"docker://quay.io/a/b@{DIGEST}", Remote("quay.io", "a/b", None, DIGEST)),
        (f"docker://quay.io/a/b:1@{DIGEST}", Remote("quay.io", "a/b", "1", DIGEST)),
        ("debian", Local("debian:latest")),
        ("debian:12", Local("debian:12")),
        ("docker.io/library/debian:12", Local("debian:12")),
        ("library/debian", Local("debian:latest")),
        ("localhost:5000/team/tool:1", Local("localhost:5000/team/tool:1")),
        (f"debian@{DIGEST}", Local(f"debian@{DIGEST}")),
        (DIGEST, Local(DIGEST)),
        ("sha256:abcdef", Local("sha256:abcdef")),
    ],
)
def test_what_a_text_names(text: str, meant: reference.Reference) -> None:
    found = parse(text, Path("/base"))
    assert found == meant
    assert parse(str(found)) == found  # the canonical text needs no base


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        (" host", "spaces"),
        ("/a\nb", "control"),
        ("/a\0b", "control"),
        ("./root", "must be absolute"),
        ("tar:b.tar", "must be absolute"),
        ("tar:", "no path"),
        ("oci:", "no path"),
        ("oci:/a:", "no tag"),
        ("oci:/a:../b", "no tag"),
        ("oci:/a:b c", "no tag"),
        ("docker://", "no name of an image"),
        ("docker://Debian", "no name of an image"),
        ("docker://a//b", "no name of an image"),
        ("docker://a/../b", "no name of an image"),
        ("docker://debian:", "no tag"),
        ("docker://debian:-1", "no tag"),
        ("docker://debian:" + "1" * 129, "no tag"),
        ("docker://" + "a/" * 128 + "a", "no name of an image"),
        ("docker://user:pass@host/a", "no digest"),
        ("docker://debian@md5:00", "no digest"),
        ("docker://debian@sha256:" + "A" * 64, "no digest"),
        ("docker://evil..org/a", "no registry"),
        ("docker://-x.org/a", "no registry"),
        ("docker://x.org:port/a", "no registry"),
        ("http://x.org/a", "no known form"),
        ("ocidir:/layout", "no known form"),
        ("sha256:", "no digest"),
        ("sha256:abcdeg", "no digest"),
        ("Host", "no name of an image"),
        ("_x", "no name of an image"),
    ],
)
def test_what_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(text)


def test_where_a_registry_is_asked() -> None:
    hub, own = parse("docker://debian:12"), parse("docker://localhost:5000/debian:12")
    assert isinstance(hub, Remote) and isinstance(own, Remote)
    assert (hub.host, own.host) == ("registry-1.docker.io", "localhost:5000")


def test_the_name_in_the_store_finds_what_was_pulled() -> None:
    for text in (
        "debian:12",
        "a/b:1",
        "localhost:5000/library/x:1",
        f"a/b@{DIGEST}",
        "library/tar:1",
    ):
        pulled = parse(f"docker://{text}")
        assert isinstance(pulled, Remote)
        assert parse(text) == parse(pulled.name) == Local(pulled.name)


@given(st.text(max_size=80) | st.from_regex(r"(oci:|tar:|docker://)?[a-z./:@\[\]0-9-]{1,40}"))
def test_any_text_is_named_or_refused(text: str) -> None:
    try:
        found = parse(text, Path("/base"))
    except ValueError as err:
        assert str(err)
    else:
        assert parse(str(found)) == found
