"""`supervise image`, as a user calls it."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from supervisor.image import platforms
from supervisor.image.store import Store
from tests.support import host
from tests.support.command import ROOT, Done, Supervise
from tests.support.images import (
    Built,
    compressed,
    device,
    file,
    folder,
    hardlink,
    layer,
    many_layers,
    opaque,
    symlink,
    whiteout,
)
from tests.support.nobody import NOBODY, nobody

pytestmark = [pytest.mark.kernel, host.outside("the store")]

HERE = platforms.host().architecture
BASE = layer(folder("etc"), file("etc/motd", b"hello\n"))
IMAGE = Built([BASE, layer(file("top"))], {"Cmd": ["sh"], "Env": ["A=1"]}, architecture=HERE)


@pytest.fixture
def image(supervise: Supervise, tmp_path: Path) -> Image:
    return Image(supervise, tmp_path)


class Image:
    """The verb, with a store of this test's own."""

    def __init__(self, supervise: Supervise, where: Path) -> None:
        self._supervise = supervise
        self.state = where / "state"
        self.where = where

    def __call__(self, verb: str, *arguments: str, status: int = 0) -> Done:
        state = ("--state-dir", str(self.state))
        done = self._supervise("image", verb, *arguments, *state, cwd=self.where)
        assert done.status == status, done.stderr
        return done


def test_from_a_layout_to_nothing_again(image: Image, tmp_path: Path) -> None:
    IMAGE.layout(tmp_path / "oci", "1")
    pulled = image("pull", "oci:./oci:1", "--name", "base")
    assert pulled.stdout == f"{IMAGE.digest}\n"
    assert "unpacking" in pulled.stderr and "done" in pulled.stderr
    again = image("pull", "oci:./oci:1", "--quiet", "--json")
    assert json.loads(again.stdout)["digest"] == IMAGE.digest
    assert again.stderr == ""
    listed = image("list")
    assert f"oci:{tmp_path}/oci:1" in listed.stdout and "base:latest" in listed.stdout
    assert image("list", "--quiet").stdout == f"{IMAGE.digest}\n"
    (told,) = map(json.loads, image("list", "--json").stdout.splitlines())
    assert (told["in_use"], told["names"]) == (False, ["base:latest", f"oci:{tmp_path}/oci:1"])
    known = json.loads(image("inspect", "base").stdout)
    assert known["config"]["environment"] == {"A": "1"}
    assert (Path(known["layers"][0]["path"]) / "etc/motd").read_text() == "hello\n"
    assert image("prune", "--all", "--dry-run").stdout == f"{IMAGE.digest}\n"
    assert image("remove", "base").stdout == ""
    assert image("remove", IMAGE.digest[:19]).stdout == f"{IMAGE.digest}\n"
    assert image("list").stdout == ""
    assert image("prune", "--json").stdout.startswith('{"images": []')


def test_what_cannot_be_done_is_said_in_one_line(image: Image, tmp_path: Path) -> None:
    (tmp_path / "oci").mkdir()
    for arguments, status, words in (
        (("pull", "debian:12"), 2, ("debian:12", "docker://debian:12")),
        (("pull", "host"), 2, ("is no image",)),
        (("pull", "oci:./oci", "--platform", "x86"), 2, ("--platform", "x86")),
        (("pull", "oci:./oci", "--name", "A"), 2, ('"A" is no name of an image',)),
        (("pull", "oci:./oci", "--name", "sha256:abcdef"), 2, ("--name",)),
        (("pull", "oci:./oci"), 125, (f"{tmp_path}/oci/index.json", "no such file")),
        (("inspect", "debian"), 125, ("debian:latest", str(image.state))),
        (("remove", "debian"), 125, ("debian:latest", "not in the store")),
        (("prune", "--unused-for", "soon"), 2, ("--unused-for",)),
    ):
        done = image(*arguments, status=status)
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1, done.stderr
        for word in words:
            assert word in done.stderr


def test_the_configuration_says_where_and_how_much(supervise: Supervise, tmp_path: Path) -> None:
    IMAGE.layout(tmp_path / "oci")
    config = tmp_path / "x.toml"
    config.write_text(
        f'[supervisor]\nstate_dir = "{tmp_path}/state"\n[images]\nstore = "./own"\n'
        'limits = { bytes = "1M", entries = 1 }\n[jobs.x]\ncommand = "true"\n'
    )
    at = ("--config", str(config))
    done = supervise("image", "pull", f"oci:{tmp_path}/oci", *at)
    assert done.status == 125
    assert "raise [images] limits.entries" in done.stderr
    config.write_text(config.read_text().replace("entries = 1", "entries = 9"))
    done = supervise("image", "pull", f"oci:{tmp_path}/oci", *at)
    assert done.status == 0, done.stderr
    assert len(list((tmp_path / "own/layers").iterdir())) == 2
    assert not (tmp_path / "state/.images").exists()


def test_bars_on_a_terminal(image: Image, tmp_path: Path) -> None:
    """One layer is locked by us, so that there is something to be seen while it waits."""
    pytest.importorskip("rich")
    built = Built(many_layers(3), architecture=HERE)
    built.layout(tmp_path / "oci")
    store = Store(image.state / ".images")
    store.prepare()
    lock = store.layers.try_lock(built.diff_ids[2])
    assert lock is not None
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "supervisor", "image", "pull", f"oci:{tmp_path}/oci",
         "--state-dir", str(image.state)],
        stdout=subprocess.PIPE, stderr=theirs, cwd=ROOT, env={**os.environ, "TERM": "xterm"},
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            while data := os.read(ours, 4096):
                shown += data
                if lock >= 0 and b"2 of 3 layers" in shown:
                    store.layers.unlock(built.diff_ids[2], lock)
                    lock = -1
        except OSError:
            pass  # EIO: it has ended
    os.close(ours)
    assert lock < 0, shown
    assert process.returncode == 0


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        host.miss("tools", f"needs {name}: apt-get install {name}")
    return found


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """An image made by umoci in tmp_path/oci, of three layers; the path of its tree."""
    umoci = tool("umoci")

    def run(*arguments: str) -> None:
        subprocess.run([umoci, *arguments], cwd=tmp_path, check=True, capture_output=True)

    run("init", "--layout", "oci")
    run("new", "--image", "oci:1")
    trees = [
        layer(
            folder("bin"), file("bin/tool", b"#!/bin/sh\n", 0o4755),
            hardlink("bin/same", "bin/tool"),
            folder("etc"), file("etc/gone", b"x"), folder("var"), folder("var/old"),
            file("var/old/file", b"y", 0o600, uid=7, gid=8), symlink("link", "etc"),
            file("sparse", bytes(1 << 20)),
        ),
        layer(whiteout("etc/gone"), file("etc/new", b"new", pax_headers={})),
        layer(folder("var"), opaque("var"), file("var/new", b"z"), folder("link2", 0o1777)),
    ]  # fmt: skip
    for at, tree in enumerate(trees):
        (tmp_path / f"{at}.tar").write_bytes(tree)
        run("raw", "add-layer", "--image", "oci:1", f"{at}.tar")
    run("config", "--image", "oci:1", "--config.cmd", "/bin/tool", "--config.env", "A=1")
    run("unpack", "--image", "oci:1", "bundle")
    return tmp_path / "bundle/rootfs"


def described(top: Path) -> dict[str, tuple[object, ...]]:
    """All that a tree holds, by path."""
    found: dict[str, tuple[object, ...]] = {}
    names: dict[int, str] = {}
    for path in sorted(top.rglob("*")):
        one = path.lstat()
        name = str(path.relative_to(top))
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        target = os.readlink(path) if path.is_symlink() else ""
        first = names.setdefault(one.st_ino, name)
        found[name] = (oct(one.st_mode), one.st_uid, one.st_gid, content, target, first)
        if not path.is_dir():
            found[name] += (int(one.st_mtime),)
    return found


def test_what_others_make_unpacks_to_what_they_unpack(
    image: Image, made: Path, tmp_path: Path
) -> None:
    """umoci's image, in each form that skopeo knows, against umoci's own tree."""
    skopeo = tool("skopeo")
    forms = {
        "oci:./oci:1": None,
        "oci-archive:./a.tar:1": "oci-archive:a.tar:1",
        "docker-archive:./d.tar:name:1": "docker-archive:d.tar:name:1",
        "oci:./zstd:1": "oci:zstd:1",
    }
    layers = set()
    for reference, target in forms.items():
        if target is not None:
            how = ["--dest-compress-format", "zstd"] if "zstd" in target else []
            subprocess.run(
                [skopeo, "copy", "--quiet", *how, "oci:oci:1", target], cwd=tmp_path, check=True
            )
        image("pull", reference, "--quiet")
        known = json.loads(image("inspect", reference).stdout)
        assert known["config"]["command"] == ["/bin/tool"]
        assert known["config"]["environment"]["A"] == "1"
        layers.add(tuple(one["path"] for one in known["layers"]))
    (paths,) = layers  # the same directories, whichever way it came
    merged = tmp_path / "merged"
    merged.mkdir()
    options = f"lowerdir={':'.join(reversed(paths))}"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "test", merged], check=True)
    try:
        assert described(merged) == described(made)
    finally:
        subprocess.run(["umount", merged], check=True)


def test_an_image_of_debian_is_what_tar_makes_of_it(image: Image, tmp_path: Path) -> None:
    """A real tree: the packages' files of this system, as far as they are small."""
    with tarfile.open(tmp_path / "etc.tar", "w") as archive:
        archive.add("/usr/share/doc/base-files", "doc")
        archive.add("/var/lib/dpkg/info", "info")
    data = (tmp_path / "etc.tar").read_bytes()
    (tmp_path / "etc.tar.gz").write_bytes(compressed(data, "gzip"))
    image("pull", "tar:./etc.tar.gz", "--quiet")
    (path,) = json.loads(image("inspect", "tar:./etc.tar.gz").stdout)["layers"]
    (tmp_path / "tree").mkdir()
    subprocess.run(["tar", "-xpf", tmp_path / "etc.tar", "-C", tmp_path / "tree"], check=True)
    assert described(Path(path["path"])) == described(tmp_path / "tree")


def test_without_root_the_files_are_the_users(tmp_path: Path) -> None:
    """What cannot be had is left out and counted."""
    with nobody() as (run, home):
        tree = layer(
            folder("dev"), device("dev/null", 1, 3), file("a", b"a", 0o4755, uid=7, gid=8),
            folder("locked", 0o555), file("locked/b", b"b"), whiteout("gone"),
        )  # fmt: skip
        Built([tree], architecture=HERE).layout(home / "oci")
        subprocess.run(["chmod", "-R", "a+rX", str(home / "oci")], check=True)
        pulled = run("image", "pull", "oci:./oci", "--quiet")
        assert pulled.returncode == 0, pulled.stderr
        known = json.loads(run("image", "inspect", "oci:./oci").stdout)
        (unpacked,) = known["layers"]
        top = Path(unpacked["path"])
        assert top.is_relative_to(home)
        assert unpacked["left_out"] >= 1
        assert (top / "a").stat().st_uid == NOBODY
        assert not (top / "dev/null").exists()
        assert (top / "gone").stat().st_rdev == 0
        removed = run("image", "remove", "oci:./oci")
        assert (removed.returncode, removed.stdout) == (0, pulled.stdout)
        assert not top.exists()
