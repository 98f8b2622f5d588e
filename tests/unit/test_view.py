"""What is looked up of a root before anything is mounted: links, layers, whiteouts."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from supervisor.container import view
from supervisor.container.view import View
from supervisor.model import JobSpec

LINKS: list[tuple[str, dict[str, str], str]] = [
    ("/plain/file", {}, "/plain/file"),
    ("//plain/./file", {}, "/plain/file"),
    ("/../../x", {}, "/x"),
    ("/", {}, "/"),
    ("/..", {}, "/"),
    ("/a/x", {"a": "/"}, "/x"),
    ("/a/x", {"a": "b", "b": "c/../d"}, "/d/x"),
    ("/a/x", {"a": "/../../.."}, "/x"),
    ("/a", {"a": "missing"}, "/missing"),
    ("/a/passwd", {"a": "/etc"}, "/etc/passwd"),
    ("/a/etc/passwd", {"a": "/proc/self/root"}, "/proc/self/root/etc/passwd"),
]


@pytest.mark.parametrize(("path", "links", "found"), LINKS)
def test_links_stay_in_a_directory(tmp_path: Path, path: str, links: dict[str, str], found: str):
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    assert View((str(tmp_path),), united=False).resolve(path) == found


@pytest.mark.parametrize(("path", "links", "found"), LINKS)
def test_links_stay_in_the_layers(tmp_path: Path, path: str, links: dict[str, str], found: str):
    """Each link in a layer of its own."""
    layers = []
    for number, (name, target) in enumerate(links.items()):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / name).symlink_to(target)
        layers.append(str(tmp_path / str(number)))
    (tmp_path / "last").mkdir()
    root = View((*layers, str(tmp_path / "last")), united=True)
    assert root.resolve(path) == found
    assert not root.exists("/a/x")


def test_a_loop_over_two_layers_is_told(tmp_path: Path):
    for name, target in (("a", "b"), ("b", "/a")):
        (tmp_path / f"layer-{name}").mkdir()
        (tmp_path / f"layer-{name}" / name).symlink_to(target)
    root = View((f"{tmp_path}/layer-a", f"{tmp_path}/layer-b"), united=True)
    with pytest.raises(OSError) as caught:
        root.find("/a/x")
    assert caught.value.errno == errno.ELOOP


@pytest.fixture
def layers(tmp_path: Path) -> tuple[Path, Path]:
    """One over the other."""
    for name in ("above", "below"):
        (tmp_path / name).mkdir()
    return tmp_path / "above", tmp_path / "below"


def united(layers: tuple[Path, Path]) -> View:
    return View(tuple(map(str, layers)), united=True)


def test_the_upper_one_is_read(layers: tuple[Path, Path]):
    above, below = layers
    for layer in layers:
        (layer / "etc").mkdir()
        (layer / "etc/passwd").write_text(layer.name)
    (below / "etc/group").write_text("only here")
    root = united(layers)
    assert root.read("/etc/passwd", 100) == b"above"
    assert root.read("/etc/group", 4) == b"only"
    assert root.read("/etc/none", 100) is None
    assert root.find("/etc").layers == (str(above), str(below))


def test_a_file_covers_a_directory_and_is_none(layers: tuple[Path, Path]):
    above, below = layers
    (above / "x").write_text("a file")
    (below / "x/inside").mkdir(parents=True)
    assert united(layers).find("/x").kind == "other"
    assert not united(layers).exists("/x/inside")
    (above / "y").mkdir()
    (below / "y").symlink_to("/etc")
    assert united(layers).find("/y").kind == "directory"


def whiteout(path: Path) -> None:
    try:
        os.mknod(path, 0o20000, 0)
    except PermissionError:
        pytest.skip("no whiteouts by this user here")


def test_a_whiteout_takes_a_name_away(layers: tuple[Path, Path]):
    above, below = layers
    (below / "etc").mkdir()
    (below / "etc/passwd").write_text("gone")
    (above / "etc").mkdir()
    whiteout(above / "etc/passwd")
    whiteout(above / "srv")
    root = united(layers)
    assert (root.find("/etc/passwd").kind, root.find("/etc/passwd").shut) == ("", True)
    assert root.read("/etc/passwd", 10) is None
    assert root.find("/srv/deep/below").shut
    assert not root.find("/elsewhere/deep").shut
    # in a directory that is no layer it is a device like any other
    assert View((str(above),), united=False).find("/srv").kind == "other"


def test_nothing_but_a_file_is_opened(layers: tuple[Path, Path]):
    above, _ = layers
    os.mkfifo(above / "pipe")
    (above / "directory").mkdir()
    for name, number in (("pipe", errno.EINVAL), ("directory", errno.EISDIR)):
        with pytest.raises(OSError) as caught:
            united(layers).read(f"/{name}", 10)
        assert caught.value.errno == number


def test_a_link_that_appears_meanwhile_is_not_followed(layers: tuple[Path, Path], tmp_path: Path):
    """A directory can change between the look and the opening."""
    above, _ = layers
    (tmp_path / "secret").write_text("the host's")
    (above / "etc").mkdir()
    (above / "etc/passwd").write_text("the root's")
    root = View((str(above),), united=False)
    assert root.read("/etc/passwd", 100) == b"the root's"
    (above / "etc/passwd").unlink()
    (above / "etc/passwd").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError) as caught:
        root.read("/etc/passwd", 100)
    assert caught.value.errno == errno.ELOOP


def test_of_a_job():
    assert view.of(JobSpec("job", ("true",))).read("/etc/passwd", 5)
    image = JobSpec("job", ("true",), root="debian:12", layers=("/a", "/b"))
    assert view.of(image) is view.of(image)
    directory = JobSpec("job", ("true",), root="/srv/root")
    assert view.of(directory) is not view.of(directory)
