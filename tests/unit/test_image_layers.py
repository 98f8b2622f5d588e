"""What a writable layer says of the layers below, and its way into a tar and out again."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from supervisor.errors import ImageError
from supervisor.image.changes import changes
from supervisor.image.pack import pack


def tree(top: Path, files: dict[str, str | None]) -> Path:
    """Files by their content; None is a whiteout, a name with "/" at its end a directory."""
    top.mkdir(exist_ok=True)
    for name, content in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        elif content is None:
            os.mknod(path, stat.S_IFCHR | 0o600, 0)
        else:
            path.write_text(content)
    return top


def opaque(path: Path) -> None:
    try:
        os.setxattr(path, "user.overlay.opaque", b"y")
    except OSError as error:
        pytest.skip(f"{path}: {error.strerror}: no user.* attributes here")


def told(upper: Path, *lowers: Path) -> list[str]:
    return [f"{change.kind} {change.path}" for change in changes(upper, lowers)]


def test_added_changed_and_deleted(tmp_path):
    lower = tree(tmp_path / "lower", {"a/old": "", "a/gone": "", "b": "", "kept/x": ""})
    upper = tree(tmp_path / "upper", {"a/old": "new", "a/gone": None, "a/more": "", "never": None})
    assert told(upper, lower) == ["C /a", "D /a/gone", "A /a/more", "C /a/old"]


def test_what_an_upper_layer_took_away_is_added_again(tmp_path):
    bottom = tree(tmp_path / "bottom", {"d/x": "", "f": ""})
    middle = tree(tmp_path / "middle", {"d/x": None, "f": None})
    upper = tree(tmp_path / "upper", {"d/x": "", "f": ""})
    assert told(upper, middle, bottom) == ["C /d", "A /d/x", "A /f"]
    assert told(upper, bottom) == ["C /d", "C /d/x", "C /f"]


def test_a_directory_made_anew_deletes_what_was_in_the_old_one(tmp_path):
    lower = tree(tmp_path / "lower", {"d/one": "", "d/two": ""})
    upper = tree(tmp_path / "upper", {"d/two": "", "d/three": ""})
    opaque(upper / "d")
    assert told(upper, lower) == ["C /d", "D /d/one", "A /d/three", "C /d/two"]


def test_an_opaque_directory_below_hides_what_is_under_it(tmp_path):
    bottom = tree(tmp_path / "bottom", {"d/x": ""})
    middle = tree(tmp_path / "middle", {"d/y": ""})
    opaque(middle / "d")
    upper = tree(tmp_path / "upper", {"d/x": "", "d/y": ""})
    assert told(upper, middle, bottom) == ["C /d", "A /d/x", "C /d/y"]


def test_a_file_in_the_place_of_a_directory_and_the_other_way_round(tmp_path):
    lower = tree(tmp_path / "lower", {"was-dir/x": "", "was-file": ""})
    upper = tree(tmp_path / "upper", {"was-dir": "", "was-file/x": ""})
    assert told(upper, lower) == ["C /was-dir", "C /was-file", "A /was-file/x"]


def test_no_link_is_followed(tmp_path):
    lower = tree(tmp_path / "lower", {"d/x": ""})
    upper = tree(tmp_path / "upper", {})
    (upper / "d").symlink_to("/etc")
    (lower / "e").symlink_to("/")
    (upper / "e").mkdir()
    (upper / "e" / "etc").mkdir()
    assert told(upper, lower) == ["C /d", "C /e", "A /e/etc"]


@pytest.mark.parametrize("mark", ["redirect", "metacopy"])
def test_what_lies_elsewhere_is_told_of_not_guessed(tmp_path, mark):
    upper = tree(tmp_path / "upper", {"d/x": ""})
    try:
        os.setxattr(upper / "d", f"user.overlay.{mark}", b"/old")
    except OSError as error:
        pytest.skip(f"{error.strerror}: no user.* attributes here")
    with pytest.raises(ImageError, match=rf"/d: .*overlay\.{mark}"):
        told(upper, tree(tmp_path / "lower", {}))
    with pytest.raises(ImageError, match=mark):
        pack(upper, io.BytesIO(), upper=True)


def test_layers_nested_too_deep_are_refused(tmp_path):
    at = str(tree(tmp_path / "upper", {}))
    for _ in range(300):
        at += "/d"
        os.mkdir(at)
    with pytest.raises(ImageError, match="directories deep"):
        told(tmp_path / "upper")


def packed(top: Path, **how: int | bool) -> tuple[tarfile.TarFile, str]:
    out = io.BytesIO()
    diff_id = pack(top, out, **how).diff_id  # type: ignore[arg-type]
    out.seek(0)
    return tarfile.open(fileobj=out), diff_id


def test_a_layer_has_the_marks_that_images_use(tmp_path):
    upper = tree(tmp_path / "upper", {"a/gone": None, "d/new": "x", "top": None})
    opaque(upper / "d")
    names = packed(upper, upper=True)[0].getnames()
    assert names == ["a", "a/.wh.gone", "d", "d/.wh..wh..opq", "d/new", ".wh.top"]


def test_modes_links_and_attributes_are_kept(tmp_path):
    top = tree(tmp_path / "top", {"file": "text", "dir/": ""})
    (top / "file").chmod(0o4755)
    os.link(top / "file", top / "same")
    (top / "link").symlink_to("../../x")
    os.mkfifo(top / "fifo")
    try:
        os.setxattr(top / "file", "user.x", b"\xff\x00")
    except OSError as error:
        pytest.skip(f"{error.strerror}: no user.* attributes here")
    tar, _ = packed(top)
    file, same, link = tar.getmember("file"), tar.getmember("same"), tar.getmember("link")
    assert (file.mode, file.uid) == (0o4755, os.getuid())
    assert (same.islnk(), same.linkname) == (True, "file")
    assert (link.issym(), link.linkname) == (True, "../../x")
    assert tar.getmember("fifo").isfifo()
    value = file.pax_headers["SCHILY.xattr.user.x"]
    assert value.encode("utf-8", "surrogateescape") == b"\xff\x00"


def test_the_same_tree_gives_the_same_digest(tmp_path):
    one = tree(tmp_path / "one", {"b": "1", "a/c": "2"})
    two = tree(tmp_path / "two", {"a/c": "2", "b": "1"})
    for top in (one, two):
        for path in (top, *top.rglob("*")):
            os.utime(path, (1, 2**31 + (path.name == "b")))
    assert packed(one, newest=1000)[1] == packed(two, newest=1000)[1]
    assert packed(one)[1] != packed(one, newest=1000)[1]


def test_a_jobs_own_numbers_become_those_it_had_inside(tmp_path):
    top = tree(tmp_path / "top", {"file": ""})
    mine = os.getuid()
    if not mine:
        os.chown(top / "file", 70000, 70000)
        assert packed(top, shift=70000)[0].getmember("file").uid == 0
    with pytest.raises(ImageError, match="none of the job's own"):
        packed(top, shift=100000)


def test_names_that_would_delete_something_are_refused(tmp_path):
    with pytest.raises(ImageError, match="means a deletion"):
        packed(tree(tmp_path / "top", {".wh.x": ""}))
    with pytest.raises(ImageError, match="mark of a deletion"):
        packed(tree(tmp_path / "other", {"x": None}))
