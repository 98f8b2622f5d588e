"""The table of a root to be, and its way to the disk: nothing of it is ever written elsewhere."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from supervisor.errors import RootError
from supervisor.rootfs.tree import Directory, File, Link, Present, Text, Tree, relative
from supervisor.rootfs.write import Writer


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A directory of the host, by its path without links."""
    return Path(os.path.realpath(tmp_path))


def test_the_links_on_the_way_are_kept(top: Path) -> None:
    (top / "usr/lib").mkdir(parents=True)
    (top / "usr/lib/liba.so.1.2").write_text("a")
    (top / "usr/lib/liba.so.1").symlink_to("liba.so.1.2")
    (top / "lib").symlink_to("usr/lib")
    (top / "abs").symlink_to(top / "lib/liba.so.1")
    tree = Tree()
    assert tree.add(f"{top}/abs") == f"{top}/usr/lib/liba.so.1.2"
    found = {
        k.removeprefix(str(top)): v for k, v in tree.entries.items() if k.startswith(f"{top}/")
    }
    assert found == {
        "/abs": Link(f"{top}/lib/liba.so.1"),
        "/lib": Link("usr/lib"),
        "/usr": Directory(f"{top}/usr"),
        "/usr/lib": Directory(f"{top}/usr/lib"),
        "/usr/lib/liba.so.1": Link("liba.so.1.2"),
        "/usr/lib/liba.so.1.2": File(f"{top}/usr/lib/liba.so.1.2"),
    }
    assert tree.lies_at(f"{top}/abs") == f"{top}/usr/lib/liba.so.1.2"
    assert tree.lies_at(f"{top}/none") is None


def test_what_cannot_be_added_is_told(top: Path) -> None:
    (top / "one").symlink_to("two")
    (top / "two").symlink_to("one")
    (top / "file").write_text("")
    (top / "dangling").symlink_to("nothing")
    (top / "null").symlink_to("/dev/null")
    os.mkfifo(top / "fifo")
    for path, told in {
        "one": "a loop of symbolic links",
        "none": "No such file or directory",
        "file/x": "file is not a directory",
        "none/x": "none/x: no such file or directory",
        "dangling": "No such file",
        "null": "/dev/null is not a file of the disk's",
        "fifo": "a device, socket or pipe",
    }.items():
        with pytest.raises(RootError, match=told):
            Tree().add(f"{top}/{path}")


def test_another_place_has_plain_parents_and_merged_directories(top: Path) -> None:
    (top / "file").write_text("x")
    tree = Tree()
    tree.add_at(f"{top}/file", "/bin/x")
    tree.add_at(f"{top}/file", "/opt/new/x")
    assert tree.entries["/opt"] == tree.entries["/opt/new"] == Directory()
    if os.path.islink("/bin"):
        assert tree.entries["/bin"] == Link(os.readlink("/bin"))
        assert tree.entries["/usr/bin/x"] == File(f"{top}/file")


def test_two_files_of_one_name_are_a_conflict(top: Path) -> None:
    for name in ("a", "b"):
        (top / name).write_text(name)
    tree = Tree()
    tree.add_at(f"{top}/a", "/x/f")
    tree.add_at(f"{top}/a", "/x/f")
    with pytest.raises(RootError, match=r"/x/f: is to be .*/a and .*/b in the root"):
        tree.add_at(f"{top}/b", "/x/f")
    with pytest.raises(RootError, match="/x/f is a file in the root"):
        tree.add_at(f"{top}/b", "/x/f/g")


def test_a_file_of_the_user_s_wins_over_ours(top: Path) -> None:
    (top / "passwd").write_text("mine")
    tree = Tree()
    tree.add_at(f"{top}/passwd", "/etc/passwd")
    tree.write("/etc/passwd", "ours")
    tree.write("/etc/group", "ours")
    assert tree.entries["/etc/passwd"] == File(f"{top}/passwd")
    assert tree.entries["/etc/group"] == Text("ours")


def test_what_packages_have_put_there_stays(top: Path) -> None:
    (top / "root/usr/lib").mkdir(parents=True)
    (top / "root/usr/lib/liba.so").write_text("theirs")
    (top / "root/lib").symlink_to("usr/lib")
    (top / "liba.so").write_text("of the host")
    tree = Tree()
    tree.take(str(top / "root"))
    assert tree.entries["/lib"] == Present("link", "usr/lib")
    assert tree.add_at(f"{top}/liba.so", "/lib/liba.so") == "/usr/lib/liba.so"
    tree.add_at(f"{top}/liba.so", "/lib/libb.so")
    Writer(top / "root").write(tree.entries)
    assert (top / "root/usr/lib/liba.so").read_text() == "theirs"
    assert (top / "root/lib/libb.so").read_text() == "of the host"


@pytest.mark.parametrize(
    ("path", "to", "text"),
    [
        ("/usr/bin/awk", "/etc/alternatives/awk", "../../etc/alternatives/awk"),
        ("/lib", "usr/lib", "usr/lib"),
        ("/x", "/", "."),
        ("/usr/lib/x", "../share/x", "../share/x"),
        ("/usr/lib/x", "../../etc/x", "../../etc/x"),
        ("/usr/lib/x", "../../../etc/x", "../../etc/x"),
        ("/x", "../../etc/shadow", "etc/shadow"),
        ("/usr/x", "/../../etc/x", "../etc/x"),
    ],
)
def test_no_link_leads_out(path: str, to: str, text: str) -> None:
    assert relative(path, to) == text


def write(top: Path, entries, **more) -> Path:  # type: ignore[no-untyped-def]
    new = top / "new"
    new.mkdir()
    Writer(new, **more).write(entries)
    return new


def test_modes_times_holes_hard_links_and_attributes(top: Path) -> None:
    one = top / "one"
    with one.open("wb") as file:
        file.write(b"begin")
        file.truncate(8 << 20)
        file.seek(8 << 20)
        file.write(b"end")
    one.chmod(0o640)
    os.link(one, top / "two")
    os.utime(one, ns=(10**18, 10**18 + 7))
    has_attributes = True
    try:
        os.setxattr(one, "user.x", b"1")
    except OSError:
        has_attributes = False
    (top / "d").mkdir(mode=0o751)
    os.utime(top / "d", ns=(10**18, 10**18 + 9))
    new = write(top, {
        "/d": Directory(f"{top}/d"), "/d/one": File(str(one)), "/d/two": File(f"{top}/two"),
        "/d/link": Link("/d/one"),
    })  # fmt: skip
    first, second, directory = (os.stat(new / name) for name in ("d/one", "d/two", "d"))
    assert (new / "d/one").read_bytes() == one.read_bytes()
    assert (first.st_ino, first.st_mtime_ns) == (second.st_ino, 10**18 + 7)
    assert stat.S_IMODE(first.st_mode) == 0o640
    assert first.st_blocks <= os.stat(one).st_blocks < (8 << 20) // 512
    assert (stat.S_IMODE(directory.st_mode), directory.st_mtime_ns) == (0o751, 10**18 + 9)
    assert os.readlink(new / "d/link") == "one"
    assert not has_attributes or os.getxattr(new / "d/one", "user.x") == b"1"


def test_a_set_user_id_bit_goes_unless_it_is_wanted(top: Path) -> None:
    (top / "su").write_text("x")
    (top / "su").chmod(0o4755)
    entries = {"/su": File(f"{top}/su")}
    writer = Writer(top)
    (top / "a").mkdir()
    writer.top = top / "a"
    writer.write(entries)
    assert stat.S_IMODE(os.stat(top / "a/su").st_mode) == 0o755
    assert writer.stripped == ["/su"]
    new = write(top, entries, privileged=True)
    assert stat.S_IMODE(os.stat(new / "su").st_mode) == 0o4755


def test_a_table_that_would_write_through_a_link_is_refused(top: Path) -> None:
    (top / "outside").mkdir()
    entries = {"/x": Link(f"{top}/outside"), "/x/f": Text("gone")}
    with pytest.raises(RootError, match="/x: is to be a directory and something else"):
        write(top, entries)
    assert list((top / "outside").iterdir()) == []


def test_a_source_that_became_a_link_is_refused(top: Path) -> None:
    """Whoever owns the directory could put a link there after it was looked at."""
    (top / "f").symlink_to("/etc/passwd")
    (top / "d").symlink_to("/etc")
    for number, source in enumerate((f"{top}/f", f"{top}/d/passwd")):
        (top / str(number)).mkdir()
        with pytest.raises(RootError, match="has become a link"):
            Writer(top / str(number)).write({"/f": File(source)})
    with pytest.raises(RootError, match="has become a link"):
        write(top, {"/x": Directory(f"{top}/d")})
